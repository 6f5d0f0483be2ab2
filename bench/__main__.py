"""Measures how fast bookings are: `python -m bench`, on a mesh of its own in a temporary folder.

Two paths take turns under the same load: the real one (gateway, reservation, Envoy, approval, their stores), and the
same two hops with handlers that do nothing. Because they take turns, a slow phase of the machine affects both, so the
ratio of a pair says more than the figures. Before the other path's turn, everything that the load has set off is
completed. All processes share the machine's cores, including the load generator. Times are in milliseconds.

With `--against REV` the real path of another revision takes turns too, with the same packages and the same stores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from asyncio.subprocess import PIPE, STDOUT
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

from mesh import ROOT
from mesh.contracts.generation import IMAGE
from mesh.machine import Mesh, identity
from mesh.machine.home import SERVICES
from mesh.machine.processes import MeshError
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2, hospital_service_pb2_grpc
from vaccination.mypage.v1 import mypage_service_pb2, mypage_service_pb2_grpc
from vaccination.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccinemgmt_service_pb2, vaccinemgmt_service_pb2_grpc

Json = dict[str, Any]
# These are below the range from which the kernel takes ports for outgoing connections, because the load opens many.
BASE_PORT, NULL_BASE_PORT, OTHER_BASE_PORT = 14000, 14100, 14200
SLICE = 15.0  # seconds of one turn
IDLE = 10.0  # seconds of sampling without load
SAMPLES = 5.0  # bookings per second that are followed to COMPLETED: too few to add to the load
PATIENCE = 120.0  # seconds within which everything has to be completed
HOSPITALS = [f"bench-{i:02}" for i in range(20)]
DAYS = [date.today() + timedelta(days=2 + i) for i in range(30)]
PLENTY = 1_000_000  # places on a day, doses in a lot: nobody is turned away
COMPLETED = reservation_pb2.RESERVATION_STATUS_COMPLETED


@dataclass(frozen=True)
class Turn:
    """The result of one turn."""

    per_second: float
    ms: dict[str, float]  # p50, p90, p99, max
    answers: int
    errors: dict[str, int]
    cpu: dict[str, float]  # seconds by component, from the first request until all is completed
    foreign: float  # cores that other processes kept busy meanwhile: the noise
    waiting: int = 0  # events on their way when the load ended
    drain: float = 0.0  # seconds from then until all was completed
    completed: Sequence[float | None] = ()  # ms from request to COMPLETED of each booking followed; None: it failed


def null_mesh(home: Path, real: Mesh) -> Mesh:
    """A mesh of Envoy, with the real mesh's configuration and keys, and of the handlers that do nothing."""
    home.mkdir()
    (home / "keys").symlink_to(real.home.path / "keys")
    mesh = Mesh(home, NULL_BASE_PORT)
    for name in ("reservation", "approval"):
        command: list[str | Path] = [sys.executable, "-m", "bench.null", name]
        mesh.components[name] = replace(
            mesh.components[name], needs=tuple, check=lambda: None, prepare=lambda: None, command=command.copy
        )
    return mesh


@contextlib.contextmanager
def revision(name: str, folder: Path) -> Iterator[Mesh]:
    """A mesh of another revision's code, which is up. Its home has to be laid out as this revision's is."""
    checkout, home = folder / "checkout", folder / "other"
    subprocess.run(["git", "worktree", "add", "--detach", checkout, name], cwd=ROOT, check=True, capture_output=True)

    def its_own(*command: str) -> None:
        done = subprocess.run([sys.executable, "-m", *command], cwd=checkout, capture_output=True, text=True)
        if done.returncode:
            raise MeshError(f"{name}: {' '.join(command)}: {done.stderr or done.stdout}")

    mesh = ["mesh", "--home", str(home), "--base-port", str(OTHER_BASE_PORT)]
    try:
        its_own("mesh.contracts")
        its_own(*mesh, "up")
        yield Mesh(home, OTHER_BASE_PORT)
    finally:
        if home.exists():
            its_own(*mesh, "down")
        subprocess.run(["git", "worktree", "remove", "--force", checkout], cwd=ROOT, check=True, capture_output=True)


def measured(mesh: Mesh, measure: Callable[[psutil.Process], float]) -> dict[str, float]:
    """The measure of every component, including its child processes."""
    found: dict[str, float] = defaultdict(float)
    for name in mesh.components:
        if running := mesh.processes.find(name):
            with contextlib.suppress(psutil.NoSuchProcess):  # it is about to end
                parent = psutil.Process(running.pid)
                for process in [parent, *parent.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):  # Postgres' helpers come and go
                        found[name] += measure(process)
    return found


def cpu(mesh: Mesh) -> dict[str, float]:
    """CPU seconds that every component has used so far."""
    return measured(mesh, lambda process: sum(process.cpu_times()[:4]))


def memory(mesh: Mesh) -> dict[str, float]:
    """MB in RAM of every component; memory that processes share is divided among them (PSS)."""
    return measured(mesh, lambda process: process.memory_full_info().pss / 1e6)


class Bench:
    """One run against a mesh that is up."""

    def __init__(self, real: Mesh, others: Sequence[Mesh], channel: grpc.aio.Channel, vus: int, folder: Path) -> None:
        self.real, self._others, self.vus, self.folder = real, others, vus, folder
        self.hospital = hospital_service_pb2_grpc.HospitalServiceStub(channel)
        self.vaccinemgmt = vaccinemgmt_service_pb2_grpc.VaccinemgmtServiceStub(channel)
        self.reservation = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        self.mypage = mypage_service_pb2_grpc.MypageServiceStub(channel)
        self._customers = self.approved = 0

    def customers(self, count: int, name: str = "customer") -> list[str]:
        """Tokens of customers who have not called before."""
        self._customers += count
        who = range(self._customers - count, self._customers)
        return [identity.token(self.real.home.path, subject=f"{name}-{i:07}", roles=["customer"]) for i in who]

    async def stock(self) -> None:
        """Hospitals with places and doses for everybody."""
        token = identity.token(self.real.home.path, subject="operator", roles=["operator"])
        metadata = [("authorization", f"Bearer {token}")]
        made, expires = date.today() - timedelta(days=90), date.today() + timedelta(days=300)
        for name in HOSPITALS:
            hospital = hospital_pb2.Hospital(hospital_id=name, name=f"Bench hospital {name}", time_zone="Asia/Seoul")
            await self.hospital.UpsertHospital(
                hospital_service_pb2.UpsertHospitalRequest(hospital=hospital), metadata=metadata
            )
            capacity = hospital_service_pb2.SetDailyCapacityRequest(
                hospital_id=name, first_date=str(DAYS[0]), last_date=str(DAYS[-1]), capacity=PLENTY
            )
            await self.hospital.SetDailyCapacity(capacity, metadata=metadata)
            lots = [
                lot_pb2.Delivery(
                    lot_number=f"{name}-{i}", vaccine_code="207", manufacturer="MOD", quantity=PLENTY,
                    production_date=str(made), expiry_date=str(expires + timedelta(days=i)),
                )
                for i in range(3)
            ]  # fmt: skip
            delivery = vaccinemgmt_service_pb2.RegisterLotsRequest(hospital_id=name, deliveries=lots)
            await self.vaccinemgmt.RegisterLots(delivery, metadata=metadata)

    async def load(
        self, script: str, mesh: Mesh, tokens: list[str], began: Callable[[int], None], **settings: str
    ) -> Json:
        """Runs k6 with a script and returns its result; `began` gets k6's process id when the load begins."""
        file, result = self.folder / "tokens.json", self.folder / "k6.json"
        file.write_text(json.dumps(tokens))
        env = os.environ | {
            "GATEWAY": mesh.gateway, "IMAGE": str(IMAGE), "TOKENS": str(file), "RESULT": str(result),
            "HOSPITALS": ",".join(HOSPITALS), "DAYS": ",".join(map(str, DAYS)),
            "REQUEST_PREFIX": str(uuid.uuid4())[:24],
        } | settings  # fmt: skip
        k6, options = Path(sys.executable).parent / "k6", ["--quiet", "--no-usage-report", "--no-color", "--address="]
        path = Path(__file__).with_name(script)
        process = await asyncio.create_subprocess_exec(k6, "run", *options, path, env=env, stdout=PIPE, stderr=STDOUT)
        assert process.stdout is not None
        try:
            output = await process.stdout.readline()  # the line that setup() prints: the load begins now
            began(process.pid)
            output += await process.stdout.read()
            if await process.wait() or b"level=error" in output:
                raise MeshError(f"k6 ended with {process.returncode}:\n{output.decode()[-2000:]}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        found: Json = json.loads(result.read_text())
        return found

    async def turn(
        self, mesh: Mesh, tokens: list[str], seconds: float, script: str = "load.js", **settings: str
    ) -> Turn:
        """Loads one path. On the real path also follows some bookings, and waits in the end until all are completed.

        `settings` are the script's, and take the place of the usual ones.
        """
        before, begin, real = dict[str, float](), 0.0, mesh is self.real
        following: asyncio.Task[list[float | None]] | None = None

        def began(pid: int) -> None:
            nonlocal before, begin, following
            before, begin = self.used(mesh, pid), time.monotonic()
            following = asyncio.create_task(self.follow(seconds)) if real else None

        settings = {"VUS": str(self.vus), "SECONDS": f"{seconds:g}", "REUSE": "" if real else "1"} | settings
        load = await self.load(script, mesh, tokens, began, **settings)
        if not load["outcomes"].get("OK"):
            raise MeshError(f"nobody was approved: {load['outcomes']}")
        approved, waiting, drain, completed = load["outcomes"].pop("OK"), 0, 0.0, list[float | None]()
        if following is not None:
            self.approved += approved
            waiting, drain = await self.drain()
            completed = await following
        spent, foreign = self.spent(mesh, before, time.monotonic() - begin)
        rate, errors = approved / load["seconds"], load["outcomes"]
        if dropped := load.get("dropped"):
            errors["dropped"] = dropped  # the generator could not send them at their time
        return Turn(rate, load["ms"], approved, errors, spent, foreign, waiting, drain, completed)

    def used(self, mesh: Mesh, running: int | None = None) -> dict[str, float]:
        """CPU seconds so far by component and of the machine; the kernel counts `running` (k6) only at its end."""
        tools, machine = resource.getrusage(resource.RUSAGE_CHILDREN), psutil.cpu_times()
        return cpu(mesh) | {
            "k6": tools.ru_utime + tools.ru_stime + (sum(psutil.Process(running).cpu_times()[:2]) if running else 0),
            "bench": time.process_time(),
            "idle paths": sum(sum(cpu(idle).values()) for idle in (self.real, *self._others) if idle is not mesh),
            "machine": machine.user + machine.nice + machine.system + machine.irq + machine.softirq,
        }

    def spent(self, mesh: Mesh, before: dict[str, float], seconds: float) -> tuple[dict[str, float], float]:
        """CPU seconds by component since `before`, and the number of cores that other processes kept busy."""
        spent = {name: used - before[name] for name, used in self.used(mesh).items()}
        foreign = (spent.pop("machine") - sum(spent.values())) / seconds
        del spent["idle paths"]
        return spent, foreign

    async def follow(self, seconds: float) -> list[float | None]:
        """Makes bookings at a fixed rate and follows each to COMPLETED; the ms that each took, None if it failed."""
        loop, tasks = asyncio.get_running_loop(), []
        begin = loop.time()
        for i, token in enumerate(self.customers(round(seconds * SAMPLES), "followed")):
            await asyncio.sleep(begin + i / SAMPLES - loop.time())
            tasks.append(asyncio.create_task(self._follow(token, HOSPITALS[i % len(HOSPITALS)])))
        return list(await asyncio.gather(*tasks))

    async def _follow(self, token: str, hospital_id: str) -> float | None:
        """The ms from sending CreateReservation until MyPage's stream, opened before, shows COMPLETED."""
        metadata = [("authorization", f"Bearer {token}")]
        watched = mypage_service_pb2.WatchMyReservationsRequest()
        stream = self.mypage.WatchMyReservations(watched, metadata=metadata, timeout=PATIENCE)

        async def completed() -> float | None:
            while isinstance(update := await stream.read(), mypage_service_pb2.WatchMyReservationsResponse):
                if any(r.status == COMPLETED for r in update.reservations):
                    return time.perf_counter()
            return None  # the stream has ended

        request = reservation_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()), hospital_id=hospital_id, date=str(DAYS[0])
        )
        try:
            await stream.read()  # the first message, which has no reservations yet
            begin = time.perf_counter()
            create = self.reservation.CreateReservation(request, metadata=metadata, timeout=15)
            seen, _ = await asyncio.gather(completed(), create)
        except grpc.aio.AioRpcError:
            return None
        finally:
            stream.cancel()
        return None if seen is None else (seen - begin) * 1000

    async def drain(self) -> tuple[int, float]:
        """Waits until every approved booking is COMPLETED on MyPage and no event is on its way; returns how many were
        at first, and the seconds it took."""

        def waiting() -> int:
            return sum(self.real.stores.nats.pending("VACCINATION", name) for name in SERVICES)

        begin = time.monotonic()
        left = first = await asyncio.to_thread(waiting)
        database = await asyncpg.connect(self.real.stores.postgres_url, database="mypage")
        try:
            count = "SELECT count(*) FROM my_reservations WHERE status = $1 AND customer_id LIKE 'customer-%'"
            # Both conditions are needed, because no consumer counts an event that is still in an outbox.
            while left or await database.fetchval(count, COMPLETED) < self.approved:
                if time.monotonic() - begin > PATIENCE:
                    raise MeshError(f"not all bookings were completed within {PATIENCE} s; {left} events are waiting")
                await asyncio.sleep(0.05)
                left = await asyncio.to_thread(waiting)
        finally:
            await database.close()
        return first, time.monotonic() - begin


def channel_to(mesh: Mesh) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_http_proxy", 0)])


async def run(
    real: Mesh, null: Mesh, other: Mesh | None, arguments: argparse.Namespace, folder: Path, say: Callable[[str], None]
) -> Json:
    """The whole benchmark; returns what is written to latest.json."""
    pairs = max(1, round(arguments.seconds / SLICE))
    seconds = arguments.seconds / pairs
    async with contextlib.AsyncExitStack() as channels:
        meshes = [real, *([other] if other else [])]
        benches = []
        for mesh in meshes:
            rest = [idle for idle in (*meshes, null) if idle is not mesh]
            channel = await channels.enter_async_context(channel_to(mesh))
            benches.append(Bench(mesh, rest, channel, arguments.vus, folder))
        bench = benches[0]
        say("stocking hospitals")
        for each in benches:
            await each.stock()
        before = memory(real)
        say("warming up")
        for each in reversed(benches):
            tokens = each.customers(round(2000 * arguments.warmup))
            warm = await each.turn(each.real, tokens, arguments.warmup)
        await bench.turn(null, tokens, arguments.warmup)
        say("following bookings without load")
        idle = await bench.follow(IDLE)
        await bench.drain()
        turns, against = [], []
        for i in range(pairs):
            say(f"pair {i + 1} of {pairs}")
            count = round(3 * max(warm.per_second, 100) * seconds)  # it may be faster later
            tokens = bench.customers(count)
            turns.append((await bench.turn(real, tokens, seconds), await bench.turn(null, tokens, seconds)))
            against += [await each.turn(each.real, each.customers(count), seconds) for each in benches[1:]]
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "arguments": vars(arguments),
        "pairs": [{"real": asdict(a), "null": asdict(b), "ratio": a.per_second / b.per_second} for a, b in turns],
        "against": [asdict(turn) for turn in against],
        "idle": idle,
        "memory_mb": {"before": before, "after": memory(real)},
    }


def show(result: Json, console: Console) -> None:
    """Tables for people."""

    def table(title: str, *columns: str) -> Table:
        console.print(f"\n[bold]{title}[/]")
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for i, column in enumerate(columns):
            made.add_column(column, justify="right" if i else "left")
        return made

    pairs = result["pairs"]
    names = ("p50", "p90", "p99", "max")
    load = table("CreateReservation through the gateway, median of the pairs", "", "per s", *names, "answers", "errors")
    medians = {}
    for kind in ("real", "null"):
        turns = [pair[kind] for pair in pairs]
        medians[kind] = [median(t["per_second"] for t in turns), *(median(t["ms"][n] for t in turns) for n in names)]
        errors = sum((Counter(t["errors"]) for t in turns), Counter[str]())
        told = ", ".join(f"{n} {code}" for code, n in errors.items()) or "0"
        load.add_row(kind, *(f"{f:.1f}" for f in medians[kind]), str(sum(t["answers"] for t in turns)), told)
    ratios = [median(pair["ratio"] for pair in pairs), *(a / b for a, b in zip(*medians.values(), strict=True))]
    load.add_row("real/null", f"{ratios[0]:.3f}", *(f"{ratio:.1f}" for ratio in ratios[2:]), style="bold")
    console.print(load)
    each = table(
        "Each pair: real / null", "", "per s", "ratio", "p50", "others' cores", "events waiting", "drained in s"
    )
    for i, pair in enumerate(pairs, 1):
        r, n = pair["real"], pair["null"]
        both = [f"{r['per_second']:.0f} / {n['per_second']:.0f}", f"{pair['ratio']:.3f}"]
        both += [f"{r['ms']['p50']:.0f} / {n['ms']['p50']:.0f}", f"{r['foreign']:.2f} / {n['foreign']:.2f}"]
        each.add_row(str(i), *both, str(r["waiting"]), f"{r['drain']:.1f}")
    console.print(each)

    waits = table("From request to COMPLETED on MyPage", "", "p50", "p95", "p99", "max", "bookings", "failed")
    samples = {"idle": result["idle"], "under load": [s for pair in pairs for s in pair["real"]["completed"]]}
    for name, times in samples.items():
        good = [t for t in times if t is not None]
        cuts = statistics.quantiles(good if len(good) > 1 else [0.0, 0.0], n=100, method="inclusive")
        figures = [cuts[49], cuts[94], cuts[98], max(good, default=0.0)]
        waits.add_row(name, *(f"{f:.1f}" for f in figures), str(len(good)), str(len(times) - len(good)))
    console.print(waits)

    parts = table(
        "CPU ms a booking, with all that it sets off, and MB before and after", "", "real", "null", "MB", "MB"
    )
    spent = {
        k: {n: sum(p[k]["cpu"].get(n, 0) for p in pairs) for n in pairs[0]["real"]["cpu"]} for k in ("real", "null")
    }
    per = {kind: 1000 / sum(p[kind]["answers"] for p in pairs) for kind in spent}
    for name in pairs[0]["real"]["cpu"]:
        cells = [f"{spent[kind][name] * per[kind]:.2f}" if spent[kind][name] else "" for kind in spent]
        parts.add_row(name, *cells, *(f"{m[name]:.0f}" if name in m else "" for m in result["memory_mb"].values()))
    all_real, all_null = (sum(spent[kind].values()) * per[kind] for kind in spent)
    parts.add_row("all", f"{all_real:.2f}", f"{all_null:.2f}", style="bold")
    console.print(parts)
    console.print(
        f"[bold]real/null: {all_real / all_null:.1f} times[/] the CPU, which others on the machine disturb least"
    )
    if result["against"]:
        show_against(
            result, table(f"Against {result['arguments']['against']}", "", "per s", "ratio", "CPU ms", "ratio"), console
        )
    console.print(
        f"\n"
        f"{result['arguments']['vus']} customers at a time; {result['cores']} cores, load average "
        f"{result['load_average']:.1f}, Python {result['python']}, Linux {result['kernel']}",
        soft_wrap=True,
    )


def show_against(result: Json, rows: Table, console: Console) -> None:
    """Each pair of turns of this revision and of the other one, which came right after it."""
    ratios = []
    for i, (pair, then) in enumerate(zip(result["pairs"], result["against"], strict=True), 1):
        now = pair["real"]
        costs = [1000 * sum(turn["cpu"].values()) / turn["answers"] for turn in (now, then)]
        ratios.append((now["per_second"] / then["per_second"], costs[0] / costs[1]))
        rates, ratio = f"{now['per_second']:.0f} / {then['per_second']:.0f}", [f"{r:.3f}" for r in ratios[-1]]
        rows.add_row(str(i), rates, ratio[0], f"{costs[0]:.2f} / {costs[1]:.2f}", ratio[1])
    rows.add_row("median", "", *(f"{median(column):.3f}" for column in zip(*ratios, strict=True)), style="bold")
    console.print(rows)


def in_meshes(console: Console, meshes: Sequence[Mesh], work: Callable[[Callable[[str], None]], Json]) -> Json:
    """Returns what `work` has found, and brings the meshes down. `work` starts them; it gets a way to say what it does.

    Ends the program after an error of a mesh (exit code 1) and after an interruption (130).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with console.status("starting a mesh") as status:
            return work(status.update)
    except MeshError as error:
        console.print(f"[bold red]error:[/] {error}", soft_wrap=True, markup=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on nothing keeps it from cleaning up
        for mesh in meshes:
            mesh.down()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser("bench", description="Measures reservations through the gateway.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on each of the two paths (60)")
    parser.add_argument("--vus", type=int, default=64, help="customers at a time (64)")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds of load before (5)")
    parser.add_argument("--against", metavar="REV", help="a revision of this repository that takes turns with this one")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        real = Mesh(folder / "real", BASE_PORT)
        null = null_mesh(folder / "null", real)

        def work(say: Callable[[str], None]) -> Json:
            real.up()
            null.up(only=("reservation", "approval", "envoy"))
            with revision(arguments.against, folder) if arguments.against else contextlib.nullcontext() as other:
                return asyncio.run(run(real, null, other, arguments, folder, say))

        result = in_meshes(console, (null, real), work)
    file = ROOT / "bench" / "results" / "latest.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1))
    show(result, console)
    console.print(f"written to {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
