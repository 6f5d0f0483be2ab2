"""What vaccine management refuses."""

from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lot import Delivery


class VaccineError(Exception):
    """Root of what vaccine management refuses.

    VaccineError
    |- ExpiryBeforeProduction
    |- LotConflict
    |- RequestIdReused
    |- UnknownVaccination
    |- UnknownLot
    |- UnknownRecall
    |- VaccinationCancelled
    |- VaccinationEnded
    |- AlreadyAdministered
    |- WrongDay
    |- NoDose
    |- LotEmpty
    |- LotNotValid
    |- LotOtherVaccine
    |- LotWithdrawn
    |- TooFewDoses
    |- TooManyBooked
    `- UnknownStatus
    """


class ExpiryBeforeProduction(VaccineError):
    """A lot would expire before it was made. `delivery` is the one that says so, if it was a delivery."""

    def __init__(self, production_date: date, expiry_date: date, delivery: "Delivery | None" = None) -> None:
        super().__init__(f"{expiry_date} is before production_date {production_date}")
        self.delivery = delivery


class LotConflict(VaccineError):
    """A delivery's lot, or its delivery id, is registered with other content."""

    def __init__(self, delivery: "Delivery", what: str) -> None:
        super().__init__(what)
        self.delivery = delivery


class RequestIdReused(VaccineError):
    """The same request id came before with other content."""


class UnknownVaccination(VaccineError):
    """Vaccine management does not know the reservation, perhaps because its approval has not arrived yet."""


class UnknownLot(VaccineError):
    """The hospital has no such lot."""


class UnknownRecall(VaccineError):
    """There is no such recall."""


class VaccinationCancelled(VaccineError):
    """A cancelled booking gets no dose."""


class VaccinationEnded(VaccineError):
    """The booking was missed, or its day was over while it waited."""


class AlreadyAdministered(VaccineError):
    """The dose was given."""


class WrongDay(VaccineError):
    """The appointment is on another day than today at the hospital."""


class NoDose(VaccineError):
    """No dose is set aside, and no lot was named."""


class LotEmpty(VaccineError):
    """The lot has no free dose."""


class LotNotValid(VaccineError):
    """The lot may not be used on the appointment's day."""


class LotOtherVaccine(VaccineError):
    """The customer asked for another vaccine."""


class LotWithdrawn(VaccineError):
    """Nobody may be given a dose of the lot any more. `delivery` is what brought more of it, if it was a delivery."""

    def __init__(self, lot_number: str, delivery: "Delivery | None" = None) -> None:
        super().__init__(f"lot {lot_number} is withdrawn: nobody may be given a dose of it")
        self.delivery = delivery


class TooFewDoses(VaccineError):
    """More doses are to leave the lot than are left in it."""


class TooManyBooked(VaccineError):
    """More bookings would lose their dose than one transaction takes."""


class UnknownStatus(VaccineError):
    """The vaccination is in a status of a newer version, and what may become of it there is not known here."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the vaccination is in status {status} of a newer version: try again when the update is over")
