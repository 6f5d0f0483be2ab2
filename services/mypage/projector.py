"""From events to rows. The same events end in the same rows, in whatever order and however often they come:

- the status is the furthest one that any event tells of (the contract's numbers grow along a reservation's path), but
  APPROVED and COMPLETED follow the dose, since a recall can take it away;
- the dose is the one that the event with the highest version tells of, among those that say something about the dose;
- everything else is the appointment, which every event repeats.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

from google.protobuf.message import Message

from services.chassis.convert import calendar_day, canonical_id
from services.chassis.events import Bus, Event, Subscription
from services.chassis.events.purge import Purge
from services.chassis.postgres import Database
from services.chassis.retention import Retention, Rule, Term
from vaccination.approval.v1 import approval_events_pb2 as approval
from vaccination.reservation.v1 import reservation_events_pb2 as reservation
from vaccination.reservation.v1 import reservation_pb2
from vaccination.vaccinemgmt.v1 import vaccinemgmt_events_pb2 as vaccinemgmt

Status = reservation_pb2.ReservationStatus
REJECTED = Status.RESERVATION_STATUS_REJECTED
STATUS: dict[type[Message], int] = {
    approval.ApprovalGranted: Status.RESERVATION_STATUS_APPROVED,
    approval.ApprovalDenied: Status.RESERVATION_STATUS_REJECTED,
    reservation.ReservationPlaced: Status.RESERVATION_STATUS_APPROVED,
    reservation.ReservationRejected: Status.RESERVATION_STATUS_REJECTED,
    vaccinemgmt.ReservationWaiting: Status.RESERVATION_STATUS_APPROVED,
    vaccinemgmt.ReservationCompleted: Status.RESERVATION_STATUS_COMPLETED,
    vaccinemgmt.VaccinationCheckedIn: Status.RESERVATION_STATUS_APPROVED,
    reservation.CancellationRequested: Status.RESERVATION_STATUS_CANCEL_REQUESTED,
    vaccinemgmt.CancellationCompleted: Status.RESERVATION_STATUS_CANCELLED,
    # For a reason that only a newer version knows. The booking is over, and the dose comes back.
    approval.ApprovalRevoked: Status.RESERVATION_STATUS_CANCELLED,
    vaccinemgmt.VaccinationUnserved: Status.RESERVATION_STATUS_UNSERVED,
    vaccinemgmt.VaccinationMissed: Status.RESERVATION_STATUS_MISSED,
    vaccinemgmt.VaccinationAdministered: Status.RESERVATION_STATUS_ADMINISTERED,
    # The place is free. How the booking ended is told by another event, which may come later.
    approval.ApprovalReleased: Status.RESERVATION_STATUS_APPROVED,
}
"""The events that mypage follows, each with the status that it brings a reservation to."""

REVOKED: dict[int, int] = {
    approval.RevocationReason.REVOCATION_REASON_DAY_CALLED_OFF: Status.RESERVATION_STATUS_CALLED_OFF,
    approval.RevocationReason.REVOCATION_REASON_MOVED: Status.RESERVATION_STATUS_MOVED,
}
"""ApprovalRevoked brings a reservation to a status by its reason."""

OF_THE_DOSE: dict[type[Message], bool] = {
    vaccinemgmt.ReservationWaiting: False,
    vaccinemgmt.ReservationCompleted: True,
    vaccinemgmt.CancellationCompleted: False,
    vaccinemgmt.VaccinationAdministered: True,
    vaccinemgmt.VaccinationMissed: False,
    vaccinemgmt.VaccinationUnserved: False,
}
"""The events that say whether there is a dose, and what they say.

A version counts all changes of a vaccination. VaccinationCheckedIn has one too, but the customer's arrival leaves the
dose as it is: if its version counted here, the dose would be gone from the screen while the customer is at the counter.
"""


# A reservation's status in SQL, by the furthest one that was reached and by whether there is a dose.
STATUS_OF = "CASE WHEN {furthest} IN (1, 3) THEN CASE {quantity} WHEN 0 THEN 1 ELSE 3 END ELSE {furthest} END"

PROJECT = f"""
INSERT INTO {{schema}}.my_reservations (
    reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, requested_vaccine_code, decide_time,
    status, rejection_reason, replaced_by, dose_version, vaccine_code, manufacturer, lot_number, production_date,
    expiry_date, quantity)
SELECT DISTINCT ON (reservation_id)
       reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, requested_vaccine_code, decide_time,
       {STATUS_OF.format(furthest="max(status) OVER same", quantity="quantity")},
       max(rejection_reason) OVER same, max(replaced_by) OVER same,
       dose_version, vaccine_code, manufacturer, lot_number, production_date, expiry_date, quantity
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::date[], $7::text[], $8::timestamptz[],
            $9::smallint[], $10::smallint[], $11::text[], $12::int[], $13::text[], $14::text[], $15::text[],
            $16::date[], $17::date[], $18::int[])
    AS e (reservation_id, customer_id, hospital_id, hospital_name, time_zone, date, requested_vaccine_code, decide_time,
          status, rejection_reason, replaced_by, dose_version, vaccine_code, manufacturer, lot_number, production_date,
          expiry_date, quantity)
WINDOW same AS (PARTITION BY reservation_id)
ORDER BY reservation_id, dose_version DESC
ON CONFLICT (reservation_id) DO UPDATE SET
    rejection_reason = greatest(my_reservations.rejection_reason, excluded.rejection_reason),
    replaced_by = greatest(my_reservations.replaced_by, excluded.replaced_by),
    (status, dose_version, vaccine_code, manufacturer, lot_number, production_date, expiry_date, quantity) =
        (SELECT {STATUS_OF.format(furthest="greatest(my_reservations.status, excluded.status)", quantity="d.quantity")},
                d.* FROM (VALUES
            (my_reservations.dose_version, my_reservations.vaccine_code, my_reservations.manufacturer,
             my_reservations.lot_number, my_reservations.production_date,
             my_reservations.expiry_date, my_reservations.quantity),
            (excluded.dose_version, excluded.vaccine_code, excluded.manufacturer, excluded.lot_number,
             excluded.production_date, excluded.expiry_date, excluded.quantity)
         ) AS d (version, code, manufacturer, lot, production, expiry, quantity) ORDER BY d.version DESC LIMIT 1)
WHERE my_reservations.decide_time = excluded.decide_time"""  # noqa: S608 - constants

# A refused request that comes again when its retention is over is decided anew: nothing of the first time counts.
FORGET = """
WITH gone AS (
    DELETE FROM {schema}.my_reservations r
    USING unnest($1::uuid[], $2::timestamptz[]) AS e (reservation_id, decide_time)
    WHERE r.reservation_id = e.reservation_id AND r.decide_time < e.decide_time
    RETURNING r.reservation_id
)
DELETE FROM {schema}.timeline t USING gone WHERE t.reservation_id = gone.reservation_id"""

REMEMBER = """
INSERT INTO {schema}.timeline (reservation_id, event, version, time, reason, note)
SELECT DISTINCT ON (e.reservation_id, e.event, e.version) *
FROM unnest($1::uuid[], $2::text[], $3::int[], $4::timestamptz[], $5::text[], $6::text[])
    AS e (reservation_id, event, version, time, reason, note)
ORDER BY e.reservation_id, e.event, e.version, e.time
ON CONFLICT DO NOTHING"""

# Watchers in every replica hear of it when the transaction commits. An empty payload tells all of them to look.
CHANNEL = "my_reservations"
TELL = f"SELECT pg_notify('{CHANNEL}', customer_id) FROM unnest($1::text[]) AS c (customer_id)"  # noqa: S608 - a constant


class View:
    """Writes a view's tables: those that are read, or those in another schema, where a rebuild makes new ones."""

    def __init__(self, database: Database, schema: str = "public") -> None:
        self._database, self._beside = database, schema != "public"
        self._forget, self._project, self._remember = (s.format(schema=schema) for s in (FORGET, PROJECT, REMEMBER))

    def subscriptions(self, retention: Retention) -> list[Subscription[Any]]:
        """The projector for each event that mypage follows."""
        return retention.applied_to([Subscription(event, entry, self.project) for event in STATUS], term)

    async def project(self, entries: Sequence["Entry"]) -> None:
        """Brings the rows up to date with these events, in one transaction."""
        rows, times = (zip(*of_table, strict=True) for of_table in zip(*entries, strict=True))
        async with self._database.transaction() as connection:
            columns = [*map(list, rows)]
            done = await connection.execute(self._project, *columns)
            if int(done.split()[-1]) < len({row[0] for row, _ in entries}):  # another decision than the one shown
                await connection.execute(self._forget, columns[0], columns[7])
                await connection.execute(self._project, *columns)
            await connection.execute(self._remember, *map(list, times))
            if not self._beside:
                await connection.execute(TELL, sorted({row[1] for row, _ in entries}))


FORGET_OVER = """
WITH gone AS (
    DELETE FROM my_reservations WHERE reservation_id = ANY (ARRAY(
        SELECT reservation_id FROM my_reservations WHERE {over} LIMIT $2 FOR UPDATE SKIP LOCKED))
    RETURNING reservation_id
), times AS (
    DELETE FROM timeline t USING gone WHERE t.reservation_id = gone.reservation_id
)
SELECT count(*) FROM gone"""
FORGET_PASSED = FORGET_OVER.format(over="date < $1")
FORGET_REFUSED = FORGET_OVER.format(over="rejection_reason > 0 AND decide_time < $1")


def rules(database: Database, retention: Retention) -> list[Rule]:
    """What mypage keeps no longer. Watchers are not told: a page shows what is gone until it is loaded anew."""

    async def delete(sql: str, over: date | datetime, limit: int) -> int:
        async with database.connection() as connection:
            deleted: int = await connection.fetchval(sql, over, limit)
        return deleted

    return [
        Rule("passed reservations", lambda limit: delete(FORGET_PASSED, retention.passed_before, limit)),
        Rule("refused reservations", lambda limit: delete(FORGET_REFUSED, retention.refused_before, limit)),
    ]


FAR_AHEAD = """
SELECT min(decide_time) FROM my_reservations
WHERE date - (decide_time AT TIME ZONE 'UTC')::date > 366 AND decide_time < $1"""


def purge(database: Database, bus: Bus, retention: Retention) -> Purge:
    """What the stream keeps no longer. MyPage is the one that purges, since its view is made of the stream."""

    async def needed_since(before: datetime) -> datetime | None:
        async with database.connection() as connection:
            decided: datetime | None = await connection.fetchval(FAR_AHEAD, before)
        return decided

    return Purge(bus, retention, [event for event in STATUS if STATUS[event] == REJECTED], needed_since)


Row = tuple[Any, ...]
Entry = tuple[Row, Row]


def term(event: Event) -> Term:
    """What decides how long the reservation is kept that an event is about."""
    appointment, refused = event.message.appointment, STATUS[type(event.message)] == REJECTED
    return Term(appointment.decide_time.ToDatetime(UTC), calendar_day("date", appointment.date), refused)


def entry(event: Event) -> Entry:
    """An event's row for the table of reservations, and its row for the timeline."""
    message, a, kind = event.message, event.message.appointment, type(event.message)
    version = getattr(message, "version", 0)
    dose = message.dose if OF_THE_DOSE.get(kind) else None
    number, reason = reason_of(message)
    row = (
        canonical_id(a.reservation_id),
        a.customer_id,
        a.hospital_id,
        a.hospital_name,
        a.time_zone,
        calendar_day("date", a.date),
        a.vaccine_code,
        a.decide_time.ToDatetime(UTC),
        REVOKED.get(number, STATUS[kind]) if kind is approval.ApprovalRevoked else STATUS[kind],
        number if STATUS[kind] == REJECTED else 0,
        getattr(message, "replaced_by", ""),
        version if kind in OF_THE_DOSE else 0,
        dose.vaccine_code if dose else "",
        dose.manufacturer if dose else "",
        dose.lot_number if dose else "",
        calendar_day("production_date", dose.production_date) if dose else None,
        calendar_day("expiry_date", dose.expiry_date) if dose else None,
        1 if dose else 0,
    )
    return row, (row[0], kind.__name__, version, event.time, reason, getattr(message, "note", ""))


def reason_of(message: Message) -> tuple[int, str]:
    """Why an event happened, as the contract's number and name; (0, "") if it does not say.

    A newer version may send a reason that this one has no name for: its number is the name then.
    """
    field, names = _reasons(type(message))  # type: ignore[arg-type] # a class is hashable
    number = getattr(message, field, 0)
    return number, names.get(number, str(number))


@cache
def _reasons(event: type[Message]) -> tuple[str, dict[int, str]]:
    """The field in which an event says why it happened, and the names of its values, without their prefix."""
    for field in event.DESCRIPTOR.fields:
        if field.enum_type is not None:
            values = field.enum_type.values_by_number
            prefix = values[0].name.removesuffix("UNSPECIFIED")
            return field.name, {number: value.name.removeprefix(prefix) for number, value in values.items()} | {0: ""}
    return "", {0: ""}
