"""MongoDB through motor: transactions with one error boundary, and the outbox collection.

motor's end of life has been announced: every use of it is here and in the adapters that receive `Transaction`s; see
docs/decisions/0003.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from motor.motor_asyncio import (
    AsyncIOMotorClient,
    AsyncIOMotorClientSession,
    AsyncIOMotorCollection,
    AsyncIOMotorDatabase,
)
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)
from pymongo.read_concern import ReadConcern

from .errors import StoreUnavailable
from .events.outbox import REFUSED_PAUSE, Outgoing, Refused

R = TypeVar("R")
# A relay that holds rows longer than this, in seconds, is taken for dead. Longer than a publish may take.
LEASE = 15.0
RETRY_PAUSE, MAX_RETRY_PAUSE = 0.02, 0.16  # seconds; a transaction of 256 events takes about 0.1
EPOCH = datetime.fromtimestamp(0, UTC)
_SHUTTING_DOWN = {11600, 91, 189, 10107, 13435, 13436, 11602}  # the server's codes while it steps down or restarts


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

    async def open(
        self,
        collections: dict[str, dict[str, Any]],
        indexes: Sequence[tuple[str, list[tuple[str, int]], dict[str, Any]]],
    ) -> None:
        """Makes collections with their validators and indexes, or brings them up to date; raises StoreUnavailable."""
        async with self.boundary():
            existing = {
                found["name"]: found.get("options", {}).get("validator", {})
                async for found in await self.database.list_collections()
            }
            for name, validator in {"outbox": {}, **collections}.items():
                if name not in existing:
                    try:
                        await self.database.create_collection(name, check_exists=False, validator=validator)
                    except OperationFailure as error:
                        if error.code != 48:  # made by another replica meanwhile
                            raise
                elif existing[name] != validator:
                    # Only when it differs: it waits for every transaction, and everybody else waits behind it.
                    await self.database.command("collMod", name, validator=validator)
            for name, keys, options in indexes:
                await self.database[name].create_index(keys, **options)

    def close(self) -> None:
        """Closes every connection."""
        self._client.close()

    @asynccontextmanager
    async def boundary(self) -> AsyncIterator[None]:
        """Raises StoreUnavailable for the driver's ways to say that the server is away."""
        try:
            yield
        except PyMongoError as error:
            away = (
                isinstance(error, ConnectionFailure | AutoReconnect | ExecutionTimeout | WTimeoutError) or error.timeout
            )
            # A commit whose fate is unknown is repeated by the caller: every transaction here is idempotent by state.
            transient = any(map(error.has_error_label, ("TransientTransactionError", "UnknownTransactionCommitResult")))
            transient = transient or getattr(error, "code", None) in _SHUTTING_DOWN
            if away or transient:
                raise StoreUnavailable("the service's store cannot be reached: repeat the call") from error
            raise

    async def transaction(self, work: Callable[[AsyncIOMotorClientSession], Coroutine[Any, Any, R]]) -> R:
        """Runs `work` in a snapshot transaction and commits it; again from the start if another one was in its way."""
        tries = 0

        async def patiently(session: AsyncIOMotorClientSession) -> R:
            # Motor would try again at once, and so would all others that lost. The server does not know of the
            # transaction yet: what it will read is what is there after the pause.
            nonlocal tries
            if tries:
                await asyncio.sleep(random.uniform(0, min(RETRY_PAUSE * 2**tries, MAX_RETRY_PAUSE)))  # noqa: S311
            tries += 1
            return await work(session)

        async with self.boundary(), await self._client.start_session() as session:
            result: R = await session.with_transaction(
                patiently,
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority", j=True),
                read_preference=ReadPreference.PRIMARY,
            )
            return result

    async def backlog(self) -> tuple[int, float]:
        """See OutboxStore."""
        async with self.boundary():
            depth = await self.outbox.count_documents({})
            oldest = await self.outbox.find_one({}, {"enqueued": 1}, sort=[("time", 1)])
        return depth, (datetime.now(UTC) - oldest["enqueued"]).total_seconds() if oldest else 0.0

    @asynccontextmanager
    async def taken(self, limit: int) -> AsyncIterator[Sequence[Outgoing]]:
        """See OutboxStore. Rows are held by a lease; one that runs out lets another relay have them."""
        async with self.boundary():
            # By the server's clock: a replica whose own is wrong holds nothing for longer.
            lease, unheld = uuid.uuid4().hex, {"$expr": {"$lt": ["$held_until", "$$NOW"]}}
            ids = [row["_id"] async for row in self.outbox.find(unheld, {"_id": 1}).sort("time", 1).limit(limit)]
            if ids:
                hold = {"$set": {"held_by": lease, "held_until": {"$add": ["$$NOW", LEASE * 1000]}}}
                await self.outbox.update_many({"_id": {"$in": ids}, **unheld}, [hold])
            rows = [row async for row in self.outbox.find({"held_by": lease}).sort("time", 1)] if ids else []
        try:
            yield [Outgoing(r["_id"], r["key"], r["subject"], r["time"], r["traceparent"], r["payload"]) for r in rows]
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
                pass  # the lease runs out by itself; what has happened is the other exception
            raise
        async with self.boundary():
            if rows:
                await self.outbox.delete_many({"held_by": lease})

    async def enqueue(self, session: AsyncIOMotorClientSession, rows: Sequence[Outgoing]) -> None:
        """Writes events beside the state they tell of, in the caller's transaction."""
        if rows:
            about = {"held_until": EPOCH, "enqueued": datetime.now(UTC)}
            await self.outbox.insert_many([_document(row) | about for row in rows], session=session)


def _document(row: Outgoing) -> dict[str, Any]:
    fields = dict(vars(row))  # asdict() would copy deeply
    return {"_id": fields.pop("id"), **fields}
