"""Approval's books in Postgres."""

import re
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import date

import asyncpg

from services.chassis.events import Outgoing
from services.chassis.postgres import Database, Transaction, columns
from services.chassis.retention import Retention, Rule
from services.chassis.telemetry import log
from services.chassis.unit_of_work import LostRace

from ..domain import (
    Appointment,
    Day,
    Decision,
    Denial,
    Granted,
    Hospital,
    Ledger,
    Location,
    Released,
    Request,
    ReservationId,
    Revoked,
)
from .events import outgoing

APPOINTMENT = [field.name for field in fields(Appointment)]
# Named, since a newer version may add a column while this one reads.
DECISION = ", ".join([*APPOINTMENT, "denial", "released_at", "replaces"])
# A day that is called off has no capacity in the store, and keeps beside it the one that it has when it is reopened.
DAY = """hospital_id, date, CASE WHEN capacity = 0 THEN coalesce(called_off_capacity, 0) ELSE capacity END AS capacity,
       approved, CASE WHEN capacity = 0 THEN coalesce(called_off, '') ELSE '' END AS called_off"""

# Locks are always taken in this order: days, then customers, then new decisions, each of them sorted. So no two
# transactions can block each other.
LOCK_DAYS = f"""
SELECT {DAY} FROM days
WHERE (hospital_id, date) IN (SELECT * FROM unnest($1::text[], $2::date[]))
ORDER BY hospital_id, date FOR UPDATE"""  # noqa: S608 - constants

LOCK_ACTIVE = """
SELECT customer_id, reservation_id FROM active_bookings WHERE customer_id = ANY ($1) ORDER BY customer_id FOR UPDATE"""

DECISIONS = f"SELECT {DECISION} FROM decisions WHERE reservation_id = ANY ($1)"  # noqa: S608 - constants

REFUSALS = """
SELECT customer_id, count(*) AS n FROM decisions WHERE customer_id = ANY ($1) AND denial IS NOT NULL
GROUP BY customer_id"""

HOSPITALS = """
SELECT hospital_id, name, time_zone, vaccine_codes, ARRAY(
    SELECT vaccine_code FROM delivered_codes d WHERE d.hospital_id = h.hospital_id) AS delivered_codes
FROM hospitals h WHERE hospital_id = ANY ($1)"""

SHOWN_HOSPITAL = "hospital_id, name, time_zone, vaccine_codes, latitude, longitude"
# The patterns are lines of one text, so that the store itself makes them and the names lower case. A search reads the
# whole table: 20,000 hospitals take some 10 ms, or 30 ms with the distance of each.
FOUND = r"search_text LIKE ALL (string_to_array(lower($1), E'\n'))"

HOSPITALS_PAGE = f"""
SELECT {SHOWN_HOSPITAL} FROM hospitals WHERE {FOUND} AND hospital_id > $2 ORDER BY hospital_id LIMIT $3"""  # noqa: S608

# The haversine formula on a sphere of the earth's mean radius, 6,371,008.8 m. Whole metres are the same in every
# process, so that a page can begin where the one before ended.
NEAREST_PAGE = f"""
WITH found AS (
    SELECT {SHOWN_HOSPITAL}, coalesce(round(2 * 6371008.8 * asin(least(1, sqrt(
        sin(radians(latitude - $2) / 2) ^ 2
        + cos(radians(latitude)) * cos(radians($2)) * sin(radians(longitude - $3) / 2) ^ 2))))::integer, $4) AS metres
    FROM hospitals WHERE {FOUND})
SELECT metres, {SHOWN_HOSPITAL} FROM found
WHERE (metres, hospital_id) > ($5, $6) ORDER BY metres, hospital_id LIMIT $7"""  # noqa: S608
NOWHERE = 2**31 - 1  # metres to a hospital without a location: more than to any other

# `over` only ever gets less here, so that the store itself refuses a booking on a day that is full.
TAKE_PLACES = """
UPDATE days SET approved = days.approved + d.n, over = least(over, greatest(0, days.approved + d.n - capacity))
FROM unnest($1::text[], $2::date[], $3::int[]) AS d (hospital_id, date, n)
WHERE days.hospital_id = d.hospital_id AND days.date = d.date"""

DECIDE = """
INSERT INTO decisions (reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, vaccine_code,
                       decide_time, denial, replaces)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::date[], $7::text[],
                     $8::timestamptz[], $9::smallint[], $10::uuid[])"""

# A booking whose day has passed, or that is moved, gives way to the new one. Any other one does not: it was made by
# another transaction since this decision read the books, so the decision has to be made again.
ACTIVATE = """
INSERT INTO active_bookings (customer_id, reservation_id)
SELECT * FROM unnest($1::text[], $2::uuid[]) AS a (customer_id, reservation_id) ORDER BY customer_id
ON CONFLICT (customer_id) DO UPDATE SET reservation_id = excluded.reservation_id
WHERE active_bookings.reservation_id = ANY ($3::uuid[])"""

RELEASE = """
UPDATE decisions SET released_at = r.at FROM unnest($1::uuid[], $2::timestamptz[]) AS r (reservation_id, at)
WHERE decisions.reservation_id = r.reservation_id"""

DECISIONS_OF = f"SELECT {DECISION} FROM decisions WHERE customer_id = $1 ORDER BY reservation_id FOR UPDATE"  # noqa: S608

FORGET = "DELETE FROM decisions WHERE reservation_id = ANY ($1)"

DEACTIVATE = "DELETE FROM active_bookings WHERE reservation_id = ANY ($1)"

PUT_HOSPITAL = """
INSERT INTO hospitals AS h (hospital_id, name, time_zone, vaccine_codes, latitude, longitude)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (hospital_id) DO UPDATE
SET name = excluded.name, time_zone = excluded.time_zone, vaccine_codes = excluded.vaccine_codes,
    latitude = coalesce(excluded.latitude, h.latitude), longitude = coalesce(excluded.longitude, h.longitude)
WHERE (h.name, h.time_zone, h.vaccine_codes) <> (excluded.name, excluded.time_zone, excluded.vaccine_codes)
   OR excluded.latitude IS NOT NULL
  AND (h.latitude, h.longitude) IS DISTINCT FROM (excluded.latitude, excluded.longitude)"""

HOSPITAL = f"SELECT {SHOWN_HOSPITAL} FROM hospitals WHERE hospital_id = $1"  # noqa: S608 - constants

# Returns the hospitals of the new rows that are not registered.
ADD_DELIVERED = """
WITH came AS (
    INSERT INTO delivered_codes SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING
    RETURNING hospital_id)
SELECT DISTINCT hospital_id FROM came WHERE hospital_id NOT IN (SELECT hospital_id FROM hospitals)"""

MAKE_DAYS = """
INSERT INTO days (hospital_id, date, capacity)
SELECT $1, day::date, 0 FROM generate_series($2::date, $3::date, interval '1 day') AS day
ON CONFLICT DO NOTHING"""

LOCK_RANGE = f"""
SELECT {DAY} FROM days
WHERE hospital_id = $1 AND date BETWEEN $2 AND $3 ORDER BY date FOR UPDATE"""  # noqa: S608

# A day that was called off and to which a replica of 0.3.0 gave a capacity is open; here it loses its mark.
SET_CAPACITY = """
UPDATE days SET capacity = $3, over = greatest(0, approved - $3),
                called_off = NULL, called_off_capacity = NULL, revoking = false
FROM unnest($1::text[], $2::date[]) AS d (hospital_id, date)
WHERE days.hospital_id = d.hospital_id AND days.date = d.date AND capacity <> $3"""

CALL_OFF = """
UPDATE days SET called_off = $3, called_off_capacity = $4, capacity = 0, over = approved, revoking = approved > 0
WHERE hospital_id = $1 AND date = $2"""

REOPEN = """
UPDATE days SET called_off = NULL, called_off_capacity = NULL, capacity = $3, over = greatest(0, approved - $3),
                revoking = false
WHERE hospital_id = $1 AND date = $2"""

TO_REVOKE = "SELECT hospital_id, date FROM days WHERE revoking ORDER BY hospital_id, date LIMIT 100"

HELD_BOOKINGS = """
SELECT reservation_id FROM decisions
WHERE hospital_id = $1 AND date = $2 AND denial IS NULL AND released_at IS NULL LIMIT $3"""

ALL_REVOKED = "UPDATE days SET revoking = false WHERE hospital_id = $1 AND date = $2 AND revoking"

SHOWN_DAYS = f"""
SELECT {DAY} FROM days
WHERE hospital_id = $1 AND date BETWEEN $2 AND $3 AND (capacity > 0 OR approved > 0 OR called_off IS NOT NULL)
ORDER BY date"""  # noqa: S608


# Whose day has passed holds nobody's place any more: the next booking would take the row over.
FORGET_ACTIVE = """
DELETE FROM active_bookings WHERE customer_id = ANY (ARRAY(
    SELECT a.customer_id FROM decisions d JOIN active_bookings a USING (reservation_id)
    WHERE d.date < $1 LIMIT $2 FOR UPDATE OF a SKIP LOCKED))"""

FORGET_PASSED = """
DELETE FROM decisions WHERE reservation_id = ANY (ARRAY(
    SELECT reservation_id FROM decisions d
    WHERE date < $1 AND NOT EXISTS (SELECT FROM active_bookings a WHERE a.reservation_id = d.reservation_id)
    LIMIT $2 FOR UPDATE SKIP LOCKED))"""

FORGET_REFUSED = """
DELETE FROM decisions WHERE reservation_id = ANY (ARRAY(
    SELECT reservation_id FROM decisions WHERE denial IS NOT NULL AND decide_time < $1
    LIMIT $2 FOR UPDATE SKIP LOCKED))"""

FORGET_DAYS = """
DELETE FROM days WHERE (hospital_id, date) IN (
    SELECT hospital_id, date FROM days WHERE date < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)"""


def rules(database: Database, retention: Retention) -> list[Rule]:
    """What approval keeps no longer."""
    delete = database.delete
    return [
        Rule("active bookings", lambda limit: delete(FORGET_ACTIVE, retention.passed_before, limit)),
        Rule("passed decisions", lambda limit: delete(FORGET_PASSED, retention.passed_before, limit)),
        Rule("refused decisions", lambda limit: delete(FORGET_REFUSED, retention.refused_before, limit)),
        Rule("days", lambda limit: delete(FORGET_DAYS, retention.passed_before, limit)),
    ]


class PostgresBooks:
    """See application.Books."""

    def __init__(self, database: Database, committed: Callable[[Sequence[Outgoing]], None]) -> None:
        self._database, self._committed = database, committed

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator["PostgresUnitOfWork"]:
        """See Books."""
        async with self._database.unit_of_work(self._committed) as transaction:
            yield PostgresUnitOfWork(transaction)

    async def hospital(self, hospital_id: str) -> Hospital | None:
        """See Books."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(HOSPITALS, [hospital_id])
        return Hospital(**row) if row else None

    async def hospitals(self, after: str, limit: int, query: str) -> Sequence[Hospital]:
        """See Books."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(HOSPITALS_PAGE, _patterns(query), after, limit)
        return [_hospital(row) for row in rows]

    async def hospitals_near(
        self, near: Location, after: tuple[int, str], limit: int, query: str
    ) -> Sequence[tuple[int, Hospital]]:
        """See Books."""
        here = near.latitude, near.longitude
        async with self._database.connection() as connection:
            rows = await connection.fetch(NEAREST_PAGE, _patterns(query), *here, NOWHERE, *after, limit)
        return [(row["metres"], _hospital(row)) for row in rows]

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """See Books."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(SHOWN_DAYS, hospital_id, first, last)
        return [Day(**row) for row in rows]

    async def days_to_revoke(self) -> Sequence[tuple[str, date]]:
        """See Books."""
        async with self._database.connection() as connection:
            return [(row["hospital_id"], row["date"]) for row in await connection.fetch(TO_REVOKE)]


class PostgresUnitOfWork:
    """See application.UnitOfWork."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._may_give_way: set[ReservationId] = set()  # the bookings that were active when the ledger was read

    async def ledger(self, requests: Sequence[Request]) -> Ledger:
        """See UnitOfWork."""
        moved = {r.replaces for r in requests if r.replaces}
        # As in ledger_of_decided; a batch without a move is spared the statement.
        about = await self._transaction.read(DECISIONS, list(moved)) if moved else []
        return await self._ledger(
            {(r.hospital_id, r.date) for r in requests} | {(row["hospital_id"], row["date"]) for row in about},
            {r.customer_id for r in requests},
            {r.reservation_id for r in requests} | moved,
        )

    async def ledger_of_decided(self, reservation_ids: Sequence[ReservationId]) -> Ledger:
        """See UnitOfWork."""
        # What a decision is about never changes: it is read first, so that the locks can be taken in their order.
        about = await self._transaction.read(DECISIONS, list(reservation_ids))
        return await self._ledger(
            {(row["hospital_id"], row["date"]) for row in about},
            {row["customer_id"] for row in about},
            set(reservation_ids),
        )

    async def _ledger(
        self, days: set[tuple[str, date]], customers: set[str], reservations: set[ReservationId]
    ) -> Ledger:
        transaction, hospital_ids = self._transaction, [hospital_id for hospital_id, _ in sorted(days)]
        locked = await transaction.hold(LOCK_DAYS, hospital_ids, [day for _, day in sorted(days)])
        active = await transaction.hold(LOCK_ACTIVE, sorted(customers))
        active_ids = {row["customer_id"]: _id(row) for row in active}
        decisions = await transaction.read(DECISIONS, [*reservations, *active_ids.values()])
        hospitals = await transaction.read(HOSPITALS, list(set(hospital_ids)))
        refusals = await transaction.read(REFUSALS, list(customers))
        decided = {_id(row): _decision(row) for row in decisions}
        self._may_give_way = set(active_ids.values())
        return Ledger(
            hospitals={row["hospital_id"]: Hospital(**row) for row in hospitals},
            days={(row["hospital_id"], row["date"]): Day(**row) for row in locked},
            decisions=decided,
            active={customer_id: decided[active_id].appointment for customer_id, active_id in active_ids.items()},
            refusals=Counter({row["customer_id"]: row["n"] for row in refusals}),
        )

    async def save(self, ledger: Ledger) -> None:
        """See UnitOfWork."""
        granted = [e.appointment for e in ledger.events if isinstance(e, Granted)]
        freed = [e for e in ledger.events if isinstance(e, Released | Revoked)]
        made = [e.appointment for e in ledger.events if not isinstance(e, Released | Revoked)]
        await self._take_places(ledger, granted, [e.appointment for e in freed])
        if made:
            # Of those granted one may have given way to a move in the same batch.
            await self._decide(ledger, made, [a for a in granted if ledger.active.get(a.customer_id) is a])
        if freed:
            ids = [e.appointment.reservation_id for e in freed]
            await self._transaction.write(RELEASE, ids, [e.at for e in freed])
            await self._transaction.write(DEACTIVATE, ids)
        await self._transaction.enqueue([outgoing(event) for event in ledger.events])

    async def _take_places(self, ledger: Ledger, granted: Sequence[Appointment], freed: Sequence[Appointment]) -> None:
        more = Counter((a.hospital_id, a.date) for a in granted)
        more.subtract((a.hospital_id, a.date) for a in freed)
        if changed := sorted((key, n) for key, n in more.items() if n):
            await self._transaction.write(
                TAKE_PLACES, [key[0] for key, _ in changed], [key[1] for key, _ in changed], [n for _, n in changed]
            )

    async def _decide(self, ledger: Ledger, made: Sequence[Appointment], granted: Sequence[Appointment]) -> None:
        """Raises LostRace when another transaction has decided the same, or given the person another booking."""
        made = sorted(made, key=lambda a: a.reservation_id)
        decided = [ledger.decisions[a.reservation_id] for a in made]
        try:
            await self._transaction.write(DECIDE, *columns(made, *APPOINTMENT), *columns(decided, "denial", "replaces"))
            activated = await self._activate(granted) if granted else 0
        except asyncpg.UniqueViolationError as error:
            raise LostRace("another transaction made the same decision") from error
        if activated != len(granted):
            raise LostRace("another transaction gave the person a booking")

    async def _activate(self, granted: Sequence[Appointment]) -> int:
        customers, ids = [a.customer_id for a in granted], [a.reservation_id for a in granted]
        return await self._transaction.write(ACTIVATE, customers, ids, list(self._may_give_way))

    async def decisions_of(self, customer_id: str) -> Sequence[Decision]:
        """See UnitOfWork."""
        return [_decision(row) for row in await self._transaction.hold(DECISIONS_OF, customer_id)]

    async def forget(self, decisions: Sequence[Decision]) -> None:
        """See UnitOfWork."""
        ids = [d.appointment.reservation_id for d in decisions]
        await self._transaction.write(DEACTIVATE, ids)
        await self._transaction.write(FORGET, ids)

    async def put_hospital(self, hospital: Hospital) -> tuple[Hospital, bool]:
        """See UnitOfWork."""
        h = hospital
        where = (h.location.latitude, h.location.longitude) if h.location else (None, None)
        changed = await self._transaction.write(
            PUT_HOSPITAL, h.hospital_id, h.name, h.time_zone, list(h.vaccine_codes), *where
        )
        [row] = await self._transaction.read(HOSPITAL, h.hospital_id)
        return _hospital(row), changed == 1

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """See UnitOfWork."""
        await self._transaction.begin()
        await self._transaction.write(MAKE_DAYS, hospital_id, first, last)
        return [Day(**row) for row in await self._transaction.hold(LOCK_RANGE, hospital_id, first, last)]

    async def set_capacity(self, days: Sequence[Day], capacity: int) -> None:
        """See UnitOfWork."""
        await self._transaction.write(SET_CAPACITY, [d.hospital_id for d in days], [d.date for d in days], capacity)

    async def call_off(self, day: Day) -> None:
        """See UnitOfWork."""
        await self._transaction.write(CALL_OFF, day.hospital_id, day.date, day.called_off, day.capacity)

    async def reopen(self, day: Day) -> None:
        """See UnitOfWork."""
        await self._transaction.write(REOPEN, day.hospital_id, day.date, day.capacity)

    async def held_bookings(self, day: Day, limit: int) -> Sequence[ReservationId]:
        """See UnitOfWork."""
        rows = await self._transaction.read(HELD_BOOKINGS, day.hospital_id, day.date, limit)
        return [_id(row) for row in rows]

    async def all_revoked(self, day: Day) -> None:
        """See UnitOfWork."""
        await self._transaction.write(ALL_REVOKED, day.hospital_id, day.date)

    async def add_delivered(self, codes: Sequence[tuple[str, str]]) -> None:
        """See UnitOfWork."""
        for row in await self._transaction.write_returning(ADD_DELIVERED, *map(list, zip(*codes, strict=True))):
            log.warning("delivery_to_unknown_hospital", hospital_id=row["hospital_id"])


def _patterns(query: str) -> str:
    """What LIKE finds each word of a query by, one a line. Names are rarely in another form of Unicode than NFC."""
    words = unicodedata.normalize("NFC", query).split()
    escaped = (re.sub(r"([%_\\])", r"\\\1", word) for word in words)
    return "\n".join(f"%{word}%" for word in escaped)


def _hospital(row: asyncpg.Record) -> Hospital:
    location = None if row["latitude"] is None else Location(row["latitude"], row["longitude"])
    return Hospital(row["hospital_id"], row["name"], row["time_zone"], tuple(row["vaccine_codes"]), location=location)


def _id(row: asyncpg.Record) -> ReservationId:
    return ReservationId(str(row["reservation_id"]))


def _decision(row: asyncpg.Record) -> Decision:
    appointment = Appointment(**{name: row[name] for name in APPOINTMENT} | {"reservation_id": _id(row)})
    denial = Denial(row["denial"]) if row["denial"] else None
    replaces = ReservationId(str(row["replaces"])) if row["replaces"] else None
    return Decision(appointment, denial, row["released_at"], replaces)
