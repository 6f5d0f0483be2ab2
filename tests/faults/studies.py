"""What faults cost, in figures: `python -m tests.faults study NAME`, see STUDIES.

Each study runs the real stack under load, measures, and ends with the accounts of `checks`: a figure counts only when
nothing was lost and nothing happened twice.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import nats
import nats.aio.client
import psutil
from rich.console import Console
from rich.table import Table

from mesh.machine.home import SERVICES, STORE_OF
from services.chassis.events import STREAM
from services.chassis.events.outbox import LEFT, LOOK_EVERY
from services.chassis.events.pull import ACK_WAIT
from tests.disk import SmallDisk, small_disk
from tests.e2e.conftest import World, eventually

from . import full_disk, recall, switchover
from .drive import PATIENCE, Crowd, Driver, History, Person
from .run import Plan, Report, account, stage

console = Console(width=120)
CUSTOMERS = 24


@dataclass
class Options:
    """How much of it."""

    seed: int = 1
    kills: int = 100  # of each service
    seconds: float = 120.0  # NATS is down
    load: float = 60.0  # seconds of bookings around each switchover
    rate: float = 20.0  # reservations a second
    backlog: int = 3000  # reservations
    rounds: int = 3  # of full disks


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on the terminal."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


def middle_and_worst(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(seconds) or [0.0]
    return statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1]


async def settled(world: World, history: History, options: Options, settle: float = 120.0) -> Report:
    """The accounts."""
    report = Report(Plan(options.seed, 0, settle=settle), operations=history.counts())
    await account(world, history, report)
    console.print(str(report), markup=False)
    return report


# Kills


@dataclass
class Recovery:
    """Seconds from each kill."""

    process: list[float] = field(default_factory=list)
    """Until the process serves again: started anew and ready."""
    service: list[float] = field(default_factory=list)
    """Until a call that began after the kill was answered by the service, through the gateway."""


async def kills(folder: Path, options: Options) -> Report:
    """SIGKILL of one replica of each of the four services, again and again, under load."""
    async with stage(folder, replicas=2) as (world, *_):
        hospitals = [await world.new_hospital(CUSTOMERS // 3, CUSTOMERS // 4) for _ in range(3)]
        calls = await _probes(world)
        driver = Driver(world, options.seed, CUSTOMERS, hospitals)
        driving = asyncio.create_task(driver.run())
        dice, recoveries = random.Random(options.seed), {service: Recovery() for service in SERVICES}
        begin = time.monotonic()
        for _ in range(options.kills):
            victims = {dice.choice(world.mesh.home.processes_of(service)): service for service in SERVICES}
            await _kill_and_recover(world, victims, calls, recoveries, dice)
            await asyncio.sleep(dice.random() * 0.5)
        minutes = (time.monotonic() - begin) / 60
        driver.stop()
        await driving
        show(
            f"{options.kills} kills of each service, 2 replicas, {minutes:.1f} min; seconds until it serves again",
            ("service", "kills", "process: median", "p95", "worst", "service: median", "p95", "worst"),
            [
                (service, len(r.process), *middle_and_worst(r.process), *middle_and_worst(r.service))
                for service, r in recoveries.items()
            ],
        )
        return await settled(world, driver.history, options)


async def _probes(world: World) -> dict[str, Callable[[], Awaitable[Any]]]:
    hospital, day = await world.new_hospital(1, 1)
    customer, manager = Person(world, "prober", ["customer"]), Person(world, "manager", ["manager"], hospital=hospital)
    request_id = str(uuid.uuid4())
    return {
        # A write, repeated: through reservation and approval and both their stores.
        "reservation": lambda: customer.create(hospital, day, request_id),
        "approval": lambda: customer.availability(hospital, day),
        "vaccinemgmt": lambda: manager.lots(hospital),
        "mypage": customer.screen,
    }


async def _kill_and_recover(
    world: World,
    victims: dict[str, str],
    calls: dict[str, Callable[[], Awaitable[Any]]],
    recoveries: dict[str, Recovery],
    dice: random.Random,
) -> None:
    """Kills at instants of their own, starts them again together, and waits until each has recovered."""
    killed: dict[str, float] = {}
    dead: set[str] = set()
    all_dead = asyncio.Event()

    def report(name: str, what: str) -> None:
        if what.startswith("ready"):
            recoveries[victims[name]].process.append(time.monotonic() - killed[name])

    async def kill_and_ask(name: str, service: str, after: float) -> None:
        await asyncio.sleep(after)
        killed[name] = time.monotonic()
        assert await asyncio.to_thread(world.mesh.processes.stop, name, signal.SIGKILL, 10)
        dead.add(name)
        if len(dead) == len(victims):
            all_dead.set()
        PATIENCE.set(5.0)
        while True:
            try:
                await calls[service]()
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
        recoveries[service].service.append(time.monotonic() - killed[name])

    asking = [asyncio.create_task(kill_and_ask(*victim, dice.random() * 0.3)) for victim in victims.items()]
    await all_dead.wait()
    await asyncio.to_thread(world.mesh.up, list(victims), report)
    await asyncio.gather(*asking)


# NATS down


async def nats_down(folder: Path, options: Options) -> Report:
    """NATS is stopped under load: what customers notice, what it does to memory, and how fast all is drained."""
    async with stage(folder, replicas=2, proxied=False) as (world, *_):
        crowd = await Crowd.of(world, 100_000, options.seed)
        await crowd.arrive(options.rate, 20)  # warm: memory has reached what load needs
        await world.quiet(60)
        phases: list[tuple[str, float, float]] = []
        memory = {"before": _memory(world)}

        async def phase(name: str, seconds: float) -> None:
            begin = time.time()
            await crowd.arrive(options.rate, seconds)
            phases.append((name, begin, time.time()))

        await phase("before", 30)
        memory["before"] = _memory(world)
        await asyncio.to_thread(world.mesh.stop, "nats")
        await phase("down", options.seconds / 2)
        memory["half-way"] = _memory(world)
        await phase("down, second half", options.seconds / 2)
        memory["down"] = _memory(world)
        waiting = {
            service: (await world.query(service, "SELECT count(*) FROM outbox"))[0][0] for service in _ON_POSTGRES
        }
        begin = time.monotonic()
        await asyncio.to_thread(world.mesh.start, "nats")
        started = time.monotonic()
        await world.quiet(300)
        drained = time.monotonic()
        await phase("after", 30)
        await world.quiet(60)
        memory["after"] = _memory(world)
        asked = [o for o in crowd.driver.history.operations if o.kind in ("create", "cancel")]
        rows: list[tuple[object, ...]] = []
        for name, first, last in phases:
            for kind in ("create", "cancel"):
                tries = [o for o in asked if o.kind == kind and first <= o.at < last]
                accepted = [o.seconds * 1000 for o in tries if o.outcome == "ok"]
                share = f"{100 * len(accepted) / max(1, len(tries)):.2f} %"
                rows.append(
                    (name, kind, len(tries), share, len(accepted) / (last - first), *middle_and_worst(accepted))
                )
        show(
            f"NATS down for {options.seconds:.0f} s at {options.rate:.0f} new customers/s",
            ("phase", "call", "tries", "accepted", "accepted/s", "median ms", "p95 ms", "worst ms"),
            rows,
        )
        show(
            "Resident memory, MiB",
            ("process", *memory),
            [(name, *(f"{m[name] / 2**20:.0f}" for m in memory.values())) for name in sorted(memory["before"])],
        )
        console.print(
            f"outboxes held {waiting}; NATS ready {started - begin:.1f} s after its start; "
            f"all drained {drained - started:.1f} s after that"
        )
        report = await settled(world, crowd.driver.history, options)
        report.violations += [
            f"{name} grew from {memory['before'][name]} to {memory['down'][name]} bytes"
            for name in memory["down"]
            if memory["down"][name] > memory["before"][name] * 1.25
        ]
        for name, first, last in phases:
            refused = [o for o in asked if first <= o.at < last and o.outcome != "ok"]
            if len(refused) > 0.001 * len(asked):
                report.violations.append(f"{len(refused)} calls not accepted in phase {name}")
        return report


_ON_POSTGRES = ("approval", "reservation")


def _memory(world: World) -> dict[str, int]:
    found = {name: world.mesh.processes.find(name) for s in SERVICES for name in world.mesh.home.processes_of(s)}
    return {name: psutil.Process(p.pid).memory_info().rss for name, p in found.items() if p}


# More replicas


@dataclass
class Worked:
    """What a backlog took its consumers. `own` and `store`: CPU seconds of their processes, and of their store's."""

    events: int
    again: int  # deliveries beyond the first
    seconds: float
    own: float
    store: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


COUNTS = (1, 2, 5)
ROUNDS = 3
# One after the other, each finds what the earlier ones told; then, with a backlog of their own, all of them.
IN_TURN = [["vaccinemgmt"], ["reservation"], ["approval"], ["mypage"]]


async def replicas(folder: Path, options: Options) -> Report:
    """A backlog of events, worked off by one, two and five replicas: of one consumer after the other, then of all.

    In rounds, so that what else the machine does is everybody's trouble; medians are compared.
    """
    found: dict[tuple[str, int], list[Worked]] = defaultdict(list)
    async with stage(folder, max(COUNTS), proxied=False) as (world, *_):
        crowd = await Crowd.of(world, 3 * ROUNDS * options.backlog, options.seed)
        await crowd.arrive(options.rate, 5)  # connections are made, code is warm
        await world.quiet(60)
        for count in COUNTS * ROUNDS:
            for turns in (IN_TURN, [list(SERVICES)]):
                await _backlog(world, crowd, options)
                await _keep(world, count)
                for services in turns:
                    worked = await _work_off(world, services)
                    found[services[0] if len(services) == 1 else "all at once", count].append(worked)
                await asyncio.to_thread(world.mesh.up)
        report = await settled(world, crowd.driver.history, options)
    middle = {key: sorted(worked, key=lambda w: w.rate)[len(worked) // 2] for key, worked in found.items()}
    show(
        f"Backlogs of {options.backlog} reservations, half of them cancelled; {os.cpu_count()} cores for everything",
        ("consumer", "replicas", "events", "again", "events/s: median", "least", "most",
         "ms of CPU/event: its own", "its store's"),
        [
            (name, n, w.events, sum(one.again for one in found[name, n]), w.rate,
             min(one.rate for one in found[name, n]), max(one.rate for one in found[name, n]),
             1000 * w.own / w.events, 1000 * w.store / w.events)
            for (name, n), w in sorted(middle.items())
        ],
    )  # fmt: skip
    report.violations += [
        f"{name}: {worked.rate:.0f} events/s with {count} replicas, {middle[name, 1].rate:.0f} with one"
        for (name, count), worked in middle.items()
        if worked.rate < 0.8 * middle[name, 1].rate  # a fifth is what a shared machine's noise was seen to be
    ]
    return report


async def _keep(world: World, count: int) -> None:
    """Stops all but so many replicas of each service."""
    extra = [name for service in SERVICES for name in world.mesh.home.processes_of(service)[count:]]
    await asyncio.gather(*(asyncio.to_thread(world.mesh.processes.stop, name, signal.SIGTERM, 35) for name in extra))


async def _backlog(world: World, crowd: Crowd, options: Options) -> None:
    """All consumers paused, and what they would have to do."""
    await _pause(world, SERVICES, until=time.time() + 3600)
    for _ in range(options.backlog):
        crowd.come(cancelling=0.5)
        await crowd.gone(but=64)
    await crowd.gone()
    for service in _ON_POSTGRES:
        await eventually(partial(world.query, service, "SELECT FROM outbox"), lambda rows: not rows)


async def _work_off(world: World, services: Sequence[str]) -> Worked:
    """Lets these consumers go on, until none of them has anything left to do."""
    processes = [name for service in services for name in world.mesh.home.processes_of(service)]
    stores = {STORE_OF[service] for service in services}
    client = await nats.connect(world.mesh.stores.nats_url.split(","))
    try:
        before = await _delivered(client, services)
        own, store = used = _cpu(world, processes), _cpu(world, stores)
        await _pause(world, services, until=0)
        begin = since = time.monotonic()
        last = before
        while last.waiting or time.monotonic() - since < LEFT + LOOK_EVERY + 0.5:  # a relay sees every row by then
            await asyncio.sleep(0.02)
            if (seen := await _delivered(client, services)) != last:
                # A server that resumes a consumer delivers with its next heartbeat: up to HEARTBEAT is nobody's work.
                begin = since if last == before else begin
                last, since = seen, time.monotonic()
                used = _cpu(world, processes), _cpu(world, stores)
            elif last == before:
                since = time.monotonic()
        events = last.done - before.done
        again = last.deliveries - before.deliveries - events
        return Worked(events, again, since - begin, used[0] - own, used[1] - store)
    finally:
        await client.close()


def _cpu(world: World, names: Iterable[str]) -> float:
    """Seconds of CPU that processes of the mesh and their children have used."""
    found = [psutil.Process(process.pid) for name in names if (process := world.mesh.processes.find(name))]
    return sum(sum(p.cpu_times()[:2]) for parent in found for p in (parent, *parent.children()))


@dataclass(frozen=True)
class Delivered:
    """Of some consumers: events that they have done with, all deliveries, and events that they have still to do."""

    done: int
    deliveries: int
    waiting: int


async def _delivered(client: nats.aio.client.Client, services: Iterable[str]) -> Delivered:
    done = deliveries = waiting = 0
    stream = await client.jetstream().stream_info(STREAM, subjects_filter=">")
    for name in services:
        info = await client.jetstream().consumer_info(STREAM, name)
        subjects = set(info.config.filter_subjects or ())
        left = (info.num_pending or 0) + (info.num_ack_pending or 0)
        done += sum(n for subject, n in (stream.state.subjects or {}).items() if subject in subjects) - left
        deliveries += info.delivered.consumer_seq if info.delivered else 0
        waiting += left
    return Delivered(done, deliveries, waiting)


async def _pause(world: World, services: Iterable[str], until: float) -> None:
    """The server gives no messages to them until then, in seconds since 1970."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
    client = await nats.connect(world.mesh.stores.nats_url.split(","))
    try:
        for name in services:
            body = json.dumps({"pause_until": at}).encode()
            reply = json.loads((await client.request(f"$JS.API.CONSUMER.PAUSE.{STREAM}.{name}", body, timeout=5)).data)
            assert "error" not in reply, reply
    finally:
        await client.close()


# One hangs


async def hung(folder: Path, options: Options) -> Report:
    """One of two replicas stands still, for good, while it holds messages: who waited for how long."""
    rows: list[tuple[object, ...]] = []
    async with stage(folder, replicas=2, proxied=False) as (world, *_):
        crowd = await Crowd.of(world, 100_000, options.seed)
        await crowd.arrive(options.rate, 5)
        await world.quiet(60)
        for service in ("vaccinemgmt", "mypage", "reservation"):
            name = world.mesh.home.processes_of(service)[-1]
            process = world.mesh.processes.find(name)
            assert process is not None
            watching = asyncio.create_task(_seen(world, crowd))
            arriving = asyncio.create_task(crowd.arrive(options.rate, 40, cancelling=0.0))
            await asyncio.sleep(5)
            asked_before = len(crowd.driver.history.operations)
            os.kill(process.pid, signal.SIGSTOP)
            stopped = time.time()
            try:
                await arriving
                took = await watching
            finally:
                os.kill(process.pid, signal.SIGCONT)
            late = [seconds for at, seconds in took if seconds > 2]
            last = max(at + seconds for at, seconds in took if seconds > 2) - stopped if late else 0.0
            calls = [o for o in crowd.driver.history.operations[asked_before:] if o.kind == "create"]
            slow = [o.seconds for o in calls if o.seconds > 1 or o.outcome != "ok"]
            rows.append((name, len(took), len(late), *middle_and_worst(late), last, len(slow), max(slow, default=0.0)))
            await world.quiet(120)
        show(
            f"One of two replicas hangs, ack wait {ACK_WAIT:.0f} s; seconds from answer to completed everywhere",
            ("hung", "bookings", "late (> 2 s)", "late: median", "p95", "worst", "last after the stop",
             "calls > 1 s", "worst"),
            rows,
        )  # fmt: skip
        report = await settled(world, crowd.driver.history, options)
    worst = max(float(str(row[5])) for row in rows)
    if worst > ACK_WAIT * 1.2 + 2:
        report.violations.append(f"a message was taken over after {worst:.0f} s, not within {ACK_WAIT:.0f} s")
    return report


async def _seen(world: World, crowd: Crowd) -> list[tuple[float, float]]:
    """When each new customer was answered, and how many seconds later reservation and MyPage both had it completed."""
    known, took = set(crowd.answered), []
    sql = "SELECT reservation_id::text AS id FROM {} WHERE status = 3"
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 10 or set(crowd.answered) - known:
        waiting = {key: at for key, at in crowd.answered.items() if key not in known}
        if waiting:
            quiet_since = time.monotonic()
            completed = {row["id"] for row in await world.query("reservation", sql.format("reservations"))}
            completed &= {row["id"] for row in await world.query("mypage", sql.format("my_reservations"))}
            now = time.time()
            took += [(at, now - at) for key, at in waiting.items() if key in completed]
            known |= completed
        await asyncio.sleep(0.1)
    return took


# Another server


async def switched(folder: Path, options: Options) -> Report:
    """Each case of `switchover` in turn, under 10 bookings a second."""
    report = Report(Plan(options.seed, options.load))
    for replicated, cases in ((False, switchover.REFUSALS), (True, switchover.FAILOVERS)):
        own = folder / ("replicated" if replicated else "single")
        own.mkdir()
        async with stage(own, replicas=2, proxied=False, replicated=replicated) as (world, *_):
            report.violations += await _switched(world, cases, options)
    return report


async def _switched(world: World, cases: Mapping[str, switchover.Case], options: Options) -> list[str]:
    """The cases that are for this mesh; returns what was violated."""
    rows: list[tuple[object, ...]] = []
    violations: list[str] = []
    # Who repeats a call for long would hide that nobody is served.
    crowd = await Crowd.of(world, 100_000, options.seed, tries=20)
    for name, case in cases.items():
        seen = await switchover.observe(world, crowd, case, options.load)
        answers = ", ".join(f"{count} {code}" for code, count in seen.answers.most_common())
        shown = ["never" if s is None else s for s in (seen.booked, seen.completed)]
        rows.append((name, seen.away, *shown, answers, len(seen.internal), seen.dead_letters))
        violations += [f"{name}: {wrong}" for wrong in seen.violations()]
        for what, took in (("booked", seen.booked), ("completed", seen.completed)):
            if took is not None and took > switchover.SERVED_WITHIN:
                violations.append(f"{name}: {what} {took:.0f} s after the store was back")
        if seen.completed is None:  # the next case is not to suffer for this one
            for service in SERVICES:
                await world.stop(service)
                await world.start(service)
    show(
        f"{switchover.RATE:.0f} bookings/s for {options.load:.0f} s; 'booked' and 'completed' are seconds from the "
        "store's return until somebody new was",
        ("case", "store away, s", "booked", "completed", "answers", "INTERNAL", "dead letters"),
        rows,
    )
    return violations + (await settled(world, crowd.driver.history, options)).violations


# Full disks


async def full_disks(folder: Path, options: Options) -> Report:
    """Each store's disk is full for a while, and then one that they all share; again and again, under bookings."""
    rows: list[tuple[object, ...]] = []
    report = Report(Plan(options.seed, full_disk.SECONDS))
    for turn in range(1, options.rounds + 1):
        for stores in full_disk.DISKS:
            own = folder / f"{turn}-{len(stores)}"
            with ExitStack() as mounted:
                disks = {store: mounted.enter_context(small_disk(own / store, size)) for store, size in stores.items()}
                home = disks[full_disk.ALL].folder if full_disk.ALL in disks else own
                async with stage(home, replicas=2, proxied=False) as (world, *_):
                    crowd = await Crowd.of(world, 100_000, options.seed + turn)
                    await crowd.arrive(options.rate, 5)
                    for store, disk in disks.items():
                        if store != full_disk.ALL:
                            await asyncio.to_thread(full_disk.move, world.mesh, store, disk.folder)
                        row, wrong = await _full(world, crowd, store, disk, options)
                        rows.append((turn, store, *row))
                        console.print(*rows[-1], *wrong)
                        report.violations += [f"{turn}, {store}: {problem}" for problem in wrong]
                    report.violations += (await settled(world, crowd.driver.history, options)).violations
    show(
        f"{options.rate:.0f} bookings/s; 'flows': seconds from the first room until a new booking was completed",
        ("round", "full", "ended", "runbook's commands, s", "flows, s", "answers"),
        rows,
    )
    return report


async def _full(
    world: World, crowd: Crowd, store: str, disk: SmallDisk, options: Options
) -> tuple[tuple[object, ...], list[str]]:
    """One disk, full and then free again; a row of the table, and what was violated."""
    case = full_disk.FullDisk(store, disk)
    seen = await switchover.observe(world, crowd, case, full_disk.SECONDS, options.rate)
    violations = [*seen.violations(), *case.violations(world.mesh)]
    flows = None if seen.completed is None else case.command + seen.completed
    if flows is not None and flows > full_disk.FLOWS_WITHIN:
        violations.append(f"flows again {flows:.0f} s after there was room")
    answers = ", ".join(f"{count} {code}" for code, count in seen.answers.most_common())
    return (", ".join(case.ended) or "-", case.command, "never" if flows is None else flows, answers), violations


# A recall


async def recalls(folder: Path, options: Options) -> Report:
    """A lot that thousands have a dose of is recalled, undisturbed and with every replica killed in the middle."""
    report, rows = Report(Plan(options.seed, 0)), []
    for kills in (0, 3):
        own = folder / f"kills-{kills}"
        own.mkdir()
        async with stage(own, replicas=2, proxied=False) as (world, *_):
            seen, crowd = await recall.recalled(world, options.seed, options.backlog, kills)
            report.violations += seen.violations
            report.violations += (await settled(world, crowd.driver.history, options)).violations
        counts = (seen.recall.reassigned, seen.recall.waiting, seen.recall.written_off)
        rows.append((options.backlog, seen.kills, seen.seconds, seen.told, *counts))
    show(
        "A lot is recalled; seconds from the call until no booking is left to look at, and until all screens say so",
        ("bookings", "kills of all replicas", "done, s", "told, s", "other dose", "wait", "written off"),
        rows,
    )
    return report


STUDIES: dict[str, Callable[[Path, Options], Awaitable[Report]]] = {
    "kills": kills,
    "nats-down": nats_down,
    "replicas": replicas,
    "hung": hung,
    "switchover": switched,
    "full-disk": full_disks,
    "recall": recalls,
}
