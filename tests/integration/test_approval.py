"""Approval's books in a real Postgres stay exact when many write at once, and the store itself guards them."""

import asyncio
import base64
import itertools
import json
import math
import random
import re
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import grpc.aio
import pytest
import structlog.testing
from google.protobuf.message import Message

from services.approval import application
from services.approval.adapters import grpc as inbound
from services.approval.adapters.events import subscriptions, term
from services.approval.adapters.postgres import HELD_BOOKINGS, TAKE_PLACES, TO_REVOKE, PostgresBooks
from services.approval.application import Approval
from services.approval.domain import (
    ApprovalError,
    DatePassed,
    DayIsCalledOff,
    Decision,
    Denial,
    Hospital,
    Location,
    NothingToCallOff,
    NothingToMove,
    Request,
    RequestIdReused,
    ReservationId,
    UnknownDecision,
    UnknownHospital,
    UnknownTimeZone,
)
from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import Edge
from services.chassis.errors import StoreUnavailable
from services.chassis.events import Event, Subscription
from services.chassis.events.delivery import NothingToDo
from services.chassis.postgres import Database
from services.chassis.retention import Retention
from vaccination.approval.v1 import appointment_pb2, hospital_pb2
from vaccination.approval.v1 import approval_service_pb2 as approval_pb
from vaccination.approval.v1 import hospital_service_pb2 as pb
from vaccination.approval.v1.approval_events_pb2 import ApprovalRevoked
from vaccination.approval.v1.approval_service_pb2_grpc import ApprovalServiceStub
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccinemgmt_events_pb2

from .conftest import Days, OpenDatabase, eventually

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

    async def revoked(self) -> dict[str, ApprovalRevoked]:
        """The events that tell of places taken back, by reservation."""
        rows = await self.rows("SELECT payload FROM outbox WHERE subject LIKE '%ApprovalRevoked'")
        events = [ApprovalRevoked.FromString(row["payload"]) for row in rows]
        by_id = {event.appointment.reservation_id: event for event in events}
        assert len(by_id) == len(events), "told twice"
        return by_id

    async def holding(self) -> dict[str, date]:
        """The day on which each customer holds a place. No customer holds two, and every account says the same."""
        rows = await self.rows(HOLDING)
        active = await self.rows("SELECT customer_id, reservation_id FROM active_bookings ORDER BY 1")
        assert [tuple(row) for row in active] == [(row["customer_id"], row["reservation_id"]) for row in rows]
        counted = Counter(row["date"] for row in rows)
        for day in await self.rows("SELECT date, approved FROM days"):
            assert day["approved"] == counted[day["date"]], day
        return {row["customer_id"]: row["date"] for row in rows}

    async def offer(self, capacity: int, *days: date) -> None:
        for day in days or (DAY,):
            await self.replicas[0].set_capacity("h1", day, day, capacity)


def denial_of(answer: Decision | Exception) -> Denial | None:
    assert isinstance(answer, Decision), answer
    return answer.denial


def new_id() -> ReservationId:
    return ReservationId(str(uuid.uuid4()))


def asks(customer: int | str, day: date = DAY, reservation_id: ReservationId | None = None, code: str = "") -> Request:
    return Request(reservation_id or new_id(), f"c{customer}", "h1", day, code)


def moves(old: Request, day: date, code: str = "") -> Request:
    return Request(new_id(), old.customer_id, "h1", day, code, replaces=old.reservation_id)


HOLDING = """
SELECT customer_id, reservation_id, date FROM decisions WHERE denial IS NULL AND released_at IS NULL ORDER BY 1"""


@pytest.fixture
async def office(open_database: OpenDatabase) -> Office:
    clock, woken = Clock(), list[None]()
    databases = [await open_database("approval") for _ in range(2)]
    replicas = [Approval(PostgresBooks(database, lambda _: woken.append(None)), clock) for database in databases]
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


def subscription(office: Office, event: type[Message]) -> Subscription[Any]:
    [found] = [s for s in subscriptions(office.replicas[0]) if s.event is event]
    return found


def over(event: type[Message], request: Request) -> Event:
    message: Any = event
    message = message(appointment=appointment_pb2.Appointment(reservation_id=request.reservation_id))
    return Event(str(uuid.uuid4()), request.reservation_id, message.DESCRIPTOR.full_name, NOW, message)


async def test_the_event_of_a_cancellation_releases_the_place_and_one_of_an_unknown_booking_is_not_tried_again(
    office: Office,
) -> None:
    await office.offer(1)
    booked, denied = asks("booked"), asks("denied")
    await office.decide(booked)
    await office.decide(denied)
    cancelled = subscription(office, vaccinemgmt_events_pb2.CancellationCompleted)

    async def handle(events: list[Event]) -> None:
        await cancelled.handle([cancelled.read(event) for event in events])

    def told(request: Request) -> Event:
        return over(vaccinemgmt_events_pb2.CancellationCompleted, request)

    for unknown in (asks("unknown"), denied):
        with pytest.raises(cancelled.never):
            await handle([told(booked), told(unknown)])
    assert await office.approved() == 1  # nothing of the batch was released
    await handle([told(booked)])
    assert await office.approved() == 0
    with pytest.raises(UnknownDecision):
        await office.replicas[0].release([denied.reservation_id])


ENDS = [
    vaccinemgmt_events_pb2.CancellationCompleted,
    vaccinemgmt_events_pb2.VaccinationMissed,
    vaccinemgmt_events_pb2.VaccinationUnserved,
]


async def test_every_end_frees_the_place_once_in_every_order_and_repetition(office: Office) -> None:
    orders = [order for n in (1, 2, 3) for order in itertools.product(ENDS, repeat=n)]
    booked = [asks(i) for i in range(len(orders))]
    await office.offer(len(orders))
    await office.decide(*booked)
    for step in range(3):
        for event in ENDS:
            follow = subscription(office, event)
            told = [
                over(event, r) for r, order in zip(booked, orders, strict=True) if order[step : step + 1] == (event,)
            ]
            if told:
                await follow.handle([follow.read(e) for e in told])
    assert await office.holding() == {}
    assert (await office.events())["ApprovalReleased"] == len(orders)
    assert set(await office.answers(*(asks(i) for i in range(5)))) == {None}


# Fewer places than bookings


async def test_with_fewer_places_than_bookings_nobody_is_approved_until_enough_are_given_up(office: Office) -> None:
    await office.offer(5)
    booked = [asks(i) for i in range(5)]
    await office.decide(*booked)
    changed, over = await office.replicas[1].set_capacity("h1", DAY - timedelta(1), DAY, 3)
    assert (changed, [(d.date, d.capacity, d.approved, d.over, d.left) for d in over]) == (2, [(DAY, 3, 5, 2, 0)])
    assert await office.replicas[0].set_capacity("h1", DAY - timedelta(1), DAY, 3) == (0, over)
    for request, free in zip(booked, (False, False, True), strict=False):
        assert await office.answers(asks("new")) == [Denial.DAY_FULL]
        await office.replicas[0].release([request.reservation_id])
        days, _ = await office.replicas[1].availability("h1", DAY, DAY)
        assert [day.left for day in days] == [free]
    assert await office.answers(asks("new")) == [None]
    assert await office.replicas[0].set_capacity("h1", DAY, DAY, 9) == (1, [])


async def test_capacity_lowered_while_people_book_and_cancel_leaves_the_accounts_exact(
    office: Office, seeded: random.Random
) -> None:
    await office.offer(15)
    first = [asks(i) for i in range(10)]
    await office.decide(*first)

    async def lower(to: int) -> None:
        await office.replicas[1].set_capacity("h1", DAY, DAY, to)

    await asyncio.gather(
        office.answers(*(asks(i) for i in range(100, 120))),
        *(office.replicas[i % 2].release([r.reservation_id]) for i, r in enumerate(seeded.sample(first, 5))),
        *(lower(n) for n in range(12, 0, -2)),
    )
    held = len(await office.holding())
    [day] = await office.rows("SELECT capacity, approved, over FROM days")
    assert day["approved"] == held
    assert day["over"] == max(0, held - day["capacity"])


async def test_capacity_is_set_for_all_days_or_none(office: Office) -> None:
    await office.offer(3, DAY)
    await office.answers(asks(1), asks(2))
    await office.replicas[1].call_off("h1", DAY + timedelta(1), "Holiday.")
    with pytest.raises(DayIsCalledOff, match=str(DAY + timedelta(1))):
        await office.replicas[0].set_capacity("h1", DAY - timedelta(1), DAY + timedelta(1), 1)
    days, as_of = await office.replicas[0].availability("h1", DAY - timedelta(5), DAY + timedelta(5))
    shown = [(d.date, d.capacity, d.approved, d.left, d.called_off) for d in days]
    assert shown == [(DAY, 3, 2, 1, ""), (DAY + timedelta(1), 0, 0, 0, "Holiday.")]
    assert as_of == NOW
    await office.replicas[1].reopen("h1", DAY + timedelta(1))
    assert await office.replicas[0].set_capacity("h1", DAY - timedelta(1), DAY + timedelta(1), 3) == (2, [])
    with pytest.raises(UnknownHospital):
        await office.replicas[0].set_capacity("nowhere", DAY, DAY, 3)


# A day called off


async def test_a_day_called_off_takes_nobody_and_ends_every_booking_once(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "REVOKED_AT_ONCE", 5)
    elsewhere = DAY + timedelta(1)
    await office.offer(20, DAY, elsewhere)
    booked, kept = [asks(i) for i in range(12)], asks("kept", elsewhere)
    await office.decide(*booked, kept)
    given_up = asks("given up")
    await office.decide(given_up)
    await office.replicas[0].release([given_up.reservation_id])
    woken = len(office.woken)
    day = await office.replicas[0].call_off("h1", DAY, "The boiler burst.")
    assert (day.called_off, day.capacity, day.approved, day.left) == ("The boiler burst.", 20, 12, 0)
    await asyncio.wait_for(office.replicas[0].called_off(), 1)  # what revokes is told at once
    assert await office.answers(asks("late")) == [Denial.DAY_CALLED_OFF]
    assert await office.answers(asks(0, elsewhere)) == [Denial.ACTIVE_BOOKING]
    assert await office.replicas[1].revoke() == 12
    told = await office.revoked()
    assert told.keys() == {request.reservation_id for request in booked}
    assert {(e.revocation_reason, e.note, e.replaced_by) for e in told.values()} == {(1, "The boiler burst.", "")}
    assert len(office.woken) > woken
    assert await office.holding() == {"ckept": elsewhere}
    for _ in range(2):
        assert (await office.replicas[1].call_off("h1", DAY, "The boiler burst.")).approved == 0
        assert [await replica.revoke() for replica in office.replicas] == [0, 0]
    assert len(await office.revoked()) == 12
    assert set(await office.answers(*(asks(i, elsewhere) for i in range(12)))) == {None}
    back = subscription(office, vaccinemgmt_events_pb2.CancellationCompleted)
    await back.handle([back.read(over(vaccinemgmt_events_pb2.CancellationCompleted, r)) for r in booked])
    assert (await office.events())["ApprovalReleased"] == 1  # of the one that was given up
    assert len(await office.holding()) == 13


async def test_what_a_killed_process_left_of_a_day_called_off_another_one_ends(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "REVOKED_AT_ONCE", 4)
    await office.offer(10)
    await office.decide(*(asks(i) for i in range(10)))
    await office.replicas[1].call_off("h1", DAY, "Ice.")  # and dies
    await office.replicas[0]._revoke_some("h1", DAY)  # and dies after this batch, or within the next:
    async with office.database.transaction() as blocker:
        await blocker.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        dying = asyncio.create_task(office.replicas[1].revoke())

        async def waiting() -> list[asyncpg.Record]:
            return await office.rows("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass")

        [victim] = await eventually(waiting, bool)  # everything but the outbox has been written
        await office.rows("SELECT pg_terminate_backend($1)", victim["pid"])
        with pytest.raises(StoreUnavailable):
            await dying
    assert len(await office.holding()) == 6
    assert len(await office.revoked()) == 4
    assert await office.replicas[0].revoke() == 6
    assert await office.holding() == {}
    assert len(await office.revoked()) == 10


async def test_two_replicas_revoke_at_once_while_people_book_cancel_and_move(
    office: Office, seeded: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "REVOKED_AT_ONCE", 3)
    elsewhere = DAY + timedelta(1)
    await office.offer(60, DAY, elsewhere)
    booked = [asks(i) for i in range(30)]
    await office.decide(*booked)
    seeded.shuffle(booked)
    back, moved = booked[:8], [moves(r, elsewhere) for r in booked[8:16]]

    late = [asks(f"late{i}") for i in range(10)]
    moving = [asyncio.create_task(office.decide(request, replica=i)) for i, request in enumerate(moved)]
    asking = asyncio.create_task(office.answers(*late))
    await asyncio.gather(
        office.replicas[0].call_off("h1", DAY, "Ice."),
        *(office.replicas[i % 2].release([r.reservation_id]) for i, r in enumerate(back)),
        *(office.replicas[i % 2].revoke() for i in range(4)),
    )
    answers, found = await asking, [answer for task in moving for answer in await task]
    assert set(answers) <= {None, Denial.DAY_CALLED_OFF}
    for replica in office.replicas:
        await replica.revoke()
    held, told = await office.holding(), await office.revoked()
    granted = [r for r, answer in zip(moved, found, strict=True) if isinstance(answer, Decision)]
    assert held == {r.customer_id: elsewhere for r in granted}
    assert all(isinstance(answer, Decision | NothingToMove) for answer in found)
    assert {e.appointment.reservation_id: e.replaced_by for e in told.values() if e.revocation_reason == 2} == {
        str(r.replaces): r.reservation_id for r in granted
    }
    events = await office.events()
    booked_there = 30 + sum(answer is None for answer in answers)
    assert events["ApprovalRevoked"] + events["ApprovalReleased"] == booked_there
    assert events["ApprovalGranted"] == booked_there + len(granted)


async def test_a_reopened_day_has_its_places_again_and_what_has_ended_stays_ended(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "REVOKED_AT_ONCE", 2)
    await office.offer(3)
    await office.decide(*(asks(i) for i in range(3)))
    await office.replicas[0].call_off("h1", DAY, "Ice.")
    await office.replicas[0]._revoke_some("h1", DAY)
    for _ in range(2):
        day = await office.replicas[1].reopen("h1", DAY)
        assert (day.capacity, day.approved, day.left, day.called_off) == (3, 1, 2, "")
    assert await office.replicas[0].revoke() == 0
    assert len(await office.holding()) == 1
    assert Counter(await office.answers(*(asks(f"new{i}") for i in range(4)))) == {None: 2, Denial.DAY_FULL: 2}
    await office.replicas[1].call_off("h1", DAY, "Ice again.")
    assert await office.replicas[1].revoke() == 3
    assert Counter(e.note for e in (await office.revoked()).values()) == {"Ice.": 2, "Ice again.": 3}


async def test_trouble_with_one_day_does_not_keep_the_bookings_of_another(office: Office) -> None:
    await office.offer(1, DAY, DAY + timedelta(1))
    await office.decide(asks(1), asks(2, DAY + timedelta(1)))
    for n in range(2):
        await office.replicas[0].call_off("h1", DAY + timedelta(n), "Ice.")
    await office.rows("UPDATE days SET called_off = repeat('x', 501) WHERE date = $1", DAY)  # no event may say that
    with pytest.raises(ExceptionGroup):
        await office.replicas[0].revoke()
    assert await office.holding() == {"c1": DAY}


async def test_a_day_of_nobody_can_be_called_off_and_one_that_has_passed_cannot(office: Office) -> None:
    assert (await office.replicas[0].call_off("h1", DAY, "Ice.")).approved == 0
    assert await office.answers(asks(1)) == [Denial.DAY_CALLED_OFF]
    with pytest.raises(NothingToCallOff):
        await office.replicas[0].call_off("h1", TODAY - timedelta(1), "Ice.")
    for call in (office.replicas[0].call_off("nowhere", DAY, "Ice."), office.replicas[0].reopen("nowhere", DAY)):
        with pytest.raises(UnknownHospital):
            await call


async def test_to_look_for_days_whose_bookings_are_to_end_costs_nothing_that_grows_with_what_is_past(
    office: Office,
) -> None:
    await office.rows(
        """INSERT INTO days (hospital_id, date, capacity, called_off, called_off_capacity)
           SELECT 'h1', '1800-01-01'::date + i, 0, 'Ice.', 9 FROM generate_series(1, 50000) AS i"""
    )
    await office.rows(
        """INSERT INTO decisions SELECT gen_random_uuid(), 'c' || i, 'h1', 'n', 'z', '1800-01-01'::date + i % 1000, '',
                                        now(), CASE WHEN i % 2 = 0 THEN 1 END, now()
           FROM generate_series(1, 50000) AS i WHERE i % 2 = 1"""
    )
    await office.rows("ANALYZE")
    for sql, index in ((TO_REVOKE, "days_revoking"), (HELD_BOOKINGS, "decisions_granted_of_a_day")):
        arguments = ("h1", DAY, 500) if sql is HELD_BOOKINGS else ()
        plan = "\n".join(row[0] for row in await office.rows(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", *arguments))
        assert index in plan, plan
        assert sum(map(int, re.findall(r"shared hit=(\d+)", plan.split("Planning")[0])[:1])) < 10, plan


# Moving


async def test_a_move_is_decided_once_with_its_old_place(office: Office) -> None:
    there = DAY + timedelta(1)
    await office.offer(1, DAY, there)
    old = asks("mover")
    await office.decide(old)
    move = moves(old, there)
    answers = await office.answers(*[move] * 12)
    assert answers == [None] * 12
    assert await office.holding() == {"cmover": there}
    told = await office.revoked()
    assert {key: (e.revocation_reason, e.replaced_by) for key, e in told.items()} == {
        old.reservation_id: (2, move.reservation_id)
    }
    assert await office.events() == {"ApprovalGranted": 2, "ApprovalRevoked": 1}
    [row] = await office.rows("SELECT replaces::text FROM decisions WHERE replaces IS NOT NULL")
    assert row["replaces"] == old.reservation_id
    [other] = await office.decide(replace(move, replaces=new_id()))
    assert isinstance(other, RequestIdReused)


async def test_a_refused_move_leaves_the_old_booking_as_it_was(office: Office) -> None:
    there = DAY + timedelta(1)
    await office.offer(1, DAY, there)
    old, move = asks("mover"), None
    await office.decide(old, asks("first", there))
    move = moves(old, there)
    assert await office.answers(move, move) == [Denial.DAY_FULL] * 2
    assert await office.holding() == {"cmover": DAY, "cfirst": there}
    assert (await office.events())["ApprovalRevoked"] == 0
    [refused] = await office.decide(moves(replace(old, customer_id="cthief"), there))
    assert isinstance(refused, NothingToMove)


async def test_a_move_on_a_full_day_takes_its_own_place_and_nobody_elses(office: Office) -> None:
    await office.offer(2)
    booked = [asks(i) for i in range(2)]
    await office.decide(*booked)
    answers = await office.answers(*(moves(r, DAY, "207") for r in booked), *(asks(f"new{i}") for i in range(10)))
    assert Counter(answers) == {None: 2, Denial.DAY_FULL: 10}
    assert await office.holding() == {"c0": DAY, "c1": DAY}


async def test_two_moves_of_one_booking_at_once_end_with_one_place(office: Office) -> None:
    days = [DAY + timedelta(i) for i in range(6)]
    await office.offer(5, *days)
    old = asks("mover")
    await office.decide(old)
    answers = await asyncio.gather(*(office.decide(moves(old, day), replica=i) for i, day in enumerate(days)))
    assert Counter(type(answer) for [answer] in answers) == {Decision: 1, NothingToMove: 5}
    assert len(await office.holding()) == 1


async def test_people_who_swap_days_at_once_never_hold_two_places_and_never_none(
    office: Office, seeded: random.Random
) -> None:
    days = [DAY + timedelta(i) for i in range(3)]
    await office.offer(10, *days)
    last = {f"c{i}": asks(i, seeded.choice(days)) for i in range(20)}
    await office.decide(*last.values())
    customers = set(await office.holding())
    for _ in range(4):
        wanted = [moves(last[c], seeded.choice(days)) for c in customers]
        batches = [wanted[i::4] for i in range(4)]
        found = await asyncio.gather(*(office.decide(*batch, replica=i) for i, batch in enumerate(batches)))
        for batch, answers in zip(batches, found, strict=True):
            for request, answer in zip(batch, answers, strict=True):
                if denial_of(answer) is None:
                    last[request.customer_id] = request
        assert await office.holding() == {c: last[c].date for c in customers}


async def test_a_booking_that_is_moved_twice_in_one_batch_ends_where_it_was_moved_last(office: Office) -> None:
    days = [DAY + timedelta(i) for i in range(3)]
    await office.offer(1, *days)
    first = asks("mover")
    await office.decide(first)
    second = moves(first, days[1])
    third = moves(second, days[2])
    assert [denial_of(a) for a in await office.decide(second, third)] == [None, None]
    assert await office.holding() == {"cmover": days[2]}
    assert len(await office.revoked()) == 2


# Vaccines


def stock_moved(kind: int, code: str, hospital: str = "h1") -> Event:
    message = vaccinemgmt_events_pb2.StockMoved(
        lot=lot_pb2.Lot(hospital_id=hospital, vaccine_code=code),
        kind=kind,  # type: ignore[arg-type]
        movement_id=new_id(),
    )
    return Event(new_id(), new_id(), message.DESCRIPTOR.full_name, NOW, message)


async def test_after_the_first_delivery_a_hospital_offers_what_was_delivered(office: Office) -> None:
    await office.offer(9)
    follow = subscription(office, vaccinemgmt_events_pb2.StockMoved)
    assert await office.answers(asks("early", code="999")) == [None]
    for corrected_or_written_off in (2, 6, 77):
        with pytest.raises(NothingToDo):
            follow.read(stock_moved(corrected_or_written_off, "999"))
    came = [stock_moved(1, "08"), stock_moved(7, "207"), stock_moved(1, "8"), stock_moved(1, "999", "h2")]
    with structlog.testing.capture_logs() as logs:
        for events in (came, came[::-1], came):
            await follow.handle([follow.read(event) for event in events])
    assert [entry for entry in logs if entry["event"] == "delivery_to_unknown_hospital"] == [
        {"event": "delivery_to_unknown_hospital", "hospital_id": "h2", "log_level": "warning"}
    ]
    answers = await office.answers(*(asks(i, code=code) for i, code in enumerate(["8", "08", "207", "999", ""])))
    assert answers == [None, None, None, Denial.VACCINE_NOT_OFFERED, None]
    assert {r["vaccine_code"] for r in await office.rows("SELECT vaccine_code FROM decisions")} == {
        "8",
        "207",
        "999",
        "",
    }
    assert await office.approved() == 5
    assert [s.read(came[0]) for s in Retention(Days(retention_passed_days=1), office.clock).applied_to([follow], term)]


async def test_a_hospitals_own_list_decides_what_it_offers(office: Office) -> None:
    await office.offer(9)
    await office.replicas[0].delivered([("h1", "8")])
    hospital = Hospital("h1", "Han River Clinic", "Asia/Seoul", ["207", "010", "10", "9"])
    stored, changed = await office.replicas[0].put_hospital(hospital)
    assert (stored.vaccine_codes, changed) == (("9", "10", "207"), True)
    assert not (await office.replicas[1].put_hospital(replace(hospital, vaccine_codes=["10", "9", "0207"])))[1]
    [shown] = await office.replicas[1].hospitals("", 9)
    assert shown.vaccine_codes == ("9", "10", "207")
    answers = await office.answers(*(asks(i, code=code) for i, code in enumerate(["010", "8", ""])))
    assert answers == [None, Denial.VACCINE_NOT_OFFERED, None]
    await office.replicas[0].put_hospital(replace(hospital, vaccine_codes=[]))
    assert await office.answers(asks("new", code="8")) == [None]


@asynccontextmanager
async def stubs(office: Office) -> AsyncIterator[tuple[Any, Any]]:
    """Stubs of both services, of a server with a replica."""
    server = grpc.aio.server(interceptors=[Edge(inbound.ERRORS, max_calls=9, max_streams=9)])
    inbound.register(server, office.replicas[0])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield HospitalServiceStub(channel), ApprovalServiceStub(channel)
    await server.stop(None)


def bearer(role: str, hospital: str = "h1") -> tuple[tuple[str, str], ...]:
    """The metadata of a call, as the gateway writes it."""
    claims = {"sub": "somebody", "roles": [role], "hospital": hospital, "exp": time.time() + 600}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


async def test_a_manager_calls_a_day_off_reopens_it_and_is_told_how_many_bookings_are_too_many(office: Office) -> None:
    await office.offer(3)
    await office.decide(*(asks(i) for i in range(3)))
    manager, day = bearer("manager"), {"hospital_id": "h1", "date": str(DAY)}
    days = {"hospital_id": "h1", "first_date": str(DAY), "last_date": str(DAY)}
    async with stubs(office) as (hospital, _):

        async def refused(call: Any, code: str, text: str) -> None:
            with pytest.raises(grpc.aio.AioRpcError, match=text) as error:
                await call
            assert error.value.code().name == code

        lowered = await hospital.SetDailyCapacity(pb.SetDailyCapacityRequest(**days, capacity=1), metadata=manager)
        [over] = lowered.days_over
        assert (lowered.days_changed, over.date, over.approved, over.over, over.left) == (1, str(DAY), 3, 2, 0)
        call_off = pb.CallOffDayRequest(**day, note="The boiler burst.")
        answer = await hospital.CallOffDay(call_off, metadata=manager)
        assert (answer.bookings_to_go, answer.day.called_off, answer.day.capacity) == (3, "The boiler burst.", 1)
        await office.replicas[1].revoke()
        assert (await hospital.CallOffDay(call_off, metadata=manager)).bookings_to_go == 0
        set_capacity = pb.SetDailyCapacityRequest(**days, capacity=5)
        await refused(
            hospital.SetDailyCapacity(set_capacity, metadata=manager), "FAILED_PRECONDITION", r"last_date: .*called off"
        )
        [shown] = (await hospital.ListAvailability(pb.ListAvailabilityRequest(**days), metadata=manager)).days
        assert (shown.capacity, shown.left, shown.over, shown.called_off) == (1, 0, 0, "The boiler burst.")
        reopened = await hospital.ReopenDay(pb.ReopenDayRequest(**day), metadata=manager)
        assert (reopened.day.left, reopened.day.called_off) == (1, "")
        call_off.date = "2027-02-28"
        await refused(
            hospital.CallOffDay(call_off, metadata=manager), "INVALID_ARGUMENT", r"date: .*nothing to call off"
        )
        for other in (hospital.CallOffDay, hospital.ReopenDay):
            request: Any = call_off if other is hospital.CallOffDay else pb.ReopenDayRequest(**day)
            await refused(other(request, metadata=bearer("manager", "h2")), "PERMISSION_DENIED", "hospital")
            await refused(other(request, metadata=bearer("customer")), "PERMISSION_DENIED", "customer")


async def test_the_vaccines_that_a_hospital_offers_are_told_and_moves_are_asked_for_over_grpc(office: Office) -> None:
    await office.offer(1, DAY, DAY + timedelta(1))
    async with stubs(office) as (hospital, approval):
        clinic = hospital_pb2.Hospital(hospital_id="h1", name="Clinic", vaccine_codes=["208", "08"])
        operator = bearer("operator")
        upserted = await hospital.UpsertHospital(pb.UpsertHospitalRequest(hospital=clinic), metadata=operator)
        listed = await hospital.ListHospitals(pb.ListHospitalsRequest(), metadata=operator)
        assert list(upserted.hospital.vaccine_codes) == ["8", "208"]
        assert list(listed.hospitals) == [upserted.hospital]

        def wants(day: date, code: str = "") -> approval_pb.ApproveRequest:
            return approval_pb.ApproveRequest(
                reservation_id=new_id(), customer_id="c1", hospital_id="h1", date=str(day), vaccine_code=code
            )

        refused = await approval.Approve(wants(DAY, "207"))
        assert refused.denial_reason == Denial.VACCINE_NOT_OFFERED
        old = (await approval.Approve(wants(DAY, "008"))).appointment
        assert old.vaccine_code == "8"
        move = approval_pb.MoveRequest(request=wants(DAY + timedelta(1)), instead_of=old.reservation_id)
        for _ in range(2):
            moved = await approval.Move(move)
            assert (moved.denial_reason, moved.appointment.date) == (0, str(DAY + timedelta(1)))
        move.request.reservation_id = new_id()
        with pytest.raises(grpc.aio.AioRpcError, match=r"instead_of: .*nothing to move"):
            await approval.Move(move)


async def test_a_hospital_written_once_more_changes_nothing(office: Office) -> None:
    seoul = Hospital("h2", "New", "")
    assert await office.replicas[0].put_hospital(seoul) == (Hospital("h2", "New", "Asia/Seoul"), True)
    assert await office.replicas[1].put_hospital(seoul) == (Hospital("h2", "New", "Asia/Seoul"), False)
    assert (await office.replicas[1].put_hospital(replace(seoul, name="Renamed")))[1]
    assert [h.hospital_id for h in await office.replicas[0].hospitals("", 1)] == ["h1"]
    assert [h.name for h in await office.replicas[0].hospitals("h1", 10)] == ["Renamed"]
    with pytest.raises(UnknownTimeZone):
        await office.replicas[0].put_hospital(replace(seoul, time_zone="Asia/Atlantis"))


async def test_a_hospital_keeps_its_location_until_it_is_told_another(office: Office) -> None:
    there, [one, two] = Location(37.57, 126.98), office.replicas
    known = Hospital("h2", "Clinic", "Asia/Seoul", location=there)
    assert await one.put_hospital(known) == (known, True)
    assert await two.put_hospital(known) == (known, False)
    assert await two.put_hospital(replace(known, location=None)) == (known, False)
    assert await two.put_hospital(replace(known, name="Renamed", location=None)) == (
        replace(known, name="Renamed"),
        True,
    )
    moved = replace(known, location=Location(-33.0, 0.0))
    assert await one.put_hospital(moved) == (moved, True)
    with pytest.raises(asyncpg.CheckViolationError, match="a_location_is_whole"):
        await office.rows("UPDATE hospitals SET latitude = NULL")


async def test_hospitals_are_found_by_every_word_of_a_query_whatever_its_case_and_spaces(office: Office) -> None:
    for hospital_id, name in (
        ("mapo", "서울 마포 의원 (Mapo Clinic)"),
        ("50%-a", "100% Vax_Center"),
        ("b-5", r"Back\slash"),
    ):
        await office.replicas[0].put_hospital(Hospital(hospital_id, name, ""))

    async def found(query: str) -> list[str]:
        return [h.hospital_id for h in await office.replicas[1].hospitals("", 9, query)]

    assert await found("") == ["50%-a", "b-5", "h1", "mapo"]
    assert await found("CLINIC") == ["h1", "mapo"]
    assert await found("clinic  mapo") == await found("마포의원") == await found(" 의원 서울 ") == ["mapo"]
    assert await found(unicodedata.normalize("NFD", "마포")) == ["mapo"]
    assert [await found(one) for one in ("%", "_", "\\", "0% vax", "a_b", "B-5")] == [
        ["50%-a"], ["50%-a"], ["b-5"], ["50%-a"], [], ["b-5"],
    ]  # fmt: skip
    assert [h.hospital_id for h in await office.replicas[1].hospitals("h1", 9, "clinic")] == ["mapo"]


async def test_the_nearest_hospitals_come_first_page_by_page_and_those_of_unknown_place_last(office: Office) -> None:
    places = {
        "busan": Location(35.16, 129.16), "pole": Location(90, 0), "mapo": Location(37.55, 126.91),
        "twin": Location(37.55, 126.91), "here": Location(37.57, 126.98), "antipode": Location(-37.57, -53.02),
    }  # fmt: skip
    for hospital_id, location in places.items():
        await office.replicas[0].put_hospital(Hospital(hospital_id, "Clinic", "", location=location))
    await office.replicas[0].put_hospital(Hospital("zz", "Clinic", ""))
    after, found = (-1, ""), list[tuple[int, str]]()
    while page := await office.replicas[1].hospitals_near(Location(37.57, 126.98), after, 2, "clinic"):
        found += [(metres, hospital.hospital_id) for metres, hospital in page]
        after = found[-1]
    assert [hospital_id for _, hospital_id in found] == [
        "here", "mapo", "twin", "busan", "pole", "antipode", "h1", "zz",
    ]  # fmt: skip
    kilometres = [round(metres / 1000) for metres, _ in found[:6]]
    assert kilometres == [0, 7, 7, 332, 5830, 20015]
    across = await office.replicas[0].hospitals_near(Location(90, 179), (-1, ""), 1)
    assert [(metres, hospital.hospital_id) for metres, hospital in across] == [(0, "pole")]


async def test_a_search_near_a_place_is_paged_over_grpc_and_its_tokens_are_good_for_no_other(office: Office) -> None:
    async with stubs(office) as (hospital, _):
        for hospital_id, latitude in (("h3", 37.5), ("h2", 37.6)):
            clinic = hospital_pb2.Hospital(
                hospital_id=hospital_id, name="Clinic", location=hospital_pb2.Location(latitude=latitude)
            )
            request = pb.UpsertHospitalRequest(hospital=clinic)
            upserted = await hospital.UpsertHospital(request, metadata=bearer("operator"))
            assert upserted.hospital.location.latitude == latitude

        async def listed(**request: Any) -> pb.ListHospitalsResponse:
            default: dict[str, Any] = {"page_size": 1, "query": "clinic", "near": {"latitude": 37.0}}
            answer: pb.ListHospitalsResponse = await hospital.ListHospitals(
                pb.ListHospitalsRequest(**default | request), metadata=bearer("customer")
            )
            return answer

        ids, token = list[str](), ""
        while not ids or token:
            answer = await listed(page_token=token)
            ids += [one.hospital_id for one in answer.hospitals]
            token = answer.next_page_token
        assert ids == ["h3", "h2", "h1"]
        token = (await listed()).next_page_token
        for other in ({"query": "Clinic"}, {"near": None}, {"near": {"latitude": 37.1}}):
            with pytest.raises(grpc.aio.AioRpcError, match="page_token"):
                await listed(page_token=token, **other)
        for near in ({"latitude": 90.1}, {"longitude": -181}, {"latitude": math.nan}, {"longitude": math.inf}):
            with pytest.raises(grpc.aio.AioRpcError, match=r"near\.l"):
                await listed(near=near)


DECISION = "'h1', 'Clinic', 'Asia/Seoul', '2027-03-10', '', now()"


FORBIDDEN = [
    ("UPDATE days SET approved = capacity + 1", "never_overbooked"),
    ("UPDATE days SET approved = -1", "never_overbooked"),
    ("UPDATE days SET capacity = 0", "never_overbooked"),
    ("UPDATE days SET over = -1, approved = 0", "over_is_no_less_than_nothing"),
    ("UPDATE days SET called_off = 'Ice.'", "called_off_with_words_and_capacity"),
    ("UPDATE days SET called_off = '', called_off_capacity = 1", "called_off_with_words_and_capacity"),
    ("UPDATE days SET revoking = true", "only_a_day_called_off_is_revoked"),
    ("INSERT INTO delivered_codes VALUES ('h1', '08')", "a_code_is_canonical"),
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


@pytest.mark.parametrize("over", [0, 2])
async def test_the_store_itself_refuses_a_place_on_a_full_day(office: Office, over: int) -> None:
    await office.offer(3)
    await office.decide(*(asks(i) for i in range(3)))
    await office.offer(3 - over)
    with pytest.raises(asyncpg.CheckViolationError, match="never_overbooked"):
        await office.rows(TAKE_PLACES, ["h1"], [DAY], [1])


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
    books = PostgresBooks(office.database, lambda *_: None)

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
