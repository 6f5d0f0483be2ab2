"""The hospital's counter on the day itself, and what is over when the day is."""

import asyncio
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta

from services.chassis.unit_of_work import StoreUnavailable, repeated_after_lost_race

from ..domain import (
    LONGEST_GRACE,
    DoseChange,
    DoseChangeReason,
    Lot,
    LotId,
    ReservationId,
    Status,
    UnknownLot,
    UnknownVaccination,
    Vaccination,
    give_out,
    is_over,
    latest_day,
)
from .ports import Clock, Stock, UnitOfWork

# Vaccinations that end in one transaction: it holds their lots for as long as it takes.
END = 500
# A customer's bookings that are found at once.
FOUND = 50

May = Callable[[str], None]
"""Raises unless the caller may act for the hospital."""


class Counter:
    """Who arrives, who is given which dose, and who did not come. `freed` is set when doses may have become free.

    `grace` is how long after the end of the day the staff can still say what became of it.
    """

    def __init__(self, stock: Stock, clock: Clock, freed: asyncio.Event, grace: timedelta) -> None:
        self._stock, self._clock, self._freed, self._grace = stock, clock, freed, grace

    @repeated_after_lost_race
    async def check_in(self, reservation_id: ReservationId, may: May) -> Vaccination:
        """The customer is here."""
        async with self._stock.unit_of_work() as work:
            vaccination = await _known(work, reservation_id, may)
            vaccination.check_in(self._clock())
            if vaccination.events:
                await work.save([vaccination], [])
        return vaccination

    @repeated_after_lost_race
    async def administer(self, reservation_id: ReservationId, scanned: LotId | None, by: str, may: May) -> Vaccination:
        """A dose was given: of the lot that was scanned, or the one that is set aside.

        When all doses of the scanned lot are set aside for others, one of them loses its dose; see _give_way.
        """
        async with self._stock.unit_of_work() as work:
            vaccination = await _known(work, reservation_id, may)
            hospital_id = vaccination.appointment.hospital_id
            set_aside = vaccination.dose.lot_id if vaccination.dose else None
            lots = await work.lots([lot_id for lot_id in {scanned, set_aside} if lot_id])
            if scanned and (scanned not in lots or lots[scanned].hospital_id != hospital_id):
                raise UnknownLot(f"no such lot at hospital {hospital_id}")
            now = self._clock()
            lot, present = (lots[lot_id] if lot_id else None for lot_id in (scanned, set_aside))
            other = None
            if lot and lot is not present and not lot.free and not lot.withdrawn:
                other = await self._give_way(work, lot, vaccination.appointment.date, now, by)
            vaccination.administer(lot, present, now, by)
            if other and other.lost:
                shelf = {lot.lot_id: lot for lot in await work.free_lots(hospital_id)} | lots
                lots |= shelf
                if not give_out([other], list(shelf.values()), now):
                    other.wait(now)
            changed = [v for v in (vaccination, other) if v and v.events]
            await work.save(changed, [lot for lot in lots.values() if lot.movements])
        self._freed.set()  # of the lot that was set aside
        return vaccination

    async def _give_way(self, work: UnitOfWork, lot: Lot, today: date, now: datetime, by: str) -> Vaccination | None:
        """Takes one dose of the lot from somebody else: the dose is at the counter, whoever it was meant for.

        Those whose day is over do not come any more. Of the others it is the one who came last.
        """
        missed = await work.last_booked(lot, await self._stock.recorded_since(), today)
        if missed:
            missed.miss(now)
            lot.put_back(missed.reservation_id, now, by)
            return missed
        last = await work.last_booked(lot, today, date.max)
        if last:
            last.lose(lot, DoseChange(DoseChangeReason.GIVEN_TO_ANOTHER), now, by)
        return last

    @repeated_after_lost_race
    async def mark_missed(self, reservation_id: ReservationId, by: str, may: May) -> Vaccination:
        """The customer did not come, and the dose goes back."""
        async with self._stock.unit_of_work() as work:
            vaccination = await _known(work, reservation_id, may)
            now = self._clock()
            if back := vaccination.miss(now):
                [lot] = (await work.lots([back])).values()
                lot.put_back(reservation_id, now, by)
                await work.save([vaccination], [lot])
            elif vaccination.events:
                await work.save([vaccination], [])
        self._freed.set()
        return vaccination

    async def day(
        self, hospital_id: str, day: date, after: tuple[Status, ReservationId] | None, limit: int
    ) -> Sequence[Vaccination]:
        """Who has a booking on a day, by status and reservation id."""
        return await self._stock.day_page(hospital_id, day, after, limit)

    async def bookings(self, hospital_id: str, customer_id: str) -> Sequence[Vaccination]:
        """A customer's bookings at the hospital, latest day first, at most FOUND."""
        return await self._stock.bookings(hospital_id, customer_id, FOUND)

    async def end_days(self) -> Tally[Status]:
        """Ends what is over everywhere, the oldest day first; returns how many ended how.

        Who waits is unserved as soon as the day is over. Who has a dose has missed it when the grace is over as well,
        which is longer for those who were checked in; but not on days of which nothing was recorded. When there is
        trouble with one day, the others are done first.
        """
        ended, trouble = Tally[Status](), list[Exception]()
        now, recorded_since = self._clock(), await self._stock.recorded_since()
        for status, since, moment, checked_in in (
            (Status.WAITING, date.min, now, True),
            (Status.COMPLETED, recorded_since, now - self._grace, False),
            (Status.COMPLETED, recorded_since, now - LONGEST_GRACE, True),
        ):
            for day in await self._stock.days(status, since, latest_day(moment)):
                try:
                    ended += await self._end_day(status, day, moment, checked_in)
                except StoreUnavailable:
                    raise
                except Exception as error:
                    trouble.append(error)
        if trouble:
            raise ExceptionGroup("some days that are over could not be ended", trouble)
        return ended

    async def _end_day(self, status: Status, day: date, moment: datetime, checked_in: bool) -> Tally[Status]:
        ended: Tally[Status] = Tally()
        zones = await self._stock.time_zones(status, day)
        if over := [zone for zone in zones if is_over(day, zone, moment)]:
            while some := await self._end_some(status, day, over, checked_in):
                ended += some
        return ended

    @repeated_after_lost_race
    async def _end_some(self, status: Status, day: date, time_zones: Sequence[str], checked_in: bool) -> Tally[Status]:
        ids = await self._stock.of_day(status, day, time_zones, END, checked_in=checked_in)
        if not ids:
            return Tally()
        async with self._stock.unit_of_work() as work:
            found = (await work.vaccinations(ids)).values()
            lots = await work.lots(list({v.dose.lot_id for v in found if v.dose}))
            now = self._clock()
            for vaccination in found:
                if back := vaccination.end(now, self._grace):
                    lots[back].put_back(vaccination.reservation_id, now)
            ended = [v for v in found if v.events]
            await work.save(ended, [lot for lot in lots.values() if lot.movements])
        self._freed.set()
        return Tally(v.status for v in ended)


async def _known(work: UnitOfWork, reservation_id: ReservationId, may: May) -> Vaccination:
    vaccination = (await work.vaccinations([reservation_id])).get(reservation_id)
    if vaccination is None:
        raise UnknownVaccination(f"vaccine management does not know {reservation_id}")
    may(vaccination.appointment.hospital_id)
    return vaccination
