"""Reservation's use cases, and its ports."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from .domain import (
    Appointment,
    ApprovalBusy,
    RejectionReason,
    Request,
    RequestIdReused,
    Reservation,
    UnknownReservation,
)

Clock = Callable[[], datetime]


class Approval(Protocol):
    """Says yes or no at once."""

    async def decide(self, request: Request) -> tuple[Appointment, RejectionReason | None]:
        """The decision, the same one for every repeat.

        Raises ApprovalBusy, RequestIdReused, UnknownHospital or DatePassed.
        """


class Reservations(Protocol):
    """Where reservations are kept. Every write is one transaction, with its events."""

    async def add(self, reservations: Sequence[Reservation]) -> None:
        """Stores those that are not there yet; those that are stay as they are."""

    async def change(self, ids: Sequence[UUID], rule: Callable[[Reservation], None]) -> Sequence[Reservation]:
        """Holds those that are there still, applies the rule to each, writes what it changed, and returns them."""

    async def get(self, reservation_id: UUID) -> Reservation | None:
        """Reads one."""

    async def page(self, customer_id: str, after: tuple[datetime, UUID] | None, limit: int) -> Sequence[Reservation]:
        """Reads a customer's, newest decision first, behind a position."""


class ReservationDesk:
    """What reservation does for customers."""

    def __init__(self, reservations: Reservations, approval: Approval, clock: Clock) -> None:
        self._reservations, self._approval, self._clock = reservations, approval, clock

    async def create(self, request: Request) -> Reservation:
        """Asks approval and stores its answer; the reservation as it was decided.

        If this process dies between the two, approval's event makes the same reservation. The answer to a repeat comes
        from approval as well, and from here only when approval cannot answer: one look less for everybody else.
        """
        try:
            appointment, rejection = await self._approval.decide(request)
        except ApprovalBusy:
            known = await self._reservations.get(request.reservation_id)
            if known is None:
                raise
            if not known.is_about(request):
                raise RequestIdReused("used before for another hospital, date or vaccine; use a new one") from None
            return Reservation.decided(known.appointment, known.rejection)
        reservation = Reservation.decided(appointment, rejection)
        await self._reservations.add([reservation])
        return reservation

    async def cancel(self, customer_id: str, reservation_id: UUID) -> Reservation:
        """Asks vaccine management, which may be down, to take the dose back."""
        await self.get(customer_id, reservation_id)
        now = self._clock()
        [reservation] = await self._reservations.change([reservation_id], lambda r: r.request_cancellation(now))
        return reservation

    async def get(self, customer_id: str, reservation_id: UUID) -> Reservation:
        """The customer's own; raises UnknownReservation for everybody else's too."""
        reservation = await self._reservations.get(reservation_id)
        if reservation is None or reservation.appointment.customer_id != customer_id:
            raise UnknownReservation(f"you have no reservation {reservation_id}")
        return reservation

    async def page(self, customer_id: str, after: tuple[datetime, UUID] | None, limit: int) -> Sequence[Reservation]:
        """The customer's own, newest decision first."""
        return await self._reservations.page(customer_id, after, limit)


class Followup:
    """What reservation does when others report. Every event brings its appointment, so order does not matter."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations

    async def decided(self, decisions: Sequence[tuple[Appointment, RejectionReason | None]]) -> None:
        """Approval decided: if the process that asked has died, this makes the reservation in its place."""
        await self._reservations.add([Reservation.decided(a, rejection) for a, rejection in decisions])

    async def completed(self, appointments: Sequence[Appointment]) -> None:
        """Vaccine management set doses aside."""
        await self._change(appointments, Reservation.complete)

    async def cancelled(self, appointments: Sequence[Appointment]) -> None:
        """Vaccine management took doses back."""
        await self._change(appointments, Reservation.cancel)

    async def _change(self, appointments: Sequence[Appointment], rule: Callable[[Reservation], None]) -> None:
        ids = {a.reservation_id: a for a in appointments}
        for reservation in await self._reservations.change(list(ids), rule):
            del ids[reservation.appointment.reservation_id]
        if ids:  # faster than the answer that stores it: a dose is set aside only for what was granted
            await self._reservations.add([Reservation.decided(a, None) for a in ids.values()])
            await self._reservations.change(list(ids), rule)
