"""The screen's queries: SQL to paste into psql, and who waits for changes."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from services.chassis.errors import StoreUnavailable
from services.chassis.postgres import Connection, Database
from services.chassis.telemetry import log
from vaccination.mypage.v1 import my_reservation_pb2

from .projector import CHANNEL

COLUMNS = """
r.*,
ARRAY(SELECT event FROM timeline t WHERE t.reservation_id = r.reservation_id ORDER BY time, event, version) AS events,
ARRAY(SELECT time FROM timeline t WHERE t.reservation_id = r.reservation_id ORDER BY time, event, version) AS times"""

ONE = f"SELECT {COLUMNS} FROM my_reservations r WHERE customer_id = $1 AND reservation_id = $2"  # noqa: S608 - constants

PAGE = f"""
SELECT {COLUMNS} FROM my_reservations r
WHERE customer_id = $1 AND ($2::timestamptz IS NULL OR (decide_time, reservation_id) < ($2, $3::uuid))
ORDER BY decide_time DESC, reservation_id DESC LIMIT $4"""  # noqa: S608


async def one(database: Database, customer_id: str, reservation_id: UUID) -> my_reservation_pb2.MyReservation | None:
    """The customer's own reservation."""
    async with database.connection() as connection:
        row = await connection.fetchrow(ONE, customer_id, reservation_id)
    return _message(row) if row else None


async def page(
    database: Database, customer_id: str, after: tuple[datetime, UUID] | None, limit: int
) -> tuple[Sequence[my_reservation_pb2.MyReservation], tuple[datetime, UUID] | None]:
    """A page of the customer's own, newest decision first, and the position to go on from if there is more."""
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
        my_reservation_pb2.TimelineEntry(event=e, time=t) for e, t in zip(row["events"], row["times"], strict=True)
    ]
    return my_reservation_pb2.MyReservation(**content, timeline=timeline)


# Seconds after which a listening connection that has been quiet is asked whether it is still one: one that was cut
# without a word would be quiet for ever.
STILL_THERE = 5.0


async def _answers(connection: Connection) -> None:
    """Raises TimeoutError, with the connection given up, if nobody is at its other end."""
    try:
        await connection.execute("SELECT 1", timeout=STILL_THERE)
    except TimeoutError:
        connection.terminate()  # giving it back to the pool would wait for its answer
        raise


# Screens that one customer may keep open at one replica: a few devices and forgotten tabs.
SCREENS = 10


class TooManyScreens(Exception):
    """The customer watches from as many places as may be."""


class Changes:
    """Wakes those who watch a customer's reservations; one listening connection for the whole process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def run(self) -> None:
        """Listens for ever; after a lost connection wakes everybody, since something may have been missed."""
        while True:
            try:
                async with self._database.connection() as connection:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                    await connection.add_listener(CHANNEL, self._heard)
                    for customer_id in list(self._watchers):
                        self._wake(customer_id)
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
        """An event that is set when something of the customer's has changed; raises TooManyScreens."""
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

    def _heard(self, _connection: object, _pid: int, _channel: str, customer_id: object) -> None:
        self._wake(str(customer_id))

    def _wake(self, customer_id: str) -> None:
        for changed in self._watchers.get(customer_id, ()):
            changed.set()
