"""The record of accesses to personal data, in MongoDB."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from services.chassis.caller import UNBOUND_ROLE, caller
from services.chassis.mongo import Mongo
from services.chassis.retention import Rule

from ..application import Access, Accesses

# The call whose `about` is a customer's id.
FIND_BOOKINGS = "FindBookings"
ACCESS = [field.name for field in fields(Access) if field.name != "access_id"]
NEWEST_FIRST = [("at", -1), ("_id", -1)]
VALIDATOR: dict[str, Any] = {
    "$expr": {
        "$and": [
            {"$eq": [{"$type": "$at"}, "date"]},
            *({"$gt": [f"${name}", ""]} for name in ACCESS if name != "at"),
        ]
    }
}
INDEXES: list[tuple[list[tuple[str, int]], dict[str, Any]]] = [
    ([("hospital_id", 1), *NEWEST_FIRST], {}),
    ([("at", 1)], {}),
    ([("about", 1)], {"partialFilterExpression": {"call": FIND_BOOKINGS}}),
]


def rule(mongo: Mongo, over_before: Callable[[], datetime]) -> Rule:
    """Forgets accesses of before that moment."""
    return Rule("accesses", lambda limit: mongo.delete("accesses", {"at": {"$lt": over_before()}}, limit))


class MongoAccesses:
    """See application.AccessRecord."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo, self._accesses = mongo, mongo.database["accesses"]

    async def add(self, access: Access) -> None:
        """See AccessRecord."""
        about = {name: getattr(access, name) for name in ACCESS}
        async with self._mongo.boundary():
            await self._accesses.insert_one({"_id": access.access_id, **about})

    async def page(self, hospital_id: str, after: tuple[datetime, str] | None, limit: int) -> Sequence[Access]:
        """See AccessRecord."""
        behind = {"$or": [{"at": {"$lt": after[0]}}, {"at": after[0], "_id": {"$lt": after[1]}}]} if after else {}
        async with self._mongo.boundary():
            rows = self._accesses.find({"hospital_id": hospital_id, **behind}).sort(NEWEST_FIRST).limit(limit)
            return [Access(row["_id"], **{name: row[name] for name in ACCESS}) async for row in rows]

    async def rename(self, customer_id: str, pseudonym: str) -> None:
        """See AccessRecord."""
        query = {"about": customer_id, "call": FIND_BOOKINGS}
        async with self._mongo.boundary():
            await self._accesses.update_many(query, {"$set": {"about": pseudonym}})


def by_whom() -> tuple[str, str]:
    """The subject of the caller's token, and with which role it looks."""
    who = caller()
    return who.subject, UNBOUND_ROLE if UNBOUND_ROLE in who.roles else "manager"


async def record(accesses: Accesses, hospital_id: str, call: str, about: str) -> None:
    """Records what the caller of this RPC is about to be shown; raises StoreUnavailable, and then it must not be."""
    await accesses.record(*by_whom(), hospital_id, call, about)
