"""Approval's use cases, and the port to its books."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Protocol
from uuid import UUID
from zoneinfo import available_timezones

from .domain import (
    DEFAULT_TIME_ZONE,
    ApprovalError,
    Day,
    Decision,
    Hospital,
    Ledger,
    Request,
    UnknownHospital,
    UnknownTimeZone,
    check_capacity,
    check_range,
)

Clock = Callable[[], datetime]


class Books(Protocol):
    """Where approval's truth is kept. Every write is one transaction, with its events."""

    async def decide(self, requests: Sequence[Request], rule: Callable[[Ledger], None]) -> None:
        """Holds what the requests are about still, applies the rule, and writes what it changed."""

    async def release(self, reservation_ids: Sequence[UUID], rule: Callable[[Ledger], None]) -> None:
        """The same for bookings to release."""

    async def put_hospital(self, hospital: Hospital) -> bool:
        """Writes the hospital; returns whether that changed anything."""

    async def hospital(self, hospital_id: str) -> Hospital | None:
        """Reads one."""

    async def hospitals(self, after: str, limit: int) -> Sequence[Hospital]:
        """Reads a page, by id."""

    async def set_capacity(
        self, hospital_id: str, first: date, last: date, capacity: int, rule: Callable[[Sequence[Day]], None]
    ) -> int:
        """Holds the days still, applies the rule, and writes the capacity; returns how many days that changed."""

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """Reads the days that have capacity, in one snapshot."""


class Approval:
    """What approval does."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self._books, self._clock = books, clock

    async def decide(self, requests: Sequence[Request]) -> Sequence[Decision | Exception]:
        """Says yes or no to each; in place of a decision, why a request cannot be decided at all."""
        answers: list[Decision | Exception] = []

        def rule(ledger: Ledger) -> None:
            answers.clear()  # the rule runs again when another transaction was in the way
            for request in requests:
                try:
                    answers.append(ledger.decide(request, self._clock()))
                except ApprovalError as refusal:
                    answers.append(refusal)

        await self._books.decide(requests, rule)
        return answers

    async def release(self, reservation_ids: Sequence[UUID]) -> None:
        """Frees the places of cancelled bookings."""

        def rule(ledger: Ledger) -> None:
            for reservation_id in reservation_ids:
                ledger.release(reservation_id, self._clock())

        await self._books.release(reservation_ids, rule)

    async def put_hospital(self, hospital: Hospital) -> tuple[Hospital, bool]:
        """Creates or changes a hospital; returns it as it is now, and whether that changed anything."""
        hospital = replace(hospital, time_zone=hospital.time_zone or DEFAULT_TIME_ZONE)
        if hospital.time_zone not in available_timezones():
            raise UnknownTimeZone(f"no IANA time zone {hospital.time_zone!r}")
        return hospital, await self._books.put_hospital(hospital)

    async def hospitals(self, after: str, limit: int) -> Sequence[Hospital]:
        """A page of hospitals, by id."""
        return await self._books.hospitals(after, limit)

    async def set_capacity(self, hospital_id: str, first: date, last: date, capacity: int) -> int:
        """Sets the places of each day, all days or none; returns how many days that changed."""
        check_range(first, last)
        await self._known(hospital_id)
        return await self._books.set_capacity(
            hospital_id, first, last, capacity, lambda days: check_capacity(days, capacity)
        )

    async def availability(self, hospital_id: str, first: date, last: date) -> tuple[Sequence[Day], datetime]:
        """The days that have capacity, and as of when."""
        check_range(first, last)
        await self._known(hospital_id)
        as_of = self._clock()  # before the look: what is shown is at least as new
        return await self._books.days(hospital_id, first, last), as_of

    async def _known(self, hospital_id: str) -> None:
        if await self._books.hospital(hospital_id) is None:
            raise UnknownHospital(f"no hospital {hospital_id}; see ListHospitals")
