"""Looking after a service over gRPC: every service serves it about itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
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

from .. import paging
from ..caller import allow, caller
from ..errors import Answer, Errors, Stopping
from ..lifecycle import draining
from ..telemetry import REPLICA, log, measured
from .books import Check
from .consumer import Consumer
from .erasure import Eraser, PersonActive
from .outbox import OutboxStore, PublishFailed
from .setaside import Kind, Letter

Context = ServicerContext[Any, Any]
OPERATOR = allow("operator")


CLOCKS = 5.0  # seconds by which the clocks of replicas differ at most
REPORT_EVERY = 0.1  # seconds between two reports while something is waited for
STREAM_AWAY = Answer(
    StatusCode.UNAVAILABLE, "STREAM_UNAVAILABLE", message="the event stream cannot be reached: repeat the call"
)


ACTIVE = "the person has a booking that is not over: cancel it, or wait until its day has passed"


class UnknownDeadLetter(Exception):
    """The consumer has no such dead letter, or no more."""


class OtherService(Exception):
    """The request is meant for another service."""


class NoBooks(Exception):
    """The service keeps no accounts."""


ERRORS = Errors(
    "vaccination.operations",
    {
        UnknownDeadLetter: Answer(StatusCode.NOT_FOUND, "UNKNOWN_DEAD_LETTER", "sequence"),
        PersonActive: Answer(StatusCode.FAILED_PRECONDITION, "PERSON_ACTIVE", "subject"),
        OtherService: Answer(StatusCode.INVALID_ARGUMENT, "OTHER_SERVICE", "service"),
        NoBooks: Answer(StatusCode.INVALID_ARGUMENT, "NO_BOOKS", "service"),
        PublishFailed: STREAM_AWAY,
        nats.errors.Error: STREAM_AWAY,
    },
)


class ForOneService(Protocol):
    """Every request says which service it is meant for."""

    service: str


class OperationsServicer(rpc.OperationsServiceServicer):
    """For operators."""

    def __init__(
        self,
        name: str,
        consumer: Consumer,
        outbox: OutboxStore | None,
        eraser: Eraser,
        check: Callable[[], Check] | None = None,
    ) -> None:
        self._name, self._consumer, self._outbox, self._eraser = name, consumer, outbox, eraser
        self._check_of_books = check
        self._letters = consumer.set_aside

    @OPERATOR
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        self._check(request)
        depth, oldest = await self._outbox.backlog() if self._outbox else (0, 0.0)
        info = await self._consumer.info()
        parked = (await self._letters.waiting())[Kind.PARKED]
        status = pb.GetStatusResponse(
            outbox_depth=depth,
            outbox_oldest_seconds=oldest,
            consumer_pending=info.num_pending or 0,
            consumer_in_flight=info.num_ack_pending or 0,
            consumer_redelivered=info.num_redelivered or 0,
            dead_letters=await self._letters.dead(),
            parked=parked.total(),
            parked_events=[pb.ParkedEvents(event=event, count=count) for event, count in sorted(parked.items())],
        )
        if info.paused and info.config.pause_until:
            status.consumer_paused_until.FromJsonString(info.config.pause_until)
        return status

    @OPERATOR
    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        self._check(request)
        samples = [pb.Sample(name=s.name, labels=s.labels, value=s.value) for s in measured(request.names)]
        return pb.GetMetricsResponse(replica=REPLICA, samples=samples)

    @OPERATOR
    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        self._check(request)
        kind, what = (Kind.PARKED, "parked events") if request.parked else (Kind.DEAD, "dead letters")
        limit, listing = request.page_size or 100, f"{what} of {self._name}"
        [after] = paging.decode(listing, request.page_token, int) or [0]
        found = await self._letters.page(kind, after, limit + 1)
        letters, token = paging.cut(listing, found, limit, lambda letter: (str(letter.sequence),))
        return pb.ListDeadLettersResponse(dead_letters=[_message(x) for x in letters], next_page_token=token)

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
        if not request.all:
            handled = await self._consumer.redrive(await self._known(request.sequence))
            log.info("dead letter redriven", by=caller().subject, sequence=request.sequence, handled=handled)
            return pb.RedriveDeadLettersResponse(handled=int(handled), failed=int(not handled))
        async for progress in self._redrive_all():
            response = pb.RedriveDeadLettersResponse(handled=progress.handled, failed=progress.failed)
        return response

    @OPERATOR
    async def RedriveAllDeadLetters(
        self, request: pb.RedriveAllDeadLettersRequest, context: Context
    ) -> AsyncIterator[pb.RedriveAllDeadLettersResponse]:
        self._check(request)
        async for progress in self._redrive_all():
            yield progress

    async def _redrive_all(self) -> AsyncIterator[pb.RedriveAllDeadLettersResponse]:
        progress = pb.RedriveAllDeadLettersResponse(left=await self._letters.dead())
        last = await self._letters.last_sequence()  # what fails again comes behind it, and is not tried for ever
        behind = 0
        while page := [x for x in await self._letters.page(Kind.DEAD, behind, 20) if x.sequence <= last]:
            yield progress
            for letter in page:
                if draining.is_set():
                    raise Stopping
                handled = await self._consumer.redrive(letter)
                progress.handled += handled
                progress.failed += not handled
                progress.left = max(0, progress.left - 1)
            behind = page[-1].sequence
        log.info("dead letters redriven", by=caller().subject, handled=progress.handled, failed=progress.failed)
        progress.left = 0
        yield progress

    @OPERATOR
    async def DiscardDeadLetter(
        self, request: pb.DiscardDeadLetterRequest, context: Context
    ) -> pb.DiscardDeadLetterResponse:
        self._check(request)
        letter = await self._known(request.sequence)
        await self._letters.discard(letter, caller().subject, request.reason)
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

    @OPERATOR
    async def ErasePerson(
        self, request: pb.ErasePersonRequest, context: Context
    ) -> AsyncIterator[pb.ErasePersonResponse]:
        self._check(request)
        progress, eraser = pb.ErasePersonResponse(looked_at=request.after), self._eraser
        # What a late event told of the person would be there again.
        target = await self._consumer.last_sequence()
        async for progress.to_go in _until_nothing(lambda: self._consumer.to_go(target)):
            yield progress
        if eraser.stream is not None:
            if eraser.is_active is not None and await eraser.is_active(request.subject):
                raise PersonActive(ACTIVE)
            async for found in eraser.stream.erase(request.subject, request.after):
                if draining.is_set():
                    raise Stopping
                progress.events, progress.looked_at, progress.to_go = found.deleted, found.looked_at, found.to_go
                yield progress
        rows = await eraser.rows(request.subject)
        if rows is None:
            raise PersonActive(ACTIVE)
        progress.rows = rows
        async for progress.to_go in _until_nothing(self._older_than(time.monotonic())):
            yield progress
        log.info("person erased", by=caller().subject, rows=rows, events=progress.events)
        progress.to_go = 0
        yield progress

    @OPERATOR
    async def CheckBooks(self, request: pb.CheckBooksRequest, context: Context) -> AsyncIterator[pb.CheckBooksResponse]:
        self._check(request)
        if self._check_of_books is None:
            raise NoBooks(f"{self._name} keeps no books; approval and vaccinemgmt do")
        answer, differences = pb.CheckBooksResponse(), 0
        async for progress in self._check_of_books().run():
            if draining.is_set():
                raise Stopping
            answer = pb.CheckBooksResponse(
                events_to_go=progress.to_go,
                accounts=progress.accounts,
                complete=progress.complete,
                differences=[pb.Difference(**asdict(difference)) for difference in progress.differences],
            )
            differences += len(answer.differences)
            yield answer
        log.info("books checked", by=caller().subject, accounts=answer.accounts, differences=differences)
        answer.done = True
        yield answer

    def _older_than(self, moment: float) -> Callable[[], Awaitable[int]]:
        """How many events wait in the outbox, as long as one of them was there at that moment."""

        async def waiting() -> int:
            since = time.monotonic() - moment
            depth, oldest = await self._outbox.backlog() if self._outbox else (0, 0.0)
            return depth if oldest + CLOCKS > since else 0

        return waiting

    def _check(self, request: ForOneService) -> None:
        if request.service != self._name:
            raise OtherService(f"this is {self._name}, not {request.service}; say it in the header 'service' too")

    async def _known(self, sequence: int) -> Letter:
        letter = await self._letters.get(sequence)
        if letter is None:
            raise UnknownDeadLetter(f"{self._name} has no dead letter {sequence}")
        return letter


async def _until_nothing(left: Callable[[], Awaitable[int]]) -> AsyncIterator[int]:
    """Tells how many are left until none are; raises Stopping."""
    while to_go := await left():
        yield to_go
        if draining.is_set():
            raise Stopping
        await asyncio.sleep(REPORT_EVERY)


def _message(letter: Letter) -> pb.DeadLetter:
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
        parked=letter.kind is Kind.PARKED,
    )


def _json(cls: type[Message], data: bytes) -> str:
    try:
        return json_format.MessageToJson(cls.FromString(data), indent=None)
    except (DecodeError, ValueError):
        return ""


def register(
    server: Server,
    name: str,
    consumer: Consumer,
    outbox: OutboxStore | None,
    eraser: Eraser,
    check: Callable[[], Check] | None = None,
) -> None:
    """Adds the operations to a service's server. `check` begins a check of its books, if it keeps any."""
    rpc.add_OperationsServiceServicer_to_server(OperationsServicer(name, consumer, outbox, eraser, check), server)
