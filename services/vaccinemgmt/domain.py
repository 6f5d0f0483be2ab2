"""Lots, doses and who gets them, as the specification tells it."""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import Enum
from typing import NewType
from uuid import UUID
from zoneinfo import ZoneInfo

# The UUIDv5 namespace of lot ids. It was made for them and never changes.
NAMESPACE = UUID("0b9d5b0e-8a57-5f0c-8b7e-6a1f3c2d4e5f")

ReservationId = NewType("ReservationId", str)
"""A UUID in its canonical form, text in lower case: the same in every store, event and answer."""
LotId = NewType("LotId", str)
"""A UUID in the same form."""
PlaceInQueue = tuple[datetime, ReservationId]
"""First come, first served; the id decides between those who came at the same moment."""


class VaccineError(Exception):
    """Root of what vaccine management refuses.

    VaccineError
    |- ExpiryBeforeProduction
    |- LotConflict
    |- UnknownVaccination
    |- UnknownLot
    |- VaccinationCancelled
    |- LotEmpty
    |- LotNotValid
    |- LotOtherVaccine
    `- UnknownStatus
    """


class ExpiryBeforeProduction(VaccineError):
    """A delivery would expire before it was made."""

    def __init__(self, delivery: "Delivery") -> None:
        super().__init__(f"{delivery.expiry_date} is before production_date {delivery.production_date}")
        self.delivery = delivery


class LotConflict(VaccineError):
    """A delivery's lot is registered with other content."""

    def __init__(self, delivery: "Delivery") -> None:
        super().__init__(f"lot {delivery.lot_number} is registered with another quantity or other dates")
        self.delivery = delivery


class UnknownVaccination(VaccineError):
    """Vaccine management does not know the reservation, perhaps because its approval has not arrived yet."""


class UnknownLot(VaccineError):
    """The hospital has no such lot."""


class VaccinationCancelled(VaccineError):
    """A cancelled booking gets no dose."""


class LotEmpty(VaccineError):
    """The lot has no free dose."""


class LotNotValid(VaccineError):
    """The lot may not be used on the appointment's day."""


class LotOtherVaccine(VaccineError):
    """The customer asked for another vaccine."""


class UnknownStatus(VaccineError):
    """The vaccination is in a status of a newer version, and what may become of it there is not known here."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the vaccination is in status {status} of a newer version: try again when the update is over")


class Status(Enum):
    """Where a vaccination stands; the values are the contract's VaccinationStatus."""

    WAITING = 1
    COMPLETED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class Appointment:
    """Who comes where, on which day, for which vaccine, as approval decided it."""

    reservation_id: ReservationId
    customer_id: str
    hospital_id: str
    hospital_name: str
    time_zone: str
    date: date
    vaccine_code: str
    decide_time: datetime

    def has_passed(self, now: datetime) -> bool:
        """Whether its day is over at the hospital."""
        return self.date < now.astimezone(ZoneInfo(self.time_zone)).date()


@dataclass(frozen=True, slots=True)
class Delivery:
    """What arrives at a hospital."""

    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date
    quantity: int


@dataclass(frozen=True, slots=True)
class Dose:
    """One dose of a lot."""

    lot_id: LotId
    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date


@dataclass(slots=True)
class Lot:
    """A lot at a hospital: received = free + used, always."""

    lot_id: LotId
    hospital_id: str
    lot_number: str
    vaccine_code: str
    manufacturer: str
    production_date: date
    expiry_date: date
    received: int
    free: int
    used: int

    @classmethod
    def of(cls, hospital_id: str, delivery: Delivery) -> "Lot":
        """A lot with all its doses free. Raises ExpiryBeforeProduction."""
        d = delivery
        if d.expiry_date < d.production_date:
            raise ExpiryBeforeProduction(d)
        name = "\n".join((hospital_id, d.vaccine_code, d.manufacturer, d.lot_number))
        lot_id = LotId(str(uuid.uuid5(NAMESPACE, name)))
        return cls(
            lot_id, hospital_id, d.lot_number, d.vaccine_code, d.manufacturer, d.production_date, d.expiry_date,
            d.quantity, d.quantity, 0)  # fmt: skip

    def is_same_delivery(self, other: "Lot") -> bool:
        """Whether the other is this lot registered once more."""
        return (self.production_date, self.expiry_date, self.received) == (
            other.production_date,
            other.expiry_date,
            other.received,
        )

    def is_valid_on(self, day: date) -> bool:
        """Whether a dose may be given on that day."""
        return self.production_date <= day <= self.expiry_date

    def suits(self, appointment: Appointment) -> bool:
        """Whether a dose would do for the appointment."""
        return self.is_valid_on(appointment.date) and appointment.vaccine_code in ("", self.vaccine_code)

    def take(self) -> Dose:
        """Sets one dose aside. Raises LotEmpty."""
        if self.free == 0:
            raise LotEmpty(f"lot {self.lot_number} has no free dose")
        self.free, self.used = self.free - 1, self.used + 1
        return Dose(
            self.lot_id, self.lot_number, self.vaccine_code, self.manufacturer, self.production_date, self.expiry_date
        )

    def put_back(self) -> None:
        """Takes one dose back."""
        self.free, self.used = self.free + 1, self.used - 1


@dataclass(frozen=True, slots=True)
class Completed:
    """A dose is set aside, or another one than before."""

    appointment: Appointment
    at: datetime
    dose: Dose
    version: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """No suitable dose yet."""

    appointment: Appointment
    at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The dose, if there was one, is back in its lot."""

    appointment: Appointment
    at: datetime
    version: int


Event = Completed | Waiting | Cancelled


@dataclass(slots=True)
class Vaccination:
    """The dose side of a reservation. `version` grows with every change and orders its events."""

    appointment: Appointment
    status: Status = Status.WAITING
    dose: Dose | None = None
    version: int = 0
    events: list[Event] = field(default_factory=list)

    @property
    def quantity(self) -> int:
        """1 with a dose, else 0."""
        return 0 if self.dose is None else 1

    @property
    def place_in_queue(self) -> PlaceInQueue:
        """Where it stands among those who wait."""
        return self.appointment.decide_time, self.appointment.reservation_id

    def is_active(self, now: datetime) -> bool:
        """Whether something may still become of it."""
        return self.status is not Status.CANCELLED and not self.appointment.has_passed(now)

    def of_nobody(self, pseudonym: str) -> "Vaccination":
        """The same with nobody's name, for the account of its lot's doses. Nobody is told."""
        return replace(self, appointment=replace(self.appointment, customer_id=pseudonym))

    def wait(self, now: datetime) -> None:
        """Joins the waiting list, which customer and managers can see."""
        self.version += 1
        self.events.append(Waiting(self.appointment, now, self.version))

    def complete(self, lot: Lot, now: datetime) -> None:
        """Sets a dose of the lot aside."""
        self.dose, self.status, self.version = lot.take(), Status.COMPLETED, self.version + 1
        self.events.append(Completed(self.appointment, now, self.dose, self.version))

    def cancel(self, now: datetime) -> LotId | None:
        """Cancels it: vaccine type, shelf life and production date are reset, and the quantity is 0.

        Returns the lot that the dose goes back to, if there was one. A repeat changes nothing.
        """
        if self.status is Status.CANCELLED:
            return None
        back = self.dose.lot_id if self.dose else None
        self.dose, self.status, self.version = None, Status.CANCELLED, self.version + 1
        self.events.append(Cancelled(self.appointment, now, self.version))
        return back

    def assign(self, lot: Lot, present: Lot | None, now: datetime) -> None:
        """Gives it a dose of the lot that a manager chose; the dose it had goes back to `present`.

        Raises VaccinationCancelled, LotNotValid, LotOtherVaccine or LotEmpty; then nothing has changed.
        """
        if self.status is Status.CANCELLED:
            raise VaccinationCancelled("the reservation is cancelled")
        if present is lot:
            return
        wanted = self.appointment
        if not lot.is_valid_on(wanted.date):
            raise LotNotValid(
                f"lot {lot.lot_number} is usable from {lot.production_date} to {lot.expiry_date}, not on {wanted.date}"
            )
        if not lot.suits(wanted):
            raise LotOtherVaccine(
                f"the customer asked for vaccine {wanted.vaccine_code}, lot {lot.lot_number} is {lot.vaccine_code}"
            )
        self.complete(lot, now)
        if present is not None:
            present.put_back()


def give_out(queue: Iterable[Vaccination], lots: Sequence[Lot], now: datetime) -> list[Vaccination]:
    """Gives free doses to those who wait, first come first served; returns who got one.

    Each gets a dose of the lot that expires first among those that suit (FEFO), so that none expires on the shelf
    while a fresher one is used. An appointment whose day has passed gets none: the dose could not be given any more.
    """
    served = []
    shelf = sorted((lot for lot in lots if lot.free), key=lambda lot: (lot.expiry_date, lot.lot_id))
    for vaccination in sorted(queue, key=lambda v: v.place_in_queue):
        if vaccination.appointment.has_passed(now):
            continue
        lot = next((lot for lot in shelf if lot.free and lot.suits(vaccination.appointment)), None)
        if lot is not None:
            vaccination.complete(lot, now)
            served.append(vaccination)
    return served
