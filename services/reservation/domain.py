"""The reservation and its rules, as the specification tells them."""

import uuid
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import IntEnum
from typing import NewType
from uuid import UUID
from zoneinfo import ZoneInfo

# The UUIDv5 namespace of reservation ids. It was made for them and never changes.
NAMESPACE = UUID("6f7c9e0a-5d1b-5c53-9d0e-1f0a7a3c2b44")

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


class UnknownStatus(ReservationError):
    """The reservation is in a status of a newer version, and what may become of it there is not known here."""


class Status(IntEnum):
    """Where a reservation stands; the values are the contract's ReservationStatus.

    A newer version may have stored a status that has no name here. It is shown as it is, and nobody can cancel from it.
    """

    APPROVED = 1
    REJECTED = 2
    COMPLETED = 3
    CANCEL_REQUESTED = 4
    CANCELLED = 5

    @classmethod
    def _missing_(cls, value: object) -> "Status | None":
        if not isinstance(value, int) or value < 1:
            return None
        unnamed = int.__new__(cls, value)
        unnamed._name_, unnamed._value_ = f"UNNAMED_{value}", value
        return unnamed


RejectionReason = NewType("RejectionReason", int)
"""Why approval said no, as its contract numbers the reasons. Reservation decides nothing by it: a number that this
version has no name for is carried on as it was told."""


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
    """APPROVED -> COMPLETED -> CANCEL_REQUESTED -> CANCELLED, or REJECTED; APPROVED -> CANCEL_REQUESTED too."""

    appointment: Appointment
    status: Status
    rejection: RejectionReason | None = None
    events: list[Event] = field(default_factory=list)

    @classmethod
    def decided(cls, appointment: Appointment, rejection: RejectionReason | None) -> "Reservation":
        """A new reservation: APPROVED exactly when approval granted it."""
        at = appointment.decide_time
        if rejection is None:
            return cls(appointment, Status.APPROVED, None, [Placed(appointment, at)])
        return cls(appointment, Status.REJECTED, rejection, [WasRejected(appointment, at, rejection)])

    def is_about(self, request: Request) -> bool:
        """Whether it was made for a request with this content."""
        a = self.appointment
        return (a.hospital_id, a.date, a.vaccine_code) == (request.hospital_id, request.date, request.vaccine_code)

    def is_active(self, now: datetime) -> bool:
        """Whether something may still become of it."""
        if self.status is Status.CANCEL_REQUESTED:
            return True
        return self.status not in (Status.REJECTED, Status.CANCELLED) and not self.appointment.has_passed(now)

    def request_cancellation(self, now: datetime) -> None:
        """The customer asks to cancel; a repeat changes nothing.

        Raises Rejected, AppointmentPassed or UnknownStatus.
        """
        if self.status in (Status.CANCEL_REQUESTED, Status.CANCELLED):
            return
        if self.status is Status.REJECTED:
            raise Rejected("the reservation was rejected: there is nothing to cancel")
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

    def complete(self) -> None:
        """A dose is set aside. A completion that arrives after the customer cancelled changes nothing."""
        if self.status is Status.APPROVED:
            self.status = Status.COMPLETED

    def cancel(self) -> None:
        """Dose and place are given back. A status that a newer version gave stays.

        Raises Rejected, since a rejected reservation had neither.
        """
        if self.status is Status.REJECTED:
            raise Rejected("the reservation was rejected: there is nothing to give back")
        if self.status in (Status.APPROVED, Status.COMPLETED, Status.CANCEL_REQUESTED):
            self.status = Status.CANCELLED
