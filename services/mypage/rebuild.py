"""The view built anew beside the one that is read, and then put in its place."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import Server, ServicerContext

from services.chassis.caller import allow
from services.chassis.jetstream import Bus, Consumer
from services.chassis.postgres import Connection, Database
from vaccination.mypage.v1 import view_service_pb2 as pb
from vaccination.mypage.v1 import view_service_pb2_grpc

from . import projector

TABLES = ("my_reservations", "timeline")
# Its own durable: the one that keeps the present view up to date goes on meanwhile.
CONSUMER = "mypage-rebuild"
LOCK = 0x7265_6275  # of the one rebuild at a time, in all replicas
Phase = pb.RebuildPhase


class RebuildRunning(Exception):
    """Another rebuild is at work."""


class ViewServicer(view_service_pb2_grpc.ViewServiceServicer):
    """For operators."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database, self._bus = database, bus

    @allow("operator")
    async def RebuildView(
        self, request: pb.RebuildViewRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.RebuildViewResponse]:
        since: Timestamp | None = request.since if request.HasField("since") else None
        async with self._database.connection() as lock:
            if not await lock.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
                raise RebuildRunning("another rebuild is running: wait for it")
            try:
                async for response in self._rebuild(since.ToDatetime(UTC) if since else None):
                    yield response
            finally:
                await lock.execute("SELECT pg_advisory_unlock($1)", LOCK)

    async def _rebuild(self, since: datetime | None) -> AsyncIterator[pb.RebuildViewResponse]:
        view = projector.View(self._database, suffix="_next")
        consumer = Consumer(self._bus, CONSUMER, view.handlers())
        await self._clear()  # left by a process that died in the middle
        async with self._database.transaction() as connection:
            for table in TABLES:
                await connection.execute(f"CREATE TABLE {table}_next (LIKE {table} INCLUDING ALL)")
                if since is not None:
                    await connection.execute(f"INSERT INTO {table}_next SELECT * FROM {table}")  # noqa: S608
        await consumer.ensure(since)
        running = asyncio.create_task(consumer.run())
        try:
            async for to_go in _caught_up(consumer):
                yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_REPLAYING, events_to_go=to_go)
            async with self._database.transaction() as connection:
                await _switch(connection)
            view.suffix = ""
            # What the present view's consumer has handled and this one not yet is missing until this one has, too.
            async for to_go in _caught_up(consumer):
                yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_SWITCHED, events_to_go=to_go)
        finally:
            consumer.stop()
            await asyncio.shield(asyncio.wait([running]))
            consumer.forget()
            await asyncio.shield(self._clear())
        yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_DONE)

    async def _clear(self) -> None:
        await self._bus.forget(CONSUMER)
        async with self._database.transaction() as connection:
            for table in TABLES:
                await connection.execute(f"DROP TABLE IF EXISTS {table}_next, {table}_old")


async def _caught_up(consumer: Consumer) -> AsyncIterator[int]:
    """Events to go, until there are none."""
    while True:
        info = await consumer.info()
        to_go = (info.num_pending or 0) + (info.num_ack_pending or 0)
        yield to_go
        if to_go == 0:
            return
        await asyncio.sleep(0.1)


async def _switch(connection: Connection) -> None:
    """In one transaction: readers see the old rows or the new ones, and never none."""
    for table in TABLES:
        await connection.execute(f"ALTER TABLE {table} RENAME TO {table}_old")
        await connection.execute(f"ALTER TABLE {table}_next RENAME TO {table}")


def register(server: Server, database: Database, bus: Bus) -> None:
    """Adds the view's service to a server."""
    view_service_pb2_grpc.add_ViewServiceServicer_to_server(ViewServicer(database, bus), server)
