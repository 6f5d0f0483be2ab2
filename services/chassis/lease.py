"""Being the only one for a while: a lock in a store that has to be renewed, or another process gets it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from .telemetry import log

# Seconds for which a process that hangs, or whose host is gone, keeps the others waiting.
LEASE = 30.0


@asynccontextmanager
async def renewed(renew: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Calls `renew` three times in each LEASE while the block runs.

    A block that could not renew its lease in time is ended with TimeoutError, before the store gives the lock to
    another process.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LEASE) as deadline:

        async def keep() -> None:
            while True:
                await asyncio.sleep(LEASE / 3)
                begun = loop.time()
                try:
                    await renew()
                    deadline.reschedule(begun + LEASE)
                except Exception as error:  # whatever it is, there is time for another try
                    log.warning("lease not renewed", error=type(error).__name__)

        keeper = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
