"""Lots and vaccinations in MongoDB."""

import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from datetime import date, datetime
from typing import Any

from pymongo import ReturnDocument, UpdateOne
from pymongo.cursor import Cursor
from pymongo.database import Database

from services.chassis.events import Outgoing
from services.chassis.mongo import Mongo, Schema, Transaction
from services.chassis.retention import Retention, Rule
from services.chassis.telemetry import traces_by_key

from ..application import Supply
from ..domain import (
    Appointment,
    Balance,
    Dose,
    Lot,
    LotId,
    Movement,
    MovementId,
    MovementKind,
    PlaceInQueue,
    Recall,
    ReservationId,
    Status,
    UnknownStatus,
    Vaccination,
    WriteOffReason,
    latest_day,
    spellings,
)
from . import accesses
from .events import outgoing, stock_moved

Document = dict[str, Any]

# A replica of 0.3.0 knows received, free and used alone. `used` is reserved + administered + written off.
NOT_RESERVED = {"$add": [{"$ifNull": ["$administered", 0]}, {"$ifNull": ["$written_off", 0]}]}
EITHER_WAY = [MovementKind.CORRECTED.value, MovementKind.UNRECORDED.value]
BY_RESERVATIONS = [kind.value for kind in (MovementKind.RESERVED, MovementKind.RETURNED, MovementKind.ADMINISTERED)]
BROUGHT = [MovementKind.RECEIVED.value, MovementKind.OPENED.value]
WITH_DOSE = [Status.COMPLETED.value, Status.ADMINISTERED.value]
VALIDATORS: dict[str, Document] = {
    "lots": {
        "$expr": {
            "$and": [
                {"$gte": ["$free", 0]},
                {"$gte": ["$used", NOT_RESERVED]},
                {"$gte": [{"$ifNull": ["$administered", 0]}, 0]},
                {"$gte": [{"$ifNull": ["$written_off", 0]}, 0]},
                {"$eq": ["$received", {"$add": ["$free", "$used"]}]},
                {"$lte": ["$production_date", "$expiry_date"]},
                # What its ledger adds up to, which a version that keeps none leaves behind.
                {
                    "$or": [
                        {"$lte": ["$entered", None]},
                        {
                            "$eq": [
                                "$entered.received",
                                {
                                    "$sum": [
                                        f"$entered.{n}" for n in ("free", "reserved", "administered", "written_off")
                                    ]
                                },
                            ]
                        },
                    ]
                },
            ]
        }
    },
    "vaccinations": {
        "$expr": {  # a completed or administered vaccination has exactly one dose, any other has none
            "$and": [
                {"$gte": ["$status", 1]},
                {"$eq": [{"$type": "$dose"}, {"$cond": [{"$in": ["$status", WITH_DOSE]}, "object", "null"]}]},
                {"$eq": ["$quantity", {"$cond": [{"$in": ["$status", WITH_DOSE]}, 1, 0]}]},
            ]
        }
    },
    "movements": {
        "$expr": {
            "$and": [
                {"$gte": ["$kind", 1]},
                {"$eq": [{"$type": "$lot_id"}, "string"]},
                {"$isNumber": "$quantity"},
                {"$or": [{"$in": ["$kind", EITHER_WAY]}, {"$gte": ["$quantity", 0]}]},
                {
                    "$or": [
                        {"$not": {"$in": ["$kind", BY_RESERVATIONS]}},
                        {"$eq": ["$quantity", {"$size": {"$ifNull": ["$reservation_ids", []]}}]},
                    ]
                },
            ]
        }
    },
    "recalls": {
        "$expr": {
            "$and": [
                *({"$eq": [{"$type": f"${name}"}, "string"]} for name in ("hospital_id", "by")),
                *({"$gt": [f"${name}", ""]} for name in ("vaccine_code", "manufacturer", "lot_number", "note")),
                {"$eq": [{"$type": "$at"}, "date"]},
            ]
        }
    },
    "accesses": accesses.VALIDATOR,
}
# Named, since a newer version may add fields while this one reads.
LOT = ["lot_id", "hospital_id", "lot_number", "vaccine_code", "manufacturer", "production_date", "expiry_date"]
MOVEMENT = [field.name for field in fields(Movement) if field.name != "movement_id"]
RECALL = [field.name for field in fields(Recall) if field.name != "recall_id"]
BALANCE = [field.name for field in fields(Balance)]
DOSE = [field.name for field in fields(Dose)]
IN_ORDER = [("decide_time", 1), ("_id", 1)]
QUEUE = [("status", 1), ("hospital_id", 1), *IN_ORDER]
INDEXES: list[tuple[str, list[tuple[str, int]], Document]] = [
    ("lots", [("hospital_id", 1), ("expiry_date", 1), ("_id", 1)], {}),
    ("vaccinations", QUEUE, {"partialFilterExpression": {"status": Status.WAITING.value}}),
    # For what is over and has not ended, by day and time zone; for who comes to a hospital on a day; and for retention.
    # It takes the place of 0.3.0's ("date"), which a store that 0.3.0 has made keeps for the way back.
    ("vaccinations", [("status", 1), ("date", 1), ("time_zone", 1), ("hospital_id", 1)], {}),
    ("vaccinations", [("customer_id", 1)], {}),
    # Bookings by lot, and of these the ones that another lot would suit.
    (
        "vaccinations",
        [("dose.lot_id", 1), ("status", 1), ("vaccine_code", 1), ("date", 1)],
        {"partialFilterExpression": {"dose.lot_id": {"$exists": True}}},
    ),
    ("lots", [("lot_number", 1), ("manufacturer", 1)], {}),
    ("lots", [("to_look_at", 1)], {}),  # also finds those of a version that does not know the field
    ("lots", [("free", 1)], {"partialFilterExpression": {"withdrawn": {"$gt": ""}}}),
    ("recalls", [("at", 1)], {}),
    ("recalls", [("lot_number", 1)], {}),
    ("movements", [("lot_id", 1), ("at", 1), ("_id", 1)], {}),
    *(("accesses", keys, options) for keys, options in accesses.INDEXES),
    ("outbox", [("time", 1)], {}),
]
SCHEMA = Schema(3, VALIDATORS, INDEXES)  # a change of either is a new version
# What became of doses is recorded while a replica of this version runs, which says so every so many seconds. After a
# silence of a day (a rollback, or everything was down) nobody knows which doses of these days are in an arm.
SAYS_SO_EVERY = 60.0
SILENCE = 24 * 3600.0
ANY_STATUS = {"$gte": 0}  # also that of a newer version


def rules(mongo: Mongo, retention: Retention) -> list[Rule]:
    """What vaccine management keeps no longer. Lots stay: they are the account of what became of each dose."""

    async def passed(limit: int) -> int:
        over = {"status": ANY_STATUS, "date": {"$lt": retention.passed_before.isoformat()}}
        return await mongo.delete("vaccinations", over, limit)

    return [Rule("passed vaccinations", passed)]


class MongoStock:
    """See application.Stock."""

    def __init__(self, mongo: Mongo, committed: Callable[[Sequence[Outgoing]], None]) -> None:
        self._mongo, self._committed = mongo, committed
        self._lots, self._vaccinations = mongo.database["lots"], mongo.database["vaccinations"]
        self._movements, self._recalls = mongo.database["movements"], mongo.database["recalls"]
        self._recorded_since, self._said_so = date.max, -math.inf

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator["MongoUnitOfWork"]:
        """See Stock."""
        async with self._mongo.unit_of_work(self._committed) as transaction:
            yield MongoUnitOfWork(self._mongo, transaction)

    async def vaccination(self, reservation_id: ReservationId) -> Vaccination | None:
        """See Stock."""
        async with self._mongo.boundary():
            row = await self._vaccinations.find_one({"_id": reservation_id})
        return _vaccination(row) if row else None

    async def lots_page(self, hospital_id: str, after: tuple[date, LotId] | None, limit: int) -> Sequence[Lot]:
        """See Stock."""
        behind = _behind("expiry_date", after[0].isoformat(), after[1]) if after else {}
        async with self._mongo.boundary():
            rows = (
                self._lots.find({"hospital_id": hospital_id, **behind})
                .sort([("expiry_date", 1), ("_id", 1)])
                .limit(limit)
            )
            return [_lot(row) async for row in rows]

    async def waiting_page(self, hospital_id: str, after: PlaceInQueue | None, limit: int) -> Sequence[Vaccination]:
        """See Stock."""
        behind = _behind("decide_time", *after) if after else {}
        query = {"hospital_id": hospital_id, "status": Status.WAITING.value, **behind}
        async with self._mongo.boundary():
            rows = self._vaccinations.find(query).sort(IN_ORDER).hint(QUEUE).limit(limit)
            return [_vaccination(row) async for row in rows]

    async def hospitals_to_serve(self, since: date) -> Sequence[str]:
        """See Stock."""
        query = {"status": Status.WAITING.value, "date": {"$gte": since.isoformat()}}
        async with self._mongo.boundary():
            waiting = await self._vaccinations.distinct("hospital_id", query)
            stocked = _usable({"$in": waiting}, since, {"$gt": 0})
            return sorted(await self._lots.distinct("hospital_id", stocked)) if waiting else []

    async def lot(self, lot_id: LotId) -> Lot | None:
        """See Stock."""
        async with self._mongo.boundary():
            row = await self._lots.find_one({"_id": lot_id})
        return _lot(row) if row else None

    async def movements_page(
        self, lot_id: LotId, after: tuple[datetime, MovementId] | None, limit: int
    ) -> Sequence[Movement]:
        """See Stock."""
        query = {"lot_id": lot_id, **(_behind("at", *after) if after else {})}
        async with self._mongo.boundary():
            rows = self._movements.find(query).sort([("at", 1), ("_id", 1)]).limit(limit)
            return [_movement(row) async for row in rows]

    async def bookings_to_go(self, lots: Sequence[Lot], since: date) -> int:
        """See Stock."""
        async with self._mongo.boundary():
            return sum([await self._vaccinations.count_documents(_to_look_at(lot, since)) for lot in lots])

    async def bookings_to_look_at(self, lot: Lot, since: date) -> Sequence[ReservationId]:
        """See Stock."""
        async with self._mongo.boundary():
            rows = self._vaccinations.find(_to_look_at(lot, since), {"decide_time": 1}).sort(IN_ORDER)
            return [row["_id"] async for row in rows]

    async def lots_to_look_at(self) -> Sequence[LotId]:
        """See Stock."""
        async with self._mongo.boundary():
            marked = [row["_id"] async for row in self._lots.find({"to_look_at": True}, {"_id": 1})]
            put_back = {"withdrawn": {"$gt": ""}, "free": {"$gt": 0}}
            return [*marked, *[row["_id"] async for row in self._lots.find(put_back, {"_id": 1})]]

    async def lots_to_open(self, limit: int) -> Sequence[LotId]:
        """See Stock."""
        async with self._mongo.boundary():
            return [row["_id"] async for row in self._lots.find({"to_look_at": None}, {"_id": 1}).limit(limit)]

    async def withdrawn_with_bookings(self, since: date) -> Sequence[LotId]:
        """See Stock."""
        async with self._mongo.boundary():
            withdrawn = [row["_id"] async for row in self._lots.find({"withdrawn": {"$gt": ""}}, {"_id": 1})]
            booked = {"dose.lot_id": {"$in": withdrawn}, "status": Status.COMPLETED.value, **_on_or_after(since)}
            return await self._vaccinations.distinct("dose.lot_id", booked) if withdrawn else []

    async def recall(self, recall_id: str) -> Recall | None:
        """See Stock."""
        async with self._mongo.boundary():
            row = await self._recalls.find_one({"_id": recall_id})
        return _recall(row) if row else None

    async def recalls_since(self, at: datetime) -> Sequence[Recall]:
        """See Stock."""
        async with self._mongo.boundary():
            return [_recall(row) async for row in self._recalls.find({"at": {"$gte": at}})]

    async def recalled_lots(self, recall: Recall) -> Sequence[Lot]:
        """See Stock."""
        where = {"hospital_id": recall.hospital_id} if recall.hospital_id else {}
        of = {"lot_number": recall.lot_number, "manufacturer": recall.manufacturer}
        query = {**of, "vaccine_code": {"$in": spellings(recall.vaccine_code)}, **where}
        async with self._mongo.boundary():
            return [_lot(row) async for row in self._lots.find(query)]

    async def vaccinated_page(
        self, lots: Sequence[Lot], after: tuple[str, datetime, ReservationId] | None, limit: int
    ) -> Sequence[Vaccination]:
        """See Stock."""
        query: Document = {
            "dose.lot_id": {"$in": [lot.lot_id for lot in lots]},
            "status": Status.ADMINISTERED.value,
        }
        if after:
            hospital_id, at, reservation_id = after
            later = {"hospital_id": hospital_id, **_behind("administered_at", at, reservation_id)}
            query["$or"] = [{"hospital_id": {"$gt": hospital_id}}, later]
        order = [("hospital_id", 1), ("administered_at", 1), ("_id", 1)]
        async with self._mongo.boundary():
            return [_vaccination(row) async for row in self._vaccinations.find(query).sort(order).limit(limit)]

    async def day_page(
        self, hospital_id: str, day: date, after: tuple[Status, ReservationId] | None, limit: int
    ) -> Sequence[Vaccination]:
        """See Stock."""
        behind = _behind("status", after[0].value, after[1]) if after else {}
        query = {"status": ANY_STATUS, "date": str(day), "hospital_id": hospital_id, **behind}
        async with self._mongo.boundary():
            rows = self._vaccinations.find(query).sort([("status", 1), ("_id", 1)]).limit(limit)
            return [_vaccination(row) async for row in rows]

    async def bookings(self, hospital_id: str, customer_id: str, limit: int) -> Sequence[Vaccination]:
        """See Stock."""
        query = {"customer_id": customer_id, "hospital_id": hospital_id}
        async with self._mongo.boundary():
            rows = self._vaccinations.find(query).sort([("date", -1), ("_id", 1)]).limit(limit)
            return [_vaccination(row) async for row in rows]

    async def recorded_since(self) -> date:
        """See Stock. All by the server's clock."""
        if time.monotonic() > self._said_so + SAYS_SO_EVERY:
            silent = {"$lt": ["$seen", {"$subtract": ["$$NOW", SILENCE * 1000]}]}  # also when there is none yet
            change = {"$set": {"since": {"$cond": [silent, "$$NOW", "$since"]}, "seen": "$$NOW"}}
            async with self._mongo.boundary():
                found = await self._mongo.database["recording"].find_one_and_update(
                    {"_id": "doses"}, [change], upsert=True, return_document=ReturnDocument.AFTER
                )
            self._recorded_since, self._said_so = latest_day(found["since"]), time.monotonic()
        return self._recorded_since

    async def days(self, status: Status, since: date, until: date) -> Sequence[date]:
        """See Stock."""
        query = {"status": status.value, "date": {"$gte": since.isoformat(), "$lt": until.isoformat()}}
        async with self._mongo.boundary():
            return [date.fromisoformat(day) for day in sorted(await self._vaccinations.distinct("date", query))]

    async def time_zones(self, status: Status, day: date) -> Sequence[str]:
        """See Stock."""
        async with self._mongo.boundary():
            return await self._vaccinations.distinct("time_zone", {"status": status.value, "date": day.isoformat()})

    async def of_day(
        self, status: Status, day: date, time_zones: Sequence[str], limit: int, *, checked_in: bool
    ) -> Sequence[ReservationId]:
        """See Stock."""
        query: Document = {"status": status.value, "date": day.isoformat(), "time_zone": {"$in": list(time_zones)}}
        query |= {} if checked_in else {"checked_in_at": None}
        async with self._mongo.boundary():
            return [row["_id"] async for row in self._vaccinations.find(query, {"_id": 1}).limit(limit)]


class MongoUnitOfWork:
    """See application.UnitOfWork."""

    def __init__(self, mongo: Mongo, transaction: Transaction) -> None:
        self._transaction, self._session = transaction, transaction.session
        database: Database[Document] = mongo.database.delegate
        self._lots, self._vaccinations = database["lots"], database["vaccinations"]
        self._movements, self._recalls = database["movements"], database["recalls"]
        self._traces: dict[str, str] = {}

    async def vaccinations(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Vaccination]:
        """See UnitOfWork."""
        return self._by_id(await self._all(self._known(ids)))

    async def vaccinations_of(self, customer_id: str) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        rows = self._vaccinations.find({"customer_id": customer_id}, session=self._session)
        return [self._seen(row) for row in await self._all(rows)]

    async def forget(self, vaccinations: Sequence[Vaccination]) -> None:
        """See UnitOfWork."""
        ids = [v.appointment.reservation_id for v in vaccinations]
        self._transaction.write(lambda: self._vaccinations.delete_many({"_id": {"$in": ids}}, session=self._session))

    async def waiting(
        self,
        hospital_id: str,
        lots: Sequence[Lot],
        since: date,
        behind: PlaceInQueue | None,
        limit: int,
    ) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        suited = [_suited_by(lot, since) for lot in lots]
        where = [{"$or": suited}, *([_behind("decide_time", *behind)] if behind else [])]
        query = {"hospital_id": hospital_id, "status": Status.WAITING.value, "$and": where}
        rows = self._vaccinations.find(query, session=self._session).sort(IN_ORDER).hint(QUEUE).limit(limit)
        return [self._seen(row) for row in await self._all(rows)]

    async def last_booked(self, lot: Lot, since: date, until: date) -> Vaccination | None:
        """See UnitOfWork."""
        query = {
            "status": Status.COMPLETED.value,
            "date": {"$gte": since.isoformat(), "$lt": until.isoformat()},
            "hospital_id": lot.hospital_id,
            "dose.lot_id": lot.lot_id,
            "checked_in_at": None,
        }
        last_first = [("decide_time", -1), ("_id", -1)]
        rows = self._vaccinations.find(query, session=self._session).sort(last_first).limit(1)
        return next(iter([self._seen(row) for row in await self._all(rows)]), None)

    async def movable(
        self, source: Lot, target: Lot, since: date, but: Sequence[ReservationId], limit: int
    ) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        booked = {"dose.lot_id": source.lot_id, "status": Status.COMPLETED.value, "checked_in_at": None}
        query = {**booked, **_suited_by(target, since), "_id": {"$nin": list(but)}}
        rows = self._vaccinations.find(query, session=self._session).limit(limit)
        return [self._seen(row) for row in await self._all(rows)]

    async def bookings_to_look_at(
        self, lot: Lot, since: date, behind: PlaceInQueue | None, limit: int
    ) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        query = {"$and": [_to_look_at(lot, since), _behind("decide_time", *behind) if behind else {}]}
        rows = self._vaccinations.find(query, session=self._session).sort(IN_ORDER).limit(limit)
        return [self._seen(row) for row in await self._all(rows)]

    async def came_last(self, lot: Lot, since: date, limit: int) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        booked = {"dose.lot_id": lot.lot_id, "status": Status.COMPLETED.value, "checked_in_at": None}
        rows = self._vaccinations.find({**booked, **_on_or_after(since)}, session=self._session)
        return [self._seen(row) for row in await self._all(rows.sort([("decide_time", -1), ("_id", -1)]).limit(limit))]

    async def free_lots(self, hospital_id: str) -> Sequence[Lot]:
        """See UnitOfWork."""
        query = _usable(hospital_id, date.min, {"$gt": 0})
        return [_lot(row) for row in await self._all(self._lots.find(query, session=self._session))]

    async def admission(
        self, appointments: Sequence[Appointment], since: date
    ) -> tuple[dict[ReservationId, Vaccination], dict[str, Supply]]:
        """See UnitOfWork."""
        known = self._known([a.reservation_id for a in appointments])
        hospital_ids = {a.hospital_id for a in appointments}
        rows, supplies = await self._transaction.run(lambda: (list(known), self._supplies(hospital_ids, since)))
        return self._by_id(rows), supplies

    async def supplies(self, hospital_ids: Collection[str], since: date) -> dict[str, Supply]:
        """See UnitOfWork."""
        return await self._transaction.run(lambda: self._supplies(hospital_ids, since))

    def _supplies(self, hospital_ids: Collection[str], since: date) -> dict[str, Supply]:
        at = {"$in": list(hospital_ids)}
        free: dict[str, list[Lot]] = {hospital_id: [] for hospital_id in hospital_ids}
        for row in self._lots.find(_usable(at, since, {"$gt": 0}), session=self._session):
            free[row["hospital_id"]].append(_lot(row))
        waiting = {"hospital_id": at, "status": Status.WAITING.value}
        awaited = self._vaccinations.distinct("hospital_id", waiting, session=self._session)
        return {hospital_id: Supply(lots, hospital_id in awaited) for hospital_id, lots in free.items()}

    async def full_lots(self, hospital_id: str, since: date) -> Sequence[Lot]:
        """See UnitOfWork."""
        query = _usable(hospital_id, since, 0)
        return [_lot(row) for row in await self._all(self._lots.find(query, session=self._session))]

    async def recalls_of(self, lots: Sequence[Lot]) -> Sequence[Recall]:
        """See UnitOfWork."""
        query = {"lot_number": {"$in": list({lot.lot_number for lot in lots})}}
        return [_recall(row) for row in await self._all(self._recalls.find(query, session=self._session))]

    async def add_recall(self, recall: Recall) -> None:
        """See UnitOfWork."""
        document = {"_id": recall.recall_id, **{name: getattr(recall, name) for name in RECALL}}
        self._transaction.write(lambda: self._recalls.insert_one(document, session=self._session))

    async def recall(self, recall_id: str) -> Recall | None:
        """See UnitOfWork."""
        row = await self._transaction.run(lambda: self._recalls.find_one({"_id": recall_id}, session=self._session))
        return _recall(row) if row else None

    async def lots(self, ids: Sequence[LotId]) -> dict[LotId, Lot]:
        """See UnitOfWork."""
        rows = self._lots.find({"_id": {"$in": list(ids)}}, session=self._session)
        return {(lot := _lot(row)).lot_id: lot for row in await self._all(rows)}

    async def claim(self, lot_id: LotId, since: date) -> Lot | None:
        """See UnitOfWork. A write that changes something, since only that is in others' way."""
        claim: Document = {"$inc": {"claims": 1}}
        lot = await self._transaction.run(
            lambda: self._lots.find_one_and_update({"_id": lot_id}, claim, session=self._session)
        )
        if lot is None:
            return None
        free = _usable(lot["hospital_id"], since, {"$gt": 0})
        self._transaction.write(lambda: self._lots.update_many(free, claim, session=self._session))
        return _lot(lot)

    async def movements(self, ids: Sequence[MovementId]) -> dict[MovementId, Movement]:
        """See UnitOfWork."""
        rows = self._movements.find({"_id": {"$in": list(ids)}}, session=self._session)
        return {(movement := _movement(row)).movement_id: movement for row in await self._all(rows)}

    async def arrivals(self, ids: Sequence[LotId]) -> Sequence[Movement]:
        """See UnitOfWork."""
        query = {"lot_id": {"$in": list(ids)}, "kind": {"$in": BROUGHT}}
        return [_movement(row) for row in await self._all(self._movements.find(query, session=self._session))]

    async def save(self, vaccinations: Sequence[Vaccination], lots: Sequence[Lot]) -> None:
        """See UnitOfWork."""
        lot_puts = [_put(_lot_document(lot)) for lot in lots]
        movements = [_movement_document(movement) for lot in lots for movement in lot.movements]
        if lots:
            self._transaction.write(lambda: self._lots.bulk_write(lot_puts, session=self._session))
        if movements:
            self._transaction.write(lambda: self._movements.insert_many(movements, session=self._session))
        # What happens to a customer who has waited belongs to the trace of that customer's request, and not to the
        # trace of the delivery or of the cancellation that freed the dose.
        traces = self._traces | {key: trace for key, trace in traces_by_key.get().items() if trace}
        if vaccinations:
            documents = [_vaccination_document(v) for v in vaccinations]
            puts = [_put(d | {"traceparent": traces.get(d["_id"], "")}) for d in documents]
            self._transaction.write(lambda: self._vaccinations.bulk_write(puts, session=self._session))
        before = traces_by_key.set(traces)
        try:
            events = [outgoing(event) for v in vaccinations for event in v.events]
        finally:
            traces_by_key.reset(before)
        stock = [moved for lot in lots for movement in lot.movements if (moved := stock_moved(lot, movement))]
        await self._transaction.enqueue([*events, *stock])

    def _known(self, ids: Sequence[ReservationId]) -> Cursor[Document]:
        return self._vaccinations.find({"_id": {"$in": list(ids)}}, session=self._session)

    def _by_id(self, rows: Sequence[Document]) -> dict[ReservationId, Vaccination]:
        return {(v := self._seen(row)).appointment.reservation_id: v for row in rows}

    async def _all(self, rows: Cursor[Document]) -> list[Document]:
        return await self._transaction.run(lambda: list(rows))

    def _seen(self, row: Document) -> Vaccination:
        self._traces[row["_id"]] = row.get("traceparent", "")
        return _vaccination(row)


def _put(document: Document) -> UpdateOne:
    """Writes what this version knows. Fields of a newer one stay as they are."""
    return UpdateOne({"_id": document["_id"]}, {"$set": document}, upsert=True)


def _behind(name: str, value: Any, key: str) -> Document:
    return {"$or": [{name: {"$gt": value}}, {name: value, "_id": {"$gt": key}}]}


def _on_or_after(since: date) -> Document:
    return {"date": {"$gte": since.isoformat()}}


def _usable(hospital_id: Any, since: date, free: Any) -> Document:
    """Lots of the hospital that have not expired on that day, by how many doses are free."""
    return {"hospital_id": hospital_id, "expiry_date": {"$gte": since.isoformat()}, "free": free}


def _suited_by(lot: Lot, since: date) -> Document:
    """Which bookings a dose of the lot suits; see Appointment.accepts."""
    return {
        "vaccine_code": {"$in": ["", *spellings(lot.vaccine_code)]},
        "date": {"$gte": max(since, lot.production_date).isoformat(), "$lte": lot.expiry_date.isoformat()},
    }


def _to_look_at(lot: Lot, since: date) -> Document:
    """Which bookings on a lot have to be looked at; see Vaccination.look_at."""
    dates = {name: str(getattr(lot, name)) for name in ("production_date", "expiry_date")}
    other = [{f"dose.{name}": {"$ne": value}} for name, value in dates.items()]
    unusable = [{"date": {"$lt": dates["production_date"]}}, {"date": {"$gt": dates["expiry_date"]}}]
    what = {} if lot.withdrawn else {"$or": [*other, *unusable]}
    return {"dose.lot_id": lot.lot_id, "status": Status.COMPLETED.value, **_on_or_after(since), **what}


def _texts(item: Appointment | Dose) -> Document:
    """Days as text: readable in the shell, and they compare as they should."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}  # asdict() would copy deeply
    return {k: str(v) if isinstance(v, date) and not isinstance(v, datetime) else v for k, v in values.items()}


def _lot_document(lot: Lot) -> Document:
    about = {name: getattr(lot, name) for name in LOT if name != "lot_id"}
    balance = lot.balance
    return {
        "_id": lot.lot_id,
        **about,
        "production_date": str(lot.production_date),
        "expiry_date": str(lot.expiry_date),
        "received": balance.received,
        "free": balance.free,
        "used": balance.received - balance.free,
        "administered": balance.administered,
        "written_off": balance.written_off,
        "withdrawn": lot.withdrawn,
        "recall_id": lot.recall_id,
        "to_look_at": lot.to_look_at,
        "reassigned": lot.reassigned,
        "left_waiting": lot.left_waiting,
        "entered": asdict(lot.entered) if lot.opened else None,
    }


def _lot(row: Document) -> Lot:
    administered, written_off = row.get("administered", 0), row.get("written_off", 0)
    entered = row.get("entered")
    return Lot(
        lot_id=row["_id"],
        **{name: row[name] for name in LOT if name != "lot_id"} | _dates(row, "production_date", "expiry_date"),
        balance=Balance(
            row["received"], row["free"], row["used"] - administered - written_off, administered, written_off
        ),
        withdrawn=row.get("withdrawn", ""),
        recall_id=row.get("recall_id", ""),
        to_look_at=row.get("to_look_at", False),
        reassigned=row.get("reassigned", 0),
        left_waiting=row.get("left_waiting", 0),
        opened=entered is not None,
        entered=Balance(**{name: entered[name] for name in BALANCE}) if entered else Balance(),
    )


def _movement_document(movement: Movement) -> Document:
    values = {name: getattr(movement, name) for name in MOVEMENT}
    return {
        "_id": movement.movement_id,
        **values,
        "kind": movement.kind.value,
        "reason": movement.reason.value if movement.reason else None,
        **{name: str(values[name]) if values[name] else None for name in ("production_date", "expiry_date")},
    }


def _movement(row: Document) -> Movement:
    dates = {name: row[name] and date.fromisoformat(row[name]) for name in ("production_date", "expiry_date")}
    values = {name: row[name] for name in MOVEMENT} | dates
    reason = WriteOffReason(row["reason"]) if row["reason"] else None
    return Movement(movement_id=row["_id"], **values | {"kind": MovementKind(row["kind"]), "reason": reason})


def _recall(row: Document) -> Recall:
    return Recall(row["_id"], **{name: row[name] for name in RECALL})


def _vaccination_document(vaccination: Vaccination) -> Document:
    appointment = _texts(vaccination.appointment)
    return {
        "_id": appointment.pop("reservation_id"),
        **appointment,
        "status": vaccination.status.value,
        "dose": _texts(vaccination.dose) if vaccination.dose else None,
        "quantity": vaccination.quantity,
        "version": vaccination.version,
        "checked_in_at": vaccination.checked_in_at,
        "administered_at": vaccination.administered_at,
    }


def _vaccination(row: Document) -> Vaccination:
    appointment = Appointment(
        row["_id"], row["customer_id"], row["hospital_id"], row["hospital_name"], row["time_zone"],
        date.fromisoformat(row["date"]), row["vaccine_code"], row["decide_time"])  # fmt: skip
    dose = row["dose"]
    if dose is not None:
        dose = Dose(**{name: dose[name] for name in DOSE} | _dates(dose, "production_date", "expiry_date"))
    try:
        status = Status(row["status"])
    except ValueError:
        raise UnknownStatus(row["status"]) from None
    return Vaccination(appointment, status, dose, row["version"], row.get("checked_in_at"), row.get("administered_at"))


def _dates(row: Document, *names: str) -> dict[str, date]:
    return {name: date.fromisoformat(row[name]) for name in names}
