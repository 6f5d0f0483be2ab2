"""How soon one batch follows another: at once while there is little to do, and at intervals that grow with the load.

A transaction, a publication and an acknowledgement cost nearly the same for one item and for fifty. So where many items
come, it pays to let them gather: what it spares the processor serves more of them. Who comes alone waits for nobody.
"""

import asyncio
import math
import time
from collections.abc import Callable

WINDOW = 1.0  # seconds over which items are counted, the older ones for less
BUSY = 20.0  # items a second from which on batches are kept apart: fewer would hardly meet each other
GROWTH = 0.001  # seconds of an interval for each item a second, so that batches grow faster than the load
ENOUGH = 100  # items that do not wait for more: with them a batch costs hardly anything for each
STEP = 0.025  # seconds between looks whether there are enough


class Pace:
    """The pace of one kind of batches. An interval is in seconds, from one batch's beginning to the next one's."""

    def __init__(self, shortest: float, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._shortest, self._longest, self._clock = shortest, longest, clock
        self._begun, self._recent = -math.inf, 0.0

    def pause(self) -> float:
        """Seconds to wait before the next batch is cut, unless there are enough items for it."""
        passed = self._clock() - self._begun
        rate = self._recent * math.exp(-passed / WINDOW) / WINDOW
        if rate < BUSY:
            return 0.0
        interval = min(max(self._shortest, rate * GROWTH), self._longest)
        return max(0.0, interval - passed)

    def begin(self, items: int) -> None:
        """A batch of so many items begins now."""
        now = self._clock()
        self._recent = self._recent * math.exp((self._begun - now) / WINDOW) + items
        self._begun = now

    async def gather(self, waiting: Callable[[], int]) -> None:
        """Waits until it is time for the next batch, or enough items wait for it."""
        while waiting() < ENOUGH and (pause := self.pause()):  # noqa: ASYNC110 - mostly for the pause's sake
            await asyncio.sleep(min(pause, STEP))
