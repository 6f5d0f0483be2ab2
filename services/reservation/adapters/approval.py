"""The way to approval, through the mesh."""

import random
from collections.abc import Callable

from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Channel, Metadata

from services.chassis.edge import status_of
from services.chassis.telemetry import traceparent
from vaccination.approval.v1 import approval_service_pb2, approval_service_pb2_grpc

from ..domain import (
    Appointment,
    ApprovalBusy,
    DatePassed,
    Rejection,
    Request,
    RequestIdReused,
    ReservationError,
    UnknownHospital,
)
from .events import appointment, rejection

# What approval refuses to decide, by its ErrorInfo reason.
REFUSALS: dict[str, type[ReservationError]] = {
    "UNKNOWN_HOSPITAL": UnknownHospital,
    "DATE_PASSED": DatePassed,
    "REQUEST_ID_REUSED": RequestIdReused,
}
# No answer: breaker open, shed, no connection, too slow. Whether it was decided is not known; a repeat will tell.
NO_ANSWER = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}


class GrpcApproval:
    """See application.Approval."""

    def __init__(self, channel: Channel, timeout: float, jitter: Callable[[], float] = random.random) -> None:
        self._stub = approval_service_pb2_grpc.ApprovalServiceStub(channel)
        self._timeout, self._jitter = timeout, jitter

    async def decide(self, request: Request) -> tuple[Appointment, Rejection | None]:
        """See Approval."""
        message = approval_service_pb2.ApproveRequest(
            reservation_id=str(request.reservation_id),
            customer_id=request.customer_id,
            hospital_id=request.hospital_id,
            date=request.date.isoformat(),
            vaccine_code=request.vaccine_code,
        )
        try:
            answer = await self._stub.Approve(message, timeout=self._timeout, metadata=Metadata(("traceparent", traceparent.get())))
        except AioRpcError as error:
            raise self._refusal(error) from error
        return appointment(answer.appointment), rejection(answer.denial_reason)

    def _refusal(self, error: AioRpcError) -> Exception:
        if error.code() in NO_ANSWER:
            return ApprovalBusy(retry_after=1.0 + self._jitter())
        status, info, bad = status_of(error), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if not detail.Unpack(info):
                detail.Unpack(bad)
        refusal = REFUSALS.get(info.reason)
        return refusal(bad.field_violations[0].description) if refusal and bad.field_violations else error
