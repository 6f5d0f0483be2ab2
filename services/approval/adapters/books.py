"""Approval's books for the proof that they add up: how many places are approved, by hospital and day."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, timedelta
from uuid import UUID

from services.chassis.events.books import EVENTS, Account, Amounts, Reading
from services.chassis.postgres import Database
from services.chassis.retention import Retention
from vaccination.approval.v1.approval_events_pb2 import ApprovalGranted, ApprovalReleased, ApprovalRevoked

APPROVED = "approved"
EVENTS_OF_PLACES = {event.DESCRIPTOR.full_name: event for event in (ApprovalGranted, ApprovalReleased, ApprovalRevoked)}
GRANTED, ENDED = 1, 2  # what was heard of a reservation: bits, since it may come in any order
READ_WITHIN = 600.0  # seconds: the whole table is read once

# Nothing is on a day that is not among these. Who may have been erased is of a day that has passed at the hospital.
PLACES = """
WITH counted AS (
    SELECT hospital_id, date, count(*) AS n, min(decide_time) AS first FROM decisions
    WHERE denial IS NULL AND released_at IS NULL AND date >= $1 {only_decisions}
    GROUP BY hospital_id, date
)
SELECT hospital_id, date, coalesce(approved, 0) AS approved, coalesce(n, 0) AS decided, first,
       date < ($2::timestamptz AT TIME ZONE time_zone)::date AS passed
FROM (SELECT * FROM days WHERE date >= $1 {only_days}) AS days
     FULL JOIN counted USING (hospital_id, date) JOIN hospitals USING (hospital_id)
WHERE approved > 0 OR n > 0"""
EVERY = PLACES.format(only_decisions="", only_days="")
ONLY = "AND date = ANY ($4) AND (hospital_id, date) IN (SELECT * FROM unnest($3::text[], $4::date[]))"
SOME = PLACES.format(only_decisions=ONLY, only_days=ONLY)

OUTBOX = "SELECT subject, payload FROM outbox WHERE subject = ANY ($1)"


class ApprovalBooks:
    """See chassis.events.books.Books. An account is "HOSPITAL DATE".

    Days that retention deletes, or is about to, are left out. Of a day that has passed, an erased person's booking is
    gone from the decisions and the events, and the place stays taken: there both may be fewer.
    """

    subjects: Sequence[str] = tuple(EVENTS_OF_PLACES)

    def __init__(self, database: Database, retention: Retention, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock
        self._since = retention.passed_before + timedelta(2)  # retention may go on meanwhile
        self._heard: dict[bytes, int] = {}
        self._approved: Counter[str] = Counter()

    def add(self, subject: str, payload: bytes) -> Collection[str]:
        """See Books."""
        appointment = EVENTS_OF_PLACES[subject].FromString(payload).appointment
        day, reservation = date.fromisoformat(appointment.date), UUID(appointment.reservation_id).bytes
        if day < self._since:
            return ()
        before = self._heard.get(reservation, 0)
        after = before | (GRANTED if subject == ApprovalGranted.DESCRIPTOR.full_name else ENDED)
        self._heard[reservation] = after
        change = (after == GRANTED) - (before == GRANTED)
        if change == 0:
            return ()
        account = f"{appointment.hospital_id} {day}"
        self._approved[account] += change
        return (account,)

    def told(self) -> Collection[str]:
        """See Books."""
        return self._approved.keys()

    def amounts(self, account: str) -> Amounts:
        """See Books."""
        return {APPROVED: self._approved[account]} if account in self._approved else {}

    async def read(self, accounts: Collection[str] | None, complete_since: datetime | None) -> Reading:
        """See Books."""
        sql, asked = EVERY, list[object]()
        if accounts is not None:
            pairs = [account.split(" ") for account in accounts]
            sql, asked = SOME, [[pair[0] for pair in pairs], [date.fromisoformat(pair[1]) for pair in pairs]]
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            rows = await connection.fetch(sql, self._since, self._clock(), *asked, timeout=READ_WITHIN)
            outbox = await connection.fetch(OUTBOX, list(self.subjects))
        found = {}
        for row in rows:
            older = complete_since is not None and row["first"] is not None and row["first"] < complete_since
            gone = (APPROVED,) if row["passed"] else ()
            found[f"{row['hospital_id']} {row['date']}"] = Account(
                own={APPROVED: row["approved"]},
                others={"decisions": {APPROVED: row["decided"]}},
                told=() if older else (APPROVED,),
                at_most={"decisions": gone, EVENTS: gone},
            )
        return Reading(found, [(row["subject"], row["payload"]) for row in outbox])
