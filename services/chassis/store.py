"""What every service asks of its own store, whatever kind it is."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol


class Store(Protocol):
    """A database of Postgres or of MongoDB."""

    async def check(self) -> None:
        """Raises StoreUnavailable unless it can be written to now."""

    def exclusively(self) -> AbstractAsyncContextManager[None]:
        """A lock that at most one process of all replicas holds, and that ends with its process."""
