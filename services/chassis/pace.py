"""How soon one batch follows another: at once while there is little to do, and at intervals under load.

A transaction, a publication and an acknowledgement cost nearly the same for one item and for twenty. So where many
items come, it pays to let them gather for some milliseconds. Who comes alone waits for nobody.
"""

import math
import time
from collections.abc import Callable

WINDOW = 0.2  # seconds over which items are counted, the older ones for less
BUSY = 20.0  # items in the window from which on batches are kept apart: a hundred items a second


class Pace:
    """The pace of one kind of batches; `interval` is in seconds, from one batch's beginning to the next one's."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = interval, clock
        self._begun, self._recent = -math.inf, 0.0

    def pause(self) -> float:
        """Seconds to wait before the next batch is cut."""
        passed = self._clock() - self._begun
        if passed >= self._interval or self._recent * math.exp(-passed / WINDOW) < BUSY:
            return 0.0
        return self._interval - passed

    def begin(self, items: int) -> None:
        """A batch of so many items begins now."""
        now = self._clock()
        self._recent = self._recent * math.exp((self._begun - now) / WINDOW) + items
        self._begun = now
