"""The view is rebuilt beside the one that is read. It changes as a whole or not at all, and nothing is left over."""

import asyncio
import base64
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import Edge, status_of
from services.chassis.events import STREAM, Bus, Consumer, Outgoing
from services.chassis.postgres import Database
from services.mypage import rebuild, server
from services.mypage.projector import View
from services.mypage.queries import Changes
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1.approval_events_pb2 import ApprovalGranted
from vaccination.mypage.v1 import mypage_service_pb2, mypage_service_pb2_grpc, view_service_pb2_grpc
from vaccination.mypage.v1.view_service_pb2 import RebuildPhase, RebuildViewRequest

from .conftest import FOR_EVER, OpenBus, OpenDatabase, eventually

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
MINE = 150  # reservations of the one customer: more than fit into one message of a watch


@dataclass(frozen=True)
class Replica:
    """One process of mypage, as its clients see it."""

    view: view_service_pb2_grpc.ViewServiceStub
    mypage: mypage_service_pb2_grpc.MypageServiceStub

    def rebuild(self, **since: Any) -> Any:
        """A rebuild that an operator asks for."""
        return self.view.RebuildView(RebuildViewRequest(**since), metadata=token("operator"))

    async def rebuilt(self, **since: Any) -> None:
        """Rebuilds the view; returns when that is done."""
        assert (await rest(self.rebuild(**since)))[-1] == RebuildPhase.REBUILD_PHASE_DONE


def token(role: str) -> tuple[tuple[str, str], ...]:
    claims = {"sub": "c1", "roles": [role], "exp": time.time() + 600}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


def row(number: int) -> Outgoing:
    a = appointment_pb2.Appointment(
        reservation_id=str(uuid.UUID(int=number)),
        customer_id="c1",
        hospital_id="h1",
        hospital_name="Han River Clinic",
        time_zone="Asia/Seoul",
        date="2027-03-10",
        decide_time=NOW + timedelta(seconds=number),  # type: ignore[arg-type]
    )
    return Outgoing.of(a.reservation_id, NOW, ApprovalGranted(appointment=a))


@asynccontextmanager
async def replica(database: Database, bus: Bus) -> AsyncIterator[Replica]:
    changes, live = Changes(database), Consumer(bus, "mypage", View(database).subscriptions(FOR_EVER), database)
    await live.ensure()
    work = [asyncio.create_task(live.run()), asyncio.create_task(changes.run())]
    grpc_server = grpc.aio.server(interceptors=[Edge(server.ERRORS, max_calls=100, max_streams=100)])
    server.register(grpc_server, database, changes)
    rebuild.register(grpc_server, database, bus, live, FOR_EVER)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Replica(
            view_service_pb2_grpc.ViewServiceStub(channel), mypage_service_pb2_grpc.MypageServiceStub(channel)
        )
    await grpc_server.stop(None)
    live.stop()
    work[1].cancel()
    await asyncio.wait(work)
    live.forget()


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when the replicas begin to stop; replaces the process' own event, which has another test's event loop."""
    event = asyncio.Event()
    monkeypatch.setattr(rebuild, "draining", event)
    monkeypatch.setattr(server, "draining", event)
    return event


@pytest.fixture
async def view(open_database: OpenDatabase) -> Database:
    return await open_database("mypage")


@pytest.fixture
async def one(view: Database, open_bus: OpenBus, draining: asyncio.Event) -> AsyncIterator[Replica]:
    """A replica whose view has the customer's reservations."""
    await (await open_bus("approval")).publish([row(number) for number in range(1, MINE + 1)])
    async with replica(view, await open_bus("mypage")) as started:
        await eventually(lambda: count(view), lambda n: n == MINE)
        yield started


async def count(view: Database, what: str = "my_reservations") -> int:
    async with view.connection() as connection:
        found = await connection.fetchval(f"SELECT count(*) FROM {what}")
    return int(found)


async def consumers(jetstream: JetStreamContext) -> list[str]:
    return [info.name for info in await jetstream.consumers_info(STREAM)]


async def held_up(jetstream: JetStreamContext) -> None:
    """Stops the replay of the rebuild that is just beginning, and does not let it go on."""
    while True:
        try:
            until = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
            await jetstream.pause_consumer(STREAM, rebuild.CONSUMER, until)
            return
        except NotFoundError:
            await asyncio.sleep(0)


async def nothing_is_left(view: Database, jetstream: JetStreamContext) -> None:
    """Waits until there is no table, no consumer and no lock of a rebuild."""
    schemas = "pg_namespace WHERE nspname IN ('next', 'old')"
    locks = (
        "pg_locks JOIN pg_database ON pg_database.oid = database WHERE locktype = 'advisory' "
        "AND datname = current_database()"
    )

    async def left() -> tuple[int, int, bool]:
        return await count(view, schemas), await count(view, locks), rebuild.CONSUMER in await consumers(jetstream)

    await eventually(left, lambda found: found == (0, 0, False))


async def rest(call: Any) -> list[int]:
    """The phases that the call still reports until its end."""
    phases = []
    while (progress := await call.read()) is not grpc.aio.EOF:
        phases.append(progress.phase)
    return phases


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status, info = status_of(error), error_details_pb2.ErrorInfo()
    assert status is not None
    status.details[0].Unpack(info)
    return str(info.reason)


@pytest.fixture
async def replaying(one: Replica, jetstream: JetStreamContext) -> Any:
    """A rebuild that stays in the middle of its replay."""
    call = one.rebuild()
    await held_up(jetstream)
    assert (await asyncio.wait_for(call.read(), 10)).phase == RebuildPhase.REBUILD_PHASE_REPLAYING
    return call


async def test_a_rebuild_ends_when_its_replica_stops_and_leaves_nothing(
    replaying: Any, one: Replica, view: Database, jetstream: JetStreamContext, draining: asyncio.Event
) -> None:
    draining.set()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(rest(replaying), 10)
    assert (ended.value.code(), reason_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
    await nothing_is_left(view, jetstream)
    draining.clear()
    await one.rebuilt()
    assert await count(view) == MINE


async def test_a_rebuild_whose_client_leaves_leaves_nothing(
    replaying: Any, one: Replica, view: Database, jetstream: JetStreamContext
) -> None:
    replaying.cancel()
    await nothing_is_left(view, jetstream)
    await one.rebuilt()


async def test_while_one_replica_rebuilds_no_other_does(
    replaying: Any, open_database: OpenDatabase, open_bus: OpenBus
) -> None:
    async with replica(await open_database("mypage"), await open_bus("mypage")) as other:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await other.rebuilt()
    assert reason_of(refused.value) == "REBUILD_RUNNING"
    assert (await asyncio.wait_for(replaying.read(), 10)).phase == RebuildPhase.REBUILD_PHASE_REPLAYING
    replaying.cancel()


async def test_whenever_a_client_leaves_the_next_one_can_rebuild(
    one: Replica, view: Database, jetstream: JetStreamContext, seeded: random.Random
) -> None:
    for _ in range(40):
        call = one.rebuild()
        await asyncio.wait([asyncio.ensure_future(call.read())], timeout=seeded.choice([0.001, 0.003, 0.01, 0.05]))
        call.cancel()
        await nothing_is_left(view, jetstream)
    await one.rebuilt()


async def test_a_watcher_is_told_what_a_rebuild_has_corrected(one: Replica, view: Database) -> None:
    async with view.connection() as connection:
        await connection.execute("UPDATE my_reservations SET hospital_name = 'a mistake'")
    call: Any = one.mypage.WatchMyReservations(
        mypage_service_pb2.WatchMyReservationsRequest(), metadata=token("customer")
    )
    screen = {r.reservation_id: r.hospital_name for r in (await asyncio.wait_for(call.read(), 10)).reservations}
    assert set(screen.values()) == {"a mistake"}
    await one.rebuilt()
    async with asyncio.timeout(10):
        while len(screen) < MINE or set(screen.values()) != {"Han River Clinic"}:
            screen |= {r.reservation_id: r.hospital_name for r in (await call.read()).reservations}
    call.cancel()


async def test_a_migration_during_a_rebuild_is_not_undone(
    replaying: Any, view: Database, jetstream: JetStreamContext
) -> None:
    async with view.transaction() as connection:
        await connection.execute("ALTER TABLE timeline ADD COLUMN later text")
        await connection.execute("INSERT INTO migrations (name) VALUES ('9999_of_a_newer_version.sql')")
    before = await shape(view)
    await jetstream.resume_consumer(STREAM, rebuild.CONSUMER)
    assert (await asyncio.wait_for(rest(replaying), 30))[-1] == RebuildPhase.REBUILD_PHASE_DONE
    assert await shape(view) == before
    assert await count(view) == MINE


async def shape(view: Database) -> list[tuple[Any, ...]]:
    """Everything about the view's tables that a migration can change."""
    async with view.connection() as connection:
        found = await connection.fetch(
            """
            SELECT relname::text, array_to_string(reloptions, ','), attname::text, format_type(atttypid, atttypmod),
                   attnotnull::text, pg_get_expr(adbin, adrelid)
            FROM pg_class c JOIN pg_attribute ON attrelid = c.oid
                 LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') AND attnum > 0
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), NULL, NULL
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'index', tablename, indexname, indexdef, NULL, NULL
            FROM pg_indexes WHERE schemaname = 'public'
            ORDER BY 1, 2, 3, 4"""
        )
    return [tuple(row) for row in found]


@pytest.mark.parametrize("since", [{}, {"since": datetime(2026, 1, 1, tzinfo=UTC)}], ids=["anew", "since"])
async def test_a_rebuild_keeps_what_a_newer_versions_migration_has_made_of_the_tables(
    one: Replica, view: Database, since: dict[str, Any]
) -> None:
    async with view.connection() as connection:
        await connection.execute(
            """
            ALTER TABLE my_reservations
                ADD COLUMN later integer NOT NULL DEFAULT 1, ADD UNIQUE (customer_id, later, reservation_id);
            ALTER TABLE timeline ADD COLUMN later text CHECK (later <> ''), SET (fillfactor = 80);
            CREATE INDEX by_a_name_that_later_migrations_know ON timeline (time) WHERE version > 0"""
        )
    before = await shape(view)
    await one.rebuilt(**since)
    assert await shape(view) == before
    assert await count(view) == MINE
