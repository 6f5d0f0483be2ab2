"""When to try again, as values."""

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Pauses in seconds that double from `first` and are never longer than `longest`."""

    first: float
    longest: float

    def pause(self, tries: int) -> float:
        """The pause after so many tries in vain, one at least."""
        return min(self.first * 2.0 ** min(tries - 1, 30), self.longest)


async def later(stopping: asyncio.Event, seconds: float) -> bool:
    """Waits; returns at once, and True, when everything is to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return False
    return True
