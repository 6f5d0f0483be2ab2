"""Reservation's events as the contract writes them, and the events it follows."""

from datetime import UTC
from typing import Any

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.events import Event as Received
from services.chassis.events import Outgoing, Subscription, Unprocessable
from services.chassis.retention import Term
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.reservation.v1 import reservation_events_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from ..application import Followup
from ..domain import Appointment, CancellationRequested, Event, Placed, Rejected, RejectionReason, WasRejected


def rejection(reason: int) -> RejectionReason | None:
    """A DenialReason of the contract, also one that this version does not know; None for an approval."""
    return RejectionReason(reason) if reason else None


def outgoing(event: Event) -> Outgoing:
    """An event on its way to the stream."""
    message = to_message(event.appointment, appointment_pb2.Appointment)
    body: Message
    match event:
        case Placed():
            body = reservation_events_pb2.ReservationPlaced(appointment=message)
        case WasRejected(rejection=why):
            body = reservation_events_pb2.ReservationRejected(appointment=message, rejection_reason=why)  # type: ignore[arg-type]
        case CancellationRequested():
            body = reservation_events_pb2.CancellationRequested(appointment=message)
    return Outgoing.of(message.reservation_id, event.at, body, quoted=("appointment", "rejection_reason"))


def subscriptions(followup: Followup) -> list[Subscription[Any]]:
    """What reservation does when it hears of something."""
    return [
        Subscription(approval_events_pb2.ApprovalGranted, _granted, followup.decided),
        Subscription(approval_events_pb2.ApprovalDenied, _denied, followup.decided),
        Subscription(vaccinemgmt_events_pb2.ReservationCompleted, _appointment, followup.completed),
        Subscription(vaccinemgmt_events_pb2.CancellationCompleted, _appointment, followup.cancelled, never=(Rejected,)),
    ]


def term(event: Received) -> Term:
    """What decides how long the reservation is kept that an event is about."""
    appointment, refused = event.message.appointment, isinstance(event.message, approval_events_pb2.ApprovalDenied)
    return Term(appointment.decide_time.ToDatetime(UTC), calendar_day("date", appointment.date), refused)


def _appointment(event: Received) -> Appointment:
    appointment = from_message(event.message.appointment, Appointment)
    canonical_id(appointment.reservation_id)  # one of another kind would be refused by the store, time after time
    return appointment


def _granted(event: Received) -> tuple[Appointment, RejectionReason | None]:
    return _appointment(event), None


def _denied(event: Received) -> tuple[Appointment, RejectionReason | None]:
    if not event.message.denial_reason:
        raise Unprocessable("a denial without a reason")
    return _appointment(event), rejection(event.message.denial_reason)
