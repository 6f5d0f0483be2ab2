"""Approval's books in Postgres."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import date
from uuid import UUID

import asyncpg

from services.chassis.errors import StoreUnavailable
from services.chassis.outbox import Outgoing
from services.chassis.postgres import Connection, Database, columns, enqueue

from ..domain import Appointment, Day, Decision, Denial, Event, Hospital, Ledger, Request
from .events import outgoing

APPOINTMENT = [field.name for field in fields(Appointment)]

# Locks are always taken in this order, days before customers before new decisions, each sorted: no two transactions can
# deadlock.
LOCK_DAYS = """
SELECT hospital_id, date, capacity, approved FROM days
WHERE (hospital_id, date) IN (SELECT * FROM unnest($1::text[], $2::date[]))
ORDER BY hospital_id, date FOR UPDATE"""

LOCK_ACTIVE = """
SELECT customer_id, reservation_id FROM active_bookings WHERE customer_id = ANY ($1) ORDER BY customer_id FOR UPDATE"""

DECISIONS = "SELECT * FROM decisions WHERE reservation_id = ANY ($1)"

HOSPITALS = "SELECT hospital_id, name, time_zone FROM hospitals WHERE hospital_id = ANY ($1)"

HOSPITALS_PAGE = """
SELECT hospital_id, name, time_zone FROM hospitals WHERE hospital_id > $1 ORDER BY hospital_id LIMIT $2"""

TAKE_PLACES = """
UPDATE days SET approved = days.approved + d.n
FROM unnest($1::text[], $2::date[], $3::int[]) AS d (hospital_id, date, n)
WHERE days.hospital_id = d.hospital_id AND days.date = d.date"""

DECIDE = """
INSERT INTO decisions (reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, vaccine_code,
                       decide_time, denial)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::date[], $7::text[],
                     $8::timestamptz[], $9::smallint[])"""

# A booking whose day has passed gives way; a current one does not: then the rule was decided on what is no longer so.
ACTIVATE = """
INSERT INTO active_bookings (customer_id, reservation_id)
SELECT * FROM unnest($1::text[], $2::uuid[]) AS a (customer_id, reservation_id) ORDER BY customer_id
ON CONFLICT (customer_id) DO UPDATE SET reservation_id = excluded.reservation_id
WHERE active_bookings.reservation_id = ANY ($3::uuid[])"""

# Attempts at a transaction that others get in the way of; each loses only to one that has committed.
TRIES = 10


class PostgresBooks:
    """See application.Books."""

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self._database, self._wake = database, wake

    async def decide(self, requests: Sequence[Request], rule: Callable[[Ledger], None]) -> None:
        """See Books."""
        days = sorted({(r.hospital_id, r.date) for r in requests})
        for _ in range(TRIES):
            try:
                async with self._database.transaction() as connection:
                    ledger = await _load(
                        connection, days, {r.customer_id for r in requests}, {r.reservation_id for r in requests}
                    )
                    replaceable = {a.reservation_id for a in ledger.active.values()}
                    places = {key: day.approved for key, day in ledger.days.items()}
                    rule(ledger)
                    await _write_decisions(connection, ledger, replaceable, places)
                break
            except (asyncpg.UniqueViolationError, _LostRace):
                continue
        else:
            raise StoreUnavailable("too many calls for the same booking at once: repeat the call")
        self._wake()

    async def release(self, reservation_ids: Sequence[UUID], rule: Callable[[Ledger], None]) -> None:
        """See Books."""
        async with self._database.transaction() as connection:
            # What a decision is about never changes: read first, so that the locks can be taken in their order.
            about = await connection.fetch(DECISIONS, list(reservation_ids))
            days = sorted({(row["hospital_id"], row["date"]) for row in about})
            ledger = await _load(connection, days, {row["customer_id"] for row in about}, set(reservation_ids))
            places = {key: day.approved for key, day in ledger.days.items()}
            rule(ledger)
            released = [e.appointment for e in ledger.events]
            await _write_places(connection, ledger, places)
            await connection.executemany(
                "UPDATE decisions SET released_at = $2 WHERE reservation_id = $1",
                [(a.reservation_id, ledger.decisions[a.reservation_id].released_at) for a in released],
            )
            await connection.execute(
                "DELETE FROM active_bookings WHERE reservation_id = ANY ($1)", [a.reservation_id for a in released]
            )
            await enqueue(connection, _events(ledger.events))
        self._wake()

    async def put_hospital(self, hospital: Hospital) -> bool:
        """See Books."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """
                INSERT INTO hospitals (hospital_id, name, time_zone) VALUES ($1, $2, $3)
                ON CONFLICT (hospital_id) DO UPDATE SET name = excluded.name, time_zone = excluded.time_zone
                WHERE (hospitals.name, hospitals.time_zone) <> (excluded.name, excluded.time_zone)
                RETURNING hospital_id""",
                hospital.hospital_id, hospital.name, hospital.time_zone)  # fmt: skip
        return row is not None

    async def hospital(self, hospital_id: str) -> Hospital | None:
        """See Books."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(HOSPITALS, [hospital_id])
        return Hospital(**row) if row else None

    async def hospitals(self, after: str, limit: int) -> Sequence[Hospital]:
        """See Books."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(HOSPITALS_PAGE, after, limit)
        return [Hospital(**row) for row in rows]

    async def set_capacity(
        self, hospital_id: str, first: date, last: date, capacity: int, rule: Callable[[Sequence[Day]], None]
    ) -> int:
        """See Books."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                INSERT INTO days (hospital_id, date, capacity)
                SELECT $1, day::date, 0 FROM generate_series($2::date, $3::date, interval '1 day') AS day
                ON CONFLICT DO NOTHING""",
                hospital_id, first, last)  # fmt: skip
            rows = await connection.fetch(
                """
                SELECT hospital_id, date, capacity, approved FROM days
                WHERE hospital_id = $1 AND date BETWEEN $2 AND $3 ORDER BY date FOR UPDATE""",
                hospital_id, first, last)  # fmt: skip
            rule([Day(**row) for row in rows])
            await connection.execute(
                "UPDATE days SET capacity = $4 WHERE hospital_id = $1 AND date BETWEEN $2 AND $3 AND capacity <> $4",
                hospital_id, first, last, capacity)  # fmt: skip
        return sum(row["capacity"] != capacity for row in rows)

    async def days(self, hospital_id: str, first: date, last: date) -> Sequence[Day]:
        """See Books."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT hospital_id, date, capacity, approved FROM days
                WHERE hospital_id = $1 AND date BETWEEN $2 AND $3 AND capacity > 0 ORDER BY date""",
                hospital_id, first, last)  # fmt: skip
        return [Day(**row) for row in rows]


class _LostRace(Exception):
    """Another transaction committed what this one's rule was decided without."""


async def _load(
    connection: Connection, days: list[tuple[str, date]], customers: set[str], reservations: set[UUID]
) -> Ledger:
    locked = await connection.fetch(LOCK_DAYS, [hospital for hospital, _ in days], [day for _, day in days])
    active = await connection.fetch(LOCK_ACTIVE, sorted(customers))
    decisions = await connection.fetch(DECISIONS, [*reservations, *(row["reservation_id"] for row in active)])
    hospitals = await connection.fetch(HOSPITALS, list({hospital for hospital, _ in days}))
    decided = {row["reservation_id"]: _decision(row) for row in decisions}
    return Ledger(
        hospitals={row["hospital_id"]: Hospital(**row) for row in hospitals},
        days={(row["hospital_id"], row["date"]): Day(**row) for row in locked},
        decisions=decided,
        active={row["customer_id"]: decided[row["reservation_id"]].appointment for row in active},
    )


async def _write_decisions(
    connection: Connection, ledger: Ledger, replaceable: set[UUID], places: dict[tuple[str, date], int]
) -> None:
    made = sorted((e.appointment for e in ledger.events), key=lambda a: a.reservation_id)
    if not made:
        return
    denials = [d.value if (d := ledger.decisions[a.reservation_id].denial) else None for a in made]
    granted = [a for a, denial in zip(made, denials, strict=True) if denial is None]
    await _write_places(connection, ledger, places)
    await connection.execute(DECIDE, *columns(made, *APPOINTMENT), denials)
    if granted:
        done = await connection.execute(
            ACTIVATE, [a.customer_id for a in granted], [a.reservation_id for a in granted], list(replaceable)
        )
        if int(done.split()[-1]) != len(granted):
            raise _LostRace
    await enqueue(connection, _events(ledger.events))


async def _write_places(connection: Connection, ledger: Ledger, before: dict[tuple[str, date], int]) -> None:
    changed = [
        (key, ledger.days[key].approved - n) for key, n in sorted(before.items()) if ledger.days[key].approved != n
    ]
    if changed:
        await connection.execute(
            TAKE_PLACES, [key[0] for key, _ in changed], [key[1] for key, _ in changed], [n for _, n in changed]
        )


def _events(events: Sequence[Event]) -> list[Outgoing]:
    return [outgoing(event) for event in events]


def _decision(row: asyncpg.Record) -> Decision:
    appointment = Appointment(**{name: row[name] for name in APPOINTMENT})
    return Decision(appointment, Denial(row["denial"]) if row["denial"] else None, row["released_at"])
