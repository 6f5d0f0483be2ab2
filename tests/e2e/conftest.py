"""Clients that call through the gateway, as users do."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import asyncpg
import grpc.aio
import pymongo
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mesh.machine import Mesh, identity
from mesh.machine.home import SERVICES
from vaccination.approval.v1 import hospital_pb2, hospital_service_pb2, hospital_service_pb2_grpc
from vaccination.mypage.v1 import my_reservation_pb2, mypage_service_pb2, mypage_service_pb2_grpc, view_service_pb2_grpc
from vaccination.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import (
    counter_service_pb2,
    counter_service_pb2_grpc,
    lot_pb2,
    recall_service_pb2,
    recall_service_pb2_grpc,
    vaccination_pb2,
    vaccinemgmt_service_pb2,
    vaccinemgmt_service_pb2_grpc,
)

T = TypeVar("T")
Status = reservation_pb2.ReservationStatus


async def eventually(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool], within: float = 60.0) -> T:
    """Calls `look` until its result `holds`, and returns the result; fails with the last one after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        seen = await look()
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s; last seen:\n{seen}")
        await asyncio.sleep(0.05)


@dataclass
class Refusal:
    """An error as a client sees it."""

    code: grpc.StatusCode
    reason: str
    domain: str
    fields: dict[str, str]
    retry_after: float | None
    localized: tuple[str, str] | None
    message: str


async def refused(call: Awaitable[Any]) -> Refusal:
    """The error that the call ends with; fails if the call succeeds."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    pytest.fail(f"not refused: {answer}")


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """The refusal that a gRPC error describes."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    local, after, said = error_details_pb2.LocalizedMessage(), None, None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                _ = detail.Unpack(info) or detail.Unpack(bad)
                if detail.Unpack(retry):
                    after = retry.retry_delay.ToMilliseconds() / 1000
                if detail.Unpack(local):
                    said = (local.locale, local.message)
    fields = {violation.field: violation.description for violation in bad.field_violations}
    return Refusal(error.code(), info.reason, info.domain, fields, after, said, error.details() or "")


class Client:
    """A person with a token, or without; each method makes one call."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None, **metadata: str) -> None:
        self.token = token
        self.metadata = [(k.replace("_", "-"), v) for k, v in metadata.items()]
        if token is not None:
            self.metadata.append(("authorization", f"Bearer {token}"))
        self.reservation = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        self.hospital = hospital_service_pb2_grpc.HospitalServiceStub(channel)
        self.vaccinemgmt = vaccinemgmt_service_pb2_grpc.VaccinemgmtServiceStub(channel)
        self.counter = counter_service_pb2_grpc.CounterServiceStub(channel)
        self.recalls = recall_service_pb2_grpc.RecallServiceStub(channel)
        self.view = view_service_pb2_grpc.ViewServiceStub(channel)
        self.mypage = mypage_service_pb2_grpc.MypageServiceStub(channel)

    async def call(self, method: Callable[..., Any], request: Message) -> Any:
        """Calls a stub's method as this client."""
        return await method(request, metadata=self.metadata, timeout=15)

    async def create(
        self, hospital_id: str, day: date | str, request_id: str | None = None, vaccine_code: str = ""
    ) -> reservation_pb2.Reservation:
        """CreateReservation; a new request unless a request_id is given."""
        request = reservation_service_pb2.CreateReservationRequest(
            request_id=request_id or str(uuid.uuid4()),
            hospital_id=hospital_id,
            date=str(day),
            vaccine_code=vaccine_code,
        )
        response = await self.call(self.reservation.CreateReservation, request)
        return response.reservation  # type: ignore[no-any-return]

    async def book(
        self, hospital_id: str, day: date | str, request_id: str | None = None, vaccine_code: str = ""
    ) -> reservation_pb2.Reservation:
        """Books as a person does: repeats the same request as often as it is told to try again shortly."""
        request_id = request_id or str(uuid.uuid4())
        while True:
            try:
                return await self.create(hospital_id, day, request_id, vaccine_code)
            except grpc.aio.AioRpcError as error:
                if (wait := refusal(error).retry_after) is None:
                    raise
                await asyncio.sleep(wait)

    async def get(self, reservation_id: str) -> reservation_pb2.Reservation:
        """GetReservation."""
        request = reservation_service_pb2.GetReservationRequest(reservation_id=reservation_id)
        return (await self.call(self.reservation.GetReservation, request)).reservation  # type: ignore[no-any-return]

    async def cancel(self, reservation_id: str) -> reservation_pb2.Reservation:
        """CancelReservation."""
        request = reservation_service_pb2.CancelReservationRequest(reservation_id=reservation_id)
        return (await self.call(self.reservation.CancelReservation, request)).reservation  # type: ignore[no-any-return]

    async def move(
        self, reservation_id: str, hospital_id: str, day: date | str, request_id: str | None = None, code: str = ""
    ) -> reservation_pb2.Reservation:
        """MoveReservation; a new request unless a request_id is given."""
        request = reservation_service_pb2.MoveReservationRequest(
            request_id=request_id or str(uuid.uuid4()),
            reservation_id=reservation_id,
            hospital_id=hospital_id,
            date=str(day),
            vaccine_code=code,
        )
        return (await self.call(self.reservation.MoveReservation, request)).reservation  # type: ignore[no-any-return]

    async def screen(self) -> Sequence[my_reservation_pb2.MyReservation]:
        """ListMyReservations."""
        request = mypage_service_pb2.ListMyReservationsRequest(page_size=100)
        return (await self.call(self.mypage.ListMyReservations, request)).reservations  # type: ignore[no-any-return]

    async def reaches(self, reservation_id: str, status: int, within: float = 60.0) -> my_reservation_pb2.MyReservation:
        """Waits until MyPage shows the reservation with the status."""

        async def look() -> my_reservation_pb2.MyReservation | None:
            return next((r for r in await self.screen() if r.reservation_id == reservation_id), None)

        seen = await eventually(look, lambda r: r is not None and r.status == status, within)
        assert seen is not None
        return seen

    async def set_capacity(self, hospital_id: str, day: date, capacity: int) -> None:
        """SetDailyCapacity of one day."""
        request = hospital_service_pb2.SetDailyCapacityRequest(
            hospital_id=hospital_id, first_date=str(day), last_date=str(day), capacity=capacity
        )
        await self.call(self.hospital.SetDailyCapacity, request)

    async def availability(self, hospital_id: str, day: date) -> hospital_pb2.DayAvailability:
        """ListAvailability of one day."""
        request = hospital_service_pb2.ListAvailabilityRequest(
            hospital_id=hospital_id, first_date=str(day), last_date=str(day)
        )
        return (await self.call(self.hospital.ListAvailability, request)).days[0]  # type: ignore[no-any-return]

    async def call_off(self, hospital_id: str, day: date, note: str = "No heating") -> int:
        """CallOffDay; returns how many bookings have not ended yet."""
        request = hospital_service_pb2.CallOffDayRequest(hospital_id=hospital_id, date=str(day), note=note)
        return (await self.call(self.hospital.CallOffDay, request)).bookings_to_go  # type: ignore[no-any-return]

    async def reopen(self, hospital_id: str, day: date) -> None:
        """ReopenDay."""
        request = hospital_service_pb2.ReopenDayRequest(hospital_id=hospital_id, date=str(day))
        await self.call(self.hospital.ReopenDay, request)

    async def register(self, hospital_id: str, *deliveries: lot_pb2.Delivery) -> Sequence[lot_pb2.Lot]:
        """RegisterLots."""
        request = vaccinemgmt_service_pb2.RegisterLotsRequest(hospital_id=hospital_id, deliveries=deliveries)
        return (await self.call(self.vaccinemgmt.RegisterLots, request)).lots  # type: ignore[no-any-return]

    async def lots(self, hospital_id: str) -> Sequence[lot_pb2.Lot]:
        """ListLots."""
        request = vaccinemgmt_service_pb2.ListLotsRequest(hospital_id=hospital_id)
        return (await self.call(self.vaccinemgmt.ListLots, request)).lots  # type: ignore[no-any-return]

    async def correct(self, lot_id: str, request_id: str | None = None, **changes: Any) -> lot_pb2.Lot:
        """CorrectLot: production_date, expiry_date, received."""
        request = vaccinemgmt_service_pb2.CorrectLotRequest(
            lot_id=lot_id, request_id=request_id or str(uuid.uuid4()), note="counted anew", **changes
        )
        return (await self.call(self.vaccinemgmt.CorrectLot, request)).lot  # type: ignore[no-any-return]

    async def write_off(
        self,
        lot_id: str,
        quantity: int,
        request_id: str | None = None,
        reason: lot_pb2.WriteOffReason.ValueType = lot_pb2.WriteOffReason.WRITE_OFF_REASON_BROKEN,
    ) -> lot_pb2.Lot:
        """WriteOffDoses."""
        request = vaccinemgmt_service_pb2.WriteOffDosesRequest(
            lot_id=lot_id, request_id=request_id or str(uuid.uuid4()), quantity=quantity, reason=reason
        )
        return (await self.call(self.vaccinemgmt.WriteOffDoses, request)).lot  # type: ignore[no-any-return]

    async def recall(self, lot: lot_pb2.Lot, hospital_id: str = "", note: str = "Glass") -> recall_service_pb2.Recall:
        """RecallLot; everywhere, or at one hospital."""
        request = recall_service_pb2.RecallLotRequest(
            vaccine_code=lot.vaccine_code,
            manufacturer=lot.manufacturer,
            lot_number=lot.lot_number,
            hospital_id=hospital_id,
            note=note,
        )
        return (await self.call(self.recalls.RecallLot, request)).recall  # type: ignore[no-any-return]

    async def check_in(self, reservation_id: str) -> vaccination_pb2.Vaccination:
        """CheckIn."""
        request = counter_service_pb2.CheckInRequest(reservation_id=reservation_id)
        return (await self.call(self.counter.CheckIn, request)).vaccination  # type: ignore[no-any-return]

    async def administer(self, reservation_id: str, lot_id: str = "") -> vaccination_pb2.Vaccination:
        """Administer: the dose set aside, or one of the lot that was scanned."""
        request = counter_service_pb2.AdministerRequest(reservation_id=reservation_id, lot_id=lot_id)
        return (await self.call(self.counter.Administer, request)).vaccination  # type: ignore[no-any-return]

    async def miss(self, reservation_id: str) -> vaccination_pb2.Vaccination:
        """MarkMissed."""
        request = counter_service_pb2.MarkMissedRequest(reservation_id=reservation_id)
        return (await self.call(self.counter.MarkMissed, request)).vaccination  # type: ignore[no-any-return]

    async def of_day(self, hospital_id: str, day: date) -> Sequence[vaccination_pb2.Vaccination]:
        """ListDay."""
        request = counter_service_pb2.ListDayRequest(hospital_id=hospital_id, date=str(day), page_size=1000)
        return (await self.call(self.counter.ListDay, request)).vaccinations  # type: ignore[no-any-return]

    async def waiting(self, hospital_id: str) -> Sequence[vaccination_pb2.Vaccination]:
        """ListWaiting."""
        request = vaccinemgmt_service_pb2.ListWaitingRequest(hospital_id=hospital_id, page_size=1000)
        return (await self.call(self.vaccinemgmt.ListWaiting, request)).vaccinations  # type: ignore[no-any-return]


def delivery(quantity: int, **others: Any) -> lot_pb2.Delivery:
    """A delivery that is valid on every day the tests use."""
    today = date.today()
    fields = {
        "lot_number": f"LOT-{uuid.uuid4().hex[:8]}",
        "vaccine_code": "207",
        "manufacturer": "MOD",
        "production_date": str(today - timedelta(days=90)),
        "expiry_date": str(today + timedelta(days=300)),
    }
    return lot_pb2.Delivery(quantity=quantity, **fields | others)


class World:
    """The mesh, and the people who call it. Every test makes its own hospitals and customers."""

    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel) -> None:
        self.mesh, self._channel = mesh, channel
        self.operator = self.client("operator", ["operator"])

    async def query(self, service: str, sql: str, *arguments: object) -> Sequence[asyncpg.Record]:
        """Reads a service's database directly, without the service's code."""
        connection = await asyncpg.connect(self.mesh.stores.postgres_url, database=service)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def stop(self, service: str) -> None:
        """Stops every process of a service, gracefully."""
        for name in self.mesh.home.processes_of(service):
            await asyncio.to_thread(self.mesh.stop, name)

    async def start(self, service: str) -> None:
        """Starts every process of a service, and waits until they are ready."""
        await asyncio.to_thread(self.mesh.up, self.mesh.home.processes_of(service))

    async def quiet(self, within: float = 60.0) -> None:
        """Waits until no event is on its way: every outbox is empty and every consumer is at the stream's end."""
        stores = self.mesh.stores

        def look() -> tuple[int, int]:
            on_the_way = sum(stores.nats.pending("VACCINATION", name) for name in SERVICES)
            with pymongo.MongoClient[dict[str, Any]](stores.mongo_url) as client:
                return on_the_way + client["vaccinemgmt"]["outbox"].count_documents({}), stores.nats.last_sequence(
                    "VACCINATION"
                )

        async def looks() -> tuple[tuple[int, int], int, tuple[int, int]]:
            first = await asyncio.to_thread(look)
            rows = [await self.query(name, "SELECT 1 FROM outbox") for name in ("approval", "reservation")]
            return first, sum(map(len, rows)), await asyncio.to_thread(look)

        await eventually(looks, lambda seen: seen[0] == seen[2] and seen[0][0] == seen[1] == 0, within)

    def token(self, subject: str, roles: list[str], **claims: Any) -> str:
        """A token of the local issuer."""
        return identity.token(self.mesh.home.path, subject=subject, roles=roles, **claims)

    def client(self, subject: str, roles: list[str], **claims: Any) -> Client:
        """A client with a token of the local issuer."""
        return Client(self._channel, self.token(subject, roles, **claims))

    def bearer(self, token: str | None, **metadata: str) -> Client:
        """A client with this token, or with none."""
        return Client(self._channel, token, **metadata)

    def customer(self, name: str = "customer") -> Client:
        """A new customer."""
        return self.client(f"{name}-{uuid.uuid4()}", ["customer"])

    def manager(self, hospital_id: str) -> Client:
        """The hospital's vaccine manager."""
        return self.client("manager", ["manager"], hospital=hospital_id)

    async def new_hospital(
        self, capacity: int = 0, doses: int = 0, days_ahead: int = 7, time_zone: str = "Asia/Seoul"
    ) -> tuple[str, date]:
        """A new hospital with `capacity` places on a day and a lot of `doses`; its id and that day."""
        hospital_id = f"h-{uuid.uuid4().hex[:12]}"
        hospital = hospital_pb2.Hospital(hospital_id=hospital_id, name=f"Hospital {hospital_id}", time_zone=time_zone)
        request = hospital_service_pb2.UpsertHospitalRequest(hospital=hospital)
        await self.operator.call(self.operator.hospital.UpsertHospital, request)
        day = datetime.now(ZoneInfo(time_zone)).date() + timedelta(days=days_ahead)
        if capacity:
            await self.operator.set_capacity(hospital_id, day, capacity)
        if doses:
            await self.operator.register(hospital_id, delivery(doses))
        return hospital_id, day


def zone_at_noon() -> str:
    """A time zone in which it is about noon, so that a test's today does not end in the middle of it."""
    ahead = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-ahead:+d}" if ahead else "Etc/GMT"


@pytest.fixture
async def world(mesh: Mesh) -> AsyncIterator[World]:
    """The mesh with everything running."""
    mesh.up()  # starts what an earlier test stopped
    # The client does not retry by itself, so that the tests see what the mesh answers.
    async with grpc.aio.insecure_channel(mesh.gateway, options=[("grpc.enable_retries", 0)]) as channel:
        yield World(mesh, channel)
