"""Vaccine management's events as the contract writes them, and the events it follows."""

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
from vaccination.vaccinemgmt.v1 import vaccination_pb2, vaccinemgmt_events_pb2

from ..application import Vaccines
from ..domain import Appointment, Cancelled, Completed, Event, UnknownStatus, Waiting


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
    return Outgoing.of(appointment.reservation_id, event.at, body, quoted=("appointment",))


def subscriptions(vaccines: Vaccines) -> list[Subscription[Any]]:
    """What vaccine management does when it hears of something."""
    return [
        Subscription(approval_events_pb2.ApprovalGranted, _appointment, vaccines.admit, not_yet=(UnknownStatus,)),
        Subscription(
            reservation_events_pb2.CancellationRequested, _appointment, vaccines.cancel, not_yet=(UnknownStatus,)
        ),
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
