"""A consumer handles every event's effect and loses none: against a real JetStream, with every fault we know of."""

import asyncio
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from mesh import ROOT
from services.approval.domain import Appointment, ReservationId
from services.chassis.convert import to_message
from services.chassis.errors import StoreUnavailable
from services.chassis.events import (
    STREAM,
    Bus,
    Consumer,
    Event,
    NotUnderstood,
    Outgoing,
    PublishFailed,
    Subscription,
    Unprocessable,
    consumer,
    pull,
    redrive,
)
from services.chassis.events.outbox import Refused
from services.chassis.retry import Backoff
from vaccination.approval.v1 import appointment_pb2
from vaccination.approval.v1.approval_events_pb2 import ApprovalDenied, ApprovalGranted
from vaccination.reservation.v1.reservation_events_pb2 import CancellationRequested

from .conftest import OpenBus, Servers, eventually, within

NOW = datetime(2027, 3, 1, 3, tzinfo=UTC)
NAME = "vaccinemgmt"
DEAD_LETTERS = "DEAD_LETTERS"


def row(number: int, cls: type[Message] = ApprovalGranted, **changes: Any) -> Outgoing:
    """An event of booking number `number`, as the outbox has it."""
    a = Appointment(
        ReservationId(str(uuid.UUID(int=number))), "c1", "h1", "Clinic", "Asia/Seoul", date(2027, 3, 10), "", NOW
    )
    appointment = to_message(a, appointment_pb2.Appointment)
    appointment.MergeFrom(appointment_pb2.Appointment(**changes))
    for name in [name for name, value in changes.items() if not value]:
        appointment.ClearField(name)  # type: ignore[arg-type]
    return Outgoing.of(appointment.reservation_id, NOW, cls(appointment=appointment))


def number_of(event: Event) -> int:
    return uuid.UUID(event.key).int


class Handled:
    """A handler that remembers, and can be told to fail or to wait."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.tries: Counter[int] = Counter()
        self.tried_at: list[float] = []
        self.fails: dict[int, Exception] = {}
        self.may = asyncio.Event()
        self.may.set()
        self.begun = asyncio.Event()

    async def __call__(self, events: Sequence[Event]) -> None:
        self.begun.set()
        self.tried_at.append(time.monotonic())
        self.tries.update(map(number_of, events))
        await self.may.wait()
        for event in events:
            if error := self.fails.get(number_of(event)):
                raise type(error)(*error.args)  # a new one: each raise makes an exception's traceback longer
        self.batches.append(list(events))

    @property
    def numbers(self) -> list[int]:
        """Whose effect is committed, as often as it was."""
        return [number_of(event) for batch in self.batches for event in batch]

    async def have(self, *numbers: int) -> None:
        """Waits until all of them are handled."""
        await within(15, lambda: set(numbers) <= set(self.numbers))


async def all_have_come(count: int, replica: Consumer, handled: Handled) -> None:
    """Waits until so many messages are with the handler, which is at its first batch, or wait for it."""
    await handled.begun.wait()
    await within(30, lambda: handled.tries.total() + replica._pull._queue.qsize() >= count)


class Store:
    """The service's store, as far as the consumer asks for it. It can be away."""

    def __init__(self) -> None:
        self.away, self.asked = False, 0
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Answers, or not."""
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """One at a time."""
        async with self._lock:
            yield


def as_it_is(event: Event) -> Event:
    """For handlers that want the whole event."""
    return event


Handler = Callable[[Sequence[Event]], Awaitable[None]]
Replica = Callable[..., Awaitable[tuple[Consumer, "asyncio.Task[None]"]]]


class Stream:
    """Puts events into the stream, and looks at what became of them."""

    def __init__(self, jetstream: JetStreamContext) -> None:
        self.js = jetstream

    async def put(self, *rows: Outgoing) -> None:
        """In this order."""
        for r in rows:
            await self.js.publish(r.subject, r.payload, headers=r.headers())

    async def info(self) -> ConsumerInfo:
        info: ConsumerInfo = await self.js.consumer_info(STREAM, NAME)
        return info

    async def policy(self) -> str | None:
        """Which nats-py does not know of: to whom the server gives messages."""
        reply = await self.js._nc.request(f"$JS.API.CONSUMER.INFO.{STREAM}.{NAME}", b"")
        policy: str | None = json.loads(reply.data)["config"].get("priority_policy")
        return policy

    async def done(self) -> ConsumerInfo:
        """Waits until every message is acknowledged or ended."""
        return await eventually(self.info, lambda i: not i.num_pending and not i.num_ack_pending)

    async def count(self, subject: str = ">") -> int:
        """How many are set aside."""
        info = await self.js.stream_info(DEAD_LETTERS, subjects_filter=f"{DEAD_LETTERS}.{subject}")
        return sum((info.state.subjects or {}).values())

    async def nothing_aside(self) -> None:
        """Waits until all that was set aside is handled."""
        await eventually(self.count, lambda count: count == 0)

    async def aside(self, subject: str = "*") -> list[Msg]:
        """What is set aside, once that does not change any more."""
        name, count = f"{DEAD_LETTERS}.{subject}", await self.count(subject)
        if not count:
            return []
        subscription = await self.js.subscribe(name, ordered_consumer=True)
        try:
            return [await subscription.next_msg(timeout=5) for _ in range(count)]
        finally:
            await subscription.unsubscribe()

    async def dead(self) -> list[Msg]:
        """The dead letters."""
        return await self.aside()

    async def parked(self, count: int) -> list[Msg]:
        """Waits for so many parked events."""
        await eventually(lambda: self.count("*.parked.>"), lambda parked: parked == count)
        return await self.aside("*.parked.>")

    async def buried(self, count: int) -> list[Msg]:
        """Waits for so many dead letters."""
        await eventually(lambda: self.count("*"), lambda dead: dead == count)
        return await self.dead()


@pytest.fixture
def stream(jetstream: JetStreamContext) -> Stream:
    return Stream(jetstream)


@pytest.fixture
async def replica(open_bus: OpenBus) -> AsyncIterator[Replica]:
    """Starts a replica of the service with these handlers."""
    tasks = []

    async def start(
        *handlers: tuple[type[Message], Handler] | Subscription[Any], store: Store | None = None, **options: Any
    ) -> tuple[Consumer, asyncio.Task[None]]:
        subscriptions = [h if isinstance(h, Subscription) else Subscription(h[0], as_it_is, h[1]) for h in handlers]
        # In one process all have the same code: a version here is what a replica has handlers for, unless it is named.
        options.setdefault("version", "+".join(sorted(s.event.__name__ for s in subscriptions)))
        started = Consumer(await open_bus(NAME), NAME, subscriptions, store or Store(), **options)
        await started.ensure()
        task = asyncio.create_task(started.run())
        tasks.append(task)
        return started, task

    yield start
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


@pytest.fixture
async def bus(open_bus: OpenBus) -> Bus:
    """Makes the streams."""
    return await open_bus("approval")


@pytest.fixture
def soon_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one replica that is given messages is missed after a second."""
    monkeypatch.setattr(pull, "HEARTBEAT", 0.2)
    monkeypatch.setattr(pull, "PULL_EXPIRES", 0.5)
    monkeypatch.setattr(pull, "PINNED", 1.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Small pauses between tries, and fewer of those."""
    monkeypatch.setattr(redrive, "TRY_AGAIN", Backoff(0.05, 0.05))
    monkeypatch.setattr(redrive, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(redrive, "MAX_TRIES", 3)
    return monkeypatch


async def test_an_event_arrives_whole(bus: Bus, stream: Stream, replica: Replica) -> None:
    handled, sent = Handled(), row(7)
    await replica((ApprovalGranted, handled))
    await bus.publish([sent])
    await handled.have(7)
    [[event]] = handled.batches
    assert (event.id, event.key, event.type, event.time) == (sent.id, sent.key, sent.subject, NOW)
    assert event.message == ApprovalGranted.FromString(sent.payload)


async def test_messages_are_acknowledged_when_the_handler_has_returned_and_not_before(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    handled = Handled()
    handled.may.clear()
    await bus.publish([row(i) for i in range(100)])
    started, _ = await replica((ApprovalGranted, handled))
    await all_have_come(100, started, handled)
    assert (await stream.info()).num_ack_pending == 100
    handled.may.set()
    info = await stream.done()
    assert handled.numbers == list(range(100))
    assert len(handled.batches) <= 2  # what waited came in one batch, and one transaction
    assert info.num_redelivered == 0


async def test_a_handler_gets_all_of_its_messages_of_a_batch_at_once(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    both, other = Handled(), Handled()
    both.may.clear()
    await stream.put(row(0))
    started, _ = await replica((ApprovalGranted, both), (ApprovalDenied, both), (CancellationRequested, other))
    await both.begun.wait()
    denied = ApprovalDenied(denial_reason=appointment_pb2.DenialReason.DENIAL_REASON_DAY_FULL)
    for i in range(1, 7):
        denied.appointment.CopyFrom(ApprovalGranted.FromString(row(i).payload).appointment)
        await stream.put([row(i), Outgoing.of(row(i).key, NOW, denied), row(i, CancellationRequested)][i % 3])
    await within(30, lambda: started._pull._queue.qsize() == 6)
    both.may.set()
    await stream.done()
    assert [[number_of(event) for event in batch] for batch in both.batches] == [[0], [1, 3, 4, 6]]
    assert [[number_of(event) for event in batch] for batch in other.batches] == [[2, 5]]


async def test_a_poisonous_message_goes_to_the_dead_letters_and_nothing_behind_it_waits(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    handled, poison = Handled(), row(5)
    handled.fails[5] = ValueError("cannot\nbe — done")
    handled.may.clear()
    await bus.publish([poison if i == 5 else row(i) for i in range(10)])
    started, _ = await replica((ApprovalGranted, handled))
    await all_have_come(10, started, handled)  # so that the poison is not alone in its batch
    handled.may.set()
    await handled.have(*{*range(10)} - {5})
    await stream.put(row(11))
    await handled.have(11)
    [letter] = await stream.buried(1)
    await stream.done()
    headers = letter.headers or {}
    assert (letter.subject, letter.data) == (f"{DEAD_LETTERS}.{NAME}", poison.payload)
    for name, value in poison.headers().items():
        if name != "Nats-Msg-Id":
            assert headers[name] == value
    assert headers["Dead-Letter-Reason"] == "ValueError: cannot be ? done"
    assert headers["Dead-Letter-Subject"] == poison.subject
    assert headers["Dead-Letter-Consumer"] == NAME
    assert headers["Dead-Letter-Sequence"] == "6"
    assert headers["Dead-Letter-Tries"] == str(redrive.MAX_TRIES)
    assert not [name for name in headers if name.startswith("Nats-Batch")]
    assert handled.tries[5] == redrive.MAX_TRIES + 1  # the first with its batch, and then alone
    assert sorted(handled.numbers) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 11]


async def test_a_message_that_fails_for_a_while_is_handled_in_the_end(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    handled = Handled()
    handled.fails[1] = ValueError("not yet")
    await replica((ApprovalGranted, handled))
    await stream.put(row(1))
    await within(5, lambda: handled.tries[1] == 2)
    handled.fails.clear()
    await handled.have(1)
    await stream.done()
    assert await stream.dead() == []


async def test_the_pauses_between_tries_grow(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redrive, "MAX_TRIES", 3)
    monkeypatch.setattr(redrive, "LOOK_EVERY", 0.05)
    handled = Handled()
    handled.fails[1] = ValueError("never")
    await replica((ApprovalGranted, handled))
    await stream.put(row(1))
    await stream.buried(1)
    first, second = (b - a for a, b in zip(handled.tried_at, handled.tried_at[1:], strict=False))
    assert 0.9 < first < second
    assert second > 1.9


@pytest.mark.parametrize(
    ("reason", "broken"),
    [
        ("DecodeError", {"payload": b"\xff\xff"}),
        ("KeyError", {"without": "ce-id"}),
        ("KeyError", {"without": "ce-subject"}),
        ("KeyError", {"without": "ce-time"}),
        ("ValueError", {"ce-time": "yesterday"}),
    ],
)
async def test_what_cannot_be_read_goes_to_the_dead_letters_at_once(
    bus: Bus, stream: Stream, replica: Replica, reason: str, broken: dict[str, Any]
) -> None:
    handled, good = Handled(), row(1)
    headers = {**good.headers(), **{k: v for k, v in broken.items() if k.startswith("ce-")}}
    headers.pop(broken.get("without", ""), None)
    await stream.js.publish(good.subject, broken.get("payload", good.payload), headers=headers)
    await stream.put(row(2))
    await replica((ApprovalGranted, handled))
    await handled.have(2)
    [letter] = await stream.buried(1)
    await stream.done()
    assert (letter.headers or {})["Dead-Letter-Tries"] == "1"
    assert reason in (letter.headers or {})["Dead-Letter-Reason"]
    assert handled.numbers == [2]


async def test_what_the_handler_calls_unprocessable_is_not_tried_again(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    handled = Handled()
    handled.fails[1] = Unprocessable("was never granted")
    await bus.publish([row(i) for i in range(3)])
    await replica((ApprovalGranted, handled))
    [letter] = await stream.buried(1)
    await stream.done()
    assert handled.numbers == [0, 2]
    assert handled.tries[1] <= 2
    assert (letter.headers or {})["Dead-Letter-Reason"] == "Unprocessable: was never granted"


async def test_while_the_store_is_away_events_wait_and_no_try_counts(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(pull, "ACK_WAIT", 3.0)  # shorter than the store is away
    quick.setattr(consumer, "SUSPECT", 1)
    handled = Handled()
    handled.fails = dict.fromkeys(range(3), StoreUnavailable("away"))  # they may come in several batches
    await bus.publish([row(i) for i in range(3)])
    await replica((ApprovalGranted, handled))
    begun = time.monotonic()
    await within(30, lambda: handled.tries[0] > 5 and time.monotonic() - begun > 6)
    assert handled.numbers == []
    handled.fails.clear()
    await handled.have(0, 1, 2)
    info = await stream.done()
    assert (handled.numbers, info.num_redelivered) == ([0, 1, 2], 0)
    assert await stream.dead() == []


async def test_what_a_slow_replica_has_in_hand_is_given_to_nobody_else(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(pull, "ACK_WAIT", 3.0)
    quick.setattr(pull, "BATCH", 2)  # one waits behind two that are slow
    slow = Handled()
    slow.may.clear()
    await bus.publish([row(i) for i in range(3)])
    await replica((ApprovalGranted, slow))
    await slow.begun.wait()
    begun = time.monotonic()
    await within(30, lambda: time.monotonic() - begun > 7)
    slow.may.set()
    await slow.have(0, 1, 2)
    info = await stream.done()
    assert (sorted(slow.numbers), info.num_redelivered) == ([0, 1, 2], 0)


async def test_a_replica_that_stops_finishes_its_batch_and_hands_the_rest_on_at_once(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "BATCH", 20)
    first, second = Handled(), Handled()
    first.may.clear()
    await bus.publish([row(i) for i in range(100)])
    started, task = await replica((ApprovalGranted, first))
    await first.begun.wait()
    started.stop()
    await replica((ApprovalGranted, second))
    await second.have(99)
    assert not task.done()
    first.may.set()
    await asyncio.wait_for(task, 5)
    await stream.done()  # within 20 s: nothing had to wait for ACK_WAIT
    assert len(first.batches) == 1
    assert sorted(first.numbers + second.numbers) == list(range(100))


async def test_what_is_on_its_way_to_a_replica_that_stops_goes_to_another_at_once(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "BATCH", 500)
    first, second = Handled(), Handled()
    for start in range(0, 3000, 500):
        await bus.publish([row(i) for i in range(start, start + 500)])
    started, task = await replica((ApprovalGranted, first))
    await first.begun.wait()
    started.stop()
    await task
    await replica((ApprovalGranted, second))
    await stream.done()  # within 20 s: nothing had to wait for ACK_WAIT
    assert sorted(first.numbers + second.numbers) == list(range(3000))


async def test_a_replica_that_stops_while_the_store_is_away_stops_at_once_and_loses_nothing(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "ACK_WAIT", 1.0)
    away, back = Handled(), Handled()
    away.fails = dict.fromkeys(range(2), StoreUnavailable("away"))  # they may come in two batches
    await bus.publish([row(0), row(1)])
    started, task = await replica((ApprovalGranted, away))
    await within(30, lambda: away.tries[0] > 2)
    started.stop()
    await asyncio.wait_for(task, 5)
    assert (await stream.info()).num_ack_pending == 2
    await replica((ApprovalGranted, back))
    await back.have(0, 1)


async def test_events_of_a_replica_that_died_go_to_another(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "ACK_WAIT", 1.0)
    dies, lives = Handled(), Handled()
    dies.may.clear()
    await bus.publish([row(i) for i in range(5)])
    _, task = await replica((ApprovalGranted, dies))
    await dies.begun.wait()
    task.cancel()
    await asyncio.wait([task])
    await replica((ApprovalGranted, lives))
    await lives.have(*range(5))
    await stream.done()
    assert dies.numbers == []


# A replica that number 7 kills: as nothing within Python can, and before anything that it acknowledged is sent.
MORTAL = """
import asyncio, os, signal, sys, uuid
from contextlib import asynccontextmanager
from datetime import timedelta
from services.chassis.events import Bus, Consumer, Subscription, consumer, pull, redrive
from vaccination.approval.v1.approval_events_pb2 import ApprovalGranted

pull.ACK_WAIT, consumer.SUSPECT, redrive.MAX_ATTEMPTS, redrive.CLAIM = 1.0, 2, 3, timedelta(seconds=1)

class Store:
    async def check(self): pass
    @asynccontextmanager
    async def exclusively(self): yield

async def handle(events):
    if uuid.UUID(int=7) in {uuid.UUID(event.key) for event in events}:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    bus = Bus(*sys.argv[1:], "vaccinemgmt", 1)
    await bus.connect()
    consumer = Consumer(bus, "vaccinemgmt", [Subscription(ApprovalGranted, lambda event: event, handle)], Store())
    await consumer.ensure()
    await consumer.run()

asyncio.run(main())
"""


async def test_a_message_that_kills_its_process_ends_among_the_dead_letters_and_takes_no_other_with_it(
    bus: Bus, stream: Stream, servers: Servers
) -> None:
    await bus.publish([row(i) for i in range(5, 9)])
    deaths = 0

    async def start() -> asyncio.subprocess.Process:
        login = servers.stores.nats_login(NAME)
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", MORTAL, servers.stores.nats_address, *login, cwd=ROOT
        )

    process = await start()

    async def goes_on() -> bool:
        nonlocal deaths, process
        if process.returncode is not None:
            deaths += 1
            process = await start()
        return await stream.count() == await stream.count("*") == 1

    try:
        await eventually(goes_on, bool, within=120)
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await stream.done()
    [letter] = await stream.dead()
    headers = letter.headers or {}
    assert headers["ce-subject"] == str(uuid.UUID(int=7))
    assert headers["Dead-Letter-Reason"] == "KilledItsProcess: 3 tries, no outcome"
    assert deaths == 2 + 3  # with its batch, and then as a letter; at most once together with others


async def test_two_replicas_share_the_work_and_handle_nothing_twice(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "BATCH", 32)
    handled = [Handled(), Handled()]
    for one in handled:
        await replica((ApprovalGranted, one))
    for start in range(0, 2000, 250):
        await bus.publish([row(i) for i in range(start, start + 250)])
    info = await stream.done()
    assert sorted(handled[0].numbers + handled[1].numbers) == list(range(2000))
    assert all(one.numbers for one in handled)
    assert info.num_redelivered == 0


async def test_of_replicas_that_would_be_in_each_others_way_one_works_until_it_stops(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "BATCH", 32)
    handled = [Handled() for _ in range(3)]
    replicas = [await replica((ApprovalGranted, one), single_active=True) for one in handled]
    for round_ in range(3):
        begun = time.monotonic()
        await bus.publish([row(i) for i in range(round_ * 200, round_ * 200 + 200)])
        await stream.done()
        assert time.monotonic() - begun < pull.PINNED / 2  # it did not have to be missed
        [active] = [i for i in range(3) if max(handled[i].numbers, default=-1) >= round_ * 200]
        assert sorted(handled[active].numbers) == list(range(round_ * 200, round_ * 200 + 200))
        started, task = replicas[active]
        started.stop()
        await task
    assert sorted(number for one in handled for number in one.numbers) == list(range(600))


@pytest.mark.usefixtures("soon_missed")
async def test_the_one_that_works_is_missed_when_it_asks_for_nothing_more(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    slow, other = Handled(), Handled()
    slow.may.clear()
    await replica((ApprovalGranted, slow), single_active=True)
    await stream.put(row(0))
    await slow.begun.wait()
    await replica((ApprovalGranted, other), single_active=True)
    begun = time.monotonic()  # what came before would be its own, for it lives
    await within(30, lambda: time.monotonic() - begun > 2 * pull.PINNED)
    await stream.put(row(1))
    await other.have(1)
    slow.may.set()
    await slow.have(0)
    await stream.put(row(2))
    await other.have(1, 2)
    assert (await stream.done()).num_redelivered == 0
    assert (slow.numbers, other.numbers) == ([0], [1, 2])


@pytest.mark.usefixtures("soon_missed")
async def test_versions_that_want_a_consumer_otherwise_lose_nothing_beside_each_other(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    handled = [Handled(), Handled()]
    await replica((ApprovalGranted, handled[0]))
    await replica((ApprovalGranted, handled[1]), single_active=True)
    for number in range(60):
        await stream.put(row(number))
        await asyncio.sleep(0.05)  # not a wait for anything: long enough for both to notice more than once
    await stream.done()
    assert sorted(handled[0].numbers + handled[1].numbers) == list(range(60))


async def test_a_plain_consumer_becomes_one_with_a_single_active_replica(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    await replica((ApprovalGranted, Handled()), single_active=True)
    started, task = await replica((ApprovalGranted, Handled()))  # the version before, restarted during an update
    started.stop()
    await task
    await stream.put(row(0))
    await eventually(stream.info, lambda info: info.num_ack_pending == 0 and info.num_pending == 0)
    await eventually(stream.policy, lambda policy: policy == "pinned_client")


async def test_a_restart_of_the_stream_is_survived_and_noticed_at_once(
    bus: Bus, stream: Stream, replica: Replica, servers: Servers
) -> None:
    handled = Handled()
    _, task = await replica((ApprovalGranted, handled))
    await stream.put(row(1))
    await handled.have(1)
    await servers.stop("nats")
    await servers.start("nats")
    begun = time.monotonic()

    async def put() -> bool:
        try:
            await bus.publish([row(2)])
        except (PublishFailed, Refused):  # the stream may answer, and be too busy for the event
            return False
        return True

    await eventually(put, bool)
    await handled.have(1, 2)
    assert time.monotonic() - begun < 2 * pull.HEARTBEAT  # not only when heartbeats have been missing for long
    assert not task.done()
    await stream.done()


async def test_a_silent_pull_request_is_made_anew(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "HEARTBEAT", 0.2)
    handled = Handled()
    started, _ = await replica((ApprovalGranted, handled))
    await stream.put(row(1))
    await handled.have(1)
    [inbox] = [s for s in started._bus.connection()._subs.values() if not s.subject.endswith("*")]
    await inbox.unsubscribe()  # nobody listens there any more: the server drops the request, and says nothing
    await started._bus.connection().flush()  # it knows before the next event comes
    await stream.put(row(2))
    await handled.have(2)


async def test_a_deleted_consumer_is_made_anew_and_begins_at_the_beginning(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    handled = Handled()
    await replica((ApprovalGranted, handled))
    await bus.publish([row(1), row(2)])
    await handled.have(1, 2)
    await bus.forget(NAME)
    await within(30, lambda: Counter(handled.numbers) == {1: 2, 2: 2})
    await stream.put(row(3))
    await handled.have(3)


async def test_a_message_is_not_lost_while_there_is_no_place_for_dead_letters(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(pull, "ACK_WAIT", 0.5)
    handled = Handled()
    handled.fails[1] = Unprocessable("never")
    await stream.js.delete_stream(DEAD_LETTERS)
    await stream.put(row(1), row(2))
    await replica((ApprovalGranted, handled))
    await handled.have(2)
    await within(30, lambda: handled.tries[1] > 1)
    await bus.connect()  # makes the streams
    await stream.buried(1)
    await stream.done()


# Change: versions beside each other


async def test_the_version_before_parks_an_event_that_it_does_not_know_and_the_next_one_handles_it(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    old, new = Handled(), Handled()
    await replica((ApprovalGranted, old))
    started, task = await replica((ApprovalGranted, new), (CancellationRequested, new))
    started.stop()
    await task  # only the old one is there, and the durable consumer is the newer one's
    await stream.put(row(1, CancellationRequested), row(2))
    await old.have(2)
    [letter] = await stream.parked(1)
    await stream.done()
    assert letter.subject == f"{DEAD_LETTERS}.{NAME}.parked.{CancellationRequested.DESCRIPTOR.full_name}"
    assert "no handler" in (letter.headers or {})["Dead-Letter-Reason"]
    await replica((ApprovalGranted, new), (CancellationRequested, new))
    await new.have(1)
    await stream.nothing_aside()
    assert old.numbers == [2]


async def test_a_newer_replica_handles_what_an_older_one_parks_beside_it(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    old, new = Handled(), Handled()
    await replica((ApprovalGranted, old))
    await replica((ApprovalGranted, new), (CancellationRequested, new))
    sent = [row(number, CancellationRequested) for number in range(100)]
    for one in sent:
        await stream.put(one)
    await new.have(*range(100))
    await stream.nothing_aside()
    await stream.done()


async def test_nothing_waits_behind_events_that_this_version_does_not_know(
    bus: Bus, stream: Stream, replica: Replica, open_bus: OpenBus
) -> None:
    old, new = Handled(), Handled()
    started, task = await replica((ApprovalGranted, new), (CancellationRequested, new))
    started.stop()
    await task
    many = 8 * pull.BATCH + 500  # more than the server gives out without acknowledgement
    customers = await open_bus("reservation")
    for start in range(0, many, 500):
        await customers.publish([row(i, CancellationRequested) for i in range(start, min(start + 500, many))])
    await bus.publish([row(7)])
    await replica((ApprovalGranted, old))
    await within(60, lambda: 7 in old.numbers)  # behind all that is parked
    await stream.done()
    assert await stream.count(f"{NAME}.parked.>") == many


async def test_nothing_waits_behind_events_whose_handling_fails_quickly_and_often(
    bus: Bus, stream: Stream, replica: Replica, open_bus: OpenBus
) -> None:
    good, bad, many = Handled(), Handled(), 8 * pull.BATCH + 500
    bad.fails = dict.fromkeys(range(many), ValueError("a bug"))
    customers = await open_bus("reservation")
    for start in range(0, many, 500):
        await customers.publish([row(i, CancellationRequested) for i in range(start, min(start + 500, many))])
    await bus.publish([row(7)])
    await replica((ApprovalGranted, good), (CancellationRequested, bad))
    await within(60, lambda: 7 in good.numbers)


async def test_a_value_that_this_version_cannot_read_waits_for_one_that_can(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    old, new = Handled(), Handled()

    def read(event: Event) -> Event:
        if event.message.appointment.vaccine_code:
            raise ValueError("a code of the next version")
        return event

    await replica(Subscription(ApprovalGranted, read, old))
    await stream.put(row(1, vaccine_code="999"), row(2))
    await old.have(2)
    [letter] = await stream.parked(1)
    assert "ValueError: a code of the next version" in (letter.headers or {})["Dead-Letter-Reason"]
    await stream.done()
    await replica((ApprovalGranted, new), version="next")
    await new.have(1)
    await stream.nothing_aside()


async def test_a_value_that_the_contract_does_not_know_yet_is_taken_as_it_is(
    bus: Bus, stream: Stream, replica: Replica
) -> None:
    handled = Handled()
    await replica((ApprovalDenied, handled))
    appointment = ApprovalGranted.FromString(row(1).payload).appointment
    appointment.hospital_name = "n" * 1000  # longer than today's contract allows
    denied = ApprovalDenied(appointment=appointment, denial_reason=77)  # type: ignore[arg-type]
    await stream.js.publish(denied.DESCRIPTOR.full_name, denied.SerializeToString(), headers=row(1).headers())
    await handled.have(1)
    [[event]] = handled.batches
    assert event.message.denial_reason == 77
    assert await stream.aside(">") == []


async def test_what_the_handler_does_not_understand_waits_for_a_version_that_does(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    old, new = Handled(), Handled()
    old.fails[1] = NotUnderstood("this time zone")
    await replica((ApprovalGranted, old))
    await stream.put(row(1), row(2))
    await old.have(2)
    await stream.parked(1)
    tries = old.tries[1]
    await replica((ApprovalGranted, new), version="next")
    await new.have(1)
    await stream.nothing_aside()
    assert old.tries[1] <= tries + 1


async def test_replicas_of_one_version_do_not_park_each_others_letters_again_and_again(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    replicas = [Handled(), Handled()]
    for one in replicas:
        one.fails[1] = NotUnderstood("this time zone")
        await replica((ApprovalGranted, one))
    await stream.put(row(1))
    await stream.parked(1)
    for number in range(2, 40):  # long enough for many looks
        await stream.put(row(number))
        await within(5, partial(lambda n: n in replicas[0].numbers + replicas[1].numbers, number))
    assert sum(one.tries[1] for one in replicas) <= 2
    assert await stream.count("*.parked.>") == 1


async def test_a_parked_event_is_taken_up_although_the_store_was_away_when_its_version_started(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    old, new, store = Handled(), Handled(), Store()
    await replica((ApprovalGranted, old))
    both = [Subscription(cls, as_it_is, new) for cls in (ApprovalGranted, CancellationRequested)]
    await Consumer(bus, NAME, both, Store()).ensure()
    await stream.put(row(1, CancellationRequested))
    await stream.parked(1)
    store.away = True
    await replica(*both, store=store)
    await within(5, lambda: store.asked > 3)
    store.away = False
    await new.have(1)


async def test_while_a_consumer_is_paused_nothing_is_tried_again(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(redrive, "TRY_AGAIN", Backoff(0.5, 0.5))
    handled = Handled()
    handled.fails[1] = ValueError("not yet")
    started, _ = await replica((ApprovalGranted, handled))
    await stream.put(row(1))
    await within(5, lambda: handled.tries[1] == 1)
    await started.pause(datetime.now(UTC) + timedelta(minutes=5))
    looks: list[bool] = []
    paused = started._redrive._paused

    async def look() -> bool:
        looks.append(await paused())
        return looks[-1]

    started._redrive._paused = look
    await within(30, lambda: looks.count(True) > 10)
    assert handled.tries[1] <= 2
    handled.fails.clear()
    await started.pause(datetime.fromtimestamp(0, UTC))
    await handled.have(1)


async def test_an_event_published_before_the_first_new_replica_starts_is_not_skipped(
    bus: Bus, stream: Stream, replica: Replica, open_bus: OpenBus, quick: pytest.MonkeyPatch
) -> None:
    old, new = Handled(), Handled()
    await replica((ApprovalGranted, old))
    both = [Subscription(cls, as_it_is, new) for cls in (ApprovalGranted, CancellationRequested)]
    await Consumer(await open_bus(NAME), NAME, both, Store()).ensure()  # the migration job
    await stream.put(row(1, CancellationRequested))  # the first new process of all publishes
    await replica(*both)
    await new.have(1)


async def test_replicas_that_start_together_do_not_narrow_each_others_filter(
    bus: Bus, stream: Stream, open_bus: OpenBus
) -> None:
    handled, store = Handled(), Store()
    versions: list[list[type[Message]]] = [
        [ApprovalGranted],
        [ApprovalGranted, CancellationRequested],
        [ApprovalGranted, ApprovalDenied],
    ]
    consumers = [
        Consumer(await open_bus(NAME), NAME, [Subscription(cls, as_it_is, handled) for cls in classes], store)
        for classes in versions * 3
    ]
    for _ in range(20):
        await asyncio.gather(*(one.ensure() for one in consumers))
        filters = (await stream.info()).config.filter_subjects or []
        assert sorted(filters) == sorted(
            cls.DESCRIPTOR.full_name for cls in (ApprovalGranted, ApprovalDenied, CancellationRequested)
        )
        await bus.forget(NAME)


async def test_a_replica_that_is_cut_off_from_its_store_gives_its_events_to_one_that_is_not(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "STORE_PATIENCE", 1.0)
    cut, whole, store = Handled(), Handled(), Store()
    cut.fails = dict.fromkeys(range(300), StoreUnavailable("cut off"))
    store.away = True
    await bus.publish([row(i) for i in range(300)])
    await replica((ApprovalGranted, cut), store=store)
    await cut.begun.wait()
    await replica((ApprovalGranted, whole))
    await whole.have(*range(300))  # within 15 s, the acknowledgement of nothing had to time out
    await stream.done()
    tried = cut.tries.total()
    await stream.put(*(row(i) for i in range(300, 400)))
    await whole.have(*range(300, 400))
    assert cut.tries.total() == tried, "it asks for nothing while its store is away"
    store.away = False
    cut.fails.clear()
    numbers = iter(range(400, 100_000))

    async def gets_some() -> bool:
        await stream.put(row(next(numbers)))
        return bool(cut.numbers)

    await eventually(gets_some, bool)


async def test_the_one_active_replica_that_is_cut_off_from_its_store_lets_another_be_it(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "STORE_PATIENCE", 1.0)
    cut, whole, store = Handled(), Handled(), Store()
    cut.fails, store.away = dict.fromkeys(range(10), StoreUnavailable("cut off")), True
    await bus.publish([row(i) for i in range(10)])
    await replica((ApprovalGranted, cut), store=store, single_active=True)
    await cut.begun.wait()
    await replica((ApprovalGranted, whole), single_active=True)
    await whole.have(*range(10))
    await stream.done()


async def test_a_handler_that_never_returns_keeps_its_events_for_a_bounded_time(
    bus: Bus, stream: Stream, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "ACK_WAIT", 1.0)
    monkeypatch.setattr(pull, "HOLD", 2.0)
    hangs, whole = Handled(), Handled()
    hangs.may.clear()
    await bus.publish([row(i) for i in range(10)])
    await replica((ApprovalGranted, hangs))
    await hangs.begun.wait()
    await replica((ApprovalGranted, whole))
    await whole.have(*range(10))


async def test_a_letter_whose_claimant_died_is_tried_again_by_another(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(redrive, "CLAIM", timedelta(seconds=0.5))
    dies, lives = Handled(), Handled()
    dies.fails[1] = ValueError("once")
    _, task = await replica((ApprovalGranted, dies))
    await stream.put(row(1))
    await within(30, lambda: dies.tries[1] == 1)
    dies.may.clear()
    await within(30, lambda: dies.tries[1] == 2)
    task.cancel()
    await asyncio.wait([task])
    await replica((ApprovalGranted, lives))
    await lives.have(1)
    await stream.nothing_aside()


async def test_two_replicas_that_redrive_at_the_same_time_leave_one_letter_of_each_event(
    bus: Bus, stream: Stream, replica: Replica, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(redrive, "MAX_TRIES", 6)
    handled = [Handled(), Handled()]
    for one in handled:
        one.fails = dict.fromkeys(range(50), ValueError("never"))
        await replica((ApprovalGranted, one))
    await bus.publish([row(i) for i in range(50)])
    await eventually(lambda: stream.count("*"), lambda dead: dead >= 50, within=60)
    await eventually(stream.count, lambda count: count == 50)
    letters = await stream.dead()
    assert sorted(uuid.UUID((x.headers or {})["ce-subject"]).int for x in letters) == list(range(50))
