"""Approval over gRPC."""

from collections.abc import Sequence
from typing import Any

from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.batch import Batcher
from services.chassis.caller import allow, caller, internal
from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.errors import Answer, Errors
from vaccination.approval.v1 import appointment_pb2, approval_service_pb2_grpc, hospital_pb2, hospital_service_pb2_grpc
from vaccination.approval.v1 import approval_service_pb2 as approval_pb
from vaccination.approval.v1 import hospital_service_pb2 as pb

from .. import domain
from ..application import Approval
from ..domain import Day, Decision, Hospital, Location, Request, ReservationId

ERRORS = Errors(
    "vaccination.approval",
    {
        domain.UnknownHospital: Answer(
            StatusCode.NOT_FOUND, "UNKNOWN_HOSPITAL", "hospital_id", hint="; see ListHospitals"
        ),
        domain.DatePassed: Answer(StatusCode.INVALID_ARGUMENT, "DATE_PASSED", "date"),
        domain.RequestIdReused: Answer(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"),
        domain.TooManyRefusals: Answer(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REFUSALS", "request_id"),
        domain.UnknownTimeZone: Answer(StatusCode.INVALID_ARGUMENT, "UNKNOWN_TIME_ZONE", "hospital.time_zone"),
        domain.DateRange: Answer(StatusCode.INVALID_ARGUMENT, "DATE_RANGE", "last_date"),
        domain.NothingToMove: Answer(StatusCode.FAILED_PRECONDITION, "NOTHING_TO_MOVE", "instead_of"),
        domain.DayIsCalledOff: Answer(StatusCode.FAILED_PRECONDITION, "DAY_CALLED_OFF", "last_date"),
        domain.NothingToCallOff: Answer(StatusCode.INVALID_ARGUMENT, "NOTHING_TO_CALL_OFF", "date"),
    },
)
Context = ServicerContext[Any, Any]
ANYBODY = ("customer", "manager", "operator")


class ApprovalServicer(approval_service_pb2_grpc.ApprovalServiceServicer):
    """Decides requests; only reservation may call it."""

    def __init__(self, approval: Approval) -> None:
        self._decide: Batcher[Request, Decision] = Batcher("approve", approval.decide, lambda r: r.reservation_id)

    @internal
    async def Approve(self, request: approval_pb.ApproveRequest, context: Context) -> approval_pb.ApproveResponse:
        decision = await self._decide(_request(request))
        return approval_pb.ApproveResponse(
            appointment=to_message(decision.appointment, appointment_pb2.Appointment),
            denial_reason=decision.denial.value if decision.denial else 0,  # type: ignore[arg-type]
        )

    @internal
    async def Move(self, request: approval_pb.MoveRequest, context: Context) -> approval_pb.MoveResponse:
        decision = await self._decide(_request(request.request, _id(request.instead_of)))
        return approval_pb.MoveResponse(
            appointment=to_message(decision.appointment, appointment_pb2.Appointment),
            denial_reason=decision.denial.value if decision.denial else 0,  # type: ignore[arg-type]
        )


class HospitalServicer(hospital_service_pb2_grpc.HospitalServiceServicer):
    """Hospitals and capacity."""

    def __init__(self, approval: Approval) -> None:
        self._approval = approval

    @allow("operator")
    async def UpsertHospital(self, request: pb.UpsertHospitalRequest, context: Context) -> pb.UpsertHospitalResponse:
        h = request.hospital
        hospital, changed = await self._approval.put_hospital(
            Hospital(
                h.hospital_id,
                h.name,
                h.time_zone,
                list(h.vaccine_codes),
                location=from_message(h.location, Location) if h.HasField("location") else None,
            )
        )
        return pb.UpsertHospitalResponse(hospital=_hospital(hospital), changed=changed)

    @allow(*ANYBODY)
    async def ListHospitals(self, request: pb.ListHospitalsRequest, context: Context) -> pb.ListHospitalsResponse:
        hospitals, token = await (self._nearest if request.HasField("near") else self._by_id)(request)
        return pb.ListHospitalsResponse(hospitals=map(_hospital, hospitals), next_page_token=token)

    async def _by_id(self, request: pb.ListHospitalsRequest) -> tuple[Sequence[Hospital], str]:
        listing = f"hospitals with {request.query}" if request.query else "hospitals"
        limit = request.page_size or 100
        [after] = paging.decode(listing, request.page_token, str) or [""]
        found = await self._approval.hospitals(after, limit + 1, request.query)
        return paging.cut(listing, found, limit, lambda hospital: (hospital.hospital_id,))

    async def _nearest(self, request: pb.ListHospitalsRequest) -> tuple[Sequence[Hospital], str]:
        near = from_message(request.near, Location)
        listing = f"hospitals near {near.latitude} {near.longitude} with {request.query}"
        limit = request.page_size or 100
        metres, after = paging.decode(listing, request.page_token, _metres, str) or (-1, "")
        found = await self._approval.hospitals_near(near, (metres, after), limit + 1, request.query)
        page, token = paging.cut(listing, found, limit, lambda one: (str(one[0]), one[1].hospital_id))
        return [hospital for _, hospital in page], token

    @allow("manager", "operator")
    async def SetDailyCapacity(
        self, request: pb.SetDailyCapacityRequest, context: Context
    ) -> pb.SetDailyCapacityResponse:
        caller().check_scope("hospital", request.hospital_id)
        changed, over = await self._approval.set_capacity(
            request.hospital_id,
            calendar_day("first_date", request.first_date),
            calendar_day("last_date", request.last_date),
            request.capacity,
        )
        return pb.SetDailyCapacityResponse(days_changed=changed, days_over=map(_day, over))

    @allow("manager", "operator")
    async def CallOffDay(self, request: pb.CallOffDayRequest, context: Context) -> pb.CallOffDayResponse:
        caller().check_scope("hospital", request.hospital_id)
        day = await self._approval.call_off(request.hospital_id, calendar_day("date", request.date), request.note)
        return pb.CallOffDayResponse(day=_day(day), bookings_to_go=day.approved)

    @allow("manager", "operator")
    async def ReopenDay(self, request: pb.ReopenDayRequest, context: Context) -> pb.ReopenDayResponse:
        caller().check_scope("hospital", request.hospital_id)
        day = await self._approval.reopen(request.hospital_id, calendar_day("date", request.date))
        return pb.ReopenDayResponse(day=_day(day))

    @allow(*ANYBODY)
    async def ListAvailability(
        self, request: pb.ListAvailabilityRequest, context: Context
    ) -> pb.ListAvailabilityResponse:
        days, as_of = await self._approval.availability(
            request.hospital_id,
            calendar_day("first_date", request.first_date),
            calendar_day("last_date", request.last_date),
        )
        return pb.ListAvailabilityResponse(
            days=map(_day, days),
            as_of_time=as_of,  # type: ignore[arg-type]
        )


def _request(message: approval_pb.ApproveRequest, replaces: ReservationId | None = None) -> Request:
    m = message
    return Request(
        _id(m.reservation_id), m.customer_id, m.hospital_id, calendar_day("date", m.date), m.vaccine_code, replaces
    )


def _id(text: str) -> ReservationId:
    return ReservationId(canonical_id(text))


def _metres(text: str) -> int:
    metres = int(text)
    if not 0 <= metres < 2**31:
        raise ValueError("no distance on the earth")
    return metres


def _hospital(hospital: Hospital) -> hospital_pb2.Hospital:
    where = to_message(hospital.location, hospital_pb2.Location) if hospital.location else None
    return hospital_pb2.Hospital(
        hospital_id=hospital.hospital_id,
        name=hospital.name,
        time_zone=hospital.time_zone,
        vaccine_codes=hospital.vaccine_codes,
        location=where,
    )


def _day(day: Day) -> hospital_pb2.DayAvailability:
    return to_message(day, hospital_pb2.DayAvailability, left=day.left, over=day.over)


def register(server: Server, approval: Approval) -> None:
    """Adds approval's services to a server."""
    approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server(ApprovalServicer(approval), server)
    hospital_service_pb2_grpc.add_HospitalServiceServicer_to_server(HospitalServicer(approval), server)
