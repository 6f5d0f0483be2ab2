"""MongoDB: a replica set of one member, because transactions need one, or of three in a replicated home."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.machine.home import ATTEMPT, Home, write_secret
from mesh.machine.processes import MeshError, package_file

if TYPE_CHECKING:
    from pymongo import MongoClient

# Without the primary for this long the others elect a new one. The default is 10 s, which is for networks.
ELECTION_TIMEOUT = 5.0
AUTHENTICATION_FAILED = 18


class Mongo:
    """See mesh.machine.stores.Store."""

    name = "mongo"
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL

    def __init__(self, home: Home) -> None:
        self.home = home

    @property
    def members(self) -> list[str]:
        """Names of the servers."""
        return self.home.members(self.name)

    @property
    def url(self) -> str:
        """Superuser's URL."""
        if self.name in self.home.external:
            return self.home.external[self.name]
        login = f"admin:{self.home.passwords[self.name]}"
        return f"mongodb://{login}@{self.home.addresses(self.name)}/?replicaSet=rs0&authSource=admin"

    def primary(self) -> str:
        """The member that takes writes; MeshError while there is none."""
        import pymongo
        from pymongo.errors import PyMongoError

        try:
            with pymongo.MongoClient[dict[str, Any]](self.url, serverSelectionTimeoutMS=ATTEMPT * 1000) as client:
                address = client.admin.command("hello")["primary"]
        except PyMongoError as error:
            raise MeshError(f"MongoDB has no primary: {error}") from error
        return next(member for member in self.members if self.home.mongo_address(member) == address)

    # Starting

    def listens(self, member: str) -> tuple[str, ...]:
        """One port."""
        return (member,)

    def needs(self, member: str) -> Sequence[str]:
        """Members of a replica set wait for each other by themselves."""
        return ()

    def os_user(self) -> str:
        """Ours."""
        return ""

    def prepare(self, member: str) -> None:
        """Writes the replica set's key. With a key, mongod has users log in."""
        (self.home.path / member).mkdir(mode=0o700, exist_ok=True)
        # At every start, since mongod refuses a key that a group may read, and a volume's fsGroup lets a group in.
        write_secret(self._key, self.home.passwords[self.name] * 2)

    @property
    def _key(self) -> Path:
        return self.home.path / "secrets" / "mongo_key"

    def command(self, member: str) -> list[str | Path]:
        """The command. Replica sets always keep a journal."""
        mongod = package_file("fiftyone", "db", "bin", "mongod")
        every = self.home.listen.startswith("[")  # address; mongod's :: does not take IPv4
        options = "--ipv6 --bind_ip_all" if every else f"--bind_ip {self.home.listen}"
        options += f" --port {self.home.port(member)} --nounixsocket --replSet rs0"
        options += " --wiredTigerCacheSizeGB 0.25 --oplogSize 256 --setParameter diagnosticDataCollectionEnabled=false"
        # A primary that stops hands over to another member. By default it looks for one for 15 s.
        handover = 1000 if len(self.members) > 1 else 100
        options += f" --setParameter shutdownTimeoutMillisForSignaledShutdown={handover}"
        # A process that is killed in a transaction leaves it open. With the default of 60 s, the lot that it had
        # written stayed locked for 84 s.
        options += " --setParameter transactionLifetimeLimitSeconds=5"
        return [mongod, *options.split(), "--dbpath", self.home.path / member, "--keyFile", self._key]

    # Working

    def stuck(self, member: str) -> bool:
        """Never: it ends by itself when it cannot go on."""
        return False

    def provision(self, member: str) -> None:
        """The replica set, the superuser, and vaccinemgmt's own user and database; raises until there is a primary."""
        import pymongo

        options: dict[str, Any] = {"serverSelectionTimeoutMS": ATTEMPT * 1000, "connectTimeoutMS": ATTEMPT * 1000}
        if self.name in self.home.external:
            client = pymongo.MongoClient[dict[str, Any]](self.url, **options)
        else:
            client = self._log_in(member, options)
        with client:
            if self.name not in self.home.external and member == self.members[0]:
                self._follow_addresses(client)
            hello = client.admin.command("hello")
            if hello["isWritablePrimary"]:
                service, roles = "vaccinemgmt", ["readWrite", "dbAdmin"]
                known = client[service].command("usersInfo", service)["users"]
                verb = "updateUser" if known else "createUser"
                client[service].command(verb, service, pwd=self.home.passwords[service], roles=roles)
            elif not (hello["secondary"] and hello.get("primary")):
                raise MeshError("no primary yet")

    def _log_in(self, member: str, options: dict[str, Any]) -> "MongoClient[dict[str, Any]]":
        """A client of this one member, as superuser, who is made if there is none."""
        import pymongo
        from pymongo.errors import OperationFailure

        options = options | {"host": self.home.address(member), "directConnection": True}
        password = self.home.passwords[self.name]
        login: dict[str, Any] = {"username": "admin", "password": password, "authSource": "admin"}
        client = pymongo.MongoClient[dict[str, Any]](**options, **login)
        try:
            client.admin.command("ping")
        except OperationFailure as error:
            if error.code != AUTHENTICATION_FAILED:
                raise
            # Without any user, mongod lets localhost in.
            with pymongo.MongoClient[dict[str, Any]](**options) as first:
                self._bootstrap(first, member)
        return client

    def _bootstrap(self, client: "MongoClient[dict[str, Any]]", member: str) -> None:
        hello = client.admin.command("hello")
        if not hello.get("setName") and member == self.members[0]:
            members = [{"_id": i, "host": self.home.mongo_address(name)} for i, name in enumerate(self.members)]
            settings = {"electionTimeoutMillis": int(ELECTION_TIMEOUT * 1000)}
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members, "settings": settings})
            hello = client.admin.command("hello")
        if not hello["isWritablePrimary"]:
            raise MeshError("no primary yet")
        client.admin.command("createUser", "admin", pwd=self.home.passwords[self.name], roles=["root"])

    def _follow_addresses(self, client: "MongoClient[dict[str, Any]]") -> None:
        """Tells the replica set its members' addresses, which have changed if the base port has."""
        config = client.local["system.replset"].find_one()
        if config is None:
            raise MeshError("it has not heard of the replica set yet")
        hosts = [self.home.mongo_address(name) for name in self.members]
        if [member["host"] for member in config["members"]] != hosts:
            for member, host in zip(config["members"], hosts, strict=True):
                member["host"] = host
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)
