"""The rules of doses: who gets which dose, and to which lot it goes back. No servers."""

import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.vaccinemgmt.domain import (
    Appointment,
    Balance,
    Cancelled,
    Completed,
    Delivery,
    Dose,
    ExpiryBeforeProduction,
    Lot,
    LotEmpty,
    LotId,
    LotNotValid,
    LotOtherVaccine,
    Request,
    ReservationId,
    Status,
    Vaccination,
    VaccinationCancelled,
    Waiting,
    give_out,
    movement_id,
)

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)  # noon in Seoul
DAY = date(2027, 3, 10)
DELIVERY = Delivery("L1", "207", "MOD", date(2027, 1, 1), date(2027, 6, 30), 3)


def lot(number: str = "L1", quantity: int = 3, **changes: object) -> Lot:
    delivery = replace(DELIVERY, lot_number=number, quantity=quantity, **changes)  # type: ignore[arg-type]
    arrived = Lot.of("h1", delivery)
    arrived.receive(delivery, Request(movement_id(arrived.lot_id, ""), "manager", "", NOW))
    return arrived


def waits(n: int = 1, day: date = DAY, code: str = "", came: int | None = None) -> Vaccination:
    """Waiting customer number n, who came `came` (or n) seconds after NOW's hour."""
    at = NOW - timedelta(hours=1) + timedelta(seconds=n if came is None else came)
    return Vaccination(
        Appointment(ReservationId(str(uuid.UUID(int=n))), f"c{n}", "h1", "Clinic", "Asia/Seoul", day, code, at)
    )


def balanced(*lots: Lot) -> bool:
    """What became of each dose is known, and the ledger says the same."""
    balances = [(lot.balance, Balance.of(lot.movements)) for lot in lots]
    return all(
        now == told
        and now.received == now.free + now.reserved + now.administered + now.written_off
        and min(now.free, now.reserved, now.administered, now.written_off) >= 0
        for now, told in balances
    )


def test_a_dose_comes_from_the_lot_that_expires_first() -> None:
    late, soon = lot("late", 1, expiry_date=date(2027, 9, 1)), lot("soon", 1, expiry_date=date(2027, 3, 10))
    first, second = waits(1), waits(2)
    give_out([first, second], [late, soon], NOW)
    assert [v.dose.lot_number for v in (first, second) if v.dose] == ["soon", "late"]


def test_a_lot_that_would_have_expired_on_the_day_is_left_alone() -> None:
    expired, fresh = lot("expired", 5, expiry_date=DAY - timedelta(1)), lot("fresh", 1, expiry_date=DAY)
    served = waits(1)
    assert give_out([served, waits(2)], [expired, fresh], NOW) == [served]
    assert (expired.free, fresh.free) == (5, 0)


def test_a_lot_not_yet_produced_on_the_day_is_left_alone() -> None:
    future = lot(production_date=DAY + timedelta(1))
    assert give_out([waits()], [future], NOW) == []
    assert give_out([waits(2, day=DAY + timedelta(1))], [future], NOW) != []


def test_first_come_first_served_whatever_the_order_of_the_queue() -> None:
    late, early = waits(1, came=20), waits(2, came=10)
    assert give_out([late, early], [lot(quantity=1)], NOW) == [early]
    assert late.dose is None


def test_customers_of_the_same_moment_are_served_in_the_order_of_their_ids() -> None:
    a, b = waits(1, came=5), waits(2, came=5)
    assert give_out([b, a], [lot(quantity=1)], NOW) == [a]


def test_a_customer_gets_the_vaccine_asked_for_or_any_if_none_was() -> None:
    other = lot("other", 2, vaccine_code="208")
    wants, takes_any = waits(1, code="207"), waits(2)
    assert give_out([wants, takes_any], [other], NOW) == [takes_any]
    assert wants.status is Status.WAITING
    give_out([wants], [other, lot("right")], NOW)
    assert wants.dose is not None
    assert wants.dose.vaccine_code == "207"


def test_a_customer_whom_no_lot_suits_keeps_nobody_else_waiting() -> None:
    picky, easy = waits(1, code="999"), waits(2)
    assert give_out([picky, easy], [lot()], NOW) == [easy]


def test_a_customer_whose_day_has_passed_gets_no_dose() -> None:
    over = datetime(2027, 3, 10, 15, tzinfo=UTC)  # midnight in Seoul
    assert give_out([waits(1)], [lot()], over) == []
    assert len(give_out([waits(1)], [lot()], over - timedelta(microseconds=1))) == 1


def test_a_completed_vaccination_has_one_dose_with_the_lots_details() -> None:
    vaccination, shelf = waits(), lot()
    give_out([vaccination], [shelf], NOW)
    dose = Dose(shelf.lot_id, "L1", "207", "MOD", DELIVERY.production_date, DELIVERY.expiry_date)
    assert (vaccination.status, vaccination.dose, vaccination.quantity) == (Status.COMPLETED, dose, 1)
    assert vaccination.events == [Completed(vaccination.appointment, NOW, 1, dose)]
    assert (shelf.free, shelf.balance.reserved) == (2, 1)


def test_waiting_has_an_event_and_later_events_have_higher_versions() -> None:
    vaccination = waits()
    vaccination.wait(NOW)
    give_out([vaccination], [lot()], NOW)
    vaccination.cancel(NOW)
    assert [type(e) for e in vaccination.events] == [Waiting, Completed, Cancelled]
    assert [e.version for e in vaccination.events] == [1, 2, 3]


def test_a_cancellation_resets_the_vaccines_details_and_names_the_lot_that_gets_the_dose_back() -> None:
    vaccination, shelf = waits(), lot()
    give_out([vaccination], [shelf], NOW)
    assert vaccination.cancel(NOW) == shelf.lot_id
    shelf.put_back(vaccination.reservation_id, NOW)
    assert (vaccination.status, vaccination.dose, vaccination.quantity) == (Status.CANCELLED, None, 0)
    assert (shelf.free, shelf.balance.reserved) == (3, 0)


def test_a_repeated_cancellation_changes_nothing() -> None:
    vaccination = waits()
    give_out([vaccination], [lot()], NOW)
    vaccination.cancel(NOW)
    told = list(vaccination.events)
    assert vaccination.cancel(NOW) is None
    assert (vaccination.events, vaccination.version) == (told, 2)


def test_a_cancellation_that_comes_before_the_approval_leaves_a_tombstone() -> None:
    tombstone = waits()
    assert tombstone.cancel(NOW) is None
    assert tombstone.status is Status.CANCELLED
    assert tombstone.events == [Cancelled(tombstone.appointment, NOW, 1)]


def test_a_manager_chooses_another_lot_and_the_former_dose_goes_back() -> None:
    vaccination, first, chosen = waits(), lot("first", 1), lot("chosen", 1)
    give_out([vaccination], [first], NOW)
    vaccination.assign(chosen, first, NOW, "manager")
    assert vaccination.dose is not None
    assert vaccination.dose.lot_number == "chosen"
    assert (first.free, chosen.free) == (1, 0)
    assert vaccination.version == 2


def test_choosing_the_same_lot_again_changes_nothing() -> None:
    vaccination, shelf = waits(), lot("only", 1)
    give_out([vaccination], [shelf], NOW)
    vaccination.assign(shelf, shelf, NOW, "manager")
    assert (vaccination.version, shelf.free, shelf.balance.reserved) == (1, 0, 1)


@pytest.mark.parametrize(
    ("chosen", "refusal"),
    [
        (lot("empty", 0), LotEmpty),
        (lot("expired", expiry_date=DAY - timedelta(1)), LotNotValid),
        (lot("future", production_date=DAY + timedelta(1)), LotNotValid),
        (lot("other", vaccine_code="208"), LotOtherVaccine),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.lot_number,
)
def test_a_lot_that_does_not_suit_is_refused_and_nothing_changes(chosen: Lot, refusal: type[Exception]) -> None:
    vaccination, present, free = waits(code="207"), lot("present", 1), chosen.free
    give_out([vaccination], [present], NOW)
    with pytest.raises(refusal, match=chosen.lot_number):
        vaccination.assign(chosen, present, NOW, "manager")
    assert vaccination.dose is not None
    assert (vaccination.dose.lot_number, vaccination.version) == ("present", 1)
    assert (chosen.free, present.free) == (free, 0)


def test_a_cancelled_booking_gets_no_dose() -> None:
    vaccination, shelf = waits(), lot()
    vaccination.cancel(NOW)
    with pytest.raises(VaccinationCancelled):
        vaccination.assign(shelf, None, NOW, "manager")
    assert shelf.free == 3


def test_a_lot_that_expires_before_it_was_made_is_refused() -> None:
    with pytest.raises(ExpiryBeforeProduction) as refusal:
        lot(expiry_date=DELIVERY.production_date - timedelta(1))
    assert refusal.value.delivery is not None
    assert refusal.value.delivery.lot_number == "L1"
    assert lot(expiry_date=DELIVERY.production_date).is_valid_on(DELIVERY.production_date)


def test_a_lot_is_the_same_when_hospital_vaccine_manufacturer_and_number_are() -> None:
    assert lot().lot_id == lot(quantity=99, expiry_date=date(2028, 1, 1)).lot_id
    others = [lot("L2"), lot(vaccine_code="208"), lot(manufacturer="PFR"), Lot.of("h2", DELIVERY)]
    assert len({lot().lot_id, *(other.lot_id for other in others)}) == 5


DAYS = st.integers(0, 6).map(lambda n: DAY + timedelta(n))
NEAR = st.integers(0, 2).map(lambda n: DAY + timedelta(n))
CODES = st.sampled_from(["207", "208"])
LOTS = st.lists(st.tuples(DAYS, DAYS, CODES, st.integers(0, 3)), max_size=4)
QUEUE = st.lists(st.tuples(DAYS, st.one_of(st.just(""), CODES), st.integers(0, 5)), max_size=12)


def shelf_of(lots: list[tuple[date, date, str, int]]) -> list[Lot]:
    return [
        lot(f"L{i}", quantity, vaccine_code=code, production_date=min(a, b), expiry_date=max(a, b))
        for i, (a, b, code, quantity) in enumerate(lots)
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lots=LOTS, queue=QUEUE, today=st.integers(0, 6))
def test_doses_are_given_as_if_each_customer_in_turn_searched_every_single_dose(
    lots: list[tuple[date, date, str, int]], queue: list[tuple[date, str, int]], today: int
) -> None:
    shelf, now = shelf_of(lots), NOW + timedelta(9 + today)
    people = [waits(i + 1, day, code, came) for i, (day, code, came) in enumerate(queue)]

    doses = [one for one in shelf_of(lots) for _ in range(one.free)]
    expected: dict[ReservationId, LotId] = {}
    for person in sorted(people, key=lambda p: (p.appointment.decide_time, p.appointment.reservation_id)):
        a = person.appointment
        fitting = [
            d for d in doses if d.production_date <= a.date <= d.expiry_date and a.vaccine_code in ("", d.vaccine_code)
        ]
        if fitting and a.date >= DAY + timedelta(today):
            chosen = min(fitting, key=lambda d: (d.expiry_date, d.lot_id))
            doses.remove(chosen)
            expected[a.reservation_id] = chosen.lot_id

    served = give_out(people, shelf, now)
    assert {v.appointment.reservation_id: v.dose.lot_id for v in served if v.dose} == expected
    assert Counter(one.lot_id for one in doses) == Counter({one.lot_id: one.free for one in shelf if one.free})
    assert balanced(*shelf)


class LotMachine(RuleBasedStateMachine):
    """Deliveries, customers, cancellations and a manager's choices in any order.

    The model is the doses themselves: each dose is either in its lot or belongs to a customer.
    """

    lots, people = Bundle("lots"), Bundle("people")

    def __init__(self) -> None:
        super().__init__()
        self.shelf: dict[LotId, Lot] = {}
        self.queue: list[Vaccination] = []
        self.in_lot: Counter[LotId] = Counter()
        self.of_person: dict[ReservationId, LotId] = {}  # the lot that each customer's dose is from
        self.given_up: set[ReservationId] = set()

    @rule(target=lots, made=NEAR, lasts=NEAR, code=CODES, quantity=st.integers(0, 3))
    def deliver(self, made: date, lasts: date, code: str, quantity: int) -> Lot:
        number = f"L{len(self.shelf)}"
        arrived = lot(number, quantity, vaccine_code=code, production_date=made, expiry_date=lasts + timedelta(2))
        self.shelf[arrived.lot_id] = arrived
        self.in_lot[arrived.lot_id] = quantity
        return arrived

    @rule(target=people, day=NEAR, code=st.one_of(st.just(""), CODES), came=st.integers(0, 5))
    def join(self, day: date, code: str, came: int) -> Vaccination:
        self.queue.append(person := waits(len(self.queue) + 1, day, code, came))
        return person

    @rule()
    def serve(self) -> None:
        waiting = sorted((p for p in self.queue if p.status is Status.WAITING), key=lambda p: p.place_in_queue)
        give_out(waiting, list(self.shelf.values()), NOW)
        for person in waiting:
            fitting = [
                one for one in self.shelf.values() if self.in_lot[one.lot_id] and person.appointment.accepts(one)
            ]
            if fitting:
                self._hand_over(person, min(fitting, key=lambda one: (one.expiry_date, one.lot_id)))

    @rule(person=people)
    def cancel(self, person: Vaccination) -> None:
        if back := person.cancel(NOW):
            self.shelf[back].put_back(person.reservation_id, NOW)
        self.given_up.add(person.appointment.reservation_id)
        self._take_back(person)

    @rule(person=people, chosen=lots)
    def assign(self, person: Vaccination, chosen: Lot) -> None:
        key = person.appointment.reservation_id
        present = self.shelf[self.of_person[key]] if key in self.of_person else None
        suits = person.appointment.accepts(chosen) and self.in_lot[chosen.lot_id] > 0
        if key not in self.given_up and (suits or chosen is present):
            person.assign(chosen, present, NOW, "manager")
            self._take_back(person)
            self._hand_over(person, chosen)
        else:
            with pytest.raises((VaccinationCancelled, LotNotValid, LotOtherVaccine, LotEmpty)):
                person.assign(chosen, present, NOW, "manager")

    @invariant()
    def every_dose_is_in_its_lot_or_somebodys(self) -> None:
        assert balanced(*self.shelf.values())
        held = Counter(self.of_person.values())
        assert all((one.free, one.balance.reserved) == (self.in_lot[key], held[key]) for key, one in self.shelf.items())
        for person in self.queue:
            key = person.appointment.reservation_id
            assert (person.dose.lot_id if person.dose else None) == self.of_person.get(key)
            assert (person.status is Status.COMPLETED) == (key in self.of_person)
            assert (person.status is Status.CANCELLED) == (key in self.given_up)
            assert [e.version for e in person.events] == list(range(1, person.version + 1))

    def _hand_over(self, person: Vaccination, source: Lot) -> None:
        self.in_lot[source.lot_id] -= 1
        self.of_person[person.appointment.reservation_id] = source.lot_id

    def _take_back(self, person: Vaccination) -> None:
        if back := self.of_person.pop(person.appointment.reservation_id, None):
            self.in_lot[back] += 1


TestLotMachine = LotMachine.TestCase
TestLotMachine.settings = settings(max_examples=75, stateful_step_count=40, deadline=None, derandomize=True)
