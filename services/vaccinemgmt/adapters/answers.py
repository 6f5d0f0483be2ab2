"""What the servicers of vaccine management have in common."""

from services.chassis.caller import allow, caller
from services.chassis.convert import canonical_id, to_message
from vaccination.vaccinemgmt.v1 import vaccination_pb2

from ..application import Accesses
from ..domain import ReservationId, Vaccination
from .accesses import record

MANAGERS = allow("manager", "operator")


def own(hospital_id: str) -> None:
    """Raises OtherScope unless the caller may act for the hospital."""
    caller().check_scope("hospital", hospital_id)


def reservation_id(text: str) -> ReservationId:
    """A client's id of a reservation in its canonical form."""
    return ReservationId(canonical_id(text))


def vaccination_message(vaccination: Vaccination) -> vaccination_pb2.Vaccination:
    """A vaccination as the contract has it."""
    return to_message(
        vaccination.appointment,
        vaccination_pb2.Vaccination,
        requested_vaccine_code=vaccination.appointment.vaccine_code,
        status=vaccination.status.value,
        dose=to_message(vaccination.dose, vaccination_pb2.Dose) if vaccination.dose else None,
        quantity=vaccination.quantity,
        version=vaccination.version,
        check_in_time=vaccination.checked_in_at,
        administer_time=vaccination.administered_at,
    )


async def shown(accesses: Accesses, call: str, vaccination: Vaccination) -> vaccination_pb2.Vaccination:
    """The same for a caller of whom it is recorded first that this call shows whose booking it is."""
    await record(accesses, vaccination.appointment.hospital_id, call, vaccination.reservation_id)
    return vaccination_message(vaccination)
