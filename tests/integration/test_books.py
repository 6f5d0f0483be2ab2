"""A service's books are proved from its store and from the events, and every difference is named, and nothing else."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

import grpc.aio
import pytest
from grpc import StatusCode
from nats.aio.client import Client

from services.approval.adapters.books import ApprovalBooks
from services.approval.adapters.postgres import PostgresBooks
from services.approval.application import Approval
from services.approval.domain import Decision, Hospital, Request, ReservationId
from services.chassis.convert import to_message
from services.chassis.events import STREAM, Bus, Consumer, Outgoing, Relay, books, operations
from services.chassis.events.books import Check, Progress
from services.chassis.events.erasure import Eraser
from services.chassis.mongo import Mongo
from services.chassis.postgres import Database
from services.chassis.retention import Retention
from services.vaccinemgmt.adapters.books import LotBooks
from services.vaccinemgmt.domain import (
    Appointment,
    Delivery,
    DoseChange,
    DoseChangeReason,
    Lot,
    Movement,
    MovementId,
    MovementKind,
    Status,
    Vaccination,
    WriteOffReason,
)
from services.vaccinemgmt.domain import Request as OfStaff
from services.vaccinemgmt.domain import ReservationId as DoseId
from services.vaccinemgmt.domain import vaccination as happened
from vaccination.approval.v1 import appointment_pb2
from vaccination.operations.v1 import operations_service_pb2 as pb
from vaccination.operations.v1.operations_service_pb2_grpc import OperationsServiceStub
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccination_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as told

from .conftest import FOR_EVER, Days, OpenBus, OpenDatabase, OpenMongo
from .test_erasure import serving, token
from .test_retention import Clock, new_id, rows

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
TODAY, DAY = date(2027, 3, 1), timedelta(1)
Named = tuple[str, str, int, int, str]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "PATIENCE", 0.6)
    monkeypatch.setattr(books, "LOOK_AGAIN", 0.1)
    monkeypatch.setattr(operations, "draining", asyncio.Event())


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def checked(bus: Bus, kept: books.Books) -> tuple[list[Named], Progress]:
    """The differences, and the last report."""
    found: list[Named] = []
    progress = Progress()
    async for progress in Check(bus, kept).run():
        found += [(d.account, d.quantity, d.store, d.other, d.counted_from) for d in progress.differences]
    return found, progress


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    yield
    relay.stop()
    relay.committed([])
    await task


async def message_of(admin: Client, subject: str, which: Callable[[bytes], bool] = lambda _: True) -> int:
    """The number of the last message of a type."""
    js, found = admin.jetstream(), 0
    state = (await js.stream_info(STREAM)).state
    for number in range(state.first_seq, state.last_seq + 1):
        message = await js.get_msg(STREAM, seq=number)
        if message.subject == subject and which(message.data or b""):
            found = number
    assert found
    return found


# Places


class Office:
    """Approval with its outbox and its stream."""

    def __init__(self, database: Database, bus: Bus, clock: Clock) -> None:
        self.database, self.bus, self.clock = database, bus, clock
        self.relay = Relay(database, bus.publish)
        self.approval = Approval(PostgresBooks(database, self.relay.committed), clock)

    async def book(self, day: date = TODAY + DAY, customer: str = "") -> ReservationId:
        request = Request(ReservationId(new_id()), customer or new_id(), "h1", day, "")
        [answer] = await self.approval.decide([request])
        assert isinstance(answer, Decision)
        return request.reservation_id

    async def check(self, retention: Retention = FOR_EVER) -> list[Named]:
        found, last = await checked(self.bus, ApprovalBooks(self.database, retention, self.clock))
        assert last.complete
        return found

    async def tamper(self, sql: str, *values: object) -> None:
        async with self.database.connection() as connection:
            await connection.execute(sql, *values)


@pytest.fixture
async def office(open_database: OpenDatabase, open_bus: OpenBus, clock: Clock) -> Office:
    office = Office(await open_database("approval"), await open_bus("approval"), clock)
    await office.approval.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    await office.approval.set_capacity("h1", TODAY, TODAY + 9 * DAY, 500)
    return office


async def some_days(office: Office) -> None:
    """A random history: bookings, some of them refused, some given up."""
    chance = random.Random(7)
    booked = [await office.book(TODAY + chance.randrange(11) * DAY, f"c{chance.randrange(80)}") for _ in range(120)]
    granted = [
        str(row["id"])
        for row in await rows(office.database, "SELECT reservation_id AS id FROM decisions WHERE denial IS NULL")
    ]
    assert len(granted) < len(booked)
    await office.approval.release([ReservationId(x) for x in sorted(granted) if chance.random() < 0.4])
    await office.relay.flush()


async def test_places_add_up_after_a_random_history_whatever_is_published_twice_or_not_yet(
    office: Office, nats_admin: Client
) -> None:
    await some_days(office)
    js = nats_admin.jetstream()
    for number in (1, 5, 3, 2):
        message = await js.get_msg(STREAM, seq=number)
        await js.publish(message.subject or "", message.data or b"")
    await js.publish("vaccination.approval.v1.ApprovalGranted", b"\xff garbage")
    released = await office.book()
    await office.approval.release([released])
    await office.book()  # their events are in the outbox still
    assert await office.check() == []


@pytest.mark.parametrize("by", [1, -1])
async def test_a_day_whose_places_are_off_by_one_is_named_with_both_counts(office: Office, by: int) -> None:
    await some_days(office)
    await office.tamper("UPDATE days SET approved = approved + $2 WHERE date = $1", TODAY + 2 * DAY, by)
    [row] = await rows(office.database, "SELECT approved FROM days WHERE date = $1", TODAY + 2 * DAY)
    right = row["approved"] - by
    account = f"h1 {TODAY + 2 * DAY}"
    assert await office.check() == [
        (account, "approved", right + by, right, "decisions"),
        (account, "approved", right + by, right, "events"),
    ]


async def test_a_decision_that_is_gone_is_named(office: Office) -> None:
    one = await office.book()
    await office.book()
    await office.relay.flush()
    await office.tamper("DELETE FROM active_bookings WHERE reservation_id = $1", one)
    await office.tamper("DELETE FROM decisions WHERE reservation_id = $1", one)
    assert await office.check() == [(f"h1 {TODAY + DAY}", "approved", 2, 1, "decisions")]


@pytest.mark.parametrize(("event", "other"), [("ApprovalGranted", 1), ("ApprovalReleased", 3)])
async def test_an_event_of_a_place_that_is_missing_is_named(
    office: Office, nats_admin: Client, event: str, other: int
) -> None:
    await office.approval.release([await office.book(), await office.book(TODAY + 2 * DAY)])
    await office.relay.flush()
    for _ in range(2):
        await office.book()
    await office.relay.flush()
    number = await message_of(
        nats_admin, f"vaccination.approval.v1.{event}", lambda data: str(TODAY + DAY).encode() in data
    )
    await nats_admin.jetstream().delete_msg(STREAM, number)
    assert await office.check() == [(f"h1 {TODAY + DAY}", "approved", 2, other, "events")]


async def test_a_day_of_which_only_the_events_know_is_named(office: Office) -> None:
    await office.book()
    await office.relay.flush()
    await office.tamper("DELETE FROM active_bookings")
    await office.tamper("DELETE FROM decisions")
    await office.tamper("DELETE FROM days WHERE date = $1", TODAY + DAY)
    assert await office.check() == [(f"h1 {TODAY + DAY}", "approved", 0, 1, "events")]


async def test_while_bookings_go_on_the_books_agree_and_a_day_that_is_wrong_is_named_all_the_same(
    office: Office,
) -> None:
    stopping = asyncio.Event()

    async def customers(seed: int) -> None:
        chance = random.Random(seed)
        while not stopping.is_set():
            booked = await office.book(TODAY + chance.randrange(1, 3) * DAY)
            await asyncio.sleep(chance.random() / 50)
            if chance.random() < 0.5:
                await office.approval.release([booked])

    async with running(office.relay):
        busy = [asyncio.create_task(customers(seed)) for seed in range(4)]
        try:
            for _ in range(3):
                assert await office.check() == []
            await office.tamper("UPDATE days SET approved = approved + 1 WHERE date = $1", TODAY + DAY)
            found = await office.check()
        finally:
            stopping.set()
            await asyncio.gather(*busy)
    assert [(account, store - other, counted_from) for account, _, store, other, counted_from in found] == [
        (f"h1 {TODAY + DAY}", 1, "decisions"),
        (f"h1 {TODAY + DAY}", 1, "events"),
    ]


async def test_what_an_erased_person_had_on_a_day_that_has_passed_is_no_difference(
    office: Office, nats_admin: Client, clock: Clock
) -> None:
    for customer in ("c1", "c2"):
        await office.book(TODAY, customer)
    await office.relay.flush()
    clock.now += DAY
    await office.approval.erase("c1")
    await nats_admin.jetstream().delete_msg(STREAM, 1)
    await office.book(TODAY + DAY)  # the stream's beginning is gone, but not this day's
    found, last = await checked(office.bus, ApprovalBooks(office.database, FOR_EVER, clock))
    assert (found, last.complete) == ([], False)
    await office.tamper("UPDATE days SET approved = 0 WHERE date = $1", TODAY)
    found, _ = await checked(office.bus, ApprovalBooks(office.database, FOR_EVER, clock))
    assert [(account, store, other, of) for account, _, store, other, of in found] == [
        (f"h1 {TODAY}", 0, 1, "decisions"),
        (f"h1 {TODAY}", 0, 1, "events"),
    ]


async def test_days_that_retention_deletes_are_left_out(office: Office, clock: Clock) -> None:
    await office.book(TODAY)
    await office.relay.flush()
    await office.tamper("DELETE FROM active_bookings")
    await office.tamper("DELETE FROM decisions")
    await office.tamper("DELETE FROM days WHERE date = $1", TODAY)
    clock.now += 40 * DAY
    assert await office.check(Retention(Days(retention_passed_days=90), clock)) != []
    assert await office.check(Retention(Days(retention_passed_days=30), clock)) == []


async def test_a_stream_without_its_beginning_is_compared_as_far_as_it_tells_everything(
    office: Office, nats_admin: Client, clock: Clock
) -> None:
    clock.now = datetime.now(UTC) - 5 * DAY  # the stream's own clock is the real one
    first = clock.now.date() + DAY
    await office.approval.set_capacity("h1", first, first + 20 * DAY, 5)
    old = await office.book(first + 15 * DAY)
    await office.book(first + 16 * DAY)
    await office.relay.flush()
    clock.now += 8 * DAY
    await office.book(first + 17 * DAY)
    await office.book(first + 16 * DAY)
    await office.approval.release([old])
    await office.relay.flush()
    await nats_admin.jetstream().purge_stream(STREAM, seq=3)

    async def check() -> list[Named]:
        found, last = await checked(office.bus, ApprovalBooks(office.database, FOR_EVER, clock))
        assert last.complete is False
        return found

    assert await check() == []
    for n in (16, 17):
        await office.tamper("UPDATE days SET approved = approved + 1 WHERE date = $1", first + n * DAY)
    assert await check() == [
        (f"h1 {first + 16 * DAY}", "approved", 3, 2, "decisions"),
        (f"h1 {first + 17 * DAY}", "approved", 2, 1, "decisions"),
        (f"h1 {first + 17 * DAY}", "approved", 2, 1, "events"),
    ]


# Doses


EVENTS: dict[type, Any] = {
    happened.Completed: told.ReservationCompleted,
    happened.Waiting: told.ReservationWaiting,
    happened.Cancelled: told.CancellationCompleted,
    happened.CheckedIn: told.VaccinationCheckedIn,
    happened.Administered: told.VaccinationAdministered,
    happened.Missed: told.VaccinationMissed,
    happened.Unserved: told.VaccinationUnserved,
}
IN_STREAM = (MovementKind.RECEIVED, MovementKind.CORRECTED, MovementKind.WRITTEN_OFF, MovementKind.OPENED)


def texts(item: object, *leave_out: str) -> dict[str, Any]:
    values = {f.name: getattr(item, f.name) for f in fields(item) if f.name not in leave_out}  # type: ignore[arg-type]
    return {k: str(v) if isinstance(v, date) and not isinstance(v, datetime) else v for k, v in values.items()}


class Pharmacy:
    """Lots and vaccinations as the domain moves them, written with their events as the service's store has them."""

    def __init__(self, mongo: Mongo, bus: Bus) -> None:
        self.mongo, self.bus, self.relay = mongo, bus, Relay(mongo, bus.publish)
        self.lots: list[Lot] = []
        self.people: list[Vaccination] = []
        self.now = NOW

    def lot(self, number: str, *, keeps_ledger: bool = True, quantity: int = 20) -> Lot:
        delivery = Delivery(number, "207", "MOD", date(2027, 1, 1), date(2027, 6, 30), quantity)
        lot = Lot.of("h1", delivery)
        self.lots.append(lot)
        if keeps_ledger:
            lot.receive(delivery, self.of_staff())
        else:
            lot.opened, lot.balance.received, lot.balance.free = False, quantity, quantity
        return lot

    def person(self, lot: Lot | None) -> Vaccination:
        appointment = Appointment(
            DoseId(new_id()), new_id(), "h1", "Clinic", "Asia/Seoul", TODAY, "", self.now + timedelta(seconds=1)
        )
        person = Vaccination(appointment)
        self.people.append(person)
        person.complete(lot, self.now) if lot else person.wait(self.now)
        return person

    def of_staff(self, note: str = "") -> OfStaff:
        return OfStaff(MovementId(new_id()), "manager", note, self.now)

    async def save(self, *, ledgers: bool = True) -> None:
        """Writes everything that has changed in one transaction; without ledgers as 0.3.0 does."""

        def never_told(_: object) -> None: ...

        async with self.mongo.unit_of_work(never_told) as transaction:
            events, session = list[Outgoing](), cast(Any, transaction.session)  # motor takes PyMongo's too
            for lot in self.lots:
                events += await self._save_lot(lot, session, ledgers=ledgers)
            for person in self.people:
                if person.events:
                    document = texts(person.appointment, "reservation_id") | {
                        "status": person.status.value, "quantity": person.quantity, "version": person.version,
                        "dose": texts(person.dose) if person.dose else None,
                    }  # fmt: skip
                    await self.mongo.database["vaccinations"].update_one(
                        {"_id": person.reservation_id}, {"$set": document}, upsert=True,
                        session=session, bypass_document_validation=True,
                    )  # fmt: skip
                    events += [self._event(event) for event in person.events]
                    person.events.clear()
            await transaction.enqueue(events)

    async def _save_lot(self, lot: Lot, session: Any, *, ledgers: bool) -> list[Outgoing]:
        balance, moved = lot.balance, list[Outgoing]()
        document = texts(lot, "lot_id", "balance", "entered", "opened", "movements") | {
            "received": balance.received, "free": balance.free, "used": balance.received - balance.free,
        }  # fmt: skip
        if lot.opened and ledgers:
            document |= {"administered": balance.administered, "written_off": balance.written_off}
            document["entered"] = asdict(lot.entered)
        lots = self.mongo.database["lots"]
        await lots.update_one({"_id": lot.lot_id}, {"$set": document}, upsert=True, session=session)
        for movement in lot.movements if ledgers else ():
            entry = texts(movement, "movement_id", "production_date", "expiry_date")
            entry |= {"_id": movement.movement_id, "kind": movement.kind.value}
            entry["reason"] = movement.reason.value if movement.reason else None
            await self.mongo.database["movements"].insert_one(entry, session=session)
            if movement.kind in IN_STREAM:
                moved.append(self._stock_moved(lot, movement))
        lot.movements.clear()
        return moved

    def _stock_moved(self, lot: Lot, movement: Movement) -> Outgoing:
        written_off = movement.kind is MovementKind.WRITTEN_OFF
        event = told.StockMoved(
            lot=to_message(lot, lot_pb2.Lot), kind=movement.kind.value,  # type: ignore[arg-type]
            received_change=0 if written_off else movement.quantity,
            written_off_change=movement.quantity if written_off else 0, movement_id=movement.movement_id,
        )  # fmt: skip
        return Outgoing.of(lot.lot_id, movement.at, event)

    def _event(self, event: Any) -> Outgoing:
        appointment = to_message(event.appointment, appointment_pb2.Appointment)
        body = EVENTS[type(event)](appointment=appointment, version=event.version)
        if isinstance(event, happened.Completed | happened.Administered):
            body.dose.CopyFrom(to_message(event.dose, vaccination_pb2.Dose))
        return Outgoing.of(event.appointment.reservation_id, event.at, body)

    async def published(self) -> None:
        await self.save()
        await self.relay.flush()

    async def check(self, retention: Retention = FOR_EVER) -> list[tuple[str, str, int, int, str]]:
        found, last = await checked(self.bus, LotBooks(self.mongo, retention))
        assert last.complete
        return found

    async def tamper(self, collection: str, which: dict[str, Any], change: dict[str, Any] | None) -> None:
        of = self.mongo.database[collection]
        if change is None:
            assert (await of.delete_one(which)).deleted_count
        else:
            assert (await of.update_one(which, change, bypass_document_validation=True)).modified_count

    def a_day_at_the_counter(self, seed: int, steps: int) -> None:
        """What may happen to lots and people, at random."""
        chance, change = random.Random(seed), DoseChange(DoseChangeReason.MANAGER)
        for _ in range(steps):
            lot, other = (chance.choice(self.lots) for _ in range(2))
            person = chance.choice(self.people) if self.people else None
            present = next((x for x in self.lots if person and person.dose and x.lot_id == person.dose.lot_id), None)
            match chance.randrange(9):
                case 0 if lot.free:
                    lot.write_off(1, WriteOffReason.BROKEN, self.of_staff())
                case 1:
                    lot.receive(Delivery("", "", "", lot.production_date, lot.expiry_date, 5), self.of_staff())
                case 2 if lot.free > 1:
                    lot._enter(Movement(MovementKind.CORRECTED, lot.lot_id, -1, self.now))
                case 3 if person and present and person.status is Status.COMPLETED:
                    person.administer(present, present, self.now, "nurse")
                case 4 if person and person.status is Status.COMPLETED:
                    if (back := person.cancel(self.now)) and present and back == present.lot_id:
                        present.put_back(person.reservation_id, self.now)
                case 5 if person and person.status is Status.COMPLETED and present and other.free:
                    person.lose(present, change, self.now)
                    person.complete(other, self.now)
                case 6 if person and person.status is Status.COMPLETED and present:
                    person.miss(self.now)
                    present.put_back(person.reservation_id, self.now)
                case 7 if person and person.status is Status.COMPLETED:
                    person.check_in(self.now)
                case _:
                    self.person(lot if lot.free else None)


@pytest.fixture
async def pharmacy(open_mongo: OpenMongo, open_bus: OpenBus) -> Pharmacy:
    return Pharmacy(await open_mongo(), await open_bus("vaccinemgmt"))


async def a_history(pharmacy: Pharmacy) -> list[str]:
    """Random days with three lots, one of them older than ledgers; the names of the lots' accounts."""
    lots = [pharmacy.lot("L1"), pharmacy.lot("L2"), pharmacy.lot("OLD", keeps_ledger=False)]
    for seed in range(6):
        pharmacy.a_day_at_the_counter(seed, 25)
        await pharmacy.save()
    await pharmacy.relay.flush()
    assert all(min(asdict(lot.balance).values()) > 0 for lot in lots)
    return [f"h1 lot {lot.lot_number} {lot.lot_id}" for lot in lots]


async def test_lots_add_up_after_a_random_history_whatever_is_published_twice_or_not_yet(
    pharmacy: Pharmacy, nats_admin: Client
) -> None:
    await a_history(pharmacy)
    js = nats_admin.jetstream()
    for number in (1, 30, 20, 25, 2):
        message = await js.get_msg(STREAM, seq=number)
        await js.publish(message.subject or "", message.data or b"")
    pharmacy.a_day_at_the_counter(9, 25)
    await pharmacy.save()  # and not published
    assert await pharmacy.check() == []


async def test_doses_that_are_free_and_used_at_once_are_named(pharmacy: Pharmacy) -> None:
    account = (await a_history(pharmacy))[0]
    lot = pharmacy.lots[0]
    await pharmacy.tamper("lots", {"_id": lot.lot_id}, {"$inc": {"free": 1, "used": -1}})
    b = lot.balance
    assert await pharmacy.check() == [
        (account, "free", b.free + 1, b.free, "events"),
        (account, "reserved", b.reserved - 1, b.reserved, "events"),
        (account, "reserved", b.reserved - 1, b.reserved, "vaccinations"),
    ]


async def test_a_movement_that_is_gone_is_named(pharmacy: Pharmacy) -> None:
    accounts = await a_history(pharmacy)
    b = pharmacy.lots[1].balance
    given = {"lot_id": pharmacy.lots[1].lot_id, "kind": MovementKind.ADMINISTERED.value}
    await pharmacy.tamper("movements", given, None)
    assert await pharmacy.check() == [
        (accounts[1], "administered", b.administered, b.administered - 1, "movements"),
        (accounts[1], "reserved", b.reserved, b.reserved + 1, "movements"),
    ]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.ADMINISTERED])
async def test_a_vaccination_that_is_gone_is_named(pharmacy: Pharmacy, status: Status) -> None:
    accounts = await a_history(pharmacy)
    lot = pharmacy.lots[2]
    await pharmacy.tamper("vaccinations", {"dose.lot_id": lot.lot_id, "status": status.value}, None)
    quantity = "reserved" if status is Status.COMPLETED else "administered"
    number = getattr(lot.balance, quantity)
    assert await pharmacy.check() == [(accounts[2], quantity, number, number - 1, "vaccinations")]


async def test_an_event_of_a_dose_that_is_missing_is_named(pharmacy: Pharmacy, nats_admin: Client) -> None:
    accounts = await a_history(pharmacy)
    lot = pharmacy.lots[0]
    subject, about = told.VaccinationAdministered.DESCRIPTOR.full_name, lot.lot_id.encode()
    await nats_admin.jetstream().delete_msg(STREAM, await message_of(nats_admin, subject, lambda data: about in data))
    b = lot.balance
    assert await pharmacy.check() == [  # the event before said that it was set aside
        (accounts[0], "administered", b.administered, b.administered - 1, "events"),
        (accounts[0], "reserved", b.reserved, b.reserved + 1, "events"),
    ]


async def test_an_event_of_a_delivery_that_is_missing_is_named(pharmacy: Pharmacy, nats_admin: Client) -> None:
    pharmacy.lot("L1")
    await pharmacy.published()
    pharmacy.lots[0].receive(Delivery("", "", "", TODAY, TODAY, 5), pharmacy.of_staff())
    await pharmacy.published()
    await nats_admin.jetstream().delete_msg(STREAM, 2)
    account = f"h1 lot L1 {pharmacy.lots[0].lot_id}"
    assert await pharmacy.check() == [(account, "free", 25, 20, "events"), (account, "received", 25, 20, "events")]


async def test_a_lot_without_a_ledger_and_doses_moved_beside_a_ledger_are_no_differences(pharmacy: Pharmacy) -> None:
    old, new = pharmacy.lot("OLD", keeps_ledger=False), pharmacy.lot("NEW")
    await pharmacy.published()
    for lot in (old, new):  # by a replica of 0.3.0
        lot_before = lot.entered
        pharmacy.person(lot)
        lot.entered = lot_before
    old.opened = False
    new.entered.free, new.entered.reserved = 20, 0
    await pharmacy.save(ledgers=False)
    assert await pharmacy.check() == []
    new.entered.free, new.entered.reserved = 20, 0
    pharmacy.person(new)  # enters what 0.3.0 did first
    await pharmacy.published()
    assert await pharmacy.check() == []
    await pharmacy.tamper("lots", {"_id": old.lot_id}, {"$inc": {"free": 1, "used": -1}})
    assert {(quantity, counted_from) for _, quantity, _, _, counted_from in await pharmacy.check()} == {
        ("reserved", "vaccinations"),
        ("reserved", "events"),
    }


async def test_a_dose_in_an_erased_persons_arm_is_known_from_its_vaccination(
    pharmacy: Pharmacy, nats_admin: Client
) -> None:
    pharmacy.lot("L1")
    person = pharmacy.person(pharmacy.lots[0])
    person.administer(pharmacy.lots[0], pharmacy.lots[0], NOW, "nurse")
    await pharmacy.published()
    erased = {"$set": {"customer_id": f"erased-{uuid.uuid4()}"}}
    await pharmacy.tamper("vaccinations", {"_id": person.reservation_id}, erased)
    assert await pharmacy.check() == []
    js = nats_admin.jetstream()
    for number in (2, 3):
        await js.delete_msg(STREAM, number)
    assert await pharmacy.check() == []


async def test_of_an_old_lot_vaccinations_and_events_may_be_fewer_and_not_more(pharmacy: Pharmacy) -> None:
    clock = Clock()
    kept = Retention(Days(retention_passed_days=366), clock)
    lot = pharmacy.lot("L1")
    people = [pharmacy.person(lot) for _ in range(3)]
    await pharmacy.published()
    clock.now += 300 * DAY
    await pharmacy.tamper("vaccinations", {"_id": people[0].reservation_id}, None)
    assert len(await pharmacy.check(kept)) == 1
    clock.now += 100 * DAY
    assert await pharmacy.check(kept) == []
    await pharmacy.tamper("lots", {"_id": lot.lot_id}, {"$inc": {"free": 2, "used": -2}})
    assert [(q, store, other, of) for _, q, store, other, of in await pharmacy.check(kept)] == [
        ("reserved", 1, 3, "events"),
        ("reserved", 1, 2, "vaccinations"),
    ]


async def test_of_a_stream_without_its_beginning_only_lots_that_came_later_are_compared(
    pharmacy: Pharmacy, nats_admin: Client
) -> None:
    pharmacy.now = datetime.now(UTC) - 5 * DAY  # the stream's own clock is the real one
    pharmacy.lot("OLD")
    await pharmacy.published()
    pharmacy.now += 8 * DAY
    pharmacy.lot("NEW")
    for lot in pharmacy.lots:
        pharmacy.person(lot)
    await pharmacy.published()
    await nats_admin.jetstream().purge_stream(STREAM, seq=2)
    found, last = await checked(pharmacy.bus, LotBooks(pharmacy.mongo, FOR_EVER))
    assert (found, last.complete) == ([], False)
    one_more = dict.fromkeys(("received", "free", "entered.received", "entered.free"), 1)
    for lot in pharmacy.lots:
        await pharmacy.tamper("lots", {"_id": lot.lot_id}, {"$inc": one_more})
    found, _ = await checked(pharmacy.bus, LotBooks(pharmacy.mongo, FOR_EVER))
    assert {(a.split()[2], q) for a, q, _, _, of in found if of == "events"} == {("NEW", "received"), ("NEW", "free")}
    assert {(a.split()[2], q) for a, q, _, _, of in found if of == "movements"} == {
        (lot, quantity) for lot in ("NEW", "OLD") for quantity in ("received", "free")
    }


async def test_lots_agree_while_doses_are_given_out(pharmacy: Pharmacy) -> None:
    for number in ("L1", "L2"):
        pharmacy.lot(number, quantity=200)
    stopping = asyncio.Event()

    async def work() -> None:
        seed = 0
        while not stopping.is_set():
            pharmacy.a_day_at_the_counter(seed := seed + 1, 3)
            await pharmacy.save()
            await asyncio.sleep(0.01)

    async with running(pharmacy.relay):
        busy = asyncio.create_task(work())
        try:
            for _ in range(3):
                assert await pharmacy.check() == []
        finally:
            stopping.set()
            await busy


# Over gRPC


async def test_an_operator_is_told_the_progress_and_each_difference_once(
    office: Office, open_database: OpenDatabase
) -> None:
    await some_days(office)
    for n in (1, 2):
        await office.tamper("UPDATE days SET approved = approved + 1 WHERE date = $1", TODAY + n * DAY)
    consumer = Consumer(office.bus, "mypage", [], await open_database("mypage"))
    begin: Any = lambda: Check(office.bus, ApprovalBooks(office.database, FOR_EVER, office.clock))  # noqa: E731

    async def nobody(_: str) -> int | None:
        return 0

    async with serving(office.database, office.bus, consumer, Eraser(nobody), begin) as channel:
        stub = OperationsServiceStub(channel)
        call: Any = stub.CheckBooks(pb.CheckBooksRequest(service="mypage"), metadata=token("operator"))
        answers: Sequence[pb.CheckBooksResponse] = [answer async for answer in call]
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert any(answer.events_to_go for answer in answers)
    assert (answers[-1].accounts, answers[-1].complete, len(answers[-1].differences)) == (10, True, 0)
    named = [(d.account, d.counted_from) for answer in answers for d in answer.differences]
    days = [f"h1 {TODAY + n * DAY}" for n in (1, 2)]
    assert named == [(day, counted_from) for day in days for counted_from in ("decisions", "events")]


async def test_a_service_without_books_says_so(open_database: OpenDatabase, open_bus: OpenBus) -> None:
    database, bus = await open_database("mypage"), await open_bus("mypage")
    consumer = Consumer(bus, "mypage", [], database)

    async def nobody(_: str) -> int | None:
        return 0

    async with serving(database, bus, consumer, Eraser(nobody)) as channel:
        stub = OperationsServiceStub(channel)
        call: Any = stub.CheckBooks(pb.CheckBooksRequest(service="mypage"), metadata=token("operator"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert "mypage keeps no books" in (refused.value.details() or "")
