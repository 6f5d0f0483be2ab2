"""The rules of approval: who gets a place. No servers."""

import uuid
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.approval.domain import (
    Appointment,
    CapacityBelowApproved,
    DatePassed,
    DateRange,
    Day,
    Denial,
    Denied,
    Granted,
    Hospital,
    Ledger,
    Released,
    Request,
    RequestIdReused,
    ReservationId,
    UnknownDecision,
    UnknownHospital,
    check_capacity,
    check_range,
)

HOSPITAL = Hospital("h1", "Han River Clinic", "Asia/Seoul")
NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
TODAY = date(2027, 3, 1)
DAY = date(2027, 3, 10)

# Zone, day, and the time in UTC at which the day is over there.
ENDS_OF_DAYS = [
    ("Asia/Seoul", date(2027, 3, 10), datetime(2027, 3, 10, 15, tzinfo=UTC)),
    ("Asia/Kathmandu", date(2027, 3, 10), datetime(2027, 3, 10, 18, 15, tzinfo=UTC)),
    ("Pacific/Kiritimati", date(2027, 1, 1), datetime(2027, 1, 1, 10, tzinfo=UTC)),
    ("Pacific/Pago_Pago", date(2027, 1, 1), datetime(2027, 1, 2, 11, tzinfo=UTC)),
    # These days have 23 and 25 hours.
    ("America/New_York", date(2027, 3, 14), datetime(2027, 3, 15, 4, tzinfo=UTC)),
    ("America/New_York", date(2027, 11, 7), datetime(2027, 11, 8, 5, tzinfo=UTC)),
    # The clocks change at midnight itself, so the next day begins at 01:00.
    ("America/Santiago", date(2026, 9, 5), datetime(2026, 9, 6, 4, tzinfo=UTC)),
]


def new_id() -> ReservationId:
    return ReservationId(str(uuid.uuid4()))


def asks(
    customer_id: str = "c1",
    day: date = DAY,
    hospital_id: str = "h1",
    vaccine_code: str = "",
    reservation_id: ReservationId | None = None,
) -> Request:
    return Request(reservation_id or new_id(), customer_id, hospital_id, day, vaccine_code)


def books(capacity: int = 1, *days: date) -> Ledger:
    return Ledger(hospitals={"h1": HOSPITAL}, days={("h1", day): Day("h1", day, capacity, 0) for day in days or (DAY,)})


def test_a_day_gives_away_its_capacity_and_no_more() -> None:
    ledger = books(2)
    answers = [ledger.decide(asks(f"c{i}"), NOW).denial for i in range(4)]
    assert answers == [None, None, Denial.DAY_FULL, Denial.DAY_FULL]
    assert ledger.days["h1", DAY].approved == 2


@pytest.mark.parametrize("ledger", [books(0), Ledger(hospitals={"h1": HOSPITAL})], ids=["no places", "no such day"])
def test_a_day_without_capacity_is_not_offered(ledger: Ledger) -> None:
    assert ledger.decide(asks(), NOW).denial is Denial.DAY_NOT_OFFERED


def test_a_person_has_one_active_booking_wherever_and_whenever_it_is() -> None:
    ledger = books(5, DAY, DAY + timedelta(1))
    ledger.hospitals["h2"] = Hospital("h2", "Other", "Europe/Paris")
    ledger.days["h2", DAY] = Day("h2", DAY, 5, 0)
    assert ledger.decide(asks(), NOW).denial is None
    for other in (asks(), asks(day=DAY + timedelta(1)), asks(hospital_id="h2")):
        assert ledger.decide(other, NOW).denial is Denial.ACTIVE_BOOKING
    assert ledger.decide(asks("c2"), NOW).denial is None


def test_a_customer_who_has_cancelled_may_book_again() -> None:
    ledger = books(1)
    first = asks()
    ledger.decide(first, NOW)
    ledger.release(first.reservation_id, NOW)
    assert ledger.decide(asks(), NOW).denial is None


def test_a_booking_whose_day_has_passed_gives_way_to_a_new_one() -> None:
    ledger = books(1, TODAY, DAY)
    assert ledger.decide(asks(day=TODAY), NOW).denial is None
    assert ledger.decide(asks(), NOW).denial is Denial.ACTIVE_BOOKING
    tomorrow = NOW + timedelta(1)
    new = asks()
    assert ledger.decide(new, tomorrow).denial is None
    assert ledger.active["c1"].reservation_id == new.reservation_id


def test_a_denial_takes_no_place_and_has_an_event() -> None:
    ledger = books(0)
    decision = ledger.decide(asks(), NOW)
    assert ledger.days["h1", DAY].approved == 0
    assert not ledger.active
    assert ledger.events == [Denied(decision.appointment, Denial.DAY_NOT_OFFERED)]


def test_the_event_of_a_grant_has_the_whole_appointment_as_decided() -> None:
    ledger, request = books(), asks(vaccine_code="207")
    decision = ledger.decide(request, NOW)
    assert decision.appointment == Appointment(
        request.reservation_id, "c1", "h1", "Han River Clinic", "Asia/Seoul", DAY, "207", NOW
    )
    assert ledger.events == [Granted(decision.appointment)]


def test_a_decision_is_made_once_whatever_has_changed_since() -> None:
    ledger = books(1)
    granted, denied = asks("c1"), asks("c2")
    yes, no = ledger.decide(granted, NOW), ledger.decide(denied, NOW)
    ledger.release(granted.reservation_id, NOW)
    ledger.days["h1", DAY].capacity = 9
    told = len(ledger.events)
    much_later = NOW + timedelta(400)  # long after the day
    assert ledger.decide(granted, much_later) is yes
    assert ledger.decide(denied, much_later) is no
    assert no.denial is Denial.DAY_FULL
    assert len(ledger.events) == told
    assert ledger.days["h1", DAY].approved == 0


@pytest.mark.parametrize(
    "other",
    [{"customer_id": "c2"}, {"hospital_id": "h2"}, {"date": DAY + timedelta(1)}, {"vaccine_code": "207"}],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.parametrize("capacity", [0, 1], ids=["denied", "granted"])
def test_the_same_id_with_other_content_is_refused(capacity: int, other: dict[str, object]) -> None:
    ledger, request = books(capacity), asks()
    ledger.decide(request, NOW)
    told = list(ledger.events)
    with pytest.raises(RequestIdReused):
        ledger.decide(replace(request, **other), NOW)  # type: ignore[arg-type]
    assert ledger.events == told


def test_a_recorded_reason_of_a_newer_version_is_what_a_repeat_gets() -> None:
    ledger, request = books(0), asks()
    ledger.decide(request, NOW).denial = Denial(7)
    again = ledger.decide(request, NOW)
    assert again.denial == 7
    with pytest.raises(UnknownDecision):
        ledger.release(request.reservation_id, NOW)


def test_an_unknown_hospital_decides_nothing() -> None:
    ledger, request = books(), asks(hospital_id="nowhere")
    with pytest.raises(UnknownHospital, match="nowhere"):
        ledger.decide(request, NOW)
    assert (ledger.decisions, ledger.events) == ({}, [])


@pytest.mark.parametrize(("zone", "day", "over"), ENDS_OF_DAYS)
def test_a_day_is_over_at_the_hospitals_own_midnight(zone: str, day: date, over: datetime) -> None:
    ledger = Ledger(
        hospitals={"h": Hospital("h", "There", zone)},
        days={("h", d): Day("h", d, 5, 0) for d in (day, day + timedelta(1))},
    )
    last_moment = over - timedelta(microseconds=1)
    decision = ledger.decide(asks("c1", day, "h"), last_moment)
    assert decision.denial is None
    assert not decision.appointment.has_passed(last_moment)
    assert decision.appointment.has_passed(over)
    with pytest.raises(DatePassed, match=str(day + timedelta(1))):
        ledger.decide(asks("c2", day, "h"), over)
    assert ledger.decide(asks("c1", day + timedelta(1), "h"), over).denial is None


def test_a_release_frees_the_place_once() -> None:
    ledger, request = books(1), asks()
    appointment = ledger.decide(request, NOW).appointment
    for _ in range(3):
        ledger.release(request.reservation_id, NOW)
    assert ledger.days["h1", DAY].approved == 0
    assert ledger.events == [Granted(appointment), Released(appointment, NOW)]
    assert not ledger.active


def test_releasing_a_booking_that_gave_way_leaves_the_newer_one_active() -> None:
    ledger, old, new = books(1, TODAY, DAY), asks(day=TODAY), asks()
    ledger.decide(old, NOW)
    ledger.decide(new, NOW + timedelta(1))
    ledger.release(old.reservation_id, NOW + timedelta(1))
    assert ledger.days["h1", TODAY].approved == 0
    assert ledger.active["c1"].reservation_id == new.reservation_id
    assert ledger.decide(asks(), NOW + timedelta(1)).denial is Denial.ACTIVE_BOOKING


def test_only_a_granted_booking_can_be_released() -> None:
    ledger, denied = books(0), asks()
    ledger.decide(denied, NOW)
    for reservation_id in (denied.reservation_id, new_id()):
        with pytest.raises(UnknownDecision):
            ledger.release(reservation_id, NOW)


def test_a_range_of_days_is_one_to_366() -> None:
    check_range(DAY, DAY)
    check_range(DAY, DAY + timedelta(365))
    for last in (DAY - timedelta(1), DAY + timedelta(366)):
        with pytest.raises(DateRange):
            check_range(DAY, last)


def test_capacity_is_never_set_below_what_is_approved() -> None:
    days = [Day("h1", DAY, 5, 3), Day("h1", DAY + timedelta(1), 5, 0)]
    check_capacity(days, 3)
    with pytest.raises(CapacityBelowApproved, match="has 3 approved"):
        check_capacity(days, 2)


@dataclass
class Fact:
    """The outcome of a request. The model keeps these facts, and derives everything else from them."""

    request: Request
    denial: Denial | None
    released: bool = False


class ApprovalMachine(RuleBasedStateMachine):
    """Requests, releases, repeats, changes of capacity and nights in any order, against a list of facts."""

    requests = Bundle("requests")
    ahead = st.integers(-1, 2).map(timedelta)  # days from today

    def __init__(self) -> None:
        super().__init__()
        self.now, self.asked, self.facts = NOW, 0, list[Fact]()
        self.ledger = books(1, *(TODAY + timedelta(n) for n in range(-1, 50)))

    @rule(ahead=ahead, capacity=st.integers(0, 2))
    def offer(self, ahead: timedelta, capacity: int) -> None:
        day = self.today() + ahead
        present = self.ledger.days["h1", day]
        if capacity < self.taken(day):
            with pytest.raises(CapacityBelowApproved):
                check_capacity([present], capacity)
        else:
            check_capacity([present], capacity)
            present.capacity = capacity

    @rule(target=requests, customer=st.sampled_from(["c1", "c2", "c3"]), ahead=ahead)
    def ask(self, customer: str, ahead: timedelta) -> Request:
        day = self.today() + ahead
        self.asked += 1
        request = asks(customer, day, reservation_id=ReservationId(str(uuid.UUID(int=self.asked))))
        if day < self.today():
            with pytest.raises(DatePassed):
                self.ledger.decide(request, self.now)
            return request
        expected: Denial | None
        if any(f.request.customer_id == customer and f.request.date >= self.today() for f in self.held()):
            expected = Denial.ACTIVE_BOOKING
        elif not self.ledger.days["h1", day].capacity:
            expected = Denial.DAY_NOT_OFFERED
        else:
            expected = Denial.DAY_FULL if self.taken(day) == self.ledger.days["h1", day].capacity else None
        assert self.ledger.decide(request, self.now).denial is expected
        self.facts.append(Fact(request, expected))
        return request

    @rule(request=requests)
    def ask_once_more(self, request: Request) -> None:
        if known := self.fact(request):
            assert self.ledger.decide(request, self.now).denial is known.denial

    @rule(request=requests)
    def release(self, request: Request) -> None:
        known = self.fact(request)
        if known is None or known.denial:
            with pytest.raises(UnknownDecision):
                self.ledger.release(request.reservation_id, self.now)
        else:
            self.ledger.release(request.reservation_id, self.now)
            known.released = True

    @rule()
    def sleep(self) -> None:
        self.now += timedelta(1)

    @invariant()
    def the_books_are_as_the_facts_say(self) -> None:
        for (_, day), entry in self.ledger.days.items():
            assert entry.approved == self.taken(day) <= entry.capacity
        told = Counter(type(e) for e in self.ledger.events)
        assert told[Granted] == sum(not f.denial for f in self.facts)
        assert told[Denied] == sum(bool(f.denial) for f in self.facts)
        assert told[Released] == sum(f.released for f in self.facts)

    def today(self) -> date:
        return HOSPITAL.today(self.now)

    def fact(self, request: Request) -> Fact | None:
        return next((f for f in self.facts if f.request == request), None)

    def held(self) -> list[Fact]:
        return [f for f in self.facts if not f.denial and not f.released]

    def taken(self, day: date) -> int:
        return sum(f.request.date == day for f in self.held())


TestApprovalMachine = ApprovalMachine.TestCase
TestApprovalMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
