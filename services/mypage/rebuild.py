"""The view built anew beside the one that is read, and then put in its place."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from grpc.aio import Server, ServicerContext

from services.chassis.caller import allow
from services.chassis.errors import Stopping
from services.chassis.events import Bus, Consumer
from services.chassis.lifecycle import draining
from services.chassis.postgres import Connection, Database
from services.chassis.retention import Retention
from services.chassis.telemetry import log
from vaccination.mypage.v1 import view_service_pb2 as pb
from vaccination.mypage.v1 import view_service_pb2_grpc

from .projector import CHANNEL, View

TABLES = ("my_reservations", "timeline")
# A durable consumer of the rebuild's own: the one that keeps the present view up to date goes on meanwhile.
CONSUMER = "mypage-rebuild"
# The number of the advisory lock that lets one replica rebuild at a time.
LOCK = 0x7265_6275
# Seconds between two reports of progress.
REPORT_EVERY = 0.1
# How long the present view's writer is held up by the switch, in seconds; readers are not. Then it is tried again.
SWITCH_WITHIN = 5.0
Phase = pb.RebuildPhase

# What CREATE TABLE ... (LIKE ...) does not copy, as statements: storage parameters, keys, and indexes with their names.
REST_OF_SHAPE = """
SELECT format('ALTER TABLE next.%I SET (%s)', relname, array_to_string(reloptions, ', ')) AS statement
FROM pg_class WHERE oid = $1::text::regclass AND reloptions IS NOT NULL
UNION ALL
SELECT format('ALTER TABLE next.%I ADD CONSTRAINT %I %s', relname, conname, pg_get_constraintdef(c.oid))
FROM pg_constraint c JOIN pg_class t ON t.oid = conrelid WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u')
UNION ALL
SELECT replace(pg_get_indexdef(indexrelid), ' ON public.', ' ON next.')
FROM pg_index i
WHERE indrelid = $1::text::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)"""

# An index that is made outside a transaction is there some time before its migration counts as done.
MIGRATIONS = """
SELECT (SELECT count(*) FROM public.migrations)
     + (SELECT count(*) FROM pg_index
        WHERE indrelid IN ('public.my_reservations'::regclass, 'public.timeline'::regclass))"""


class RebuildRunning(Exception):
    """Another rebuild is at work."""


class NewerEvents(Exception):
    """This version does not know all the events that the present view is made of: it would leave some out."""


class _Migrated(Exception):
    """The tables that are read have got another shape since those beside them were made."""


@dataclass
class Progress:
    """How far a rebuild is: events to go before the switch; None before that is known."""

    to_go: int | None = None


@asynccontextmanager
async def alone(database: Database) -> AsyncIterator[Connection]:
    """The session that holds the lock of the one rebuild; raises RebuildRunning."""
    async with database.connection() as session:
        try:
            if not await session.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
                raise RebuildRunning("a rebuild is running: wait for it")
            yield session
        finally:
            try:
                await session.execute("SELECT pg_advisory_unlock_all()")
            except BaseException:
                session.terminate()  # from the pool it would go on keeping the lock from everybody
                raise


class ViewServicer(view_service_pb2_grpc.ViewServiceServicer):
    """For operators."""

    def __init__(self, database: Database, bus: Bus, live: Consumer, retention: Retention) -> None:
        self._database, self._bus, self._live, self._retention = database, bus, live, retention

    @allow("operator")
    async def RebuildView(
        self, request: pb.RebuildViewRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.RebuildViewResponse]:
        since, progress = request.since.ToDatetime(UTC) if request.HasField("since") else None, Progress()
        unknown = await self._live.foreign()
        if unknown and not request.without_newer_events:
            raise NewerEvents(f"a newer version has handled {', '.join(sorted(unknown))}, which this one does not know")
        # A task of its own is cancelled once. This call may be cancelled several times, also while it cleans up.
        work = asyncio.create_task(self._rebuild(since, progress))
        ending = asyncio.create_task(draining.wait())
        try:
            while not work.done():
                if progress.to_go is not None:
                    yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_REPLAYING, events_to_go=progress.to_go)
                await asyncio.wait([work, ending], timeout=REPORT_EVERY, return_when=asyncio.FIRST_COMPLETED)
                if ending.done() and not work.done():
                    raise Stopping
            await work
            yield pb.RebuildViewResponse(phase=Phase.REBUILD_PHASE_DONE)
        finally:
            ending.cancel()
            work.cancel()
            await asyncio.wait([work])

    async def _rebuild(self, since: datetime | None, progress: Progress) -> None:
        """Rebuilds, alone in all replicas, and leaves nothing behind, however it ends; raises RebuildRunning."""
        async with alone(self._database) as session:
            await self._clear()  # what a process left that died in the middle
            try:
                while not await self._build(since, progress, session):
                    log.info("the view's tables were migrated: its rebuild begins anew")
                    await self._clear()
            finally:
                if not session.is_closed():  # else the lock is lost too, and what is there may be another rebuild's
                    await self._clear()

    async def _build(self, since: datetime | None, progress: Progress, session: Connection) -> bool:
        """Until the switch has committed everything is as it was; after it the new view lacks nothing.

        False: the tables that are read have been migrated meanwhile, and nothing is switched.
        """
        if since is not None:
            since = min(since, await self._unhandled_since())
        migrations = await self._prepare(copy=since is not None)
        view = View(self._database, "next")
        consumer = Consumer(self._bus, CONSUMER, view.subscriptions(self._retention), self._database, set_aside=False)
        await consumer.ensure(since)
        running = asyncio.create_task(consumer.run())
        try:
            switched = False
            while not switched:
                target = await consumer.last_sequence()
                while to_go := await consumer.to_go(target):
                    progress.to_go = to_go
                    await session.execute("SELECT 1")  # raises when the session is lost, and the lock with it
                    await asyncio.sleep(REPORT_EVERY)
                switched = await self._switch(consumer, migrations)
        except _Migrated:
            return False
        finally:
            consumer.stop()
            await asyncio.wait([running])
            consumer.forget()
        return True

    async def _unhandled_since(self) -> datetime:
        """When the stream took the first event that the present view may not have yet. Every event before it is in.

        What was set aside is acknowledged and not in. The floor is read first: an event that is set aside between the
        two questions is behind it.
        """
        floor = (await self._live.info()).ack_floor
        aside = await self._live.set_aside.first()
        first = await self._live.time_of(min((floor.stream_seq if floor else 0) + 1, aside or sys.maxsize))
        return first or datetime.now(UTC)

    async def _prepare(self, copy: bool) -> int:
        """Makes tables in a schema of their own; returns how many migrations have shaped them.

        They have the shape of those that are read, and not that of this version's migrations: a newer version that
        runs beside this one, or did until it was rolled back, may have migrated them already.
        """
        async with self._database.transaction() as connection:
            migrations: int = await connection.fetchval(MIGRATIONS)
            await connection.execute("CREATE SCHEMA next")
            for table in TABLES:
                await connection.execute(
                    f"CREATE TABLE next.{table} (LIKE public.{table} INCLUDING ALL EXCLUDING INDEXES)"
                )
                for row in await connection.fetch(REST_OF_SHAPE, f"public.{table}"):
                    await connection.execute(row["statement"])
                if copy:
                    await connection.execute(f"INSERT INTO next.{table} SELECT * FROM public.{table}", timeout=3600)  # noqa: S608
        return migrations

    async def _switch(self, consumer: Consumer, migrations: int) -> bool:
        """Puts the new tables in place of the old ones, in one transaction; False: not now, events come too fast.
        Raises _Migrated.

        The lock lets readers go on and makes the present view's writer wait, so that nothing more goes into the old
        tables alone: everything that is in them is in the stream, and the new tables have it once they have come to
        the stream's end. What the writer does after the commit goes into the new tables. Watchers in every replica hear
        that they have to look.
        """
        async with self._database.transaction() as connection:
            await connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN SHARE ROW EXCLUSIVE MODE")
            if await connection.fetchval(MIGRATIONS) != migrations:
                raise _Migrated
            target, deadline = await consumer.last_sequence(), asyncio.get_running_loop().time() + SWITCH_WITHIN
            while await consumer.to_go(target):
                if asyncio.get_running_loop().time() > deadline:
                    return False
                await asyncio.sleep(0.02)
            await connection.execute("CREATE SCHEMA old")
            for table in TABLES:
                await connection.execute(f"ALTER TABLE public.{table} SET SCHEMA old")
                await connection.execute(f"ALTER TABLE next.{table} SET SCHEMA public")
            await connection.execute("SELECT pg_notify($1, '')", CHANNEL)
        return True

    async def _clear(self) -> None:
        await self._bus.forget(CONSUMER)
        async with self._database.transaction() as connection:
            await connection.execute("DROP SCHEMA IF EXISTS next CASCADE; DROP SCHEMA IF EXISTS old CASCADE")


def register(server: Server, database: Database, bus: Bus, live: Consumer, retention: Retention) -> None:
    """Adds the view's service to a server. `live` is the present view's consumer."""
    view_service_pb2_grpc.add_ViewServiceServicer_to_server(ViewServicer(database, bus, live, retention), server)
