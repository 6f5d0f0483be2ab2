"""Reservation's use cases, and its ports."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from services.chassis.unit_of_work import repeated_after_lost_race

from .domain import (
    Appointment,
    ApprovalBusy,
    NothingToMove,
    RejectionReason,
    Request,
    RequestIdReused,
    Reservation,
    ReservationId,
    Status,
    UnknownReservation,
)

Clock = Callable[[], datetime]
Position = tuple[datetime, ReservationId]
"""A reservation's place in its customer's list: when it was decided, and its id."""


class Approval(Protocol):
    """Says yes or no at once."""

    async def decide(self, request: Request) -> tuple[Appointment, RejectionReason | None]:
        """The decision, the same one for every repeat.

        Raises ApprovalBusy, RequestIdReused, UnknownHospital, DatePassed or TooManyRefusals.
        """

    async def move(self, request: Request, instead_of: ReservationId) -> tuple[Appointment, RejectionReason | None]:
        """The decision about a place instead of the one that a reservation holds, which is free again after a yes.

        Raises what `decide` raises, and NothingToMove.
        """


class UnitOfWork(Protocol):
    """What one transaction sees and changes."""

    async def add(self, reservations: Sequence[Reservation]) -> None:
        """Writes those that are not there yet, with their events; those that are there stay as they are.

        Approval decides a refused request anew when the refusal's retention is over. It may do so before the refusal is
        deleted here: what was decided later replaces what is there.
        """

    async def held(self, ids: Sequence[ReservationId]) -> Sequence[Reservation]:
        """Those that are there; nobody else changes them until the end."""

    async def held_of(self, customer_id: str) -> Sequence[Reservation]:
        """The customer's; nobody else changes them until the end."""

    async def forget(self, reservations: Sequence[Reservation]) -> None:
        """Deletes them."""

    async def save(self, reservations: Sequence[Reservation]) -> None:
        """Writes those that have changed since they were held, with their events."""


class Reservations(Protocol):
    """Where reservations are kept."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One transaction: committed with its events when the block ends, undone when it raises."""

    async def record(self, reservation: Reservation) -> None:
        """Adds one as UnitOfWork.add does, in one transaction with others that come at the same time."""

    async def get(self, reservation_id: ReservationId) -> Reservation | None:
        """Reads one."""

    async def page(self, customer_id: str, after: Position | None, limit: int) -> Sequence[Reservation]:
        """Reads a customer's, newest decision first, behind a position."""


class ReservationDesk:
    """What reservation does for customers."""

    def __init__(self, reservations: Reservations, approval: Approval, clock: Clock) -> None:
        self._reservations, self._approval, self._clock = reservations, approval, clock

    async def create(self, request: Request) -> Reservation:
        """Asks approval and stores its answer; returns the reservation as it was decided.

        If this process dies between the two, approval's event makes the same reservation. A repeat is answered by
        approval too, and from this store only when approval cannot answer: that saves every first request a read.
        """
        try:
            appointment, rejection = await self._approval.decide(request)
        except ApprovalBusy as busy:
            return await self._recorded(request, busy)
        reservation = Reservation.decided(appointment, rejection)
        await self._reservations.record(reservation)
        return reservation

    async def move(self, request: Request, instead_of: ReservationId) -> Reservation:
        """Asks approval for a place instead of the one that a reservation of the customer's holds.

        Returns the new reservation as it was decided; when it is APPROVED, the old one is MOVED. As with `create`,
        approval's events do the same if this process dies in between, and a repeat gets the recorded answer. Raises
        UnknownReservation, NothingToMove, and what approval raises.
        """
        old = _own(request.customer_id, instead_of, await self._reservations.get(instead_of))
        try:
            # It may have been moved by this very request. Of everything else approval may not have heard yet.
            if old.status is not Status.MOVED:
                old.check_holds_a_place(self._clock())
            appointment, rejection = await self._approval.move(request, instead_of)
        except (ApprovalBusy, NothingToMove) as refusal:
            return await self._recorded(request, refusal)
        reservation = Reservation.decided(appointment, rejection)
        await self._moved(reservation, instead_of)
        return reservation

    @repeated_after_lost_race
    async def _moved(self, new: Reservation, instead_of: ReservationId) -> None:
        async with self._reservations.unit_of_work() as work:
            held = await work.held([instead_of])
            await work.add([new])
            if new.status is Status.APPROVED:
                for old in held:
                    old.end(Status.MOVED)
                await work.save(held)

    async def _recorded(self, request: Request, otherwise: Exception) -> Reservation:
        """The recorded answer; raises `otherwise` when there is none."""
        known = await self._reservations.get(request.reservation_id)
        if known is None:
            raise otherwise
        if not known.is_about(request):
            raise RequestIdReused("used before for another hospital, date or vaccine; use a new one") from None
        return Reservation.decided(known.appointment, known.rejection)

    @repeated_after_lost_race
    async def cancel(self, customer_id: str, reservation_id: ReservationId) -> Reservation:
        """Asks vaccine management, which may be down, to take the dose back."""
        async with self._reservations.unit_of_work() as work:
            held = await work.held([reservation_id])
            reservation = _own(customer_id, reservation_id, held[0] if held else None)
            reservation.request_cancellation(self._clock())
            await work.save([reservation])
        return reservation

    @repeated_after_lost_race
    async def erase(self, customer_id: str) -> int | None:
        """Deletes a customer's reservations; returns how many, or None while something may still become of one."""
        async with self._reservations.unit_of_work() as work:
            reservations = await work.held_of(customer_id)
            if any(reservation.is_active(self._clock()) for reservation in reservations):
                return None
            await work.forget(reservations)
        return len(reservations)

    async def get(self, customer_id: str, reservation_id: ReservationId) -> Reservation:
        """The customer's own; raises UnknownReservation for everybody else's too."""
        return _own(customer_id, reservation_id, await self._reservations.get(reservation_id))

    async def page(self, customer_id: str, after: Position | None, limit: int) -> Sequence[Reservation]:
        """The customer's own, newest decision first."""
        return await self._reservations.page(customer_id, after, limit)


def _own(customer_id: str, reservation_id: ReservationId, found: Reservation | None) -> Reservation:
    if found is None or found.appointment.customer_id != customer_id:
        raise UnknownReservation(f"you have no reservation {reservation_id}")
    return found


class Followup:
    """What reservation does when it hears from others. Every event brings its appointment, so order does not matter."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations

    @repeated_after_lost_race
    async def decided(self, decisions: Sequence[tuple[Appointment, RejectionReason | None]]) -> None:
        """Approval decided. If the process that asked it has died, this makes the reservation instead."""
        async with self._reservations.unit_of_work() as work:
            await work.add([Reservation.decided(a, rejection) for a, rejection in decisions])

    @repeated_after_lost_race
    async def heard_of_doses(self, news: Sequence[tuple[Appointment, int, bool]]) -> None:
        """Vaccine management set doses aside, or has none: (appointment, version, whether there is a dose)."""
        async with self._reservations.unit_of_work() as work:
            reservations = await _granted(work, [a for a, _, _ in news])
            by_id = {r.appointment.reservation_id: r for r in reservations}
            for a, version, has_dose in news:
                by_id[a.reservation_id].hear_of_dose(version, has_dose=has_dose)
            await work.save(reservations)

    @repeated_after_lost_race
    async def ended(self, ends: Sequence[tuple[Appointment, Status]]) -> None:
        """Approval took places back, or vaccine management has nothing left to do."""
        async with self._reservations.unit_of_work() as work:
            reservations = await _granted(work, [a for a, _ in ends])
            by_id = {r.appointment.reservation_id: r for r in reservations}
            for a, how in ends:
                by_id[a.reservation_id].end(how)
            await work.save(reservations)


async def _granted(work: UnitOfWork, appointments: Sequence[Appointment]) -> Sequence[Reservation]:
    """Holds the reservations. A dose is set aside only for what was granted, so one that is missing was granted, and
    the event was faster than the answer that stores it."""
    by_id = {a.reservation_id: a for a in appointments}
    held = await work.held(list(by_id))
    missing = by_id.keys() - {r.appointment.reservation_id for r in held}
    if not missing:
        return held
    await work.add([Reservation.decided(by_id[reservation_id], None) for reservation_id in missing])
    return await work.held(list(by_id))
