"""A service's process starts before its stores do, survives their absence, and ends without losing anything."""

import asyncio
import base64
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.js import JetStreamContext

from mesh import ROOT
from services.chassis import server
from services.chassis.addresses import EVERYWHERE
from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import status_of
from services.chassis.events import STREAM
from vaccination.approval.v1 import approval_service_pb2, approval_service_pb2_grpc, hospital_pb2
from vaccination.approval.v1 import hospital_service_pb2 as pb
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub

from .conftest import Servers, eventually, within

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
CLAIMS = base64.urlsafe_b64encode(json.dumps({"sub": "o", "roles": ["operator"], "exp": 2**33}).encode()).decode()
OPERATOR = ((CLAIMS_HEADER, CLAIMS),)
DAY = "2099-03-10"
FULL = Path("/dev/full")  # takes nothing, as a disk without room
# This machine, by IPv6 where it has that: as in a cluster that has nothing else.
HERE = "[::1]" if EVERYWHERE == "[::]" else "127.0.0.1"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Door:
    """A proxy to a real server. When it is shut, it refuses new connections and cuts those that are open."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._server: asyncio.Server | None = None
        self._inside: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._let_in, "127.0.0.1", self.port)

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in [*self._inside]:
            writer.transport.abort()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pass_on(reader, to_writer), self._pass_on(to_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._inside.add(writer)
        try:
            while some := await reader.read(65536):
                writer.write(some)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._inside.discard(writer)
            writer.close()


@dataclass
class Service:
    """One process of approval, with a door in front of each of its stores."""

    process: asyncio.subprocess.Process
    address: str
    postgres: Door
    nats: Door
    database_url: str
    log: Path

    async def health(self, name: str) -> int | None:
        """The status that its health service gives; None when it does not answer."""
        async with self.channel() as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=name)
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except grpc.aio.AioRpcError:
                return None
        return int(answer.status)

    async def becomes(self, name: str, status: int) -> None:
        await eventually(lambda: self.health(name), lambda seen: seen == status)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield channel

    async def offer(self, capacity: int) -> None:
        """A hospital with places on DAY."""
        async with self.channel() as channel:
            stub = HospitalServiceStub(channel)
            hospital = hospital_pb2.Hospital(hospital_id="h1", name="Han River Clinic")
            await stub.UpsertHospital(pb.UpsertHospitalRequest(hospital=hospital), metadata=OPERATOR, timeout=10)
            request = pb.SetDailyCapacityRequest(hospital_id="h1", first_date=DAY, last_date=DAY, capacity=capacity)
            await stub.SetDailyCapacity(request, metadata=OPERATOR, timeout=10)

    async def approve(self, customer: str) -> int:
        """Asks for a place; returns the denial's reason, or 0 if it is granted."""
        request = approval_service_pb2.ApproveRequest(
            reservation_id=str(uuid.uuid4()), customer_id=customer, hospital_id="h1", date=DAY
        )
        async with self.channel() as channel:
            answer = await approval_service_pb2_grpc.ApprovalServiceStub(channel).Approve(request, timeout=20)
        return int(answer.denial_reason)

    def logged(self) -> list[dict[str, Any]]:
        """What it has logged: each line is a JSON object, whoever wrote it."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def complaints(self) -> int:
        """How often it has logged that something is not there."""
        return self.log.read_text().count('"level": "warning"')

    async def ends(self, within: float = 20) -> int:
        """Waits for its end; returns its exit code."""
        return await asyncio.wait_for(self.process.wait(), within)


@pytest.fixture
async def service(
    servers: Servers, jetstream: JetStreamContext, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    """Starts a service with both doors shut, and with an empty database behind one of them.

    Its parameter is a file for its log; else one of its own.
    """
    admin = await asyncpg.connect(servers.stores.postgres_url)
    database = f"process_{uuid.uuid4().hex[:8]}"
    await admin.execute(f"CREATE DATABASE {database}")
    await admin.close()
    url = urlsplit(servers.postgres_url(database))
    postgres, nats = Door(url.port or 0), Door(servers.mesh.home.port("nats"))
    through_the_door = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{postgres.port}")
    user, password = servers.stores.nats_login("approval")
    (tmp_path / "database_url").write_text(through_the_door.geturl())
    (tmp_path / "nats_password").write_text(password)
    port = free_port()
    env = os.environ | {
        "LISTEN": f"{EVERYWHERE}:{port}",
        "METRICS_LISTEN": f"{EVERYWHERE}:{free_port()}",
        "NATS_URL": f"nats://127.0.0.1:{nats.port}",
        "NATS_USER": user,
        "SECRETS_DIR": str(tmp_path),
    }
    log = getattr(request, "param", None) or tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.approval", cwd=ROOT, env=env, stdout=output, stderr=output
        )
    service = Service(process, f"{HERE}:{port}", postgres, nats, url.geturl(), log)
    yield service
    if process.returncode is None:
        process.kill()
        await process.wait()
    await postgres.shut()
    await nats.shut()
    if log != FULL:
        print(log.read_text())
        assert service.logged()


@pytest.mark.parametrize("first", ["postgres", "nats"])
async def test_a_service_starts_before_its_stores_and_serves_when_they_are_there(service: Service, first: str) -> None:
    await service.becomes("", SERVING)
    assert await service.health("approval") == NOT_SERVING
    doors = {"postgres": service.postgres, "nats": service.nats}
    await doors.pop(first).open()
    complaints = service.complaints()
    await within(20, lambda: service.complaints() >= complaints + 2)  # it goes on trying
    assert (await service.health(""), await service.health("approval")) == (SERVING, NOT_SERVING)
    assert service.process.returncode is None
    [second] = doors.values()
    await second.open()
    await service.becomes("approval", SERVING)
    await service.offer(1)
    assert [await service.approve("c1"), await service.approve("c2")] == [0, 1]
    service.process.send_signal(signal.SIGTERM)
    assert await service.ends() == 0


@pytest.mark.parametrize("service", [FULL], indirect=True)
async def test_a_service_whose_log_lines_cannot_be_written_serves_and_ends_as_ever(
    service: Service, jetstream: JetStreamContext
) -> None:
    await service.becomes("", SERVING)  # it has logged that its stores are not there
    await service.postgres.open()
    await service.nats.open()
    await service.becomes("approval", SERVING)
    await service.offer(1)
    assert [await service.approve("c1"), await service.approve("c2")] == [0, 1]
    await eventually(lambda: jetstream.stream_info(STREAM), lambda info: info.state.messages == 2)
    service.process.send_signal(signal.SIGTERM)
    assert await service.ends() == 0


def approval_env(service: Service, secrets: Path) -> dict[str, str]:
    """The environment of another process of the same service."""
    return {
        "METRICS_LISTEN": "127.0.0.1:0",
        "NATS_URL": f"nats://127.0.0.1:{service.nats.port}",
        "NATS_USER": "approval",
        "SECRETS_DIR": str(secrets),
    }


async def test_the_migration_job_makes_the_schema_and_the_consumer_before_and_beside_a_serving_replica(
    service: Service, tmp_path: Path, jetstream: JetStreamContext
) -> None:
    async def migrate() -> int:
        command, env = [sys.executable, "-m", "services.approval", "migrate"], approval_env(service, tmp_path)
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=os.environ | env)
        return await asyncio.wait_for(process.wait(), 60)

    service.process.send_signal(signal.SIGSTOP)
    await service.postgres.open()
    await service.nats.open()
    assert await migrate() == 0
    connection = await asyncpg.connect(service.database_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM migrations") > 1
    finally:
        await connection.close()
    config = (await jetstream.consumer_info(STREAM, "approval")).config
    assert config.filter_subjects or config.filter_subject
    service.process.send_signal(signal.SIGCONT)
    await service.becomes("approval", SERVING)
    await service.offer(1)
    assert await migrate() == 0
    assert await service.approve("c1") == 0


async def test_a_service_whose_store_is_away_is_alive_and_not_ready_until_it_is_back(service: Service) -> None:
    await service.postgres.open()
    await service.nats.open()
    await service.becomes("approval", SERVING)
    await service.postgres.shut()
    await service.becomes("approval", NOT_SERVING)
    assert await service.health("") == SERVING
    # The driver complains too, and a known outage needs no stack.
    [told] = {line["error"] for line in service.logged() if line.get("logger") == "asyncpg.pool"}
    assert told in ("ConnectionRefusedError", "ConnectionResetError")
    assert "Traceback" not in service.log.read_text()
    await service.postgres.open()
    await service.becomes("approval", SERVING)
    assert service.process.returncode is None


async def test_a_changed_secret_restarts_a_replica_unless_the_secret_is_wrong(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.postgres.open()
    await service.nats.open()
    await service.becomes("approval", SERVING)
    for name, value in (approval_env(service, tmp_path) | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(server, "SECRETS_EVERY", 0.2)
    monkeypatch.setattr(server, "SECRETS_SPREAD", 0.0)
    monkeypatch.setattr(server, "SECRETS_WITHIN", 5.0)
    tried: list[bool] = []
    works = server._changed_and_works

    async def changed_and_works(*arguments: Any) -> bool:
        tried.append(await works(*arguments))
        return tried[-1]

    monkeypatch.setattr(server, "_changed_and_works", changed_and_works)
    stop, right = asyncio.Event(), (tmp_path / "nats_password").read_text()
    watching = asyncio.create_task(server._until_secrets_change("approval", stop))
    await asyncio.sleep(0)  # it has read the secrets as they are
    try:
        (tmp_path / "nats_password").write_text("wrong")
        before = len(tried)
        await within(60, lambda: len(tried) > before + 1)
        assert not any(tried)
        monkeypatch.setattr(server, "SECRETS_WITHIN", 60.0)  # Python starts slowly on a busy machine
        (tmp_path / "nats_password").write_text(right + "\n")  # the file changes, but the password is the same
        await asyncio.wait_for(stop.wait(), 120)
    finally:
        watching.cancel()


async def test_a_service_that_is_still_waiting_for_its_stores_stops_when_told(service: Service) -> None:
    await service.becomes("", SERVING)
    service.process.send_signal(signal.SIGTERM)
    assert await service.ends(10) == 0


async def test_a_service_survives_the_absence_of_its_stores(service: Service, jetstream: JetStreamContext) -> None:
    await service.postgres.open()
    await service.nats.open()
    await service.becomes("approval", SERVING)
    await service.offer(5)
    assert await service.approve("c1") == 0

    await service.nats.shut()
    assert await service.approve("c2") == 0  # a decision does not need the stream
    await service.postgres.shut()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await service.approve("c3")
    status, info = status_of(refusal.value), error_details_pb2.ErrorInfo()
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.reason == "STORE_UNAVAILABLE"
    assert await service.health("") == SERVING
    await service.postgres.open()
    await service.nats.open()

    async def answers() -> int | None:
        try:
            return await service.approve("c4")
        except grpc.aio.AioRpcError:
            return None

    await eventually(answers, lambda denial: denial in (0, 3))

    async def in_the_stream() -> int:
        return int((await jetstream.stream_info(STREAM)).state.messages)

    await eventually(in_the_stream, lambda count: count >= 3)
    service.process.send_signal(signal.SIGTERM)
    assert await service.ends() == 0


async def test_a_service_that_is_told_to_stop_finishes_what_it_has_begun_and_publishes_it(
    service: Service, jetstream: JetStreamContext
) -> None:
    await service.postgres.open()
    await service.nats.open()
    await service.becomes("approval", SERVING)
    await service.offer(1)
    connection = await asyncpg.connect(service.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE days")
            calls = [asyncio.create_task(service.approve(f"c{i}")) for i in range(2)]

            async def blocked() -> int:
                return int(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await eventually(blocked, lambda count: count > 0)
            service.process.send_signal(signal.SIGTERM)

            async def refused() -> int | None:
                return await service.health("")

            await eventually(refused, lambda answer: answer is None)  # no new call is let in
            assert not any(call.done() for call in calls)
        assert sorted(await asyncio.gather(*calls)) == [0, 1]
        assert await service.ends() == 0
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    finally:
        await connection.close()
    assert (await jetstream.stream_info(STREAM)).state.messages == 2


async def test_a_service_with_bad_settings_ends_with_a_line_each_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "nats_password").write_text("hunter2")
    (tmp_path / "database_url").write_text("hunter2")
    env = {
        "PATH": os.environ["PATH"],
        "SECRETS_DIR": str(tmp_path),
        "NATS_USER": "approval",
        "LISTEN": "hunter2",
        "DRAIN_SECONDS": "hunter2",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.approval"),
        cwd=ROOT,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 2
    named = [line.split()[1] for line in err.decode().splitlines()]
    assert sorted(named) == ["DATABASE_URL", "DRAIN_SECONDS", "LISTEN", "NATS_URL"]
    assert b"hunter2" not in out + err
