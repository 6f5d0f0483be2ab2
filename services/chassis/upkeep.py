"""Work that a service does by itself: when this process knows of a reason, and regularly."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from .errors import StoreUnavailable
from .events import LOOK_EVERY
from .telemetry import log

# Seconds between looks for what a look each second would make too dear.
THOROUGHLY_EVERY = 60.0


async def keep(
    what: str,
    act: Callable[[bool], Awaitable[object]],
    woken: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Acts for ever, in every replica, since any other one may be gone or may have had a reason of its own.

    `act` is told whether to do it thoroughly. What it returns is logged as done, unless it is nothing; `what` names it.
    `woken` returns when this process knows of a reason; without it there is none.
    """
    woken, thorough = woken or asyncio.Event().wait, time.monotonic()
    while True:
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await woken()
        except TimeoutError:
            pass
        try:
            thoroughly = time.monotonic() >= thorough
            if done := await act(thoroughly):
                log.info(what, done=done)
            if thoroughly:  # replicas do not all do it at once
                thorough = time.monotonic() + THOROUGHLY_EVERY * random.uniform(0.8, 1.2)  # noqa: S311
        except StoreUnavailable:
            log.warning("store away: it waits", what=what)
        except Exception as error:  # trouble with one hospital or day must not end the service for all of them
            log.error("not done", what=what, exc_info=error)
