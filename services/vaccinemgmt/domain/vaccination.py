"""Who gets a dose: the dose side of a reservation, from approval to the arm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

from .errors import (
    AlreadyAdministered,
    LotNotValid,
    LotOtherVaccine,
    LotWithdrawn,
    NoDose,
    VaccinationCancelled,
    VaccinationEnded,
    WrongDay,
)
from .lot import BY_ITSELF, Dose, Lot, LotId, ReservationId, canonical_code

LONGEST_GRACE = timedelta(days=10)
"""From the end of a day, for the hospital's staff to say what became of its doses."""
PlaceInQueue = tuple[datetime, ReservationId]
"""First come, first served; the id decides between those who came at the same moment."""


class Status(Enum):
    """Where a vaccination stands; the values are the contract's VaccinationStatus."""

    WAITING = 1
    COMPLETED = 2
    CANCELLED = 3
    ADMINISTERED = 4
    MISSED = 5
    UNSERVED = 6


class DoseChangeReason(Enum):
    """Why there is another dose than before, or none any more; the values are the contract's DoseChangeReason."""

    LOT_RECALLED = 1
    LOT_CORRECTED = 2
    DOSES_WRITTEN_OFF = 3
    MANAGER = 4
    EXCHANGED = 5
    GIVEN_TO_ANOTHER = 6


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
        return is_over(self.date, self.time_zone, now)

    def accepts(self, lot: Lot) -> bool:
        """Whether a dose of the lot would do."""
        return lot.is_valid_on(self.date) and self.accepts_vaccine(lot.vaccine_code)

    def accepts_vaccine(self, vaccine_code: str) -> bool:
        """Whether the vaccine is the one asked for, or none was asked for."""
        return self.vaccine_code == "" or canonical_code(self.vaccine_code) == canonical_code(vaccine_code)


def is_over(day: date, time_zone: str, now: datetime) -> bool:
    """Whether a day is over where that time zone is."""
    return day < _today(time_zone, now)


def latest_day(now: datetime) -> date:
    """The day it is where the day begins first, so that every earlier day may be over, and no other one."""
    return (now + timedelta(hours=14)).date()


def _today(time_zone: str, now: datetime) -> date:
    return now.astimezone(ZoneInfo(time_zone)).date()


@dataclass(frozen=True, slots=True)
class DoseChange:
    """Why a dose is another one than before, or gone, and the words to the customer."""

    reason: DoseChangeReason
    note: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A dose is set aside, or another one than before."""

    appointment: Appointment
    at: datetime
    version: int
    dose: Dose
    change: DoseChange | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """No suitable dose yet, or none any more."""

    appointment: Appointment
    at: datetime
    version: int
    change: DoseChange | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The dose, if there was one, is back in its lot."""

    appointment: Appointment
    at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """The customer is at the counter."""

    appointment: Appointment
    at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Administered:
    """The dose went into the arm."""

    appointment: Appointment
    at: datetime
    version: int
    dose: Dose


@dataclass(frozen=True, slots=True)
class Missed:
    """The customer did not come."""

    appointment: Appointment
    at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Unserved:
    """The day was over while the customer waited for a dose."""

    appointment: Appointment
    at: datetime
    version: int


Event = Completed | Waiting | Cancelled | CheckedIn | Administered | Missed | Unserved


@dataclass(slots=True)
class Vaccination:
    """The dose side of a reservation. `version` grows with every change and orders its events.

    WAITING <-> COMPLETED until it ends: CANCELLED, ADMINISTERED, MISSED or UNSERVED. Who was missed can still be given
    a dose on the same day.
    """

    appointment: Appointment
    status: Status = Status.WAITING
    dose: Dose | None = None
    version: int = 0
    checked_in_at: datetime | None = None
    administered_at: datetime | None = None
    events: list[Event] = field(default_factory=list)
    lost: DoseChange | None = None
    """Why it has no dose any more: until it is given another one, or waits for one, in the same transaction."""

    @property
    def reservation_id(self) -> ReservationId:
        """The reservation's."""
        return self.appointment.reservation_id

    @property
    def quantity(self) -> int:
        """1 with a dose, else 0."""
        return 0 if self.dose is None else 1

    @property
    def place_in_queue(self) -> PlaceInQueue:
        """Where it stands among those who wait, also when it had a dose in between."""
        return self.appointment.decide_time, self.appointment.reservation_id

    def is_active(self, now: datetime, recorded_since: date) -> bool:
        """Whether something may still become of it.

        What became of a dose is recorded since that day. Whoever had a dose for an earlier day may well have been given
        it, so nothing becomes of that by itself. Who was missed may still come on the same day.
        """
        match self.status:
            case Status.WAITING:
                return True
            case Status.COMPLETED:
                return not self.appointment.has_passed(now) or self.appointment.date >= recorded_since
            case Status.MISSED:
                return not self.appointment.has_passed(now)
            case _:
                return False

    def of_nobody(self, pseudonym: str) -> "Vaccination":
        """The same with nobody's name, for the account of its lot's doses. Nobody is told."""
        return replace(self, appointment=replace(self.appointment, customer_id=pseudonym))

    # The dose

    def wait(self, now: datetime) -> None:
        """Joins the waiting list, which customer and managers can see."""
        self._becomes(Status.WAITING)
        self.events.append(Waiting(self.appointment, now, self.version, self.lost))
        self.lost = None

    def complete(self, lot: Lot, now: datetime, change: DoseChange | None = None, by: str = BY_ITSELF) -> None:
        """Sets a dose of the lot aside."""
        self.dose = lot.take(self.reservation_id, now, by)
        self._becomes(Status.COMPLETED)
        self.events.append(Completed(self.appointment, now, self.version, self.dose, change or self.lost))
        self.lost = None

    def lose(self, lot: Lot, change: DoseChange, now: datetime, by: str = BY_ITSELF) -> None:
        """Gives its dose back to the lot. The caller then has it complete with another one, or wait."""
        lot.put_back(self.reservation_id, now, by)
        self.dose, self.status, self.lost = None, Status.WAITING, change

    def refresh(self, lot: Lot, change: DoseChange, now: datetime) -> None:
        """Its dose is as the lot says now."""
        self.dose = lot.dose()
        self._becomes(Status.COMPLETED)
        self.events.append(Completed(self.appointment, now, self.version, self.dose, change))

    def may_move(self, source: Lot, target: Lot, now: datetime) -> bool:
        """Whether its dose is of the one lot and could as well be of the other, while the customer is not there yet."""
        return (
            self.status is Status.COMPLETED
            and self.dose is not None
            and self.dose.lot_id == source.lot_id
            and self.checked_in_at is None
            and not self.appointment.has_passed(now)
            and self.appointment.accepts(target)
        )

    def exchange(self, lot: Lot, present: Lot, now: datetime) -> None:
        """Its dose goes to somebody whom no other one suits, and it gets one of the lot."""
        self.complete(lot, now, DoseChange(DoseChangeReason.EXCHANGED))
        present.put_back(self.reservation_id, now)

    def look_at(self, lot: Lot, change: DoseChange, now: datetime) -> bool:
        """Its dose's lot is withdrawn or has other dates than it had; returns whether it lost its dose.

        A booking whose day is over keeps its dose: it may well be in the arm.
        """
        if self.status is not Status.COMPLETED or self.appointment.has_passed(now):
            return False
        if not lot.is_valid_on(self.appointment.date):
            self.lose(lot, change, now)
            return True
        if self.dose != lot.dose():
            self.refresh(lot, change, now)
        return False

    def cancel(self, now: datetime) -> LotId | None:
        """Cancels it: vaccine type, shelf life and production date are reset, and the quantity is 0.

        Returns the lot that the dose goes back to, if there was one. Where it has ended already nothing changes: a dose
        in an arm does not come back.
        """
        if self.status not in (Status.WAITING, Status.COMPLETED):
            return None
        back = self.dose.lot_id if self.dose else None
        self.dose = None
        self._becomes(Status.CANCELLED)
        self.events.append(Cancelled(self.appointment, now, self.version))
        return back

    def assign(self, lot: Lot, present: Lot | None, now: datetime, by: str) -> None:
        """Gives it a dose of the lot that a manager chose; the dose it had goes back to `present`.

        Raises VaccinationCancelled, VaccinationEnded, AlreadyAdministered, LotWithdrawn, LotNotValid, LotOtherVaccine
        or LotEmpty; then nothing has changed.
        """
        self._must_be_open()
        if self.appointment.has_passed(now):
            raise VaccinationEnded(f"the appointment's day, {self.appointment.date}, is over at the hospital")
        if present is lot:
            return
        self.check_lot(lot)
        self.complete(lot, now, None if present is None else DoseChange(DoseChangeReason.MANAGER), by)
        if present is not None:
            present.put_back(self.reservation_id, now, by)

    def check_lot(self, lot: Lot) -> None:
        """Raises LotWithdrawn, LotNotValid or LotOtherVaccine when a dose of the lot would not do."""
        wanted = self.appointment
        if lot.withdrawn:
            raise LotWithdrawn(lot.lot_number)
        if not lot.is_valid_on(wanted.date):
            raise LotNotValid(
                f"lot {lot.lot_number} is usable from {lot.production_date} to {lot.expiry_date}, not on {wanted.date}"
            )
        if not wanted.accepts(lot):
            raise LotOtherVaccine(
                f"the customer asked for vaccine {wanted.vaccine_code}, lot {lot.lot_number} is {lot.vaccine_code}"
            )

    # The day itself

    def check_in(self, now: datetime) -> None:
        """The customer is at the counter; a repeat changes nothing.

        Raises WrongDay, VaccinationCancelled, VaccinationEnded or AlreadyAdministered.
        """
        if self.checked_in_at is not None:
            return
        self._must_be_open()
        self._must_be_today(now)
        self.checked_in_at = now
        self.version += 1
        self.events.append(CheckedIn(self.appointment, now, self.version))

    def administer(self, scanned: Lot | None, present: Lot | None, now: datetime, by: str) -> None:
        """A dose went into the arm: of the lot that was scanned, or else the one that is set aside in `present`.

        When it is of another lot, the dose that was set aside goes back. A repeat changes nothing. Who was missed can
        come later on the same day.

        Raises VaccinationCancelled, VaccinationEnded, AlreadyAdministered, WrongDay, NoDose, LotWithdrawn, LotNotValid,
        LotOtherVaccine or LotEmpty; then nothing has changed.
        """
        if self.status is Status.ADMINISTERED and self.dose and (not scanned or scanned.lot_id == self.dose.lot_id):
            return
        if self.status is not Status.MISSED:
            self._must_be_open()
        self._must_be_today(now)
        lot = scanned or present
        if lot is None:
            raise NoDose("no dose is set aside; name the lot that was scanned")
        self.check_lot(lot)
        if present is not lot:
            lot.take(self.reservation_id, now, by)
            if present is not None:
                present.put_back(self.reservation_id, now, by)
        lot.give(self.reservation_id, now, by)
        self.dose, self.administered_at = lot.dose(), now
        self.checked_in_at = self.checked_in_at or now
        self._becomes(Status.ADMINISTERED)
        self.events.append(Administered(self.appointment, now, self.version, self.dose))

    def miss(self, now: datetime) -> LotId | None:
        """The customer did not come; a repeat changes nothing. Returns the lot that the dose goes back to.

        Who still waits for a dose when the day is over has missed nothing: that is `expire`. Raises WrongDay,
        VaccinationCancelled, VaccinationEnded or AlreadyAdministered.
        """
        if self.status is Status.MISSED:
            return None
        self._must_be_open()
        if not self.appointment.has_passed(now):
            self._must_be_today(now)
        elif self.status is Status.WAITING:
            self.expire(now)
            return None
        back = self.dose.lot_id if self.dose else None
        self.dose = None
        self._becomes(Status.MISSED)
        self.events.append(Missed(self.appointment, now, self.version))
        return back

    def expire(self, now: datetime) -> None:
        """The day is over, and it still waits: it ends."""
        if self.status is Status.WAITING and self.appointment.has_passed(now):
            self._becomes(Status.UNSERVED)
            self.events.append(Unserved(self.appointment, now, self.version))

    def end(self, now: datetime, grace: timedelta) -> LotId | None:
        """It ends by itself when its day is over, with a dose only when the grace for the hospital's staff is over too.

        Who was checked in was most likely given the dose: the staff has ten days to say so. Returns the lot that the
        dose goes back to. Where it is too early, or has ended already, nothing changes.
        """
        if self.checked_in_at is not None:
            grace = LONGEST_GRACE
        if self.status is Status.COMPLETED and self.appointment.has_passed(now - grace):
            return self.miss(now)
        self.expire(now)
        return None

    def _becomes(self, status: Status) -> None:
        self.status, self.version = status, self.version + 1

    def _must_be_open(self) -> None:
        if self.status is Status.CANCELLED:
            raise VaccinationCancelled("the reservation is cancelled")
        if self.status is Status.ADMINISTERED:
            raise AlreadyAdministered(
                f"the dose was given already, of lot {self.dose.lot_number if self.dose else '?'}"
            )
        if self.status not in (Status.WAITING, Status.COMPLETED):
            raise VaccinationEnded(f"the vaccination has ended ({self.status.name})")

    def _must_be_today(self, now: datetime) -> None:
        today = _today(self.appointment.time_zone, now)
        if self.appointment.date != today:
            raise WrongDay(f"the appointment is on {self.appointment.date}, and at the hospital it is {today}")


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
        lot = next((lot for lot in shelf if lot.free and vaccination.appointment.accepts(lot)), None)
        if lot is not None:
            vaccination.complete(lot, now)
            served.append(vaccination)
    return served
