"""Reservations in Postgres."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields

import asyncpg
from prometheus_client import Histogram

from services.chassis.batch import Batcher
from services.chassis.events import Outgoing
from services.chassis.postgres import OUTBOX_COLUMNS, Database, Transaction, columns
from services.chassis.retention import Retention, Rule
from services.chassis.unit_of_work import repeated_after_lost_race

from ..application import Clock, Position
from ..domain import Appointment, Reservation, ReservationId, Status
from .events import outgoing

# From a tenth of a second, when all is well, to days on a waiting list.
completion_seconds = Histogram(
    "reservation_completion_seconds",
    "From approval's decision until the reservation is completed, in seconds.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 6 * 3600, 86400, 7 * 86400),
)

APPOINTMENT = [field.name for field in fields(Appointment)]
# Named, since a newer version may add a column while this one reads.
COLUMNS = ", ".join([*APPOINTMENT, "status", "rejection", "dose_version", "dose_is_back"])

# State and events in one statement, so one round trip and one commit: the events only of what is new. A request whose
# refusal is over may have been decided anew before its row was deleted here: then the later decision counts. What is
# known is neither written nor locked: whoever holds it, for a change of its status, keeps no new one waiting.
ADD = """
WITH added AS (
    INSERT INTO reservations AS r (reservation_id, customer_id, hospital_id, hospital_name, time_zone, date,
                                   vaccine_code, decide_time, status, rejection)
    SELECT * FROM unnest($7::uuid[], $8::text[], $9::text[], $10::text[], $11::text[], $12::date[], $13::text[],
                         $14::timestamptz[], $15::smallint[], $16::smallint[])
        AS n (reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, vaccine_code, decide_time)
    WHERE NOT EXISTS (
        SELECT FROM reservations AS known
        WHERE known.reservation_id = n.reservation_id AND known.decide_time >= n.decide_time)
    ORDER BY n.reservation_id
    ON CONFLICT (reservation_id) DO UPDATE
    SET (hospital_id, hospital_name, time_zone, date, vaccine_code, decide_time, status, rejection, dose_version,
         dose_is_back) =
        (excluded.hospital_id, excluded.hospital_name, excluded.time_zone, excluded.date, excluded.vaccine_code,
         excluded.decide_time, excluded.status, excluded.rejection, excluded.dose_version, excluded.dose_is_back)
    WHERE r.decide_time < excluded.decide_time
    RETURNING reservation_id
)
INSERT INTO outbox (id, key, subject, time, traceparent, payload)
SELECT o.* FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::bytea[])
    AS o (id, key, subject, time, traceparent, payload)
JOIN added ON added.reservation_id = o.key::uuid
RETURNING id"""

GET = f"SELECT {COLUMNS} FROM reservations WHERE reservation_id = $1"  # noqa: S608 - constants

HOLD = f"SELECT {COLUMNS} FROM reservations WHERE reservation_id = ANY ($1) ORDER BY reservation_id FOR UPDATE"  # noqa: S608

HOLD_OF = f"SELECT {COLUMNS} FROM reservations WHERE customer_id = $1 ORDER BY reservation_id FOR UPDATE"  # noqa: S608

FORGET = "DELETE FROM reservations WHERE reservation_id = ANY ($1)"

CHANGE = """
UPDATE reservations SET status = c.status, dose_version = c.dose_version, dose_is_back = c.dose_is_back
FROM unnest($1::uuid[], $2::smallint[], $3::integer[], $4::boolean[])
    AS c (reservation_id, status, dose_version, dose_is_back)
WHERE reservations.reservation_id = c.reservation_id"""

PAGE = f"""
SELECT {COLUMNS} FROM reservations
WHERE customer_id = $1 AND ($2::timestamptz IS NULL OR (decide_time, reservation_id) < ($2, $3::uuid))
ORDER BY decide_time DESC, reservation_id DESC LIMIT $4"""  # noqa: S608


FORGET_PASSED = """
DELETE FROM reservations WHERE reservation_id = ANY (ARRAY(
    SELECT reservation_id FROM reservations WHERE date < $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"""

FORGET_REFUSED = """
DELETE FROM reservations WHERE reservation_id = ANY (ARRAY(
    SELECT reservation_id FROM reservations WHERE rejection IS NOT NULL AND decide_time < $1
    LIMIT $2 FOR UPDATE SKIP LOCKED))"""


def rules(database: Database, retention: Retention) -> list[Rule]:
    """What reservation keeps no longer."""
    delete = database.delete
    return [
        Rule("passed reservations", lambda limit: delete(FORGET_PASSED, retention.passed_before, limit)),
        Rule("refused reservations", lambda limit: delete(FORGET_REFUSED, retention.refused_before, limit)),
    ]


class PostgresReservations:
    """See application.Reservations."""

    def __init__(self, database: Database, committed: Callable[[Sequence[Outgoing]], None], clock: Clock) -> None:
        self._database, self._committed, self._clock = database, committed, clock
        self._record: Batcher[Reservation, None] = Batcher(
            "record", self._record_all, lambda r: r.appointment.reservation_id
        )

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator["PostgresUnitOfWork"]:
        """See Reservations."""
        async with self._database.unit_of_work(self._committed) as transaction:
            work = PostgresUnitOfWork(transaction)
            yield work
        for reservation in work.completed:
            took = self._clock() - reservation.appointment.decide_time
            completion_seconds.observe(max(0.0, took.total_seconds()))

    async def record(self, reservation: Reservation) -> None:
        """See Reservations."""
        await self._record(reservation)

    @repeated_after_lost_race
    async def _record_all(self, reservations: Sequence[Reservation]) -> Sequence[None]:
        async with self.unit_of_work() as work:
            await work.add(reservations)
        return [None] * len(reservations)

    async def get(self, reservation_id: ReservationId) -> Reservation | None:
        """See Reservations."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(GET, reservation_id)
        return _reservation(row) if row else None

    async def page(self, customer_id: str, after: Position | None, limit: int) -> Sequence[Reservation]:
        """See Reservations."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(PAGE, customer_id, *(after or (None, None)), limit)
        return [_reservation(row) for row in rows]


class PostgresUnitOfWork:
    """See application.UnitOfWork."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._held: dict[ReservationId, tuple[Status, int, bool]] = {}
        self.completed: list[Reservation] = []

    async def add(self, reservations: Sequence[Reservation]) -> None:
        """See UnitOfWork."""
        # Of two decisions about one request the later one counts. All are inserted by id, so that two batches that
        # share new ones wait for each other in one order.
        latest = {
            r.appointment.reservation_id: r for r in sorted(reservations, key=lambda r: r.appointment.decide_time)
        }
        unique = [r for _, r in sorted(latest.items())]
        events = [outgoing(event) for r in unique for event in r.events]
        added = await self._transaction.write_returning(
            ADD,
            *columns(events, *OUTBOX_COLUMNS),
            *columns([r.appointment for r in unique], *APPOINTMENT),
            *columns(unique, "status", "rejection"),
        )
        new = {str(row["id"]) for row in added}
        self._transaction.events += [event for event in events if event.id in new]

    async def held(self, ids: Sequence[ReservationId]) -> Sequence[Reservation]:
        """See UnitOfWork."""
        reservations = [_reservation(row) for row in await self._transaction.hold(HOLD, list(ids))]
        self._held |= {r.appointment.reservation_id: _changeable(r) for r in reservations}
        return reservations

    async def held_of(self, customer_id: str) -> Sequence[Reservation]:
        """See UnitOfWork."""
        return [_reservation(row) for row in await self._transaction.hold(HOLD_OF, customer_id)]

    async def forget(self, reservations: Sequence[Reservation]) -> None:
        """See UnitOfWork."""
        await self._transaction.write(FORGET, [r.appointment.reservation_id for r in reservations])

    async def save(self, reservations: Sequence[Reservation]) -> None:
        """See UnitOfWork."""
        changed = [r for r in reservations if _changeable(r) != self._held[r.appointment.reservation_id]]
        if changed:
            ids = [r.appointment.reservation_id for r in changed]
            await self._transaction.write(CHANGE, ids, *columns(changed, "status", "dose_version", "dose_is_back"))
            await self._transaction.enqueue([outgoing(event) for r in changed for event in r.events])
        self.completed += [
            r
            for r in changed
            if r.status is Status.COMPLETED and self._held[r.appointment.reservation_id][0] is Status.APPROVED
        ]


def _changeable(reservation: Reservation) -> tuple[Status, int, bool]:
    return reservation.status, reservation.dose_version, reservation.dose_is_back


def _reservation(row: asyncpg.Record) -> Reservation:
    reservation_id = {"reservation_id": ReservationId(str(row["reservation_id"]))}
    appointment = Appointment(**{name: row[name] for name in APPOINTMENT} | reservation_id)
    told = row["dose_version"], row["dose_is_back"]
    return Reservation(appointment, Status(row["status"]), row["rejection"], *told)
