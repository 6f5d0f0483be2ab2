"""Looking after a service over gRPC: every service serves it about itself."""

from datetime import UTC, datetime
from typing import Any, Protocol

import nats.errors
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from vaccination.operations.v1 import operations_service_pb2 as pb
from vaccination.operations.v1 import operations_service_pb2_grpc as rpc

from . import paging
from .caller import allow, caller
from .deadletters import DeadLetter
from .errors import Answer, Errors
from .jetstream import Consumer, PublishFailed
from .outbox import OutboxStore
from .telemetry import log

Context = ServicerContext[Any, Any]
OPERATOR = allow("operator")


STREAM_AWAY = Answer(
    StatusCode.UNAVAILABLE, "STREAM_UNAVAILABLE", message="the event stream cannot be reached: repeat the call"
)


class UnknownDeadLetter(Exception):
    """The consumer has no such dead letter, or no more."""


class OtherService(Exception):
    """The request is meant for another service."""


ERRORS = Errors(
    "vaccination.operations",
    {
        UnknownDeadLetter: Answer(StatusCode.NOT_FOUND, "UNKNOWN_DEAD_LETTER", "sequence"),
        OtherService: Answer(StatusCode.INVALID_ARGUMENT, "OTHER_SERVICE", "service"),
        PublishFailed: STREAM_AWAY,
        nats.errors.Error: STREAM_AWAY,
    },
)


class ForOneService(Protocol):
    """Every request says which service it is meant for."""

    service: str


class OperationsServicer(rpc.OperationsServiceServicer):
    """For operators."""

    def __init__(self, name: str, consumer: Consumer, outbox: OutboxStore | None) -> None:
        self._name, self._consumer, self._outbox = name, consumer, outbox

    @OPERATOR
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        self._check(request)
        depth, oldest = await self._outbox.backlog() if self._outbox else (0, 0.0)
        info = await self._consumer.info()
        status = pb.GetStatusResponse(
            outbox_depth=depth,
            outbox_oldest_seconds=oldest,
            consumer_pending=info.num_pending or 0,
            consumer_in_flight=info.num_ack_pending or 0,
            consumer_redelivered=info.num_redelivered or 0,
            dead_letters=await self._consumer.dead_letters.count(self._consumer.js),
        )
        if info.paused and info.config.pause_until:
            status.consumer_paused_until.FromJsonString(info.config.pause_until)
        return status

    @OPERATOR
    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        self._check(request)
        limit, listing = request.page_size or 100, f"dead letters of {self._name}"
        [after] = paging.decode(listing, request.page_token, int) or [0]
        found = await self._consumer.dead_letters.page(self._consumer.js, after, limit + 1)
        letters, token = paging.cut(listing, found, limit, lambda letter: (str(letter.sequence),))
        return pb.ListDeadLettersResponse(
            dead_letters=[_message(letter) for letter in letters],
            next_page_token=token,
        )

    @OPERATOR
    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, context: Context) -> pb.GetDeadLetterResponse:
        self._check(request)
        letter = await self._known(request.sequence)
        shown = _message(letter)
        shown.payload = letter.data
        if cls := self._consumer.message_class(letter.subject):
            shown.payload_json = _json(cls, letter.data)
        return pb.GetDeadLetterResponse(dead_letter=shown)

    @OPERATOR
    async def RedriveDeadLetters(
        self, request: pb.RedriveDeadLettersRequest, context: Context
    ) -> pb.RedriveDeadLettersResponse:
        self._check(request)
        letters, js = self._consumer.dead_letters, self._consumer.js
        response = pb.RedriveDeadLettersResponse()
        last = await letters.last_sequence(js)  # what fails again comes behind it, and is not tried for ever
        page = [await self._known(request.sequence)] if not request.all else await letters.page(js, 0, 20)
        while page:
            for letter in page:
                await self._redrive(letter, response)
            behind = page[-1].sequence
            page = await letters.page(js, behind, 20) if request.all else []
            page = [letter for letter in page if letter.sequence <= last]
        log.info("dead letters redriven", by=caller().subject, handled=response.handled, failed=response.failed)
        return response

    @OPERATOR
    async def DiscardDeadLetter(
        self, request: pb.DiscardDeadLetterRequest, context: Context
    ) -> pb.DiscardDeadLetterResponse:
        self._check(request)
        letter = await self._known(request.sequence)
        await self._consumer.dead_letters.discard(self._consumer.js, letter, caller().subject, request.reason)
        log.info("dead letter discarded", by=caller().subject, sequence=letter.sequence, subject=letter.subject)
        return pb.DiscardDeadLetterResponse()

    @OPERATOR
    async def PauseConsumer(self, request: pb.PauseConsumerRequest, context: Context) -> pb.PauseConsumerResponse:
        self._check(request)
        await self._consumer.pause(request.until.ToDatetime(UTC))
        log.info("consumer paused", by=caller().subject, until=request.until.ToJsonString())
        return pb.PauseConsumerResponse()

    @OPERATOR
    async def ResumeConsumer(self, request: pb.ResumeConsumerRequest, context: Context) -> pb.ResumeConsumerResponse:
        self._check(request)
        await self._consumer.pause(datetime.fromtimestamp(0, UTC))
        log.info("consumer resumed", by=caller().subject)
        return pb.ResumeConsumerResponse()

    async def _redrive(self, letter: DeadLetter, response: pb.RedriveDeadLettersResponse) -> None:
        letters, js = self._consumer.dead_letters, self._consumer.js
        failure = await self._consumer.redrive(letter)
        if failure is None:
            response.handled += 1
        else:
            response.failed += 1
            history = [*letter.history, failure]
            await letters.bury(js, letter.subject, letter.data, letter.headers, letter.stream_sequence, history)
        await letters.remove(js, letter.sequence)

    def _check(self, request: ForOneService) -> None:
        if request.service != self._name:
            raise OtherService(f"this is {self._name}, not {request.service}; say it in the header 'service' too")

    async def _known(self, sequence: int) -> DeadLetter:
        letter = await self._consumer.dead_letters.get(self._consumer.js, sequence)
        if letter is None:
            raise UnknownDeadLetter(f"{self._name} has no dead letter {sequence}")
        return letter


def _message(letter: DeadLetter) -> pb.DeadLetter:
    history = []
    for failure in letter.history:
        time = Timestamp()
        time.FromDatetime(datetime.fromisoformat(failure.time))
        history.append(pb.Failure(time=time, reason=failure.reason, tries=failure.tries))
    return pb.DeadLetter(
        sequence=letter.sequence,
        event=letter.subject,
        reservation_id=letter.headers.get("ce-subject", ""),
        stream_sequence=letter.stream_sequence,
        history=history,
    )


def _json(cls: type[Message], data: bytes) -> str:
    try:
        return json_format.MessageToJson(cls.FromString(data), indent=None)
    except (DecodeError, ValueError):
        return ""


def register(server: Server, name: str, consumer: Consumer, outbox: OutboxStore | None) -> None:
    """Adds the operations to a service's server."""
    rpc.add_OperationsServiceServicer_to_server(OperationsServicer(name, consumer, outbox), server)
