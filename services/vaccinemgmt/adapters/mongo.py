"""Lots and vaccinations in MongoDB."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import date, datetime
from typing import Any

from pymongo import UpdateOne

from services.chassis.mongo import Mongo, Schema, Transaction
from services.chassis.retention import Retention, Rule
from services.chassis.telemetry import traces_by_key

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
    ReservationId,
    Status,
    UnknownStatus,
    Vaccination,
    WriteOffReason,
    latest_day,
)
from . import accesses
from .events import outgoing, stock_moved

Document = dict[str, Any]

# A replica of 0.3.0 knows received, free and used alone. `used` is reserved + administered + written off.
NOT_RESERVED = {"$add": [{"$ifNull": ["$administered", 0]}, {"$ifNull": ["$written_off", 0]}]}
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
    "movements": {"$expr": {"$and": [{"$gte": ["$kind", 1]}, {"$eq": [{"$type": "$lot_id"}, "string"]}]}},
    "accesses": accesses.VALIDATOR,
}
# Named, since a newer version may add fields while this one reads.
LOT = ["lot_id", "hospital_id", "lot_number", "vaccine_code", "manufacturer", "production_date", "expiry_date"]
MOVEMENT = [field.name for field in fields(Movement) if field.name != "movement_id"]
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
    ("movements", [("lot_id", 1), ("at", 1), ("_id", 1)], {}),
    *(("accesses", keys, options) for keys, options in accesses.INDEXES),
    ("outbox", [("time", 1)], {}),
]
SCHEMA = Schema(3, VALIDATORS, INDEXES)  # a change of either is a new version
RECORDED_SINCE = 3  # the first version of the schema that knows what became of a dose
ANY_STATUS = {"$gte": 0}  # also that of a newer version


def rules(mongo: Mongo, retention: Retention) -> list[Rule]:
    """What vaccine management keeps no longer. Lots stay: they are the account of what became of each dose."""
    vaccinations = mongo.database["vaccinations"]

    async def passed(limit: int) -> int:
        over = {"status": ANY_STATUS, "date": {"$lt": retention.passed_before.isoformat()}}
        async with mongo.boundary():
            ids = [row["_id"] async for row in vaccinations.find(over, {"_id": 1}).limit(limit)]
            return (await vaccinations.delete_many({"_id": {"$in": ids}, **over})).deleted_count if ids else 0

    return [Rule("passed vaccinations", passed)]


class MongoStock:
    """See application.Stock."""

    def __init__(self, mongo: Mongo, wake: Callable[[], None]) -> None:
        self._mongo, self._wake = mongo, wake
        self._lots, self._vaccinations = mongo.database["lots"], mongo.database["vaccinations"]
        self._recorded_since: date | None = None

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator["MongoUnitOfWork"]:
        """See Stock."""
        async with self._mongo.unit_of_work(self._wake) as transaction:
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
            stocked = {"hospital_id": {"$in": waiting}, "free": {"$gt": 0}}
            return sorted(await self._lots.distinct("hospital_id", stocked)) if waiting else []

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
        """See Stock: the day on which the store was brought to a version that records it."""
        if self._recorded_since is None:
            async with self._mongo.boundary():
                self._recorded_since = latest_day(await self._mongo.reached(RECORDED_SINCE))
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

    async def of_day(self, status: Status, day: date, time_zones: Sequence[str], limit: int) -> Sequence[ReservationId]:
        """See Stock."""
        query = {"status": status.value, "date": day.isoformat(), "time_zone": {"$in": list(time_zones)}}
        async with self._mongo.boundary():
            return [row["_id"] async for row in self._vaccinations.find(query, {"_id": 1}).limit(limit)]


class MongoUnitOfWork:
    """See application.UnitOfWork."""

    def __init__(self, mongo: Mongo, transaction: Transaction) -> None:
        self._transaction, self._session = transaction, transaction.session
        self._lots, self._vaccinations = mongo.database["lots"], mongo.database["vaccinations"]
        self._movements = mongo.database["movements"]
        self._traces: dict[str, str] = {}

    async def vaccinations(self, ids: Sequence[ReservationId]) -> dict[ReservationId, Vaccination]:
        """See UnitOfWork."""
        rows = self._vaccinations.find({"_id": {"$in": list(ids)}}, session=self._session)
        return {(v := self._seen(row)).appointment.reservation_id: v async for row in rows}

    async def vaccinations_of(self, customer_id: str) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        rows = self._vaccinations.find({"customer_id": customer_id}, session=self._session)
        return [self._seen(row) async for row in rows]

    async def forget(self, vaccinations: Sequence[Vaccination]) -> None:
        """See UnitOfWork."""
        ids = [v.appointment.reservation_id for v in vaccinations]
        await self._vaccinations.delete_many({"_id": {"$in": ids}}, session=self._session)

    async def waiting(
        self,
        hospital_id: str,
        lots: Sequence[Lot],
        since: date,
        behind: PlaceInQueue | None,
        limit: int,
    ) -> Sequence[Vaccination]:
        """See UnitOfWork."""
        suited = [
            {
                "vaccine_code": {"$in": ["", lot.vaccine_code]},
                "date": {"$gte": max(since, lot.production_date).isoformat(), "$lte": lot.expiry_date.isoformat()},
            }
            for lot in lots
        ]
        where = [{"$or": suited}, *([_behind("decide_time", *behind)] if behind else [])]
        query = {"hospital_id": hospital_id, "status": Status.WAITING.value, "$and": where}
        rows = self._vaccinations.find(query, session=self._session).sort(IN_ORDER).hint(QUEUE).limit(limit)
        return [self._seen(row) async for row in rows]

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
        return next(iter([self._seen(row) async for row in rows]), None)

    async def free_lots(self, hospital_id: str) -> Sequence[Lot]:
        """See UnitOfWork."""
        rows = self._lots.find({"hospital_id": hospital_id, "free": {"$gt": 0}}, session=self._session)
        return [_lot(row) async for row in rows]

    async def lots(self, ids: Sequence[LotId]) -> dict[LotId, Lot]:
        """See UnitOfWork."""
        rows = self._lots.find({"_id": {"$in": list(ids)}}, session=self._session)
        return {(lot := _lot(row)).lot_id: lot async for row in rows}

    async def movements(self, ids: Sequence[MovementId]) -> dict[MovementId, Movement]:
        """See UnitOfWork."""
        rows = self._movements.find({"_id": {"$in": list(ids)}}, session=self._session)
        return {(movement := _movement(row)).movement_id: movement async for row in rows}

    async def save(self, vaccinations: Sequence[Vaccination], lots: Sequence[Lot]) -> None:
        """See UnitOfWork."""
        movements = [movement for lot in lots for movement in lot.movements]
        if lots:
            await self._lots.bulk_write([_put(_lot_document(lot)) for lot in lots], session=self._session)
        if movements:
            await self._movements.insert_many([_movement_document(m) for m in movements], session=self._session)
        # What happens to a customer who has waited belongs to the trace of that customer's request, and not to the
        # trace of the delivery or of the cancellation that freed the dose.
        traces = self._traces | {key: trace for key, trace in traces_by_key.get().items() if trace}
        if vaccinations:
            documents = [_vaccination_document(v) for v in vaccinations]
            puts = [_put(d | {"traceparent": traces.get(d["_id"], "")}) for d in documents]
            await self._vaccinations.bulk_write(puts, session=self._session)
        before = traces_by_key.set(traces)
        try:
            events = [outgoing(event) for v in vaccinations for event in v.events]
        finally:
            traces_by_key.reset(before)
        stock = [moved for lot in lots for movement in lot.movements if (moved := stock_moved(lot, movement))]
        await self._transaction.enqueue([*events, *stock])

    def _seen(self, row: Document) -> Vaccination:
        self._traces[row["_id"]] = row.get("traceparent", "")
        return _vaccination(row)


def _put(document: Document) -> UpdateOne:
    """Writes what this version knows. Fields of a newer one stay as they are."""
    return UpdateOne({"_id": document["_id"]}, {"$set": document}, upsert=True)


def _behind(name: str, value: Any, key: str) -> Document:
    return {"$or": [{name: {"$gt": value}}, {name: value, "_id": {"$gt": key}}]}


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
        "to_look_at": lot.to_look_at,
        "entered": vars_of(lot.entered) if lot.opened else None,
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
        to_look_at=row.get("to_look_at", False),
        opened=entered is not None,
        entered=Balance(**{name: entered[name] for name in BALANCE}) if entered else Balance(),
    )


def vars_of(balance: Balance) -> Document:
    """The quantities by their names."""
    return {name: getattr(balance, name) for name in BALANCE}


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
