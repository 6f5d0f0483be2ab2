"""What an import brings in, and what its report and its exit code say of what publishers' files get wrong."""

import asyncio
import contextlib
import functools
import io
import json
import os
import re
import sys
import uuid
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from mesh import ROOT
from mesh.data import importer
from vaccination.approval.v1 import appointment_pb2

from .conftest import Status, World

SMART = "http://fhir-registry.smarthealthit.org/StructureDefinition/"
HEADER = "hospital,cvx,mvx,lot_number,manufactured,expires,quantity"
DAY = date.today() + timedelta(days=7)


async def imported(world: World, folder: Path, **options: Any) -> tuple[int, str]:
    """Imports as `./dev import` does; returns the exit code and the report."""
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        run = functools.partial(
            importer.run, folder, world.mesh.connect_aio, world.token("operator", ["operator"]), **options
        )
        code = await asyncio.to_thread(run)
    return code, report.getvalue()


async def command(world: World, *arguments: str) -> tuple[int | None, str]:
    """Runs a command of `./dev`; returns its exit code and what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh", *arguments, cwd=ROOT,
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
        self.slot = {
            "resourceType": "Slot", "schedule": {"reference": f"Schedule/{self.key}"}, "status": "free",
            "extension": capacity,
        }  # fmt: skip
        resources: list[dict[str, Any]] = [
            {"resourceType": "Location", "id": self.key, "name": "Imported Clinic", "extension": [zone]},
            {"resourceType": "Schedule", "id": self.key, "actor": actor, "extension": products},
        ]
        self.write("clinic.ndjson", *map(json.dumps, resources))
        self.offer(DAY)

    def offer(self, *days: date) -> None:
        """These days, and no others."""
        slots = ({"id": f"{self.key}-{day}", "start": f"{day}T09:00:00+09:00", **self.slot} for day in days)
        self.write("slots.ndjson", *map(json.dumps, slots))

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
    options = ("--close-gone-days", "--time-zone", "Asia/Tokyo", "--time-zone", "TX=America/Chicago")
    code, report = await command(world, "import", str(tmp_path), *options)
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
        booked = await customer.book(clinic.key, DAY, vaccine_code=asked)
        seen = await customer.reaches(booked.reservation_id, Status.RESERVATION_STATUS_COMPLETED)
        assert seen.lot_number == "IM-0001"
    customer = world.customer()
    refused = await customer.book(clinic.key, DAY, vaccine_code="999")
    assert refused.rejection_reason == appointment_pb2.DenialReason.DENIAL_REASON_VACCINE_NOT_OFFERED
    assert (await world.operator.availability(clinic.key, DAY)).approved == 2
    assert (await customer.book(clinic.key, DAY, vaccine_code="8")).status == Status.RESERVATION_STATUS_APPROVED


async def test_a_day_that_left_the_feed_is_reported_and_closed_when_that_is_asked_for(
    world: World, tmp_path: Path
) -> None:
    clinic, gone = Clinic(tmp_path), DAY + timedelta(1)
    clinic.offer(DAY, gone, DAY + timedelta(2))
    assert (await imported(world, tmp_path))[0] == 0
    customer = world.customer()
    assert (await customer.book(clinic.key, gone)).status == Status.RESERVATION_STATUS_APPROVED
    clinic.offer(DAY, DAY + timedelta(2))
    named = f"  {clinic.key}: {gone} (20 places, 1 booked)\n"
    code, report = await imported(world, tmp_path)
    assert (code, (await world.operator.availability(clinic.key, gone)).left) == (0, 19)
    assert f"Open here, but in no file; --close-gone-days closes such days:\n{named}" in report
    clinic.write("broken.ndjson", "no resource")
    code, report = await imported(world, tmp_path, close_gone_days=True)
    assert (code, (await world.operator.availability(clinic.key, gone)).left) == (1, 19)
    assert f"Open here, but in no file, and not closed, since a row was refused:\n{named}" in report
    (tmp_path / "broken.ndjson").rename(tmp_path / "broken.jsonl")
    code, report = await imported(world, tmp_path, close_gone_days=True)
    assert (code, (await world.operator.availability(clinic.key, gone)).left) == (0, 19)
    assert f"Open here, but in no file, and not closed, since broken.jsonl was not read:\n{named}" in report
    (tmp_path / "broken.jsonl").unlink()
    code, report = await imported(world, tmp_path, close_gone_days=True)
    closed = await world.operator.availability(clinic.key, gone)
    assert (code, closed.left, closed.approved) == (0, 0, 1)
    assert f"Open here, but in no file, and closed to new bookings:\n{named}" in report
    refused = await world.customer().book(clinic.key, gone)
    assert refused.status == Status.RESERVATION_STATUS_REJECTED
    assert (await world.operator.availability(clinic.key, DAY)).left == 20
    assert "Open here" not in (await imported(world, tmp_path))[1]


async def test_a_day_called_off_stays_so_and_bookings_too_many_are_named(world: World, tmp_path: Path) -> None:
    clinic, off, smaller = Clinic(tmp_path), DAY + timedelta(1), DAY + timedelta(2)
    clinic.offer(DAY, off, smaller)
    assert (await imported(world, tmp_path))[0] == 0
    await world.operator.call_off(clinic.key, off)
    assert (await world.customer().book(clinic.key, smaller)).status == Status.RESERVATION_STATUS_APPROVED
    clinic.slot["status"] = "busy"
    clinic.offer(DAY, off, smaller)
    code, report = await imported(world, tmp_path)
    assert code == 0, report
    assert f"start: the hospital has called {off} off, which stays so (slots.ndjson line 2)" in report
    assert f"More bookings than places: {clinic.key} {smaller} (0 places, 1 booked)" in report


async def test_oddities_of_a_publisher_are_taken_with_notes_and_only_what_is_refused_is_an_error(
    world: World, tmp_path: Path
) -> None:
    clinic = Clinic(tmp_path)
    (tmp_path / "clinic.ndjson").unlink()
    extension = [{"url": SMART + "vaccine-product", "valueCoding": {"code": None}}]
    address, actor = {"state": "TX"}, [{"reference": f"Location/{clinic.key}_a"}]
    site = {"resourceType": "Location", "id": f"{clinic.key}_a", "name": "Odd @ Clinic", "address": address}
    schedule = {"resourceType": "Schedule", "id": clinic.key, "actor": actor, "extension": extension}
    size = [{"url": SMART + "slot-capacity", "valueInteger": "6"}]
    late = {**clinic.slot, "id": "s", "start": f"{DAY}T23:30:00-06:00", "extension": size}
    lines = [json.dumps(site).replace("@", "\t"), json.dumps(schedule), json.dumps(late)]
    clinic.write("slots.ndjson", *lines)
    code, report = await imported(world, tmp_path)
    assert (code, "Rows refused" in report) == (0, False), report
    [key] = re.findall(rf"it is ({clinic.key}-a-[0-9a-f]{{8}}) here", report)
    assert (await world.operator.availability(key, DAY)).left == 6
    for told in ("line: has control characters", "has no code", "is text, and read as a number"):
        assert told in report
    clinic.write("slots.ndjson", *lines, lines[2].replace("free", "open").replace('"s"', '"t"'))
    clinic.write("lots.csv", HEADER, f"{clinic.key}-b,208,PFR,IM-1,{DAY},{DAY},9")
    code, report = await imported(world, tmp_path)
    assert code == 1
    assert "no time zone is told: America/Chicago is kept, which the hospital has already" in report
    assert "slots.ndjson:4: status: 'open' is neither free nor busy" in report
    assert f"lots.csv:2: hospital: there is no hospital '{clinic.key}-b'" in report
    assert "Rows refused: 2, see above" in report


async def test_the_books_are_checked_by_one_command(world: World) -> None:
    _, out = await command(world, "books")
    for service in ("approval", "vaccinemgmt"):
        [line] = [line for line in out.splitlines() if line.split()[:1] == [service] and "accounts," in line]
        assert "differences" in line
