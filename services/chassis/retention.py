"""How long things are kept, as one rule for all services, and the task that deletes what is kept no longer.

What is over is deleted in every service, each at its own time. An event about it may come later still, by a redelivery
or a rebuild; it is handled as nothing to do, so that it does not bring back in one service what is gone in another.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from prometheus_client import Counter

from .errors import StoreUnavailable
from .events.delivery import Event, NothingToDo, Subscription
from .events.outbox import PublishFailed
from .telemetry import log

EVERY = 3600.0  # seconds between two runs in one replica, on average
BATCH = 1000  # rows deleted in one transaction: 10 to 30 ms of work
# Seconds of pause for each second of work: whoever serves people has most of the store, however much is to be deleted.
PAUSES = 4
EPOCH = datetime.fromtimestamp(0, UTC)

deleted_total = Counter("retention_deleted_total", "What was deleted because it was over.", ["component", "what"])


@dataclass(frozen=True)
class Term:
    """What decides how long something is kept: when it was decided, for which day, and whether it was refused."""

    decided: datetime
    day: date
    refused: bool = False


class Limits(Protocol):
    """In days; 0 means for ever."""

    @property
    def retention_refused_days(self) -> int: ...
    @property
    def retention_passed_days(self) -> int: ...
    @property
    def retention_stream_days(self) -> int: ...


class Retention:
    """The rule. Days are those of UTC, so that it is the same moment in all services, wherever a thing's day is."""

    def __init__(self, limits: Limits, clock: Callable[[], datetime]) -> None:
        self._limits, self._clock = limits, clock

    @property
    def refused_before(self) -> datetime:
        """What was refused is over when it was decided before."""
        return self.ago(self._limits.retention_refused_days)

    @property
    def passed_before(self) -> date:
        """Everything is over that is for an earlier day."""
        return self.ago(self._limits.retention_passed_days).date()

    @property
    def published_before(self) -> datetime:
        """Events are over that the stream took before."""
        return self.ago(self._limits.retention_stream_days)

    def ago(self, days: int) -> datetime:
        """What is kept for so many days is over when it is of before; 0 days are for ever."""
        return self._clock() - timedelta(days) if days else EPOCH

    def is_over(self, term: Term) -> bool:
        """Whether it is kept no longer."""
        return term.day < self.passed_before or (term.refused and term.decided < self.refused_before)

    def applied_to(
        self, subscriptions: Sequence[Subscription[Any]], term: Callable[[Event], Term]
    ) -> list[Subscription[Any]]:
        """The subscriptions, with nothing to do for events about what is over. `term` reads an event."""
        return [self._applied_to(subscription, term) for subscription in subscriptions]

    def _applied_to(self, subscription: Subscription[Any], term: Callable[[Event], Term]) -> Subscription[Any]:
        def read(event: Event) -> Any:
            value = subscription.read(event)
            if self.is_over(term(event)):
                raise NothingToDo
            return value

        return replace(subscription, read=read)


@dataclass(frozen=True)
class Rule:
    """`delete` deletes at most so many of `what` that are over, those that nobody else holds, and returns how many."""

    what: str
    delete: Callable[[int], Awaitable[int]]

    async def apply(self, component: str) -> int:
        """Deletes in batches until less than a batch is left; returns how many. Raises StoreUnavailable."""
        total = 0
        while True:
            begun = time.monotonic()
            deleted = await self.delete(BATCH)
            deleted_total.labels(component, self.what).inc(deleted)
            total += deleted
            if deleted < BATCH:
                return total
            await asyncio.sleep(PAUSES * (time.monotonic() - begun))


async def keep(component: str, rules: Sequence[Rule]) -> None:
    """Applies the rules for ever, in every replica, at times of its own: replicas skip each other's rows."""
    while True:
        await asyncio.sleep(random.uniform(0, 2 * EVERY))  # noqa: S311 - spreads the replicas' runs
        for rule in rules:
            try:
                if deleted := await rule.apply(component):
                    log.info("deleted what was over", what=rule.what, count=deleted)
            except (StoreUnavailable, PublishFailed):
                log.warning("store or stream away: what is over stays until the next run", what=rule.what)
            except Exception as error:  # one rule's trouble must not end the others, nor the service
                log.error("what is over was not deleted", what=rule.what, exc_info=error)
