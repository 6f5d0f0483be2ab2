"""A store may be away because it is switched over, demoted, full or starting. Then no item is to blame, and everything
works again by itself when the store is back."""

import asyncio
import hashlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import asyncpg
import nats
import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.client_session import ClientSession
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, PyMongoError

from services.chassis import lease, mongo, postgres
from services.chassis.addresses import EVERYWHERE
from services.chassis.errors import LostRace, StoreUnavailable
from services.chassis.events import Outgoing, Relay
from services.chassis.mongo import Mongo, Schema
from services.chassis.postgres import Database
from services.vaccinemgmt.adapters.mongo import SCHEMA

from .conftest import MIGRATIONS, OpenDatabase, OpenMongo, Servers, eventually
from .test_outbox import rows
from .test_process import free_port


@dataclass
class Switchover:
    """A database that an administrator makes read-only, and the rows that were written to it meanwhile."""

    admin: asyncpg.Connection
    url: str
    database: Database

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.strip("/")

    async def begin(self) -> None:
        await self.admin.execute(f"ALTER DATABASE {self.name} SET default_transaction_read_only = on")
        await self.end_sessions()

    async def end_sessions(self) -> None:
        await self.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", self.name)

    async def end(self) -> None:
        await self.admin.execute(f"ALTER DATABASE {self.name} RESET default_transaction_read_only")

    async def write(self) -> None:
        async with self.database.unit_of_work(lambda _: None) as work:
            await work.enqueue(rows(1))

    async def written(self) -> int:
        async with self.database.connection() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM outbox"))


@pytest.fixture
async def switchover(servers: Servers) -> AsyncIterator[Switchover]:
    url = await servers.clone("approval")
    admin, database = await asyncpg.connect(servers.stores.postgres_url), Database(url)
    await database.open(MIGRATIONS["approval"])
    yield Switchover(admin, url, database)
    await database.close()
    await admin.close()


async def outcomes(act: Callable[[], Awaitable[object]], times: int) -> set[str]:
    """Makes so many calls at once; returns the names of their exceptions, which are none if all succeed."""
    results = await asyncio.gather(*(act() for _ in range(times)), return_exceptions=True)
    return {type(result).__name__ for result in results if isinstance(result, BaseException)}


async def succeeds(act: Callable[[], Awaitable[object]]) -> bool:
    """Whether the call succeeds. An exception that does not say that the store is away fails the test."""
    try:
        await act()
    except StoreUnavailable:
        return False
    return True


async def test_a_database_that_refuses_writes_is_away_and_is_back_with_the_same_pool(switchover: Switchover) -> None:
    await asyncio.gather(*(switchover.write() for _ in range(20)))  # so that the pool has all its sessions
    await switchover.begin()
    for _ in range(3):  # the earlier sessions, which were ended, and those that are made meanwhile
        assert await outcomes(switchover.write, 20) == {"StoreUnavailable"}
    await switchover.end()
    for _ in range(20):  # every session of the pool can write again, not only one
        await eventually(lambda: succeeds(switchover.write), bool)
    assert await outcomes(switchover.write, 20) == set()
    assert await switchover.written() == 60


async def test_sessions_that_survived_a_switchover_are_all_thrown_away_together(switchover: Switchover) -> None:
    async with AsyncExitStack() as held:  # ten sessions that a failover made read-only and did not end
        for _ in range(10):
            connection = await held.enter_async_context(switchover.database.connection())
            await connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable):
        await switchover.write()
    assert await outcomes(switchover.write, 20) == set()


async def test_relay_and_migrations_wait_for_a_database_that_refuses_writes(switchover: Switchover) -> None:
    await switchover.write()
    published: list[Outgoing] = []

    async def publish(batch: Sequence[Outgoing]) -> None:
        published.extend(batch)

    relay, newcomer = Relay(switchover.database, publish), Database(switchover.url)
    await switchover.begin()
    for attempt in (
        relay.publish_some,
        lambda: switchover.database.open(MIGRATIONS["approval"]),
        lambda: newcomer.open(MIGRATIONS["approval"]),
    ):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await attempt()
    assert published == []
    await switchover.end()
    await eventually(lambda: succeeds(relay.publish_some), bool)
    await eventually(lambda: succeeds(lambda: newcomer.open(MIGRATIONS["approval"])), bool)
    await newcomer.close()
    assert len(published) == 1


@pytest.mark.parametrize("missing", ["database", "role", "password"])
async def test_a_database_or_login_that_is_not_there_yet_is_waited_for(servers: Servers, missing: str) -> None:
    name = f"late_{uuid.uuid4().hex[:8]}"
    admin = await asyncpg.connect(servers.stores.postgres_url)
    host = servers.stores.postgres_url.rpartition("@")[2].split("/")[0]
    database = Database(f"postgresql://{name}:right@{host}/{name}?sslmode=disable")
    try:
        if missing != "role":
            await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{'wrong' if missing == 'password' else 'right'}'")
        if missing != "database":
            await admin.execute(f"CREATE DATABASE {name}")
        with pytest.raises(StoreUnavailable):
            await database.open(MIGRATIONS["approval"])
        if missing == "database":
            await admin.execute(f"CREATE DATABASE {name}")
        else:
            await admin.execute(f"DROP ROLE IF EXISTS {name}")
            await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
        await admin.execute(f"ALTER DATABASE {name} OWNER TO {name}")
        await database.open(MIGRATIONS["approval"])
        await database.close()
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"DROP ROLE IF EXISTS {name}")
        await admin.close()


@asynccontextmanager
async def accepts_and_says_nothing() -> AsyncIterator[str]:
    """The address of a host that accepts connections and never answers, as behind a broken network."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_of_several_hosts_the_one_that_takes_writes_is_used_whatever_the_others_do(
    switchover: Switchover,
) -> None:
    login, _, rest = switchover.url.rpartition("@")
    host, _, path = rest.partition("/")
    async with accepts_and_says_nothing() as silent:
        several = Database(f"{login}@127.0.0.1:1,{silent},{host}/{path}")
        await several.open(MIGRATIONS["approval"])
        await several.check()  # it has no time for the other hosts, so it tries the host that answered first
        await several.close()


async def test_check_tells_whether_a_database_takes_writes_now(switchover: Switchover) -> None:
    await switchover.database.check()
    await switchover.begin()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await switchover.database.check()
    await switchover.end()
    await eventually(lambda: succeeds(switchover.database.check), bool)
    async with AsyncExitStack() as busy:
        for _ in range(10):
            await busy.enter_async_context(switchover.database.connection())
        await switchover.database.check()  # a pool whose sessions are all busy does not mean that the server is away


@asynccontextmanager
async def through_a_pooler(servers: Servers, url: str, mode: str) -> AsyncIterator[Database]:
    """The database behind a PgBouncer of its own."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("there is no pgbouncer on the PATH; ./dev test fetches it where there is apt-get")
    parts, port = urlsplit(url), free_port()
    with tempfile.TemporaryDirectory(prefix="pooler-") as folder:
        config = pooler_config(Path(folder), parts, port, mode)
        user = servers.stores.kinds["postgres"].os_user()  # PgBouncer refuses to run as root
        command = [program, "-q", *(("-u", user) if user else ()), str(config)]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
        try:
            await eventually(lambda: listens(port), bool)
            netloc = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
            database = Database(parts._replace(netloc=netloc).geturl())
            yield database
            await database.close()
        finally:
            process.kill()
            await process.wait()


def pooler_config(folder: Path, server: SplitResult, port: int, mode: str) -> Path:
    folder.chmod(0o755)  # PgBouncer runs as another user
    users, config = folder / "users", folder / "pgbouncer.ini"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    settings = f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = {mode}\n"
    settings += f"auth_type = scram-sha-256\nauth_file = {users}\n"
    config.write_text(f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n{settings}")
    return config


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_pooler_that_shares_sessions_is_refused_in_words_at_the_start(servers: Servers) -> None:
    async with through_a_pooler(servers, await servers.clone("approval"), "transaction") as database:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="set PgBouncer's pool_mode to session"):
                await database.open(MIGRATIONS["approval"])


async def test_through_a_pooler_that_keeps_sessions_locks_settings_and_listening_work(servers: Servers) -> None:
    async with through_a_pooler(servers, await servers.clone("approval"), "session") as database:
        await database.open(MIGRATIONS["approval"])
        await database.check()
        heard = asyncio.Event()

        def hear(*_: object) -> None:
            heard.set()

        async with database.exclusively(), database.connection() as first, database.connection() as second:
            assert await first.fetchval("SHOW idle_in_transaction_session_timeout") == "15s"
            await first.add_listener("news", hear)
            await second.execute("NOTIFY news")
            await asyncio.wait_for(heard.wait(), 10)
            assert not await second.fetchval("SELECT pg_try_advisory_lock($1)", postgres.EXCLUSIVE)
            await first.remove_listener("news", hear)
        async with database.exclusively():
            pass


@pytest.mark.skipif(EVERYWHERE != "[::]", reason="this machine has no IPv6")
async def test_evaluations_stores_are_there_for_a_cluster_that_has_ipv6_alone(servers: Servers) -> None:
    stores = servers.stores
    by_ipv6 = [url.replace("127.0.0.1", "[::1]") for url in (stores.postgres_url, stores.mongo_url, stores.nats_url)]
    session = await asyncpg.connect(by_ipv6[0])
    await session.close()
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(by_ipv6[1], replicaSet=None, directConnection=True)
    await client.admin.command("ping")
    client.close()
    await (await nats.connect(by_ipv6[2], allow_reconnect=False)).close()


async def test_check_does_not_wait_for_a_database_that_hangs() -> None:
    async with accepts_and_says_nothing() as silent:
        database = Database(f"postgresql://u:p@{silent}/d?sslmode=disable")
        with pytest.raises(StoreUnavailable):
            await database.check()
        store = Mongo(f"mongodb://{silent}/d")
        with pytest.raises(StoreUnavailable):
            await store.check()
        store.close()


@pytest.fixture(params=["postgres", "mongo"])
async def replicas(
    request: pytest.FixtureRequest, open_database: OpenDatabase, open_mongo: OpenMongo
) -> list[Database] | list[Mongo]:
    if request.param == "postgres":
        return [await open_database("approval") for _ in range(2)]
    return [await open_mongo() for _ in range(2)]


async def test_one_replica_at_a_time_runs_an_exclusive_block(replicas: list[Database | Mongo]) -> None:
    inside, most = 0, 0

    async def act(store: Database | Mongo) -> None:
        nonlocal inside, most
        async with store.exclusively():
            inside += 1
            most = max(most, inside)
            await store.check()
            inside -= 1

    await asyncio.gather(*(act(replicas[i % 2]) for i in range(6)))
    assert most == 1


async def test_a_cancelled_call_does_not_keep_the_lock(replicas: list[Database | Mongo]) -> None:
    entered = asyncio.Event()

    async def stays() -> None:
        async with replicas[0].exclusively():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stays())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    async with replicas[1].exclusively():
        pass


async def test_a_call_that_waits_too_long_for_the_lock_is_told_to_try_again(
    replicas: list[Database | Mongo], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas[0].exclusively():
        with monkeypatch.context() as soon:
            for module in (postgres, mongo):
                soon.setattr(module, "LOCK_WITHIN", 0.3)
            with pytest.raises(StoreUnavailable):
                async with replicas[1].exclusively():
                    pass
    async with replicas[1].exclusively():
        pass


async def test_a_process_that_hangs_in_an_exclusive_block_loses_the_lock_and_a_slow_one_does_not(
    replicas: list[Database | Mongo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE", 2.0)

    async def enters() -> None:
        async with replicas[1].exclusively():
            pass

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(replicas[0].exclusively())
        entering = asyncio.create_task(enters())
        done, _ = await asyncio.wait([entering], timeout=3 * lease.LEASE)
        assert not done  # the lease is renewed
        entering.cancel()
    monkeypatch.setattr(lease, "renewed", never_renewed)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(replicas[0].exclusively())
        await enters()


@asynccontextmanager
async def never_renewed(_: object) -> AsyncIterator[None]:
    """A lease that nobody renews."""
    yield


async def test_a_block_whose_lock_was_lost_is_ended(switchover: Switchover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.6)

    async def loses_it() -> None:
        async with switchover.database.exclusively():
            await switchover.end_sessions()
            await asyncio.Event().wait()

    with pytest.raises(StoreUnavailable):
        await loses_it()


async def test_an_older_replica_that_starts_again_leaves_a_newer_schema_alone(open_mongo: OpenMongo) -> None:
    store = await open_mongo()
    newer = Schema(SCHEMA.version + 1, {**SCHEMA.collections, "lots": {"free": {"$gte": 0}}}, SCHEMA.indexes)
    await store.open(newer)
    for schema in (SCHEMA, newer, SCHEMA):
        await store.open(schema)
        [lots] = [c async for c in await store.database.list_collections(filter={"name": "lots"})]
        assert lots["options"]["validator"] == {"free": {"$gte": 0}}


async def test_a_schema_that_was_not_finished_is_brought_up_to_date_by_the_next_start(open_mongo: OpenMongo) -> None:
    store = await open_mongo()
    await store.database["migrations"].delete_one({"_id": "schema"})  # as after a migration was killed
    await store.database.command("collMod", "lots", validator={})
    await store.open(SCHEMA)
    [lots] = [c async for c in await store.database.list_collections(filter={"name": "lots"})]
    assert lots["options"]["validator"] == SCHEMA.collections["lots"]


def test_a_changed_schema_has_a_new_version() -> None:
    digest = hashlib.sha256(repr((SCHEMA.collections, SCHEMA.indexes)).encode()).hexdigest()[:12]
    assert (SCHEMA.version, digest) == (3, "38addffb18bb"), "a changed schema needs a new version, and here its digest"


async def step_down(servers: Servers) -> None:
    """MongoDB has no primary for some seconds."""
    admin: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(servers.stores.mongo_url)
    try:
        await admin.admin.command({"replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 0, "force": True})
    except PyMongoError:
        pass  # the server closes the connection that gave the command
    finally:
        admin.close()


async def test_a_mongodb_primary_that_steps_down_is_away_and_is_back_by_itself(
    servers: Servers, open_mongo: OpenMongo
) -> None:
    store = await open_mongo()
    await store.check()
    await step_down(servers)
    with pytest.raises(StoreUnavailable):
        await store.check()
    await eventually(lambda: succeeds(store.check), bool)
    async with store.boundary():
        await store.database["lots"].update_one({"_id": "nobody's"}, {"$set": {"free": 1}})


@dataclass
class Held:
    """An operation of a unit of work that has its thread until it is released."""

    entered: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.entered.set()
        self.released.wait(20)

    async def cancel(self, caller: asyncio.Task[None]) -> None:
        """Cancels the caller while the operation runs, and once more, and lets the operation end only then."""
        await asyncio.to_thread(self.entered.wait, 20)
        for _ in range(2):
            caller.cancel()
            done, _ = await asyncio.wait([caller], timeout=0.1)
            assert not done, "the session was taken away from a thread that uses it"
        self.released.set()
        await asyncio.wait([caller])
        assert caller.cancelled()


async def told(store: Mongo) -> int:
    return await store.outbox.count_documents({})


async def test_a_unit_of_work_in_mongodb_writes_in_order_with_its_next_read_and_with_its_commit(
    open_mongo: OpenMongo,
) -> None:
    store, committed, done = await open_mongo(), list[Outgoing](), list[str]()
    async with store.unit_of_work(committed.extend) as work:
        for name in ("first", "second"):
            work.write(partial(done.append, name))
        assert done == []
        await work.run(partial(done.append, "read"))
        assert done == ["first", "second", "read"]
        await work.enqueue(rows(2))
        await work.enqueue(rows(1))
        count = partial(store.outbox.delegate.count_documents, {}, session=work.session)
        assert (await work.run(count), await told(store), len(committed)) == (3, 0, 0)
        await work.enqueue(rows(1))
    assert (await told(store), len(committed)) == (4, 4)
    assert work.session.has_ended


@pytest.mark.parametrize("reads", [False, True])
async def test_a_write_that_mongodb_refuses_undoes_the_unit_of_work_and_is_raised_no_later_than_by_the_next_read(
    open_mongo: OpenMongo, reads: bool
) -> None:
    store, [row], sessions, done = await open_mongo(), rows(1), list[ClientSession](), list[str]()

    async def writes_twice_the_same() -> None:
        async with store.unit_of_work(lambda _: done.append("committed")) as work:
            sessions.append(work.session)
            for batch in (rows(1), [row], [row], rows(1)):
                await work.enqueue(batch)
            if reads:
                await work.run(lambda: done.append("read"))
                done.append("went on")

    with pytest.raises(BulkWriteError):
        await writes_twice_the_same()
    assert (await told(store), done, sessions[0].has_ended) == (0, [], True)


async def test_a_caller_who_is_cancelled_while_a_unit_of_work_reads_leaves_nothing_in_mongodb(
    open_mongo: OpenMongo,
) -> None:
    store, committed, held, sessions = await open_mongo(), list[Outgoing](), Held(), list[ClientSession]()

    async def reads() -> None:
        async with store.unit_of_work(committed.extend) as work:
            sessions.append(work.session)
            await work.enqueue(rows(1))
            await work.run(held)

    await held.cancel(asyncio.create_task(reads()))
    assert (await told(store), committed, sessions[0].has_ended) == (0, [], True)


async def test_a_caller_who_is_cancelled_while_a_unit_of_work_commits_leaves_nothing_half_done_in_mongodb(
    open_mongo: OpenMongo,
) -> None:
    store, held, sessions = await open_mongo(), Held(), list[ClientSession]()

    async def writes() -> None:
        async with store.unit_of_work(lambda _: None) as work:
            sessions.append(work.session)
            await work.enqueue(rows(1))
            work.write(held)
            await work.enqueue(rows(1))

    await held.cancel(asyncio.create_task(writes()))
    assert (await told(store), sessions[0].has_ended) == (2, True)


@pytest.mark.parametrize("unknown", [mongo.COMMIT_TRIES - 1, mongo.COMMIT_TRIES])
async def test_a_commit_of_which_nobody_knows_what_became_is_asked_for_again(
    open_mongo: OpenMongo, monkeypatch: pytest.MonkeyPatch, unknown: int
) -> None:
    store, committed, really, commits = await open_mongo(), list[Outgoing](), ClientSession.commit_transaction, [0]

    def commit(session: ClientSession) -> None:
        really(session)
        commits[0] += 1
        if commits[0] <= unknown:
            error = AutoReconnect("the answer was lost")
            error._add_error_label("UnknownTransactionCommitResult")
            raise error

    async def writes() -> None:
        async with store.unit_of_work(committed.extend) as work:
            await work.enqueue(rows(1))

    monkeypatch.setattr(ClientSession, "commit_transaction", commit)
    assert await succeeds(writes) == (unknown < mongo.COMMIT_TRIES)
    assert (await told(store), commits[0]) == (1, mongo.COMMIT_TRIES)
    assert len(committed) == (unknown < mongo.COMMIT_TRIES)


async def test_a_mongodb_that_goes_away_within_a_unit_of_work_has_nothing_of_it(
    servers: Servers, open_mongo: OpenMongo
) -> None:
    store = await open_mongo()
    sessions = list[ClientSession]()

    async def writes() -> None:
        async with store.unit_of_work(lambda _: None) as work:
            sessions.append(work.session)
            await work.enqueue(rows(1))
            await work.run(lambda: None)
            await work.enqueue(rows(1))
            await step_down(servers)

    assert not await succeeds(writes)
    await eventually(lambda: succeeds(store.check), bool)
    assert (await told(store), sessions[0].has_ended) == (0, True)


async def test_a_unit_of_work_that_writes_once_is_one_statement_and_more_need_a_transaction(
    switchover: Switchover,
) -> None:
    async with switchover.database.unit_of_work(lambda _: None) as work:
        await work.enqueue(rows(1))
        for forbidden in (work.enqueue(rows(1)), work.hold("SELECT 1")):  # the first is committed already
            with pytest.raises(RuntimeError):
                await forbidden
    assert await switchover.written() == 1
    async with switchover.database.unit_of_work(lambda _: None) as work:
        await work.hold("SELECT 1 FROM outbox FOR UPDATE")
        await work.enqueue(rows(1))
        await work.enqueue(rows(1))
        assert await switchover.written() == 1
    assert await switchover.written() == 3


async def test_a_deadlock_is_a_lost_race_and_no_session_is_lost(switchover: Switchover) -> None:
    await switchover.write()
    await switchover.write()
    first, both = "SELECT pg_backend_pid() FROM outbox ORDER BY sequence LIMIT 1 FOR UPDATE", asyncio.Barrier(2)
    sessions: list[int] = []

    async def hold(order: list[str]) -> None:
        async with switchover.database.unit_of_work(lambda _: None) as work:
            sessions.append((await work.hold(first.replace("sequence", order[0])))[0][0])
            await both.wait()
            await work.hold(first.replace("sequence", order[1]))

    ends = await asyncio.gather(
        hold(["sequence", "sequence DESC"]), hold(["sequence DESC", "sequence"]), return_exceptions=True
    )
    assert [type(end) for end in ends if end is not None] == [LostRace]
    async with AsyncExitStack() as held:
        pool = [await held.enter_async_context(switchover.database.connection()) for _ in range(10)]
        assert {await connection.fetchval("SELECT pg_backend_pid()") for connection in pool} >= set(sessions)


AWAY_IN_POSTGRES = {
    "25006": "read-only: demoted, or being switched over",
    "57P01": "shutting down",
    "57P02": "crashed",
    "57P03": "starting up",
    "53300": "too many connections",
    "53100": "disk full",
    "53200": "out of memory",
    "58030": "the disk failed",
    "08006": "connection lost",
    "28000": "no such role yet",
    "28P01": "not this password yet",
    "3D000": "no such database yet",
    "25P03": "idle in a transaction for too long",
}


@pytest.mark.parametrize("state", AWAY_IN_POSTGRES, ids=AWAY_IN_POSTGRES.get)
async def test_an_error_of_postgres_about_itself_is_no_items_fault(open_database: OpenDatabase, state: str) -> None:
    database = await open_database("approval")
    with pytest.raises(StoreUnavailable):
        async with database.connection():
            raise asyncpg.PostgresError.new({"C": state, "M": "what the server says"})
    with pytest.raises(asyncpg.UniqueViolationError):
        async with database.connection():
            raise asyncpg.PostgresError.new({"C": "23505", "M": "the item's own fault"})


@pytest.mark.parametrize("code", [11, 18, 14031, 10107, 11600, 189, 91, 6, 89, 133, 262])
async def test_an_error_of_mongodb_about_itself_is_no_items_fault(servers: Servers, code: int) -> None:
    store = Mongo(servers.mongo_url("away"))
    with pytest.raises(StoreUnavailable):
        async with store.boundary():
            raise OperationFailure("what the server says", code)
    with pytest.raises(StoreUnavailable):
        async with store.boundary():
            raise BulkWriteError({"writeErrors": [{"code": code, "errmsg": "what the server says"}]})
    with pytest.raises(OperationFailure):
        async with store.boundary():
            raise OperationFailure("Document failed validation", 121)
    store.close()
