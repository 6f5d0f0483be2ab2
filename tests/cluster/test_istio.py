"""What holds only where Istio is: the breaker between components, other releases beside this one, stores outside."""

import asyncio
import base64
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc.aio
import pytest

from mesh.machine.authority import Authority
from mesh.machine.home import STORE_OF
from tests.e2e.conftest import Status, World, eventually, refusal

from .conftest import NAME, PATIENCE, PORTS, REPOSITORY, TAG, Installed, Json, Release, installation

Figures = Callable[[str], None]
HOST = "booking.example.org"
READ = "import sys, urllib.request; [print(urllib.request.urlopen(url, timeout=60).status) for url in sys.argv[1:]]"


@pytest.fixture(autouse=True)
def _with_istio(istio: bool) -> None:
    if not istio:
        pytest.skip("this is about Istio")


@pytest.mark.quick
def test_a_prometheus_in_the_mesh_reads_every_components_metrics(release: Release) -> None:
    there = ("--namespace", release.values["monitoring"]["namespace"])
    about = ("--image-pull-policy=IfNotPresent", "--restart=Never", "--labels=sidecar.istio.io/inject=true")
    urls = [f"http://{name}.{release.namespace}.svc.cluster.local:9090/metrics" for name in (*STORE_OF, "web")]
    release.kubectl("create", "namespace", there[1])
    try:
        image = f"--image={REPOSITORY}:{TAG}"
        release.kubectl("run", "reader", *there, image, *about, "--command", "--", "python", "-c", READ, *urls)
        phase = ("get", "pod", "reader", *there, "--output=jsonpath={.status.phase}")
        release.until("the reader ends", lambda: release.kubectl(*phase) in ("Succeeded", "Failed"))
        said = release.kubectl("logs", "reader", *there, "--container=reader")
        assert said.split() == ["200"] * len(urls)
    finally:
        release.kubectl("delete", "namespace", there[1], "--wait=false")


def asked(release: Release, pod: str, what: str) -> str:
    """What a pod's Envoy answers to its administrator."""
    return release.kubectl("exec", pod, "-c", "istio-proxy", "--", "pilot-agent", "request", "GET", what)


async def test_the_breaker_between_reservation_and_approval_opens_in_a_rush_and_closes_after_it(
    release: Release, people: World, gateway: str, figures: Figures
) -> None:
    def overflows() -> int:
        what = r"stats?filter=outbound\|8080\|\|approval.*upstream_rq_(active|pending)_overflow"
        told = "".join(asked(release, pod, what) for pod in release.ready("reservation"))
        return sum(int(line.rpartition(": ")[2]) for line in told.splitlines())

    def allow(http: Json) -> None:
        change = {"spec": {"trafficPolicy": {"connectionPool": {"http": http}}}}
        release.kubectl("patch", "destinationrule/approval", "--type=merge", "--patch", json.dumps(change))

    usual = release.get("destinationrule", "approval")["spec"]["trafficPolicy"]["connectionPool"]["http"]
    hospital, day = await people.new_hospital(capacity=2000)
    before = await asyncio.to_thread(overflows)
    await asyncio.to_thread(allow, {"http2MaxRequests": 1, "http1MaxPendingRequests": 1})
    try:
        # Without the interceptor that repeats calls, so that each answer is seen.
        async with grpc.aio.insecure_channel(gateway, [("grpc.enable_retries", 0)]) as channel:
            world = World(people.mesh, channel)

            async def book() -> str:
                try:
                    await world.customer().create(hospital, day)
                except grpc.aio.AioRpcError as error:
                    told = refusal(error)
                    assert told.retry_after, told
                    assert told.localized, told
                    return f"{told.code.name} {told.reason}"
                return "OK"

            answers: Counter[str] = Counter()

            async def rush() -> int:
                answers.update(await asyncio.gather(*(book() for _ in range(24))))
                return await asyncio.to_thread(overflows) - before

            # Until the proxies have heard of it, nobody is refused.
            spent = await eventually(rush, lambda spent: spent > 0 and len(answers) > 1, PATIENCE)
        assert answers.keys() == {"OK", "RESOURCE_EXHAUSTED APPROVAL_BUSY"}
    finally:
        await asyncio.to_thread(allow, usual)
    after = await asyncio.gather(*(people.customer().create(hospital, day) for _ in range(24)))
    assert {reservation.status for reservation in after} == {Status.RESERVATION_STATUS_APPROVED}
    figures(f"with room for one call and one that waits: {dict(answers)}, {spent} overflows; 24 of 24 after it")


@pytest.fixture(scope="module")
def stores(istio: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Stores outside the mesh, in another namespace, with next to nothing beside them."""
    if not istio:
        pytest.skip("this is about Istio")
    values = {
        "evaluation": {"sidecars": False},
        # Another namespace calls.
        "networkPolicy": {"enabled": False},
        "components": {name: {"enabled": False} for name in STORE_OF},
    }
    with installation(tmp_path_factory.mktemp("stores"), values, istio=True) as release:
        yield release


AUTHORITY = Authority()


def secrets(release: Release, stores: Release) -> Iterator[Json]:
    """Those that production's values name: the gateway's certificate, and how each component reaches its store."""

    def secret(name: str, kind: str, **data: str) -> Json:
        about = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind}
        return about | {"stringData": data}

    certificate, key = AUTHORITY.certificate([HOST])
    yield secret("booking-tls", "kubernetes.io/tls", **{"tls.crt": certificate, "tls.key": key})
    passwords = stores.get("secret", "evaluation")["data"]
    for name, store in STORE_OF.items():
        password = base64.b64decode(passwords[name]).decode()
        at = f"{name}:{password}@{store}.{stores.namespace}.svc.cluster.local:{PORTS[store]}/{name}"
        url = (
            f"mongodb://{at}?replicaSet=rs0&authSource={name}"
            if store == "mongo"
            else f"postgresql://{at}?sslmode=disable"
        )
        yield secret(name, "Opaque", database_url=url, nats_password=password)


@pytest.fixture(scope="module")
def production(stores: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart with production's values, a host and a certificate, beside the other releases in one Istio."""
    small: Json = {"replicas": 1, "maxReplicas": 1, "resources": {"requests": {"cpu": "50m"}}}
    values = {
        "auth": {"jwksUri": ""},
        "evaluation": {"enabled": False},
        "nats": {"url": f"nats://nats.{stores.namespace}.svc.cluster.local:4222", "streamReplicas": 1},
        "trust": {"existingSecret": ""},
        "gateway": {**small, "service": {"type": "ClusterIP"}},
        "components": dict.fromkeys((*STORE_OF, "web"), small),
    }

    def before(release: Release) -> None:
        items = list(secrets(release, stores))
        release.kubectl(
            "apply", "--filename", "-", stdin=json.dumps({"kind": "List", "apiVersion": "v1", "items": items})
        )

    home = tmp_path_factory.mktemp("production")
    with installation(home, values, istio=True, file="values-production.yaml", before=before) as release:
        yield release


def test_helm_test_passes_with_productions_host_and_certificate(production: Release, figures: Figures) -> None:
    done = production.helm("test", NAME, "--timeout", f"{PATIENCE:.0f}s")
    assert done.returncode == 0, done.stdout + done.stderr + production.kubectl("logs", "check", check=False)
    assert "NotFound" in production.kubectl("get", "pod/check", "serviceaccount/check", check=False)
    figures(f"installed within {production.installed_within:.0f} s, with stores outside the mesh; helm test passes")


async def test_a_booking_is_completed_over_tls_with_stores_outside_the_mesh(production: Release) -> None:
    trusting = grpc.ssl_channel_credentials(AUTHORITY.root.encode())
    with ExitStack() as stack:
        gateway = production.way_in(stack)
        options = [("grpc.ssl_target_name_override", HOST)]
        async with grpc.aio.secure_channel(gateway, trusting, options) as channel:
            world = World(Installed(production, gateway), channel)
            hospital, day = await world.new_hospital(capacity=5, doses=5)
            customer = world.customer()
            reservation = await customer.create(hospital, day, str(uuid.uuid4()))
            await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
        async with grpc.aio.insecure_channel(gateway) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await World(Installed(production, gateway), channel).customer().create(hospital, day)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_no_gateway_has_another_releases_routes(
    release: Release, stores: Release, production: Release, figures: Figures
) -> None:
    found = {one.namespace: leads_to(one) for one in (release, stores, production)}
    assert found == {namespace: {namespace} for namespace in found}
    figures(f"{len(found)} releases of one name in one Istio: each gateway leads to its own namespace alone")


def leads_to(release: Release) -> set[str]:
    """The namespaces that a gateway's routes lead to."""
    [gateway] = release.ready("gateway")
    told = asked(release, gateway, "config_dump?resource=dynamic_route_configs")
    return set(re.findall(r'"outbound\|8080\|[^|]*\|[a-z]+\.([a-z0-9-]+)\.svc', told))
