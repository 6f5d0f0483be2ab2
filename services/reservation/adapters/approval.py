"""The way to approval, through the mesh."""

import random
import time
from collections.abc import Callable
from math import log

from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Channel, Metadata

from services.chassis import tracing
from services.chassis.convert import from_message, to_message
from services.chassis.edge import status_of, time_left
from services.chassis.telemetry import traceparent
from vaccination.approval.v1 import approval_service_pb2, approval_service_pb2_grpc

from ..domain import (
    Appointment,
    ApprovalBusy,
    DatePassed,
    RejectionReason,
    Request,
    RequestIdReused,
    ReservationError,
    TooManyRefusals,
    UnknownHospital,
)
from .events import rejection

# What approval refuses to decide, by its ErrorInfo reason.
REFUSALS: dict[str, type[ReservationError]] = {
    "UNKNOWN_HOSPITAL": UnknownHospital,
    "DATE_PASSED": DatePassed,
    "REQUEST_ID_REUSED": RequestIdReused,
    "TOO_MANY_REFUSALS": TooManyRefusals,
}
# No answer: breaker open, shed, no connection, too slow. Whether it was decided is not known; a repeat will tell.
NO_ANSWER = {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}
# Seconds in which what was seen of the load loses half its weight.
HALF_LIFE = 10.0
# Answers that a single refusal is always weighed against: three of them in a quiet hour are no crowd.
QUIET = 50
LONGEST = 30.0  # seconds; who is sent away for longer does not come back


class Crowd:
    """How long to send a customer away who could not be served: until the crowd could have been.

    Those turned away lately, over the pace of the answers, is the time in which all of them could be answered. A pace
    and not a count: the same for a large installation and a small one. `clock` is in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._clock, self._jitter = clock, jitter
        self._refused = self._answered = 0.0
        self._at = clock()

    def answered(self) -> None:
        """Somebody was."""
        self._fade()
        self._answered += 1

    def refused(self) -> float:
        """Somebody was not; for how many seconds to send them away, jittered so that they do not come back together."""
        self._fade()
        self._refused += 1
        pace = (self._answered + QUIET) / (HALF_LIFE / log(2))
        return min(1.0 + self._refused / pace, LONGEST / 2) * (1.0 + self._jitter())

    def _fade(self) -> None:
        now = self._clock()
        weight = 0.5 ** ((now - self._at) / HALF_LIFE)
        self._refused, self._answered, self._at = self._refused * weight, self._answered * weight, now


ABOUT = {"rpc.system.name": "grpc", "rpc.method": "vaccination.approval.v1.ApprovalService/Approve"}


class GrpcApproval:
    """See application.Approval."""

    def __init__(
        self,
        channel: Channel,
        timeout: float,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = approval_service_pb2_grpc.ApprovalServiceStub(channel)
        self._timeout, self._crowd = timeout, Crowd(clock, jitter)

    async def decide(self, request: Request) -> tuple[Appointment, RejectionReason | None]:
        """See Approval."""
        message = to_message(request, approval_service_pb2.ApproveRequest)
        span, code = tracing.begin(ABOUT["rpc.method"], "CLIENT", traceparent.get(), ABOUT), StatusCode.CANCELLED
        try:
            answer = await self._stub.Approve(
                message, timeout=time_left(self._timeout), metadata=Metadata(("traceparent", span.traceparent))
            )
            code = StatusCode.OK
        except AioRpcError as error:
            code = error.code()
            raise self._refusal(error) from error
        finally:
            span.end(code.name, failed=code is not StatusCode.OK)
        self._crowd.answered()
        return from_message(answer.appointment, Appointment), rejection(answer.denial_reason)

    def _refusal(self, error: AioRpcError) -> Exception:
        status, info, bad = status_of(error), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if not detail.Unpack(info):
                detail.Unpack(bad)
        refusal = REFUSALS.get(info.reason)
        if refusal and bad.field_violations:
            return refusal(bad.field_violations[0].description)
        return ApprovalBusy(retry_after=self._crowd.refused()) if error.code() in NO_ANSWER else error
