"""The port to vaccine management's store."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime
from typing import Protocol

from ..domain import Lot, LotId, Movement, MovementId, PlaceInQueue, ReservationId, Status, Vaccination

Clock = Callable[[], datetime]


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
        """The first to have come of those whom one of the lots suits, with an appointment on `since` or later."""

    async def last_booked(self, lot: Lot, since: date, until: date) -> Vaccination | None:
        """Who came last of those for whom a dose of the lot is set aside and who are not at the counter yet, with an
        appointment on `since` or later and before `until`."""

    async def free_lots(self, hospital_id: str) -> Sequence[Lot]:
        """Lots with a free dose."""

    async def lots(self, ids: Sequence[LotId]) -> dict[LotId, Lot]:
        """Those that are there."""

    async def movements(self, ids: Sequence[MovementId]) -> dict[MovementId, Movement]:
        """Entries of ledgers, those that are there."""

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
        """Where the hospitals of these vaccinations are."""

    async def of_day(self, status: Status, day: date, time_zones: Sequence[str], limit: int) -> Sequence[ReservationId]:
        """Some of these vaccinations."""
