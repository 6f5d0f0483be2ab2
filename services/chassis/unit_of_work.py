"""What a use case does to its store: all of it or nothing, and again from the start when another one was faster.

A use case reads straight down: it enters the unit of work of its store, reads, decides in the domain, and writes.

    @repeated_after_lost_race
    async def release(self, ids):
        async with self._books.unit_of_work() as work:
            ledger = await work.ledger_of(ids)
            ...
            await work.save(ledger)

The block is one transaction. It is committed when the block ends, with the events of what happened, and undone when the
block raises. This module knows no technology: each store's adapter says in these words what became of a transaction.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Of those that compete for the same rows one commits each time, so that everybody's turn comes. All together take some
# 3 s at most, beside the transactions themselves.
TRIES = 20
# Seconds. Whoever tried again at once would meet the same others; a transaction of 256 events takes about 0.1.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.16


class StoreUnavailable(Exception):
    """The store cannot be reached now. What was under way is committed or not; repeating is safe."""


class LostRace(StoreUnavailable):
    """Another transaction committed what this one was decided without. Nothing of this one remains."""


def repeated_after_lost_race(use_case: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Runs a use case again from the start when it lost a race, after a random pause that grows.

    Raises StoreUnavailable when it lost TRIES times.
    """

    @wraps(use_case)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> R:
        for lost in range(1, TRIES):
            try:
                return await use_case(*args, **kwargs)
            except LostRace:
                await asyncio.sleep(random.uniform(0, min(FIRST_PAUSE * 2**lost, LONGEST_PAUSE)))  # noqa: S311
        try:
            return await use_case(*args, **kwargs)
        except LostRace as error:
            raise StoreUnavailable("too many calls for the same thing at once: repeat the call") from error

    return repeated
