"""A store that moves to another server is away for a while, and neither a bug nor the end of an event."""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from mesh.machine import Mesh
from tests.conftest import free_base_port
from tests.e2e.conftest import World

from .drive import Crowd
from .switchover import FAILOVERS, REFUSALS, Case, observe


@contextmanager
def _running(replicated: bool) -> Iterator[Mesh]:
    """In a folder that Postgres' user may pass through."""
    with tempfile.TemporaryDirectory(prefix="switchover-") as folder:
        mesh = Mesh(Path(folder) / "home", free_base_port(), replicas=2, replicated=replicated)
        try:
            mesh.up()
            yield mesh
        finally:
            mesh.down()


@pytest.fixture(scope="module")
def single() -> Iterator[Mesh]:
    """A mesh with one server for each store."""
    with _running(replicated=False) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def replicated() -> Iterator[Mesh]:
    """A mesh whose stores are replicated."""
    with _running(replicated=True) as mesh:
        yield mesh


async def _play(mesh: Mesh, case: Case, seed: int) -> None:
    await asyncio.to_thread(mesh.up)
    async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        world = World(mesh, channel)
        seen = await observe(world, await Crowd.of(world, 10_000, seed), case, seconds=15)
        print(seen)
        assert not seen.violations()
        await world.quiet(60)


def but_first_slow(names: Iterable[str]) -> list[Any]:
    """One of each kind runs every time, the others when they are asked for."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize("name", but_first_slow(REFUSALS))
async def test_bookings_go_on_when_the_store_takes_writes_again(single: Mesh, name: str) -> None:
    await _play(single, REFUSALS[name], list(REFUSALS).index(name))


@pytest.mark.parametrize("name", but_first_slow(FAILOVERS))
async def test_bookings_go_on_when_another_server_has_taken_over(replicated: Mesh, name: str) -> None:
    await _play(replicated, FAILOVERS[name], list(FAILOVERS).index(name))
