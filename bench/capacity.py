"""Where the booking path ends: `python -m bench.capacity rate|skew|size`, on meshes of its own.

- `rate`: the highest rate of an open model that is sustained, then latency and cost at shares of it. With `--minutes`
  also memory and Postgres' dead rows during a longer load at half of it.
- `skew`: a closed load in turns: spread evenly, half of it on a tenth of the hospitals, all on one day of one hospital.
- `size`: a closed load in turns, on a mesh with few stored bookings and on one with many.

A rate is sustained if every booking is approved, 99 of 100 answers come within a second of the time at which their
request was due, and every booking is COMPLETED on MyPage soon after the last answer. The load generator can have two
seconds' worth of calls in flight, so a request that it had to drop means that the mesh was too slow.

The CPU of a booking is that of the mesh, without load generator and bench. The bookings that are followed count in it,
and in every rate. All processes share the machine's cores. Times are in milliseconds.
"""

import argparse
import asyncio
import hashlib
import math
import os
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import pymongo
from rich.console import Console

from bench.__main__ import DAYS, HOSPITALS, SAMPLES, Bench, Turn, channel_to, in_meshes, memory
from bench.overload import keep, regularly, spread
from mesh.machine import Mesh
from mesh.machine.home import STORE_OF
from mesh.machine.processes import MeshError
from services.chassis.events import STREAM, Bus
from services.chassis.events.outbox import BATCH, Outgoing

Json = dict[str, Any]
Say = Callable[[str], None]
BASE_PORTS = (14400, 14500)
WARMUP = 5.0  # seconds
SHARES = (0.25, 0.5, 0.75, 0.9)  # of the capacity
ANSWERED, DRAINED = 1000.0, 5.0  # a sustained rate's limits: ms of the p99, seconds until all is completed
PRECISION = 0.05  # of the capacity
LOOKS = 1 / 30  # at memory and dead rows, a second
FEW = 1000  # stored bookings
DOCUMENTS = 5000  # in one request to MongoDB
BATCHES = 4  # of events on their way to the stream
COPY = """INSERT INTO {table} SELECT copied.* FROM generate_series(1, $1::int) n
JOIN {table} original ON reservation_id = ($2::uuid[])[n % cardinality($2::uuid[]) + 1],
jsonb_populate_record(original, jsonb_build_object(  -- whatever of this the table has
    'reservation_id', md5(n::text)::uuid, 'customer_id', 'stored-' || lpad(n::text, 7, '0'),
    'date', ($3::date[])[n / cardinality($2::uuid[]) % cardinality($3::date[]) + 1])) copied"""
POSTGRES = [service for service, store in STORE_OF.items() if store == "postgres"]
TENTH = len(HOSPITALS) // 10
MIXED = [name for i, other in enumerate(HOSPITALS[TENTH:]) for name in (HOSPITALS[i % TENTH], other)]
SKEWS = {
    "even": {},
    "half on a tenth": {"HOSPITALS": ",".join(MIXED)},
    "all on one day": {"HOSPITALS": HOSPITALS[0], "DAYS": str(DAYS[0])},
}


def told(what: str, turn: Turn) -> Json:
    """A turn's entry in the result."""
    used = sum(seconds for name, seconds in turn.cpu.items() if name not in ("k6", "bench"))
    wrong = Counter(turn.errors) + Counter({"not completed": list(turn.completed).count(None)})
    bookings = turn.answers + len(turn.completed)
    return asdict(turn) | {
        "what": what,
        "rate": turn.per_second * bookings / turn.answers,
        "cpu_ms": 1000 * used / bookings,
        "completed_ms": spread([ms for ms in turn.completed if ms is not None]),
        "wrong": dict(wrong),
        "sustained": not wrong and turn.ms["p99"] < ANSWERED and turn.drain <= DRAINED,
    }


# The rate


async def offer(bench: Bench, what: str, rate: float, seconds: float) -> Json:
    """A turn in which so many bookings a second are due."""
    due = max(1, round(rate - SAMPLES))
    tokens = bench.customers(math.ceil(due * seconds) + 10)
    settings = {"RATE": str(due), "VUS": str(max(10, 2 * due))}
    return told(what, await bench.turn(bench.real, tokens, seconds, "overload.js", **settings))


async def rates(bench: Bench, rate: float, arguments: argparse.Namespace, say: Say) -> Json:
    """Finds the capacity, beginning with `rate`, and then offers shares of it."""
    turns, low, high = list[Json](), 0.0, math.inf
    while low < (1 - PRECISION) * high:
        if rate < 2 * SAMPLES:
            raise MeshError(f"no rate is sustained: {turns[-1]['wrong']}, {turns[-1]['ms']} ms")
        say(f"{rate:.0f} a second; sustained are {low:.0f}, and {high:.0f} are not")
        for _ in range(2):  # the first time a slow phase of the machine may be to blame
            turns.append(await offer(bench, f"{rate:.0f} a second", rate, arguments.seconds))
            if turns[-1]["sustained"]:
                low = rate
                break
        else:
            high = rate
        rate = (low + min(high, 1.5 * low)) / 2 if low else 0.8 * high
    for share in SHARES:
        say(what := f"{share:.0%} of {low:.0f} a second")
        turns.append(await offer(bench, what, share * low, arguments.seconds))
    looks = list[Json]()
    if arguments.minutes:
        say(what := f"half of {low:.0f} a second for {arguments.minutes:g} minutes")
        looking = asyncio.create_task(regularly(LOOKS, lambda: look(bench.real, looks)))
        try:
            turns.append(await offer(bench, what, low / 2, 60 * arguments.minutes))
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    return {"capacity": low, "turns": turns, "looks": looks}


async def look(mesh: Mesh, looks: list[Json]) -> None:
    """Adds memory by component, and by table the dead rows of all databases, which vacuum has still to remove."""
    dead = Counter[str]()
    for service in POSTGRES:
        database = await asyncpg.connect(mesh.stores.postgres_url, database=service)
        try:
            for table, rows in await database.fetch("SELECT relname, n_dead_tup FROM pg_stat_user_tables"):
                dead[table] += rows
        finally:
            await database.close()
    looks.append({"at": time.monotonic(), "memory_mb": await asyncio.to_thread(memory, mesh), "dead_rows": dict(dead)})


# A closed load in turns


async def in_turns(
    kinds: dict[str, tuple[Bench, dict[str, str]]], rate: float, arguments: argparse.Namespace, say: Say
) -> Json:
    """Rounds with a turn of each kind, which has its bench and settings.

    Ratios are to the round's first turn: of the rates, of the p99, of the CPU.
    """
    turns, ratios = list[Json](), defaultdict[str, list[list[float]]](list)
    for i in range(1, arguments.rounds + 1):
        first: list[float] = []
        for kind, (bench, settings) in kinds.items():
            say(what := f"round {i}, {kind}")
            tokens = bench.customers(round(3 * max(rate, 100) * arguments.seconds))  # it may be faster later
            turn = told(what, await bench.turn(bench.real, tokens, arguments.seconds, **settings))
            figures = [turn["rate"], turn["ms"]["p99"], turn["cpu_ms"]]
            first = first or figures
            ratios[kind].append([ours / its for ours, its in zip(figures, first, strict=True)])
            turns.append(turn | {"ratios": ratios[kind][-1]})
    medians = {kind: [median(column) for column in zip(*rows, strict=True)] for kind, rows in ratios.items()}
    return {"turns": turns, "ratios": medians}


# Stored bookings are copies of those that the mesh has made, one at each hospital: number n is a copy of ids[n % 20].
# Numbers that only the release of a place or a dose needs, as a day's approved places and a lot's free doses, stay as
# they are. The services are down meanwhile. Each function returns the bytes of its store.


def number(text: str) -> str:
    """The id that Postgres makes of a text by md5(text)::uuid."""
    return str(uuid.UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()))


async def originals(mesh: Mesh, folder: Path) -> list[str]:
    """Makes the first bookings, and returns their ids."""
    async with channel_to(mesh) as channel:
        bench = Bench(mesh, [], channel, 1, folder)
        await bench.stock()
        if None in await bench.follow(len(HOSPITALS) / SAMPLES):
            raise MeshError("not all of the first bookings were completed")
        await bench.drain()
    with pymongo.MongoClient[Json](mesh.stores.mongo_url) as client:
        return client["vaccinemgmt"]["vaccinations"].distinct("_id")


async def fill_postgres(mesh: Mesh, ids: list[str], stored: int) -> int:
    """Copies the rows of every table that has the column reservation_id."""
    url, tables = mesh.stores.postgres_url, "SELECT table_name FROM information_schema.columns"
    tables += " WHERE table_schema = 'public' AND column_name = 'reservation_id'"
    size = 0
    for service in POSTGRES:
        # Foreign keys are not checked: they hold when all tables are filled.
        unchecked = {"session_replication_role": "replica"}
        database = await asyncpg.connect(url, database=service, server_settings=unchecked)
        try:
            for (table,) in await database.fetch(tables):
                await database.execute(COPY.format(table=table), stored, ids, DAYS)
            await database.execute("VACUUM (ANALYZE)")  # autovacuum would do it during the measurement
            size += await database.fetchval("SELECT pg_database_size(current_database())")
        finally:
            await database.close()
    return size


async def fill_mongo(mesh: Mesh, ids: list[str], stored: int) -> int:
    """Copies the vaccinations and the movements of their doses."""
    with pymongo.MongoClient[Json](mesh.stores.mongo_url) as client:
        database = client["vaccinemgmt"]
        bookings = {one["_id"]: one for one in database["vaccinations"].find()}
        doses = {one["reservation_ids"][0]: one for one in database["movements"].find() if one["reservation_ids"]}
        for first in range(1, stored + 1, DOCUMENTS):
            booked, moved = list[Json](), list[Json]()
            for n in range(first, min(first + DOCUMENTS, stored + 1)):
                original, day = ids[n % len(ids)], str(DAYS[n // len(ids) % len(DAYS)])
                new = {"_id": number(f"{n}"), "customer_id": f"stored-{n:07}", "date": day}
                booked.append(bookings[original] | new)
                moved.append(doses[original] | {"_id": number(f"{n} moved"), "reservation_ids": [new["_id"]]})
            database["vaccinations"].insert_many(booked, ordered=False)
            database["movements"].insert_many(moved, ordered=False)
        client.admin.command("fsync")  # the size is that of the files
        return int(database.command("dbStats")["totalSize"])


async def fill_stream(mesh: Mesh, ids: list[str], stored: int) -> int:
    """Publishes the events again, with subjects as long as theirs that the stream takes and no consumer wants."""
    bus = Bus(mesh.stores.nats_address, "admin", mesh.home.passwords["nats"], "bench", 1)
    await bus.connect()
    try:
        first = defaultdict[str, list[Outgoing]](list)
        for sequence in range(1, (await bus.js.stream_info(STREAM)).state.last_seq + 1):
            message = await bus.js.get_msg(STREAM, sequence)
            headers, subject = message.headers or {}, message.subject or ""
            at, trace = datetime.fromisoformat(headers["ce-time"]), headers.get("traceparent", "")
            event = Outgoing("", "", subject[:-1] + subject[-1].upper(), at, trace, message.data or b"")
            first[headers["ce-subject"]].append(event)
        events = (
            replace(event, id=number(f"{n} {event.subject}"), key=number(f"{n}"))
            for n in range(1, stored + 1)
            for event in first[ids[n % len(ids)]]
        )

        async def publish() -> None:
            while batch := list(islice(events, BATCH)):
                await bus.publish(batch)

        await asyncio.gather(*(publish() for _ in range(BATCHES)))
        return int((await bus.js.stream_info(STREAM)).state.bytes)
    finally:
        await bus.close()


def filled(mesh: Mesh, stored: int, folder: Path, say: Say) -> Json:
    """Starts a mesh with so many stored bookings. In the end all of it starts anew, with nothing in memory."""
    say("starting a mesh")
    mesh.up()
    ids = asyncio.run(originals(mesh, folder))
    mesh.down()
    mesh.up(only=mesh.stores.names)
    begin, mb = time.monotonic(), dict[str, float]()
    for fill in (fill_postgres, fill_mongo, fill_stream):
        say(f"{stored:,} bookings: {fill.__name__}")
        mb[fill.__name__] = asyncio.run(fill(mesh, ids, stored)) / 1e6
    seconds = time.monotonic() - begin
    mesh.down()
    mesh.up()
    return {"stored": stored, "seconds": seconds, "mb": mb}


# All


async def run(meshes: list[Mesh], arguments: argparse.Namespace, folder: Path, say: Say) -> Json:
    """One of the three, on meshes that are up."""
    async with AsyncExitStack() as channels:
        benches = []
        for mesh in meshes:
            channel = await channels.enter_async_context(channel_to(mesh))
            bench = Bench(mesh, [other for other in meshes if other is not mesh], channel, arguments.vus, folder)
            benches.append(bench)
            if arguments.what != "size":
                say("stocking hospitals")
                await bench.stock()
            say("warming up")
            warm = await bench.turn(mesh, bench.customers(round(2000 * WARMUP)), WARMUP)
        if arguments.what == "rate":
            return await rates(bench, warm.per_second, arguments, say)
        kinds = {kind: (bench, settings) for kind, settings in SKEWS.items()}
        if arguments.what == "size":
            sizes = zip((FEW, arguments.stored), benches, strict=True)
            kinds = {f"{stored:,} stored": (bench, dict[str, str]()) for stored, bench in sizes}
        return await in_turns(kinds, warm.per_second, arguments, say)


def table(result: Json) -> str:
    """The result as Markdown."""

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    last = ("rate, ratio", "p99", "CPU") if "ratios" in result else ("sustained",)
    columns = ("", "booked a second", "answered p50", "p90", "p99", "COMPLETED p50", "p90", "p99", "CPU ms a booking",
               "went wrong", "drained in s", "others' cores", *last)  # fmt: skip
    lines = [row(*columns), "|---|" + "--:|" * (len(columns) - 1)]
    for t in result["turns"]:
        times = (f"{t[kind][p]:.0f}" for kind in ("ms", "completed_ms") for p in ("p50", "p90", "p99"))
        wrong = ", ".join(f"{n} {what}" for what, n in t["wrong"].items()) or "0"
        tail = [f"{ratio:.2f}" for ratio in t["ratios"]] if "ratios" in t else ["yes" if t["sustained"] else "no"]
        cells = (f"{t['cpu_ms']:.1f}", wrong, f"{t['drain']:.1f}", f"{t['foreign']:.2f}", *tail)
        lines.append(row(t["what"], f"{t['rate']:.0f}", *times, *cells))
    if looks := result.get("looks"):
        parts = [*looks[0]["memory_mb"]]
        tables = [name for name in looks[0]["dead_rows"] if any(look["dead_rows"].get(name) for look in looks)]
        names = ["minutes", *(f"{part}, MB" for part in parts), *(f"{name}, dead rows" for name in tables)]
        lines += ["", row(*names), "|--:" * len(names) + "|"]
        for look in looks:
            mb = (f"{look['memory_mb'].get(part, 0.0):.0f}" for part in parts)
            dead = (f"{look['dead_rows'].get(name, 0)}" for name in tables)
            lines.append(row(f"{(look['at'] - looks[0]['at']) / 60:.1f}", *mb, *dead))
    lines.append("")
    if capacity := result.get("capacity"):
        lines.append(f"- The capacity is {capacity:.0f} bookings a second.")
    for kind, (rate, p99, cpu) in result.get("ratios", {}).items():
        lines.append(
            f"- {kind}: {rate:.2f} times the rate, {p99:.2f} times the p99, {cpu:.2f} times the CPU (medians)."
        )
    for store in result["stores"]:
        sizes = ", ".join(f"{name.removeprefix('fill_')} {mb:.0f} MB" for name, mb in store["mb"].items())
        lines.append(f"- {store['stored']:,} bookings were stored within {store['seconds']:.0f} s: {sizes}.")
    lines.append(f"- {result['cores']} cores, which the load generator shares; load {result['load_average']:.1f}.")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser("capacity", description="Finds where the booking path ends.")
    parser.add_argument("what", choices=("rate", "skew", "size"), help="what to measure")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each turn (30)")
    parser.add_argument("--minutes", type=float, default=0.0, help="rate: at half the capacity; at most 50 (0)")
    parser.add_argument("--rounds", type=int, default=3, help="skew, size: turns of each kind (3)")
    parser.add_argument("--vus", type=int, default=64, help="skew, size: customers at a time (64)")
    parser.add_argument("--stored", type=int, default=1_000_000, help="size: bookings in one of the meshes (1,000,000)")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="capacity-") as name:
        folder = Path(name)
        meshes = [Mesh(folder / f"mesh-{port}", port) for port in BASE_PORTS[: 2 if arguments.what == "size" else 1]]

        def work(say: Say) -> Json:
            stores = []
            if arguments.what == "size":
                larger = filled(meshes[1], arguments.stored, folder, say)  # before anything else runs
                stores = [filled(meshes[0], FEW, folder, say), larger]
            else:
                meshes[0].up()
            return {"stores": stores} | asyncio.run(run(meshes, arguments, folder, say))

        result = in_meshes(console, meshes, work) | {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "arguments": vars(arguments),
        }
    file = keep(f"capacity-{arguments.what}", result, table(result), console)
    console.print(f"written to bench/results/{file.name}.{{md,json}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
