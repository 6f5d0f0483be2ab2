"""Postgres: the pool, transactions with one error boundary, migrations, and the outbox table."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from . import lease
from .events.outbox import REFUSED_PAUSE, Outgoing, Refused
from .unit_of_work import LostRace, StoreUnavailable

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.pool.PoolConnectionProxy

# How a statement ends behind a pooler that gives each transaction another session: it was prepared in another one.
_NOT_PREPARED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
# What says "not here, not now": the same statement may succeed on another server or later, so the item that it is about
# is never to blame.
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was cut between two statements; no host that takes writes
    asyncpg.PostgresConnectionError,
    asyncpg.ReadOnlySQLTransactionError,  # a primary that was demoted, or is being switched over
    asyncpg.OperatorInterventionError,  # the server shuts down or starts up, or cancelled the statement
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.PostgresSystemError,  # the disk failed
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,  # the role or its password is not there yet
    asyncpg.InvalidCatalogNameError,  # the database is not there yet
    *_NOT_PREPARED,  # until the pooler is set otherwise
)
# What another transaction did, and not the server.
_LOST_RACE = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,  # it has migrated a table that this session read before
)

ACQUIRE_WITHIN = 5.0  # seconds for a connection of the pool to be free, or made
CONNECT_WITHIN = 4.0  # seconds for all hosts of the URL together; a host that is off does not even refuse
CHECK_WITHIN = 2.0  # seconds for the server to say whether it takes writes
CLOSE_WITHIN = 5.0  # seconds for connections in use to be given back
IDLE_IN_TRANSACTION = 15.0  # seconds; the relay's transaction waits for the stream, twice 5 s and twice 1 s at most
LOCK_WITHIN = 10.0  # seconds to wait for what another replica does exclusively, before the caller is told to come back
LOCK_POLL = 0.2  # seconds between tries of that lock
EXCLUSIVE = int.from_bytes(b"migrate", "big") % 2**62  # the key of the advisory lock

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

# How often the stream has refused a row, and until when the relays leave that row alone.
OUTBOX_REFUSED = """
ALTER TABLE outbox
    ADD COLUMN refused    integer NOT NULL DEFAULT 0,
    ADD COLUMN held_until timestamptz NOT NULL DEFAULT '-infinity'"""

# Rows that another relay holds are skipped, so replicas share the work; the delete is undone if publishing fails.
# The rows are gathered into an array first: a plan may run a subquery of IN several times, and each time it would skip
# some rows and lock others. A row's age may be negative after a switchover to a server whose clock is behind.
TAKE = """
DELETE FROM outbox
WHERE sequence = ANY (ARRAY(
    SELECT sequence FROM outbox WHERE held_until <= now() AND abs(extract(epoch FROM now() - enqueued)) >= $2
    ORDER BY sequence LIMIT $1 FOR UPDATE SKIP LOCKED
))
RETURNING sequence, id, key, subject, time, traceparent, payload, enqueued, refused"""

# Puts back a row that TAKE has taken in the same transaction.
PUT_OFF = """
INSERT INTO outbox (sequence, id, key, subject, time, traceparent, payload, enqueued, refused, held_until)
OVERRIDING SYSTEM VALUE
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9 + 1,
        clock_timestamp() + least($10, 2.0 ^ least($9 + 1, 30)) * interval '1 second')"""

# Not made durable before it is answered: a row that a crash of the server brings back is published once more. A row
# that another relay has taken meanwhile is that one's to remove: this one waits for nobody. The setting is made by the
# statement itself, which saves a round trip: with no row to delete it is not made, and there is nothing to commit.
REMOVE = """
WITH lazily AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
DELETE FROM outbox USING lazily WHERE sequence = ANY (ARRAY(
    SELECT sequence FROM outbox WHERE id = ANY ($1::uuid[]) FOR UPDATE SKIP LOCKED))"""

BACKLOG = """
SELECT count(*) AS depth, coalesce(extract(epoch FROM now() - min(enqueued)), 0)::float8 AS oldest FROM outbox"""

# What a session has beside the server's defaults. It is asked for after the login, since PgBouncer refuses a login that
# asks for it.
SETTINGS = {
    # A process that hangs in a transaction, or a host that is gone, must not hold its rows for ever.
    "idle_in_transaction_session_timeout": int(IDLE_IN_TRANSACTION * 1000),
}

PROCESS = "SELECT pg_backend_pid()"
SHARED = (
    "a pooler before Postgres gives each transaction another session, and a service needs sessions of its own: "
    "set PgBouncer's pool_mode to session, or let database_url lead to Postgres itself"
)

REFUSES_WRITES = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"

ENQUEUE = """
INSERT INTO outbox (id, key, subject, time, traceparent, payload)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::bytea[])"""


class Database:
    """A service's own database. `url` may name several hosts, of which one takes writes at a time."""

    def __init__(self, url: str, max_connections: int = 10) -> None:
        self._max = max_connections
        self._urls = _url_per_host(url)  # the host that took writes last comes first
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._probe: asyncpg.Connection[asyncpg.Record] | None = None
        self._checking = asyncio.Lock()

    async def open(self, migrations: Path) -> None:
        """Connects and brings the schema up to date; raises StoreUnavailable when the server is not there."""
        with _boundary():
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    connect=self._connect,
                    min_size=1,
                    max_size=self._max,
                    command_timeout=10,
                    max_inactive_connection_lifetime=0,
                    # Nothing here leaves a connection changed, and asyncpg's reset costs a round trip each time.
                    reset=_nothing_to_reset,
                )
        await self._refuse_shared_sessions()
        async with self.exclusively(), self.connection() as connection:
            await _migrate(connection, migrations)

    async def close(self) -> None:
        """Closes every connection; what is still in use after CLOSE_WITHIN is cut."""
        if self._probe is not None:
            self._probe.terminate()
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), CLOSE_WITHIN)
            except TimeoutError:
                self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection without a transaction: for single statements. Raises StoreUnavailable.

        A session in which the server turned out to be away is thrown away. When it was the server that said so, all
        others to it are thrown away too once they are idle: a session that was read-only once stays so after the
        server takes writes again.
        """
        with _boundary():
            if self._pool is None:
                raise OSError("not open yet")
            async with self._pool.acquire(timeout=ACQUIRE_WITHIN) as connection:
                try:
                    yield connection
                except Exception as error:
                    if _is_away(error):
                        connection.terminate()
                        if not isinstance(error, TimeoutError):  # a slow statement says nothing of the other sessions
                            await self._pool.expire_connections()
                    raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction: committed when the block ends, undone when it raises."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def check(self) -> None:
        """Raises StoreUnavailable unless the server takes writes now, by its own words, within CHECK_WITHIN.

        It is asked on a connection of its own, so that a pool in which all are busy is not taken for an absent server.
        """
        with _boundary():
            async with self._checking, asyncio.timeout(CHECK_WITHIN):
                if self._probe is None or self._probe.is_closed():
                    self._probe = await self._connect()
                try:
                    refuses = await self._probe.fetchval(REFUSES_WRITES)
                except BaseException:
                    self._probe.terminate()
                    raise
            if refuses:
                self._probe.terminate()
                if self._pool is not None:
                    await self._pool.expire_connections()
                raise asyncpg.ReadOnlySQLTransactionError("the server does not take writes")

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """At most one process of all replicas is in such a block, whatever it does there; others wait their turn.

        Raises StoreUnavailable when the turn does not come within LOCK_WITHIN, or when the lock was lost. The lock is
        the session's, and the session is ended with the block: a connection that went back to the pool after a
        cancellation would keep it. A process that hangs for longer than lease.LEASE loses it too.
        """
        settings = {
            "idle_session_timeout": int(lease.LEASE * 1000),
            "tcp_keepalives_idle": 10,  # nothing else tells the server that the client's host is gone
            "tcp_keepalives_interval": 5,
            "tcp_keepalives_count": 3,
        }
        with _boundary():
            connection = await self._connect(settings=settings)
            try:
                async with asyncio.timeout(LOCK_WITHIN):
                    # Asked again and again: a statement that waits has a snapshot, and an index that the lock's holder
                    # makes with CREATE INDEX CONCURRENTLY waits for the end of every snapshot.
                    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", EXCLUSIVE):  # noqa: ASYNC110
                        await asyncio.sleep(LOCK_POLL)
                async with lease.renewed(lambda: connection.execute("SELECT 1", timeout=lease.LEASE / 6)):
                    yield
            finally:
                connection.terminate()

    async def _refuse_shared_sessions(self) -> None:
        """Raises StoreUnavailable behind a pooler that gives each transaction another session.

        Locks, settings and prepared statements belong to a session, and so does LISTEN. A pooler shows itself by the
        number that it tells a client in place of that of the server's process. It shares sessions if, while one client
        is in a transaction, the other one's session is gone or is that of the first.
        """
        try:
            async with self.connection() as first:
                own = await first.fetchval(PROCESS)
                if own == first.get_server_pid():
                    return
                async with self.connection() as second:
                    for _ in range(3):  # other clients of the pooler may be in between
                        async with second.transaction():
                            if own == await second.fetchval(PROCESS) or own != await first.fetchval(PROCESS):
                                raise StoreUnavailable(SHARED)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, _NOT_PREPARED):
                raise StoreUnavailable(SHARED) from error
            raise

    async def _connect(
        self, *_: object, settings: Mapping[str, int] = SETTINGS, **options: Any
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """A new session on the host that takes writes.

        asyncpg can try several hosts too, but gives the first of them that is switched off all the time that there is.
        """
        problem: Exception = OSError("no host")
        within, read_write = CONNECT_WITHIN / len(self._urls), SessionAttribute.read_write
        for url in list(self._urls):
            # Last from now on, unless it answers: also if the caller has no time left for the next host.
            self._urls.sort(key=lambda other: other == url)
            try:
                connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                    url, timeout=within, target_session_attrs=read_write, **options
                )
                await _set(connection, settings, within)
            except Exception as error:
                if not _is_away(error):
                    raise
                problem = error
            else:
                self._urls.sort(key=lambda other: other != url)
                return connection
        raise problem

    @asynccontextmanager
    async def unit_of_work(self, committed: Callable[[Sequence[Outgoing]], None]) -> "AsyncIterator[Transaction]":
        """One transaction; see unit_of_work. `committed` gets its events after the commit, for the relay."""
        async with self.connection() as connection:
            transaction = Transaction(connection)
            try:
                yield transaction
            except BaseException:
                await transaction.end(commit=False)
                raise
            await transaction.end(commit=True)
        if transaction.events:
            committed(transaction.events)

    async def delete(self, sql: str, *arguments: object) -> int:
        """Runs a single statement that deletes; returns how many rows."""
        async with self.connection() as connection:
            return int((await connection.execute(sql, *arguments)).split()[-1])

    async def backlog(self) -> tuple[int, float]:
        """See OutboxStore."""
        async with self.connection() as connection:
            row = await connection.fetchrow(BACKLOG)
        return (row["depth"], row["oldest"]) if row else (0, 0.0)

    async def remove(self, ids: Sequence[str]) -> None:
        """See OutboxStore."""
        async with self.connection() as connection:
            await connection.execute(REMOVE, ids)

    @asynccontextmanager
    async def taken(self, limit: int, left: float = 0.0) -> AsyncIterator[Sequence[Outgoing]]:
        """See OutboxStore."""
        async with self.transaction() as connection:
            rows = await connection.fetch(TAKE, limit, left)
            rows.sort(key=lambda row: row["sequence"])
            try:
                yield [
                    Outgoing(
                        str(r["id"]), r["key"], r["subject"], r["time"], r["traceparent"], r["payload"], r["enqueued"]
                    )
                    for r in rows
                ]
            except Refused as refused:
                put_off = [row for row in rows if str(row["id"]) in refused.reasons]
                await connection.executemany(PUT_OFF, [(*row.values(), REFUSED_PAUSE) for row in put_off])


class Transaction:
    """What an adapter's unit of work reads and writes with.

    The transaction begins with the first rows that are held. What writes with a single statement and holds nothing
    needs none, and saves two round trips.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transaction: asyncpg.transaction.Transaction | None = None
        self._has_written = False
        self.events: list[Outgoing] = []
        """Events that were written, of which the relay is to know after the commit."""

    async def begin(self) -> None:
        """From here on all is done or nothing."""
        if self._transaction is None:
            if self._has_written:
                raise RuntimeError("what was written before the transaction began is not part of it")
            transaction = self._connection.transaction()
            await transaction.start()
            self._transaction = transaction

    async def hold(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Reads rows FOR UPDATE: nobody else changes them before the end."""
        await self.begin()
        return await self.read(sql, *arguments)

    async def read(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Reads rows."""
        return await self._connection.fetch(sql, *arguments)

    async def write(self, sql: str, *arguments: object) -> int:
        """Writes rows; returns how many."""
        self._note_writing()
        return int((await self._connection.execute(sql, *arguments)).split()[-1])

    async def write_returning(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Writes rows; returns what the statement returns of them."""
        self._note_writing()
        return await self._connection.fetch(sql, *arguments)

    def _note_writing(self) -> None:
        if self._transaction is None:
            if self._has_written:
                raise RuntimeError("a second statement writes, and no transaction is around the two")
            self._has_written = True

    async def enqueue(self, rows: Sequence[Outgoing]) -> None:
        """Writes events beside the state they tell of."""
        if rows:
            await self.write(ENQUEUE, *columns(rows, *OUTBOX_COLUMNS))
            self.events += rows

    async def end(self, *, commit: bool) -> None:
        """Commits or undoes what was begun; for Database alone."""
        if self._transaction is not None:
            await (self._transaction.commit() if commit else self._transaction.rollback())


@contextmanager
def _boundary() -> Iterator[None]:
    try:
        yield
    except _LOST_RACE as error:
        raise LostRace("another transaction was in the way") from error
    except Exception as error:
        if not _is_away(error):
            raise
        raise StoreUnavailable("the service's store cannot be reached: repeat the call") from error


def _is_away(error: Exception) -> bool:
    # asyncpg says in this way that the URL is not one of Postgres, which waiting does not mend.
    configuration = isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    return isinstance(error, _AWAY) and not configuration


def _url_per_host(url: str) -> list[str]:
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    return [parts._replace(netloc=f"{login}{at}{host}").geturl() for host in hosts.split(",")]


async def _set(connection: "asyncpg.Connection[asyncpg.Record]", settings: Mapping[str, int], within: float) -> None:
    try:
        await connection.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()), timeout=within)
    except BaseException:
        connection.terminate()
        raise


def columns(items: Sequence[object], *names: str) -> list[list[Any]]:
    """Gives a list for each attribute, as unnest() takes rows; an Enum becomes its value."""
    return [[v.value if isinstance(v := getattr(item, name), Enum) else v for item in items] for name in names]


OUTBOX_COLUMNS = ("id", "key", "subject", "time", "traceparent", "payload")


async def _nothing_to_reset(_: object) -> None:
    pass


async def _migrate(connection: Connection, folder: Path) -> None:
    """Runs each of the folder's .sql files once, in order, forward only.

    A file is one transaction, but for those whose name ends with `concurrently`: CREATE INDEX CONCURRENTLY, which lets
    others write meanwhile, cannot be in one. Such a file's statements run one by one, and all of them again after a
    process that died among them.
    """
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
    )
    await connection.execute(OUTBOX)
    done = {row["name"] for row in await connection.fetch("SELECT name FROM migrations")}
    files = sorted(folder.glob("*.sql"))  # noqa: ASYNC240 - at start, before anything is served
    for name, sql in [("outbox-refused", OUTBOX_REFUSED), *((file.name, file.read_text()) for file in files)]:
        if name in done:
            continue
        if name.endswith("concurrently.sql"):
            for statement in sql.split(";")[:-1]:
                await connection.execute(statement, timeout=3600)
            await connection.execute("INSERT INTO migrations (name) VALUES ($1)", name)
        else:
            async with connection.transaction():
                await connection.execute(sql, timeout=3600)
                await connection.execute("INSERT INTO migrations (name) VALUES ($1)", name)
