"""The rules of approval, as the specification tells them. No framework, no store, no clock of its own."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import IntEnum
from functools import cache
from typing import NewType
from zoneinfo import ZoneInfo, available_timezones

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
    |- NothingToMove
    |- UnknownTimeZone
    |- DateRange
    |- DayIsCalledOff
    |- NothingToCallOff
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


class NothingToMove(ApprovalError):
    """The booking that a place is wanted instead of holds none: it is not the customer's, or it is over."""


class UnknownTimeZone(ApprovalError):
    """There is no such IANA time zone."""


class DateRange(ApprovalError):
    """The range of days is empty or too long."""


class DayIsCalledOff(ApprovalError):
    """A day that is called off is given other places."""


class NothingToCallOff(ApprovalError):
    """The day to be called off has passed at the hospital."""


class UnknownDecision(ApprovalError):
    """A booking is to be released that was never granted here."""


class Denial(IntEnum):
    """Why the answer is no; the values are the contract's DenialReason.

    A newer version may have recorded a reason that has no name here. A repeat of that request gets it all the same.
    """

    DAY_FULL = 1
    DAY_NOT_OFFERED = 2
    ACTIVE_BOOKING = 3
    DAY_CALLED_OFF = 4
    VACCINE_NOT_OFFERED = 5

    @classmethod
    def _missing_(cls, value: object) -> "Denial | None":
        if not isinstance(value, int) or value < 1:
            return None
        unnamed = int.__new__(cls, value)
        unnamed._name_, unnamed._value_ = f"UNNAMED_{value}", value
        return unnamed


class Revocation(IntEnum):
    """Why a granted place was taken back; the values are the contract's RevocationReason."""

    DAY_CALLED_OFF = 1
    MOVED = 2


@cache  # reading the names takes some 600 files
def time_zones() -> frozenset[str]:
    """The IANA names that this machine knows.

    The tz database also has `Factory`, which means that nobody has set a zone, and a machine may have `localtime`, its
    own zone, which is another one on the next machine.
    """
    return frozenset(available_timezones() - {"Factory", "localtime"})


def canonical_code(vaccine_code: str) -> str:
    """A CVX code as it is stored: 08 and 8 are one. Empty, for any vaccine, stays empty."""
    return vaccine_code.lstrip("0") or ("0" if vaccine_code else "")


@dataclass(frozen=True, slots=True)
class Location:
    """A point on the earth, in degrees: north of the equator, and east of Greenwich."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Hospital:
    """A place that vaccinates; its days are calendar days in its own time zone.

    `vaccine_codes` are the vaccines that it says it offers, `delivered_codes` those that ever came to it; both are
    canonical. `location` is None where nobody has told it, or it was not read.
    """

    hospital_id: str
    name: str
    time_zone: str
    vaccine_codes: Sequence[str] = ()
    delivered_codes: Sequence[str] = ()
    location: Location | None = None

    def today(self, now: datetime) -> date:
        """The day it is at the hospital."""
        return now.astimezone(ZoneInfo(self.time_zone)).date()

    def offers(self, vaccine_code: str) -> bool:
        """Whether somebody may ask for the vaccine there.

        The hospital's own list decides. Without a list it is what was ever delivered, and before the first delivery
        nobody knows, so that anything may be asked for.
        """
        offered = self.vaccine_codes or self.delivered_codes
        return not vaccine_code or not offered or vaccine_code in offered


@dataclass(slots=True)
class Day:
    """The places of a hospital on one day.

    No request makes `approved` more than `capacity`. It is more only when the hospital has fewer places than it had.
    """

    hospital_id: str
    date: date
    capacity: int
    approved: int
    called_off: str = ""
    """The hospital's words why it called the day off; empty when it did not."""

    @property
    def left(self) -> int:
        """Places that can still be had."""
        return 0 if self.called_off else max(0, self.capacity - self.approved)

    @property
    def over(self) -> int:
        """Bookings too many for the capacity."""
        return max(0, self.approved - self.capacity)

    def call_off(self, note: str, hospital: Hospital, now: datetime) -> None:
        """Nobody is approved for it any more; of two notes the later one counts. Raises NothingToCallOff."""
        if self.date < (today := hospital.today(now)):
            raise NothingToCallOff(
                f"{self.date} has passed at the hospital, where it is {today}: there is nothing to call off"
            )
        self.called_off = note


@dataclass(frozen=True, slots=True)
class Request:
    """A customer asks for a place; a move asks for it instead of the one that the reservation `replaces` holds."""

    reservation_id: ReservationId
    customer_id: str
    hospital_id: str
    date: date
    vaccine_code: str
    replaces: ReservationId | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vaccine_code", canonical_code(self.vaccine_code))


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
    replaces: ReservationId | None = None

    def is_about(self, request: Request) -> bool:
        """Whether the request is the one that was decided."""
        a = self.appointment
        # Versions up to 0.3 stored the code as it was asked for.
        return (a.customer_id, a.hospital_id, a.date, canonical_code(a.vaccine_code), self.replaces) == (
            request.customer_id, request.hospital_id, request.date, request.vaccine_code, request.replaces)  # fmt: skip

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
    """The place of a booking that ended otherwise is free again."""

    appointment: Appointment
    at: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """A granted place was taken back, and is free: the booking is over.

    `note` are the hospital's words, and `replaced_by` is the reservation that holds the new place after a move.
    """

    appointment: Appointment
    at: datetime
    reason: Revocation
    note: str = ""
    replaced_by: ReservationId | None = None


Event = Granted | Denied | Released | Revoked


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

        A move that is granted frees the old place at once; one that is denied leaves the old booking as it was. Raises
        RequestIdReused, UnknownHospital, DatePassed, NothingToMove or TooManyRefusals: then nothing is decided.
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
        old = self._to_be_moved(request, now)
        appointment = Appointment(
            request.reservation_id, request.customer_id, hospital.hospital_id, hospital.name, hospital.time_zone,
            request.date, request.vaccine_code, now)  # fmt: skip
        decision = Decision(appointment, self._why_not(appointment, old), replaces=request.replaces)
        if decision.denial is None:
            self.days[hospital.hospital_id, request.date].approved += 1
            self.events.append(Granted(appointment))
            if old is not None:
                self._free(old, now)
                self.events.append(Revoked(old.appointment, now, Revocation.MOVED, replaced_by=request.reservation_id))
            self.active[request.customer_id] = appointment
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

    def _to_be_moved(self, request: Request, now: datetime) -> Decision | None:
        if request.replaces is None:
            return None
        old = self.decisions.get(request.replaces)
        if old is None or old.appointment.customer_id != request.customer_id or not old.holds_a_place(now):
            raise NothingToMove(f"reservation {request.replaces} holds no place any more: there is nothing to move")
        return old

    def _why_not(self, wanted: Appointment, old: Decision | None) -> Denial | None:
        """`old` is the booking that gives way if the answer is yes: its place counts as free."""
        active = self.active.get(wanted.customer_id)
        gives_way = active is not None and old is not None and active.reservation_id == old.appointment.reservation_id
        if active is not None and not gives_way and not active.has_passed(wanted.decide_time):
            return Denial.ACTIVE_BOOKING
        if not self.hospitals[wanted.hospital_id].offers(wanted.vaccine_code):
            return Denial.VACCINE_NOT_OFFERED
        day = self.days.get((wanted.hospital_id, wanted.date))
        if day is not None and day.called_off:
            return Denial.DAY_CALLED_OFF
        if day is None or day.capacity == 0:
            return Denial.DAY_NOT_OFFERED
        same_day = old is not None and (old.appointment.hospital_id, old.appointment.date) == (
            day.hospital_id,
            day.date,
        )
        return Denial.DAY_FULL if day.approved - same_day >= day.capacity else None

    def release(self, reservation_id: ReservationId, now: datetime) -> None:
        """Frees the place of a booking that has ended; a repeat changes nothing. Raises UnknownDecision."""
        decision = self._granted(reservation_id)
        if decision.released_at is None:
            self._free(decision, now)
            self.events.append(Released(decision.appointment, now))

    def call_off(self, reservation_id: ReservationId, note: str, now: datetime) -> None:
        """Takes the place of a booking back, since the hospital called its day off; a repeat changes nothing.

        Raises UnknownDecision.
        """
        decision = self._granted(reservation_id)
        if decision.released_at is None:
            self._free(decision, now)
            self.events.append(Revoked(decision.appointment, now, Revocation.DAY_CALLED_OFF, note))

    def _granted(self, reservation_id: ReservationId) -> Decision:
        decision = self.decisions.get(reservation_id)
        if decision is None or decision.denial is not None:
            raise UnknownDecision(f"{reservation_id} was never granted")
        return decision

    def _free(self, decision: Decision, now: datetime) -> None:
        appointment = decision.appointment
        decision.released_at = now
        self.days[appointment.hospital_id, appointment.date].approved -= 1
        active = self.active.get(appointment.customer_id)
        if active is not None and active.reservation_id == appointment.reservation_id:
            del self.active[appointment.customer_id]


def check_range(first: date, last: date) -> None:
    """Raises DateRange unless first..last is 1 to 366 days."""
    if last < first:
        raise DateRange(f"{last} is before the first day, {first}")
    if (last - first).days >= 366:
        raise DateRange(f"{first} to {last} is more than 366 days")


def check_open(days: Iterable[Day]) -> None:
    """Raises DayIsCalledOff when one of the days is called off."""
    for day in days:
        if day.called_off:
            raise DayIsCalledOff(f"{day.date} is called off; reopen it first")
