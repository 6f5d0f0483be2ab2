"""Full disks under load: of each store alone, and of everything together; then there is room again, and one command.

`python -m tests.faults study full-disk` does it three times, and prints how long it took until bookings were completed.
"""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import asyncpg
import pymongo

from mesh.machine import Mesh
from tests.disk import SmallDisk
from tests.e2e.conftest import World
from tests.e2e.test_operations import runbook, typed

from .run import AWAY

FULL = 8.0  # seconds
SECONDS = 20.0  # of bookings around it
# Seconds from the runbook's command until a new booking is completed: the runbook promises it.
FLOWS_WITHIN = 120.0
ALL = "all"
# Sizes in MiB: each store with one of its own, and one for everything.
DISKS = ({"nats": 192, "postgres": 512, "mongo": 1024}, {ALL: 2048})
REFUSED = "event refused by the stream"


def move(mesh: Mesh, store: str, disk: Path) -> None:
    """Carries a store's data over to the disk that is mounted at the folder, and starts it there.

    Its folder becomes a link: Postgres' own is made by renaming another, which cannot be a place where a disk is.
    """
    folder = mesh.home.path / store
    mesh.stop(store)
    subprocess.run(["cp", "--archive", str(folder), str(disk / store)], check=True)
    shutil.rmtree(folder)
    folder.symlink_to(disk / store)
    mesh.start(store)


def _age(world: World, full: str) -> None:
    """Brings about what comes by itself within hours: Postgres begins new files of its log, MongoDB a checkpoint."""
    stores = world.mesh.stores

    async def new_files() -> None:
        admin = await asyncpg.connect(stores.postgres_url, timeout=5)
        try:
            messages = "SELECT pg_logical_emit_message(false, 'full', repeat('x', 16777216)) FROM generate_series(1, 8)"
            await admin.execute(messages, timeout=10)
        finally:
            await admin.close()

    if full in (ALL, "postgres"):
        with suppress(*AWAY):
            asyncio.run(new_files())
    if full in (ALL, "mongo"):
        with suppress(*AWAY), pymongo.MongoClient[dict[str, object]](stores.mongo_url, timeoutMS=2000) as client:
            client.admin.command("fsync")


class FullDisk:
    """A case of switchover.observe: what it did to the processes, and how long the runbook's commands took."""

    def __init__(self, store: str, disk: SmallDisk) -> None:
        self._store, self._disk = store, disk
        self.ended: list[str] = []
        self.command = 0.0

    async def __call__(self, world: World) -> None:
        until = time.monotonic() + FULL
        try:
            while time.monotonic() < until:
                await asyncio.to_thread(self._disk.fill)  # also what is given back meanwhile
                await asyncio.to_thread(_age, world, self._store)
                await asyncio.sleep(0.1)
            self.ended = [name for name in world.mesh.components if not world.mesh.processes.find(name)]
        finally:
            self._disk.free()
        begin = time.monotonic()
        await typed(world, runbook("disk-filling.md"))
        self.command = time.monotonic() - begin

    def violations(self, mesh: Mesh) -> Sequence[str]:
        """What must not have happened: that another process than a store's ended, or an event was taken for refused."""
        wrong = [f"{name} ended" for name in self.ended if name not in mesh.stores.names]
        logs = {name: mesh.processes.log(name).read_bytes() for name in mesh.components}
        return wrong + [f"{name} logged: {REFUSED}" for name, log in logs.items() if REFUSED.encode() in log]
