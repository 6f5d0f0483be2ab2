"""Goods receipt: what a hospital's deliveries add to its lots."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from .errors import LotConflict, LotWithdrawn
from .lot import Delivery, Lot, LotId, Movement, MovementId, MovementKind, Recall, Request, movement_id

OTHERWISE = "is registered with another quantity or other dates"


class Receipt:
    """Takes deliveries, of which some may have been taken before.

    `lots` are those that are there already, under each of `Lot.ids_of`; `done` are the movements that deliveries with
    these ids have made; `arrivals` are all movements that brought doses to these lots.
    """

    def __init__(
        self,
        hospital_id: str,
        lots: Mapping[LotId, Lot],
        done: Mapping[MovementId, Movement],
        arrivals: Iterable[Movement],
        recalls: Sequence[Recall],
    ) -> None:
        self._hospital_id, self._recalls = hospital_id, recalls
        self._lots, self._done, self._arrivals = dict(lots), dict(done), list(arrivals)
        self.created = 0
        self.of: list[Lot] = []
        """The lot of each delivery that was handed to `take`."""

    @property
    def changed(self) -> list[Lot]:
        """Lots with new movements."""
        return [lot for lot in self._lots.values() if lot.movements]

    def take(self, delivery: Delivery, by: str, at: datetime) -> bool:
        """Adds the delivery's doses to its lot; returns whether they are new.

        Raises ExpiryBeforeProduction, LotConflict or LotWithdrawn.
        """
        new = Lot.of(self._hospital_id, delivery)
        present = [self._lots[key] for key in Lot.ids_of(self._hospital_id, delivery) if key in self._lots]
        if known := next((lot for lot in present if self._is_known(lot, delivery)), None):
            self.of.append(known)
            return False
        lot = present[0] if present else new
        self.of.append(lot)
        if any(recall.is_about(lot) for recall in self._recalls):
            raise LotWithdrawn(lot.lot_number, delivery)
        if lot is not new and (not delivery.delivery_id or not lot.has_dates_of(delivery)):
            raise LotConflict(delivery, f"lot {lot.lot_number} {OTHERWISE}")
        request = Request(movement_id(lot.lot_id, delivery.delivery_id), by, "", at)
        if lot is not new and self._is_the_first_one(lot, delivery):
            lot.recognise(delivery, request)
            return False
        lot.receive(delivery, request)
        self._lots[lot.lot_id] = lot
        self.created += lot is new
        return True

    def _is_known(self, lot: Lot, delivery: Delivery) -> bool:
        content = (delivery.quantity, delivery.production_date, delivery.expiry_date)
        if not delivery.delivery_id:  # it comes once: what it brought then, or what is there now
            first = [(m.quantity, m.production_date, m.expiry_date) for m in self._of(lot) if not m.delivery_id]
            return content in first or (
                lot.has_dates_of(delivery)
                and delivery.quantity in (lot.balance.received, *(m.quantity for m in self._of(lot, opened=True)))
            )
        key = movement_id(lot.lot_id, delivery.delivery_id)
        done = self._done.get(key) or next((m for m in lot.movements if m.movement_id == key), None)
        if done is None:
            return False
        if (done.quantity, done.production_date, done.expiry_date) != content:
            raise LotConflict(delivery, f"delivery {delivery.delivery_id} of lot {lot.lot_number} {OTHERWISE}")
        return True

    def _is_the_first_one(self, lot: Lot, delivery: Delivery) -> bool:
        """Whether the lot came once, under no id, with what this delivery brings."""
        came = [*self._of(lot), *self._of(lot, opened=True)]
        if not came and not lot.opened:  # its ledger has not begun
            return delivery.quantity == lot.balance.received
        return [(m.delivery_id, m.quantity) for m in came] == [("", delivery.quantity)]

    def _of(self, lot: Lot, *, opened: bool = False) -> list[Movement]:
        kind = MovementKind.OPENED if opened else MovementKind.RECEIVED
        return [m for m in (*self._arrivals, *lot.movements) if (m.lot_id, m.kind) == (lot.lot_id, kind)]
