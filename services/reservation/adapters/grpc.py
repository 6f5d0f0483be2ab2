"""Reservation over gRPC."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.caller import allow, caller
from services.chassis.convert import calendar_day, canonical_id, to_message
from services.chassis.errors import Answer, Details, Errors, Refusal
from vaccination.reservation.v1 import reservation_pb2, reservation_service_pb2_grpc
from vaccination.reservation.v1 import reservation_service_pb2 as pb

from .. import domain
from ..application import ReservationDesk
from ..domain import ApprovalBusy, Request, RequestId, Reservation, ReservationId

ERRORS = Errors(
    "vaccination.reservation",
    {
        domain.ApprovalBusy: Answer(StatusCode.RESOURCE_EXHAUSTED, "APPROVAL_BUSY", hint=" with the same request_id"),
        domain.RequestIdReused: Answer(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"),
        domain.TooManyRefusals: Answer(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REFUSALS", "request_id"),
        domain.UnknownHospital: Answer(StatusCode.NOT_FOUND, "UNKNOWN_HOSPITAL", "hospital_id"),
        domain.DatePassed: Answer(StatusCode.INVALID_ARGUMENT, "DATE_PASSED", "date"),
        domain.UnknownReservation: Answer(StatusCode.NOT_FOUND, "UNKNOWN_RESERVATION", "reservation_id"),
        domain.Rejected: Answer(StatusCode.FAILED_PRECONDITION, "REJECTED"),
        domain.AppointmentPassed: Answer(StatusCode.FAILED_PRECONDITION, "APPOINTMENT_PASSED"),
        domain.AlreadyAdministered: Answer(StatusCode.FAILED_PRECONDITION, "ALREADY_ADMINISTERED"),
        domain.Ended: Answer(StatusCode.FAILED_PRECONDITION, "ENDED"),
        domain.NothingToMove: Answer(StatusCode.FAILED_PRECONDITION, "NOTHING_TO_MOVE", "reservation_id"),
        domain.UnknownStatus: Answer(StatusCode.FAILED_PRECONDITION, "UNKNOWN_STATUS"),
    },
)
BUSY = {
    "ko": "지금 예약 요청이 많습니다. 잠시 후 다시 시도해 주세요.",
    "en": "Many people are booking right now. Please try again shortly.",
}
Context = ServicerContext[Any, Any]


class ReservationServicer(reservation_service_pb2_grpc.ReservationServiceServicer):
    """For customers."""

    def __init__(self, desk: ReservationDesk) -> None:
        self._desk = desk

    @allow("customer")
    async def CreateReservation(
        self, request: pb.CreateReservationRequest, context: Context
    ) -> pb.CreateReservationResponse:
        with _told_to_wait(context):
            reservation = await self._desk.create(_wanted(request))
        return pb.CreateReservationResponse(reservation=_message(reservation))

    @allow("customer")
    async def MoveReservation(self, request: pb.MoveReservationRequest, context: Context) -> pb.MoveReservationResponse:
        with _told_to_wait(context):
            reservation = await self._desk.move(_wanted(request), _id(request.reservation_id))
        return pb.MoveReservationResponse(reservation=_message(reservation))

    @allow("customer")
    async def GetReservation(self, request: pb.GetReservationRequest, context: Context) -> pb.GetReservationResponse:
        reservation = await self._desk.get(caller().subject, _id(request.reservation_id))
        return pb.GetReservationResponse(reservation=_message(reservation))

    @allow("customer")
    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        limit, listing = request.page_size or 20, f"reservations of {caller().subject}"
        after = paging.decode(listing, request.page_token, paging.instant, _id)
        found = await self._desk.page(caller().subject, (after[0], after[1]) if after else None, limit + 1)
        page, token = paging.cut(listing, found, limit, _place)
        return pb.ListReservationsResponse(reservations=[_message(r) for r in page], next_page_token=token)

    @allow("customer")
    async def CancelReservation(
        self, request: pb.CancelReservationRequest, context: Context
    ) -> pb.CancelReservationResponse:
        reservation = await self._desk.cancel(caller().subject, _id(request.reservation_id))
        return pb.CancelReservationResponse(reservation=_message(reservation))


@contextmanager
def _told_to_wait(context: Context) -> Iterator[None]:
    """Whom approval cannot answer is told so in their language, and when to try again."""
    try:
        yield
    except ApprovalBusy as busy:
        language = _language(context)
        told = Details(retry_after=busy.retry_after, localized=(language, BUSY[language]))
        raise Refusal(busy, told) from busy


def _wanted(request: pb.CreateReservationRequest | pb.MoveReservationRequest) -> Request:
    day = calendar_day("date", request.date)
    request_id = RequestId(canonical_id(request.request_id))
    return Request(caller().subject, request_id, request.hospital_id, day, request.vaccine_code)


def _id(text: str) -> ReservationId:
    return ReservationId(canonical_id(text))


def _place(reservation: Reservation) -> tuple[str, str]:
    return reservation.appointment.decide_time.isoformat(), reservation.appointment.reservation_id


def _message(reservation: Reservation) -> reservation_pb2.Reservation:
    return to_message(
        reservation.appointment,
        reservation_pb2.Reservation,
        status=reservation.status.value,
        rejection_reason=reservation.rejection or 0,
    )


def _language(context: Context) -> str:
    """The first of the caller's languages that we speak, else Korean."""
    wanted = next((str(v) for k, v in context.invocation_metadata() or () if k == "accept-language"), "")
    for part in wanted.split(","):
        if (language := part.split(";")[0].strip().split("-")[0].lower()) in BUSY:
            return language
    return "ko"


def register(server: Server, desk: ReservationDesk) -> None:
    """Adds reservation's service to a server."""
    reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server(ReservationServicer(desk), server)
