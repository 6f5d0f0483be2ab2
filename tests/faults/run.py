"""One run: the real stack, load and faults for a while, then rest, then the accounts."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import asyncpg
import grpc.aio
import psutil
import pymongo
import pytest
from pymongo.errors import PyMongoError

from mesh.machine import Mesh
from mesh.machine.home import STORES
from tests.conftest import free_base_port
from tests.e2e.conftest import World
from vaccination.approval.v1 import hospital_service_pb2

from . import checks
from .drive import PATIENCE, Driver, History, Person
from .nemesis import Nemesis
from .proxy import Proxy

# Rest must come within this many seconds after the last fault has healed.
QUIESCENCE = 90.0
UNREST = "no rest within"
# How a store, or what is before it, says that it is not there.
AWAY = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # also how a server shows that is not the primary
    PyMongoError,
    grpc.aio.AioRpcError,
)


@dataclass(frozen=True)
class Plan:
    """What to do."""

    seed: int
    seconds: float
    replicas: int = 2
    customers: int = 24
    hospitals: int = 3
    mutation: str | None = None
    pause: float = 1.5  # mean seconds between faults; 0: no faults
    settle: float = QUIESCENCE  # seconds
    faults: tuple[str, ...] = ()  # names of the nemesis' methods; empty: all
    tries: int = 60  # of one call, until its caller gives up
    replicated: bool = False  # each store is several servers, of which some die
    least: int = 0  # of faults, however slow the machine: goes on for up to twenty times `seconds` to do them


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    operations: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    away: Counter[str] = field(default_factory=Counter)  # looks that found nobody
    quiescence: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"seed {self.plan.seed}, {self.plan.seconds:.0f} s, mutation {self.plan.mutation}:"]
        lines.append(f"  operations {sum(self.operations.values())}: {dict(sorted(self.operations.items()))}")
        lines.append(f"  faults {sum(self.faults.values())}: {dict(sorted(self.faults.items()))}")
        lines.append(f"  checks {self.checks}, looks at a store that was away {sum(self.away.values())}")
        lines.append(f"  at rest after {self.quiescence:.1f} s, rows {self.rows}")
        lines += [f"  VIOLATION {v}" for v in self.violations[:20]] or ["  no violation"]
        return "\n".join(lines)


@contextlib.asynccontextmanager
async def stage(
    folder: Path, replicas: int, mutation: str = "", proxied: bool = True, replicated: bool = False
) -> AsyncIterator[tuple[World, dict[str, Proxy], Path]]:
    """A mesh of its own in the folder; its world, the proxies to its stores, and the folder of what shall fail.

    No proxies stand before replicated stores: a client that knows a store's servers goes to them itself.
    """
    faults = folder / "faults"
    faults.mkdir()
    os.environ |= {"FAULTS": str(faults), "CLOCK_OFFSET": str(faults / "clock"), "MUTATION": mutation}
    base = free_base_port()
    launcher = "tests.faults.launcher" if proxied else None
    mesh = Mesh(folder / "mesh", base, replicas=replicas, launcher=launcher, replicated=replicated)
    proxies = {}
    if proxied and not replicated:
        mesh.stores.via = {store: base + 80 + i for i, store in enumerate(STORES)}
        proxies = {store: Proxy(base + 80 + i, mesh.home.port(store)) for i, store in enumerate(STORES)}
    for proxy in proxies.values():
        await proxy.start()
    try:
        await asyncio.to_thread(mesh.up)
        async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
            yield World(mesh, channel), proxies, faults
    finally:
        await asyncio.to_thread(mesh.down)
        for proxy in proxies.values():
            await proxy.stop()


async def play(plan: Plan, folder: Path) -> Report:
    """Starts a mesh of its own in the folder, attacks it, and looks at the accounts."""
    staged = stage(folder, plan.replicas, plan.mutation or "", replicated=plan.replicated)
    async with staged as (world, proxies, faults):
        return await _play(plan, world, Nemesis(world.mesh, plan.seed, proxies, faults))


async def _play(plan: Plan, world: World, nemesis: Nemesis) -> Report:
    report = Report(plan)
    # Few places and doses: everything that can run out does.
    hospitals = [
        await world.new_hospital(capacity=plan.customers // 3, doses=plan.customers // 4) for _ in range(plan.hospitals)
    ]
    driver = Driver(world, plan.seed, plan.customers, hospitals, tries=plan.tries)
    stop = asyncio.Event()
    watching = asyncio.create_task(_watch(world, hospitals, report, stop))
    driving = asyncio.create_task(driver.run())
    breaking = asyncio.create_task(nemesis.run(stop, plan.pause, plan.faults)) if plan.pause else None
    lasting = asyncio.create_task(_last(plan, nemesis))
    done, _ = await asyncio.wait(
        [driving, lasting, *([breaking] if breaking else [])], return_when=asyncio.FIRST_COMPLETED
    )
    lasting.cancel()
    stop.set()
    for task in done:
        task.result()
    if breaking is not None:
        await breaking
    driver.stop()
    await driving
    await watching
    await account(world, driver.history, report)
    report.operations, report.faults = driver.history.counts(), nemesis.done
    return report


async def _last(plan: Plan, nemesis: Nemesis) -> None:
    for fifth in range(100):
        if fifth >= 5 and nemesis.done.total() >= plan.least:
            return
        await asyncio.sleep(plan.seconds / 5)


async def _watch(world: World, hospitals: list[tuple[str, date]], report: Report, stop: asyncio.Event) -> None:
    """What must hold at every read is read all the time, in the stores and through the gateway."""
    PATIENCE.set(3.0)
    reader = Person(world, "operator", ["operator"])

    async def books() -> list[str]:
        overbooked = await world.query("approval", "SELECT * FROM days WHERE approved NOT BETWEEN 0 AND capacity")
        return [f"{dict(day)} is overbooked" for day in overbooked]

    async def lots() -> list[str]:
        return [f"{lot} does not add up" for lot in await asyncio.to_thread(_odd_lots, world)]

    async def shown_places() -> list[str]:
        shown = []
        for hospital_id, day in hospitals:
            one_day = hospital_service_pb2.ListAvailabilityRequest(
                hospital_id=hospital_id, first_date=str(day), last_date=str(day)
            )
            shown += (await reader.call(reader.hospital.ListAvailability, one_day)).days
        return [
            f"ListAvailability shows {day}"
            for day in shown
            if not 0 <= day.approved <= day.capacity or day.left != day.capacity - day.approved
        ]

    async def shown_lots() -> list[str]:
        shown = [lot for hospital, _ in hospitals for lot in await reader.lots(hospital)]
        return [
            f"ListLots shows {lot}"
            for lot in shown
            if lot.received != lot.free + lot.used or min(lot.free, lot.used) < 0
        ]

    while not stop.is_set():
        for look in (books, lots, shown_places, shown_lots):
            try:
                report.violations += [f"at a read: {problem}" for problem in await look()]
                report.checks += 1
            except AWAY as gone:
                report.away[type(gone).__name__] += 1  # the store is away; its turn comes
        await asyncio.sleep(0.2)


def _odd_lots(world: World) -> list[checks.Row]:
    with pymongo.MongoClient[checks.Row](world.mesh.stores.mongo_url, serverSelectionTimeoutMS=500) as client:
        adds_up = {"$eq": ["$received", {"$add": ["$free", "$used"]}]}
        sane = {"$and": [adds_up, {"$gte": ["$free", 0]}, {"$gte": ["$used", 0]}]}
        return list(client["vaccinemgmt"]["lots"].find({"$expr": {"$not": [sane]}}))


async def account(world: World, history: History, report: Report) -> None:
    """Waits for rest, which must come, and compares all accounts."""
    begin = time.monotonic()
    try:
        await world.quiet(report.plan.settle)
    except pytest.fail.Exception as unrest:
        report.violations.append(f"{UNREST} {report.plan.settle:.0f} s: {unrest}")
    report.quiescence = time.monotonic() - begin
    books = await checks.read(world)
    for check in checks.ALL:
        found = check(books, history)
        report.checks += 1
        report.violations += [f"{check.__name__}: {problem}" for problem in found]
    await asyncio.to_thread(world.mesh.rebuild_mypage)
    rebuilt = await checks.read(world)
    report.checks += 1
    if rebuilt.screen != books.screen:
        report.violations.append("mypage differs from its own rebuild")
    report.rows = {
        "decisions": len(books.decisions),
        "granted": sum(d["denial"] is None for d in books.decisions.values()),
        "cancelled": sum(r["status"] == checks.CANCELLED for r in books.reservations.values()),
        "waiting": sum(v["status"] == checks.WAITING for v in books.vaccinations.values()),
        "doses held": sum(v["dose"] is not None for v in books.vaccinations.values()),
    }
    for name in world.mesh.components:
        if process := world.mesh.processes.find(name):
            report.memory[name] = psutil.Process(process.pid).memory_info().rss
