"""The three stores: Postgres, MongoDB (a replica set of one, because transactions need one) and NATS JetStream.

Each is prepared (configuration, first initialization), started by `mesh.machine`, and provisioned: the databases, roles
and users of the services are there. Provisioning is an attempt that raises until it succeeds, and may always be
repeated: so it is also the test of readiness, and a start that was killed half-way is completed by the next.
"""

import asyncio
import importlib.util
import json
import os
import pwd
import random
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from mesh.machine.home import SERVICES, Home, write_secret
from mesh.machine.processes import MeshError

if TYPE_CHECKING:
    from nats.js import JetStreamContext

Answer = TypeVar("Answer")

STORE_OF = {"reservation": "postgres", "approval": "postgres", "vaccinemgmt": "mongo", "mypage": "postgres"}
POSTGRES_USER = "embedded_postgres"
# Seconds. An attempt that takes longer counts as failed, so that no test waits for a store that hangs.
ATTEMPT = 2.0


def package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, found without an import: importing some of these packages has side effects."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MeshError(f"the package {package} is not installed: run ./dev")
    return Path(next(iter(spec.submodule_search_locations)), *parts)


class Stores:
    """The stores of a home. The `_url`s are for superusers: administration and tests."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.via: dict[str, int] = {}  # ports at which services reach a store, if a test has put a proxy before it

    @property
    def postgres_url(self) -> str:
        """Superuser's URL of the database `postgres`."""
        return self._url("postgres", "postgresql", "postgres", "/postgres?sslmode=disable")

    @property
    def mongo_url(self) -> str:
        """Superuser's URL."""
        return self._url("mongo", "mongodb", "admin", "/?replicaSet=rs0&authSource=admin")

    @property
    def nats_url(self) -> str:
        """URL of a user who may do everything."""
        return self._url("nats", "nats", "admin", "")

    def _url(self, store: str, scheme: str, user: str, rest: str) -> str:
        if store in self.home.external:
            return self.home.external[store]
        return f"{scheme}://{user}:{self.home.passwords[store]}@{self.home.address(store)}{rest}"

    def write_secrets(self, service: str) -> None:
        """Writes the service's SECRETS_DIR, at every start, since ports may have changed."""
        on_postgres = STORE_OF[service] == "postgres"
        parts = urlsplit(self.postgres_url if on_postgres else self.mongo_url)
        query = [p for p in parts.query.split("&") if p and not p.startswith("authSource=")]
        if not on_postgres:
            query.append(f"authSource={service}")
        host = parts.netloc.rpartition("@")[2]
        if port := self.via.get(STORE_OF[service]):
            host = f"127.0.0.1:{port}"
            # With replicaSet a client would connect to the member's own address, past the proxy.
            query = ["directConnection=true" if p.startswith("replicaSet=") else p for p in query]
        login = f"{service}:{self.home.passwords[service]}@{host}"
        folder = self.home.path / "secrets" / service
        write_secret(folder / "database_url", urlunsplit((parts.scheme, login, f"/{service}", "&".join(query), "")))
        write_secret(folder / "nats_password", self.nats_login(service)[1])

    @property
    def nats_address(self) -> str:
        """URL without user and password."""
        parts = urlsplit(self.nats_url)
        host = f"127.0.0.1:{self.via['nats']}" if "nats" in self.via else parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, parts.query, ""))

    def nats_login(self, service: str) -> tuple[str, str]:
        """User and password. On a server that was there already all services use those of the URL."""
        if "nats" in self.home.external:
            parts = urlsplit(self.nats_url)
            return parts.username or "", parts.password or ""
        return service, self.home.passwords[service]

    # Postgres

    def postgres_os_user(self) -> str:
        """The user that Postgres runs as; empty for the present one. Postgres refuses to run as root."""
        if os.geteuid() != 0:
            return ""
        try:
            pwd.getpwnam(POSTGRES_USER)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", POSTGRES_USER]
            subprocess.run(command, check=True, capture_output=True)
        return POSTGRES_USER

    def prepare_postgres(self) -> None:
        """Makes the database cluster, unless it is there."""
        data = self.home.path / "postgres"
        user = self.postgres_os_user()
        if user:
            for folder in (*data.parents, *package_file("embedded_postgres").parents):
                if not folder.stat().st_mode & 0o001:
                    folder.chmod(folder.stat().st_mode | 0o011)  # that user has to get to the files below
        if (data / "PG_VERSION").exists():
            data.chmod(0o700)  # Postgres insists, and a volume's owner may have let a group in (fsGroup)
            return
        shutil.rmtree(data, ignore_errors=True)  # left by an initdb that was killed
        unfinished = data.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = self.home.path / "postgres.password"
        write_secret(password_file, self.home.passwords["postgres"])
        identity: dict[str, Any] = {}
        if user:
            shutil.chown(unfinished, user, pwd.getpwnam(user).pw_gid)
            shutil.chown(password_file, user)
            identity = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        initdb: list[str | Path] = [package_file("embedded_postgres", "pginstall", "bin", "initdb"), "-D", unfinished]
        options = f"-U postgres --pwfile={password_file} --auth=scram-sha-256 --encoding=UTF8 --locale=C"
        options += " --locale-provider=builtin --builtin-locale=C.UTF-8 --no-sync"
        try:
            # Syncing once at the end is faster than syncing file by file.
            for arguments in ([*initdb, *options.split()], [*initdb, "--sync-only"]):
                # close_fds is off, since initdb has to hold the home's lock too, see Processes.exclusive.
                subprocess.run(
                    arguments, check=True, capture_output=True, text=True, cwd=unfinished, close_fds=False, **identity
                )
        except subprocess.CalledProcessError as error:
            raise MeshError(f"initdb failed: {error.stderr}") from error
        finally:
            password_file.unlink()
        with (unfinished / "pg_hba.conf").open("a") as hba:
            hba.write("host all all all scram-sha-256\n")  # clients of any address, with a password
        unfinished.rename(data)

    def postgres_command(self) -> list[str | Path]:
        """The command. fsync and synchronous_commit are on by default, so a commit survives a crash."""
        settings = {
            "listen_addresses": self.home.listen,
            "port": self.home.port("postgres"),
            "unix_socket_directories": "",  # a socket's path may have 107 bytes, and the home's path may be longer
            "max_connections": 200,  # four services' pools, with room for replicas and tests
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [
            package_file("embedded_postgres", "pginstall", "bin", "postgres"),
            "-D",
            self.home.path / "postgres",
            *options,
        ]

    def provision_postgres(self) -> None:
        """Makes a database and a role for each service; nobody else may connect to the database."""

        async def attempt() -> None:
            import asyncpg

            connection = await asyncpg.connect(self.postgres_url, timeout=ATTEMPT)
            try:
                for name in [service for service, store in STORE_OF.items() if store == "postgres"]:
                    exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
                    verb = "ALTER" if exists else "CREATE"
                    await connection.execute(f"{verb} ROLE {name} LOGIN PASSWORD '{self.home.passwords[name]}'")
                    if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                        await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
                    await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            finally:
                await connection.close()

        asyncio.run(attempt())

    # MongoDB

    def prepare_mongo(self) -> None:
        """Writes the replica set's key. With a key, mongod has users log in."""
        (self.home.path / "mongo").mkdir(mode=0o700, exist_ok=True)
        # At every start, since mongod refuses a key that a group may read, and a volume's fsGroup lets a group in.
        write_secret(self.home.path / "secrets" / "mongo_key", self.home.passwords["mongo"] * 2)

    def mongo_command(self) -> list[str | Path]:
        """The command. Replica sets always keep a journal."""
        mongod = package_file("fiftyone", "db", "bin", "mongod")
        options = f"--bind_ip {self.home.listen} --port {self.home.port('mongo')} --nounixsocket --replSet rs0"
        options += " --wiredTigerCacheSizeGB 0.25 --oplogSize 256 --setParameter diagnosticDataCollectionEnabled=false"
        # By default a stop waits 15 s for another primary, and there is no other member.
        options += " --setParameter shutdownTimeoutMillisForSignaledShutdown=100"
        # A process that is killed in a transaction leaves it open. With the default of 60 s, the lot that it had
        # written stayed locked for 84 s.
        options += " --setParameter transactionLifetimeLimitSeconds=5"
        data, key = self.home.path / "mongo", self.home.path / "secrets" / "mongo_key"
        return [mongod, *options.split(), "--dbpath", data, "--keyFile", key]

    def provision_mongo(self) -> None:
        """Makes the replica set, the superuser, and vaccinemgmt's own user and database."""
        import pymongo
        from pymongo.errors import OperationFailure

        options: dict[str, Any] = {"serverSelectionTimeoutMS": ATTEMPT * 1000, "connectTimeoutMS": ATTEMPT * 1000}
        if "mongo" in self.home.external:
            client = pymongo.MongoClient[dict[str, Any]](self.mongo_url, **options)
        else:
            options |= {"host": self.home.address("mongo"), "directConnection": True}
            login: dict[str, Any] = {
                "username": "admin",
                "password": self.home.passwords["mongo"],
                "authSource": "admin",
            }
            client = pymongo.MongoClient[dict[str, Any]](**options, **login)
            try:
                client.admin.command("ping")
            except OperationFailure as error:
                if error.code != 18:  # AuthenticationFailed. Without any user, mongod lets localhost in.
                    raise
                with pymongo.MongoClient[dict[str, Any]](**options) as first:
                    self._bootstrap_mongo(first)
        with client:
            if "mongo" not in self.home.external:
                self._follow_address(client)
            if not client.admin.command("hello")["isWritablePrimary"]:
                raise MeshError("no primary yet")
            service, roles = "vaccinemgmt", ["readWrite", "dbAdmin"]
            known = client[service].command("usersInfo", service)["users"]
            verb = "updateUser" if known else "createUser"
            client[service].command(verb, service, pwd=self.home.passwords[service], roles=roles)

    def _bootstrap_mongo(self, client: Any) -> None:
        if not client.admin.command("hello").get("setName"):
            members = [{"_id": 0, "host": self.home.mongo_member}]
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        if not client.admin.command("hello")["isWritablePrimary"]:
            raise MeshError("no primary yet")
        client.admin.command("createUser", "admin", pwd=self.home.passwords["mongo"], roles=["root"])

    def _follow_address(self, client: Any) -> None:
        """Tells the replica set its member's address, which has changed if the base port has."""
        config = client.local["system.replset"].find_one()
        if config["members"][0]["host"] != self.home.mongo_member:
            config["members"][0]["host"] = self.home.mongo_member
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)

    # NATS

    def prepare_nats(self) -> None:
        """Writes the configuration, with a user for each service, who may publish only its own context's events."""
        users: list[dict[str, object]] = [{"user": "admin", "password": self.home.passwords["nats"]}]
        for service in SERVICES:
            own = [f"vaccination.{service}.>", "DEAD_LETTERS.>", "$JS.API.>", "$JS.ACK.>", "_INBOX.>"]
            permissions = {"publish": {"allow": own}, "subscribe": {"allow": ["_INBOX.>"]}}
            users.append({"user": service, "password": self.home.passwords[service], "permissions": permissions})
        config = {
            "listen": f"{self.home.listen}:{self.home.port('nats')}",
            "authorization": {"users": users},
            # An acknowledged event is on the disk, like a commit of the other stores.
            "jetstream": {"store_dir": str(self.home.path / "nats"), "sync_interval": "always"},
            **self.home.nats_options,
        }
        write_secret(self.home.path / "secrets" / "nats.json", json.dumps(config, indent=1))

    def nats_command(self) -> list[str | Path]:
        """The command. The wheel installs the server beside this interpreter."""
        return [Path(sys.executable).parent / "nats-server", "-c", self.home.path / "secrets" / "nats.json"]

    def provision_nats(self) -> None:
        """Asks whether JetStream answers. The services make streams and consumers themselves."""
        self._ask_jetstream(lambda jetstream: jetstream.account_info())

    def pending(self, stream: str, consumer: str) -> int:
        """How many messages of the stream the consumer has not processed yet."""
        info = self._ask_jetstream(lambda jetstream: jetstream.consumer_info(stream, consumer))
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    def last_sequence(self, stream: str) -> int:
        """The number of the stream's last message."""
        return self._ask_jetstream(lambda jetstream: jetstream.stream_info(stream)).state.last_seq

    def republish(self, stream: str, count: int, seed: int) -> int:
        """Publishes up to `count` of the stream's messages again as new ones, shuffled, to test consumers."""

        async def again(jetstream: "JetStreamContext") -> int:
            last = (await jetstream.stream_info(stream)).state.last_seq
            chosen = random.Random(seed).sample(range(1, last + 1), min(count, last))  # noqa: S311 - not a secret
            for sequence in chosen:
                message = await jetstream.get_msg(stream, sequence)
                headers = {k: v for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
                await jetstream.publish(message.subject or "", message.data or b"", headers=headers)
            return len(chosen)

        return self._ask_jetstream(again)

    def _ask_jetstream(self, question: "Callable[[JetStreamContext], Awaitable[Answer]]") -> Answer:
        async def ask() -> Answer:
            import nats

            async def quiet(_: Exception) -> None: ...

            # The client's own timeouts are for each attempt; all its attempts together take two minutes.
            async with asyncio.timeout(ATTEMPT):
                client = await nats.connect(self.nats_url, allow_reconnect=False, error_cb=quiet)
            try:
                return await question(client.jetstream())
            finally:
                await client.close()

        with ThreadPoolExecutor(1) as pool:  # the caller's thread may have a running event loop
            return pool.submit(asyncio.run, ask()).result()
