"""When to try again, as values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Pauses in seconds that double from `first` and are never longer than `longest`."""

    first: float
    longest: float

    def pause(self, tries: int) -> float:
        """The pause after so many tries in vain, one at least."""
        return min(self.first * 2.0 ** min(tries - 1, 30), self.longest)
