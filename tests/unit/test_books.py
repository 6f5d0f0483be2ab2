"""What the events come to does not depend on their order, nor on how often each arrives."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from google.protobuf.message import Message

from services.approval.adapters.books import ApprovalBooks
from services.chassis import clock
from services.chassis.events.books import Books
from services.chassis.retention import Retention
from services.vaccinemgmt.adapters.books import LotBooks
from vaccination.approval.v1 import approval_events_pb2 as approval
from vaccination.approval.v1.appointment_pb2 import Appointment
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as doses
from vaccination.vaccinemgmt.v1.lot_pb2 import Lot
from vaccination.vaccinemgmt.v1.vaccination_pb2 import Dose


class ForEver:
    """Nothing is deleted."""

    retention_refused_days = retention_passed_days = retention_stream_days = 0


class NoStore:
    """Only events are counted here."""

    database: dict[str, None] = dict.fromkeys(("lots", "movements", "vaccinations"))


KEPT, NO_STORE = Retention(ForEver(), clock.now), NoStore()
IDS = [f"00000000-0000-0000-0000-00000000000{n}" for n in range(10)]


def appointment(n: int, day: str = "2027-03-10") -> Appointment:
    return Appointment(reservation_id=IDS[n], hospital_id="h1", date=day)


def dose(number: str) -> Dose:
    return Dose(lot_id=f"id-{number}", lot_number=number)


def moved(n: int, received: int, written_off: int = 0) -> Message:
    lot = Lot(lot_id="id-A", lot_number="A", hospital_id="h1")
    return doses.StockMoved(lot=lot, received_change=received, written_off_change=written_off, movement_id=IDS[n])


PLACES = [
    *(approval.ApprovalGranted(appointment=appointment(n)) for n in range(4)),
    approval.ApprovalGranted(appointment=appointment(4, "2027-03-11")),
    approval.ApprovalReleased(appointment=appointment(1)),
    approval.ApprovalRevoked(appointment=appointment(2)),
    approval.ApprovalReleased(appointment=appointment(2)),
]
DOSES = [
    *(moved(1, 10), moved(2, 5), moved(3, -2), moved(4, 0, 3)),
    doses.ReservationCompleted(appointment=appointment(5), dose=dose("A"), version=1),
    doses.ReservationCompleted(appointment=appointment(6), dose=dose("A"), version=1),
    doses.ReservationCompleted(appointment=appointment(6), dose=dose("B"), version=2),
    doses.ReservationWaiting(appointment=appointment(7), version=1),
    doses.ReservationCompleted(appointment=appointment(7), dose=dose("A"), version=2),
    doses.CancellationCompleted(appointment=appointment(7), version=3),
    doses.ReservationCompleted(appointment=appointment(8), dose=dose("A"), version=1),
    doses.VaccinationAdministered(appointment=appointment(8), dose=dose("A"), version=3),
]


def counted(books: Books, events: list[Any]) -> dict[str, Counter[str]]:
    """The amounts that are not 0; each event tells rightly which accounts it has changed."""
    for event in events:
        before = {account: dict(books.amounts(account)) for account in books.told()}
        changed = books.add(event.DESCRIPTOR.full_name, event.SerializeToString())
        after = {account: dict(books.amounts(account)) for account in books.told()}
        differing = {a for a in after if Counter(after[a]) != Counter(before.get(a, {}))}
        assert set(changed) == differing
    return {
        account: +Counter(books.amounts(account)) for account in books.told() if any(books.amounts(account).values())
    }


@pytest.mark.parametrize("seed", range(40))
def test_any_order_and_repetition_of_events_comes_to_the_same_places(seed: int) -> None:
    chance = random.Random(seed)
    events = [*PLACES, *chance.choices(PLACES, k=chance.randrange(6))]
    chance.shuffle(events)
    books = ApprovalBooks(NO_STORE, KEPT, clock.now)  # type: ignore[arg-type]
    assert counted(books, events) == {"h1 2027-03-10": {"approved": 2}, "h1 2027-03-11": {"approved": 1}}


@pytest.mark.parametrize("seed", range(40))
def test_any_order_and_repetition_of_events_comes_to_the_same_doses(seed: int) -> None:
    chance = random.Random(seed)
    events = [*DOSES, *chance.choices(DOSES, k=chance.randrange(6))]
    chance.shuffle(events)
    a = {"received": 13, "written_off": 3, "reserved": 1, "administered": 1, "free": 8}
    assert counted(LotBooks(NO_STORE, KEPT), events) == {"h1 lot A id-A": a, "h1 lot B id-B": {"reserved": 1}}  # type: ignore[arg-type]


def test_a_check_in_leaves_a_dose_where_it_is() -> None:
    checked_in = doses.VaccinationCheckedIn.DESCRIPTOR.full_name
    assert checked_in not in LotBooks(NO_STORE, KEPT).subjects  # type: ignore[arg-type]


def test_every_order_of_a_booking_that_was_given_up_comes_to_no_place() -> None:
    of_one = [
        approval.ApprovalGranted(appointment=appointment(1)),
        approval.ApprovalReleased(appointment=appointment(1)),
    ]
    for events in itertools.permutations(of_one * 2):
        assert counted(ApprovalBooks(NO_STORE, KEPT, clock.now), list(events)) == {}  # type: ignore[arg-type]


def test_the_name_of_an_account_is_kept_once_however_many_reservations_are_on_it() -> None:
    books = LotBooks(NO_STORE, KEPT)  # type: ignore[arg-type]
    events = [
        doses.ReservationCompleted(appointment=appointment(n), version=1, dose=dose("A"), quantity=1) for n in (1, 2)
    ]
    subject = events[0].DESCRIPTOR.full_name
    [[one], [other]] = [books.add(subject, event.SerializeToString()) for event in events]
    assert one is other
