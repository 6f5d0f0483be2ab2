"""HTTP for a component without RPCs: it serves, tells whether it is ready, and drains.

Granian speaks HTTP/1.1 and, in plain text too, HTTP/2, which is what the proxies speak to every component.
"""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from granian.constants import Interfaces
from granian.rsgi import HTTPProtocol, ProtocolClosed, Scope  # type: ignore[attr-defined]
from granian.server.embed import Server
from prometheus_client import Counter

from . import telemetry
from .addresses import socket_address
from .settings import Process
from .telemetry import log

LIVE, READY = "/livez", "/readyz"
LONGEST_BODY = 64 * 1024  # bytes of a request; nobody sends more than a form

http_requests = Counter("http_requests_total", "HTTP requests answered, by status.", ["component", "code"])


@dataclass(frozen=True)
class Request:
    """What was asked. Names of headers are in lower case; `body` is empty if there was none."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def parameters(self) -> dict[str, str]:
        """The query's parameters, each once: of those that are repeated the last one counts."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def form(self) -> dict[str, str]:
        """The fields of a form that was sent."""
        return dict(parse_qsl(self.body.decode(errors="replace"), keep_blank_values=True))


@dataclass(frozen=True)
class Answer:
    """What is answered."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Handler = Callable[[Request], Awaitable[Answer]]


async def serve(name: str, settings: Process, handle: Handler) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    host, port = socket_address(settings.listen)
    _refuse_taken(host, port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def answer(scope: Scope, protocol: HTTPProtocol) -> None:
        if scope.path == LIVE:
            answered = Answer(200)
        elif scope.path == READY:
            answered = Answer(503 if stop.is_set() else 200)
        else:
            answered = await _answer(handle, scope, protocol)
            http_requests.labels(name, str(answered.status)).inc()
        headers = list(answered.headers.items())
        if answered.status not in (204, 304):  # of these it would be about the content that is not sent
            headers.append(("content-length", str(len(answered.body))))
        try:
            if scope.method == "HEAD" or not answered.body:
                protocol.response_empty(answered.status, headers)
            else:
                protocol.response_bytes(answered.status, headers, answered.body)
        except ProtocolClosed:
            pass  # the client did not wait

    server = Server(answer, host, port, interface=Interfaces.RSGI, websockets=False, log_enabled=False)
    serving = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    telemetry.component_ready.labels(name).set(1)
    log.info("ready", listen=settings.listen)
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    telemetry.component_ready.labels(name).set(0)
    if not serving.done():
        log.info("draining")
        await asyncio.sleep(settings.drain_seconds)
        server.stop()  # type: ignore[no-untyped-call]  # requests in hand are answered
        await asyncio.wait([serving], timeout=settings.shutdown_seconds)
    log.info("stopped")
    if serving.done():
        serving.result()


async def _answer(handle: Handler, scope: Scope, protocol: HTTPProtocol) -> Answer:
    headers = dict(scope.headers.items())
    body = b""
    try:
        if scope.method not in ("GET", "HEAD"):
            # Piece by piece: a body need not say how long it is, and may have no end.
            async for piece in protocol:
                body += piece
                if len(body) > LONGEST_BODY:
                    return Answer(413)
        return await handle(Request(scope.method, scope.path, scope.query_string, headers, body))
    except ProtocolClosed:
        return Answer(499)  # the client has gone
    except Exception:
        log.exception("a request failed", path=scope.path)
        return Answer(500)


def _refuse_taken(host: str, port: int) -> None:
    """Granian shares its port with whoever else wants it: of two processes each would get a part of the requests."""
    with closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SystemExit(f"cannot listen on {host}:{port}: {error.strerror}") from None
