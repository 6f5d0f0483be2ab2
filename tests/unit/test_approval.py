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
    DatePassed,
    DateRange,
    Day,
    DayIsCalledOff,
    Decision,
    Denial,
    Denied,
    Granted,
    Hospital,
    Ledger,
    NothingToCallOff,
    NothingToMove,
    Released,
    Request,
    RequestIdReused,
    ReservationId,
    Revocation,
    Revoked,
    UnknownDecision,
    UnknownHospital,
    canonical_code,
    check_open,
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
    replaces: ReservationId | None = None,
) -> Request:
    return Request(reservation_id or new_id(), customer_id, hospital_id, day, vaccine_code, replaces)


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
    [
        {"customer_id": "c2"},
        {"hospital_id": "h2"},
        {"date": DAY + timedelta(1)},
        {"vaccine_code": "207"},
        {"replaces": new_id()},
    ],
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


# A day that is called off, and one with fewer places than bookings


def test_nobody_is_approved_for_a_day_that_is_called_off_until_it_is_reopened() -> None:
    ledger = books(2)
    day = ledger.days["h1", DAY]
    day.call_off("The boiler burst.", HOSPITAL, NOW)
    assert ledger.decide(asks("c1"), NOW).denial is Denial.DAY_CALLED_OFF
    assert day.left == 0
    day.called_off = ""
    assert ledger.decide(asks("c2"), NOW).denial is None


def test_a_day_can_be_called_off_until_it_is_over_at_the_hospital() -> None:
    day = Day("h1", TODAY, 1, 0)
    day.call_off("Power cut.", HOSPITAL, datetime(2027, 3, 1, 14, 59, tzinfo=UTC))
    day.call_off("Power cut until evening.", HOSPITAL, NOW)
    assert day.called_off == "Power cut until evening."
    with pytest.raises(NothingToCallOff, match="where it is 2027-03-02"):
        day.call_off("Too late.", HOSPITAL, datetime(2027, 3, 1, 15, tzinfo=UTC))


def test_a_day_that_is_called_off_gets_no_other_capacity() -> None:
    check_open([Day("h1", DAY, 1, 1)])
    with pytest.raises(DayIsCalledOff, match=f"{DAY} is called off"):
        check_open([Day("h1", DAY - timedelta(1), 1, 1), Day("h1", DAY, 1, 1, "Ice.")])


def test_a_booking_of_a_day_called_off_ends_once_and_its_customer_may_book_anew() -> None:
    ledger, request = books(1, DAY, DAY + timedelta(1)), asks()
    appointment = ledger.decide(request, NOW).appointment
    for note in ("Ice.", "Snow."):
        ledger.call_off(request.reservation_id, note, NOW)
    ledger.release(request.reservation_id, NOW)  # vaccine management has taken the dose back
    assert ledger.events[1:] == [Revoked(appointment, NOW, Revocation.DAY_CALLED_OFF, "Ice.")]
    assert ledger.days["h1", DAY].approved == 0
    assert ledger.decide(asks(day=DAY + timedelta(1)), NOW).denial is None


def test_a_booking_that_was_given_up_before_is_not_called_off() -> None:
    ledger, request, denied = books(1), asks(), asks("c2")
    ledger.decide(request, NOW)
    ledger.decide(denied, NOW)
    ledger.release(request.reservation_id, NOW)
    told = list(ledger.events)
    ledger.call_off(request.reservation_id, "Ice.", NOW)
    assert ledger.events == told
    with pytest.raises(UnknownDecision):
        ledger.call_off(denied.reservation_id, "Ice.", NOW)


def test_a_day_with_fewer_places_than_bookings_approves_nobody_until_enough_are_given_up() -> None:
    ledger, booked = books(3), [asks(f"c{i}") for i in range(3)]
    for request in booked:
        ledger.decide(request, NOW)
    day = ledger.days["h1", DAY]
    day.capacity = 1
    assert (day.over, day.left) == (2, 0)
    for request, over in zip(booked, (1, 0, 0), strict=True):
        assert ledger.decide(asks(f"new-{request.customer_id}"), NOW).denial is Denial.DAY_FULL
        ledger.release(request.reservation_id, NOW)
        assert day.over == over
    assert ledger.decide(asks("late"), NOW).denial is None


# Vaccines


@pytest.mark.parametrize(
    ("written", "stored"), [("08", "8"), ("8", "8"), ("008", "8"), ("208", "208"), ("000", "0"), ("", "")]
)
def test_a_code_is_the_same_with_and_without_leading_zeros(written: str, stored: str) -> None:
    assert canonical_code(written) == stored
    assert asks(vaccine_code=written).vaccine_code == stored


@pytest.mark.parametrize(
    ("own", "delivered", "offered", "refused"),
    [
        ([], [], ["8", "999", ""], []),
        ([], ["8", "207"], ["8", "207", ""], ["999"]),
        (["207"], ["8"], ["207", ""], ["8", "999"]),
    ],
    ids=["nothing is known", "what was delivered", "its own list"],
)
def test_a_hospital_offers_what_it_says_or_else_what_came_or_else_anything(
    own: list[str], delivered: list[str], offered: list[str], refused: list[str]
) -> None:
    hospital = Hospital("h1", "Clinic", "Asia/Seoul", own, delivered)
    assert [hospital.offers(code) for code in offered + refused] == [True] * len(offered) + [False] * len(refused)


def test_a_vaccine_that_the_hospital_does_not_offer_is_refused_and_takes_no_place() -> None:
    ledger = books(1)
    ledger.hospitals["h1"] = replace(HOSPITAL, delivered_codes=["8"])
    assert ledger.decide(asks(vaccine_code="999"), NOW).denial is Denial.VACCINE_NOT_OFFERED
    assert (ledger.days["h1", DAY].approved, ledger.active) == (0, {})
    assert ledger.decide(asks(vaccine_code="08"), NOW).denial is None


def test_a_decision_that_an_earlier_version_recorded_with_a_leading_zero_is_found_again() -> None:
    ledger, request = books(1), asks(vaccine_code="08")
    recorded = Decision(
        Appointment(request.reservation_id, "c1", "h1", "Clinic", "Asia/Seoul", DAY, "08", NOW), denial=None
    )
    ledger.decisions[request.reservation_id] = recorded
    assert ledger.decide(request, NOW) is recorded


# Moving


def test_a_move_claims_the_new_place_and_frees_the_old_one() -> None:
    ledger, old = books(1, DAY, DAY + timedelta(1)), asks()
    was = ledger.decide(old, NOW).appointment
    new = asks(day=DAY + timedelta(1), replaces=old.reservation_id)
    decision = ledger.decide(new, NOW)
    assert (decision.denial, decision.replaces) == (None, old.reservation_id)
    assert [day.approved for day in ledger.days.values()] == [0, 1]
    assert ledger.active["c1"] == decision.appointment
    assert ledger.events[1:] == [
        Granted(decision.appointment),
        Revoked(was, NOW, Revocation.MOVED, replaced_by=new.reservation_id),
    ]
    told = list(ledger.events)
    assert ledger.decide(new, NOW) is decision
    ledger.release(old.reservation_id, NOW)  # vaccine management has taken the old dose back
    assert ledger.events == told


@pytest.mark.parametrize("why", [Denial.DAY_FULL, Denial.DAY_NOT_OFFERED, Denial.DAY_CALLED_OFF])
def test_a_refused_move_leaves_the_old_booking_as_it_was(why: Denial) -> None:
    there = DAY + timedelta(1)
    ledger, old = books(1, DAY, there), asks()
    was = ledger.decide(old, NOW)
    wanted = ledger.days["h1", there]
    match why:
        case Denial.DAY_FULL:
            ledger.decide(asks("c2", there), NOW)
        case Denial.DAY_NOT_OFFERED:
            wanted.capacity = 0
        case Denial.DAY_CALLED_OFF:
            wanted.called_off = "Ice."
    decision = ledger.decide(move := asks(day=there, replaces=old.reservation_id), NOW)
    assert decision.denial is why
    assert (was.released_at, ledger.active["c1"]) == (None, was.appointment)
    assert ledger.events[-1] == Denied(decision.appointment, why)
    assert ledger.decide(move, NOW) is decision


def test_a_move_on_the_same_full_day_takes_the_place_that_it_frees() -> None:
    ledger, old = books(1), asks()
    ledger.decide(old, NOW)
    assert ledger.decide(asks(vaccine_code="207", replaces=old.reservation_id), NOW).denial is None
    assert ledger.days["h1", DAY].approved == 1


def test_a_booking_can_be_moved_again_and_the_first_one_cannot() -> None:
    ledger, old = books(1, *(DAY + timedelta(i) for i in range(3))), asks()
    ledger.decide(old, NOW)
    second = asks(day=DAY + timedelta(1), replaces=old.reservation_id)
    third = asks(day=DAY + timedelta(2), replaces=second.reservation_id)
    assert [ledger.decide(r, NOW).denial for r in (second, third)] == [None, None]
    assert [day.approved for day in ledger.days.values()] == [0, 0, 1]
    with pytest.raises(NothingToMove):
        ledger.decide(asks(replaces=old.reservation_id), NOW)


def test_only_a_customers_own_booking_that_holds_a_place_can_be_moved() -> None:
    ledger = books(1, TODAY, DAY)
    passed, given_up, denied, others = asks("a", TODAY), asks("b", DAY), asks("c", DAY), asks("d", DAY)
    ledger.decide(passed, NOW)
    ledger.decide(given_up, NOW)
    ledger.decide(denied, NOW)
    ledger.release(given_up.reservation_id, NOW)
    ledger.decide(others, NOW)
    told = list(ledger.events)
    for old in (passed, given_up, denied, replace(others, customer_id="e"), asks("f")):
        with pytest.raises(NothingToMove, match=old.reservation_id):
            ledger.decide(asks(old.customer_id, replaces=old.reservation_id), NOW + timedelta(1))
    assert ledger.events == told


@dataclass
class Fact:
    """The outcome of a request. The model keeps these facts, and derives everything else from them."""

    request: Request
    denial: Denial | None
    released: bool = False
    revoked: bool = False

    @property
    def holds(self) -> bool:
        """Whether it holds a place."""
        return not (self.denial or self.released or self.revoked)


class ApprovalMachine(RuleBasedStateMachine):
    """Requests, moves, releases, repeats, changes of capacity, days called off and nights in any order, against a list
    of facts."""

    requests = Bundle("requests")
    ahead = st.integers(-1, 2).map(timedelta)  # days from today

    def __init__(self) -> None:
        super().__init__()
        self.now, self.asked, self.facts = NOW, 0, list[Fact]()
        self.ledger = books(1, *(TODAY + timedelta(n) for n in range(-1, 50)))

    @rule(ahead=ahead, capacity=st.integers(0, 2))
    def offer(self, ahead: timedelta, capacity: int) -> None:
        present = self.ledger.days["h1", self.today() + ahead]
        if present.called_off:
            with pytest.raises(DayIsCalledOff):
                check_open([present])
        else:
            check_open([present])
            present.capacity = capacity

    @rule(ahead=ahead)
    def call_off(self, ahead: timedelta) -> None:
        day = self.ledger.days["h1", self.today() + ahead]
        if ahead < timedelta(0):
            with pytest.raises(NothingToCallOff):
                day.call_off("Ice.", HOSPITAL, self.now)
        else:
            day.call_off("Ice.", HOSPITAL, self.now)

    @rule(ahead=ahead)
    def reopen(self, ahead: timedelta) -> None:
        self.ledger.days["h1", self.today() + ahead].called_off = ""

    @rule(request=requests)
    def revoke(self, request: Request) -> None:
        known = self.fact(request)
        day = self.ledger.days["h1", request.date]
        if known and not known.denial and day.called_off:
            self.ledger.call_off(request.reservation_id, day.called_off, self.now)
            known.revoked |= not known.released

    @rule(target=requests, customer=st.sampled_from(["c1", "c2", "c3"]), ahead=ahead)
    def ask(self, customer: str, ahead: timedelta) -> Request:
        return self.decide(customer, ahead, None)

    @rule(target=requests, old=requests, ahead=ahead)
    def move(self, old: Request, ahead: timedelta) -> Request:
        return self.decide(old.customer_id, ahead, old)

    def decide(self, customer: str, ahead: timedelta, old: Request | None) -> Request:
        day = self.today() + ahead
        self.asked += 1
        key, replaces = ReservationId(str(uuid.UUID(int=self.asked))), old.reservation_id if old else None
        request = asks(customer, day, reservation_id=key, replaces=replaces)
        known = self.fact(old) if old else None
        refusal: type[Exception] | None = None
        if day < self.today():
            refusal = DatePassed
        elif old and not (known and known.holds and old.date >= self.today()):
            refusal = NothingToMove
        if refusal:
            with pytest.raises(refusal):
                self.ledger.decide(request, self.now)
            return request
        expected, there = self.expected(customer, day, known), self.ledger.days["h1", day]
        if expected is None and known:
            known.revoked = True
        self.facts.append(Fact(request, expected))
        assert self.ledger.decide(request, self.now).denial is expected, there
        return request

    def expected(self, customer: str, day: date, old: Fact | None) -> Denial | None:
        there, held = self.ledger.days["h1", day], [f for f in self.held() if f is not old]
        if any(f.request.customer_id == customer and f.request.date >= self.today() for f in held):
            return Denial.ACTIVE_BOOKING
        if there.called_off:
            return Denial.DAY_CALLED_OFF
        if not there.capacity:
            return Denial.DAY_NOT_OFFERED
        return Denial.DAY_FULL if sum(f.request.date == day for f in held) >= there.capacity else None

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
            known.released |= not known.revoked

    @rule()
    def sleep(self) -> None:
        self.now += timedelta(1)

    @invariant()
    def the_books_are_as_the_facts_say(self) -> None:
        for (_, day), entry in self.ledger.days.items():
            taken = sum(f.request.date == day for f in self.held())
            assert entry.approved == taken <= entry.capacity + entry.over
        told = Counter(type(e) for e in self.ledger.events)
        assert told[Granted] == sum(not f.denial for f in self.facts)
        assert told[Denied] == sum(bool(f.denial) for f in self.facts)
        assert told[Released] == sum(f.released for f in self.facts)
        assert told[Revoked] == sum(f.revoked for f in self.facts)

    @invariant()
    def nobody_holds_two_places_ahead_and_nobody_loses_one_without_being_told(self) -> None:
        ahead = Counter(f.request.customer_id for f in self.held() if f.request.date >= self.today())
        assert not ahead or max(ahead.values()) == 1
        moved = [e for e in self.ledger.events if isinstance(e, Revoked) and e.reason is Revocation.MOVED]
        granted = {e.appointment.reservation_id for e in self.ledger.events if isinstance(e, Granted)}
        assert {e.replaced_by for e in moved} <= granted

    def today(self) -> date:
        return HOSPITAL.today(self.now)

    def fact(self, request: Request) -> Fact | None:
        return next((f for f in self.facts if f.request == request), None)

    def held(self) -> list[Fact]:
        return [f for f in self.facts if f.holds]


TestApprovalMachine = ApprovalMachine.TestCase
TestApprovalMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
