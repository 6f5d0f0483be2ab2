"""The reservation and its rules, as the specification tells them."""

import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import IntEnum
from typing import NewType
from uuid import UUID
from zoneinfo import ZoneInfo

# The UUIDv5 namespace of reservation ids. It was made for them and never changes.
NAMESPACE = UUID("6f7c9e0a-5d1b-5c53-9d0e-1f0a7a3c2b44")

ENDS_WITHIN = timedelta(days=11)
"""From the end of its day: by then vaccine management has told how it ended, also with the longest grace that it gives
the hospital's staff, ten days."""

ReservationId = NewType("ReservationId", str)
"""A UUID in its canonical form, text in lower case: the same in every store, event and answer."""
RequestId = NewType("RequestId", str)
"""The customer's own name for a request, a UUID in the same form."""


class ReservationError(Exception):
    """Root of what reservation refuses.

    ReservationError
    |- ApprovalBusy
    |- RequestIdReused
    |- TooManyRefusals
    |- UnknownHospital
    |- DatePassed
    |- UnknownReservation
    |- Rejected
    |- AppointmentPassed
    |- AlreadyAdministered
    |- Ended
    |- NothingToMove
    `- UnknownStatus
    """


class ApprovalBusy(ReservationError):
    """Approval cannot answer now. Nothing is stored, and the customer may try again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("approval is busy: try again shortly")
        self.retry_after = retry_after


class RequestIdReused(ReservationError):
    """The same request id came before with other content."""


class TooManyRefusals(ReservationError):
    """Approval's answer is no, and it keeps as many refusals of the customer's as may be: nothing is recorded."""


class UnknownHospital(ReservationError):
    """There is no such hospital."""


class DatePassed(ReservationError):
    """The day has passed at the hospital."""


class UnknownReservation(ReservationError):
    """The customer has no such reservation."""


class Rejected(ReservationError):
    """A rejected reservation has nothing to cancel."""


class AppointmentPassed(ReservationError):
    """The appointment's day has passed."""


class AlreadyAdministered(ReservationError):
    """The customer has been vaccinated."""


class Ended(ReservationError):
    """The reservation has ended otherwise than by a cancellation."""


class NothingToMove(ReservationError):
    """The reservation holds no place any more."""


class UnknownStatus(ReservationError):
    """The reservation is in a status of a newer version, and what may become of it there is not known here."""


class Status(IntEnum):
    """Where a reservation stands; the values are the contract's ReservationStatus.

    Below CANCEL_REQUESTED it goes to and fro with the dose. From there on the values grow along the path, and the
    highest one that was reached is the truth: so the order in which others tell of it does not matter.

    A newer version may have stored a status that has no name here. It is shown as it is, and nobody can cancel from it.
    """

    APPROVED = 1
    REJECTED = 2
    COMPLETED = 3
    CANCEL_REQUESTED = 4
    CANCELLED = 5
    MOVED = 6
    CALLED_OFF = 7
    UNSERVED = 8
    MISSED = 9
    ADMINISTERED = 10

    @classmethod
    def _missing_(cls, value: object) -> "Status | None":
        if not isinstance(value, int) or value < 1:
            return None
        unnamed = int.__new__(cls, value)
        unnamed._name_, unnamed._value_ = f"UNNAMED_{value}", value
        return unnamed


ENDED = (Status.MOVED, Status.CALLED_OFF, Status.UNSERVED, Status.MISSED)
"""The ends that are neither a cancellation nor a vaccination."""

RejectionReason = NewType("RejectionReason", int)
"""Why approval said no, as its contract numbers the reasons. Reservation decides nothing by it: a number that this
version has no name for is carried on as it was told."""


def canonical_code(vaccine_code: str) -> str:
    """A CVX code as it is stored: 08 and 8 are one. Empty, for any vaccine, stays empty."""
    return vaccine_code.lstrip("0") or ("0" if vaccine_code else "")


@dataclass(frozen=True, slots=True)
class Request:
    """What the customer chose. The same request_id of the same customer is the same request."""

    customer_id: str
    request_id: RequestId
    hospital_id: str
    date: date
    vaccine_code: str
    reservation_id: ReservationId = field(init=False)
    """The same for every repeat of this request, everywhere."""

    def __post_init__(self) -> None:
        reservation_id = uuid.uuid5(NAMESPACE, f"{self.customer_id}\n{self.request_id}")
        object.__setattr__(self, "reservation_id", ReservationId(str(reservation_id)))
        object.__setattr__(self, "vaccine_code", canonical_code(self.vaccine_code))


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
class Placed:
    """Approval granted the request, and the reservation is stored."""

    appointment: Appointment
    at: datetime


@dataclass(frozen=True, slots=True)
class WasRejected:
    """Approval refused the request, and the rejected reservation is stored."""

    appointment: Appointment
    at: datetime
    rejection: RejectionReason


@dataclass(frozen=True, slots=True)
class CancellationRequested:
    """The customer asked to cancel."""

    appointment: Appointment
    at: datetime


Event = Placed | WasRejected | CancellationRequested


@dataclass(slots=True)
class Reservation:
    """REJECTED, or APPROVED <-> COMPLETED, by whether a dose is set aside, until it ends.

    It ends by CANCEL_REQUESTED -> CANCELLED, MOVED, CALLED_OFF, UNSERVED, MISSED or ADMINISTERED. `dose_version` is the
    version of what vaccine management told last about the dose; 0 when it told nothing, or told it to a version of
    reservation up to 0.3. `dose_is_back` says that vaccine management has nothing of it any more.
    """

    appointment: Appointment
    status: Status
    rejection: RejectionReason | None = None
    dose_version: int = 0
    dose_is_back: bool = False
    events: list[Event] = field(default_factory=list)

    @classmethod
    def decided(cls, appointment: Appointment, rejection: RejectionReason | None) -> "Reservation":
        """A new reservation: APPROVED exactly when approval granted it."""
        at = appointment.decide_time
        if rejection is None:
            return cls(appointment, Status.APPROVED, events=[Placed(appointment, at)])
        return cls(appointment, Status.REJECTED, rejection, events=[WasRejected(appointment, at, rejection)])

    def is_about(self, request: Request) -> bool:
        """Whether it was made for a request with this content."""
        a, r = self.appointment, request
        # Versions up to 0.3 stored the code as it was asked for.
        return (a.hospital_id, a.date, canonical_code(a.vaccine_code)) == (r.hospital_id, r.date, r.vaccine_code)

    def is_active(self, now: datetime) -> bool:
        """Whether something may still become of it. How it ends is told within some days from its own day."""
        if self.status is Status.CANCEL_REQUESTED:
            return True
        if self.status in (Status.APPROVED, Status.COMPLETED):
            return not self.appointment.has_passed(now - ENDS_WITHIN)
        if self.status in (Status.MOVED, Status.CALLED_OFF) and self.dose_is_back:
            return False
        return self.status not in (Status.REJECTED, Status.CANCELLED) and not self.appointment.has_passed(now)

    def request_cancellation(self, now: datetime) -> None:
        """The customer asks to cancel; a repeat changes nothing.

        Raises Rejected, AlreadyAdministered, Ended, AppointmentPassed or UnknownStatus.
        """
        if self.status in (Status.CANCEL_REQUESTED, Status.CANCELLED):
            return
        if self.status is Status.REJECTED:
            raise Rejected("the reservation was rejected: there is nothing to cancel")
        if self.status is Status.ADMINISTERED:
            raise AlreadyAdministered("you have been vaccinated: the reservation can no longer be cancelled")
        if self.status in ENDED:
            raise Ended(f"the reservation has ended ({self.status.name}): there is nothing to cancel")
        if self.status not in (Status.APPROVED, Status.COMPLETED):
            raise UnknownStatus(
                f"the reservation is in status {self.status} of a newer version: cancel it when the update is over"
            )
        if self.appointment.has_passed(now):
            raise AppointmentPassed(
                f"the appointment's day, {self.appointment.date}, has passed: it can no longer be cancelled"
            )
        self.status = Status.CANCEL_REQUESTED
        self.events.append(CancellationRequested(self.appointment, now))

    def check_holds_a_place(self, now: datetime) -> None:
        """Raises NothingToMove unless the reservation can be moved."""
        if self.status not in (Status.APPROVED, Status.COMPLETED):
            raise NothingToMove(f"it holds no place any more ({self.status.name}): there is nothing to move")
        if self.appointment.has_passed(now):
            raise NothingToMove(f"its day, {self.appointment.date}, has passed: there is nothing to move")

    def hear_of_dose(self, version: int, *, has_dose: bool) -> None:
        """A dose is set aside, or there is none (any more): the highest version tells how it is.

        What arrives after the reservation was rejected or given up, or has ended, changes nothing.
        """
        if self.status not in (Status.APPROVED, Status.COMPLETED):
            return
        # Versions up to 0.3 recorded that there was a dose, and not the version, which was 1 at least. So the first of
        # all news, that it waits, does not take the dose away when it comes late.
        known = max(self.dose_version, 1 if self.status is Status.COMPLETED else 0)
        if version > known:
            self.status = Status.COMPLETED if has_dose else Status.APPROVED
        self.dose_version = max(version, self.dose_version)

    def end(self, how: Status) -> None:
        """It has ended in this way; of several ends the highest one counts. A status of a newer version stays.

        Raises Rejected, since a rejected reservation had nothing that could end.
        """
        if self.status is Status.REJECTED:
            raise Rejected("the reservation was rejected: there is nothing to give back")
        # Approval tells of these two, and vaccine management of the others, after which it has nothing left to do.
        self.dose_is_back |= how not in (Status.MOVED, Status.CALLED_OFF)
        self.status = max(self.status, how)
