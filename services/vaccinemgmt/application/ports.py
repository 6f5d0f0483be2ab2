"""The port to vaccine management's store."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime
from typing import NamedTuple, Protocol

from ..domain import (
    Appointment,
    Lot,
    LotId,
    Movement,
    MovementId,
    PlaceInQueue,
    Recall,
    ReservationId,
    Status,
    Vaccination,
)

Clock = Callable[[], datetime]
Record = Callable[[str, str, str, str, str], Awaitable[None]]
"""Keeps that somebody of the staff read personal data: who, role, hospital, call, and what was asked for."""


class Supply(NamedTuple):
    """A hospital's lots with a free dose, and whether anybody waits for one there."""

    free: Sequence[Lot]
    awaited: bool


class UnitOfWork(Protocol):
    """What one transaction sees and changes."""

    async def vaccinations(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Vaccination]:
        """Those that are there."""

    async def vaccinations_of(self, customer_id: str) -> Sequence[Vaccination]:
        """The customer's."""

    async def forget(self, vaccinations: Sequence[Vaccination]) -> None:
        """Deletes them."""

    async def waiting(
        self,
        hospital_id: str,
        lots: Sequence[Lot],
        since: date,
        behind: PlaceInQueue | None,
        limit: int,
    ) -> Sequence[Vaccination]:
        """Those who wait for an appointment on `since` or later, and would do with a dose of one of the lots; first
        come first, behind a place in the queue."""

    async def movable(
        self, source: Lot, target: Lot, since: date, but: Sequence[ReservationId], limit: int
    ) -> Sequence[Vaccination]:
        """Bookings on `since` or later with a dose of one lot that would do with the other one as well. Those that are
        checked in, and those named by `but`, are left out."""

    async def bookings_to_look_at(
        self, lot: Lot, since: date, behind: PlaceInQueue | None, limit: int
    ) -> Sequence[Vaccination]:
        """Bookings on `since` or later whose dose is of the lot, and which cannot use it, or which have it with other
        dates than the lot's; first come first, behind a place in the queue."""

    async def came_last(self, lot: Lot, since: date, limit: int) -> Sequence[Vaccination]:
        """Bookings on `since` or later with a dose of the lot, the one that came last first. Those that are checked in
        are left out."""

    async def free_lots(self, hospital_id: str) -> Sequence[Lot]:
        """Lots with a free dose, expired ones too."""

    async def admission(
        self, appointments: Sequence[Appointment], since: date
    ) -> tuple[dict[ReservationId, Vaccination], dict[str, Supply]]:
        """What an admission has to know: the vaccinations of these appointments that are there, and the supply of each
        of their hospitals, also if all are there; see supplies."""

    async def supplies(self, hospital_ids: Collection[str], since: date) -> dict[str, Supply]:
        """The supply of each of these hospitals, with the lots that do not expire before `since`."""

    async def full_lots(self, hospital_id: str, since: date) -> Sequence[Lot]:
        """Lots whose doses are all set aside, given or written off, and that do not expire before `since`."""

    async def recalls_of(self, lots: Sequence[Lot]) -> Sequence[Recall]:
        """The recalls that may be about one of the lots; see Recall.is_about."""

    async def add_recall(self, recall: Recall) -> None:
        """Keeps a recall."""

    async def recall(self, recall_id: str) -> Recall | None:
        """Reads one."""

    async def last_booked(self, lot: Lot, since: date, until: date) -> Vaccination | None:
        """The booking that came last of those with a dose of the lot, with an appointment on `since` or later and
        before `until`. Those that are checked in are left out."""

    async def lots(self, ids: Sequence[LotId]) -> dict[LotId, Lot]:
        """Those that are there."""

    async def claim(self, lot_id: LotId, since: date) -> Lot | None:
        """Has the lot, and its hospital's lots with a free dose that do not expire before `since`, to itself: whoever
        else changes one of them has to begin again. A long transaction claims first; it would lose against short ones.
        Returns the lot, if there is one.
        """

    async def movements(self, ids: Sequence[MovementId]) -> dict[MovementId, Movement]:
        """Entries of ledgers, those that are there."""

    async def arrivals(self, ids: Sequence[LotId]) -> Sequence[Movement]:
        """The lots' entries that brought doses: RECEIVED and OPENED."""

    async def save(self, vaccinations: Sequence[Vaccination], lots: Sequence[Lot]) -> None:
        """Writes what is new or changed, the lots' new movements, and the events."""


class Stock(Protocol):
    """Where lots and vaccinations are kept."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One transaction: committed with its events when the block ends, undone when it raises."""

    async def vaccination(self, reservation_id: ReservationId) -> Vaccination | None:
        """Reads one."""

    async def lots_page(self, hospital_id: str, after: tuple[date, LotId] | None, limit: int) -> Sequence[Lot]:
        """Reads a hospital's lots, first to expire first, behind a position."""

    async def waiting_page(self, hospital_id: str, after: PlaceInQueue | None, limit: int) -> Sequence[Vaccination]:
        """Reads a hospital's waiting list, first come first, behind a position."""

    async def hospitals_to_serve(self, since: date) -> Sequence[str]:
        """Hospitals where somebody with an appointment on `since` or later waits while a dose is free."""

    async def lot(self, lot_id: LotId) -> Lot | None:
        """Reads one."""

    async def movements_page(
        self, lot_id: LotId, after: tuple[datetime, MovementId] | None, limit: int
    ) -> Sequence[Movement]:
        """Reads a lot's ledger, oldest entry first, behind a position."""

    async def bookings_to_go(self, lots: Sequence[Lot], since: date) -> int:
        """How many bookings on `since` or later have a dose of the lots that they cannot use, or that has other dates
        than the lot has."""

    async def bookings_to_look_at(self, lot: Lot, since: date) -> Sequence[ReservationId]:
        """Which ones these are, first come first."""

    async def lots_to_look_at(self) -> Sequence[LotId]:
        """Lots with `to_look_at`, and withdrawn lots with free doses."""

    async def lots_to_open(self, limit: int) -> Sequence[LotId]:
        """Lots that no version with ledgers has written yet."""

    async def withdrawn_with_bookings(self, since: date) -> Sequence[LotId]:
        """Withdrawn lots on which somebody has a booking on `since` or later."""

    async def recall(self, recall_id: str) -> Recall | None:
        """Reads one."""

    async def recalls_since(self, at: datetime) -> Sequence[Recall]:
        """Recalls that began at that time or later."""

    async def recalled_lots(self, recall: Recall) -> Sequence[Lot]:
        """Every lot that the recall is about."""

    async def vaccinated_page(
        self, lots: Sequence[Lot], after: tuple[str, datetime, ReservationId] | None, limit: int
    ) -> Sequence[Vaccination]:
        """Who was given a dose of the lots, by hospital, then by time, behind a position."""

    async def day_page(
        self, hospital_id: str, day: date, after: tuple[Status, ReservationId] | None, limit: int
    ) -> Sequence[Vaccination]:
        """Reads a hospital's day, by status and reservation id, behind a position."""

    async def bookings(self, hospital_id: str, customer_id: str, limit: int) -> Sequence[Vaccination]:
        """Reads a customer's vaccinations at a hospital, latest day first."""

    async def recorded_since(self) -> date:
        """The first day of which it is known what became of each dose."""

    async def days(self, status: Status, since: date, until: date) -> Sequence[date]:
        """Days from `since` on, before `until`, for which there are vaccinations in the status, earliest first."""

    async def time_zones(self, status: Status, day: date) -> Sequence[str]:
        """The time zones of the hospitals that have vaccinations in the status on that day."""

    async def of_day(
        self, status: Status, day: date, time_zones: Sequence[str], limit: int, *, checked_in: bool
    ) -> Sequence[ReservationId]:
        """Some of the day's vaccinations in the status and these time zones. Those that are checked in are left out
        unless `checked_in`."""
