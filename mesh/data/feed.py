"""Decides what the rows of a publisher's files mean.

The format is that of SMART Scheduling Links (smart-on-fhir/smart-scheduling-links, specification.md): FHIR NDJSON, one
Location, Schedule or Slot a line, in any number of *.ndjson files of any name and order. Other resource types are
counted and left out. Beside them each *.csv holds deliveries of lots; see `stock`.

- A Location is a hospital, in the time zone that `zones` finds, where its `position` says. Without a position nobody
  finds it by how near it is.
- A Slot adds its `slot-capacity` (1 when absent) to the day on which it starts at the hospital. One that is busy adds
  0: a day of nothing but busy slots has the capacity 0. One that lasts longer than a day and a night shares its places
  out among its days, since the publisher says how many there are in all.
- A hospital offers the vaccines that its Schedules name, if each of them names some: of one that names none, or none by
  a CVX code, nobody knows what it offers. A CVX code is the same with and without leading zeros.

Publishers do not keep to the specification. Where a row still says enough, it is taken under the assumption that loses
least, which is noted; else it is refused. The rows beside it are kept.

Files are read twice, because a Slot may come before its Schedule, and the slots' offsets may have to tell the time
zone. Memory grows with the hospitals' days and the lots, and by some hundred bytes for each slot, which serve to
recognise a repeated one.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from mesh.data.dataset import (
    MOST,
    Data,
    Day,
    Hospital,
    Invalid,
    Row,
    hospital_id,
    show,
    text_of,
    whole,
)
from mesh.data.files import Advance, Folder, Reader, Resource
from mesh.data.stock import Stock
from mesh.data.zones import Options, Written, Zone, zone_of
from services.approval.domain import canonical_code, time_zones

LONGEST_NAME = 200  # a limit of the contract
LONGEST_SLOT = 31  # days; a slot that lasts longer most likely has a wrong end
# What a name may not have: control characters, and halves of a surrogate pair, which JSON can escape and UTF-8 lacks.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# A whole number as text, perhaps with zeros or commas: "12.0", "1,000". Who writes "1.000" may mean a thousand or one.
WHOLE = re.compile(r"(-?(?:[0-9]{1,9}|[0-9]{1,3}(?:,[0-9]{3}){1,2}))(?:\.0{1,2})?")
# How the URLs and OIDs end by which FHIR calls the code system CVX.
CVX = ("cvx", "2.16.840.1.113883.12.292")
STATUSES = ("free", "busy", "busy-unavailable", "busy-tentative", "entered-in-error")

T = TypeVar("T")


def read(
    directory: Path,
    options: Options | None = None,
    advance: Advance = lambda _: None,
    zones_here: Callable[[], Mapping[str, str]] = dict,
) -> Data:
    """Reads the directory's files.

    `advance` is called with the number of bytes read, for *.ndjson twice. `zones_here` is asked for the time zones of
    the hospitals that were imported before, by id, if the files do not tell that of some hospital.
    """
    folder, feed = Folder.of(directory), _Feed(options or Options(), zones_here)
    feed.data.not_read = folder.others
    reader = Reader(feed.data, advance)
    for path in folder.resources:
        feed.sites_and_schedules(reader.resources(path))
    feed.join()
    again = Data()
    for path in folder.resources:
        feed.slots(Reader(again, advance).resources(path))
    said = {*feed.data.errors}  # what is wrong with the lines has been said, unless a file has just gone
    feed.data.errors += [error for error in again.errors if error not in said]
    stock = Stock(feed.data)
    for path in folder.stock:
        stock.take(reader.deliveries(path))
    return feed.data


@dataclass(slots=True)
class _Site:
    """A Location whose time zone is not known yet."""

    hospital: Hospital
    time_zone: object
    address: object
    content: Hashable


@dataclass(slots=True)
class _Schedule:
    """A Schedule: which vaccines of which Location, and with which offsets its slots are written."""

    row: Row
    location: str
    vaccines: set[str] = field(default_factory=set)
    all_named: bool = True


class _Feed:
    def __init__(self, options: Options, zones_here: Callable[[], Mapping[str, str]]) -> None:
        self.data, self.options, self.zones_here = Data(), options, cache(zones_here)
        self.sites: dict[str, _Site] = {}
        self.schedules: dict[str, _Schedule] = {}
        self.written: defaultdict[str, Written] = defaultdict(Written)  # by Schedule
        self.zones: dict[str, Zone] = {}  # by Location
        self.broken: set[str] = set()  # resources that were refused; a row that refers to one is not refused again
        self.places_of_slots: dict[str, int] = {}  # by id, a digest of where and when the first of them is
        self.contents: dict[int, int] = {}  # digests of slots, by those of what tells them apart

    def keep(self, row: Row, take: Callable[[Row, T], None], value: T) -> bool:
        try:
            take(row, value)
        except Invalid as error:
            self.data.refuse(row, error)
            return False
        return True

    # Locations and Schedules

    def sites_and_schedules(self, resources: Iterable[tuple[Row, Resource]]) -> None:
        for row, resource in resources:
            kind = resource["resourceType"]
            if kind == "Slot":
                self.data.slots = True
                self.offset(resource)
            elif kind in ("Location", "Schedule"):
                if not self.keep(row, self.location if kind == "Location" else self.schedule, resource):
                    self.broken.add(f"{kind}/{resource.get('id')}")
            else:
                self.data.ignored[kind[:64]] += 1

    def location(self, row: Row, location: Resource) -> None:
        key = self.id(row, location)
        name, position = self.name(row, location, key), self.position(row, location)
        zone = next((extension.get("valueCode") for extension in _extensions(location, "timezone")), None)
        address = location.get("address")
        content = name, position, repr(zone), repr(address)
        if key in self.sites:
            if self.sites[key].content == content:
                self.data.ignored["repeated Location"] += 1
            else:
                self.data.note(row, "id", "this Location came before with another content, which is kept")
            return
        hospital = Hospital(row, hospital_id(key), name, "", position)
        self.sites[key] = _Site(hospital, zone, address, content)
        if hospital.hospital_id != key:
            self.data.note(row, "id", f"{show(key)} has what an id may not have: it is {hospital.hospital_id} here")
        if zone is not None and not (isinstance(zone, str) and zone in time_zones()):
            self.data.note(row, "timezone", f"{show(zone)} is not an IANA time zone, and is passed over")

    def id(self, row: Row, resource: Resource) -> str:
        value = resource.get("id")
        if isinstance(value, int) and not isinstance(value, bool):
            self.data.note(row, "id", "is a number, and read as text")
            return str(value)
        return text_of(resource, "id")

    def name(self, row: Row, location: Resource, key: str) -> str:
        value = location.get("name")
        if not isinstance(value, str) or not value.strip():
            self.data.note(row, "name", "is missing: the id is taken for it")
            value = key
        name = UNPRINTABLE.sub(" ", value)
        if name != value:
            self.data.note(row, "name", "has control characters or halves of characters; each is read as a space")
        if len(name) > LONGEST_NAME:
            self.data.note(row, "name", f"is longer than {LONGEST_NAME} characters, and cut there")
        return name[:LONGEST_NAME]

    def position(self, row: Row, location: Resource) -> tuple[float, float] | None:
        told = location.get("position")
        position = _position(told)
        if told is not None and position is None:
            self.data.note(row, "position", "has no latitude and longitude in degrees, and is passed over")
        return position

    def schedule(self, row: Row, schedule: Resource) -> None:
        key = self.id(row, schedule)
        places = (_reference(actor, "Location") for actor in _several(schedule.get("actor")))
        found = list(dict.fromkeys(filter(None, places)))
        if not found:
            raise Invalid("actor", "has no reference to a Location")
        if len(found) > 1:
            self.data.note(row, "actor", "refers to several Locations: the first is taken")
        codes = [_code(extension) for extension in _extensions(schedule, "vaccine-product")]
        right = [code for code in codes if re.fullmatch("[0-9]{1,3}", code)]
        vaccines, wrong = {*map(canonical_code, right)}, [code for code in codes if code not in right]
        for code in wrong:
            what = f"{show(code)} is not a CVX code" if code else "has no code"
            self.data.note(row, "vaccine-product", f"{what}: what the hospital offers counts as not told")
        new = _Schedule(row, found[0], vaccines, bool(vaccines) and not wrong)
        known = self.schedules.setdefault(key, new)
        if known is new:
            return
        if known.location != new.location:
            self.data.note(row, "id", "this Schedule came before for another Location, which is kept")
        elif (known.vaccines, known.all_named) == (vaccines, new.all_named):
            self.data.ignored["repeated Schedule"] += 1
        else:
            self.data.note(row, "id", "this Schedule came before with other vaccines: they are added up")
            known.vaccines |= vaccines
            known.all_named &= new.all_named

    def offset(self, slot: Resource) -> None:
        """Notes with which offset a slot is written. UTC is no hint of where it is."""
        schedule, start = _reference(slot.get("schedule"), "Schedule"), slot.get("start")
        try:
            instant = datetime.fromisoformat(start) if isinstance(start, str) else None
        except ValueError:
            return
        if schedule and instant and (offset := instant.utcoffset()):
            self.written[schedule][instant.date(), offset] += 1

    def join(self) -> None:
        """Finds the hospitals' time zones, and drops the schedules whose Location is not there."""
        written = defaultdict[str, Written](Written)
        for key, schedule in self.schedules.items():
            written[schedule.location].update(self.written.pop(key, Written()))
        for key, site in self.sites.items():
            hospital = site.hospital
            try:
                zone = self.zones[key] = self.zone(site, written[key])
            except Invalid as error:
                self.data.refuse(hospital.row, error)
                self.broken.add(f"Location/{key}")
                continue
            if zone.assumed:
                self.data.note(hospital.row, "address", zone.assumed)
            hospital.time_zone = zone.name
            self.data.hospitals[hospital.hospital_id] = hospital
        for key, schedule in list(self.schedules.items()):
            if schedule.location in self.zones:
                hospital = self.sites[schedule.location].hospital
                hospital.vaccines |= schedule.vaccines
                hospital.all_named &= schedule.all_named
                continue
            del self.schedules[key]
            self.broken.add(f"Schedule/{key}")
            if f"Location/{schedule.location}" in self.broken:
                self.data.ignored["Schedule of a Location that was refused"] += 1
            else:
                self.data.refuse(schedule.row, Invalid("actor", f"there is no Location {show(schedule.location)}"))

    def zone(self, site: _Site, written: Written) -> Zone:
        """The zone that is told, else the one that the hospital has already, else an assumption. Invalid: none."""
        try:
            zone = zone_of(site.time_zone, site.address, written, self.options)
        except Invalid:
            if here := self.zone_here(site):
                return here
            raise
        # An assumption changes with the slots that happen to be in the files, and with their summer time.
        return (self.zone_here(site) if zone.assumed else None) or zone

    def zone_here(self, site: _Site) -> Zone | None:
        name = self.zones_here().get(site.hospital.hospital_id)
        return Zone(name, f"no time zone is told: {name} is kept, which the hospital has already") if name else None

    # Slots

    def slots(self, resources: Iterable[tuple[Row, Resource]]) -> None:
        for row, resource in resources:
            if resource["resourceType"] == "Slot":
                self.keep(row, self.slot, resource)

    def slot(self, row: Row, slot: Resource) -> None:
        schedule = _reference(slot.get("schedule"), "Schedule")
        if schedule is None:
            raise Invalid("schedule", "is no reference to a Schedule")
        if schedule not in self.schedules:
            if f"Schedule/{schedule}" not in self.broken:
                raise Invalid("schedule", f"there is no Schedule {show(schedule)}")
            self.data.ignored["Slot of a Schedule that was refused"] += 1
            return
        status = text_of(slot, "status").strip().lower()
        if status not in STATUSES:
            raise Invalid("status", f"{show(status)} is neither free nor busy")
        location = self.schedules[schedule].location
        hospital, zone = self.sites[location].hospital, self.zones[location]
        start = self.start(row, slot, zone)
        days = self.days(row, slot, start, zone)
        places = self.places(row, slot) if status == "free" else 0
        if not self.is_new(row, slot, (schedule, start), (status, days, places)):
            return
        if status == "entered-in-error":
            self.data.ignored["Slot entered-in-error"] += 1
            return
        each, rest = divmod(places, days)
        entries = [hospital.days.get(day) or Day(row, day) for day in _from(start.date(), days)]
        shares = [each + (at < rest) for at in range(days)]
        for entry, share in zip(entries, shares, strict=True):
            if entry.capacity + share > MOST:
                raise Invalid("slot-capacity", f"the day {entry.day} would have more than {MOST:,} places")
        for entry, share in zip(entries, shares, strict=True):
            entry.capacity += share
            hospital.days[entry.day] = entry

    def is_new(self, row: Row, slot: Resource, place: Hashable, content: Hashable) -> bool:
        """False for a slot that repeats an earlier one: with its id, of its Schedule, at its time."""
        if slot.get("id") in (None, ""):
            self.data.note(row, "id", "is missing: the Slot is taken, and would be a second time if it were repeated")
            return True
        key = self.id(row, slot)
        where = hash(place)
        if self.places_of_slots.setdefault(key, where) != where:
            self.data.note(row, "id", "an earlier Slot of another Schedule or time has this id: both are taken")
        at, digest = hash((key, where)), hash(content)
        if at not in self.contents:
            self.contents[at] = digest
            return True
        if self.contents[at] == digest:
            self.data.ignored["repeated Slot"] += 1
        else:
            self.data.note(row, "id", "this Slot came before with another content, which is kept")
        return False

    def start(self, row: Row, slot: Resource, zone: Zone) -> datetime:
        """When the slot starts, as a clock at the hospital shows it."""
        text = text_of(slot, "start")
        try:
            instant = datetime.fromisoformat(text)
            start = _at(instant, zone)
        except (ValueError, OverflowError):
            raise Invalid("start", f"{show(text)} is not a FHIR instant") from None
        if instant.tzinfo is None:
            self.data.note(row, "start", "has no offset from UTC, and is read as the time at the hospital")
        return start

    def days(self, row: Row, slot: Resource, start: datetime, zone: Zone) -> int:
        """On how many days the slot is."""
        text = slot.get("end")
        if text is None:
            return 1
        try:
            end = _at(datetime.fromisoformat(text), zone)
        except (TypeError, ValueError, OverflowError):
            self.data.note(row, "end", "is not a FHIR instant: the slot counts on the day on which it starts")
            return 1
        days = max(1, -((start - end) // timedelta(days=1)))  # rounded up
        if end < start:
            self.data.note(row, "end", "is before the start: the slot counts on the day on which it starts")
        elif days > LONGEST_SLOT:
            long = f"is more than {LONGEST_SLOT} days after the start"
            self.data.note(row, "end", f"{long}: the slot counts on the day on which it starts")
            return 1
        elif days > 1:
            self.data.note(row, "end", "is days after the start: the slot's places are shared out among its days")
        elif end.date() > start.date() and end.time() > time.min:
            self.data.note(row, "end", "is on the next day: the slot counts on the day on which it starts")
        return days

    def places(self, row: Row, slot: Resource) -> int:
        extension = next(_extensions(slot, "slot-capacity"), None)
        if extension is None:
            return 1
        value = next((value for key, value in extension.items() if key.startswith("value")), None)
        if isinstance(value, str) and (number := WHOLE.fullmatch(value.strip())):
            self.data.note(row, "slot-capacity", "is text, and read as a number")
            value = int(number[1].replace(",", ""))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self.data.note(row, "slot-capacity", "is no number of places: the slot counts as one place")
            return 1
        if value < 0:  # as when there are more bookings than places
            self.data.note(row, "slot-capacity", "is below 0: the slot counts as no place")
            return 0
        return whole("slot-capacity", value, 0)


def _at(instant: datetime, zone: Zone) -> datetime:
    """What a clock at the hospital shows. If its zone is assumed, that is what the publisher wrote, unless in UTC."""
    if instant.tzinfo is None or (zone.assumed and instant.utcoffset()):
        return instant.replace(tzinfo=None)
    return instant.astimezone(ZoneInfo(zone.name)).replace(tzinfo=None)


def _from(first: date, days: int) -> Iterator[date]:
    return (first + timedelta(days=at) for at in range(days))


def _position(value: object) -> tuple[float, float] | None:
    """FHIR's position as latitude and longitude; None if it is no point on the earth."""
    found = [value.get(name) for name in ("latitude", "longitude")] if isinstance(value, dict) else []
    try:
        degrees = [float(one) for one in found if isinstance(one, int | float | str) and not isinstance(one, bool)]
    except (ValueError, OverflowError):
        return None
    if len(degrees) == 2 and abs(degrees[0]) <= 90 and abs(degrees[1]) <= 180:
        return degrees[0], degrees[1]
    return None


def _several(value: object) -> list[Any]:
    """The members of a list, which may be written without its brackets when there is one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _extensions(resource: Resource, name: str) -> Iterator[Resource]:
    for extension in _several(resource.get("extension")):
        if isinstance(extension, dict) and str(extension.get("url")).endswith(f"/{name}"):
            yield extension


def _code(product: Resource) -> str:
    """The code of the extension `vaccine-product`, as SYSTEM|CODE if it is not CVX's; empty: it has none."""
    told = product.get("valueCoding")
    coding = told if isinstance(told, dict) else {}
    code, system = ("" if (value := coding.get(name)) is None else str(value).strip() for name in ("code", "system"))
    return f"{system}|{code}" if code and system and not system.lower().endswith(CVX) else code


def _reference(value: object, kind: str) -> str | None:
    """The id in {"reference": "Kind/id"}, which may be a whole URL, or of one version of it, or the id alone."""
    text = value.get("reference") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text:
        return None
    match = re.search(rf"(?:^|/){kind}/(.+?)(?:/_history/[^/]*)?$", text)
    if match:
        return match[1]
    return None if "/" in text else text
