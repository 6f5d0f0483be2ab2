"""What an operator gets from `helm install`, and what it says of values that are wrong."""

import asyncio
import base64
import json
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import yaml

from mesh import CHART
from tests.e2e.conftest import Status, World
from tests.e2e.test_journey import (
    test_200_customers_at_once_for_50_places_with_30_doses,
    test_a_request_repeated_50_times_at_once_is_one_reservation,
    test_an_approved_request_is_completed_with_a_dose_and_cancelling_gives_it_back,
    test_requests_and_cancellations_are_accepted_while_vaccine_management_is_down,
)

from .conftest import NAME, PATIENCE, Json, Release

# The journey as it is on one machine, without Istio, in a cluster.
__all__ = [
    "test_200_customers_at_once_for_50_places_with_30_doses",
    "test_a_request_repeated_50_times_at_once_is_one_reservation",
    "test_an_approved_request_is_completed_with_a_dose_and_cancelling_gives_it_back",
    "test_requests_and_cancellations_are_accepted_while_vaccine_management_is_down",
]

Figures = Callable[[str], None]


@pytest.mark.quick
async def test_a_fresh_install_completes_a_reservation(release: Release, people: World, figures: Figures) -> None:
    begin = time.monotonic()
    hospital, day = await people.new_hospital(capacity=5, doses=5)
    customer = people.customer()
    reservation = await customer.create(hospital, day)
    await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
    journey = time.monotonic() - begin
    figures(f"helm install --wait {release.installed_within:.0f} s, then to the first COMPLETED {journey:.1f} s")


@pytest.mark.quick
def test_helm_test_passes(release: Release, figures: Figures) -> None:
    done = release.helm("test", NAME, "--timeout", f"{PATIENCE:.0f}s")
    assert done.returncode == 0, done.stdout + done.stderr + release.kubectl("logs", "check", check=False)
    figures(f"{done.stdout.count('Phase:          Succeeded')} test pods succeeded")


def test_a_changed_value_reaches_its_service_and_no_other(release: Release, figures: Figures) -> None:
    def names() -> dict[str, set[str]]:
        return {c: {p["metadata"]["name"] for p in release.pods(c)} for c in release.values["components"]}

    def level() -> str:
        [pod] = release.ready("mypage")
        return release.kubectl("exec", pod, "--", "python", "-c", "import os; print(os.environ['LOG_LEVEL'])").strip()

    before = names()
    begin = time.monotonic()
    try:
        release.upgrade({"components": {"mypage": {"env": {"LOG_LEVEL": "WARNING"}}}})
        release.until("one mypage", lambda: len(release.pods("mypage")) == 1)
        seconds = time.monotonic() - begin
        after = names()
        assert level() == "WARNING"
        [pod] = after["mypage"]
        assert '"level": "info"' not in release.kubectl("logs", pod)
        assert {c for c in before if before[c] != after[c]} == {"mypage"}
    finally:
        release.upgrade({})
    figures(f"LOG_LEVEL reached mypage {seconds:.0f} s after helm upgrade began; no other pod was replaced")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"components": {"reservation": {"replica": 3}}}, ("components.reservation", "replica")),
        ({"components": {"reservation": {"replicas": "three"}}}, ("components.reservation.replicas",)),
        ({"istio": {"enable": True}}, ("istio", "enable")),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_with_its_path(
    release: Release, values: dict[str, object], where: tuple[str, ...], figures: Figures
) -> None:
    before = release.helm("history", NAME, "--output", "json").stdout
    done = release.helm("upgrade", NAME, str(CHART), values=values)
    assert done.returncode != 0
    for part in where:
        assert part in done.stderr.replace("/", "."), done.stderr
    assert release.helm("history", NAME, "--output", "json").stdout == before
    figures(f"{json.dumps(values)} is refused: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A namespace in which nothing is installed: no mode, and nothing that objects would change."""
    namespace = f"{NAME}-{secrets.token_hex(3)}-dry"
    dry = Release(namespace, tmp_path_factory.mktemp("dry"), istio=False, file="values-evaluation.yaml")
    dry.kubectl("create", "namespace", namespace)
    yield dry
    dry.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def objects(dry: Release) -> Callable[..., list[str]]:
    """Gives values to the chart, and all its objects to the API server, which stores nothing; their kinds."""

    def apply(what: list[Json], *flags: str) -> str:
        items = {"kind": "List", "apiVersion": "v1", "items": what}
        return dry.kubectl("apply", *flags, "--filename", "-", stdin=json.dumps(items))

    def accepted(*arguments: str) -> list[str]:
        done = dry.helm("template", NAME, str(CHART), "--validate", *arguments)
        assert done.returncode == 0, done.stderr
        items = [item for item in yaml.safe_load_all(done.stdout) if item]
        # Without its account the pod of helm test would be refused for that.
        accounts = [item for item in items if item["kind"] == "ServiceAccount"]
        apply(accounts)
        assert apply(items, "--dry-run=server").count("(server dry run)") == len(items)
        dry.kubectl("delete", "serviceaccount", *(account["metadata"]["name"] for account in accounts))
        return [item["kind"] for item in items]

    return accepted


ISTIO = {"VirtualService", "DestinationRule", "Gateway", "RequestAuthentication", "AuthorizationPolicy", "EnvoyFilter"}


@pytest.mark.quick
@pytest.mark.parametrize("file", sorted(CHART.glob("values*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("istio", [True, False], ids=["istio", "without"])
def test_every_object_is_accepted_by_the_api_server(
    objects: Callable[..., list[str]], dry: Release, file: object, istio: bool, figures: Figures
) -> None:
    # Names and TLS end in front of a gateway that is not Istio's, and a chart that cannot do it refuses it.
    edge = [] if istio else ["--set", "gateway.tlsSecret=", "--set-json", 'gateway.hosts=["*"]']
    keys = ("--set-json", f"auth.jwks={json.dumps(dry.values['auth']['jwks'])}")  # which istiod, too, can read
    kinds = objects("--values", str(file), "--set", f"istio.enabled={str(istio).lower()}", *keys, *edge)
    apis = dry.kubectl("api-resources", "--output", "name")
    if istio and "virtualservices.networking.istio.io" in apis:
        assert set(kinds) >= ISTIO
    if not istio:
        assert not set(kinds) & ISTIO
    if "prometheusrules.monitoring.coreos.com" in apis:
        assert set(kinds) >= {"PrometheusRule"}
        assert set(kinds) & {"ServiceMonitor", "PodMonitor"}
    figures(f"{len(kinds)} objects: {dict(sorted(Counter(kinds).items()))}")


async def test_a_wrong_secret_is_named_by_the_new_pod_while_the_old_version_serves(
    release: Release, people: World, figures: Figures
) -> None:
    right = release.get("secret", "mypage")["data"]
    for name, changed in (
        ("no-key", {"nats_password": None}),
        ("no-url", {"database_url": base64.b64encode(b"db").decode()}),
    ):
        data = {key: value for key, value in (right | changed).items() if value is not None}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        release.kubectl("apply", "--filename", "-", stdin=json.dumps(secret))
    old = release.ready("mypage")
    before = release.revision()
    hospital, day = await people.new_hospital(capacity=5, doses=5)

    def said_by(pods: str, wanted: str) -> str:
        """The line with the key's name, by a pod's log or of an event about it."""
        told = ["involvedObject.kind=Pod", "type=Warning"]
        events = release.get("events", "--field-selector", ",".join(told))["items"]
        lines = [e["message"] for e in events if e["involvedObject"]["name"].startswith(pods)]
        for pod in release.get("pods")["items"]:
            if pod["metadata"]["name"].startswith(pods):
                lines += release.kubectl("logs", pod["metadata"]["name"], check=False).splitlines()
        return next((line for line in lines if wanted in line), "")

    async def upgrade(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        values = {"components": {"mypage": {"existingSecret": name}}, "migrations": {"deadline": "30s"}}
        return await asyncio.to_thread(release.helm, "upgrade", NAME, str(CHART), *flags, values=values)

    # It stops at the migration, before any pod is replaced; and where that is left out, at the new pod.
    stopped = await upgrade("no-url")
    assert stopped.returncode != 0
    figures(f"helm upgrade stops: {stopped.stderr.strip()[:150]}; {said_by('mypage-migrate', 'DATABASE_URL')}")
    for name, wanted in (("no-url", "DATABASE_URL"), ("no-key", "references non-existent secret key: nats_password")):
        assert (await upgrade(name, "--no-hooks")).returncode == 0
        said = await asyncio.to_thread(release.until, f"a pod says {wanted}", partial(said_by, "mypage-", wanted))
        assert release.ready("mypage") == old
        assert len(release.pods("mypage")) == 2
        customer = people.customer()
        reservation = await customer.create(hospital, day)
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
        figures(f"Secret {name}: the new pod, never ready, says: {said.strip()}; the old one serves")
    await asyncio.to_thread(release.roll_back, before)
    assert release.ready("mypage") == old
