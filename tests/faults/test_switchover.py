"""A store that moves to another server is away for a while, and neither a bug nor the end of an event."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from mesh.machine import Mesh
from tests.conftest import free_base_port
from tests.e2e.conftest import World

from .drive import Crowd
from .switchover import CASES, observe


@pytest.fixture(scope="module")
def running() -> Iterator[Mesh]:
    """A mesh whose stores are replicated; in a folder that Postgres' user may pass through."""
    with tempfile.TemporaryDirectory(prefix="switchover-") as folder:
        mesh = Mesh(Path(folder) / "home", free_base_port(), replicas=2, replicated=True)
        try:
            mesh.up()
            yield mesh
        finally:
            mesh.down()


@pytest.fixture
async def replicated(running: Mesh) -> AsyncIterator[World]:
    """Those who call it."""
    async with grpc.aio.insecure_channel(running.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        yield World(running, channel)


@pytest.mark.parametrize("case", CASES)
async def test_bookings_go_on_when_the_store_is_back(replicated: World, case: str) -> None:
    await asyncio.to_thread(replicated.mesh.up)
    crowd = await Crowd.of(replicated, 10_000, seed=list(CASES).index(case))
    seen = await observe(replicated, crowd, case, seconds=15)
    print(seen)
    assert not seen.violations()
    await replicated.quiet(60)
