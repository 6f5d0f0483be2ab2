"""The proof that a service's books add up: its store, and the events, counted apart from each other.

A service that keeps accounts (places by day, doses by lot) says how to count them: see `Books`. `Check` reads the whole
stream once more, with a consumer of its own, counts, and compares.

Bookings may go on meanwhile. What makes the comparison exact all the same: events are in the outbox until the stream
has them. So first the stream is read to its end; then the accounts and the outbox are read in one snapshot; then the
stream is read on. An account of which nothing new came in that last part was, in the snapshot, what the events up to
there make it. One that was touched, or that differs, is looked at again, until it agrees, or has stayed different.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from google.protobuf.message import DecodeError

from ..telemetry import log
from .outbox import PublishFailed
from .purge import SKEW
from .replay import replay
from .stream import STREAM, Bus, boundary

Amounts = Mapping[str, int]
"""How many, by quantity, for example {"approved": 3}."""
EVENTS = "events"  # where the count comes from that is made of the stream
LOOK_AGAIN = 0.25  # seconds between two looks
PATIENCE = 5.0  # seconds after which an account that still differs is named
# For an account that is touched in every look: an event would have to come in each of some hundred moments.
PATIENCE_WHILE_TOUCHED = 60.0
TELL_AT_ONCE = 500  # differences in one message


@dataclass(frozen=True, slots=True)
class Account:
    """An account as the store has it.

    `own` are the amounts that the service works with; what is not there is 0. `others` are the same amounts counted
    from other parts of the store, by what they were counted from. `told` are the quantities that the events tell
    completely; None: all. `at_most` has, by what they were counted from, the quantities of which something may be kept
    no longer, so that they may be smaller than the own ones.
    """

    own: Amounts
    others: Mapping[str, Amounts] = field(default_factory=dict)
    told: Collection[str] | None = None
    at_most: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store said: accounts, which may be left out when nothing is on them, and events not yet published."""

    accounts: Mapping[str, Account]
    outbox: Sequence[tuple[str, bytes]]
    """The types and payloads of those that `Books.subjects` name."""


class Books(Protocol):
    """A service's accounts, for one check: it keeps the count that is made of the events."""

    subjects: Sequence[str]
    """The types of the events that change the accounts."""

    def add(self, subject: str, payload: bytes) -> Collection[str]:
        """Counts an event; returns the accounts that it changed.

        Repeated events change nothing, and any order comes to the same. Raises DecodeError or ValueError for an event
        that cannot be read.
        """

    def told(self) -> Collection[str]:
        """The accounts that the events tell of."""

    def amounts(self, account: str) -> Amounts:
        """What the events have come to."""

    async def read(self, accounts: Collection[str] | None, complete_since: datetime | None) -> Reading:
        """Reads accounts and outbox in one snapshot; None: every account, and then the outbox last, in any way.

        `complete_since`: the stream has only the events from then on; None: every event there ever was.
        """


@dataclass(frozen=True, slots=True)
class Difference:
    """Two counts of one account that do not agree."""

    account: str
    quantity: str
    store: int
    other: int
    counted_from: str


@dataclass(slots=True)
class Progress:
    """How far a check is."""

    to_go: int = 0
    accounts: int = 0
    complete: bool = True
    differences: Sequence[Difference] = ()


class Check:
    """One look through a service's books. It changes nothing, here nor in the stream."""

    def __init__(self, bus: Bus, books: Books) -> None:
        self._bus, self._books = bus, books
        self._read_up_to = 0
        self._complete_since: datetime | None = None
        self._progress = Progress()

    async def run(self) -> AsyncIterator[Progress]:
        """Tells how far it is, and in the end what does not agree, each once.

        Raises PublishFailed or StoreUnavailable.
        """
        suspects: dict[str, float] | None = None  # since when; None: everything is looked at for the first time
        named: list[Difference] = []
        while suspects is None or suspects:
            async for progress in self._read_on(set()):
                yield progress
            reading = await self._books.read(suspects and [*suspects], self._complete_since)
            touched = self._add(reading.outbox)
            if suspects is not None:  # the outbox was in the snapshot: what it tells is no later than what was read
                touched = set()
            names = reading.accounts.keys() | self._books.told() if suspects is None else suspects
            found = {}
            for number, account in enumerate(names):
                if differences := [*self._differences(account, reading)]:
                    found[account] = differences
                if number % 1000 == 999:
                    await asyncio.sleep(0)  # others are served by this process meanwhile
            self._progress.accounts = self._progress.accounts or len(names)
            async for progress in self._read_on(touched):
                yield progress
            now = time.monotonic()
            since, first, suspects = suspects or {}, suspects is None, {}
            for account in found.keys() | (touched if first else touched & since.keys()):
                waited = now - since.get(account, now)
                if waited < (PATIENCE_WHILE_TOUCHED if account in touched else PATIENCE):
                    suspects[account] = now - waited
                else:
                    named += found.get(account, ())
            if suspects:
                yield self._progress
                await asyncio.sleep(LOOK_AGAIN)
        named.sort(key=lambda d: (d.account, d.quantity, d.counted_from))
        for start in range(0, len(named), TELL_AT_ONCE):
            self._progress.differences = named[start : start + TELL_AT_ONCE]
            yield self._progress
        self._progress.differences = ()
        yield self._progress

    async def _read_on(self, touched: set[str]) -> AsyncIterator[Progress]:
        """Counts what is in the stream by now; adds the accounts that it changes to `touched`."""
        with boundary():
            state = (await self._bus.js.stream_info(STREAM)).state
            if state.first_seq > 1:
                self._progress.complete = False
                self._complete_since = await self._beginning(state.first_seq, state.last_seq)
            while self._read_up_to < state.last_seq:
                begun, left = self._read_up_to, 0
                async with aclosing(replay(self._bus, STREAM, begun, self._books.subjects)) as batches:
                    async for batch, left in batches:
                        touched |= self._add((message.subject, message.data) for message in batch)
                        self._read_up_to = batch[-1].metadata.sequence.stream if batch else begun
                        self._progress.to_go = left
                        yield self._progress
                        if self._read_up_to >= state.last_seq:
                            break
                if left == 0:  # the rest is of other types
                    self._read_up_to = max(self._read_up_to, state.last_seq)
                elif self._read_up_to == begun:
                    raise PublishFailed(f"the stream {STREAM} does not deliver")
        self._progress.to_go = 0

    async def _beginning(self, first: int, last: int) -> datetime | None:
        """Since when every event is in the stream. With nothing left in it nothing is: then since now."""
        if first > last:
            return datetime.now().astimezone() + SKEW
        time_of_first = (await self._bus.js.get_msg(STREAM, seq=first, subject=">", next=True)).time
        return time_of_first + SKEW if time_of_first else None

    def _add(self, events: "Iterator[tuple[str, bytes]] | Sequence[tuple[str, bytes]]") -> set[str]:
        changed: set[str] = set()
        for subject, payload in events:
            try:
                changed.update(self._books.add(subject, payload))
            except (DecodeError, ValueError) as error:  # no service can have counted it either
                log.warning("event left out of the books", subject=subject, error=type(error).__name__)
        return changed

    def _differences(self, account: str, reading: Reading) -> Iterator[Difference]:
        entry = reading.accounts.get(account) or Account({})
        told = self._books.amounts(account)
        quantities = told.keys() if entry.told is None else entry.told
        counts = {**entry.others, EVENTS: {quantity: told.get(quantity, 0) for quantity in quantities}}
        for counted_from, amounts in counts.items():
            for quantity, other in amounts.items():
                own = entry.own.get(quantity, 0)
                if other > own or (other < own and quantity not in entry.at_most.get(counted_from, ())):
                    yield Difference(account, quantity, own, other, counted_from)
