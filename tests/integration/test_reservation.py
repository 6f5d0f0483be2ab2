"""Reservations in a real Postgres, with a real approval over gRPC."""

import asyncio
import base64
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc.aio
import pytest

from services.approval.adapters import grpc as approval_grpc
from services.approval.adapters.postgres import PostgresBooks
from services.approval.application import Approval
from services.approval.domain import MOST_REFUSALS, Denial, Hospital
from services.approval.domain import ReservationId as ForAPlace
from services.chassis.caller import CLAIMS_HEADER, internal
from services.chassis.convert import to_message
from services.chassis.edge import Edge
from services.chassis.errors import StoreUnavailable
from services.chassis.events import Event, NotUnderstood, Outgoing
from services.chassis.postgres import Database, Transaction
from services.reservation.adapters import grpc as inbound
from services.reservation.adapters.approval import GrpcApproval
from services.reservation.adapters.events import subscriptions
from services.reservation.adapters.postgres import ADD, PostgresReservations
from services.reservation.application import Followup, ReservationDesk
from services.reservation.domain import (
    AlreadyAdministered,
    Appointment,
    ApprovalBusy,
    DatePassed,
    Ended,
    NothingToMove,
    Rejected,
    RejectionReason,
    Request,
    RequestId,
    RequestIdReused,
    Reservation,
    ReservationId,
    Status,
    TooManyRefusals,
    UnknownHospital,
    UnknownReservation,
)
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1 import approval_events_pb2 as approval_events
from vaccination.reservation.v1 import reservation_service_pb2
from vaccination.reservation.v1.reservation_pb2 import ReservationStatus
from vaccination.reservation.v1.reservation_service_pb2_grpc import (
    ReservationServiceServicer,
    ReservationServiceStub,
    add_ReservationServiceServicer_to_server,
)
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as vaccinemgmt_events

from .conftest import OpenDatabase, eventually

if TYPE_CHECKING:
    from vaccination.reservation.v1.reservation_service_pb2_grpc import ReservationServiceAsyncStub

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)
DAY_FULL = RejectionReason(Denial.DAY_FULL.value)


@dataclass
class Shelf:
    """The reservations of two replicas on one database."""

    replicas: Sequence[PostgresReservations]
    database: Database
    woken: list[None]

    @property
    def followup(self) -> Followup:
        return Followup(self.replicas[0])

    async def add(self, *reservations: Reservation, replica: int = 0) -> None:
        async with self.replicas[replica % 2].unit_of_work() as work:
            await work.add(reservations)

    async def give_up(self, a: Appointment, replica: int = 0) -> Reservation:
        """The customer cancels."""
        unasked: Any = None  # cancelling does not ask approval
        return await ReservationDesk(self.replicas[replica % 2], unasked, lambda: NOW).cancel(
            a.customer_id, a.reservation_id
        )

    async def rows(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.database.connection() as connection:
            return list(await connection.fetch(sql, *arguments))

    async def statuses(self) -> dict[ReservationId, Status]:
        rows = await self.rows("SELECT reservation_id::text, status FROM reservations")
        return {row["reservation_id"]: Status(row["status"]) for row in rows}

    async def events(self) -> Counter[tuple[ReservationId, str]]:
        """The number of events in the outbox, by reservation and type."""
        rows = await self.rows("SELECT key, subject FROM outbox")
        return Counter((row["key"], row["subject"].split(".")[-1]) for row in rows)


def appointment(customer: str = "c1", seconds: int = 0) -> Appointment:
    at = NOW + timedelta(seconds=seconds)
    return Appointment(ReservationId(str(uuid.uuid4())), customer, "h1", "Han River Clinic", "Asia/Seoul", DAY, "", at)


@pytest.fixture
async def shelf(open_database: OpenDatabase) -> Shelf:
    woken = list[None]()
    databases = [await open_database("reservation") for _ in range(2)]
    replicas = [PostgresReservations(database, lambda _: woken.append(None), lambda: NOW) for database in databases]
    return Shelf(replicas, databases[0], woken)


async def test_the_relay_is_told_of_what_is_new_beside_what_is_known(open_database: OpenDatabase) -> None:
    told = list[Outgoing]()
    desk = PostgresReservations(await open_database("reservation"), told.extend, lambda: NOW)
    known, new = (Reservation.decided(appointment(), None) for _ in range(2))
    await desk.record(known)
    await asyncio.gather(desk.record(known), desk.record(new))
    assert [event.key for event in told] == [r.appointment.reservation_id for r in (known, new)]


async def test_who_holds_a_reservation_keeps_no_other_customer_waiting(shelf: Shelf) -> None:
    known, new = (Reservation.decided(appointment(), None) for _ in range(2))
    here, there = shelf.replicas
    await here.record(known)
    async with there.unit_of_work() as work:
        await work.held([known.appointment.reservation_id])
        async with asyncio.timeout(5):
            await asyncio.gather(here.record(known), here.record(new))


async def test_a_reservation_is_stored_once_and_has_one_event(shelf: Shelf) -> None:
    granted, denied = appointment(), appointment()
    for _ in range(2):
        await shelf.add(
            Reservation.decided(granted, None),
            Reservation.decided(denied, DAY_FULL),
            Reservation.decided(granted, None),
        )
    assert await shelf.statuses() == {
        granted.reservation_id: Status.APPROVED,
        denied.reservation_id: Status.REJECTED,
    }
    assert await shelf.events() == {
        (granted.reservation_id, "ReservationPlaced"): 1,
        (denied.reservation_id, "ReservationRejected"): 1,
    }
    assert len(shelf.woken) == 1
    stored = await shelf.replicas[1].get(denied.reservation_id)
    assert stored == Reservation(denied, Status.REJECTED, DAY_FULL)


async def test_only_the_new_reservations_of_a_batch_have_events(shelf: Shelf) -> None:
    old, new = appointment(), appointment()
    await shelf.add(Reservation.decided(old, None))
    await shelf.give_up(old)
    await shelf.add(*(Reservation.decided(a, None) for a in (old, new)))
    assert await shelf.statuses() == {old.reservation_id: Status.CANCEL_REQUESTED, new.reservation_id: Status.APPROVED}
    assert (await shelf.events())[old.reservation_id, "ReservationPlaced"] == 1


async def test_approvals_answer_and_its_event_at_once_make_one_reservation(shelf: Shelf) -> None:
    many = [appointment() for _ in range(30)]
    await asyncio.gather(
        *(
            shelf.add(*(Reservation.decided(a, None) for a in random.Random(i).sample(many, len(many))), replica=i)
            for i in range(6)
        )
    )
    assert await shelf.events() == {(a.reservation_id, "ReservationPlaced"): 1 for a in many}


async def test_a_cancellation_asked_for_many_times_at_once_has_one_event(shelf: Shelf) -> None:
    a = appointment()
    await shelf.add(Reservation.decided(a, None))
    found = await asyncio.gather(*(shelf.give_up(a, replica=i) for i in range(10)))
    assert {r.status for r in found} == {Status.CANCEL_REQUESTED}
    assert (await shelf.events())[a.reservation_id, "CancellationRequested"] == 1


async def test_concurrent_changes_of_one_reservation_see_each_other(shelf: Shelf) -> None:
    a = appointment()
    await shelf.followup.decided([(a, None)])
    async with shelf.database.transaction() as blocker:
        await blocker.execute("SELECT * FROM reservations FOR UPDATE")
        changes: list[asyncio.Task[Any]] = [asyncio.create_task(shelf.followup.heard_of_doses([(a, 1, True)]))]
        changes += [asyncio.create_task(shelf.give_up(a, replica=i)) for i in range(3)]

        async def waiting() -> int:
            [row] = await shelf.rows("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            return int(row["count"])

        await eventually(waiting, lambda count: count == len(changes))
    await asyncio.gather(*changes)
    assert await shelf.statuses() == {a.reservation_id: Status.CANCEL_REQUESTED}
    assert (await shelf.events())[a.reservation_id, "CancellationRequested"] == 1


async def test_the_events_of_one_batch_take_effect_together_or_not_at_all(shelf: Shelf) -> None:
    known, unknown, rejected = appointment(), appointment(), appointment()
    await shelf.add(Reservation.decided(known, None), Reservation.decided(rejected, DAY_FULL))
    await follow(shelf, "completed", [known])
    with pytest.raises(Rejected):
        await follow(shelf, "cancelled", [known, unknown, rejected])
    assert await shelf.statuses() == {
        known.reservation_id: Status.COMPLETED,
        rejected.reservation_id: Status.REJECTED,
    }
    assert (unknown.reservation_id, "ReservationPlaced") not in await shelf.events()


async def test_only_reservations_that_exist_are_locked(shelf: Shelf) -> None:
    known = appointment()
    await shelf.add(Reservation.decided(known, None))
    async with shelf.replicas[0].unit_of_work() as work:
        [held] = await work.held([ReservationId(str(uuid.uuid4())), known.reservation_id])
    assert held == Reservation(known, Status.APPROVED)


async def test_concurrent_changes_of_the_same_reservations_in_different_orders_do_not_deadlock(shelf: Shelf) -> None:
    many = [appointment() for _ in range(40)]
    await shelf.add(*(Reservation.decided(a, None) for a in many))
    orders = [random.Random(i).sample(many, len(many)) for i in range(6)]
    ends = [[(a, Status.CANCELLED) for a in order] for order in orders]
    await asyncio.gather(*(Followup(shelf.replicas[i % 2]).ended(end) for i, end in enumerate(ends)))
    assert set((await shelf.statuses()).values()) == {Status.CANCELLED}


FULL = ["decided", "decided", "completed", "completed", "cancelled", "cancelled"]
# What vaccine management tells of a dose, with the version.
DOSES = {"waiting": (1, False), "completed": (2, True), "recalled": (3, False), "completed again": (4, True)}
ENDS = {
    "cancelled": Status.CANCELLED,
    "moved": Status.MOVED,
    "called off": Status.CALLED_OFF,
    "unserved": Status.UNSERVED,
    "missed": Status.MISSED,
    "administered": Status.ADMINISTERED,
}


async def follow(shelf: Shelf, what: str, appointments: Sequence[Appointment]) -> None:
    if what == "decided":
        await shelf.followup.decided([(a, None) for a in appointments])
    elif what in DOSES:
        await shelf.followup.heard_of_doses([(a, *DOSES[what]) for a in appointments])
    else:
        await shelf.followup.ended([(a, ENDS[what]) for a in appointments])


ORDERS = [
    (FULL, Status.CANCELLED),
    (FULL[:4], Status.COMPLETED),
    (FULL[:2], Status.APPROVED),
    (["decided", "waiting", "completed", "recalled", "recalled"], Status.APPROVED),
    (["decided", *DOSES], Status.COMPLETED),
    (["decided", "completed", "moved", "moved", "cancelled"], Status.MOVED),
    (["decided", "completed", "called off", "called off", "cancelled"], Status.CALLED_OFF),
    (["decided", "waiting", "unserved", "unserved"], Status.UNSERVED),
    (["decided", "completed", "missed", "administered", "called off"], Status.ADMINISTERED),
    (["decided", "completed", "missed", "missed", "cancelled"], Status.MISSED),
]


@pytest.mark.parametrize(("events", "end"), ORDERS, ids=[", ".join(events) for events, _ in ORDERS])
async def test_every_order_and_repetition_of_the_events_ends_in_the_same_row(
    shelf: Shelf, events: list[str], end: Status
) -> None:
    orders = sorted({*itertools.permutations(events), *itertools.permutations(sorted(set(events)))})
    ids = [ReservationId(str(uuid.UUID(int=i))) for i in range(len(orders))]
    told = {order: replace(appointment(), reservation_id=i) for order, i in zip(orders, ids, strict=True)}
    # All orders are tried at once. Each step has a batch for each event, of the reservations that get it in this step.
    for step in range(len(events)):
        for what in sorted(set(events)):
            batch = [a for order, a in told.items() if len(order) > step and order[step] == what]
            if batch:
                await follow(shelf, what, batch)
    # What is told of the dose after the end changes nothing, so that only before an end all versions are the same.
    known = ", dose_version" if end < Status.CANCEL_REQUESTED else ""
    rows = await shelf.rows(f"SELECT customer_id, date, decide_time, dose_is_back, status {known} FROM reservations")
    assert len(rows) == len(orders)
    assert len({tuple(row.values()) for row in rows}) == 1
    assert {Status(row["status"]) for row in rows} == {end}
    assert await shelf.events() == {(a.reservation_id, "ReservationPlaced"): 1 for a in told.values()}


async def test_one_batch_may_have_all_that_happens_to_a_reservation(shelf: Shelf) -> None:
    a, b = appointment(), appointment()
    await shelf.followup.heard_of_doses([(a, *news) for news in DOSES.values()] + [(b, 1, False), (b, 1, False)])
    assert await shelf.statuses() == {a.reservation_id: Status.COMPLETED, b.reservation_id: Status.APPROVED}
    await shelf.followup.ended([(a, how) for how in (Status.ADMINISTERED, Status.MISSED)] + [(b, Status.CALLED_OFF)])
    assert await shelf.statuses() == {a.reservation_id: Status.ADMINISTERED, b.reservation_id: Status.CALLED_OFF}


async def test_the_customer_cancels_until_the_booking_has_ended_otherwise(shelf: Shelf) -> None:
    for what, error in (
        ("administered", AlreadyAdministered),
        ("missed", Ended),
        ("unserved", Ended),
        ("called off", Ended),
        ("moved", Ended),
    ):
        a = appointment()
        await follow(shelf, what, [a])
        with pytest.raises(error):
            await shelf.give_up(a)
        assert (await shelf.statuses())[a.reservation_id] is ENDS[what]
    assert not [key for key in await shelf.events() if key[1] == "CancellationRequested"]


async def test_a_cancellation_that_the_needle_was_faster_than_ends_as_a_vaccination(shelf: Shelf) -> None:
    for order in itertools.permutations(["administered", "cancelled", "called off"]):
        a = appointment()
        await follow(shelf, "completed", [a])
        assert (await shelf.give_up(a)).status is Status.CANCEL_REQUESTED
        for what in order:
            await follow(shelf, what, [a])
        assert (await shelf.statuses())[a.reservation_id] is Status.ADMINISTERED


def received(message: Any) -> Event:
    key = message.appointment.reservation_id
    return Event(str(uuid.uuid4()), key, message.DESCRIPTOR.full_name, NOW, message)


async def test_each_event_of_the_contracts_leads_to_its_status_and_one_of_a_newer_version_waits(shelf: Shelf) -> None:
    follow = {s.event: s for s in subscriptions(shelf.followup)}
    called_off, moved = approval_events.REVOCATION_REASON_DAY_CALLED_OFF, approval_events.REVOCATION_REASON_MOVED
    for make, status in (
        (lambda a: approval_events.ApprovalGranted(appointment=a), Status.APPROVED),
        (lambda a: approval_events.ApprovalRevoked(appointment=a, revocation_reason=called_off), Status.CALLED_OFF),
        (lambda a: approval_events.ApprovalRevoked(appointment=a, revocation_reason=moved), Status.MOVED),
        (lambda a: vaccinemgmt_events.ReservationWaiting(appointment=a, version=1), Status.APPROVED),
        (lambda a: vaccinemgmt_events.ReservationCompleted(appointment=a, version=1), Status.COMPLETED),
        (lambda a: vaccinemgmt_events.CancellationCompleted(appointment=a, version=1), Status.CANCELLED),
        (lambda a: vaccinemgmt_events.VaccinationUnserved(appointment=a, version=1), Status.UNSERVED),
        (lambda a: vaccinemgmt_events.VaccinationMissed(appointment=a, version=1), Status.MISSED),
        (
            lambda a: vaccinemgmt_events.VaccinationAdministered(appointment=a, version=1),
            Status.ADMINISTERED,
        ),
    ):
        a = appointment()
        event = received(make(to_message(a, appointment_pb2.Appointment)))
        told = follow[type(event.message)]
        await told.handle([told.read(event)])
        stored = await shelf.replicas[1].get(a.reservation_id)
        assert stored
        assert (stored.status, stored.appointment) == (status, a)
    revoked = approval_events.ApprovalRevoked(appointment=to_message(appointment(), appointment_pb2.Appointment))
    revoked.revocation_reason = 77  # type: ignore[assignment]
    with pytest.raises(NotUnderstood):
        follow[approval_events.ApprovalRevoked].read(received(revoked))


async def test_a_completion_after_the_customer_cancelled_changes_nothing(shelf: Shelf) -> None:
    for order in itertools.permutations(["given up", "completed", "cancelled"]):
        a = appointment()
        await shelf.followup.decided([(a, None)])
        for what in order:
            if what == "given up":
                await shelf.give_up(a)
            else:
                await follow(shelf, what, [a])
        end = (await shelf.statuses())[a.reservation_id]
        assert end is Status.CANCELLED, order


async def test_a_batch_of_known_and_unknown_reservations_completes_both(shelf: Shelf) -> None:
    known, unknown = appointment(), appointment()
    await shelf.followup.decided([(known, None)])
    await follow(shelf, "completed", [unknown, known, unknown])
    assert await shelf.statuses() == dict.fromkeys([known.reservation_id, unknown.reservation_id], Status.COMPLETED)


async def test_a_customers_reservations_are_listed_newest_first_page_by_page(shelf: Shelf) -> None:
    mine = [appointment(seconds=i // 2) for i in range(7)]
    await shelf.add(*(Reservation.decided(a, None) for a in [*mine, appointment("c2")]))
    expected = sorted(mine, key=lambda a: (a.decide_time, a.reservation_id), reverse=True)
    seen: list[Appointment] = []
    while page := await shelf.replicas[0].page(
        "c1", (seen[-1].decide_time, seen[-1].reservation_id) if seen else None, 3
    ):
        seen += [r.appointment for r in page]
    assert seen == expected


FORBIDDEN = [
    ("UPDATE reservations SET status = 0", "reservations_status_check"),
    ("UPDATE reservations SET status = 2", "rejected_exactly_with_a_reason"),
    ("UPDATE reservations SET rejection = 1", "rejected_exactly_with_a_reason"),
    ("UPDATE reservations SET status = 2, rejection = 0", "reservations_rejection_check"),
    ("INSERT INTO reservations SELECT * FROM reservations", "reservations_pkey"),
]


async def test_the_store_itself_refuses_what_the_rules_forbid(shelf: Shelf) -> None:
    await shelf.followup.decided([(appointment(), None)])
    for sql, constraint in FORBIDDEN:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=constraint):
            await shelf.rows(sql)


@pytest.mark.parametrize("act", ["add", "change"])
async def test_a_connection_lost_before_the_commit_leaves_neither_state_nor_event(shelf: Shelf, act: str) -> None:
    a = appointment()
    if act == "change":
        await shelf.followup.decided([(a, None)])
    before = await shelf.statuses(), await shelf.events()

    async def acting() -> None:
        if act == "add":
            await shelf.add(Reservation.decided(a, None), replica=1)
        else:
            await shelf.give_up(a, replica=1)

    async with shelf.database.transaction() as blocker:
        await blocker.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(acting())

        async def waiting() -> list[asyncpg.Record]:
            return await shelf.rows("SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'outbox'::regclass")

        [victim] = await eventually(waiting, bool)
        await shelf.rows("SELECT pg_terminate_backend($1)", victim["pid"])
        with pytest.raises(StoreUnavailable):
            await task
    assert (await shelf.statuses(), await shelf.events()) == before
    await acting()
    assert sum((await shelf.events()).values()) == sum(before[1].values()) + 1


@dataclass
class Town:
    """A reservation desk that calls a real approval over a real channel."""

    desk: ReservationDesk
    shelf: Shelf
    approval: Approval
    server: grpc.aio.Server

    async def create(self, request: Request) -> Reservation:
        return await self.desk.create(request)

    async def move(self, request: Request, old: Reservation) -> Reservation:
        return await self.desk.move(request, old.appointment.reservation_id)

    async def approve_move(self, request: Request, old: Reservation) -> tuple[Appointment, RejectionReason | None]:
        """Approval's part of a move alone."""
        return await self.desk._approval.move(request, old.appointment.reservation_id)


def wants(customer: str = "c1", day: date = DAY, hospital_id: str = "h1", code: str = "") -> Request:
    return Request(customer, RequestId(str(uuid.uuid4())), hospital_id, day, code)


@pytest.fixture
async def town(shelf: Shelf, open_database: OpenDatabase) -> AsyncIterator[Town]:
    approval = Approval(PostgresBooks(await open_database("approval"), lambda *_: None), lambda: NOW)
    await approval.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    await approval.set_capacity("h1", DAY, DAY + timedelta(1), 1)
    server = grpc.aio.server(interceptors=[Edge(approval_grpc.ERRORS, max_calls=100, max_streams=100)])
    approval_grpc.register(server, approval)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
        desk = ReservationDesk(shelf.replicas[0], GrpcApproval(channel, 2.0, lambda: 0.5), lambda: NOW)
        yield Town(desk, shelf, approval, server)
    await server.stop(None)


async def test_a_request_is_approved_or_rejected_as_approval_decided(town: Town) -> None:
    granted, full = await town.create(wants("c1")), await town.create(wants("c2"))
    assert (granted.status, granted.appointment.hospital_name) == (Status.APPROVED, "Han River Clinic")
    assert (full.status, full.rejection) == (Status.REJECTED, DAY_FULL)
    assert (await town.create(wants("c1", DAY + timedelta(1)))).rejection == Denial.ACTIVE_BOOKING.value
    assert (await town.create(wants("c3", DAY + timedelta(2)))).rejection == Denial.DAY_NOT_OFFERED.value
    assert await town.desk.get("c1", granted.appointment.reservation_id) == Reservation(
        granted.appointment, Status.APPROVED
    )


@asynccontextmanager
async def customers_stub(desk: ReservationDesk) -> AsyncIterator["ReservationServiceAsyncStub"]:
    """A stub by which a customer's client calls the desk."""
    server = grpc.aio.server(interceptors=[Edge(inbound.ERRORS, max_calls=9, max_streams=9)])
    inbound.register(server, desk)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ReservationServiceStub(channel)
    await server.stop(None)


def bearer(customer: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a customer's call, as the gateway writes it."""
    claims = {"sub": customer, "roles": ["customer"], "exp": time.time() + 600}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


async def test_a_reason_that_this_version_does_not_know_reaches_the_customer_unchanged(
    town: Town, open_database: OpenDatabase
) -> None:
    await town.create(wants("c1"))
    request = wants("c2")
    await town.create(request)
    async with (await open_database("approval")).connection() as connection:  # as a newer approval would decide
        await connection.execute("UPDATE decisions SET denial = 70 WHERE customer_id = 'c2'")
    await town.shelf.rows("DELETE FROM reservations WHERE customer_id = 'c2'")
    async with customers_stub(town.desk) as stub:
        create = reservation_service_pb2.CreateReservationRequest(
            request_id=request.request_id, hospital_id="h1", date=str(DAY)
        )
        created = (await stub.CreateReservation(create, metadata=bearer("c2"))).reservation
        get = reservation_service_pb2.GetReservationRequest(reservation_id=created.reservation_id)
        stored = (await stub.GetReservation(get, metadata=bearer("c2"))).reservation
    for reservation in (created, stored):
        assert reservation.status == ReservationStatus.RESERVATION_STATUS_REJECTED
        assert int(reservation.rejection_reason) == 70


async def test_an_id_in_capitals_is_the_same_id(town: Town) -> None:
    request = wants()
    known = await town.create(request)
    async with customers_stub(town.desk) as stub:
        again = await stub.CreateReservation(
            reservation_service_pb2.CreateReservationRequest(
                request_id=request.request_id.upper(), hospital_id="h1", date=str(DAY)
            ),
            metadata=bearer("c1"),
        )
        capitals = known.appointment.reservation_id.upper()
        got = await stub.GetReservation(
            reservation_service_pb2.GetReservationRequest(reservation_id=capitals), metadata=bearer("c1")
        )
        cancelled = await stub.CancelReservation(
            reservation_service_pb2.CancelReservationRequest(reservation_id=capitals), metadata=bearer("c1")
        )
    for response in (again, got, cancelled):
        assert response.reservation.reservation_id == known.appointment.reservation_id
    assert len(await town.shelf.statuses()) == 1


async def test_a_status_that_this_version_does_not_know_is_shown_as_it_is(town: Town) -> None:
    mine = await town.create(wants())
    await town.shelf.rows("UPDATE reservations SET status = 60")
    [shown] = await town.desk.page("c1", None, 10)
    assert (shown.appointment, int(shown.status.value)) == (mine.appointment, 60)
    for what in ("completed", "administered"):
        await follow(town.shelf, what, [mine.appointment])
    assert (await town.shelf.rows("SELECT status FROM reservations"))[0]["status"] == 60
    with pytest.raises(NothingToMove, match="60"):
        await town.move(wants(day=DAY + timedelta(1)), mine)


async def test_many_requests_at_once_are_decided_in_batches_each_with_its_own_answer(town: Town) -> None:
    await town.approval.set_capacity("h1", DAY, DAY, 20)
    requests = [wants(f"c{i}") for i in range(50)]
    made = await asyncio.gather(*(town.create(request) for request in requests))
    assert [r.appointment.customer_id for r in made] == [f"c{i}" for i in range(50)]
    assert Counter(r.status for r in made) == {Status.APPROVED: 20, Status.REJECTED: 30}


async def test_a_request_that_approval_refuses_to_decide_is_refused_in_its_words_and_not_stored(town: Town) -> None:
    request = wants()
    await town.create(request)
    for refused, error, text in (
        (wants(hospital_id="nowhere"), UnknownHospital, "no hospital nowhere"),
        (wants(day=date(2027, 2, 28)), DatePassed, "has passed at the hospital"),
        (replace(request, vaccine_code="207"), RequestIdReused, "used before"),
    ):
        with pytest.raises(error, match=text):
            await town.create(refused)
    assert len(await town.shelf.statuses()) == 1


async def test_a_refusal_that_approval_does_not_record_is_not_stored_and_not_counted_as_overload(town: Town) -> None:
    for _ in range(MOST_REFUSALS):
        await town.create(wants(day=DAY + timedelta(9)))  # this day is not offered
    with pytest.raises(TooManyRefusals, match="DAY_NOT_OFFERED"):
        await town.create(wants(day=DAY + timedelta(9)))
    assert len(await town.shelf.statuses()) == MOST_REFUSALS
    assert (await town.create(wants())).status is Status.APPROVED


async def test_a_repeat_gets_the_recorded_answer_and_one_reservation(town: Town) -> None:
    request = wants()
    first, *others = await asyncio.gather(*(town.create(request) for _ in range(5)))
    assert all((o.appointment, o.status) == (first.appointment, first.status) for o in others)
    assert await town.shelf.events() == {(request.reservation_id, "ReservationPlaced"): 1}


async def test_when_approval_cannot_answer_a_known_request_is_answered_and_new_ones_are_told_to_wait_ever_longer(
    town: Town,
) -> None:
    request = wants()
    approved = await town.create(request)
    await town.server.stop(None)
    known = await town.create(request)
    assert (known.appointment, known.status) == (approved.appointment, Status.APPROVED)
    with pytest.raises(RequestIdReused):
        await town.create(replace(request, vaccine_code="207"))
    pauses = []
    for _ in range(3):
        with pytest.raises(ApprovalBusy) as busy:
            await town.create(wants("c2"))
        pauses.append(busy.value.retry_after)
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == 3
    assert len(await town.shelf.statuses()) == 1


async def test_a_call_to_approval_ends_with_the_deadline_of_the_call_that_caused_it() -> None:
    asked = asyncio.Event()

    async def never(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    class Front(ReservationServiceServicer):
        """Calls approval with a deadline of half an hour."""

        busy = asyncio.Event()

        @internal
        async def CancelReservation(  # noqa: N802
            self, request: object, context: object
        ) -> reservation_service_pb2.CancelReservationResponse:
            try:
                await GrpcApproval(to_approval, 1800.0).decide(wants())
            except ApprovalBusy:
                self.busy.set()
            return reservation_service_pb2.CancelReservationResponse()

    approval, reservation = grpc.aio.server(), grpc.aio.server(interceptors=[Edge(max_calls=9, max_streams=9)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Approve": grpc.unary_unary_rpc_method_handler(never)}
    approval.add_registered_method_handlers("vaccination.approval.v1.ApprovalService", handlers)
    front = Front()  # type: ignore[abstract] # the other calls are not asked for
    add_ReservationServiceServicer_to_server(front, reservation)
    ports = [server.add_insecure_port("127.0.0.1:0") for server in (approval, reservation)]
    to_approval, to_reservation = (grpc.aio.insecure_channel(f"127.0.0.1:{port}") for port in ports)
    async with to_approval, to_reservation:
        await approval.start()
        await reservation.start()
        request = reservation_service_pb2.CancelReservationRequest(reservation_id=str(uuid.uuid4()))
        with pytest.raises(grpc.aio.AioRpcError):
            await ReservationServiceStub(to_reservation).CancelReservation(request, timeout=1)
        await asyncio.wait_for(asked.wait(), 10)
        await asyncio.wait_for(front.busy.wait(), 10)
        await approval.stop(None)
        await reservation.stop(None)


async def test_a_customer_can_see_and_cancel_only_their_own_reservations(town: Town) -> None:
    reservation_id = (await town.create(wants())).appointment.reservation_id
    for stranger in (town.desk.get("c2", reservation_id), town.desk.cancel("c2", reservation_id)):
        with pytest.raises(UnknownReservation):
            await stranger
    assert (await town.desk.cancel("c1", reservation_id)).status is Status.CANCEL_REQUESTED
    assert (await town.desk.cancel("c1", reservation_id)).status is Status.CANCEL_REQUESTED
    assert (await town.shelf.events())[reservation_id, "CancellationRequested"] == 1


# Moving, and the vaccine asked for


async def test_a_move_is_a_new_reservation_and_the_old_one_is_moved(town: Town) -> None:
    old = await town.create(wants())
    request = wants(day=DAY + timedelta(1))
    for _ in range(2):
        new = await town.move(request, old)
        assert (new.status, new.appointment.date) == (Status.APPROVED, DAY + timedelta(1))
        assert await town.shelf.statuses() == {
            old.appointment.reservation_id: Status.MOVED,
            request.reservation_id: Status.APPROVED,
        }
    assert await town.shelf.events() == {
        (old.appointment.reservation_id, "ReservationPlaced"): 1,
        (request.reservation_id, "ReservationPlaced"): 1,
    }
    assert (await town.create(wants("c2"))).status is Status.APPROVED  # the old place is free
    assert (await town.create(wants("c3", DAY + timedelta(1)))).rejection == DAY_FULL


async def test_a_refused_move_leaves_the_old_reservation_as_it_was_and_a_repeat_is_refused_too(town: Town) -> None:
    old = await town.create(wants())
    await town.create(wants("c2", DAY + timedelta(1)))
    request = wants(day=DAY + timedelta(1))
    for _ in range(2):
        refused = await town.move(request, old)
        assert (refused.status, refused.rejection) == (Status.REJECTED, DAY_FULL)
        assert (await town.desk.get("c1", old.appointment.reservation_id)).status is Status.APPROVED
    await town.desk.cancel("c1", old.appointment.reservation_id)
    assert (await town.move(request, old)).rejection == DAY_FULL  # it is recorded
    with pytest.raises(NothingToMove, match="CANCEL_REQUESTED"):
        await town.move(wants(day=DAY + timedelta(1)), old)


async def test_only_the_customers_own_reservation_that_holds_a_place_can_be_moved(town: Town) -> None:
    old = await town.create(wants())
    with pytest.raises(UnknownReservation):
        await town.move(wants("c2", DAY + timedelta(1)), old)
    for what, status in ENDS.items():
        if status > Status.CANCELLED:
            a = replace(old.appointment, reservation_id=ReservationId(str(uuid.uuid4())))
            await follow(town.shelf, what, [a])
            with pytest.raises(NothingToMove):
                await town.move(wants(day=DAY + timedelta(1)), Reservation(a, status))
    # Approval knows that the place is gone before reservation has heard of it.
    await town.approval.release([ForAPlace(old.appointment.reservation_id)])
    with pytest.raises(NothingToMove, match="holds no place any more"):
        await town.move(wants(day=DAY + timedelta(1)), old)


async def test_a_move_that_died_between_approval_and_the_store_is_finished_by_the_events_or_by_a_repeat(
    town: Town,
) -> None:
    for by_events in (True, False):
        customer, there = f"c{by_events}", DAY + timedelta(3 if by_events else 5)
        await town.approval.set_capacity("h1", there, there + timedelta(1), 1)
        old, request = await town.create(wants(customer, there)), wants(customer, there + timedelta(1))
        appointment, refused = await town.approve_move(request, old)
        assert refused is None
        if by_events:
            await town.shelf.followup.ended([(old.appointment, Status.MOVED)])
            await town.shelf.followup.decided([(appointment, None)])
        assert (await town.move(request, old)).appointment == appointment
        statuses = await town.shelf.statuses()
        assert statuses[old.appointment.reservation_id] is Status.MOVED
        assert statuses[request.reservation_id] is Status.APPROVED


async def test_moves_of_one_reservation_at_once_end_with_one_place(town: Town) -> None:
    await town.approval.set_capacity("h1", DAY, DAY + timedelta(9), 5)
    old = await town.create(wants())
    asked = [wants(day=DAY + timedelta(n)) for n in range(1, 9)]
    found = await asyncio.gather(*(town.move(r, old) for r in asked), return_exceptions=True)
    assert Counter(type(answer) for answer in found) == {Reservation: 1, NothingToMove: 7}
    assert Counter((await town.shelf.statuses()).values()) == {Status.MOVED: 1, Status.APPROVED: 1}


async def test_when_approval_cannot_move_a_known_move_is_answered_and_a_new_one_is_told_to_wait(town: Town) -> None:
    old, request = await town.create(wants()), wants(day=DAY + timedelta(1))
    moved = await town.move(request, old)
    await town.server.stop(None)
    assert (await town.move(request, old)).appointment == moved.appointment
    with pytest.raises(RequestIdReused):
        await town.move(replace(request, date=DAY), old)
    with pytest.raises(ApprovalBusy):
        await town.move(wants(day=DAY), moved)
    assert len(await town.shelf.statuses()) == 2


async def test_an_approval_that_does_not_know_moves_yet_is_busy(town: Town) -> None:
    old = await town.create(wants())
    server = grpc.aio.server()  # as one of 0.3.0, it has no method Move
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        desk = ReservationDesk(town.shelf.replicas[0], GrpcApproval(channel, 2.0, lambda: 0.5), lambda: NOW)
        async with customers_stub(desk) as stub:
            move = reservation_service_pb2.MoveReservationRequest(
                request_id=str(uuid.uuid4()),
                reservation_id=old.appointment.reservation_id,
                hospital_id="h1",
                date=str(DAY + timedelta(1)),
            )
            with pytest.raises(grpc.aio.AioRpcError, match="busy") as refused:
                await stub.MoveReservation(move, metadata=bearer("c1"))
    await server.stop(None)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await town.shelf.statuses() == {old.appointment.reservation_id: Status.APPROVED}


async def test_a_customer_moves_and_asks_for_a_vaccine_with_a_leading_zero_over_grpc(town: Town) -> None:
    await town.approval.delivered([("h1", "8")])
    async with customers_stub(town.desk) as stub:

        async def create(customer: str, code: str) -> Any:
            request = reservation_service_pb2.CreateReservationRequest(
                request_id=str(uuid.uuid4()), hospital_id="h1", date=str(DAY), vaccine_code=code
            )
            return (await stub.CreateReservation(request, metadata=bearer(customer))).reservation

        refused = await create("c1", "999")
        assert int(refused.rejection_reason) == Denial.VACCINE_NOT_OFFERED
        old = await create("c1", "08")
        assert (int(old.status), old.vaccine_code) == (Status.APPROVED, "8")
        move = reservation_service_pb2.MoveReservationRequest(
            request_id=str(uuid.uuid4()).upper(),
            reservation_id=old.reservation_id.upper(),
            hospital_id="h1",
            date=str(DAY + timedelta(1)),
            vaccine_code="008",
        )
        for _ in range(2):
            new = (await stub.MoveReservation(move, metadata=bearer("c1"))).reservation
            assert (int(new.status), new.vaccine_code, new.date) == (Status.APPROVED, "8", move.date)
            move.vaccine_code = "8"  # it is the same request
        move.request_id = str(uuid.uuid4())
        with pytest.raises(grpc.aio.AioRpcError, match=r"reservation_id: .*nothing to move"):
            await stub.MoveReservation(move, metadata=bearer("c1"))


async def test_to_create_a_reservation_is_one_statement(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[str]()
    for name in ("read", "hold", "write", "write_returning"):
        really = getattr(Transaction, name)

        def counted(self: Transaction, sql: str, *arguments: object, really: Any = really) -> Any:
            written.append(sql)
            return really(self, sql, *arguments)

        monkeypatch.setattr(Transaction, name, counted)
    request = wants()
    await town.create(request)
    assert [sql for sql in written if "reservations" in sql] == [ADD]  # the others are approval's
