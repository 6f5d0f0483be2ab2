"""A person's reservations leave the view, and the person's events the streams that it is made of."""

from google.protobuf.message import DecodeError

from services.chassis import clock
from services.chassis.events import Bus
from services.chassis.events.erasure import Eraser, StreamEraser
from services.chassis.postgres import Database
from vaccination.reservation.v1.reservation_events_pb2 import CancellationRequested

from .projector import TELL
from .rebuild import alone

# REJECTED (2), CANCELLED (5), UNSERVED (8), MISSED (9) and ADMINISTERED (10) are ends whatever the day. A cancellation
# under way (4) is none; nor is a booking that was moved (6) or called off (7) before its dose is back: the event that
# says so would bring the reservation into the view again.
IS_ACTIVE = """
SELECT EXISTS (
    SELECT FROM my_reservations r
    WHERE customer_id = $1
      AND CASE
          WHEN status = 4 THEN true
          WHEN status IN (6, 7) THEN NOT EXISTS (
              SELECT FROM timeline t
              WHERE t.reservation_id = r.reservation_id AND t.event = 'CancellationCompleted')
          ELSE status NOT IN (2, 5, 8, 9, 10) AND date >= ($2::timestamptz AT TIME ZONE time_zone)::date
      END)"""

FORGET = """
WITH gone AS (
    DELETE FROM my_reservations WHERE customer_id = $1 RETURNING reservation_id
), times AS (
    DELETE FROM timeline t USING gone WHERE t.reservation_id = gone.reservation_id
)
SELECT count(*) FROM gone"""


def subject_of(payload: bytes) -> str:
    """Whose event it is, of whatever type and version: the appointment is the first field of each event about a person.

    "" if it is about nobody, or no event.
    """
    try:
        return CancellationRequested.FromString(payload).appointment.customer_id
    except DecodeError:
        return ""


def eraser(database: Database, bus: Bus) -> Eraser:
    """MyPage's part in erasing a person."""

    async def is_active(customer_id: str) -> bool:
        async with database.connection() as connection:
            active: bool = await connection.fetchval(IS_ACTIVE, customer_id, clock.now())
        return active

    async def rows(customer_id: str) -> int | None:
        """Alone: a rebuild under way may have the person's rows in its new tables already. Raises RebuildRunning."""
        async with alone(database), database.transaction() as connection:
            if await connection.fetchval(IS_ACTIVE, customer_id, clock.now()):
                return None
            deleted: int = await connection.fetchval(FORGET, customer_id)
            await connection.execute(TELL, [customer_id])
        return deleted

    return Eraser(rows, StreamEraser(bus, subject_of), is_active)
