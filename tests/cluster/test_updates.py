"""New versions, old versions and restarts while people call: no call fails, nothing is lost or done twice."""

import asyncio
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from mesh.machine.home import STORE_OF
from tests.e2e.conftest import World

from .conftest import NEXT_TAG, TAG, Load, Release

CALLS = 3000
MIGRATION = "9999_next.sql"  # see next.Dockerfile
# The chart as it was released last, by `./dev release`.
[PREVIOUS] = Path(__file__).parent.glob("vaccination-*.tgz")


def tags(release: Release) -> dict[str, set[str]]:
    """The versions that each component's pods run."""
    return {
        name: {c["image"].rpartition(":")[2] for pod in release.pods(name) for c in pod["spec"]["containers"][:1]}
        for name in STORE_OF
    }


async def migrated(people: World) -> set[str]:
    """Services whose store has the next version's migration."""
    with people.mesh.open_stores():  # type: ignore[attr-defined]
        sql = "SELECT 1 FROM migrations WHERE name = $1"
        return {
            name for name, store in STORE_OF.items() if store == "postgres" and await people.query(name, sql, MIGRATION)
        }


async def test_an_upgrade_with_a_migration_and_its_rollback_fail_no_call(
    release: Release, people: World, gateway: str, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    with tarfile.open(PREVIOUS) as package:
        package.extractall(tmp_path, filter="data")
    await asyncio.to_thread(release.upgrade, {}, chart=tmp_path / "vaccination")
    before = release.revision()

    async def upgrade() -> None:
        await asyncio.to_thread(release.upgrade, {"image": {"tag": NEXT_TAG}})

    async def rollback() -> None:
        await asyncio.to_thread(release.roll_back, before)

    for what, act, tag in (("helm upgrade", upgrade, NEXT_TAG), ("helm rollback", rollback, TAG)):
        load = Load(people, gateway, customers=40)
        begin = time.monotonic()
        async with load.run(CALLS):
            await act()
            await asyncio.to_thread(release.settled)
            seconds = time.monotonic() - begin
        assert tags(release) == {name: {tag} for name in STORE_OF}
        assert await migrated(people) == {name for name, store in STORE_OF.items() if store == "postgres"}
        figures(f"{what} to {tag}, all services, {seconds:.0f} s, chart {release.chart()}: {load}")
        assert not load.retries.failed
    await asyncio.to_thread(release.upgrade, {})


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
