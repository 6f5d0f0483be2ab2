"""Approval's books in a real Postgres stay exact when many write at once, and the store itself guards them."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from services.approval.adapters.events import subscriptions
from services.approval.adapters.postgres import PostgresBooks
from services.approval.application import Approval
from services.approval.domain import (
    ApprovalError,
    CapacityBelowApproved,
    DatePassed,
    Decision,
    Denial,
    Hospital,
    Request,
    RequestIdReused,
    ReservationId,
    UnknownDecision,
    UnknownHospital,
    UnknownTimeZone,
)
from services.chassis.errors import StoreUnavailable
from services.chassis.events import Event
from services.chassis.postgres import Database
from vaccination.approval.v1 import appointment_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from .conftest import OpenDatabase, eventually

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
TODAY, DAY = date(2027, 3, 1), date(2027, 3, 10)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Office:
    """Approval as several replicas on one database."""

    replicas: Sequence[Approval]
    database: Database
    clock: Clock
    woken: list[None]

    async def decide(self, *requests: Request, replica: int = 0) -> Sequence[Decision | Exception]:
        return await self.replicas[replica % len(self.replicas)].decide(requests)

    async def answers(self, *requests: Request) -> list[Denial | None]:
        """Decides all requests at once, each in its own transaction, on alternating replicas.

        A request is repeated, as clients do, if the store is busy.
        """

        async def answer(number: int, request: Request) -> Denial | None:
            for _ in range(10):
                try:
                    [decision] = await self.decide(request, replica=number)
                except StoreUnavailable:
                    continue
                return denial_of(decision)
            pytest.fail("no answer")

        return await asyncio.gather(*(answer(i, request) for i, request in enumerate(requests)))

    async def rows(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.database.connection() as connection:
            return list(await connection.fetch(sql, *arguments))

    async def approved(self, day: date = DAY) -> int:
        [row] = await self.rows("SELECT approved FROM days WHERE date = $1", day)
        return int(row["approved"])

    async def events(self) -> Counter[str]:
        """The number of events in the outbox, by their type."""
        return Counter(row["subject"].split(".")[-1] for row in await self.rows("SELECT subject FROM outbox"))

    async def offer(self, capacity: int, *days: date) -> None:
        for day in days or (DAY,):
            await self.replicas[0].set_capacity("h1", day, day, capacity)


def denial_of(answer: Decision | Exception) -> Denial | None:
    assert isinstance(answer, Decision), answer
    return answer.denial


def new_id() -> ReservationId:
    return ReservationId(str(uuid.uuid4()))


def asks(customer: int | str, day: date = DAY, reservation_id: ReservationId | None = None) -> Request:
    return Request(reservation_id or new_id(), f"c{customer}", "h1", day, "")


@pytest.fixture
async def office(open_database: OpenDatabase) -> Office:
    clock, woken = Clock(), list[None]()
    databases = [await open_database("approval") for _ in range(2)]
    replicas = [Approval(PostgresBooks(database, lambda: woken.append(None)), clock) for database in databases]
    await replicas[0].put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    return Office(replicas, databases[0], clock, woken)


async def test_many_at_once_never_overbook_a_day(office: Office) -> None:
    await office.offer(10)
    answers = await office.answers(*(asks(i) for i in range(30)))
    assert Counter(answers) == {None: 10, Denial.DAY_FULL: 20}
    assert await office.approved() == 10
    assert await office.events() == {"ApprovalGranted": 10, "ApprovalDenied": 20}
    assert len(await office.rows("SELECT 1 FROM active_bookings")) == 10


async def test_batches_at_once_over_several_days_never_overbook_any(office: Office, seeded: random.Random) -> None:
    days = [DAY + timedelta(i) for i in range(3)]
    await office.offer(25, *days)
    batches = [[asks(100 * b + i, seeded.choice(days)) for i in range(40)] for b in range(6)]
    answers = await asyncio.gather(*(office.decide(*batch, replica=i) for i, batch in enumerate(batches)))
    wanted = Counter(request.date for batch in batches for request in batch)
    granted = Counter(
        request.date
        for batch, decisions in zip(batches, answers, strict=True)
        for request, decision in zip(batch, decisions, strict=True)
        if denial_of(decision) is None
    )
    assert granted == {day: min(25, wanted[day]) for day in days}
    assert {day: await office.approved(day) for day in days} == granted


async def test_a_request_repeated_at_once_is_decided_once(office: Office) -> None:
    await office.offer(5)
    request = asks("same")
    decisions = await asyncio.gather(*(office.decide(request, replica=i) for i in range(20)))
    [decision] = {repr(decision) for [decision] in decisions}
    assert "denial=None" in decision
    assert await office.approved() == 1
    assert await office.events() == {"ApprovalGranted": 1}


async def test_a_refused_request_repeated_at_once_is_refused_once(office: Office) -> None:
    request = asks("same")  # the day is not offered, so there is no row that could be locked
    answers = await office.answers(*[request] * 20)
    assert set(answers) == {Denial.DAY_NOT_OFFERED}
    assert await office.events() == {"ApprovalDenied": 1}


async def test_one_id_used_for_two_days_at_once_is_decided_for_one_of_them(office: Office) -> None:
    days = [DAY + timedelta(i) for i in range(6)]
    await office.offer(5, *days)
    key = new_id()
    answers = await asyncio.gather(
        *(office.decide(asks("same", day, key), replica=i) for i, day in enumerate(days)),
    )
    assert Counter(type(answer) for [answer] in answers) == {Decision: 1, RequestIdReused: 5}
    assert sum([await office.approved(day) for day in days]) == 1


async def test_one_person_who_asks_for_many_days_at_once_gets_one(office: Office) -> None:
    days = [DAY + timedelta(i) for i in range(12)]
    await office.offer(5, *days)
    answers = await office.answers(*(asks("same", day) for day in days))
    assert Counter(answers) == {None: 1, Denial.ACTIVE_BOOKING: 11}
    assert sum([await office.approved(day) for day in days]) == 1


async def test_a_booking_whose_day_has_passed_gives_way_to_one_and_only_one(office: Office) -> None:
    days = [DAY + timedelta(i) for i in range(8)]
    await office.offer(5, TODAY, *days)
    old = asks("same", TODAY)
    assert await office.answers(old) == [None]
    assert await office.answers(asks("same")) == [Denial.ACTIVE_BOOKING]
    office.clock.now += timedelta(1)
    answers = await office.answers(*(asks("same", day) for day in days))
    assert Counter(answers) == {None: 1, Denial.ACTIVE_BOOKING: 7}
    [active] = await office.rows("SELECT reservation_id FROM active_bookings")
    assert str(active["reservation_id"]) != old.reservation_id
    assert await office.approved(TODAY) == 1


async def test_batches_that_share_requests_in_different_orders_all_get_their_answers(office: Office) -> None:
    await office.offer(500, DAY)
    for day in (DAY, DAY + timedelta(1)):  # the second day is not offered, so no row of the day is locked
        requests = [asks(f"{day}-{i}", day) for i in range(200)]
        answers = await asyncio.gather(
            *(office.decide(*(requests if i % 2 else requests[::-1]), replica=i) for i in range(6))
        )
        in_one_order = [[denial_of(a) for a in (found if i % 2 else found[::-1])] for i, found in enumerate(answers)]
        assert in_one_order == [[None if day == DAY else Denial.DAY_NOT_OFFERED] * 200] * 6
    assert await office.events() == {"ApprovalGranted": 200, "ApprovalDenied": 200}


async def test_a_request_that_cannot_be_decided_does_not_spoil_the_rest_of_its_batch(office: Office) -> None:
    await office.offer(5)
    good, twice = asks("good"), asks("twice")
    nowhere, late = replace(asks("nowhere"), hospital_id="nowhere"), asks("late", TODAY - timedelta(1))
    reused = replace(good, vaccine_code="207")
    answers = await office.decide(good, nowhere, twice, late, reused, twice)
    assert [type(answer) for answer in answers] == [
        Decision,
        UnknownHospital,
        Decision,
        DatePassed,
        RequestIdReused,
        Decision,
    ]
    assert repr(answers[2]) == repr(answers[5])
    assert await office.approved() == 2
    assert all(isinstance(a, Decision | ApprovalError) for a in answers)


async def test_two_requests_of_one_person_in_one_batch_get_one_place(office: Office) -> None:
    await office.offer(5)
    answers = await office.decide(asks("same"), asks("same"))
    assert [denial_of(a) for a in answers] == [None, Denial.ACTIVE_BOOKING]


async def test_a_place_released_many_times_at_once_is_freed_once(office: Office) -> None:
    await office.offer(2)
    kept, given_back = asks("kept"), asks("given back")
    assert await office.answers(kept, given_back) == [None, None]
    assert await office.answers(asks("third")) == [Denial.DAY_FULL]
    await asyncio.gather(*(office.replicas[i % 2].release([given_back.reservation_id] * 2) for i in range(8)))
    assert await office.approved() == 1
    assert (await office.events())["ApprovalReleased"] == 1
    assert await office.answers(asks("fourth"), asks("given back")) in (
        [None, Denial.DAY_FULL],
        [Denial.DAY_FULL, None],
    )


async def test_releases_and_requests_at_once_leave_the_count_of_places_exact(
    office: Office, seeded: random.Random
) -> None:
    await office.offer(10)
    first = [asks(i) for i in range(10)]
    assert set(await office.answers(*first)) == {None}
    back, more = seeded.sample(first, 6), [asks(i) for i in range(100, 120)]
    asking = asyncio.create_task(office.answers(*more))
    await asyncio.gather(*(office.replicas[i % 2].release([r.reservation_id]) for i, r in enumerate(back)))
    answers = await asking
    granted = sum(answer is None for answer in answers)
    assert await office.approved() == 10 - 6 + granted <= 10
    assert len(await office.rows("SELECT 1 FROM active_bookings")) == 4 + granted


async def test_the_event_of_a_cancellation_releases_the_place_and_one_of_an_unknown_booking_is_not_tried_again(
    office: Office,
) -> None:
    await office.offer(1)
    booked, denied = asks("booked"), asks("denied")
    await office.decide(booked)
    await office.decide(denied)
    [cancelled] = subscriptions(office.replicas[0])

    async def handle(events: list[Event]) -> None:
        await cancelled.handle([cancelled.read(event) for event in events])

    def told(request: Request) -> Event:
        message = vaccinemgmt_events_pb2.CancellationCompleted(
            appointment=appointment_pb2.Appointment(reservation_id=request.reservation_id)
        )
        return Event(str(uuid.uuid4()), request.reservation_id, message.DESCRIPTOR.full_name, NOW, message)

    for unknown in (asks("unknown"), denied):
        with pytest.raises(cancelled.never):
            await handle([told(booked), told(unknown)])
    assert await office.approved() == 1  # nothing of the batch was released
    await handle([told(booked)])
    assert await office.approved() == 0
    with pytest.raises(UnknownDecision):
        await office.replicas[0].release([denied.reservation_id])


async def test_capacity_lowered_while_people_book_never_ends_below_what_is_approved(office: Office) -> None:
    await office.offer(15)

    async def lower(to: int) -> str:
        try:
            await office.replicas[1].set_capacity("h1", DAY, DAY, to)
        except CapacityBelowApproved:
            return "refused"
        return "lowered"

    await asyncio.gather(office.answers(*(asks(i) for i in range(15))), *(lower(n) for n in range(12, 0, -2)))
    [day] = await office.rows("SELECT capacity, approved FROM days")
    assert day["approved"] <= day["capacity"]
    assert (await office.events())["ApprovalGranted"] == day["approved"]


async def test_capacity_is_set_for_all_days_or_none(office: Office) -> None:
    await office.offer(3, DAY)
    await office.answers(asks(1), asks(2))
    with pytest.raises(CapacityBelowApproved):
        await office.replicas[0].set_capacity("h1", DAY - timedelta(1), DAY + timedelta(1), 1)
    days, as_of = await office.replicas[0].availability("h1", DAY - timedelta(5), DAY + timedelta(5))
    assert [(d.date, d.capacity, d.approved) for d in days] == [(DAY, 3, 2)]
    assert as_of == NOW
    assert await office.replicas[0].set_capacity("h1", DAY - timedelta(1), DAY + timedelta(1), 3) == 2
    with pytest.raises(UnknownHospital):
        await office.replicas[0].set_capacity("nowhere", DAY, DAY, 3)


async def test_a_hospital_written_once_more_changes_nothing(office: Office) -> None:
    seoul = Hospital("h2", "New", "")
    assert await office.replicas[0].put_hospital(seoul) == (Hospital("h2", "New", "Asia/Seoul"), True)
    assert await office.replicas[1].put_hospital(seoul) == (Hospital("h2", "New", "Asia/Seoul"), False)
    assert (await office.replicas[1].put_hospital(replace(seoul, name="Renamed")))[1]
    assert [h.hospital_id for h in await office.replicas[0].hospitals("", 1)] == ["h1"]
    assert [h.name for h in await office.replicas[0].hospitals("h1", 10)] == ["Renamed"]
    with pytest.raises(UnknownTimeZone):
        await office.replicas[0].put_hospital(replace(seoul, time_zone="Asia/Atlantis"))


DECISION = "'h1', 'Clinic', 'Asia/Seoul', '2027-03-10', '', now()"


FORBIDDEN = [
    ("UPDATE days SET approved = capacity + 1", "never_overbooked"),
    ("UPDATE days SET approved = -1", "never_overbooked"),
    ("UPDATE days SET capacity = 0", "never_overbooked"),
    ("INSERT INTO days VALUES ('h1', '2027-04-01', -1)", "days_capacity_check"),
    ("INSERT INTO days VALUES ('nowhere', '2027-04-01', 1)", "days_hospital_id_fkey"),
    ("INSERT INTO decisions SELECT * FROM decisions", "decisions_pkey"),
    ("UPDATE decisions SET denial = -1", "decisions_denial_check"),
    ("UPDATE decisions SET denial = 1, released_at = now()", "only_a_granted_place_is_released"),
    (f"INSERT INTO decisions VALUES (gen_random_uuid(), 'c9', {DECISION}, 0)", "decisions_denial_check"),
    (
        f"WITH d AS (INSERT INTO decisions VALUES (gen_random_uuid(), 'c0', {DECISION}) RETURNING *)"
        " INSERT INTO active_bookings SELECT customer_id, reservation_id FROM d",
        "active_bookings_pkey",
    ),
    (
        "INSERT INTO active_bookings SELECT 'c9', reservation_id FROM decisions",
        "active_bookings_reservation_id_key",
    ),
    ("INSERT INTO active_bookings VALUES ('c9', gen_random_uuid())", "active_bookings_reservation_id_fkey"),
]


async def test_the_store_itself_refuses_what_the_rules_forbid(office: Office) -> None:
    await office.offer(1)
    await office.decide(asks(0))
    for sql, constraint in FORBIDDEN:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=constraint):
            await office.rows(sql)


async def test_a_connection_lost_before_the_commit_leaves_neither_decision_nor_event(office: Office) -> None:
    await office.offer(1)
    request = asks("unlucky")
    async with office.database.transaction() as blocker:
        await blocker.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        deciding = asyncio.create_task(office.decide(request, replica=1))

        async def waiting() -> list[asyncpg.Record]:
            return await office.rows("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass")

        [victim] = await eventually(waiting, bool)  # everything but the outbox has been written
        assert await office.rows("SELECT pg_terminate_backend($1)", victim["pid"])
        with pytest.raises(StoreUnavailable):
            await deciding
    woken = len(office.woken)
    assert await office.approved() == 0
    for table in ("decisions", "active_bookings", "outbox"):
        assert await office.rows(f"SELECT 1 FROM {table}") == []
    assert [denial_of(a) for a in await office.decide(request, replica=1)] == [None]
    assert await office.events() == {"ApprovalGranted": 1}
    assert len(office.woken) == woken + 1


async def test_an_error_in_the_unit_of_work_leaves_nothing_behind(office: Office) -> None:
    await office.offer(1)
    books = PostgresBooks(office.database, lambda: None)

    async def breaks() -> None:
        async with books.unit_of_work() as work:
            ledger = await work.ledger([asks(1)])
            ledger.decide(asks(1), NOW)
            await work.save(ledger)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await breaks()
    assert await office.approved() == 0
    assert await office.events() == {}
    assert await office.answers(asks(1)) == [None]  # no connection has been left in the transaction
