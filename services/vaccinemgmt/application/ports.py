"""The port to vaccine management's store."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime
from typing import Protocol

from ..domain import Lot, LotId, Movement, MovementId, PlaceInQueue, ReservationId, Vaccination

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
