"""A store in a pod, for installs that try the system out: `python -m mesh.evaluation postgres|mongo|nats`.

The same servers, configured and provisioned by the same code as on one machine (mesh.machine.stores). It is told by
environment variables:

    DATA_DIR        the volume; empty at first, and usable again after a kill at any moment (default /data)
    PASSWORDS_DIR   a file for each user, as in a mounted Secret: the superuser, named as the store, and the services
                    that use it. A service's password follows its file at each start; the superuser's is set once.
    MONGO_HOST      host:port by which clients reach MongoDB. Give the pod that name in its own /etc/hosts
                    (hostAliases, 127.0.0.1): a member that cannot find itself in the replica set takes no part in it.
    NATS_SERVER     this server's name in a cluster, with
    NATS_PEERS      host:port of the routes of all its servers, comma separated

/tmp/ready exists while the store serves and its users exist. NATS itself tells whether it is ready: GET :8222/healthz.
`python -m mesh.evaluation nats --live` is NATS' liveness probe.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from mesh.machine.home import SERVICES, STORE_OF, STORES, Home
from mesh.machine.processes import MeshError
from mesh.machine.stores import ROOM, Store, Stores
from services.chassis.addresses import EVERYWHERE

PORTS = {"postgres": 5432, "mongo": 27017, "nats": 4222, "nats-routes": 6222, "nats-monitor": 8222}
READY = Path("/tmp/ready")  # noqa: S108 - the pod's own
PAUSE = 0.2  # seconds between attempts to provision
SHARE = 0.05  # of the volume, but no more than ROOM is needed: with less, a server that is started anew fails again


class PodHome(Home):
    """The home of one store, on its volume."""

    listen = EVERYWHERE  # the pod's network policy says who gets there

    def __init__(self, store: str, environ: Mapping[str, str]) -> None:
        super().__init__(Path(environ.get("DATA_DIR", "/data")))
        folder = Path(environ.get("PASSWORDS_DIR", "/passwords"))
        users = [store, *(service for service in SERVICES if store in ("nats", STORE_OF[service]))]
        self.passwords = {user: _password(folder / user) for user in users}
        self._mongo_host = environ.get("MONGO_HOST")
        self._nats_server = environ.get("NATS_SERVER", "nats")
        self._nats_routes = environ["NATS_PEERS"].split(",") if environ.get("NATS_PEERS") else []

    def port(self, name: str) -> int:
        """The store's usual port."""
        return PORTS[name]

    def mongo_address(self, member: str) -> str:
        """See MONGO_HOST."""
        return self._mongo_host or self.address(member)

    def nats_server(self, member: str) -> str:
        """See NATS_SERVER."""
        return self._nats_server

    @property
    def nats_routes(self) -> list[str]:
        """See NATS_PEERS."""
        return self._nats_routes


def _password(file: Path) -> str:
    try:
        password = file.read_text().strip()
    except OSError as error:
        raise MeshError(f"no password: {file}: {error.strerror}") from error
    if not re.fullmatch(
        "[A-Za-z0-9]{8,128}", password
    ):  # needs no quoting in SQL and URLs, and is fit for MongoDB's key
        raise MeshError(f"password {file}: should be 8 to 128 letters and digits")
    return password


def is_live(home: Home, kind: Store) -> bool:
    """Whether the server answers and a new start would not help it, as it does after a full disk once there is room."""
    disk = shutil.disk_usage(home.path)
    try:
        return not kind.stuck(kind.name) or disk.free < min(SHARE * disk.total, ROOM)
    except OSError:
        return False


def main() -> int:
    """Serves until SIGTERM; returns the server's exit code."""
    parser = argparse.ArgumentParser("mesh.evaluation", description="A store in a pod.")
    parser.add_argument("store", choices=STORES)
    parser.add_argument("--live", action="store_true", help="exit code 1 if the server should be started anew")
    arguments = parser.parse_args()
    store: str = arguments.store
    home = PodHome(store, os.environ)
    kind = Stores(home).kinds[store]
    if arguments.live:
        return 0 if is_live(home, kind) else 1
    if store == "nats":
        kind.prepare(store)
        command = [str(part) for part in kind.command(store)]
        os.execv(command[0], command)  # noqa: S606 - NATS needs no provisioning, so it takes this process' place
    server: subprocess.Popen[bytes] | None = None

    def stop(*_: int | FrameType | None) -> None:
        READY.unlink(missing_ok=True)
        if server is None:
            raise SystemExit(0)
        server.send_signal(kind.stop_signal)

    # Process 1 gets only those signals that it handles.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    READY.unlink(missing_ok=True)  # an earlier container of the pod may have left it
    kind.prepare(store)
    server = subprocess.Popen(kind.command(store), cwd=home.path)
    said = ""
    while server.poll() is None:
        try:
            kind.provision(store)
            READY.touch()
            break
        except Exception as error:
            if (why := f"{type(error).__name__}: {error}") != said:
                print(f"not provisioned yet: {why[:200]}", file=sys.stderr, flush=True)
            said = why
            try:
                server.wait(PAUSE)
            except subprocess.TimeoutExpired:
                pass
    return server.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MeshError as error:
        sys.exit(f"error: {error}")
