"""Shows what happens when many more come than can be served: `python -m bench.overload`, on a mesh of its own.

An open model offers multiples of the capacity. After the last and largest of them it offers half the capacity, to see
how soon the mesh has recovered. Meanwhile the study reads MyPage and checks every service's health, as a kubelet would.
The capacity is what a closed model gets through. It is measured again before each step, so that a slow phase of the
machine affects both.

The breaker before reservation is set to what the mesh's cores can do: it admits as many bookings at once as are
answered in a fraction of a second. An operator sets it in the same way, from a figure like the one in the first column.

The load generator and Envoy share a core, and the services and stores have all the others, because a gateway in a
cluster has resources of its own. So the CPU time that refusals cost is not taken from the customers who are served.
With `--one-host` Envoy shares the services' cores. Times are in milliseconds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.markdown import Markdown

from bench.__main__ import DAYS, HOSPITALS, Bench, in_meshes, memory
from mesh import ROOT
from mesh.machine import Mesh
from mesh.machine.home import SERVICES
from mesh.machine.processes import MeshError
from vaccination.mypage.v1 import mypage_service_pb2
from vaccination.reservation.v1 import reservation_service_pb2

Json = dict[str, Any]
BASE_PORT = 14200
MULTIPLES = (0.5, 1.0, 2.0, 5.0, 10.0)
# Both are RESOURCE_EXHAUSTED with RetryInfo: from reservation's fallback, and from whichever component is overloaded.
REFUSED = ("REFUSED_BUSY", "REFUSED_OVERLOADED")
# Calls that the generator can have in flight. A served call takes up to a second, a refused one milliseconds.
FLIGHT = 400
READS = 5.0  # of MyPage, a second
PROBES = 2.0  # of each service's health, a second
PROBE_TIMEOUT = 1.0  # the kubelet's default
AFTER = 12.0  # seconds of load after the largest multiple
WINDOW = 0.5  # seconds of the windows that are judged normal or not


@dataclass(frozen=True)
class Step:
    """The result of one multiple of the capacity."""

    multiple: float
    capacity: float  # bookings a second, measured just before
    offered: float  # bookings a second that were really sent
    dropped: int  # not sent, because the generator had too many calls in flight
    goodput: float  # approved a second
    refused: int
    outcomes: dict[str, int]
    served_ms: dict[str, float]
    refused_ms: dict[str, float]
    retry_after: dict[str, float]  # seconds
    reads: int
    reads_failed: int
    reads_ms: dict[str, float]
    probes: int
    probes_failed: int
    probes_ms: dict[str, float]
    cpu: dict[str, float]  # cores kept busy by component
    foreign: float  # cores kept busy by other processes: the noise
    memory_mb: float  # of all services, afterwards


def spread(times: list[float]) -> dict[str, float]:
    """p50, p90, p99 and max; zeros if there are no times."""
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else [*times, 0.0][:1] * 99
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(times, default=0.0)}


class Times:
    """How long calls took, and how many failed."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self.failed = 0

    async def call(self, call: Callable[[], Any]) -> None:
        """Makes one call and records it."""
        begin = time.perf_counter()
        try:
            answer = await call()
            self.failed += isinstance(answer, health_pb2.HealthCheckResponse) and answer.status != 1
        except grpc.aio.AioRpcError:
            self.failed += 1
        self.ms.append((time.perf_counter() - begin) * 1000)


async def regularly(rate: float, act: Callable[[], Any]) -> None:
    """Begins `act` `rate` times a second, whether or not earlier ones have ended. When cancelled, waits for them."""
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    begin, i = loop.time(), 0
    try:
        while True:
            task = asyncio.create_task(act())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            i += 1
            await asyncio.sleep(max(0.0, begin + i / rate - loop.time()))
    finally:
        if tasks:
            await asyncio.wait(tasks)


class Study(Bench):
    """One run against a mesh that is up."""

    async def step(self, multiple: float, seconds: float) -> Step:
        """Measures the capacity and then offers a multiple of it."""
        turn = await self.turn(self.real, self.customers(round(1000 * seconds / 2)), seconds / 2)
        if turn.errors:  # in a closed model the refused come back at once, so the figure would measure nothing
            raise MeshError(f"{self.vus} at a time are too many to measure the capacity: {turn.errors}; see --vus")
        capacity = turn.per_second
        rate = max(1, round(multiple * capacity))
        tokens = self.customers(round(rate * seconds * 1.05) + 10)
        reads, probes, meanwhile = Times(), Times(), list[asyncio.Task[None]]()
        before, begin, loading = dict[str, float](), time.monotonic(), asyncio.Event()
        reader = [("authorization", f"Bearer {self.customers(1, 'reader')[0]}")]
        channels = [grpc.aio.insecure_channel(self.real.home.address(service)) for service in SERVICES]
        health = [health_pb2_grpc.HealthStub(channel) for channel in channels]

        async def read() -> None:
            request = mypage_service_pb2.ListMyReservationsRequest()
            await reads.call(lambda: self.mypage.ListMyReservations(request, metadata=reader, timeout=5))

        def probing(stub: Any, service: str) -> Callable[[], Any]:
            request = health_pb2.HealthCheckRequest(service=service)
            return lambda: probes.call(lambda: stub.Check(request, timeout=PROBE_TIMEOUT))

        def began(pid: int) -> None:
            nonlocal before, begin
            before, begin = self.used(self.real, pid), time.monotonic()
            loading.set()
            meanwhile.append(asyncio.create_task(regularly(READS, read)))
            for stub, service in zip(health, SERVICES, strict=True):
                meanwhile.append(asyncio.create_task(regularly(PROBES, probing(stub, service))))

        settings = {"RATE": str(rate), "SECONDS": f"{seconds:g}", "VUS": str(FLIGHT)}
        load = asyncio.create_task(self.load("overload.js", self.real, tokens, began, **settings))
        started = asyncio.create_task(loading.wait())
        await asyncio.wait([load, started], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([load], timeout=begin + seconds - time.monotonic())
        wake = asyncio.create_task(self.wake(capacity / 2)) if multiple == MULTIPLES[-1] else None
        for task in meanwhile:
            task.cancel()
        await asyncio.gather(*meanwhile, return_exceptions=True)
        found = await load
        spent, foreign = self.spent(self.real, before, time.monotonic() - begin)
        self.after = await wake if wake else []
        for channel in channels:
            await channel.close()
        outcomes: dict[str, int] = {name: n for name, n in found["outcomes"].items() if n}
        self.approved += outcomes.get("OK", 0)
        return Step(
            multiple=multiple,
            capacity=capacity,
            offered=sum(outcomes.values()) / seconds,
            dropped=found["dropped"],
            goodput=outcomes.get("OK", 0) / seconds,
            refused=sum(outcomes.get(name, 0) for name in REFUSED),
            outcomes=outcomes,
            served_ms=found["served"],
            refused_ms=found["refused"],
            retry_after=found["retry"],
            reads=len(reads.ms),
            reads_failed=reads.failed,
            reads_ms=spread(reads.ms),
            probes=len(probes.ms),
            probes_failed=probes.failed,
            probes_ms=spread(probes.ms),
            cpu={name: used / seconds for name, used in spent.items()},
            foreign=foreign,
            memory_mb=sum(mb for name, mb in memory(self.real).items() if name in SERVICES),
        )

    async def wake(self, rate: float) -> list[tuple[float, float | None]]:
        """Offers `rate` bookings a second after the largest multiple. Returns for each when it began, in seconds from
        now, and how many ms it took; None: it was not served."""
        calls: list[tuple[float, float | None]] = []
        tokens = iter(self.customers(round(rate * AFTER * 1.1) + 10))
        begin = time.perf_counter()

        async def one() -> None:
            request = reservation_service_pb2.CreateReservationRequest(
                request_id=str(uuid.uuid4()), hospital_id=HOSPITALS[0], date=str(DAYS[0])
            )
            metadata = [("authorization", f"Bearer {next(tokens)}")]
            at = time.perf_counter()
            took: float | None = None
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.reservation.CreateReservation(request, metadata=metadata, timeout=10)
                took = (time.perf_counter() - at) * 1000
                self.approved += 1
            calls.append((at - begin, took))

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(regularly(rate, one), AFTER)
        return sorted(calls)


def recovery(calls: list[tuple[float, float | None]], normal: float) -> float:
    """Seconds until all later windows are normal: everybody is served, and the median is within `normal` ms."""
    windows: dict[int, list[float | None]] = {}
    for at, took in calls:
        windows.setdefault(int(at / WINDOW), []).append(took)
    bad = [i for i, took in windows.items() if None in took or median(t or 0.0 for t in took) > normal]
    return (max(bad, default=-1) + 1) * WINDOW if windows else AFTER


async def run(mesh: Mesh, arguments: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Json:
    """The whole study; returns what is written to overload.json."""
    async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_http_proxy", 0)]) as channel:
        nobody = Mesh(folder / "nobody", BASE_PORT)  # never started: there is no other path here
        study = Study(mesh, [nobody], channel, arguments.vus, folder)
        say("stocking hospitals")
        await study.stock()
        say("warming up")
        await study.turn(mesh, study.customers(20_000), 5.0)
        before = sum(mb for name, mb in memory(mesh).items() if name in SERVICES)
        steps = []
        for multiple in MULTIPLES:
            say(f"{multiple:g} times the capacity")
            steps.append(await study.step(multiple, arguments.seconds))
            await study.drain()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": {
            "mesh": arguments.mesh_cores,
            "envoy": arguments.mesh_cores if arguments.one_host else arguments.load_cores,
            "load": arguments.load_cores,
        },
        "arguments": {"seconds": arguments.seconds, "vus": arguments.vus, "in_flight": arguments.in_flight},
        "memory_before_mb": before,
        "steps": [asdict(step) for step in steps],
        "recovery_seconds": recovery(study.after, 2 * steps[0].served_ms["p99"]),
    }


def goals(result: Json) -> list[tuple[str, str, bool]]:
    """The goals of the study: (the goal, the figure, whether it is reached)."""
    steps = result["steps"]
    one, last = next(s for s in steps if s["multiple"] == 1), steps[-1]
    peak = max(1.0, *(s["goodput"] / s["capacity"] for s in steps))  # of the capacity
    others = sum((Counter(s["outcomes"]) for s in steps), Counter[str]())
    for expected in ("OK", *REFUSED):
        others.pop(expected, None)
    kept, slower = last["goodput"] / last["capacity"] / peak, last["served_ms"]["p99"] / one["served_ms"]["p99"]
    turned_away = max(s["refused_ms"]["p50"] for s in steps)
    failed = {kind: sum(s[f"{kind}_failed"] for s in steps) for kind in ("reads", "probes")}
    asked = {kind: sum(s[kind] for s in steps) for kind in failed}
    grown, after = last["memory_mb"] / result["memory_before_mb"], result["recovery_seconds"]
    told = ", ".join(f"{n} {code}" for code, n in others.items()) or "none"
    return [
        ("goodput at 10x, of the peak, at least 90 %", f"{kept:.0%} of {peak * last['capacity']:.0f}/s", kept >= 0.9),
        ("p99 of what is served at 10x, at most 2 times that at 1x", f"{slower:.1f} times", slower <= 2),
        ("median time to be refused, at most 100 ms", f"{turned_away:.0f} ms", turned_away <= 100),
        ("answers other than yes and RESOURCE_EXHAUSTED with RetryInfo", told, not others),
        ("reads of MyPage that failed", f"{failed['reads']} of {asked['reads']}", not failed["reads"]),
        ("health checks that failed", f"{failed['probes']} of {asked['probes']}", not failed["probes"]),
        ("memory of the services after, of before, at most 1.2 times", f"{grown:.2f} times", grown <= 1.2),
        ("recovery after 10x, at most 5 s", f"{after:.1f} s" if after < AFTER else "none", after <= 5),
    ]


def table(result: Json) -> str:
    """The result as Markdown."""
    columns = (
        "offered", "of", "per s", "dropped", "served/s", "refused/s", "other", "p50", "p99", "refused p50", "p99",
        "retry after s", "MyPage p99", "failed", "health p99", "failed", "MB", "Envoy", "reservation", "approval", "k6",
        "others",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "--:|" * len(columns)]
    for s in result["steps"]:
        other = {k: n for k, n in s["outcomes"].items() if k not in ("OK", *REFUSED)}
        cells = [
            f"{s['multiple']:g}x", f"{s['capacity']:.0f}", f"{s['offered']:.0f}", f"{s['dropped']}",
            f"{s['goodput']:.0f}", f"{s['refused'] / s['seconds']:.0f}",
            ", ".join(f"{n} {code}" for code, n in other.items()) or "0",
            *(f"{s[kind][p]:.0f}" for kind in ("served_ms", "refused_ms") for p in ("p50", "p99")),
            f"{s['retry_after']['p50']:.1f}",
            *(cell for k in ("reads", "probes") for cell in (f"{s[f'{k}_ms']['p99']:.0f}", f"{s[f'{k}_failed']}")),
            f"{s['memory_mb']:.0f}",
            *(f"{s['cpu'][name]:.2f}" for name in ("envoy", "reservation", "approval", "k6")), f"{s['foreign']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    told = [f"| {goal} | {figure} | {'yes' if reached else '**no**'} |" for goal, figure, reached in goals(result)]
    cores, vus, in_flight = result["cores"], result["arguments"]["vus"], result["arguments"]["in_flight"]
    return "\n".join(
        [
            f"`of` is the capacity, bookings a second with {vus} customers at a time, measured just before the step; "
            f"{in_flight} are let in at once. Times are in ms.\n",
            *lines,
            "",
            "| goal | figure | reached |",
            "|---|--:|---|",
            *told,
            "",
            f"The services and stores had the cores {cores['mesh']}, Envoy {cores['envoy']}, the load generator "
            f"{cores['load']}. The last columns are cores kept busy; `others` are processes that have nothing to do "
            "with this: what they take, the mesh lacks.",
        ]
    )


def plot(result: Json, file: Path) -> None:
    """Plots goodput and latency over the offered load."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = result["steps"]
    x = [s["multiple"] for s in steps]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(x, [s["capacity"] for s in steps], ":", color="grey", label="capacity, just before")
    left.plot(x, [s["goodput"] for s in steps], "o-", label="served")
    left.plot(x, [s["refused"] / s["seconds"] for s in steps], "s--", label="refused, with RetryInfo")
    left.set(xscale="log", yscale="symlog", ylim=(0, None), ylabel="a second", title="What becomes of the crowd")
    for kind, label in (("served_ms", "served"), ("refused_ms", "refused"), ("reads_ms", "MyPage read")):
        for percentile, style in (("p50", "--"), ("p99", "-")):
            right.plot(
                x, [max(s[kind][percentile], 0.5) for s in steps], style, marker="o", label=f"{label} {percentile}"
            )
    right.set(xscale="log", yscale="log", ylabel="ms", title="How long it takes")
    for axes in (left, right):
        axes.set_xlabel("offered load, multiples of the capacity")
        axes.set_xticks(x, [f"{m:g}x" for m in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def beside(mesh: Mesh, cores: list[int]) -> None:
    """Moves Envoy with all its threads to these cores."""
    envoy = mesh.processes.find("envoy")
    assert envoy
    for thread in Path(f"/proc/{envoy.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def keep(name: str, result: Json, text: str, console: Console) -> Path:
    """Writes a result and its tables to bench/results, and shows the tables; returns the files' path without an end."""
    file = ROOT / "bench" / "results" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(result, indent=1))
    file.with_suffix(".md").write_text(text + "\n")
    console.print(Markdown(text), width=220)
    return file


def main() -> int:
    """Returns the exit code: 0 if all goals are reached."""
    parser = argparse.ArgumentParser("overload", description="Offers up to ten times what can be served.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step (15)")
    parser.add_argument("--vus", type=int, default=8, help="customers at a time when the capacity is measured (8)")
    parser.add_argument("--in-flight", type=int, default=9, help="bookings that the gateway lets in at once (9)")
    parser.add_argument("--per-second", type=int, default=150, help="and that it lets in within a second (150)")
    parser.add_argument("--one-host", action="store_true", help="Envoy shares the services' core, not the generator's")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    cores = sorted(os.sched_getaffinity(0))
    arguments.mesh_cores, arguments.load_cores = cores[:-1] or cores, cores[-1:]
    with tempfile.TemporaryDirectory(prefix="overload-") as name:
        crowd = {"CreateReservation": {"inFlight": arguments.in_flight, "perSecond": arguments.per_second}}
        mesh = Mesh(Path(name) / "mesh", BASE_PORT, values={"components": {"reservation": {"crowded": crowd}}})

        def work(say: Callable[[str], None]) -> Json:
            os.sched_setaffinity(0, arguments.mesh_cores)  # what is started inherits it
            mesh.up()
            if not arguments.one_host:
                beside(mesh, arguments.load_cores)
            os.sched_setaffinity(0, arguments.load_cores)
            return asyncio.run(run(mesh, arguments, Path(name), say))

        result = in_meshes(console, [mesh], work)
    for step in result["steps"]:
        step["seconds"] = arguments.seconds
    plot(result, keep("overload", result, table(result), console).with_suffix(".png"))
    console.print("written to bench/results/overload.{md,png,json}")
    return 0 if all(reached for *_, reached in goals(result)) else 1


if __name__ == "__main__":
    sys.exit(main())
