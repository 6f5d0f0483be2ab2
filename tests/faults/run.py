"""One run: the real stack, load and faults for a while, then rest, then the accounts."""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import asyncpg
import grpc.aio
import psutil
import pymongo
import pytest
from pymongo.errors import PyMongoError

from mesh.machine import Mesh
from mesh.machine.home import SERVICES, STORES
from mesh.machine.processes import MeshError
from tests.conftest import free_base_port
from tests.e2e.conftest import World, eventually, zone_at_noon
from vaccination.approval.v1 import hospital_service_pb2

from . import checks, variant
from .drive import PATIENCE, Driver, History, Person
from .nemesis import Nemesis
from .proxy import Proxy

# Rest must come within this many seconds after the last fault has healed.
QUIESCENCE = 90.0
UNREST = "no rest within"
LINES, OWN_LINES = 80, 90  # ports of the proxies, above the mesh's base port
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
    change: bool = False  # the next version is rolled out meanwhile, half way, back, and then for good
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


class Stage(NamedTuple):
    """A mesh to attack: its world, the proxies to its stores, those of every service's second replica, the folder of
    what shall fail, and the file with the names of processes that are of the next version."""

    world: World
    proxies: dict[str, Proxy]
    own_lines: dict[str, Proxy]
    faults: Path
    next_version: Path


@contextlib.asynccontextmanager
async def stage(
    folder: Path, replicas: int, mutation: str = "", proxied: bool = True, replicated: bool = False
) -> AsyncIterator[Stage]:
    """A mesh of its own in the folder.

    No proxies stand before replicated stores: a client that knows a store's servers goes to them itself.
    """
    faults, next_version = folder / "faults", folder / "next"
    faults.mkdir()
    next_version.touch()
    base = free_base_port()
    os.environ |= {"FAULTS": str(faults), "CLOCK_OFFSET": str(faults / "clock"), "MUTATION": mutation}
    os.environ |= {"NEXT": str(next_version), "OWN_LINES": ""}
    launcher = "tests.faults.launcher" if proxied else None
    mesh = Mesh(folder / "mesh", base, replicas=replicas, launcher=launcher, replicated=replicated)
    proxies, own_lines = dict[str, Proxy](), dict[str, Proxy]()
    if proxied and not replicated:
        mesh.stores.via = {store: base + LINES + i for i, store in enumerate(STORES)}
        proxies = {store: Proxy(base + LINES + i, mesh.home.port(store)) for i, store in enumerate(STORES)}
        own_lines = {store: Proxy(base + OWN_LINES + i, mesh.home.port(store)) for i, store in enumerate(STORES)}
        os.environ["OWN_LINES"] = " ".join(f"{base + LINES + i}:{base + OWN_LINES + i}" for i in range(len(STORES)))
    for proxy in (*proxies.values(), *own_lines.values()):
        await proxy.start()
    try:
        await asyncio.to_thread(mesh.up)
        async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
            yield Stage(World(mesh, channel), proxies, own_lines, faults, next_version)
    finally:
        await asyncio.to_thread(mesh.down)
        for proxy in (*proxies.values(), *own_lines.values()):
            await proxy.stop()


async def play(plan: Plan, folder: Path) -> Report:
    """Starts a mesh of its own in the folder, attacks it, and looks at the accounts."""
    staged = stage(folder, plan.replicas, plan.mutation or "", replicated=plan.replicated)
    async with staged as at:
        return await _play(plan, at)


async def _play(plan: Plan, at: Stage) -> Report:
    report, world = Report(plan), at.world
    nemesis = Nemesis(world.mesh, plan.seed, at.proxies, at.faults, at.own_lines)
    # Few places and doses: everything that can run out does.
    # At the first hospital the day is today, and customers come to the counter.
    places, doses = plan.customers // 3, plan.customers // 4
    hospitals = [await world.new_hospital(places, doses, days_ahead=0, time_zone=zone_at_noon())]
    hospitals += [await world.new_hospital(places, doses) for _ in range(plan.hospitals - 1)]
    driver = Driver(world, plan.seed, plan.customers, hospitals, tries=plan.tries)
    stop = asyncio.Event()
    watching = asyncio.create_task(_watch(world, hospitals, report, stop))
    driving = asyncio.create_task(driver.run())
    breaking = asyncio.create_task(nemesis.run(stop, plan.pause, plan.faults)) if plan.pause else None
    lasting = asyncio.create_task(roll(plan, at, nemesis) if plan.change else _last(plan, nemesis))
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
    report.violations += await driver.recall_the_fullest(plan.settle)
    await watching
    await account(world, driver.history, report)
    report.operations, report.faults = driver.history.counts(), nemesis.done
    report.violations += nemesis.violations
    return report


async def _last(plan: Plan, nemesis: Nemesis) -> None:
    for fifth in range(100):
        if fifth >= 5 and nemesis.done.total() >= plan.least:
            return
        await asyncio.sleep(plan.seconds / 5)


async def roll(plan: Plan, at: Stage, nemesis: Nemesis) -> None:
    """Rolls the next version forward, stops half way, rolls it back, and forward for good; a fifth of the time each.

    Those who write what is new come first, and those who only read it last, which is the worst order.
    """
    mesh, pause, dice = at.world.mesh, plan.seconds / 5, random.Random(plan.seed)
    producers, readers = ("vaccinemgmt", "approval"), ("reservation", "mypage")

    async def become(next_version: bool, names: Sequence[str]) -> None:
        now = set(at.next_version.read_text().split())
        now = now | set(names) if next_version else now - set(names)
        at.next_version.write_text(" ".join(sorted(now)))
        for name in dice.sample(names, len(names)):
            await asyncio.to_thread(mesh.stop, name)
        await nemesis.up()

    def replicas(services: Sequence[str], which: slice) -> list[str]:
        return [name for service in services for name in mesh.home.processes_of(service)[which]]

    first, others, everything = slice(0, 1), slice(1, None), slice(None)
    await asyncio.sleep(pause)
    at.next_version.write_text(" ".join(f"{service}-migrate" for service in SERVICES))
    if plan.mutation != "widen-late":
        await again_while_away(lambda: asyncio.to_thread(mesh.migrate))
    # Of vaccine management's replicas one is at work and the others stand by: half of them would change nothing.
    await become(True, [*replicas(("vaccinemgmt",), everything), *replicas(("approval",), first)])
    await asyncio.sleep(pause / 2)
    await become(True, replicas(readers, first))
    await asyncio.sleep(pause / 2)
    await become(True, replicas(("approval", *readers), others))
    await asyncio.sleep(pause / 2)
    for which in (first, others):
        await become(False, replicas((*readers, *producers), which))
    await asyncio.sleep(pause)
    await become(True, replicas(producers, everything))
    await become(True, replicas(readers, everything))
    await asyncio.sleep(pause / 2)
    while nemesis.done.total() < plan.least:  # noqa: ASYNC110 - the nemesis tells nobody what it has done
        await asyncio.sleep(1)


async def again_while_away(do: Callable[[], Awaitable[None]]) -> None:
    """An operator repeats a migration that found a store away."""
    for attempt in range(10):
        try:
            await do()
            return
        except MeshError:
            if attempt == 9:
                raise


async def _watch(world: World, hospitals: list[tuple[str, date]], report: Report, stop: asyncio.Event) -> None:
    """What must hold at every read is read all the time, in the stores and through the gateway."""
    PATIENCE.set(3.0)
    reader = Person(world, "operator", ["operator"])

    async def books() -> list[str]:
        too_many = "SELECT * FROM days WHERE approved < 0 OR over <> greatest(0, approved - capacity)"
        overbooked = await world.query("approval", too_many)
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
            if day.approved < 0
            or day.over != max(0, day.approved - day.capacity)
            or day.left != (0 if day.called_off else max(0, day.capacity - day.approved))
        ]

    async def shown_lots() -> list[str]:
        shown = [lot for hospital, _ in hospitals for lot in await reader.lots(hospital)]
        return [
            f"ListLots shows {lot}"
            for lot in shown
            if lot.received != lot.free + lot.reserved + lot.administered + lot.written_off
            or min(lot.free, lot.reserved, lot.administered, lot.written_off) < 0
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
    nats = world.mesh.stores.nats

    async def set_aside() -> int:
        return await asyncio.to_thread(nats.count, "DEAD_LETTERS", "DEAD_LETTERS.*.*.>")

    try:
        await eventually(set_aside, lambda count: count == 0, report.plan.settle)
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
        "moved": sum(r["status"] == checks.MOVED for r in books.reservations.values()),
        "called off": sum(r["status"] == checks.CALLED_OFF for r in books.reservations.values()),
        "given": sum(v["status"] == checks.WAS_GIVEN for v in books.vaccinations.values()),
        "missed": sum(v["status"] == checks.CAME_NOT for v in books.vaccinations.values()),
        "withdrawn lots": sum(bool(lot["withdrawn"]) for lot in books.lots.values()),
        "written off": sum(lot["written_off"] for lot in books.lots.values()),
        "waiting": sum(v["status"] == checks.WAITING for v in books.vaccinations.values()),
        "doses held": sum(v["dose"] is not None for v in books.vaccinations.values()),
        "closed by the next version": len(books.closed),
        "refused for its reason": sum(d["denial"] == variant.FULL_FOR_GOOD for d in books.decisions.values()),
    }
    for name in world.mesh.components:
        if process := world.mesh.processes.find(name):
            report.memory[name] = psutil.Process(process.pid).memory_info().rss
