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
GROWTH = 0.002  # seconds of an interval for each item a second, so that batches grow faster than the load
STEP = 0.025  # seconds between looks whether there are enough
FEW = 3  # items, as many as one booking has: a batch that waited and is no larger has waited in vain
# So many batches in a row have waited in vain, and none waits for the next WINDOW: there may be only one customer, who
# books again and again.
VAIN = 3


class Pace:
    """The pace of one kind of batches: from `shortest` to `longest` seconds from one's beginning to the next one's.

    `enough` items do not wait for more: with them a batch costs hardly anything for each.
    """

    def __init__(
        self, shortest: float, longest: float, enough: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest, self._longest, self._enough, self._clock = shortest, longest, enough, clock
        self._begun, self._recent = -math.inf, 0.0
        self._waited, self._in_vain, self._at_once_until = False, 0, -math.inf

    def pause(self) -> float:
        """Seconds to wait before the next batch is cut, unless there are enough items for it."""
        now = self._clock()
        rate = self._counted(now) / WINDOW
        if rate < BUSY or now < self._at_once_until:
            return 0.0
        interval = min(max(self._shortest, rate * GROWTH), self._longest)
        return max(0.0, self._begun + interval - now)

    def begin(self, items: int) -> None:
        """A batch of so many items begins now."""
        now = self._clock()
        self._recent, self._begun = self._counted(now) + items, now
        if self._waited:
            self._in_vain = self._in_vain + 1 if items <= FEW else 0
            if self._in_vain == VAIN:
                self._in_vain, self._at_once_until = 0, now + WINDOW
        self._waited = False

    async def gather(self, waiting: Callable[[], int]) -> None:
        """Waits until it is time for the next batch, or enough items wait for it."""
        while waiting() < self._enough and (pause := self.pause()):
            self._waited = True
            await asyncio.sleep(min(pause, STEP))

    def _counted(self, now: float) -> float:
        return self._recent * math.exp((self._begun - now) / WINDOW)
