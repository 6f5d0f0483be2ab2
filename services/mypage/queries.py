"""The screen's queries, as SQL to paste into psql; what has changed since a watcher was told; who waits for changes."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from services.chassis.errors import StoreUnavailable
from services.chassis.postgres import Connection, Database
from services.chassis.telemetry import log
from vaccination.mypage.v1 import my_reservation_pb2

from .projector import CHANNEL, STATUS_OF

# Version 0.3 knows no way back from COMPLETED: a row that it wrote while a dose was taken away says what is no more.
STATUS = STATUS_OF.format(furthest="r.status", quantity="r.quantity")

# Named, since an update may add a column while this version reads.
COLUMNS = f"""
r.reservation_id, r.hospital_id, r.hospital_name, r.time_zone, r.date, r.requested_vaccine_code, r.decide_time,
{STATUS} AS status, r.rejection_reason, r.replaced_by,
r.vaccine_code, r.manufacturer, r.lot_number, r.production_date, r.expiry_date, r.quantity,
ARRAY(SELECT (event, time, reason, note) FROM timeline t WHERE t.reservation_id = r.reservation_id
      ORDER BY time, event, version) AS happened"""  # noqa: S608 - a constant

ONE = f"SELECT {COLUMNS} FROM my_reservations r WHERE customer_id = $1 AND reservation_id = $2"  # noqa: S608 - constants

PAGE = f"""
SELECT {COLUMNS} FROM my_reservations r
WHERE customer_id = $1 AND ($2::timestamptz IS NULL OR (decide_time, reservation_id) < ($2, $3::uuid))
ORDER BY decide_time DESC, reservation_id DESC LIMIT $4"""  # noqa: S608

# What was written since a position, or everything if the position tells of another table or another history of the
# server; newest decision first. There is always a row, since the new position comes with it.
#
# `change` is the number of the transaction that wrote a row, which Postgres keeps in the row itself, whoever writes it:
# this version, the one before or an operator. Transactions become visible in another order than their numbers', so a
# number alone is no position. But a snapshot's xmin is: every transaction below it has ended, so whatever the snapshot
# did not show was written by one that is not below it. A row has the lower 32 bits of the number; the upper ones follow
# from the snapshot's xmax, which is above them all. A row that nobody wrote for four billion transactions may so be
# taken for a new one and told once more.
CHANGED = f"""
WITH now AS MATERIALIZED (
    SELECT pg_snapshot_xmin(snapshot)::text::bigint AS horizon, pg_snapshot_xmax(snapshot)::text::bigint AS ahead,
           CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline
    FROM pg_current_snapshot() AS snapshot
)
SELECT now.horizon, now.timeline || ' ' || 'my_reservations'::regclass::oid AS history, found.*
FROM now LEFT JOIN LATERAL (
    SELECT c.change, {COLUMNS}
    FROM my_reservations r,
         LATERAL (SELECT now.ahead - ((now.ahead - r.xmin::text::bigint) & 4294967295) AS change) AS c
    WHERE customer_id = $1
      AND (c.change >= $3 OR now.timeline || ' ' || 'my_reservations'::regclass::oid IS DISTINCT FROM $2)
      AND ($4::timestamptz IS NULL OR (decide_time, reservation_id) < ($4, $5::uuid))
    ORDER BY decide_time DESC, reservation_id DESC LIMIT $6
) AS found ON true"""  # noqa: S608 - constants


async def one(database: Database, customer_id: str, reservation_id: UUID) -> my_reservation_pb2.MyReservation | None:
    """One reservation of the customer; None if the customer has no such reservation."""
    async with database.connection() as connection:
        row = await connection.fetchrow(ONE, customer_id, reservation_id)
    return _message(row) if row else None


async def page(
    database: Database, customer_id: str, after: tuple[datetime, UUID] | None, limit: int
) -> tuple[Sequence[my_reservation_pb2.MyReservation], tuple[datetime, UUID] | None]:
    """A page of the customer's reservations, newest decision first, and where the next page begins, if there is one."""
    async with database.connection() as connection:
        rows = await connection.fetch(PAGE, customer_id, *(after or (None, None)), limit + 1)
    last = (rows[limit - 1]["decide_time"], rows[limit - 1]["reservation_id"]) if len(rows) > limit else None
    return [_message(row) for row in rows[:limit]], last


def _message(row: asyncpg.Record) -> my_reservation_pb2.MyReservation:
    known = my_reservation_pb2.MyReservation.DESCRIPTOR.fields_by_name
    content: dict[str, Any] = {name: value for name, value in row.items() if name in known and value is not None}
    for name in ("reservation_id", "date", "production_date", "expiry_date"):
        if name in content:
            content[name] = str(content[name])
    timeline = [
        my_reservation_pb2.TimelineEntry(event=event, time=time, reason=reason, note=note)
        for event, time, reason, note in row["happened"]
    ]
    return my_reservation_pb2.MyReservation(**content, timeline=timeline)


# Reservations in one message of a watch.
WATCHED = 100
# Reservations of which a watch remembers that they were told. Beyond that it may tell some once more.
REMEMBERED = 1000


class Position(NamedTuple):
    """Up to where a watcher has been told: what changes later is written by a transaction from `horizon` on.

    That holds in one `history`, which is the server's timeline and the table: a standby that was promoted may use
    numbers once more that its primary had used, and a rebuild puts a table in place that was written before.
    """

    history: str
    horizon: int


class Watch:
    """What one watcher has to be told of a customer's reservations.

    The position is enough to miss nothing. A transaction that stays open keeps it back, so the watch also remembers
    which of the rows behind it were told already. It looks when it has its `turn`.
    """

    def __init__(
        self,
        database: Database,
        customer_id: str,
        since: Position | None = None,
        turn: AbstractAsyncContextManager[Any] | None = None,
    ) -> None:
        self._database, self._customer_id, self._since = database, customer_id, since
        self._turn = turn or nullcontext()
        self._told: dict[UUID, tuple[str, int]] = {}

    async def news(self) -> AsyncGenerator[Sequence[my_reservation_pb2.MyReservation], None]:
        """The first time the newest reservations, also if there are none; then all that have changed since the call
        before, in messages of at most WATCHED. The state is that of the moment when a message is asked for."""
        first, begin = self._since is None, None
        after: tuple[datetime, UUID] | tuple[None, None] = (None, None)
        while True:
            async with self._turn, self._database.connection() as connection:
                since = self._since or (None, None)
                rows = await connection.fetch(CHANGED, self._customer_id, *since, *after, WATCHED)
            # Where the next call goes on: what changes while these pages are read is behind it.
            begin = begin or Position(rows[0]["history"], rows[0]["horizon"])
            found = [row for row in rows if row["reservation_id"] is not None]
            news = [row for row in found if self._told.get(row["reservation_id"]) != (row["history"], row["change"])]
            if news or first:
                yield [_message(row) for row in news]
            for row in news:
                if row["change"] >= begin.horizon:  # it is found again by the next call
                    self._told[row["reservation_id"]] = (row["history"], row["change"])
            if first or len(found) < WATCHED:
                break
            after = (found[-1]["decide_time"], found[-1]["reservation_id"])
        self._told = {
            key: (history, change)
            for key, (history, change) in self._told.items()
            if history == begin.history and change >= begin.horizon
        }
        if len(self._told) > REMEMBERED:
            self._told.clear()
        self._since = begin


# Seconds after which a listening connection that has been quiet is asked whether its server is still there: a
# connection that was cut without a word would be quiet for ever.
STILL_THERE = 5.0


async def _answers(connection: Connection) -> None:
    """Raises TimeoutError, and gives the connection up, if nobody is at its other end."""
    try:
        await connection.execute("SELECT 1", timeout=STILL_THERE)
    except TimeoutError:
        connection.terminate()  # giving it back to the pool would wait for its answer
        raise


# Watches that one customer may have open at one replica: enough for a few devices and some forgotten tabs.
SCREENS = 10


# Watches of a replica that look at the same time; it has ten connections. When a replica ends, thousands come to
# another at once. Reads and events must not wait behind all of them, and no watch may wait for a connection so long
# that its store counts as absent.
LOOKS = 4


class TooManyScreens(Exception):
    """The customer has as many watches open at this replica as one customer may have."""


class Changes:
    """Wakes those who watch a customer's reservations. The whole process has one connection that listens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self.turn = asyncio.Semaphore(LOOKS)

    async def run(self) -> None:
        """Listens for ever. Each time it begins to listen, it wakes everybody, since something may have been missed."""
        while True:
            try:
                async with self._database.connection() as connection:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                    await connection.add_listener(CHANNEL, self._heard)
                    self.wake_all()
                    try:
                        while not lost.is_set():
                            try:
                                async with asyncio.timeout(STILL_THERE):
                                    await lost.wait()
                            except TimeoutError:
                                await _answers(connection)
                    finally:
                        if not connection.is_closed():
                            await connection.remove_listener(CHANNEL, self._heard)
            except (StoreUnavailable, asyncpg.PostgresError) as error:
                log.warning("not listening for changes", error=type(error).__name__)
            await asyncio.sleep(0.5)

    @contextmanager
    def of(self, customer_id: str) -> Any:
        """An event that is set when a reservation of the customer has changed; raises TooManyScreens."""
        if len(self._watchers.get(customer_id, ())) >= SCREENS:
            raise TooManyScreens(f"you watch from {SCREENS} places already: close one, or try again later")
        changed = asyncio.Event()
        self._watchers[customer_id].add(changed)
        try:
            yield changed
        finally:
            self._watchers[customer_id].discard(changed)
            if not self._watchers[customer_id]:
                del self._watchers[customer_id]

    def wake_all(self) -> None:
        """Lets everybody look: something may have been missed, or the replica is about to stop."""
        self._wake(*self._watchers)

    def _heard(self, _connection: object, _pid: int, _channel: str, customer_id: object) -> None:
        self._wake(*([str(customer_id)] if customer_id else self._watchers))

    def _wake(self, *customer_ids: str) -> None:
        for customer_id in customer_ids:
            for changed in self._watchers.get(customer_id, ()):
                changed.set()
