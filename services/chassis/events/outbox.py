"""State and event in one transaction; the stream later, from there.

An adapter writes `Outgoing` rows beside the state they tell of. The relay publishes them and removes a row only after
the stream's acknowledgement, so a process killed at any instant leaves either no row and no effect, or a row that this
or another replica will publish. A row published twice is one message: its id is the stream's deduplication key, and
consumers are idempotent by state for what the deduplication window misses.

What was just committed is published from memory. Only a row that is left, since its process died, was too slow or was
refused, is read from the store, by the relay of any replica.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.message import Message

from .. import tracing
from ..contract import violations
from ..errors import StoreUnavailable
from ..retry import Backoff
from ..telemetry import events_published, events_refused, log, outbox_seconds, traceparent, traces_by_key

# Measured: an atomic batch of 500 gives 11,000 messages/s, one of 100 3,400/s; the server's limit is 1,000.
BATCH = 500
# A row left by a dead process waits at most this long, in seconds, for another replica to look, once it is LEFT.
LOOK_EVERY = 1.0
# Seconds from a row's writing after which it counts as left: the process that wrote it would have published it by then.
LEFT = 2.0
# Seconds for which a row is this process's own: shorter than LEFT by the time that publishing it takes.
OURS = 1.0
# Rows that are kept in memory while the stream is slow. What does not fit is read from the store when it is left.
IN_MEMORY = 20 * BATCH
# Seconds between tries of a row that the stream refuses, at most: they double from 2.
REFUSED_PAUSE = 60.0
AWAY = Backoff(first=2.0, longest=5.0)  # between looks while the store or the stream is away


class PublishFailed(Exception):
    """The stream did not acknowledge; the messages may be in it or not."""


class BrokenContract(Exception):
    """An event that a service is about to write breaks the contract's rules: nothing of it is committed."""


class Refused(Exception):
    """The stream took all of a batch but some that it does not take, while it answers; `reasons` by their ids."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"{len(reasons)} events")
        self.reasons = reasons


@dataclass(frozen=True)
class Outgoing:
    """An event on its way: `key` is the correlation key, `subject` the protobuf message's full name."""

    id: str
    key: str
    subject: str
    time: datetime
    traceparent: str
    payload: bytes
    enqueued: datetime | None = None
    """When it was written: by the store's clock if it was read from there, else by this process's."""

    @classmethod
    def of(cls, key: str, at: datetime, message: Message, quoted: Collection[str] = ()) -> "Outgoing":
        """Wraps an event message that happened at `at` to the aggregate `key`; raises BrokenContract.

        Events are checked here, before the commit, where a mistake can still be refused, and by no reader: a reader may
        be older than the event. `quoted` are fields that another service has written: a newer version of that service
        may know more than this one's contract, so they are passed on as they came.
        """
        for field, problem in violations(message):
            if field.split(".")[0] not in quoted:
                raise BrokenContract(f"{message.DESCRIPTOR.name}.{field}: {problem}")
        trace = traces_by_key.get().get(key) or traceparent.get()
        return cls(
            str(uuid.uuid4()),
            key,
            message.DESCRIPTOR.full_name,
            at,
            trace,
            message.SerializeToString(deterministic=True),
            datetime.now(UTC),
        )

    def headers(self) -> dict[str, str]:
        """CloudEvents in binary mode, and NATS' deduplication key."""
        headers = {
            "Nats-Msg-Id": self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-type": self.subject,
            "ce-source": "/" + "/".join(self.subject.split(".")[:-1]),
            "ce-subject": self.key,
            "ce-time": self.time.isoformat(),
            "content-type": "application/protobuf",
        }
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        return headers


class OutboxStore(Protocol):
    """The outbox table or collection of a store."""

    def taken(self, limit: int, left: float = 0.0) -> AbstractAsyncContextManager[Sequence[Outgoing]]:
        """The oldest rows that no other relay holds, of those written at least `left` seconds ago.

        They are removed for good when the block ends without an exception.

        When it ends with Refused, that is handled here: those rows stay, and are left alone for a pause that grows.
        """

    async def remove(self, ids: Sequence[str]) -> None:
        """Removes rows that the stream has."""

    async def backlog(self) -> tuple[int, float]:
        """How many rows there are, and the age of the oldest in seconds."""


class Relay:
    """Publishes a store's outbox."""

    def __init__(self, store: OutboxStore, publish: Callable[[Sequence[Outgoing]], Awaitable[None]]) -> None:
        self.store, self._publish = store, publish
        self._fresh: list[tuple[float, Outgoing]] = []  # with the time at which it was handed over
        self._wake = asyncio.Event()
        self._stopping = False

    def committed(self, rows: Sequence[Outgoing]) -> None:
        """Says that rows were just committed."""
        if len(self._fresh) < IN_MEMORY:
            now = time.monotonic()
            self._fresh += [(now, row) for row in rows]
        self._wake.set()

    def stop(self) -> None:
        """Ends `run` with its next look, also if the store's absence hides a cancellation."""
        self._stopping = True

    async def run(self) -> None:
        """Publishes until `stop`; survives the store's and the stream's absence."""
        tries, next_look = 0, 0.0
        while not self._stopping:
            self._wake.clear()
            try:
                # In turns, so that neither what is left nor what was just committed waits for the end of the other.
                if time.monotonic() >= next_look and not await self.publish_some(LEFT):
                    next_look = time.monotonic() + LOOK_EVERY
                await self._publish_fresh()
                tries = 0
            except Exception as error:
                away = isinstance(error, StoreUnavailable | PublishFailed)
                why = str(error) if isinstance(error, PublishFailed) else ""  # a store's error may quote a row
                log.warning("outbox not published", error=type(error).__name__, detail=why, expected=away)
                self._fresh.clear()  # they are in the store
                tries += 1
                await asyncio.sleep(AWAY.pause(tries))
                continue
            if self._fresh:
                continue
            try:
                # Python 3.11's wait_for can swallow a cancellation.
                async with asyncio.timeout(max(0.0, next_look - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def flush(self) -> None:
        """Publishes what is there: the last act of a drain. What other replicas add meanwhile is theirs."""
        while await self.publish_some() == BATCH:
            pass

    async def _publish_fresh(self) -> None:
        """Publishes a batch of what was just committed. What the stream refuses stays, until it counts as left."""
        # What is too old may be in another relay's hands: one owner is enough.
        oldest = time.monotonic() - OURS
        self._fresh = [(since, row) for since, row in self._fresh if since > oldest]
        rows, self._fresh = [row for _, row in self._fresh[:BATCH]], self._fresh[BATCH:]
        if rows:
            refused = await self._send(rows)
            await self.store.remove([row.id for row in rows if row.id not in refused])

    async def publish_some(self, left: float = 0.0) -> int:
        """Publishes one batch of rows that were written `left` seconds ago or earlier; returns how many."""
        async with self.store.taken(BATCH, left) as rows:
            if rows and (refused := await self._send(rows)):
                raise Refused(refused)
        return len(rows)

    async def _send(self, rows: Sequence[Outgoing]) -> Mapping[str, str]:
        """Publishes rows; returns why the stream has refused some of them, by their ids."""
        refused: Mapping[str, str] = {}
        try:
            await (self._traced(rows) if tracing.exporting() else self._publish(rows))
        except Refused as error:
            refused = error.reasons
        now = time.time()
        for row in rows:
            if why := refused.get(row.id):
                events_refused.labels(row.subject).inc()
                log.error("event refused by the stream", subject=row.subject, id=row.id, key=row.key, reason=why)
                continue
            events_published.labels(row.subject).inc()
            if row.enqueued is not None:
                outbox_seconds.observe(max(0.0, now - row.enqueued.timestamp()))
        return refused

    async def _traced(self, rows: Sequence[Outgoing]) -> None:
        """Publishes each event as a span of its trace: whoever handles the event goes on from there."""
        spans = [
            tracing.begin(
                f"send {row.subject}", "PRODUCER", row.traceparent, tracing.of_message("send", row.subject, len(rows))
            )
            for row in rows
        ]
        failed = True
        try:
            await self._publish([replace(r, traceparent=s.traceparent) for r, s in zip(rows, spans, strict=True)])
            failed = False
        finally:
            for span in spans:
                span.end(failed=failed)
