"""The one interceptor: trace, caller, validation, errors, metrics and the log line of every RPC."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from math import ceil
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from . import tracing
from .caller import admit, while_valid
from .contract import violations
from .errors import Errors, InvalidFields, MalformedRequest, Overloaded, RoleNotAllowed, details_of, to_status
from .telemetry import log, rpc_refusals, rpc_seconds, traceparent

# What the chassis itself serves: probes and reflection, for anybody who can reach the port.
_OPEN = ("/grpc.health.", "/grpc.reflection.")
# What the server is to blame for, by OpenTelemetry's conventions; any other code is an answer. The conventions also
# name DEADLINE_EXCEEDED, but here only a stream ends with it, at the deadline that its client has set.
_FAULTS = {"UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
Trailers = tuple[tuple[str, str | bytes], ...]
# A stream ends itself so many seconds before its client's deadline, at most a tenth of the time that was given. At the
# deadline gRPC's server would reset it, and of a reset the gateway makes INTERNAL.
BEFORE_DEADLINE = 0.5
# Refusals of Overloaded made in advance, so that one costs no protobuf: enough to spread those who come back.
VARIANTS = 32

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def time_left(own: float) -> float:
    """Seconds for a call to another service: `own`, or what the RPC being served has left of its own deadline if that
    is less. What is done for somebody who waits no longer is done in vain, and in overload in somebody's way."""
    deadline = _deadline.get()
    return own if deadline is None else max(0.0, min(own, deadline - time.monotonic()))


class Edge(grpc.aio.ServerInterceptor):
    """Stands around every method of the server.

    With `max_calls` calls or `max_streams` streams in hand, what comes above is refused and never queues. They are
    counted here and not by gRPC's server, which would refuse the probes too: under load the process would be taken for
    dead, and killed.
    """

    def __init__(
        self,
        *errors: Errors,
        max_calls: int,
        max_streams: int,
        claim_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._errors, self._claim_names = errors, claim_names
        self._max_calls, self._max_streams = max_calls, max_streams
        self._wrapped: dict[str, _Wrapped] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._streams = 0
        self._refusals = []
        for i in range(VARIANTS):
            error = Overloaded(1.0 + i / VARIANTS)
            code, _, status = to_status(error)
            self._refusals.append((code, status.message, _trailers(status, error.retry_after)))

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        """Wraps a method's handler once and remembers it; gives one that refuses while there is too much in hand."""
        method = details.method
        if method not in self._wrapped:
            handler = await continuation(details)
            if handler is None or method.startswith(_OPEN):
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        wrapped = self._wrapped[method]
        return wrapped.refusing if wrapped.full() else wrapped.serving

    async def finish(self) -> None:
        """Waits for what was begun: also calls whose clients have gone."""
        while self._running:
            await asyncio.wait(self._running)

    def _wrap(self, method: str, handler: Any) -> "_Wrapped":
        serving = handler.unary_unary or handler.unary_stream
        roles: frozenset[str] | None = getattr(serving, "allowed_roles", None)
        about = {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}
        refused = rpc_refusals.labels(method, "OVERLOADED")

        def full() -> bool:
            return len(self._running) >= self._max_calls

        def no_more_streams() -> bool:
            return self._streams >= self._max_streams

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            refused.inc()
            await context.abort(*random.choice(self._refusals))  # noqa: S311 - spreads those who come back

        def enter(raw: bytes, context: grpc.aio.ServicerContext[Any, Any], observed: _Observed) -> Message:
            left = context.time_remaining()
            _deadline.set(None if left is None else time.monotonic() + left)
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            trace = metadata.get("traceparent", "")  # from outside, and stored with every event: nothing but what it is
            parent = trace if tracing.TRACEPARENT.fullmatch(trace) else ""
            observed.span = tracing.begin(about["rpc.method"], "SERVER", parent, about)
            traceparent.set(observed.span.traceparent)
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
            if full():  # asked again: of calls that arrive together all have passed the first time
                await refuse(raw, context)
            with _Observed(method) as observed:
                try:
                    request = enter(raw, context, observed)
                    # grpc.aio cancels the handler at the client's deadline; what may have begun to commit must finish.
                    task = asyncio.create_task(serving(request, context))
                    self._running.add(task)
                    task.add_done_callback(self._done)
                    return await asyncio.shield(task)
                except Exception as error:
                    await self._abort(error, context, observed)

        async def stream(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            if no_more_streams():
                await refuse(raw, context)
            with _Observed(method) as observed:
                self._streams += 1
                try:
                    request = enter(raw, context, observed)
                    left = context.time_remaining()
                    within = None if left is None else left - min(BEFORE_DEADLINE, left / 10)
                    async with aclosing(while_valid(serving(request, context), within)) as responses:
                        async for response in responses:
                            yield response
                except Exception as error:
                    await self._abort(error, context, observed)
                finally:
                    self._streams -= 1

        # Without a deserializer: gRPC's own answer to what cannot be read is UNKNOWN with the exception's text.
        # And refused as if the requests were a stream: then gRPC does not read the request first.
        refusing: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(refuse)
        serializer = handler.response_serializer
        made: grpc.RpcMethodHandler[Any, Any]
        if handler.unary_stream:
            made = grpc.unary_stream_rpc_method_handler(stream, response_serializer=serializer)
            return _Wrapped(made, refusing, no_more_streams)
        return _Wrapped(grpc.unary_unary_rpc_method_handler(unary, response_serializer=serializer), refusing, full)

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
            with suppress(Exception):  # see _Observed
                log.error("unexpected error", exc_info=error)
        await context.abort(code, status.message, _trailers(status, details_of(error).retry_after))


class _Wrapped(NamedTuple):
    """A method's handlers, and which of them is the right one now."""

    serving: "grpc.RpcMethodHandler[Any, Any]"  # quoted: generic for type checkers alone
    refusing: "grpc.RpcMethodHandler[Any, Any]"
    full: Callable[[], bool]


def _trailers(status: status_pb2.Status, retry_after: float | None) -> Trailers:
    """What goes with an error; the second is REST's, where the gateway makes a header of it."""
    details = ("grpc-status-details-bin", status.SerializeToString())
    return (details,) if retry_after is None else (details, ("retry-after", str(ceil(retry_after))))


class _Observed:
    """Measures and logs one RPC, and ends its span."""

    def __init__(self, method: str) -> None:
        self._method, self.code, self.reason = method, "OK", ""
        self.span: tracing.Span | None = None  # a call that is shed has none

    def __enter__(self) -> "_Observed":
        self._begin = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.code == "OK":
            self.code = "CANCELLED"
        # What is raised here would take the place of the answer: the caller would read its text as UNKNOWN.
        with suppress(Exception):
            self._tell(time.perf_counter() - self._begin)

    def _tell(self, seconds: float) -> None:
        rpc_seconds.labels(self._method, self.code).observe(seconds)
        if self.reason:
            rpc_refusals.labels(self._method, self.reason).inc()
        if self.span is not None:
            self.span.end(self.code, failed=self.code in _FAULTS)
        log.info("rpc", method=self._method, code=self.code, reason=self.reason, ms=round(seconds * 1000, 2))


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The google.rpc.Status that came with an error from another service, if one did."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return None
