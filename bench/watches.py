"""Opens as many watches as a town has phones, and measures them: `python -m bench.watches`, on a mesh of its own.

The mesh is the gateway, two replicas of mypage and their stores. The watchers are processes of their own, which call
through the gateway on as many connections as its limit of streams needs, and come back as the page does when a watch
ends. The services that own bookings are left out, since two cores cannot make 200 bookings a second beside all this:
the bench publishes vaccinemgmt's events straight to the stream, in the batches of a relay.

An event's lot number is the time at which it was published, so every watcher can tell how late it is. A transaction of
mypage tells of its changes when it commits. The bench hears that too, and that is the time of the commit here, a moment
late. All processes share the machine's cores. Times are in milliseconds.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
import uuid
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
from rich.console import Console

from bench.__main__ import cpu, in_meshes, memory
from bench.overload import Times, keep, regularly, spread
from mesh.machine import Mesh, identity
from mesh.machine.processes import MeshError
from services.chassis.events import Bus
from services.chassis.events.outbox import BATCH, Outgoing
from vaccination.approval.v1 import appointment_pb2
from vaccination.mypage.v1 import mypage_service_pb2, mypage_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import vaccination_pb2, vaccinemgmt_events_pb2

Json = dict[str, Any]
BASE_PORT = 14300
REPLICAS = ("mypage", "mypage-2")
SHOWN = (*REPLICAS, "envoy", "postgres", "nats")
PROCESSES = 2  # of watchers
STREAMS = 100  # of a connection: the gateway's limit
PATIENCE = 300.0  # seconds for whatever is waited for
SETTLE = 5.0  # seconds until a measure of memory
READS = 5.0  # of MyPage, a second: what those notice who do not watch
Sample = tuple[int, int, int]  # a customer, when an event of theirs was published, when it was seen; ns


# The watchers


class Watcher:
    """One customer's page."""

    def __init__(self, crowd: "Crowd", customer: int, stub: mypage_service_pb2_grpc.MypageServiceStub) -> None:
        self._crowd, self._stub, self.customer = crowd, stub, customer
        token = identity.token(crowd.home, subject=name(customer), roles=["customer"])
        self._metadata = (("authorization", f"Bearer {token}"),)
        self.reading = asyncio.Event()
        self.reading.set()
        self.live = False
        self.shown, self.messages = 0, 0

    async def run(self) -> None:
        """Watches, and opens the watch again when it ends, after the pauses that web/src/follow.ts makes."""
        attempt = 0
        while True:
            try:
                async for first in self._watch():
                    attempt = 0 if first else attempt
                code = "ended"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            self.live = False
            self._crowd.ends[code] += 1
            await asyncio.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.2, 1.0))  # noqa: S311 - as the page
            attempt += 1

    async def _watch(self) -> Any:
        first = True
        call: Any = self._stub.WatchMyReservations(
            mypage_service_pb2.WatchMyReservationsRequest(), metadata=self._metadata, wait_for_ready=True
        )
        while isinstance(update := await call.read(), mypage_service_pb2.WatchMyReservationsResponse):
            now = time.monotonic_ns()
            self.live, self.messages = True, self.messages + 1
            for reservation in update.reservations:
                self.shown = int(reservation.lot_number)
                if not first:
                    self._crowd.samples.append((self.customer, self.shown, now))
            yield first
            first = False
            await self.reading.wait()
        await call.code()


class Crowd:
    """The watchers of one process, which does as its parent says."""

    def __init__(self, home: Path, gateway: str, customers: range) -> None:
        self.home, self.samples, self.ends = home, list[Sample](), Counter[str]()
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        options += [("grpc.max_reconnect_backoff_ms", 500)]
        channels = [grpc.aio.insecure_channel(gateway, options) for _ in range(-(-len(customers) // STREAMS))]
        stubs = list(map(mypage_service_pb2_grpc.MypageServiceStub, channels))
        self.watchers = {c: Watcher(self, c, stubs[i // STREAMS]) for i, c in enumerate(customers)}

    async def run(self, parent: Connection) -> None:
        """Answers the parent until it says no more."""
        running = [asyncio.create_task(watcher.run()) for watcher in self.watchers.values()]
        try:
            while True:
                command, customers = await asyncio.to_thread(parent.recv)
                parent.send(getattr(self, command)(customers))
        except EOFError:
            for task in running:
                task.cancel()

    def live(self, _: object) -> tuple[int, Counter[str]]:
        """How many watch, and how watches have ended since the last time."""
        ends, self.ends = self.ends, Counter[str]()
        return sum(watcher.live for watcher in self.watchers.values()), ends

    def seen(self, _: object) -> list[Sample]:
        """What was seen since the last time."""
        samples, self.samples = self.samples, []
        return samples

    def shown(self, _: object) -> dict[int, tuple[int, int]]:
        """The newest event that each watcher has seen, and how many messages it has read."""
        return {customer: (watcher.shown, watcher.messages) for customer, watcher in self.watchers.items()}

    def pause(self, customers: Sequence[int]) -> None:
        """These stop to read."""
        for customer in self.watchers.keys() & set(customers):
            self.watchers[customer].reading.clear()

    def read_on(self, _: object) -> None:
        """All read."""
        for watcher in self.watchers.values():
            watcher.reading.set()


def crowd(parent: Connection, home: Path, gateway: str, customers: range) -> None:
    """A process of watchers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, by closing the connection

    async def run() -> None:
        await Crowd(home, gateway, customers).run(parent)

    asyncio.run(run())


# The study


def name(customer: int) -> str:
    """The customer's subject."""
    return f"watcher-{customer:05}"


class Study:
    """One run against a mesh that is up."""

    def __init__(self, mesh: Mesh, arguments: argparse.Namespace, database: Any, bus: Bus) -> None:
        self.mesh, self.rate, self.database, self._bus = mesh, arguments.rate, database, bus
        self.customers = range(arguments.watches)
        self.versions = Counter[int]()
        self.published = dict[int, int]()
        self.commits: dict[str, list[int]] = defaultdict(list)
        self.ends = Counter[str]()
        self._crowds = list[Connection]()
        self._decided = datetime.now(UTC)

    def heard(self, _connection: object, _pid: int, _channel: str, customer: object) -> None:
        """A transaction of mypage has committed a change for this customer."""
        self.commits[str(customer)].append(time.monotonic_ns())

    async def publish(self, customers: Sequence[int]) -> None:
        """Each of them gets another dose."""
        rows, now = [], datetime.now(UTC)
        for customer in customers:
            self.versions[customer] += 1
            self.published[customer] = time.monotonic_ns()
            event = vaccinemgmt_events_pb2.ReservationCompleted(
                appointment=appointment_pb2.Appointment(
                    reservation_id=str(uuid.UUID(int=customer)), customer_id=name(customer), hospital_id="bench",
                    hospital_name="Bench hospital", time_zone="Asia/Seoul",
                    date=str(self._decided.date() + timedelta(days=30)),
                    decide_time=self._decided,  # type: ignore[arg-type]
                ),
                dose=vaccination_pb2.Dose(
                    lot_id=str(uuid.UUID(int=1)), lot_number=str(self.published[customer]), vaccine_code="207",
                    manufacturer="MOD", production_date=str(self._decided.date()),
                    expiry_date=str(self._decided.date() + timedelta(days=300)),
                ),
                quantity=1,
                version=self.versions[customer],
            )  # fmt: skip
            rows.append(Outgoing.of(event.appointment.reservation_id, now, event))
        await self._bus.publish(rows)

    async def change(self, seconds: float, among: Sequence[int]) -> None:
        """Publishes so many changes a second, of random customers, whatever has become of earlier ones."""
        loop = asyncio.get_running_loop()
        begin, done = loop.time(), 0
        while done < seconds * self.rate:
            due = min(int((loop.time() - begin) * self.rate) + 1 - done, BATCH)
            if due > 0:
                await self.publish(
                    random.sample(among, due)
                )  # each once in a batch, as in an outbox that is not behind
                done += due
            await asyncio.sleep(begin + done / self.rate - loop.time())

    async def stock(self) -> None:
        """Everybody has a booking, and mypage has all of them."""
        for first in range(0, len(self.customers), BATCH):
            await self.publish(self.customers[first : first + BATCH])
        await self.until(lambda: self.database.fetchval("SELECT count(*) FROM my_reservations"), len(self.customers))

    async def until(self, what: Callable[[], Coroutine[Any, Any, int]], wanted: int) -> float:
        """Waits until there are so many; returns the seconds that it took."""
        begin = time.monotonic()
        while (found := await what()) < wanted:
            if time.monotonic() - begin > PATIENCE:
                raise MeshError(f"{found} of {wanted} after {PATIENCE} s; watches ended with {dict(self.ends)}")
            await asyncio.sleep(0.1)
        return time.monotonic() - begin

    async def ask(self, command: str, customers: Sequence[int] = ()) -> list[Any]:
        """The answers of the processes of watchers."""

        def one(crowd: Connection) -> Any:
            crowd.send((command, customers))
            return crowd.recv()

        return list(await asyncio.gather(*(asyncio.to_thread(one, crowd) for crowd in self._crowds)))

    async def all_open(self) -> float:
        """Starts the watchers; returns the seconds until everybody watches."""
        begin = time.monotonic()
        bounds = [len(self.customers) * i // PROCESSES for i in range(PROCESSES + 1)]
        spawn = multiprocessing.get_context("spawn")
        for first, end in pairwise(bounds):
            ours, theirs = spawn.Pipe()
            arguments = (theirs, self.mesh.home.path, self.mesh.gateway, self.customers[first:end])
            spawn.Process(target=crowd, args=arguments, daemon=True).start()
            theirs.close()
            self._crowds.append(ours)
        await self.all_live()
        return time.monotonic() - begin

    async def all_live(self) -> float:
        """Waits until everybody watches; returns the seconds that it took."""

        async def live() -> int:
            return sum(number for number, _ in await self.tell_live())

        return await self.until(live, len(self.customers))

    async def tell_live(self) -> list[tuple[int, Counter[str]]]:
        """How many watch in each process; how watches have ended is added up."""
        found = await self.ask("live")
        self.ends += sum((ends for _, ends in found), Counter[str]())
        return found

    async def delays(self) -> Json:
        """From publishing and from the commit until the watcher had it, of all that was seen since the last time."""
        samples: list[Sample] = [sample for answer in await self.ask("seen") for sample in answer]
        since = {"published": list[float](), "commit": list[float]()}
        for customer, published, seen in samples:
            commits = self.commits[name(customer)]
            since["published"].append((seen - published) / 1e6)
            if (i := bisect_left(commits, published)) < len(commits):
                since["commit"].append(max(0.0, (seen - commits[i]) / 1e6))
        return {"seen": len(samples)} | {kind: spread(times) for kind, times in since.items()}

    async def phase(self, doing: Callable[[], Coroutine[Any, Any, Any]]) -> Json:
        """What it costs to do something: cores kept busy, the most memory, and what those notice who only read."""
        await self.ask("seen")
        self.commits.clear()
        reads, most = Times(), dict[str, float]()
        token = identity.token(self.mesh.home.path, subject=name(0), roles=["customer"])
        metadata = [("authorization", f"Bearer {token}")]

        async def look() -> None:
            for component, mb in (await asyncio.to_thread(memory, self.mesh)).items():
                most[component] = max(most.get(component, 0.0), mb)

        async with grpc.aio.insecure_channel(self.mesh.gateway, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = mypage_service_pb2_grpc.MypageServiceStub(channel)

            async def read() -> None:
                request = mypage_service_pb2.ListMyReservationsRequest()
                await reads.call(lambda: stub.ListMyReservations(request, metadata=metadata, timeout=10))

            before, begin = cpu(self.mesh), time.monotonic()
            meanwhile = [asyncio.create_task(regularly(READS, read)), asyncio.create_task(regularly(0.5, look))]
            try:
                result = await doing()
            finally:
                seconds = time.monotonic() - begin
                for task in meanwhile:
                    task.cancel()
                await asyncio.gather(*meanwhile, return_exceptions=True)
        after = cpu(self.mesh)
        # A replica that was started meanwhile counts from zero.
        used = {n: after[n] - before[n] if after[n] > before[n] else after[n] for n in SHOWN}
        return {
            "seconds": seconds, "result": result, "cores": {n: used[n] / seconds for n in SHOWN}, "memory_mb": most,
            "reads": spread(reads.ms), "reads_failed": reads.failed,
        }  # fmt: skip

    async def changing(self, seconds: float, among: Sequence[int]) -> Json:
        """Changes for some seconds, and what became of them."""
        await self.change(seconds, among)
        await self.until(self.caught_up, len(self.customers))
        return await self.delays()

    async def caught_up(self) -> int:
        """How many watchers show the newest state."""
        shown = {customer: new for answer in await self.ask("shown") for customer, (new, _) in answer.items()}
        return sum(shown[customer] >= self.published[customer] for customer in self.customers)

    async def slow(self, count: int, seconds: float) -> Json:
        """These many stop to read, while all changes are theirs; then they read on."""
        slow = random.sample(self.customers, count)
        read = {c: n for answer in await self.ask("shown") for c, (_, n) in answer.items()}
        await self.ask("pause", slow)
        await self.change(seconds, slow)
        await asyncio.sleep(SETTLE)
        held = memory(self.mesh)
        await self.ask("read_on")
        took = await self.until(self.caught_up, len(self.customers))
        read_after = {c: n for answer in await self.ask("shown") for c, (_, n) in answer.items()}
        most = max(read_after[c] - read[c] for c in slow)
        return {"changes": round(seconds * self.rate), "held_mb": held, "newest_after": took, "most_messages": most}

    async def taken_back(self) -> int:
        """Whether Envoy calls every replica again. It had ejected the one that was away, for want of a kubelet."""
        url = f"http://{self.mesh.home.address('envoy-admin')}/clusters"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        hosts = await asyncio.to_thread(lambda: direct.open(url, timeout=5).read().decode())
        return "failed_outlier_check" not in hosts

    async def restart(self, replica: str) -> Json:
        """Ends a replica, starts it again, and waits until all of its watchers are back; changes go on."""
        self.ends = Counter[str]()
        changing = asyncio.create_task(self.change(PATIENCE, self.customers))
        try:
            begin = time.monotonic()
            await asyncio.to_thread(self.mesh.stop, replica)
            await self.all_live()
            back = time.monotonic() - begin
            await asyncio.to_thread(self.mesh.start, replica)
        finally:
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)
        await self.until(self.caught_up, len(self.customers))
        await self.until(self.taken_back, 1)
        await self.tell_live()
        return {"back": back, "ends": dict(self.ends)} | await self.delays()


async def run(study: Study, arguments: argparse.Namespace, say: Callable[[str], None]) -> Json:
    """The whole study; returns what is written to watches.json."""
    say("stocking")
    await study.stock()
    await asyncio.sleep(SETTLE)
    before = memory(study.mesh)
    say(f"opening {arguments.watches} watches")
    opening = await study.phase(study.all_open)
    await asyncio.sleep(SETTLE)
    idle = memory(study.mesh)
    say(f"{arguments.rate} changes a second")
    changes = await study.phase(lambda: study.changing(arguments.seconds, study.customers))
    after = memory(study.mesh)
    say(f"{arguments.slow} watchers do not read")
    slow = await study.phase(lambda: study.slow(arguments.slow, arguments.slow_seconds))
    restarts = []
    for replica in REPLICAS:
        say(f"restarting {replica}")
        restarts.append(await study.phase(lambda replica=replica: study.restart(replica)))  # type: ignore[misc]
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "arguments": vars(arguments),
        "memory_mb": {"before": before, "idle": idle, "after": after, "end": memory(study.mesh)},
        "opening": opening,
        "changes": changes,
        "slow": slow,
        "restarts": restarts,
    }


@asynccontextmanager
async def studying(mesh: Mesh, arguments: argparse.Namespace) -> Any:
    """The study, with what it needs."""
    user, password = mesh.stores.nats_login("vaccinemgmt")
    bus = Bus(mesh.stores.nats_address, user, password, "bench", 1)
    await bus.connect()
    database = await asyncpg.connect(mesh.stores.postgres_url, database="mypage")
    listening = await asyncpg.connect(mesh.stores.postgres_url, database="mypage")
    study = Study(mesh, arguments, database, bus)
    try:
        await listening.add_listener("my_reservations", study.heard)
        yield study
    finally:
        await listening.close()
        await database.close()
        await bus.close()


def per_watch(result: Json, component: Sequence[str]) -> float:
    """KiB that an idle watch costs these components together."""
    memory_mb = result["memory_mb"]
    grown = sum(memory_mb["idle"][c] - memory_mb["before"][c] for c in component)
    return float(grown * 1e6 / 1024 / result["arguments"]["watches"])


def table(result: Json) -> str:
    """The result as Markdown."""
    arguments, mb = result["arguments"], result["memory_mb"]
    changes, slow, restarts = result["changes"], result["slow"], result["restarts"]

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [
        f"{arguments['watches']} watches over two replicas of mypage, {arguments['rate']} changes a second; "
        f"{result['cores']} cores, which the watchers share, load average {result['load_average']:.1f}. In ms.\n",
        row("", "changes seen", "commit to watcher p50", "p99", "max", "published to watcher p50", "p99", "max",
            "MyPage read p50", "p99", "failed", *(f"{c}, cores" for c in SHOWN)),
        "|---|" + "--:|" * (10 + len(SHOWN)),
    ]  # fmt: skip
    phases = [("opening", result["opening"]), ("changes", changes), (f"{arguments['slow']} do not read", slow)]
    for what, phase in [*phases, *((f"{r} restarts", p) for r, p in zip(REPLICAS, restarts, strict=True))]:
        found = phase["result"] if isinstance(phase["result"], dict) and "seen" in phase["result"] else None
        delays = [f"{found[k][p]:.0f}" for k in ("commit", "published") for p in ("p50", "p99", "max")] if found else []
        reads = [f"{phase['reads']['p50']:.0f}", f"{phase['reads']['p99']:.0f}", f"{phase['reads_failed']}"]
        busy = [f"{phase['cores'].get(c, 0.0):.2f}" for c in SHOWN]
        lines.append(row(what, f"{found['seen']}" if found else "", *(delays or [""] * 6), *reads, *busy))
    lines += [
        "",
        row("MB (PSS)", *SHOWN),
        "|---|" + "--:|" * len(SHOWN),
        *(
            row(what, *(f"{found.get(c, 0.0):.0f}" for c in SHOWN))
            for what, found in (
                ("without watches", mb["before"]), ("all idle", mb["idle"]), ("most, in changes", changes["memory_mb"]),
                ("after the changes", mb["after"]), ("before the slow read on", slow["result"]["held_mb"]),
                ("most, in the restarts", {c: max(r["memory_mb"].get(c, 0.0) for r in restarts) for c in SHOWN}),
                ("in the end", mb["end"]),
            )
        ),
        "",
        f"- An idle watch costs mypage {per_watch(result, REPLICAS):.1f} KiB, and Envoy "
        f"{per_watch(result, ['envoy']):.1f} KiB with its part of a connection. All were open within "
        f"{result['opening']['result']:.1f} s.",
        f"- {slow['result']['changes']} changes of {arguments['slow']} watchers who did not read: "
        f"{slow['result']['newest_after']:.1f} s after they read on all showed the newest state, after at most "
        f"{slow['result']['most_messages']} messages.",
        *(
            f"- {replica} restarted: all watched again {r['result']['back']:.1f} s after it was told to stop; watches "
            f"ended with {', '.join(f'{n} {code}' for code, n in r['result']['ends'].items()) or 'nothing'}."
            for replica, r in zip(REPLICAS, restarts, strict=True)
        ),
    ]  # fmt: skip
    return "\n".join(lines)


async def measure(mesh: Mesh, arguments: argparse.Namespace, say: Callable[[str], None]) -> Json:
    """Runs the study."""
    async with studying(mesh, arguments) as study:
        return await run(study, arguments, say)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser("watches", description="Opens thousands of watches, and measures them.")
    parser.add_argument("--watches", type=int, default=5000, help="of as many customers (5000)")
    parser.add_argument("--rate", type=int, default=200, help="changes a second (200)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of changes (30)")
    parser.add_argument("--slow", type=int, default=500, help="watchers that stop reading (500)")
    parser.add_argument("--slow-seconds", type=float, default=20.0, help="for so long (20)")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="watches-") as folder:
        mesh = Mesh(Path(folder) / "mesh", BASE_PORT, replicas=2)

        def work(say: Callable[[str], None]) -> Json:
            mesh.up(only=("postgres", "nats", *REPLICAS, "envoy"))
            return asyncio.run(measure(mesh, arguments, say))

        result = in_meshes(console, [mesh], work)
    keep("watches", result, table(result), console)
    console.print("written to bench/results/watches.{md,json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
