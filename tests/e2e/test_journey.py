"""The reservation journey through the gateway."""

import asyncio
import uuid
from collections import Counter
from typing import Any

import grpc.aio
import pytest

from services.chassis.caller import CLOCK_SKEW
from vaccination.approval.v1 import appointment_pb2
from vaccination.mypage.v1 import mypage_service_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2

from .conftest import Client, Status, World, delivery, eventually, refusal, refused

Denial = appointment_pb2.DenialReason


async def test_an_approved_request_is_completed_with_a_dose_and_cancelling_gives_it_back(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=3)
    customer = world.customer()
    reservation = await customer.create(hospital, day)
    assert reservation.status == Status.RESERVATION_STATUS_APPROVED

    completed = await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    [lot] = await world.manager(hospital).lots(hospital)
    assert (lot.received, lot.free, lot.used) == (3, 2, 1)
    assert (completed.hospital_id, completed.date, completed.quantity) == (hospital, str(day), 1)
    assert (completed.vaccine_code, completed.lot_number) == (lot.vaccine_code, lot.lot_number)
    assert (completed.production_date, completed.expiry_date) == (lot.production_date, lot.expiry_date)
    await eventually(  # each service follows the events at its own pace
        lambda: customer.get(reservation.reservation_id), lambda r: r.status == Status.RESERVATION_STATUS_COMPLETED
    )

    assert (await customer.cancel(reservation.reservation_id)).status == Status.RESERVATION_STATUS_CANCEL_REQUESTED
    cancelled = await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    assert (cancelled.vaccine_code, cancelled.production_date, cancelled.expiry_date, cancelled.quantity) == (
        "",
        "",
        "",
        0,
    )

    async def freed() -> tuple[int, int]:
        [lot] = await world.manager(hospital).lots(hospital)
        return lot.free, (await world.operator.availability(hospital, day)).approved

    assert await eventually(freed, lambda seen: seen == (3, 0))
    expected = {"ApprovalGranted", "ReservationPlaced", "ReservationCompleted"}
    expected |= {"CancellationRequested", "CancellationCompleted", "ApprovalReleased"}
    [seen] = await eventually(customer.screen, lambda screen: {t.event for t in screen[0].timeline} == expected)
    times = [entry.time.ToNanoseconds() for entry in seen.timeline]
    assert times == sorted(times)


async def test_200_customers_at_once_for_50_places_with_30_doses(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=50, doses=30)
    manager, customers = world.manager(hospital), [world.customer() for _ in range(200)]
    answers = await asyncio.gather(*(customer.book(hospital, day) for customer in customers))

    assert Counter((a.status, a.rejection_reason) for a in answers) == {
        (Status.RESERVATION_STATUS_APPROVED, Denial.DENIAL_REASON_UNSPECIFIED): 50,
        (Status.RESERVATION_STATUS_REJECTED, Denial.DENIAL_REASON_DAY_FULL): 150,
    }
    [stored] = await world.query("approval", "SELECT approved FROM days WHERE hospital_id = $1", hospital)
    assert stored["approved"] == 50

    approved = {a.reservation_id: c for a, c in zip(answers, customers, strict=True) if a.status == 1}

    async def statuses() -> Counter[int]:
        screens = await asyncio.gather(*(customer.screen() for customer in approved.values()))
        return Counter(r.status for screen in screens for r in screen)

    await eventually(statuses, lambda seen: seen[Status.RESERVATION_STATUS_COMPLETED] == 30)
    queue = await eventually(lambda: manager.waiting(hospital), lambda waiting: len(waiting) == 20)
    places = [(v.decide_time.ToNanoseconds(), v.reservation_id) for v in queue]
    assert places == sorted(places)
    assert {v.reservation_id for v in queue} < set(approved)

    await manager.register(hospital, delivery(20))
    await eventually(statuses, lambda seen: seen == {Status.RESERVATION_STATUS_COMPLETED: 50})
    assert not await manager.waiting(hospital)
    lots = await manager.lots(hospital)
    assert (sum(lot.received for lot in lots), sum(lot.free for lot in lots), sum(lot.used for lot in lots)) == (
        50,
        0,
        50,
    )


async def test_200_customers_at_once_for_50_places_take_50_doses(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=50, doses=70)
    answers = await asyncio.gather(*(world.customer().book(hospital, day) for _ in range(200)))
    assert Counter(a.status for a in answers)[Status.RESERVATION_STATUS_APPROVED] == 50

    async def free() -> int:
        return sum(lot.free for lot in await world.manager(hospital).lots(hospital))

    await eventually(free, lambda doses: doses == 20)


async def test_a_request_repeated_50_times_at_once_is_one_reservation(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer, request_id = world.customer(), str(uuid.uuid4())
    answers = await asyncio.gather(*(customer.book(hospital, day, request_id) for _ in range(50)))
    assert all(answer == answers[0] for answer in answers)
    completed = await customer.reaches(answers[0].reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    assert completed.quantity == 1
    assert len(await customer.screen()) == 1
    assert (await world.operator.availability(hospital, day)).approved == 1
    assert await customer.create(hospital, day, request_id) == answers[0]

    other = await refused(customer.create(hospital, day, request_id, vaccine_code="208"))
    assert (other.code.name, other.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert "request_id" in other.fields


async def test_a_person_has_one_active_booking(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = world.customer()
    first, second = await asyncio.gather(customer.create(hospital, day), customer.create(hospital, day))
    assert {first.status, second.status} == {Status.RESERVATION_STATUS_APPROVED, Status.RESERVATION_STATUS_REJECTED}
    third = await customer.create(hospital, day)
    assert third.rejection_reason == Denial.DENIAL_REASON_ACTIVE_BOOKING

    booked = first if first.status == Status.RESERVATION_STATUS_APPROVED else second
    await customer.cancel(booked.reservation_id)
    await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_CANCELLED)

    await eventually(lambda: world.operator.availability(hospital, day), lambda seen: seen.approved == 0)
    assert (await customer.create(hospital, day)).status == Status.RESERVATION_STATUS_APPROVED


async def test_requests_and_cancellations_are_accepted_while_vaccine_management_is_down(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=100, doses=100)
    early = [world.customer() for _ in range(5)]
    booked = await asyncio.gather(*(customer.book(hospital, day) for customer in early))
    for customer, reservation in zip(early, booked, strict=True):
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)

    await world.stop("vaccinemgmt")
    late = [world.customer() for _ in range(20)]
    new = await asyncio.gather(*(customer.book(hospital, day) for customer in late))
    given_up = await asyncio.gather(*(c.cancel(r.reservation_id) for c, r in zip(early, booked, strict=True)))
    assert {r.status for r in new} == {Status.RESERVATION_STATUS_APPROVED}
    assert {r.status for r in given_up} == {Status.RESERVATION_STATUS_CANCEL_REQUESTED}

    await world.start("vaccinemgmt")
    for customer, reservation in zip(late, new, strict=True):
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    for customer, reservation in zip(early, booked, strict=True):
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    [lot] = await world.manager(hospital).lots(hospital)
    assert (lot.free, lot.used) == (80, 20)
    for customer in (*late, *early):
        [seen] = await customer.screen()
        assert max(Counter(entry.event for entry in seen.timeline).values()) == 1


@pytest.mark.parametrize("language", ["ko", "en"])
async def test_while_approval_is_down_customers_are_told_to_try_again_shortly(world: World, language: str) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer, request_id = world.customer(), str(uuid.uuid4())
    customer.metadata.append(("accept-language", f"{language}-XX,fr;q=0.5"))
    await world.stop("approval")
    begin = asyncio.get_running_loop().time()
    busy = await refused(customer.create(hospital, day, request_id))
    assert asyncio.get_running_loop().time() - begin < 5
    assert (busy.code.name, busy.reason) == ("RESOURCE_EXHAUSTED", "APPROVAL_BUSY")
    assert busy.retry_after is not None
    assert 0 < busy.retry_after < 60
    assert busy.localized is not None
    assert busy.localized[0] == language
    assert not await world.query("reservation", "SELECT * FROM reservations WHERE hospital_id = $1", hospital)

    await world.start("approval")
    reservation = await customer.create(hospital, day, request_id)
    assert reservation.status == Status.RESERVATION_STATUS_APPROVED
    await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)


async def test_a_recorded_answer_is_repeated_even_while_approval_is_down(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer, request_id = world.customer(), str(uuid.uuid4())
    answer = await customer.create(hospital, day, request_id)
    await world.stop("approval")
    assert await customer.create(hospital, day, request_id) == answer
    assert (await refused(customer.create(hospital, day, request_id, "208"))).reason == "REQUEST_ID_REUSED"


async def test_a_manager_chooses_the_lot(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5)
    manager, customer = world.manager(hospital), world.customer()
    soon, late = await manager.register(
        hospital, delivery(1, expiry_date=str(day)), delivery(5, vaccine_code="208", manufacturer="PFR")
    )
    reservation = await customer.create(hospital, day)
    completed = await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    assert completed.lot_number == soon.lot_number, "first to expire, first out"

    request = vaccinemgmt_service_pb2.AssignLotRequest(reservation_id=reservation.reservation_id, lot_id=late.lot_id)
    for _ in range(2):  # a repeat changes nothing
        assigned = (await manager.call(manager.vaccinemgmt.AssignLot, request)).vaccination
        assert (assigned.dose.lot_number, assigned.quantity) == (late.lot_number, 1)
    [seen] = await eventually(customer.screen, lambda screen: screen[0].lot_number == late.lot_number)
    assert seen.vaccine_code == "208"
    assert {lot.lot_number: (lot.free, lot.used) for lot in await manager.lots(hospital)} == {
        soon.lot_number: (1, 0),
        late.lot_number: (4, 1),
    }


async def test_watching_shows_the_present_and_then_every_change(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=5, doses=5)
    customer = world.customer()
    watch = customer.mypage.WatchMyReservations(
        mypage_service_pb2.WatchMyReservationsRequest(), metadata=customer.metadata, timeout=30
    )

    async def read() -> mypage_service_pb2.WatchMyReservationsResponse:
        answer: Any = await watch.read()  # at the stream's end this is EOF, which fails the test
        assert isinstance(answer, mypage_service_pb2.WatchMyReservationsResponse)
        return answer

    async def until(status: int) -> None:
        while (await read()).reservations[-1].status != status:
            pass

    assert list((await read()).reservations) == []
    reservation = await customer.create(hospital, day)
    await until(Status.RESERVATION_STATUS_COMPLETED)
    await customer.cancel(reservation.reservation_id)
    await until(Status.RESERVATION_STATUS_CANCELLED)
    watch.cancel()


async def test_a_watch_does_not_outlive_its_token(world: World) -> None:
    soon = world.client(f"customer-{uuid.uuid4()}", ["customer"], expires_in=7 - CLOCK_SKEW)
    watch: Any = soon.mypage.WatchMyReservations(
        mypage_service_pb2.WatchMyReservationsRequest(), metadata=soon.metadata, timeout=30
    )
    assert list((await watch.read()).reservations) == []
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watch.read()
    told = refusal(ended.value)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_mypage_rebuilt_from_the_stream_is_equal_row_by_row(world: World) -> None:
    hospital, day = await world.new_hospital(capacity=3, doses=2)
    customers: list[Client] = [world.customer() for _ in range(5)]
    answers = await asyncio.gather(*(customer.book(hospital, day) for customer in customers))
    served = [(c, a) for c, a in zip(customers, answers, strict=True) if a.status == Status.RESERVATION_STATUS_APPROVED]
    await eventually(lambda: world.manager(hospital).waiting(hospital), lambda waiting: len(waiting) == 1)
    await served[0][0].cancel(served[0][1].reservation_id)
    await served[0][0].reaches(served[0][1].reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    await eventually(lambda: world.manager(hospital).waiting(hospital), lambda waiting: not waiting)

    async def rows() -> list[list[tuple[object, ...]]]:
        sql = "SELECT * FROM {0} ORDER BY {0}::text"
        tables = [await world.query("mypage", sql.format(table)) for table in ("my_reservations", "timeline")]
        return [[tuple(row) for row in table] for table in tables]

    await world.quiet()
    before = await rows()
    await asyncio.to_thread(world.mesh.rebuild_mypage)
    assert await rows() == before
    assert len(before[0]) >= 5
