"""Approval's events as the contract writes them, and the events it follows."""

from datetime import UTC, date
from typing import Any

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id, to_message
from services.chassis.events import Event as Received
from services.chassis.events import Outgoing, Subscription
from services.chassis.events.delivery import NothingToDo
from services.chassis.retention import Term
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccinemgmt_events_pb2

from ..application import Approval
from ..domain import Denied, Event, Granted, Released, ReservationId, Revoked, UnknownDecision

CAME = {lot_pb2.MovementKind.MOVEMENT_KIND_RECEIVED, lot_pb2.MovementKind.MOVEMENT_KIND_OPENED}
"""The movements that say that a lot is or was at the hospital."""


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
        case Revoked(at=at, reason=why, note=note, replaced_by=new):
            body = approval_events_pb2.ApprovalRevoked(
                appointment=message,
                revocation_reason=why.value,  # type: ignore[arg-type]
                note=note,
                replaced_by=new or "",
            )
            # The appointment may have been recorded by a newer version. It must not keep a whole day from being over.
            return Outgoing.of(message.reservation_id, at, body, quoted=("appointment",))
    return Outgoing.of(message.reservation_id, at, body)


def subscriptions(approval: Approval) -> list[Subscription[Any]]:
    """What approval does when it hears of something."""
    over = (
        vaccinemgmt_events_pb2.CancellationCompleted,
        vaccinemgmt_events_pb2.VaccinationMissed,
        vaccinemgmt_events_pb2.VaccinationUnserved,
    )
    return [
        *(Subscription(event, _reservation_id, approval.release, never=(UnknownDecision,)) for event in over),
        Subscription(vaccinemgmt_events_pb2.StockMoved, _delivered, approval.delivered),
    ]


def term(event: Received) -> Term:
    """What decides how long the booking is kept that an event is about. What is about no booking is kept for ever."""
    if isinstance(event.message, vaccinemgmt_events_pb2.StockMoved):
        return Term(event.time, date.max)
    appointment = event.message.appointment
    return Term(appointment.decide_time.ToDatetime(UTC), calendar_day("date", appointment.date))


def _delivered(event: Received) -> tuple[str, str]:
    if event.message.kind not in CAME:
        raise NothingToDo
    return event.message.lot.hospital_id, event.message.lot.vaccine_code


def _reservation_id(event: Received) -> ReservationId:
    return ReservationId(canonical_id(event.message.appointment.reservation_id))
