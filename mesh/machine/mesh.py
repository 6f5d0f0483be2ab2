"""The whole mesh on one machine: what belongs to it, in which order it starts, and when it is ready.

    mesh = Mesh(Path(".mesh"))
    mesh.up()                     # or only=mesh.stores.names
    ... calls to mesh.gateway ...
    mesh.stop("vaccinemgmt"); mesh.start("vaccinemgmt")
    mesh.down()

All of it blocks; within an event loop call it in a thread (`await asyncio.to_thread(mesh.up)`).
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh import ROOT
from mesh.istio import merged
from mesh.istio.kinds import Server
from mesh.istio.proxy import GATEWAY
from mesh.machine import chart, envoy, identity
from mesh.machine.home import DEFAULT_HOME, ISSUER, SERVICES, STORE_OF, WEB, Home
from mesh.machine.processes import MeshError, Processes, holder_of, package_file
from mesh.machine.stores import ROOM, Store, Stores
from services.chassis.version import version

if TYPE_CHECKING:
    import grpc

# Called as things happen: (component's name, what happened).
Report = Callable[[str, str], None]
# Seconds. On a busy machine a first start has taken five times as long as usual.
READY_WITHIN = 60.0


@dataclass(frozen=True)
class Component:
    """A process of the mesh."""

    name: str
    listens: tuple[str, ...]  # names of its ports, the one to show first
    needs: Callable[[], Collection[str]]  # components that have to be ready before it starts
    check: Callable[[], None]  # returns when it is ready to serve, raises if it is not
    command: Callable[[], list[str | Path]]
    prepare: Callable[[], None] = lambda: None
    env: Callable[[], dict[str, str]] = dict
    os_user: Callable[[], str] = str
    directory: Path = ROOT
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 35.0  # seconds; a service has 30 to drain
    stuck: Callable[[], bool] = lambda: False
    """Whether only a new start makes it work again; OSError if it does not answer."""


@dataclass(frozen=True)
class State:
    """What `status` shows. `state` is ready (serves), live (runs, does not serve yet) or down; `uptime` in seconds."""

    name: str
    pid: int | None
    port: int
    state: str
    uptime: float | None


class Mesh:
    """The mesh of a home. Arguments that are not given are as in the last `up`, see Home."""

    def __init__(
        self,
        home: Path,
        base_port: int | None = None,
        external: Mapping[str, str] | None = None,
        replicas: int | None = None,
        launcher: str | None = None,
        values: Mapping[str, Any] | None = None,
        replicated: bool | None = None,
    ) -> None:
        self.home = Home(home, base_port, external, replicas, values, replicated)
        self._launcher = launcher  # a module of a test, which runs `-m LAUNCHER COMPONENT MODULE` with faults
        self.stores = Stores(self.home)
        self.processes = Processes(self.home.path)
        self.components = {component.name: component for component in self._components()}

    @cached_property
    def chart(self) -> envoy.Chart:
        """The chart, rendered for this machine and its issuer of tokens."""
        issuer: dict[str, Any] = {
            "issuer": identity.ISSUER,
            "audiences": [identity.AUDIENCE],
            "jwks": identity.jwks(self.home.path),
        }
        paths = {"authorizationEndpoint": "authorize", "tokenEndpoint": "token", "endSessionEndpoint": "end-session"}
        issuer["signIn"] = {name: f"http://{self.home.address(ISSUER)}/{path}" for name, path in paths.items()}
        # All callers on this machine have one address, and in tests one customer makes fifty calls at once.
        gateway = {
            "limits": {"perCustomer": 1000, "perAddress": 100_000},
            "cors": {"origins": ["http://localhost:3000"]},  # for developing a page
        }
        crowd = {"CreateReservation": {"inFlight": 1024, "perSecond": 100_000, "perCustomer": 1000}}
        reservation = {"crowded": crowd, "env": {"MAX_CALLS": "1000"}}
        approval = {"env": {"MAX_CALLS": "1000"}}
        components = {"reservation": reservation, "approval": approval}
        patience = {"gateway": "15s", "gatewayTry": "7s"}  # this machine may be busy
        local = {"auth": issuer, "budget": patience, "gateway": gateway, "components": components}
        return envoy.Chart(chart.render(merged(local, self.home.values)))

    @property
    def gateway(self) -> str:
        """host:port at which the gateway listens."""
        return self.home.address("gateway")

    @cached_property
    def gateway_server(self) -> Server:
        """The gateway's protocol and hosts."""
        return self.chart.istio.gateway(self.chart.labels(GATEWAY)).spec.servers[0]

    @property
    def gateway_name(self) -> str:
        """A host's name by which the gateway may be called. With TLS its certificate has this name too."""
        return envoy.own_host(self.gateway_server.hosts[0])

    @property
    def origins(self) -> list[str]:
        """The addresses by which a browser on this machine reaches the gateway's page, without a slash at the end."""
        scheme = "https" if self.gateway_server.tls else "http"
        names = [self.gateway_name]
        if "*" in self.gateway_server.hosts:
            names = ["127.0.0.1", "localhost"] if scheme == "http" else ["localhost"]
        return [f"{scheme}://{name}:{self.home.port('gateway')}" for name in names]

    def connect(self) -> "grpc.Channel":
        """A channel to the gateway, by the name and with the trust that it needs."""
        import grpc

        options, trust = self._channel_settings()
        if trust is None:
            return grpc.insecure_channel(self.gateway, options)
        return grpc.secure_channel(self.gateway, trust, options)

    def connect_aio(self) -> "grpc.aio.Channel":
        """The same, for an event loop."""
        import grpc

        options, trust = self._channel_settings()
        if trust is None:
            return grpc.aio.insecure_channel(self.gateway, options)
        return grpc.aio.secure_channel(self.gateway, trust, options)

    def _channel_settings(self) -> "tuple[list[tuple[str, Any]], grpc.ChannelCredentials | None]":
        import grpc

        options: list[tuple[str, Any]] = [
            # By default gRPC's pauses between attempts to connect grow to two minutes, longer than anybody waits here.
            ("grpc.max_reconnect_backoff_ms", 500),
            # A proxy that the shell names cannot reach a gateway on this machine.
            ("grpc.enable_http_proxy", 0),
            ("grpc.default_authority", self.gateway_name),
        ]
        if not self.gateway_server.tls:
            return options, None
        return options, grpc.ssl_channel_credentials(self.home.root_certificate.read_bytes())

    def _components(self) -> list[Component]:
        """In dependency order."""
        home = self.home.path
        proxy = Component(
            "envoy",
            ("gateway", "envoy-admin", "to-approval"),
            tuple,
            self._check_envoy,
            lambda: [
                package_file("envoy", "_bin", "envoy"), "-c", home / "envoy.json",
                "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning",
                "--file-flush-interval-msec", "500",  # of the access log; the default is 10 s
            ],
            lambda: envoy.write_config(self.home, self.chart),
        )  # fmt: skip
        return [
            *(self._store(store, member) for store in self.stores.kinds.values() for member in store.members),
            *(self._service(s, name) for s in SERVICES for name in self.home.processes_of(s)),
            self._without_store(WEB, (WEB, f"{WEB}-metrics"), "services.web", lambda: self.chart.env(WEB)),
            self._without_store(ISSUER, (ISSUER,), "mesh.machine.issuer", self._issuer_env),
            proxy,
        ]

    def _without_store(
        self, name: str, listens: tuple[str, ...], module: str, env: Callable[[], dict[str, str]]
    ) -> Component:
        """A component that speaks plain HTTP and needs nobody."""
        own = {
            "LISTEN": self.home.address(name),
            "METRICS_LISTEN": self.home.address(listens[1]) if len(listens) > 1 else "127.0.0.1:0",
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "INFO"),
            "DRAIN_SECONDS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        return Component(
            name,
            listens,
            tuple,
            lambda: _answers(f"http://{self.home.address(name)}/readyz"),
            lambda: [sys.executable, "-m", module],
            env=lambda: env() | own,
        )

    def _issuer_env(self) -> dict[str, str]:
        env = {
            "MESH_HOME": str(self.home.path), "ORIGINS": " ".join(self.origins),
            "GATEWAY": self.gateway, "GATEWAY_NAME": self.gateway_name,
        }  # fmt: skip
        return env | ({"GATEWAY_CERTIFICATE": str(self.home.root_certificate)} if self.gateway_server.tls else {})

    def _store(self, store: Store, member: str) -> Component:
        return Component(
            member,
            store.listens(member),
            lambda: store.needs(member),
            lambda: store.provision(member),
            lambda: store.command(member),
            lambda: store.prepare(member),
            os_user=store.os_user,
            directory=self.home.path,
            stop_signal=store.stop_signal,
            stuck=lambda: store.stuck(member),
        )

    def _service(self, service: str, name: str) -> Component:
        launcher = [self._launcher, name] if self._launcher else []
        return Component(
            name,
            (name, f"{name}-metrics"),
            lambda: [*self.home.members(STORE_OF[service]), *self.home.members("nats")],
            lambda: self._check_service(service, name),
            lambda: [sys.executable, "-m", *launcher, f"services.{service}"],
            lambda: self.stores.write_secrets(service),
            lambda: self._service_env(service, name),
        )

    def _service_env(self, service: str, name: str) -> dict[str, str]:
        # The chart's settings, except for addresses.
        env = self.chart.env(service) | {
            "LISTEN": self.home.address(name),
            "METRICS_LISTEN": self.home.address(f"{name}-metrics"),
            "NATS_URL": self.stores.nats_address,
            "NATS_USER": self.stores.nats_login(service)[0],
            "SECRETS_DIR": str(self.home.path / "secrets" / service),
            "STREAM_REPLICAS": str(len(self.home.members("nats"))),
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "INFO"),
            "DRAIN_SECONDS": "0",  # the listener may close at once: Envoy retries refused connections
            "PYTHONUNBUFFERED": "1",
        }
        if service == "reservation":
            env["APPROVAL_TARGET"] = self.home.address("to-approval")
        return env

    def _check_service(self, service: str, name: str) -> None:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        # With the shared pool this attempt would wait out the pauses after earlier refused connections.
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.home.address(name), options) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise MeshError("its readiness is NOT_SERVING")

    def _check_envoy(self) -> None:
        _answers(f"http://{self.home.address('envoy-admin')}/ready")

    # Starting

    def up(self, only: Collection[str] | None = None, report: Report = lambda *_: None) -> None:
        """Starts what is not running (of `only`, else of all) and waits until it is ready. What runs and can only be
        helped by a new start, such as NATS after a full disk, is started anew.

        MeshError: a disk is full, a port is taken, or a component does not get ready; what this call started is stopped
        again.
        """
        wanted = [c for c in self.components.values() if only is None or c.name in only]
        self._refuse_a_full_disk()
        with self.processes.exclusive() as lock:
            self._refuse_a_move()
            running = [c.name for c in wanted if self.processes.find(c.name)]
            self._refuse_taken_ports([c for c in wanted if c.name not in running])
            self.home.save()
            try:
                if self.home.code not in (None, version()) and any(c.name not in self.stores.names for c in wanted):
                    report("services", "another version ran here last: stores and consumers are brought up to date")
                    self._start_all([c for c in self.components.values() if c.name in self.stores.names], lock, report)
                    self.migrate()
                self._start_all(wanted, lock, report)
            except BaseException:
                self._stop_all([c.name for c in wanted if c.name not in running], report)
                if not self._anything_runs():
                    self.home.put_back()
                raise
            if only is None:
                self.home.code = version()
                self.home.save()

    def migrate(self) -> None:
        """Brings every service's store and durable consumer up to date, as a release's migration jobs do before any of
        its processes starts; MeshError with what a job said last. The stores run."""

        def job(service: str) -> None:
            self.stores.write_secrets(service)
            launcher = [self._launcher, f"{service}-migrate"] if self._launcher else []
            done = subprocess.run(
                [sys.executable, "-m", *launcher, f"services.{service}", "migrate"],
                env=os.environ | self._service_env(service, service) | {"METRICS_LISTEN": "127.0.0.1:0"},
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=READY_WITHIN,
            )  # fmt: skip
            if done.returncode != 0:
                raise MeshError(f"{service} was not migrated:\n{done.stdout[-2000:]}")

        with ThreadPoolExecutor(len(SERVICES)) as pool:
            list(pool.map(job, SERVICES))

    def start(self, name: str, report: Report = lambda *_: None) -> None:
        """Starts one component and waits until it is ready."""
        self.up([self.component(name).name], report)

    def component(self, name: str) -> Component:
        """The component with this name; MeshError lists the names if there is none."""
        if name not in self.components:
            raise MeshError(f"no component {name}; there are {', '.join(self.components)}")
        return self.components[name]

    def _refuse_a_move(self) -> None:
        if self.home.remembered_replicated not in (None, self.home.replicated):
            kind = "replicated" if self.home.remembered_replicated else "not replicated"
            raise MeshError(f"the stores of {self.home.path} are {kind}, for good: choose another home")
        remembered, asked = self.home.remembered_port, self.home.base_port
        if remembered not in (None, asked) and self._anything_runs():
            raise MeshError(f"this mesh runs at base port {remembered}: stop it before it moves to {asked}")

    def _refuse_a_full_disk(self) -> None:
        for folder in (self.home.path, *(self.home.path / store for store in self.stores.names)):
            if folder.exists() and (free := shutil.disk_usage(folder).free) < ROOM:
                raise MeshError(
                    f"the disk of {folder} is full ({free // 2**20} MiB are free): make room, and run this once more; "
                    "nothing was started"
                )

    def _anything_runs(self) -> bool:
        return any(map(self.processes.find, self.processes.recorded()))

    def _refuse_taken_ports(self, components: list[Component]) -> None:
        taken = [
            f"port {self.home.port(listener)}, which {component.name} needs ({listener}), is in use by {holder}"
            for component in components
            if component.name not in self.home.external
            for listener in component.listens
            if (holder := holder_of(self.home.port(listener)))
        ]
        if taken:
            advice = "stop that, or choose other ports with --base-port; nothing was started"
            raise MeshError("\n".join([*taken, advice]))

    def _start_all(self, components: list[Component], lock: int, report: Report) -> None:
        given_up = threading.Event()
        futures: dict[str, Future[None]] = {}

        def bring_up(component: Component) -> None:
            for need in component.needs():
                if need in futures:
                    futures[need].result()
            self._bring_up(component, lock, given_up, report)

        with ThreadPoolExecutor(len(components)) as pool:
            for component in components:
                futures[component.name] = pool.submit(bring_up, component)
            try:
                for future in as_completed(futures.values()):
                    future.result()
            except BaseException:
                given_up.set()
                raise

    def _bring_up(self, component: Component, lock: int, given_up: threading.Event, report: Report) -> None:
        name, begin = component.name, time.monotonic()
        log = self.processes.log(name)
        if name not in self.home.external and self.processes.find(name) and _is_stuck(component):
            report(name, "takes no writes since one failed: it is started anew")
            self.processes.stop(name, component.stop_signal, component.grace)
        if name not in self.home.external and not self.processes.find(name):
            report(name, "starting")
            component.prepare()
            # The components talk to 127.0.0.1 only, so no proxy of the shell may come between.
            env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | component.env()
            logged = log.stat().st_size if log.exists() else 0
            self.processes.launch(name, component.command(), env, component.directory, component.os_user(), lock)
        else:
            report(name, "is running")
            logged = 0
        self._wait(component, given_up, logged)
        report(name, f"ready after {time.monotonic() - begin:.1f} s")

    def _wait(self, component: Component, given_up: threading.Event, logged: int = 0) -> None:
        name, deadline = component.name, time.monotonic() + READY_WITHIN
        while True:
            try:
                self._check(component)
                return
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if name not in self.home.external and not self.processes.find(name):
                why = "it ended"
            elif time.monotonic() < deadline and not given_up.wait(0.05):
                continue
            if name in self.home.external:
                raise MeshError(f"{name} at the URL given did not get ready: {why}")
            text = self.processes.log(name).read_bytes()[logged:].decode(errors="replace")
            lines = "\n".join(f"  {line[:500]}" for line in text.splitlines()[-15:])
            raise MeshError(f"{name} did not get ready: {why}\nlast lines of {self.processes.log(name)}:\n{lines}")

    def _check(self, component: Component) -> None:
        if component.name not in self.home.external:
            # Clients pause after a refused connection, pymongo for half a second. So they wait for a listener.
            with socket.create_connection(("127.0.0.1", self.home.port(component.listens[0])), timeout=1):
                pass
        component.check()

    def wait_ready(self, names: Collection[str] | None = None) -> None:
        """Waits until components that run are ready to serve."""
        for name in names or self.components:
            self._wait(self.component(name), threading.Event())

    # Stopping

    def stop(self, name: str, with_signal: signal.Signals | None = None) -> bool:
        """Stops one component, gracefully unless told otherwise; returns whether it was running."""
        component = self.component(name)
        with self.processes.exclusive():
            return self.processes.stop(name, with_signal or component.stop_signal, component.grace)

    def down(self, report: Report = lambda *_: None) -> None:
        """Stops what `up` started, even if it did not finish: services, then Envoy, then stores."""
        if self.processes.run.exists():
            with self.processes.exclusive():
                self._stop_all(self.processes.recorded(), report)

    def _stop_all(self, names: Collection[str], report: Report) -> None:
        def stop(name: str) -> None:
            component = self.components[name]
            if self.processes.stop(name, component.stop_signal, component.grace):
                report(name, "stopped")

        stores = self.stores.names
        services = [name for name in self.components if name not in (*stores, "envoy")]
        for wave in (services, ["envoy"], stores):
            with ThreadPoolExecutor(len(wave)) as pool:
                list(pool.map(stop, [name for name in wave if name in names]))

    # Switching over: what a test or an operator does to replicated stores

    def promote_postgres(self) -> tuple[str, str]:
        """Ends Postgres' primary as a crash would, and makes the standby the primary; returns (the dead, the new one).

        The dead one comes back as a standby with the next `up`. MeshError: the standby would not have every commit
        that was acknowledged; nothing was done.
        """
        postgres = self.stores.postgres
        primary = postgres.primary()
        standby = next((member for member in postgres.members if member != primary), None)
        if standby is None:
            raise MeshError("Postgres has no standby: this home is not replicated")
        with self.processes.exclusive():
            try:
                self._check(self.component(standby))
            except Exception as error:
                raise MeshError(f"{standby} may not have every commit of {primary}: {error}") from error
            self._crash(postgres, primary)
            postgres.promote(standby)
        return primary, standby

    def kill_mongo_primary(self) -> str:
        """Ends MongoDB's primary as a crash would; returns which one it was. The others elect a new one."""
        return self._kill(self.stores.mongo, self.stores.mongo.primary())

    def kill_nats_leader(self, stream: str) -> str:
        """Ends the NATS server that leads the stream as a crash would; returns which one it was."""
        return self._kill(self.stores.nats, self.stores.nats.leader(stream))

    def _kill(self, store: Store, member: str) -> str:
        with self.processes.exclusive():
            self._crash(store, member)
        return member

    def _crash(self, store: Store, member: str) -> None:
        self.processes.stop(member, store.crash_signal, self.component(member).grace)

    # Looking

    def status(self) -> list[State]:
        """The state of every component, asked now."""

        def state(component: Component) -> State:
            process = self.processes.find(component.name)
            answer = "down"
            if process or component.name in self.home.external:
                try:
                    self._check(component)
                    answer = "ready"
                except Exception:
                    answer = "live" if process else "down"
            pid, uptime = (process.pid, process.uptime) if process else (None, None)
            return State(component.name, pid, self.home.port(component.listens[0]), answer, uptime)

        with ThreadPoolExecutor(len(self.components)) as pool:
            return list(pool.map(state, self.components.values()))

    def log(self, name: str) -> Path:
        """The file of a component's log, or of the gateway's access log; MeshError if there is none."""
        if not (file := self.processes.log(name)).exists():
            there = sorted(path.stem for path in self.processes.logs.glob("*.log"))
            raise MeshError(f"{name} has logged nothing here; {', '.join(there) or 'nobody'} has")
        return file

    def how_to_call(self, hospital: str = "HOSPITAL", day: str = "YYYY-MM-DD") -> str:
        """Lines to type in the repository's folder, with which one books a place."""
        dev = "./dev" if self.home.path == DEFAULT_HOME else f"./dev --home {shlex.quote(str(self.home.path))}"
        booking = f'{{"request_id": "{uuid.uuid4()}", "hospital_id": "{hospital}", "date": "{day}"}}'
        token, root = '-H "authorization: Bearer $TOKEN"', shlex.quote(str(self.home.root_certificate))
        grpcurl, curl, url = f"grpcurl -plaintext {token}", f"curl {token}", f"http://{self.gateway}/v1"
        if self.gateway_server.tls:
            grpcurl, curl, url = f"grpcurl -cacert {root} {token}", f"curl --cacert {root} {token}", f"https{url[4:]}"
        if "*" not in self.gateway_server.hosts or self.gateway_server.tls:
            name, port = self.gateway_name, self.home.port("gateway")
            grpcurl += f" -authority {name}"
            curl, url = f"{curl} --resolve {name}:{port}:127.0.0.1", url.replace("127.0.0.1", name)
        return f"""\
[bold]The gateway is {self.gateway}[/]: gRPC with reflection, gRPC-Web, REST. By hand:
  export PATH="$PATH:$PWD/.venv/bin" TOKEN=$({dev} token --customer me)
  {grpcurl} {self.gateway} list
  {grpcurl} {self.gateway} vaccination.approval.v1.HospitalService/ListHospitals
  {grpcurl} -d '{booking}' \\
    {self.gateway} vaccination.reservation.v1.ReservationService/CreateReservation
  {grpcurl} {self.gateway} vaccination.mypage.v1.MypageService/ListMyReservations
or, the same reservation once more, by REST:
  {curl} {url}/reservations -d '{booking}'
  {curl} {url}/my/reservations
  {curl} -N {url}/my/reservations:watch
  {curl} {url}/reservations/RESERVATION_ID:cancel -d '{{}}'
Then: {dev} status | logs NAME | down
[bold]The page: {self.origins[0]}/[/]"""

    # Repairing

    def rebuild_mypage(self, report: Report = lambda *_: None) -> None:
        """Has MyPage build its view anew from the stream's first event, and returns when the new view is read.

        MeshError: the view was not rebuilt, and the old one is read.
        """
        import grpc

        from vaccination.mypage.v1 import view_service_pb2, view_service_pb2_grpc

        token = identity.token(self.home.path, subject="operator", roles=["operator"])
        with self.connect() as channel:
            rebuild = view_service_pb2_grpc.ViewServiceStub(channel).RebuildView
            try:
                call = rebuild(
                    view_service_pb2.RebuildViewRequest(),
                    metadata=(("authorization", f"Bearer {token}"),),
                    timeout=3600,
                )
                for progress in call:
                    phase = view_service_pb2.RebuildPhase.Name(progress.phase).removeprefix("REBUILD_PHASE_").lower()
                    report("mypage", f"{phase}, {progress.events_to_go} events to go")
            except grpc.RpcError as error:
                raise MeshError(f"the view was not rebuilt and is as it was: {error.details()}") from error

    def check_books(self, services: Sequence[str], report: Report = lambda *_: None) -> bool:
        """Has services add up their books from their stores and from the events; whether everything agrees.

        MeshError: a service did not come to the end of it.
        """
        import grpc

        from vaccination.operations.v1 import operations_service_pb2, operations_service_pb2_grpc

        token = identity.token(self.home.path, subject="operator", roles=["operator"])
        agree = True
        with self.connect() as channel:
            check = operations_service_pb2_grpc.OperationsServiceStub(channel).CheckBooks
            for service in services:
                metadata = (("authorization", f"Bearer {token}"), ("service", service))
                request = operations_service_pb2.CheckBooksRequest(service=service)
                found = 0
                try:
                    for answer in check(request, metadata=metadata, timeout=3600):
                        for d in answer.differences:
                            counts = f"{d.store} by the store, {d.other} by its {d.counted_from}"
                            report(service, f"{d.account}: {d.quantity} differs, {counts}")
                        found += len(answer.differences)
                except grpc.RpcError as error:
                    raise MeshError(f"{service}'s books were not checked: {error.details()}") from error
                told = "" if answer.complete else "; what is older than the stream is not compared with the events"
                report(service, f"{answer.accounts} accounts, {found} differences{told}")
                agree = agree and not found
        return agree


def _is_stuck(component: Component) -> bool:
    try:
        return component.stuck()
    except OSError:  # it may be starting: whether it gets ready is for the wait to see
        return False


def _answers(url: str) -> None:
    """Returns if a GET is answered with 200, and raises otherwise."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=2):
        pass
