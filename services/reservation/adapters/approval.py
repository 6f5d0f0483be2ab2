"""The way to approval, through the mesh."""

import random
from collections.abc import Callable

from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Channel, Metadata

from services.chassis import tracing
from services.chassis.convert import from_message, to_message
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
from .events import rejection

# What approval refuses to decide, by its ErrorInfo reason.
REFUSALS: dict[str, type[ReservationError]] = {
    "UNKNOWN_HOSPITAL": UnknownHospital,
    "DATE_PASSED": DatePassed,
    "REQUEST_ID_REUSED": RequestIdReused,
}
# No answer: breaker open, shed, no connection, too slow. Whether it was decided is not known; a repeat will tell.
NO_ANSWER = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}

ABOUT = {"rpc.system.name": "grpc", "rpc.method": "vaccination.approval.v1.ApprovalService/Approve"}


class GrpcApproval:
    """See application.Approval."""

    def __init__(self, channel: Channel, timeout: float, jitter: Callable[[], float] = random.random) -> None:
        self._stub = approval_service_pb2_grpc.ApprovalServiceStub(channel)
        self._timeout, self._jitter = timeout, jitter
        self._unanswered = 0

    async def decide(self, request: Request) -> tuple[Appointment, Rejection | None]:
        """See Approval."""
        message = to_message(request, approval_service_pb2.ApproveRequest, reservation_id=str(request.reservation_id))
        step, code = tracing.begin(ABOUT["rpc.method"], "CLIENT", traceparent.get(), ABOUT), StatusCode.CANCELLED
        try:
            answer = await self._stub.Approve(
                message, timeout=self._timeout, metadata=Metadata(("traceparent", step.traceparent))
            )
            code = StatusCode.OK
        except AioRpcError as error:
            code = error.code()
            raise self._refusal(error) from error
        finally:
            step.end(code.name, failed=code is not StatusCode.OK)
        self._unanswered = 0
        return from_message(answer.appointment, Appointment), rejection(answer.denial_reason)

    def _refusal(self, error: AioRpcError) -> Exception:
        if error.code() in NO_ANSWER:
            # Calls since the last answer stand for the load; jitter keeps the customers from coming back together.
            self._unanswered += 1
            return ApprovalBusy(retry_after=min(1.0 + self._unanswered / 50, 30.0) * (1.0 + self._jitter()))
        status, info, bad = status_of(error), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if not detail.Unpack(info):
                detail.Unpack(bad)
        refusal = REFUSALS.get(info.reason)
        return refusal(bad.field_violations[0].description) if refusal and bad.field_violations else error
