"""The event stream: the connection, its streams, and publishing in atomic batches."""

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError

from ..telemetry import log
from .outbox import Outgoing, PublishFailed, Refused

STREAM = "VACCINATION"
SET_ASIDE = "DEAD_LETTERS"  # what is in it: see setaside.py
SUBJECTS = {
    STREAM: ("vaccination.*.v1.*",),
    SET_ASIDE: (f"{SET_ASIDE}.*", f"{SET_ASIDE}.*.discarded", f"{SET_ASIDE}.*.parked.>", f"{SET_ASIDE}.*.retry.>"),
}
PUBLISH_TIMEOUT = 5.0
# Messages from which on they are published as one atomic batch, for which the server makes a store in a folder of its
# own: measured, 4.4 ms of its CPU however many they are, where single ones take 0.4 ms together and 0.2 ms each.
ATOMIC = 12
# Codes of refusals that pass: the same message is being stored right now (a replicated stream), and too many requests.
NOT_NOW = (409, 429)
NO_QUOTA = 10002  # the account's storage is used up, which has the code of a bad request
SILENCES = 3  # after so many in a row, while others are taken, the silence is about the event
# The client's words when the server forbids to publish to a subject, whose name the client puts into small letters.
FORBIDDEN = re.compile('permissions violation for publish to "([^"]+)"')
# What a publication ends with while the stream is away, besides a silence.
AWAY = (
    PublishFailed,
    OSError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.StaleConnectionError,
)


class Bus:
    """One connection to NATS."""

    def __init__(self, url: str, user: str, password: str, name: str, replicas: int) -> None:
        self._url, self._user, self._password, self._name, self._replicas = url, user, password, name, replicas
        self._nats: Client | None = None
        self._unanswered = Counter[str]()  # how often nothing was said of an event while others were taken, by its id
        self._forbidden: set[str] = set()  # subjects that this connection may not publish to, in small letters
        self.reconnected: list[Callable[[], None]] = []
        """Called after each reconnection: the server has forgotten what was asked of it."""

    @property
    def connected(self) -> bool:
        """Whether what is sent now reaches the server; else it would pile up in memory."""
        return self._nats is not None and self._nats.is_connected

    @property
    def js(self) -> JetStreamContext:
        """The JetStream context; raises PublishFailed before the first connection."""
        if self._nats is None:
            raise PublishFailed("not connected yet")
        return self._nats.jetstream(timeout=PUBLISH_TIMEOUT)

    async def connect(self) -> None:
        """Connects, and makes the two streams if they are missing; from then on reconnects by itself for ever."""
        with boundary():
            if self._nats is None:
                self._nats = await nats.connect(
                    servers=self._url.split(","),
                    user=self._user,
                    password=self._password,
                    name=self._name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.5,
                    connect_timeout=5,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    # What is published while away must fail and stay in the outbox, not pile up in memory.
                    pending_size=4 * 1024 * 1024,
                    error_cb=self._on_error,
                    reconnected_cb=self._on_reconnected,
                )
            for name in SUBJECTS:
                await self._ensure_stream(name)

    async def forget(self, consumer: str) -> None:
        """Deletes a durable consumer: made again, it begins at the stream's beginning."""
        with boundary():
            try:
                await self.js.delete_consumer(STREAM, consumer)
            except NotFoundError:
                pass

    async def first_since(self, stream: str, moment: datetime) -> int:
        """The number of the first message that a stream took at that moment or later, or one behind the last."""
        state = (await self.js.stream_info(stream)).state
        first, end = state.first_seq, state.last_seq + 1
        while first < end:
            middle = (first + end) // 2
            try:
                message = await self.js.get_msg(stream, seq=middle, subject=">", next=True)
            except NotFoundError:  # nothing is left from there on
                end = middle
                continue
            if message.time is not None and message.time < moment:
                first = (message.seq or middle) + 1
            else:
                end = middle
        return first

    async def close(self) -> None:
        """Sends what is buffered (acknowledgements) and closes."""
        if self._nats is not None:
            try:
                if self._nats.is_connected:
                    await self._nats.flush(timeout=2)
            except (nats.errors.Error, OSError, TimeoutError):
                pass  # away: what it did not hear of comes again, to whoever is there then
            await self._nats.close()

    async def publish(self, rows: Sequence[Outgoing]) -> None:
        """Returns when the stream has all of them.

        Raises Refused when it has all but some, which it will not take as they are, and PublishFailed when some are not
        taken here and now: it is away, says nothing, or has no room. Then it may have the others or not.
        """
        with boundary():
            if len(rows) >= ATOMIC and await self._publish_atomic(rows):
                return
            sent = await asyncio.gather(*map(self._publish_one, rows), return_exceptions=True)
            failed = [(row, error) for row, error in zip(rows, sent, strict=True) if isinstance(error, BaseException)]
            reasons = {row.id: f"{type(error).__name__} {error}" for row, error in failed}
            if len(failed) < len(rows):
                self._unanswered = Counter(
                    {r.id: self._unanswered[r.id] + 1 for r, error in failed if isinstance(error, TimeoutError)}
                )
            for row, error in failed:
                if not self._is_to_blame(row, error):
                    raise PublishFailed(reasons[row.id]) from error
            if reasons:
                await self._answers()
                raise Refused(reasons)

    async def _publish_one(self, row: Outgoing) -> None:
        connection, headers = self.connection(), row.headers()
        if _size(row.payload, headers) > connection.max_payload:  # the server would cut the connection
            raise nats.errors.MaxPayloadError
        await self.js.publish(row.subject, row.payload, headers=headers)

    def _is_to_blame(self, row: Outgoing, error: BaseException) -> bool:
        """Whether the stream will not take this event as it is, whatever the state that the server is in.

        A server whose disk is full says "insufficient resources", which is 503, or after a write that failed nothing at
        all, while it goes on to answer questions about the stream. It says nothing either, to whoever asks, about what
        may not be published, but it tells the connection. A server in between, such as a leaf node's hub, may drop a
        subject and tell nobody: then others are answered again and again, and this one never.
        """
        if isinstance(error, APIError):
            not_now = error.code in NOT_NOW or error.err_code == NO_QUOTA
            return error.code is not None and error.code < 500 and not not_now
        if isinstance(error, TimeoutError):
            return row.subject.lower() in self._forbidden or self._unanswered[row.id] >= SILENCES
        return not isinstance(error, AWAY)

    async def _publish_atomic(self, rows: Sequence[Outgoing]) -> bool:
        """All or nothing in one round trip; False when the server does not take the batch: then one by one.

        It has one of them already, or will never have one of them, which a silence may mean too.
        """
        connection = self.connection()
        batch = uuid.uuid4().hex
        parts = [
            row.headers() | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(sequence)}
            for sequence, row in enumerate(rows, 1)
        ]
        parts[-1]["Nats-Batch-Commit"] = "1"
        if any(_size(row.payload, part) > connection.max_payload for row, part in zip(rows, parts, strict=True)):
            return False
        for row, part in zip(rows[:-1], parts, strict=False):
            await connection.publish(row.subject, row.payload, headers=part)
        try:
            reply = await connection.request(
                rows[-1].subject, rows[-1].payload, timeout=PUBLISH_TIMEOUT, headers=parts[-1]
            )
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
            await self._answers()
            return False
        answer = json.loads(reply.data)
        return "error" not in answer and bool(answer.get("count") == len(rows))

    async def _answers(self) -> None:
        """Raises an error unless the stream is there and answers: then what was not taken is to blame, not the stream.

        Soon, since rows are held meanwhile: see postgres.IDLE_IN_TRANSACTION.
        """
        await self.connection().jetstream(timeout=1.0).stream_info(STREAM)

    def connection(self) -> Client:
        """The connection; raises PublishFailed unless what is sent now reaches the server."""
        if self._nats is None or not self.connected:
            raise PublishFailed("not connected")
        return self._nats

    async def _ensure_stream(self, name: str) -> None:
        """Makes the stream if it is missing, and adds the subjects that this version needs and it does not have.

        Subjects are only ever added, so that versions beside each other do not take away each other's. Everything else
        of a stream that is there is the operator's to decide.
        """
        try:
            await self.js.add_stream(
                StreamConfig(
                    name=name,
                    subjects=[*SUBJECTS[name]],
                    storage=StorageType.FILE,
                    num_replicas=self._replicas,
                    duplicate_window=120,
                    allow_atomic=name == STREAM,
                )
            )
            return
        except BadRequestError as error:
            if error.err_code != 10058:  # exists, made by other settings or by another version
                raise
        # Raw, so that a setting of the stream that this client does not know stays as it is.
        config = (await self.ask(f"STREAM.INFO.{name}", {}, PUBLISH_TIMEOUT))["config"]
        if missing := [subject for subject in SUBJECTS[name] if subject not in config["subjects"]]:
            log.info("the stream gets subjects", stream=name, subjects=missing)
            config["subjects"] += missing
            answer = await self.ask(f"STREAM.UPDATE.{name}", config, PUBLISH_TIMEOUT)
            if refused := answer.get("error"):
                raise PublishFailed(f"stream {name}: {refused.get('description')}")

    async def ask(self, what: str, body: Mapping[str, Any], within: float) -> dict[str, Any]:
        """JetStream's answer to what nats-py has no words for; the caller looks for an error in it."""
        reply = await self.connection().request(f"$JS.API.{what}", json.dumps(body).encode(), timeout=within)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    async def _on_error(self, error: Exception) -> None:
        if forbidden := FORBIDDEN.search(str(error)):
            self._forbidden.add(forbidden[1])
        log.warning("nats", error=type(error).__name__)

    async def _on_reconnected(self) -> None:
        self._forbidden.clear()  # the server may have been told otherwise
        for call in self.reconnected:
            call()


def _size(payload: bytes, headers: Mapping[str, str]) -> int:
    """Of a message, as the server measures it: "NATS/1.0", "name: value" for each header, an empty line."""
    return len(payload) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12


@contextmanager
def boundary() -> Iterator[None]:
    """Raises PublishFailed for the client's ways to say that the stream cannot be reached."""
    try:
        yield
    except (nats.errors.Error, OSError, TimeoutError) as error:  # JetStream's own errors are among nats.errors.Error
        raise PublishFailed(f"{type(error).__name__} {error}") from error
