"""Sends to the services what a directory holds.

Everything goes through the public RPCs, each of which may be repeated, so a second import changes nothing. What a
service refuses is refused row by row; the rows beside it are taken.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mesh.data.dataset import MOST_DAYS, Data, Day, Hospital, Lot, Row, RowError, ranges
from vaccination.approval.v1 import hospital_pb2
from vaccination.approval.v1 import hospital_service_pb2 as approval
from vaccination.approval.v1.hospital_service_pb2_grpc import HospitalServiceStub
from vaccination.vaccinemgmt.v1 import lot_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as vaccinemgmt
from vaccination.vaccinemgmt.v1.vaccinemgmt_service_pb2_grpc import VaccinemgmtServiceStub

MOST_LOTS = 500  # in one RegisterLots
IN_FLIGHT, TIMEOUT_SECONDS = 16, 10.0
TRIES, PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 7, 0.1, 30.0  # doubling from 0.1 s: gives up after 6 s
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

T = TypeVar("T")
Item = TypeVar("Item", Hospital, Day, Lot)
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
Violation = tuple[int | None, str, str]
Advance = Callable[[int], None]


class Refused(Exception):
    """A service refused a call. `violations`: index of the row in the call where it is told, field, reason.

    `called_off`: a day of the call is called off, and takes no places until the hospital offers it again.
    """

    def __init__(self, violations: list[Violation], *, called_off: bool = False) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for _, name, reason in violations))
        self.violations, self.called_off = violations, called_off


class Stopped(Exception):
    """The import cannot go on: there is nothing to import, or no connection, or the token is refused."""


@dataclass(frozen=True, slots=True)
class Gone:
    """Days of a hospital that are open here, and in no file."""

    hospital_id: str
    days: Sequence[hospital_pb2.DayAvailability]


@dataclass(slots=True)
class Outcome:
    """How many hospitals and days were changed or unchanged, and deliveries taken or not, since they had been before.

    A new hospital or day counts as changed. `before` are the rows of the deliveries that had been taken before, `over`
    the days with more bookings than places, by hospital, `gone` what has left the feed, and `closed` how many of these
    days were closed.
    """

    changed: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    before: list[Row] = field(default_factory=list)
    over: list[tuple[str, hospital_pb2.DayAvailability]] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    closed: int = 0
    stopped: str = ""


class Sender:
    """Sends what was read, at most IN_FLIGHT calls at a time."""

    def __init__(
        self,
        data: Data,
        channel: grpc.aio.Channel,
        token: str,
        outcome: Outcome,
        advance: Advance = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.data, self.outcome, self.advance, self.now = data, outcome, advance, now
        self.refused: set[str] = set()  # hospitals
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.hospitals, self.vaccines = HospitalServiceStub(channel), VaccinemgmtServiceStub(channel)

    async def everything(self) -> None:
        outside = self.data.lots.keys() - self.data.hospitals.keys()  # hospitals that may have been imported earlier
        known = (await self.known_hospitals() if outside else {}).keys()
        for key in outside - known:
            for lot in self.data.lots.pop(key):
                self.data.errors.append(RowError(lot.row, "hospital", f"there is no hospital {key!r}"))
                self.advance(1)
        await self.each([*self.data.hospitals, *(outside & known)], self.hospital)

    async def each(self, items: Iterable[T], call: Callable[[T], Awaitable[None]]) -> None:
        left = iter(items)

        async def work() -> None:
            for item in left:
                await call(item)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())

    async def days_gone(self) -> None:
        """Looks for days from today on, at most a year ahead, that are open here and in no file.

        A hospital that is in no file is not looked at, since it may be in another feed; nor is any hospital, if the
        files hold no slot at all.
        """

        async def look(hospital: Hospital) -> None:
            today = self.now().astimezone(ZoneInfo(hospital.time_zone)).date()
            request = approval.ListAvailabilityRequest(
                hospital_id=hospital.hospital_id,
                first_date=today.isoformat(),
                last_date=(today + timedelta(days=MOST_DAYS - 1)).isoformat(),
            )
            days = (await self.call(self.hospitals.ListAvailability, request)).days
            told = {day.isoformat() for day in hospital.days}
            if gone := [day for day in days if day.capacity and not day.called_off and day.date not in told]:
                self.outcome.gone.append(Gone(hospital.hospital_id, gone))

        there = [hospital for key, hospital in self.data.hospitals.items() if key not in self.refused]
        await self.each(there if self.data.slots else [], look)
        self.outcome.gone.sort(key=lambda gone: gone.hospital_id)

    async def close_days_gone(self) -> None:
        """Closes the days that have left the feed: bookings stay, and nobody new is approved."""

        async def close(gone: Gone) -> None:
            for day in gone.days:
                request = approval.SetDailyCapacityRequest(
                    hospital_id=gone.hospital_id, first_date=day.date, last_date=day.date, capacity=0
                )
                try:
                    await self.call(self.hospitals.SetDailyCapacity, request)
                except Refused as refused:
                    if not refused.called_off:  # which closes it as well
                        row = self.data.hospitals[gone.hospital_id].row
                        self.data.errors.append(RowError(row, day.date, f"the day is not closed: {refused}"))
                else:
                    self.outcome.closed += 1

        await self.each(self.outcome.gone, close)

    async def known_hospitals(self) -> dict[str, str]:
        """The time zones of all hospitals that are there already, by id."""
        known = dict[str, str]()
        request = approval.ListHospitalsRequest(page_size=1000)
        while True:
            page = await self.call(self.hospitals.ListHospitals, request)
            known |= {hospital.hospital_id: hospital.time_zone for hospital in page.hospitals}
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
            response = await self.call(self.hospitals.SetDailyCapacity, request)
            self.outcome.over += [(key, day) for day in response.days_over]
            return response.days_changed

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
            self.refused.add(key)
            self.data.ignored["days and lots of a Location that was refused"] += len(days) + len(lots)
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
                        self.refuse(rows[at], name, reason, refused)
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

    def refuse(self, item: Hospital | Day | Lot, name: str, reason: str, refused: Refused) -> None:
        if refused.called_off and isinstance(item, Day):
            self.data.note(item.row, name, f"the hospital has called {item.day} off, which stays so")
        else:
            self.data.errors.append(RowError(item.row, name, reason))

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
                    raise Refused(violations_of(error), called_off=_reason(error) == "DAY_CALLED_OFF") from error
                attempt += 1
                if error.code() in HOPELESS or attempt == TRIES:
                    raise Stopped(f"{error.code().name}: {error.details()}") from error
                pause = pause_of(error, attempt)
            await asyncio.sleep(pause)


def violations_of(error: grpc.aio.AioRpcError) -> list[Violation]:
    """What a refusal says about the rows of its call; never empty."""
    bad = error_details_pb2.BadRequest()
    for detail in _details(error):
        detail.Unpack(bad)
    found = [(violation.field, violation.description) for violation in bad.field_violations]
    if not found:
        found = [("row", error.details() or "refused")]
    violations: list[Violation] = []
    for path, reason in found:
        index, name = re.match(r"deliveries\[(\d+)\]", path), re.sub(r"\[\d+\]", "", path).rpartition(".")[2]
        text = f"{reason} [{_reason(error) or error.code().name}]"
        violations.append((int(index[1]) if index else None, SOURCE_FIELD.get(name, name), text))
    return violations


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    return info.reason if any(detail.Unpack(info) for detail in _details(error)) else ""


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
