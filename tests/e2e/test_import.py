"""What an import brings in: deliveries that add up, each once, and vaccines under whatever form of their code."""

import asyncio
import json
import os
import sys
import uuid
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from mesh import ROOT
from vaccination.approval.v1 import appointment_pb2

from .conftest import Status, World

SMART = "http://fhir-registry.smarthealthit.org/StructureDefinition/"
HEADER = "hospital,cvx,mvx,lot_number,manufactured,expires,quantity"
DAY = date.today() + timedelta(days=7)


async def imported(world: World, folder: Path) -> tuple[int | None, str]:
    """Runs `./dev import`; returns its exit code and its report."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh", "import", str(folder), cwd=ROOT,
        env=os.environ | {"MESH_HOME": str(world.mesh.home.path), "COLUMNS": "160"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, out.decode()


class Clinic:
    """The files of a clinic with 20 places on a day."""

    def __init__(self, folder: Path, *cvx: str) -> None:
        self.key, self.folder = f"i-{uuid.uuid4().hex[:12]}", folder
        zone = {"url": "http://hl7.org/fhir/StructureDefinition/timezone", "valueCode": "Asia/Seoul"}
        products = [{"url": SMART + "vaccine-product", "valueCoding": {"code": code}} for code in cvx]
        actor = [{"reference": f"Location/{self.key}"}]
        capacity = [{"url": SMART + "slot-capacity", "valueInteger": 20}]
        slot = {"schedule": {"reference": f"Schedule/{self.key}"}, "status": "free", "extension": capacity}
        resources: list[dict[str, Any]] = [
            {"resourceType": "Location", "id": self.key, "name": "Imported Clinic", "extension": [zone]},
            {"resourceType": "Schedule", "id": self.key, "actor": actor, "extension": products},
            {"resourceType": "Slot", "id": self.key, "start": f"{DAY}T09:00:00+09:00", **slot},
        ]
        self.write("clinic.ndjson", *map(json.dumps, resources))

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("\n".join(lines), encoding="utf-8")

    def stock(self, name: str, *quantities: int, cvx: str = "208", note: str = "") -> None:
        dates = f"{DAY - timedelta(60)},{DAY + timedelta(200)}"
        rows = [f"{self.key},{cvx},PFR,IM-0001,{dates},{quantity},{note}" for quantity in quantities]
        self.write(name, f"{HEADER},delivery_id", *rows)

    async def received(self, world: World) -> list[int]:
        return [lot.received for lot in await world.operator.lots(self.key)]


async def test_deliveries_of_one_lot_add_up_and_a_file_imported_again_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    clinic = Clinic(tmp_path)
    for name, quantity in (("week1.csv", 40), ("week2.csv", 40), ("week3.csv", 25)):
        clinic.stock(name, quantity)
    code, report = await imported(world, tmp_path)
    assert (code, await clinic.received(world)) == (0, [105])
    assert "3 taken, 0 taken before" in report
    clinic.stock("week4.csv", 10, 10)
    code, report = await imported(world, tmp_path)
    assert (code, await clinic.received(world)) == (0, [125])
    assert "2 taken, 3 taken before" in report
    assert "Taken before, and not again: week1.csv line 2; week2.csv line 2; week3.csv line 2" in report


async def test_a_delivery_note_is_taken_once_whatever_file_it_is_in(world: World, tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.stock("monday.csv", 40, note="DN-1")
    assert (await imported(world, tmp_path))[0] == 0
    (tmp_path / "monday.csv").unlink()
    clinic.stock("tuesday.csv", 40, note="DN-1")
    code, report = await imported(world, tmp_path)
    assert (code, await clinic.received(world)) == (0, [40])
    assert "Taken before, and not again: tuesday.csv line 2" in report
    clinic.stock("tuesday.csv", 41, note="DN-1")
    code, report = await imported(world, tmp_path)
    assert (code, await clinic.received(world)) == (1, [40])
    assert "tuesday.csv:2: " in report
    assert "[LOT_CONFLICT]" in report


async def test_files_in_capitals_are_read_and_others_are_named(world: World, tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.stock("LOTS.CSV", 30)
    clinic.write("more.jsonl", "{}")
    (tmp_path / "older").mkdir()
    code, report = await imported(world, tmp_path)
    assert (code, await clinic.received(world)) == (0, [30])
    assert "Not read: more.jsonl, older/" in report


async def test_a_code_with_a_leading_zero_is_served_and_one_that_is_not_offered_takes_no_place(
    world: World, tmp_path: Path
) -> None:
    clinic = Clinic(tmp_path, "08")
    clinic.stock("lots.csv", 30, cvx="8")
    code, report = await imported(world, tmp_path)
    assert code == 0, report
    for asked in ("08", "8"):
        customer = world.customer()
        booked = await customer.create(clinic.key, DAY, vaccine_code=asked)
        seen = await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
        assert seen.lot_number == "IM-0001"
    customer = world.customer()
    refused = await customer.create(clinic.key, DAY, vaccine_code="999")
    assert refused.rejection_reason == appointment_pb2.DenialReason.DENIAL_REASON_VACCINE_NOT_OFFERED
    assert (await world.operator.availability(clinic.key, DAY)).approved == 2
    assert (await customer.create(clinic.key, DAY, vaccine_code="8")).status == Status.RESERVATION_STATUS_APPROVED


async def test_the_books_are_checked_by_one_command(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh", "books", cwd=ROOT, env=os.environ | {"MESH_HOME": str(world.mesh.home.path)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    for service in ("approval", "vaccinemgmt"):
        [line] = [line for line in out.decode().splitlines() if line.split()[:1] == [service] and "accounts," in line]
        assert "differences" in line
