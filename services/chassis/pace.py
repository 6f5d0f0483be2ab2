"""How soon one batch follows another: at once while there is little to do, and the later the more there is to do.

A transaction, a publication and an acknowledgement cost nearly the same for one item and for fifty. So where many items
come, it pays to let them gather: what it spares the processor serves more of them. Who comes alone waits for nobody.
"""

import asyncio
import math
import time
from collections.abc import Callable

WINDOW = 1.0  # seconds over which items are counted, the older ones for less
CALM = 50.0  # items a second up to which batches follow each other at once: nobody would gather
# Seconds between batches for each item a second, so that a hundred items a second gather for 50 ms. With four times as
# many items a batch is sixteen times as large, until the longest interval is reached.
GROWTH = 0.0005
ENOUGH = 100  # items that do not wait for more: with them a batch costs hardly anything for each
STEP = 0.025  # seconds between looks whether there are enough


class Pace:
    """The pace of one kind of batches; `longest` is in seconds, from one batch's beginning to the next one's."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._clock = longest, clock
        self._begun, self._recent = -math.inf, 0.0

    def pause(self) -> float:
        """Seconds to wait before the next batch is cut, unless there are enough items for it."""
        passed = self._clock() - self._begun
        rate = self._recent * math.exp(-passed / WINDOW) / WINDOW
        return max(0.0, min(self._longest, rate * GROWTH) - passed) if rate > CALM else 0.0

    def begin(self, items: int) -> None:
        """A batch of so many items begins now."""
        now = self._clock()
        self._recent = self._recent * math.exp((self._begun - now) / WINDOW) + items
        self._begun = now

    async def gather(self, waiting: Callable[[], int]) -> None:
        """Waits until it is time for the next batch, or enough items wait for it."""
        while waiting() < ENOUGH and (pause := self.pause()):  # noqa: ASYNC110 - mostly for the pause's sake
            await asyncio.sleep(min(pause, STEP))
