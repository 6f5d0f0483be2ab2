"""The folder with everything of a mesh on this machine: settings, secrets, keys, data, logs, process records."""

import json
import os
import secrets
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mesh.machine.processes import MeshError

DEFAULT_HOME = Path(__file__).resolve().parents[2] / ".mesh"
DEFAULT_BASE_PORT = 18080
SERVICES = ("reservation", "approval", "vaccinemgmt", "mypage")
WEB, ISSUER = "web", "issuer"  # the page, and the identity provider that is here only; one process each
STORES = ("postgres", "mongo", "nats")
STORE_OF = {"reservation": "postgres", "approval": "postgres", "vaccinemgmt": "mongo", "mypage": "postgres"}
MAX_REPLICAS = 5
# Servers of a store in a replicated home: as many as it takes for the death of any one to lose nothing.
MEMBERS = {"postgres": 2, "mongo": 3, "nats": 3}
# Seconds. An attempt that takes longer counts as failed, so that no test waits for a store that hangs.
ATTEMPT = 2.0

# Every port is the base port plus this, on 127.0.0.1.
PORTS = (
    {"gateway": 0, "envoy-admin": 1, "to-approval": 2, "postgres": 30, "mongo": 31, "nats": 32}
    | {"postgres-2": 33, "mongo-2": 34, "mongo-3": 35, "nats-2": 36, "nats-3": 37}
    | {"nats-monitor": 72, "nats-2-monitor": 73, "nats-3-monitor": 74}
    | {"nats-routes": 75, "nats-2-routes": 76, "nats-3-routes": 77}
    | {WEB: 14, ISSUER: 15, f"{WEB}-metrics": 24}
    | {service: 10 + i for i, service in enumerate(SERVICES)}
    | {f"{service}-metrics": 20 + i for i, service in enumerate(SERVICES)}
    | {f"{service}-{r}": 24 + 8 * r + i for i, service in enumerate(SERVICES) for r in range(2, MAX_REPLICAS + 1)}
    | {
        f"{service}-{r}-metrics": 28 + 8 * r + i
        for i, service in enumerate(SERVICES)
        for r in range(2, MAX_REPLICAS + 1)
    }
)
# Below it, only root may listen. Above it, the highest port would be none.
LOWEST_BASE_PORT, HIGHEST_BASE_PORT = 1024, 65535 - max(PORTS.values())


class Home:
    """The folder. An argument that is not given is as it was in the last `up`, or else the default.

    `external` has the superuser's URL of each store whose server is there already; the others are started here.
    `values` are values of the chart; they stand above the chart's own, and above those that one machine needs.
    `replicated` stores survive the death of a server, see MEMBERS. A home keeps that choice for good, since a stream of
    one NATS server cannot be carried into a cluster.

    MeshError: there can be no such folder, or the ports above the base port are none.
    """

    # The stores' listening address. A pod has another one, see mesh.evaluation.
    listen = "127.0.0.1"

    def __init__(
        self,
        path: Path,
        base_port: int | None = None,
        external: Mapping[str, str] | None = None,
        replicas: int | None = None,
        values: Mapping[str, Any] | None = None,
        replicated: bool | None = None,
    ) -> None:
        self.path = path.resolve()
        there = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        if not there.is_dir():
            raise MeshError(f"{self.path} cannot be a home, which is a folder: {there} is a file")
        self._settings = self.path / "mesh.json"
        self._before = remembered = self._read()
        self.remembered_port: int | None = remembered.get("base_port")
        self.remembered_replicated: bool | None = remembered.get("replicated", False) if remembered else None
        self.base_port = (self.remembered_port or DEFAULT_BASE_PORT) if base_port is None else base_port
        if not LOWEST_BASE_PORT <= self.base_port <= HIGHEST_BASE_PORT:
            raise MeshError(
                f"the base port {self.base_port} is not from {LOWEST_BASE_PORT} to {HIGHEST_BASE_PORT}: below, only "
                "root may listen, and above, not all ports of the mesh exist"
            )
        self.replicas: int = replicas or remembered.get("replicas") or 1
        self.external: dict[str, str] = remembered.get("external", {}) | dict(external or {})
        self.values: dict[str, Any] = dict(values or remembered.get("values") or {})
        self.code: str | None = remembered.get("code")
        """The version of the services' code that was started last."""
        self.replicated = bool(self.remembered_replicated if replicated is None else replicated)

    def _read(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(self._settings.read_text()) if self._settings.exists() else {}
        return settings

    def processes_of(self, service: str) -> list[str]:
        """Names of a service's processes: SERVICE, SERVICE-2 and so on."""
        if service == WEB:
            return [WEB]
        return [service, *(f"{service}-{r}" for r in range(2, self.replicas + 1))]

    def members(self, store: str) -> list[str]:
        """Names of a store's servers: the store's own, then STORE-2 and so on."""
        count = MEMBERS[store] if self.replicated and store not in self.external else 1
        return [store, *(f"{store}-{n}" for n in range(2, count + 1))]

    def port(self, name: str) -> int:
        """The port of a listener, see PORTS."""
        return self.base_port + PORTS[name]

    def address(self, name: str) -> str:
        """host:port of a listener."""
        return f"127.0.0.1:{self.port(name)}"

    def addresses(self, store: str) -> str:
        """host:port of each of a store's servers, comma separated."""
        return ",".join(map(self.address, self.members(store)))

    # What is otherwise in a pod, see mesh.evaluation.

    def mongo_address(self, member: str) -> str:
        """host:port by which the replica set's clients and its other members reach a member."""
        return self.address(member)

    def nats_server(self, member: str) -> str:
        """The server's name in its cluster."""
        return member

    @property
    def nats_routes(self) -> list[str]:
        """host:port by which the servers of a cluster reach each other; empty when there is only one."""
        members = self.members("nats")
        return [self.address(f"{member}-routes") for member in members] if len(members) > 1 else []

    @property
    def root_certificate(self) -> Path:
        """What clients trust of a gateway that speaks TLS, as PEM; made anew at every start of Envoy."""
        return self.path / "root.pem"

    @cached_property
    def passwords(self) -> dict[str, str]:
        """A random password for each user of a store: the superusers `postgres`, `mongo`, `nats`, and the services."""
        file = self.path / "secrets" / "passwords.json"
        if not file.exists():
            write_secret(file, json.dumps({name: secrets.token_hex(16) for name in STORES + SERVICES}))
        passwords: dict[str, str] = json.loads(file.read_text())
        return passwords

    @property
    def is_made(self) -> bool:
        """Whether `up` was here."""
        return self._settings.exists()

    def save(self) -> None:
        """Writes the settings, and makes the folder if it is not there."""
        self._before = self._read()
        self.path.mkdir(parents=True, exist_ok=True)
        settings = {"base_port": self.base_port, "replicas": self.replicas}
        settings |= {"external": self.external, "values": self.values, "replicated": self.replicated, "code": self.code}
        write_secret(self._settings, json.dumps(settings))
        self.remembered_port, self.remembered_replicated = self.base_port, self.replicated
        _ = self.passwords  # they are made here, before several threads ask for them

    def put_back(self) -> None:
        """Undoes the last `save`, when nothing was started after it.

        Whether stores are replicated is kept: their data may be there.
        """
        write_secret(self._settings, json.dumps(self._before | {"replicated": self.replicated}))
        self.remembered_port = self._before.get("base_port")


def write_secret(file: Path, text: str) -> None:
    """Writes a file that only its owner may read. Readers see the old content or the new, never a part."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as open_file:
        open_file.write(text)
    unfinished.rename(file)
