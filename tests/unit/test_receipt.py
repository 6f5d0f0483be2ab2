"""Deliveries of one lot add up, each once, and the lot's ledger tells what became of each dose."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.vaccinemgmt.domain import (
    Balance,
    Correction,
    Delivery,
    ExpiryBeforeProduction,
    Lot,
    LotConflict,
    LotId,
    LotWithdrawn,
    Movement,
    MovementKind,
    Recall,
    Receipt,
    Request,
    RequestIdReused,
    ReservationId,
    TooFewDoses,
    WriteOffReason,
    asked_to_write_off,
    canonical_code,
    check_repeat,
    movement_id,
    spellings,
)

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
FIRST = Delivery("L1", "8", "MOD", date(2027, 1, 1), date(2027, 6, 30), 10, "note-1")
SECOND = replace(FIRST, quantity=5, delivery_id="note-2")
NO_ID = replace(FIRST, delivery_id="")


class Stockroom:
    """A hospital's lots and their ledgers."""

    def __init__(self) -> None:
        self.lots: dict[LotId, Lot] = {}
        self.ledger: list[Movement] = []
        self.recalls: list[Recall] = []

    def receive(self, *deliveries: Delivery) -> list[bool]:
        """One request."""
        done = {m.movement_id: m for m in self.ledger}
        lots = {key: replace(lot, movements=[]) for key, lot in self.lots.items()}
        receipt = Receipt("h1", lots, done, self.ledger, self.recalls)
        taken = [receipt.take(delivery, "manager", NOW) for delivery in deliveries]
        self.save(*receipt.changed)
        return taken

    def save(self, *lots: Lot) -> None:
        for lot in lots:
            assert lot.balance == lot.entered
            self.ledger += lot.movements
            self.lots[lot.lot_id] = replace(lot, movements=[])
            if lot.movements:
                assert lot.balance == Balance.of(m for m in self.ledger if m.lot_id == lot.lot_id)

    def of_0_3_0(self, delivery: Delivery, code: str) -> None:
        """Registers a lot as the version before did: without a ledger, and with the code as it was written."""
        lot_id = Lot.id_of("h1", code, delivery.manufacturer, delivery.lot_number)
        lot = replace(Lot.of("h1", delivery), lot_id=lot_id, vaccine_code=code, opened=False)
        lot.balance = Balance(delivery.quantity, delivery.quantity - 1, 1)
        self.lots[lot_id] = lot

    @property
    def received(self) -> dict[str, int]:
        return {lot.vaccine_code: lot.balance.received for lot in self.lots.values()}


@pytest.fixture
def stockroom() -> Stockroom:
    return Stockroom()


def request(lot: Lot, name: str = "r", note: str = "") -> Request:
    return Request(movement_id(lot.lot_id, name), "manager", note, NOW)


def test_deliveries_of_a_lot_add_up_and_a_repeat_changes_nothing(stockroom: Stockroom) -> None:
    assert stockroom.receive(FIRST) == [True]
    assert stockroom.receive(FIRST, SECOND, SECOND) == [False, True, False]
    assert stockroom.received == {"8": 15}
    assert [(m.kind, m.quantity, m.delivery_id) for m in stockroom.ledger] == [
        (MovementKind.RECEIVED, 10, "note-1"),
        (MovementKind.RECEIVED, 5, "note-2"),
    ]


@pytest.mark.parametrize(
    "other",
    [
        replace(FIRST, quantity=11),
        replace(FIRST, expiry_date=date(2027, 7, 1)),
        replace(FIRST, production_date=date(2027, 1, 2)),
    ],
    ids=["quantity", "expiry", "production"],
)
def test_a_delivery_id_with_other_content_is_refused(stockroom: Stockroom, other: Delivery) -> None:
    stockroom.receive(FIRST)
    with pytest.raises(LotConflict, match="note-1") as refusal:
        stockroom.receive(other)
    assert refusal.value.delivery is other
    with pytest.raises(LotConflict, match="L1"):  # another delivery has to agree about the dates as well
        stockroom.receive(replace(SECOND, expiry_date=date(2027, 7, 1)))
    assert stockroom.received == {"8": 10}


def test_a_repeat_is_known_after_the_lot_was_corrected(stockroom: Stockroom) -> None:
    stockroom.receive(FIRST, replace(NO_ID, lot_number="L2"))
    for lot in list(stockroom.lots.values()):
        lot.correct(Correction(expiry_date=date(2027, 5, 1), received=9), request(lot))
        stockroom.save(lot)
    assert stockroom.receive(FIRST, replace(NO_ID, lot_number="L2")) == [False, False]
    assert stockroom.received == {"8": 9}


def test_without_an_id_a_lot_comes_once(stockroom: Stockroom) -> None:
    assert stockroom.receive(NO_ID, NO_ID) == [True, False]
    assert stockroom.receive(NO_ID) == [False]
    for other in (replace(NO_ID, quantity=11), replace(NO_ID, expiry_date=date(2027, 7, 1))):
        with pytest.raises(LotConflict):
            stockroom.receive(other)


@pytest.mark.parametrize("version", ["0.3.0", "this one"])
def test_the_delivery_that_was_registered_without_its_id_is_that_one_again(stockroom: Stockroom, version: str) -> None:
    if version == "0.3.0":
        stockroom.of_0_3_0(FIRST, "8")
    else:
        stockroom.receive(NO_ID)
    assert stockroom.receive(FIRST) == [False]
    assert stockroom.received == {"8": 10}
    same_again = replace(FIRST, delivery_id="note-3")  # as many doses, but another delivery
    assert stockroom.receive(same_again, FIRST, NO_ID) == [True, False, False]
    assert stockroom.received == {"8": 20}
    with pytest.raises(LotConflict):
        stockroom.receive(replace(FIRST, quantity=11))


@pytest.mark.parametrize("version", ["0.3.0", "this one"])
def test_another_delivery_of_a_lot_that_was_registered_without_an_id_adds_up(
    stockroom: Stockroom, version: str
) -> None:
    if version == "0.3.0":
        stockroom.of_0_3_0(FIRST, "8")
    else:
        stockroom.receive(NO_ID)
    assert stockroom.receive(SECOND) == [True]
    assert stockroom.received == {"8": 15}


@pytest.mark.parametrize(("stored", "written"), list(itertools.product(["8", "08"], ["8", "08", "008"])))
def test_08_and_8_are_one_vaccine_however_it_was_registered(stockroom: Stockroom, stored: str, written: str) -> None:
    stockroom.of_0_3_0(FIRST, stored)
    assert stockroom.receive(replace(NO_ID, vaccine_code=written)) == [False]
    assert stockroom.receive(replace(SECOND, vaccine_code=written)) == [True]
    assert stockroom.receive(replace(SECOND, vaccine_code="8")) == [False]
    assert stockroom.received == {stored: 15}


def test_a_new_lot_has_the_code_without_zeros(stockroom: Stockroom) -> None:
    stockroom.receive(replace(FIRST, vaccine_code="08"))
    assert stockroom.received == {"8": 10}
    assert [canonical_code(code) for code in ("", "0", "00", "8", "08", "208")] == ["", "0", "0", "8", "8", "208"]
    assert [spellings(code) for code in ("", "08", "208")] == [[""], ["8", "08", "008"], ["208"]]


@pytest.mark.parametrize("code", ["8", "08"])
@pytest.mark.parametrize("hospital_id", ["", "h1", "h2"])
def test_a_recalled_lot_is_not_taken_any_more_and_a_repeat_is_still_known(
    stockroom: Stockroom, code: str, hospital_id: str
) -> None:
    stockroom.receive(FIRST)
    stockroom.recalls.append(Recall("r", code, "MOD", "L1", hospital_id, "contaminated", NOW, "operator"))
    assert stockroom.receive(FIRST) == [False]
    if hospital_id == "h2":
        assert stockroom.receive(SECOND) == [True]
    else:
        with pytest.raises(LotWithdrawn) as refusal:
            stockroom.receive(SECOND)
        assert refusal.value.delivery is SECOND
    assert stockroom.receive(replace(SECOND, lot_number="L2")) == [True]


def test_a_lot_that_expires_before_it_was_made_is_refused_with_the_whole_request(stockroom: Stockroom) -> None:
    with pytest.raises(ExpiryBeforeProduction):
        stockroom.receive(FIRST, replace(SECOND, expiry_date=date(2026, 1, 1)))
    assert stockroom.lots == {}


DELIVERIES = [
    replace(FIRST, vaccine_code=code, delivery_id=f"n{i}", quantity=i + 1)
    for i in range(3)
    for code in ("8", "08")
]  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(requests=st.lists(st.lists(st.sampled_from(DELIVERIES), min_size=1, max_size=4), max_size=6))
def test_in_any_order_and_repetition_each_delivery_counts_once(requests: Sequence[Sequence[Delivery]]) -> None:
    stockroom = Stockroom()
    for deliveries in requests:
        stockroom.receive(*deliveries)
    once = {delivery.delivery_id: delivery.quantity for deliveries in requests for delivery in deliveries}
    assert sum(stockroom.received.values()) == sum(once.values())
    assert len(stockroom.ledger) == len(once)


# Corrections and write-offs


def taken() -> Lot:
    lot = Lot.of("h1", FIRST)
    lot.receive(FIRST, request(lot, "note-1"))
    return lot


def test_a_manager_writes_off_what_is_free_and_corrects_what_was_counted_wrong() -> None:
    lot = taken()
    lot.take(ReservationId("a"), NOW)
    lot.write_off(2, WriteOffReason.BROKEN, request(lot, "1"))
    lot.correct(Correction(received=12), request(lot, "2"))
    assert lot.balance == Balance(received=12, free=9, reserved=1, administered=0, written_off=2)
    lot.correct(Correction(received=3), request(lot, "3"))
    assert lot.balance == Balance(received=3, free=0, reserved=1, administered=0, written_off=2)
    with pytest.raises(TooFewDoses):
        lot.correct(Correction(received=2), request(lot))
    with pytest.raises(TooFewDoses):
        lot.write_off(1, WriteOffReason.BROKEN, request(lot))
    assert not lot.to_look_at


def test_bookings_are_looked_at_when_dates_are_corrected() -> None:
    lot = taken()
    lot.correct(Correction(expiry_date=FIRST.expiry_date), request(lot, "same"))
    assert not lot.to_look_at
    lot.correct(Correction(expiry_date=FIRST.expiry_date - timedelta(1)), request(lot))
    assert lot.to_look_at
    with pytest.raises(ExpiryBeforeProduction):
        lot.correct(Correction(production_date=FIRST.expiry_date), request(lot))


def test_a_repeat_is_known_by_all_that_was_asked_for() -> None:
    lot = taken()
    correction = Correction(received=12)
    lot.correct(correction, request(lot, "1", "counted"))
    lot.write_off(2, WriteOffReason.BROKEN, request(lot, "2", "fell"))
    [_, corrected, written_off] = lot.movements
    check_repeat(corrected, MovementKind.CORRECTED, correction.asked("counted"))
    check_repeat(written_off, MovementKind.WRITTEN_OFF, asked_to_write_off(2, WriteOffReason.BROKEN, "fell"))
    for done, kind, asked in (
        (corrected, MovementKind.CORRECTED, Correction(received=11).asked("counted")),
        (corrected, MovementKind.CORRECTED, correction.asked("counted again")),
        (corrected, MovementKind.WRITTEN_OFF, asked_to_write_off(2, WriteOffReason.BROKEN, "fell")),
        (written_off, MovementKind.WRITTEN_OFF, asked_to_write_off(3, WriteOffReason.BROKEN, "fell")),
        (written_off, MovementKind.WRITTEN_OFF, asked_to_write_off(2, WriteOffReason.LOST, "fell")),
    ):
        with pytest.raises(RequestIdReused):
            check_repeat(done, kind, asked)


def test_of_a_withdrawn_lot_nothing_is_free_and_what_comes_back_is_written_off() -> None:
    lot = taken()
    for name in ("a", "b"):
        lot.take(ReservationId(name), NOW)
    lot.withdraw("contaminated", NOW, "operator")
    lot.withdraw("again", NOW, "operator")
    assert (lot.withdrawn, lot.to_look_at) == ("contaminated", True)
    assert lot.balance == Balance(received=10, free=0, reserved=2, administered=0, written_off=8)
    lot.put_back(ReservationId("a"), NOW)
    assert lot.balance == Balance(received=10, free=0, reserved=1, administered=0, written_off=9)
    with pytest.raises(LotWithdrawn):
        lot.take(ReservationId("c"), NOW)
    with pytest.raises(LotWithdrawn):
        lot.correct(Correction(received=20), request(lot))
    assert lot.balance == Balance.of(lot.movements)


def test_doses_that_a_version_without_ledger_moved_are_entered_first() -> None:
    lot = taken()
    lot.movements.clear()
    lot.balance.free, lot.balance.reserved = 7, 3  # it gave three
    lot.withdraw("contaminated", NOW, "operator")
    assert [(m.kind, m.quantity) for m in lot.movements] == [
        (MovementKind.UNRECORDED, 3),
        (MovementKind.WRITTEN_OFF, 7),
    ]
    lot.movements.clear()
    lot.balance.free, lot.balance.reserved = 2, 1  # and took two back
    lot.write_off_what_came_back(NOW)
    assert [(m.kind, m.quantity) for m in lot.movements] == [
        (MovementKind.UNRECORDED, -2),
        (MovementKind.WRITTEN_OFF, 2),
    ]
    assert lot.entered == lot.balance == Balance(received=10, free=0, reserved=1, administered=0, written_off=9)
