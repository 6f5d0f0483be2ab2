"""The reservation's rules: which moves are legal, that their order does not matter, and how long a customer is told to
wait. No servers."""

import itertools
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.reservation.adapters.approval import HALF_LIFE, LONGEST, RetryAdvice
from services.reservation.domain import (
    ENDED,
    NAMESPACE,
    AlreadyAdministered,
    Appointment,
    AppointmentPassed,
    CancellationRequested,
    Ended,
    NothingToMove,
    Placed,
    Rejected,
    RejectionReason,
    Request,
    RequestId,
    Reservation,
    ReservationId,
    Status,
    UnknownStatus,
    WasRejected,
)

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
APPOINTMENT = Appointment(
    ReservationId(str(uuid.UUID(int=1))), "c1", "h1", "Han River Clinic", "Asia/Seoul", date(2027, 3, 10), "207", NOW
)
OVER = datetime(2027, 3, 10, 15, tzinfo=UTC)  # midnight in Seoul
DAY_FULL = RejectionReason(1)
REASONS = [DAY_FULL, *map(RejectionReason, (2, 3, 7))]  # this version has no name for the last one
REQUEST = Request("c1", RequestId(str(uuid.UUID(int=7))), "h1", date(2027, 3, 10), "207")

MOVES: dict[str, Callable[[Reservation], None]] = {
    "has a dose": lambda r: r.hear_of_dose(3, has_dose=True),
    "waits": lambda r: r.hear_of_dose(4, has_dose=False),
    "given up": lambda r: r.request_cancellation(NOW),
    "given up too late": lambda r: r.request_cancellation(OVER),
} | {f"ends as {how.name}": lambda r, how=how: r.end(how) for how in Status if how >= Status.CANCELLED}


def _outcomes(status: Status) -> dict[str, Status | type[Exception]]:
    """From a status, each move leads to a status or is refused."""
    ends: dict[str, Status | type[Exception]] = {
        f"ends as {how.name}": max(status, how) for how in Status if how >= Status.CANCELLED
    }
    match status:
        case Status.APPROVED | Status.COMPLETED:
            dose: dict[str, Status | type[Exception]] = {"has a dose": Status.COMPLETED, "waits": Status.APPROVED}
            give_up: tuple[Status | type[Exception], ...] = (Status.CANCEL_REQUESTED, AppointmentPassed)
        case Status.REJECTED:
            dose, ends = dict.fromkeys(["has a dose", "waits"], status), dict.fromkeys(ends, Rejected)
            give_up = (Rejected, Rejected)
        case Status.CANCEL_REQUESTED | Status.CANCELLED:
            dose, give_up = dict.fromkeys(["has a dose", "waits"], status), (status, status)
        case Status.ADMINISTERED:
            dose, give_up = dict.fromkeys(["has a dose", "waits"], status), (AlreadyAdministered, AlreadyAdministered)
        case _:
            dose, give_up = dict.fromkeys(["has a dose", "waits"], status), (Ended, Ended)
    return dose | ends | dict(zip(["given up", "given up too late"], give_up, strict=True))


TABLE = {status: _outcomes(status) for status in Status}


def in_status(status: Status) -> Reservation:
    return Reservation(APPOINTMENT, status, DAY_FULL if status is Status.REJECTED else None)


def test_a_reservation_in_a_status_of_a_newer_version_is_neither_completed_nor_cancelled() -> None:
    unnamed = Status(60)
    reservation = in_status(unnamed)
    reservation.hear_of_dose(3, has_dose=True)
    reservation.end(Status.ADMINISTERED)
    with pytest.raises(UnknownStatus):
        reservation.request_cancellation(NOW)
    assert (reservation.status, reservation.events) == (unnamed, [])
    with pytest.raises(ValueError, match="0 is not a valid"):
        Status(0)


@pytest.mark.parametrize(
    ("status", "move"),
    [(s, m) for s in Status for m in MOVES],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_each_move_from_each_status_is_legal_or_refused_as_the_table_says(status: Status, move: str) -> None:
    reservation, expected = in_status(status), TABLE[status][move]
    if isinstance(expected, Status):
        MOVES[move](reservation)
        assert reservation.status is expected
    else:
        with pytest.raises(expected):
            MOVES[move](reservation)
        assert reservation.status is status
    gave_up = status is not Status.CANCEL_REQUESTED and expected is Status.CANCEL_REQUESTED
    assert reservation.events == ([CancellationRequested(APPOINTMENT, NOW)] if gave_up else [])


def test_a_reservation_is_approved_exactly_when_approval_granted_it() -> None:
    approved = Reservation.decided(APPOINTMENT, None)
    assert (approved.status, approved.rejection) == (Status.APPROVED, None)
    assert approved.events == [Placed(APPOINTMENT, NOW)]
    for why in REASONS:
        rejected = Reservation.decided(APPOINTMENT, why)
        assert (rejected.status, rejected.rejection) == (Status.REJECTED, why)
        assert rejected.events == [WasRejected(APPOINTMENT, NOW, why)]


def test_a_booking_can_be_cancelled_until_its_day_is_over_at_the_hospital() -> None:
    in_status(Status.COMPLETED).request_cancellation(OVER - timedelta(microseconds=1))
    with pytest.raises(AppointmentPassed, match="2027-03-10"):
        in_status(Status.COMPLETED).request_cancellation(OVER)


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
def test_only_a_booking_that_holds_a_place_can_be_moved(status: Status) -> None:
    reservation = in_status(status)
    if status in (Status.APPROVED, Status.COMPLETED):
        reservation.check_holds_a_place(OVER - timedelta(microseconds=1))
        with pytest.raises(NothingToMove, match="2027-03-10"):
            reservation.check_holds_a_place(OVER)
    else:
        with pytest.raises(NothingToMove, match=status.name):
            reservation.check_holds_a_place(NOW)


def test_of_the_news_about_the_dose_the_one_with_the_highest_version_counts() -> None:
    news = [(1, False), (2, True), (3, False), (4, True), (5, False)]
    for count in range(1, len(news) + 1):
        for order in itertools.permutations(news[:count]):
            reservation = in_status(Status.APPROVED)
            for version, has_dose in (*order, *order):
                reservation.hear_of_dose(version, has_dose=has_dose)
            assert reservation.status is (Status.APPROVED if count % 2 else Status.COMPLETED)
            assert reservation.dose_version == count


def test_the_news_that_it_waits_does_not_take_away_the_dose_that_an_earlier_version_recorded() -> None:
    reservation = in_status(Status.COMPLETED)
    assert reservation.dose_version == 0
    for version, expected in ((1, Status.COMPLETED), (3, Status.APPROVED)):  # the lot was recalled
        reservation.hear_of_dose(version, has_dose=False)
        assert reservation.status is expected


def test_something_may_become_of_a_moved_or_called_off_booking_until_its_dose_is_back() -> None:
    for status in (Status.MOVED, Status.CALLED_OFF):
        for first, second in itertools.permutations([status, Status.CANCELLED]):
            reservation = in_status(Status.COMPLETED)
            reservation.end(first)
            reservation.end(second)
            assert reservation.status is status
            assert not reservation.is_active(NOW)
        reservation = in_status(status)
        assert reservation.is_active(NOW)
        assert not reservation.is_active(OVER)


def test_who_was_missed_or_vaccinated_is_remembered_until_the_day_is_over() -> None:
    for status in (Status.MISSED, Status.ADMINISTERED, Status(60)):
        assert in_status(status).is_active(NOW)
        assert not in_status(status).is_active(OVER)
    for status in (Status.APPROVED, Status.COMPLETED):  # how it ended is still to be told
        assert in_status(status).is_active(OVER + timedelta(days=10))
        assert not in_status(status).is_active(OVER + timedelta(days=11))
    assert in_status(Status.CANCEL_REQUESTED).is_active(OVER)
    assert not any(in_status(status).is_active(NOW) for status in (Status.REJECTED, Status.CANCELLED))


@pytest.mark.parametrize(("written", "stored"), [("08", "8"), ("8", "8"), ("208", "208"), ("000", "0"), ("", "")])
def test_a_code_is_the_same_with_and_without_leading_zeros(written: str, stored: str) -> None:
    request = replace(REQUEST, vaccine_code=written)
    assert request.vaccine_code == stored
    for recorded in (written, stored):  # earlier versions stored it as it was written
        assert Reservation(replace(APPOINTMENT, vaccine_code=recorded), Status.APPROVED).is_about(request)


def test_the_same_request_of_the_same_customer_is_the_same_reservation() -> None:
    assert replace(REQUEST, hospital_id="h2", vaccine_code="").reservation_id == REQUEST.reservation_id
    assert replace(REQUEST, customer_id="c2").reservation_id != REQUEST.reservation_id
    assert replace(REQUEST, request_id=RequestId(str(uuid.UUID(int=8)))).reservation_id != REQUEST.reservation_id
    assert uuid.UUID(REQUEST.reservation_id).version == 5
    assert REQUEST.reservation_id == str(uuid.uuid5(NAMESPACE, f"c1\n{uuid.UUID(int=7)}"))  # this must never change


def test_a_reservation_belongs_to_its_request_and_no_other() -> None:
    reservation = Reservation.decided(APPOINTMENT, None)
    assert reservation.is_about(REQUEST)
    for other in ({"hospital_id": "h2"}, {"date": date(2027, 3, 11)}, {"vaccine_code": ""}):
        assert not reservation.is_about(replace(REQUEST, **other))


class ReservationMachine(RuleBasedStateMachine):
    """Others' reports, the customer's requests and midnights, in any order and number, are compared with the facts."""

    @initialize(why=st.sampled_from([None, *REASONS]))
    def decide(self, why: RejectionReason | None) -> None:
        self.reservation, self.now, self.facts = Reservation.decided(APPOINTMENT, why), NOW, set[Status]()
        self.doses, self.rejected = dict[int, bool](), why is not None

    @rule(version=st.integers(1, 6))
    def hear_of_dose(self, version: int) -> None:
        has_dose = version % 2 == 0
        self.reservation.hear_of_dose(version, has_dose=has_dose)
        if not self.rejected and not self.facts:
            self.doses[version] = has_dose

    @rule(how=st.sampled_from([status for status in Status if status >= Status.CANCELLED]))
    def end(self, how: Status) -> None:
        self._move(lambda: self.reservation.end(how), how, Rejected if self.rejected else None)

    @rule()
    def give_up(self) -> None:
        refusal: type[Exception] | None = None
        furthest = max(self.facts, default=None)
        if self.rejected:
            refusal = Rejected
        elif furthest is Status.ADMINISTERED:
            refusal = AlreadyAdministered
        elif furthest in ENDED:
            refusal = Ended
        elif self.now >= OVER and not furthest:
            refusal = AppointmentPassed
        self._move(
            lambda: self.reservation.request_cancellation(self.now),
            Status.CANCEL_REQUESTED,
            refusal,
        )

    @rule()
    def midnight(self) -> None:
        self.now = OVER

    @invariant()
    def its_status_is_what_the_facts_say_in_whatever_order_they_came(self) -> None:
        if self.rejected:
            expected = Status.REJECTED
        elif self.facts:
            expected = max(self.facts)
        else:
            has_dose = self.doses[max(self.doses)] if self.doses else False
            expected = Status.COMPLETED if has_dose else Status.APPROVED
        assert self.reservation.status is expected

    @invariant()
    def it_tells_of_each_of_its_own_moves_once(self) -> None:
        first, *others = self.reservation.events
        assert isinstance(first, WasRejected if self.rejected else Placed)
        assert len(others) <= 1
        assert all(isinstance(e, CancellationRequested) and Status.CANCEL_REQUESTED in self.facts for e in others)

    def _move(self, move: Callable[[], None], fact: Status, refusal: type[Exception] | None) -> None:
        if refusal:
            with pytest.raises(refusal):
                move()
        else:
            move()
            self.facts.add(fact)


TestReservationMachine = ReservationMachine.TestCase
TestReservationMachine.settings = settings(max_examples=100, stateful_step_count=15, deadline=None, derandomize=True)


class Clock:
    """A clock in seconds, which the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def crowd(jitter: float = 0.0) -> tuple[RetryAdvice, Clock]:
    clock = Clock()
    return RetryAdvice(clock, lambda: jitter), clock


def test_the_more_customers_are_refused_the_longer_they_are_told_to_wait_within_bounds() -> None:
    busy, _ = crowd()
    pauses = [busy.refused() for _ in range(500)]
    assert pauses == sorted(pauses)
    assert 1 <= pauses[0] < 2
    assert pauses[-1] == LONGEST / 2
    assert crowd(jitter=0.5)[0].refused() == 1.5 * pauses[0]


def test_one_answer_hardly_shortens_the_retry_advice_and_many_answers_do() -> None:
    busy, _ = crowd()
    before = [busy.refused() for _ in range(30)][-1]
    busy.answered()
    assert busy.refused() > 0.9 * before
    for _ in range(1000):
        busy.answered()
    assert busy.refused() < 1.5


def test_refusals_of_long_ago_do_not_lengthen_the_retry_advice() -> None:
    busy, clock = crowd()
    before = [busy.refused() for _ in range(30)][-1]
    clock.now += HALF_LIFE
    assert 1 < busy.refused() < 0.6 * before
    clock.now += 20 * HALF_LIFE
    assert busy.refused() == pytest.approx(crowd()[0].refused(), rel=0.01)


def test_the_retry_advice_depends_on_the_share_of_refusals_and_not_on_the_size_of_the_installation() -> None:
    pauses = []
    for size in (500, 50_000):
        busy, _ = crowd()
        for _ in range(size):
            busy.answered()
        for _ in range(size // 5):
            pause = busy.refused()
        pauses.append(pause)
    assert pauses[0] == pytest.approx(pauses[1], rel=0.1)
