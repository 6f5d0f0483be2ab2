"""Vaccine management's events as the contract writes them, and the events it follows."""

from collections.abc import Sequence
from zoneinfo import ZoneInfo

from google.protobuf.message import Message

from services.chassis.convert import from_message, to_message
from services.chassis.jetstream import Event as Received
from services.chassis.jetstream import Handler, Unprocessable
from services.chassis.outbox import Outgoing
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.reservation.v1 import reservation_events_pb2
from vaccination.vaccinemgmt.v1 import vaccination_pb2, vaccinemgmt_events_pb2

from ..application import Vaccines
from ..domain import Appointment, Cancelled, Completed, Event, Waiting


def outgoing(event: Event) -> Outgoing:
    """An event on its way to the stream."""
    appointment = to_message(event.appointment, appointment_pb2.Appointment)
    body: Message
    match event:
        case Completed(dose=dose):
            set_aside = to_message(dose, vaccination_pb2.Dose)
            body = vaccinemgmt_events_pb2.ReservationCompleted(
                appointment=appointment, dose=set_aside, quantity=1, version=event.version
            )
        case Waiting():
            body = vaccinemgmt_events_pb2.ReservationWaiting(appointment=appointment, version=event.version)
        case Cancelled():
            body = vaccinemgmt_events_pb2.CancellationCompleted(appointment=appointment, version=event.version)
    return Outgoing.of(appointment.reservation_id, event.at, body)


def handlers(vaccines: Vaccines) -> dict[type[Message], Handler]:
    """What vaccine management does when it hears of something."""

    async def granted(events: Sequence[Received]) -> None:
        await vaccines.admit([_appointment(e) for e in events])

    async def cancellation_requested(events: Sequence[Received]) -> None:
        await vaccines.cancel([_appointment(e) for e in events])

    return {
        approval_events_pb2.ApprovalGranted: granted,
        reservation_events_pb2.CancellationRequested: cancellation_requested,
    }


def _appointment(event: Received) -> Appointment:
    appointment = from_message(event.message.appointment, Appointment)
    try:
        ZoneInfo(appointment.time_zone)
    except (LookupError, ValueError, OSError):  # once stored, it would stop every reader of the waiting list
        raise Unprocessable(f"no IANA time zone {appointment.time_zone!r}") from None
    return appointment
