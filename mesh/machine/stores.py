"""The three stores: Postgres, MongoDB and NATS JetStream; each is one server or, in a replicated home, several.

Each server is prepared (configuration, first initialization), started by `mesh.machine`, and provisioned: the
databases, roles and users of the services are there. Provisioning is an attempt that raises until it succeeds, and may
always be repeated: so it is also the test of readiness, and a start that was killed half-way is completed by the next.
"""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from mesh.machine.home import STORE_OF, Home, write_secret
from mesh.machine.mongo import Mongo
from mesh.machine.nats import Nats
from mesh.machine.postgres import Postgres

ROOM = 64 * 2**20  # bytes; with less on its disk no store gets far


class Store(Protocol):
    """What the machine has to know of a kind of store to run its servers, which are its members."""

    name: str
    stop_signal: signal.Signals
    crash_signal: signal.Signals
    """Ends it at once, with nothing tidied up, and leaves no process of it behind."""

    @property
    def members(self) -> list[str]:
        """Names of the servers."""

    def listens(self, member: str) -> tuple[str, ...]:
        """Names of its ports, the clients' first."""

    def needs(self, member: str) -> Sequence[str]:
        """Members that are ready before it starts."""

    def os_user(self) -> str:
        """Who it runs as; empty: as we do."""

    def prepare(self, member: str) -> None:
        """Makes what it needs to start; MeshError if that is not possible."""

    def command(self, member: str) -> list[str | Path]:
        """The server's command line."""

    def provision(self, member: str) -> None:
        """Raises until the member serves, with all that services need in it."""

    def stuck(self, member: str) -> bool:
        """Whether it takes writes again only when it is started anew; OSError if it does not answer."""


class Stores:
    """The stores of a home. The `_url`s are for superusers: administration and tests."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.postgres, self.mongo, self.nats = Postgres(home), Mongo(home), Nats(home)
        self.kinds: dict[str, Store] = {store.name: store for store in (self.postgres, self.mongo, self.nats)}
        self.via: dict[str, int] = {}  # ports at which services reach a store, if a test has put a proxy before it

    @property
    def names(self) -> list[str]:
        """Of all servers."""
        return [member for store in self.kinds.values() for member in store.members]

    @property
    def postgres_url(self) -> str:
        """See Postgres.url."""
        return self.postgres.url

    @property
    def mongo_url(self) -> str:
        """See Mongo.url."""
        return self.mongo.url

    @property
    def nats_url(self) -> str:
        """See Nats.url."""
        return self.nats.url

    def write_secrets(self, service: str) -> None:
        """Writes the service's SECRETS_DIR, at every start, since ports may have changed."""
        on_postgres = STORE_OF[service] == "postgres"
        parts = urlsplit(self.postgres_url if on_postgres else self.mongo_url)
        query = [p for p in parts.query.split("&") if p and not p.startswith("authSource=")]
        if not on_postgres:
            query.append(f"authSource={service}")
        hosts = parts.netloc.rpartition("@")[2]
        if port := self.via.get(STORE_OF[service]):
            hosts = f"127.0.0.1:{port}"
            # With replicaSet a client would connect to the member's own address, past the proxy.
            query = ["directConnection=true" if p.startswith("replicaSet=") else p for p in query]
        login = f"{service}:{self.home.passwords[service]}@{hosts}"
        folder = self.home.path / "secrets" / service
        write_secret(folder / "database_url", urlunsplit((parts.scheme, login, f"/{service}", "&".join(query), "")))
        write_secret(folder / "nats_password", self.nats_login(service)[1])

    @property
    def nats_address(self) -> str:
        """URLs without user and password, comma separated."""
        if "nats" in self.via:
            return f"nats://127.0.0.1:{self.via['nats']}"
        urls = map(urlsplit, self.nats_url.split(","))
        return ",".join(urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])) for url in urls)

    def nats_login(self, service: str) -> tuple[str, str]:
        """See Nats.login."""
        return self.nats.login(service)
