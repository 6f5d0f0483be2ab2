"""Vaccine management's books for the proof that they add up: where a lot's doses are."""

import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pymongo
from pymongo.client_session import ClientSession

from services.chassis.events.books import EVENTS, Account, Amounts, Reading
from services.chassis.mongo import Mongo, to_its_end
from services.chassis.retention import EPOCH, Retention
from vaccination.vaccinemgmt.v1.vaccinemgmt_events_pb2 import (
    CancellationCompleted,
    ReservationCompleted,
    ReservationWaiting,
    StockMoved,
    VaccinationAdministered,
    VaccinationMissed,
    VaccinationUnserved,
)

from ..domain import Balance, MovementKind, Status

RESERVED, ADMINISTERED = "reserved", "administered"
OF_PEOPLE = (RESERVED, ADMINISTERED)
WITH_DOSE = {Status.COMPLETED.value: RESERVED, Status.ADMINISTERED.value: ADMINISTERED}
# Where a reservation's dose is after its last event. A check-in does not change that, and has no dose: it is not read.
WHERE: dict[Any, str] = {
    ReservationCompleted: RESERVED, VaccinationAdministered: ADMINISTERED, ReservationWaiting: "",
    CancellationCompleted: "", VaccinationMissed: "", VaccinationUnserved: "",
}  # fmt: skip
STOCK_MOVED = StockMoved.DESCRIPTOR.full_name
EVENTS_OF_PEOPLE = {event.DESCRIPTOR.full_name: (event, where) for event, where in WHERE.items()}
READ_WITHIN = 600.0  # seconds: whole collections are read once

LEDGER = {
    "_id": {"lot_id": "$lot_id", "kind": "$kind"},
    "quantity": {"$sum": "$quantity"},
    "reserved": {"$sum": "$reserved"},
    "first": {"$min": "$at"},
}
DOSES = {
    "_id": {"lot_id": "$dose.lot_id", "status": "$status"},
    "doses": {"$sum": 1},
    "hospital_id": {"$first": "$hospital_id"},
    "lot_number": {"$first": "$dose.lot_number"},
}
# Named, since a newer version may add fields while this one reads.
LOT = [
    *("hospital_id", "lot_number", "production_date"),
    *("received", "free", "used", "administered", "written_off", "entered"),
]


class LotBooks:
    """See chassis.events.books.Books. An account is "HOSPITAL lot NUMBER LOT_ID".

    What is compared, and where it would not be sound:
    - The movements' sums with the lot's numbers. What a version that keeps no ledger has moved since the last movement
      is between `entered` and the numbers, and is not a difference; that the doses are there, vaccinations and events
      tell.
    - Vaccinations and events with `reserved` and `administered`. Retention deletes the vaccinations of days long past,
      and their events may have been an erased person's: where a lot may be so old, both may be fewer.
    - Of an erased person who had a dose, the vaccination stays and the events are gone: the vaccination counts as one.
    - Of a lot without a ledger the events tell only what became of doses through reservations.
    - Of a stream that has lost its beginning, only lots that first came after that are compared.
    """

    subjects: Sequence[str] = (STOCK_MOVED, *EVENTS_OF_PEOPLE)

    def __init__(self, mongo: Mongo, retention: Retention) -> None:
        self._mongo = mongo
        self._lots, self._movements = mongo.database["lots"], mongo.database["movements"]
        self._vaccinations = mongo.database["vaccinations"]
        self._forgets = retention.passed_before > EPOCH.date()
        self._kept_since = retention.passed_before + timedelta(2)  # retention may go on meanwhile
        self._moved: set[bytes] = set()
        self._where: dict[bytes, tuple[int, str, str]] = {}  # by reservation: version of the last event, account, where
        self._told: defaultdict[str, Counter[str]] = defaultdict(Counter)

    # What the events say

    def add(self, subject: str, payload: bytes) -> Collection[str]:
        """See Books."""
        if subject == STOCK_MOVED:
            return self._stock_moved(StockMoved.FromString(payload))
        cls, where = EVENTS_OF_PEOPLE[subject]
        event = cls.FromString(payload)
        account = _account(event.appointment.hospital_id, event.dose.lot_number, event.dose.lot_id) if where else ""
        return self._dose_is(event.appointment.reservation_id, event.version, account, where)

    def _stock_moved(self, event: StockMoved) -> Collection[str]:
        movement = UUID(event.movement_id).bytes
        if movement in self._moved:
            return ()
        self._moved.add(movement)
        account = _account(event.lot.hospital_id, event.lot.lot_number, event.lot.lot_id)
        self._told[account]["received"] += event.received_change
        self._told[account]["written_off"] += event.written_off_change
        return (account,)

    def _dose_is(self, reservation_id: str, version: int, account: str, where: str) -> Collection[str]:
        reservation = UUID(reservation_id).bytes
        known, old_account, old_where = self._where.get(reservation, (0, "", ""))
        if version <= known:
            return ()
        self._where[reservation] = version, account, where
        if (old_account, old_where) == (account, where):
            return ()
        if old_where:
            self._told[old_account][old_where] -= 1
        if where:
            self._told[account][where] += 1
        return {account, old_account} - {""}

    def told(self) -> Collection[str]:
        """See Books."""
        return self._told.keys()

    def amounts(self, account: str) -> Amounts:
        """See Books."""
        if account not in self._told:
            return {}
        t = self._told[account]
        balance = Balance(t["received"], 0, t[RESERVED], t[ADMINISTERED], t["written_off"])
        balance.free = balance.received - balance.reserved - balance.administered - balance.written_off
        return asdict(balance)

    # What the store says

    async def read(self, accounts: Collection[str] | None, complete_since: datetime | None) -> Reading:
        """See Books."""
        if accounts is None:
            with pymongo.timeout(READ_WITHIN):
                async with self._mongo.boundary():
                    return await self._read({}, {}, complete_since, None)
        ids = {"$in": [account.rsplit(" ", 1)[-1] for account in accounts]}
        async with self._mongo.unit_of_work(lambda _: None) as snapshot:
            reading = self._read({"_id": ids}, {"lot_id": ids}, complete_since, snapshot.session)
            return await to_its_end(asyncio.ensure_future(reading))

    async def _read(
        self,
        of_lots: dict[str, Any],
        of_ledgers: dict[str, Any],
        complete_since: datetime | None,
        session: ClientSession | None,
    ) -> Reading:
        people = {"status": {"$in": [*WITH_DOSE]}, **{f"dose.{name}": value for name, value in of_ledgers.items()}}
        lots = [row async for row in self._lots.find(of_lots, dict.fromkeys(LOT, 1), session=session)]
        ledgers = defaultdict[str, list[dict[str, Any]]](list)
        stages = [{"$match": of_ledgers}, {"$group": LEDGER}]
        async for row in self._movements.aggregate(stages, session=session, allowDiskUse=True):
            ledgers[row["_id"]["lot_id"]].append(row)
        names: dict[str, str] = {}
        doses = defaultdict[str, Counter[str]](Counter)
        stages = [{"$match": people}, {"$group": DOSES}]
        async for row in self._vaccinations.aggregate(stages, session=session, allowDiskUse=True):
            lot_id, where = row["_id"]["lot_id"], WITH_DOSE[row["_id"]["status"]]
            doses[lot_id][where] = row["doses"]
            names[lot_id] = _account(row["hospital_id"], row["lot_number"], lot_id)
        nobody = {"customer_id": {"$regex": "^erased-"}, **people}
        async for row in self._vaccinations.find(nobody, session=session):
            account = _account(row["hospital_id"], row["dose"]["lot_number"], row["dose"]["lot_id"])
            self._dose_is(row["_id"], row["version"], account, WITH_DOSE[row["status"]])
        found: dict[str, Account] = {}
        for row in lots:
            names[row["_id"]] = _account(row["hospital_id"], row["lot_number"], row["_id"])
            ledger = ledgers.pop(row["_id"], [])
            found[names[row["_id"]]] = self._lot(row, ledger, doses.pop(row["_id"], Counter()), complete_since)
        for lot_id in ledgers.keys() | doses.keys():  # of lots that are not there
            others = {"movements": _sums(ledgers.get(lot_id, [])), "vaccinations": dict(doses.get(lot_id, {}))}
            found[names.get(lot_id, _account("?", "?", lot_id))] = Account({}, others)
        wanted = {"subject": {"$in": list(self.subjects)}}
        outbox = [(r["subject"], r["payload"]) async for r in self._mongo.outbox.find(wanted, session=session)]
        return Reading(found, outbox)

    def _lot(
        self, row: dict[str, Any], ledger: list[dict[str, Any]], doses: Counter[str], complete_since: datetime | None
    ) -> Account:
        administered, written_off = row.get("administered", 0), row.get("written_off", 0)
        reserved = row["used"] - administered - written_off
        own = Balance(row["received"], row["free"], reserved, administered, written_off)
        others: dict[str, Amounts] = {"vaccinations": {where: doses[where] for where in OF_PEOPLE}}
        told: Collection[str] = OF_PEOPLE
        entered = row.get("entered")
        if entered or ledger:
            others["movements"] = _sums(ledger, unrecorded=entered["free"] - own.free if entered else 0)
            told = asdict(own).keys()
        kinds = {part["_id"]["kind"]: part["first"] for part in ledger}
        came = kinds.get(MovementKind.RECEIVED.value) if MovementKind.OPENED.value not in kinds else None
        if complete_since is not None and (came is None or came < complete_since):
            told = ()
        # No dose is for a day before its lot came, nor before its lot was made, unless that date was corrected.
        corrected = MovementKind.CORRECTED.value in kinds
        came_since = came is not None and (came - timedelta(2)).date() >= self._kept_since
        made_since = not corrected and row["production_date"] >= self._kept_since.isoformat()
        if not self._forgets or came_since or made_since:
            return Account(asdict(own), others, told)
        at_most = {"vaccinations": OF_PEOPLE, EVENTS: OF_PEOPLE}
        return Account(asdict(own), others, [quantity for quantity in told if quantity != "free"], at_most)


def _account(hospital_id: str, lot_number: str, lot_id: str) -> str:
    return sys.intern(f"{hospital_id} lot {lot_number} {lot_id}")


def _sums(ledger: Sequence[dict[str, Any]], unrecorded: int = 0) -> Amounts:
    balance = Balance()
    for part in ledger:
        balance.add(MovementKind(part["_id"]["kind"]), part["quantity"], part["reserved"])
    balance.add(MovementKind.UNRECORDED, unrecorded)
    return asdict(balance)
