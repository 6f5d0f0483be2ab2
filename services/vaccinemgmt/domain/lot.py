"""The lot and its ledger: received = free + reserved + administered + written off, always."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum
from typing import NewType
from uuid import UUID

from .errors import ExpiryBeforeProduction, LotEmpty, LotWithdrawn, RequestIdReused, TooFewDoses

# The UUIDv5 namespace of the ids of lots, movements and recalls. It was made for them and never changes.
NAMESPACE = UUID("0b9d5b0e-8a57-5f0c-8b7e-6a1f3c2d4e5f")

ReservationId = NewType("ReservationId", str)
"""A UUID in its canonical form, text in lower case: the same in every store, event and answer."""
LotId = NewType("LotId", str)
"""A UUID in the same form."""
MovementId = NewType("MovementId", str)
"""A UUID in the same form."""
BY_ITSELF = "vaccinemgmt"
"""Who moved doses that nobody of the staff moved."""


class MovementKind(Enum):
    """What can happen to a lot's doses; the values are the contract's MovementKind."""

    RECEIVED = 1
    CORRECTED = 2
    RESERVED = 3
    RETURNED = 4
    ADMINISTERED = 5
    WRITTEN_OFF = 6
    OPENED = 7
    UNRECORDED = 8


class WriteOffReason(Enum):
    """Why doses may not be given any more; the values are the contract's WriteOffReason."""

    BROKEN = 1
    COLD_CHAIN = 2
    EXPIRED = 3
    RECALLED = 4
    LOST = 5


@dataclass(frozen=True, slots=True)
class Delivery:
    """What arrives at a hospital. `delivery_id` is empty for a lot that comes once."""

    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date
    quantity: int
    delivery_id: str = ""


@dataclass(frozen=True, slots=True)
class Dose:
    """One dose of a lot."""

    lot_id: LotId
    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date


@dataclass(frozen=True, slots=True)
class Request:
    """Who of the staff wants something changed, why, and under which id: a repeat has the same."""

    movement_id: MovementId
    by: str
    note: str
    at: datetime


@dataclass(slots=True)
class Movement:
    """An entry of a lot's ledger. The lot's quantities are the sums of its movements; see `Balance`.

    `reserved` is for OPENED alone: how many of its doses were set aside then. `production_date` and `expiry_date` are
    those that the lot had from then on, for CORRECTED and RECEIVED.
    """

    kind: MovementKind
    lot_id: LotId
    quantity: int
    at: datetime
    by: str = BY_ITSELF
    movement_id: MovementId = field(default_factory=lambda: MovementId(str(uuid.uuid4())))
    reason: WriteOffReason | None = None
    note: str = ""
    reservation_ids: list[ReservationId] = field(default_factory=list)
    delivery_id: str = ""
    reserved: int = 0
    production_date: date | None = None
    expiry_date: date | None = None
    asked: str = ""
    """What was asked for, of CORRECTED and WRITTEN_OFF by a request: a repeat is known by it."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What was wrong about a lot, and how it is right; None: as it is. `received` is how many doses came in all."""

    production_date: date | None = None
    expiry_date: date | None = None
    received: int | None = None

    def more_than(self, lot: "Lot") -> int:
        """How many doses more came than the lot knows of; negative: fewer."""
        return 0 if self.received is None else self.received - lot.balance.received

    def asked(self, note: str) -> str:
        """The whole content of the request."""
        return f"{self.production_date} {self.expiry_date} {self.received} {note}"


@dataclass(slots=True)
class Balance:
    """How many doses of a lot are where."""

    received: int = 0
    free: int = 0
    reserved: int = 0
    administered: int = 0
    written_off: int = 0

    @classmethod
    def of(cls, movements: Iterable[Movement]) -> "Balance":
        """The sum of a ledger."""
        balance = cls()
        for movement in movements:
            balance.add(movement.kind, movement.quantity, movement.reserved)
        return balance

    def add(self, kind: MovementKind, quantity: int, reserved: int = 0) -> None:
        """Enters one movement."""
        match kind:
            case MovementKind.RECEIVED | MovementKind.CORRECTED:
                self.received, self.free = self.received + quantity, self.free + quantity
            case MovementKind.OPENED:
                self.received, self.free = self.received + quantity, self.free + quantity - reserved
                self.reserved += reserved
            case MovementKind.RESERVED | MovementKind.UNRECORDED:
                self.free, self.reserved = self.free - quantity, self.reserved + quantity
            case MovementKind.RETURNED:
                self.free, self.reserved = self.free + quantity, self.reserved - quantity
            case MovementKind.ADMINISTERED:
                self.reserved, self.administered = self.reserved - quantity, self.administered + quantity
            case MovementKind.WRITTEN_OFF:
                self.free, self.written_off = self.free - quantity, self.written_off + quantity


@dataclass(slots=True)
class Lot:
    """A lot at a hospital.

    `entered` is what its ledger adds up to, once it is opened. It differs from `balance` only when a version that keeps
    no ledger has moved doses, which the next movement then enters first.
    """

    lot_id: LotId
    hospital_id: str
    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date
    balance: Balance = field(default_factory=Balance)
    withdrawn: str = ""
    """Why nobody may be given a dose of it any more; empty while they may."""
    recall_id: str = ""
    """The recall that withdrew it."""
    to_look_at: bool = False
    """Whether bookings on it may have to get another dose, or other dates of their dose."""
    reassigned: int = 0
    """Bookings that lost their dose of it to a recall and got one of another lot."""
    left_waiting: int = 0
    """Bookings that lost their dose of it to a recall and had to wait."""
    opened: bool = False
    entered: Balance = field(default_factory=Balance)
    movements: list[Movement] = field(default_factory=list)

    @staticmethod
    def id_of(hospital_id: str, vaccine_code: str, manufacturer: str, lot_number: str) -> LotId:
        """The lot's id: the same for whoever registers it."""
        name = "\n".join((hospital_id, vaccine_code, manufacturer, lot_number))
        return LotId(str(uuid.uuid5(NAMESPACE, name)))

    @classmethod
    def ids_of(cls, hospital_id: str, delivery: Delivery) -> list[LotId]:
        """The ids that the delivery's lot may have, since earlier versions took 08 and 8 for two; the first is the
        one that it gets now."""
        codes = spellings(delivery.vaccine_code)
        return [cls.id_of(hospital_id, code, delivery.manufacturer, delivery.lot_number) for code in codes]

    @classmethod
    def of(cls, hospital_id: str, delivery: Delivery) -> "Lot":
        """The lot of a delivery, with nothing received yet. Raises ExpiryBeforeProduction."""
        d = delivery
        if d.expiry_date < d.production_date:
            raise ExpiryBeforeProduction(d.production_date, d.expiry_date, d)
        code = canonical_code(d.vaccine_code)
        lot_id = cls.id_of(hospital_id, code, d.manufacturer, d.lot_number)
        of_delivery = d.lot_number, code, d.manufacturer, d.production_date, d.expiry_date
        return cls(lot_id, hospital_id, *of_delivery, opened=True)

    @property
    def free(self) -> int:
        """Doses that nobody has yet."""
        return self.balance.free

    def dose(self) -> Dose:
        """One of its doses."""
        return Dose(
            self.lot_id, self.lot_number, self.vaccine_code, self.manufacturer, self.production_date, self.expiry_date
        )

    @property
    def remaining(self) -> int:
        """Doses that were neither given nor written off."""
        return self.balance.free + self.balance.reserved

    def is_valid_on(self, day: date) -> bool:
        """Whether a dose may be given on that day."""
        return not self.withdrawn and self.production_date <= day <= self.expiry_date

    # What becomes of doses through reservations

    def take(self, reservation_id: ReservationId, at: datetime, by: str = BY_ITSELF) -> Dose:
        """Sets one dose aside. Raises LotEmpty or LotWithdrawn."""
        if self.withdrawn:
            raise LotWithdrawn(self.lot_number)
        if self.free == 0:
            raise LotEmpty(f"lot {self.lot_number} has no free dose")
        self._for_reservation(MovementKind.RESERVED, reservation_id, at, by)
        return self.dose()

    def put_back(self, reservation_id: ReservationId, at: datetime, by: str = BY_ITSELF) -> None:
        """Takes one dose back. Of a withdrawn lot it is written off."""
        self._for_reservation(MovementKind.RETURNED, reservation_id, at, by)
        if self.withdrawn:
            self._write_off(1, WriteOffReason.RECALLED, at)

    def give(self, reservation_id: ReservationId, at: datetime, by: str) -> None:
        """A dose that was set aside went into an arm."""
        self._enter(Movement(MovementKind.ADMINISTERED, self.lot_id, 1, at, by, reservation_ids=[reservation_id]))

    # What the staff does

    def receive(self, delivery: Delivery, request: Request) -> None:
        """Doses arrive. Raises LotWithdrawn."""
        if self.withdrawn:
            raise LotWithdrawn(self.lot_number, delivery)
        self._enter(
            Movement(
                MovementKind.RECEIVED,
                self.lot_id,
                delivery.quantity,
                request.at,
                request.by,
                request.movement_id,
                note=request.note,
                delivery_id=delivery.delivery_id,
                production_date=delivery.production_date,
                expiry_date=delivery.expiry_date,
            )
        )

    def recognise(self, delivery: Delivery, request: Request) -> None:
        """The delivery is the one that was taken before under no id: its id is entered, and no dose is added."""
        received = self.balance.received
        self.receive(delivery, request)
        again = movement_id(self.lot_id, f"again\n{delivery.delivery_id}")
        self.correct(Correction(received=received), Request(again, request.by, "taken before, under no id", request.at))

    def has_dates_of(self, delivery: Delivery) -> bool:
        """Whether the delivery says the same of its dates."""
        return (self.production_date, self.expiry_date) == (delivery.production_date, delivery.expiry_date)

    def correct(self, correction: "Correction", request: Request) -> None:
        """What was registered about it was wrong. Bookings on it have to be looked at when the dates change.

        Raises ExpiryBeforeProduction, LotWithdrawn, or TooFewDoses when more are to go than are free.
        """
        production_date = correction.production_date or self.production_date
        expiry_date = correction.expiry_date or self.expiry_date
        if expiry_date < production_date:
            raise ExpiryBeforeProduction(production_date, expiry_date)
        if self.withdrawn:
            raise LotWithdrawn(self.lot_number)
        more = correction.more_than(self)
        self._must_have(-more)
        if (production_date, expiry_date) != (self.production_date, self.expiry_date):
            self.production_date, self.expiry_date, self.to_look_at = production_date, expiry_date, True
        self._enter(
            Movement(
                MovementKind.CORRECTED,
                self.lot_id,
                more,
                request.at,
                request.by,
                request.movement_id,
                note=request.note,
                production_date=production_date,
                expiry_date=expiry_date,
                asked=correction.asked(request.note),
            )
        )

    def write_off(self, quantity: int, reason: WriteOffReason, request: Request) -> None:
        """Free doses may not be given any more. Raises TooFewDoses."""
        self._must_have(quantity)
        self._enter(
            Movement(
                MovementKind.WRITTEN_OFF,
                self.lot_id,
                quantity,
                request.at,
                request.by,
                request.movement_id,
                reason,
                request.note,
                asked=asked_to_write_off(quantity, reason, request.note),
            )
        )

    def withdraw(self, note: str, at: datetime, by: str, recall_id: str = "") -> None:
        """Nobody may be given a dose of it any more. Bookings on it have to be looked at. A repeat changes nothing."""
        if self.withdrawn:
            return
        self.withdrawn, self.recall_id, self.to_look_at = note, recall_id, True
        if self.free:
            self._write_off(self.free, WriteOffReason.RECALLED, at, by)

    def write_off_what_came_back(self, at: datetime) -> None:
        """A version that knows no recall has put doses back into a withdrawn lot."""
        if self.withdrawn and self.free:
            self._write_off(self.free, WriteOffReason.RECALLED, at)

    # The ledger

    def open(self, at: datetime) -> None:
        """Begins the ledger of a lot that has none; enters what a version that keeps none has done meanwhile."""
        now = self.balance
        if not self.opened:
            self.opened = True
            self._record(Movement(MovementKind.OPENED, self.lot_id, now.received, at, reserved=now.reserved))
        elif self.entered != now:
            unrecorded = self.entered.free - now.free
            self._record(Movement(MovementKind.UNRECORDED, self.lot_id, unrecorded, at))

    def _must_have(self, quantity: int) -> None:
        if quantity > self.free:
            raise TooFewDoses(f"lot {self.lot_number} has {self.free} free doses, fewer than {quantity}")

    def _write_off(self, quantity: int, reason: WriteOffReason, at: datetime, by: str = BY_ITSELF) -> None:
        for movement in self.movements:  # one entry for all that a transaction writes off for one reason
            if (movement.kind, movement.reason, movement.by) == (MovementKind.WRITTEN_OFF, reason, by):
                self._extend(movement, quantity)
                return
        self._enter(Movement(MovementKind.WRITTEN_OFF, self.lot_id, quantity, at, by, reason=reason))

    def _for_reservation(self, kind: MovementKind, reservation_id: ReservationId, at: datetime, by: str) -> None:
        for movement in self.movements:  # one entry for all of a kind that somebody does in a transaction
            if (movement.kind, movement.by) == (kind, by):
                self._extend(movement, 1)
                break
        else:
            movement = Movement(kind, self.lot_id, 1, at, by)
            self._enter(movement)
        movement.reservation_ids.append(reservation_id)

    def _extend(self, movement: Movement, quantity: int) -> None:
        movement.quantity += quantity
        self.balance.add(movement.kind, quantity)
        self.entered.add(movement.kind, quantity)

    def _enter(self, movement: Movement) -> None:
        self.open(movement.at)
        self.balance.add(movement.kind, movement.quantity)
        self._record(movement)

    def _record(self, movement: Movement) -> None:
        self.entered.add(movement.kind, movement.quantity, movement.reserved)
        self.movements.append(movement)


@dataclass(frozen=True, slots=True)
class Recall:
    """A lot that is withdrawn, everywhere or at one hospital."""

    recall_id: str
    vaccine_code: str
    manufacturer: str
    lot_number: str
    hospital_id: str
    """Empty: everywhere."""
    note: str
    at: datetime
    by: str

    def is_about(self, lot: Lot) -> bool:
        """Whether it withdraws the lot."""
        mine = canonical_code(self.vaccine_code), self.manufacturer, self.lot_number
        lots = canonical_code(lot.vaccine_code), lot.manufacturer, lot.lot_number
        return mine == lots and self.hospital_id in ("", lot.hospital_id)

    @staticmethod
    def id_of(vaccine_code: str, manufacturer: str, lot_number: str, hospital_id: str) -> str:
        """The recall's id: the same for whoever recalls the same."""
        name = "\n".join(("recall", hospital_id, canonical_code(vaccine_code), manufacturer, lot_number))
        return str(uuid.uuid5(NAMESPACE, name))


def movement_id(lot_id: LotId, request_id: str) -> MovementId:
    """The id of the movement that a request, or a delivery, makes in a lot's ledger."""
    return MovementId(str(uuid.uuid5(NAMESPACE, f"{lot_id}\n{request_id}")))


def asked_to_write_off(quantity: int, reason: WriteOffReason, note: str) -> str:
    """The whole content of a request to write doses off."""
    return f"{quantity} {reason.name} {note}"


def check_repeat(done: Movement, kind: MovementKind, asked: str) -> None:
    """Raises RequestIdReused unless the movement that was made is what is asked for now."""
    if (done.kind, done.asked) != (kind, asked):
        raise RequestIdReused("used before for something else; use a new one")


def spellings(vaccine_code: str) -> list[str]:
    """How a CVX code may have been written: 8, 08 and 008 are one. The first is the canonical one."""
    code = canonical_code(vaccine_code)
    return list(dict.fromkeys((code, code.zfill(2), code.zfill(3)))) if code else [""]


def canonical_code(vaccine_code: str) -> str:
    """A CVX code as it is stored: 08 and 8 are one. Empty stays empty."""
    return vaccine_code.lstrip("0") or ("0" if vaccine_code else "")
