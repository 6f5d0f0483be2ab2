"""No dose is wasted that a search through all possibilities would save, whatever came before."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.vaccinemgmt.application import serving
from services.vaccinemgmt.domain import (
    Appointment,
    Balance,
    Completed,
    Correction,
    Delivery,
    DoseChange,
    DoseChangeReason,
    Exchange,
    Lot,
    LotId,
    Request,
    ReservationId,
    Status,
    Vaccination,
    movement_id,
)

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)


def request(lot_id: LotId) -> Request:
    return Request(movement_id(lot_id, str(uuid.uuid4())), "manager", "", NOW)


def lot(number: str, quantity: int = 1, code: str = "207", first: int = 0, last: int = 9) -> Lot:
    """A lot that is usable from the first to the last day, counted from DAY."""
    delivery = Delivery(number, code, "MOD", DAY + timedelta(first), DAY + timedelta(last), quantity)
    arrived = Lot.of("h1", delivery)
    arrived.receive(delivery, request(arrived.lot_id))
    return arrived


def booking(n: int, day: int = 0, code: str = "") -> Vaccination:
    """The n-th customer to come, for a day counted from DAY."""
    at = NOW - timedelta(hours=1) + timedelta(seconds=n)
    key = ReservationId(str(uuid.UUID(int=n)))
    return Vaccination(Appointment(key, f"c{n}", "h1", "Clinic", "Asia/Seoul", DAY + timedelta(day), code, at))


class Shelf:
    """A hospital's lots and bookings, and what a transaction sees of them."""

    def __init__(self, lots: Sequence[Lot] = ()) -> None:
        self.all_lots = {lot.lot_id: lot for lot in lots}
        self.bookings: dict[ReservationId, Vaccination] = {}

    async def free_lots(self, hospital_id: str, since: date) -> Sequence[Lot]:
        return [lot for lot in self.all_lots.values() if lot.free and lot.expiry_date >= since]

    async def full_lots(self, hospital_id: str, since: date) -> Sequence[Lot]:
        return [lot for lot in self.all_lots.values() if not lot.free and lot.expiry_date >= since]

    async def waiting(
        self, hospital_id: str, lots: Sequence[Lot], since: date, behind: object, limit: int
    ) -> Sequence[Vaccination]:
        # Whoever has lost a dose in this transaction does not wait in the store yet.
        waiting = [v for v in self.bookings.values() if v.status is Status.WAITING and v.lost is None]
        found = [v for v in waiting if any(v.appointment.accepts(lot) for lot in lots)]
        return sorted(found, key=lambda v: v.place_in_queue)

    async def movable(
        self, source: Lot, target: Lot, since: date, but: Sequence[ReservationId], limit: int
    ) -> Sequence[Vaccination]:
        bookings = self.bookings.values()
        return [v for v in bookings if v.reservation_id not in but and v.may_move(source, target, NOW)][:limit]

    def admit(self, *newcomers: Vaccination) -> None:
        asyncio.run(serving.serve(self, "h1", newcomers, NOW))  # type: ignore[arg-type]
        for vaccination in newcomers:
            if vaccination.dose is None:
                vaccination.wait(NOW)
            self.bookings[vaccination.reservation_id] = vaccination

    def serve(self) -> None:
        """Serves those who wait until nobody more can be served."""
        while asyncio.run(serving.serve(self, "h1", [], NOW, thoroughly=True))[0]:  # type: ignore[arg-type]
            pass

    def with_dose(self) -> int:
        return sum(v.dose is not None for v in self.bookings.values())


def of(vaccination: Vaccination) -> str:
    return vaccination.dose.lot_number if vaccination.dose else ""


def test_whoever_can_do_with_another_dose_makes_room_for_one_who_cannot() -> None:
    any_vaccine, certain = booking(1), booking(2, code="207")
    shelf = Shelf([lot("A", code="207", last=1), lot("B", code="208", last=5)])
    shelf.admit(any_vaccine)
    assert of(any_vaccine) == "A"  # it expires first
    shelf.admit(certain)
    assert (of(any_vaccine), of(certain)) == ("B", "A")
    assert any_vaccine.events[-1].change == DoseChange(DoseChangeReason.EXCHANGED)  # type: ignore[union-attr]
    assert any_vaccine.version == 2
    assert certain.version == 1


def test_a_chain_of_exchanges_frees_a_dose() -> None:
    shelf = Shelf([lot("A", first=0, last=1), lot("B", first=1, last=2), lot("C", first=2, last=3)])
    first, second, third = booking(1, 1), booking(2, 2), booking(3, 0)
    shelf.admit(first, second)
    assert (of(first), of(second)) == ("A", "B")
    shelf.admit(third)  # only A suits it, `first` could do with B, and `second` with C
    assert (of(first), of(second), of(third)) == ("B", "C", "A")


def test_who_has_checked_in_keeps_the_dose_that_lies_ready() -> None:
    there, waits = booking(1), booking(2, code="207")
    shelf = Shelf([lot("A", code="207", last=1), lot("B", code="208", last=5)])
    shelf.admit(there)
    there.checked_in_at = NOW
    shelf.admit(waits)
    assert (of(there), of(waits)) == ("A", "")


def test_nobody_is_moved_while_a_free_dose_suits() -> None:
    shelf = Shelf([lot("A", 1, last=1), lot("B", 2, last=5)])
    first, second = booking(1), booking(2, 3)
    shelf.admit(first, second)
    assert (of(first), of(second)) == ("A", "B")
    assert (first.version, second.version) == (1, 1)


def test_nobody_waits_for_an_exchange_behind_somebody_who_came_later() -> None:
    shelf = Shelf([lot("A", 1, code="207", last=1)])
    holder = booking(1)
    early, late = booking(2, code="207"), booking(3, code="208")
    shelf.admit(holder)
    shelf.admit(early, late)
    arrived = lot("B", 1, code="208", last=5)
    shelf.all_lots[arrived.lot_id] = arrived
    shelf.serve()  # the dose suits `late`, and by an exchange `early`, who came first
    assert (of(holder), of(early), of(late)) == ("B", "A", "")


# Against all possibilities


def most(bookings: Sequence[Vaccination], lots: Sequence[Lot]) -> int:
    """How many of the bookings can have a dose at once: every way to give out the doses is tried."""

    def best(left: Sequence[Vaccination], doses: dict[LotId, int]) -> int:
        if not left:
            return 0
        head, *tail = left
        found = best(tail, doses)
        for one in lots:
            if doses[one.lot_id] and head.appointment.accepts(one):
                found = max(found, 1 + best(tail, doses | {one.lot_id: doses[one.lot_id] - 1}))
        return found

    return best(bookings, {one.lot_id: one.remaining for one in lots})


DAYS = st.integers(0, 3)
CODES = st.sampled_from(["207", "208", "08"])


class Hospital(RuleBasedStateMachine):
    """Arrivals, cancellations, deliveries, corrections, write-offs and recalls in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.came = 0

    def lots(self) -> list[Lot]:
        return list(self.shelf.all_lots.values())

    def held(self, of_lot: Lot) -> list[Vaccination]:
        return [v for v in self.shelf.bookings.values() if v.dose and v.dose.lot_id == of_lot.lot_id]

    @rule(day=DAYS, code=st.one_of(st.just(""), CODES, st.just("8")))
    def arrive(self, day: int, code: str) -> None:
        if sum(v.status in (Status.WAITING, Status.COMPLETED) for v in self.shelf.bookings.values()) < 6:
            self.came += 1
            newcomer = booking(self.came, day, code)
            self.shelf.admit(newcomer)
            self.first_expired_first_out(newcomer)

    @rule(first=DAYS, last=DAYS, code=CODES, quantity=st.integers(0, 2))
    def deliver(self, first: int, last: int, code: str, quantity: int) -> None:
        if len(self.shelf.all_lots) < 4:
            arrived = lot(f"L{len(self.shelf.all_lots)}", quantity, code, min(first, last), max(first, last))
            self.shelf.all_lots[arrived.lot_id] = arrived

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.shelf.bookings:
            vaccination = data.draw(st.sampled_from(list(self.shelf.bookings.values())))
            if back := vaccination.cancel(NOW):
                self.shelf.all_lots[back].put_back(vaccination.reservation_id, NOW)

    @rule(data=st.data(), first=DAYS, last=DAYS)
    def correct(self, data: st.DataObject, first: int, last: int) -> None:
        if usable := [one for one in self.lots() if not one.withdrawn]:
            chosen = data.draw(st.sampled_from(usable))
            dates = DAY + timedelta(min(first, last)), DAY + timedelta(max(first, last))
            chosen.correct(Correction(*dates), request(chosen.lot_id))
            self.look_at(chosen, DoseChangeReason.LOT_CORRECTED)

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        if self.lots():
            chosen = data.draw(st.sampled_from(self.lots()))
            chosen.withdraw("recalled", NOW, "operator")
            self.look_at(chosen, DoseChangeReason.LOT_RECALLED)

    @rule()
    def serve(self) -> None:
        self.shelf.serve()
        assert self.shelf.with_dose() == most(self.open(), [one for one in self.lots() if not one.withdrawn])

    def look_at(self, chosen: Lot, reason: DoseChangeReason) -> None:
        losers = [v for v in self.held(chosen) if v.look_at(chosen, DoseChange(reason, chosen.withdrawn), NOW)]
        self.shelf.admit(*losers)
        chosen.to_look_at = False

    def first_expired_first_out(self, newcomer: Vaccination) -> None:
        """No free dose would have suited that expires before the one that was given."""
        if newcomer.dose and isinstance(newcomer.events[-1], Completed):
            better = [one for one in self.lots() if one.free and one.expiry_date < newcomer.dose.expiry_date]
            assert not any(newcomer.appointment.accepts(one) for one in better)

    def open(self) -> list[Vaccination]:
        return [v for v in self.shelf.bookings.values() if v.status in (Status.WAITING, Status.COMPLETED)]

    @invariant()
    def every_dose_is_accounted_for_and_usable(self) -> None:
        for one in self.lots():
            assert one.balance == Balance.of(one.movements) == one.entered
            assert one.balance.reserved == len(self.held(one))
            assert min(one.balance.free, one.balance.reserved, one.balance.written_off) >= 0
            assert not one.withdrawn or one.free == 0
        for vaccination in self.open():
            assert (vaccination.status is Status.COMPLETED) == (vaccination.dose is not None)
            if vaccination.dose:
                assert vaccination.appointment.accepts(self.shelf.all_lots[vaccination.dose.lot_id])


TestHospital = Hospital.TestCase
TestHospital.settings = settings(max_examples=100, stateful_step_count=30, deadline=None, derandomize=True)


def test_an_exchange_with_nothing_free_finds_no_way() -> None:
    async def none(_: Lot, __: Lot) -> Vaccination | None:
        return None

    exchange = asyncio.run(Exchange.among([lot("A", 0), lot("B", 0)], none))
    assert exchange.lots == []
    assert exchange.lot_for(booking(1).appointment) is None
