"""Stock and waiting list, over all hospitals: a gauge for each hospital or lot would be too many."""

from collections.abc import Callable
from datetime import datetime, timedelta

from prometheus_client import Gauge

from services.chassis.gauges import Probe
from services.chassis.mongo import Mongo

from ..domain import Status

SOON = 2  # days until the appointment; a delivery for it has to be on its way by then
WITHIN = (7, 30)  # days until a lot expires

waiting = Gauge("vaccinemgmt_waiting", "Vaccinations that wait for a dose, by how soon they are due.", ["due"])
hospitals = Gauge("vaccinemgmt_waiting_hospitals", "Hospitals where somebody of these waits.", ["due"])
doses = Gauge("vaccinemgmt_doses_free", "Doses that nobody has yet, by when they expire.", ["expires"])
lots = Gauge("vaccinemgmt_lots", "Lots with a free dose, by when they expire.", ["expires"])


def stock(mongo: Mongo, now: Callable[[], datetime]) -> Probe:
    """Sets all four gauges. Days are those of UTC, whatever the hospital's time zone."""

    async def ask() -> None:
        today = now().date()
        ahead = {days: (today + timedelta(days=days)).isoformat() for days in (SOON, *WITHIN)}
        who = {"status": Status.WAITING.value, "date": {"$gte": today.isoformat()}}
        due = {"hospital": "$hospital_id", "due": {"$cond": [{"$lt": ["$date", ahead[SOON]]}, "soon", "later"]}}
        branches = [{"case": {"$lt": ["$expiry_date", today.isoformat()]}, "then": "expired"}]
        branches += [{"case": {"$lt": ["$expiry_date", ahead[days]]}, "then": f"{days}d"} for days in WITHIN]
        when = {"$switch": {"branches": branches, "default": "later"}}
        shelf = {"_id": when, "doses": {"$sum": "$free"}, "lots": {"$sum": 1}}
        async with mongo.boundary():
            queue = mongo.database["vaccinations"].aggregate(
                [{"$match": who}, {"$group": {"_id": due, "n": {"$sum": 1}}}]
            )
            people = [(row["_id"], row["n"]) async for row in queue]
            stocked = mongo.database["lots"].aggregate([{"$match": {"free": {"$gt": 0}}}, {"$group": shelf}])
            found = {row["_id"]: row async for row in stocked}
        for label in ("soon", "later"):
            of_label = [n for of, n in people if of["due"] == label]
            waiting.labels(label).set(sum(of_label))
            hospitals.labels(label).set(len(of_label))
        for label in ("expired", *(f"{days}d" for days in WITHIN), "later"):
            row = found.get(label, {"doses": 0, "lots": 0})
            doses.labels(label).set(row["doses"])
            lots.labels(label).set(row["lots"])

    return Probe([waiting, hospitals, doses, lots], ask)
