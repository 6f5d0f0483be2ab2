"""What hangs, dies or goes is replaced by the cluster, and what was promised before holds afterwards."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
import pytest

from mesh.machine.home import SERVICES
from tests.e2e.conftest import Status, World

from .conftest import PATIENCE, Json, Load, Release, is_ready, restarts

Figures = Callable[[str], None]

# By the name of its module: nobody else in the pod has it in a command line.
STOP = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if b"services.SERVICE" in (folder / "cmdline").read_bytes().split(b"\\0"):
        os.kill(int(folder.name), signal.SIGSTOP)
"""
# /dev/shm is memory of whoever writes there, and stays small for each process: so the limit is met by the service, the
# largest process, and not by what fills it.
FILL = "with open('/dev/shm/fill', 'wb') as file: [file.write(bytes(2**20)) for _ in range(60)]"
USED = "cat /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null"  # of cgroup 2, or 1


async def serves_again(people: World) -> float:
    """Seconds until a booking that somebody insists on is COMPLETED on the screen."""
    begin = time.monotonic()
    hospital, day = "", None
    customer = people.customer()
    while True:
        try:
            if not hospital:
                hospital, day = await people.new_hospital(capacity=5, doses=5)
            reservation = await customer.create(hospital, str(day), "6fa459ea-ee8a-4ca4-894e-db77e160355e")
            break
        except grpc.aio.AioRpcError:
            if time.monotonic() - begin > PATIENCE:
                raise
            await asyncio.sleep(0.2)
    while True:
        try:
            await customer.reaches(reservation.reservation_id, Status.RESERVATION_STATUS_COMPLETED, PATIENCE)
            return time.monotonic() - begin
        except grpc.aio.AioRpcError:
            if time.monotonic() - begin > PATIENCE:
                raise
            await asyncio.sleep(0.2)


@contextmanager
def patched(release: Release, component: str, pod: Json, back: Json) -> Iterator[None]:
    """Pods of the component with something else in their template, for a while."""
    for change in (pod, back):
        template = json.dumps({"spec": {"template": {"spec": change}}})
        release.kubectl("patch", f"deployment/{component}", "--patch", template)
        release.rolled_out(f"deployment/{component}")
        release.settled()
        if change is pod:
            try:
                yield
            except BaseException:
                release.kubectl(
                    "patch", f"deployment/{component}", "--patch", json.dumps({"spec": {"template": {"spec": back}}})
                )
                raise


def of(release: Release, name: str) -> Json:
    """A pod that is there."""
    return release.get("pod", name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("service", ["approval", "mypage"])
async def test_a_service_that_hangs_is_restarted_by_its_liveness_probe(
    service: str, release: Release, load: Load, figures: Figures
) -> None:
    # A container's first process cannot be stopped from inside; sharing makes the service another one.
    with patched(release, service, {"shareProcessNamespace": True}, {"shareProcessNamespace": None}):
        name = release.ready(service)[0]
        probe = of(release, name)["spec"]["containers"][0]["livenessProbe"]
        grace = probe.get("terminationGracePeriodSeconds", of(release, name)["spec"]["terminationGracePeriodSeconds"])
        threshold = probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"]

        def look(what: str, condition: Callable[[Json], bool]) -> float:
            release.until(f"{name} {what}", lambda: condition(of(release, name)))
            return time.monotonic() - begin

        async with load.run(1000):
            await asyncio.to_thread(
                release.kubectl, "exec", name, "--", "python", "-c", STOP.replace("SERVICE", service)
            )
            begin = time.monotonic()
            unready = await asyncio.to_thread(look, "gets no more calls", lambda pod: not is_ready(pod))
            restarted = await asyncio.to_thread(look, "is started again", lambda pod: restarts(pod) > 0)
            ready = await asyncio.to_thread(look, "is ready again", is_ready)
        events = release.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}")
        assert "failed liveness probe" in events
        # The process that hangs does not hear SIGTERM.
        figures(
            f"{service} stopped: out of the Service after {unready:.0f} s, restarted after {restarted:.0f} s "
            f"(threshold {threshold} s + grace {grace} s), ready after {ready:.0f} s: {load}"
        )


async def test_an_oom_kill_loses_nothing(release: Release, load: Load, figures: Figures) -> None:
    [container] = release.get("deployment", "approval")["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    used = int(release.kubectl("exec", release.ready("approval")[0], "--", "sh", "-c", USED, check=False).split()[0])
    tight = f"{used // 2**20 + 40}Mi"

    def memory(limit: str, request: str) -> Json:
        limited = {"limits": {"memory": limit}, "requests": {"memory": request}}
        return {"containers": [{"name": container["name"], "resources": limited}]}

    back = memory(resources["limits"]["memory"], resources["requests"]["memory"])
    with patched(release, "approval", memory(tight, tight), back):
        name = release.ready("approval")[0]

        def killed() -> Any:
            [status] = of(release, name)["status"]["containerStatuses"]
            return status["lastState"].get("terminated", {}).get("reason") == "OOMKilled"

        async with load.run(1000):
            await asyncio.to_thread(release.kubectl, "exec", name, "--", "python", "-c", FILL, check=False)
            begin = time.monotonic()
            await asyncio.to_thread(release.until, f"{name} is killed", killed)
            await asyncio.to_thread(release.until, f"{name} is ready again", lambda: is_ready(of(release, name)))
            seconds = time.monotonic() - begin
    figures(f"approval, OOMKilled at a limit of {tight}, ready again after {seconds:.0f} s: {load}")


async def test_pods_that_are_killed_one_after_the_other_lose_nothing(
    release: Release, load: Load, figures: Figures
) -> None:
    took = {}
    async with load.run(1000):
        for service in SERVICES:
            [name, *_] = release.ready(service)
            before = len(release.ready(service))

            def replaced(service: str = service, name: str = name, before: int = before) -> bool:
                ready = release.ready(service)
                return name not in ready and len(ready) == before

            begin = time.monotonic()
            await asyncio.to_thread(release.kubectl, "delete", "pod", name, "--grace-period=0", "--force")
            await asyncio.to_thread(release.until, f"another {service}", replaced)
            took[service] = f"{time.monotonic() - begin:.0f} s"
    figures(f"pods killed, another one ready after {took}: {load}")


@pytest.mark.parametrize("store", ["nats", "postgres", "mongo"])
async def test_a_store_whose_pod_is_deleted_loses_nothing(
    store: str, release: Release, people: World, load: Load, figures: Figures
) -> None:
    name = f"{store}-0"
    uid = of(release, name)["metadata"]["uid"]

    def replaced() -> bool:
        pods = [pod for pod in release.pods(store) if pod["metadata"]["uid"] != uid]
        return bool(pods) and is_ready(pods[0])

    async with load.run(2000):
        await asyncio.sleep(2)  # not a wait for anything: load before the fault
        begin = time.monotonic()
        await asyncio.to_thread(release.kubectl, "delete", "pod", name, "--wait=false")
        await asyncio.to_thread(release.until, f"another {name}", replaced)
        ready = time.monotonic() - begin
        await serves_again(people)
        served = time.monotonic() - begin
    figures(
        f"{name} deleted: another one ready after {ready:.0f} s, a booking made and COMPLETED "
        f"after {served:.0f} s: {load}"
    )
