"""What a replicated store has acknowledged survives the death of the server that acknowledged it."""

import asyncio
import contextlib
import itertools
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import nats
import nats.errors
import pymongo
import pytest
from pymongo.errors import PyMongoError

from mesh.machine import Mesh
from mesh.machine.processes import MeshError
from tests.conftest import free_base_port

from .conftest import within

WITHIN = 60.0  # seconds for a new primary to take over; a busy machine takes many times the usual
STREAM = "KEPT"


@pytest.fixture(scope="module")
def running() -> Iterator[Mesh]:
    """Replicated stores for all tests of this file, in a folder that Postgres' user may enter."""
    with tempfile.TemporaryDirectory(prefix="replicated-") as folder:
        mesh = Mesh(Path(folder) / "my home's", free_base_port(), replicated=True)
        try:
            mesh.up(only=mesh.stores.names)
            yield mesh
        finally:
            mesh.down()


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    """The mesh with all stores running, whatever an earlier test did."""
    running.up(only=running.stores.names)
    return running


def _ready(mesh: Mesh) -> set[str]:
    return {state.name for state in mesh.status() if state.state == "ready"}


def _crash(mesh: Mesh, *members: str) -> None:
    for member in members:
        assert mesh.stop(member, signal.SIGQUIT if member.startswith("postgres") else signal.SIGKILL)


async def _roles(mesh: Mesh) -> dict[str, str]:
    """What each Postgres server says of itself."""
    roles = {}
    for member in mesh.stores.postgres.members:
        async with mesh.stores.postgres.connection(member) as connection:
            roles[member] = "standby" if await connection.fetchval("SELECT pg_is_in_recovery()") else "primary"
    return roles


@contextlib.asynccontextmanager
async def _writing(write: Callable[[int], Awaitable[None]]) -> AsyncIterator[list[int]]:
    """Writes one number after the other during the block; the list has those that were acknowledged.

    Before and after the block it waits until some more are acknowledged, because that shows that there is a primary.
    """
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def go_on() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            try:
                await write(number)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, PyMongoError, nats.errors.Error):
                await asyncio.sleep(0.01)
            else:
                acknowledged.append(number)

    async def some_more() -> None:
        enough = len(acknowledged) + 20
        await within(WITHIN, lambda: len(acknowledged) >= enough or task.done())

    task = asyncio.create_task(go_on())
    try:
        await some_more()
        yield acknowledged
        await some_more()
    finally:
        stop.set()
        await task


class TestPostgres:
    """A primary and a standby."""

    async def test_an_acknowledged_commit_survives_the_promotion_of_the_standby(self, mesh: Mesh) -> None:
        url = mesh.stores.postgres_url
        connection = await asyncpg.connect(url)
        await connection.execute("DROP TABLE IF EXISTS kept; CREATE TABLE kept (number int)")

        async def write(number: int) -> None:
            nonlocal connection
            if connection.is_closed():
                connection = await asyncpg.connect(url, timeout=5)
            await connection.execute("INSERT INTO kept VALUES ($1)", number)

        async with _writing(write) as acknowledged:
            dead, promoted = await asyncio.to_thread(mesh.promote_postgres)
        assert (mesh.processes.find(dead), mesh.stores.postgres.primary()) == (None, promoted)
        kept = {row["number"] for row in await connection.fetch("SELECT number FROM kept")}
        await connection.close()
        assert set(acknowledged) <= kept

    async def test_a_former_primary_comes_back_as_a_standby_and_may_be_promoted_again(self, mesh: Mesh) -> None:
        for _ in range(2):
            dead, promoted = await asyncio.to_thread(mesh.promote_postgres)
            await asyncio.to_thread(mesh.start, dead)
            assert await _roles(mesh) == {promoted: "primary", dead: "standby"}

    async def test_without_a_promotion_the_primary_stays_the_primary(self, mesh: Mesh) -> None:
        before = await _roles(mesh)
        _crash(mesh, mesh.stores.postgres.primary())
        await asyncio.to_thread(mesh.up, mesh.stores.names)
        assert await _roles(mesh) == before

    @pytest.mark.parametrize("order", [0, 1])
    async def test_after_both_died_only_the_promoted_one_is_a_primary(self, mesh: Mesh, order: int) -> None:
        dead, promoted = await asyncio.to_thread(mesh.promote_postgres)
        if order:
            await asyncio.to_thread(mesh.start, dead)
            _crash(mesh, dead)
        _crash(mesh, promoted)
        if not order:
            with pytest.raises(MeshError, match="pg_basebackup failed"):  # it lacks what the other one has acknowledged
                await asyncio.to_thread(mesh.start, dead)
        await asyncio.to_thread(mesh.up, mesh.stores.names)
        assert await _roles(mesh) == {promoted: "primary", dead: "standby"}

    async def test_a_standby_that_is_behind_is_not_promoted(self, mesh: Mesh) -> None:
        primary = mesh.stores.postgres.primary()
        (standby,) = set(mesh.stores.postgres.members) - {primary}
        _crash(mesh, standby)
        with pytest.raises(MeshError, match=f"{standby} may not have every commit"):
            await asyncio.to_thread(mesh.promote_postgres)
        assert mesh.processes.find(primary), "it was left alone"


class TestMongo:
    """A replica set of three."""

    async def test_an_acknowledged_write_survives_the_death_of_the_primary(self, mesh: Mesh) -> None:
        with pymongo.MongoClient[dict[str, Any]](
            mesh.stores.mongo_url, w="majority", serverSelectionTimeoutMS=5000
        ) as client:
            kept = client["kept"]["kept"]
            kept.drop()

            async def write(number: int) -> None:
                await asyncio.to_thread(kept.insert_one, {"_id": number})

            async with _writing(write) as acknowledged:
                dead = await asyncio.to_thread(mesh.kill_mongo_primary)
            assert mesh.stores.mongo.primary() != dead
            assert set(acknowledged) <= {document["_id"] for document in kept.find()}
        await asyncio.to_thread(mesh.start, dead)
        await within(20, lambda: dead in _ready(mesh))


class TestNats:
    """A cluster of three."""

    async def test_an_acknowledged_event_survives_the_death_of_the_streams_leader(self, mesh: Mesh) -> None:
        async def quiet(_: Exception) -> None: ...

        client = await nats.connect(mesh.stores.nats_url.split(","), error_cb=quiet, reconnect_time_wait=0.1)
        jetstream = client.jetstream(timeout=30)
        await jetstream.add_stream(name=STREAM, subjects=["kept"], num_replicas=3)

        async def write(number: int) -> None:
            await jetstream.publish("kept", str(number).encode(), timeout=2)

        async with _writing(write) as acknowledged:
            dead = await asyncio.to_thread(mesh.kill_nats_leader, STREAM)
        assert mesh.stores.nats.leader(STREAM) != dead
        kept = set()
        for sequence in range(1, (await jetstream.stream_info(STREAM)).state.last_seq + 1):
            kept.add(int((await jetstream.get_msg(STREAM, sequence)).data or b""))
        await client.close()
        assert set(acknowledged) <= kept
        await asyncio.to_thread(mesh.start, dead)
        await within(20, lambda: dead in _ready(mesh))


class TestHome:
    """The home remembers that the stores are replicated."""

    async def test_the_next_up_knows_that_the_stores_are_replicated_and_may_move_them(self, mesh: Mesh) -> None:
        async with mesh.stores.postgres.connection(mesh.stores.postgres.primary()) as connection:
            await connection.execute("DROP TABLE IF EXISTS moved; CREATE TABLE moved AS SELECT 1 AS id")
        elsewhere = free_base_port()
        await asyncio.to_thread(mesh.down)
        assert not _ready(mesh)
        moved = Mesh(mesh.home.path, elsewhere)
        assert moved.stores.names == mesh.stores.names
        try:
            await asyncio.to_thread(moved.up, moved.stores.names)
            # A server that was ready may be busy for a moment with the election that the others' start sets off.
            await within(20, lambda: _ready(moved) == {*moved.stores.names})
            connection = await asyncpg.connect(moved.stores.postgres_url)
            assert await connection.fetchval("SELECT id FROM moved") == 1
            await connection.close()
        finally:
            await asyncio.to_thread(moved.down)

    def test_a_home_cannot_change_whether_its_stores_are_replicated(self, mesh: Mesh) -> None:
        with pytest.raises(MeshError, match="are replicated, for good"):
            Mesh(mesh.home.path, replicated=False).up(only=["nats"])
