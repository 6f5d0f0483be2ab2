"""The spans of a trace, sent by OTLP over HTTP when there is somewhere to send them.

Without an endpoint OpenTelemetry is not even imported: a span hands on the context it was given, and that is all.
Attributes say what was done and how it went, never to whom or by whom.
"""

import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from .telemetry import new_traceparent

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
STOP_WITHIN = 2.0  # seconds for the last spans to be sent: a collector that is away must not hold up a drain
Kind = Literal["SERVER", "CLIENT", "PRODUCER", "CONSUMER"]

_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None


class Span:
    """One span of a trace; `traceparent` is the context for what comes out of it."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, traceparent: str, span: "OtelSpan | None" = None) -> None:
        self.traceparent, self._span = traceparent, span

    def end(self, code: str = "", failed: bool = False) -> None:
        """It is over; `code` is the status of a call, by its name."""
        if self._span is not None:
            if code:
                self._span.set_attribute("rpc.response.status_code", code)
            if failed:
                from opentelemetry.trace import StatusCode

                self._span.set_status(StatusCode.ERROR)
            self._span.end()


def start(service: str, endpoint: str) -> None:
    """Begins to export for the process, unless `endpoint`, the collector's base URL, is empty.

    Everything else is OpenTelemetry's own variables: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on.
    """
    global _provider, _tracer
    if not endpoint:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    _provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("services.chassis")


def stop() -> None:
    """Sends what is left, for at most STOP_WITHIN; blocks."""
    global _provider, _tracer
    if _provider is not None:
        sending = threading.Thread(target=_provider.shutdown, daemon=True)
        sending.start()
        sending.join(STOP_WITHIN)
    _provider = _tracer = None


def exporting() -> bool:
    """Whether anybody will see a span: code that would make many of them asks first."""
    return _tracer is not None


def begin(name: str, kind: Kind, parent: str, attributes: Mapping[str, str | int]) -> Span:
    """A span of the trace that `parent` (a traceparent) belongs to, or of a new one if that is empty."""
    if _tracer is None:
        return Span(parent or new_traceparent())
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator, carrier = TraceContextTextMapPropagator(), dict[str, str]()
    # An empty context instead of the current one, in which nothing of ours is.
    context = propagator.extract({"traceparent": parent}, Context())
    span = _tracer.start_span(name, context, SpanKind[kind], dict(attributes))
    propagator.inject(carrier, set_span_in_context(span, Context()))
    return Span(carrier["traceparent"], span)


def of_message(operation: str, subject: str, batch: int) -> dict[str, str | int]:
    """Attributes of a span that sends or handles one of a batch of messages."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": subject,
        "messaging.batch.message_count": batch,
    }
