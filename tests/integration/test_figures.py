"""Services show the figures of capacity and stock that real stores have."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import REGISTRY

from services.approval.adapters.metrics import outlook
from services.vaccinemgmt.adapters.metrics import stock

from .conftest import OpenDatabase, OpenMongo

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def shown(name: str, **labels: str) -> float | None:
    """A gauge's value."""
    return REGISTRY.get_sample_value(name, labels)


def day(ahead: int) -> str:
    """The day that is so many days after NOW's."""
    return (NOW.date() + timedelta(days=ahead)).isoformat()


async def test_places_are_counted_by_horizon_over_all_hospitals(open_database: OpenDatabase) -> None:
    database = await open_database("approval")
    rows = [("a", -1, 9, 9), ("a", 0, 10, 10), ("b", 0, 10, 4), ("a", 6, 5, 0), ("a", 7, 20, 20), ("a", 29, 1, 0),
            ("a", 30, 99, 0), ("b", 3, 0, 0)]  # fmt: skip
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO hospitals VALUES ('a', 'A', 'Asia/Seoul'), ('b', 'B', 'Asia/Seoul')")
        for hospital, ahead, capacity, approved in rows:
            date = NOW.date() + timedelta(days=ahead)
            await connection.execute("INSERT INTO days VALUES ($1, $2, $3, $4)", hospital, date, capacity, approved)
    await outlook(database, lambda: NOW).take()
    for horizon, free, taken, open_days, full in (("7d", 11, 14, 2, 1), ("30d", 12, 34, 3, 2)):
        assert shown("approval_places", horizon=horizon, state="free") == free
        assert shown("approval_places", horizon=horizon, state="taken") == taken
        assert shown("approval_days", horizon=horizon, state="open") == open_days
        assert shown("approval_days", horizon=horizon, state="full") == full


async def test_stock_is_counted_by_expiry_and_the_queue_by_how_soon_it_is_due(open_mongo: OpenMongo) -> None:
    mongo = await open_mongo()

    def lot(name: str, free: int, expires: int) -> dict[str, Any]:
        dates = {"production_date": day(-90), "expiry_date": day(expires)}
        return {"_id": name, "hospital_id": "a", "free": free, "used": 1, "received": free + 1, **dates}

    def vaccination(name: str, hospital: str, ahead: int, status: int = 1) -> dict[str, Any]:
        dose = {"lot_number": "x"} if status == 2 else None
        fields = {"status": status, "dose": dose, "quantity": 1 if dose else 0, "date": day(ahead)}
        return {"_id": name, "hospital_id": hospital, **fields}

    await mongo.database["lots"].insert_many(
        [lot("1", 5, -1), lot("2", 7, 0), lot("3", 1, 6), lot("4", 3, 7), lot("5", 100, 30), lot("6", 0, 3)]
    )
    await mongo.database["vaccinations"].insert_many(
        [
            vaccination("1", "a", 0), vaccination("2", "a", 1), vaccination("3", "a", 2), vaccination("4", "b", 9),
            vaccination("5", "b", -1), vaccination("6", "c", 0, status=2), vaccination("7", "c", 0, status=3),
        ]
    )  # fmt: skip
    await stock(mongo, lambda: NOW).take()
    for expires, doses, lots in (("expired", 5, 1), ("7d", 8, 2), ("30d", 3, 1), ("later", 100, 1)):
        assert shown("vaccinemgmt_doses_free", expires=expires) == doses
        assert shown("vaccinemgmt_lots", expires=expires) == lots
    for due, people, hospitals in (("soon", 2, 1), ("later", 2, 2)):
        assert shown("vaccinemgmt_waiting", due=due) == people
        assert shown("vaccinemgmt_waiting_hospitals", due=due) == hospitals
