"""Logs as JSON lines, metrics for Prometheus, and the trace context that travels with calls and events."""

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TextIO, cast

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, start_http_server
from prometheus_client.samples import Sample

from .addresses import socket_address

log: structlog.stdlib.BoundLogger = structlog.get_logger()

traceparent: ContextVar[str] = ContextVar("traceparent", default="")
"""W3C trace context of the call being served."""
traces_by_key: ContextVar[Mapping[str, str]] = ContextVar("traces_by_key", default={})  # noqa: B039 - never mutated
"""W3C trace contexts of the events being handled, by correlation key."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
rpc_seconds = Histogram("rpc_seconds", "Time to serve an RPC, in seconds.", ["method", "code"], buckets=_BUCKETS)
rpc_refusals = Counter("rpc_refusals_total", "RPCs that ended with an error, by its reason.", ["method", "reason"])
events_published = Counter("events_published_total", "Events that the stream acknowledged.", ["subject"])
events_refused = Counter(
    "events_refused_total", "Times that the stream did not take an event; it is tried again.", ["subject"]
)
events_handled = Counter("events_handled_total", "Events whose effect is committed.", ["subject"])
events_failed = Counter("events_failed_total", "Events that failed and will be tried again.", ["subject"])
events_parked = Counter("events_parked_total", "Events set aside until a version comes that knows them.", ["subject"])
events_dead = Counter("events_dead_total", "Events moved to the dead letters.", ["subject"])
batch_size = Histogram(
    "batch_size", "Items in one transaction.", ["batch"], buckets=(1, 2, 5, 10, 20, 50, 100, 256, 512)
)
outbox_seconds = Histogram(
    "outbox_seconds", "From an event's writing to its acknowledgement by the stream, in seconds.", buckets=_BUCKETS
)
REPLICA = secrets.token_hex(8)
"""Names this process, for whoever compares what it has measured now with what it had measured before."""
component_ready = Gauge("component_ready", "1 while the process serves, else 0.", ["component"])


def start(service: str, level: str, metrics_listen: str) -> None:
    """Sets logging up for the process and opens the metrics endpoint."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _without_row_values,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lines(sys.stdout.fileno()))),
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, handlers=[_LikeOurs(service)])
    host, port = socket_address(metrics_listen)
    start_http_server(port, host)
    component_ready.labels(service).set(0)


class _Lines:
    """Where log lines go. A line that cannot be written is lost, and nothing else is.

    The disk may be full, or the pipe may have no reader any more. Python's own file would raise, in the middle of a
    call whose work is committed already or in a task that the process cannot do without.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._torn = descriptor, False

    def write(self, text: str) -> None:
        """Writes one line; after a part of one, on a line of its own."""
        data = ("\n" * self._torn + text).encode(errors="backslashreplace")
        try:
            self._torn = os.write(self._descriptor, data) < len(data)
        except OSError:
            pass

    def flush(self) -> None:
        """Nothing is kept back."""


class _LikeOurs(logging.Handler):
    """What libraries log, as lines like our own.

    What a library only warns of, it copes with by itself: asyncpg's pool connects again and again while Postgres is
    away. So a warning has the error's type and text, and nothing but an error has the stack.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service  # a library may log in a thread of its own, where no context is bound

    def emit(self, record: logging.LogRecord) -> None:
        about: dict[str, object] = {"logger": record.name}
        if record.levelno >= logging.ERROR:
            about["exc_info"] = record.exc_info
        elif record.exc_info and (error := record.exc_info[1]):
            about |= {"error": type(error).__name__, "detail": without_row_values(str(error))}
        try:
            log.log(record.levelno, record.getMessage(), service=self._service, **about)
        except Exception:
            self.handleError(record)  # what cannot be logged is not the library's trouble


def measured(names: Sequence[str]) -> Iterator[Sample]:
    """The present samples that have one of the names."""
    for metric in REGISTRY.restricted_registry(names).collect():
        yield from metric.samples


def without_row_values(text: str) -> str:
    """An error's text without what Postgres and MongoDB quote from rows: it may be about a person."""
    return re.sub(r"(\n(DETAIL|CONTEXT|HINT):|, full error:).*", "", text)


def _without_row_values(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Leaves out what a store's error quotes from its rows: it may be about a person."""
    if "exception" in event:
        event["exception"] = without_row_values(event["exception"])
    return event


def new_traceparent() -> str:
    """A new W3C trace context, sampled."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
