"""Approval and reservation beside the code of 0.3.0 on one store, as during an update and after a rollback."""

import asyncio
import itertools
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import prometheus_client
import pytest

from services.approval.adapters.postgres import PostgresBooks
from services.approval.application import Approval
from services.approval.domain import Decision, Denial, Hospital, Location, Request, ReservationId
from services.chassis.postgres import Database, Transaction
from services.reservation.adapters import postgres as reservation_store
from services.reservation.adapters.postgres import PostgresReservations
from services.reservation.application import Followup
from services.reservation.domain import Appointment, Status
from services.reservation.domain import ReservationId as Id
from tests.releases import service

from .conftest import MIGRATIONS, Servers

VERSION = "0.3.0"
NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)
NEXT = DAY + timedelta(1)


@dataclass
class Store:
    """A store that 0.3.0 made, and a session of each version."""

    old: Database
    new: Database

    async def rows(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.new.connection() as connection:
            return list(await connection.fetch(sql, *arguments))


Made = Callable[[Database], Awaitable[None]]
MakeStore = Callable[[str, Made], Awaitable[Store]]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases") / VERSION


@pytest.fixture
async def make_store(servers: Servers, release: Path) -> AsyncIterator[MakeStore]:
    """Makes a service's store with 0.3.0, has it filled, and migrates it."""
    opened: list[Database] = []

    async def make(name: str, fill: Made) -> Store:
        service(VERSION, name, release)
        admin = await asyncpg.connect(servers.stores.postgres_url)
        database = f"old_{name}_{uuid.uuid4().hex[:8]}"
        await admin.execute(f"CREATE DATABASE {database}")
        await admin.close()
        store = Store(*(Database(servers.postgres_url(database), max_connections=4) for _ in range(2)))
        opened.extend([store.old, store.new])
        await store.old.open(release / "services" / name / "migrations")
        await fill(store.old)
        await store.new.open(MIGRATIONS[name])
        return store

    yield make
    for database in opened:
        await database.close()


# Approval


@dataclass
class Office:
    """A replica of each version. `released` has the modules of 0.3.0."""

    store: Store
    new: Approval
    old: Any
    released: Any

    async def ask(self, customer: int | str, day: date = DAY, *, old: bool = False, code: str = "") -> Any:
        key = str(uuid.uuid4())
        if old:
            request = self.released.Request(key, f"c{customer}", "h1", day, code)
            [answer] = await self.old.decide([request])
        else:
            [answer] = await self.new.decide([Request(ReservationId(key), f"c{customer}", "h1", day, code)])
        return answer

    async def places(self, day: date = DAY) -> tuple[int, int, int]:
        [row] = await self.store.rows("SELECT capacity, approved, over FROM days WHERE date = $1", day)
        return row["capacity"], row["approved"], row["over"]


def key_of(answer: Any) -> Any:
    return answer.appointment.reservation_id


@pytest.fixture
async def office(make_store: MakeStore, release: Path) -> Office:
    package = service(VERSION, "approval", release).__name__
    released = import_module(f"{package}.domain")
    application, adapter = import_module(f"{package}.application"), import_module(f"{package}.adapters.postgres")

    def old(database: Database) -> Any:
        return application.Approval(adapter.PostgresBooks(database, lambda: None), lambda: NOW)

    async def fill(database: Database) -> None:
        approval = old(database)
        await approval.put_hospital(released.Hospital("h1", "Han River Clinic", "Asia/Seoul"))
        await approval.set_capacity("h1", DAY, NEXT, 4)
        asks = [released.Request(str(uuid.uuid4()), f"first{i}", "h1", DAY, "08") for i in range(2)]
        await approval.decide(asks)

    store = await make_store("approval", fill)
    return Office(store, Approval(PostgresBooks(store.new, lambda: None), lambda: NOW), old(store.old), released)


async def test_both_versions_grant_and_free_places_of_a_store_that_0_3_0_made(office: Office) -> None:
    answers = await asyncio.gather(*(office.ask(i, old=i % 2 == 0) for i in range(10)))
    assert Counter(a.denial for a in answers) == {None: 2, Denial.DAY_FULL: 8}
    granted = [key_of(a) for a in answers if a.denial is None]
    await office.old.release(granted[:1])
    await office.new.release(granted[1:])
    assert await office.places() == (4, 2, 0)
    [first, _] = await office.store.rows(
        "SELECT reservation_id::text, customer_id FROM decisions WHERE vaccine_code = '08'"
    )
    again = Request(ReservationId(first["reservation_id"]), first["customer_id"], "h1", DAY, "8")
    [answer] = await office.new.decide([again])
    assert isinstance(answer, Decision)
    assert answer.denial is None


async def test_a_replica_of_0_3_0_grants_nothing_on_a_day_that_is_called_off(office: Office) -> None:
    day = await office.new.call_off("h1", DAY, "Ice.")
    assert (day.capacity, day.approved) == (4, 2)
    assert (await office.ask("a", old=True)).denial == Denial.DAY_NOT_OFFERED
    assert (await office.ask("b")).denial is Denial.DAY_CALLED_OFF
    [first, second] = await office.store.rows("SELECT reservation_id::text AS id FROM decisions WHERE denial IS NULL")
    await office.old.release([first["id"]])
    assert await office.new.revoke() == 1
    await office.old.release([second["id"]])  # the dose of the one that was revoked is back
    assert await office.places() == (0, 0, 0)
    day = await office.new.reopen("h1", DAY)
    assert (day.capacity, day.left) == (4, 4)
    assert (await office.ask("a", old=True)).denial is None


async def test_a_capacity_that_0_3_0_sets_reopens_a_day_that_was_called_off(office: Office) -> None:
    await office.new.call_off("h1", DAY, "Ice.")
    await office.old.set_capacity("h1", DAY, DAY, 3)
    assert await office.new.revoke() == 0
    [day], _ = await office.new.availability("h1", DAY, DAY)
    assert (day.capacity, day.approved, day.called_off) == (3, 2, "")
    assert (await office.ask("a")).denial is None
    await office.new.set_capacity("h1", DAY, DAY, 0)
    [day], _ = await office.new.availability("h1", DAY, DAY)
    assert (day.capacity, day.over, day.called_off) == (0, 3, "")


async def test_a_day_with_fewer_places_than_bookings_is_full_for_both_versions(office: Office) -> None:
    mine = [await office.ask(i) for i in range(2)]
    await office.new.set_capacity("h1", DAY, DAY, 2)
    assert await office.places() == (2, 4, 2)
    for old in (True, False):
        assert (await office.ask("late", old=old)).denial == Denial.DAY_FULL
    await office.old.release([key_of(mine[0])])  # it does not lower `over`
    assert await office.places() == (2, 3, 2)
    for old in (True, False):
        assert (await office.ask("late", old=old)).denial == Denial.DAY_FULL
    await office.new.release([key_of(mine[1])])
    assert await office.places() == (2, 2, 0)
    await office.old.set_capacity("h1", DAY, DAY, 3)
    assert [(await office.ask(f"last{old}", old=old)).denial for old in (True, False)] == [None, Denial.DAY_FULL]


async def test_0_3_0_renames_a_hospital_and_keeps_its_vaccines_and_location(office: Office) -> None:
    there = Location(37.57, 126.98)
    await office.new.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul", ["207"], location=there))
    await office.old.put_hospital(office.released.Hospital("h1", "Renamed", "Asia/Seoul"))
    [hospital] = await office.new.hospitals("", 9, "renamed")
    assert (hospital.name, hospital.vaccine_codes, hospital.location) == ("Renamed", ("207",), Location(37.57, 126.98))
    assert (await office.ask("a", code="8", old=True)).denial is None
    assert (await office.ask("b", code="8")).denial is Denial.VACCINE_NOT_OFFERED


async def test_0_3_0_repeats_the_answer_of_a_move_and_frees_its_place(office: Office) -> None:
    old = await office.ask("mover")
    move = Request(ReservationId(str(uuid.uuid4())), "cmover", "h1", NEXT, "", key_of(old))
    await office.new.decide([move])
    [again] = await office.old.decide([office.released.Request(move.reservation_id, "cmover", "h1", NEXT, "")])
    assert (again.denial, key_of(again)) == (None, move.reservation_id)
    await office.old.release([key_of(old), move.reservation_id])
    assert [await office.places(day) for day in (DAY, NEXT)] == [(4, 2, 0), (4, 0, 0)]


async def test_a_batch_costs_no_more_statements_than_in_0_3_0(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("read", "write"):  # through these two goes whatever a unit of work does
        really = getattr(Transaction, name)

        def counted(self: Transaction, sql: str, *arguments: object, really: Any = really) -> Any:
            seen.append(sql)
            return really(self, sql, *arguments)

        monkeypatch.setattr(Transaction, name, counted)
    await office.new.set_capacity("h1", DAY, NEXT, 50)

    async def costs(approval: Any, request: Any) -> list[int]:
        def asks() -> list[Any]:
            customers = (f"{request.__module__}{n}" for n in range(3))
            return [
                request(str(uuid.uuid4()), customer, "h1", day, "8")
                for customer, day in zip(customers, [DAY, NEXT, DAY], strict=True)
            ]

        granted, after = asks(), list[int]()
        for call in (
            approval.decide(granted),
            approval.decide(granted),  # repeats
            approval.decide([*asks(), *granted]),  # denied, since they have a booking
            approval.release([r.reservation_id for r in granted]),
        ):
            seen.clear()
            await call
            after.append(len(seen))
        return after

    assert await costs(office.new, Request) == await costs(office.old, office.released.Request) == [9, 5, 7, 10]


# Reservation


@dataclass
class Desk:
    """Both versions on one store."""

    store: Store
    new: Followup
    old: Any
    old_desk: Any

    async def statuses(self) -> dict[str, int]:
        return {
            r["id"]: r["status"]
            for r in await self.store.rows("SELECT reservation_id::text AS id, status FROM reservations")
        }


def appointment(cls: Any = Appointment) -> Any:
    return cls(Id(str(uuid.uuid4())), "c1", "h1", "Han River Clinic", "Asia/Seoul", DAY, "08", NOW)


@pytest.fixture
async def desk(make_store: MakeStore, release: Path) -> AsyncIterator[Desk]:
    package = service(VERSION, "reservation", release).__name__
    # Both versions have a figure of the same name.
    prometheus_client.REGISTRY.unregister(reservation_store.completion_seconds)
    adapter = import_module(f"{package}.adapters.postgres")
    application = import_module(f"{package}.application")

    async def fill(database: Database) -> None:
        reservations = adapter.PostgresReservations(database, lambda: None, lambda: NOW)
        await application.Followup(reservations).completed([appointment()])

    store = await make_store("reservation", fill)
    reservations = adapter.PostgresReservations(store.old, lambda: None, lambda: NOW)
    nobody: Any = None
    yield Desk(
        store,
        Followup(PostgresReservations(store.new, lambda: None, lambda: NOW)),
        application.Followup(reservations),
        application.ReservationDesk(reservations, nobody, lambda: NOW),
    )
    prometheus_client.REGISTRY.unregister(adapter.completion_seconds)
    del sys.modules[adapter.__name__]
    prometheus_client.REGISTRY.register(reservation_store.completion_seconds)


async def test_a_dose_that_0_3_0_recorded_stays_when_the_news_of_waiting_comes_late(desk: Desk) -> None:
    a = appointment()
    [(stored, status)] = (await desk.statuses()).items()
    assert status == Status.COMPLETED
    await desk.old.completed([a])  # version 2; version 1 was parked until a replica came that knows it
    await desk.new.heard_of_doses([(a, 1, False)])
    assert (await desk.statuses())[a.reservation_id] == Status.COMPLETED
    await desk.new.heard_of_doses([(a, 3, False)])  # the lot was recalled
    assert (await desk.statuses())[a.reservation_id] == Status.APPROVED
    await desk.old.completed([a])  # version 4
    assert await desk.statuses() == {stored: Status.COMPLETED, a.reservation_id: Status.COMPLETED}


async def test_0_3_0_leaves_every_new_end_as_it_is(desk: Desk) -> None:
    ends = [Status.MOVED, Status.CALLED_OFF, Status.UNSERVED, Status.MISSED, Status.ADMINISTERED]
    told = {how: appointment() for how in ends}
    await desk.new.ended([(a, how) for how, a in told.items()])
    await desk.old.completed(list(told.values()))
    await desk.old.cancelled(list(told.values()))
    for how, a in told.items():
        assert (await desk.statuses())[a.reservation_id] == how
        with pytest.raises(Exception, match="of a newer version") as refused:
            await desk.old_desk.cancel("c1", a.reservation_id)
        assert type(refused.value).__name__ == "UnknownStatus"
    assert (await desk.old_desk.get("c1", told[Status.MISSED].reservation_id)).status == Status.MISSED


async def test_the_order_of_events_does_not_matter_when_either_version_handles_them(desk: Desk) -> None:
    """Of those that 0.3.0 knows, each may be handled by it or by the present version."""
    events = ["completed", "cancelled", "moved", "missed"]
    cases = list(itertools.product(itertools.permutations(events), itertools.product([True, False], repeat=2)))
    told = [appointment() for _ in cases]
    for step in range(len(events)):
        for a, (order, (old_completes, old_cancels)) in zip(told, cases, strict=True):
            match order[step]:
                case "completed":
                    await (desk.old.completed([a]) if old_completes else desk.new.heard_of_doses([(a, 2, True)]))
                case "cancelled":
                    await (desk.old.cancelled([a]) if old_cancels else desk.new.ended([(a, Status.CANCELLED)]))
                case "moved":
                    await desk.new.ended([(a, Status.MOVED)])
                case "missed":
                    await desk.new.ended([(a, Status.MISSED)])
    statuses = await desk.statuses()
    assert {statuses[a.reservation_id] for a in told} == {Status.MISSED}
