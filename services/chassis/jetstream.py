"""The event stream: connection, streams, publishing in atomic batches, and durable pull consumers."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import NotFoundError

from . import tracing
from .deadletters import STREAM as DEAD_LETTERS
from .deadletters import DeadLetter, DeadLetters, Failure
from .edge import violations
from .errors import InvalidFields, StoreUnavailable
from .outbox import Outgoing, Refused
from .telemetry import events_dead, events_failed, events_handled, log, traces_by_key

STREAM = "VACCINATION"
BATCH = 256
# Seconds until a message goes to another replica when the one that has it has gone, or hangs. One that lives says so
# three times as often, however long its store keeps it.
ACK_WAIT = 10.0
# A pull request ends before a message can come back: else a hung replica would be given it once more.
PULL_EXPIRES = 7.0
HEARTBEAT = 3.0  # seconds, less than half of PULL_EXPIRES; two missed: the pull request is lost and made anew
# Seconds after its last pull request for which the one replica that is given messages, where only one is, stays it.
# Longer than a pull request, else they would take turns; shorter than ACK_WAIT, else one that hangs would be given
# again what it has.
PINNED = 9.0
GROUP = "replicas"
PUBLISH_TIMEOUT = 5.0
MAX_TRIES = 5  # of a message whose handling fails for a reason of its own
ROLLOUT_TRIES = 21  # of one that this version does not know: half an hour for an update to reach every replica
MAX_PAUSE = 30.0  # seconds between tries, and between looks at a store that is away
ROLLOUT_PAUSE = 120.0  # seconds between tries of what this version does not know
# Deliveries after which an event is taken to kill whoever handles it. A handler that fails ends at MAX_TRIES, so more
# than that are deaths, hangs and restarts in a row; this many are no accident, and more than an event may have had
# before the first replica that knows it.
MAX_DELIVERIES = 25


class Unprocessable(Exception):
    """The event can never be handled, however often it is tried: it goes to the dead letters at once."""


class PublishFailed(Exception):
    """The stream did not acknowledge; the messages may be in it or not."""


class KilledItsProcess(Exception):
    """Delivered again and again, and no process lived to say how it went."""


class _NoHandler(Exception):
    """Not an event that this process knows. Another replica may: a newer one, while an update is rolled out."""


@dataclass(frozen=True)
class Event:
    """A received event. `message` is the protobuf message of its type, checked against the contract's rules."""

    id: str
    key: str
    type: str
    time: datetime
    message: Any


Handler = Callable[[Sequence[Event]], Awaitable[None]]


class Bus:
    """One connection to NATS."""

    def __init__(self, url: str, user: str, password: str, name: str, replicas: int) -> None:
        self._url, self._user, self._password, self._name, self._replicas = url, user, password, name, replicas
        self._nats: Client | None = None
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
        with _boundary():
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
            await self._ensure_stream(STREAM, ["vaccination.*.v1.*"], allow_atomic=True)
            await self._ensure_stream(DEAD_LETTERS, [f"{DEAD_LETTERS}.*", f"{DEAD_LETTERS}.*.discarded"])

    async def forget(self, consumer: str) -> None:
        """Deletes a durable consumer: made again, it begins at the stream's beginning."""
        try:
            await self.js.delete_consumer(STREAM, consumer)
        except NotFoundError:
            pass

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

        Raises Refused when it has all but some, and does answer, and PublishFailed when it does not.
        """
        with _boundary():
            if len(rows) > 1 and await self._publish_atomic(rows):
                return
            sent = await asyncio.gather(*map(self._publish_one, rows), return_exceptions=True)
            reasons = {
                row.id: f"{type(error).__name__} {error}"
                for row, error in zip(rows, sent, strict=True)
                if isinstance(error, BaseException)
            }
            if reasons:
                await self._answers()
                raise Refused(reasons)

    async def _publish_one(self, row: Outgoing) -> None:
        connection, headers = self._connection(), row.headers()
        if _size(row.payload, headers) > connection.max_payload:  # the server would cut the connection
            raise nats.errors.MaxPayloadError
        await self.js.publish(row.subject, row.payload, headers=headers)

    async def _publish_atomic(self, rows: Sequence[Outgoing]) -> bool:
        """All or nothing in one round trip; False when the server does not take the batch: then one by one.

        It has one of them already, or will never have one of them, which a silence may mean too.
        """
        connection = self._connection()
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
        await self._connection().jetstream(timeout=1.0).stream_info(STREAM)

    def _connection(self) -> Client:
        if self._nats is None or not self.connected:
            raise PublishFailed("not connected")
        return self._nats

    async def _ensure_stream(self, name: str, subjects: list[str], **options: bool) -> None:
        # Raw, since nats-py's StreamConfig does not know allow_atomic.
        config = {
            "name": name,
            "subjects": subjects,
            "storage": "file",
            "retention": "limits",
            "num_replicas": self._replicas,
            "duplicate_window": 120_000_000_000,
            **options,
        }
        error = (await self.ask(f"STREAM.CREATE.{name}", config, within=10)).get("error")
        if error and error.get("err_code") == 10058:  # exists, made by other settings: an operator's to change
            log.warning("the stream is not as this version would make it", stream=name, wanted=config)
        elif error:
            raise PublishFailed(f"stream {name}: {error.get('description')}")

    async def ask(self, what: str, body: Mapping[str, Any], within: float) -> dict[str, Any]:
        """JetStream's answer to what nats-py has no words for; the caller looks for an error in it."""
        reply = await self._connection().request(f"$JS.API.{what}", json.dumps(body).encode(), timeout=within)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    async def _on_error(self, error: Exception) -> None:
        log.warning("nats", error=type(error).__name__)

    async def _on_reconnected(self) -> None:
        for call in self.reconnected:
            call()


def _size(payload: bytes, headers: Mapping[str, str]) -> int:
    """Of a message, as the server measures it: "NATS/1.0", "name: value" for each header, an empty line."""
    return len(payload) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12


@contextmanager
def _boundary() -> Iterator[None]:
    try:
        yield
    except (nats.errors.Error, OSError, TimeoutError) as error:  # JetStream's own errors are among nats.errors.Error
        raise PublishFailed(f"{type(error).__name__} {error}") from error


@contextmanager
def _steps(consumer: str, traces: Sequence[tuple[Event, str]]) -> Iterator[None]:
    """Handling a batch is a step in each of its events' traces, and what comes out of an event goes on from there."""
    if not tracing.exporting():
        traces_by_key.set({event.key: trace for event, trace in traces})
        yield
        return
    group = {"messaging.consumer.group.name": consumer}
    steps = []
    for event, trace in traces:
        about = tracing.of_message("process", event.type, len(traces)) | group
        steps.append(tracing.begin(f"process {event.type}", "CONSUMER", trace, about))
    traces_by_key.set({event.key: step.traceparent for (event, _), step in zip(traces, steps, strict=True)})
    failed = True
    try:
        yield
        failed = False
    finally:
        for step in steps:
            step.end(failed=failed)


class Consumer:
    """A durable pull consumer, shared by a service's replicas, and its handlers by message class.

    Messages are handled in batches, all of a handler's in one call (order does not matter to it); a batch is
    acknowledged after its handler has returned, that is after its commit. When the store is away the batch in hand is
    kept and tried again, without counting. When a batch fails otherwise its messages are tried one by one; one that
    still fails is delivered again after growing pauses, and moves to the dead letters after MAX_TRIES; nothing behind
    it waits. One that comes more often than that may have killed the processes that had it in hand, with all else that
    they had: it is handled behind all others and alone, and moves to the dead letters after MAX_DELIVERIES.

    `single_active`: the server gives messages to one replica, and to another when that one has gone or hangs. For
    handlers that want the same rows: replicas would lose races and find that out after the work.
    """

    def __init__(
        self,
        bus: Bus,
        name: str,
        handlers: Mapping[type[Message], Handler],
        keep_dead_letters: bool = True,
        single_active: bool = False,
    ) -> None:
        self._bus, self._name, self._keep_dead_letters = bus, name, keep_dead_letters
        self._single_active, self._pin = single_active, ""
        self._made_otherwise = False  # by a replica of another version, which wants it otherwise
        self._handlers = {cls.DESCRIPTOR.full_name: (cls, handler) for cls, handler in handlers.items()}
        self._inbox: asyncio.Queue[Msg | None] = asyncio.Queue()  # None: look how the pull request is
        self._in_hand: dict[str, Msg] = {}
        self._stopping = asyncio.Event()
        self._requested = 0
        self._heard = 0.0
        self.dead_letters = DeadLetters(name)
        bus.reconnected.append(self._lost)

    async def ensure(self, since: datetime | None = None) -> None:
        """Makes the durable consumer if it is missing, or brings it up to date; raises PublishFailed.

        `since` is for one that begins later than with the stream's first message.
        """
        subjects = set(self._handlers)
        policy = DeliverPolicy.ALL if since is None else DeliverPolicy.BY_START_TIME
        with _boundary():
            try:
                # Only ever wider: an old replica that restarts during an update must not hide events from new ones.
                present = (await self._bus.js.consumer_info(STREAM, self._name)).config
                subjects |= {*(present.filter_subjects or ()), *filter(None, [present.filter_subject])}
            except NotFoundError:
                pass
            config = ConsumerConfig(
                durable_name=self._name,
                filter_subjects=sorted(subjects),
                deliver_policy=policy,
                opt_start_time=since,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT,
                max_deliver=-1,
                max_ack_pending=8 * BATCH,
            ).as_dict()
            if self._single_active:
                group = {"priority_groups": [GROUP], "priority_policy": "pinned_client"}
                config |= group | {"priority_timeout": int(PINNED * 1e9)}
            # Raw, since nats-py's ConsumerConfig does not know priority groups.
            wanted = {"stream_name": STREAM, "config": config}
            made = await self._bus.ask(f"CONSUMER.DURABLE.CREATE.{STREAM}.{self._name}", wanted, PUBLISH_TIMEOUT)
            if error := made.get("error"):
                raise PublishFailed(f"consumer {self._name}: {error.get('description')}")

    def forget(self) -> None:
        """The connection outlives this consumer: it need not hear of reconnections any more."""
        self._bus.reconnected.remove(self._lost)

    def stop(self) -> None:
        """Ends `run` after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Handles messages until `stop`."""
        subscription = None
        stopping = asyncio.create_task(self._stopping.wait())
        keeping = asyncio.create_task(self._keep())
        try:
            while not self._stopping.is_set():
                silent = time.monotonic() - self._heard > 2.5 * HEARTBEAT
                if subscription is None or silent or self._made_otherwise:
                    if subscription is not None:
                        await self._quietly(subscription.unsubscribe())
                    subscription = await self._quietly(self._listen())
                    if subscription is None:
                        await asyncio.wait([stopping], timeout=1.0)
                        continue
                getting = asyncio.create_task(self._inbox.get())
                done, _ = await asyncio.wait(
                    [getting, stopping], timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED
                )
                if getting not in done:
                    getting.cancel()
                    continue
                found = [getting.result()]
                while len(found) < BATCH and not self._inbox.empty():
                    found.append(self._inbox.get_nowait())
                if self._heard and self._requested < BATCH / 2:
                    await self._quietly(self._request(subscription.subject))
                messages = [message for message in found if message is not None]
                await self._handle(messages)
                for handled in messages:
                    self._in_hand.pop(handled.reply, None)
        finally:
            stopping.cancel()
            keeping.cancel()
            if subscription is not None:
                await self._quietly(subscription.drain())  # what is on its way to us arrives, and nothing more
            if self._pin:
                await self._quietly(self._unpin())
            while not self._inbox.empty():  # not begun: another replica need not wait for the ack to time out
                if message := self._inbox.get_nowait():
                    await self._quietly(message.nak())

    async def _keep(self) -> None:
        """While this process lives, nobody else is given what it has in hand."""
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            for message in list(self._in_hand.values()):
                if self._bus.connected and not message.is_acked:
                    await self._quietly(message.in_progress())

    async def _listen(self) -> Any:
        connection = self._bus._connection()
        try:
            await self._bus.js.consumer_info(STREAM, self._name)
            there = True
        except NotFoundError:  # deleted, perhaps to begin anew; one that is there may be a newer replica's
            there = False
        if not there or self._made_otherwise:
            await self.ensure()
        self._made_otherwise = False
        self._requested, self._heard = 0, time.monotonic()
        subscription = await connection.subscribe(connection.new_inbox(), cb=self._on_message)
        await self._request(subscription.subject)
        return subscription

    async def _request(self, inbox: str) -> None:
        # A standing pull request on our own inbox: p99 8 ms where fetch() had 56 ms.
        body: dict[str, Any] = {"batch": BATCH}
        body |= {"expires": int(PULL_EXPIRES * 1e9), "idle_heartbeat": int(HEARTBEAT * 1e9)}
        if self._single_active:
            body |= {"group": GROUP, "id": self._pin} if self._pin else {"group": GROUP}
        await self._bus._connection().publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self._name}", json.dumps(body).encode(), reply=inbox
        )
        self._requested += BATCH

    async def _unpin(self) -> None:
        """Another replica need not wait until this one is missed."""
        await self._bus.ask(f"CONSUMER.UNPIN.{STREAM}.{self._name}", {"group": GROUP}, within=1)

    async def _on_message(self, message: Msg) -> None:
        self._heard = time.monotonic()
        status = (message.headers or {}).get("Status")
        if status is None:
            self._requested -= 1
            self._pin = (message.headers or {}).get("Nats-Pin-Id", "")
            self._made_otherwise |= self._single_active and not self._pin
        elif status == "100":
            return
        else:  # the pull request has ended: expired, or the server lost or refused it
            if status == "423":  # another replica is the one now
                self._pin = ""
            left = (message.headers or {}).get("Nats-Pending-Messages")
            self._requested = max(0, self._requested - int(left)) if left else 0
            if status == "400":  # not for this kind of request; looked at with the next heartbeat, not at once
                self._made_otherwise = True
                return
            if status not in ("408", "409", "423"):
                self._lost()  # consumer or stream gone
            self._inbox.put_nowait(None)
            return
        self._in_hand[message.reply] = message
        self._inbox.put_nowait(message)

    def _lost(self) -> None:
        """The server does not know of our pull request any more: listens anew."""
        self._heard = 0.0
        self._inbox.put_nowait(None)

    async def _quietly(self, doing: Awaitable[Any]) -> Any:
        try:
            return await doing
        except (nats.errors.Error, PublishFailed, OSError, TimeoutError) as error:
            log.warning("stream not reached", consumer=self._name, error=type(error).__name__)
            return None

    async def _handle(self, messages: Sequence[Msg]) -> None:
        await self._handle_together([m for m in messages if m.metadata.num_delivered <= MAX_TRIES])
        suspects = [m for m in messages if m.metadata.num_delivered > MAX_TRIES]
        # Who goes down with the culprit time after time is before it the next time, or the one after.
        random.shuffle(suspects)
        for message in sorted(suspects, key=lambda m: m.metadata.num_delivered):
            # If this is the end, what was acknowledged before has arrived.
            await self._quietly(self._flush())
            deliveries = message.metadata.num_delivered
            if deliveries > MAX_DELIVERIES:
                await self._quietly(self._bury(message, KilledItsProcess(f"{deliveries} deliveries, no outcome")))
            else:
                await self._handle_together([message])

    async def _flush(self) -> None:
        await self._bus._connection().flush(timeout=2)

    async def _handle_together(self, messages: Sequence[Msg]) -> None:
        runs: dict[Handler, list[tuple[Msg, Event]]] = {}
        for message in messages:
            try:
                event = self._decode(message.subject, message.data, message.headers or {})
            except Unprocessable as error:
                await self._quietly(self._bury(message, error))
                continue
            except _NoHandler as error:
                await self._quietly(self._failed(message, error))
                continue
            runs.setdefault(self._handlers[event.type][1], []).append((message, event))
        for handler, run in runs.items():
            await self._handle_run(handler, run)

    async def _handle_run(self, handler: Handler, run: Sequence[tuple[Msg, Event]]) -> None:
        traces = [(event, (message.headers or {}).get("traceparent", "")) for message, event in run]
        pause = 0.1
        while True:
            try:
                with _steps(self._name, traces):
                    await handler([event for _, event in run])
            except StoreUnavailable:
                log.warning("store away: events wait", consumer=self._name, waiting=len(run))
                try:
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                    return  # draining: not acknowledged, so another replica will have them
                except TimeoutError:
                    pause = min(pause * 2, MAX_PAUSE / 3)
            except Exception as error:
                if len(run) > 1:
                    for one in run:
                        await self._handle_run(handler, [one])
                else:
                    await self._quietly(self._failed(run[0][0], error))
                return
            else:
                for message, event in run:
                    await self._quietly(message.ack())
                    events_handled.labels(event.type).inc()
                return

    def _decode(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Event:
        if subject not in self._handlers:
            raise _NoHandler(f"{self._name} has no handler for {subject}")
        body = self._handlers[subject][0]()
        try:
            body.ParseFromString(data)
            event = Event(
                headers["ce-id"],
                headers["ce-subject"],
                subject,
                datetime.fromisoformat(headers["ce-time"]),
                body,
            )
        except (DecodeError, KeyError, ValueError) as error:
            raise Unprocessable(f"undecodable: {type(error).__name__}") from error
        if broken := violations(body):
            raise Unprocessable("; ".join(f"{field}: {problem}" for field, problem in broken))
        return event

    async def _failed(self, message: Msg, error: Exception) -> None:
        tries = message.metadata.num_delivered
        unknown = isinstance(error, _NoHandler)
        enough, longest = (ROLLOUT_TRIES, ROLLOUT_PAUSE) if unknown else (MAX_TRIES, MAX_PAUSE)
        if isinstance(error, Unprocessable | InvalidFields) or tries >= enough:
            await self._bury(message, error)
        else:
            events_failed.labels(message.subject).inc()
            log.warning("event not handled", consumer=self._name, subject=message.subject, tries=tries, exc_info=error)
            await message.nak(delay=min(2.0 ** (tries - 1), longest))

    async def _bury(self, message: Msg, error: Exception) -> None:
        sequence = message.metadata.sequence.stream
        history = [Failure.of(error, message.metadata.num_delivered)]
        headers = message.headers or {}
        if self._keep_dead_letters:
            await self.dead_letters.bury(self.js, message.subject, message.data, headers, sequence, history)
        events_dead.labels(message.subject).inc()
        log.error("event moved to the dead letters", consumer=self._name, subject=message.subject, sequence=sequence)
        await message.term()

    # Operations

    @property
    def js(self) -> JetStreamContext:
        """See Bus.js."""
        return self._bus.js

    async def info(self) -> ConsumerInfo:
        """How far it is; raises PublishFailed."""
        with _boundary():
            info: ConsumerInfo = await self.js.consumer_info(STREAM, self._name)
            return info

    async def last_sequence(self) -> int:
        """The number of the stream's last event; raises PublishFailed."""
        with _boundary():
            return (await self.js.stream_info(STREAM)).state.last_seq

    async def time_of(self, sequence: int) -> datetime | None:
        """When the stream took an event, or the next one it has; None when there is none."""
        with _boundary():
            try:
                return (await self.js.get_msg(STREAM, seq=sequence, subject=">", next=True)).time
            except NotFoundError:
                return None

    async def pause(self, until: datetime) -> None:
        """No deliveries before that time, in all replicas and across restarts; the past: goes on."""
        with _boundary():
            await self.js.pause_consumer(STREAM, self._name, until.isoformat().replace("+00:00", "Z"))

    def message_class(self, subject: str) -> type[Message] | None:
        """The protobuf message of a subject that it handles."""
        known = self._handlers.get(subject)
        return known[0] if known else None

    async def redrive(self, letter: DeadLetter) -> Failure | None:
        """Hands a dead letter to its handler once more; why it failed again, or None."""
        try:
            event = self._decode(letter.subject, letter.data, letter.headers)
            with _steps(self._name, [(event, letter.headers.get("traceparent", ""))]):
                await self._handlers[event.type][1]([event])
        except StoreUnavailable:
            raise
        except Exception as error:
            return Failure.of(error, 1)
        return None
