"""The rules of the day itself: who is given a dose, who has missed it, and how a day ends. No servers."""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.vaccinemgmt.domain import (
    Administered,
    AlreadyAdministered,
    Appointment,
    Balance,
    Cancelled,
    CheckedIn,
    Completed,
    Delivery,
    DoseChange,
    DoseChangeReason,
    Lot,
    LotEmpty,
    LotId,
    LotNotValid,
    LotOtherVaccine,
    LotWithdrawn,
    Missed,
    MovementId,
    NoDose,
    Request,
    ReservationId,
    Status,
    Unserved,
    Vaccination,
    VaccinationCancelled,
    VaccinationEnded,
    VaccineError,
    Waiting,
    WrongDay,
    give_out,
    is_over,
    latest_day,
)

NOON = datetime(2027, 3, 10, 3, tzinfo=UTC)  # in Seoul
TODAY = date(2027, 3, 10)
DAY = timedelta(1)
MIDNIGHT = datetime(2027, 3, 10, 15, tzinfo=UTC)  # when the day is over in Seoul
GRACE = timedelta(hours=12)
DELIVERY = Delivery("L1", "207", "MOD", date(2027, 1, 1), date(2027, 6, 30), 3)


def lot(number: str = "L1", quantity: int = 3, **changes: object) -> Lot:
    delivery = replace(DELIVERY, lot_number=number, quantity=quantity, **changes)  # type: ignore[arg-type]
    arrived = Lot.of("h1", delivery)
    arrived.receive(delivery, Request(MovementId(str(uuid.uuid4())), "manager", "", NOON))
    return arrived


def waits(n: int = 1, day: date = TODAY, code: str = "") -> Vaccination:
    at = NOON - 30 * DAY + timedelta(seconds=n)
    reservation_id = ReservationId(str(uuid.UUID(int=n)))
    return Vaccination(Appointment(reservation_id, f"c{n}", "h1", "Clinic", "Asia/Seoul", day, code, at))


def with_dose(of: Lot, n: int = 1, day: date = TODAY, code: str = "") -> Vaccination:
    vaccination = waits(n, day, code)
    vaccination.complete(of, NOON)
    return vaccination


def numbers(of: Lot) -> tuple[int, int, int]:
    """Free, reserved, administered."""
    return of.balance.free, of.balance.reserved, of.balance.administered


def test_a_dose_in_an_arm_is_neither_free_nor_set_aside_and_does_not_come_back() -> None:
    shelf = lot()
    vaccination = with_dose(shelf)
    vaccination.administer(None, shelf, NOON, "nurse")
    assert numbers(shelf) == (2, 0, 1)
    assert vaccination.cancel(NOON) is None
    assert (vaccination.status, numbers(shelf)) == (Status.ADMINISTERED, (2, 0, 1))
    assert [type(e) for e in vaccination.events] == [Completed, Administered]


def test_who_gave_the_dose_is_in_the_lots_ledger() -> None:
    shelf = lot()
    with_dose(shelf).administer(None, shelf, NOON, "nurse")
    assert (shelf.movements[-1].by, shelf.movements[-1].at) == ("nurse", NOON)


def test_a_dose_of_the_lot_that_was_scanned_is_given_and_the_one_set_aside_is_free_again() -> None:
    present, scanned = lot("present", 1), lot("scanned", 1)
    vaccination = with_dose(present)
    vaccination.administer(scanned, present, NOON, "nurse")
    assert vaccination.dose == scanned.dose()
    assert (numbers(present), numbers(scanned)) == ((1, 0, 0), (0, 0, 1))


def test_who_is_given_a_dose_without_check_in_has_arrived_then() -> None:
    shelf = lot()
    vaccination = with_dose(shelf)
    vaccination.administer(None, shelf, NOON, "nurse")
    assert vaccination.checked_in_at == vaccination.administered_at == NOON


def test_check_in_keeps_the_first_time_and_the_status() -> None:
    vaccination = with_dose(lot())
    vaccination.check_in(NOON)
    vaccination.check_in(NOON + timedelta(hours=1))
    assert (vaccination.checked_in_at, vaccination.status) == (NOON, Status.COMPLETED)
    assert [type(e) for e in vaccination.events] == [Completed, CheckedIn]


@pytest.mark.parametrize("day", [TODAY - DAY, TODAY + DAY])
def test_on_another_day_than_the_appointments_nobody_is_checked_in_or_given_a_dose(day: date) -> None:
    shelf = lot()
    vaccination = with_dose(shelf, day=day)
    with pytest.raises(WrongDay, match=f"on {day}, and at the hospital it is {TODAY}"):
        vaccination.check_in(NOON)
    with pytest.raises(WrongDay):
        vaccination.administer(None, shelf, NOON, "nurse")
    assert (vaccination.version, numbers(shelf)) == (1, (2, 1, 0))


@pytest.mark.parametrize(
    ("scanned", "refusal"),
    [
        (lot("empty", 0), LotEmpty),
        (lot("expired", expiry_date=TODAY - DAY), LotNotValid),
        (lot("future", production_date=TODAY + DAY), LotNotValid),
        (lot("other", vaccine_code="208"), LotOtherVaccine),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.lot_number,
)
def test_a_lot_that_does_not_suit_goes_into_no_arm(scanned: Lot, refusal: type[Exception]) -> None:
    present, before = lot("present", 1), numbers(scanned)
    vaccination = with_dose(present, code="207")
    with pytest.raises(refusal):
        vaccination.administer(scanned, present, NOON, "nurse")
    assert (vaccination.status, vaccination.version) == (Status.COMPLETED, 1)
    assert (numbers(present), numbers(scanned)) == ((0, 1, 0), before)


def test_a_withdrawn_lots_dose_is_given_to_nobody_even_when_it_is_set_aside() -> None:
    shelf = lot()
    vaccination = with_dose(shelf)
    shelf.withdraw("recalled", NOON, "authority")
    with pytest.raises(LotWithdrawn):
        vaccination.administer(None, shelf, NOON, "nurse")


def test_without_a_dose_set_aside_the_lot_has_to_be_named() -> None:
    with pytest.raises(NoDose):
        waits().administer(None, None, NOON, "nurse")


def test_what_was_given_of_one_lot_was_not_given_of_another() -> None:
    shelf, other = lot(), lot("L2")
    vaccination = with_dose(shelf)
    vaccination.administer(None, shelf, NOON, "nurse")
    vaccination.administer(shelf, shelf, NOON, "nurse")  # a repeat
    with pytest.raises(AlreadyAdministered, match="of lot L1"):
        vaccination.administer(other, shelf, NOON, "nurse")
    assert (vaccination.version, numbers(other)) == (2, (3, 0, 0))


def test_who_was_missed_may_come_later_on_the_same_day_and_not_on_another() -> None:
    shelf = lot()
    vaccination = with_dose(shelf)
    assert vaccination.miss(NOON) == shelf.lot_id
    shelf.put_back(vaccination.reservation_id, NOON)
    assert vaccination.miss(NOON) is None  # a repeat
    with pytest.raises(WrongDay):
        vaccination.administer(shelf, None, MIDNIGHT, "nurse")
    vaccination.administer(shelf, None, MIDNIGHT - timedelta(seconds=1), "nurse")
    assert [type(e) for e in vaccination.events] == [Completed, Missed, Administered]
    assert numbers(shelf) == (2, 0, 1)


def test_a_cancelled_booking_is_told_apart_from_one_that_ended() -> None:
    vaccination = with_dose(lot())
    vaccination.cancel(NOON)
    for ask in (vaccination.check_in, vaccination.miss):
        with pytest.raises(VaccinationCancelled):
            ask(NOON)


def test_nobody_is_missed_before_the_day_has_come() -> None:
    with pytest.raises(WrongDay):
        with_dose(lot(), day=TODAY + DAY).miss(NOON)


def test_who_waits_is_unserved_when_the_day_is_over_even_if_the_staff_says_missed() -> None:
    vaccination = waits()
    assert vaccination.miss(MIDNIGHT) is None
    assert vaccination.status is Status.UNSERVED
    with pytest.raises(VaccinationEnded):
        vaccination.administer(lot(), None, MIDNIGHT, "nurse")


def test_a_day_ends_for_those_who_wait_at_once_and_for_those_with_a_dose_after_the_grace() -> None:
    shelf = lot()
    has, without = with_dose(shelf, 1), waits(2)
    moment = timedelta(microseconds=1)
    for now in (MIDNIGHT - moment, MIDNIGHT + GRACE - moment):
        assert has.end(now, GRACE) is None
        without.end(now, GRACE)
    assert (has.status, without.status) == (Status.COMPLETED, Status.UNSERVED)
    assert has.end(MIDNIGHT + GRACE, GRACE) == shelf.lot_id
    assert has.end(MIDNIGHT + GRACE, GRACE) is None
    assert (has.status, [type(e) for e in without.events]) == (Status.MISSED, [Unserved])


def test_whose_dose_was_given_to_another_is_told_so_and_waits_with_the_old_place() -> None:
    shelf = lot("L1", 1)
    vaccination = with_dose(shelf)
    place, change = vaccination.place_in_queue, DoseChange(DoseChangeReason.GIVEN_TO_ANOTHER)
    vaccination.lose(shelf, change, NOON)
    assert give_out([vaccination], [lot("other", vaccine_code="1", quantity=0)], NOON) == []
    vaccination.wait(NOON)
    assert vaccination.place_in_queue == place
    assert vaccination.events[-1] == Waiting(vaccination.appointment, NOON, 2, change)


def test_a_person_is_erased_when_nothing_becomes_of_their_vaccinations_any_more() -> None:
    shelf = lot(quantity=9)
    since = TODAY - 5 * DAY
    given, missed, cancelled, unserved = (with_dose(shelf, n) for n in range(1, 5))
    given.administer(None, shelf, NOON, "nurse")
    missed.miss(NOON)
    cancelled.cancel(NOON)
    unserved.dose, unserved.status = None, Status.UNSERVED
    assert not any(v.is_active(NOON, since) for v in (given, cancelled, unserved))
    assert missed.is_active(NOON, since)  # the customer may still come today
    assert not missed.is_active(MIDNIGHT, since)
    assert waits().is_active(MIDNIGHT, since)  # until it has ended
    assert with_dose(shelf, 5).is_active(MIDNIGHT, since)  # until it has ended
    assert not with_dose(shelf, 6, since - DAY).is_active(NOON, since)  # nothing ever ends it


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Asia/Seoul", "UTC", "Pacific/Pago_Pago"])
def test_no_day_is_over_anywhere_that_is_not_before_the_latest_day(zone: str) -> None:
    for hour in range(48):
        now = NOON + timedelta(hours=hour)
        assert not is_over(latest_day(now), zone, now)
        assert is_over(latest_day(now) - 3 * DAY, zone, now)


class CounterMachine(RuleBasedStateMachine):
    """Whatever the staff and the customers do in whatever order, every dose is accounted for and every end is final."""

    lots, people = Bundle("lots"), Bundle("people")

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.shelf: dict[LotId, Lot] = {}
        self.queue: list[Vaccination] = []
        self.ends: dict[ReservationId, Status] = {}

    @rule(target=lots, quantity=st.integers(1, 3), code=st.sampled_from(["207", "208"]))
    def deliver(self, quantity: int, code: str) -> Lot:
        arrived = lot(f"L{len(self.shelf)}", quantity, vaccine_code=code)
        self.shelf[arrived.lot_id] = arrived
        return arrived

    @rule(target=people, day=st.integers(0, 1), code=st.sampled_from(["", "207", "208"]))
    def book(self, day: int, code: str) -> Vaccination:
        self.queue.append(vaccination := waits(len(self.queue) + 1, TODAY + day * DAY, code))
        vaccination.wait(self.now)
        return vaccination

    @rule()
    def serve(self) -> None:
        give_out([v for v in self.queue if v.status is Status.WAITING], list(self.shelf.values()), self.now)

    @rule(hours=st.integers(1, 9))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(who=people)
    def cancel(self, who: Vaccination) -> None:
        self._back(who, who.cancel(self.now))

    @rule(who=people)
    def check_in(self, who: Vaccination) -> None:
        self._try(lambda: who.check_in(self.now), who)

    @rule(who=people, scanned=st.one_of(st.none(), lots))
    def administer(self, who: Vaccination, scanned: Lot | None) -> None:
        present = self.shelf[who.dose.lot_id] if who.dose else None
        self._try(lambda: who.administer(scanned, present, self.now, "nurse"), who)

    @rule(who=people, chosen=lots)
    def assign(self, who: Vaccination, chosen: Lot) -> None:
        present = self.shelf[who.dose.lot_id] if who.dose else None
        self._try(lambda: who.assign(chosen, present, self.now, "manager"), who)

    @rule(who=people)
    def miss(self, who: Vaccination) -> None:
        self._try(lambda: self._back(who, who.miss(self.now)), who)

    @rule(chosen=lots)
    def withdraw(self, chosen: Lot) -> None:
        chosen.withdraw("recalled", self.now, "authority")

    @rule()
    def end_days(self) -> None:
        for who in self.queue:
            self._back(who, who.end(self.now, GRACE))
            if who.appointment.has_passed(self.now - GRACE):
                assert who.status not in (Status.WAITING, Status.COMPLETED)

    def _back(self, who: Vaccination, lot_id: LotId | None) -> None:
        if lot_id:
            self.shelf[lot_id].put_back(who.reservation_id, self.now)

    def _try(self, act: Callable[[], object], who: Vaccination) -> None:
        """A refusal changes nothing."""
        before = self._seen(who)
        try:
            act()
        except VaccineError:
            assert self._seen(who) == before

    def _seen(self, who: Vaccination) -> object:
        lots = {one.lot_id: numbers(one) for one in self.shelf.values()}
        return who.status, who.dose, who.version, who.checked_in_at, lots

    @invariant()
    def every_dose_is_accounted_for(self) -> None:
        held = Counter((v.dose.lot_id, v.status) for v in self.queue if v.dose)
        for one in self.shelf.values():
            balance = one.balance
            assert balance == one.entered == Balance.of(one.movements)
            assert min(balance.free, balance.reserved, balance.administered, balance.written_off) >= 0
            assert balance.received == balance.free + balance.reserved + balance.administered + balance.written_off
            assert balance.reserved == held[one.lot_id, Status.COMPLETED]
            assert balance.administered == held[one.lot_id, Status.ADMINISTERED]

    @invariant()
    def an_end_is_final_but_for_who_was_missed(self) -> None:
        for who in self.queue:
            assert (who.dose is not None) == (who.status in (Status.COMPLETED, Status.ADMINISTERED))
            assert [e.version for e in who.events] == list(range(1, who.version + 1))
            ended = self.ends.get(who.reservation_id)
            assert ended in (None, who.status) or (ended, who.status) == (Status.MISSED, Status.ADMINISTERED)
            if who.status not in (Status.WAITING, Status.COMPLETED):
                self.ends[who.reservation_id] = who.status
            given = [type(e) for e in who.events].count(Administered)
            assert given == (who.status is Status.ADMINISTERED)
            assert [type(e) for e in who.events].count(Cancelled) == (who.status is Status.CANCELLED)


TestCounterMachine = CounterMachine.TestCase
TestCounterMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
