"""Vaccine management's events as the contract writes them, and the events it follows."""

from dataclasses import asdict
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.events import Event as Received
from services.chassis.events import NotUnderstood, Outgoing, Subscription
from services.chassis.retention import Term
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.reservation.v1 import reservation_events_pb2
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccination_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as pb

from ..application import Vaccines
from ..domain import (
    Administered,
    Appointment,
    Cancelled,
    CheckedIn,
    Completed,
    Event,
    Lot,
    Missed,
    Movement,
    MovementKind,
    UnknownStatus,
    Unserved,
    Waiting,
)

MESSAGES: dict[type[Event], type[Message]] = {
    Completed: pb.ReservationCompleted,
    Waiting: pb.ReservationWaiting,
    Cancelled: pb.CancellationCompleted,
    CheckedIn: pb.VaccinationCheckedIn,
    Administered: pb.VaccinationAdministered,
    Missed: pb.VaccinationMissed,
    Unserved: pb.VaccinationUnserved,
}
TOLD = {MovementKind.RECEIVED, MovementKind.CORRECTED, MovementKind.WRITTEN_OFF, MovementKind.OPENED}


def outgoing(event: Event) -> Outgoing:
    """An event on its way to the stream."""
    appointment = to_message(event.appointment, appointment_pb2.Appointment)
    about: dict[str, Any] = {"appointment": appointment, "version": event.version}
    if isinstance(event, Completed | Waiting) and event.change is not None:
        about |= {"dose_change_reason": event.change.reason.value, "note": event.change.note}
    if isinstance(event, Completed | Administered):
        about |= {"dose": to_message(event.dose, vaccination_pb2.Dose), "quantity": 1}
    return Outgoing.of(appointment.reservation_id, event.at, MESSAGES[type(event)](**about), quoted=("appointment",))


def stock_moved(lot: Lot, movement: Movement) -> Outgoing | None:
    """The event of a movement; None for what the reservations' events tell."""
    if movement.kind not in TOLD:
        return None
    written_off = movement.quantity if movement.kind is MovementKind.WRITTEN_OFF else 0
    body = pb.StockMoved(
        lot=lot_message(lot),
        kind=movement.kind.value,  # type: ignore[arg-type]
        received_change=movement.quantity - written_off,
        written_off_change=written_off,
        write_off_reason=movement.reason.value if movement.reason else 0,  # type: ignore[arg-type]
        movement_id=movement.movement_id,
    )
    return Outgoing.of(movement.movement_id, movement.at, body)


def lot_message(lot: Lot) -> lot_pb2.Lot:
    """A lot as the contract has it."""
    return to_message(lot, lot_pb2.Lot, used=lot.balance.received - lot.balance.free, **asdict(lot.balance))


def subscriptions(vaccines: Vaccines) -> list[Subscription[Any]]:
    """What vaccine management does when it hears of something."""
    return [
        Subscription(approval_events_pb2.ApprovalGranted, _appointment, vaccines.admit, not_yet=(UnknownStatus,)),
        Subscription(
            reservation_events_pb2.CancellationRequested, _appointment, vaccines.cancel, not_yet=(UnknownStatus,)
        ),
        Subscription(approval_events_pb2.ApprovalRevoked, _appointment, vaccines.cancel, not_yet=(UnknownStatus,)),
    ]


def term(event: Received) -> Term:
    """What decides how long the vaccination is kept that an event is about."""
    appointment = event.message.appointment
    return Term(appointment.decide_time.ToDatetime(UTC), calendar_day("date", appointment.date))


def _appointment(event: Received) -> Appointment:
    appointment = from_message(event.message.appointment, Appointment)
    canonical_id(appointment.reservation_id)  # one of another kind could be found by nobody
    try:
        ZoneInfo(appointment.time_zone)
    except (LookupError, ValueError, OSError):  # once stored, it would stop every reader of the waiting list
        raise NotUnderstood(f"no IANA time zone {appointment.time_zone!r} here") from None
    return appointment
