"""Approval's events as the contract writes them, and the events it follows."""

from datetime import UTC
from typing import Any

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id, to_message
from services.chassis.events import Event as Received
from services.chassis.events import Outgoing, Subscription
from services.chassis.retention import Term
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from ..application import Approval
from ..domain import Denied, Event, Granted, Released, ReservationId, UnknownDecision


def outgoing(event: Event) -> Outgoing:
    """An event on its way to the stream."""
    at, message = event.appointment.decide_time, to_message(event.appointment, appointment_pb2.Appointment)
    body: Message
    match event:
        case Granted():
            body = approval_events_pb2.ApprovalGranted(appointment=message)
        case Denied(reason=reason):
            body = approval_events_pb2.ApprovalDenied(appointment=message, denial_reason=reason.value)  # type: ignore[arg-type]
        case Released(at=at):
            body = approval_events_pb2.ApprovalReleased(appointment=message)
    return Outgoing.of(message.reservation_id, at, body)


def subscriptions(approval: Approval) -> list[Subscription[Any]]:
    """What approval does when it hears of something."""
    return [
        Subscription(
            vaccinemgmt_events_pb2.CancellationCompleted, _reservation_id, approval.release, never=(UnknownDecision,)
        )
    ]


def term(event: Received) -> Term:
    """What decides how long the booking is kept that an event is about."""
    appointment = event.message.appointment
    return Term(appointment.decide_time.ToDatetime(UTC), calendar_day("date", appointment.date))


def _reservation_id(event: Received) -> ReservationId:
    return ReservationId(canonical_id(event.message.appointment.reservation_id))
