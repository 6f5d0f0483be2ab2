"""An upgrade from the last release, and its rollback, while people call: no call fails, nothing is lost or doubled."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh import ROOT
from mesh.machine.home import STORE_OF
from tests.e2e.conftest import World
from tests.releases import extract

from .conftest import TAG, Load, Release, installation

CALLS = 3000
PREVIOUS = "0.3.0"
# The image made of it, see tests/releases/Dockerfile.
PREVIOUS_TAG = os.environ.get("PREVIOUS_TAG", PREVIOUS)
IN_POSTGRES = [name for name, store in STORE_OF.items() if store == "postgres"]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release: its code and its chart."""
    folder = extract(PREVIOUS, tmp_path_factory.mktemp("previous"))
    # Its gateway's proxy was always pulled, and where these tests run there may be no registry that has it.
    gateway = folder / "helm" / "vaccination" / "templates" / "gateway.yaml"
    text = gateway.read_text()
    assert text.count("image: auto\n") == 1
    gateway.write_text(text.replace("image: auto\n", "image: auto\n          imagePullPolicy: IfNotPresent\n"))
    return folder


@pytest.fixture(scope="module")
def release(istio: bool, previous: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The last release, as somebody has it who installed it and has not upgraded yet."""
    values, chart = {"image": {"tag": PREVIOUS_TAG}}, previous / "helm" / "vaccination"
    with installation(tmp_path_factory.mktemp("identity"), values, chart, istio=istio) as release:
        yield release


@pytest.fixture(scope="module")
def gateway(release: Release) -> Iterator[str]:
    """host:port of its gateway."""
    with contextlib.ExitStack() as stack:
        yield release.way_in(stack)


def tags(release: Release) -> dict[str, set[str]]:
    """The versions that each component's pods run."""
    return {
        name: {c["image"].rpartition(":")[2] for pod in release.pods(name) for c in pod["spec"]["containers"][:1]}
        for name in STORE_OF
    }


def stores(release: Release) -> set[str]:
    """The stores' pods."""
    return {pod["metadata"]["uid"] for store in set(STORE_OF.values()) | {"nats"} for pod in release.pods(store)}


def migrations(code: Path) -> dict[str, set[str]]:
    """What brings each Postgres store up to date, in a version of the code."""
    return {name: {f.name for f in (code / "services" / name / "migrations").glob("*.sql")} for name in IN_POSTGRES}


async def migrated(people: World) -> dict[str, set[str]]:
    """What has been done in each Postgres store."""
    with people.mesh.open_stores():  # type: ignore[attr-defined]
        files = "SELECT name FROM migrations WHERE name LIKE '%.sql'"  # the chassis has some of its own, without files
        rows = {name: await people.query(name, files) for name in IN_POSTGRES}
    return {name: {row["name"] for row in found} for name, found in rows.items()}


async def test_an_upgrade_from_the_last_release_and_its_rollback_fail_no_call(
    release: Release, previous: Path, people: World, gateway: str, figures: Callable[[str], None]
) -> None:
    assert tags(release) == {name: {PREVIOUS_TAG} for name in STORE_OF}
    assert await migrated(people) == migrations(previous)
    before, stores_before = release.revision(), stores(release)

    async def upgrade() -> None:
        await asyncio.to_thread(release.upgrade, {})

    async def rollback() -> None:
        await asyncio.to_thread(release.roll_back, before)

    for what, act, tag in (("helm upgrade", upgrade, TAG), ("helm rollback", rollback, PREVIOUS_TAG)):
        load = Load(people, gateway, customers=40)
        begin = time.monotonic()
        async with load.run(CALLS, since_0_4=tag == TAG):
            await act()
            await asyncio.to_thread(release.settled)
            seconds = time.monotonic() - begin
        assert tags(release) == {name: {tag} for name in STORE_OF}
        # A rollback takes nothing back in the stores: the version before can live with it.
        assert await migrated(people) == migrations(ROOT)
        assert stores(release) == stores_before
        figures(f"{what} to {tag}, all services, {seconds:.0f} s, chart {release.chart()}: {load}")
        assert not load.retries.failed
