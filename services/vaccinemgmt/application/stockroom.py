"""What the staff does with lots."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime

from services.chassis.unit_of_work import repeated_after_lost_race

from ..domain import (
    Correction,
    Delivery,
    DoseChange,
    DoseChangeReason,
    Lot,
    LotId,
    LotWithdrawn,
    Movement,
    MovementId,
    MovementKind,
    Receipt,
    Request,
    TooFewDoses,
    TooManyBooked,
    UnknownLot,
    Vaccination,
    WriteOffReason,
    asked_to_write_off,
    check_repeat,
    movement_id,
)
from .ports import Clock, Stock, UnitOfWork
from .serving import earliest, give_others

MOST_BOOKED = 500  # bookings that one transaction takes their dose from


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
        Raises ExpiryBeforeProduction, LotConflict or LotWithdrawn.
        """
        now = self._clock()
        async with self._stock.unit_of_work() as work:
            ids = [lot_id for delivery in deliveries for lot_id in Lot.ids_of(hospital_id, delivery)]
            lots = await work.lots(ids)
            done = await work.movements([movement_id(i, d.delivery_id) for i in lots for d in deliveries])
            recalls = await work.recalls_of([Lot.of(hospital_id, delivery) for delivery in deliveries])
            receipt = Receipt(hospital_id, lots, done, await work.arrivals(list(lots)) if lots else [], recalls)
            taken = [i for i, delivery in enumerate(deliveries) if receipt.take(delivery, by, now)]
            await work.save([], receipt.changed)
        self._freed.set()
        return receipt.of, receipt.created, taken

    async def lots(self, hospital_id: str, after: tuple[date, LotId] | None, limit: int) -> Sequence[Lot]:
        """A hospital's lots, first to expire first."""
        return await self._stock.lots_page(hospital_id, after, limit)

    @repeated_after_lost_race
    async def correct(
        self, lot_id: LotId, correction: Correction, request_id: str, by: str, note: str, may: Callable[[str], None]
    ) -> tuple[Lot, int]:
        """What was registered about a lot was wrong: its dates, or how many doses came.

        Returns the lot, and how many bookings still have to be looked at because of its dates. Raises UnknownLot,
        ExpiryBeforeProduction, RequestIdReused, LotWithdrawn, TooFewDoses or TooManyBooked. `may` raises unless the
        caller may act for the hospital.
        """
        request = Request(movement_id(lot_id, request_id), by, note, self._clock())
        async with self._stock.unit_of_work() as work:
            lot = await _known(work, lot_id, may, request.at)
            done = (await work.movements([request.movement_id])).get(request.movement_id)
            if done is None:
                if lot.withdrawn:
                    raise LotWithdrawn(lot.lot_number)
                change = DoseChange(DoseChangeReason.LOT_CORRECTED)
                losers = await _make_free(work, lot, -correction.more_than(lot), change, request)
                lot.correct(correction, request)
                await give_others(work, lot, losers, request.at)
            else:
                check_repeat(done, MovementKind.CORRECTED, correction.asked(note))
        self._freed.set()
        to_go = await self._stock.bookings_to_go([lot], earliest(self._clock())) if lot.to_look_at else 0
        return lot, to_go

    @repeated_after_lost_race
    async def write_off(
        self,
        lot_id: LotId,
        quantity: int,
        reason: WriteOffReason,
        request_id: str,
        by: str,
        note: str,
        may: Callable[[str], None],
    ) -> Lot:
        """Doses of a lot may not be given any more. Raises UnknownLot, RequestIdReused, TooFewDoses or TooManyBooked.

        Free ones go first, then those of the bookings that came last. `may` raises unless the caller may act for the
        hospital.
        """
        request = Request(movement_id(lot_id, request_id), by, note, self._clock())
        async with self._stock.unit_of_work() as work:
            lot = await _known(work, lot_id, may, request.at)
            done = (await work.movements([request.movement_id])).get(request.movement_id)
            if done is None:
                change = DoseChange(DoseChangeReason.DOSES_WRITTEN_OFF)
                losers = await _make_free(work, lot, quantity, change, request)
                lot.write_off(quantity, reason, request)
                await give_others(work, lot, losers, request.at)
            else:
                check_repeat(done, MovementKind.WRITTEN_OFF, asked_to_write_off(quantity, reason, note))
        self._freed.set()
        return lot

    async def movements(
        self,
        lot_id: LotId,
        after: tuple[datetime, MovementId] | None,
        limit: int,
        may: Callable[[str], None],
    ) -> Sequence[Movement]:
        """A lot's ledger, oldest entry first. Raises UnknownLot."""
        lot = await self._stock.lot(lot_id)
        if lot is None:
            raise UnknownLot("no such lot")
        may(lot.hospital_id)
        return await self._stock.movements_page(lot_id, after, limit)


async def _known(work: UnitOfWork, lot_id: LotId, may: Callable[[str], None], now: datetime) -> Lot:
    lot = await work.claim(lot_id, earliest(now))
    if lot is None:
        raise UnknownLot("no such lot")
    may(lot.hospital_id)
    return lot


async def _make_free(
    work: UnitOfWork, lot: Lot, quantity: int, change: DoseChange, request: Request
) -> list[Vaccination]:
    """Has so many doses of the lot free: the bookings that came last lose theirs. Returns them."""
    missing = quantity - lot.free
    if missing <= 0 or lot.withdrawn:
        return []
    too_few = f"lot {lot.lot_number} has {{}} doses that were not given or written off{{}}, fewer than {quantity}"
    if quantity > lot.remaining:
        raise TooFewDoses(too_few.format(lot.remaining, ""))
    if missing > MOST_BOOKED:
        raise TooManyBooked(
            f"{missing} booked doses would have to go, more than {MOST_BOOKED} at once; "
            "do it in parts, or recall the lot"
        )
    now = request.at
    # Some of yesterday's may be over, by the hospital's own time zone, and are not counted.
    found = await work.came_last(lot, earliest(now), 2 * MOST_BOOKED)
    losers = [v for v in found if not v.appointment.has_passed(now)][:missing]
    if len(losers) < missing:
        raise TooFewDoses(too_few.format(lot.free + len(losers), " and whose customer is not there yet"))
    for vaccination in losers:
        vaccination.lose(lot, change, now, request.by)
    return losers
