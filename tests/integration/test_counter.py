"""The counter on a real MongoDB: which dose goes into which arm, who has missed it, and how days end."""

import asyncio
import base64
import json
import random
import time
import uuid
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from pymongo import WriteConcern

from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import Edge
from services.chassis.errors import OtherScope
from services.chassis.mongo import Mongo
from services.chassis.retention import Retention
from services.chassis.unit_of_work import StoreUnavailable, repeated_after_lost_race
from services.vaccinemgmt.adapters import accesses as accesses_store
from services.vaccinemgmt.adapters import counter as door
from services.vaccinemgmt.adapters import grpc as main_door
from services.vaccinemgmt.adapters.mongo import MongoStock, rules
from services.vaccinemgmt.application import Accesses, Counter, Stockroom, Vaccines, counter
from services.vaccinemgmt.domain import (
    AlreadyAdministered,
    Appointment,
    Balance,
    Delivery,
    Lot,
    LotEmpty,
    LotId,
    LotNotValid,
    LotOtherVaccine,
    LotWithdrawn,
    Movement,
    MovementKind,
    NoDose,
    ReservationId,
    Status,
    UnknownLot,
    UnknownStatus,
    UnknownVaccination,
    Vaccination,
    VaccinationCancelled,
    VaccinationEnded,
    VaccineError,
    WrongDay,
    latest_day,
)
from vaccination.vaccinemgmt.v1 import counter_service_pb2 as pb
from vaccination.vaccinemgmt.v1 import counter_service_pb2_grpc, vaccinemgmt_events_pb2, vaccinemgmt_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as main_pb

from .conftest import Days, OpenMongo

NOON = datetime(2027, 3, 10, 3, tzinfo=UTC)  # in Seoul
TODAY = date(2027, 3, 10)
DAY = timedelta(1)
MIDNIGHT = datetime(2027, 3, 10, 15, tzinfo=UTC)  # when the day is over in Seoul
GRACE = timedelta(hours=12)
MIGRATED = datetime(2027, 2, 1, 3, tzinfo=UTC)
DELIVERY = Delivery("L1", "207", "MOD", date(2027, 1, 1), date(2027, 6, 30), 3)
H1 = "h1"


def anybody(_: str) -> None:
    """Allows a caller to act for every hospital."""


@dataclass
class Clock:
    """Stands still until it is told."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Hospital:
    """Two replicas of vaccine management on one database."""

    mongos: Sequence[Mongo]
    clock: Clock
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.stocks = [MongoStock(m, lambda: None) for m in self.mongos]
        self.replicas = [Vaccines(s, self.clock, self.woken) for s in self.stocks]
        self.desks = [Counter(s, self.clock, self.woken, GRACE) for s in self.stocks]
        self.vaccines, self.desk = self.replicas[0], self.desks[0]
        self.stockroom = Stockroom(self.stocks[0], self.clock, self.woken)

    @property
    def database(self) -> Any:
        return self.mongos[0].database

    async def lot(self, number: str = "L1", quantity: int = 3, hospital_id: str = H1, **changes: Any) -> LotId:
        arrived = replace(DELIVERY, lot_number=number, quantity=quantity, **changes)
        [lot], _, _ = await self.stockroom.register(hospital_id, [arrived], "manager")
        return lot.lot_id

    async def book(self, *appointments: Appointment) -> None:
        await self.vaccines.admit(appointments)

    async def administer(self, who: Appointment, scanned: LotId | None = None, replica: int = 0) -> Vaccination:
        return await self.desks[replica].administer(who.reservation_id, scanned, "nurse", anybody)

    async def get(self, who: Appointment) -> Vaccination:
        return await self.vaccines.vaccination(who.reservation_id, anybody)

    async def status(self, *people: Appointment) -> list[Status]:
        return [(await self.get(one)).status for one in people]

    async def lot_of(self, who: Appointment) -> str | None:
        dose = (await self.get(who)).dose
        return dose.lot_number if dose else None

    async def lots(self, hospital_id: str = H1) -> dict[str, tuple[int, int, int]]:
        """Free, reserved and administered doses by lot number."""
        found = await self.stockroom.lots(hospital_id, None, 100)
        return {x.lot_number: (x.balance.free, x.balance.reserved, x.balance.administered) for x in found}

    async def told(self, who: Appointment) -> list[str]:
        """The events about a reservation, in order."""
        rows = self.database["outbox"].find({"key": who.reservation_id}).sort("_id")
        found = [(row["subject"].split(".")[-1], row["payload"]) async for row in rows]
        return [name for name, payload in sorted(found, key=lambda one: _version(*one))]

    async def check_books(self) -> None:
        """Every lot's numbers are the sums of its movements, and are what vaccinations hold."""
        held = Tally[tuple[str, int]]()
        async for row in self.database["vaccinations"].find():
            assert (row["dose"] is not None) == (row["status"] in (2, 4)), row
            assert row["quantity"] == (row["dose"] is not None)
            if row["dose"]:
                held[row["dose"]["lot_id"], row["status"]] += 1
        async for row in self.database["lots"].find():
            movements = [m async for m in self.database["movements"].find({"lot_id": row["_id"]})]
            for m in movements:
                if MovementKind(m["kind"]) in (MovementKind.RESERVED, MovementKind.RETURNED, MovementKind.ADMINISTERED):
                    assert len(m["reservation_ids"]) == m["quantity"]
            balance = Balance.of(
                Movement(MovementKind(m["kind"]), m["lot_id"], m["quantity"], m["at"], reserved=m["reserved"])
                for m in movements
            )
            assert row["entered"] == {
                "received": row["received"],
                "free": row["free"],
                "reserved": held[row["_id"], 2],
                "administered": held[row["_id"], 4],
                "written_off": row["written_off"],
            }
            assert Balance(**row["entered"]) == balance
            assert row["received"] == row["free"] + row["used"]
            assert row["used"] == balance.reserved + balance.administered + balance.written_off


def _version(name: str, payload: bytes) -> int:
    message = getattr(vaccinemgmt_events_pb2, name).FromString(payload)
    return int(message.version)


def booking(
    n: int = 0, day: date = TODAY, code: str = "", hospital_id: str = H1, time_zone: str = "Asia/Seoul"
) -> Appointment:
    """Customer n's; who has a lower number came earlier."""
    at = NOON - 30 * DAY + timedelta(seconds=n)
    reservation_id = ReservationId(str(uuid.uuid4()))
    return Appointment(reservation_id, f"c{n}", hospital_id, "Han River Clinic", time_zone, day, code, at)


async def recorded(mongo: Mongo, seen: datetime) -> None:
    """What became of doses is recorded since MIGRATED, and the last time that somebody said so was `seen`."""
    about = {"_id": "doses", "since": MIGRATED, "seen": seen}
    await mongo.database["recording"].replace_one({"_id": "doses"}, about, upsert=True)


@pytest.fixture
async def hospital(open_mongo: OpenMongo) -> Hospital:
    mongos = [await open_mongo() for _ in range(2)]
    await recorded(mongos[0], seen=datetime.now(UTC))
    return Hospital(mongos, Clock())


# Check-in


async def test_a_customer_who_arrives_is_checked_in_once(hospital: Hospital) -> None:
    await hospital.lot()
    await hospital.book(a := booking())
    first = await hospital.desk.check_in(a.reservation_id, anybody)
    assert (first.checked_in_at, first.status) == (NOON, Status.COMPLETED)
    hospital.clock.now += timedelta(minutes=5)
    again = await hospital.desks[1].check_in(a.reservation_id, anybody)
    assert (again.checked_in_at, again.version) == (NOON, first.version)
    assert await hospital.told(a) == ["ReservationCompleted", "VaccinationCheckedIn"]


async def test_who_waits_for_a_dose_can_be_checked_in_too(hospital: Hospital) -> None:
    await hospital.book(a := booking())
    assert (await hospital.desk.check_in(a.reservation_id, anybody)).status is Status.WAITING
    await hospital.lot()
    await hospital.vaccines.serve_waiting()
    assert (await hospital.get(a)).checked_in_at == NOON


# Administration


async def test_the_dose_that_is_set_aside_is_given(hospital: Hospital) -> None:
    await hospital.lot()
    await hospital.book(a := booking())
    given = await hospital.administer(a)
    assert (given.status, given.administered_at, given.checked_in_at) == (Status.ADMINISTERED, NOON, NOON)
    assert await hospital.lots() == {"L1": (2, 0, 1)}
    assert await hospital.told(a) == ["ReservationCompleted", "VaccinationAdministered"]
    [movement] = [m async for m in hospital.database["movements"].find({"kind": MovementKind.ADMINISTERED.value})]
    assert (movement["by"], movement["reservation_ids"]) == ("nurse", [a.reservation_id])
    await hospital.check_books()


async def test_a_repeat_changes_nothing_whether_the_lot_is_named_or_not(hospital: Hospital) -> None:
    lot_id = await hospital.lot()
    await hospital.book(a := booking())
    first = await hospital.administer(a)
    hospital.clock.now += 3 * DAY  # also when the answer was lost for long
    for scanned in (None, lot_id):
        again = await hospital.administer(a, scanned, replica=1)
        assert (again.version, again.administered_at) == (first.version, NOON)
    assert await hospital.told(a) == ["ReservationCompleted", "VaccinationAdministered"]
    await hospital.check_books()


async def test_a_dose_that_was_given_of_one_lot_was_not_given_of_another(hospital: Hospital) -> None:
    await hospital.lot()
    other = await hospital.lot("L2", expiry_date=date(2027, 9, 1))
    await hospital.book(a := booking())
    await hospital.administer(a)
    with pytest.raises(AlreadyAdministered, match="of lot L1"):
        await hospital.administer(a, other)
    await hospital.check_books()


async def test_a_dose_of_another_lot_that_is_scanned_is_given_and_the_one_set_aside_goes_to_who_waits(
    hospital: Hospital,
) -> None:
    await hospital.lot("soon", 1)
    await hospital.book(first := booking(1), second := booking(2, code="207"))
    scanned = await hospital.lot("scanned", 1, vaccine_code="208")
    assert await hospital.lot_of(first) == "soon"
    await hospital.administer(first, scanned)
    await asyncio.wait_for(hospital.vaccines.freed(), 1)
    await hospital.vaccines.serve_waiting()
    assert (await hospital.lot_of(first), await hospital.lot_of(second)) == ("scanned", "soon")
    await hospital.check_books()


async def test_who_waits_can_be_given_a_dose_of_a_lot_that_is_scanned(hospital: Hospital) -> None:
    await hospital.book(a := booking())
    lot_id = await hospital.lot()
    assert (await hospital.administer(a, lot_id)).status is Status.ADMINISTERED
    assert await hospital.vaccines.serve_waiting() == 0
    await hospital.check_books()


async def test_when_all_doses_are_set_aside_the_booking_that_came_last_gets_the_dose_of_the_one_at_the_counter(
    hospital: Hospital,
) -> None:
    await hospital.lot("soon", 1)
    await hospital.book(here := booking(1))
    scanned = await hospital.lot("scanned", 2, expiry_date=date(2027, 9, 1))
    await hospital.book(early := booking(2, TODAY + DAY), late := booking(3, TODAY + DAY))
    await hospital.administer(here, scanned)
    assert [await hospital.lot_of(x) for x in (here, early, late)] == ["scanned", "scanned", "soon"]
    assert await hospital.status(here, early, late) == [Status.ADMINISTERED, Status.COMPLETED, Status.COMPLETED]
    assert await hospital.told(late) == ["ReservationCompleted", "ReservationCompleted"]
    assert await hospital.lots() == {"soon": (0, 1, 0), "scanned": (0, 1, 1)}
    await hospital.check_books()


async def test_whom_no_other_dose_suits_waits_with_the_old_place_and_is_told_why(hospital: Hospital) -> None:
    await hospital.book(here := booking(9))
    scanned = await hospital.lot("scanned", 1)
    await hospital.book(late := booking(3, TODAY + DAY))  # takes the dose before the waiting list is served
    await hospital.vaccines.cancel([here])
    await hospital.book(here := booking(10))
    assert await hospital.lot_of(late) == "scanned"
    await hospital.administer(here, scanned)
    waits = await hospital.get(late)
    assert (waits.status, waits.place_in_queue) == (Status.WAITING, (late.decide_time, late.reservation_id))
    [row] = [r async for r in hospital.database["outbox"].find({"subject": {"$regex": "ReservationWaiting$"}})
             if r["key"] == late.reservation_id]  # fmt: skip
    event = vaccinemgmt_events_pb2.ReservationWaiting.FromString(row["payload"])
    assert event.dose_change_reason == 6  # GIVEN_TO_ANOTHER
    await hospital.check_books()


async def test_nobody_who_has_arrived_loses_a_dose_and_then_the_lot_is_empty(hospital: Hospital) -> None:
    scanned = await hospital.lot("scanned", 2)
    await hospital.book(one := booking(1), two := booking(2), here := booking(3))
    for arrived in (one, two):
        await hospital.desk.check_in(arrived.reservation_id, anybody)
    with pytest.raises(LotEmpty, match="scanned"):
        await hospital.administer(here, scanned)
    assert await hospital.status(one, two, here) == [Status.COMPLETED, Status.COMPLETED, Status.WAITING]
    await hospital.check_books()


async def test_who_did_not_come_yesterday_loses_the_dose_before_anybody_who_still_may_come(hospital: Hospital) -> None:
    hospital.clock.now = NOON - DAY
    scanned = await hospital.lot("scanned", 2)
    await hospital.book(missed := booking(1, TODAY - DAY), comes := booking(2, TODAY + DAY), here := booking(3))
    hospital.clock.now = NOON - timedelta(hours=3)  # the grace is not over
    assert await hospital.desk.end_days() == {}
    await hospital.administer(here, scanned)
    assert await hospital.status(missed, comes, here) == [Status.MISSED, Status.COMPLETED, Status.ADMINISTERED]
    await hospital.check_books()


async def test_a_dose_for_a_day_of_which_nothing_was_recorded_is_not_taken_since_it_may_be_in_an_arm(
    hospital: Hospital,
) -> None:
    hospital.clock.now = MIGRATED - 2 * DAY
    scanned = await hospital.lot("scanned", 1)
    await hospital.book(old := booking(1, MIGRATED.date() - DAY), here := booking(3))
    hospital.clock.now = NOON
    with pytest.raises(LotEmpty):
        await hospital.administer(here, scanned)
    assert await hospital.status(old, here) == [Status.COMPLETED, Status.WAITING]


async def test_a_dose_of_a_lot_that_nobody_may_use_any_more_is_not_given(hospital: Hospital) -> None:
    lot_id = await hospital.lot()
    await hospital.book(a := booking(1), b := booking(2))
    await withdraw(hospital, lot_id)
    for scanned in (None, lot_id):
        with pytest.raises(LotWithdrawn):
            await hospital.administer(a, scanned)
    other = await hospital.lot("L2")
    await hospital.administer(b, other)
    lots = await hospital.stockroom.lots(H1, None, 10)
    assert [(x.balance.written_off, x.balance.free) for x in lots if x.lot_number == "L1"] == [(2, 0)]
    await hospital.check_books()


async def withdraw(hospital: Hospital, lot_id: LotId) -> None:
    async with hospital.stocks[0].unit_of_work() as work:
        lot = (await work.lots([lot_id]))[lot_id]
        lot.withdraw("recalled", hospital.clock(), "authority")
        await work.save([], [lot])


@dataclass
class Case:
    """What is asked, in which state, and what it is refused with."""

    name: str
    ask: Callable[[Hospital, Appointment], Awaitable[object]]
    refusal: type[Exception]
    prepare: Callable[[Hospital, Appointment], Awaitable[object]] | None = None
    day: date = TODAY


async def cancelled(hospital: Hospital, who: Appointment) -> None:
    await hospital.vaccines.cancel([who])


async def given(hospital: Hospital, who: Appointment) -> None:
    await hospital.administer(who)


async def no_dose(hospital: Hospital, who: Appointment) -> None:
    await hospital.desk.mark_missed(who.reservation_id, "manager", anybody)


async def unserved(hospital: Hospital, who: Appointment) -> None:
    await hospital.database["vaccinations"].update_one(
        {"_id": who.reservation_id}, {"$set": {"status": 6, "dose": None, "quantity": 0}}
    )


async def newer(hospital: Hospital, who: Appointment) -> None:
    change = {"$set": {"status": 99, "dose": None, "quantity": 0}}
    await hospital.database["vaccinations"].update_one({"_id": who.reservation_id}, change)


async def check_in(hospital: Hospital, who: Appointment) -> object:
    return await hospital.desk.check_in(who.reservation_id, anybody)


async def give(hospital: Hospital, who: Appointment) -> object:
    return await hospital.administer(who)


async def miss(hospital: Hospital, who: Appointment) -> object:
    return await hospital.desk.mark_missed(who.reservation_id, "manager", anybody)


def giving(number: str = "other", hospital_id: str = H1, **changes: Any) -> Callable[..., Awaitable[object]]:
    async def ask(hospital: Hospital, who: Appointment) -> object:
        return await hospital.administer(who, await hospital.lot(number, hospital_id=hospital_id, **changes))

    return ask


async def giving_of_no_lot(hospital: Hospital, who: Appointment) -> object:
    return await hospital.administer(who, Lot.id_of(H1, "1", "X", "none"))


CASES = [
    Case("check-in on the day before", check_in, WrongDay, day=TODAY + DAY),
    Case("check-in on the day after", check_in, WrongDay, day=TODAY - DAY),
    Case("check-in after a cancellation", check_in, VaccinationCancelled, cancelled),
    Case("check-in of who was missed", check_in, VaccinationEnded, no_dose),
    Case("check-in of who was unserved", check_in, VaccinationEnded, unserved),
    Case("check-in in a newer status", check_in, UnknownStatus, newer),
    Case("a dose on the day before", give, WrongDay, day=TODAY + DAY),
    Case("a dose on the day after", giving(), WrongDay, day=TODAY - DAY),
    Case("a dose after a cancellation", give, VaccinationCancelled, cancelled),
    Case("a dose that is not set aside", give, NoDose, no_dose),
    Case("a dose for who was unserved", giving(), VaccinationEnded, unserved),
    Case("a dose in a newer status", give, UnknownStatus, newer),
    Case("a dose of no lot", giving_of_no_lot, UnknownLot),
    Case("a dose of another hospital's lot", giving(hospital_id="h2"), UnknownLot),
    Case("a dose of an expired lot", giving(expiry_date=TODAY - DAY), LotNotValid),
    Case("a dose of a future lot", giving(production_date=TODAY + DAY), LotNotValid),
    Case("a dose of another vaccine", giving(vaccine_code="208"), LotOtherVaccine),
    Case("a second dose", giving(), AlreadyAdministered, given),
    Case("a miss on the day before", miss, WrongDay, day=TODAY + DAY),
    Case("a miss after a cancellation", miss, VaccinationCancelled, cancelled),
    Case("a miss of who was unserved", miss, VaccinationEnded, unserved),
    Case("a miss after the dose", miss, AlreadyAdministered, given),
    Case("a miss in a newer status", miss, UnknownStatus, newer),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_the_rules_of_the_counter_do_not_allow_is_refused_and_changes_nothing(
    hospital: Hospital, case: Case
) -> None:
    await hospital.lot()
    hospital.clock.now = NOON - 3 * DAY
    await hospital.book(a := booking(1, case.day, "207"))
    hospital.clock.now = NOON
    if case.prepare:
        await case.prepare(hospital, a)
    before = await hospital.database["vaccinations"].find_one({}), await hospital.lots()
    told = await hospital.database["outbox"].count_documents({"key": a.reservation_id})
    with pytest.raises(case.refusal):
        await case.ask(hospital, a)
    after = await hospital.lots()
    after.pop("other", None)
    assert (await hospital.database["vaccinations"].find_one({}), after) == before
    assert await hospital.database["outbox"].count_documents({"key": a.reservation_id}) == told


async def test_a_stranger_is_refused_and_so_is_the_staff_of_another_hospital(hospital: Hospital) -> None:
    def not_mine(hospital_id: str) -> None:
        raise OtherScope("hospital", hospital_id)

    await hospital.lot()
    await hospital.book(a := booking())
    desk, nobody = hospital.desk, ReservationId(str(uuid.uuid4()))
    for may, who, refusal in ((anybody, nobody, UnknownVaccination), (not_mine, a.reservation_id, OtherScope)):
        for ask in (
            desk.check_in(who, may),
            desk.administer(who, None, "x", may),
            desk.mark_missed(who, "manager", may),
        ):
            with pytest.raises(refusal):
                await ask
    assert await hospital.status(a) == [Status.COMPLETED]


# Who does not come


async def test_who_is_missed_gives_the_dose_back_and_can_be_given_one_when_coming_later_the_same_day(
    hospital: Hospital,
) -> None:
    await hospital.lot("L1", 1)
    await hospital.book(late := booking(1), waits := booking(2))
    for replica in (0, 1):  # a repeat changes nothing
        missed = await hospital.desks[replica].mark_missed(late.reservation_id, "manager", anybody)
        assert (missed.status, missed.dose, missed.version) == (Status.MISSED, None, 2)
    await hospital.vaccines.serve_waiting()
    assert await hospital.status(late, waits) == [Status.MISSED, Status.COMPLETED]
    lot_id = await hospital.lot("L2", 1)
    with pytest.raises(NoDose):
        await hospital.administer(late)
    await hospital.administer(late, lot_id)
    assert await hospital.told(late) == ["ReservationCompleted", "VaccinationMissed", "VaccinationAdministered"]
    await hospital.check_books()


async def test_a_cancellation_after_the_dose_or_the_miss_changes_nothing(hospital: Hospital) -> None:
    await hospital.lot()
    await hospital.book(a := booking(1), b := booking(2))
    await hospital.administer(a)
    await hospital.desk.mark_missed(b.reservation_id, "manager", anybody)
    before = [await hospital.get(a), await hospital.get(b)], await hospital.lots()
    await hospital.vaccines.cancel([a, b])
    assert ([await hospital.get(a), await hospital.get(b)], await hospital.lots()) == before
    assert "CancellationCompleted" not in [*await hospital.told(a), *await hospital.told(b)]
    await hospital.check_books()


async def test_a_manager_assigns_no_dose_to_a_day_that_is_over(hospital: Hospital) -> None:
    await hospital.book(a := booking(1))
    lot_id = await hospital.lot()
    hospital.clock.now = MIDNIGHT
    with pytest.raises(VaccinationEnded, match="is over"):
        await hospital.vaccines.assign(a.reservation_id, lot_id, "manager", anybody)
    assert await hospital.lots() == {"L1": (3, 0, 0)}


# Days end


async def test_who_waits_when_the_day_is_over_is_unserved_and_who_has_a_dose_has_missed_it_after_the_grace(
    hospital: Hospital,
) -> None:
    await hospital.lot("L1", 1)
    await hospital.book(has := booking(1), waits := booking(2), tomorrow := booking(3, TODAY + DAY))
    moment = timedelta(milliseconds=1)
    for now, statuses in (
        (MIDNIGHT - moment, [Status.COMPLETED, Status.WAITING, Status.WAITING]),
        (MIDNIGHT, [Status.COMPLETED, Status.UNSERVED, Status.WAITING]),
        (MIDNIGHT + GRACE - moment, [Status.COMPLETED, Status.UNSERVED, Status.WAITING]),
        (MIDNIGHT + GRACE, [Status.MISSED, Status.UNSERVED, Status.WAITING]),
    ):
        hospital.clock.now = now
        await hospital.desk.end_days()
        assert await hospital.status(has, waits, tomorrow) == statuses, now
    assert await hospital.desk.end_days() == {}
    await hospital.vaccines.serve_waiting()
    assert await hospital.status(tomorrow) == [Status.COMPLETED]
    assert await hospital.told(has) == ["ReservationCompleted", "VaccinationMissed"]
    assert await hospital.told(waits) == ["ReservationWaiting", "VaccinationUnserved"]
    await hospital.check_books()


async def test_a_day_is_over_when_it_is_at_the_hospital(hospital: Hospital) -> None:
    zones = ["Pacific/Kiritimati", "Asia/Seoul", "UTC", "Pacific/Pago_Pago"]
    people = [booking(i, hospital_id=f"h{i}", time_zone=zone) for i, zone in enumerate(zones)]
    await hospital.book(*people)
    for passed, hours in enumerate((-14, -9, 0, 11)):
        hospital.clock.now = datetime(2027, 3, 11, tzinfo=UTC) + timedelta(hours=hours, minutes=-1)
        await hospital.desk.end_days()
        assert (await hospital.status(*people)).count(Status.UNSERVED) == passed
        hospital.clock.now += timedelta(minutes=1)
        assert await hospital.desk.end_days() == {Status.UNSERVED: 1}


async def test_doses_for_days_before_anything_was_recorded_stay_as_they_are_and_waiting_ends(
    hospital: Hospital,
) -> None:
    await hospital.lot("L1", 2)
    hospital.clock.now = MIGRATED - 10 * DAY
    before, first = booking(1, MIGRATED.date() - DAY), booking(2, MIGRATED.date())
    waits = booking(3, MIGRATED.date() - DAY)
    await hospital.book(before, first, waits)
    assert await hospital.vaccines.erase("c1") is None
    hospital.clock.now = NOON
    assert await hospital.desk.end_days() == {Status.MISSED: 1, Status.UNSERVED: 1}
    assert await hospital.status(before, first, waits) == [Status.COMPLETED, Status.MISSED, Status.UNSERVED]
    assert await hospital.vaccines.erase("c1") == 1  # nothing becomes of it any more
    await hospital.check_books()


async def test_after_a_silence_of_a_day_doses_of_these_days_stay_as_they_are_since_they_may_be_in_an_arm(
    hospital: Hospital,
) -> None:
    stock = hospital.stocks[0]
    assert await stock.recorded_since() == latest_day(MIGRATED)
    for silence, since in ((timedelta(hours=23), MIGRATED), (timedelta(hours=25), datetime.now(UTC))):
        await recorded(hospital.mongos[0], seen=datetime.now(UTC) - silence)
        anew = MongoStock(hospital.mongos[0], lambda: None)  # a replica that starts
        assert abs(await anew.recorded_since() - latest_day(since)) <= DAY
    assert await stock.recorded_since() == latest_day(MIGRATED)  # asked again within a minute


async def test_who_was_checked_in_has_ten_days_until_it_counts_as_missed(hospital: Hospital) -> None:
    await hospital.lot("L1", 2)
    await hospital.book(came := booking(1), did_not := booking(2))
    await hospital.desk.check_in(came.reservation_id, anybody)
    for now, status in ((MIDNIGHT + GRACE, Status.COMPLETED), (MIDNIGHT + 10 * DAY, Status.MISSED)):
        hospital.clock.now = now
        await hospital.desk.end_days()
        assert await hospital.status(came, did_not) == [status, Status.MISSED]
    await hospital.check_books()


async def test_days_end_in_batches_oldest_first_and_two_replicas_at_once_end_each_booking_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "END", 7)
    await hospital.lot("L1", 30)
    hospital.clock.now = NOON - 5 * DAY
    people = [booking(i, TODAY - (i % 4) * DAY) for i in range(60)]
    await hospital.book(*people)
    hospital.clock.now = MIDNIGHT + GRACE
    ended = await asyncio.gather(*(desk.end_days() for desk in hospital.desks))
    assert sum(ended, Tally()) >= Tally({Status.MISSED: 30, Status.UNSERVED: 30})
    assert Tally(await hospital.status(*people)) == {Status.MISSED: 30, Status.UNSERVED: 30}
    told = Tally([row["subject"].split(".")[-1] async for row in hospital.database["outbox"].find()])
    assert (told["VaccinationMissed"], told["VaccinationUnserved"]) == (30, 30)
    assert await hospital.lots() == {"L1": (30, 0, 0)}
    await hospital.check_books()


async def test_a_day_that_cannot_be_ended_keeps_no_other_day_waiting(hospital: Hospital) -> None:
    await hospital.lot("L1", 1)
    hospital.clock.now = NOON - 2 * DAY
    broken, dose, waits = booking(2, TODAY - DAY), booking(1), booking(3)
    await hospital.book(dose, broken, waits)
    unknown = {"$set": {"time_zone": "Mars/Olympus"}}  # known to the version that stored it
    await hospital.database["vaccinations"].update_one({"_id": broken.reservation_id}, unknown)
    hospital.clock.now = MIDNIGHT + GRACE
    with pytest.raises(ExceptionGroup, match="could not be ended"):
        await hospital.desk.end_days()
    assert await hospital.status(dose, broken, waits) == [Status.MISSED, Status.WAITING, Status.UNSERVED]


# Races


async def test_of_a_dose_a_cancellation_and_a_miss_at_once_one_wins_and_the_books_add_up(
    hospital: Hospital, seeded: random.Random
) -> None:
    await hospital.lot("L1", 40)
    people = [booking(i) for i in range(40)]
    await hospital.book(*people)

    async def attempt(ask: Callable[[], Awaitable[object]]) -> None:
        while True:  # as a client does: seventy transactions at one lot lose many races on a slow machine
            try:
                await ask()
                return
            except StoreUnavailable:
                continue
            except (VaccineError, UnknownLot):
                return

    works: list[Awaitable[None]] = []
    for i in range(0, 40, 4):
        some = people[i : i + 4]
        asks: list[Callable[[], Awaitable[object]]] = [
            *(partial(hospital.administer, x, replica=i % 2) for x in some),
            *(partial(hospital.desks[1].mark_missed, x.reservation_id, "manager", anybody) for x in some[1:3]),
            partial(hospital.replicas[1].cancel, some),
            *(partial(hospital.desk.check_in, x.reservation_id, anybody) for x in some[2:]),
        ]
        works += map(attempt, asks)
    seeded.shuffle(works)
    await asyncio.gather(*works)
    for who in people:
        told = await hospital.told(who)
        ends = [name for name in told if name not in ("ReservationCompleted", "VaccinationCheckedIn")]
        assert ends in (
            ["VaccinationAdministered"],
            ["CancellationCompleted"],
            ["VaccinationMissed"],
            ["VaccinationMissed", "VaccinationAdministered"],
        ), told
    await hospital.check_books()


async def test_a_dose_that_a_recall_takes_away_at_once_is_given_or_lost_but_never_both(hospital: Hospital) -> None:
    lot_id = await hospital.lot("L1", 12)
    people = [booking(i) for i in range(12)]
    await hospital.book(*people)
    outcomes: list[type[Exception] | None] = []

    async def attempt(who: Appointment, replica: int) -> None:
        try:
            await hospital.administer(who, replica=replica)
            outcomes.append(None)
        except (LotWithdrawn, NoDose) as refusal:
            outcomes.append(type(refusal))

    async def recall() -> None:
        await repeated_after_lost_race(withdraw)(hospital, lot_id)

    await asyncio.gather(*(attempt(x, i % 2) for i, x in enumerate(people[:6])), recall())
    await asyncio.gather(*(attempt(x, i % 2) for i, x in enumerate(people[6:])))
    assert outcomes[6:] == [LotWithdrawn] * 6
    given = outcomes[:6].count(None)
    assert await hospital.lots() == {"L1": (0, 12 - given, given)}
    await hospital.check_books()


async def test_two_counters_that_scan_the_same_full_lot_take_two_different_doses(hospital: Hospital) -> None:
    await hospital.lot("soon", 2)
    await hospital.book(here := booking(1), there := booking(2))
    scanned = await hospital.lot("scanned", 3, expiry_date=date(2027, 9, 1))
    later = [booking(3 + i, TODAY + DAY) for i in range(3)]
    await hospital.book(*later)
    await asyncio.gather(hospital.administer(here, scanned), hospital.administer(there, scanned, replica=1))
    assert [await hospital.lot_of(x) for x in later] == ["scanned", "soon", "soon"]
    assert await hospital.lots() == {"soon": (0, 2, 0), "scanned": (0, 1, 2)}
    await hospital.check_books()


async def test_every_order_and_repetition_of_what_can_happen_ends_in_a_legal_state_with_books_that_add_up(
    hospital: Hospital, seeded: random.Random
) -> None:
    """Each booking has its own order, and all bookings share two lots; the last step is the end of the day."""
    lots = [await hospital.lot("L1", 25), await hospital.lot("L2", 25, expiry_date=date(2027, 9, 1))]
    steps = ["admit", "admit", "cancel", "check_in", "give", "give", "other", "miss"]
    people = {booking(i): seeded.sample(steps, len(steps)) for i in range(60)}

    async def act(who: Appointment, step: str, replica: int) -> None:
        desk, vaccines = hospital.desks[replica], hospital.replicas[replica]
        try:
            match step:
                case "admit":
                    await vaccines.admit([who])
                case "cancel":
                    if seeded.random() < 0.5:
                        await vaccines.cancel([who])
                case "check_in":
                    await desk.check_in(who.reservation_id, anybody)
                case "give":
                    await desk.administer(who.reservation_id, None, "nurse", anybody)
                case "other":
                    await desk.administer(who.reservation_id, seeded.choice(lots), "nurse", anybody)
                case "miss":
                    await desk.mark_missed(who.reservation_id, "manager", anybody)
        except VaccineError:
            pass  # refused: nothing has changed

    for step in range(len(steps)):
        await asyncio.gather(*(act(who, order[step], i % 2) for i, (who, order) in enumerate(people.items())))
        await hospital.check_books()
        if step % 3 == 2:
            await hospital.vaccines.serve_waiting()
    hospital.clock.now = MIDNIGHT + 10 * DAY
    await hospital.desk.end_days()
    for who in people:
        told = await hospital.told(who)
        assert (await hospital.get(who)).version == len(told)
        assert (await hospital.get(who)).status not in (Status.WAITING, Status.COMPLETED)
        assert sum(told.count(end) for end in ("CancellationCompleted", "VaccinationUnserved")) <= 1
        assert told.count("VaccinationAdministered") <= 1
        if "VaccinationAdministered" in told:
            assert told[-1] == "VaccinationAdministered"
    assert all(reserved == 0 for _, reserved, _ in (await hospital.lots()).values())
    await hospital.check_books()


# Over gRPC: who sees what, and the record of it


def token(role: str = "manager", subject: str = "m1", hospital_id: str = H1) -> tuple[tuple[str, str], ...]:
    claims = {"sub": subject, "roles": [role], "hospital": hospital_id, "exp": time.time() + 1000}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


@asynccontextmanager
async def served(hospital: Hospital) -> AsyncIterator[tuple[Any, Any]]:
    """Stubs of the counter and of vaccine management."""
    record = Accesses(accesses_store.MongoAccesses(hospital.mongos[0]), hospital.clock)
    server = grpc.aio.server(interceptors=[Edge(main_door.ERRORS, max_calls=100, max_streams=100)])
    door.register(server, hospital.desk, record)
    main_door.register(server, hospital.vaccines, hospital.stockroom, record)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield (
            counter_service_pb2_grpc.CounterServiceStub(channel),
            vaccinemgmt_service_pb2_grpc.VaccinemgmtServiceStub(channel),
        )
    await server.stop(None)


async def test_a_day_is_listed_by_status_page_by_page_and_each_page_is_recorded(hospital: Hospital) -> None:
    await hospital.lot("L1", 4)
    people = [booking(i) for i in range(7)]
    await hospital.book(*people, booking(8, TODAY + DAY), booking(9, hospital_id="h2"))
    await hospital.administer(people[0])
    await hospital.vaccines.cancel(people[1:2])
    async with served(hospital) as (stub, _):
        seen: list[Any] = []
        request = pb.ListDayRequest(hospital_id=H1, date=str(TODAY), page_size=3)
        while True:
            page = await stub.ListDay(request, metadata=token())
            seen += page.vaccinations
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert [v.status for v in seen] == [1, 1, 1, 2, 2, 3, 4]
        assert seen == sorted(seen, key=lambda v: (v.status, v.reservation_id))
        assert {v.reservation_id for v in seen} == {a.reservation_id for a in people}
        assert seen[-1].administer_time.ToDatetime(UTC) == NOON
        found = (await stub.ListAccesses(pb.ListAccessesRequest(hospital_id=H1), metadata=token("operator"))).accesses
    assert [(x.by, x.role, x.call, x.about) for x in found] == [("m1", "manager", "ListDay", str(TODAY))] * 3


async def test_a_customers_bookings_are_found_at_the_hospital_latest_day_first(hospital: Hospital) -> None:
    mine = [replace(booking(i, TODAY + i * DAY), customer_id="me") for i in range(3)]
    await hospital.book(*mine, replace(booking(5, hospital_id="h2"), customer_id="me"), booking(6))
    async with served(hospital) as (stub, _):
        ask = pb.FindBookingsRequest(hospital_id=H1, customer_id="me")
        answer = await stub.FindBookings(ask, metadata=token())
        assert [v.date for v in answer.vaccinations] == [str(TODAY + i * DAY) for i in (2, 1, 0)]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.FindBookings(ask, metadata=token(hospital_id="h2"))
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_whoever_of_the_staff_sees_whose_booking_it_is_is_recorded(hospital: Hospital) -> None:
    lot_id = await hospital.lot()
    await hospital.book(a := booking(1), b := booking(2))
    ids = {"reservation_id": a.reservation_id}
    async with served(hospital) as (stub, main):
        await main.GetVaccination(main_pb.GetVaccinationRequest(**ids), metadata=token("operator", "op"))
        await main.ListWaiting(main_pb.ListWaitingRequest(hospital_id=H1), metadata=token())
        await main.AssignLot(main_pb.AssignLotRequest(**ids, lot_id=lot_id), metadata=token())
        await stub.FindBookings(pb.FindBookingsRequest(hospital_id=H1, customer_id="c1"), metadata=token())
        await stub.CheckIn(pb.CheckInRequest(**ids), metadata=token())
        await stub.Administer(pb.AdministerRequest(**ids), metadata=token())
        await stub.MarkMissed(pb.MarkMissedRequest(reservation_id=b.reservation_id), metadata=token())
        await main.ListLots(main_pb.ListLotsRequest(hospital_id=H1), metadata=token())  # is about nobody
        request, seen = pb.ListAccessesRequest(hospital_id=H1, page_size=2), list[Any]()
        while True:
            page = await stub.ListAccesses(request, metadata=token("operator"))
            seen += page.accesses
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        for role in ("manager", "customer"):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.ListAccesses(request, metadata=token(role))
            assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert sorted((x.call, x.by, x.role, x.about) for x in seen) == [
        ("Administer", "m1", "manager", a.reservation_id),
        ("AssignLot", "m1", "manager", a.reservation_id),
        ("CheckIn", "m1", "manager", a.reservation_id),
        ("FindBookings", "m1", "manager", "c1"),
        ("GetVaccination", "op", "operator", a.reservation_id),
        ("ListWaiting", "m1", "manager", H1),
        ("MarkMissed", "m1", "manager", b.reservation_id),
    ]


async def test_what_cannot_be_recorded_is_not_shown(hospital: Hospital) -> None:
    await hospital.book(a := booking())
    await hospital.database.command("collMod", "accesses", validator={"$expr": False})
    async with served(hospital) as (stub, main):
        for call in (
            stub.ListDay(pb.ListDayRequest(hospital_id=H1, date=str(TODAY)), metadata=token()),
            stub.FindBookings(pb.FindBookingsRequest(hospital_id=H1, customer_id="c0"), metadata=token()),
            stub.CheckIn(pb.CheckInRequest(reservation_id=a.reservation_id), metadata=token()),
            main.GetVaccination(main_pb.GetVaccinationRequest(reservation_id=a.reservation_id), metadata=token()),
            main.ListWaiting(main_pb.ListWaitingRequest(hospital_id=H1), metadata=token()),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await call


async def test_an_erased_persons_id_is_not_in_the_record_any_more_and_old_accesses_are_forgotten(
    hospital: Hospital,
) -> None:
    kept = Accesses(accesses_store.MongoAccesses(hospital.mongos[0]), hospital.clock)
    await hospital.book(a := booking(1))
    for about in ("c1", "c2"):
        await kept.record("m1", "manager", H1, "FindBookings", about)
    assert await kept.erase("c1", hospital.vaccines.erase) is None  # it waits
    assert {x.about for x in await kept.page(H1, None, 9)} == {"c1", "c2"}
    await hospital.vaccines.cancel([a])
    assert await kept.erase("c1", hospital.vaccines.erase) == 1
    [other] = {x.about for x in await kept.page(H1, None, 9)} - {"c2"}
    assert other.startswith("erased-")
    rule = accesses_store.rule(hospital.mongos[0], lambda: hospital.clock() - 731 * DAY)
    hospital.clock.now += 731 * DAY
    assert await rule.apply("test") == 0
    hospital.clock.now += DAY
    assert await rule.apply("test") == 2


# What the look reads


PAST = [Status.CANCELLED, Status.ADMINISTERED, Status.MISSED, Status.UNSERVED]


async def past(hospital: Hospital, rows: int) -> None:
    """What has ended, of many days and hospitals, and doses for days of which nothing was recorded."""
    dose = {"lot_id": "x", "lot_number": "L0", "vaccine_code": "207", "manufacturer": "MOD"}
    dose |= {"production_date": "2026-01-01", "expiry_date": "2028-01-01"}
    collection = hospital.database["vaccinations"].with_options(write_concern=WriteConcern(1))

    def document(i: int) -> dict[str, Any]:
        status = [*PAST, Status.COMPLETED][i % 5]
        newest = MIGRATED.date() if status is Status.COMPLETED else TODAY
        has = status in (Status.COMPLETED, Status.ADMINISTERED)
        return {
            "_id": f"past-{i}",
            "customer_id": f"p{i}",
            "hospital_id": f"h{i % 97}",
            "hospital_name": "Clinic",
            "time_zone": "Asia/Seoul",
            "date": str(newest - (1 + i % 300) * DAY),
            "vaccine_code": "",
            "decide_time": NOON,
            "status": status.value,
            "dose": dose if has else None,
            "quantity": int(has),
            "version": 1,
        }

    for begin in range(0, rows, 5_000):
        batch = [document(i) for i in range(begin, min(begin + 5_000, rows))]
        await collection.insert_many(batch, ordered=False, bypass_document_validation=True)


async def examined(hospital: Hospital, looks: Callable[[], Awaitable[object]]) -> tuple[int, int]:
    """Keys and documents of vaccinations that the server's profiler counts in what the looks ask."""
    await hospital.database.command("profile", 2)
    try:
        await looks()
    finally:
        await hospital.database.command("profile", 0)
    rows = [
        row
        async for row in hospital.database["system.profile"].find({"ns": {"$regex": "vaccinations$"}})
        if row["op"] in ("query", "command")
    ]
    assert rows
    await hospital.database.drop_collection("system.profile")
    return sum(r.get("keysExamined", 0) for r in rows), sum(r.get("docsExamined", 0) for r in rows)


@pytest.mark.parametrize("rows", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_the_looks_of_every_second_read_nothing_of_what_is_past(hospital: Hospital, rows: int) -> None:
    await hospital.lot("L1", 20)
    await hospital.book(*(booking(i) for i in range(20)))  # they have a dose, and their day will be over next
    await hospital.book(*(booking(i, TODAY + DAY) for i in range(20)))  # they wait
    hospital.clock.now = MIDNIGHT + GRACE - timedelta(minutes=1)

    async def looks() -> None:
        assert await hospital.vaccines.serve_waiting() == 0
        assert await hospital.desk.end_days() == {}

    before = await examined(hospital, looks)
    await past(hospital, rows)
    after = await examined(hospital, looks)
    assert before[1] == after[1] == 0
    assert after[0] <= before[0] + 5, (before, after)  # of each list the key behind its end
    await hospital.database["vaccinations"].create_index("date")  # which a store has that 0.3.0 made
    assert await examined(hospital, looks) == after

    # Nor does anything else read more than it finds.
    [forget] = rules(hospital.mongos[0], Retention(Days(retention_passed_days=366), hospital.clock))
    keys, documents = await examined(hospital, lambda: forget.apply("test"))
    assert (keys < 20, documents) == (True, 0)
    day = MIGRATED.date() - 10 * DAY
    found = await hospital.database["vaccinations"].count_documents({"hospital_id": H1, "date": str(day)})
    _, documents = await examined(hospital, lambda: hospital.desk.day(H1, day, None, 1000))
    assert documents == found > 0
    _, documents = await examined(hospital, lambda: hospital.vaccines.waiting(H1, None, 5))
    assert documents == 5
