"""The view built anew beside the one that is read, and then put in its place."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpc.aio import Server, ServicerContext

from services.chassis.caller import allow
from services.chassis.jetstream import Bus, Consumer
from services.chassis.postgres import Database
from services.chassis.server import draining
from vaccination.mypage.v1 import view_service_pb2 as pb
from vaccination.mypage.v1 import view_service_pb2_grpc

from .projector import View

TABLES = ("my_reservations", "timeline")
# A durable of its own: the one that keeps the present view up to date goes on meanwhile.
CONSUMER = "mypage-rebuild"
LOCK = 0x7265_6275  # of the one rebuild at a time, in all replicas
# How long the present view's writer is held up by the switch, in seconds; readers are not. Then it is tried again.
SWITCH_WITHIN = 5.0
Phase = pb.RebuildPhase


class RebuildRunning(Exception):
    """Another rebuild is at work."""


class ViewServicer(view_service_pb2_grpc.ViewServiceServicer):
    """For operators."""

    def __init__(self, database: Database, bus: Bus, live: Consumer, migrations: Path) -> None:
        self._database, self._bus, self._live, self._migrations = database, bus, live, migrations

    @allow("operator")
    async def RebuildView(
        self, request: pb.RebuildViewRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.RebuildViewResponse]:
        since = request.since.ToDatetime(UTC) if request.HasField("since") else None
        async with self._database.connection() as lock:
            if not await lock.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
                raise RebuildRunning("another rebuild is running: wait for it")
            try:
                async with aclosing(self._rebuild(since)) as progress:
                    async for response in progress:
                        yield response
            finally:
                await lock.execute("SELECT pg_advisory_unlock($1)", LOCK)

    async def _rebuild(self, since: datetime | None) -> AsyncGenerator[pb.RebuildViewResponse, None]:
        """Until the switch has committed everything is as it was; after it the new view lacks nothing."""
        await self._clear()  # left by a process that died in the middle
        if since is not None:
            since = min(since, await self._unhandled_since())
        await self._prepare(copy=since is not None)
        consumer = Consumer(self._bus, CONSUMER, View(self._database, "next").handlers(), keep_dead_letters=False)
        await consumer.ensure(since)
        running = asyncio.create_task(consumer.run())
        try:
            while not draining.is_set():
                target = await consumer.last_sequence()
                while to_go := await _to_go(consumer, target):
                    yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_REPLAYING, events_to_go=to_go)
                    await asyncio.sleep(0.1)
                if await self._switch(consumer):
                    yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_DONE)
                    return
        finally:
            consumer.stop()
            await asyncio.wait([running])
            consumer.forget()
            await self._clear()

    async def _unhandled_since(self) -> datetime:
        """When the first event came that the present view may not have yet: what it copies has none from then on."""
        floor = (await self._live.info()).ack_floor
        first = await self._live.time_of((floor.stream_seq if floor else 0) + 1)
        return first or datetime.now(UTC)

    async def _prepare(self, copy: bool) -> None:
        """The same tables, from the same migrations, in a schema of their own."""
        async with self._database.transaction() as connection:
            await connection.execute("CREATE SCHEMA next; SET LOCAL search_path TO next")
            for file in sorted(self._migrations.glob("*.sql")):
                await connection.execute(file.read_text())
            if copy:
                for table in TABLES:
                    await connection.execute(f"INSERT INTO next.{table} SELECT * FROM public.{table}", timeout=3600)  # noqa: S608

    async def _switch(self, consumer: Consumer) -> bool:
        """Puts the new tables in place of the old ones, in one transaction; False: not now, events come too fast.

        The lock lets readers go on and makes the present view's writer wait, so that nothing more goes into the old
        tables alone: everything that is in them is in the stream, and the new tables have it once they have come to
        the stream's end. What the writer does after the commit goes into the new tables.
        """
        async with self._database.transaction() as connection:
            await connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN SHARE ROW EXCLUSIVE MODE")
            target, deadline = await consumer.last_sequence(), asyncio.get_running_loop().time() + SWITCH_WITHIN
            while await _to_go(consumer, target):
                if asyncio.get_running_loop().time() > deadline:
                    return False
                await asyncio.sleep(0.02)
            await connection.execute("CREATE SCHEMA old")
            for table in TABLES:
                await connection.execute(f"ALTER TABLE public.{table} SET SCHEMA old")
                await connection.execute(f"ALTER TABLE next.{table} SET SCHEMA public")
        return True

    async def _clear(self) -> None:
        await self._bus.forget(CONSUMER)
        async with self._database.transaction() as connection:
            await connection.execute("DROP SCHEMA IF EXISTS next CASCADE; DROP SCHEMA IF EXISTS old CASCADE")


async def _to_go(consumer: Consumer, target: int) -> int:
    """Events up to `target` that the consumer has not handled yet; 0 when it has them all."""
    info = await consumer.info()
    pending, in_flight = info.num_pending or 0, info.num_ack_pending or 0
    delivered = info.delivered.stream_seq if info.delivered else 0
    handled = info.ack_floor.stream_seq if info.ack_floor else 0
    if (pending == 0 or delivered >= target) and (in_flight == 0 or handled >= target):
        return 0
    return max(1, pending + in_flight)


def register(server: Server, database: Database, bus: Bus, live: Consumer, migrations: Path) -> None:
    """Adds the view's service to a server. `live` is the present view's consumer."""
    servicer = ViewServicer(database, bus, live, migrations)
    view_service_pb2_grpc.add_ViewServiceServicer_to_server(servicer, server)
