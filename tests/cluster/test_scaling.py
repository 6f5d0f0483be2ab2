"""Load makes replicas, and calm takes them away."""

import asyncio
import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from mesh import ROOT
from tests.e2e.conftest import World

from .conftest import Load, Release

RESULTS = ROOT / "bench" / "results"


async def test_reservation_grows_to_three_replicas_under_load_and_falls_back(
    release: Release, people: World, gateway: str, figures: Callable[[str], None]
) -> None:
    values: dict[str, Any] = {"components": {"reservation": {"replicas": 1, "maxReplicas": 4}}}
    values["autoscaling"] = {"calm": "30s"}
    await asyncio.to_thread(release.upgrade, values)
    samples: list[dict[str, Any]] = []
    load = Load(people, gateway, customers=60)
    begin = time.monotonic()

    async def watch() -> None:
        while True:
            hpa = await asyncio.to_thread(release.get, "hpa", "reservation")
            ready = len(await asyncio.to_thread(release.ready, "reservation"))
            [metric] = hpa["status"].get("currentMetrics") or [{}]
            current = metric.get("containerResource", metric.get("resource", {})).get("current", {})
            samples.append(
                {
                    "seconds": round(time.monotonic() - begin, 1),
                    "calls": load.retries.calls,
                    "cpu_percent_of_request": current.get("averageUtilization"),
                    "desired": hpa["status"].get("desiredReplicas", 0),
                    "ready": ready,
                }
            )
            await asyncio.sleep(2)

    async def reaches(what: str, holds: Callable[[int], bool]) -> float:
        await asyncio.to_thread(release.until, what, lambda: samples and holds(samples[-1]["ready"]))
        return float(samples[-1]["seconds"])

    watching = asyncio.create_task(watch())
    try:
        alone = await reaches("one replica", lambda ready: ready == 1)
        async with load.run(1):
            grown = await reaches("three replicas", lambda ready: ready >= 3)
        calm = time.monotonic() - begin
        fallen = await reaches("one replica again", lambda ready: ready == 1)
    finally:
        watching.cancel()
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "hpa.json").write_text(json.dumps(samples, indent=1))
        _plot(samples)
    await asyncio.to_thread(release.upgrade, {})
    most = max(sample["ready"] for sample in samples)
    figures(
        f"1 replica at {alone:.0f} s, load; 3 ready at {grown:.0f} s, {most} at most; calm from {calm:.0f} s, "
        f"1 replica at {fallen:.0f} s: {load}; bench/results/hpa.json, hpa.png"
    )


def _plot(samples: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    x = [s["seconds"] for s in samples]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 5), layout="constrained")
    above.step(x, [s["ready"] for s in samples], where="post", label="ready")
    above.step(x, [s["desired"] for s in samples], "--", where="post", label="wanted by the autoscaler")
    above.set(ylabel="replicas of reservation")
    below.plot(x, [s["cpu_percent_of_request"] for s in samples], label="CPU, % of what is asked for")
    pairs = list(pairwise(samples))
    below.plot(
        x[1:], [(b["calls"] - a["calls"]) / (b["seconds"] - a["seconds"]) for a, b in pairs], label="calls a second"
    )
    below.set(xlabel="seconds")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(RESULTS / "hpa.png", dpi=130)
    plt.close(figure)
