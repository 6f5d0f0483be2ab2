"""Many callers, one transaction: calls that arrive while a batch is written, or soon after one, form the next batch."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from .errors import StoreUnavailable
from .pace import Pace
from .telemetry import batch_size, traceparent, traces_by_key

T = TypeVar("T")
R = TypeVar("R")

INTERVALS = 0.05, 0.1  # seconds from batch to batch under load, see Pace; the callers wait for it
ENOUGH = 32  # calls that wait for no more


class Batcher(Generic[T, R]):
    """Calls `write` with the items of all callers that wait. A caller who comes alone is served at once, see Pace.

    `write` returns an item's result or exception at its place. When it raises for a batch of several, each half of it
    is written apart, and so on, so that one item cannot spoil the others. `key` gives an item's correlation key, under
    which the events of its effect find their caller's trace.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        key: Callable[[T], str],
        limit: int = 256,
    ) -> None:
        self._name, self._write, self._key, self._limit = name, write, key, limit
        self._waiting: list[tuple[T, str, asyncio.Future[R]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._pace = Pace(*INTERVALS, ENOUGH)

    async def __call__(self, item: T) -> R:
        """The item's own result, or raises its own exception."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, traceparent.get(), future))
        if self._writer is None:
            # In a context of its own: it works for all callers, not for the one who came first.
            self._writer = asyncio.create_task(self._run(), context=Context())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._pace.gather(lambda: len(self._waiting))
                batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                self._pace.begin(len(batch))
                batch_size.labels(self._name).observe(len(batch))
                await self._one(batch)
        finally:  # a writer that has died must be forgotten, or every later caller would wait for it
            self._writer = None

    async def _one(self, batch: list[tuple[T, str, asyncio.Future[R]]]) -> None:
        traces_by_key.set({self._key(item): trace for item, trace, _ in batch})
        try:
            results = await self._write([item for item, _, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreUnavailable):
                half = len(batch) // 2
                await self._one(batch[:half])
                await self._one(batch[half:])
                return
            results = [error] * len(batch)
        for (_, _, future), result in zip(batch, results, strict=True):
            if future.done():
                continue  # its caller has gone
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
