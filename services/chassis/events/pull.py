"""A standing pull request: the messages of a durable consumer, in batches, as they come."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..errors import StoreUnavailable
from ..pace import Pace
from ..retry import later
from ..telemetry import log
from .outbox import PublishFailed
from .stream import STREAM, Bus

R = TypeVar("R")

NOT_REACHED = (nats.errors.Error, PublishFailed, StoreUnavailable, OSError, TimeoutError)
BATCH = 256
INTERVALS = 0.1, 0.3  # seconds from batch to batch under load, see Pace
ENOUGH = 100  # messages that wait for no more
# Seconds until a message goes to another replica when the one that has it has gone, or hangs. One that is at work says
# so three times as often.
ACK_WAIT = 10.0
# Seconds for which a replica says so of one message. Who needs longer is cut off from its store, or hangs in a way that
# only looks like work: then another replica gets the message.
HOLD = 60.0
# A pull request ends before a message can come back: else a hung replica would be given it once more.
PULL_EXPIRES = 7.0
HEARTBEAT = 3.0  # seconds, less than half of PULL_EXPIRES; two missed: the pull request is lost and made anew
# Seconds after its last pull request for which the one replica that is given messages, where only one is, stays it.
# Longer than a pull request, else they would take turns; shorter than ACK_WAIT, else one that hangs would be given
# again what it has.
PINNED = 9.0
GROUP = "replicas"


async def quietly(doing: Awaitable[R]) -> R | None:
    """None, and a warning, when the stream or the store cannot be reached: whoever asks tries again later."""
    try:
        return await doing
    except NOT_REACHED as error:
        log.warning("not reached", error=type(error).__name__, detail=str(error))
        return None


class _Request:
    """What was asked of the server, and when it was last heard of."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.left = 0  # messages that the server may still send
        self.heard = time.monotonic()
        self.ended = False  # the server refused it, or does not know of it any more

    @property
    def lost(self) -> bool:
        """Whether it has to be made anew."""
        return self.ended or time.monotonic() - self.heard > 2.5 * HEARTBEAT


class StandingPull:
    """One replica's share of a durable consumer's messages.

        async with pull:
            async for batch in pull:
                ...             # and pull.settled(message), once its fate is told to the server

    While a message is in hand the server is told that it is being worked on, for HOLD at most. At the end of the block
    whatever is in hand goes to another replica at once. `ensure` makes the consumer, or brings it up to date.

    `single_active`: the server gives messages to one replica, and to another when that one has gone or hangs.
    """

    def __init__(
        self, bus: Bus, name: str, ensure: Callable[[], Awaitable[None]], stopping: asyncio.Event, single_active: bool
    ) -> None:
        self._bus, self._name, self._ensure, self._stopping = bus, name, ensure, stopping
        self._single_active, self._pin = single_active, ""
        self._made_otherwise = False  # by a replica of another version, which wants it otherwise
        self._request: _Request | None = None
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()  # None: look how the request is
        self._in_hand: dict[str, tuple[Msg, float]] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._pace = Pace(*INTERVALS, ENOUGH)

    async def __aenter__(self) -> "StandingPull":
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        if self._request is not None:
            # What is on its way here arrives, and nothing more.
            await quietly(self._request.subscription.drain())  # type: ignore[no-untyped-call]
            self._request = None
        if self._pin:  # another replica need not wait until this one is missed
            await quietly(self._bus.ask(f"CONSUMER.UNPIN.{STREAM}.{self._name}", {"group": GROUP}, within=1))
            self._pin = ""
        for message, _since in self._in_hand.values():
            await quietly(message.nak())
        self._in_hand.clear()
        self._queue = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[list[Msg]]:
        while not self._stopping.is_set():
            new = self._request is None or self._request.lost or self._made_otherwise
            if new and not await self._listen():
                await later(self._stopping, 1.0)
                continue
            if batch := await self._next():
                yield batch

    def settled(self, message: Msg) -> None:
        """Its fate is decided: nothing more is said of it."""
        self._in_hand.pop(message.reply, None)

    def lost(self) -> None:
        """The server has forgotten what was asked of it, for instance since the connection was made anew."""
        if self._request is not None:
            self._request.ended = True
        self._queue.put_nowait(None)

    async def _next(self) -> list[Msg]:
        """What has come, BATCH at most; nothing when it is time to look how the request is."""
        getting = asyncio.create_task(self._queue.get())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([getting, stopping], timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not getting.done():
                getting.cancel()
        if not getting.done() or getting.cancelled():
            return []
        found = [getting.result()]
        await self._pace.gather(self._queue.qsize)
        while len(found) < BATCH and not self._queue.empty():
            found.append(self._queue.get_nowait())
        self._pace.begin(len(found))
        request = self._request
        if request is not None and not request.lost and request.left < BATCH / 2:
            await quietly(self._ask_for_more(request))
        return [message for message in found if message is not None]

    async def _listen(self) -> bool:
        if self._request is not None:
            await quietly(self._request.subscription.unsubscribe())
            self._request = None
        try:
            await self._ensure()
            self._made_otherwise = False
            connection = self._bus.connection()
            self._request = _Request(await connection.subscribe(connection.new_inbox(), cb=self._on_message))
            await self._ask_for_more(self._request)
        except NOT_REACHED as error:
            log.warning("not reached", error=type(error).__name__, detail=str(error))
            return False
        return True

    async def _ask_for_more(self, request: _Request) -> None:
        # On an inbox of our own: p99 8 ms where the client's fetch() had 56 ms.
        body: dict[str, Any] = {"batch": BATCH}
        body |= {"expires": int(PULL_EXPIRES * 1e9), "idle_heartbeat": int(HEARTBEAT * 1e9)}
        if self._single_active:
            body |= {"group": GROUP, "id": self._pin} if self._pin else {"group": GROUP}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self._name}"
        await self._bus.connection().publish(subject, json.dumps(body).encode(), reply=request.subscription.subject)
        request.left += BATCH

    async def _on_message(self, message: Msg) -> None:
        headers, request = message.headers or {}, self._request
        if request is None:
            return
        request.heard = time.monotonic()
        status = headers.get("Status")
        if status is None:
            request.left -= 1
            self._pin = headers.get("Nats-Pin-Id", "")
            self._made_otherwise |= self._single_active and not self._pin
            self._in_hand[message.reply] = message, time.monotonic()
            self._queue.put_nowait(message)
        elif status != "100":  # the pull request has ended: expired, or the server lost or refused it
            if status == "423":  # another replica is the one now
                self._pin = ""
            left = headers.get("Nats-Pending-Messages")
            request.left = max(0, request.left - int(left)) if left else 0
            if status == "400":  # the consumer takes no request of this kind: it is made anew, after HEARTBEAT
                self._made_otherwise = True
                return
            if status not in ("408", "409", "423"):  # the consumer or the stream has gone
                request.ended = True
            self._queue.put_nowait(None)

    async def _keep(self) -> None:
        """While this replica works on a message, nobody else is given it."""
        while True:
            await asyncio.sleep(ACK_WAIT / 3)
            for message, since in list(self._in_hand.values()):
                if self._bus.connected and not message.is_acked and time.monotonic() - since < HOLD:
                    await quietly(message.in_progress())
