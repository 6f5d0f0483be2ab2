"""Vaccine management's use cases, and the port to its store."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime, timedelta
from typing import Protocol

from services.chassis.unit_of_work import repeated_after_lost_race

from .domain import (
    Appointment,
    Delivery,
    Lot,
    LotConflict,
    LotId,
    PlaceInQueue,
    ReservationId,
    UnknownLot,
    UnknownVaccination,
    Vaccination,
    give_out,
)

Clock = Callable[[], datetime]
# Doses given out in one transaction: it holds the hospital's lots for as long as it takes.
GIVE_OUT = 500


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

    async def save(self, vaccinations: Sequence[Vaccination], lots: Sequence[Lot]) -> None:
        """Writes what is new or changed, and the events."""


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


class Vaccines:
    """What vaccine management does."""

    def __init__(self, stock: Stock, clock: Clock) -> None:
        self._stock, self._clock = stock, clock
        self._freed = asyncio.Event()

    @repeated_after_lost_race
    async def admit(self, appointments: Sequence[Appointment]) -> None:
        """Approval granted these. Each gets a dose if one suits, and otherwise joins the waiting list.

        A vaccination that is there already stays as it is.
        """
        async with self._stock.unit_of_work() as work:
            known = await work.vaccinations([a.reservation_id for a in appointments])
            new = {a.reservation_id: Vaccination(a) for a in appointments if a.reservation_id not in known}
            changed: dict[ReservationId, Vaccination] = {}
            touched: list[Lot] = []
            for hospital_id in sorted({v.appointment.hospital_id for v in new.values()}):
                newcomers = [v for v in new.values() if v.appointment.hospital_id == hospital_id]
                served, lots = await self._serve(work, hospital_id, newcomers)
                changed |= {v.appointment.reservation_id: v for v in served}
                touched += lots
            for vaccination in new.values():
                if vaccination.dose is None:
                    vaccination.wait(self._clock())
            await work.save(list((changed | new).values()), touched)

    @repeated_after_lost_race
    async def cancel(self, appointments: Sequence[Appointment]) -> None:
        """The customers cancelled these, and their doses go back.

        A cancellation that arrives before the approval leaves a cancelled vaccination, which the approval then finds.
        """
        async with self._stock.unit_of_work() as work:
            known = await work.vaccinations([a.reservation_id for a in appointments])
            given_up = {a.reservation_id: known.get(a.reservation_id) or Vaccination(a) for a in appointments}
            lots = await work.lots(list({v.dose.lot_id for v in given_up.values() if v.dose}))
            for vaccination in given_up.values():
                if back := vaccination.cancel(self._clock()):
                    lots[back].put_back()
            await work.save([v for v in given_up.values() if v.events], list(lots.values()))
        self._freed.set()

    @repeated_after_lost_race
    async def register(self, hospital_id: str, deliveries: Sequence[Delivery]) -> tuple[Sequence[Lot], int]:
        """Takes deliveries into stock, all or none; returns the lots as they are, and how many are new."""
        arrived = [Lot.of(hospital_id, delivery) for delivery in deliveries]
        async with self._stock.unit_of_work() as work:
            lots = await work.lots([lot.lot_id for lot in arrived])
            new: dict[LotId, Lot] = {}
            for delivery, lot in zip(deliveries, arrived, strict=True):
                present = lots.setdefault(lot.lot_id, lot)
                if present is lot:
                    new[lot.lot_id] = lot
                elif not present.is_same_delivery(lot):
                    raise LotConflict(delivery)
            await work.save([], list(new.values()))
        self._freed.set()
        return [lots[lot.lot_id] for lot in arrived], len(new)

    @repeated_after_lost_race
    async def assign(self, reservation_id: ReservationId, lot_id: LotId, may: Callable[[str], None]) -> Vaccination:
        """The manager chooses the lot. `may` raises unless the caller may act for the hospital."""
        async with self._stock.unit_of_work() as work:
            vaccination = (await work.vaccinations([reservation_id])).get(reservation_id)
            if vaccination is None:
                raise UnknownVaccination(f"vaccine management does not know {reservation_id}")
            hospital_id = vaccination.appointment.hospital_id
            may(hospital_id)
            present = vaccination.dose.lot_id if vaccination.dose else lot_id
            lots = await work.lots(list({lot_id, present}))
            if lot_id not in lots or lots[lot_id].hospital_id != hospital_id:
                raise UnknownLot(f"no such lot at hospital {hospital_id}")
            vaccination.assign(lots[lot_id], lots[present] if vaccination.dose else None, self._clock())
            if vaccination.events:
                await work.save([vaccination], list(lots.values()))
        self._freed.set()  # of the lot it had before
        return vaccination

    @repeated_after_lost_race
    async def erase(self, customer_id: str) -> int | None:
        """Deletes a customer's vaccinations; returns how many, or None while something may still become of one.

        A lot's used doses are those that vaccinations hold, so that one with a dose stays, under a name made by chance.
        """
        async with self._stock.unit_of_work() as work:
            vaccinations = await work.vaccinations_of(customer_id)
            if any(vaccination.is_active(self._clock()) for vaccination in vaccinations):
                return None
            await work.forget([v for v in vaccinations if v.dose is None])
            await work.save([v.of_nobody(f"erased-{uuid.uuid4()}") for v in vaccinations if v.dose], [])
        return len(vaccinations)

    async def vaccination(self, reservation_id: ReservationId, may: Callable[[str], None]) -> Vaccination:
        """The dose side of a reservation. `may` raises unless the caller may act for the hospital."""
        vaccination = await self._stock.vaccination(reservation_id)
        if vaccination is None:
            raise UnknownVaccination(f"vaccine management does not know {reservation_id}")
        may(vaccination.appointment.hospital_id)
        return vaccination

    async def lots(self, hospital_id: str, after: tuple[date, LotId] | None, limit: int) -> Sequence[Lot]:
        """A hospital's lots, first to expire first."""
        return await self._stock.lots_page(hospital_id, after, limit)

    async def waiting(self, hospital_id: str, after: PlaceInQueue | None, limit: int) -> Sequence[Vaccination]:
        """A hospital's waiting list, first come first."""
        return await self._stock.waiting_page(hospital_id, after, limit)

    async def serve_waiting(self) -> int:
        """Gives free doses to those who wait, everywhere; returns how many got one."""
        total = 0
        for hospital_id in await self._stock.hospitals_to_serve(_earliest(self._clock())):
            while served := await self._serve_some_waiting(hospital_id):
                total += served
        return total

    @repeated_after_lost_race
    async def _serve_some_waiting(self, hospital_id: str) -> int:
        async with self._stock.unit_of_work() as work:
            served, lots = await self._serve(work, hospital_id, [])
            if served:
                await work.save(served, lots)
        return len(served)

    async def freed(self) -> None:
        """Waits until doses may have become free in this process."""
        await self._freed.wait()
        self._freed.clear()

    async def _serve(
        self, work: UnitOfWork, hospital_id: str, newcomers: Sequence[Vaccination]
    ) -> tuple[list[Vaccination], Sequence[Lot]]:
        """Gives free doses to those who wait and to newcomers, first come first served.

        Returns who got a dose, and the lots that the doses came from.
        """
        lots = await work.free_lots(hospital_id)
        if not lots:
            return [], []
        now = self._clock()
        waiting: list[Vaccination] = []
        behind: PlaceInQueue | None = None
        while len(waiting) < GIVE_OUT:
            page = await work.waiting(hospital_id, lots, _earliest(now), behind, GIVE_OUT)
            waiting += [v for v in page if not v.appointment.has_passed(now)]
            if len(page) < GIVE_OUT:
                break
            behind = page[-1].place_in_queue
        else:  # more may wait behind these, and nobody may overtake them
            newcomers = [v for v in newcomers if v.place_in_queue < page[-1].place_in_queue]
        before = {lot.lot_id: lot.free for lot in lots}
        served = give_out([*waiting, *newcomers], lots, now)
        return served, [lot for lot in lots if lot.free != before[lot.lot_id]]


def _earliest(now: datetime) -> date:
    """A day on which it is today somewhere on earth, or the day before. Appointments of earlier days have passed
    everywhere; about the others the domain decides, by each hospital's own time zone."""
    return (now - timedelta(days=1)).date()
