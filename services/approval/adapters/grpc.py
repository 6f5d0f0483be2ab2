"""Approval over gRPC."""

from datetime import date
from typing import Any
from uuid import UUID

from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.batch import Batcher
from services.chassis.caller import allow, caller, internal
from services.chassis.errors import Answer, Errors, InvalidFields
from vaccination.approval.v1 import (
    approval_service_pb2 as approval_pb,
)
from vaccination.approval.v1 import (
    approval_service_pb2_grpc as approval_rpc,
)
from vaccination.approval.v1 import (
    hospital_pb2,
)
from vaccination.approval.v1 import (
    hospital_service_pb2 as hospital_pb,
)
from vaccination.approval.v1 import (
    hospital_service_pb2_grpc as hospital_rpc,
)

from .. import domain
from ..application import Approval
from ..domain import Decision, Hospital, Request
from .events import appointment_message

ERRORS = Errors(
    "vaccination.approval",
    {
        domain.UnknownHospital: Answer(StatusCode.NOT_FOUND, "UNKNOWN_HOSPITAL", "hospital_id"),
        domain.DatePassed: Answer(StatusCode.INVALID_ARGUMENT, "DATE_PASSED", "date"),
        domain.RequestIdReused: Answer(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"),
        domain.UnknownTimeZone: Answer(StatusCode.INVALID_ARGUMENT, "UNKNOWN_TIME_ZONE", "hospital.time_zone"),
        domain.DateRange: Answer(StatusCode.INVALID_ARGUMENT, "DATE_RANGE", "last_date"),
        domain.CapacityBelowApproved: Answer(StatusCode.FAILED_PRECONDITION, "CAPACITY_BELOW_APPROVED", "capacity"),
    },
)
Context = ServicerContext[Any, Any]
ANYBODY = ("customer", "manager", "operator")


def calendar_day(field: str, text: str) -> date:
    """A date of the contract; raises InvalidFields for 2026-02-30."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidFields([(field, f"{text} is not a calendar day")]) from None


class ApprovalServicer(approval_rpc.ApprovalServiceServicer):
    """For reservation alone."""

    def __init__(self, approval: Approval) -> None:
        self._decide: Batcher[Request, Decision] = Batcher("approve", approval.decide, lambda r: str(r.reservation_id))

    @internal
    async def Approve(self, request: approval_pb.ApproveRequest, context: Context) -> approval_pb.ApproveResponse:  # noqa: N802, D102
        decision = await self._decide(
            Request(
                UUID(request.reservation_id), request.customer_id, request.hospital_id,
                calendar_day("date", request.date), request.vaccine_code)  # fmt: skip
        )
        return approval_pb.ApproveResponse(
            appointment=appointment_message(decision.appointment),
            denial_reason=decision.denial.value if decision.denial else 0,  # type: ignore[arg-type]
        )


class HospitalServicer(hospital_rpc.HospitalServiceServicer):
    """Hospitals and capacity."""

    def __init__(self, approval: Approval) -> None:
        self._approval = approval

    @allow("operator")
    async def UpsertHospital(self, request: hospital_pb.UpsertHospitalRequest, context: Context) -> hospital_pb.UpsertHospitalResponse:  # noqa: N802, D102
        wanted = request.hospital
        hospital, changed = await self._approval.put_hospital(Hospital(wanted.hospital_id, wanted.name, wanted.time_zone))
        return hospital_pb.UpsertHospitalResponse(hospital=_message(hospital), changed=changed)

    @allow(*ANYBODY)
    async def ListHospitals(self, request: hospital_pb.ListHospitalsRequest, context: Context) -> hospital_pb.ListHospitalsResponse:  # noqa: N802, D102
        limit = request.page_size or 100
        position = paging.decode("hospitals", request.page_token, 1)
        hospitals = await self._approval.hospitals(position[0] if position else "", limit + 1)
        more = len(hospitals) > limit
        return hospital_pb.ListHospitalsResponse(
            hospitals=[_message(h) for h in hospitals[:limit]],
            next_page_token=paging.encode("hospitals", hospitals[limit - 1].hospital_id) if more else "",
        )

    @allow("manager", "operator")
    async def SetDailyCapacity(self, request: hospital_pb.SetDailyCapacityRequest, context: Context) -> hospital_pb.SetDailyCapacityResponse:  # noqa: N802, D102
        caller().check_scope("hospital", request.hospital_id)
        changed = await self._approval.set_capacity(
            request.hospital_id,
            calendar_day("first_date", request.first_date),
            calendar_day("last_date", request.last_date),
            request.capacity,
        )
        return hospital_pb.SetDailyCapacityResponse(days_changed=changed)

    @allow(*ANYBODY)
    async def ListAvailability(self, request: hospital_pb.ListAvailabilityRequest, context: Context) -> hospital_pb.ListAvailabilityResponse:  # noqa: N802, D102
        days, as_of = await self._approval.availability(
            request.hospital_id, calendar_day("first_date", request.first_date), calendar_day("last_date", request.last_date)
        )
        response = hospital_pb.ListAvailabilityResponse(
            days=[
                hospital_pb2.DayAvailability(
                    date=day.date.isoformat(), capacity=day.capacity, approved=day.approved, left=day.capacity - day.approved
                )
                for day in days
            ]
        )
        response.as_of_time.FromDatetime(as_of)
        return response


def _message(hospital: Hospital) -> hospital_pb2.Hospital:
    return hospital_pb2.Hospital(hospital_id=hospital.hospital_id, name=hospital.name, time_zone=hospital.time_zone)


def register(server: Server, approval: Approval) -> None:
    """Adds approval's services to a server."""
    approval_rpc.add_ApprovalServiceServicer_to_server(ApprovalServicer(approval), server)  # type: ignore[no-untyped-call]
    hospital_rpc.add_HospitalServiceServicer_to_server(HospitalServicer(approval), server)  # type: ignore[no-untyped-call]
