"""Who gets a dose, who gives it back, and who waits."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence

from services.chassis.unit_of_work import repeated_after_lost_race

from ..domain import (
    Appointment,
    Lot,
    LotId,
    PlaceInQueue,
    ReservationId,
    UnknownLot,
    UnknownVaccination,
    Vaccination,
)
from .ports import Clock, Stock
from .serving import earliest, serve


class Vaccines:
    """Doses and reservations. `freed` is set whenever doses may have become free."""

    def __init__(self, stock: Stock, clock: Clock, freed: asyncio.Event) -> None:
        self._stock, self._clock, self._freed = stock, clock, freed
        self._freed_at: set[str] = set()

    @repeated_after_lost_race
    async def admit(self, appointments: Sequence[Appointment]) -> None:
        """Approval granted these. Each gets a dose if one suits, and otherwise joins the waiting list.

        A vaccination that is there already stays as it is.
        """
        async with self._stock.unit_of_work() as work:
            known, supplies = await work.admission(appointments, earliest(self._clock()))
            new = {a.reservation_id: Vaccination(a) for a in appointments if a.reservation_id not in known}
            changed: dict[ReservationId, Vaccination] = {}
            touched: list[Lot] = []
            newcomers = defaultdict[str, list[Vaccination]](list)
            for vaccination in new.values():
                newcomers[vaccination.appointment.hospital_id].append(vaccination)
            for hospital_id, coming in sorted(newcomers.items()):
                supply = supplies[hospital_id]
                served, lots = await serve(work, hospital_id, coming, self._clock(), supply=supply)
                changed |= {v.appointment.reservation_id: v for v in served}
                touched += lots
            for vaccination in new.values():
                if vaccination.dose is None:
                    vaccination.wait(self._clock())
            await work.save(list((changed | new).values()), touched)

    @repeated_after_lost_race
    async def cancel(self, appointments: Sequence[Appointment]) -> None:
        """The customers cancelled these, or approval revoked them, and their doses go back.

        A cancellation that arrives before the approval leaves a cancelled vaccination, which the approval then finds.
        """
        async with self._stock.unit_of_work() as work:
            known = await work.vaccinations([a.reservation_id for a in appointments])
            given_up = {a.reservation_id: known.get(a.reservation_id) or Vaccination(a) for a in appointments}
            lots = await work.lots(list({v.dose.lot_id for v in given_up.values() if v.dose}))
            now = self._clock()
            for vaccination in given_up.values():
                if back := vaccination.cancel(now):
                    lots[back].put_back(vaccination.reservation_id, now)
            await work.save([v for v in given_up.values() if v.events], [lot for lot in lots.values() if lot.movements])
        self._freed_at |= {lot.hospital_id for lot in lots.values()}
        self._freed.set()

    @repeated_after_lost_race
    async def assign(
        self, reservation_id: ReservationId, lot_id: LotId, by: str, may: Callable[[str], None]
    ) -> Vaccination:
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
            vaccination.assign(lots[lot_id], lots[present] if vaccination.dose else None, self._clock(), by)
            if vaccination.events:
                await work.save([vaccination], list(lots.values()))
        self._freed_at.add(hospital_id)
        self._freed.set()  # of the lot it had before
        return vaccination

    @repeated_after_lost_race
    async def erase(self, customer_id: str) -> int | None:
        """Deletes a customer's vaccinations; returns how many, or None while something may still become of one.

        A lot's used doses are those that vaccinations hold, so that one with a dose stays, under a name made by chance.
        """
        recorded_since = await self._stock.recorded_since()
        async with self._stock.unit_of_work() as work:
            vaccinations = await work.vaccinations_of(customer_id)
            if any(vaccination.is_active(self._clock(), recorded_since) for vaccination in vaccinations):
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

    async def waiting(self, hospital_id: str, after: PlaceInQueue | None, limit: int) -> Sequence[Vaccination]:
        """A hospital's waiting list, first come first."""
        return await self._stock.waiting_page(hospital_id, after, limit)

    async def serve_waiting(self, *, thoroughly: bool = False) -> int:
        """Gives free doses to those who wait, everywhere; returns how many got one or another one.

        Exchanges for those who wait are tried where a cancellation freed a dose, and everywhere when it is to be done
        `thoroughly`.
        """
        total = 0
        freed_at, self._freed_at = self._freed_at, set()
        for hospital_id in await self._stock.hospitals_to_serve(earliest(self._clock())):
            while served := await self._serve_some_waiting(hospital_id, thoroughly or hospital_id in freed_at):
                total += served
        return total

    @repeated_after_lost_race
    async def _serve_some_waiting(self, hospital_id: str, thoroughly: bool) -> int:
        async with self._stock.unit_of_work() as work:
            served, lots = await serve(work, hospital_id, [], self._clock(), thoroughly=thoroughly)
            if served:
                await work.save(served, lots)
        return len(served)

    async def freed(self) -> None:
        """Waits until doses may have become free in this process."""
        await self._freed.wait()
        self._freed.clear()
