"""Vaccine management over gRPC."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from grpc import StatusCode
from grpc.aio import Server, ServicerContext

from services.chassis import paging
from services.chassis.caller import caller
from services.chassis.convert import calendar_day, canonical_id, from_message, to_message
from services.chassis.errors import Answer, Details, Errors, InvalidFields, Refusal
from vaccination.vaccinemgmt.v1 import lot_pb2, vaccinemgmt_service_pb2_grpc
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2 as pb

from .. import domain
from ..application import Accesses, Stockroom, Vaccines
from ..domain import Correction, Delivery, LotId, Movement, Vaccination, WriteOffReason
from .accesses import record
from .answers import MANAGERS, own, reservation_id, shown, vaccination_message
from .events import lot_message

ERRORS = Errors(
    "vaccination.vaccinemgmt",
    {
        domain.ExpiryBeforeProduction: Answer(StatusCode.INVALID_ARGUMENT, "EXPIRY_BEFORE_PRODUCTION"),
        domain.LotConflict: Answer(StatusCode.ALREADY_EXISTS, "LOT_CONFLICT"),
        domain.RequestIdReused: Answer(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"),
        domain.UnknownVaccination: Answer(StatusCode.NOT_FOUND, "UNKNOWN_VACCINATION", "reservation_id"),
        domain.UnknownLot: Answer(StatusCode.NOT_FOUND, "UNKNOWN_LOT", "lot_id"),
        domain.UnknownRecall: Answer(StatusCode.NOT_FOUND, "UNKNOWN_RECALL", "recall_id"),
        domain.VaccinationCancelled: Answer(StatusCode.FAILED_PRECONDITION, "VACCINATION_CANCELLED"),
        domain.VaccinationEnded: Answer(StatusCode.FAILED_PRECONDITION, "VACCINATION_ENDED"),
        domain.AlreadyAdministered: Answer(StatusCode.FAILED_PRECONDITION, "ALREADY_ADMINISTERED"),
        domain.WrongDay: Answer(StatusCode.FAILED_PRECONDITION, "WRONG_DAY"),
        domain.NoDose: Answer(StatusCode.FAILED_PRECONDITION, "NO_DOSE", "lot_id"),
        domain.LotWithdrawn: Answer(StatusCode.FAILED_PRECONDITION, "LOT_WITHDRAWN"),
        domain.LotEmpty: Answer(StatusCode.FAILED_PRECONDITION, "LOT_EMPTY"),
        domain.LotNotValid: Answer(StatusCode.FAILED_PRECONDITION, "LOT_NOT_VALID"),
        domain.LotOtherVaccine: Answer(StatusCode.FAILED_PRECONDITION, "LOT_OTHER_VACCINE"),
        domain.TooFewDoses: Answer(StatusCode.FAILED_PRECONDITION, "TOO_FEW_DOSES", "quantity"),
        domain.TooManyBooked: Answer(StatusCode.FAILED_PRECONDITION, "TOO_MANY_BOOKED", "quantity"),
        domain.UnknownStatus: Answer(StatusCode.FAILED_PRECONDITION, "UNKNOWN_STATUS"),
    },
)
Context = ServicerContext[Any, Any]


class VaccinemgmtServicer(vaccinemgmt_service_pb2_grpc.VaccinemgmtServiceServicer):
    """For vaccine managers."""

    def __init__(self, vaccines: Vaccines, stockroom: Stockroom, accesses: Accesses) -> None:
        self._vaccines, self._stockroom, self._accesses = vaccines, stockroom, accesses

    @MANAGERS
    async def RegisterLots(self, request: pb.RegisterLotsRequest, context: Context) -> pb.RegisterLotsResponse:
        own(request.hospital_id)
        deliveries: list[Delivery] = []
        for i, delivery in enumerate(request.deliveries):
            try:
                deliveries.append(from_message(delivery, Delivery))
            except InvalidFields as error:
                raise InvalidFields(
                    [(f"deliveries[{i}].{field}", problem) for field, problem in error.violations]
                ) from None
        try:
            lots, created, taken = await self._stockroom.register(request.hospital_id, deliveries, caller().subject)
        except (domain.ExpiryBeforeProduction, domain.LotConflict, domain.LotWithdrawn) as error:
            place = _place_of(error.delivery, deliveries)
            place += ".expiry_date" if isinstance(error, domain.ExpiryBeforeProduction) else ""
            raise Refusal(error, Details([(place, str(error))])) from error
        return pb.RegisterLotsResponse(lots=[lot_message(lot) for lot in lots], lots_created=created, taken=taken)

    @MANAGERS
    async def ListLots(self, request: pb.ListLotsRequest, context: Context) -> pb.ListLotsResponse:
        own(request.hospital_id)
        limit, listing = request.page_size or 100, f"lots of {request.hospital_id}"
        after = paging.decode(listing, request.page_token, date.fromisoformat, canonical_id)
        lots = await self._stockroom.lots(request.hospital_id, (after[0], after[1]) if after else None, limit + 1)
        page, token = paging.cut(listing, lots, limit, lambda lot: (lot.expiry_date.isoformat(), lot.lot_id))
        return pb.ListLotsResponse(lots=[lot_message(lot) for lot in page], next_page_token=token)

    @MANAGERS
    async def GetVaccination(self, request: pb.GetVaccinationRequest, context: Context) -> pb.GetVaccinationResponse:
        vaccination = await self._vaccines.vaccination(reservation_id(request.reservation_id), own)
        return pb.GetVaccinationResponse(vaccination=await shown(self._accesses, "GetVaccination", vaccination))

    @MANAGERS
    async def ListWaiting(self, request: pb.ListWaitingRequest, context: Context) -> pb.ListWaitingResponse:
        own(request.hospital_id)
        limit, listing = request.page_size or 100, f"waiting at {request.hospital_id}"
        after = paging.decode(listing, request.page_token, paging.instant, canonical_id)
        waiting = await self._vaccines.waiting(request.hospital_id, (after[0], after[1]) if after else None, limit + 1)
        page, token = paging.cut(listing, waiting, limit, _place)
        await record(self._accesses, request.hospital_id, "ListWaiting", request.hospital_id)
        return pb.ListWaitingResponse(vaccinations=[vaccination_message(v) for v in page], next_page_token=token)

    @MANAGERS
    async def AssignLot(self, request: pb.AssignLotRequest, context: Context) -> pb.AssignLotResponse:
        lot_id = LotId(canonical_id(request.lot_id))
        vaccination = await self._vaccines.assign(reservation_id(request.reservation_id), lot_id, caller().subject, own)
        return pb.AssignLotResponse(vaccination=await shown(self._accesses, "AssignLot", vaccination))

    @MANAGERS
    async def CorrectLot(self, request: pb.CorrectLotRequest, context: Context) -> pb.CorrectLotResponse:
        days = {
            name: calendar_day(name, text) if (text := getattr(request, name)) else None
            for name in ("production_date", "expiry_date")
        }
        correction = Correction(**days, received=request.received if request.HasField("received") else None)
        lot_id, request_id = LotId(canonical_id(request.lot_id)), canonical_id(request.request_id)
        try:
            lot, to_go = await self._stockroom.correct(
                lot_id, correction, request_id, caller().subject, request.note, own
            )
        except domain.ExpiryBeforeProduction as error:
            raise Refusal(error, Details([("expiry_date", str(error))])) from error
        except (domain.TooFewDoses, domain.TooManyBooked) as error:
            raise Refusal(error, Details([("received", str(error))])) from error
        return pb.CorrectLotResponse(lot=lot_message(lot), bookings_to_go=to_go)

    @MANAGERS
    async def WriteOffDoses(self, request: pb.WriteOffDosesRequest, context: Context) -> pb.WriteOffDosesResponse:
        lot_id, request_id = LotId(canonical_id(request.lot_id)), canonical_id(request.request_id)
        reason = WriteOffReason(request.reason)
        lot = await self._stockroom.write_off(
            lot_id, request.quantity, reason, request_id, caller().subject, request.note, own
        )
        return pb.WriteOffDosesResponse(lot=lot_message(lot))

    @MANAGERS
    async def ListMovements(self, request: pb.ListMovementsRequest, context: Context) -> pb.ListMovementsResponse:
        lot_id = LotId(canonical_id(request.lot_id))
        limit, listing = request.page_size or 100, f"movements of {lot_id}"
        after = paging.decode(listing, request.page_token, paging.instant, canonical_id)
        found = await self._stockroom.movements(lot_id, (after[0], after[1]) if after else None, limit + 1, own)
        page, token = paging.cut(listing, found, limit, lambda m: (m.at.isoformat(), m.movement_id))
        return pb.ListMovementsResponse(movements=[_movement(m) for m in page], next_page_token=token)


def _movement(movement: Movement) -> lot_pb2.Movement:
    reason = movement.reason.value if movement.reason else 0
    return to_message(movement, lot_pb2.Movement, time=movement.at, write_off_reason=reason)


def _place_of(delivery: Delivery | None, deliveries: Sequence[Delivery]) -> str:
    """Where in the request a delivery stands, and not another one like it."""
    return next(f"deliveries[{i}]" for i, other in enumerate(deliveries) if other is delivery)


def _place(vaccination: Vaccination) -> tuple[str, str]:
    decide_time, reservation_id = vaccination.place_in_queue
    return decide_time.isoformat(), reservation_id


def register(server: Server, vaccines: Vaccines, stockroom: Stockroom, accesses: Accesses) -> None:
    """Adds vaccine management's services to a server."""
    stock = VaccinemgmtServicer(vaccines, stockroom, accesses)
    vaccinemgmt_service_pb2_grpc.add_VaccinemgmtServiceServicer_to_server(stock, server)
