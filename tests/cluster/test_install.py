"""What an operator gets from `helm install`, and what it says of values that are wrong."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import yaml

from mesh.chart import CHART
from tests.e2e.conftest import Status, World
from tests.e2e.test_journey import (
    test_200_customers_at_once_for_50_places_with_30_doses,
    test_a_request_repeated_50_times_at_once_is_one_reservation,
    test_an_approved_request_is_completed_with_a_dose_and_cancelling_gives_it_back,
    test_requests_and_cancellations_are_accepted_while_vaccine_management_is_down,
)

from .conftest import HELM, NAME, PATIENCE, Release

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
    done = release.helm("test", NAME, "--logs", "--timeout", f"{PATIENCE:.0f}s")
    assert done.returncode == 0, done.stdout + done.stderr
    figures(f"{done.stdout.count('Phase:          Succeeded')} test pods succeeded")


def test_a_changed_value_reaches_its_service_and_no_other(release: Release, figures: Figures) -> None:
    def names() -> dict[str, set[str]]:
        return {c: {p["metadata"]["name"] for p in release.pods(c)} for c in release.values["components"]}

    def level() -> str:
        [pod] = release.ready("mypage")
        return release.kubectl("exec", pod, "--", "python", "-c", "import os; print(os.environ['LOG_LEVEL'])").strip()

    before = names()
    begin = time.monotonic()
    release.upgrade({"components": {"mypage": {"env": {"LOG_LEVEL": "WARNING"}}}})
    release.until("one mypage", lambda: len(release.pods("mypage")) == 1)
    seconds = time.monotonic() - begin
    after = names()
    assert level() == "WARNING"
    [pod] = after["mypage"]
    assert '"level": "info"' not in release.kubectl("logs", pod)
    assert {c for c in before if before[c] != after[c]} == {"mypage"}
    figures(f"LOG_LEVEL reached mypage {seconds:.0f} s after helm upgrade began; no other pod was replaced")
    release.upgrade({})


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


@pytest.fixture
def objects(release: Release) -> Iterator[Callable[..., list[str]]]:
    """Gives values to the chart, and all its objects to the API server, which stores nothing; their kinds."""
    namespace = f"{release.namespace}-dry"  # in the installation's own they would change what cannot be changed
    release.kubectl("create", "namespace", namespace)

    def accepted(*arguments: str) -> list[str]:
        import subprocess

        render = [str(HELM), "template", NAME, str(CHART), "--validate", "--namespace", namespace, *arguments]
        rendered = subprocess.run(render, capture_output=True, text=True, check=False)
        assert rendered.returncode == 0, rendered.stderr
        kinds = [item["kind"] for item in yaml.safe_load_all(rendered.stdout) if item]
        apply = ["kubectl", "apply", "--dry-run=server", "--namespace", namespace, "--filename", "-"]
        applied = subprocess.run(apply, input=rendered.stdout, capture_output=True, text=True, check=False)
        assert applied.returncode == 0, applied.stderr
        assert applied.stdout.count("(server dry run)") == len(kinds)
        return kinds

    yield accepted
    release.kubectl("delete", "namespace", namespace, "--wait=false")


ISTIO = {"VirtualService", "DestinationRule", "Gateway", "RequestAuthentication", "AuthorizationPolicy", "EnvoyFilter"}


@pytest.mark.quick
@pytest.mark.parametrize("file", sorted(CHART.glob("values*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("istio", [True, False], ids=["istio", "without"])
def test_every_object_is_accepted_by_the_api_server(
    objects: Callable[..., list[str]], release: Release, file: object, istio: bool, figures: Figures
) -> None:
    kinds = objects(
        "--values", str(file), "--set", f"istio.enabled={str(istio).lower()}", "--set-json", 'auth.jwks="{}"'
    )
    apis = release.kubectl("api-resources", "--output", "name")
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
    keys = {"database_url", "nats_password"}
    no_key = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "no-key"}, "data": {}}
    no_key["data"] = {"database_url": right["database_url"]}
    assert keys <= right.keys()
    no_url = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "no-url"},
        "stringData": {"database_url": "db"},
    }
    no_url["data"] = {"nats_password": right["nats_password"]}
    for wrong in (no_key, no_url):
        release.kubectl("apply", "--filename", "-", stdin=json.dumps(wrong))
    old = release.ready("mypage")
    hospital, day = await people.new_hospital(capacity=5, doses=5)

    for name, says in (("no-key", "nats_password"), ("no-url", "DATABASE_URL")):
        values = {"components": {"mypage": {"existingSecret": name}}}
        upgrading = asyncio.create_task(
            asyncio.to_thread(release.helm, "upgrade", NAME, str(CHART), "--timeout", "60s", values=values)
        )

        def complaint(says: str = says, name: str = name) -> str:
            events = release.kubectl("get", "events", "--output", "jsonpath={range .items[*]}{.message}{'\\n'}{end}")
            selector = f"app.kubernetes.io/instance={NAME}"
            logs = release.kubectl("logs", "--selector", selector, "--tail", "5", "--prefix", check=False)
            said = [line for line in (events + logs).splitlines() if says in line and "setting" in line + events]
            return said[-1] if said else ""

        said = await asyncio.to_thread(release.until, f"somebody says {says}", complaint)
        await upgrading
        assert release.ready("mypage") == old
        customer = people.customer()
        reservation = await customer.create(hospital, day)
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
        figures(f"Secret {name}: {said.strip()[:200]}; the old pod serves")
        await asyncio.to_thread(release.upgrade, {})
    assert release.ready("mypage") == old
