"""Postgres: the pool, transactions with one error boundary, migrations, and the outbox table."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from .errors import StoreUnavailable
from .events.outbox import REFUSED_PAUSE, Outgoing, Refused

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.pool.PoolConnectionProxy

# Errors after which the statement may succeed elsewhere or later, as it is.
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # also how a connection that was cut between two statements shows in the second
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # the server shuts down or starts up, or cancelled the statement
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)
CLOSE_WITHIN = 5.0  # seconds for connections in use to be given back
IDLE_IN_TRANSACTION = 15.0  # seconds; the relay waits for the stream in one, twice 5 s and twice 1 s at most

OUTBOX = """
CREATE TABLE IF NOT EXISTS outbox (
    sequence    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          uuid NOT NULL UNIQUE,
    key         text NOT NULL,
    subject     text NOT NULL,
    time        timestamptz NOT NULL,
    traceparent text NOT NULL,
    payload     bytea NOT NULL,
    enqueued    timestamptz NOT NULL DEFAULT now()
)"""

# Of a row that the stream refuses: how often it did, and until when the relays leave the row alone.
OUTBOX_REFUSED = """
ALTER TABLE outbox
    ADD COLUMN refused    integer NOT NULL DEFAULT 0,
    ADD COLUMN held_until timestamptz NOT NULL DEFAULT '-infinity'"""

# Rows that another relay holds are skipped, so replicas share the work; the delete is undone if publishing fails.
# An array, since a plan may run a subquery of IN several times: each time it would skip and lock others.
TAKE = """
DELETE FROM outbox
WHERE sequence = ANY (ARRAY(
    SELECT sequence FROM outbox WHERE held_until <= now() ORDER BY sequence LIMIT $1 FOR UPDATE SKIP LOCKED
))
RETURNING sequence, id, key, subject, time, traceparent, payload, enqueued, refused"""

# Puts a row back that TAKE has taken in the same transaction.
PUT_OFF = """
INSERT INTO outbox (sequence, id, key, subject, time, traceparent, payload, enqueued, refused, held_until)
OVERRIDING SYSTEM VALUE
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9 + 1,
        clock_timestamp() + least($10, 2.0 ^ least($9 + 1, 30)) * interval '1 second')"""

BACKLOG = """
SELECT count(*) AS depth, coalesce(extract(epoch FROM now() - min(enqueued)), 0)::float8 AS oldest FROM outbox"""

ENQUEUE = """
INSERT INTO outbox (id, key, subject, time, traceparent, payload)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::bytea[])"""


class Database:
    """A service's own database."""

    def __init__(self, url: str, max_connections: int = 10) -> None:
        self._url, self._max = url, max_connections
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self, migrations: Path) -> None:
        """Connects and brings the schema up to date; raises StoreUnavailable when the server is not there."""
        with _boundary():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=1,
                    max_size=self._max,
                    command_timeout=10,
                    max_inactive_connection_lifetime=0,
                    # A process that hangs in a transaction, or a host that is gone, must not hold its rows for ever.
                    server_settings={"idle_in_transaction_session_timeout": str(int(IDLE_IN_TRANSACTION * 1000))},
                    # Nothing here leaves a connection changed; asyncpg's reset is one more round trip for every use.
                    reset=_nothing_to_reset,
                )
            async with self._pool.acquire() as connection:
                await _migrate(connection, migrations)

    async def close(self) -> None:
        """Closes every connection; what is still in use after CLOSE_WITHIN is cut."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), CLOSE_WITHIN)
            except TimeoutError:
                self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection without a transaction: for single statements. Raises StoreUnavailable."""
        with _boundary():
            if self._pool is None:
                raise OSError("not open yet")
            async with self._pool.acquire(timeout=5) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed when the block ends, undone when it raises."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def backlog(self) -> tuple[int, float]:
        """See OutboxStore."""
        async with self.connection() as connection:
            row = await connection.fetchrow(BACKLOG)
        return (row["depth"], row["oldest"]) if row else (0, 0.0)

    @asynccontextmanager
    async def taken(self, limit: int) -> AsyncIterator[Sequence[Outgoing]]:
        """See OutboxStore."""
        async with self.transaction() as connection:
            rows = await connection.fetch(TAKE, limit)
            rows.sort(key=lambda row: row["sequence"])
            try:
                yield [
                    Outgoing(str(r["id"]), r["key"], r["subject"], r["time"], r["traceparent"], r["payload"])
                    for r in rows
                ]
            except Refused as refused:
                put_off = [row for row in rows if str(row["id"]) in refused.reasons]
                await connection.executemany(PUT_OFF, [(*row.values(), REFUSED_PAUSE) for row in put_off])


@contextmanager
def _boundary() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
            raise  # not a URL of Postgres: waiting does not help
        raise StoreUnavailable("the service's store cannot be reached: repeat the call") from error


def columns(items: Sequence[object], *names: str) -> list[list[Any]]:
    """A list per attribute, as unnest() takes rows; an Enum by its value."""
    return [[v.value if isinstance(v := getattr(item, name), Enum) else v for item in items] for name in names]


OUTBOX_COLUMNS = ("id", "key", "subject", "time", "traceparent", "payload")


async def enqueue(connection: Connection, rows: Sequence[Outgoing]) -> None:
    """Writes events beside the state they tell of, in the caller's transaction."""
    if rows:
        await connection.execute(ENQUEUE, *columns(rows, *OUTBOX_COLUMNS))


async def _nothing_to_reset(_: object) -> None:
    pass


async def _migrate(connection: Connection, folder: Path) -> None:
    """Runs each of the folder's .sql files once, in order, forward only; one replica at a time."""
    key = int.from_bytes(b"migrate", "big") % 2**62
    await connection.execute("SELECT pg_advisory_lock($1)", key)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
        )
        await connection.execute(OUTBOX)
        done = {row["name"] for row in await connection.fetch("SELECT name FROM migrations")}
        files = sorted(folder.glob("*.sql"))  # noqa: ASYNC240 - at start, before anything is served
        for name, sql in [("outbox-refused", OUTBOX_REFUSED), *((file.name, file.read_text()) for file in files)]:
            if name not in done:
                async with connection.transaction():
                    await connection.execute(sql, timeout=3600)
                    await connection.execute("INSERT INTO migrations (name) VALUES ($1)", name)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", key)
