"""Approval's use cases, and the port to its books."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import date, datetime
from typing import Protocol

from services.chassis.unit_of_work import StoreUnavailable, repeated_after_lost_race

from .domain import (
    DEFAULT_TIME_ZONE,
    ApprovalError,
    Day,
    Decision,
    Hospital,
    Ledger,
    Location,
    Request,
    ReservationId,
    UnknownHospital,
    UnknownTimeZone,
    canonical_code,
    check_open,
    check_range,
    time_zones,
)

Clock = Callable[[], datetime]
REVOKED_AT_ONCE = 500
"""Bookings that end in one transaction when a day is called off: others wait for the day meanwhile, some 0.1 s."""


class UnitOfWork(Protocol):
    """What one transaction sees and changes."""

    async def ledger(self, requests: Sequence[Request]) -> Ledger:
        """What the books say about the requests; nobody else changes it until the end."""

    async def ledger_of_decided(self, reservation_ids: Sequence[ReservationId]) -> Ledger:
        """The same about bookings that were decided."""

    async def save(self, ledger: Ledger) -> None:
        """Writes what the ledger's events tell of, and the events."""

    async def decisions_of(self, customer_id: str) -> Sequence[Decision]:
        """All that was decided for the customer; it stays so until the end."""

    async def forget(self, decisions: Sequence[Decision]) -> None:
        """Deletes them, and the bookings that hold a place by them."""

    async def put_hospital(self, hospital: Hospital) -> tuple[Hospital, bool]:
        """Writes the hospital, without a location all but that; returns it as it is now, and whether it changed."""

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """Every day from first to last, also without places; nobody else changes them until the end."""

    async def set_capacity(self, days: Sequence[Day], capacity: int) -> None:
        """Writes the places of each day."""

    async def call_off(self, day: Day) -> None:
        """Writes that the day is called off; its bookings are to be revoked."""

    async def reopen(self, day: Day) -> None:
        """Writes that the day is offered again; nothing more is to be revoked."""

    async def held_bookings(self, day: Day, limit: int) -> Sequence[ReservationId]:
        """So many of the day's bookings that hold a place."""

    async def all_revoked(self, day: Day) -> None:
        """Writes that none of the day's bookings is to be revoked any more."""

    async def add_delivered(self, codes: Sequence[tuple[str, str]]) -> None:
        """Remembers (hospital, vaccine code); what is there stays."""


class Books(Protocol):
    """Where approval's truth is kept."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One transaction: committed with its events when the block ends, undone when it raises."""

    async def hospital(self, hospital_id: str) -> Hospital | None:
        """Reads one."""

    async def hospitals(self, after: str, limit: int, query: str) -> Sequence[Hospital]:
        """Reads a page, by id, of those whose name or id has every word of the query."""

    async def hospitals_near(
        self, near: Location, after: tuple[int, str], limit: int, query: str
    ) -> Sequence[tuple[int, Hospital]]:
        """Reads a page of the same, by distance and id, each with its distance in metres; without a location last."""

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """Reads the days that have capacity or bookings or are called off, in one snapshot."""

    async def days_to_revoke(self) -> Sequence[tuple[str, date]]:
        """The days that were called off and have bookings that are still to end: (hospital, day)."""


class Approval:
    """What approval does."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self._books, self._clock = books, clock
        self._called_off = asyncio.Event()

    @repeated_after_lost_race
    async def decide(self, requests: Sequence[Request]) -> Sequence[Decision | Exception]:
        """Says yes or no to each request, or, in place of a decision, why it cannot be decided at all."""
        answers: list[Decision | Exception] = []
        async with self._books.unit_of_work() as work:
            ledger = await work.ledger(requests)
            for request in requests:
                try:
                    answers.append(ledger.decide(request, self._clock()))
                except ApprovalError as refusal:
                    answers.append(refusal)
            await work.save(ledger)
        return answers

    @repeated_after_lost_race
    async def release(self, reservation_ids: Sequence[ReservationId]) -> None:
        """Frees the places of bookings that were cancelled or missed, or whose day was over while they waited."""
        async with self._books.unit_of_work() as work:
            ledger = await work.ledger_of_decided(reservation_ids)
            for reservation_id in reservation_ids:
                ledger.release(reservation_id, self._clock())
            await work.save(ledger)

    @repeated_after_lost_race
    async def erase(self, customer_id: str) -> int | None:
        """Deletes a customer's decisions; returns how many, or None while one of them still holds a place."""
        async with self._books.unit_of_work() as work:
            decisions = await work.decisions_of(customer_id)
            if any(decision.holds_a_place(self._clock()) for decision in decisions):
                return None
            await work.forget(decisions)
        return len(decisions)

    async def put_hospital(self, hospital: Hospital) -> tuple[Hospital, bool]:
        """Creates or changes a hospital; returns it as it is now, and whether that changed anything.

        Without a location it keeps the one that it has.
        """
        codes = tuple(sorted({canonical_code(code) for code in hospital.vaccine_codes}, key=int))
        hospital = replace(hospital, time_zone=hospital.time_zone or DEFAULT_TIME_ZONE, vaccine_codes=codes)
        if hospital.time_zone not in time_zones():
            raise UnknownTimeZone(f"no IANA time zone {hospital.time_zone!r}")
        async with self._books.unit_of_work() as work:
            return await work.put_hospital(hospital)

    async def hospitals(self, after: str, limit: int, query: str = "") -> Sequence[Hospital]:
        """A page of the hospitals that a query finds, by id."""
        return await self._books.hospitals(after, limit, query)

    async def hospitals_near(
        self, near: Location, after: tuple[int, str], limit: int, query: str = ""
    ) -> Sequence[tuple[int, Hospital]]:
        """A page of them, the nearest first, each with its distance in metres."""
        return await self._books.hospitals_near(near, after, limit, query)

    async def delivered(self, codes: Sequence[tuple[str, str]]) -> None:
        """Doses of these (hospital, vaccine code) came: the vaccines are offered there from now on."""
        async with self._books.unit_of_work() as work:
            await work.add_delivered(sorted({(hospital_id, canonical_code(code)) for hospital_id, code in codes}))

    @repeated_after_lost_race
    async def set_capacity(self, hospital_id: str, first: date, last: date, capacity: int) -> tuple[int, Sequence[Day]]:
        """Sets the places of each day, all days or none.

        Returns how many days that changed, and those that have more bookings than places now: nobody new is approved
        there until enough of them are given up. Raises DateRange, UnknownHospital or DayIsCalledOff.
        """
        check_range(first, last)
        await self._known(hospital_id)
        async with self._books.unit_of_work() as work:
            days = await work.days(hospital_id, first, last)
            check_open(days)
            changed = [day for day in days if day.capacity != capacity]
            await work.set_capacity(days, capacity)
        for day in changed:
            day.capacity = capacity
        return len(changed), [day for day in days if day.over]

    @repeated_after_lost_race
    async def call_off(self, hospital_id: str, on: date, note: str) -> Day:
        """Calls a day off: nobody is approved for it from now on, and `revoke` ends its bookings.

        Returns the day; `approved` are the bookings that have not ended yet. A repeat changes nothing. Raises
        UnknownHospital or NothingToCallOff.
        """
        hospital = await self._known(hospital_id)
        async with self._books.unit_of_work() as work:
            [day] = await work.days(hospital_id, on, on)
            day.call_off(note, hospital, self._clock())
            await work.call_off(day)
        self._called_off.set()
        return day

    @repeated_after_lost_race
    async def reopen(self, hospital_id: str, on: date) -> Day:
        """Offers a day again; bookings that have ended stay so. A repeat changes nothing. Raises UnknownHospital."""
        await self._known(hospital_id)
        async with self._books.unit_of_work() as work:
            [day] = await work.days(hospital_id, on, on)
            if day.called_off:
                day.called_off = ""
                await work.reopen(day)
        return day

    async def called_off(self) -> None:
        """Waits until a day is called off in this process."""
        await self._called_off.wait()
        self._called_off.clear()

    async def revoke(self) -> int:
        """Ends the bookings of the days that are called off; returns how many.

        It can be interrupted at any instant: what is left stays written down in the store, and any replica goes on with
        it. Replicas that do the same day at once wait for each other, and none ends a booking twice. When there is
        trouble with one day, the others are done first.
        """
        revoked, trouble = 0, list[Exception]()
        for hospital_id, on in await self._books.days_to_revoke():
            try:
                while batch := await self._revoke_some(hospital_id, on):
                    revoked += batch
            except StoreUnavailable:
                raise
            except Exception as error:
                trouble.append(error)
        if trouble:
            raise ExceptionGroup("the bookings of some days could not be ended", trouble)
        return revoked

    @repeated_after_lost_race
    async def _revoke_some(self, hospital_id: str, on: date) -> int:
        async with self._books.unit_of_work() as work:
            [day] = await work.days(hospital_id, on, on)
            ids = await work.held_bookings(day, REVOKED_AT_ONCE) if day.called_off else []
            if ids:
                ledger = await work.ledger_of_decided(ids)
                for reservation_id in ids:
                    ledger.call_off(reservation_id, day.called_off, self._clock())
                await work.save(ledger)
            if len(ids) < REVOKED_AT_ONCE:
                await work.all_revoked(day)
        return len(ids)

    async def availability(self, hospital_id: str, first: date, last: date) -> tuple[Sequence[Day], datetime]:
        """The days that have capacity or bookings or are called off, and as of when."""
        check_range(first, last)
        await self._known(hospital_id)
        as_of = self._clock()  # taken before the days are read, so that what is shown is at least as new
        return await self._books.days(hospital_id, first, last), as_of

    async def _known(self, hospital_id: str) -> Hospital:
        hospital = await self._books.hospital(hospital_id)
        if hospital is None:
            raise UnknownHospital(f"no hospital {hospital_id}")
        return hospital
