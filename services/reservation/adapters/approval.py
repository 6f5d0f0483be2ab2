"""The client of approval, through the mesh."""

import random
import time
from collections.abc import Callable
from math import log
from typing import Any

from google.protobuf.message import Message
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
    NothingToMove,
    RejectionReason,
    Request,
    RequestIdReused,
    ReservationError,
    ReservationId,
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
    "NOTHING_TO_MOVE": NothingToMove,
}
# The codes of a call without an answer: the breaker is open, the call was shed, there is no connection, or it took too
# long. Whether approval has decided is not known then, and a repeat of the request finds out.
NO_ANSWER = {
    StatusCode.UNAVAILABLE,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED,
    StatusCode.UNIMPLEMENTED,  # a replica of an older version, during an update
}
# Seconds after which a refusal or an answer counts half as much.
HALF_LIFE = 10.0
# As many answers are always assumed, so that three refusals in a quiet hour do not look like overload.
QUIET = 50
LONGEST = 30.0  # seconds; a customer who is sent away for longer does not come back


class RetryAdvice:
    """After how many seconds a customer who could not be served should try again.

    It is the time in which everybody who was turned away lately could be answered: their number, divided by the pace
    of the answers. A pace gives a large installation and a small one the same advice for the same share of refusals.
    `clock` is in seconds and monotonic, `jitter` gives a number from 0 to 1.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._clock, self._jitter = clock, jitter
        self._refused = self._answered = 0.0
        self._at = clock()

    def answered(self) -> None:
        """Approval answered somebody."""
        self._fade()
        self._answered += 1

    def refused(self) -> float:
        """Approval did not answer somebody. Returns the seconds to wait, with jitter so that not all come at once."""
        self._fade()
        self._refused += 1
        pace = (self._answered + QUIET) / (HALF_LIFE / log(2))
        return min(1.0 + self._refused / pace, LONGEST / 2) * (1.0 + self._jitter())

    def _fade(self) -> None:
        now = self._clock()
        weight = 0.5 ** ((now - self._at) / HALF_LIFE)
        self._refused, self._answered, self._at = self._refused * weight, self._answered * weight, now


SERVICE = "vaccination.approval.v1.ApprovalService"


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
        self._timeout, self._advice = timeout, RetryAdvice(clock, jitter)

    async def decide(self, request: Request) -> tuple[Appointment, RejectionReason | None]:
        """See Approval."""
        return await self._ask("Approve", self._stub.Approve, to_message(request, approval_service_pb2.ApproveRequest))

    async def move(self, request: Request, instead_of: ReservationId) -> tuple[Appointment, RejectionReason | None]:
        """See Approval."""
        wanted = to_message(request, approval_service_pb2.ApproveRequest)
        message = approval_service_pb2.MoveRequest(request=wanted, instead_of=instead_of)
        return await self._ask("Move", self._stub.Move, message)

    async def _ask(
        self, method: str, call: Callable[..., Any], message: Message
    ) -> tuple[Appointment, RejectionReason | None]:
        about = {"rpc.system.name": "grpc", "rpc.method": f"{SERVICE}/{method}"}
        span, code = tracing.begin(about["rpc.method"], "CLIENT", traceparent.get(), about), StatusCode.CANCELLED
        try:
            answer = await call(
                message, timeout=time_left(self._timeout), metadata=Metadata(("traceparent", span.traceparent))
            )
            code = StatusCode.OK
        except AioRpcError as error:
            code = error.code()
            raise self._refusal(error) from error
        finally:
            span.end(code.name, failed=code is not StatusCode.OK)
        self._advice.answered()
        return from_message(answer.appointment, Appointment), rejection(answer.denial_reason)

    def _refusal(self, error: AioRpcError) -> Exception:
        status, info, bad = status_of(error), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            if not detail.Unpack(info):
                detail.Unpack(bad)
        refusal = REFUSALS.get(info.reason)
        if refusal and bad.field_violations:
            return refusal(bad.field_violations[0].description)
        return ApprovalBusy(retry_after=self._advice.refused()) if error.code() in NO_ANSWER else error
