"""The commands of `./dev`, as people run them."""

import asyncio
import json
import os
import sys
import urllib.request
from pathlib import Path

import pytest

from mesh import ROOT
from mesh.machine.home import SERVICES
from services.chassis.version import version

from .conftest import World


async def mesh_command(world: World, *arguments: str) -> str:
    """Runs `python -m mesh` on the running mesh; returns its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh", *arguments, cwd=ROOT,
        env=os.environ | {"MESH_HOME": str(world.mesh.home.path), "COLUMNS": "160"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, out.decode()
    return out.decode()


def renamed(folder: Path, prefix: str) -> Path:
    """A copy of the demo's data with ids of hospitals that have not been imported yet."""
    folder.mkdir()
    for file in (file for form in ("*.ndjson", "*.csv") for file in (ROOT / "mesh" / "data").glob(form)):
        text = file.read_text()
        for hospital in ("seoul-jongno", "seoul-mapo", "busan-haeundae", "daegu-suseong", "gwangju-bukgu",
                         "daejeon-yuseong", "jeju-aewol"):  # fmt: skip
            text = text.replace(hospital, f"{prefix}-{hospital}")
        (folder / file.name).write_text(text)
    return folder


async def test_a_second_import_changes_nothing(world: World, tmp_path: Path) -> None:
    data = renamed(tmp_path / "data", f"t{os.getpid()}")
    first = (await mesh_command(world, "import", str(data), "--shift-to", "2030-01-07")).split()
    again = (await mesh_command(world, "import", str(data), "--shift-to", "2030-01-07")).split()

    def counts(words: list[str], of: str) -> tuple[str, str]:
        """What is new, and what was there: "days 12 new or changed, 3 unchanged"."""
        rest = words[words.index(of) + 1 :]
        return rest[0], next(word for word, before in zip(rest[1:], rest, strict=False) if before.endswith(","))

    assert counts(first, "hospitals") == ("7", "0")
    assert counts(first, "deliveries") == ("13", "0")
    assert counts(again, "hospitals") == ("0", "7")
    assert counts(again, "days")[0] == "0"
    assert counts(again, "deliveries") == ("0", "13")


async def test_the_demo_shows_the_whole_journey(world: World) -> None:
    shown = await mesh_command(world, "demo")
    for what in (
        "REJECTED DAY_FULL", "COMPLETED", "CANCELLED", "the same reservation",
        "ADMINISTERED", "MISSED", "told LOT_RECALLED: particles",
    ):  # fmt: skip
        assert what in shown


@pytest.mark.parametrize("name", ["gateway", *SERVICES])
async def test_reflection_has_the_contracts_comments_whoever_answers(world: World, name: str) -> None:
    describe = await asyncio.create_subprocess_exec(
        "grpcurl", "-plaintext", world.mesh.home.address(name),
        "describe", "vaccination.reservation.v1.ReservationService.CancelReservation",
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(describe.communicate(), 60)
    contract = (ROOT / "protos/vaccination/reservation/v1/reservation_service.proto").read_text()
    *_, comment = contract.partition("  rpc CancelReservation")[0].rpartition("  }\n")
    assert comment
    assert {line.strip() for line in comment.splitlines()} <= {line.strip() for line in out.decode().splitlines()}


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_offers_its_metrics_to_prometheus(world: World, service: str) -> None:
    await world.customer().screen()
    url = f"http://{world.mesh.home.address(f'{service}-metrics')}/metrics"
    body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    for metric in ("rpc_seconds_count", "events_handled_total", "events_dead_total", "outbox_seconds"):
        assert f"# HELP {metric.removesuffix('_count')}" in body


async def test_up_brings_stores_and_consumers_up_to_date_after_another_version_ran(world: World) -> None:
    settings = world.mesh.home.path / "mesh.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"code": "another"}))
    assert "another version ran here last" in await mesh_command(world, "up")
    assert json.loads(settings.read_text())["code"] == version()
    assert "another version ran here last" not in await mesh_command(world, "up")
