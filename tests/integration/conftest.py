"""Integration tests have real stores of their own, and each test has its own database and streams."""

import asyncio
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import nats
import pytest
import structlog
from motor.motor_asyncio import AsyncIOMotorClient
from nats.aio.client import Client
from nats.js import JetStreamContext

from mesh import ROOT
from mesh.machine import Mesh
from mesh.machine.home import STORES
from services.chassis import clock
from services.chassis.addresses import EVERYWHERE
from services.chassis.events import STREAM, Bus
from services.chassis.mongo import Mongo
from services.chassis.postgres import Database
from services.chassis.retention import Retention
from services.vaccinemgmt.adapters.mongo import SCHEMA
from tests.conftest import free_base_port
from tests.e2e.conftest import eventually

__all__ = ["FOR_EVER", "MIGRATIONS", "Days", "OpenBus", "OpenDatabase", "OpenMongo", "Servers", "eventually", "within"]

MIGRATIONS = {service: ROOT / "services" / service / "migrations" for service in ("approval", "reservation", "mypage")}
OpenDatabase = Callable[[str], Awaitable[Database]]
OpenMongo = Callable[[], Awaitable[Mongo]]
OpenBus = Callable[[str], Awaitable[Bus]]


@dataclass(frozen=True)
class Days:
    """The settings that say how many days data are kept; 0, the default, keeps them for ever."""

    retention_refused_days: int = 0
    retention_passed_days: int = 0
    retention_stream_days: int = 0


FOR_EVER = Retention(Days(), clock.now)


class Servers:
    """The three stores, and their URLs for a superuser."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.stores = mesh, mesh.stores
        self._templates: dict[str, str] = {}

    def postgres_url(self, database: str) -> str:
        """A superuser's URL of a database."""
        return urlsplit(self.stores.postgres_url)._replace(path=f"/{database}").geturl()

    def mongo_url(self, database: str) -> str:
        """A superuser's URL of a database."""
        return urlsplit(self.stores.mongo_url)._replace(path=f"/{database}").geturl()

    async def hurry(self) -> None:
        """Switches flushing to disk off: no test here is about a power cut, and each clone would wait for the disk."""
        admin = await asyncpg.connect(self.stores.postgres_url)
        try:
            for setting in ("fsync", "full_page_writes"):
                await admin.execute(f"ALTER SYSTEM SET {setting} = off")
            await admin.execute("SELECT pg_reload_conf()")
        finally:
            await admin.close()

    async def clone(self, service: str) -> str:
        """The URL of a new database with the service's schema, copied from a database that was migrated once."""
        admin = await asyncpg.connect(self.stores.postgres_url)
        try:
            if service not in self._templates:
                template = f"template_{service}"
                await admin.execute(f"CREATE DATABASE {template}")
                database = Database(self.postgres_url(template))
                await database.open(MIGRATIONS[service])
                await database.close()
                self._templates[service] = template
            name = f"{service}_{uuid.uuid4().hex[:8]}"
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {self._templates[service]}")
        finally:
            await admin.close()
        return self.postgres_url(name)

    async def stop(self, name: str) -> None:
        """Stops a store."""
        await asyncio.to_thread(self.mesh.stop, name)

    async def start(self, name: str) -> None:
        """Starts a stopped store again, with its data."""
        await asyncio.to_thread(self.mesh.start, name)


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """Logs as the services do, because structlog's default draws each traceback, which took a third of the run."""
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(),
    )


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Postgres, MongoDB and NATS for all integration tests.

    They are in memory if there is room, because each test's database is 300 files to make and to remove, and each
    commit is flushed. They are not in pytest's folder, because Postgres runs as another user, and each pytest session
    that begins takes other users' access to that folder away.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30
    with tempfile.TemporaryDirectory(prefix="integration-", dir=memory if roomy else None) as home:
        mesh = Mesh(Path(home), free_base_port())
        mesh.home.listen = EVERYWHERE  # as evaluation's stores in a pod
        try:
            mesh.up(only=STORES)
            found = Servers(mesh)
            asyncio.run(found.hurry())
            yield found
        finally:
            mesh.stop("postgres", signal.SIGQUIT)  # an immediate end, because nobody needs a checkpoint here
            mesh.down()


@pytest.fixture
async def open_database(servers: Servers) -> AsyncIterator[OpenDatabase]:
    """Opens the test's own database of a service; a second call opens it once more, as another replica does."""
    urls: dict[str, str] = {}
    opened: list[Database] = []

    async def open_one(service: str) -> Database:
        if service not in urls:
            urls[service] = await servers.clone(service)
        database = Database(urls[service])
        await database.open(MIGRATIONS[service])
        opened.append(database)
        return database

    yield open_one
    for database in opened:
        await database.close()


@pytest.fixture
async def open_mongo(servers: Servers) -> AsyncIterator[OpenMongo]:
    """Opens the test's own MongoDB database, with vaccinemgmt's collections."""
    name, opened = f"test_{uuid.uuid4().hex[:8]}", list[Mongo]()

    async def open_one() -> Mongo:
        mongo = Mongo(servers.mongo_url(name))
        await mongo.open(SCHEMA)
        opened.append(mongo)
        return mongo

    yield open_one
    for mongo in opened:
        mongo.close()
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(servers.stores.mongo_url)
    await client.drop_database(name)
    client.close()


@pytest.fixture
async def nats_admin(servers: Servers) -> AsyncIterator[Client]:
    """NATS' superuser, after all streams and consumers of earlier tests were deleted."""

    async def quiet(_: Exception) -> None: ...

    client = await nats.connect(servers.stores.nats_url, error_cb=quiet, reconnect_time_wait=0.1)
    for stream in (STREAM, "DEAD_LETTERS"):
        try:
            await client.jetstream().delete_stream(stream)
        except nats.js.errors.NotFoundError:
            pass
    yield client
    await client.close()


@pytest.fixture
def jetstream(nats_admin: Client) -> JetStreamContext:
    """JetStream as superuser."""
    return nats_admin.jetstream()


@pytest.fixture
async def open_bus(servers: Servers, nats_admin: Client) -> AsyncIterator[OpenBus]:
    """Connects as a service; the streams are made anew for each test."""
    opened: list[Bus] = []

    async def open_one(service: str) -> Bus:
        bus = Bus(servers.stores.nats_address, *servers.stores.nats_login(service), service, 1)
        await bus.connect()
        opened.append(bus)
        return bus

    yield open_one
    for bus in opened:
        await bus.close()


async def within(seconds: float, holds: Callable[[], bool]) -> None:
    """Waits until a condition in this process holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s")
        await asyncio.sleep(0.005)
