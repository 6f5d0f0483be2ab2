"""Lots that nobody may be given any more, and bookings whose lot is not what it was."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.chassis.unit_of_work import LostRace, StoreUnavailable, repeated_after_lost_race

from ..domain import (
    DoseChange,
    DoseChangeReason,
    Lot,
    LotId,
    PlaceInQueue,
    Recall,
    ReservationId,
    UnknownLot,
    UnknownRecall,
    Vaccination,
    canonical_code,
)
from .ports import Clock, Record, Stock, UnitOfWork
from .serving import earliest, give_others

# Bookings looked at in one transaction. Whoever wants a dose of the hospital's lots meanwhile begins again, so that it
# is not for long, and others have their turn before the next one.
BATCH = 200
GIVE_WAY = 0.03  # seconds
MOST_LOST = 30  # times in a row
LONGEST_PAUSE = 0.3  # seconds
TOGETHER = 10  # lots changed in one transaction: whoever books on one of them meanwhile makes it begin again
# A delivery that began before the recall was there may still commit, for as long as the store lets a transaction live.
LATE_DELIVERIES = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Progress:
    """A recall and how far it is; see the contract's Recall."""

    recall: Recall
    lots: int
    written_off: int
    reassigned: int
    waiting: int
    bookings_to_go: int
    administered: int


class Recalls:
    """Withdraws lots, and looks at bookings whose lot was withdrawn or corrected.

    `freed` is set whenever doses may have become free, and `record` keeps who reads whose data.
    """

    def __init__(self, stock: Stock, clock: Clock, freed: asyncio.Event, record: Record) -> None:
        self._stock, self._clock, self._freed, self._record = stock, clock, freed, record
        self._woken = asyncio.Event()

    async def recall(
        self, vaccine_code: str, manufacturer: str, lot_number: str, hospital_id: str, by: str, note: str
    ) -> Progress:
        """Withdraws a lot, everywhere or at one hospital. A repeat changes nothing. Raises UnknownLot."""
        recall_id = Recall.id_of(vaccine_code, manufacturer, lot_number, hospital_id)
        code = canonical_code(vaccine_code)
        recall = Recall(recall_id, code, manufacturer, lot_number, hospital_id, note, self._clock(), by)
        recall = await self._begin(recall)
        await self._withdraw(recall)
        self._woken.set()
        return await self._progress(recall)

    async def progress(self, recall_id: str, may: Callable[[str], None]) -> Progress:
        """How far a recall is. Raises UnknownRecall. `may` raises unless the caller may act for the hospital."""
        return await self._progress(await self._known(recall_id, may))

    async def vaccinated(
        self,
        recall_id: str,
        after: tuple[str, datetime, ReservationId] | None,
        limit: int,
        by: str,
        role: str,
        may: Callable[[str], None],
    ) -> Sequence[Vaccination]:
        """Who was given a dose of the recalled lots, by hospital, then by time. It is recorded who asked, at each of
        the hospitals.

        Raises UnknownRecall.
        """
        recall = await self._known(recall_id, may)
        found = await self._stock.vaccinated_page(await self._stock.recalled_lots(recall), after, limit)
        for hospital_id in sorted({vaccination.appointment.hospital_id for vaccination in found}):
            await self._record(by, role, hospital_id, "ListVaccinated", recall_id)
        return found

    async def woken(self) -> None:
        """Waits until there may be something to look at in this process."""
        await self._woken.wait()
        self._woken.clear()

    async def look(self, *, thoroughly: bool = False) -> int:
        """Does what recalls and corrections have left to do; returns how many bookings were told of it.

        `thoroughly` also finds what a version that knows no recalls has done: lots that it registered after the recall,
        and bookings that it gave a dose of a withdrawn lot.
        """
        now = self._clock()
        since = datetime.min.replace(tzinfo=UTC) if thoroughly else now - LATE_DELIVERIES
        for recall in await self._stock.recalls_since(since):
            await self._withdraw(recall)
        lots = set(await self._stock.lots_to_look_at())
        if thoroughly:
            lots |= set(await self._stock.withdrawn_with_bookings(earliest(now)))
        total = 0
        errors: list[Exception] = []
        for lot_id in lots:
            try:
                total += await self._look_through(lot_id)
            except Exception as error:  # trouble with one lot must not keep the others waiting
                errors.append(error)
        if errors:
            raise errors[0]
        return total

    async def _look_through(self, lot_id: LotId) -> int:
        """Looks at all bookings on a lot that have to be looked at; returns how many were told of it."""
        total, lost = 0, 0
        while lost < MOST_LOST:
            lot = await self._stock.lot(lot_id)
            queue = await self._stock.bookings_to_look_at(lot, earliest(self._clock())) if lot else []
            # The last batch is empty: it finds that there are no more.
            for start in range(0, len(queue) + BATCH, BATCH):
                try:
                    told, finished = await self._look_at(lot_id, queue[start : start + BATCH])
                except LostRace:  # whoever it lost to may be another replica that does the same
                    lost += 1
                    await asyncio.sleep(random.uniform(0, LONGEST_PAUSE))  # noqa: S311
                    break
                total, lost = total + told, 0
                if finished:
                    return total
                await asyncio.sleep(GIVE_WAY)
        raise StoreUnavailable("too many others at once change the lots of one hospital")

    async def open_ledgers(self) -> int:
        """Begins the ledgers of lots that were there before lots had ledgers; returns of how many."""
        total = 0
        while ids := await self._stock.lots_to_open(TOGETHER):
            await self._open(ids)
            total += len(ids)
        return total

    @repeated_after_lost_race
    async def _begin(self, recall: Recall) -> Recall:
        async with self._stock.unit_of_work() as work:
            known = await work.recall(recall.recall_id)
            if known is not None:
                return known
            if not await self._stock.recalled_lots(recall):
                raise UnknownLot("no such lot" + (f" at hospital {recall.hospital_id}" if recall.hospital_id else ""))
            await work.add_recall(recall)
        return recall

    async def _withdraw(self, recall: Recall) -> None:
        left = [lot.lot_id for lot in await self._stock.recalled_lots(recall) if not lot.withdrawn]
        for start in range(0, len(left), TOGETHER):
            await self._withdraw_some(recall, left[start : start + TOGETHER])

    @repeated_after_lost_race
    async def _withdraw_some(self, recall: Recall, ids: Sequence[LotId]) -> None:
        async with self._stock.unit_of_work() as work:
            lots = [lot for lot in (await work.lots(ids)).values() if not lot.withdrawn]
            for lot in lots:
                lot.withdraw(recall.note, self._clock(), recall.by, recall.recall_id)
            await work.save([], lots)

    async def _look_at(self, lot_id: LotId, ids: Sequence[ReservationId]) -> tuple[int, bool]:
        """Looks at these bookings on a lot; returns how many were told of it, and whether no more have to be looked at.

        That is so at the moment of the commit, because whoever books on the lot meanwhile changes the lot too.
        """
        now = self._clock()
        async with self._stock.unit_of_work() as work:
            lot = await work.claim(lot_id, earliest(now))
            if lot is None:
                return 0, True
            lot.open(now)
            lot.write_off_what_came_back(now)
            reason = DoseChangeReason.LOT_RECALLED if lot.withdrawn else DoseChangeReason.LOT_CORRECTED
            change = DoseChange(reason, lot.withdrawn)
            known = (await work.vaccinations(ids)).values() if ids else []
            found = [v for v in known if v.dose and v.dose.lot_id == lot_id]
            losers = [v for v in found if v.look_at(lot, change, now)]
            told = [v for v in found if v.events or v.lost]
            lot.to_look_at = bool(ids) or await self._has_bookings_to_look_at(work, lot, now)
            await give_others(work, lot, losers, now, told)
        if told:
            self._freed.set()
        return len(told), not lot.to_look_at

    async def _has_bookings_to_look_at(self, work: UnitOfWork, lot: Lot, now: datetime) -> bool:
        behind: PlaceInQueue | None = None
        while page := await work.bookings_to_look_at(lot, earliest(now), behind, BATCH):
            if not all(v.appointment.has_passed(now) for v in page):
                return True
            behind = page[-1].place_in_queue
        return False

    @repeated_after_lost_race
    async def _open(self, ids: Sequence[LotId]) -> None:
        async with self._stock.unit_of_work() as work:
            lots = list((await work.lots(ids)).values())
            for lot in lots:
                lot.open(self._clock())
            await work.save([], lots)

    async def _known(self, recall_id: str, may: Callable[[str], None]) -> Recall:
        recall = await self._stock.recall(recall_id)
        if recall is None:
            raise UnknownRecall(f"no recall {recall_id}")
        may(recall.hospital_id)
        return recall

    async def _progress(self, recall: Recall) -> Progress:
        left = [lot for lot in await self._stock.recalled_lots(recall) if lot.to_look_at or not lot.withdrawn]
        to_go = await self._stock.bookings_to_go(left, earliest(self._clock())) if left else 0
        # Read after the count: when nothing is left to look at, this is how it ended.
        lots = await self._stock.recalled_lots(recall)
        return Progress(
            recall,
            lots=sum(bool(lot.withdrawn) for lot in lots),
            written_off=sum(lot.balance.written_off for lot in lots),
            reassigned=sum(lot.reassigned for lot in lots),
            waiting=sum(lot.left_waiting for lot in lots),
            bookings_to_go=to_go,
            administered=sum(lot.balance.administered for lot in lots),
        )
