"""Traces cost nothing without an endpoint, and a gauge never shows an old figure."""

import subprocess
import sys

from prometheus_client import CollectorRegistry, Gauge

from services.chassis import tracing
from services.chassis.gauges import Probe

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_without_an_endpoint_a_span_hands_on_the_context_it_was_given() -> None:
    tracing.start("test", "")
    assert not tracing.exporting()
    span = tracing.begin("call", "SERVER", PARENT, {})
    assert span.traceparent == PARENT
    span.end("OK")
    assert tracing.TRACEPARENT.fullmatch(tracing.begin("call", "SERVER", "", {}).traceparent)


def test_without_an_endpoint_opentelemetry_is_not_even_imported() -> None:
    script = (
        "import sys; import services.chassis.server; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_span_is_the_parent_of_the_next_one_and_an_absent_collector_delays_nobody() -> None:
    tracing.start("test", "http://127.0.0.1:1")
    try:
        span = tracing.begin("call", "SERVER", PARENT, {})
        version, trace, span_id, flags = span.traceparent.split("-")
        assert (version, trace, flags) == ("00", PARENT.split("-")[1], "01")
        assert span_id != PARENT.split("-")[2]
        span.end("INTERNAL", failed=True)
        unwanted = tracing.begin("call", "SERVER", PARENT[:-2] + "00", {})
        assert unwanted.traceparent.endswith("-00"), "who began the trace decides whether it is kept"
        for broken in ("", "garbage", PARENT + "-more", PARENT.upper()):
            fresh = tracing.begin("call", "SERVER", broken, {}).traceparent
            assert tracing.TRACEPARENT.fullmatch(fresh)
            assert PARENT.split("-")[1] not in fresh
    finally:
        tracing.stop()
    assert not tracing.exporting()


async def test_a_gauge_that_cannot_be_read_is_not_shown_until_it_can() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("depth", "...", ["component"], registry=registry)
    answers: list[float | Exception] = [3, OSError("away"), 5]

    async def ask() -> None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        gauge.labels("test").set(answer)

    probe, seen = Probe([gauge], ask), []
    for _ in range(3):
        await probe.take()
        seen.append(registry.get_sample_value("depth", {"component": "test"}))
    assert seen == [3, None, 5]
