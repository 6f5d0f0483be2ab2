"""MyPage over gRPC."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.caller import allow, caller
from services.chassis.errors import Answer, Errors
from services.chassis.lifecycle import draining
from services.chassis.postgres import Database
from vaccination.mypage.v1 import mypage_service_pb2 as pb
from vaccination.mypage.v1 import mypage_service_pb2_grpc

from . import queries
from .queries import Changes, TooManyScreens, Watch
from .rebuild import NewerEvents, RebuildRunning

Context = ServicerContext[Any, Any]


class UnknownReservation(Exception):
    """The customer has no such reservation."""


ERRORS = Errors(
    "vaccination.mypage",
    {
        UnknownReservation: Answer(StatusCode.NOT_FOUND, "UNKNOWN_RESERVATION", "reservation_id"),
        TooManyScreens: Answer(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SCREENS"),
        RebuildRunning: Answer(StatusCode.FAILED_PRECONDITION, "REBUILD_RUNNING"),
        NewerEvents: Answer(StatusCode.FAILED_PRECONDITION, "NEWER_EVENTS"),
    },
)


class MypageServicer(mypage_service_pb2_grpc.MypageServiceServicer):
    """For customers."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database, self._changes = database, changes

    @allow("customer")
    async def ListMyReservations(
        self, request: pb.ListMyReservationsRequest, context: Context
    ) -> pb.ListMyReservationsResponse:
        listing = f"my reservations of {caller().subject}"
        after = paging.decode(listing, request.page_token, paging.instant, UUID)
        found, last = await queries.page(
            self._database, caller().subject, (after[0], after[1]) if after else None, request.page_size or 20
        )
        token = paging.encode(listing, last[0].isoformat(), str(last[1])) if last else ""
        return pb.ListMyReservationsResponse(reservations=found, next_page_token=token)

    @allow("customer")
    async def GetMyReservation(
        self, request: pb.GetMyReservationRequest, context: Context
    ) -> pb.GetMyReservationResponse:
        found = await queries.one(self._database, caller().subject, UUID(request.reservation_id))
        if found is None:
            raise UnknownReservation(f"you have no reservation {request.reservation_id}")
        return pb.GetMyReservationResponse(reservation=found)

    @allow("customer")
    async def WatchMyReservations(
        self, request: pb.WatchMyReservationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchMyReservationsResponse]:
        watch = Watch(self._database, caller().subject, turn=self._changes.turn)
        with self._changes.of(caller().subject) as changed:
            while True:
                changed.clear()  # before the look: what changes during it sets it again
                if draining.is_set():
                    return
                async with aclosing(watch.news()) as messages:
                    async for reservations in messages:
                        yield pb.WatchMyReservationsResponse(reservations=reservations)
                await changed.wait()


async def end_watches(changes: Changes) -> None:
    """Wakes all watches when the process begins to stop: they end. One task does it for thousands."""
    await draining.wait()
    changes.wake_all()


def register(server: Server, database: Database, changes: Changes) -> None:
    """Adds mypage's service to a server."""
    mypage_service_pb2_grpc.add_MypageServiceServicer_to_server(MypageServicer(database, changes), server)
