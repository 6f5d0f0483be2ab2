"""Events that were set aside come back by themselves: when their pause is over, or a version comes that knows them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ..errors import StoreUnavailable
from ..retry import Backoff
from ..store import Store
from ..telemetry import events_dead, events_failed, events_handled, events_parked, log
from .delivery import Delivery, Fate, Outcome
from .pull import quietly
from .setaside import Kind, Letter, SetAside

TRY_AGAIN = Backoff(first=1.0, longest=8.0)  # between tries of an event whose handling fails for a reason of its own
MAX_TRIES = 5  # of such an event, until it is a dead letter
# How often somebody may begin to handle a letter without saying how it went. A handler that fails says so: these are
# deaths, hangs and restarts in a row, and so many are no accident.
MAX_ATTEMPTS = 20
CLAIM = timedelta(seconds=30)  # within which a letter is handled, unless its claimant has died
LOOK_EVERY = 1.0  # seconds
PAGE = 64


class KilledItsProcess(Exception):
    """Tried again and again, and no process lived to say how it went."""


class Redrive:
    """The letters of one consumer, in one replica. Replicas that look at the same time are kept apart by claims.

    `paused` tells whether an operator has paused the consumer. `version` is that of the code.
    """

    def __init__(
        self, set_aside: SetAside, delivery: Delivery, store: Store, paused: Callable[[], Awaitable[bool]], version: str
    ) -> None:
        self._set_aside, self._delivery, self._store, self._paused = set_aside, delivery, store, paused
        self._version = version
        # Parked letters up to here were looked at by this process, by their type: what it cannot read it need not read
        # again. An older replica may park more of them meanwhile, behind.
        self._looked_at: defaultdict[str, int] = defaultdict(int)
        self._stopping = False

    def stop(self) -> None:
        """Ends `run` with its next look, also if the client of the stream has swallowed a cancellation."""
        self._stopping = True

    async def run(self) -> None:
        """Looks until `stop`."""
        while not self._stopping:
            begun, more = time.monotonic(), False
            try:
                more = bool(await quietly(self._look()))
            except Exception as error:  # one letter's trouble must not end the looks for all
                log.error("what was set aside was not looked at", exc_info=error)
            # Half of the time is left to the events that nothing is wrong with.
            await asyncio.sleep(time.monotonic() - begun if more else LOOK_EVERY)

    async def put_aside(self, letter: Letter, outcome: Outcome) -> None:
        """Keeps an event that has just arrived where its outcome says; raises what the stream's client raises."""
        letter, kind = self._decided(letter, outcome)
        await self._set_aside.put(letter, kind)

    async def by_hand(self, letter: Letter) -> bool:
        """An operator redrives a letter; whether it was handled. Raises StoreUnavailable."""
        [(_, outcome)] = [one async for one in self._delivery.deliver([letter])]
        if outcome.fate is Fate.WAITS_FOR_STORE:
            raise outcome.error or StoreUnavailable
        if outcome.fate is Fate.HANDLED or outcome.error is None:
            await self._set_aside.remove(letter)
            return True
        kind = Kind.PARKED if outcome.fate is Fate.WAITS_FOR_VERSION else Kind.DEAD
        again = replace(letter.noted(outcome.error, 1), parked_by=self._version)
        await self._set_aside.replace(letter, again, kind)
        return False

    def _decided(self, letter: Letter, outcome: Outcome) -> tuple[Letter, Kind]:
        """The letter as it is kept after this outcome, and where."""
        about = {"consumer": self._set_aside.consumer, "subject": letter.subject, "sequence": letter.stream_sequence}
        letter = replace(letter, attempts=0)
        if outcome.fate is Fate.FAILED and outcome.error is not None:
            letter = replace(letter, failures=letter.failures + 1)
        if outcome.error is not None:
            letter = letter.noted(outcome.error, max(1, letter.failures))
        if outcome.fate is Fate.WAITS_FOR_VERSION:
            events_parked.labels(letter.subject).inc()
            log.warning("event parked until a version comes that knows it", **about, reason=str(outcome.error))
            return replace(letter, parked_by=self._version), Kind.PARKED
        if outcome.fate is Fate.UNPROCESSABLE or letter.failures >= MAX_TRIES:
            events_dead.labels(letter.subject).inc()
            log.error("event moved to the dead letters", **about)
            return letter, Kind.DEAD
        events_failed.labels(letter.subject).inc()
        log.warning("event not handled", **about, tries=letter.failures, exc_info=outcome.error)
        pause = timedelta(seconds=TRY_AGAIN.pause(max(1, letter.failures)))
        return replace(letter, not_before=datetime.now(UTC) + pause), Kind.RETRY

    async def _look(self) -> bool:
        """One look at all that may be due; whether there may be more at once."""
        waiting = await self._set_aside.waiting()
        known = waiting[Kind.PARKED].keys() & self._delivery.types
        if not (waiting[Kind.RETRY] or known) or await self._paused():
            return False
        await self._store.check()
        due: list[Letter] = []
        for event in waiting[Kind.RETRY]:
            now = datetime.now(UTC)
            due += [x for x in await self._set_aside.page(Kind.RETRY, 0, PAGE, event) if x.not_before <= now]
        looked_at: dict[str, int] = {}
        for event in known:
            page = await self._set_aside.page(Kind.PARKED, self._looked_at[event], PAGE, event)
            # What this version has parked, in whatever replica, it does not try again: it would do the same.
            due += [x for x in page if x.parked_by != self._version and self._delivery.understands(x)]
            if page:
                looked_at[event] = page[-1].sequence
        # Who goes down with a letter that kills its process must not be suspected with it: from its second attempt on a
        # letter is taken in hand alone, just before it is handled.
        runs = [[x for x in due if not x.attempts], *([x] for x in due if x.attempts)]
        done = all([await self._try(run) for run in runs if run])
        if done:
            self._looked_at |= looked_at
        return done and bool(due or looked_at)

    async def _try(self, letters: Sequence[Letter]) -> bool:
        """Takes letters in hand and hands them over; False while the store is away."""
        claimed = await asyncio.gather(*(self._set_aside.claim(x, datetime.now(UTC) + CLAIM) for x in letters))
        mine, store_answered = [x for x in claimed if x is not None], True
        for letter in [x for x in mine if x.attempts > MAX_ATTEMPTS]:
            error = KilledItsProcess(f"{letter.attempts - 1} tries, no outcome")
            await self._settle(letter, Outcome(Fate.UNPROCESSABLE, error))
            mine.remove(letter)
        async for run, outcome in self._delivery.deliver(mine):
            for letter in run:
                if outcome.fate is Fate.WAITS_FOR_STORE:  # nothing is wrong with it: as if nobody had tried
                    untried = replace(letter, attempts=letter.attempts - 1)
                    await self._set_aside.replace(letter, untried, Kind.RETRY)
                    store_answered = False
                elif outcome.fate is Fate.HANDLED:
                    events_handled.labels(letter.subject).inc()
                    await self._set_aside.remove(letter)
                else:
                    await self._settle(letter, outcome)
        return store_answered

    async def _settle(self, letter: Letter, outcome: Outcome) -> None:
        await self._set_aside.replace(letter, *self._decided(letter, outcome))
