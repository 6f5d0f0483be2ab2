"""Approval's events as the contract writes them, and the events it follows."""

from collections.abc import Sequence
from uuid import UUID

from google.protobuf.message import Message

from services.chassis.jetstream import Event as Received
from services.chassis.jetstream import Handler, Unprocessable
from services.chassis.outbox import Outgoing
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from ..application import Approval
from ..domain import Appointment, Denied, Event, Granted, Released, UnknownDecision


def appointment_message(appointment: Appointment) -> appointment_pb2.Appointment:
    """An appointment as the contract writes it."""
    message = appointment_pb2.Appointment(
        reservation_id=str(appointment.reservation_id),
        customer_id=appointment.customer_id,
        hospital_id=appointment.hospital_id,
        hospital_name=appointment.hospital_name,
        time_zone=appointment.time_zone,
        date=appointment.date.isoformat(),
        vaccine_code=appointment.vaccine_code,
    )
    message.decide_time.FromDatetime(appointment.decided_at)
    return message


def outgoing(event: Event) -> Outgoing:
    """An event on its way to the stream."""
    at, message = event.appointment.decided_at, appointment_message(event.appointment)
    body: Message
    match event:
        case Granted():
            body = approval_events_pb2.ApprovalGranted(appointment=message)
        case Denied(reason=reason):
            body = approval_events_pb2.ApprovalDenied(appointment=message, denial_reason=reason.value)  # type: ignore[arg-type]
        case Released(at=at):
            body = approval_events_pb2.ApprovalReleased(appointment=message)
    return Outgoing.of(message.reservation_id, at, body)


def handlers(approval: Approval) -> dict[type[Message], Handler]:
    """What approval does when it hears of something."""

    async def cancellation_completed(events: Sequence[Received]) -> None:
        try:
            await approval.release([UUID(event.key) for event in events])
        except UnknownDecision as error:
            raise Unprocessable(str(error)) from error

    return {vaccinemgmt_events_pb2.CancellationCompleted: cancellation_completed}
