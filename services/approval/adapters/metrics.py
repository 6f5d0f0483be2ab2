"""How full the next days are, over all hospitals: a gauge for each hospital and day would be too many."""

from collections.abc import Callable
from datetime import datetime, timedelta

from prometheus_client import Gauge

from services.chassis.gauges import Probe
from services.chassis.postgres import Database

HORIZONS = (7, 30)  # days from today on

places = Gauge("approval_places", "Places of the next days, over all hospitals.", ["horizon", "state"])
days = Gauge("approval_days", "Days of hospitals among the next, by whether a place is left.", ["horizon", "state"])

# One pass over the table: 365,000 rows take some 0.1 s.
OUTLOOK = """
SELECT date, sum(greatest(0, capacity - approved)) AS free, sum(approved) AS taken,
       count(*) FILTER (WHERE capacity > approved) AS open,
       count(*) FILTER (WHERE capacity > 0 AND capacity <= approved) AS full
FROM days WHERE date >= $1 AND date < $2 GROUP BY date"""


def outlook(database: Database, now: Callable[[], datetime]) -> Probe:
    """Sets both gauges. Days are counted from the present day in UTC, whatever the hospital's time zone."""

    async def ask() -> None:
        today = now().date()
        async with database.connection() as connection:
            rows = await connection.fetch(OUTLOOK, today, today + timedelta(days=max(HORIZONS)))
        for horizon in HORIZONS:
            near = [row for row in rows if row["date"] < today + timedelta(days=horizon)]
            for state in ("free", "taken"):
                places.labels(f"{horizon}d", state).set(sum(row[state] for row in near))
            for state in ("open", "full"):
                days.labels(f"{horizon}d", state).set(sum(row[state] for row in near))

    return Probe([places, days], ask)
