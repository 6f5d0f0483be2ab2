"""Imports a directory of hospitals, daily capacity and vaccine lots: `python -m mesh import DIR`.

`dataset` says what the files hold. Everything goes through the public RPCs, each of which may be repeated, so a second
import changes nothing. A row in error is reported as file:line: field: reason, whether `dataset` found it or a service
refused it; the rows beside it are imported. Deliveries that had been taken before, and files that were not read, are
named.

`--shift-to DATE` moves the first day that has a slot to DATE, and every other day and the lots' dates by as many days,
so that who can be given which lot stays as it was. A lot that is already registered under other dates is therefore
refused (LOT_CONFLICT): a lot has one expiry date.
"""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from rich.console import Console
from rich.progress import Progress

from mesh.data.dataset import (
    Data,
    Day,
    Hospital,
    Invalid,
    Lot,
    Row,
    RowError,
    bytes_to_read,
    ranges,
    read,
    shift,
    time_zones,
)
from vaccination.approval.v1 import hospital_pb2
from vaccination.approval.v1 import hospital_service_pb2 as approval
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub
from vaccination.vaccinemgmt.v1 import lot_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as vaccinemgmt
from vaccination.vaccinemgmt.v1.vaccinemgmt_service_pb2_grpc import VaccinemgmtServiceStub

MOST_LOTS = 500  # in one RegisterLots
REPORTED = (
    ("hospitals", "new or changed", "unchanged"),
    ("days", "new or changed", "unchanged"),
    ("deliveries", "taken", "taken before"),
)
IN_FLIGHT, TIMEOUT_SECONDS = 16, 10.0
TRIES, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 7, 0.1, 30.0  # doubling from 0.1 s: gives up after 6 s
Connect = Callable[[], grpc.aio.Channel]
Code = grpc.StatusCode
# All calls here may be repeated, even if their outcome is unknown. A server that is stopped answers CANCELLED.
AGAIN = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.CANCELLED}
# Every other row would get these codes too. A code that is in neither set is about the rows of the call.
HOPELESS = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED}
SOURCE_FIELD = {  # the contracts' name of a field, and the row's
    "hospital_id": "id",
    "vaccine_code": "cvx",
    "manufacturer": "mvx",
    "production_date": "manufactured",
    "expiry_date": "expires",
    "deliveries": "lot_number",
    "capacity": "slot-capacity",
    "first_date": "start",
    "last_date": "start",
}

Item = TypeVar("Item", Hospital, Day, Lot)
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
Violation = tuple[int | None, str, str]
Advance = Callable[[int], None]


class Refused(Exception):
    """A service refused a call. `violations`: index of the row in the call where it is told, field, reason."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__(violations)
        self.violations = violations


class Stopped(Exception):
    """The import cannot go on: there is nothing to import, or no connection, or the token is refused."""


@dataclass(slots=True)
class Outcome:
    """How many hospitals and days were changed or unchanged, and deliveries taken or not, since they had been before.

    A new hospital or day counts as changed. `before` are the rows of the deliveries that had been taken before.
    """

    changed: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    before: list[Row] = field(default_factory=list)
    stopped: str = ""


def run(
    directory: Path, connect: Connect, token: str, shift_to: date | None = None, time_zone: str | None = None
) -> int:
    """Imports `directory` with an operator's JWT, through the gateway to which `connect` opens a channel.

    `time_zone` is for hospitals whose files tell none. Returns 0 if everything was imported, 1 if some rows are in
    error, 2 if nothing could be imported or the import had to stop.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not directory.is_dir():
        console.print(f"{directory} is not a directory")
        return 2
    if time_zone is not None and time_zone not in time_zones():
        console.print(f"--time-zone: {time_zone} is not an IANA time zone")
        return 2
    outcome = Outcome()
    with Progress(console=console) as progress:
        bar = progress.add_task("Reading", total=bytes_to_read(directory))
        data = read(directory, time_zone, lambda size: progress.advance(bar, size))
        try:
            if not data.rows():
                raise Stopped(f"there is no hospital and no lot to import in {directory}")
            if shift_to:
                console.print(f"Dates are moved by {shift(data, shift_to):+,} days: the first is {shift_to}.")
            bar = progress.add_task("Importing", total=data.rows())
            asyncio.run(_import(data, connect, token, outcome, lambda rows: progress.advance(bar, rows)))
        except* (Stopped, Invalid) as group:
            outcome.stopped = str(group.exceptions[0])
    return _report(console, data, outcome)


def _report(console: Console, data: Data, outcome: Outcome) -> int:
    for error in sorted(data.errors):
        console.print(str(error))
    for what, new, old in REPORTED:
        console.print(f"{what:10}{outcome.changed[what]:>7,} {new}, {outcome.unchanged[what]:,} {old}")
    if outcome.before:
        console.print(f"Taken before, and not again: {lines_of(outcome.before)}")
    if data.not_read:
        console.print(f"Not read: {', '.join(data.not_read)}")
    if data.ignored:
        console.print("Left out: " + ", ".join(f"{number:,} {what}" for what, number in data.ignored.most_common(10)))
    if data.lots and (waiting := data.without_lot()):
        some = ", ".join(waiting[:5]) + ", ..." * (len(waiting) > 5)
        console.print(f"Offered, but no lot in the files: {some}. Who books that waits for stock.")
    if data.errors:
        console.print(f"Rows in error: {len({error.row for error in data.errors}):,}, see above")
    imported = outcome.changed.total() + outcome.unchanged.total()
    if outcome.stopped:
        console.print(f"Stopped: {outcome.stopped}" + "\nWhat is in stays in; import again to go on." * bool(imported))
    if outcome.stopped or not imported:
        return 2
    return 1 if data.errors else 0


def lines_of(rows: Iterable[Row]) -> str:
    """Names rows in few words: "a.csv lines 2-9, 11; b.csv line 2"."""
    by_file = defaultdict[str, list[int]](list)
    for row in sorted(rows):
        by_file[row.file].append(row.line)
    told = []
    for file, lines in by_file.items():
        runs: list[list[int]] = []
        for line in lines:
            if runs and line == runs[-1][-1] + 1:
                runs[-1].append(line)
            else:
                runs.append([line])
        spans = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
        told.append(f"{file} line{'s' if len(lines) > 1 else ''} {spans}")
    return "; ".join(told)


async def _import(data: Data, connect: Connect, token: str, outcome: Outcome, advance: Advance) -> None:
    async with connect() as channel:
        await Sender(data, channel, token, outcome, advance).everything()


class Sender:
    """Sends what was read, at most IN_FLIGHT calls at a time."""

    def __init__(self, data: Data, channel: grpc.aio.Channel, token: str, outcome: Outcome, advance: Advance) -> None:
        self.data, self.outcome, self.advance = data, outcome, advance
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.hospitals, self.vaccines = HospitalServiceStub(channel), VaccinemgmtServiceStub(channel)

    async def everything(self) -> None:
        outside = self.data.lots.keys() - self.data.hospitals.keys()  # hospitals that may have been imported earlier
        known = await self.known_hospitals() if outside else set()
        for key in outside - known:
            for lot in self.data.lots.pop(key):
                self.data.errors.append(RowError(lot.row, "hospital", f"there is no hospital {key!r}"))
                self.advance(1)
        keys = iter([*self.data.hospitals, *(outside & known)])

        async def work() -> None:
            for key in keys:
                await self.hospital(key)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())

    async def known_hospitals(self) -> set[str]:
        known: set[str] = set()
        request = approval.ListHospitalsRequest(page_size=1000)
        while True:
            page = await self.call(self.hospitals.ListHospitals, request)
            known.update(hospital.hospital_id for hospital in page.hospitals)
            if not page.next_page_token:
                return known
            request.page_token = page.next_page_token

    async def hospital(self, key: str) -> None:
        """One hospital's calls, one after the other: it must be there before its days and lots."""

        async def upsert(hospitals: Sequence[Hospital]) -> int:
            message = hospital_pb2.Hospital(
                hospital_id=key,
                name=hospitals[0].name,
                time_zone=hospitals[0].time_zone,
                vaccine_codes=hospitals[0].offered(),
            )
            if position := hospitals[0].position:
                message.location.latitude, message.location.longitude = position
            request = approval.UpsertHospitalRequest(hospital=message)
            return int((await self.call(self.hospitals.UpsertHospital, request)).changed)

        async def set_capacity(days: Sequence[Day]) -> int:
            first, last = days[0].day.isoformat(), days[-1].day.isoformat()
            request = approval.SetDailyCapacityRequest(
                hospital_id=key, first_date=first, last_date=last, capacity=days[0].capacity
            )
            return (await self.call(self.hospitals.SetDailyCapacity, request)).days_changed

        async def register(lots: Sequence[Lot]) -> int:
            deliveries = [
                lot_pb2.Delivery(
                    lot_number=lot.lot_number,
                    vaccine_code=lot.cvx,
                    manufacturer=lot.mvx,
                    production_date=lot.manufactured.isoformat(),
                    expiry_date=lot.expires.isoformat(),
                    quantity=lot.quantity,
                    delivery_id=lot.delivery_id,
                )
                for lot in lots
            ]
            request = vaccinemgmt.RegisterLotsRequest(hospital_id=key, deliveries=deliveries)
            taken = {*(await self.call(self.vaccines.RegisterLots, request)).taken}
            self.outcome.before += [lot.row for index, lot in enumerate(lots) if index not in taken]
            return len(taken)

        hospital, lots = self.data.hospitals.get(key), self.data.lots.get(key, [])
        days = hospital.days if hospital else {}
        if hospital and not await self.send("hospitals", [hospital], upsert):
            self.data.ignored["days and lots of a Location in error"] += len(days) + len(lots)
            self.advance(len(days) + len(lots))
            return
        for run in ranges(days):
            await self.send("days", run, set_capacity)
        for start in range(0, len(lots), MOST_LOTS):
            await self.send("deliveries", lots[start : start + MOST_LOTS], register)

    async def send(self, what: str, rows: Sequence[Item], call: Callable[[Sequence[Item]], Awaitable[int]]) -> bool:
        """Sends rows by a call that takes all or none; returns whether any was taken.

        After a refusal the rows that it names are left out; where it names none, the rows are halved until the bad
        ones stand alone.
        """
        parts, taken = [rows], 0
        while parts:
            rows = parts.pop()
            try:
                changed = await call(rows)
            except Refused as refused:
                bad: set[int] = set()
                for index, name, reason in refused.violations:
                    at = 0 if len(rows) == 1 else index
                    if at is not None and at < len(rows):
                        bad.add(at)
                        self.data.errors.append(RowError(rows[at].row, name, reason))
                rest = [row for at, row in enumerate(rows) if at not in bad]
                half = 0 if bad else len(rest) // 2
                parts += [part for part in (rest[:half], rest[half:]) if part]
                self.advance(len(bad))
            else:
                taken += len(rows)
                self.outcome.changed[what] += changed
                self.outcome.unchanged[what] += len(rows) - changed
                self.advance(len(rows))
        return taken > 0

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Req, Resp], request: Req) -> Resp:
        """Calls, and repeats the call while that may help.

        Refused: the answer is about the rows of the call. Stopped: the import cannot go on.
        """
        attempt = 0
        while True:
            try:
                return await method(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN | HOPELESS:
                    raise Refused(violations_of(error)) from error
                attempt += 1
                if error.code() in HOPELESS or attempt == TRIES:
                    raise Stopped(f"{error.code().name}: {error.details()}") from error
                pause = pause_of(error, attempt)
            await asyncio.sleep(pause)


def violations_of(error: grpc.aio.AioRpcError) -> list[Violation]:
    """What a refusal says about the rows of its call; never empty."""
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in _details(error):
        _ = detail.Unpack(bad) or detail.Unpack(info)
    found = [(violation.field, violation.description) for violation in bad.field_violations]
    if not found:
        found = [("row", error.details() or "refused")]
    violations: list[Violation] = []
    for path, reason in found:
        index, name = re.match(r"deliveries\[(\d+)\]", path), re.sub(r"\[\d+\]", "", path).rpartition(".")[2]
        text = f"{reason} [{info.reason or error.code().name}]"
        violations.append((int(index[1]) if index else None, SOURCE_FIELD.get(name, name), text))
    return violations


def pause_of(error: grpc.aio.AioRpcError, attempt: int) -> float:
    """Seconds until the next attempt: what RetryInfo asks for, else doubling."""
    retry = error_details_pb2.RetryInfo()
    seconds: float = PAUSE_SECONDS * 2 ** (attempt - 1)
    if any(detail.Unpack(retry) for detail in _details(error)):
        seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return min(seconds, LONGEST_PAUSE_SECONDS)


def _details(error: grpc.aio.AioRpcError) -> Iterator[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            yield from status_pb2.Status.FromString(value).details
