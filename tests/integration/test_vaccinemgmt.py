"""No dose in a real MongoDB is given twice, whatever the order, repetition and concurrency of events and calls."""

import asyncio
import itertools
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pymongo.errors import WriteError

from services.chassis.convert import to_message
from services.chassis.errors import OtherScope
from services.chassis.events import Event, NotUnderstood
from services.chassis.mongo import Mongo
from services.chassis.unit_of_work import repeated_after_lost_race
from services.vaccinemgmt.adapters.events import subscriptions
from services.vaccinemgmt.adapters.mongo import MongoStock
from services.vaccinemgmt.application import Stockroom, Vaccines, serving
from services.vaccinemgmt.domain import (
    Appointment,
    Delivery,
    Lot,
    LotConflict,
    LotEmpty,
    ReservationId,
    Status,
    UnknownLot,
    UnknownVaccination,
    Vaccination,
    VaccinationCancelled,
)
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1.approval_events_pb2 import ApprovalGranted

from .conftest import OpenMongo

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)
DELIVERY = Delivery("L1", "207", "MOD", date(2027, 1, 1), date(2027, 6, 30), 3)


def anybody(_: str) -> None:
    """Allows a caller to act for every hospital."""


@dataclass
class Store:
    """Two replicas of vaccine management on one database."""

    replicas: Sequence[Vaccines]
    stockrooms: Sequence[Stockroom]
    mongo: Mongo
    woken: list[None]

    @property
    def vaccines(self) -> Vaccines:
        return self.replicas[0]

    async def register(
        self, hospital_id: str, deliveries: Sequence[Delivery], replica: int = 0
    ) -> tuple[Sequence[Lot], int]:
        """Takes deliveries into stock; returns the lots, and how many are new."""
        lots, created, _ = await self.stockrooms[replica].register(hospital_id, deliveries, "manager")
        return lots, created

    async def free(self) -> dict[str, int]:
        """Free doses by lot number. Checks each lot: received = free + used, and vaccinations hold the used doses."""
        lots = [row async for row in self.mongo.database["lots"].find()]
        held = Counter([row["dose"]["lot_id"] async for row in self.mongo.database["vaccinations"].find({"status": 2})])
        for lot in lots:
            assert lot["received"] == lot["free"] + lot["used"]
            assert lot["used"] == held[lot["_id"]]
        return {lot["lot_number"]: lot["free"] for lot in lots}

    async def status(self, *appointments: Appointment) -> list[Status]:
        return [(await self.vaccines.vaccination(a.reservation_id, anybody)).status for a in appointments]

    async def documents(self) -> list[dict[str, Any]]:
        return [row async for row in self.mongo.database["vaccinations"].find().sort("_id")]

    async def events(self) -> Counter[str]:
        """What was told of reservations, by the names of events."""
        told = Counter([row["subject"].split(".")[-1] async for row in self.mongo.outbox.find()])
        del told["StockMoved"]
        return told


def new_id() -> ReservationId:
    return ReservationId(str(uuid.uuid4()))


def appointment(seconds: int = 0, code: str = "", day: date = DAY, hospital_id: str = "h1") -> Appointment:
    at = NOW - timedelta(hours=1) + timedelta(seconds=seconds)
    return Appointment(new_id(), f"c{seconds}", hospital_id, "Han River Clinic", "Asia/Seoul", day, code, at)


def delivery(number: str = "L1", quantity: int = 3, **changes: Any) -> Delivery:
    return replace(DELIVERY, lot_number=number, quantity=quantity, **changes)


@pytest.fixture
async def store(open_mongo: OpenMongo) -> Store:
    woken = list[None]()
    mongos = [await open_mongo() for _ in range(2)]
    stocks, freed = [MongoStock(m, lambda _: woken.append(None)) for m in mongos], [asyncio.Event() for _ in mongos]
    replicas = [Vaccines(stock, lambda: NOW, free) for stock, free in zip(stocks, freed, strict=True)]
    stockrooms = [Stockroom(stock, lambda: NOW, free) for stock, free in zip(stocks, freed, strict=True)]
    return Store(replicas, stockrooms, mongos[0], woken)


async def test_an_approved_booking_gets_a_dose_at_once_and_the_next_waits(store: Store) -> None:
    await store.register("h1", [delivery(quantity=1)])
    first, second = appointment(1), appointment(2)
    await store.vaccines.admit([second, first])
    assert await store.status(first, second) == [Status.COMPLETED, Status.WAITING]
    assert await store.events() == {"ReservationCompleted": 1, "ReservationWaiting": 1}
    assert await store.free() == {"L1": 0}
    assert store.woken


async def test_admitting_again_changes_nothing(store: Store) -> None:
    await store.register("h1", [delivery(quantity=1)])
    both = [appointment(1), appointment(2)]
    await store.vaccines.admit([*both, *both])
    before, told = await store.documents(), await store.events()
    await store.vaccines.admit(both)
    assert (await store.documents(), await store.events()) == (before, told)


async def test_those_who_wait_are_served_first_come_first_when_stock_arrives(store: Store) -> None:
    people = [appointment(i) for i in range(5)]
    await store.vaccines.admit(people[3:])
    await store.vaccines.admit(people[:3])
    await store.register("h1", [delivery(quantity=2)])
    newcomer = appointment(9)
    await store.vaccines.admit([newcomer])  # before the waiting list is served
    assert await store.status(*people, newcomer) == [Status.COMPLETED] * 2 + [Status.WAITING] * 4
    assert await store.vaccines.serve_waiting() == 0
    await store.register("h1", [delivery("L2", 3)])
    assert await store.vaccines.serve_waiting() == 3
    assert await store.status(*people, newcomer) == [Status.COMPLETED] * 5 + [Status.WAITING]


async def test_newcomers_stay_behind_a_waiting_list_longer_than_one_transaction_serves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "GIVE_OUT", 3)
    people = [appointment(i) for i in range(6)]
    await store.vaccines.admit(people)
    await store.register("h1", [delivery(quantity=5)])
    late, early = appointment(99), appointment(-1)
    await store.vaccines.admit([late, early])
    await store.vaccines.serve_waiting()
    assert await store.status(early, *people, late) == [Status.COMPLETED] * 5 + [Status.WAITING] * 3


async def test_a_lot_of_another_vaccine_leaves_only_those_waiting_who_asked_for_a_certain_one(store: Store) -> None:
    wants, takes_any = appointment(1, code="999"), appointment(2)
    await store.vaccines.admit([wants, takes_any])
    await store.register("h1", [delivery()])
    assert await store.vaccines.serve_waiting() == 1
    assert await store.status(wants, takes_any) == [Status.WAITING, Status.COMPLETED]


async def test_hospitals_do_not_share_doses(store: Store) -> None:
    here, there = appointment(1), appointment(2, hospital_id="h2")
    await store.register("h1", [delivery(quantity=2)])
    await store.vaccines.admit([here, there])
    await store.vaccines.serve_waiting()
    assert await store.status(here, there) == [Status.COMPLETED, Status.WAITING]


async def test_a_customer_whose_day_has_passed_gets_no_dose(store: Store) -> None:
    passed, today = appointment(1, day=date(2027, 2, 28)), appointment(2, day=date(2027, 3, 1))
    await store.vaccines.admit([passed, today])
    await store.register("h1", [delivery()])
    assert await store.vaccines.serve_waiting() == 1
    assert await store.status(passed, today) == [Status.WAITING, Status.COMPLETED]


async def test_a_hospital_where_only_passed_bookings_wait_is_not_served(store: Store) -> None:
    await store.vaccines.admit([appointment(1, day=date(2027, 2, 27))])
    await store.vaccines.admit([appointment(2, hospital_id="h2")])
    for hospital_id in ("h1", "h2", "h3"):
        await store.register(hospital_id, [delivery()])
    stock = MongoStock(store.mongo, lambda *_: None)
    assert await stock.hospitals_to_serve(date(2027, 2, 28)) == ["h2"]
    assert await stock.hospitals_to_serve(date(2027, 2, 27)) == ["h1", "h2"]


async def test_the_dose_of_a_cancellation_goes_to_a_customer_who_waits(store: Store) -> None:
    await store.register("h1", [delivery(quantity=1)])
    first, second = appointment(1), appointment(2)
    await store.vaccines.admit([first, second])
    await store.vaccines.cancel([first, first])
    assert await store.free() == {"L1": 1}
    await asyncio.wait_for(store.vaccines.freed(), 1)  # the worker of the waiting list is told
    assert await store.vaccines.serve_waiting() == 1
    assert await store.status(first, second) == [Status.CANCELLED, Status.COMPLETED]
    [reset, _] = sorted(await store.documents(), key=lambda row: str(row["decide_time"]))
    assert (reset["dose"], reset["quantity"], reset["version"]) == (None, 0, 2)


async def test_a_cancellation_before_the_approval_leaves_a_tombstone_that_the_approval_finds(store: Store) -> None:
    await store.register("h1", [delivery()])
    a = appointment()
    await store.vaccines.cancel([a])
    await store.vaccines.admit([a])
    assert await store.status(a) == [Status.CANCELLED]
    assert await store.free() == {"L1": 3}
    assert await store.events() == {"CancellationCompleted": 1}


async def test_every_order_and_repetition_of_events_ends_with_all_doses_back(store: Store) -> None:
    steps = ["admit", "admit", "cancel", "cancel", "serve"]
    orders = sorted(set(itertools.permutations(steps)))
    await store.register("h1", [delivery(quantity=len(orders))])
    told = {order: appointment(i) for i, order in enumerate(orders)}
    for step in range(len(steps)):
        for what, act in (("admit", store.vaccines.admit), ("cancel", store.vaccines.cancel)):
            if batch := [a for order, a in told.items() if order[step] == what]:
                await act(batch)
        await store.vaccines.serve_waiting()
    assert set(await store.status(*told.values())) == {Status.CANCELLED}
    assert await store.free() == {"L1": len(orders)}
    assert (await store.events())["CancellationCompleted"] == len(orders)


async def test_every_order_of_admission_stock_and_the_managers_choice_ends_with_one_dose_each(store: Store) -> None:
    orders = list(itertools.permutations(["admit", "register", "assign", "serve"]))
    for i, order in enumerate(orders):
        hospital_id = f"h{i}"
        a = appointment(hospital_id=hospital_id)
        chosen = Lot.of(hospital_id, delivery("chosen"))
        for what in (*order, "admit", "assign"):  # an operation that came too early is tried again
            if what == "admit":
                await store.vaccines.admit([a])
            elif what == "register":
                soon = delivery("soon", expiry_date=DAY)
                await store.register(hospital_id, [delivery("chosen"), soon])
            elif what == "serve":
                await store.vaccines.serve_waiting()
            else:
                try:
                    await store.vaccines.assign(a.reservation_id, chosen.lot_id, "manager", anybody)
                except (UnknownVaccination, UnknownLot):
                    pass
        vaccination = await store.vaccines.vaccination(a.reservation_id, anybody)
        assert vaccination.dose is not None
        assert vaccination.dose.lot_id == chosen.lot_id, order
        assert {lot.lot_number: lot.free for lot in await store.stockrooms[0].lots(hospital_id, None, 9)} == {
            "soon": 3,
            "chosen": 2,
        }
    await store.free()


async def test_two_replicas_at_once_never_give_a_dose_twice(store: Store, seeded: random.Random) -> None:
    await store.register("h1", [delivery("L1", 20), delivery("L2", 15)])
    people = [appointment(i) for i in range(60)]
    # Every person comes twice, as by a redelivery to the other replica.
    batches = [seeded.sample(people[i : i + 15], 15) for i in range(0, 60, 15)] * 2
    await asyncio.gather(*(store.replicas[i % 2].admit(batch) for i, batch in enumerate(batches)))
    assert Counter(await store.status(*people)) == {Status.COMPLETED: 35, Status.WAITING: 25}
    assert await store.free() == {"L1": 0, "L2": 0}
    assert (await store.events())["ReservationCompleted"] == 35


async def test_admissions_cancellations_choices_and_service_at_once_keep_every_dose_accounted_for(
    store: Store, seeded: random.Random
) -> None:
    lots, _ = await store.register("h1", [delivery("L1", 8), delivery("L2", 8)])
    people = [appointment(i) for i in range(30)]

    async def choose(a: Appointment, lot: Lot, replica: Vaccines) -> None:
        try:
            await replica.assign(a.reservation_id, lot.lot_id, "manager", anybody)
        except (UnknownVaccination, VaccinationCancelled, LotEmpty):
            pass

    works: list[Awaitable[object]] = []
    for i in range(0, 30, 5):
        works.append(store.replicas[i % 2].admit(people[i : i + 5]))
        works.append(store.replicas[(i + 1) % 2].cancel(people[i : i + 2]))
        works.append(choose(people[i + 3], lots[i % 2], store.replicas[i % 2]))
    works += [store.replicas[i % 2].serve_waiting() for i in range(3)]
    seeded.shuffle(works)
    await asyncio.gather(*works)
    await store.vaccines.serve_waiting()
    cancelled = [a for i in range(0, 30, 5) for a in people[i : i + 2]]
    assert set(await store.status(*cancelled)) == {Status.CANCELLED}
    free = await store.free()
    assert sum(free.values()) == 0  # 18 customers remain, for 16 doses
    statuses = Counter(await store.status(*people))
    assert statuses == {Status.CANCELLED: 12, Status.COMPLETED: 16, Status.WAITING: 2}


async def test_a_dose_put_back_and_taken_at_once_is_never_lost(store: Store) -> None:
    await store.register("h1", [delivery(quantity=10)])
    first, second = [appointment(i) for i in range(10)], [appointment(100 + i) for i in range(10)]
    await store.vaccines.admit(first)
    await asyncio.gather(
        *(store.replicas[0].cancel([a]) for a in first), *(store.replicas[1].admit([a]) for a in second)
    )
    await store.vaccines.serve_waiting()
    assert set(await store.status(*second)) == {Status.COMPLETED}
    assert await store.free() == {"L1": 0}


async def test_a_delivery_registered_at_once_and_again_is_one_lot(store: Store) -> None:
    results = await asyncio.gather(*(store.register("h1", [delivery()], i % 2) for i in range(6)))
    assert sum(created for _, created in results) == 1
    assert await store.free() == {"L1": 3}
    await store.vaccines.admit([appointment()])
    lots, created = await store.register("h1", [delivery(), delivery("L2"), delivery("L2")])
    assert created == 1
    assert [(lot.lot_number, lot.free) for lot in lots] == [("L1", 2), ("L2", 3), ("L2", 3)]


async def test_a_lot_with_other_content_is_refused_with_all_its_deliveries(store: Store) -> None:
    await store.register("h1", [delivery()])
    with pytest.raises(LotConflict) as refusal:
        await store.register("h1", [delivery("L2"), other := delivery(quantity=4)])
    assert refusal.value.delivery is other
    assert await store.free() == {"L1": 3}


async def test_a_manager_sees_and_assigns_lots_only_of_their_own_hospital(store: Store) -> None:
    await store.register("h1", [delivery()])
    [[elsewhere], _] = await store.register("h2", [delivery()])
    a = appointment()
    await store.vaccines.admit([a])

    def not_mine(hospital_id: str) -> None:
        raise OtherScope("hospital", hospital_id)

    with pytest.raises(OtherScope):
        await store.vaccines.assign(a.reservation_id, elsewhere.lot_id, "manager", not_mine)
    with pytest.raises(OtherScope):
        await store.vaccines.vaccination(a.reservation_id, not_mine)
    with pytest.raises(UnknownLot):
        await store.vaccines.assign(a.reservation_id, elsewhere.lot_id, "manager", anybody)
    with pytest.raises(UnknownVaccination):
        await store.vaccines.assign(new_id(), elsewhere.lot_id, "manager", anybody)


async def test_a_write_conflict_runs_the_use_case_again_from_the_start(store: Store) -> None:
    await store.register("h1", [delivery()])
    seen: list[int] = []

    @repeated_after_lost_race
    async def take() -> int:
        async with MongoStock(store.mongo, lambda *_: None).unit_of_work() as work:
            [lot] = await work.free_lots("h1")
            seen.append(lot.free)
            if len(seen) == 1:  # another transaction takes one meanwhile, and commits
                await store.replicas[1].admit([appointment()])
            vaccination = Vaccination(appointment(1))
            vaccination.complete(lot, NOW)
            await work.save([vaccination], [lot])
        return lot.free

    assert await asyncio.wait_for(take(), 20) == 1
    assert seen == [3, 2]
    assert await store.free() == {"L1": 1}


async def test_an_error_in_the_unit_of_work_leaves_nothing_behind(store: Store) -> None:
    async def breaks() -> None:
        async with MongoStock(store.mongo, lambda *_: None).unit_of_work() as work:
            vaccination = Vaccination(appointment())
            vaccination.wait(NOW)
            await work.save([vaccination], [Lot.of("h1", DELIVERY)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await breaks()
    assert (await store.documents(), await store.events(), await store.free()) == ([], {}, {})


FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("lots", {"free": -1, "used": 4}),
    ("lots", {"free": 4, "used": -1}),
    ("lots", {"free": 3, "used": 1}),
    ("lots", {"received": 99}),
    ("lots", {"expiry_date": "2026-12-31"}),
    ("vaccinations", {"status": 4}),
    ("vaccinations", {"status": 0}),
    ("vaccinations", {"status": 2}),
    ("vaccinations", {"status": 2, "quantity": 1}),
    ("vaccinations", {"status": 2, "quantity": 1, "dose": ...}),  # the field is missing
    ("vaccinations", {"dose": ...}),
    ("vaccinations", {"status": 2, "quantity": 2, "dose": {}}),
    ("vaccinations", {"status": 2, "dose": {}}),
    ("vaccinations", {"status": 3, "dose": {}}),
    ("vaccinations", {"status": 3, "quantity": 1}),
    ("vaccinations", {"status": 1, "quantity": 1, "dose": {}}),
]


async def test_the_store_itself_refuses_what_the_rules_forbid(store: Store) -> None:
    a = appointment()
    await store.vaccines.admit([a])
    await store.register("h1", [delivery()])
    for collection, bad in FORBIDDEN:
        changes = {
            "$set": {key: value for key, value in bad.items() if value is not ...},
            "$unset": {key: "" for key, value in bad.items() if value is ...},
        }
        change = {operator: fields for operator, fields in changes.items() if fields}
        with pytest.raises(WriteError, match="failed validation"):
            print("must be refused:", bad, await store.mongo.database[collection].update_one({}, change))
    assert await store.status(a) == [Status.WAITING]


async def test_what_a_newer_version_stores_in_a_lot_or_a_dose_stays_there(store: Store) -> None:
    a = appointment()
    await store.register("h1", [delivery()])
    await store.vaccines.admit([a])
    newer = {"$set": {"fridge": "F1", "dose.site": "left arm"}}
    await store.mongo.database["lots"].update_one({}, {"$set": {"fridge": "F1"}})
    await store.mongo.database["vaccinations"].update_one({}, newer)
    [lot] = await store.stockrooms[0].lots("h1", None, 10)
    await store.register("h1", [delivery("L2", expiry_date=lot.expiry_date)])
    await store.vaccines.assign(a.reservation_id, lot.lot_id, "manager", anybody)
    await store.vaccines.cancel([a])
    assert await store.free() == {"L1": 3, "L2": 3}
    assert (await store.documents())[0]["fridge"] == "F1"
    rows = {row["lot_number"]: row.get("fridge") async for row in store.mongo.database["lots"].find()}
    assert rows == {"L1": "F1", "L2": None}


async def test_lots_are_listed_by_expiry_page_by_page(store: Store) -> None:
    days = [date(2027, 6, 1) + timedelta(i // 2) for i in range(7)]
    await store.register("h1", [delivery(f"L{i}", expiry_date=d) for i, d in enumerate(days)])
    await store.register("h2", [delivery()])
    seen: list[Lot] = []
    while page := await store.stockrooms[0].lots("h1", (seen[-1].expiry_date, seen[-1].lot_id) if seen else None, 2):
        seen += page
    assert len(seen) == 7
    assert seen == sorted(seen, key=lambda lot: (lot.expiry_date, lot.lot_id))


async def test_the_waiting_list_is_in_the_order_in_which_they_came_page_by_page(store: Store) -> None:
    people = [appointment(i // 2) for i in range(7)]
    await store.vaccines.admit([*people[::-1], appointment(hospital_id="h2")])
    await store.vaccines.cancel([appointment()])
    expected = [(a.decide_time, a.reservation_id) for a in people]
    seen: list[tuple[datetime, ReservationId]] = []
    while page := await store.vaccines.waiting("h1", seen[-1] if seen else None, 3):
        seen += [(v.appointment.decide_time, v.appointment.reservation_id) for v in page]
    assert seen == sorted(expected)


@pytest.mark.parametrize("zone", ["Asia/Atlantis", "../etc/passwd", "Asia", "\x00"])
async def test_an_appointment_without_a_valid_time_zone_is_not_stored_since_it_would_stop_the_waiting_list(
    store: Store, zone: str
) -> None:
    [granted] = [s for s in subscriptions(store.vaccines) if s.event is ApprovalGranted]
    good = appointment()
    events = []
    for a in (good, replace(appointment(), time_zone=zone)):
        message = ApprovalGranted(appointment=to_message(a, appointment_pb2.Appointment))
        events.append(Event("id", a.reservation_id, message.DESCRIPTOR.full_name, NOW, message))
    with pytest.raises(NotUnderstood, match="time zone"):
        granted.read(events[1])
    await granted.handle([granted.read(events[0])])
    assert [row["_id"] for row in await store.documents()] == [good.reservation_id]


async def test_opening_again_as_a_new_replica_does_keeps_what_is_there(store: Store, open_mongo: OpenMongo) -> None:
    await store.register("h1", [delivery()])
    await asyncio.gather(*(open_mongo() for _ in range(3)), store.vaccines.admit([appointment()]))
    assert await store.free() == {"L1": 2}
