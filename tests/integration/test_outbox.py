"""A committed event gets into the stream once, whoever dies in between. Relay, both stores and JetStream are real."""

import asyncio
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy
from nats.js.errors import APIError

from mesh.evaluation import is_live
from mesh.machine import Mesh
from mesh.machine.processes import MeshError
from services.chassis import mongo as mongo_module
from services.chassis import postgres as postgres_module
from services.chassis.errors import StoreUnavailable
from services.chassis.events import STREAM, Bus, Outgoing, PublishFailed, Relay
from services.chassis.events import outbox as outbox_module
from services.chassis.events import stream as stream_module
from services.chassis.events.outbox import BATCH, Refused
from services.chassis.mongo import Mongo
from services.chassis.postgres import Database
from services.chassis.telemetry import measured
from tests.conftest import free_base_port
from tests.disk import small_disk
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2

from .conftest import MIGRATIONS, OpenBus, OpenDatabase, OpenMongo, Servers, eventually

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
Publish = Callable[[Sequence[Outgoing]], Awaitable[None]]
Committed = Callable[[Sequence[Outgoing]], None]


def rows(count: int, start: int = 0) -> list[Outgoing]:
    """Events, one millisecond apart."""
    made = []
    for i in range(start, start + count):
        at = NOW + timedelta(milliseconds=i)
        a = appointment_pb2.Appointment(
            reservation_id=str(uuid.uuid4()), customer_id=f"c{i}", hospital_id="h1", hospital_name="Clinic",
            time_zone="Asia/Seoul", date="2027-03-10", decide_time=at,  # type: ignore[arg-type]
        )  # fmt: skip
        made.append(Outgoing.of(a.reservation_id, at, approval_events_pb2.ApprovalGranted(appointment=a)))
    return made


def nobody_waits(_: Sequence[Outgoing]) -> None:
    """Does nothing, because there is no relay to tell."""


async def began(work: postgres_module.Transaction | mongo_module.Transaction) -> None:
    """Begins Postgres' transaction, which otherwise begins with the first rows that it holds: here it holds none."""
    if isinstance(work, postgres_module.Transaction):
        await work.begin()


@dataclass
class Outbox:
    """The outbox of one service, as its replicas see it."""

    replicas: Sequence[Database | Mongo]

    @property
    def store(self) -> Database | Mongo:
        return self.replicas[0]

    async def write(self, items: Sequence[Outgoing], told: Committed = nobody_waits) -> None:
        """Commits them."""
        async with self.store.unit_of_work(told) as work:
            await work.enqueue(items)

    async def write_and_fail(self, told: Committed) -> None:
        """Writes events in a unit of work that then fails and is undone."""
        async with self.store.unit_of_work(told) as work:
            await began(work)
            await work.enqueue(rows(3))
            raise ZeroDivisionError

    async def left(self) -> int:
        """The number of events that have not been published."""
        if isinstance(self.store, Database):
            async with self.store.connection() as connection:
                return int(await connection.fetchval("SELECT count(*) FROM outbox"))
        return int(await self.store.outbox.count_documents({}))

    async def empty(self) -> None:
        await eventually(self.left, lambda left: left == 0)


@pytest.fixture(params=["postgres", "mongo"])
async def outbox(request: pytest.FixtureRequest, open_database: OpenDatabase, open_mongo: OpenMongo) -> Outbox:
    if request.param == "postgres":
        return Outbox([await open_database("approval") for _ in range(2)])
    return Outbox([await open_mongo() for _ in range(2)])


@pytest.fixture
async def bus(open_bus: OpenBus) -> Bus:
    return await open_bus("approval")


@pytest.fixture
def left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the store counts as left at once, and relays look for it often."""
    monkeypatch.setattr(outbox_module, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(outbox_module, "LEFT", 0.0)


async def everything(jetstream: JetStreamContext) -> list[Msg]:
    """All messages of the stream, in its order."""
    count = (await jetstream.stream_info(STREAM)).state.messages
    subscription = await jetstream.subscribe("vaccination.>", ordered_consumer=True)
    try:
        return [await subscription.next_msg(timeout=5) for _ in range(count)]
    finally:
        await subscription.unsubscribe()


async def ids(jetstream: JetStreamContext) -> list[str]:
    """The events' ids in the stream's order."""
    return [(message.headers or {})["ce-id"] for message in await everything(jetstream)]


class Running:
    """Runs relays until the end of the block."""

    def __init__(self, *relays: Relay) -> None:
        self._relays = relays

    async def __aenter__(self) -> None:
        self._tasks = [asyncio.create_task(relay.run()) for relay in self._relays]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


async def test_two_relays_that_compete_publish_everything_once(
    outbox: Outbox, bus: Bus, open_bus: OpenBus, jetstream: JetStreamContext
) -> None:
    buses = [bus, await open_bus("approval")]
    relays = [Relay(store, b.publish) for store, b in zip(outbox.replicas, buses, strict=True)]
    written = [rows(n, 1000 * i) for i, n in enumerate([1, 700, 3, 250, 1, 40, 600])]
    async with Running(*relays):
        for i, batch in enumerate(written):
            await outbox.write(batch, relays[i % 2].committed)
        await outbox.empty()
    assert Counter(await ids(jetstream)) == Counter(row.id for batch in written for row in batch)


async def test_events_go_out_in_the_order_in_which_they_were_committed(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    written = rows(30)
    for i in range(0, 30, 5):
        await outbox.write(written[i : i + 5])
    assert await Relay(outbox.store, bus.publish).publish_some() == 30
    assert await ids(jetstream) == [row.id for row in written]


async def test_an_event_arrives_with_the_headers_it_was_written_with(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    [row] = rows(1)
    await outbox.write([row])
    await Relay(outbox.store, bus.publish).flush()
    [message] = await everything(jetstream)
    assert (message.headers, message.data, message.subject) == (row.headers(), row.payload, row.subject)


async def test_no_batch_is_larger_than_the_stream_takes_at_once(outbox: Outbox) -> None:
    sizes: list[int] = []

    async def publish(batch: Sequence[Outgoing]) -> None:
        sizes.append(len(batch))

    await outbox.write(rows(2 * BATCH + 100))
    await Relay(outbox.store, publish).flush()
    assert sizes == [BATCH, BATCH, 100]


@pytest.mark.parametrize("count", [1, 20])
async def test_a_row_survives_a_publish_that_fails(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, count: int
) -> None:
    async def fails(batch: Sequence[Outgoing]) -> None:
        raise PublishFailed("no answer")

    await outbox.write(rows(count))
    with pytest.raises(PublishFailed):
        await Relay(outbox.store, fails).publish_some()
    assert await outbox.left() == count
    assert await Relay(outbox.replicas[1], bus.publish).publish_some() == count  # by another replica, at once
    assert len(await ids(jetstream)) == count


@pytest.mark.parametrize("count", [1, 20])
async def test_a_lost_acknowledgement_does_not_double_an_event(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, count: int
) -> None:
    async def publishes_and_hears_nothing(batch: Sequence[Outgoing]) -> None:
        await bus.publish(batch)
        raise PublishFailed("the acknowledgement is lost")

    first, later = rows(count), rows(30, 100)
    await outbox.write(first)
    with pytest.raises(PublishFailed):
        await Relay(outbox.store, publishes_and_hears_nothing).publish_some()
    await outbox.write(later)  # so the next batch has events that the stream has and others that it lacks
    assert await Relay(outbox.store, bus.publish).publish_some() == count + 30
    assert sorted(await ids(jetstream)) == sorted(row.id for row in [*first, *later])
    assert await outbox.left() == 0


async def test_a_batch_with_an_event_that_the_stream_has_is_refused_whole_and_then_sent_one_by_one(
    bus: Bus, jetstream: JetStreamContext
) -> None:
    seen, new = rows(2), rows(2, 10)
    assert await bus._publish_atomic(seen)
    assert not await bus._publish_atomic([*new, seen[0]])
    assert len(await ids(jetstream)) == 2  # nothing of the refused batch is in the stream
    await bus.publish([*new, seen[0]])
    assert sorted(await ids(jetstream)) == sorted(row.id for row in [*seen, *new])


NOBODYS = "vaccination.approval.v2.ApprovalGranted"  # a subject that no stream takes
FORBIDDEN = "vaccination.reservation.v1.ReservationPlaced"  # one that the service may not publish


@pytest.mark.parametrize("place", [0, 20], ids=["first", "last"])
@pytest.mark.parametrize("refused", ["too large", "with its headers too large", NOBODYS, FORBIDDEN])
async def test_an_event_that_the_stream_refuses_keeps_no_other_waiting_and_is_kept(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, refused: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PUBLISH_TIMEOUT", 1.0)
    written = rows(21)
    limit = bus.connection().max_payload
    changes: dict[str, Any] = {"payload": b"x" * (limit + 1 if refused == "too large" else limit)}
    bad = written[place] = replace(written[place], **changes if "large" in refused else {"subject": refused})
    await outbox.write(written)
    relay = Relay(outbox.store, bus.publish)
    await relay.publish_some()
    await outbox.write(later := rows(3, 50))
    await relay.publish_some()
    assert sorted(await ids(jetstream)) == sorted(row.id for row in [*written, *later] if row is not bad)
    assert await outbox.left() == 1


@pytest.mark.usefixtures("left_at_once")
async def test_the_pauses_between_tries_of_a_refused_event_grow_and_it_goes_out_when_the_stream_takes_it(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    [written], tries = rows(1), list[float]()

    async def publish(batch: Sequence[Outgoing]) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise Refused({row.id: "not yet" for row in batch})
        await bus.publish(batch)

    await outbox.write([written])
    async with Running(Relay(outbox.store, publish)):
        await outbox.empty()
    assert await ids(jetstream) == [written.id]
    assert tries[1] - tries[0] >= 2
    assert tries[2] - tries[1] >= 4


async def test_while_the_stream_is_missing_no_event_is_taken_for_refused(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    await jetstream.delete_stream(STREAM)
    for count in (1, 20):
        await outbox.write(rows(count, count))
        with pytest.raises(PublishFailed):
            await Relay(outbox.store, bus.publish).publish_some()
    await bus.connect()  # makes the stream again
    assert await Relay(outbox.store, bus.publish).publish_some() == 21


async def test_on_a_full_disk_no_event_is_taken_for_refused_and_all_go_out_when_nats_is_started_anew(
    open_database: OpenDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PUBLISH_TIMEOUT", 0.5)
    outbox, written, before = Outbox([await open_database("approval")]), rows(60), refusals()
    with small_disk(tmp_path / "disk", 256) as disk:
        mesh = Mesh(disk.folder / "home", free_base_port())
        try:
            await asyncio.to_thread(mesh.up, only=["nats"])
            bus = Bus(mesh.stores.nats_address, *mesh.stores.nats_login("approval"), "approval", 1)
            await bus.connect()
            relay = Relay(outbox.store, bus.publish)
            await outbox.write(written[:20])
            assert await relay.publish_some() == 20
            disk.fill()
            for batch in (written[20:59], written[59:]):  # an atomic batch, and one alone
                await outbox.write(batch)
                with pytest.raises(PublishFailed):
                    await relay.publish_some()
            with pytest.raises(MeshError, match="is full"):
                await asyncio.to_thread(mesh.up, only=["nats"])
            await eventually(lambda: asyncio.to_thread(is_live, mesh.home, mesh.stores.nats), bool)  # no use yet
            disk.free()
            with pytest.raises(PublishFailed):  # NATS takes nothing more, whatever room there is
                await bus.publish(written[59:])
            assert not is_live(mesh.home, mesh.stores.nats)
            await asyncio.to_thread(mesh.up, only=["nats"])
            await eventually(lambda: asyncio.to_thread(is_live, mesh.home, mesh.stores.nats), bool)
            async with Running(relay):
                await outbox.empty()
            assert sorted(await ids(bus.js)) == sorted(row.id for row in written)
            await bus.close()
            server = mesh.processes.find("nats")
            assert server is not None
            os.kill(server.pid, signal.SIGSTOP)  # each of its threads stops when it has its turn
            await eventually(lambda: asyncio.to_thread(is_live, mesh.home, mesh.stores.nats), lambda live: not live)
        finally:
            await asyncio.to_thread(mesh.stop, "nats", signal.SIGKILL)
    assert refusals() == before


def refusals() -> float:
    """How often events were counted as refused."""
    return sum(sample.value for sample in measured(["events_refused_total"]))


async def test_without_room_in_the_stream_no_event_is_taken_for_refused(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    config = (await jetstream.stream_info(STREAM)).config
    await jetstream.update_stream(replace(config, max_msgs=1, discard=DiscardPolicy.NEW))
    before = refusals()
    for count in (2, 20):
        await outbox.write(rows(count, count))
        with pytest.raises(PublishFailed):
            await Relay(outbox.store, bus.publish).publish_some()
    await jetstream.update_stream(config)
    assert await Relay(outbox.store, bus.publish).publish_some() == 22
    assert refusals() == before


NOT_NOW = [APIError(400, err_code=10002), APIError(409, err_code=10158), APIError(429)]


@pytest.mark.parametrize("error", NOT_NOW, ids=str)
async def test_a_refusal_that_passes_by_itself_is_no_events_own_fault(
    error: APIError, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account without quota, a message that is just being stored, too many requests."""

    async def refuse(_: Outgoing) -> None:
        raise error

    monkeypatch.setattr(bus, "_publish_one", refuse)
    with pytest.raises(PublishFailed):
        await bus.publish(rows(2))


async def test_an_event_of_which_nothing_is_ever_said_keeps_no_other_back(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server between the component and the stream may drop a subject. A server of our own always tells."""
    silent, *others = rows(3)
    publish = bus._publish_one

    async def say_nothing(row: Outgoing) -> None:
        if row.id == silent.id:
            raise TimeoutError
        await publish(row)

    monkeypatch.setattr(bus, "_publish_one", say_nothing)
    for _ in range(2):
        with pytest.raises(PublishFailed):
            await bus.publish([silent, *others])
    with pytest.raises(PublishFailed):
        await bus.publish([silent])  # alone it tells nothing of the event: the stream may be away
    with pytest.raises(Refused) as refused:
        await bus.publish([silent, *others])
    assert list(refused.value.reasons) == [silent.id]


async def test_what_was_just_committed_goes_out_at_once_and_is_read_by_nobody(
    outbox: Outbox, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LOOK_EVERY", 60.0)
    monkeypatch.setattr(outbox_module, "LEFT", 60.0)
    relay = Relay(outbox.store, bus.publish)
    async with Running(relay):
        for count in (3, 1):
            await outbox.write(rows(count), relay.committed)
            await outbox.empty()


async def test_a_row_is_not_left_to_others_while_its_process_publishes_it(outbox: Outbox, bus: Bus) -> None:
    await outbox.write(rows(3))
    assert await Relay(outbox.replicas[1], bus.publish).publish_some(left=60.0) == 0


async def test_what_a_slow_process_and_another_one_both_publish_is_one_message(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LEFT", 60.0)
    written, other = rows(5), Relay(outbox.replicas[1], bus.publish)

    async def slowly(batch: Sequence[Outgoing]) -> None:
        assert await other.publish_some() == 5
        await bus.publish(batch)

    relay = Relay(outbox.store, slowly)
    async with Running(relay):
        await outbox.write(written, relay.committed)
        await eventually(lambda: ids(jetstream), lambda found: len(found) == 5)
        await relay.flush()
    assert Counter(await ids(jetstream)) == Counter(row.id for row in written)
    assert await outbox.left() == 0


async def test_of_what_was_just_committed_a_refused_event_stays_and_keeps_no_other_waiting(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LEFT", 60.0)
    monkeypatch.setattr(stream_module, "PUBLISH_TIMEOUT", 1.0)
    written = rows(4)
    written[1] = replace(written[1], payload=b"x" * (bus.connection().max_payload + 1))
    relay = Relay(outbox.store, bus.publish)
    async with Running(relay):
        await outbox.write(written, relay.committed)
        await eventually(outbox.left, lambda left: left == 1)
    assert sorted(await ids(jetstream)) == sorted(row.id for row in written if row is not written[1])


@pytest.mark.usefixtures("left_at_once")
async def test_what_is_left_goes_out_also_while_more_is_committed_all_the_time(outbox: Outbox, bus: Bus) -> None:
    of_a_dead_process, seen = rows(3), set[str]()
    await outbox.write(of_a_dead_process)

    async def publish(batch: Sequence[Outgoing]) -> None:
        await bus.publish(batch)
        seen.update(row.id for row in batch)
        relay.committed(rows(1, 1000))  # there is always something fresh

    relay = Relay(outbox.store, publish)
    relay.committed(rows(1, 1000))
    async with Running(relay):
        await eventually(lambda: asyncio.sleep(0, seen), lambda ids: {row.id for row in of_a_dead_process} <= ids)


async def test_what_was_not_published_in_time_is_left_to_whoever_comes_first(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "OURS", 0.0)
    monkeypatch.setattr(outbox_module, "LEFT", 60.0)
    written, relay = rows(3), Relay(outbox.store, bus.publish)
    async with Running(relay):
        await outbox.write(written, relay.committed)
        assert await Relay(outbox.replicas[1], bus.publish).publish_some() == 3
    assert Counter(await ids(jetstream)) == Counter(row.id for row in written)


async def test_a_relay_waits_for_nobody_who_has_taken_its_rows(outbox: Outbox, bus: Bus) -> None:
    written = rows(5)
    await outbox.write(written)
    async with outbox.replicas[1].taken(2) as held:
        async with asyncio.timeout(5):
            await outbox.store.remove([row.id for row in written])
        assert len(held) == 2
    assert await outbox.left() == 0


@pytest.mark.usefixtures("left_at_once")
async def test_what_does_not_fit_into_memory_goes_out_from_the_store(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "IN_MEMORY", 3)
    written, relay = [rows(3, 10 * i) for i in range(4)], Relay(outbox.store, bus.publish)
    for batch in written:
        await outbox.write(batch, relay.committed)
    async with Running(relay):
        await outbox.empty()
    assert Counter(await ids(jetstream)) == Counter(row.id for batch in written for row in batch)


@pytest.mark.usefixtures("left_at_once")
async def test_another_process_publishes_the_rows_of_one_that_died(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    async with Running(Relay(outbox.replicas[1], bus.publish)):
        await outbox.write(rows(5))  # and nobody wakes the relay
        await outbox.empty()
    assert len(await ids(jetstream)) == 5


@pytest.mark.usefixtures("left_at_once")
async def test_events_written_while_the_stream_was_away_go_out_when_it_is_back(
    outbox: Outbox, bus: Bus, servers: Servers, jetstream: JetStreamContext
) -> None:
    written = rows(40)
    relay = Relay(outbox.store, bus.publish)
    async with Running(relay):
        await outbox.write(written[:20])
        await outbox.empty()
        await servers.stop("nats")
        try:
            await outbox.write(written[20:], relay.committed)
            with pytest.raises(PublishFailed):
                await bus.publish(written)
            assert await outbox.left() == 20
        finally:
            await servers.start("nats")
        await outbox.empty()
    assert sorted(await ids(jetstream)) == sorted(row.id for row in written)


async def test_a_relay_keeps_on_after_any_failure(outbox: Outbox, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(outbox_module, "LEFT", 0.0)
    failures: list[Exception] = [PublishFailed("x"), StoreUnavailable("x"), TimeoutError(), ValueError("a bug")]

    async def publish(batch: Sequence[Outgoing]) -> None:
        if failures:
            raise failures.pop()
        await bus.publish(batch)

    await outbox.write(rows(2))
    async with Running(Relay(outbox.store, publish)):
        await outbox.empty()
    assert not failures


async def test_a_relay_that_is_stopped_in_the_middle_leaves_its_rows_to_the_next(
    outbox: Outbox, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "LEFT", 0.0)
    publishing = asyncio.Event()

    async def hangs(batch: Sequence[Outgoing]) -> None:
        publishing.set()
        await asyncio.Event().wait()

    await outbox.write(rows(10))
    async with Running(Relay(outbox.store, hangs)):
        await publishing.wait()
        assert await Relay(outbox.replicas[1], bus.publish).publish_some() == 0  # the first relay still holds the rows
    assert await Relay(outbox.replicas[1], bus.publish).publish_some() == 10


async def test_a_connection_that_dies_while_publishing_leaves_its_rows_to_the_next(
    open_database: OpenDatabase, bus: Bus, jetstream: JetStreamContext
) -> None:
    outbox = Outbox([await open_database("approval") for _ in range(2)])
    await outbox.write(rows(10))
    assert isinstance(outbox.store, Database)
    database = outbox.store

    async def publishes_and_loses_the_store(batch: Sequence[Outgoing]) -> None:
        await bus.publish(batch)
        async with database.connection() as connection:
            sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%DELETE FROM outbox%'"
            assert await connection.fetch(f"{sql} AND pid <> pg_backend_pid()")

    with pytest.raises(StoreUnavailable):
        await Relay(outbox.replicas[1], publishes_and_loses_the_store).publish_some()
    assert await outbox.left() == 10
    await Relay(outbox.store, bus.publish).flush()
    assert len(await ids(jetstream)) == 10


async def test_a_lease_that_ran_out_lets_another_relay_take_over(
    open_mongo: OpenMongo, bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_module, "LEASE", 0.3)
    outbox = Outbox([await open_mongo() for _ in range(2)])
    written = rows(3)
    await outbox.write(written)
    async with AsyncExitStack() as dead:  # this relay has taken the rows, and does nothing more
        assert len(await dead.enter_async_context(outbox.store.taken(10))) == 3
        other = Relay(outbox.replicas[1], bus.publish)
        assert await other.publish_some() == 0

        async def attempt() -> int:
            return await other.publish_some()

        await eventually(attempt, lambda published: published == 3)
        late = rows(2, 10)
        await outbox.write(late)
    # The first relay was only slow. The rows that it believes to have are gone, and later rows are untouched.
    assert await outbox.left() == 2
    await other.flush()
    assert sorted(await ids(jetstream)) == sorted(row.id for row in [*written, *late])


async def test_a_relay_whose_lease_was_taken_over_does_not_remove_what_the_other_has_not_published(
    open_mongo: OpenMongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo_module, "LEASE", 0.0)
    outbox = Outbox([await open_mongo() for _ in range(2)])
    await outbox.write(rows(3))

    async def fails(batch: Sequence[Outgoing]) -> None:
        raise PublishFailed("no answer")

    async with outbox.store.taken(10) as slow:
        assert len(slow) == 3
        with pytest.raises(PublishFailed):
            await Relay(outbox.replicas[1], fails).publish_some()
    assert await outbox.left() == 3


async def test_events_of_a_transaction_that_is_undone_are_never_published(
    outbox: Outbox, bus: Bus, jetstream: JetStreamContext
) -> None:
    with pytest.raises(ZeroDivisionError):
        await outbox.write_and_fail(nobody_waits)
    assert await Relay(outbox.store, bus.publish).publish_some() == 0
    assert await ids(jetstream) == []


async def test_nothing_is_published_before_its_commit(outbox: Outbox, bus: Bus) -> None:
    relay = Relay(outbox.replicas[1], bus.publish)
    async with outbox.store.unit_of_work(nobody_waits) as work:
        await began(work)
        await work.enqueue(rows(3))
        assert await relay.publish_some() == 0
    assert await relay.publish_some() == 3


async def test_the_relay_is_told_of_events_only_after_their_commit(outbox: Outbox) -> None:
    woken: list[int] = []

    async def left() -> None:
        woken.append(await outbox.left())

    tasks: list[asyncio.Task[None]] = []
    told: list[Outgoing] = []

    def committed(events: Sequence[Outgoing]) -> None:
        told.extend(events)
        tasks.append(asyncio.create_task(left()))

    async with outbox.store.unit_of_work(committed):
        pass
    with pytest.raises(ZeroDivisionError):
        await outbox.write_and_fail(committed)
    assert tasks == []
    written = rows(2)
    async with outbox.store.unit_of_work(committed) as work:
        await work.enqueue(written)
        assert tasks == []
    await asyncio.gather(*tasks)
    assert woken == [2]  # once, and by then both events were committed
    assert told == written


async def test_a_bus_that_is_not_connected_fails_at_once(servers: Servers) -> None:
    bus = Bus(servers.stores.nats_address, *servers.stores.nats_login("approval"), "approval", 1)
    for count in (1, 2):
        with pytest.raises(PublishFailed):
            await bus.publish(rows(count))
    await bus.close()


async def test_a_service_cannot_publish_in_anothers_name(
    bus: Bus, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PUBLISH_TIMEOUT", 0.3)
    [row] = rows(1)
    forged = Outgoing(row.id, row.key, "vaccination.vaccinemgmt.v1.CancellationCompleted", row.time, "", row.payload)
    with pytest.raises(Refused):
        await bus.publish([forged])
    await bus.publish([row])
    assert await ids(jetstream) == [row.id]


async def test_a_url_of_another_kind_of_store_is_not_waited_for(servers: Servers) -> None:
    with pytest.raises(ValueError, match="invalid DSN"):
        await Database(servers.mongo_url("approval")).open(MIGRATIONS["approval"])


async def test_a_closing_store_does_not_wait_for_ever_for_a_connection_in_use(
    open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "CLOSE_WITHIN", 0.2)
    database = await open_database("approval")
    async with database.connection():
        await asyncio.wait_for(database.close(), 5)
