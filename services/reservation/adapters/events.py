"""Reservation's events as the contract writes them, and the events it follows."""

from collections.abc import Sequence

from google.protobuf.message import Message

from services.chassis.convert import from_message, to_message
from services.chassis.jetstream import Event as Received
from services.chassis.jetstream import Handler, Unprocessable
from services.chassis.outbox import Outgoing
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
    return Outgoing.of(message.reservation_id, event.at, body)


def handlers(followup: Followup) -> dict[type[Message], Handler]:
    """What reservation does when it hears of something."""

    async def decided(events: Sequence[Received]) -> None:
        await followup.decided(
            [
                (from_message(e.message.appointment, Appointment), rejection(getattr(e.message, "denial_reason", 0)))
                for e in events
            ]
        )

    async def completed(events: Sequence[Received]) -> None:
        await followup.completed([from_message(e.message.appointment, Appointment) for e in events])

    async def cancelled(events: Sequence[Received]) -> None:
        try:
            await followup.cancelled([from_message(e.message.appointment, Appointment) for e in events])
        except Rejected as error:
            raise Unprocessable(str(error)) from error

    return {
        approval_events_pb2.ApprovalGranted: decided,
        approval_events_pb2.ApprovalDenied: decided,
        vaccinemgmt_events_pb2.ReservationCompleted: completed,
        vaccinemgmt_events_pb2.CancellationCompleted: cancelled,
    }
