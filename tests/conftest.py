"""Starts the real servers once for the whole run, in a folder of their own."""

import os
import random
import socket
from collections.abc import Iterator

import pytest

from mesh.machine import Mesh
from mesh.machine.home import PORTS, STORES

SEED = int(os.environ.setdefault("SEED", str(random.SystemRandom().randrange(2**32))))  # a run's workers inherit it


def pytest_report_header() -> str:
    """The seed of everything random in this run; SEED=... replays it."""
    return f"seed: {SEED}"


@pytest.fixture
def seeded() -> random.Random:
    """A random generator that the run's seed determines."""
    return random.Random(SEED)


def free_base_port() -> int:
    """A base port above which every port of a mesh is free, by chance: another suite may look for one right now.

    Workers of one run, which all look at the same time, never find the same one.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    bases = range(20000, 32000, 100)[worker::workers]
    for base in random.SystemRandom().sample(bases, len(bases)):
        try:
            for offset in PORTS.values():
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("mesh"), free_base_port())
    yield mesh
    mesh.down()


@pytest.fixture(scope="session")
def stores(_home: Mesh) -> Mesh:
    """Postgres, MongoDB and NATS."""
    _home.up(only=STORES)
    return _home


@pytest.fixture(scope="session")
def mesh(stores: Mesh) -> Mesh:
    """Everything, with the gateway in front."""
    stores.up()
    return stores
