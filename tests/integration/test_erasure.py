"""What is kept of a person is erased, from the stores and the streams, and does not come back."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from nats.aio.client import Client

from services.approval.adapters.postgres import PostgresBooks
from services.approval.application import Approval
from services.approval.domain import Decision, Hospital, Request, ReservationId
from services.chassis.caller import CLAIMS_HEADER
from services.chassis.edge import Edge
from services.chassis.events import STREAM, Bus, Consumer, Outgoing, Relay, operations
from services.chassis.events.books import Check
from services.chassis.events.erasure import Eraser
from services.chassis.events.setaside import Kind, Letter, SetAside
from services.chassis.postgres import Database
from services.mypage import erasure, rebuild, server
from services.mypage.projector import View
from services.reservation.adapters.postgres import PostgresReservations
from services.reservation.application import Followup, ReservationDesk
from services.reservation.domain import Appointment, RejectionReason, Reservation, Status
from services.reservation.domain import ReservationId as Id
from services.vaccinemgmt.adapters.mongo import MongoStock
from services.vaccinemgmt.application import Counter, Stockroom, Vaccines
from services.vaccinemgmt.domain import Appointment as ForADose
from services.vaccinemgmt.domain import Delivery
from services.vaccinemgmt.domain import ReservationId as DoseId
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1.approval_events_pb2 import ApprovalDenied, ApprovalGranted
from vaccination.mypage.v1 import view_service_pb2_grpc
from vaccination.mypage.v1.view_service_pb2 import RebuildViewRequest
from vaccination.operations.v1 import operations_service_pb2 as pb
from vaccination.operations.v1.operations_service_pb2_grpc import OperationsServiceStub
from vaccination.reservation.v1.reservation_events_pb2 import ReservationRejected

from .conftest import FOR_EVER, OpenBus, OpenDatabase, OpenMongo, eventually, within
from .test_retention import Clock, new_id, rows

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
TODAY = date(2027, 3, 1)
DAY = timedelta(1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_approval_erases_nothing_while_a_place_is_held_and_then_everything_of_the_one_person(
    open_database: OpenDatabase, clock: Clock
) -> None:
    database = await open_database("approval")
    approval = Approval(PostgresBooks(database, lambda: None), clock)
    await approval.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    await approval.set_capacity("h1", TODAY, TODAY + DAY, 5)

    async def ask(customer: str, day: date) -> Decision:
        [answer] = await approval.decide([Request(ReservationId(new_id()), customer, "h1", day, "")])
        assert isinstance(answer, Decision)
        return answer

    await ask("other", TODAY)
    await ask("c1", TODAY)
    booked = await rows(database, "SELECT * FROM decisions")
    assert await approval.erase("c1") is None
    assert await rows(database, "SELECT * FROM decisions") == booked
    clock.now += DAY  # the day has passed
    again = await ask("c1", TODAY + DAY)
    assert await approval.erase("c1") is None
    await approval.release([again.appointment.reservation_id])
    await ask("c1", TODAY + 9 * DAY)  # refused
    assert await approval.erase("c1") == 3
    assert [r["customer_id"] for r in await rows(database, "SELECT customer_id FROM decisions")] == ["other"]
    assert [r["customer_id"] for r in await rows(database, "SELECT customer_id FROM active_bookings")] == ["other"]
    assert await approval.erase("c1") == 0


async def test_a_booking_made_while_its_person_is_erased_is_kept_whole(
    open_database: OpenDatabase, clock: Clock
) -> None:
    database = await open_database("approval")
    approval = Approval(PostgresBooks(database, lambda: None), clock)
    await approval.put_hospital(Hospital("h1", "Han River Clinic", "Asia/Seoul"))
    await approval.set_capacity("h1", TODAY, TODAY + DAY, 50)
    people = [f"c{i}" for i in range(20)]
    await approval.decide([Request(ReservationId(new_id()), c, "h1", TODAY, "") for c in people])
    clock.now += DAY
    asks = [Request(ReservationId(new_id()), c, "h1", TODAY + DAY, "") for c in people]
    await asyncio.gather(*(approval.decide([ask]) for ask in asks), *(approval.erase(c) for c in people))
    active = await rows(database, "SELECT reservation_id::text AS id FROM active_bookings")
    assert {row["id"] for row in active} == {ask.reservation_id for ask in asks}
    held = await rows(database, "SELECT reservation_id::text AS id FROM decisions WHERE date > $1", TODAY)
    assert {row["id"] for row in held} == {ask.reservation_id for ask in asks}


async def test_reservation_erases_nothing_while_something_may_become_of_a_reservation(
    open_database: OpenDatabase, clock: Clock
) -> None:
    database = await open_database("reservation")
    store, unasked = PostgresReservations(database, lambda: None, lambda: NOW), Any
    desk = ReservationDesk(store, unasked, clock)  # type: ignore[arg-type]

    def appointment(customer: str) -> Appointment:
        return Appointment(Id(new_id()), customer, "h1", "Clinic", "Asia/Seoul", TODAY, "", NOW)

    mine, refused, others = appointment("c1"), appointment("c1"), appointment("other")
    async with store.unit_of_work() as work:
        await work.add(
            [
                Reservation.decided(mine, None),
                Reservation.decided(refused, RejectionReason(1)),
                Reservation.decided(others, None),
            ]
        )
    assert await desk.erase("c1") is None
    await desk.cancel("c1", mine.reservation_id)
    clock.now += 9 * DAY
    assert await desk.erase("c1") is None  # its dose and place are not back
    async with database.connection() as connection:
        await connection.execute("UPDATE reservations SET status = 5 WHERE reservation_id = $1", mine.reservation_id)
    assert await desk.erase("c1") == 2
    [left] = await rows(database, "SELECT customer_id FROM reservations")
    assert left["customer_id"] == "other"


async def test_reservation_erases_a_moved_or_called_off_booking_when_its_dose_is_back(
    open_database: OpenDatabase, clock: Clock
) -> None:
    store, unasked = PostgresReservations(await open_database("reservation"), lambda: None, lambda: NOW), Any
    desk, followup = ReservationDesk(store, unasked, clock), Followup(store)  # type: ignore[arg-type]
    for customer, how in (("c1", Status.MOVED), ("c2", Status.CALLED_OFF)):
        a = Appointment(Id(new_id()), customer, "h1", "Clinic", "Asia/Seoul", TODAY + DAY, "", NOW)
        await followup.ended([(a, how)])
        assert await desk.erase(customer) is None  # the event that its dose is back would make it anew
        await followup.ended([(a, Status.CANCELLED)])
        assert await desk.erase(customer) == 1


async def test_a_dose_that_was_given_stays_in_its_lots_account_under_nobodys_name(
    open_mongo: OpenMongo, clock: Clock
) -> None:
    mongo = await open_mongo()
    stock, freed = MongoStock(mongo, lambda: None), asyncio.Event()
    vaccines, stockroom = Vaccines(stock, clock, freed), Stockroom(stock, clock, freed)
    delivery = Delivery("L1", "207", "MOD", TODAY - 30 * DAY, TODAY + 300 * DAY, 2)
    await stockroom.register("h1", [delivery], "manager")
    asks = [
        ForADose(DoseId(new_id()), customer, "h1", "Clinic", "Asia/Seoul", TODAY, "", NOW + timedelta(seconds=i))
        for i, customer in enumerate(["c1", "c1", "c1", "other"])
    ]
    await vaccines.admit(asks)  # two get a dose, one waits
    await vaccines.cancel(asks[:1])
    desk = Counter(stock, clock, freed, timedelta())
    await vaccines.serve_waiting()
    given, missed = asks[1:3]
    await desk.administer(given.reservation_id, None, "nurse", lambda _: None)
    assert await vaccines.erase("c1") is None
    clock.now += DAY
    assert await vaccines.erase("c1") is None  # until it is known what became of it
    await desk.end_days()
    assert (await vaccines.vaccination(missed.reservation_id, lambda _: None)).status.name == "MISSED"
    assert await vaccines.erase("c1") == 3
    assert await vaccines.erase("c1") == 0
    found = [row async for row in mongo.database["vaccinations"].find()]
    [nobody] = [row for row in found if row["customer_id"] != "other"]
    assert nobody["customer_id"].startswith("erased-")
    assert nobody["dose"]["lot_number"] == "L1"
    [lot] = await stockroom.lots("h1", None, 10)
    assert (lot.balance.reserved, lot.balance.administered, lot.free) == (0, 1, 1)


# The view and the streams


def about(customer: str, day: date = TODAY, reservation_id: str = "") -> appointment_pb2.Appointment:
    return appointment_pb2.Appointment(
        reservation_id=reservation_id or new_id(), customer_id=customer, hospital_id="h1", hospital_name="Clinic",
        time_zone="Asia/Seoul", date=str(day), decide_time=NOW,  # type: ignore[arg-type]
    )  # fmt: skip


def token(role: str) -> tuple[tuple[str, str], ...]:
    claims = {"sub": "op", "roles": [role], "exp": time.time() + 600}
    return ((CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()),)


class Replica:
    """A process of mypage, as an operator sees it."""

    def __init__(self, channel: grpc.aio.Channel, database: Database, bus: Bus) -> None:
        self.database, self.bus = database, bus
        self.operations = OperationsServiceStub(channel)
        self.view = view_service_pb2_grpc.ViewServiceStub(channel)

    async def erase(self, subject: str, after: int = 0) -> list[pb.ErasePersonResponse]:
        request = pb.ErasePersonRequest(service="mypage", subject=subject, after=after)
        answers: Any = self.operations.ErasePerson(request, metadata=token("operator"))
        return [answer async for answer in answers]

    async def shown(self) -> list[str]:
        return [
            r["customer_id"] for r in await rows(self.database, "SELECT customer_id FROM my_reservations ORDER BY 1")
        ]


@asynccontextmanager
async def serving(
    database: Database, bus: Bus, consumer: Consumer, eraser: Eraser, check: Callable[[], Check] | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    await consumer.ensure()
    running = asyncio.create_task(consumer.run())
    edge = Edge(server.ERRORS, operations.ERRORS, max_calls=100, max_streams=100)
    grpc_server = grpc.aio.server(interceptors=[edge])
    operations.register(grpc_server, "mypage", consumer, None, eraser, check)
    rebuild.register(grpc_server, database, bus, consumer, FOR_EVER)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await grpc_server.stop(None)
    consumer.stop()
    await asyncio.wait([running])
    consumer.forget()


@pytest.fixture
async def mypage(
    open_database: OpenDatabase, open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Replica]:
    for module in (rebuild, operations):
        monkeypatch.setattr(module, "draining", asyncio.Event())
    monkeypatch.setattr("services.chassis.events.erasure.BATCH", 10)
    database, bus = await open_database("mypage"), await open_bus("mypage")
    consumer = Consumer(bus, "mypage", View(database).subscriptions(FOR_EVER), database)
    async with serving(database, bus, consumer, erasure.eraser(database, bus)) as channel:
        yield Replica(channel, database, bus)


async def publish(admin: Client, *events: Any, subject: str = "") -> None:
    for event in events:
        row = Outgoing.of(event.appointment.reservation_id, NOW, event)
        await admin.jetstream().publish(subject or row.subject, row.payload, headers=row.headers())


def denied(customer: str) -> Message:
    return ApprovalDenied(appointment=about(customer), denial_reason=1)  # type: ignore[arg-type]


async def customers_in(admin: Client, stream: str) -> set[str]:
    js = admin.jetstream()
    state = (await js.stream_info(stream)).state
    subscription = await js.subscribe(">", stream=stream, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=5) for _ in range(state.messages)]
    return {erasure.subject_of(message.data) for message in messages}


async def test_a_persons_events_and_rows_are_gone_and_a_rebuild_brings_nothing_back(
    mypage: Replica, nats_admin: Client
) -> None:
    for _ in range(15):
        await publish(nats_admin, denied("c1"), denied("c11"), denied("other"))
    # One of a version that nobody here knows, which is parked, and one that was discarded.
    await publish(nats_admin, denied("c1"), subject="vaccination.approval.v1.ApprovalExplained")
    letters = SetAside(mypage.bus, "reservation")
    for number, customer in enumerate(("c1", "other")):
        payload = denied(customer).SerializeToString()
        await letters.put(Letter("x", 10 + number, {}, payload), Kind.DEAD)
        await letters.put(Letter("x", 20 + number, {}, payload), Kind.PARKED)
    for letter in await letters.page(Kind.DEAD, 0, 2):
        await letters.discard(letter, "op", "no use")
    await eventually(mypage.shown, lambda shown: len(shown) == 45)
    answers = await mypage.erase("c1")
    assert (answers[-1].rows, answers[-1].events, answers[-1].to_go) == (15, 18, 0)
    assert any(answer.to_go for answer in answers)
    assert set(await mypage.shown()) == {"c11", "other"}
    assert await customers_in(nats_admin, STREAM) == {"c11", "other"}
    assert await customers_in(nats_admin, "DEAD_LETTERS") == {"other"}
    rebuilding: Any = mypage.view.RebuildView(RebuildViewRequest(), metadata=token("operator"))
    assert [answer async for answer in rebuilding]
    assert await mypage.shown() == ["c11"] * 15 + ["other"] * 15
    again = await mypage.erase("c1")
    assert (again[-1].rows, again[-1].events) == (0, 0)


async def test_nothing_of_a_person_with_a_booking_to_come_is_erased(mypage: Replica, nats_admin: Client) -> None:
    ahead = date.today() + 5 * DAY
    await publish(nats_admin, denied("c1"), ApprovalGranted(appointment=about("c1", ahead)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mypage.erase("c1")
    assert refused.value.code() is StatusCode.FAILED_PRECONDITION
    assert await mypage.shown() == ["c1", "c1"]  # the events were handled first
    assert await customers_in(nats_admin, STREAM) == {"c1"}


async def test_an_erasure_that_was_cut_goes_on_where_it_was(mypage: Replica, nats_admin: Client) -> None:
    await publish(nats_admin, *[denied("c1") for _ in range(30)])
    answers = await mypage.erase("c1", after=20)
    assert (answers[-1].events, answers[-1].looked_at, answers[-1].rows) == (10, 30, 30)
    assert (await mypage.erase("c1"))[-1].events == 20
    assert (await mypage.erase("c1", after=30))[-1].events == 0
    assert (await mypage.erase("nobody"))[-1].looked_at == 30


async def test_while_the_view_is_rebuilt_a_persons_rows_stay(mypage: Replica, nats_admin: Client) -> None:
    await publish(nats_admin, denied("c1"))
    await eventually(mypage.shown, lambda shown: shown == ["c1"])
    async with rebuild.alone(mypage.database):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await mypage.erase("c1")
        assert refused.value.code() is StatusCode.FAILED_PRECONDITION
        assert await mypage.shown() == ["c1"]
    assert (await mypage.erase("c1"))[-1].rows == 1


async def test_an_erasure_ends_when_the_events_of_before_are_published(
    open_database: OpenDatabase, open_bus: OpenBus, nats_admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "draining", asyncio.Event())
    database, bus = await open_database("reservation"), await open_bus("reservation")
    store = PostgresReservations(database, lambda: None, lambda: NOW)
    appointment = Appointment(Id(new_id()), "c1", "h1", "Clinic", "Asia/Seoul", TODAY, "", NOW)
    async with store.unit_of_work() as work:
        await work.add([Reservation.decided(appointment, RejectionReason(1))])
    desk = ReservationDesk(store, Any, lambda: NOW)  # type: ignore[arg-type]
    relay, consumer = Relay(database, bus.publish), Consumer(bus, "reservation", [], database)
    servicer = operations.OperationsServicer("reservation", consumer, database, Eraser(desk.erase))
    monkeypatch.setattr(consumer, "last_sequence", bus_is_empty)
    monkeypatch.setattr(consumer, "to_go", nothing)
    monkeypatch.setattr(operations, "caller", lambda: type("Caller", (), {"subject": "op"}))
    answers: list[int] = []

    async def erase() -> None:
        request = pb.ErasePersonRequest(service="reservation", subject="c1")
        async for answer in servicer.ErasePerson(request, None):  # type: ignore[arg-type]
            answers.append(answer.to_go)  # noqa: PERF401 - the test looks at them meanwhile

    erasing = asyncio.create_task(erase())
    await within(5, lambda: answers.count(1) > 2)
    assert not await rows(database, "SELECT FROM reservations")
    assert not erasing.done()
    await relay.publish_some()
    await erasing
    assert answers[-1] == 0
    state = (await nats_admin.jetstream().stream_info(STREAM)).state
    assert state.messages == 1


async def bus_is_empty() -> int:
    return 0


async def nothing(_target: int) -> int:
    return 0


def test_whose_an_event_is_does_not_depend_on_its_type() -> None:
    assert erasure.subject_of(ReservationRejected(appointment=about("c1")).SerializeToString()) == "c1"
    assert erasure.subject_of(b"\xff\xfe garbage") == ""
