"""Deliveries, corrections, write-offs and recalls in a real MongoDB: for every lot its numbers, its ledger and the
vaccinations say the same, whatever the order, repetition and concurrency, and beside a version without ledgers."""

import asyncio
import base64
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from pymongo.errors import WriteError

from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import Edge
from services.chassis.errors import OtherScope
from services.chassis.mongo import Mongo
from services.vaccinemgmt.adapters import grpc as main_door
from services.vaccinemgmt.adapters import recalls as door
from services.vaccinemgmt.adapters.accesses import MongoAccesses
from services.vaccinemgmt.adapters.mongo import MongoStock, MongoUnitOfWork
from services.vaccinemgmt.application import Accesses, Recalls, Stockroom, Vaccines, recalls
from services.vaccinemgmt.domain import (
    Appointment,
    Correction,
    Delivery,
    Lot,
    LotConflict,
    LotId,
    LotWithdrawn,
    Movement,
    MovementKind,
    Recall,
    RequestIdReused,
    ReservationId,
    Status,
    TooFewDoses,
    TooManyBooked,
    UnknownLot,
    UnknownRecall,
    WriteOffReason,
)
from vaccination.vaccinemgmt.v1 import lot_pb2, recall_service_pb2_grpc, vaccinemgmt_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import recall_service_pb2 as recall_pb
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as pb

from .conftest import OpenMongo

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)
DELIVERY = Delivery("L1", "8", "MOD", date(2027, 1, 1), date(2027, 6, 30), 3, "note-1")
BROKEN = WriteOffReason.BROKEN


def anybody(_: str) -> None:
    """Allows a caller to act for every hospital."""


def new_id() -> str:
    return str(uuid.uuid4())


def appointment(seconds: int = 0, code: str = "", day: date = DAY, hospital_id: str = "h1") -> Appointment:
    at = NOW - timedelta(hours=1) + timedelta(seconds=seconds)
    key = ReservationId(new_id())
    return Appointment(key, f"c{seconds}", hospital_id, "Han River Clinic", "Asia/Seoul", day, code, at)


def delivery(number: str = "L1", quantity: int = 3, **changes: Any) -> Delivery:
    return replace(DELIVERY, lot_number=number, quantity=quantity, **changes)


class Replica:
    """One process of vaccine management."""

    def __init__(self, mongo: Mongo, accesses: list[tuple[str, ...]]) -> None:
        self.stock, self.freed, self.now = MongoStock(mongo, lambda: None), asyncio.Event(), NOW
        self.vaccines = Vaccines(self.stock, self.clock, self.freed)
        self.stockroom = Stockroom(self.stock, self.clock, self.freed)

        async def record(*access: str) -> None:
            accesses.append(access)

        self.recalls = Recalls(self.stock, self.clock, self.freed, record)

    def clock(self) -> datetime:
        return self.now

    async def register(self, *deliveries: Delivery, hospital_id: str = "h1") -> list[LotId]:
        lots, _, _ = await self.stockroom.register(hospital_id, deliveries, "manager")
        return [lot.lot_id for lot in lots]

    async def correct(self, lot_id: LotId, request_id: str = "", **what: Any) -> tuple[Lot, int]:
        correction = Correction(**what)
        return await self.stockroom.correct(lot_id, correction, request_id or new_id(), "manager", "why", anybody)

    async def write_off(self, lot_id: LotId, quantity: int, request_id: str = "") -> Lot:
        key = request_id or new_id()
        return await self.stockroom.write_off(lot_id, quantity, BROKEN, key, "manager", "fell", anybody)

    async def recall(self, number: str = "L1", hospital_id: str = "", code: str = "8") -> recalls.Progress:
        return await self.recalls.recall(code, "MOD", number, hospital_id, "operator", "contaminated")


@dataclass
class Store:
    """Two replicas on one database."""

    replicas: Sequence[Replica]
    mongo: Mongo
    accesses: list[tuple[str, ...]]

    @property
    def one(self) -> Replica:
        return self.replicas[0]

    async def rows(self, name: str) -> list[dict[str, Any]]:
        return [row async for row in self.mongo.database[name].find()]

    async def lots(self) -> dict[str, tuple[int, int, int]]:
        """Free, reserved and written off by lot number (with several hospitals, the sum), after all was checked."""
        found: dict[str, tuple[int, int, int]] = {}
        held = {
            status: Counter(
                [v["dose"]["lot_id"] for v in await self.rows("vaccinations") if v["dose"] and v["status"] == status]
            )
            for status in (Status.COMPLETED.value, Status.ADMINISTERED.value)
        }
        ledger: dict[str, Counter[str]] = {}
        for m in await self.rows("movements"):
            sums, n = ledger.setdefault(m["lot_id"], Counter()), m["quantity"]
            match MovementKind(m["kind"]):
                case MovementKind.RECEIVED | MovementKind.CORRECTED:
                    sums.update(received=n, free=n)
                case MovementKind.OPENED:
                    sums.update(received=n, free=n - m["reserved"], reserved=m["reserved"])
                case MovementKind.RESERVED | MovementKind.UNRECORDED:
                    sums.update(free=-n, reserved=n)
                case MovementKind.RETURNED:
                    sums.update(free=n, reserved=-n)
                case MovementKind.ADMINISTERED:
                    sums.update(reserved=-n, administered=n)
                case MovementKind.WRITTEN_OFF:
                    sums.update(free=-n, written_off=n)
        for row in await self.rows("lots"):
            sums, key = ledger[row["_id"]], row["_id"]
            reserved = row["used"] - row["administered"] - row["written_off"]
            told = {name: row[name] for name in ("received", "free", "administered", "written_off")}
            assert {name: sums[name] for name in (*told, "reserved")} == told | {"reserved": reserved}
            assert row["entered"] == told | {"reserved": reserved}
            assert (reserved, row["administered"]) == (held[2][key], held[4][key])
            before = found.get(row["lot_number"], (0, 0, 0))
            here = (row["free"], reserved, row["written_off"])
            found[row["lot_number"]] = tuple(a + b for a, b in zip(before, here, strict=True))
        return found

    async def doses(self, *appointments: Appointment) -> list[str]:
        """The lot numbers of their doses."""
        found = [await self.one.vaccines.vaccination(a.reservation_id, anybody) for a in appointments]
        return [v.dose.lot_number if v.dose else "" for v in found]

    async def told(self, subject: str) -> int:
        return await self.mongo.outbox.count_documents({"subject": {"$regex": subject}})

    async def look(self) -> None:
        """Both replicas at once do all that is left to do."""
        await asyncio.gather(*(replica.recalls.look() for replica in self.replicas))
        await self.one.vaccines.serve_waiting(thoroughly=True)


@pytest.fixture
async def store(open_mongo: OpenMongo) -> Store:
    accesses = list[tuple[str, ...]]()
    mongos = [await open_mongo() for _ in range(2)]
    return Store([Replica(mongo, accesses) for mongo in mongos], mongos[0], accesses)


# Deliveries


async def test_deliveries_of_a_lot_at_once_and_again_count_once_each(store: Store) -> None:
    requests = [[delivery(quantity=i + 1, delivery_id=f"n{i}", vaccine_code=c)] for i in range(5) for c in ("8", "08")]
    calls = [store.replicas[i % 2].register(*r) for i, r in enumerate(requests * 2)]
    ids = await asyncio.gather(*calls)
    assert len({lot_id for [lot_id] in ids}) == 1
    assert await store.lots() == {"L1": (15, 0, 0)}
    assert await store.told("StockMoved") == 5
    with pytest.raises(LotConflict, match="delivery n1"):
        await store.one.register(delivery("L2"), delivery(quantity=9, delivery_id="n1"))
    assert await store.lots() == {"L1": (15, 0, 0)}


# Corrections and write-offs


async def test_a_correction_is_repeated_by_its_id_and_refused_with_other_content(store: Store) -> None:
    [lot_id] = await store.one.register(delivery(quantity=10))
    key = new_id()
    for replica in (*store.replicas, *store.replicas):
        lot, to_go = await replica.correct(lot_id, key, received=12)
        assert (lot.balance.received, to_go) == (12, 0)
    await asyncio.gather(*(replica.write_off(lot_id, 2, "w1") for replica in store.replicas))
    assert await store.lots() == {"L1": (10, 0, 2)}
    for again in (
        store.one.correct(lot_id, key, received=11),
        store.one.correct(lot_id, "w1", received=12),
        store.one.write_off(lot_id, 3, "w1"),
        store.one.write_off(lot_id, 2, key),
    ):
        with pytest.raises(RequestIdReused):
            await again
    with pytest.raises(UnknownLot):
        await store.one.correct(LotId(new_id()), received=1)


async def test_a_manager_corrects_and_writes_off_only_at_their_own_hospital(store: Store) -> None:
    [lot_id] = await store.one.register(delivery())

    def not_mine(hospital_id: str) -> None:
        raise OtherScope("hospital", hospital_id)

    stockroom = store.one.stockroom
    for refused in (
        stockroom.correct(lot_id, Correction(received=1), new_id(), "manager", "", not_mine),
        stockroom.write_off(lot_id, 1, BROKEN, new_id(), "manager", "", not_mine),
        stockroom.movements(lot_id, None, 10, not_mine),
    ):
        with pytest.raises(OtherScope):
            await refused
    assert await store.lots() == {"L1": (3, 0, 0)}


async def test_whoever_came_last_loses_the_dose_that_is_broken_and_gets_another_or_waits(store: Store) -> None:
    [broken] = await store.one.register(delivery("L1", 4))
    people = [appointment(i) for i in range(4)]
    await store.one.vaccines.admit(people)
    await store.one.register(delivery("L2", 1))
    await store.one.write_off(broken, 2)
    assert await store.doses(*people) == ["L1", "L1", "L2", ""]
    assert await store.lots() == {"L1": (0, 2, 2), "L2": (0, 1, 0)}
    [waits] = [row for row in await store.rows("vaccinations") if row["status"] == Status.WAITING.value]
    assert waits["decide_time"] == people[3].decide_time
    assert await store.told("ReservationCompleted") == 5
    assert await store.told("ReservationWaiting") == 1
    with pytest.raises(TooFewDoses, match="L1 has 2 doses"):
        await store.one.write_off(broken, 3)
    await store.mongo.database["vaccinations"].update_one(
        {"_id": people[0].reservation_id}, {"$set": {"checked_in_at": NOW}}
    )
    with pytest.raises(TooFewDoses, match="not there yet"):
        await store.one.write_off(broken, 2)
    lot, _ = await store.one.correct(broken, received=3)
    assert (lot.balance.received, lot.balance.reserved) == (3, 1)
    assert await store.doses(*people) == ["L1", "", "L2", ""]
    assert await store.lots() == {"L1": (0, 1, 2), "L2": (0, 1, 0)}


async def test_who_loses_a_broken_dose_is_not_moved_to_another_lot_as_if_still_holding_it(store: Store) -> None:
    early, middle, late = DAY, DAY + timedelta(10), DAY + timedelta(20)
    [a, _] = await store.one.register(
        delivery("A", 3, expiry_date=middle), delivery("B", 1, production_date=middle, expiry_date=late)
    )
    stays, loses, could_take_b = appointment(1, day=early), appointment(2, day=early), appointment(3, day=middle)
    holds_b = appointment(4, day=late)
    await store.one.vaccines.admit([stays, loses, could_take_b, holds_b])
    await store.one.register(delivery("C", 1, production_date=late))
    await store.one.write_off(a, 2)
    assert await store.doses(stays, loses, could_take_b, holds_b) == ["A", "", "B", "C"]
    assert await store.lots() == {"A": (0, 1, 2), "B": (0, 1, 0), "C": (0, 1, 0)}


async def test_more_booked_doses_than_one_transaction_takes_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.vaccinemgmt.application.stockroom.MOST_BOOKED", 2)
    [lot_id] = await store.one.register(delivery(quantity=4))
    await store.one.vaccines.admit([appointment(i) for i in range(3)])
    with pytest.raises(TooManyBooked, match="3 booked"):
        await store.one.write_off(lot_id, 4)
    await store.one.write_off(lot_id, 3)
    assert await store.lots() == {"L1": (0, 1, 3)}


async def test_corrected_dates_reach_those_who_can_still_use_the_dose_and_the_others_get_another(store: Store) -> None:
    [lot_id] = await store.one.register(delivery("L1", 3))
    soon, late, today = appointment(1), appointment(2, day=DAY + timedelta(9)), appointment(3, day=date(2027, 3, 1))
    await store.one.vaccines.admit([soon, late, today])
    await store.one.register(delivery("L2", 1))
    lot, to_go = await store.one.correct(lot_id, expiry_date=DAY)
    assert (lot.expiry_date, to_go) == (DAY, 3)
    await store.look()
    assert await store.doses(soon, late, today) == ["L1", "L2", "L1"]
    for row in await store.rows("vaccinations"):
        expected = DAY if row["dose"]["lot_number"] == "L1" else DELIVERY.expiry_date
        assert row["dose"]["expiry_date"] == str(expected)
    assert await store.told("ReservationCompleted") == 6
    assert await store.lots() == {"L1": (1, 2, 0), "L2": (0, 1, 0)}
    await store.look()
    assert await store.told("ReservationCompleted") == 6
    assert await store.one.stock.lots_to_look_at() == []
    assert (await store.one.correct(lot_id, expiry_date=DAY))[1] == 0


async def test_a_ledger_is_listed_page_by_page(store: Store) -> None:
    [lot_id] = await store.one.register(delivery(quantity=10))
    for quantity in (1, 2, 3, 4):  # two by two at the same moment
        store.one.now += timedelta(seconds=quantity % 2)
        await store.one.write_off(lot_id, quantity)
    seen: list[Movement] = []
    while page := await store.one.stockroom.movements(
        lot_id, (seen[-1].at, seen[-1].movement_id) if seen else None, 2, anybody
    ):
        seen += page
    assert [(m.at, m.movement_id) for m in seen] == sorted((m.at, m.movement_id) for m in seen)
    assert (seen[-1].quantity, seen[-1].reason, seen[-1].by, seen[-1].note) == (
        seen[-1].quantity,
        BROKEN,
        "manager",
        "fell",
    )
    assert sorted(m.quantity for m in seen) == [1, 2, 3, 4, 10]
    with pytest.raises(UnknownLot):
        await store.one.stockroom.movements(LotId(new_id()), None, 2, anybody)


# Recalls


async def test_a_recall_withdraws_the_lot_everywhere_and_everybody_on_it_gets_another_or_waits(store: Store) -> None:
    for hospital_id in ("h1", "h2", "h3"):
        await store.one.register(delivery("L1", 4), hospital_id=hospital_id)
    people = [appointment(i, hospital_id=f"h{1 + i % 2}") for i in range(6)]
    await store.one.vaccines.admit(people)
    await store.one.register(delivery("L2", 2, expiry_date=date(2027, 9, 1)), hospital_id="h1")
    begun, repeated = await asyncio.gather(*(replica.recall() for replica in store.replicas))
    assert (repeated.recall, repeated.lots) == (begun.recall, begun.lots)
    assert (begun.lots, begun.written_off, begun.bookings_to_go) == (3, 6, 6)
    named = {(lot["lot_number"], lot["recall_id"]) for lot in await store.rows("lots")}
    assert named == {("L1", begun.recall.recall_id), ("L2", "")}
    await store.look()
    done = await store.one.recalls.progress(begun.recall.recall_id, anybody)
    assert (done.lots, done.written_off, done.reassigned, done.waiting, done.bookings_to_go) == (3, 12, 2, 4, 0)
    assert await store.doses(*people) == ["L2", "", "L2", "", "", ""]
    assert await store.lots() == {"L1": (0, 0, 12), "L2": (0, 2, 0)}
    assert await store.told("ReservationWaiting") == 4
    before = await store.rows("vaccinations"), await store.rows("lots"), await store.told("")
    await store.one.recall(code="08")
    await store.look()
    assert (await store.rows("vaccinations"), await store.rows("lots"), await store.told("")) == before
    with pytest.raises(LotWithdrawn):
        await store.one.register(delivery("L1", 9, delivery_id="note-2"), hospital_id="h1")
    with pytest.raises(LotWithdrawn):
        await store.one.register(delivery("L1", 9), hospital_id="h4")


async def test_a_recall_at_one_hospital_leaves_the_others_alone(store: Store) -> None:
    for hospital_id in ("h1", "h2"):
        await store.one.register(delivery("L1", 4), hospital_id=hospital_id)
    progress = await store.one.recall(hospital_id="h1")
    assert (progress.lots, progress.written_off) == (1, 4)
    assert await store.lots() == {"L1": (4, 0, 4)}
    everywhere = await store.one.recall()
    assert (everywhere.lots, everywhere.written_off) == (2, 8)
    for number, hospital_id in (("L9", ""), ("L1", "h9")):
        with pytest.raises(UnknownLot):
            await store.one.recall(number, hospital_id)
    with pytest.raises(UnknownRecall):
        await store.one.recalls.progress(new_id(), anybody)


async def test_a_recall_that_says_it_is_done_tells_how_it_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.one.register(delivery("L1", 2))
    await store.one.vaccines.admit([appointment(i) for i in range(2)])
    begun = await store.one.recall()
    assert (begun.bookings_to_go, begun.waiting) == (2, 0)
    count = store.one.stock.bookings_to_go

    async def done_meanwhile(*asked: Any) -> int:
        await store.look()
        return await count(*asked)

    monkeypatch.setattr(store.one.stock, "bookings_to_go", done_meanwhile)
    done = await store.one.recalls.progress(begun.recall.recall_id, anybody)
    assert (done.bookings_to_go, done.waiting, done.written_off) == (0, 2, 2)


async def test_a_recall_by_one_spelling_covers_lots_of_the_other(store: Store) -> None:
    await of_0_3_0(store.mongo, "08", 5)
    await store.one.recalls.open_ledgers()
    assert (await store.one.recall(code="008")).written_off == 5
    assert await store.lots() == {"L1": (0, 0, 5)}


async def test_a_cancellation_on_a_recalled_lot_writes_the_dose_off(store: Store) -> None:
    await store.one.register(delivery())
    a = appointment()
    await store.one.vaccines.admit([a])
    await store.one.recall()
    await store.one.vaccines.cancel([a])
    assert await store.lots() == {"L1": (0, 0, 3)}


async def test_a_booking_whose_day_is_over_keeps_its_dose_since_it_may_be_in_the_arm(store: Store) -> None:
    await store.one.register(delivery())
    a = appointment()
    await store.one.vaccines.admit([a])
    for replica in store.replicas:
        replica.now = datetime(2027, 3, 10, 15, tzinfo=UTC)  # midnight in Seoul
    begun = await store.one.recall()
    await store.look()
    assert await store.doses(a) == ["L1"]
    assert (await store.one.recalls.progress(begun.recall.recall_id, anybody)).bookings_to_go == 0


async def test_those_vaccinated_from_a_recalled_lot_are_listed_and_it_is_recorded_who_asked(store: Store) -> None:
    for hospital_id in ("h2", "h1"):
        await store.one.register(delivery(quantity=9), hospital_id=hospital_id)
    people = [appointment(i, hospital_id=f"h{1 + i % 2}", day=date(2027, 3, 1)) for i in range(6)]
    await store.one.vaccines.admit(people)
    expected = []
    for i, a in enumerate(people[:5]):
        at = NOW + timedelta(minutes=10 - i)
        async with store.one.stock.unit_of_work() as work:
            [vaccination] = (await work.vaccinations([a.reservation_id])).values()
            assert vaccination.dose
            [lot] = (await work.lots([vaccination.dose.lot_id])).values()
            vaccination.administer(None, lot, at, "nurse")
            await work.save([vaccination], [lot])
        expected.append((a.hospital_id, at, a.reservation_id))
    recall = (await store.one.recall()).recall
    await store.look()
    assert (await store.one.recalls.progress(recall.recall_id, anybody)).administered == 5
    seen: list[tuple[str, datetime, ReservationId]] = []
    while page := await store.one.recalls.vaccinated(
        recall.recall_id, seen[-1] if seen else None, 2, "op", "operator", anybody
    ):
        seen += [(v.appointment.hospital_id, v.administered_at or NOW, v.reservation_id) for v in page]
    assert seen == sorted(expected)
    asked = [("op", "operator", hospital_id, "ListVaccinated", recall.recall_id) for hospital_id in ("h1", "h2")]
    assert store.accesses == [asked[0], *asked, asked[1]]
    assert (await store.lots())["L1"] == (0, 0, 13)


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize("kills", range(4))
async def test_a_recall_that_is_killed_in_the_middle_ends_as_one_that_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch, seeded: random.Random, kills: int
) -> None:
    monkeypatch.setattr(recalls, "BATCH", 5)
    await store.one.register(delivery("L1", 40))
    people = [appointment(i) for i in range(30)]
    await store.one.vaccines.admit(people)
    await store.one.register(delivery("L2", 12))
    save = MongoUnitOfWork.save
    left = seeded.randrange(1, 6)

    async def killed(self: MongoUnitOfWork, *what: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and seeded.random() < 0.5:
            raise Killed
        await save(self, *what)
        if left == 0:
            raise Killed

    for _ in range(kills):
        left = seeded.randrange(1, 6)
        monkeypatch.setattr(MongoUnitOfWork, "save", killed)
        try:
            await store.one.recall()
            await store.one.recalls.look()
        except Killed:
            pass
    monkeypatch.setattr(MongoUnitOfWork, "save", save)
    await store.one.recall()
    await store.look()
    recall_id = Recall.id_of("8", "MOD", "L1", "")
    done = await store.one.recalls.progress(recall_id, anybody)
    assert (done.reassigned, done.waiting, done.bookings_to_go, done.written_off) == (12, 18, 0, 40)
    assert await store.doses(*people) == ["L2"] * 12 + [""] * 18
    assert await store.lots() == {"L1": (0, 0, 40), "L2": (0, 12, 0)}
    assert await store.told("ReservationCompleted") == 42
    assert await store.told("ReservationWaiting") == 18


async def test_recall_against_bookings_cancellations_deliveries_and_write_offs(
    store: Store, seeded: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalls, "BATCH", 7)
    for round_ in range(3):
        number = f"R{round_}"
        lot_id, other, third = await store.one.register(
            delivery(number, 30), delivery(f"S{round_}", 15), delivery(f"T{round_}", 9, vaccine_code="208")
        )
        people = [appointment(i, seeded.choice(["", "8", "208"])) for i in range(60)]
        await store.one.vaccines.admit(people[:20])

        async def tried(act: Awaitable[object]) -> None:
            with suppress(LotWithdrawn, TooFewDoses, LotConflict):
                await act

        turn = itertools.cycle(store.replicas)
        works: list[Awaitable[object]] = [
            next(turn).recall(number),
            next(turn).recall(number, "h1"),
            *[next(turn).vaccines.admit(people[i : i + 5]) for i in range(20, 60, 5)],
            *[next(turn).vaccines.cancel(people[i : i + 2]) for i in range(0, 60, 6)],
            *[tried(next(turn).write_off(one, 3)) for one in (lot_id, other)],
            tried(next(turn).correct(other, received=9)),
            tried(next(turn).correct(third, expiry_date=DAY - timedelta(1))),
            tried(next(turn).register(delivery(number, 7, delivery_id="late"))),
            *[next(turn).recalls.look() for _ in range(3)],
            *[next(turn).vaccines.serve_waiting(thoroughly=True) for _ in range(2)],
        ]
        seeded.shuffle(works)
        await asyncio.gather(*works)
        await store.look()
        found = await store.lots()
        assert found[number][:2] == (0, 0)
        assert found[f"T{round_}"][1] == 0
    assert await store.one.stock.lots_to_look_at() == []
    waiting = [row for row in await store.rows("vaccinations") if row["status"] == Status.WAITING.value]
    assert all(row["dose"] is None for row in waiting)


# Beside a version without ledgers


async def of_0_3_0(mongo: Mongo, code: str, quantity: int, number: str = "L1", hospital_id: str = "h1") -> LotId:
    """Registers a lot as 0.3.0 does."""
    lot_id = Lot.id_of(hospital_id, code, "MOD", number)
    document = {
        "_id": lot_id, "hospital_id": hospital_id, "lot_number": number, "vaccine_code": code, "manufacturer": "MOD",
        "production_date": str(DELIVERY.production_date), "expiry_date": str(DELIVERY.expiry_date),
        "received": quantity, "free": quantity, "used": 0,
    }  # fmt: skip
    await mongo.database["lots"].update_one({"_id": lot_id}, {"$set": document}, upsert=True)
    return lot_id


async def admitted_by_0_3_0(mongo: Mongo, a: Appointment, lot_id: LotId) -> None:
    """Gives a dose to a booking as 0.3.0 does."""
    lot = await mongo.database["lots"].find_one({"_id": lot_id})
    assert lot
    names = ("lot_number", "vaccine_code", "manufacturer", "production_date", "expiry_date")
    document = {
        "_id": a.reservation_id, "customer_id": a.customer_id, "hospital_id": a.hospital_id,
        "hospital_name": a.hospital_name, "time_zone": a.time_zone, "date": str(a.date), "vaccine_code": a.vaccine_code,
        "decide_time": a.decide_time, "status": 2, "quantity": 1, "version": 1,
        "dose": {"lot_id": lot_id, **{name: lot[name] for name in names}},
    }  # fmt: skip
    await mongo.database["vaccinations"].update_one({"_id": a.reservation_id}, {"$set": document}, upsert=True)
    moved = {"free": lot["free"] - 1, "used": lot["used"] + 1}
    await mongo.database["lots"].update_one({"_id": lot_id}, {"$set": moved})


async def cancelled_by_0_3_0(mongo: Mongo, a: Appointment) -> None:
    """Puts a booking's dose back as 0.3.0 does."""
    row = await mongo.database["vaccinations"].find_one({"_id": a.reservation_id})
    assert row
    change = {"status": 3, "dose": None, "quantity": 0, "version": row["version"] + 1}
    await mongo.database["vaccinations"].update_one({"_id": a.reservation_id}, {"$set": change})
    lot = await mongo.database["lots"].find_one({"_id": row["dose"]["lot_id"]})
    assert lot
    moved = {"free": lot["free"] + 1, "used": lot["used"] - 1}
    await mongo.database["lots"].update_one({"_id": lot["_id"]}, {"$set": moved})


async def test_ledgers_of_lots_that_were_there_before_are_opened_once(store: Store) -> None:
    ids = [await of_0_3_0(store.mongo, "207", 5, f"L{i}") for i in range(23)]
    a = appointment()
    await admitted_by_0_3_0(store.mongo, a, ids[0])
    await asyncio.gather(*(replica.recalls.open_ledgers() for replica in store.replicas))
    assert await store.one.stock.lots_to_open(10) == []
    found = await store.lots()
    assert (found["L0"], found["L1"]) == ((4, 1, 0), (5, 0, 0))
    assert [m["kind"] for m in await store.rows("movements")] == [MovementKind.OPENED.value] * 23
    assert await store.told("StockMoved") == 23
    plan = await store.mongo.database["lots"].find({"to_look_at": {"$in": [True, None]}}).explain()
    assert "COLLSCAN" not in str(plan["queryPlanner"]["winningPlan"])


async def test_doses_that_0_3_0_moves_meanwhile_are_entered_as_unrecorded(store: Store) -> None:
    lot_id = await of_0_3_0(store.mongo, "207", 9)
    before, between, after = (appointment(i) for i in range(3))
    await admitted_by_0_3_0(store.mongo, before, lot_id)
    mine = appointment(9)
    await store.one.vaccines.admit([mine])
    await admitted_by_0_3_0(store.mongo, between, lot_id)
    await cancelled_by_0_3_0(store.mongo, mine)
    await admitted_by_0_3_0(store.mongo, after, lot_id)
    await store.one.write_off(lot_id, 2)
    assert await store.lots() == {"L1": (4, 3, 2)}
    kinds = [MovementKind(m["kind"]).name for m in await store.rows("movements")]
    assert Counter(kinds) == {"OPENED": 1, "RESERVED": 1, "UNRECORDED": 1, "WRITTEN_OFF": 1}


async def test_what_0_3_0_does_with_a_recalled_lot_is_put_right(store: Store) -> None:
    [lot_id] = await store.one.register(delivery(quantity=5))
    people = [appointment(i) for i in range(3)]
    await store.one.vaccines.admit(people)
    begun = await store.one.recall()
    await cancelled_by_0_3_0(store.mongo, people[0])  # a dose comes back
    await store.look()
    assert await store.lots() == {"L1": (0, 0, 5)}
    late = appointment(7)
    await store.mongo.database["lots"].update_one({"_id": lot_id}, {"$set": {"free": 1, "used": 4, "written_off": 4}})
    await store.mongo.database["lots"].update_one(
        {"_id": lot_id}, {"$set": {"entered.free": 1, "entered.written_off": 4}}
    )
    await admitted_by_0_3_0(store.mongo, late, lot_id)  # and it gives it to somebody else
    await of_0_3_0(store.mongo, "8", 4, hospital_id="h2")  # and takes a delivery of the lot elsewhere
    await asyncio.gather(*(replica.recalls.look(thoroughly=True) for replica in store.replicas))
    assert await store.doses(late) == [""]
    assert (await store.one.recalls.progress(begun.recall.recall_id, anybody)).lots == 2
    rows = await store.rows("lots")
    assert [(row["free"], row["used"] - row["written_off"]) for row in rows] == [(0, 0), (0, 0)]


# Exchanges


async def test_an_exchange_serves_whom_no_free_dose_suits(store: Store) -> None:
    await store.one.register(delivery("A", 1, vaccine_code="207", expiry_date=DAY), delivery("B", 1, vaccine_code="8"))
    takes_any, certain, other = appointment(1), appointment(2, code="207"), appointment(3, code="207")
    await store.one.vaccines.admit([takes_any])
    await store.one.vaccines.admit([certain])
    assert await store.doses(takes_any, certain) == ["B", "A"]
    await store.one.vaccines.admit([other])
    await store.one.vaccines.cancel([certain])
    await store.one.vaccines.serve_waiting()
    assert await store.doses(other) == ["A"]
    await store.lots()


async def test_those_who_wait_are_served_by_an_exchange_when_a_dose_is_free_again(store: Store) -> None:
    await store.one.register(delivery("A", 1, vaccine_code="207", expiry_date=DAY), delivery("B", 1, vaccine_code="8"))
    takes_any, holds_b, certain = appointment(1), appointment(2, code="8"), appointment(3, code="207")
    await store.one.vaccines.admit([takes_any, holds_b, certain])
    assert await store.doses(takes_any, holds_b, certain) == ["A", "B", ""]
    await store.one.vaccines.cancel([holds_b])
    await store.one.vaccines.serve_waiting()
    assert await store.doses(takes_any, certain) == ["B", "A"]
    assert await store.lots() == {"A": (0, 1, 0), "B": (0, 1, 0)}


# Over gRPC


def token(role: str = "operator", hospital_id: str = "h1") -> tuple[tuple[str, str], ...]:
    claims = {"sub": role, "roles": [role], "hospital": hospital_id, "exp": time.time() + 1000}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


@asynccontextmanager
async def served(store: Store) -> AsyncIterator[tuple[Any, Any]]:
    """Stubs of vaccine management and of recalls."""
    server = grpc.aio.server(interceptors=[Edge(main_door.ERRORS, max_calls=100, max_streams=100)])
    record = Accesses(MongoAccesses(store.mongo), store.one.clock)
    main_door.register(server, store.one.vaccines, store.one.stockroom, record)
    door.register(server, store.one.recalls)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield (
            vaccinemgmt_service_pb2_grpc.VaccinemgmtServiceStub(channel),
            recall_service_pb2_grpc.RecallServiceStub(channel),
        )
    await server.stop(None)


@asynccontextmanager
async def refused(reason: str, field: str = "") -> AsyncIterator[None]:
    """The call inside is refused with that reason, and the field in error."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        yield
    trailers = dict(refusal.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, *others = status.details
    told = error_details_pb2.ErrorInfo()
    info.Unpack(told)
    assert told.reason == reason, refusal.value.details()
    if field:
        problems = error_details_pb2.BadRequest()
        others[0].Unpack(problems)
        assert [violation.field for violation in problems.field_violations] == [field]


async def test_a_lots_life_over_grpc(store: Store) -> None:
    async with served(store) as (stock, _):
        deliveries = [
            lot_pb2.Delivery(
                lot_number="L1", vaccine_code=code, manufacturer="MOD", production_date="2027-01-01",
                expiry_date="2027-06-30", quantity=5, delivery_id=key,
            )
            for code, key in (("08", "a"), ("8", "b"), ("008", "a"))
        ]  # fmt: skip
        request = pb.RegisterLotsRequest(hospital_id="h1", deliveries=deliveries)
        answer = await stock.RegisterLots(request, metadata=token("manager"))
        assert (answer.lots_created, list(answer.taken)) == (1, [0, 1])
        assert [(lot.received, lot.free, lot.vaccine_code) for lot in answer.lots] == [(10, 10, "8")] * 3
        lot_id = answer.lots[0].lot_id
        correct = pb.CorrectLotRequest(lot_id=lot_id, request_id=new_id(), expiry_date="2027-05-01", note="misread")
        for _ in range(2):
            corrected = await stock.CorrectLot(correct, metadata=token("manager"))
            assert (corrected.lot.expiry_date, corrected.lot.received) == ("2027-05-01", 10)
        fell = pb.WriteOffDosesRequest(lot_id=lot_id, request_id=new_id(), quantity=3, reason=1, note="fell")  # type: ignore[arg-type]
        written_off = await stock.WriteOffDoses(fell, metadata=token("manager"))
        assert (written_off.lot.free, written_off.lot.written_off) == (7, 3)
        page = await stock.ListMovements(pb.ListMovementsRequest(lot_id=lot_id, page_size=3), metadata=token())
        rest = pb.ListMovementsRequest(lot_id=lot_id, page_token=page.next_page_token)
        movements = [*page.movements, *(await stock.ListMovements(rest, metadata=token())).movements]
        assert sorted((m.kind, m.quantity, m.by, m.write_off_reason, m.delivery_id) for m in movements) == [
            (1, 5, "manager", 0, "a"), (1, 5, "manager", 0, "b"), (2, 0, "manager", 0, ""), (6, 3, "manager", 1, ""),
        ]  # fmt: skip
        async with refused("REQUEST_ID_REUSED", "request_id"):
            correct.received = 9
            await stock.CorrectLot(correct, metadata=token())
        correct.request_id, correct.received = new_id(), 2
        async with refused("TOO_FEW_DOSES", "received"):
            await stock.CorrectLot(correct, metadata=token())
        correct.ClearField("received")
        correct.expiry_date = "2026-01-01"
        async with refused("EXPIRY_BEFORE_PRODUCTION", "expiry_date"):
            await stock.CorrectLot(correct, metadata=token())
        fell.request_id, fell.quantity = new_id(), 8
        async with refused("TOO_FEW_DOSES", "quantity"):
            await stock.WriteOffDoses(fell, metadata=token())
        async with refused("OTHER_HOSPITAL"):
            await stock.WriteOffDoses(fell, metadata=token("manager", "h2"))
        async with refused("UNKNOWN_LOT", "lot_id"):
            await stock.ListMovements(pb.ListMovementsRequest(lot_id=new_id()), metadata=token())


async def test_a_recall_over_grpc(store: Store) -> None:
    await store.one.register(delivery(quantity=5))
    await store.one.vaccines.admit([appointment()])
    request = recall_pb.RecallLotRequest(vaccine_code="08", manufacturer="MOD", lot_number="L1", note="contaminated")
    async with served(store) as (stock, stub):
        async with refused("OTHER_HOSPITAL"):
            await stub.RecallLot(request, metadata=token("manager"))
        begun = (await stub.RecallLot(request, metadata=token())).recall
        assert (begun.lots, begun.written_off, begun.bookings_to_go, begun.vaccine_code) == (1, 4, 1, "8")
        await store.look()
        done = (await stub.GetRecall(recall_pb.GetRecallRequest(recall_id=begun.recall_id), metadata=token())).recall
        assert (done.written_off, done.waiting, done.reassigned, done.bookings_to_go) == (5, 1, 0, 0)
        assert (done.note, done.time.ToDatetime(UTC)) == ("contaminated", NOW)
        ask = recall_pb.ListVaccinatedRequest(recall_id=begun.recall_id)
        assert not (await stub.ListVaccinated(ask, metadata=token())).vaccinated
        async with refused("OTHER_HOSPITAL"):
            await stub.ListVaccinated(ask, metadata=token("manager"))
        async with refused("UNKNOWN_RECALL", "recall_id"):
            await stub.GetRecall(recall_pb.GetRecallRequest(recall_id=new_id()), metadata=token())
        request.lot_number = "L9"
        async with refused("UNKNOWN_LOT", "lot_number"):
            await stub.RecallLot(request, metadata=token())
        more = lot_pb2.Delivery(
            lot_number="L1", vaccine_code="8", manufacturer="MOD", production_date="2027-01-01",
            expiry_date="2027-06-30", quantity=5, delivery_id="more",
        )  # fmt: skip
        async with refused("LOT_WITHDRAWN", "deliveries[0]"):
            await stock.RegisterLots(pb.RegisterLotsRequest(hospital_id="h1", deliveries=[more]), metadata=token())
        [lot] = (await stock.ListLots(pb.ListLotsRequest(hospital_id="h1"), metadata=token())).lots
        assert (lot.withdrawn, lot.written_off) == ("contaminated", 5)


# The store itself


FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("lots", {"written_off": 4}),
    ("lots", {"administered": -1}),
    ("lots", {"entered.free": 2}),
    ("lots", {"entered": {"received": 1}}),
    ("movements", {"kind": 0}),
    ("movements", {"quantity": -1}),
    ("movements", {"quantity": "3"}),
    ("movements", {"kind": MovementKind.RESERVED.value}),
    ("movements", {"lot_id": None}),
    ("recalls", {"note": ""}),
    ("recalls", {"hospital_id": None}),
    ("recalls", {"lot_number": ""}),
    ("recalls", {"at": "today"}),
]


async def test_the_store_itself_refuses_what_the_rules_forbid(store: Store) -> None:
    await store.one.register(delivery(), hospital_id="h1")
    await store.one.register(delivery("L2"), hospital_id="h1")
    await store.one.recall("L2")
    for collection, bad in FORBIDDEN:
        first = {"lot_number": "L1"} if collection == "lots" else {}
        with pytest.raises(WriteError, match="failed validation"):
            print("must be refused:", bad, await store.mongo.database[collection].update_one(first, {"$set": bad}))


async def test_the_look_each_second_reads_nothing_of_what_is_past(store: Store) -> None:
    """Over withdrawn and used lots, and recalls, of years."""
    dates = {"production_date": "2020-01-01", "expiry_date": "2021-01-01"}
    doses = {"received": 5, "free": 0, "used": 5, "administered": 0, "written_off": 5}
    done = {"withdrawn": "old", "to_look_at": False, "entered": None}
    of = {"vaccine_code": "8", "manufacturer": "MOD", **dates, **doses, **done}
    lots = [{"_id": new_id(), "hospital_id": f"h{i % 50}", "lot_number": f"P{i}", **of} for i in range(2000)]
    await store.mongo.database["lots"].insert_many(lots)
    withdrawn = {"withdrawn": {"$gt": ""}, "free": {"$gt": 0}}
    for query in ({"to_look_at": True}, {"to_look_at": None}, withdrawn):
        found = await store.mongo.database.command(
            "explain", {"find": "lots", "filter": query}, verbosity="executionStats"
        )
        assert found["executionStats"]["totalDocsExamined"] == 0
        assert found["executionStats"]["totalKeysExamined"] <= 1
