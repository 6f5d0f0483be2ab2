"""Restarts while people call: no call fails, nothing is lost or done twice."""

import asyncio
import time
from collections.abc import Callable

from .conftest import Load, Release

CALLS = 3000


async def test_a_restart_of_two_services_and_the_gateway_at_once_fails_no_call(
    release: Release, load: Load, figures: Callable[[str], None]
) -> None:
    names = ("deployment/reservation", "deployment/approval", "deployment/gateway")
    before = {pod["metadata"]["uid"] for pod in release.pods()}
    begin = time.monotonic()
    async with load.run(CALLS):
        await asyncio.to_thread(release.kubectl, "rollout", "restart", *names)
        await asyncio.to_thread(release.rolled_out, *names)
        await asyncio.to_thread(release.settled)
        seconds = time.monotonic() - begin
    for name in names:
        assert not before & {pod["metadata"]["uid"] for pod in release.pods(name.partition("/")[2])}
    figures(f"rollout restart of {', '.join(names)}, {seconds:.0f} s: {load}")
    assert not load.retries.failed
