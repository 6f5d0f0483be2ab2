"""Reads hospitals, daily capacity and vaccine lots from the files of a directory.

The format is that of SMART Scheduling Links (smart-on-fhir/smart-scheduling-links, specification.md): FHIR NDJSON, one
Location, Schedule or Slot a line, in any number of *.ndjson files of any name and order. Other resource types are
counted and left out. Beside them each *.csv holds deliveries of lots, under a header with the names in `COLUMNS`.
Whether a file's ending is in capitals does not matter. What else is in the directory is named as not read.

- A Location is a hospital. FHIR R4 gives it no time zone, so it comes from the extension `timezone` (valueCode), else
  from `address.state` if that is a US state with one zone, else from `--time-zone`, else it is the contract's default,
  Asia/Seoul, unless the address says that the place is somewhere else.
- The hospital is where its Location's `position` says. Without one nobody finds it by how near it is.
- A Slot adds its `slot-capacity` (1 when absent) to the day on which it starts at the hospital. One that is busy adds
  0: a day of nothing but busy slots has the capacity 0.
- A hospital offers the vaccines that its Schedules name, if each of them names some: of one that names none, or one in
  error, nobody knows what it offers. A CVX code is the same with and without leading zeros.
- A line of a *.csv is a delivery, and deliveries of one lot add up. Its id is in the column `delivery_id`, for example
  the number of the delivery note. Without one it is made of the file's name, the line's content, and how many equal
  lines come before it in the file: the same file imported again is the same deliveries, and an equal line in another
  file is another delivery.

A row in error is reported, and the other rows are kept. Files are read line by line, and twice, because a Slot may come
before its Schedule. Memory grows with the hospitals' days and the lots, and by some hundred bytes for each slot, which
serve to recognise a repeated one.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo, available_timezones

COLUMNS = ("hospital", "cvx", "mvx", "lot_number", "manufactured", "expires", "quantity")
DELIVERY_ID = "delivery_id"  # a column that may be there
# The UUIDv5 namespace of the ids of deliveries that have none of their own. It was made for them and never changes.
NAMESPACE = UUID("f6f0a3c1-6a0e-5c53-9d0c-2d1f8f6f0b47")
RESOURCES, STOCK = ".ndjson", ".csv"
DEFAULT_TIME_ZONE = "Asia/Seoul"
# US states and territories that lie in one zone as a whole (49 CFR 71), and those that do not.
STATES = {
    "America/New_York": "CT DC DE GA MA MD ME NC NH NJ NY OH PA RI SC VA VT WV",
    "America/Chicago": "AL AR IA IL LA MN MO MS OK WI",
    "America/Denver": "CO MT NM UT WY",
    "America/Los_Angeles": "CA WA",
    "Pacific/Honolulu": "HI",
    "America/Puerto_Rico": "PR VI",
    "Pacific/Guam": "GU MP",
    "Pacific/Pago_Pago": "AS",
}
STATE_ZONE = {state: zone for zone, states in STATES.items() for state in states.split()}
SEVERAL_ZONES = ["AK", "AZ", "FL", "ID", "IN", "KS", "KY", "MI", "ND", "NE", "NV", "OR", "SD", "TN", "TX"]

# Limits of the contracts: places a day and doses a lot; days in one SetDailyCapacity.
MOST, MOST_DAYS = 1_000_000, 366
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half of a pair; UTF-8, and so protobuf, has none

T = TypeVar("T")
Resource = dict[str, Any]


class Invalid(ValueError):
    """A field of a row, or an option, does not hold what it should."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """Where something came from."""

    file: str
    line: int


@dataclass(frozen=True, slots=True, order=True)
class RowError:
    """A row that was not imported as it stands, and why."""

    row: Row
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row.file}:{self.row.line}: {self.field}: {self.reason}"


@dataclass(slots=True)
class Day:
    """The places of one day, and the first slot that spoke of it."""

    row: Row
    day: date
    capacity: int = 0


@dataclass(slots=True)
class Hospital:
    """A Location, the days of its slots, and the CVX codes of its schedules, without leading zeros.

    `all_named`: no schedule of the hospital's leaves open what it offers. `position` are its latitude and longitude.
    """

    row: Row
    hospital_id: str
    name: str
    time_zone: str
    position: tuple[float, float] | None = None
    days: dict[date, Day] = field(default_factory=dict)
    vaccines: set[str] = field(default_factory=set)
    all_named: bool = True

    def offered(self) -> list[str]:
        """The vaccines that it offers; empty: not told."""
        return sorted(self.vaccines, key=int) if self.all_named else []


@dataclass(frozen=True, slots=True)
class Lot:
    """A line of a CSV file: a delivery of a lot."""

    row: Row
    cvx: str
    mvx: str
    lot_number: str
    manufactured: date
    expires: date
    quantity: int
    delivery_id: str


@dataclass(slots=True)
class Data:
    """What a directory holds; lots by hospital.

    `ignored` counts what was left out without being an error; `not_read` are the names of files that are of no kind
    that is read, and of directories.
    """

    hospitals: dict[str, Hospital] = field(default_factory=dict)
    lots: defaultdict[str, list[Lot]] = field(default_factory=lambda: defaultdict(list))
    ignored: Counter[str] = field(default_factory=Counter)
    errors: list[RowError] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)

    def rows(self) -> int:
        """The number of hospitals, of their days, and of lots."""
        days = sum(len(hospital.days) for hospital in self.hospitals.values())
        return len(self.hospitals) + days + sum(map(len, self.lots.values()))

    def without_lot(self) -> list[str]:
        """Vaccines that a hospital's schedules offer without a lot in the files, as "hospital CVX"."""
        lots = {(key, canonical_code(lot.cvx)) for key, lots in self.lots.items() for lot in lots}
        offered = {(key, vaccine) for key, hospital in self.hospitals.items() for vaccine in hospital.vaccines}
        return [" ".join(pair) for pair in sorted(offered - lots)]


def read(directory: Path, time_zone: str | None = None, advance: Callable[[int], None] = lambda _: None) -> Data:
    """Reads the directory's files. `advance` is called with the number of bytes read, for *.ndjson twice."""
    return _Reader(time_zone, advance).read(directory)


@cache  # reading the names takes some 600 files
def time_zones() -> set[str]:
    """The IANA names that this machine knows."""
    return available_timezones()


def bytes_to_read(directory: Path) -> int:
    """The sum of what `read` will tell `advance`."""
    files = ((times, path) for end, times in ((RESOURCES, 2), (STOCK, 1)) for path in _files(directory, end))
    return sum(times * path.stat().st_size for times, path in files)


def canonical_code(cvx: str) -> str:
    """A CVX code without leading zeros: 08 and 8 are one."""
    return cvx.lstrip("0") or "0"


def shift(data: Data, to: date) -> int:
    """Moves the first day to `to`, and everything with it; returns by how many days. Invalid: there is no slot."""
    first = min((day for hospital in data.hospitals.values() for day in hospital.days), default=None)
    if first is None:
        raise Invalid("--shift-to", "moves the first day that has a slot, and there is none")
    delta = to - first

    def moved(day: date) -> date:
        try:
            return day + delta
        except OverflowError:  # 9999-12-31 means that a lot does not expire
            return date.max if delta > timedelta(0) else date.min

    for hospital in data.hospitals.values():
        hospital.days = {moved(day): replace(places, day=moved(day)) for day, places in hospital.days.items()}
    for lots in data.lots.values():
        lots[:] = [replace(lot, manufactured=moved(lot.manufactured), expires=moved(lot.expires)) for lot in lots]
    return delta.days


def ranges(days: dict[date, Day]) -> Iterator[list[Day]]:
    """Consecutive days of equal capacity, at most as many as one SetDailyCapacity takes."""
    run: list[Day] = []
    for _, day in sorted(days.items()):
        if run and (len(run) == MOST_DAYS or (day.day - run[-1].day).days > 1 or day.capacity != run[-1].capacity):
            yield run
            run = []
        run.append(day)
    if run:
        yield run


class _Reader:
    def __init__(self, time_zone: str | None, advance: Callable[[int], None]) -> None:
        self.data, self.time_zone, self.advance = Data(), time_zone, advance
        self.schedules: dict[str, tuple[Row, str, set[str], bool]] = {}
        self.broken: set[str] = set()  # rows in error; a row that refers to one is not reported again
        self.seen: defaultdict[str, dict[Hashable, int]] = defaultdict(dict)

    def read(self, directory: Path) -> Data:
        sources, stock = _files(directory, RESOURCES), _files(directory, STOCK)
        others = set(directory.iterdir()) - {*sources, *stock}
        self.data.not_read = sorted(path.name + "/" * path.is_dir() for path in others)
        for path in sources:
            for row, resource in self.resources(path, self.data.errors):
                kind = resource["resourceType"]
                if kind in ("Location", "Schedule"):
                    if not self.keep(row, self.location if kind == "Location" else self.schedule, resource):
                        self.broken.add(f"{kind}/{resource.get('id')}")
                elif kind != "Slot":
                    self.data.ignored[kind[:64]] += 1
        self.join_schedules()
        for path in sources:
            for row, resource in self.resources(path, []):
                if resource["resourceType"] == "Slot":
                    self.keep(row, self.slot, resource)
        for path in stock:
            self.stock(path)
        return self.data

    def keep(self, row: Row, take: Callable[[Row, T], None], value: T) -> bool:
        try:
            take(row, value)
        except Invalid as error:
            self.data.errors.append(RowError(row, error.name, error.reason))
            return False
        return True

    def lines(self, path: Path, errors: list[RowError]) -> Iterator[tuple[Row, str]]:
        """The lines that are not blank. Any of them may begin with a BOM, if the file was joined from several."""
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    self.advance(len(raw))
                    try:
                        text = raw.decode("utf-8-sig").strip()
                    except UnicodeDecodeError as error:
                        errors.append(RowError(Row(path.name, number), "line", f"is not UTF-8: {error.reason}"))
                        continue
                    if text:
                        yield Row(path.name, number), text
        except OSError as error:
            errors.append(RowError(Row(path.name, 0), "file", error.strerror or str(error)))

    def resources(self, path: Path, errors: list[RowError]) -> Iterator[tuple[Row, Resource]]:
        for row, text in self.lines(path, errors):
            try:
                resource = json.loads(text)
            except (ValueError, RecursionError) as error:
                errors.append(RowError(row, "line", f"is not JSON: {error}"))
                continue
            if isinstance(resource, dict) and isinstance(resource.get("resourceType"), str):
                yield row, resource
            else:
                errors.append(RowError(row, "resourceType", "is missing"))

    def is_new(self, kind: str, name: str, key: Hashable, content: Hashable) -> bool:
        """False for a row that repeats an earlier one. Invalid: it has the same key and another content."""
        seen, digest = self.seen[kind], hash(content)
        if key not in seen:
            seen[key] = digest
            return True
        if seen[key] != digest:
            raise Invalid(name, f"this {kind} came before with another content, which is kept")
        self.data.ignored[f"repeated {kind}"] += 1
        return False

    def location(self, row: Row, location: Resource) -> None:
        key, name, zone = _text(location, "id"), _text(location, "name"), self.zone(location)
        told = location.get("position")
        position = _position(told)
        if self.is_new("Location", "id", key, (name, zone, position)):
            self.data.hospitals[key] = Hospital(row, key, name, zone, position)
        if told is not None and position is None:  # checked last, since the hospital is kept whatever it is
            raise Invalid("position", f"{_show(told)} has no latitude and longitude in degrees")

    def zone(self, location: Resource) -> str:
        for extension in _extensions(location, "timezone"):
            zone = extension.get("valueCode")
            if not isinstance(zone, str) or zone not in time_zones():
                raise Invalid("timezone", f"{_show(zone)} is not an IANA time zone")
            return zone
        address = location.get("address")
        address = address if isinstance(address, dict) else {}
        state, country = str(address.get("state") or "").upper(), str(address.get("country") or "").upper()
        american = country in ("", "US", "USA")
        if american and state in STATE_ZONE:
            return STATE_ZONE[state]
        if self.time_zone:
            return self.time_zone
        if country in ("", "KR", "KOR") and state not in SEVERAL_ZONES:
            return DEFAULT_TIME_ZONE
        where = _show(address.get("state" if american else "country"))
        raise Invalid("address", f"{where} tells no time zone: give the extension timezone, or --time-zone")

    def schedule(self, row: Row, schedule: Resource) -> None:
        key, actors = _text(schedule, "id"), schedule.get("actor")
        places = [_reference(actor, "Location") for actor in (actors if isinstance(actors, list) else [])]
        if (location := next(filter(None, places), None)) is None:
            raise Invalid("actor", "has no reference to a Location")
        products = [extension.get("valueCoding") for extension in _extensions(schedule, "vaccine-product")]
        named = {str(product.get("code")) if isinstance(product, dict) else "" for product in products}
        vaccines = {canonical_code(code) for code in named if re.fullmatch("[0-9]{1,3}", code)}
        wrong = sorted(code for code in named if not re.fullmatch("[0-9]{1,3}", code))
        if self.is_new("Schedule", "id", key, (location, *sorted(vaccines), *wrong)):
            self.schedules[key] = row, location, vaccines, bool(vaccines) and not wrong
        if wrong:  # checked last, since the slots are kept whatever it is
            raise Invalid("vaccine-product", f"{_show(wrong[0])} is not a CVX code")

    def join_schedules(self) -> None:
        """Drops the schedules whose Location is not there."""
        for key, (row, location, vaccines, all_named) in list(self.schedules.items()):
            if hospital := self.data.hospitals.get(location):
                hospital.vaccines |= vaccines
                hospital.all_named &= all_named
                continue
            del self.schedules[key]
            self.broken.add(f"Schedule/{key}")
            if f"Location/{location}" in self.broken:
                self.data.ignored["Schedule of a Location in error"] += 1
            else:
                self.data.errors.append(RowError(row, "actor", f"there is no Location {_show(location)}"))

    def slot(self, row: Row, slot: Resource) -> None:
        key, status, start = _text(slot, "id"), _text(slot, "status"), _text(slot, "start")
        if (schedule := _reference(slot.get("schedule"), "Schedule")) is None:
            raise Invalid("schedule", "is no reference to a Schedule")
        if schedule not in self.schedules:
            if f"Schedule/{schedule}" not in self.broken:
                raise Invalid("schedule", f"there is no Schedule {_show(schedule)}")
            self.data.ignored["Slot of a Schedule in error"] += 1
            return
        if status not in ("free", "busy", "busy-unavailable", "busy-tentative", "entered-in-error"):
            raise Invalid("status", f"{_show(status)} is neither free nor busy")
        hospital = self.data.hospitals[self.schedules[schedule][1]]
        try:
            instant = datetime.fromisoformat(start)
            day = instant.astimezone(ZoneInfo(hospital.time_zone)).date()
        except (ValueError, OverflowError):
            raise Invalid("start", f"{_show(start)} is not a FHIR instant") from None
        if instant.tzinfo is None:
            raise Invalid("start", f"{_show(start)} has no offset from UTC")
        sizes = [_whole("slot-capacity", size.get("valueInteger"), 0) for size in _extensions(slot, "slot-capacity")]
        places = (sizes[0] if sizes else 1) if status == "free" else 0
        entry = hospital.days.get(day) or Day(row, day)
        if not self.is_new("Slot", "id", key, (schedule, instant, status, places)):
            return
        if status == "entered-in-error":
            self.data.ignored["Slot entered-in-error"] += 1
            return
        if entry.capacity + places > MOST:
            raise Invalid("slot-capacity", f"the day {day} would have more than {MOST:,} places")
        entry.capacity += places
        hospital.days[day] = entry

    def stock(self, path: Path) -> None:
        header: list[str] = []
        equal = Counter[Hashable]()  # lines of this file, by content

        def take(row: Row, cells: list[str]) -> None:
            self.lot(row, header, cells, equal)

        for row, text in self.lines(path, self.data.errors):
            try:  # each line by itself, so that a quote that is not closed does not swallow the next rows
                cells = [cell.strip() for cell in next(csv.reader([text], strict=True))]
            except csv.Error as error:
                self.data.errors.append(RowError(row, "line", f"is not CSV: {error}"))
                continue
            if header:
                self.keep(row, take, cells)
            elif missing := [name for name in COLUMNS if name not in map(str.lower, cells)]:
                self.data.errors.append(RowError(row, "header", f"lacks {', '.join(missing)}: the file is left out"))
                return
            else:
                header = [name.lower() for name in cells]

    def lot(self, row: Row, header: list[str], cells: list[str], equal: Counter[Hashable]) -> None:
        if len(cells) > len(header):
            raise Invalid("line", f"has {len(cells)} columns where the header has {len(header)}")
        values = dict(zip(header, cells, strict=False))
        hospital, cvx, mvx, number = (_text(values, name) for name in COLUMNS[:4])
        manufactured, expires = _day(values, "manufactured"), _day(values, "expires")
        quantity = _text(values, "quantity")
        doses = _whole("quantity", int(quantity) if re.fullmatch("-?[0-9]{1,9}", quantity) else quantity, 1)
        of_lot = hospital, canonical_code(cvx), mvx, number
        dates = manufactured, expires
        if self.seen["dates"].setdefault(of_lot, hash(dates)) != hash(dates):
            raise Invalid("lot_number", "this lot came before with other dates, which are kept")
        delivery_id = values.get(DELIVERY_ID, "")
        if delivery_id:
            if not self.is_new("delivery", DELIVERY_ID, (*of_lot, delivery_id), doses):
                return
        else:
            content = (*of_lot, *map(str, dates), str(doses))
            equal[content] += 1
            name = "\n".join((row.file, *content, str(equal[content])))
            delivery_id = str(uuid5(NAMESPACE, name))
        self.data.lots[hospital].append(Lot(row, cvx, mvx, number, *dates, doses, delivery_id))


def _files(directory: Path, end: str) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix.lower() == end and not path.is_dir())


def _show(value: object) -> str:
    """A value for a message: short, on one line, without control characters for a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(values: Resource, name: str) -> str:
    value = values.get(name)
    if value is None or value == "":
        raise Invalid(name, "is missing")
    if not isinstance(value, str) or SURROGATE.search(value):
        raise Invalid(name, f"{_show(value)} is not text")
    return value


def _day(values: dict[str, str], name: str) -> date:
    text = _text(values, name)
    try:
        if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):  # fromisoformat accepts weeks too
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Invalid(name, f"{_show(text)} is not a day written YYYY-MM-DD")


def _position(value: object) -> tuple[float, float] | None:
    """FHIR's position as latitude and longitude; None if it is no point on the earth."""
    found = [value.get(name) for name in ("latitude", "longitude")] if isinstance(value, dict) else []
    degrees = [float(one) for one in found if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(degrees) == 2 and abs(degrees[0]) <= 90 and abs(degrees[1]) <= 180:
        return degrees[0], degrees[1]
    return None


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise Invalid(name, f"{_show(value)} is not a whole number from {least} to {MOST:,}")
    return value


def _extensions(resource: Resource, name: str) -> Iterator[Resource]:
    extensions = resource.get("extension")
    for extension in extensions if isinstance(extensions, list) else []:
        if isinstance(extension, dict) and str(extension.get("url")).endswith(f"/{name}"):
            yield extension


def _reference(value: object, kind: str) -> str | None:
    """The id in {"reference": "Kind/id"}, which may also be a whole URL."""
    text = value.get("reference") if isinstance(value, dict) else None
    match = re.search(rf"(?:^|/){kind}/([^/]+)$", text) if isinstance(text, str) else None
    return match[1] if match else None
