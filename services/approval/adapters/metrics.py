"""How full the next days are, over all hospitals: a gauge for each hospital and day would be too many."""

from collections.abc import Callable
from datetime import datetime

from prometheus_client import Gauge

from services.chassis.gauges import Look
from services.chassis.postgres import Database

HORIZONS = (7, 30)  # days from today on

places = Gauge("approval_places", "Places of the next days, over all hospitals.", ["horizon", "state"])
days = Gauge("approval_days", "Days of hospitals among the next, by whether a place is left.", ["horizon", "state"])

OUTLOOK = """
SELECT h.horizon, coalesce(sum(d.capacity - d.approved), 0) AS free, coalesce(sum(d.approved), 0) AS taken,
       count(*) FILTER (WHERE d.capacity > d.approved) AS open,
       count(*) FILTER (WHERE d.capacity > 0 AND d.capacity = d.approved) AS full
FROM unnest($1::int[]) AS h (horizon)
LEFT JOIN days AS d ON d.date >= $2::date AND d.date < $2::date + h.horizon
GROUP BY h.horizon"""


def outlook(database: Database, now: Callable[[], datetime]) -> Look:
    """Sets both; days are counted from UTC's day on, wherever a hospital is."""

    async def ask() -> None:
        async with database.connection() as connection:
            rows = await connection.fetch(OUTLOOK, list(HORIZONS), now().date())
        for row in rows:
            horizon = f"{row['horizon']}d"
            for state in ("free", "taken"):
                places.labels(horizon, state).set(row[state])
            for state in ("open", "full"):
                days.labels(horizon, state).set(row[state])

    return Look([places, days], ask)
