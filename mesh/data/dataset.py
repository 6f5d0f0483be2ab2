"""What a directory of a publisher's files holds: hospitals with the places of their days, and deliveries of lots.

`files` reads the files, `feed` decides what their rows mean, and `sender` sends the result to the services. What was
refused, assumed or left out on the way is collected here as well.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid5

from services.approval.domain import canonical_code

# The UUIDv5 namespace of the ids of deliveries and hospitals that have none that can be used. It never changes.
NAMESPACE = UUID("f6f0a3c1-6a0e-5c53-9d0c-2d1f8f6f0b47")
# Limits of the contracts: places a day and doses a lot; days in one SetDailyCapacity.
MOST, MOST_DAYS = 1_000_000, 366
# Names of what may hold slots and is not read: other kinds of JSON, archives, tables, and files that are half copied.
MAY_HOLD_SLOTS = re.compile(r"\.(ndjson|jsonl?|gz|zip|xlsx)\b", re.IGNORECASE)
MOST_SPANS = 20  # of lines that a note names


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
    """A row that was refused, and why."""

    row: Row
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row.file}:{self.row.line}: {self.field}: {self.reason}"


class Lines:
    """Lines of files, told in few words: "a.csv lines 2-9, 11; b.csv line 2".

    Memory is bounded, however many lines a note is about: neighbours are one span, and after MOST_SPANS spans the rest
    is a number.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._spans: list[tuple[str, int, int]] = []
        self._more = 0
        for row in sorted(rows):
            self.add(row)

    def add(self, row: Row) -> None:
        """Adds a line; the same one twice is once."""
        file, first, last = self._spans[-1] if self._spans else ("", 0, 0)
        if file == row.file and last <= row.line <= last + 1:
            self._spans[-1] = file, first, row.line
        elif len(self._spans) < MOST_SPANS:
            self._spans.append((row.file, row.line, row.line))
        else:
            self._more += 1

    def __str__(self) -> str:
        spans = defaultdict[str, list[tuple[int, int]]](list)
        for file, first, last in self._spans:
            spans[file].append((first, last))
        told = []
        for file, found in spans.items():
            several = len(found) > 1 or found[0][0] < found[0][1]
            numbers = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in found)
            told.append(f"{file} line{'s' * several} {numbers}")
        more = f" and {self._more:,} more" if self._more else ""
        return "; ".join(told) + more


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

    `errors` are the rows that were refused. `notes` say what was assumed about rows that were taken, and of which.
    `ignored` counts what was left out without being an error; `not_read` are the names of what is no file of a kind
    that is read. `slots`: there is at least one.
    """

    hospitals: dict[str, Hospital] = field(default_factory=dict)
    lots: defaultdict[str, list[Lot]] = field(default_factory=lambda: defaultdict(list))
    ignored: Counter[str] = field(default_factory=Counter)
    errors: list[RowError] = field(default_factory=list)
    notes: defaultdict[str, Lines] = field(default_factory=lambda: defaultdict(Lines))
    not_read: list[str] = field(default_factory=list)
    slots: bool = False

    def keeps_open(self) -> str:
        """Why days that are in no file may not be closed, since they may be in something that was not taken; or ""."""
        if self.errors:
            return "a row was refused"
        unread = [name for name in self.not_read if MAY_HOLD_SLOTS.search(name)]
        return f"{', '.join(unread)} {'were' if len(unread) > 1 else 'was'} not read" if unread else ""

    def refuse(self, row: Row, error: Invalid) -> None:
        """The row is not taken."""
        self.errors.append(RowError(row, error.name, error.reason))

    def note(self, row: Row, name: str, text: str) -> None:
        """The row is taken under an assumption. Rows with the same text are told in one line."""
        self.notes[f"{name}: {text}"].add(row)

    def rows(self) -> int:
        """The number of hospitals, of their days, and of lots."""
        days = sum(len(hospital.days) for hospital in self.hospitals.values())
        return len(self.hospitals) + days + sum(map(len, self.lots.values()))

    def without_lot(self) -> list[str]:
        """Vaccines that a hospital's schedules offer without a lot in the files, as "hospital CVX"."""
        lots = {(key, canonical_code(lot.cvx)) for key, lots in self.lots.items() for lot in lots}
        offered = {(key, vaccine) for key, hospital in self.hospitals.items() for vaccine in hospital.vaccines}
        return [" ".join(pair) for pair in sorted(offered - lots)]


def hospital_id(published: str) -> str:
    """The id under which a Location is imported: its own if FHIR allows that, else one that is made of it.

    The end of such an id is a digest of the whole, so that two ids that differ only in what is forbidden stay two, and
    the same id is the same hospital in every file and on every day.
    """
    if re.fullmatch("[A-Za-z0-9][A-Za-z0-9.-]{0,63}", published):
        return published
    readable = re.sub("[^A-Za-z0-9.-]+", "-", published).strip(".-")[:50]
    digest = uuid5(NAMESPACE, published.encode("utf-8", "replace").decode()).hex[:8]
    return "-".join(filter(None, [readable, digest]))


def show(value: object) -> str:
    """A value for a message: short, on one line, without control characters for a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def text_of(values: Mapping[str, Any], name: str) -> str:
    """The text of a field. Invalid: there is none."""
    value = values.get(name)
    if value is None or value == "":
        raise Invalid(name, "is missing")
    if not isinstance(value, str):
        raise Invalid(name, f"{show(value)} is not text")
    return value


def whole(name: str, value: object, least: int) -> int:
    """The value of a field, if it is a number from `least` to MOST. Invalid: it is not."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise Invalid(name, f"{show(value)} is not a whole number from {least} to {MOST:,}")
    return value


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
