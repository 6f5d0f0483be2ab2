"""From delivery to arm, in the pharmacist's and the customer's words, through the gateway by gRPC and by REST."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pytest

from vaccination.approval.v1 import appointment_pb2
from vaccination.mypage.v1 import my_reservation_pb2
from vaccination.operations.v1 import operations_service_pb2, operations_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccination_pb2

from .conftest import Client, Refusal, Status, World, delivery, eventually, zone_at_noon
from .ways import Ways, ways_into

Denial = appointment_pb2.DenialReason
Kind = lot_pb2.MovementKind
VaccinationStatus = vaccination_pb2.VaccinationStatus


@dataclass
class Scene:
    """A hospital on the day itself, its people, and one way in."""

    world: World
    ways: Ways
    way: str
    hospital: str
    day: date

    @property
    def manager(self) -> Client:
        return self.world.manager(self.hospital)

    async def call(self, who: Client, rpc: str, **request: Any) -> Any:
        """Makes the call by this scene's way; fails when it is refused."""
        answer = await getattr(self.ways, self.way)(who.token, rpc, request)
        assert not isinstance(answer, Refusal), answer
        return answer

    async def refused(self, who: Client, rpc: str, **request: Any) -> str:
        """Makes the call by this scene's way; returns why it was refused."""
        answer = await getattr(self.ways, self.way)(who.token, rpc, request)
        assert isinstance(answer, Refusal), answer
        return answer.reason

    async def booked(self, day: date | None = None, code: str = "") -> tuple[Client, str]:
        """A new customer whose booking has a dose."""
        customer = self.world.customer()
        reservation = await customer.create(self.hospital, day or self.day, vaccine_code=code)
        await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
        return customer, reservation.reservation_id

    async def lot(self, lot_id: str) -> lot_pb2.Lot:
        """The lot as it is."""
        return next(lot for lot in await self.manager.lots(self.hospital) if lot.lot_id == lot_id)

    async def lot_is(self, lot_id: str, free: int, reserved: int, administered: int, written_off: int) -> None:
        """Waits until the lot's doses are so; received is their sum at every look."""

        async def look() -> tuple[int, int, int, int]:
            lot = await self.lot(lot_id)
            seen = lot.free, lot.reserved, lot.administered, lot.written_off
            assert lot.received == sum(seen)
            return seen

        await eventually(look, lambda seen: seen == (free, reserved, administered, written_off))

    async def shows(
        self, customer: Client, reservation_id: str, holds: Callable[[my_reservation_pb2.MyReservation], bool]
    ) -> my_reservation_pb2.MyReservation:
        """Waits until the customer's screen shows the reservation so."""

        async def look() -> my_reservation_pb2.MyReservation:
            return next(r for r in await customer.screen() if r.reservation_id == reservation_id)

        return await eventually(look, holds)

    async def books_agree(self) -> None:
        """Places and doses add up, from the stores and from the events."""
        await self.world.quiet()
        stub = operations_service_pb2_grpc.OperationsServiceStub(self.world._channel)
        for service in ("approval", "vaccinemgmt"):
            metadata = [*self.world.operator.metadata, ("service", service)]
            request = operations_service_pb2.CheckBooksRequest(service=service)
            answers = [a async for a in stub.CheckBooks(request, metadata=metadata, timeout=60)]
            wrong = [d for a in answers for d in a.differences if self.hospital in d.account]
            assert answers[-1].done
            assert not wrong


@pytest.fixture(params=["grpc", "rest"])
async def scene(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    hospital, day = await world.new_hospital(capacity=20, days_ahead=0, time_zone=zone_at_noon())
    async with ways_into(world) as ways:
        yield Scene(world, ways, request.param, hospital, day)


def named(lot: lot_pb2.Lot) -> dict[str, str]:
    """How a recall names the lot."""
    return {"vaccine_code": lot.vaccine_code, "manufacturer": lot.manufacturer, "lot_number": lot.lot_number}


def new_id() -> str:
    return str(uuid.uuid4())


# The lot's ledger


async def test_deliveries_of_one_lot_add_up_and_a_repeat_changes_nothing(scene: Scene) -> None:
    first = {f.name: v for f, v in delivery(100, delivery_id="week-1").ListFields()}
    for content, received, taken in (
        (first, 100, [0]),
        (first | {"delivery_id": "week-2"}, 200, [0]),
        (first, 200, []),
        (first | {"delivery_id": "week-3", "quantity": 60}, 260, [0]),
    ):
        answer = await scene.call(scene.manager, "RegisterLots", hospital_id=scene.hospital, deliveries=[content])
        assert (answer.lots[0].received, list(answer.taken)) == (received, taken)
    movements = (await scene.call(scene.manager, "ListMovements", lot_id=answer.lots[0].lot_id)).movements
    assert [(m.kind, m.quantity, m.delivery_id, m.by) for m in movements] == [
        (Kind.MOVEMENT_KIND_RECEIVED, quantity, f"week-{week}", "manager")
        for week, quantity in ((1, 100), (2, 100), (3, 60))
    ]
    await scene.books_agree()


async def test_broken_doses_are_written_off_and_who_came_last_waits(scene: Scene) -> None:
    [lot] = await scene.manager.register(scene.hospital, delivery(3))
    people = [await scene.booked() for _ in range(3)]
    change = {"lot_id": lot.lot_id, "request_id": new_id(), "quantity": 2, "reason": 1, "note": "dropped"}
    for _ in range(2):
        after = (await scene.call(scene.manager, "WriteOffDoses", **change)).lot
        assert (after.received, after.free, after.reserved, after.written_off) == (3, 0, 1, 2)
    for customer, reservation_id in people[1:]:
        seen = await customer.reaches(reservation_id, Status.RESERVATION_STATUS_APPROVED)
        assert (seen.quantity, seen.lot_number) == (0, "")
        assert seen.timeline[-1].reason == "DOSES_WRITTEN_OFF"
    waiting = await scene.manager.waiting(scene.hospital)
    assert [v.reservation_id for v in waiting] == [reservation_id for _, reservation_id in people[1:]]
    await scene.manager.register(scene.hospital, delivery(1))  # the old place in the queue counts
    await people[1][0].reaches(people[1][1], Status.RESERVATION_STATUS_COMPLETED)
    await scene.books_agree()


async def test_a_wrong_expiry_date_is_corrected_and_bookings_keep_a_usable_dose(scene: Scene) -> None:
    late = scene.day + timedelta(30)
    await scene.manager.set_capacity(scene.hospital, late, 5)
    typo, other = await scene.manager.register(
        scene.hospital, delivery(2, expiry_date=str(late)), delivery(1, expiry_date=str(late + timedelta(60)))
    )
    first, second = [await scene.booked(late) for _ in range(2)]
    assert (await scene.lot(typo.lot_id)).reserved == 2
    change = {"lot_id": typo.lot_id, "request_id": new_id(), "note": "typed wrongly"}
    await scene.call(scene.manager, "CorrectLot", **change, expiry_date=str(late - timedelta(1)))
    # First come, first served: the only other dose is the first one's, the second waits.
    seen = await scene.shows(*first, lambda r: r.lot_number == other.lot_number)
    assert (seen.status, seen.timeline[-1].reason) == (Status.RESERVATION_STATUS_COMPLETED, "LOT_CORRECTED")
    await second[0].reaches(second[1], Status.RESERVATION_STATUS_APPROVED)
    # The maker extends the shelf life: who waits gets a dose at once.
    extended = {"lot_id": typo.lot_id, "request_id": new_id(), "note": "extended by the maker"}
    await scene.call(scene.manager, "CorrectLot", **extended, expiry_date=str(late + timedelta(180)))
    seen = await second[0].reaches(second[1], Status.RESERVATION_STATUS_COMPLETED)
    assert seen.expiry_date == str(late + timedelta(180))
    await scene.lot_is(typo.lot_id, free=1, reserved=1, administered=0, written_off=0)
    await scene.books_agree()


# The day itself


async def test_a_customer_comes_and_is_given_the_dose_that_is_set_aside(scene: Scene) -> None:
    [lot] = await scene.manager.register(scene.hospital, delivery(1))
    customer, mine = await scene.booked()
    await scene.call(scene.manager, "CheckIn", reservation_id=mine)
    for _ in range(2):
        given = (await scene.call(scene.manager, "Administer", reservation_id=mine)).vaccination
        assert (given.status, given.dose.lot_id) == (VaccinationStatus.VACCINATION_STATUS_ADMINISTERED, lot.lot_id)
    seen = await customer.reaches(mine, Status.RESERVATION_STATUS_ADMINISTERED)
    assert [t.event for t in seen.timeline][-2:] == ["VaccinationCheckedIn", "VaccinationAdministered"]
    assert (seen.lot_number, seen.quantity) == (lot.lot_number, 1)
    await scene.world.quiet()
    assert await scene.refused(customer, "CancelReservation", reservation_id=mine) == "ALREADY_ADMINISTERED"
    assert await scene.refused(scene.manager, "MarkMissed", reservation_id=mine) == "ALREADY_ADMINISTERED"
    await scene.lot_is(lot.lot_id, free=0, reserved=0, administered=1, written_off=0)
    await scene.books_agree()


async def test_the_lot_that_was_scanned_is_the_one_that_counts(scene: Scene) -> None:
    mine_lot, scanned = await scene.manager.register(
        scene.hospital, delivery(1, expiry_date=str(scene.day)), delivery(1)
    )
    customer, mine = await scene.booked()
    other, others = await scene.booked()
    assert (await scene.lot(scanned.lot_id)).reserved == 1  # for the other one
    await scene.call(scene.manager, "Administer", reservation_id=mine, lot_id=scanned.lot_id)
    seen = await customer.reaches(mine, Status.RESERVATION_STATUS_ADMINISTERED)
    assert seen.lot_number == scanned.lot_number
    swapped = await scene.shows(other, others, lambda r: r.lot_number == mine_lot.lot_number)
    assert swapped.status == Status.RESERVATION_STATUS_COMPLETED
    await scene.books_agree()


async def test_who_does_not_come_gives_the_dose_back_and_may_still_come_later_that_day(scene: Scene) -> None:
    [lot] = await scene.manager.register(scene.hospital, delivery(1))
    customer, mine = await scene.booked()
    for _ in range(2):
        await scene.call(scene.manager, "MarkMissed", reservation_id=mine)
    await customer.reaches(mine, Status.RESERVATION_STATUS_MISSED)
    await scene.lot_is(lot.lot_id, free=1, reserved=0, administered=0, written_off=0)
    await scene.world.quiet()
    assert await scene.refused(customer, "CancelReservation", reservation_id=mine) == "ENDED"
    again = await customer.create(scene.hospital, scene.day)  # free to book again
    assert again.status == Status.RESERVATION_STATUS_APPROVED
    await customer.reaches(again.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    await customer.cancel(again.reservation_id)
    await customer.reaches(again.reservation_id, Status.RESERVATION_STATUS_CANCELLED)
    assert await scene.refused(scene.manager, "Administer", reservation_id=mine) == "NO_DOSE"
    await scene.call(scene.manager, "Administer", reservation_id=mine, lot_id=lot.lot_id)
    await customer.reaches(mine, Status.RESERVATION_STATUS_ADMINISTERED)
    await scene.books_agree()


async def test_the_counter_refuses_the_wrong_day_an_expired_lot_and_another_vaccine(scene: Scene) -> None:
    tomorrow = scene.day + timedelta(1)
    await scene.manager.set_capacity(scene.hospital, tomorrow, 5)
    expired, other, good = await scene.manager.register(
        scene.hospital,
        delivery(1, expiry_date=str(scene.day - timedelta(1))),
        delivery(1, vaccine_code="208", manufacturer="PFR"),
        delivery(3),
    )
    early = await scene.booked(tomorrow)
    for rpc in ("CheckIn", "Administer", "MarkMissed"):
        assert await scene.refused(scene.manager, rpc, reservation_id=early[1]) == "WRONG_DAY"
    _, mine = await scene.booked(code="207")
    for lot, reason in ((expired, "LOT_NOT_VALID"), (other, "LOT_OTHER_VACCINE")):
        refused = await scene.refused(scene.manager, "Administer", reservation_id=mine, lot_id=lot.lot_id)
        assert refused == reason
    await scene.manager.recall(other, scene.hospital)
    refused = await scene.refused(scene.manager, "Administer", reservation_id=mine, lot_id=other.lot_id)
    assert refused == "LOT_WITHDRAWN"
    await scene.lot_is(good.lot_id, free=1, reserved=2, administered=0, written_off=0)


# Recall


async def test_a_recall_moves_bookings_to_another_lot_and_the_others_wait_and_all_are_told(scene: Scene) -> None:
    bad, good = await scene.manager.register(
        scene.hospital, delivery(4, expiry_date=str(scene.day)), delivery(1, expiry_date=str(scene.day + timedelta(90)))
    )
    given, first, second = [await scene.booked() for _ in range(3)]
    await scene.call(scene.manager, "Administer", reservation_id=given[1])
    for _ in range(2):
        recall = (
            await scene.call(scene.world.operator, "RecallLot", **named(bad), hospital_id="", note="Glass particles")
        ).recall

    async def progress() -> Any:
        return (await scene.call(scene.world.operator, "GetRecall", recall_id=recall.recall_id)).recall

    done = await eventually(progress, lambda r: r.bookings_to_go == 0)
    assert (done.lots, done.written_off, done.reassigned, done.waiting, done.administered) == (1, 3, 1, 1, 1)
    seen = await scene.shows(*first, lambda r: r.lot_number == good.lot_number)
    assert (seen.timeline[-1].reason, seen.timeline[-1].note) == ("LOT_RECALLED", "Glass particles")
    seen = await second[0].reaches(second[1], Status.RESERVATION_STATUS_APPROVED)
    assert (seen.timeline[-1].event, seen.timeline[-1].note) == ("ReservationWaiting", "Glass particles")
    listed = (await scene.call(scene.world.operator, "ListVaccinated", recall_id=recall.recall_id)).vaccinated
    assert [v.reservation_id for v in listed] == [given[1]]
    await scene.lot_is(bad.lot_id, free=0, reserved=0, administered=1, written_off=3)
    # Who waits can still cancel, and a delivery of the recalled lot is refused.
    await second[0].cancel(second[1])
    await second[0].reaches(second[1], Status.RESERVATION_STATUS_CANCELLED)
    more = {f.name: v for f, v in delivery(1, **named(bad), delivery_id="late").ListFields()}
    refused = await scene.refused(scene.manager, "RegisterLots", hospital_id=scene.hospital, deliveries=[more])
    assert refused == "LOT_WITHDRAWN"
    await scene.books_agree()


# The hospital calls a day off, or has fewer places


async def test_a_day_is_called_off_and_everybody_may_book_anew_at_once(scene: Scene) -> None:
    [lot] = await scene.manager.register(scene.hospital, delivery(2))
    tomorrow = scene.day + timedelta(1)
    await scene.manager.set_capacity(scene.hospital, tomorrow, 5)
    people = [await scene.booked() for _ in range(2)]
    waiting = scene.world.customer()
    waits = await waiting.create(scene.hospital, scene.day)
    day = {"hospital_id": scene.hospital, "date": str(scene.day)}
    await scene.call(scene.manager, "CallOffDay", **day, note="The heating failed")
    for customer, reservation_id in (*people, (waiting, waits.reservation_id)):
        await customer.reaches(reservation_id, Status.RESERVATION_STATUS_CALLED_OFF)
        seen = await scene.shows(customer, reservation_id, lambda r: r.quantity == 0)  # the dose is back
        told = [t for t in seen.timeline if t.event == "ApprovalRevoked"]
        assert [(t.reason, t.note) for t in told] == [("DAY_CALLED_OFF", "The heating failed")]
        assert seen.lot_number == ""
    refused = await people[0][0].create(scene.hospital, scene.day)
    assert refused.rejection_reason == Denial.DENIAL_REASON_DAY_CALLED_OFF
    anew = await people[0][0].create(scene.hospital, tomorrow)
    assert anew.status == Status.RESERVATION_STATUS_APPROVED
    await scene.lot_is(lot.lot_id, free=1, reserved=1, administered=0, written_off=0)
    assert (await scene.call(scene.manager, "CallOffDay", **day, note="The heating failed")).bookings_to_go == 0
    assert (await scene.call(scene.manager, "ReopenDay", **day)).day.left == 20
    await scene.books_agree()


async def test_fewer_places_than_are_booked_are_accepted_and_nobody_new_is_approved(scene: Scene) -> None:
    await scene.manager.register(scene.hospital, delivery(3))
    people = [await scene.booked() for _ in range(3)]
    days = {"hospital_id": scene.hospital, "first_date": str(scene.day), "last_date": str(scene.day)}
    answer = await scene.call(scene.manager, "SetDailyCapacity", **days, capacity=1)
    assert [(d.date, d.approved, d.over, d.left) for d in answer.days_over] == [(str(scene.day), 3, 2, 0)]

    async def asks() -> int:
        return (await scene.world.customer().create(scene.hospital, scene.day)).rejection_reason

    for customer, reservation_id in people:
        assert await asks() == Denial.DENIAL_REASON_DAY_FULL
        await customer.cancel(reservation_id)
        await customer.reaches(reservation_id, Status.RESERVATION_STATUS_CANCELLED)
        await scene.world.quiet()
    assert await asks() == 0
    await scene.books_agree()


# Moving


async def test_a_booking_is_moved_in_one_step_or_stays_as_it_was(scene: Scene) -> None:
    [lot] = await scene.manager.register(scene.hospital, delivery(5))
    elsewhere, other_day = await scene.world.new_hospital(capacity=1, doses=1)
    customer, mine = await scene.booked()
    request = {"request_id": new_id(), "reservation_id": mine, "hospital_id": elsewhere, "date": str(other_day)}
    answers = await asyncio.gather(*(scene.call(customer, "MoveReservation", **request) for _ in range(3)))
    assert len({a.reservation.reservation_id for a in answers}) == 1
    new = answers[0].reservation
    assert (new.status, new.hospital_id) == (Status.RESERVATION_STATUS_APPROVED, elsewhere)
    seen = await customer.reaches(mine, Status.RESERVATION_STATUS_MOVED)
    assert seen.replaced_by == new.reservation_id
    await customer.reaches(new.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
    await scene.lot_is(lot.lot_id, free=5, reserved=0, administered=0, written_off=0)
    assert (await scene.world.operator.availability(scene.hospital, scene.day)).approved == 0

    another, held = await scene.booked()  # the only place elsewhere is taken
    full = {"request_id": new_id(), "reservation_id": held, "hospital_id": elsewhere, "date": str(other_day)}
    for _ in range(2):
        refused = (await scene.call(another, "MoveReservation", **full)).reservation
        assert (refused.status, refused.rejection_reason) == (
            Status.RESERVATION_STATUS_REJECTED,
            Denial.DENIAL_REASON_DAY_FULL,
        )
    await eventually(lambda: another.get(held), lambda seen: seen.status == Status.RESERVATION_STATUS_COMPLETED)
    back = {"request_id": new_id(), "reservation_id": held, "hospital_id": scene.hospital, "date": str(scene.day)}
    await scene.world.operator.set_capacity(scene.hospital, scene.day, 1)  # full with the booking that moves
    moved = (await scene.call(another, "MoveReservation", **back, vaccine_code="207")).reservation
    assert moved.status == Status.RESERVATION_STATUS_APPROVED
    await scene.books_agree()


# Vaccine codes


async def test_a_code_with_a_leading_zero_is_the_same_and_one_that_is_not_offered_takes_no_place(scene: Scene) -> None:
    await scene.manager.register(scene.hospital, delivery(3, vaccine_code="8", manufacturer="MSD"))
    await scene.world.quiet()  # approval has heard of the delivery
    _, mine = await scene.booked(code="08")
    vaccination = (await scene.call(scene.manager, "GetVaccination", reservation_id=mine)).vaccination
    assert (vaccination.dose.vaccine_code, vaccination.requested_vaccine_code) == ("8", "8")
    customer = scene.world.customer()
    refused = await customer.create(scene.hospital, scene.day, vaccine_code="999")
    assert refused.rejection_reason == Denial.DENIAL_REASON_VACCINE_NOT_OFFERED
    assert (await scene.world.operator.availability(scene.hospital, scene.day)).approved == 1
    assert (await customer.create(scene.hospital, scene.day)).status == Status.RESERVATION_STATUS_APPROVED


# The desk


async def test_the_desk_lists_a_day_finds_a_customer_and_records_who_looked(scene: Scene) -> None:
    await scene.manager.register(scene.hospital, delivery(3))
    people = [await scene.booked() for _ in range(3)]
    day = {"hospital_id": scene.hospital, "date": str(scene.day)}
    first = await scene.call(scene.manager, "ListDay", **day, page_size=2)
    rest = await scene.call(scene.manager, "ListDay", **day, page_size=2, page_token=first.next_page_token)
    listed = [*first.vaccinations, *rest.vaccinations]
    assert {v.reservation_id for v in listed} == {reservation_id for _, reservation_id in people}
    assert (len(listed), rest.next_page_token) == (3, "")
    who = {"hospital_id": scene.hospital, "customer_id": listed[0].customer_id}
    found = (await scene.call(scene.manager, "FindBookings", **who)).vaccinations
    assert [v.reservation_id for v in found] == [listed[0].reservation_id]
    accesses = (await scene.call(scene.world.operator, "ListAccesses", hospital_id=scene.hospital)).accesses
    assert [(a.call, a.by, a.role, a.about) for a in accesses] == [
        ("FindBookings", "manager", "manager", listed[0].customer_id),
        *[("ListDay", "manager", "manager", str(scene.day))] * 2,
    ]
