"""The rules of approval, as the specification tells them. No framework, no store, no clock of its own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import IntEnum
from typing import NewType
from zoneinfo import ZoneInfo

DEFAULT_TIME_ZONE = "Asia/Seoul"
# Refused requests of one customer that are kept at a time. Each is a row in three services and two events.
MOST_REFUSALS = 50

ReservationId = NewType("ReservationId", str)
"""A UUID in its canonical form, text in lower case: the same in every store, event and answer."""


class ApprovalError(Exception):
    """Root of what approval refuses without deciding.

    ApprovalError
    |- UnknownHospital
    |- DatePassed
    |- RequestIdReused
    |- TooManyRefusals
    |- UnknownTimeZone
    |- DateRange
    |- CapacityBelowApproved
    `- UnknownDecision
    """


class UnknownHospital(ApprovalError):
    """There is no such hospital."""


class DatePassed(ApprovalError):
    """The day has passed at the hospital."""


class RequestIdReused(ApprovalError):
    """The same reservation id was decided before with other content."""


class TooManyRefusals(ApprovalError):
    """The answer would be no, and as many refusals of the customer's are kept as may be: this one is not recorded."""


class UnknownTimeZone(ApprovalError):
    """There is no such IANA time zone."""


class DateRange(ApprovalError):
    """The range of days is empty or too long."""


class CapacityBelowApproved(ApprovalError):
    """More places are approved on a day than the capacity that is wanted."""


class UnknownDecision(ApprovalError):
    """A booking is to be released that was never granted here."""


class Denial(IntEnum):
    """Why the answer is no; the values are the contract's DenialReason.

    A newer version may have recorded a reason that has no name here. A repeat of that request gets it all the same.
    """

    DAY_FULL = 1
    DAY_NOT_OFFERED = 2
    ACTIVE_BOOKING = 3

    @classmethod
    def _missing_(cls, value: object) -> "Denial | None":
        if not isinstance(value, int) or value < 1:
            return None
        unnamed = int.__new__(cls, value)
        unnamed._name_, unnamed._value_ = f"UNNAMED_{value}", value
        return unnamed


@dataclass(frozen=True, slots=True)
class Hospital:
    """A place that vaccinates; its days are calendar days in its own time zone."""

    hospital_id: str
    name: str
    time_zone: str

    def today(self, now: datetime) -> date:
        """The day it is at the hospital."""
        return now.astimezone(ZoneInfo(self.time_zone)).date()


@dataclass(slots=True)
class Day:
    """The places of a hospital on one day: approved never exceeds capacity."""

    hospital_id: str
    date: date
    capacity: int
    approved: int


@dataclass(frozen=True, slots=True)
class Request:
    """A customer asks for a place."""

    reservation_id: ReservationId
    customer_id: str
    hospital_id: str
    date: date
    vaccine_code: str


@dataclass(frozen=True, slots=True)
class Appointment:
    """Who comes where, on which day, for which vaccine, and when that was decided."""

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


@dataclass(slots=True)
class Decision:
    """Approval's answer to a request, which is given once and never changes."""

    appointment: Appointment
    denial: Denial | None
    released_at: datetime | None = None

    def is_about(self, request: Request) -> bool:
        """Whether the request is the one that was decided."""
        a = self.appointment
        return (a.customer_id, a.hospital_id, a.date, a.vaccine_code) == (
            request.customer_id, request.hospital_id, request.date, request.vaccine_code)  # fmt: skip

    def holds_a_place(self, now: datetime) -> bool:
        """Whether it was granted, was not released, and its day has not passed."""
        return self.denial is None and self.released_at is None and not self.appointment.has_passed(now)


@dataclass(frozen=True, slots=True)
class Granted:
    """A place was claimed."""

    appointment: Appointment


@dataclass(frozen=True, slots=True)
class Denied:
    """No place could be claimed."""

    appointment: Appointment
    reason: Denial


@dataclass(frozen=True, slots=True)
class Released:
    """A cancelled booking's place is free again."""

    appointment: Appointment
    at: datetime


Event = Granted | Denied | Released


@dataclass
class Ledger:
    """The part of approval's books that some requests are about, held still while they are decided.

    It belongs to one transaction. `events` tells what changed, for the store to write with it.
    """

    hospitals: dict[str, Hospital] = field(default_factory=dict)
    days: dict[tuple[str, date], Day] = field(default_factory=dict)
    decisions: dict[ReservationId, Decision] = field(default_factory=dict)
    active: dict[str, Appointment] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)  # refused requests that are kept, by customer
    events: list[Event] = field(default_factory=list)

    def decide(self, request: Request, now: datetime) -> Decision:
        """Claims a place, or finds why it cannot; a request decided before gets that decision.

        Raises RequestIdReused, UnknownHospital, DatePassed or TooManyRefusals: then nothing is decided.
        """
        if decided := self.decisions.get(request.reservation_id):
            if not decided.is_about(request):
                raise RequestIdReused("used before for another hospital, date or vaccine; use a new one")
            return decided
        hospital = self.hospitals.get(request.hospital_id)
        if hospital is None:
            raise UnknownHospital(f"no hospital {request.hospital_id}")
        if request.date < (today := hospital.today(now)):
            raise DatePassed(f"{request.date} has passed at the hospital, where it is {today}; choose today or later")
        appointment = Appointment(
            request.reservation_id, request.customer_id, hospital.hospital_id, hospital.name, hospital.time_zone,
            request.date, request.vaccine_code, now)  # fmt: skip
        decision = Decision(appointment, self._why_not(appointment))
        if decision.denial is None:
            self.days[hospital.hospital_id, request.date].approved += 1
            self.active[request.customer_id] = appointment
            self.events.append(Granted(appointment))
        else:
            if self.refusals[request.customer_id] >= MOST_REFUSALS:
                raise TooManyRefusals(
                    f"the answer is no, {decision.denial.name}; it is not recorded, since {MOST_REFUSALS} refused "
                    "requests of yours are kept already; choose a day that has places left"
                )
            self.refusals[request.customer_id] += 1
            self.events.append(Denied(appointment, decision.denial))
        self.decisions[request.reservation_id] = decision
        return decision

    def _why_not(self, wanted: Appointment) -> Denial | None:
        active = self.active.get(wanted.customer_id)
        if active is not None and not active.has_passed(wanted.decide_time):
            return Denial.ACTIVE_BOOKING
        day = self.days.get((wanted.hospital_id, wanted.date))
        if day is None or day.capacity == 0:
            return Denial.DAY_NOT_OFFERED
        return Denial.DAY_FULL if day.approved >= day.capacity else None

    def release(self, reservation_id: ReservationId, now: datetime) -> None:
        """Frees the place of a cancelled booking; a repeat changes nothing. Raises UnknownDecision."""
        decision = self.decisions.get(reservation_id)
        if decision is None or decision.denial is not None:
            raise UnknownDecision(f"{reservation_id} was never granted")
        if decision.released_at is not None:
            return
        appointment = decision.appointment
        decision.released_at = now
        self.days[appointment.hospital_id, appointment.date].approved -= 1
        active = self.active.get(appointment.customer_id)
        if active is not None and active.reservation_id == reservation_id:
            del self.active[appointment.customer_id]
        self.events.append(Released(appointment, now))


def check_range(first: date, last: date) -> None:
    """Raises DateRange unless first..last is 1 to 366 days."""
    if last < first:
        raise DateRange(f"{last} is before the first day, {first}")
    if (last - first).days >= 366:
        raise DateRange(f"{first} to {last} is more than 366 days")


def check_capacity(days: Iterable[Day], capacity: int) -> None:
    """Raises CapacityBelowApproved when a day has more approved than the capacity wanted."""
    for day in days:
        if day.approved > capacity:
            raise CapacityBelowApproved(f"{day.date} has {day.approved} approved, more than {capacity}")
