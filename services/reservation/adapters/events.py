"""Reservation's events as the contract writes them, and the events it follows."""

from datetime import UTC
from typing import Any

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.events import Event as Received
from services.chassis.events import NotUnderstood, Outgoing, Subscription, Unprocessable
from services.chassis.retention import Term
from vaccination.approval.v1 import appointment_pb2, approval_events_pb2
from vaccination.reservation.v1 import reservation_events_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2

from ..application import Followup
from ..domain import Appointment, CancellationRequested, Event, Placed, Rejected, RejectionReason, Status, WasRejected

REVOKED = {
    approval_events_pb2.REVOCATION_REASON_DAY_CALLED_OFF: Status.CALLED_OFF,
    approval_events_pb2.REVOCATION_REASON_MOVED: Status.MOVED,
}
ENDS = {
    vaccinemgmt_events_pb2.CancellationCompleted: Status.CANCELLED,
    vaccinemgmt_events_pb2.VaccinationUnserved: Status.UNSERVED,
    vaccinemgmt_events_pb2.VaccinationMissed: Status.MISSED,
    vaccinemgmt_events_pb2.VaccinationAdministered: Status.ADMINISTERED,
}
"""What becomes of a reservation when vaccine management has nothing left to do for it."""


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
        Subscription(approval_events_pb2.ApprovalRevoked, _end, followup.ended, never=(Rejected,)),
        Subscription(vaccinemgmt_events_pb2.ReservationWaiting, _dose, followup.heard_of_doses),
        Subscription(vaccinemgmt_events_pb2.ReservationCompleted, _dose, followup.heard_of_doses),
        *(Subscription(event, _end, followup.ended, never=(Rejected,)) for event in ENDS),
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


def _dose(event: Received) -> tuple[Appointment, int, bool]:
    has_dose = isinstance(event.message, vaccinemgmt_events_pb2.ReservationCompleted)
    return _appointment(event), event.message.version, has_dose


def _end(event: Received) -> tuple[Appointment, Status]:
    if isinstance(event.message, approval_events_pb2.ApprovalRevoked):
        how = REVOKED.get(event.message.revocation_reason)
        if how is None:  # a newer version takes places back for more reasons
            raise NotUnderstood(f"revocation_reason {event.message.revocation_reason}")
    else:
        how = ENDS[type(event.message)]
    return _appointment(event), how
