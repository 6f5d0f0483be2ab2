"""What is over is deleted in every store, and stays gone; what is not over stays, whoever is at work beside it."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from google.protobuf.message import Message
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from services.approval.adapters import events as approval_events
from services.approval.adapters import postgres as approval_store
from services.approval.application import Approval
from services.approval.domain import MOST_REFUSALS, Decision, Denial, Hospital, Request, ReservationId, TooManyRefusals
from services.chassis.events import STREAM, Bus, Event, Outgoing
from services.chassis.events.delivery import Delivery, Fate
from services.chassis.events.purge import Purge
from services.chassis.events.setaside import Kind, Letter, SetAside
from services.chassis.postgres import Database
from services.chassis.retention import Retention, Rule
from services.mypage import projector
from services.reservation.adapters import events as reservation_events
from services.reservation.adapters import postgres as reservation_store
from services.reservation.application import Followup
from services.reservation.domain import Appointment, RejectionReason, Reservation, Status
from services.reservation.domain import ReservationId as Id
from services.vaccinemgmt.adapters import events as vaccinemgmt_events
from services.vaccinemgmt.adapters import mongo as vaccinemgmt_store
from services.vaccinemgmt.application import Stockroom, Vaccines
from services.vaccinemgmt.domain import Appointment as ForADose
from services.vaccinemgmt.domain import Delivery as Lots
from services.vaccinemgmt.domain import ReservationId as DoseId
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1.approval_events_pb2 import ApprovalDenied, ApprovalGranted, ApprovalReleased
from vaccination.reservation.v1.reservation_events_pb2 import CancellationRequested, ReservationRejected
from vaccination.vaccinemgmt.v1.vaccinemgmt_events_pb2 import CancellationCompleted

from .conftest import MIGRATIONS, Days, OpenBus, OpenDatabase, OpenMongo

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
TODAY = date(2027, 3, 1)
DAY = timedelta(1)
LIMITS = Days(retention_refused_days=30, retention_passed_days=366, retention_stream_days=800)


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention(clock: Clock) -> Retention:
    return Retention(LIMITS, clock)


async def run(rules: Sequence[Rule]) -> dict[str, int]:
    return {rule.what: deleted for rule in rules if (deleted := await rule.apply("test"))}


async def rows(database: Database, sql: str, *arguments: object) -> list[asyncpg.Record]:
    async with database.connection() as connection:
        return list(await connection.fetch(sql, *arguments))


def new_id() -> str:
    return str(uuid.uuid4())


def message(day: date, decided: datetime, reservation_id: str = "") -> appointment_pb2.Appointment:
    return appointment_pb2.Appointment(
        reservation_id=reservation_id or new_id(),
        customer_id="c1",
        hospital_id="h1",
        hospital_name="Han River Clinic",
        time_zone="Asia/Seoul",
        date=str(day),
        decide_time=decided,  # type: ignore[arg-type]
    )


class Arrived:
    """An event as the stream delivers it."""

    def __init__(self, event: Message, decided: datetime = NOW) -> None:
        row = Outgoing.of(new_id(), decided, event)
        self.subject, self.data, self.headers = row.subject, row.payload, row.headers()


# Approval


class Office:
    def __init__(self, database: Database, clock: Clock) -> None:
        self.database, self.clock = database, clock
        self.approval = Approval(approval_store.PostgresBooks(database, lambda: None), clock)

    async def ask(self, customer: str, day: date, reservation_id: str = "") -> Decision | Exception:
        request = Request(ReservationId(reservation_id or new_id()), customer, "h1", day, "")
        return (await self.approval.decide([request]))[0]

    async def deny(self, customer: str, day: date, reservation_id: str = "") -> Denial:
        answer = await self.ask(customer, day, reservation_id)
        assert isinstance(answer, Decision)
        assert answer.denial
        return answer.denial

    async def count(self, table: str) -> int:
        return len(await rows(self.database, f"SELECT 1 FROM {table}"))


@pytest.fixture
async def office(open_database: OpenDatabase, clock: Clock) -> Office:
    found = Office(await open_database("approval"), clock)
    await found.approval.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    return found


async def test_approval_forgets_what_is_over_and_who_books_again_is_not_disturbed(
    office: Office, retention: Retention, clock: Clock
) -> None:
    rules = approval_store.rules(office.database, retention)
    await office.approval.set_capacity("h1", TODAY, TODAY + DAY, 10)
    for customer, day in (("once", TODAY), ("again", TODAY), ("tomorrow", TODAY + DAY)):
        assert isinstance(await office.ask(customer, day), Decision)
    clock.now += 366 * DAY  # the day is over since 366 days: not more
    assert await run(rules) == {}
    later = clock.now.date() + 30 * DAY
    await office.approval.set_capacity("h1", later, later, 10)
    assert isinstance(again := await office.ask("again", later), Decision)
    clock.now += DAY
    assert await run(rules) == {"active bookings": 1, "passed decisions": 2, "days": 1}
    assert {row["customer_id"] for row in await rows(office.database, "SELECT * FROM active_bookings")} == {
        "again",
        "tomorrow",
    }
    assert await office.count("decisions") == 2
    assert await office.deny("again", later) is Denial.ACTIVE_BOOKING
    assert (await office.ask("again", later, again.appointment.reservation_id)) == again


async def test_a_refusal_is_forgotten_after_its_days_and_then_decided_anew(
    office: Office, retention: Retention, clock: Clock
) -> None:
    rules, day, key = approval_store.rules(office.database, retention), TODAY + 90 * DAY, new_id()
    assert await office.deny("c1", day, key) is Denial.DAY_NOT_OFFERED
    await office.approval.set_capacity("h1", day, day, 1)
    clock.now += 30 * DAY
    assert await run(rules) == {}
    assert await office.deny("c1", day, key) is Denial.DAY_NOT_OFFERED
    clock.now += timedelta(seconds=1)
    assert await run(rules) == {"refused decisions": 1}
    answer = await office.ask("c1", day, key)
    assert isinstance(answer, Decision)
    assert answer.denial is None


async def test_a_passed_booking_that_is_asked_for_again_has_passed(
    office: Office, retention: Retention, clock: Clock
) -> None:
    await office.approval.set_capacity("h1", TODAY, TODAY, 1)
    booked = await office.ask("c1", TODAY)
    assert isinstance(booked, Decision)
    clock.now += 400 * DAY
    await run(approval_store.rules(office.database, retention))
    assert type(await office.ask("c1", TODAY, booked.appointment.reservation_id)).__name__ == "DatePassed"


async def test_no_more_than_so_many_refusals_of_a_customer_are_kept_and_a_place_is_granted_all_the_same(
    office: Office, retention: Retention, clock: Clock
) -> None:
    day = TODAY + DAY
    nowhere = [Request(ReservationId(new_id()), "c1", "h1", day, "") for _ in range(MOST_REFUSALS + 7)]
    answers = [*await office.approval.decide(nowhere[:30]), *await office.approval.decide(nowhere[30:])]
    assert Counter(map(type, answers)) == {Decision: MOST_REFUSALS, TooManyRefusals: 7}
    assert await office.count("decisions") == await office.count("outbox") == MOST_REFUSALS
    assert await office.deny("c2", day) is Denial.DAY_NOT_OFFERED  # others have a count of their own
    assert await office.approval.decide(nowhere[:1]) == answers[:1]  # a repeat gets its answer
    await office.approval.set_capacity("h1", day, day, 1)
    granted = await office.ask("c1", day)
    assert isinstance(granted, Decision)
    assert granted.denial is None
    clock.now += 31 * DAY
    await run(approval_store.rules(office.database, retention))
    assert await office.deny("c1", clock.now.date()) is Denial.DAY_NOT_OFFERED


async def test_two_replicas_delete_beside_each_other_in_batches_and_skip_what_somebody_holds(
    office: Office, retention: Retention, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.chassis.retention.BATCH", 20)
    for batch in range(4):
        asks = [Request(ReservationId(new_id()), f"c{batch}-{i}", "h1", TODAY, "") for i in range(50)]
        await office.approval.decide(asks)
    clock.now += 31 * DAY
    async with office.database.transaction() as holding:
        held = await holding.fetch("SELECT reservation_id FROM decisions LIMIT 3 FOR UPDATE")
        rules = approval_store.rules(office.database, retention)
        deleted = await asyncio.gather(run(rules), run(rules))
        assert sum(d.get("refused decisions", 0) for d in deleted) == 197
    left = await rows(office.database, "SELECT reservation_id FROM decisions")
    assert set(left) == set(held)
    assert await run(rules) == {"refused decisions": 3}


# Reservation


def appointment(day: date = TODAY, decided: datetime = NOW, reservation_id: str = "") -> Appointment:
    key = Id(reservation_id or new_id())
    return Appointment(key, "c1", "h1", "Han River Clinic", "Asia/Seoul", day, "", decided)


async def test_reservation_forgets_what_is_over(
    open_database: OpenDatabase, retention: Retention, clock: Clock
) -> None:
    database = await open_database("reservation")
    rules = reservation_store.rules(database, retention)
    passed, refused, ahead = appointment(), appointment(TODAY + 90 * DAY), appointment(TODAY + 90 * DAY)
    async with reservation_store.PostgresReservations(database, lambda: None, lambda: NOW).unit_of_work() as work:
        await work.add(
            [
                Reservation.decided(passed, None),
                Reservation.decided(refused, RejectionReason(1)),
                Reservation.decided(ahead, None),
            ]
        )
    clock.now += 30 * DAY
    assert await run(rules) == {}
    clock.now += timedelta(seconds=1)
    assert await run(rules) == {"refused reservations": 1}
    clock.now = NOW + 367 * DAY
    assert await run(rules) == {"passed reservations": 1}
    [left] = await rows(database, "SELECT reservation_id::text FROM reservations")
    assert left["reservation_id"] == ahead.reservation_id


async def test_a_decision_made_anew_replaces_a_refusal_that_is_not_deleted_yet_and_is_told(
    open_database: OpenDatabase,
) -> None:
    database = await open_database("reservation")
    store = reservation_store.PostgresReservations(database, lambda: None, lambda: NOW)
    first = appointment(TODAY + 90 * DAY)
    anew = appointment(TODAY + 91 * DAY, NOW + 31 * DAY, first.reservation_id)
    for decided, reason in ((first, RejectionReason(1)), (anew, None), (anew, None), (first, RejectionReason(1))):
        async with store.unit_of_work() as work:
            await work.add([Reservation.decided(decided, reason)])
    assert await store.get(first.reservation_id) == Reservation(anew, Status.APPROVED)
    told = [row["subject"].split(".")[-1] for row in await rows(database, "SELECT subject FROM outbox")]
    assert sorted(told) == ["ReservationPlaced", "ReservationRejected"]


# Vaccine management


async def test_vaccinemgmt_forgets_vaccinations_whose_day_has_passed_and_keeps_its_lots(
    open_mongo: OpenMongo, retention: Retention, clock: Clock
) -> None:
    mongo = await open_mongo()
    stock = vaccinemgmt_store.MongoStock(mongo, lambda: None)
    freed, rules = asyncio.Event(), vaccinemgmt_store.rules(mongo, retention)
    vaccines, stockroom = Vaccines(stock, clock, freed), Stockroom(stock, clock, freed)
    await stockroom.register("h1", [Lots("L1", "207", "MOD", TODAY - 30 * DAY, TODAY + 300 * DAY, 5)], "manager")
    days = (TODAY, TODAY, TODAY + DAY)
    asks = [
        ForADose(DoseId(new_id()), f"c{i}", "h1", "Clinic", "Asia/Seoul", day, "", NOW) for i, day in enumerate(days)
    ]
    await vaccines.admit(asks)
    await vaccines.cancel(asks[:1])
    clock.now += 366 * DAY
    assert await run(rules) == {}
    clock.now += DAY
    assert await run(rules) == {"passed vaccinations": 2}
    assert await stock.vaccination(asks[2].reservation_id)
    [lot] = await stockroom.lots("h1", None, 10)
    assert (lot.free, lot.balance.reserved) == (3, 2)


async def test_a_database_of_the_version_before_gets_the_indexes_and_keeps_its_own_for_the_way_back(
    open_mongo: OpenMongo,
) -> None:
    mongo = await open_mongo()
    vaccinations, indexes = mongo.database["vaccinations"], mongo.database["vaccinations"].index_information
    made = "status_1_date_1_time_zone_1_hospital_id_1"
    await vaccinations.drop_index(made)
    await vaccinations.create_index("date")
    await mongo.database["migrations"].update_one({"_id": "schema"}, {"$set": {"version": 2}})
    await mongo.open(vaccinemgmt_store.SCHEMA)
    assert {made, "date_1"} <= (await indexes()).keys()


# MyPage


def received(event: Any) -> Event:
    return Event(new_id(), event.appointment.reservation_id, event.DESCRIPTOR.full_name, NOW, event)


async def project(database: Database, *events: Message) -> None:
    await projector.View(database).project([projector.entry(received(event)) for event in events])


async def test_mypage_forgets_what_is_over_with_its_timeline(
    open_database: OpenDatabase, retention: Retention, clock: Clock
) -> None:
    database = await open_database("mypage")
    rules = projector.rules(database, retention)
    ahead = message(TODAY + 90 * DAY, NOW)
    await project(
        database,
        ApprovalGranted(appointment=message(TODAY, NOW)),
        ApprovalDenied(appointment=message(TODAY + 90 * DAY, NOW), denial_reason=1),  # type: ignore[arg-type]
        ApprovalGranted(appointment=ahead),
    )
    clock.now += 30 * DAY + timedelta(seconds=1)
    assert await run(rules) == {"refused reservations": 1}
    clock.now = NOW + 367 * DAY
    assert await run(rules) == {"passed reservations": 1}
    for table in ("my_reservations", "timeline"):
        [left] = await rows(database, f"SELECT reservation_id::text FROM {table}")
        assert left["reservation_id"] == ahead.reservation_id


async def test_the_screen_shows_a_decision_made_anew_and_nothing_of_the_refusal_before_it(
    open_database: OpenDatabase,
) -> None:
    database = await open_database("mypage")
    first = message(TODAY + 90 * DAY, NOW)
    anew = message(TODAY + 91 * DAY, NOW + 31 * DAY, first.reservation_id)
    refused = ApprovalDenied(appointment=first, denial_reason=1)  # type: ignore[arg-type]
    await project(database, refused)
    await project(database, ApprovalGranted(appointment=anew))
    [shown] = await rows(database, "SELECT status, date, rejection_reason FROM my_reservations")
    assert dict(shown) == {"status": Status.APPROVED, "date": TODAY + 91 * DAY, "rejection_reason": 0}
    assert [row["event"] for row in await rows(database, "SELECT event FROM timeline")] == ["ApprovalGranted"]
    await project(database, refused)  # late, and only where clocks differ: else it is over
    [shown] = await rows(database, "SELECT status FROM my_reservations")
    assert shown["status"] == Status.APPROVED


# Events about what is over


class Untouched:
    """Use cases that must not be called."""

    def __getattr__(self, name: str) -> Any:
        async def handle(_: object) -> None:
            raise AssertionError(f"{name} was called")

        return handle


def deliveries(retention: Retention) -> list[Delivery]:
    nobody: Any = Untouched()
    view = projector.View(nobody)
    return [
        Delivery(name, retention.applied_to(subscriptions, term))
        for name, subscriptions, term in (
            ("approval", approval_events.subscriptions(nobody), approval_events.term),
            ("reservation", reservation_events.subscriptions(Followup(nobody)), reservation_events.term),
            ("vaccinemgmt", vaccinemgmt_events.subscriptions(nobody), vaccinemgmt_events.term),
            ("mypage", view.subscriptions(Retention(Days(), NOW.astimezone)), projector.term),
        )
    ]


async def test_an_event_about_what_is_over_counts_as_handled_in_every_service_and_changes_nothing(
    retention: Retention,
) -> None:
    passed = message(TODAY - 367 * DAY, NOW - 400 * DAY)
    long_ago = message(TODAY + 30 * DAY, NOW - 31 * DAY)
    arrived = [
        Arrived(ApprovalGranted(appointment=passed)),
        Arrived(CancellationRequested(appointment=passed)),
        Arrived(CancellationCompleted(appointment=passed, version=2)),
        Arrived(ApprovalDenied(appointment=long_ago, denial_reason=1)),  # type: ignore[arg-type]
        Arrived(ReservationRejected(appointment=long_ago, rejection_reason=1)),  # type: ignore[arg-type]
    ]
    told = Counter[str]()
    for delivery in deliveries(retention):
        mine = [a for a in arrived if a.subject in delivery.types]
        assert all(map(delivery.understands, mine))
        async for some, outcome in delivery.deliver(mine):
            assert outcome.fate is Fate.HANDLED
            told.update(a.subject.split(".")[-1] for a in some)
    assert told == {
        "ApprovalGranted": 3,
        "ApprovalDenied": 2,
        "CancellationCompleted": 3,
        "CancellationRequested": 2,
        "ReservationRejected": 1,
    }


def test_a_booking_is_over_with_its_day_and_a_refusal_also_with_its_decision(retention: Retention) -> None:
    def over(event: Message) -> bool:
        return retention.is_over(projector.term(received(event)))

    assert not over(ApprovalGranted(appointment=message(TODAY - 366 * DAY, NOW - 400 * DAY)))
    assert over(ApprovalGranted(appointment=message(TODAY - 367 * DAY, NOW - 400 * DAY)))
    assert not over(ApprovalGranted(appointment=message(TODAY + DAY, NOW - 400 * DAY)))
    for cls in (ApprovalDenied, ReservationRejected):
        assert not over(cls(appointment=message(TODAY + DAY, NOW - 30 * DAY)))
        assert over(cls(appointment=message(TODAY + DAY, NOW - 30 * DAY - timedelta(seconds=1))))
    for_ever = Retention(Days(), lambda: NOW)
    assert not for_ever.is_over(projector.term(received(ApprovalDenied(appointment=message(date(1999, 1, 1), NOW)))))


# Indexes


async def test_an_index_is_made_again_after_a_process_that_died_while_it_made_it(open_database: OpenDatabase) -> None:
    database = await open_database("approval")
    async with database.connection() as connection:
        await connection.execute("DELETE FROM migrations WHERE name LIKE '%concurrently.sql'")
        await connection.execute("DROP INDEX decisions_refused")  # and those before it are there
    await database.open(MIGRATIONS["approval"])
    found = await rows(database, "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indisvalid")
    assert {"decisions_by_date", "decisions_refused", "decisions_of_a_customer"} <= {r["name"] for r in found}


async def test_replicas_that_start_together_do_not_hold_up_the_index_that_one_of_them_makes(
    open_database: OpenDatabase,
) -> None:
    replicas = [await open_database("approval") for _ in range(4)]
    async with replicas[0].connection() as connection:
        await connection.execute("DELETE FROM migrations WHERE name LIKE '%concurrently.sql'")
    await asyncio.gather(*(replica.open(MIGRATIONS["approval"]) for replica in replicas))


WAITING = """
SELECT FROM pg_stat_activity
WHERE query LIKE '%INDEX CONCURRENTLY%decisions_by_date%' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"""


async def test_an_index_is_made_while_others_write(open_database: OpenDatabase, office: Office) -> None:
    async with office.database.connection() as connection:
        await connection.execute("DELETE FROM migrations WHERE name LIKE '%concurrently.sql'")
    async with office.database.transaction() as holding:  # an open write keeps the index waiting, but nobody else
        await holding.execute(
            "INSERT INTO decisions VALUES (gen_random_uuid(), 'c', 'h1', 'n', 'z', '2027-03-01', '', now(), 1)"
        )
        making = asyncio.create_task(office.database.open(MIGRATIONS["approval"]))
        while not await rows(office.database, WAITING):
            assert not making.done()
        assert await office.deny("c1", TODAY) is Denial.DAY_NOT_OFFERED
    await making


# The stream


class Stream:
    """Events in the stream, of which some are over."""

    def __init__(self, admin: Client) -> None:
        self.admin, self.js = admin, admin.jetstream()

    async def put(self, *events: Any) -> None:
        for event in events:
            row = Outgoing.of(new_id(), NOW, event)
            await self.js.publish(row.subject, row.payload, headers=row.headers())

    async def moment(self) -> datetime:
        """Now, as the stream sees it: what comes later is later."""
        await self.put(ApprovalReleased(appointment=message(TODAY, NOW)))
        state = (await self.js.stream_info(STREAM)).state
        found: datetime | None = (await self.js.get_msg(STREAM, state.last_seq)).time
        assert found
        return found

    async def kept(self, stream: str = STREAM) -> Counter[str]:
        state = (await self.js.stream_info(stream, subjects_filter=">")).state
        return Counter({subject.split(".")[-1]: count for subject, count in (state.subjects or {}).items()})


@pytest.fixture
async def stream(nats_admin: Client, open_bus: OpenBus) -> Stream:
    await open_bus("mypage")
    return Stream(nats_admin)


def purging(bus: Bus, over_before: datetime, needed: datetime | None = None) -> Sequence[Rule]:
    """The rules of a service that keeps events for a day, and refusals as long, at the time that makes these over."""

    async def needed_since(before: datetime) -> datetime | None:
        return needed if needed and needed < before else None

    days = Days(retention_stream_days=3, retention_refused_days=2)
    return Purge(bus, Retention(days, lambda: over_before + 3 * DAY), REFUSALS, needed_since).rules()


GRANTED = ApprovalGranted(appointment=message(TODAY, NOW))
DENIED = ApprovalDenied(appointment=message(TODAY, NOW), denial_reason=1)  # type: ignore[arg-type]
REFUSALS = (ApprovalDenied, ReservationRejected)


async def test_the_stream_keeps_what_is_not_over_and_two_replicas_purge_at_once(
    stream: Stream, open_bus: OpenBus
) -> None:
    await stream.put(*[GRANTED] * 30)
    moment = await stream.moment()
    await stream.put(*[GRANTED] * 20, DENIED)
    replicas = [purging(await open_bus("mypage"), moment) for _ in range(2)]
    purged = await asyncio.gather(*map(run, replicas))
    assert sum(p.get("events", 0) for p in purged) == 30
    assert await stream.kept() == {"ApprovalGranted": 20, "ApprovalReleased": 1, "ApprovalDenied": 1}
    assert await run(replicas[0]) == {}


async def test_refusals_leave_the_stream_before_what_is_around_them(stream: Stream, open_bus: OpenBus) -> None:
    await stream.put(GRANTED, DENIED, GRANTED, DENIED)
    moment = await stream.moment()
    await stream.put(DENIED)
    # Where refusals are over and everything else is not.
    days = Days(retention_stream_days=800, retention_refused_days=30)
    bus = await open_bus("mypage")

    async def needed_since(_: datetime) -> None:
        return None

    rules = Purge(bus, Retention(days, lambda: moment + 31 * DAY), REFUSALS, needed_since).rules()
    assert await run(rules) == {f"{ApprovalDenied.DESCRIPTOR.full_name} in the stream": 2}
    assert await stream.kept() == {"ApprovalGranted": 2, "ApprovalReleased": 1, "ApprovalDenied": 1}


async def test_a_consumer_that_is_behind_keeps_its_events_and_one_that_has_nothing_to_do_keeps_none(
    stream: Stream, open_bus: OpenBus
) -> None:
    bus = await open_bus("mypage")
    for name, event in (("behind", ApprovalGranted), ("idle", CancellationRequested)):
        config = ConsumerConfig(
            durable_name=name, filter_subject=event.DESCRIPTOR.full_name, ack_policy=AckPolicy.EXPLICIT
        )
        await stream.js.add_consumer(STREAM, config)
    await stream.put(*[GRANTED] * 10)
    behind = await stream.js.pull_subscribe_bind("behind", STREAM)
    messages = await behind.fetch(10)
    for number in (0, 1, 2, 4):  # the fourth is in somebody's hands
        await messages[number].ack_sync()
    over = purging(bus, await stream.moment() + DAY)
    assert await run(over) == {"events": 3}
    assert (await stream.kept())["ApprovalGranted"] == 7
    for number in (3, *range(5, 10)):
        await messages[number].ack_sync()
    assert await run(over) == {"events": 8}
    await stream.put(GRANTED)  # the stream goes on behind what is gone
    assert await stream.kept() == {"ApprovalGranted": 1}


async def test_events_of_what_is_booked_far_ahead_are_kept_for_longer(
    stream: Stream, open_bus: OpenBus, open_database: OpenDatabase
) -> None:
    bus, database = await open_bus("mypage"), await open_database("mypage")
    await stream.put(GRANTED)
    moment = await stream.moment()
    far = ApprovalGranted(appointment=message(moment.date() + 900 * DAY, moment + DAY))
    near = ApprovalGranted(appointment=message(moment.date() + 363 * DAY, moment - 3 * DAY))
    await project(database, far, near)
    await stream.put(far)
    retention = Retention(LIMITS, lambda: moment + 805 * DAY)
    assert await run(projector.purge(database, bus, retention).rules()) == {"events": 1}
    assert await stream.kept() == {"ApprovalGranted": 1, "ApprovalReleased": 1}
    async with database.connection() as connection:
        await connection.execute("DELETE FROM my_reservations")
    assert await run(projector.purge(database, bus, retention).rules()) == {"events": 2}


async def test_dead_letters_stay_but_those_that_were_discarded_long_ago(stream: Stream, open_bus: OpenBus) -> None:
    bus = await open_bus("mypage")
    letters = SetAside(bus, "mypage")
    for number in range(1, 5):
        await letters.put(Letter("x", number, {}, b""), Kind.DEAD)
    for letter in await letters.page(Kind.DEAD, 0, 2):
        await letters.discard(letter, "op", "no use")
    assert await stream.kept("DEAD_LETTERS") == {"mypage": 2, "discarded": 2}
    later = purging(bus, datetime.now(UTC) + DAY)
    assert await run(later) == {"discarded dead letters": 2}
    assert await letters.dead() == 2


async def test_nothing_is_purged_where_everything_is_kept_for_ever(stream: Stream, open_bus: OpenBus) -> None:
    bus = await open_bus("mypage")
    await stream.put(GRANTED, DENIED)

    async def needed_since(_: datetime) -> None:
        return None

    rules = Purge(bus, Retention(Days(), lambda: datetime.now(UTC) + 9999 * DAY), REFUSALS, needed_since).rules()
    assert await run(rules) == {}
