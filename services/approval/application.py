"""Approval's use cases, and the port to its books."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import date, datetime
from typing import Protocol
from zoneinfo import available_timezones

from services.chassis.unit_of_work import repeated_after_lost_race

from .domain import (
    DEFAULT_TIME_ZONE,
    ApprovalError,
    Day,
    Decision,
    Hospital,
    Ledger,
    Request,
    ReservationId,
    UnknownHospital,
    UnknownTimeZone,
    check_capacity,
    check_range,
)

Clock = Callable[[], datetime]


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

    async def put_hospital(self, hospital: Hospital) -> bool:
        """Writes the hospital; returns whether that changed anything."""

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """Every day from first to last, also without places; nobody else changes them until the end."""

    async def set_capacity(self, days: Sequence[Day], capacity: int) -> None:
        """Writes the places of each day."""


class Books(Protocol):
    """Where approval's truth is kept."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One transaction: committed with its events when the block ends, undone when it raises."""

    async def hospital(self, hospital_id: str) -> Hospital | None:
        """Reads one."""

    async def hospitals(self, after: str, limit: int) -> Sequence[Hospital]:
        """Reads a page, by id."""

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """Reads the days that have capacity, in one snapshot."""


class Approval:
    """What approval does."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self._books, self._clock = books, clock

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
        """Frees the places of cancelled bookings."""
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
        """Creates or changes a hospital; returns it as it is now, and whether that changed anything."""
        hospital = replace(hospital, time_zone=hospital.time_zone or DEFAULT_TIME_ZONE)
        if hospital.time_zone not in available_timezones():
            raise UnknownTimeZone(f"no IANA time zone {hospital.time_zone!r}")
        async with self._books.unit_of_work() as work:
            changed = await work.put_hospital(hospital)
        return hospital, changed

    async def hospitals(self, after: str, limit: int) -> Sequence[Hospital]:
        """A page of hospitals, by id."""
        return await self._books.hospitals(after, limit)

    @repeated_after_lost_race
    async def set_capacity(self, hospital_id: str, first: date, last: date, capacity: int) -> int:
        """Sets the places of each day, all days or none; returns how many days that changed."""
        check_range(first, last)
        await self._known(hospital_id)
        async with self._books.unit_of_work() as work:
            days = await work.days(hospital_id, first, last)
            check_capacity(days, capacity)
            await work.set_capacity(days, capacity)
        return sum(day.capacity != capacity for day in days)

    async def availability(self, hospital_id: str, first: date, last: date) -> tuple[Sequence[Day], datetime]:
        """The days that have capacity, and as of when."""
        check_range(first, last)
        await self._known(hospital_id)
        as_of = self._clock()  # taken before the days are read, so that what is shown is at least as new
        return await self._books.days(hospital_id, first, last), as_of

    async def _known(self, hospital_id: str) -> None:
        if await self._books.hospital(hospital_id) is None:
            raise UnknownHospital(f"no hospital {hospital_id}")
