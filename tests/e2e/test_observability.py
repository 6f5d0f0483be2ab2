"""The mesh shows traces, and the metrics that alerts and dashboards read."""

import asyncio
import gzip
import json
import re
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from mesh import ROOT
from mesh.machine import Mesh
from mesh.machine.home import SERVICES

from .conftest import Client, Status, World, delivery, eventually

Span = trace_pb2.Span
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FILES = ROOT / "helm/vaccination/files"


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receive)
        self.spans: list[tuple[str, Span]] = []  # each with its service

    def of(self, trace: str) -> list[tuple[str, Span]]:
        """A trace's spans so far."""
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace]


class Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            self.server.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a port of its own."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
async def traced(world: World, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The mesh, with services that export their spans to the collector."""

    async def restart() -> None:
        await asyncio.gather(*(world.stop(service) for service in SERVICES))
        await asyncio.to_thread(world.mesh.up)

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # ms
    await restart()
    yield world
    monkeypatch.undo()
    await restart()


def begun(client: Client, trace: str) -> Client:
    """The client, whose calls from now on belong to the trace."""
    client.metadata.append(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    return client


async def test_one_booking_is_one_trace_through_all_four_services(traced: World, collector: Collector) -> None:
    hospital, day = await traced.new_hospital(capacity=1, doses=1)
    customer = traced.customer("sora-kim")
    booked = await begun(customer, TRACE).create(hospital, day)
    customer.metadata.pop()
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    # Each process sends its spans in batches of its own, so the last spans may arrive before those between.
    event = "vaccination.vaccinemgmt.v1.ReservationCompleted"
    last = {("mypage", f"process {event}"), ("reservation", f"process {event}"), ("vaccinemgmt", f"send {event}"),
            ("vaccinemgmt", "process vaccination.approval.v1.ApprovalGranted"),
            ("mypage", "process vaccination.approval.v1.ApprovalGranted"),
            ("approval", "send vaccination.approval.v1.ApprovalGranted")}  # fmt: skip

    async def look() -> list[tuple[str, Span]]:
        return collector.of(TRACE)

    found = await eventually(look, lambda spans: last <= {(service, span.name) for service, span in spans})
    by_id = {span.span_id: (service, span) for service, span in found}

    def way(service: str, span: Span) -> list[str]:
        """The spans from the call to this span."""
        parent = by_id.get(span.parent_span_id)
        return [*(way(*parent) if parent else []), f"{service}: {span.name}"]

    ways = [way(service, span) for service, span in found]
    asked = [
        "reservation: vaccination.reservation.v1.ReservationService/CreateReservation",
        "reservation: vaccination.approval.v1.ApprovalService/Approve",
        "approval: vaccination.approval.v1.ApprovalService/Approve",
        "approval: send vaccination.approval.v1.ApprovalGranted",
    ]
    completed = [
        "vaccinemgmt: process vaccination.approval.v1.ApprovalGranted",
        "vaccinemgmt: send vaccination.vaccinemgmt.v1.ReservationCompleted",
    ]
    assert [*asked, "mypage: process vaccination.approval.v1.ApprovalGranted"] in ways
    assert [*asked, *completed, f"reservation: process {event}"] in ways
    assert [*asked, *completed, f"mypage: process {event}"] in ways
    assert {one[0] for one in ways} == {asked[0]}, "nothing hangs in the air"
    kinds = {span.kind for _, span in found}
    assert kinds == {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER}

    everything = "".join(str(span) for _, span in collector.spans)
    for personal in ("sora-kim", hospital, booked.reservation_id, str(day)):
        assert personal not in everything, "no personal data in spans"


async def test_a_dose_given_out_after_a_wait_is_in_the_bookings_trace(traced: World, collector: Collector) -> None:
    trace = TRACE[::-1]
    hospital, day = await traced.new_hospital(capacity=1)
    customer = traced.customer()
    booked = await begun(customer, trace).create(hospital, day)
    customer.metadata.pop()

    async def waits() -> int:
        return len(await traced.operator.waiting(hospital))

    await eventually(waits, lambda n: n == 1)
    await traced.operator.register(hospital, delivery(1))
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)

    async def look() -> set[tuple[str, str]]:
        return {(service, span.name) for service, span in collector.of(trace)}

    await eventually(look, lambda seen: ("mypage", "process vaccination.vaccinemgmt.v1.ReservationCompleted") in seen)


async def test_a_refusal_is_not_a_failed_span(traced: World, collector: Collector) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    customer = begun(traced.customer(), trace)
    with pytest.raises(Exception, match="NOT_FOUND"):
        await customer.create("h-nowhere", "2030-01-01")

    async def look() -> dict[str, Span]:
        return {f"{service} {span.kind}": span for service, span in collector.of(trace)}

    spans = await eventually(look, lambda seen: f"reservation {Span.SPAN_KIND_SERVER}" in seen)
    [code] = [
        a.value.string_value
        for a in spans[f"reservation {Span.SPAN_KIND_SERVER}"].attributes
        if a.key == "rpc.response.status_code"
    ]
    assert code == "NOT_FOUND"
    assert spans[f"reservation {Span.SPAN_KIND_SERVER}"].status.code == trace_pb2.Status.STATUS_CODE_UNSET


def expressions() -> dict[str, str]:
    """Every PromQL expression of alerts and dashboards, by where it is."""
    found = {}
    for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]:
        for i, rule in enumerate(group["rules"]):
            found[f"{rule['alert']}-{i}"] = rule["expr"]
    for file in sorted((FILES / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                found[f"{file.stem}: {panel['title']}-{target['refId']}"] = target["expr"]
    return found


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression reads: every name that is not a function, keyword, label or value."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    names = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", text)
    aggregations = set(re.findall(r"\b(sum|max|min|count|avg)\b", text))
    kubelets = {name for name in names if name.startswith("kubelet_")}  # of volumes, which only a cluster has
    return set(names) - aggregations - kubelets - {"and", "or", "unless", "bool", "offset"}


def labels_read(expression: str) -> set[tuple[str, str]]:
    """(metric, label) of every matcher in an expression."""
    found = set()
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression):
        found |= {(name, label) for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', "", matchers))}
    return found


def get(url: str) -> str:
    """The page at the URL, fetched without a proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        return str(answer.read(), "utf-8")


async def pages(mesh: Mesh) -> list[str]:
    """The pages that Prometheus gets from every service, and as the last one from Envoy."""
    urls = [f"http://{mesh.home.address(f'{service}-metrics')}/metrics" for service in SERVICES]
    urls.append(f"http://{mesh.home.address('envoy-admin')}/stats/prometheus")
    return [await asyncio.to_thread(get, url) for url in urls]


async def scraped(mesh: Mesh) -> dict[str, set[str]]:
    """The names of all metrics as Prometheus would keep them, with the labels of the samples that there are."""
    found: dict[str, set[str]] = {}
    for page in await pages(mesh):
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, flags=re.MULTILINE):
            for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
                found.setdefault(name + suffix, set())
        for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", page, flags=re.MULTILINE):
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


async def test_alerts_and_dashboards_read_metrics_that_exist(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    customer = world.customer()
    booked = await customer.create(hospital, day)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    read = {where: metric_names(expression) for where, expression in expressions().items()}
    assert {"rpc_seconds_bucket", "outbox_oldest_seconds"} <= set.union(*read.values())

    async def missing() -> dict[str, set[str]]:
        names = set(await scraped(world.mesh))
        return {where: lacking for where, wanted in read.items() if (lacking := wanted - names)}

    assert await missing() == {}

    async def mislabelled() -> set[tuple[str, str]]:
        have = await scraped(world.mesh)
        # Envoy's clusters have one of two labels: see the test of the breaker.
        of_the_scrape = {"namespace", "job", "instance", "cluster_name", "envoy_cluster_name"}
        wanted = {pair for expression in expressions().values() for pair in labels_read(expression)}
        return {(m, label) for m, label in wanted if have[m] and label not in have[m] | of_the_scrape}

    await eventually(mislabelled, lambda seen: seen == set())


async def test_the_breakers_alert_sees_every_way_to_approval(world: World) -> None:
    """Envoy's tags split a metric into its name and labels, and a cluster's name with dots could end up in both."""
    metric = "upstream_rq_(?:active|pending)_overflow"
    *_, envoy = await pages(world.mesh)
    seen = re.findall(rf'^envoy_cluster_{metric}{{(?:envoy_)?cluster_name="[^"]*approval[^"]*"}} ', envoy, re.MULTILINE)
    admin = f"http://{world.mesh.home.address('envoy-admin')}/stats"
    counters = re.findall(rf"^cluster\..*approval.*\.{metric}:", await asyncio.to_thread(get, admin), re.MULTILINE)
    assert len(seen) == len(counters) > 0


async def test_no_metric_is_about_a_person_a_hospital_or_a_day(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=1, doses=1)
    customer = world.customer("sora-kim")
    booked = await customer.create(hospital, day)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    for page in await pages(world.mesh):
        for one in ("sora-kim", hospital, str(day), booked.reservation_id):
            assert one not in page, "labels that many values have make series without end"
