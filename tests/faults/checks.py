"""What must hold, whatever happened: the accounts of the four services and what people were told, compared."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import pymongo

from services.vaccinemgmt.domain import Balance, MovementKind, movement_id
from tests.e2e.conftest import World

from . import variant
from .drive import History

APPROVED, REJECTED, COMPLETED, CANCEL_REQUESTED, CANCELLED, MOVED, CALLED_OFF, UNSERVED, MISSED, GIVEN = range(1, 11)
WAITING, HAS_DOSE, GIVEN_UP, WAS_GIVEN, CAME_NOT = range(1, 6)
INTERNAL = "internal error"
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
    movements: list[Row] = field(default_factory=list)
    screen: dict[str, Row] = field(default_factory=dict)
    outboxes: int = 0
    dead_letters: int = 0
    set_aside: int = 0  # parked, or to be tried again
    beside_0_3: bool = False  # whether a version took part that keeps no ledgers and does not lower `over`
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
        movements = list(database["movements"].find())
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
        movements=movements,
        screen=await keyed("mypage", "my_reservations", "reservation_id"),
        outboxes=outboxes,
        dead_letters=await asyncio.to_thread(stores.nats.count, "DEAD_LETTERS", "DEAD_LETTERS.*"),
        set_aside=await asyncio.to_thread(stores.nats.count, "DEAD_LETTERS", "DEAD_LETTERS.*.*.>"),
        closed=await asyncio.to_thread(stores.nats.keys, "VACCINATION", variant.EVENT),
    )


Check = Callable[[Accounts, History], list[str]]


def no_overbooking(books: Accounts, _: History) -> list[str]:
    """approved is exactly what is granted and not released, and above capacity only what was there when it was lowered.

    Nobody holds a place on a day that is called off.
    """
    held = Counter(
        (d["hospital_id"], d["date"]) for d in books.decisions.values() if d["denial"] is None and not d["released_at"]
    )
    wrong = []
    for day in books.days:
        too_many = max(0, day["approved"] - day["capacity"])
        if day["approved"] < 0 or day["over"] < too_many or (day["over"] > too_many and not books.beside_0_3):
            wrong.append(f"{day} is overbooked")
        if day["called_off"] is not None and day["approved"]:
            wrong.append(f"{day} is called off, and somebody holds a place")
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
        over = variant.CLOSED if key in books.closed else None
        # Reservation, vaccination, whether the place is free again.
        expected: set[tuple[int, int | None, bool]]
        if decision["denial"] is not None:
            expected = {(REJECTED, None, False)}
        else:
            ends = {over} if over else {CANCELLED, MOVED, CALLED_OFF}
            expected = {(APPROVED, WAITING, False), (COMPLETED, HAS_DOSE, False), (MISSED, CAME_NOT, True)}
            # Whose day was called off, or who moved, while the dose was given, has it, and the place is free.
            expected |= {(GIVEN, WAS_GIVEN, False), (GIVEN, WAS_GIVEN, True)}
            expected |= {(end, GIVEN_UP, True) for end in ends}
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
    """received = free + reserved + administered + written off; so say the vaccinations, and so say the movements."""
    held = Counter((v["dose"]["lot_id"], v["status"]) for v in books.vaccinations.values() if v["dose"])
    ledgers: dict[str, Balance] = defaultdict(Balance)
    for movement in books.movements:
        kind = MovementKind(movement["kind"])
        ledgers[movement["lot_id"]].add(kind, movement["quantity"], movement["reserved"])
    wrong = []
    for key, lot in books.lots.items():
        administered, written_off = lot.get("administered", 0), lot.get("written_off", 0)
        reserved = lot["used"] - administered - written_off
        balance = Balance(lot["received"], lot["free"], reserved, administered, written_off)
        if lot["received"] != lot["free"] + lot["used"] or min(asdict(balance).values()) < 0:
            wrong.append(f"lot {lot} does not add up")
        if (reserved, administered) != (held[key, HAS_DOSE], held[key, WAS_GIVEN]):
            wrong.append(
                f"lot {key}: {balance}; vaccinations: {held[key, HAS_DOSE]} reserved, {held[key, WAS_GIVEN]} given"
            )
        entered = Balance(**lot["entered"]) if lot.get("entered") else Balance()
        if entered != ledgers[key] or (balance != entered and not books.beside_0_3):
            wrong.append(f"lot {key}: {balance}, entered {entered}, its movements add up to {ledgers[key]}")
        if lot.get("withdrawn") and (lot["free"] or reserved):
            wrong.append(f"lot {key} is withdrawn and has {lot['free']} free, {reserved} reserved")
    for key, vaccination in books.vaccinations.items():
        dose = vaccination["dose"]
        if (vaccination["status"] in (HAS_DOSE, WAS_GIVEN)) != (dose is not None):
            wrong.append(f"vaccination {key}: dose and status differ")
        if vaccination["status"] == HAS_DOSE and dose:
            lot = books.lots[dose["lot_id"]]
            if not lot["production_date"] <= vaccination["date"] <= lot["expiry_date"]:
                wrong.append(f"vaccination {key}: its lot may not be used on its day")
            if dose["expiry_date"] != lot["expiry_date"]:
                wrong.append(f"vaccination {key}: its dose's shelf life is not its lot's")
    return wrong


def nobody_waits_beside_a_dose(books: Accounts, _: History) -> list[str]:
    """Who waits does so because no free dose suits."""
    free = [lot for lot in books.lots.values() if lot["free"] and not lot.get("withdrawn")]
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


# What may have become of a booking that its customer cancelled: something else was faster.
CANCELLED_OR_FASTER = {CANCELLED, variant.CLOSED, MOVED, CALLED_OFF, MISSED, GIVEN}


def answers_were_kept(books: Accounts, history: History) -> list[str]:
    """Whoever was told yes has it, whoever was told no has not; a repeat was told the same; a cancellation stayed."""
    wrong = []
    told: dict[str, Any] = {}
    asked_to_cancel = {o.key for o in history.operations if o.kind == "cancel"}
    asked_to_move = {o.arguments[3] for o in history.operations if o.kind == "move"}
    called_off = {o.key for o in history.operations if o.kind == "call off"}
    for operation in history.operations:
        if operation.outcome != "ok":
            continue
        answer = operation.answer
        if operation.kind in ("create", "move"):
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
            elif operation.kind == "move" and not decision["denial"]:
                old = books.decisions[operation.arguments[3]]
                if old["released_at"] is None:
                    wrong.append(f"{operation.arguments[3]} was moved and holds its place")
        if operation.kind == "cancel":
            reservation = books.reservations.get(operation.key)
            if reservation is None or reservation["status"] not in CANCELLED_OR_FASTER:
                wrong.append(f"{operation.key} was cancelled and is {reservation and reservation['status']}")
        if operation.kind == "administer":
            vaccination = books.vaccinations[operation.key]
            dose = vaccination["dose"] or {}
            if (vaccination["status"], dose.get("lot_id")) != (WAS_GIVEN, answer.dose.lot_id):
                wrong.append(f"{operation.key} was given a dose of {answer.dose.lot_id} and is {vaccination}")
        if operation.kind == "miss" and books.vaccinations[operation.key]["status"] not in (CAME_NOT, WAS_GIVEN):
            wrong.append(f"{operation.key} was missed and is {books.vaccinations[operation.key]['status']}")
    for key, reservation in books.reservations.items():
        if reservation["status"] == MOVED and key not in asked_to_move:
            wrong.append(f"{key} is moved, nobody asked")
        if reservation["status"] == CALLED_OFF and reservation["hospital_id"] not in called_off:
            wrong.append(f"{key} is called off, nobody asked")
    wrong += [
        f"{k} is cancelled, nobody asked"
        for k, r in books.reservations.items()
        if r["status"] == CANCELLED and k not in asked_to_cancel
    ]
    more, entries = Counter[str](), {movement["_id"] for movement in books.movements}
    for movement in books.movements:
        # What was delivered later has an id. A delivery with exactly the quantity of a lot that came once, under no id,
        # is taken to be that first one: it adds nothing, and a second entry says so.
        lot_id, delivery_id = movement["lot_id"], movement["delivery_id"]
        if delivery_id and movement_id(lot_id, f"again\n{delivery_id}") not in entries:
            more[lot_id] += movement["quantity"]
    registered = {o.key: o for o in history.operations if o.kind == "register" and o.outcome == "ok"}
    there = {lot["lot_number"]: lot for lot in books.lots.values()}
    for key, operation in registered.items():
        if key not in there:
            wrong.append(f"lot {key} was registered and is missing")
        elif (delivered := operation.arguments[0] + more[there[key]["_id"]]) != there[key]["received"]:
            wrong.append(f"lot {key} of {delivered} became {there[key]['received']}")
    return wrong


def capacity_is_as_told(books: Accounts, history: History) -> list[str]:
    """A day has the places its manager set last; or, when a try's fate is unknown, what that try asked for."""
    wrong = []
    for day in books.days:
        tries = [o for o in history.operations if o.kind == "capacity" and o.key == day["hospital_id"]]
        told = [o.arguments[0] for o in tries if o.outcome == "ok"][-1:]
        may_be = {*told, *(o.arguments[0] for o in tries if o.outcome is None)}
        # A day that is called off has its places again when it is reopened.
        places = day["capacity"] if day["called_off"] is None else day["called_off_capacity"]
        if told and places not in may_be:
            wrong.append(f"{day} has not one of the capacities {may_be}")
    return wrong


def nothing_is_left(books: Accounts, history: History) -> list[str]:
    """Outboxes and dead letters are empty, and nobody saw an internal error."""
    wrong = [f"{books.outboxes} outbox rows are left"] if books.outboxes else []
    wrong += [f"{books.dead_letters} dead letters"] if books.dead_letters else []
    wrong += [f"{books.set_aside} events are set aside and were not taken up again"] if books.set_aside else []
    return wrong + [f"{INTERNAL}: {problem}" for problem in history.problems]


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
