"""Recalls over gRPC."""

from typing import Any

from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.caller import caller
from services.chassis.convert import canonical_id, to_message
from services.chassis.errors import Details, Refusal
from vaccination.vaccinemgmt.v1 import recall_service_pb2 as pb
from vaccination.vaccinemgmt.v1 import recall_service_pb2_grpc

from .. import domain
from ..application import Progress, Recalls
from ..domain import ReservationId, Vaccination
from .accesses import by_whom
from .answers import MANAGERS, own

Context = ServicerContext[Any, Any]


class RecallServicer(recall_service_pb2_grpc.RecallServiceServicer):
    """For operators, and for managers at their own hospital."""

    def __init__(self, recalls: Recalls) -> None:
        self._recalls = recalls

    @MANAGERS
    async def RecallLot(self, request: pb.RecallLotRequest, context: Context) -> pb.RecallLotResponse:
        own(request.hospital_id)
        lot = request.vaccine_code, request.manufacturer, request.lot_number
        try:
            progress = await self._recalls.recall(*lot, request.hospital_id, caller().subject, request.note)
        except domain.UnknownLot as error:
            raise Refusal(error, Details([("lot_number", str(error))])) from error
        return pb.RecallLotResponse(recall=_message(progress))

    @MANAGERS
    async def GetRecall(self, request: pb.GetRecallRequest, context: Context) -> pb.GetRecallResponse:
        progress = await self._recalls.progress(canonical_id(request.recall_id), own)
        return pb.GetRecallResponse(recall=_message(progress))

    @MANAGERS
    async def ListVaccinated(self, request: pb.ListVaccinatedRequest, context: Context) -> pb.ListVaccinatedResponse:
        recall_id = canonical_id(request.recall_id)
        limit, listing = request.page_size or 100, f"vaccinated from {recall_id}"
        after = paging.decode(listing, request.page_token, str, paging.instant, canonical_id)
        behind = (after[0], after[1], ReservationId(after[2])) if after else None
        found = await self._recalls.vaccinated(recall_id, behind, limit + 1, *by_whom(), own)
        page, token = paging.cut(listing, found, limit, _position)
        return pb.ListVaccinatedResponse(vaccinated=[_vaccinated(v) for v in page], next_page_token=token)


def _message(progress: Progress) -> pb.Recall:
    recall = progress.recall
    figures = {name: getattr(progress, name) for name in Progress.__slots__ if name != "recall"}
    return to_message(recall, pb.Recall, time=recall.at, **figures)


def _position(vaccination: Vaccination) -> tuple[str, str, str]:
    at = vaccination.administered_at
    return vaccination.appointment.hospital_id, at.isoformat() if at else "", vaccination.reservation_id


def _vaccinated(vaccination: Vaccination) -> pb.Vaccinated:
    return to_message(vaccination.appointment, pb.Vaccinated, administer_time=vaccination.administered_at)


def register(server: Server, recalls: Recalls) -> None:
    """Adds the service to a server."""
    recall_service_pb2_grpc.add_RecallServiceServicer_to_server(RecallServicer(recalls), server)
