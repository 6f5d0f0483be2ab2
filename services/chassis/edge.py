"""The one interceptor: trace, caller, validation, errors, metrics and the log line of every RPC."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any

import grpc
import protovalidate
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from . import tracing
from .caller import admit
from .errors import Errors, InvalidFields, MalformedRequest, Overloaded, RoleNotAllowed, to_status
from .telemetry import log, rpc_refusals, rpc_seconds, traceparent

# Work in hand at once, of calls and of streams; what comes above is refused at once and never queues. Counted here and
# not by gRPC's server, which would refuse the probes too: under load the process would be taken for dead, and killed.
MAX_CALLS = 1000
MAX_STREAMS = 1000

_validator = protovalidate.Validator()
# What the chassis itself serves: probes and reflection, for anybody who can reach the port.
_OPEN = ("/grpc.health.", "/grpc.reflection.")
# What the server is to blame for, by OpenTelemetry's conventions; any other code is an answer.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def violations(message: Message) -> list[tuple[str, str]]:
    """The contract's rules that a message breaks, as (field path, what is wrong)."""
    found = []
    for violation in _validator.collect_violations(message):
        path = ""
        for element in violation.proto.field.elements if violation.proto.field else ():
            path += f".{element.field_name}" if path else element.field_name
            if element.subscript and element.subscript.field == "index":
                path += f"[{element.subscript.value}]"
        found.append((path, violation.proto.message or violation.proto.rule_id))
    return found


class Edge(grpc.aio.ServerInterceptor):
    """Stands around every method of the server."""

    def __init__(
        self,
        *errors: Errors,
        claim_names: Mapping[str, str] = MappingProxyType({}),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._errors, self._claim_names, self._jitter = errors, claim_names, jitter
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._streams = 0

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        """Wraps a method's handler once and remembers it."""
        method = details.method
        if method not in self._wrapped:
            handler = await continuation(details)
            if handler is None or method.startswith(_OPEN):
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    async def finish(self) -> None:
        """Waits for what was begun: also calls whose clients have gone."""
        while self._running:
            await asyncio.wait(self._running)

    def _wrap(self, method: str, handler: Any) -> Any:
        serving = handler.unary_unary or handler.unary_stream
        roles: frozenset[str] | None = getattr(serving, "allowed_roles", None)
        about = {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}

        def enter(raw: bytes, context: grpc.aio.ServicerContext[Any, Any], observed: _Observed) -> Message:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            trace = metadata.get("traceparent", "")  # from outside, and stored with every event: nothing but what it is
            parent = trace if tracing.TRACEPARENT.fullmatch(trace) else ""
            observed.step = tracing.begin(about["rpc.method"], "SERVER", parent, about)
            traceparent.set(observed.step.traceparent)
            structlog.contextvars.bind_contextvars(trace=traceparent.get()[3:35])
            if roles is None:
                raise RoleNotAllowed("this call is for nobody")
            admit(metadata, roles, self._claim_names)
            try:
                request: Message = handler.request_deserializer(raw)
            except DecodeError:
                raise MalformedRequest("the request cannot be read as the message of this method") from None
            if broken := violations(request):
                raise InvalidFields(broken)
            return request

        async def unary(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Observed(method) as observed:
                try:
                    if len(self._running) >= MAX_CALLS:
                        raise Overloaded(1.0 + self._jitter())
                    request = enter(raw, context, observed)
                    # grpc.aio cancels the handler at the client's deadline; what may have begun to commit must finish.
                    task = asyncio.create_task(serving(request, context))
                    self._running.add(task)
                    task.add_done_callback(self._done)
                    return await asyncio.shield(task)
                except Exception as error:
                    await self._abort(error, context, observed)

        async def stream(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with _Observed(method) as observed:
                self._streams += 1
                try:
                    if self._streams > MAX_STREAMS:
                        raise Overloaded(1.0 + self._jitter())
                    request = enter(raw, context, observed)
                    async with aclosing(serving(request, context)) as responses:
                        async for response in responses:
                            yield response
                except Exception as error:
                    await self._abort(error, context, observed)
                finally:
                    self._streams -= 1

        # Without a deserializer: gRPC's own answer to what cannot be read is UNKNOWN with the exception's text.
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, response_serializer=handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=handler.response_serializer)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody awaits it when the client has gone

    async def _abort(
        self, error: Exception, context: grpc.aio.ServicerContext[Any, Any], observed: "_Observed"
    ) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        code, observed.reason, status = to_status(error, *self._errors)
        observed.code = code.name
        if code is grpc.StatusCode.INTERNAL:
            log.error("unexpected error", exc_info=error)
        await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


class _Observed:
    """Measures and logs one RPC, and ends its step of the trace."""

    def __init__(self, method: str) -> None:
        self._method, self.code, self.reason = method, "OK", ""
        self.step: tracing.Step | None = None  # a call that is shed has none

    def __enter__(self) -> "_Observed":
        self._begin = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = time.perf_counter() - self._begin
        if kind is not None and self.code == "OK":
            self.code = "CANCELLED"
        rpc_seconds.labels(self._method, self.code).observe(seconds)
        if self.reason:
            rpc_refusals.labels(self._method, self.reason).inc()
        if self.step is not None:
            self.step.end(self.code, failed=self.code in _FAULTS)
        log.info("rpc", method=self._method, code=self.code, reason=self.reason, ms=round(seconds * 1000, 2))


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The google.rpc.Status that came with an error from another service, if one did."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return None
