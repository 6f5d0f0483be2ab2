"""Approval's events as the contract writes them, and the events it follows."""

from collections.abc import Sequence

from google.protobuf.message import Message

from services.chassis.convert import to_message
from services.chassis.jetstream import Event as Received
from services.chassis.jetstream import Handler, Unprocessable
from services.chassis.outbox import Outgoing
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from ..application import Approval
from ..domain import Denied, Event, Granted, Released, UnknownDecision


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


def handlers(approval: Approval) -> dict[type[Message], Handler]:
    """What approval does when it hears of something."""

    async def cancellation_completed(events: Sequence[Received]) -> None:
        try:
            await approval.release([event.message.appointment.reservation_id for event in events])
        except UnknownDecision as error:
            raise Unprocessable(str(error)) from error

    return {vaccinemgmt_events_pb2.CancellationCompleted: cancellation_completed}
