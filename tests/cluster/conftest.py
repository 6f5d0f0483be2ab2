"""An installation of its own in the cluster that KUBECONFIG names, the people who call it, and its accounts.

Whatever a test does to the installation, it leaves it whole: the next one goes on with it.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh import CHART
from mesh.istio import merged
from mesh.machine import Mesh, identity
from mesh.machine.home import SERVICES, STORES, Home
from mesh.machine.stores import Stores
from tests.conftest import SEED
from tests.e2e.conftest import World, eventually, refusal
from tests.faults import checks
from tests.faults.drive import Driver, History

Json = dict[str, Any]
HELM = Path(sys.executable).parent / "helm"
REPOSITORY = os.environ.get("IMAGE", "vaccination")
TAG = os.environ.get("TAG", "dev")
NAME = "vaccination"
# Those on the way of a request are two; there is no autoscaler but in its own test.
REPLICAS = {"reservation": 2, "approval": 2, "vaccinemgmt": 1, "mypage": 1}
PORTS = {"postgres": 5432, "mongo": 27017, "nats": 4222}
ADMINS = {"postgres": "postgres", "mongo": "admin", "nats": "admin"}
# Bound of everything that is waited for here, in seconds: a busy machine takes many times what an idle one does.
PATIENCE = 600.0
# What `helm uninstall` could leave. It takes away what is no hook's.
HOOKED = "pods,jobs,serviceaccounts,configmaps,secrets"
FIGURES: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each test measured."""
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells a figure: at once with -s, and at the end of the run."""

    def tell(line: str) -> None:
        FIGURES.append(f"{request.node.name}: {line}")
        print(f"\n  {line}")

    return tell


class Retries(grpc.aio.UnaryUnaryClientInterceptor):
    """What every client does: repeats a call that the mesh could not serve now, up to six times within some seconds.

    All public calls may be repeated; these bring the same request id.
    """

    AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED})
    TRIES = 7

    def __init__(self) -> None:
        self.calls = 0
        self.repeated: Counter[str] = Counter()  # by the method and the code of the try before
        self.failed: Counter[str] = Counter()  # calls, by the method and the last code of AGAIN
        self.most = 0  # tries of one call

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Tries."""
        self.calls += 1
        method = client_call_details.method.decode().rpartition("/")[2]
        for attempt in range(self.TRIES):
            call = await continuation(client_call_details, request)
            self.most = max(self.most, attempt + 1)
            if (code := await call.code()) not in self.AGAIN:
                return call
            if attempt + 1 < self.TRIES:
                self.repeated[f"{method} {code.name}"] += 1
                pause = 0.1 * 2**attempt * (0.5 + random.random())
                try:
                    await call
                except grpc.aio.AioRpcError as error:
                    pause = max(pause, refusal(error).retry_after or 0)
                await asyncio.sleep(pause)
        self.failed[f"{method} {code.name}"] += 1
        return call

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, repeated {dict(self.repeated)}, most tries of a call {self.most}, "
            f"failed after that {dict(self.failed) or 0}"
        )


class Release:
    """The chart, installed in a namespace."""

    def __init__(self, namespace: str, home: Path, *, istio: bool, file: str) -> None:
        self.namespace, self.home, self.istio, self.file = namespace, home, istio, file
        customer_limits = {"perCustomer": 1000, "perAddress": 100_000}  # the tests' customers have one address
        self.values: Json = {
            "image": {"repository": REPOSITORY, "tag": TAG},
            "istio": {"enabled": istio},
            # The stores stay as they are when the services get another version.
            "evaluation": {"image": {"repository": f"{REPOSITORY}-evaluation", "tag": TAG}},
            "auth": {"issuer": identity.ISSUER, "audiences": [identity.AUDIENCE], "jwks": identity.jwks(home)},
            "gateway": {"limits": customer_limits},
            "monitoring": {"namespace": f"{namespace}-monitoring"},
            "components": {
                name: {"replicas": replicas, "maxReplicas": replicas, "resources": {"requests": {"cpu": "50m"}}}
                for name, replicas in REPLICAS.items()
            },
        }
        self.installed_within = 0.0  # seconds

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints; its complaint, too, when it need not succeed."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if check and done.returncode:
            pytest.fail(f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *what: str) -> Any:
        """Objects, as the API server has them."""
        return json.loads(self.kubectl("get", *what, "--output", "json"))

    def helm(
        self, *arguments: str, values: Mapping[str, Any] | None = None, chart: Path = CHART
    ) -> subprocess.CompletedProcess[str]:
        """Runs helm in the namespace, `values` above those of the installation."""
        command = [str(HELM), *arguments, "--namespace", self.namespace]
        text = None
        if values is not None:
            command += ["--values", str(chart / self.file), "--values", "-"]
            text = json.dumps(merged(self.values, values))
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=2 * PATIENCE)

    def upgrade(self, values: Mapping[str, Any], *flags: str, chart: Path = CHART) -> str:
        """Installs, or brings the installation to these values above its own, and waits until everything is ready."""
        wait = ("--wait", "--timeout", f"{PATIENCE:.0f}s")
        done = self.helm("upgrade", "--install", NAME, str(chart), *wait, *flags, values=values, chart=chart)
        if done.returncode:
            pods, events = self.kubectl("get", "pods"), self.kubectl("get", "events", "--sort-by=.lastTimestamp")
            pytest.fail(f"helm upgrade: {done.stderr}\n{pods}\n{events[-6000:]}")
        return done.stdout

    def pods(self, component: str | None = None) -> list[Json]:
        """The pods of a component, or all of the installation; not those that end."""
        selector = f"app.kubernetes.io/instance={NAME}"
        if component:
            selector += f",app.kubernetes.io/name={component}"
        pods = self.get("pods", "--selector", selector)["items"]
        return [
            p for p in pods if "deletionTimestamp" not in p["metadata"] and "job-name" not in p["metadata"]["labels"]
        ]

    def revision(self) -> int:
        """Of what is installed."""
        history = json.loads(self.helm("history", NAME, "--output", "json").stdout)
        return max(int(entry["revision"]) for entry in history if entry["status"] == "deployed")

    def chart(self) -> str:
        """Name and version of the chart that is installed."""
        [release] = json.loads(self.helm("list", "--output", "json").stdout)
        return str(release["chart"])

    def roll_back(self, revision: int) -> None:
        """Goes back, and waits until everything is ready."""
        done = self.helm("rollback", NAME, str(revision), "--wait", "--timeout", f"{PATIENCE:.0f}s")
        assert done.returncode == 0, done.stderr

    def settled(self) -> None:
        """Waits until no pod is on its way out."""

        def ending() -> list[str]:
            pods = self.get("pods", f"--selector=app.kubernetes.io/instance={NAME}")["items"]
            return [p["metadata"]["name"] for p in pods if "deletionTimestamp" in p["metadata"]]

        self.until("no pod ends", lambda: not ending())

    def ready(self, component: str) -> list[str]:
        """Names of its pods that serve."""
        return [p["metadata"]["name"] for p in self.pods(component) if is_ready(p)]

    def rolled_out(self, *names: str) -> None:
        """Waits until each has nothing but ready pods of its last template."""
        for name in names:
            self.kubectl("rollout", "status", name, "--timeout", f"{PATIENCE:.0f}s")

    def until(self, what: str, look: Callable[[], Any], within: float = PATIENCE) -> Any:
        """What `look` returns once it is true."""
        deadline = time.monotonic() + within
        while not (seen := look()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within:.0f} s: {what}\n{self.kubectl('get', 'pods', '--output', 'wide')}")
            time.sleep(0.2)
        return seen

    @contextlib.contextmanager
    def forwarded(self, target: str, port: int, local: int | None = None) -> Iterator[int]:
        """A port of this machine, `local` or any, that leads to the target's, for as long as that pod lives."""
        command = ["kubectl", "--namespace", self.namespace, "port-forward", target, f"{local or ''}:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout
                line = process.stdout.readline()
                if not (found := re.search(r"127\.0\.0\.1:(\d+)", line)):
                    pytest.fail(f"{' '.join(command)}: {line}{process.stdout.read()}")
                threading.Thread(target=process.stdout.read, daemon=True).start()  # it says every connection
                yield int(found[1])
            finally:
                process.terminate()

    def way_in(self, stack: contextlib.ExitStack) -> str:
        """host:port of the gateway: its Service's own address where the tests run inside the cluster's network or on
        one of its nodes, else through kubectl."""
        service = self.get("service", "gateway")["spec"]
        [port] = [p for p in service["ports"] if p["name"] != "metrics"][:1]
        node_port = port.get("nodePort")
        nodes = self.get("nodes")["items"] if node_port else []
        addresses = [(a["address"], node_port) for node in nodes for a in node["status"]["addresses"]]
        for address in [(service["clusterIP"], port["port"]), *addresses]:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=2):
                return f"{address[0]}:{address[1]}"
        return f"127.0.0.1:{stack.enter_context(self._kept_forwarded(port['port']))}"

    @contextlib.contextmanager
    def _kept_forwarded(self, port: int) -> Iterator[int]:
        """A way to the gateway that moves on to another pod when its own goes. Calls on it are cut then."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local = int(free.getsockname()[1])
        command = ["kubectl", "--namespace", self.namespace, "port-forward", "service/gateway", f"{local}:{port}"]
        ended, running = threading.Event(), [subprocess.Popen(command, stdout=subprocess.DEVNULL)]

        def keep() -> None:
            while not ended.is_set():
                running[0].wait()
                if not ended.wait(0.2):
                    running[0] = subprocess.Popen(command, stdout=subprocess.DEVNULL)

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield local
        finally:
            ended.set()
            running[0].terminate()
            keeper.join()


def is_ready(pod: Json) -> bool:
    """Whether it serves."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def restarts(pod: Json) -> int:
    """How often its containers were started again."""
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", ()))


class Installed(Mesh):
    """The installation, where tests expect a mesh of this machine."""

    def __init__(self, release: Release, gateway: str) -> None:
        self.release = release
        self.home = Home(release.home)
        self.stores = Stores(self.home)
        self._gateway = gateway

    @property
    def gateway(self) -> str:
        """host:port of the one way in."""
        return self._gateway

    def stop(self, name: str, with_signal: signal.Signals | None = None) -> bool:
        """Leaves the component without a pod."""
        self.release.kubectl("scale", f"deployment/{name}", "--replicas=0")
        self.release.until(f"no {name}", lambda: "No resources" in self._all_pods(name))
        return True

    def _all_pods(self, name: str) -> str:
        return self.release.kubectl("get", "pods", f"--selector=app.kubernetes.io/name={name}", check=False)

    def up(self, only: Any = SERVICES, report: Any = None) -> None:
        """Gives components one pod, and waits until it is ready."""
        for name in only:
            self.release.kubectl("scale", f"deployment/{name}", "--replicas=1")
        self.release.rolled_out(*(f"deployment/{name}" for name in only))

    @contextlib.contextmanager
    def open_stores(self) -> Iterator[None]:
        """While it lasts, the stores' URLs lead there."""
        secret = self.release.get("secret", "evaluation")["data"]
        passwords = {name: base64.b64decode(secret[name]).decode() for name in STORES}
        with contextlib.ExitStack() as stack:
            for name in STORES:
                port = stack.enter_context(self.release.forwarded(f"service/{name}", PORTS[name]))
                login = f"{ADMINS[name]}:{passwords[name]}@127.0.0.1:{port}"
                self.home.external[name] = {
                    "postgres": f"postgresql://{login}/postgres?sslmode=disable",
                    # A client that knows the replica set would go to the member itself.
                    "mongo": f"mongodb://{login}/?directConnection=true&authSource=admin",
                    "nats": f"nats://{login}",
                }[name]
            yield


class Load:
    """Customers who book, repeat themselves, cancel and look, and managers, all the while; see tests.faults.drive."""

    _runs = 0

    def __init__(self, world: World, gateway: str, customers: int) -> None:
        self._world, self._gateway, self._customers = world, gateway, customers
        self.retries = Retries()
        self.history = History()
        self.hospitals: list[tuple[str, date]] = []
        self.rest = 0.0  # seconds from the last call until nothing was on its way
        self.books = checks.Accounts()

    @contextlib.asynccontextmanager
    async def run(self, calls: int, *, since_0_4: bool = True) -> AsyncIterator["Load"]:
        """Goes on during the block, and until it has made as many calls; then no account may be wrong.

        What 0.3.0 does not know waits, parked, for the next update, and so would the accounts.
        """
        Load._runs += 1
        n = self._customers
        self.hospitals = [await self._world.new_hospital(capacity=n // 2, doses=n // 3) for _ in range(3)]
        # gRPC's own pauses between connections grow to two minutes.
        options = [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 500)]
        async with grpc.aio.insecure_channel(self._gateway, options, interceptors=[self.retries]) as channel:
            driver = Driver(
                World(self._world.mesh, channel), SEED + Load._runs, n, self.hospitals, haste=0, since_0_4=since_0_4
            )
            self.history = driver.history
            driving = asyncio.create_task(driver.run())
            try:
                yield self
                await eventually(self._calls, lambda made: made >= calls or driving.done(), PATIENCE)
            finally:
                driver.stop()
                await driving
        await self._settle()

    async def _calls(self) -> int:
        return self.retries.calls

    async def _settle(self) -> None:
        with self._world.mesh.open_stores():  # type: ignore[attr-defined]
            begin = time.monotonic()
            await self._world.quiet(PATIENCE)
            self.rest = time.monotonic() - begin
            self.books = only(await checks.read(self._world), {hospital for hospital, _ in self.hospitals})
        wrong = [f"{check.__name__}: {problem}" for check in checks.ALL for problem in check(self.books, self.history)]
        assert not wrong, "\n".join(wrong[:20])

    def __str__(self) -> str:
        decisions = self.books.decisions.values()
        slowest = max(o.seconds for o in self.history.operations)
        return (
            f"{self.retries}; slowest {slowest:.1f} s; {len(decisions)} decisions, "
            f"{sum(d['denial'] is None for d in decisions)} granted, "
            f"{sum(r['status'] == checks.CANCELLED for r in self.books.reservations.values())} cancelled: "
            f"none lost or doubled in any store or on a screen, at rest after {self.rest:.1f} s"
        )


def only(books: checks.Accounts, hospitals: set[str]) -> checks.Accounts:
    """The accounts of some hospitals: those of other tests have another history."""

    def of(rows: dict[str, checks.Row]) -> dict[str, checks.Row]:
        return {key: row for key, row in rows.items() if row["hospital_id"] in hospitals}

    decisions = of(books.decisions)
    return replace(
        books,
        days=[day for day in books.days if day["hospital_id"] in hospitals],
        decisions=decisions,
        active={who: key for who, key in books.active.items() if key in decisions},
        reservations=of(books.reservations),
        vaccinations=of(books.vaccinations),
        lots=of(books.lots),
        screen=of(books.screen),
        beside_0_3=True,
    )


@contextlib.contextmanager
def installation(
    home: Path,
    values: Mapping[str, Any],
    chart: Path = CHART,
    *,
    istio: bool,
    file: str = "values-evaluation.yaml",
    before: Callable[[Release], None] = lambda _: None,
) -> Iterator[Release]:
    """The chart, installed in a namespace of its own; KEEP=1 leaves it there. `before` makes what it needs there."""
    namespace = f"{NAME}-{secrets.token_hex(3)}"
    release = Release(namespace, home, istio=istio, file=file)
    release.kubectl("create", "namespace", namespace)
    if not istio:  # the init container that Istio adds may do more
        # What the chart promises of its pods is refused here if it does not hold.
        release.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        before(release)
        begin = time.monotonic()
        release.upgrade(values, chart=chart)
        release.installed_within = time.monotonic() - begin
        yield release
    finally:
        if "KEEP" not in os.environ:
            _remove(release)


def istio_in_cluster() -> bool:
    """Whether somebody would inject proxies."""
    command = ["kubectl", "get", "mutatingwebhookconfigurations", "--selector=app=sidecar-injector", "--output=name"]
    return bool(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.fixture(scope="session", params=[False, True], ids=["without-istio", "with-istio"])
def istio(request: pytest.FixtureRequest) -> bool:
    """The mode of an installation. Every test that asks for an installation runs in both."""
    if request.param and not istio_in_cluster():
        pytest.skip("there is no Istio in this cluster")
    return bool(request.param)


@pytest.fixture(scope="session")
def release(istio: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The present chart and code, for all tests but those that bring an installation of their own."""
    with installation(tmp_path_factory.mktemp("identity"), {}, istio=istio) as release:
        yield release


def _remove(release: Release) -> None:
    """Everything, and gives volumes back empty that the cluster would not: those somebody made by hand."""
    release.helm("uninstall", NAME, "--wait")
    left = release.get(HOOKED, f"--selector=app.kubernetes.io/instance={NAME}")["items"]
    claims = [claim["metadata"]["name"] for claim in release.get("pvc")["items"]]
    if claims:
        volumes = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "empty"}, "spec": _emptying(claims)}
        release.kubectl("apply", "--filename", "-", stdin=json.dumps(volumes))
        release.until("empty volumes", lambda: release.get("pod", "empty")["status"].get("phase") == "Succeeded")
    release.kubectl("delete", "namespace", release.namespace, "--timeout", f"{PATIENCE:.0f}s")
    for volume in release.get("pv")["items"]:
        claim = volume["spec"].get("claimRef", {})
        by_hand = volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        if by_hand and claim.get("namespace") == release.namespace:
            release.kubectl("patch", "pv", volume["metadata"]["name"], "--patch", '{"spec": {"claimRef": null}}')
    # The passwords stay, as the volumes do, and a Job that failed, with its log. What has an owner ends with that one.
    names = [
        f"{item['kind']} {item['metadata']['name']}"
        for item in left
        if "ownerReferences" not in item["metadata"] and not item.get("status", {}).get("failed")
    ]
    assert set(names) <= {"Secret evaluation"}, "helm uninstall leaves more than it says"


def _emptying(claims: list[str]) -> Json:
    """A pod that leaves nothing in volumes."""
    container = {
        "name": "empty",
        "image": f"{REPOSITORY}:{TAG}",
        "command": ["find", *(f"/data/{claim}" for claim in claims), "-mindepth", "1", "-delete"],
        "volumeMounts": [{"name": claim, "mountPath": f"/data/{claim}"} for claim in claims],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "containers": [container],
        "restartPolicy": "OnFailure",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
    }


@pytest.fixture(scope="session")
def gateway(release: Release) -> Iterator[str]:
    """host:port of the one way in."""
    with contextlib.ExitStack() as stack:
        yield release.way_in(stack)


@pytest.fixture
async def people(release: Release, gateway: str) -> AsyncIterator[World]:
    """Everybody who calls."""
    options = [("grpc.max_reconnect_backoff_ms", 500)]
    async with grpc.aio.insecure_channel(gateway, options, interceptors=[Retries()]) as channel:
        yield World(Installed(release, gateway), channel)


@pytest.fixture
def world(people: World) -> Iterator[World]:
    """They, and ways past all code into the stores."""
    with people.mesh.open_stores():  # type: ignore[attr-defined]
        yield people


@pytest.fixture
def load(people: World, gateway: str) -> Load:
    """Load that can be run once."""
    return Load(people, gateway, customers=40)
