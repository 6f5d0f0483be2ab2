"""The hospital's counter over gRPC. What shows whose booking it is, is recorded before it is shown."""

from typing import Any

from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.caller import allow, caller
from services.chassis.convert import calendar_day, canonical_id, to_message
from vaccination.vaccinemgmt.v1 import counter_service_pb2 as pb
from vaccination.vaccinemgmt.v1 import counter_service_pb2_grpc as rpc

from ..application import Access, Accesses, Counter
from ..domain import LotId, Status
from .accesses import FIND_BOOKINGS, record
from .answers import MANAGERS, own, reservation_id, shown, vaccination_message

Context = ServicerContext[Any, Any]


class CounterServicer(rpc.CounterServiceServicer):
    """For the staff at the counter."""

    def __init__(self, counter: Counter, accesses: Accesses) -> None:
        self._counter, self._accesses = counter, accesses

    @MANAGERS
    async def ListDay(self, request: pb.ListDayRequest, context: Context) -> pb.ListDayResponse:
        own(request.hospital_id)
        day, limit = calendar_day("date", request.date), request.page_size or 100
        listing = f"{day} at {request.hospital_id}"
        after = paging.decode(listing, request.page_token, _status, reservation_id)
        found = await self._counter.day(request.hospital_id, day, (after[0], after[1]) if after else None, limit + 1)
        page, token = paging.cut(listing, found, limit, lambda v: (str(v.status.value), v.reservation_id))
        await record(self._accesses, request.hospital_id, "ListDay", str(day))
        return pb.ListDayResponse(vaccinations=[vaccination_message(v) for v in page], next_page_token=token)

    @MANAGERS
    async def FindBookings(self, request: pb.FindBookingsRequest, context: Context) -> pb.FindBookingsResponse:
        own(request.hospital_id)
        found = await self._counter.bookings(request.hospital_id, request.customer_id)
        await record(self._accesses, request.hospital_id, FIND_BOOKINGS, request.customer_id)
        return pb.FindBookingsResponse(vaccinations=[vaccination_message(v) for v in found])

    @MANAGERS
    async def CheckIn(self, request: pb.CheckInRequest, context: Context) -> pb.CheckInResponse:
        vaccination = await self._counter.check_in(reservation_id(request.reservation_id), own)
        return pb.CheckInResponse(vaccination=await shown(self._accesses, "CheckIn", vaccination))

    @MANAGERS
    async def Administer(self, request: pb.AdministerRequest, context: Context) -> pb.AdministerResponse:
        scanned = LotId(canonical_id(request.lot_id)) if request.lot_id else None
        who = reservation_id(request.reservation_id)
        vaccination = await self._counter.administer(who, scanned, caller().subject, own)
        return pb.AdministerResponse(vaccination=await shown(self._accesses, "Administer", vaccination))

    @MANAGERS
    async def MarkMissed(self, request: pb.MarkMissedRequest, context: Context) -> pb.MarkMissedResponse:
        vaccination = await self._counter.mark_missed(reservation_id(request.reservation_id), caller().subject, own)
        return pb.MarkMissedResponse(vaccination=await shown(self._accesses, "MarkMissed", vaccination))

    @allow("operator")
    async def ListAccesses(self, request: pb.ListAccessesRequest, context: Context) -> pb.ListAccessesResponse:
        limit, listing = request.page_size or 100, f"accesses at {request.hospital_id}"
        after = paging.decode(listing, request.page_token, paging.instant, canonical_id)
        found = await self._accesses.page(request.hospital_id, (after[0], after[1]) if after else None, limit + 1)
        page, token = paging.cut(listing, found, limit, lambda access: (access.at.isoformat(), access.access_id))
        return pb.ListAccessesResponse(accesses=[_access_message(access) for access in page], next_page_token=token)


def _status(text: str) -> Status:
    return Status(int(text))


def _access_message(access: Access) -> pb.Access:
    return to_message(access, pb.Access, time=access.at)


def register(server: Server, counter: Counter, accesses: Accesses) -> None:
    """Adds the counter's service to a server."""
    rpc.add_CounterServiceServicer_to_server(CounterServicer(counter, accesses), server)
