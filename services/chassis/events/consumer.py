"""A service's durable consumer: what the stream delivers is handled, or set aside so that nothing behind it waits."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import NotFoundError

from .. import version as code
from ..errors import StoreUnavailable
from ..retry import Backoff, later
from ..store import Store
from ..telemetry import events_failed, events_handled, log
from . import pull, redrive
from .delivery import Delivery, Fate, Outcome, Subscription
from .outbox import PublishFailed
from .pull import StandingPull, quietly
from .redrive import Redrive
from .setaside import Letter, SetAside
from .stream import PUBLISH_TIMEOUT, STREAM, Bus, boundary

# Deliveries after which an event is handled apart from all others: it may be what killed the processes that had it.
SUSPECT = 5
AWAY = Backoff(first=0.1, longest=5.0)  # between tries while the store is away
GIVEN_BACK = Backoff(first=1.0, longest=30.0)  # before the next batch, after batches that had to be given back
# Seconds for which a replica keeps a batch while its store is away. It may be cut off alone: then another replica can
# handle what this one cannot.
STORE_PATIENCE = 15.0


class Consumer:
    """A durable pull consumer, shared by a service's replicas.

    Messages are handled in batches, see Delivery. A message is acknowledged after its handler has returned, that is
    after its commit, or after it was set aside. While the store is away a batch is kept and tried again, without
    counting; after STORE_PATIENCE it is given back, and this replica takes nothing more until its store answers.

    `store` is the one that the handlers write to. `single_active`: see StandingPull. It is for handlers that want the
    same rows: replicas would lose races and find that out after the work. Without `set_aside`, for a consumer that is
    thrown away soon, nothing is kept of what could not be handled. `version` is this code's own, unless told otherwise.
    """

    def __init__(
        self,
        bus: Bus,
        name: str,
        subscriptions: Sequence[Subscription[Any]],
        store: Store,
        *,
        single_active: bool = False,
        set_aside: bool = True,
        version: str | None = None,
    ) -> None:
        self._bus, self.name, self._store = bus, name, store
        self._single_active, self._keeps = single_active, set_aside
        self._delivery = Delivery(name, subscriptions)
        self._stopping = asyncio.Event()
        self._pull = StandingPull(bus, name, self.ensure, self._stopping, single_active)
        self.set_aside = SetAside(bus, name)
        self._redrive = Redrive(self.set_aside, self._delivery, store, self._paused, version or code.version())
        bus.reconnected.append(self._pull.lost)

    async def ensure(self, since: datetime | None = None) -> None:
        """Makes the durable consumer if it is missing, or widens its filter to this version's events.

        The filter only ever gets wider: a replica of the version before that restarts during an update must not hide
        events from the new ones. A durable consumer does not look back when its filter is widened, so this has to be
        done before anything of a new version can publish: the migration job does it. `since` is for a consumer that
        begins later than with the stream's first message. Raises PublishFailed or StoreUnavailable.
        """
        with boundary():
            if self._lacks(await self._present()) is None:
                return
            async with self._store.exclusively():  # so that no replica narrows the filter that another widens
                while (lacking := self._lacks(present := await self._present())) is not None:
                    await self._write(present, lacking, since)

    def forget(self) -> None:
        """The connection outlives this consumer: it need not hear of reconnections any more."""
        self._bus.reconnected.remove(self._pull.lost)

    def stop(self) -> None:
        """Ends `run` after the batch in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Handles messages until `stop`."""
        given_back = 0
        redriving = asyncio.create_task(self._redrive.run()) if self._keeps else None
        try:
            while not self._stopping.is_set():
                async with self._pull as batches:
                    async for batch in batches:
                        if not await self._handle(batch):
                            given_back += 1
                            break
                        given_back = 0
                # A store may answer and not do its work, for instance on a full disk.
                await later(self._stopping, GIVEN_BACK.pause(given_back) if given_back else 0)
                await self._until_the_store_answers()
        finally:
            if redriving is not None:
                self._redrive.stop()
                redriving.cancel()
                await asyncio.wait([redriving])

    async def _handle(self, batch: Sequence[Msg]) -> bool:
        """Settles a batch; False when it has to be given back, since the store was away for too long or we stop."""
        suspects = [m for m in batch if m.metadata.num_delivered > SUSPECT] if self._keeps else []
        if suspects:
            await self._settle(suspects, Outcome(Fate.FAILED))
        waiting, begun, tries = [m for m in batch if m not in suspects], time.monotonic(), 0
        while waiting:
            left, settling = list[Msg](), list[asyncio.Task[None]]()
            async for some, outcome in self._delivery.deliver(waiting):
                if outcome.fate is Fate.WAITS_FOR_STORE:
                    left += some
                else:  # the next handler need not wait until the server has answered
                    settling.append(asyncio.create_task(self._settle(some, outcome)))
            await asyncio.gather(*settling)
            waiting = left
            if waiting:
                tries += 1
                log.warning("store away: events wait", consumer=self.name, waiting=len(waiting))
                stopping = await later(self._stopping, AWAY.pause(tries))
                if stopping or time.monotonic() - begun > STORE_PATIENCE:
                    return False
        return True

    async def _until_the_store_answers(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            try:
                await self._store.check()
                return
            except StoreUnavailable:
                tries += 1
                await later(self._stopping, AWAY.pause(tries))

    async def _settle(self, messages: Sequence[Msg], outcome: Outcome) -> None:
        """Tells the server what became of them. What cannot be told now comes again when ACK_WAIT is over."""
        if outcome.fate is Fate.HANDLED:
            for message in messages:
                await quietly(message.ack())
                events_handled.labels(message.subject).inc()
        elif not self._keeps:
            for message in messages:
                await quietly(self._without_keeping(message, outcome))
        else:
            await asyncio.gather(*(quietly(self._put_aside(message, outcome)) for message in messages))
        for message in messages:
            self._pull.settled(message)

    async def _put_aside(self, message: Msg, outcome: Outcome) -> None:
        letter = Letter(message.subject, message.metadata.sequence.stream, message.headers or {}, message.data)
        await self._redrive.put_aside(letter, outcome)
        await message.ack()

    async def _without_keeping(self, message: Msg, outcome: Outcome) -> None:
        tries = message.metadata.num_delivered
        if outcome.fate is Fate.FAILED and tries < redrive.MAX_TRIES:
            events_failed.labels(message.subject).inc()
            await message.nak(delay=redrive.TRY_AGAIN.pause(tries))
        else:
            log.error("event left out", consumer=self.name, subject=message.subject, exc_info=outcome.error)
            await message.term()

    # The durable consumer's configuration

    async def _present(self) -> dict[str, Any] | None:
        answer = await self._bus.ask(f"CONSUMER.INFO.{STREAM}.{self.name}", {}, PUBLISH_TIMEOUT)
        if error := answer.get("error"):
            if error.get("err_code") == 10014:  # no such consumer
                return None
            raise PublishFailed(f"consumer {self.name}: {error.get('description')}")
        config: dict[str, Any] = answer["config"]
        return config

    def _lacks(self, present: dict[str, Any] | None) -> dict[str, Any] | None:
        """What has to be written of the configuration, None if it is as this version needs it."""
        wanted: dict[str, Any] = {"priority_groups": [pull.GROUP], "priority_policy": "pinned_client"}
        wanted |= {"priority_timeout": int(pull.PINNED * 1e9)}
        policy = wanted if self._single_active else {}
        if present is None:
            return {"filter_subjects": sorted(self._delivery.types)} | policy
        filters = {*present.get("filter_subjects", []), *filter(None, [present.get("filter_subject")])}
        otherwise = present.get("priority_policy", "none") != policy.get("priority_policy", "none")
        if self._delivery.types <= filters and not otherwise:
            return None
        return {"filter_subjects": sorted(filters | self._delivery.types)} | policy

    async def _write(self, present: dict[str, Any] | None, lacking: dict[str, Any], since: datetime | None) -> None:
        config = ConsumerConfig(
            durable_name=self.name,
            deliver_policy=DeliverPolicy.ALL if since is None else DeliverPolicy.BY_START_TIME,
            opt_start_time=since,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=pull.ACK_WAIT,
            max_deliver=-1,
            max_ack_pending=8 * pull.BATCH,
        ).as_dict()
        # Raw, since nats-py's ConsumerConfig does not know priority groups. "create": of two replicas that find no
        # consumer only one makes it, and the other looks again.
        action = "create" if present is None else "update"
        wanted = {"stream_name": STREAM, "config": config | lacking, "action": action}
        made = await self._bus.ask(f"CONSUMER.DURABLE.CREATE.{STREAM}.{self.name}", wanted, PUBLISH_TIMEOUT)
        error = made.get("error")
        if error and error.get("err_code") not in (10148, 10149):  # another replica was faster
            raise PublishFailed(f"consumer {self.name}: {error.get('description')}")

    # Operations

    async def _paused(self) -> bool:
        return bool((await self.info()).paused)

    async def info(self) -> ConsumerInfo:
        """How far it is; raises PublishFailed."""
        with boundary():
            info: ConsumerInfo = await self._bus.js.consumer_info(STREAM, self.name)
            return info

    async def foreign(self) -> frozenset[str]:
        """Types of events in its filter that this version has no handler for: a newer version runs, or has run."""
        present = await self._present() or {}
        return frozenset(present.get("filter_subjects", [])) - self._delivery.types

    async def last_sequence(self) -> int:
        """The number of the stream's last event; raises PublishFailed."""
        with boundary():
            return (await self._bus.js.stream_info(STREAM)).state.last_seq

    async def to_go(self, target: int) -> int:
        """Events up to that number that it has not handled yet; 0 when it has them all. Raises PublishFailed."""
        info = await self.info()
        pending, in_flight = info.num_pending or 0, info.num_ack_pending or 0
        delivered = info.delivered.stream_seq if info.delivered else 0
        handled = info.ack_floor.stream_seq if info.ack_floor else 0
        if (pending == 0 or delivered >= target) and (in_flight == 0 or handled >= target):
            return 0
        return max(1, pending + in_flight)

    async def time_of(self, sequence: int) -> datetime | None:
        """When the stream took an event, or the next one it has; None when there is none."""
        with boundary():
            try:
                return (await self._bus.js.get_msg(STREAM, seq=sequence, subject=">", next=True)).time
            except NotFoundError:
                return None

    async def pause(self, until: datetime) -> None:
        """No deliveries before that time, in all replicas and across restarts; the past: goes on."""
        with boundary():
            await self._bus.js.pause_consumer(STREAM, self.name, until.isoformat().replace("+00:00", "Z"))

    def message_class(self, subject: str) -> type[Message] | None:
        """The protobuf message of a type that it handles."""
        return self._delivery.message_class(subject)

    async def redrive(self, letter: Letter) -> bool:
        """Hands a letter to its handler once more, for an operator; whether it was handled. Raises StoreUnavailable."""
        return await self._redrive.by_hand(letter)
