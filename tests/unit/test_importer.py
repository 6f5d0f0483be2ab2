"""What the importer makes of publishers' files: what it takes, assumes and notes, and what it refuses. No servers."""

import asyncio
import json
import os
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mesh.data.dataset import MOST, Data, Day, Invalid, Lines, Row, hospital_id, ranges, shift
from mesh.data.feed import read
from mesh.data.files import Folder
from mesh.data.importer import refusals, run
from mesh.data.sender import Outcome, Refused, Sender, pause_of, violations_of
from mesh.data.zones import Options

ROOT = Path(__file__).resolve().parents[2]
HEADER = "hospital,cvx,mvx,lot_number,manufactured,expires,quantity"
LOT = "h1,208,PFR,A1,2026-10-01,2027-03-31,10"
SMART = "http://fhir-registry.smarthealthit.org/StructureDefinition/"
ZONE = {"url": "http://hl7.org/fhir/StructureDefinition/timezone", "valueCode": "Asia/Seoul"}


def location(key: str = "h1", **changes: Any) -> dict[str, Any]:
    return {"resourceType": "Location", "id": key, "name": f"Clinic {key}", "extension": [ZONE], **changes}


def schedule(key: str = "s1", place: str = "Location/h1", cvx: Any = "208", **changes: Any) -> dict[str, Any]:
    product = {"url": SMART + "vaccine-product", "valueCoding": {"code": cvx}}
    return {"resourceType": "Schedule", "id": key, "actor": [{"reference": place}], "extension": [product], **changes}


def slot(key: str, start: str = "2027-01-04T09:00:00+09:00", capacity: Any = None, **changes: Any) -> dict[str, Any]:
    size = [] if capacity is None else [{"url": SMART + "slot-capacity", "valueInteger": capacity}]
    fixed = {"resourceType": "Slot", "id": key, "schedule": {"reference": "Schedule/s1"}, "status": "free"}
    return {**fixed, "start": start, "extension": size, **changes}


def given(directory: Path, *rows: Any, name: str = "x.ndjson") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (directory / name).write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return directory


def capacity(data: Data, hospital: str = "h1") -> dict[str, int]:
    return {str(day): places.capacity for day, places in data.hospitals[hospital].days.items()}


def errors(data: Data) -> list[str]:
    return [str(error) for error in data.errors]


def notes(data: Data) -> list[str]:
    return [f"{lines}: {text}" for text, lines in data.notes.items()]


def to_seoul(*rows: Any) -> tuple[Any, ...]:
    """A hospital with a schedule, and these rows."""
    return location(), schedule(), *rows


def test_a_day_has_the_places_of_its_free_slots_and_a_busy_day_has_none(tmp_path: Path) -> None:
    given(
        tmp_path,
        *(location(), schedule(), schedule("s2", "https://example.org/fhir/Location/h1", cvx="211")),
        *(slot("1", capacity=30), slot("2", "2027-01-04T14:00:00+09:00"), slot("3", capacity=5, status="busy")),
        slot("4", capacity=7, schedule={"reference": "Schedule/s2"}),
        *(slot("5", "2027-01-05T09:00:00+09:00", 9, status="busy"), slot("6", capacity=8, status="entered-in-error")),
    )
    data = read(tmp_path)
    assert errors(data) == []
    assert capacity(data) == {"2027-01-04": 38, "2027-01-05": 0}
    assert data.hospitals["h1"].offered() == ["208", "211"]


@pytest.mark.parametrize(
    ("start", "day"),
    [
        ("2027-01-04T22:30:00Z", "2027-01-05"),
        ("2027-01-04T14:59:59.999Z", "2027-01-04"),
        ("2027-01-04T20:00:00-05", "2027-01-05"),
    ],
)
def test_a_slots_day_is_where_it_starts_at_the_hospital(tmp_path: Path, start: str, day: str) -> None:
    given(tmp_path, location(), schedule(), slot("1", start))
    assert list(capacity(read(tmp_path))) == [day]


@pytest.mark.parametrize(
    ("address", "options", "start", "zone", "noted"),
    [
        ({"state": "MA"}, ["Asia/Tokyo"], "", "America/New_York", False),
        ({"state": "hi", "country": "US"}, [], "", "Pacific/Honolulu", False),
        ({"state": "MA"}, ["ma=America/Halifax"], "", "America/Halifax", False),
        ({"state": "TX"}, ["America/Chicago"], "", "America/Chicago", False),
        ({"state": "TX"}, ["Asia/Tokyo", "TX=America/Denver"], "", "America/Denver", False),
        ({"state": "TX"}, [], "", "America/Chicago", True),
        ({"state": "TX"}, [], "2027-01-04T09:00:00-07:00", "America/Denver", True),
        ({"state": "TX"}, ["America/Chicago"], "2027-01-04T09:00:00-07:00", "America/Denver", True),
        ({"state": "TX"}, [], "2027-07-05T09:00:00-05:00", "America/Chicago", True),
        ({"state": "TX"}, [], "2027-01-04T09:00:00+09:00", "America/Chicago", True),
        ({"state": "AZ"}, [], "2027-07-05T09:00:00-07:00", "America/Phoenix", True),
        ({"country": "USA"}, [], "2027-01-04T09:00:00-08:00", "America/Los_Angeles", True),
        ({"state": "WA", "country": "AU"}, ["Australia/Perth"], "", "Australia/Perth", False),
        ({"country": "DE"}, [], "2027-01-04T09:00:00+01:00", "Etc/GMT-1", True),
        ({"country": "DE"}, ["Europe/Berlin"], "2027-01-04T09:00:00+01:00", "Europe/Berlin", False),
        ({"country": "DE"}, ["Europe/Berlin"], "2027-01-04T09:00:00Z", "Europe/Berlin", False),
        ({"state": "서울특별시", "country": "KR"}, [], "", "Asia/Seoul", False),
        ("Seoul", ["Asia/Tokyo"], "", "Asia/Tokyo", False),
        (None, [], "", "Asia/Seoul", True),
        (None, [], "2027-01-04T09:00:00+09:00", "Asia/Seoul", True),
        (None, [], "2027-01-04T09:00:00-05:00", "Etc/GMT+5", True),
    ],
)
def test_a_hospitals_time_zone_is_told_or_found_by_its_state_or_by_the_offsets_of_its_slots(
    tmp_path: Path, address: Any, options: list[str], start: str, zone: str, noted: bool
) -> None:
    rows = [location(extension=[], address=address), schedule(), *([slot("1", start)] if start else [])]
    data = read(given(tmp_path, *rows), Options.of(options))
    assert (data.hospitals["h1"].time_zone, bool(notes(data)), errors(data)) == (zone, noted, [])


@pytest.mark.parametrize(
    ("changes", "options", "zone"),
    [
        ({}, [], "Europe/Berlin"),  # else the offset of the slot, Etc/GMT-2
        ({"address": {"state": "TX"}}, [], "Europe/Berlin"),
        ({"address": {"country": "DE"}}, [], "Europe/Berlin"),
        ({"address": {"country": "DE"}}, ["Europe/Paris"], "Europe/Paris"),
        ({"address": {"state": "MA"}}, [], "America/New_York"),
        ({"extension": [ZONE]}, [], "Asia/Seoul"),
    ],
)
def test_a_hospital_that_is_there_keeps_its_time_zone_unless_another_is_told(
    tmp_path: Path, changes: Any, options: list[str], zone: str
) -> None:
    site = location("a_b", **{"extension": [], **changes})
    summer = slot("1", "2027-07-05T00:30:00+02:00", 4)
    given(tmp_path, site, schedule(place="Location/a_b"), summer)
    here = {hospital_id("a_b"): "Europe/Berlin"}
    data = read(tmp_path, Options.of(options), zones_here=lambda: here)
    [hospital] = data.hospitals.values()
    assert (hospital.time_zone, errors(data)) == (zone, [])
    kept = "address: no time zone is told: Europe/Berlin is kept, which the hospital has already"
    assert (kept in data.notes) == (zone == "Europe/Berlin")


def test_a_hospital_that_is_there_keeps_its_time_zone_if_nothing_tells_one(tmp_path: Path) -> None:
    rows = (location(extension=[], address={"country": "DE"}), schedule(), slot("1", "2027-07-04T22:30:00Z", 4))
    data = read(given(tmp_path, *rows), zones_here=lambda: {"h1": "Europe/Berlin"})
    assert (data.hospitals["h1"].time_zone, capacity(data), errors(data)) == ("Europe/Berlin", {"2027-07-05": 4}, [])


@pytest.mark.parametrize(("state", "offset"), [("FL", -5), ("TN", -6), ("ID", -7), ("NV", -8), ("AK", -9)])
def test_the_offset_that_the_publisher_wrote_tells_the_day(tmp_path: Path, state: str, offset: int) -> None:
    late = slot("1", f"2027-02-08T23:45:00-{-offset:02}:00", 4, end=f"2027-02-08T23:55:00-{-offset:02}:00")
    assert capacity(read(given(tmp_path, location(extension=[], address={"state": state}), schedule(), late))) == {
        "2027-02-08": 4
    }


@pytest.mark.parametrize("told", ["Mars/Base", ["Asia"], None, "localtime", "Factory"])
def test_a_time_zone_that_does_not_exist_is_passed_over(tmp_path: Path, told: Any) -> None:
    broken = location(extension=[{**ZONE, "valueCode": told}], address={"state": "CA"})
    data = read(given(tmp_path, broken))
    assert (data.hospitals["h1"].time_zone, errors(data)) == ("America/Los_Angeles", [])
    assert notes(data) == (
        [f"x.ndjson line 1: timezone: {told!r} is not an IANA time zone, and is passed over"] if told else []
    )


def test_a_hospital_is_where_its_position_says_and_is_kept_without_a_good_one(tmp_path: Path) -> None:
    there = location(position={"latitude": 37.5, "longitude": -127})
    data = read(given(tmp_path, there, location("h2", position={"latitude": 37.5}), location("h3")))
    assert {key: one.position for key, one in data.hospitals.items()} == {"h1": (37.5, -127.0), "h2": None, "h3": None}
    assert errors(data) == []
    assert notes(data) == ["x.ndjson line 2: position: has no latitude and longitude in degrees, and is passed over"]


@pytest.mark.parametrize(
    "told", [{"latitude": 91, "longitude": 127}, {"latitude": float("nan"), "longitude": 1}, "here"]
)
def test_a_position_that_is_nowhere_is_passed_over(tmp_path: Path, told: Any) -> None:
    data = read(given(tmp_path, location(position=told)))
    assert (data.hospitals["h1"].position, errors(data), len(notes(data))) == (None, [], 1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{]"], "x.ndjson:1: line: is not JSON"),
        (["{", "}"], "x.ndjson:1: file: is JSON that is not written one resource a line"),
        (["[" * 100_000, "]"], "x.ndjson:1: file: is JSON that is not written one resource a line"),
        (['{"a":' + "[" * 100_000], "x.ndjson:1: line: is not JSON"),
        (["1"], "x.ndjson:1: resourceType: is missing"),
        ([{"resourceType": 5}], "x.ndjson:1: resourceType: is missing"),
        ([location(id=None)], "x.ndjson:1: id: is missing"),
        ([location(id=["h"])], "x.ndjson:1: id: ['h'] is not text"),
        ([location(extension=[], address={"country": "DE"})], "x.ndjson:1: address: 'DE' tells no time zone"),
        ([schedule()], "x.ndjson:1: actor: there is no Location 'h1'"),
        ([location(), schedule(actor="h1")], "x.ndjson:2: actor: has no reference to a Location"),
        ([location(), schedule(place="Practitioner/1")], "x.ndjson:2: actor: has no reference to a Location"),
        ([location(), slot("1")], "x.ndjson:2: schedule: there is no Schedule 's1'"),
        ([location(), slot("1", schedule=None)], "x.ndjson:2: schedule: is no reference to a Schedule"),
        ([location(), schedule(), slot("1", status="open")], "x.ndjson:3: status: 'open' is neither free nor busy"),
        ([location(), schedule(), slot("1", capacity=2**40)], "slot-capacity: 1099511627776 is not a whole number"),
        ([location(), schedule(), slot("1", "2027-02-30T09:00:00Z")], "x.ndjson:3: start: '2027-02-30T09:00:00Z' is"),
        ([location(), schedule(), slot("1", "9999-12-31T23:00:00Z")], "start: '9999-12-31T23:00:00Z' is not a FHIR"),
        (
            [location(), schedule(), slot("1", capacity=MOST), slot("2")],
            "x.ndjson:4: slot-capacity: the day 2027-01-04",
        ),
    ],
)
def test_a_fhir_row_in_error_is_named(tmp_path: Path, rows: list[Any], said: str) -> None:
    [error] = errors(read(given(tmp_path, *rows)))
    assert said in error


def test_rows_that_depend_on_a_wrong_row_are_counted_and_not_reported(tmp_path: Path) -> None:
    nowhere = location(extension=[], address={"country": "DE"})
    data = read(
        given(tmp_path, slot("1", "2027-01-04T09:00:00Z"), slot("2", "2027-01-04T09:00:00Z"), schedule(), nowhere)
    )
    assert [error.partition(": ")[0] for error in errors(data)] == ["x.ndjson:4"]
    assert data.ignored == {"Schedule of a Location that was refused": 1, "Slot of a Schedule that was refused": 2}


def test_good_rows_beside_bad_ones_are_kept_in_any_order_and_format(tmp_path: Path) -> None:
    given(
        tmp_path, slot("1", capacity=3), "oops", "", slot("1", capacity=3), {"resourceType": "Device"}, name="a.ndjson"
    )
    given(tmp_path, schedule(cvx=None), name="b.ndjson")
    crlf = b"\xef\xbb\xbf" + json.dumps(location(name="서울")).encode() + b"\r\n\r\n\xff\xfe\r\n"
    (tmp_path / "c.ndjson").write_bytes(crlf)
    (tmp_path / "d.ndjson").mkdir()
    data = read(tmp_path)
    assert data.hospitals["h1"].name == "서울"
    assert capacity(data) == {"2027-01-04": 3}
    assert data.ignored == {"Device": 1, "repeated Slot": 1}
    assert [error.partition(": ")[0] for error in errors(data)] == ["a.ndjson:2", "c.ndjson:3"]
    assert [note.partition(": ")[0] for note in notes(data)] == ["b.ndjson line 1"]
    assert data.not_read == ["d.ndjson/"]


def test_a_files_ending_may_be_in_capitals_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    given(tmp_path, location(), schedule(), slot("1", capacity=3), name="CLINIC.NDJSON")
    given(tmp_path, HEADER, LOT, name="Lots.Csv")
    for name in ("more.jsonl", "stock.csv.gz", "lots.xlsx", "manifest", ".DS_Store"):
        given(tmp_path, "{}", name=name)
    (tmp_path / "older").mkdir()
    given(tmp_path / "older", location("h2"))
    data = read(tmp_path)
    assert (errors(data), list(data.hospitals), [lot.quantity for lot in data.lots["h1"]]) == ([], ["h1"], [10])
    assert data.not_read == [".DS_Store", "lots.xlsx", "manifest", "more.jsonl", "older/", "stock.csv.gz"]
    assert Folder.of(tmp_path).size() == 2 * (tmp_path / "CLINIC.NDJSON").stat().st_size + len(f"{HEADER}\n{LOT}")


def test_files_whose_names_are_not_utf_8_are_read_and_named(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name, lines in (("백신.csv", [HEADER, LOT, "x"]), ("백신.ndjson", ["oops"]), ("백신.txt", [])):
        given(tmp_path, *lines, name=os.fsdecode(name.encode("cp949")))
    name = r"\xb9\xe9\xbd\xc5"
    data = read(tmp_path)
    assert ([lot.row for lot in data.lots["h1"]], data.not_read) == ([Row(f"{name}.csv", 2)], [f"{name}.txt"])
    assert [error.row for error in data.errors] == [Row(f"{name}.ndjson", 1), Row(f"{name}.csv", 3)]
    assert run(tmp_path / os.fsdecode(b"\xb9"), lambda: grpc.aio.insecure_channel("127.0.0.1:1"), "token") == 2
    assert rb"\xb9 is not a directory" in capfdbinary.readouterr().out


def test_a_deliverys_id_is_made_of_the_files_name_as_ever(tmp_path: Path) -> None:
    assert ids(given(tmp_path, HEADER, LOT, name="백신.csv")) == ["b4a16320-dde2-5801-837b-b7c15a1bff04"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("more.jsonl", "more.jsonl was not read"),
        ("slots.ndjson.part", "slots.ndjson.part was not read"),
        ("slots.NDJSON.GZ", "slots.NDJSON.GZ was not read"),
        ("slots.xlsx", "slots.xlsx was not read"),
        ("broken.ndjson", "a row was refused"),
        ("readme.txt", ""),
        (".DS_Store", ""),
    ],
)
def test_days_in_no_file_are_not_closed_if_something_was_not_taken_that_may_hold_them(
    tmp_path: Path, name: str, reason: str
) -> None:
    given(tmp_path, *to_seoul(slot("1")))
    assert read(given(tmp_path, "oops", name=name)).keeps_open() == reason


@pytest.mark.parametrize(
    ("products", "offered"),
    [
        (["208"], ["208"]),
        (["08", "8", "207"], ["8", "207"]),
        (["000"], ["0"]),
        ([None], []),  # not told, and noted
        (["208", "covid"], []),
        ([], []),
    ],
)
def test_a_hospital_offers_what_its_schedules_name_in_codes_without_leading_zeros(
    tmp_path: Path, products: list[Any], offered: list[str]
) -> None:
    named = [{"url": SMART + "vaccine-product", "valueCoding": {"code": code}} for code in products]
    data = read(given(tmp_path, location(), schedule(extension=named)))
    assert data.hospitals["h1"].offered() == offered


def test_of_a_hospital_with_a_schedule_that_names_no_vaccine_nobody_knows_what_it_offers(tmp_path: Path) -> None:
    data = read(given(tmp_path, location(), schedule(), schedule("s2", extension=[])))
    assert data.hospitals["h1"].offered() == []


def test_a_lot_is_of_the_vaccine_that_a_schedule_names_with_or_without_leading_zeros(tmp_path: Path) -> None:
    given(tmp_path, location(), schedule(cvx="08"))
    assert read(tmp_path).without_lot() == ["h1 8"]
    assert read(given(tmp_path, HEADER, LOT.replace("208", "8"), name="l.csv")).without_lot() == []


@pytest.mark.parametrize(
    ("told", "places"),
    [
        *[("0", 0), (" 12 ", 12), ("12.0", 12), ("1,000", 1000), ("1,000,000", MOST), (7.0, 7)],
        *[(-1, 0), (-2.0, 0), ("-2", 0)],
        *[(None, 1), ("", 1), ("plenty", 1), (True, 1), (2.5, 1), ("2.5", 1), ("1.000", 1), ("1,00", 1), ([3], 1)],
    ],
)
def test_places_told_as_text_are_a_number_below_0_none_and_what_is_no_number_is_one_place(
    tmp_path: Path, told: Any, places: int
) -> None:
    size = [{"url": SMART + "slot-capacity", "valueInteger": told}]
    data = read(given(tmp_path, *to_seoul(slot("1", extension=size), slot("2", extension=size, status="busy"))))
    assert (capacity(data), errors(data)) == ({"2027-01-04": places}, [])
    assert bool(notes(data)) == (told != 7.0)


@pytest.mark.parametrize(
    ("start", "end", "places", "noted"),
    [
        ("04T09:00", "04T18:00", {4: 7}, ""),
        ("04T00:00", "05T00:00", {4: 7}, ""),
        ("04T22:00", "05T02:00", {4: 7}, "is on the next day: the slot counts on the day on which it starts"),
        ("04T09:00", "06T17:00", {4: 3, 5: 2, 6: 2}, "is days after the start: the slot's places are shared out among"),
        ("04T09:00", "04T08:00", {4: 7}, "is before the start: the slot counts on the day on which it starts"),
        ("04T09:00", "99T08:00", {4: 7}, "is not a FHIR instant: the slot counts on the day on which it starts"),
    ],
)
def test_a_slot_that_is_not_within_a_day_counts_where_it_starts_or_is_shared_out(
    tmp_path: Path, start: str, end: str, places: dict[int, int], noted: str
) -> None:
    odd = slot("1", f"2027-01-{start}:00+09:00", 7, end=f"2027-01-{end}:00+09:00")
    data = read(given(tmp_path, *to_seoul(odd)))
    assert (capacity(data), errors(data)) == ({f"2027-01-{day:02}": size for day, size in places.items()}, [])
    assert [note.partition(": end: ")[2][: len(noted)] for note in notes(data)] == ([noted] if noted else [])


def test_an_end_that_is_far_away_makes_no_days_of_years(tmp_path: Path) -> None:
    data = read(given(tmp_path, *to_seoul(slot("1", capacity=7, end="2099-12-31T23:59:59+09:00"))))
    assert (capacity(data), errors(data), len(notes(data))) == ({"2027-01-04": 7}, [], 1)


def test_a_time_without_an_offset_is_the_hospitals(tmp_path: Path) -> None:
    data = read(given(tmp_path, *to_seoul(slot("1", "2027-01-04T23:30:00", end="2027-01-04T23:45:00"))))
    assert (capacity(data), errors(data)) == ({"2027-01-04": 1}, [])
    assert notes(data) == ["x.ndjson line 3: start: has no offset from UTC, and is read as the time at the hospital"]


def test_slots_that_share_an_id_all_count_and_one_that_is_repeated_counts_once(tmp_path: Path) -> None:
    other_day, other_schedule = (
        slot("1", "2027-01-05T09:00:00+09:00", 4),
        slot("1", schedule={"reference": "Schedule/s2"}),
    )
    rows = (
        schedule("s2"),
        slot("1", capacity=3),
        slot("1", capacity=3),
        other_day,
        other_schedule,
        slot("1", capacity=9),
    )
    data = read(given(tmp_path, *to_seoul(*rows, other_day)))
    assert capacity(data) == {"2027-01-04": 3 + 1, "2027-01-05": 4}
    assert (errors(data), data.ignored) == ([], {"repeated Slot": 2})
    assert notes(data) == [
        "x.ndjson lines 6-7, 9: id: an earlier Slot of another Schedule or time has this id: both are taken",
        "x.ndjson line 8: id: this Slot came before with another content, which is kept",
    ]


def test_locations_and_schedules_that_share_an_id_lose_no_place(tmp_path: Path) -> None:
    rows = (location(name="Other"), schedule(cvx="211"), schedule(place="Location/h2"), location("h2"), location("h2"))
    data = read(given(tmp_path, *to_seoul(*rows, slot("1", capacity=3))))
    assert (data.hospitals["h1"].name, data.hospitals["h1"].offered(), capacity(data)) == (
        "Clinic h1", ["208", "211"], {"2027-01-04": 3},
    )  # fmt: skip
    assert (errors(data), data.ignored) == ([], {"repeated Location": 1})
    assert [note.partition(":")[0] for note in notes(data)] == [f"x.ndjson line {line}" for line in (3, 4, 5)]


@pytest.mark.parametrize("key", ["store_7", "가게 7", "a/b", "-7", "x" * 65, "7 ", "@"])
def test_an_id_that_fhir_forbids_becomes_one_that_is_always_the_same(tmp_path: Path, key: str) -> None:
    given(tmp_path, location(key), schedule(place=f"Location/{key}"), slot("1", capacity=3))
    data = read(given(tmp_path, HEADER, LOT.replace("h1", key), name="l.csv"))
    [made] = data.hospitals
    assert (made, errors(data)) == (hospital_id(key), [])
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9.-]{7,63}", made)
    assert hospital_id(made) == made != hospital_id(f"{key}_")
    assert capacity(data, made) == {"2027-01-04": 3}
    assert list(data.lots) == [hospital_id(key.strip())]  # cells of a CSV file have no spaces around them
    [note] = notes(data)
    assert note.endswith(f" has what an id may not have: it is {made} here")


def test_numbers_as_ids_and_references_of_every_form_are_understood(tmp_path: Path) -> None:
    references = ("7", "Location/7", "https://example.org/fhir/Location/7", "Location/7/_history/2")
    schedules = [schedule(f"s{at}", place) for at, place in enumerate(references)]
    schedules[0]["actor"] = schedules[0]["actor"][0]  # a list of one, without its brackets
    slots = [slot(f"{at}", schedule={"reference": f"Schedule/s{at}"}) for at in range(len(references))]
    data = read(given(tmp_path, location(id=7, name="Seven"), *schedules, *slots))
    assert (capacity(data, "7"), errors(data)) == ({"2027-01-04": len(references)}, [])
    assert notes(data) == ["x.ndjson line 1: id: is a number, and read as text"]


def test_a_slot_without_an_id_counts(tmp_path: Path) -> None:
    data = read(given(tmp_path, *to_seoul(slot("", capacity=2), slot("", capacity=2), slot("", id=None))))
    assert (capacity(data), errors(data)) == ({"2027-01-04": 5}, [])
    assert [note.partition(":")[0] for note in notes(data)] == ["x.ndjson lines 3-5"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Elm\tPharmacy", "Elm Pharmacy"),  # a raw one, which JSON forbids
        ("Elm\\tPharmacy", "Elm Pharmacy"),
        ("Elm\\u0085Pharmacy", "Elm Pharmacy"),
        ("Elm\\ud800Pharmacy", "Elm Pharmacy"),
        ("n" * 201, "n" * 200),
        ("", "h1"),
    ],
)
def test_a_name_that_cannot_be_shown_is_made_one_that_can(tmp_path: Path, written: str, name: str) -> None:
    row = json.dumps(location(name="@"), ensure_ascii=False).replace("@", written)
    data = read(given(tmp_path, row, schedule(), slot("1", capacity=8)))
    assert (data.hospitals["h1"].name, capacity(data), errors(data)) == (name, {"2027-01-04": 8}, [])
    [note] = notes(data)
    assert note.startswith("x.ndjson line 1: ")


@pytest.mark.parametrize("code", [None, "", "covid", "59267-1000-1"])
def test_a_product_without_a_cvx_code_is_not_told_and_its_slots_count(tmp_path: Path, code: Any) -> None:
    data = read(given(tmp_path, location(), schedule(cvx=code), slot("1", capacity=4)))
    assert (data.hospitals["h1"].offered(), capacity(data), errors(data)) == ([], {"2027-01-04": 4}, [])
    [note] = notes(data)
    assert note.endswith("what the hospital offers counts as not told")


@pytest.mark.parametrize(
    ("system", "offered"),
    [
        ("http://hl7.org/fhir/sid/cvx", ["208"]),
        ("http://hl7.org/fhir/sid/CVX", ["208"]),
        ("urn:oid:2.16.840.1.113883.12.292", ["208"]),
        ("", ["208"]),
        (None, ["208"]),
        ("http://hl7.org/fhir/sid/ndc", []),
        ("http://snomed.info/sct", []),
    ],
)
def test_a_code_of_another_system_than_cvx_is_not_told(tmp_path: Path, system: Any, offered: list[str]) -> None:
    product = {"url": SMART + "vaccine-product", "valueCoding": {"system": system, "code": "208"}}
    data = read(given(tmp_path, location(), schedule(extension=[product]), slot("1", capacity=4)))
    assert (data.hospitals["h1"].offered(), capacity(data), errors(data)) == (offered, {"2027-01-04": 4}, [])
    why = f"'{system}|208' is not a CVX code: what the hospital offers counts as not told"
    assert notes(data) == ([] if offered else [f"x.ndjson line 2: vaccine-product: {why}"])


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ndjson")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.ndjson").symlink_to(tmp_path / "nowhere")
    data = read(given(tmp_path, *to_seoul(slot("1"))))
    assert (capacity(data), errors(data)) == ({"2027-01-04": 1}, [])
    assert data.not_read == ["gone.ndjson", "pipe.csv", "pipe.ndjson"]


@pytest.mark.parametrize(
    ("encoding", "delimiter", "noted"),
    [
        ("utf-8-sig", ",", []),
        ("utf-16", ",", ["file: is UTF-16, not UTF-8, and read as such"]),
        ("utf-16-le", ",", ["file: is UTF-16, not UTF-8, and read as such"]),
        ("utf-16-be", ",", ["file: is UTF-16, not UTF-8, and read as such"]),
        ("cp949", ",", ["line: is not UTF-8, and read as CP949 (Korean Windows)"]),
        ("utf-8", ";", ["header: columns are parted by semicolons, not by commas"]),
        ("utf-8", "\t", ["header: columns are parted by tabs, not by commas"]),
    ],
)
def test_a_csv_file_of_another_encoding_or_delimiter_is_read_and_that_is_noted(
    tmp_path: Path, encoding: str, delimiter: str, noted: list[str]
) -> None:
    text = f"note,{HEADER}\r\n냉장,{LOT}\r\n".replace(",", delimiter)
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    data = read(tmp_path)
    assert ([lot.quantity for lot in data.lots["h1"]], errors(data)) == ([10], [])
    assert [*data.notes] == noted


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_first_line_for_excel_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = f"sep={delimiter}\r\n" + f"{HEADER},a;b;c;d;e;f;g;h\r\n{LOT}\r\n".replace(",", delimiter)
    (tmp_path / "l.csv").write_bytes(text.encode("utf-8-sig"))
    data = read(tmp_path)
    assert ([(lot.row.line, lot.quantity) for lot in data.lots["h1"]], errors(data)) == ([(3, 10)], [])
    assert len(notes(data)) == (delimiter != ",")


def test_a_file_that_only_begins_like_utf_16_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe" + f"{HEADER}\n{LOT}".encode("utf-16-le") + b"\0")
    assert errors(read(tmp_path)) == ["l.csv:1: file: begins like UTF-16, and is not: the file is left out"]


def test_of_a_column_that_is_there_twice_no_cell_is_taken_silently(tmp_path: Path) -> None:
    data = read(given(tmp_path, f"{HEADER},quantity,note,note", f"{LOT},10,a,b", f"{LOT},12,,", name="l.csv"))
    assert [lot.quantity for lot in data.lots["h1"]] == [10]
    assert errors(data) == ["l.csv:3: quantity: is there twice, as '10' and as '12'"]
    assert notes(data) == ["l.csv line 1: header: quantity is there twice: rows are taken in which both say the same"]


def test_a_manufacturers_code_in_small_letters_is_that_of_the_same_lot(tmp_path: Path) -> None:
    data = read(given(tmp_path, HEADER, LOT, LOT.replace("PFR", "pfr"), name="l.csv"))
    assert ([lot.mvx for lot in data.lots["h1"]], errors(data)) == (["PFR", "PFR"], [])
    assert notes(data) == ["l.csv line 3: mvx: is in small letters, and read as in capitals"]


def test_what_is_wrong_with_every_row_is_one_line_of_the_report(tmp_path: Path) -> None:
    open_slots = [slot(str(at), status="open") for at in range(300)]
    data = read(given(tmp_path, *to_seoul(*open_slots, slot("last", status="Free"))))
    assert (refusals(data.errors), capacity(data)) == (
        ["x.ndjson lines 3-302: status: 'open' is neither free nor busy"], {"2027-01-04": 1},
    )  # fmt: skip


def test_lots_are_read_under_any_order_of_columns(tmp_path: Path) -> None:
    header, lot = (",".join(reversed(text.split(","))) for text in (HEADER, LOT))
    content = f'\ufeff{header.upper()},note\r\n\r\n{lot},"first, and last"\r\n{lot},\r\n,,,,,,,\r\n'
    (tmp_path / "stock.csv").write_text(content, encoding="utf-8", newline="")
    data = read(tmp_path)
    assert errors(data) == []
    found, again = data.lots["h1"]
    assert (again.lot_number, again.quantity) == (found.lot_number, found.quantity)
    assert (found.row, found.cvx, found.mvx, found.lot_number) == (Row("stock.csv", 3), "208", "PFR", "A1")
    assert (found.manufactured, found.expires, found.quantity) == (date(2026, 10, 1), date(2027, 3, 31), 10)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("h1,208,PFR,A2,2026-10-01,2027-03-31", "l.csv:3: quantity: is missing"),
        ("h1,208,,A2,2026-10-01,2027-03-31,1", "l.csv:3: mvx: is missing"),
        ("h1,208,PFR,A2,2026-10-01,2027-03-31,1,2", "l.csv:3: line: has 8 columns where the header has 7"),
        ("h1,208,PFR,A2,2026-10-01,2027-02-29,1", "l.csv:3: expires: '2027-02-29' is not a day written YYYY-MM-DD"),
        ("h1,208,PFR,A2,20261001,2027-03-31,1", "l.csv:3: manufactured: '20261001' is not a day written YYYY-MM-DD"),
        ("h1,208,PFR,A2,2026-10-01,2027-03-31,-5", "l.csv:3: quantity: -5 is not a whole number from 1"),
        ("h1,208,PFR,A2,2026-10-01,2027-03-31,ten", "l.csv:3: quantity: 'ten' is not a whole number"),
        ("h1,208,PFR,A2,2026-10-01,2027-03-31,1_0", "l.csv:3: quantity: '1_0' is not a whole number"),
        ("h1,208,PFR,A2,2026-10-01,2027-03-31,99999999999", "l.csv:3: quantity: '99999999999' is not a whole number"),
        ("h1,0208,PFR,A1,2026-10-01,2027-04-30,10", "l.csv:3: lot_number: this lot came before with other dates"),
        ('h1,208,PFR,"A2,2026-10-01,2027-03-31,1', "l.csv:3: line: is not CSV"),
    ],
)
def test_a_lot_in_error_is_named_and_the_others_are_kept(tmp_path: Path, row: str, said: str) -> None:
    data = read(given(tmp_path, HEADER, LOT, row, LOT.replace("A1", "A9"), name="l.csv"))
    [error] = errors(data)
    assert said in error
    assert [lot.lot_number for lot in data.lots["h1"]] == ["A1", "A9"]


def ids(directory: Path) -> list[str]:
    """The ids of the deliveries, in the order of the files and their lines."""
    return [lot.delivery_id for lot in read(directory).lots["h1"]]


def test_a_file_read_again_holds_the_same_deliveries_wherever_it_is_and_whatever_is_in_front(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    before = ids(given(tmp_path, HEADER, LOT, LOT.replace("A1", "A2"), LOT, name="week1.csv"))
    assert len({*before}) == 3
    more = f"{LOT.replace('A1', 'A0')},a note"
    swapped = [LOT, LOT.replace("A1", "A2"), LOT.replace(",208,", ",0208,")]
    again = ids(given(tmp_path / "there", f"{HEADER},note", more, *swapped, name="week1.csv"))
    assert again[1:] == before


def test_an_equal_line_of_another_file_is_another_delivery(tmp_path: Path) -> None:
    for name in ("week1.csv", "week2.csv"):
        given(tmp_path, HEADER, LOT, name=name)
    given(tmp_path, HEADER, LOT.replace(",10", ",60"), name="week3.csv")
    assert len({*ids(tmp_path)}) == 3
    assert sum(lot.quantity for lot in read(tmp_path).lots["h1"]) == 80


def test_moving_the_days_leaves_a_deliverys_id_as_it_is(tmp_path: Path) -> None:
    given(tmp_path, location(), schedule(), slot("1"))
    data = read(given(tmp_path, HEADER, LOT, name="l.csv"))
    shift(data, date(2027, 2, 1))
    assert [lot.delivery_id for lot in data.lots["h1"]] == ids(tmp_path)


def test_a_delivery_note_counts_once_for_each_of_its_lots_whatever_files_it_is_in(tmp_path: Path) -> None:
    noted, other = f"{LOT},DN-7", f"{LOT.replace('A1', 'A2')},DN-7"
    given(tmp_path, f"{HEADER},Delivery_ID", noted, other, f"{LOT},DN-8", f"{LOT},", name="a.csv")
    given(tmp_path, f"{HEADER},delivery_id", noted, noted.replace(",10,", ",11,"), name="b.csv")
    data = read(tmp_path)
    assert [lot.delivery_id for lot in data.lots["h1"]][:3] == ["DN-7", "DN-7", "DN-8"]
    assert len(data.lots["h1"]) == 4
    assert data.ignored == {"repeated delivery": 1}
    assert errors(data) == ["b.csv:3: delivery_id: this delivery came before with another content, which is kept"]


def test_the_report_names_lines_in_few_words() -> None:
    rows = [Row("b.csv", 2), *(Row("a.csv", n) for n in (2, 3, 4, 9, 11, 12))]
    assert str(Lines(rows)) == "a.csv lines 2-4, 9, 11-12; b.csv line 2"
    assert str(Lines(Row("a", 2 * n) for n in range(1, 25))).endswith(", 38, 40 and 4 more")


def test_a_csv_file_without_the_columns_is_left_out_with_their_names(tmp_path: Path) -> None:
    data = read(given(tmp_path, "hospital;cvx", "h1;208", name="l.csv"))
    assert errors(data) == [f"l.csv:1: header: lacks {', '.join(HEADER.split(',')[2:])}: the file is left out"]


def test_shifting_moves_every_date_by_the_same_number_of_days(tmp_path: Path) -> None:
    given(tmp_path, location(), schedule(), slot("1"), slot("2", "2027-01-07T09:00:00+09:00"))
    data = read(given(tmp_path, HEADER, LOT, "h1,208,PFR,B1,2026-10-01,9999-12-31,1", name="l.csv"))
    assert shift(data, date(2027, 1, 14)) == 10
    assert list(capacity(data)) == ["2027-01-14", "2027-01-17"]
    assert {day.day for day in data.hospitals["h1"].days.values()} == {date(2027, 1, 14), date(2027, 1, 17)}
    assert [(str(lot.manufactured), str(lot.expires)) for lot in data.lots["h1"]] == [
        ("2026-10-11", "2027-04-10"),
        ("2026-10-11", "9999-12-31"),
    ]


def test_shifting_needs_a_slot(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="--shift-to: moves the first day that has a slot, and there is none"):
        shift(read(given(tmp_path, location())), date(2027, 1, 1))


def test_a_range_is_consecutive_days_of_equal_capacity_and_at_most_366() -> None:
    def days(numbers: dict[int, int]) -> dict[date, Day]:
        at = {date.fromordinal(740_000 + n): size for n, size in numbers.items()}
        return {day: Day(Row("x", 1), day, size) for day, size in at.items()}

    def shape(numbers: dict[int, int]) -> list[tuple[int, int, int]]:
        found = [(run[0].day.toordinal() - 740_000, len(run), run[0].capacity) for run in ranges(days(numbers))]
        assert sum(length for _, length, _ in found) == len(numbers)
        return found

    assert shape({}) == []
    assert shape({3: 5, 1: 5, 2: 5, 4: 6, 6: 6}) == [(1, 3, 5), (4, 1, 6), (6, 1, 6)]
    assert shape(dict.fromkeys(range(800), 1)) == [(0, 366, 1), (366, 366, 1), (732, 68, 1)]


def test_the_demos_data_is_without_error() -> None:
    data = read(ROOT / "mesh" / "data")
    assert (errors(data), dict(data.ignored), data.without_lot()) == ([], {}, [])
    assert set(capacity(data, "jeju-aewol").values()) == {2}
    assert len({lot.expires for lot in data.lots["jeju-aewol"]}) == len(data.lots["jeju-aewol"]) == 2
    assert {hospital.time_zone for hospital in data.hospitals.values()} == {"Asia/Seoul"}


def refusal(code: grpc.StatusCode, message: str, *details: Message) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, message)


def test_a_services_refusal_is_reported_with_the_row_and_the_column() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation
    bad = error_details_pb2.BadRequest(
        field_violations=[
            violation(field="deliveries[2].expiry_date", description="too early"),
            violation(field="deliveries[7]", description="other content"),
            violation(field="hospital.time_zone", description="unknown"),
        ]
    )
    info = error_details_pb2.ErrorInfo(reason="INVALID_FIELD")
    assert violations_of(refusal(grpc.StatusCode.INVALID_ARGUMENT, "", info, bad)) == [
        (2, "expires", "too early [INVALID_FIELD]"),
        (7, "lot_number", "other content [INVALID_FIELD]"),
        (None, "time_zone", "unknown [INVALID_FIELD]"),
    ]
    assert violations_of(refusal(grpc.StatusCode.INTERNAL, "internal error")) == [
        (None, "row", "internal error [INTERNAL]")
    ]


def test_the_importer_waits_as_long_as_a_busy_service_says() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(700)
    assert pause_of(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry), 5) == 0.7
    assert [pause_of(refusal(grpc.StatusCode.UNAVAILABLE, "gone"), attempt) for attempt in (1, 2, 3)] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(("names", "calls"), [(True, [10, 8]), (False, [10, 5, 3, 2, 1, 2, 5, 3, 2, 1, 2])])
def test_a_refused_batch_loses_only_its_bad_rows(names: bool, calls: list[int]) -> None:
    """The service either names the bad rows, or says only that something is wrong with the batch."""
    days = [Day(Row("x", n), date(2027, 1, 1 + n), 5) for n in range(10)]
    asked: list[int] = []

    async def call(rows: Sequence[Day]) -> int:
        asked.append(len(rows))
        bad = [at for at, day in enumerate(rows) if day.row.line in (2, 7)]
        if bad:
            raise Refused([(at if names else None, "slot-capacity", "no") for at in bad])
        return len(rows) - 1

    async def send() -> Sender:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            sender = Sender(Data(), channel, "token", Outcome())
            assert await sender.send("days", days, call)
        return sender

    sender = asyncio.run(send())
    assert sorted(errors(sender.data)) == ["x:2: slot-capacity: no", "x:7: slot-capacity: no"]
    assert sender.outcome.changed["days"] + sender.outcome.unchanged["days"] == 8
    assert asked == calls


def test_nothing_to_import_needs_no_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def out(directory: Path, **options: Any) -> str:
        assert run(directory, lambda: grpc.aio.insecure_channel("127.0.0.1:1"), "token", **options) == 2
        return capsys.readouterr().out

    assert "missing is not a directory" in out(tmp_path / "missing")
    assert "there is no hospital and no lot to import" in out(tmp_path)
    assert "x.ndjson lines 1-2: line: is not JSON: Expecting value" in out(given(tmp_path, "oops", "oops"))
    given(tmp_path, location())
    assert "--shift-to: moves the first day that has a slot" in out(tmp_path, shift_to=date(2027, 1, 1))
    assert "--time-zone: Mars/Base is not an IANA time zone" in out(tmp_path, time_zones=["Mars/Base"])
    assert "--time-zone: localtime is not an IANA time zone" in out(tmp_path, time_zones=["TX=localtime"])
