"""MongoDB through motor: transactions with one error boundary, and the outbox collection.

motor's end of life has been announced: every use of it is here and in the adapters that receive `Transaction`s; see
docs/decisions/0003.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pymongo
from motor.frameworks.asyncio import run_on_executor
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo import ReadPreference, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from . import lease
from .events.outbox import REFUSED_PAUSE, Outgoing, Refused
from .unit_of_work import LostRace, StoreUnavailable

R = TypeVar("R")

# Seconds after which a relay that holds rows is taken for dead. A publish takes less.
LEASE = 15.0
COMMIT_TRIES = 3
EPOCH = datetime.fromtimestamp(0, UTC)
CHECK_WITHIN = 2.0  # seconds for the primary to answer
LOCK_WITHIN = 10.0  # seconds to wait for what another replica does exclusively, before the caller is told to come back
INDEX_WITHIN = 3600.0  # seconds; others read and write meanwhile
LOCK_POLL = 0.2  # seconds between looks at that lock
# What says "not here, not now": the same command may succeed on another server or later, so the item that it is about
# is never to blame. By the server's names for its codes, see error_codes.yml in its source.
_AWAY = {
    6,  # HostUnreachable
    7,  # HostNotFound
    11,  # UserNotFound: the login is not there yet
    18,  # AuthenticationFailed: its password is not there yet
    89,  # NetworkTimeout
    91,  # ShutdownInProgress
    100,  # UnsatisfiableWriteConcern: too few members of the replica set are there
    133,  # FailedToSatisfyReadPreference: there is no primary
    134,  # ReadConcernMajorityNotAvailableYet
    189,  # PrimarySteppedDown
    202,  # NetworkInterfaceExceededTimeLimit
    262,  # ExceededTimeLimit
    365,  # TemporarilyUnavailable
    391,  # ReauthenticationRequired
    9001,  # SocketException
    10058,  # LegacyNotPrimary
    10107,  # NotWritablePrimary
    11600,  # InterruptedAtShutdown
    11601,  # Interrupted
    11602,  # InterruptedDueToReplStateChange
    13435,  # NotPrimaryNoSecondaryOk
    13436,  # NotPrimaryOrSecondary
    14031,  # OutOfDiskSpace
}
# A commit whose fate is unknown is repeated by the caller: every transaction here is idempotent by state.
_AWAY_LABELS = ("TransientTransactionError", "UnknownTransactionCommitResult", "RetryableWriteError")


@dataclass(frozen=True)
class Schema:
    """Collections with their validators, and indexes.

    `version` grows with every change: a replica of the version before, started again, leaves alone what a newer one
    has made.
    """

    version: int
    collections: Mapping[str, Mapping[str, Any]]
    indexes: Sequence[tuple[str, list[tuple[str, int]], dict[str, Any]]]


class Mongo:
    """A service's own database on a replica set."""

    def __init__(self, url: str) -> None:
        self._client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
            url,
            tz_aware=True,
            serverSelectionTimeoutMS=5000,
            connectTimeoutMS=5000,
            timeoutMS=10000,
            w="majority",
            journal=True,
            retryWrites=True,
            maxPoolSize=20,
        )
        self.database: AsyncIOMotorDatabase[dict[str, Any]] = self._client.get_default_database()
        self.outbox: AsyncIOMotorCollection[dict[str, Any]] = self.database["outbox"]
        # Not made durable before it is answered: a row that a crash brings back is published once more.
        self._removing = self.outbox.with_options(write_concern=WriteConcern(1, j=False))

    async def open(self, schema: Schema) -> None:
        """Brings the database up to the schema unless it is there, or beyond, already; raises StoreUnavailable."""
        migrations = self.database["migrations"]
        async with self.exclusively():
            done = await migrations.find_one({"_id": "schema"})
            if done and done["version"] >= schema.version:
                return
            await self._migrate(schema)
            await migrations.replace_one({"_id": "schema"}, {"version": schema.version}, upsert=True)

    async def _migrate(self, schema: Schema) -> None:
        existing = {
            found["name"]: found.get("options", {}).get("validator", {})
            async for found in await self.database.list_collections()
        }
        for name, validator in {"outbox": {}, **schema.collections}.items():
            if name not in existing:
                try:
                    await self.database.create_collection(name, check_exists=False, validator=validator)
                except OperationFailure as error:
                    if error.code != 48:  # a replica of a version that takes no lock has made it meanwhile
                        raise
            elif existing[name] != validator:
                # collMod waits for every transaction, and everybody else waits behind it: not without need.
                await self.database.command("collMod", name, validator=validator)
        with pymongo.timeout(INDEX_WITHIN):
            for name, keys, options in schema.indexes:
                await self.database[name].create_index(keys, **options)

    async def check(self) -> None:
        """Raises StoreUnavailable unless a primary answers within CHECK_WITHIN."""
        async with self.boundary():
            async with asyncio.timeout(CHECK_WITHIN):
                answer = await self._client.admin.command("hello")
        if not answer.get("isWritablePrimary"):
            raise StoreUnavailable("the service's store does not take writes: repeat the call")

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """At most one process of all replicas is in such a block, whatever it does there; others wait their turn.

        Raises StoreUnavailable when the turn does not come within LOCK_WITHIN, or when the lock was lost. A process
        that dies or hangs in the block keeps the others waiting for lease.LEASE at most.
        """
        migrations, holder = self.database["migrations"], uuid.uuid4().hex
        # By the server's clock: a replica whose own is wrong holds nothing for longer.
        free = {"_id": "lock", "$expr": {"$or": [{"$eq": ["$holder", holder]}, {"$lt": ["$held_until", "$$NOW"]}]}}
        hold = {"$set": {"holder": holder, "held_until": {"$add": ["$$NOW", lease.LEASE * 1000]}}}

        async def take() -> None:
            if not (await migrations.update_one(free, [hold])).matched_count:
                raise TimeoutError("another replica has the lock")

        async with self.boundary():
            try:
                await migrations.update_one({"_id": "lock"}, {"$setOnInsert": {"held_until": EPOCH}}, upsert=True)
            except DuplicateKeyError:
                pass  # made by another replica meanwhile
            deadline = asyncio.get_running_loop().time() + LOCK_WITHIN
            while True:
                try:
                    await take()
                    break
                except TimeoutError:
                    if asyncio.get_running_loop().time() > deadline:
                        raise
                await asyncio.sleep(LOCK_POLL)
            try:
                async with lease.renewed(take):
                    yield
            finally:
                await migrations.update_one({"_id": "lock", "holder": holder}, {"$set": {"held_until": EPOCH}})

    def close(self) -> None:
        """Closes every connection."""
        self._client.close()

    @asynccontextmanager
    async def boundary(self) -> AsyncIterator[None]:
        """Raises StoreUnavailable for the driver's ways to say that the server is not here, or not now."""
        try:
            yield
        except (PyMongoError, TimeoutError) as error:
            if not _is_away(error):
                raise
            if _lost_race(error):
                raise LostRace("another transaction was in the way") from error
            raise StoreUnavailable("the service's store cannot be reached: repeat the call") from error

    @asynccontextmanager
    async def unit_of_work(self, committed: Callable[[Sequence[Outgoing]], None]) -> "AsyncIterator[Transaction]":
        """One snapshot transaction; see unit_of_work. `committed` gets its events after the commit, for the relay."""
        async with self.boundary():
            # To begin a session and to end it asks the server nothing, so neither needs a thread.
            session: ClientSession = self._client.delegate.start_session()
            with session:
                session.start_transaction(
                    read_concern=ReadConcern("snapshot"),
                    write_concern=WriteConcern("majority", j=True),
                    read_preference=ReadPreference.PRIMARY,
                )
                transaction = Transaction(self, session)
                try:
                    yield transaction
                    await transaction.run(lambda: _commit(session))
                except BaseException:
                    if session.in_transaction:
                        await _in_thread(session.abort_transaction)
                    raise
        if transaction.events:
            committed(transaction.events)

    async def delete(self, collection: str, which: Mapping[str, Any], limit: int) -> int:
        """Deletes at most so many documents; returns how many."""
        documents = self.database[collection]
        async with self.boundary():
            ids = [row["_id"] async for row in documents.find(which, {"_id": 1}).limit(limit)]
            # What has changed since then may not be one of them any more.
            return (await documents.delete_many({"_id": {"$in": ids}, **which})).deleted_count if ids else 0

    async def backlog(self) -> tuple[int, float]:
        """See OutboxStore."""
        async with self.boundary():
            depth = await self.outbox.count_documents({})
            oldest = await self.outbox.find_one({}, {"enqueued": 1}, sort=[("time", 1)])
        return depth, (datetime.now(UTC) - oldest["enqueued"]).total_seconds() if oldest else 0.0

    async def remove(self, ids: Sequence[str]) -> None:
        """See OutboxStore."""
        async with self.boundary():
            await self._removing.delete_many({"_id": {"$in": list(ids)}})

    @asynccontextmanager
    async def taken(self, limit: int, left: float = 0.0) -> AsyncIterator[Sequence[Outgoing]]:
        """See OutboxStore. Rows are held by a lease; one that runs out lets another relay have them."""
        async with self.boundary():
            # By the server's clock: a replica whose own is wrong holds nothing for longer.
            # But a row was written by its process's clock. If that is ahead, the row may be left already.
            age = {"$abs": {"$subtract": ["$$NOW", {"$ifNull": ["$enqueued", EPOCH]}]}}
            free = [{"$lt": ["$held_until", "$$NOW"]}, {"$gte": [age, left * 1000]}]
            lease, unheld = uuid.uuid4().hex, {"$expr": {"$and": free}}
            ids = [row["_id"] async for row in self.outbox.find(unheld, {"_id": 1}).sort("time", 1).limit(limit)]
            if ids:
                hold = {"$set": {"held_by": lease, "held_until": {"$add": ["$$NOW", LEASE * 1000]}}}
                await self.outbox.update_many({"_id": {"$in": ids}, **unheld}, [hold])
            rows = [row async for row in self.outbox.find({"held_by": lease}).sort("time", 1)] if ids else []
        try:
            yield [
                Outgoing(r["_id"], r["key"], r["subject"], r["time"], r["traceparent"], r["payload"], r["enqueued"])
                for r in rows
            ]
        except Refused as refused:
            times = {"$add": [{"$ifNull": ["$refused", 0]}, 1]}
            pause = {"$min": [REFUSED_PAUSE, {"$pow": [2, {"$min": ["$refused", 30]}]}]}
            until = {"$add": ["$$NOW", {"$multiply": [1000, pause]}]}
            async with self.boundary():
                await self.outbox.update_many(
                    {"held_by": lease, "_id": {"$in": list(refused.reasons)}},
                    [{"$set": {"refused": times}}, {"$set": {"held_by": None, "held_until": until}}],
                )
        except BaseException:
            try:
                await self.outbox.update_many({"held_by": lease}, {"$set": {"held_until": EPOCH}})
            except PyMongoError:
                pass  # the lease runs out by itself, and the exception that is raised here says what happened
            raise
        async with self.boundary():
            if rows:
                await self.outbox.delete_many({"held_by": lease})


class Transaction:
    """What an adapter's unit of work reads and writes with: operations of PyMongo that take the `session`.

    Each operation that somebody waits for costs a change to a thread and back, some 0.3 ms of CPU. Nobody needs the
    result of a write. Therefore writes are gathered, and the next operation that is waited for, at the latest the
    commit, does them first, in the same thread and in their order. So it sees what they wrote, and the error of a write
    is raised there.
    """

    def __init__(self, mongo: Mongo, session: ClientSession) -> None:
        self._outbox: Collection[dict[str, Any]] = mongo.outbox.delegate
        self._gathered: list[Callable[[], object]] = []
        self.session = session
        """For the operations given to `run` and `write`, because one thread at a time may use it. Whoever gives it to
        motor instead has to wait for the end of that, see to_its_end."""
        self.events: list[Outgoing] = []
        """Events that were written, of which the relay is to know after the commit."""

    async def run(self, operation: Callable[[], R]) -> R:
        """Does the gathered writes and then the operation; returns the operation's result."""
        writes, self._gathered = self._gathered, []

        def all_in_order() -> R:
            for write in writes:
                write()
            return operation()

        return await _in_thread(all_in_order)

    def write(self, operation: Callable[[], object]) -> None:
        """Gathers a write for the next `run` or the commit."""
        self._gathered.append(operation)

    async def enqueue(self, rows: Sequence[Outgoing]) -> None:
        """Writes events beside the state they tell of."""
        if rows:
            documents = [_document(row) for row in rows]
            self.write(lambda: self._outbox.insert_many(documents, session=self.session))
            self.events += rows


async def to_its_end(running: asyncio.Future[R]) -> R:
    """Waits for what uses a session, and returns its result.

    A caller who is cancelled meanwhile waits for the end too, and is cancelled then: a thread that does not know of the
    cancellation uses the session, and nobody may abort or end it at the same time. If `running` is a task, this holds
    until the process ends, when every task is cancelled by itself.
    """
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                pass  # cancelled once more, and the thread still uses the session
        raise


async def _in_thread(operation: Callable[[], R]) -> R:
    return await to_its_end(run_on_executor(asyncio.get_running_loop(), operation))  # type: ignore[no-untyped-call]


def _commit(session: ClientSession) -> None:
    """Commits. When it is not known what became of that, it is asked for again, which the server never does twice."""
    for _ in range(COMMIT_TRIES - 1):
        try:
            session.commit_transaction()
            return
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
    session.commit_transaction()


def _lost_race(error: PyMongoError | TimeoutError) -> bool:
    """Whether the server undid the transaction because of another one. It says the same when it steps down."""
    undone = isinstance(error, OperationFailure) and error.has_error_label("TransientTransactionError")
    return undone and _AWAY.isdisjoint(_codes(error))


def _is_away(error: PyMongoError | TimeoutError) -> bool:
    if isinstance(error, TimeoutError | ConnectionFailure | ExecutionTimeout | WTimeoutError) or error.timeout:
        return True
    return any(map(error.has_error_label, _AWAY_LABELS)) or not _AWAY.isdisjoint(_codes(error))


def _codes(error: PyMongoError | TimeoutError) -> Iterator[int]:
    """The server's codes in an error, also those of a bulk write's single writes."""
    if isinstance(error, OperationFailure) and error.code is not None:
        yield error.code
    if isinstance(error, BulkWriteError):
        problems = [*error.details.get("writeErrors", ()), *error.details.get("writeConcernErrors", ())]
        yield from (problem["code"] for problem in problems)


def _document(row: Outgoing) -> dict[str, Any]:
    fields = dict(vars(row))  # asdict() would copy deeply
    return {"_id": fields.pop("id"), **fields, "held_until": EPOCH}
