"""What must hold, whatever happened: the accounts of the four services and what people were told, compared."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pymongo

from tests.e2e.conftest import World

from . import variant
from .drive import History

APPROVED, REJECTED, COMPLETED, CANCEL_REQUESTED, CANCELLED = range(1, 6)
WAITING, HAS_DOSE, GIVEN_UP = 1, 2, 3
Row = dict[str, Any]


@dataclass
class Accounts:
    """The stores' contents, each read in one snapshot."""

    days: list[Row] = field(default_factory=list)
    decisions: dict[str, Row] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)
    reservations: dict[str, Row] = field(default_factory=dict)
    vaccinations: dict[str, Row] = field(default_factory=dict)
    lots: dict[str, Row] = field(default_factory=dict)
    screen: dict[str, Row] = field(default_factory=dict)
    outboxes: int = 0
    dead_letters: int = 0
    set_aside: int = 0  # parked, or to be tried again
    closed: set[str] = field(default_factory=set)  # reservations that the next version closed


async def read(world: World) -> Accounts:
    """All of it, past every line of the services' code."""

    async def keyed(service: str, table: str, key: str) -> dict[str, Row]:
        return {str(row[key]): dict(row) for row in await world.query(service, f"SELECT * FROM {table}")}

    stores = world.mesh.stores
    with pymongo.MongoClient[Row](stores.mongo_url) as client:
        database = client["vaccinemgmt"]
        vaccinations = {row["_id"]: row for row in database["vaccinations"].find()}
        lots = {row["_id"]: row for row in database["lots"].find()}
        outboxes = database["outbox"].count_documents({})
    for service in ("approval", "reservation"):
        outboxes += (await world.query(service, "SELECT count(*) AS n FROM outbox"))[0]["n"]
    active = await world.query("approval", "SELECT customer_id, reservation_id FROM active_bookings")
    return Accounts(
        days=[dict(row) for row in await world.query("approval", "SELECT * FROM days")],
        decisions=await keyed("approval", "decisions", "reservation_id"),
        active={row["customer_id"]: str(row["reservation_id"]) for row in active},
        reservations=await keyed("reservation", "reservations", "reservation_id"),
        vaccinations=vaccinations,
        lots=lots,
        screen=await keyed("mypage", "my_reservations", "reservation_id"),
        outboxes=outboxes,
        dead_letters=await asyncio.to_thread(stores.nats.count, "DEAD_LETTERS", "DEAD_LETTERS.*"),
        set_aside=await asyncio.to_thread(stores.nats.count, "DEAD_LETTERS", "DEAD_LETTERS.*.*.>"),
        closed=await asyncio.to_thread(stores.nats.keys, "VACCINATION", variant.EVENT),
    )


Check = Callable[[Accounts, History], list[str]]


def no_overbooking(books: Accounts, _: History) -> list[str]:
    """approved <= capacity, and approved is exactly what is granted and not released."""
    held = Counter(
        (d["hospital_id"], d["date"]) for d in books.decisions.values() if d["denial"] is None and not d["released_at"]
    )
    wrong = []
    for day in books.days:
        if not 0 <= day["approved"] <= day["capacity"]:
            wrong.append(f"{day} is overbooked")
        if day["approved"] != held[day["hospital_id"], day["date"]]:
            wrong.append(f"{day} but {held[day['hospital_id'], day['date']]} granted decisions hold a place")
    return wrong


def _holds_a_place(decision: Row) -> bool:
    return decision["denial"] is None and not decision["released_at"]


def one_active_booking(books: Accounts, _: History) -> list[str]:
    """Nobody holds two places, and the holder's list is what the decisions say."""
    holds = defaultdict(list)
    for key, decision in books.decisions.items():
        if _holds_a_place(decision):
            holds[decision["customer_id"]].append(key)
    wrong = [f"{who} holds {keys}" for who, keys in holds.items() if len(keys) > 1]
    wrong += [
        f"{who}: active {books.active.get(who)}, holds {keys}"
        for who, keys in holds.items()
        if [books.active.get(who)] != keys
    ]
    return wrong + [f"{who}: active {key} but holds nothing" for who, key in books.active.items() if who not in holds]


def one_truth_everywhere(books: Accounts, _: History) -> list[str]:
    """Each decision is a reservation, a vaccination if granted, and a line on the screen, all in one final state."""
    wrong = []
    if books.reservations.keys() != books.decisions.keys():
        wrong.append(
            f"decisions and reservations differ: {sorted(books.reservations.keys() ^ books.decisions.keys())[:5]}"
        )
    granted = {key for key, decision in books.decisions.items() if decision["denial"] is None}
    if books.vaccinations.keys() != granted:
        wrong.append(f"granted and vaccinations differ: {sorted(books.vaccinations.keys() ^ granted)[:5]}")
    if books.screen.keys() != books.decisions.keys():
        wrong.append(f"decisions and screen differ: {sorted(books.screen.keys() ^ books.decisions.keys())[:5]}")
    for key, decision in books.decisions.items():
        reservation, vaccination, seen = books.reservations.get(key), books.vaccinations.get(key), books.screen.get(key)
        if not reservation or not seen:
            continue
        expected: set[tuple[int, int | None, bool]]
        if decision["denial"] is not None:
            expected = {(REJECTED, None, False)}
        else:
            over = variant.CLOSED if key in books.closed else CANCELLED
            expected = {(APPROVED, WAITING, False), (COMPLETED, HAS_DOSE, False), (over, GIVEN_UP, True)}
        state = (
            reservation["status"],
            vaccination["status"] if vaccination else None,
            decision["released_at"] is not None,
        )
        if state not in expected:
            wrong.append(f"{key}: reservation, vaccination, released are {state}; denial {decision['denial']}")
        if seen["status"] != reservation["status"]:
            wrong.append(f"{key}: the screen shows {seen['status']}, the reservation is {reservation['status']}")
        dose = (vaccination or {}).get("dose")
        shown = (seen["lot_number"], seen["quantity"])
        if shown != ((dose["lot_number"], 1) if dose else ("", 0)):
            wrong.append(f"{key}: the screen shows {shown}, the dose is {dose}")
    return wrong


def doses_add_up(books: Accounts, _: History) -> list[str]:
    """received = free + used, and used is exactly the doses that completed vaccinations hold."""
    held = Counter(v["dose"]["lot_id"] for v in books.vaccinations.values() if v["dose"])
    wrong = []
    for key, lot in books.lots.items():
        if lot["received"] != lot["free"] + lot["used"] or min(lot["free"], lot["used"]) < 0:
            wrong.append(f"lot {lot} does not add up")
        if lot["used"] != held[key]:
            wrong.append(f"lot {key} has {lot['used']} used, {held[key]} vaccinations hold one")
    return wrong + [
        f"vaccination {k}: dose and status differ"
        for k, v in books.vaccinations.items()
        if (v["status"] == HAS_DOSE) != (v["dose"] is not None)
    ]


def nobody_waits_beside_a_dose(books: Accounts, _: History) -> list[str]:
    """Who waits does so because no free dose suits."""
    free = [lot for lot in books.lots.values() if lot["free"]]
    wrong = []
    for key, vaccination in books.vaccinations.items():
        suits = [
            lot["lot_number"]
            for lot in free
            if vaccination["status"] == WAITING
            and lot["hospital_id"] == vaccination["hospital_id"]
            and vaccination["vaccine_code"] in ("", lot["vaccine_code"])
            and lot["production_date"] <= vaccination["date"] <= lot["expiry_date"]
            and vaccination["date"] >= str(date.today())
        ]
        if suits:
            wrong.append(f"{key} waits beside {suits}")
    return wrong


def answers_were_kept(books: Accounts, history: History) -> list[str]:
    """Whoever was told yes has it, whoever was told no has not; a repeat was told the same; a cancellation stayed."""
    wrong = []
    told: dict[str, Any] = {}
    asked_to_cancel = {o.key for o in history.operations if o.kind == "cancel"}
    for operation in history.operations:
        if operation.kind == "create" and operation.outcome == "ok":
            answer = operation.answer
            before = told.setdefault(operation.key, answer)
            if before != answer:
                wrong.append(f"request {operation.key} was answered {before} and {answer}")
            decision = books.decisions.get(answer.reservation_id)
            if decision is None:
                wrong.append(f"{answer.reservation_id} was answered and is not decided")
            elif (decision["denial"] or 0) != answer.rejection_reason:
                wrong.append(
                    f"{answer.reservation_id} was answered {answer.rejection_reason}, decided {decision['denial']}"
                )
        if operation.kind == "cancel" and operation.outcome == "ok":
            reservation = books.reservations.get(operation.key)
            if reservation is None or reservation["status"] not in (CANCELLED, variant.CLOSED):
                wrong.append(f"{operation.key} was cancelled and is {reservation and reservation['status']}")
    wrong += [
        f"{k} is cancelled, nobody asked"
        for k, r in books.reservations.items()
        if r["status"] in (CANCELLED, variant.CLOSED) and k not in asked_to_cancel
    ]
    registered = {o.key: o for o in history.operations if o.kind == "register" and o.outcome == "ok"}
    there = {lot["lot_number"]: lot for lot in books.lots.values()}
    for key, operation in registered.items():
        if key not in there:
            wrong.append(f"lot {key} was registered and is missing")
        elif there[key]["received"] != operation.arguments[0]:
            wrong.append(f"lot {key} of {operation.arguments[0]} became {there[key]['received']}")
    return wrong


def capacity_is_as_told(books: Accounts, history: History) -> list[str]:
    """A day has the places its manager set last; or, when a try's fate is unknown, what that try asked for."""
    wrong = []
    for day in books.days:
        tries = [o for o in history.operations if o.kind == "capacity" and o.key == day["hospital_id"]]
        told = [o.arguments[0] for o in tries if o.outcome == "ok"][-1:]
        may_be = {*told, *(o.arguments[0] for o in tries if o.outcome is None)}
        if told and day["capacity"] not in may_be:
            wrong.append(f"{day} has not one of the capacities {may_be}")
    return wrong


def nothing_is_left(books: Accounts, history: History) -> list[str]:
    """Outboxes and dead letters are empty, and nobody saw an internal error."""
    wrong = [f"{books.outboxes} outbox rows are left"] if books.outboxes else []
    wrong += [f"{books.dead_letters} dead letters"] if books.dead_letters else []
    wrong += [f"{books.set_aside} events are set aside and were not taken up again"] if books.set_aside else []
    return wrong + [f"internal error: {problem}" for problem in history.problems]


ALL: tuple[Check, ...] = (
    no_overbooking,
    one_active_booking,
    one_truth_everywhere,
    doses_add_up,
    nobody_waits_beside_a_dose,
    answers_were_kept,
    capacity_is_as_told,
    nothing_is_left,
)
