"""Handing out a hospital's free doses within a transaction: directly, or by an exchange."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta

from ..domain import Exchange, Lot, LotId, PlaceInQueue, ReservationId, Vaccination, give_out
from .ports import UnitOfWork

# Doses given out in one transaction: it holds the hospital's lots for as long as it takes.
GIVE_OUT = 500
CANDIDATES = 20  # bookings read at once that may move from one lot to another


def earliest(now: datetime) -> date:
    """A day on which it is today somewhere on earth, or the day before. Appointments of earlier days have passed
    everywhere; about the others the domain decides, by each hospital's own time zone."""
    return (now - timedelta(days=1)).date()


async def serve(
    work: UnitOfWork,
    hospital_id: str,
    newcomers: Sequence[Vaccination],
    now: datetime,
    at_hand: Sequence[Lot] = (),
    *,
    thoroughly: bool = False,
) -> tuple[list[Vaccination], list[Lot]]:
    """Gives free doses to those who wait and to newcomers, first come first served.

    A newcomer whom no free dose suits gets one by an exchange, if there is one. Those who wait already are looked at
    for that only when it is to be done `thoroughly`, since it has been tried for them; then their turn is by their
    place in the queue as well. `at_hand` are lots that the transaction has changed already. Returns whose dose is new
    or another one, and the changed lots.
    """
    lots = {lot.lot_id: lot for lot in (*await work.free_lots(hospital_id, earliest(now)), *at_hand)}
    free = [lot for lot in lots.values() if lot.free and not lot.withdrawn]
    if not free:
        return [], [lot for lot in lots.values() if lot.movements]
    exchanges = _Exchanges(work, hospital_id, lots, now)
    exchanges.know(newcomers)  # the store may still show the dose that one has just lost
    suited = (await exchanges.find()).lots if thoroughly else free
    waiting, last = await _waiting(work, hospital_id, suited, now)
    if last is not None:  # more may wait behind these, and nobody may overtake them
        newcomers = [v for v in newcomers if v.place_in_queue < last]
    queue = [*waiting, *newcomers]
    changed = [] if thoroughly else give_out(queue, free, now)
    exchanges.know(changed)
    left = queue if thoroughly else [v for v in newcomers if v.dose is None]
    changed += await exchanges.serve([v for v in left if not v.appointment.has_passed(now)])
    once = {v.reservation_id: v for v in changed}
    return list(once.values()), [lot for lot in lots.values() if lot.movements]


async def give_others(
    work: UnitOfWork, lot: Lot, losers: Sequence[Vaccination], now: datetime, told: Sequence[Vaccination] = ()
) -> None:
    """Gives those who lost their dose of the lot another one, or has them wait with their old place, and saves all
    with the lot and with those who were `told` of something else."""
    served, lots = await serve(work, lot.hospital_id, losers, now, [lot]) if losers else ([], [])
    for vaccination in losers:
        if vaccination.dose is None:
            vaccination.wait(now)
    if lot.withdrawn:
        waiting = sum(v.dose is None for v in losers)
        lot.reassigned, lot.left_waiting = lot.reassigned + len(losers) - waiting, lot.left_waiting + waiting
    changed = {v.reservation_id: v for v in (*told, *served, *losers)}
    await work.save(list(changed.values()), list({one.lot_id: one for one in (*lots, lot)}.values()))


async def _waiting(
    work: UnitOfWork, hospital_id: str, lots: Sequence[Lot], now: datetime
) -> tuple[list[Vaccination], PlaceInQueue | None]:
    """Who waits and would do with one of the lots; and the place of the last one if there may be more."""
    waiting: list[Vaccination] = []
    behind: PlaceInQueue | None = None
    while len(waiting) < GIVE_OUT:
        page = await work.waiting(hospital_id, lots, earliest(now), behind, GIVE_OUT)
        waiting += [v for v in page if not v.appointment.has_passed(now)]
        if len(page) < GIVE_OUT:
            return waiting, None
        behind = page[-1].place_in_queue
    return waiting, behind


class _Exchanges:
    """Exchanges within one transaction. What it has changed itself the store does not show yet."""

    def __init__(self, work: UnitOfWork, hospital_id: str, lots: dict[LotId, Lot], now: datetime) -> None:
        self._work, self._hospital_id, self._lots, self._now = work, hospital_id, lots, now
        self._complete = False
        self._known: dict[ReservationId, Vaccination] = {}
        self._exhausted: set[tuple[LotId, LotId]] = set()

    def know(self, vaccinations: Iterable[Vaccination]) -> None:
        """These are as they are here."""
        self._known |= {v.reservation_id: v for v in vaccinations}

    async def serve(self, queue: Sequence[Vaccination]) -> list[Vaccination]:
        """Serves those who can be, first come first served; returns whose dose is new or another one."""
        changed: list[Vaccination] = []
        exchange: Exchange | None = None
        for vaccination in sorted(queue, key=lambda v: v.place_in_queue):
            exchange = exchange or await self.find()
            lot = exchange.lot_for(vaccination.appointment)
            if lot is None:
                continue
            if lot.free == 0:
                changed += exchange.make_room(lot, self._now)
                exchange = None
            vaccination.complete(lot, self._now)
            changed.append(vaccination)
            self.know([vaccination])
            if lot.free == 0:
                exchange = None
        return changed

    async def find(self) -> Exchange:
        """The exchanges that are possible now."""
        if not self._complete:
            full = await self._work.full_lots(self._hospital_id, earliest(self._now))
            self._lots |= {lot.lot_id: lot for lot in full if lot.lot_id not in self._lots}
            self._complete = True
        return await Exchange.among([lot for lot in self._lots.values() if not lot.withdrawn], self._movable)

    async def _movable(self, source: Lot, target: Lot) -> Vaccination | None:
        while True:
            for one in self._known.values():
                if one.may_move(source, target, self._now):
                    return one
            if (source.lot_id, target.lot_id) in self._exhausted:
                return None
            page = await self._work.movable(source, target, earliest(self._now), list(self._known), CANDIDATES)
            self.know(page)
            if len(page) < CANDIDATES:
                self._exhausted.add((source.lot_id, target.lot_id))


__all__ = ["GIVE_OUT", "earliest", "give_others", "serve"]
