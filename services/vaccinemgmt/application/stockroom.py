"""What the staff does with lots."""

import asyncio
from collections.abc import Sequence
from datetime import date

from services.chassis.unit_of_work import repeated_after_lost_race

from ..domain import Delivery, Lot, LotConflict, LotId, Request, movement_id
from .ports import Clock, Stock


class Stockroom:
    """Lots and their ledgers. `freed` is set whenever doses may have become free."""

    def __init__(self, stock: Stock, clock: Clock, freed: asyncio.Event) -> None:
        self._stock, self._clock, self._freed = stock, clock, freed

    @repeated_after_lost_race
    async def register(
        self, hospital_id: str, deliveries: Sequence[Delivery], by: str
    ) -> tuple[Sequence[Lot], int, Sequence[int]]:
        """Takes deliveries into stock, all or none.

        Returns the lots as they are, how many of them are new, and which deliveries, by their index, were taken now.
        """
        now = self._clock()
        arrived = [Lot.of(hospital_id, delivery) for delivery in deliveries]
        async with self._stock.unit_of_work() as work:
            lots = await work.lots([lot.lot_id for lot in arrived])
            new: dict[LotId, Lot] = {}
            taken: list[int] = []
            for i, (delivery, lot) in enumerate(zip(deliveries, arrived, strict=True)):
                present = lots.setdefault(lot.lot_id, lot)
                if present is lot:
                    new[lot.lot_id] = lot
                    present.receive(delivery, Request(movement_id(lot.lot_id, delivery.delivery_id), by, "", now))
                    taken.append(i)
                elif (present.production_date, present.expiry_date, present.balance.received) != (
                    delivery.production_date,
                    delivery.expiry_date,
                    delivery.quantity,
                ):
                    raise LotConflict(
                        delivery, f"lot {lot.lot_number} is registered with another quantity or other dates"
                    )
            await work.save([], list(new.values()))
        self._freed.set()
        return [lots[lot.lot_id] for lot in arrived], len(new), taken

    async def lots(self, hospital_id: str, after: tuple[date, LotId] | None, limit: int) -> Sequence[Lot]:
        """A hospital's lots, first to expire first."""
        return await self._stock.lots_page(hospital_id, after, limit)
