"""The reservation's rules: which moves are legal, that their order does not matter, and how long a customer is told to
wait. No servers."""

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
    NAMESPACE,
    Appointment,
    AppointmentPassed,
    CancellationRequested,
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
    "completed": Reservation.complete,
    "cancelled": Reservation.cancel,
    "given up": lambda r: r.request_cancellation(NOW),
    "given up too late": lambda r: r.request_cancellation(OVER),
}
# From each status, each move leads to a status or is refused.
TABLE: dict[Status, dict[str, Status | type[Exception]]] = {
    Status.APPROVED: {
        "completed": Status.COMPLETED,
        "cancelled": Status.CANCELLED,
        "given up": Status.CANCEL_REQUESTED,
        "given up too late": AppointmentPassed,
    },
    Status.REJECTED: {
        "completed": Status.REJECTED,
        "cancelled": Rejected,
        "given up": Rejected,
        "given up too late": Rejected,
    },
    Status.COMPLETED: {
        "completed": Status.COMPLETED,
        "cancelled": Status.CANCELLED,
        "given up": Status.CANCEL_REQUESTED,
        "given up too late": AppointmentPassed,
    },
    Status.CANCEL_REQUESTED: {
        "completed": Status.CANCEL_REQUESTED,
        "cancelled": Status.CANCELLED,
        "given up": Status.CANCEL_REQUESTED,
        "given up too late": Status.CANCEL_REQUESTED,
    },
    Status.CANCELLED: dict.fromkeys(MOVES, Status.CANCELLED),
}


def in_status(status: Status) -> Reservation:
    return Reservation(APPOINTMENT, status, DAY_FULL if status is Status.REJECTED else None)


def test_a_reservation_in_a_status_of_a_newer_version_is_neither_completed_nor_cancelled() -> None:
    unnamed = Status(9)
    reservation = in_status(unnamed)
    reservation.complete()
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
        self.reservation, self.now, self.facts = Reservation.decided(APPOINTMENT, why), NOW, set[str]()
        self.rejected = why is not None

    @rule()
    def completed(self) -> None:
        self.reservation.complete()
        self.facts.add("completed")

    @rule()
    def cancelled(self) -> None:
        self._move(self.reservation.cancel, "cancelled", Rejected if self.rejected else None)

    @rule()
    def give_up(self) -> None:
        refusal: type[Exception] | None = None
        if self.rejected:
            refusal = Rejected
        elif self.now >= OVER and not self.facts & {"given up", "cancelled"}:
            refusal = AppointmentPassed
        self._move(lambda: self.reservation.request_cancellation(self.now), "given up", refusal)

    @rule()
    def midnight(self) -> None:
        self.now = OVER

    @invariant()
    def its_status_is_what_the_facts_say_in_whatever_order_they_came(self) -> None:
        if self.rejected:
            expected = Status.REJECTED
        elif "cancelled" in self.facts:
            expected = Status.CANCELLED
        elif "given up" in self.facts:
            expected = Status.CANCEL_REQUESTED
        else:
            expected = Status.COMPLETED if "completed" in self.facts else Status.APPROVED
        assert self.reservation.status is expected

    @invariant()
    def it_tells_of_each_of_its_own_moves_once(self) -> None:
        first, *others = self.reservation.events
        assert isinstance(first, WasRejected if self.rejected else Placed)
        assert len(others) <= 1
        assert all(isinstance(e, CancellationRequested) and "given up" in self.facts for e in others)

    def _move(self, move: Callable[[], None], fact: str, refusal: type[Exception] | None) -> None:
        if refusal:
            with pytest.raises(refusal):
                move()
        else:
            move()
            self.facts.add(fact)


TestReservationMachine = ReservationMachine.TestCase
TestReservationMachine.settings = settings(max_examples=100, stateful_step_count=10, deadline=None, derandomize=True)


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
