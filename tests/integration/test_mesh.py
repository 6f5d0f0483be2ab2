"""The mesh on one machine starts and stops what it should, and its gateway lets through whom it should."""

import asyncio
import base64
import dataclasses
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import nats
import psutil
import pytest
import yaml
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mesh import CHART
from mesh.contracts.generation import IMAGE
from mesh.machine import Mesh, identity
from mesh.machine.home import DEFAULT_BASE_PORT, STORES
from mesh.machine.processes import MeshError
from tests.conftest import free_base_port
from vaccination.approval.v1 import approval_service_pb2 as approval
from vaccination.approval.v1.approval_service_pb2_grpc import ApprovalServiceStub
from vaccination.mypage.v1 import mypage_service_pb2 as mypage
from vaccination.mypage.v1.mypage_service_pb2_grpc import MypageServiceStub


def _processes_of(home: Path) -> list[psutil.Process]:
    """All running processes that have the home in their command lines."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(home) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def _eventually(condition: Callable[[], bool], within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


# A folder's name that is a name in each of the servers' languages only when it is quoted.
ODD = 'my 집\'s "home"'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Mesh]:
    """A mesh of the test's own, of which nothing runs yet."""
    mesh = Mesh(tmp_path / ODD, free_base_port())
    yield mesh
    mesh.down()
    assert not _processes_of(mesh.home.path)


class TestProcesses:
    """Starting and stopping."""

    def _up(self, machine: Mesh) -> subprocess.Popen[bytes]:
        home, port = machine.home.path, machine.home.base_port
        command = [sys.executable, "-m", "mesh", "up", "--home", str(home), "--base-port", str(port)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    @pytest.mark.parametrize("component", ["nats", "mongo", "postgres"])
    def test_down_after_a_killed_up_leaves_nothing(self, machine: Mesh, component: str) -> None:
        home = machine.home.path
        with self._up(machine) as up:
            _eventually((home / "run" / f"{component}.json").exists)
            up.kill()
        Mesh(home).down()
        assert not _processes_of(home)
        assert not Mesh(home).processes.recorded()

    def test_the_next_up_completes_an_up_that_was_killed(self, machine: Mesh) -> None:
        with self._up(machine) as up:
            _eventually((machine.home.path / "postgres.unfinished" / "PG_VERSION").exists)  # initdb is running
            up.kill()
        machine.up(only=STORES)
        assert {s.name for s in machine.status() if s.state == "ready"} >= {*STORES}

    def test_a_port_in_use_is_named_with_the_component_that_wants_it_and_its_owner(self, machine: Mesh) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", machine.home.port("nats")))
            other.listen()
            with pytest.raises(MeshError) as refused:
                machine.up(only=STORES)
        assert f"port {machine.home.port('nats')}, which nats needs" in str(refused.value)
        assert f"process {os.getpid()}" in str(refused.value)
        assert Mesh(machine.home.path).home.base_port == DEFAULT_BASE_PORT  # nothing was started at the other one
        assert not machine.processes.recorded()

    def test_a_component_that_ends_is_named_with_the_end_of_its_log(self, machine: Mesh) -> None:
        broken = dataclasses.replace(
            machine.components["mongo"], command=lambda: ["sh", "-c", "echo no such luck; exit 3"]
        )
        machine.components["mongo"] = broken
        with pytest.raises(MeshError, match=r"mongo did not get ready: it ended\n.*\n  no such luck"):
            machine.up(only=["nats", "mongo"])
        assert not _processes_of(machine.home.path), "what it had started beside is stopped again"

    def test_up_starts_only_what_does_not_run(self, machine: Mesh) -> None:
        machine.up(only=["nats", "envoy"])
        before = {s.name: s.pid for s in machine.status()}
        machine.stop("nats", signal.SIGKILL)
        machine.up(only=["nats", "envoy"])
        after = {s.name: s.pid for s in machine.status()}
        assert after["envoy"] == before["envoy"]
        assert after["nats"] not in (None, before["nats"])

    def test_a_process_that_is_woken_interrupts_nobody_who_works(self, machine: Mesh) -> None:
        machine.up(only=["nats"])
        [nats] = [s.pid for s in machine.status() if s.name == "nats"]
        assert nats is not None
        assert os.sched_getscheduler(nats) == os.SCHED_BATCH

    def test_a_recycled_pid_is_not_killed(self, machine: Mesh) -> None:
        machine.up(only=["nats"])
        machine.stop("nats")
        bystander = subprocess.Popen(["sleep", "60"])
        try:
            # This is as if the kernel had given nats' pid to a process that started later.
            record = {"pid": bystander.pid, "start": 1}
            (machine.processes.run / "nats.json").write_text(json.dumps(record))
            assert machine.processes.find("nats") is None
            machine.down()
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()

    async def test_data_survive_a_restart_at_other_ports(self, machine: Mesh) -> None:
        machine.up(only=STORES)
        for text in ("CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (1)"):
            connection = await asyncpg.connect(machine.stores.postgres_url)
            await connection.execute(text)
            await connection.close()
        client = await nats.connect(machine.stores.nats_url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.jetstream().publish("kept", b"1")
        await client.close()
        machine.down()
        moved = Mesh(machine.home.path, free_base_port())
        moved.up(only=STORES)
        connection = await asyncpg.connect(moved.stores.postgres_url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == 1
        await connection.close()
        assert moved.stores.nats.last_sequence("KEPT") == 1
        assert Mesh(machine.home.path).home.base_port == moved.home.base_port, "the move is remembered"

    async def test_servers_that_are_there_already_are_used_and_left_alone(self, machine: Mesh, tmp_path: Path) -> None:
        machine.up(only=STORES)
        stores = machine.stores
        external = {"postgres": stores.postgres_url, "mongo": stores.mongo_url, "nats": stores.nats_url}
        guest = Mesh(tmp_path / "guest", free_base_port(), external)
        guest.up(only=STORES)
        assert guest.processes.recorded() == []
        guest.stores.write_secrets("approval")
        url = (guest.home.path / "secrets" / "approval" / "database_url").read_text()
        await (await asyncpg.connect(url)).close()
        guest.down()
        assert {s.name for s in machine.status() if s.state == "ready"} == {*STORES}

    def test_a_server_that_should_be_there_and_is_not_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mesh.machine.mesh.READY_WITHIN", 0.2)
        guest = Mesh(tmp_path, free_base_port(), {"nats": "nats://127.0.0.1:1"})
        with pytest.raises(MeshError, match="nats at the URL given did not get ready"):
            guest.up(only=["nats"])
        asked_again = Mesh(tmp_path).home
        assert (asked_again.base_port, asked_again.external) == (DEFAULT_BASE_PORT, {})  # nothing of it is remembered

    async def test_a_service_cannot_reach_the_database_or_the_subjects_of_another(self, machine: Mesh) -> None:
        machine.up(only=["postgres", "nats"])
        password = machine.home.passwords["mypage"]
        url = f"postgresql://mypage:{password}@{machine.home.address('postgres')}"
        await (await asyncpg.connect(f"{url}/mypage")).close()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(f"{url}/approval")
        refused: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        async def note(error: Exception) -> None:
            refused.set_result(error)

        client = await nats.connect(machine.stores.nats_address, user="mypage", password=password, error_cb=note)
        await client.publish("vaccination.approval.v1.ApprovalGranted", b"")
        assert "permissions violation" in str(await asyncio.wait_for(refused, 10)).lower()
        await client.close()


def _echo(
    request: mypage.ListMyReservationsRequest, context: grpc.ServicerContext
) -> mypage.ListMyReservationsResponse:
    """Answers with the caller's identity as it reached the service, in a field that holds text."""
    payloads = [value for name, value in context.invocation_metadata() if name == "x-jwt-payload"]
    return mypage.ListMyReservationsResponse(next_page_token=json.dumps([str(p) for p in payloads]))


def _serve(address: str, service: str, method: str, handler: Any, request: type[Message]) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(2))
    one: Any = grpc.unary_unary_rpc_method_handler(
        handler, request_deserializer=request.FromString, response_serializer=lambda answer: answer.SerializeToString()
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: one}),))
    server.add_insecure_port(address)
    server.start()
    return server


@contextmanager
def _envoy_alone(folder: Path, values: dict[str, Any] | None = None) -> Iterator[Mesh]:
    """A real Envoy. Behind it are an echo instead of mypage, and an Approve that grants everything."""
    mesh = Mesh(folder, free_base_port(), values=values)
    listing = ("vaccination.mypage.v1.MypageService", "ListMyReservations")
    approving = ("vaccination.approval.v1.ApprovalService", "Approve")
    servers = [
        _serve(mesh.home.address("mypage"), *listing, _echo, mypage.ListMyReservationsRequest),
        _serve(
            mesh.home.address("approval"), *approving, lambda *_: approval.ApproveResponse(), approval.ApproveRequest
        ),
    ]
    mesh.up(only=["envoy"])
    yield mesh
    mesh.down()
    for server in servers:
        server.stop(None)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A laptop's gateway, which takes plain text and any host."""
    with _envoy_alone(tmp_path_factory.mktemp("proxy") / ODD) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The gateway of values-production.yaml, which takes TLS and one host."""
    values = yaml.safe_load((CHART / "values-production.yaml").read_text())
    with _envoy_alone(tmp_path_factory.mktemp("production"), {"gateway": values["gateway"]}) as mesh:
        yield mesh


class TestCommandLine:
    """Scripts rely on the command line."""

    def _mesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "mesh", *arguments], capture_output=True, text=True)

    def _refused(self, *arguments: str) -> str:
        """What a command that fails says, which is one line."""
        done = self._mesh(*arguments)
        assert (done.returncode, done.stdout) == (2 if "import" in arguments else 1, "")
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    def test_no_token_is_made_where_no_gateway_would_know_it(self, tmp_path: Path) -> None:
        home = tmp_path / "mistyped"
        assert f"there is no mesh in {home}" in self._refused("token", "--customer", "C1", "--home", str(home))
        assert f"there is no mesh in {home}" in self._refused("import", str(tmp_path), "--home", str(home))
        assert not home.exists()

    def test_a_home_that_is_a_file_is_told_to_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "is a file" in self._refused("up", "--home", str(tmp_path / "file" / "home"))

    def test_a_home_that_cannot_be_written_is_named(self) -> None:
        # Nobody may make a folder there, not even root.
        assert "error: /proc/mesh: No such file or directory" in self._refused("up", "--home", "/proc/mesh")

    @pytest.mark.parametrize("port", [-5, 0, 80, 65500, 70000])
    def test_a_base_port_without_room_for_all_ports_is_refused(self, tmp_path: Path, port: int) -> None:
        with pytest.raises(MeshError, match=f"the base port {port} is not from 1024 to 65458"):
            Mesh(tmp_path, port)

    def test_token_prints_the_token_and_nothing_else(self, tmp_path: Path) -> None:
        self._mesh("jwks", "--home", str(tmp_path))  # as for a gateway in a cluster
        printed = self._mesh("token", "--customer", "C1", "--home", str(tmp_path)).stdout
        assert _decoded(printed.strip().split(".")[1])["sub"] == "C1"

    def test_status_succeeds_only_if_all_is_ready(self, proxy: Mesh) -> None:
        status = self._mesh("--home", str(proxy.home.path), "status")
        assert status.returncode == 1
        states = {line.split()[0]: line.split()[3] for line in status.stdout.splitlines()[1:]}
        assert (states["envoy"], states["nats"]) == ("ready", "down")

    def test_down_in_an_empty_folder_makes_nothing(self, tmp_path: Path) -> None:
        assert self._mesh("down", "--home", str(tmp_path / "none")).returncode == 0
        assert not (tmp_path / "none").exists()


def _decoded(token_payload: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token_payload + "=="))
    return payload


class TestGateway:
    """The gateway lets the right callers in, with the right identity."""

    def _payloads(self, proxy: Mesh, **headers: str) -> list[str]:
        """The identity that reaches the service over gRPC, which has to be the same over REST."""
        with grpc.insecure_channel(proxy.gateway) as channel:
            request = mypage.ListMyReservationsRequest()
            stub = MypageServiceStub(channel)
            by_grpc = stub.ListMyReservations(request, metadata=tuple(headers.items())).next_page_token
        answer = httpx.get(f"http://{proxy.gateway}/v1/my/reservations", headers=headers)
        assert answer.json()["nextPageToken"] == by_grpc
        payloads: list[str] = json.loads(by_grpc)
        return payloads

    def test_the_verified_claims_reach_the_service(self, proxy: Mesh) -> None:
        roles = ["customer", "manager"]
        token = identity.token(proxy.home.path, subject="M1", roles=roles, hospital="H1")
        (payload,) = self._payloads(proxy, authorization=f"Bearer {token}")
        assert _decoded(payload).items() >= {"sub": "M1", "roles": roles, "hospital": "H1"}.items()

    def test_claims_that_the_caller_sends_do_not_reach_the_service(self, proxy: Mesh) -> None:
        forged = {"x-jwt-payload": base64.urlsafe_b64encode(b'{"sub": "C2"}').decode()}
        self._refused(proxy, **forged)
        token = identity.token(proxy.home.path, subject="C1", roles=["customer"])
        (payload,) = self._payloads(proxy, **forged, authorization=f"Bearer {token}")
        assert _decoded(payload)["sub"] == "C1"

    def test_without_a_token_nobody_gets_as_far_as_the_service(self, proxy: Mesh) -> None:
        self._refused(proxy)
        self._refused(proxy, authorization="Basic QTpC")

    def _refused(self, proxy: Mesh, **headers: str) -> None:
        answer = httpx.get(f"http://{proxy.gateway}/v1/my/reservations", headers=headers)
        assert (answer.status_code, answer.json()["details"][0]["reason"]) == (401, "TOKEN_MISSING")
        request, metadata = mypage.ListMyReservationsRequest(), tuple(headers.items())
        with grpc.insecure_channel(proxy.gateway) as channel, pytest.raises(grpc.RpcError) as refused:
            MypageServiceStub(channel).ListMyReservations(request, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    @pytest.mark.parametrize(
        "claims",
        [
            {"expires_in": -70},  # Istio's allowance is 60 s; the services are stricter, see test_chassis
            {"iss": "https://elsewhere"},
            {"aud": "another"},
            {"nbf": 4102444800},  # the year 2100
            "another key",
            "no signature",
            "rubbish",
        ],
        ids=str,
    )
    def test_a_token_that_is_not_valid_is_refused_with_its_reason(
        self, proxy: Mesh, claims: dict[str, Any] | str, tmp_path: Path
    ) -> None:
        if isinstance(claims, dict):
            token = identity.token(proxy.home.path, subject="C1", roles=["customer"], **claims)
        else:
            token = identity.token(tmp_path, subject="C1", roles=["customer"])
        if claims == "no signature":
            header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
            token = f"{header}.{token.split('.')[1]}."
        elif claims == "rubbish":
            token = "rubbish"
        with grpc.insecure_channel(proxy.gateway) as channel, pytest.raises(grpc.RpcError) as refused:
            MypageServiceStub(channel).ListMyReservations(
                mypage.ListMyReservationsRequest(), metadata=(("authorization", f"Bearer {token}"),)
            )
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        trailers: dict[str, bytes] = dict(refused.value.trailing_metadata() or ())  # type: ignore[arg-type]
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (16, refused.value.details()), "else clients reject the details"
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "TOKEN_INVALID"
        headers = {"authorization": f"Bearer {token}"}
        answer = httpx.get(f"http://{proxy.gateway}/v1/my/reservations", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, 16)
        assert answer.json()["details"][0]["reason"] == "TOKEN_INVALID"

    def test_approve_is_reached_by_reservation_alone(self, proxy: Mesh) -> None:
        request = approval.ApproveRequest(reservation_id=str(uuid.uuid4()))
        with grpc.insecure_channel(proxy.home.address("to-approval")) as channel:
            ApprovalServiceStub(channel).Approve(request)
        with grpc.insecure_channel(proxy.gateway) as channel, pytest.raises(grpc.RpcError) as refused:
            ApprovalServiceStub(channel).Approve(request)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        # Another spelling of the path does not reach it either.
        for path in ("vaccination.approval.v1.HospitalService/..", "/", "vaccination.approval.v1.HospitalService%2f.."):
            url = f"http://{proxy.gateway}/{path}/vaccination.approval.v1.ApprovalService/Approve"
            answer = httpx.post(url, content=bytes(5), headers={"content-type": "application/grpc"})
            assert answer.headers["grpc-status"] == str(grpc.StatusCode.UNIMPLEMENTED.value[0])

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "code"),
        [
            ("GET", "/v1/nothing", "", 404, 5),
            ("DELETE", "/v1/my/reservations", "", 404, 5),
            ("GET", "/v1/my/reservations?nothing=1", "", 400, 3),
            ("GET", "/v1/my/reservations?pageSize=many", "", 400, 3),
            ("POST", "/v1/reservations", "{", 400, 3),
            ("POST", "/v1/reservations", '{"date": 5}', 400, 3),
            ("GET", "/v1/reservations", "", 503, 14),  # reservation is not running
        ],
    )
    def test_the_gateways_own_errors_have_the_same_form_as_the_services(
        self, proxy: Mesh, method: str, path: str, body: str, status: int, code: int
    ) -> None:
        token = identity.token(proxy.home.path, subject="C1", roles=["customer"])
        bearer = {"authorization": f"Bearer {token}"}
        answer = httpx.request(method, f"http://{proxy.gateway}{path}", content=body, headers=bearer)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["message"]

    def test_the_access_log_has_the_status_that_the_caller_got_and_no_other(self, proxy: Mesh) -> None:
        token = identity.token(proxy.home.path, subject="C1", roles=["customer"])
        bearer = ("authorization", f"Bearer {token}")
        with grpc.insecure_channel(proxy.gateway) as channel:
            listing = MypageServiceStub(channel).ListMyReservations
            listing(mypage.ListMyReservationsRequest(), metadata=(bearer,))
            with pytest.raises(grpc.RpcError):
                listing(mypage.ListMyReservationsRequest())
        last = f"/v1/reservations/{uuid.uuid4()}:cancel"
        httpx.post(f"http://{proxy.gateway}{last}", content="{", headers=dict([bearer]))
        log = proxy.processes.log("access")
        _eventually(lambda: last in log.read_text(), within=15)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        told = [(line["status"], line["grpc_status"]) for line in lines[-3:]]
        assert told == [(200, "0"), (200, "16"), (400, None)]

    def test_no_token_gets_into_the_access_log(self, proxy: Mesh) -> None:
        token = identity.token(proxy.home.path, subject="C1", roles=["customer"])
        url = f"http://{proxy.gateway}/v1/my/reservations?pageToken=a-page&access_token={token}"
        httpx.get(url, headers={"authorization": f"Bearer {token}"})
        log = proxy.processes.log("access")
        _eventually(lambda: "/v1/my/reservations" in log.read_text(), within=15)
        assert token not in log.read_text()
        assert "a-page" not in log.read_text()

    def test_a_rest_requests_query_gets_into_no_log_not_even_in_istios_own_format(self, proxy: Mesh) -> None:
        token = identity.token(proxy.home.path, subject="C1", roles=["customer"])
        url = f"http://{proxy.gateway}/v1/hospitals?near.latitude=37.57&near.longitude=126.98&query=a-name"
        httpx.get(url, headers={"authorization": f"Bearer {token}"})
        log = proxy.processes.log("access")
        _eventually(lambda: '"original_path":"/v1/hospitals"' in log.read_text(), within=15)
        assert not [told for told in ("37.57", "126.98", "a-name") if told in log.read_text()]

    def test_the_code_of_a_sign_in_gets_into_no_log(self, proxy: Mesh) -> None:
        httpx.get(f"http://{proxy.gateway}/signed-in?code=a-secret-code&state=of-a-tab")
        log = proxy.processes.log("access")
        _eventually(lambda: '"original_path":"/signed-in"' in log.read_text(), within=15)
        assert not [told for told in ("a-secret-code", "of-a-tab") if told in log.read_text()]


class TestGatewayWithTls:
    """Production's gateway answers its own host only, and only by TLS."""

    HOST, OTHER = "booking.example.org", "www.example.org"

    def _listing(self, mesh: Mesh, host: str, name: str, http2: bool = False) -> httpx.Response:
        """Asks for a host over a connection that was opened for the server name."""
        token = identity.token(mesh.home.path, subject="C1", roles=["customer"])
        trust = ssl.create_default_context(cafile=mesh.home.root_certificate)
        with httpx.Client(verify=trust, http1=not http2, http2=http2, trust_env=False) as client:
            return client.get(
                f"https://{mesh.gateway}/v1/my/reservations",
                headers={"host": host, "authorization": f"Bearer {token}"},
                extensions={"sni_hostname": name},
            )

    def _list(self, mesh: Mesh, channel: grpc.Channel) -> mypage.ListMyReservationsResponse:
        token = identity.token(mesh.home.path, subject="C1", roles=["customer"])
        metadata = (("authorization", f"Bearer {token}"),)
        return MypageServiceStub(channel).ListMyReservations(
            mypage.ListMyReservationsRequest(), metadata=metadata, timeout=20
        )

    def _channel(self, mesh: Mesh, host: str, name: str) -> grpc.Channel:
        trust = grpc.ssl_channel_credentials(mesh.home.root_certificate.read_bytes())
        return grpc.secure_channel(
            mesh.gateway, trust, [("grpc.default_authority", host), ("grpc.ssl_target_name_override", name)]
        )

    @pytest.mark.parametrize("http2", [False, True])
    def test_a_client_that_asks_for_the_gateways_host_is_served_by_rest(self, production: Mesh, http2: bool) -> None:
        for host in (self.HOST, f"{self.HOST}:443"):
            answer = self._listing(production, host, self.HOST, http2)
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
            (payload,) = json.loads(answer.json()["nextPageToken"])
            assert _decoded(payload)["sub"] == "C1"

    async def test_a_client_that_asks_for_the_gateways_host_is_served_by_grpc(self, production: Mesh) -> None:
        with production.connect() as channel:
            (payload,) = json.loads((await asyncio.to_thread(self._list, production, channel)).next_page_token)
        assert _decoded(payload)["sub"] == "C1"
        async with production.connect_aio() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MypageServiceStub(channel).ListMyReservations(mypage.ListMyReservationsRequest())
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    def test_another_host_is_not_found(self, production: Mesh) -> None:
        for http2 in (False, True):
            answer = self._listing(production, self.OTHER, self.HOST, http2)
            assert (answer.status_code, answer.json()["details"][0]["reason"]) == (404, "UNKNOWN_METHOD")
        with self._channel(production, self.OTHER, self.HOST) as channel, pytest.raises(grpc.RpcError) as refused:
            self._list(production, channel)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_a_client_that_opens_a_connection_for_another_host_is_disconnected(self, production: Mesh) -> None:
        with pytest.raises((httpx.ConnectError, httpx.ReadError)):
            self._listing(production, self.HOST, self.OTHER)
        with self._channel(production, self.HOST, self.OTHER) as channel, pytest.raises(grpc.RpcError) as refused:
            self._list(production, channel)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

    def test_a_client_that_speaks_plain_text_is_disconnected(self, production: Mesh) -> None:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            httpx.get(f"http://{production.gateway}/openapi.json", headers={"host": self.HOST})

    def test_the_commands_that_are_printed_work(self, production: Mesh) -> None:
        lines = production.how_to_call().splitlines()
        [call] = [line for line in lines if line.endswith("ListMyReservations")]
        [get] = [line for line in lines if line.endswith("/v1/my/reservations")]
        token = identity.token(production.home.path, subject="C1", roles=["customer"])
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        call = call.replace("grpcurl", f"grpcurl -protoset {IMAGE}", 1)  # the echo has no reflection
        for command in (call, get):
            done = subprocess.run(
                command, shell=True, env={"PATH": path, "TOKEN": token}, capture_output=True, text=True
            )
            assert "nextPageToken" in done.stdout, done.stderr
