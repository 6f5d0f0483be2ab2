"""Customers and managers from a seeded generator, and the complete history of what they asked and were told."""

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from services.reservation.domain import NAMESPACE
from tests.e2e.conftest import Client, Status, World, delivery
from vaccination.vaccinemgmt.v1 import vaccinemgmt_service_pb2

# Whether it happened is not known: a client repeats it, which is safe.
UNKNOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}

# Seconds that the next call is given. Short ones expire while the mesh is at work, also in the middle of a commit.
PATIENCE = ContextVar("PATIENCE", default=15.0)
A_DAY = 24 * 3600


class Person(Client):
    """A client with PATIENCE."""

    def __init__(self, world: World, name: str, roles: list[str], **claims: Any) -> None:
        super().__init__(world._channel, world.token(name, roles, expires_in=A_DAY, **claims))

    async def call(self, method: Callable[..., Any], request: Message) -> Any:
        """Calls a stub's method; CANCELLED, DEADLINE_EXCEEDED when patience ends."""
        return await method(request, metadata=self.metadata, timeout=PATIENCE.get())


@dataclass
class Operation:
    """One call and its answer. `outcome` is ok, a status code's name, or None while nobody knows."""

    at: float
    customer: str
    kind: str
    key: str
    arguments: tuple[Any, ...]
    outcome: str | None = None
    answer: Any = None
    seconds: float = 0.0


@dataclass
class History:
    """Everything that was asked."""

    operations: list[Operation] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def counts(self) -> Counter[tuple[str, str]]:
        """How many of each kind ended how."""
        return Counter((o.kind, o.outcome or f"unknown, {o.answer}".partition(":")[0]) for o in self.operations)


class Driver:
    """The load."""

    def __init__(
        self,
        world: World,
        seed: int,
        customers: int,
        hospitals: list[tuple[str, date]],
        haste: float = 0.15,
        tries: int = 60,
        since_0_4: bool = True,
    ) -> None:
        self._since_0_4 = since_0_4  # whether what 0.3.0 does not know is asked for, too
        self._haste = haste  # how many first tries have hardly any time
        self._tries = tries  # of one call, until its caller gives up
        self._world, self._hospitals = world, hospitals
        self._random = random.Random(seed)
        self._people = {f"c{seed}-{n}": Person(world, f"c{seed}-{n}", ["customer"]) for n in range(customers)}
        self.history = History()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Lets everybody finish what they do."""
        self._stop.set()

    async def run(self) -> None:
        """Runs until `stop`."""
        seeds = [self._random.randrange(2**32) for _ in range(len(self._people) + len(self._hospitals))]
        people = [self._customer(name, random.Random(seed)) for name, seed in zip(self._people, seeds, strict=False)]
        managers = [
            self._manager(hospital, random.Random(seed))
            for (hospital, _), seed in zip(self._hospitals, seeds[len(people) :], strict=True)
        ]
        await asyncio.gather(*people, *managers)

    async def _customer(self, name: str, dice: random.Random) -> None:
        client = self._people[name]
        asked: list[tuple[str, str, date, str]] = []
        booked: set[str] = set()
        while not self._stop.is_set():
            what = dice.random()
            if booked and what < 0.08 and self._since_0_4:
                await self._move(dice, client, name, dice.choice(sorted(booked)), booked)
            elif booked and what < 0.45:
                reservation_id = dice.choice(sorted(booked))
                done = await self.insist(dice, name, "cancel", reservation_id, partial(client.cancel, reservation_id))
                if done.outcome is not None:
                    booked.discard(reservation_id)
            elif asked and what < 0.6:
                request_id, hospital, day, code = dice.choice(asked)  # once more, perhaps long after
                await self._create(dice, client, name, request_id, hospital, day, code, booked)
            elif what < 0.95:
                hospital, day = dice.choice(self._hospitals)
                request = (
                    str(uuid.UUID(int=dice.getrandbits(128), version=4)),
                    hospital,
                    day,
                    dice.choice(["", "", "207", "208"]),
                )
                asked.append(request)
                await self._create(dice, client, name, *request, booked)
            else:
                await self._once(name, "screen", name, client.screen)
            await asyncio.sleep(dice.expovariate(1 / 0.3))

    async def _create(
        self,
        dice: random.Random,
        client: Client,
        name: str,
        request_id: str,
        hospital: str,
        day: date,
        code: str,
        booked: set[str],
    ) -> None:
        """One request; at times several times at once, and at times its cancellation does not wait for the answer."""

        async def create(dice: random.Random) -> Operation:
            return await self.insist(
                dice,
                name,
                "create",
                request_id,
                lambda: client.create(hospital, day, request_id, code),
                hospital,
                day,
                code,
            )

        creating = [
            asyncio.create_task(create(random.Random(dice.getrandbits(32))))
            for _ in range(dice.choice((1, 1, 1, 1, 1, 1, 2, 3)))
        ]
        reservation_id = str(uuid.uuid5(NAMESPACE, f"{name}\n{request_id}"))
        if dice.random() < 0.1:
            while not all(task.done() for task in creating):
                done = await self._once(name, "cancel", reservation_id, partial(client.cancel, reservation_id))
                if done.outcome not in (None, "NOT_FOUND"):
                    break
                await asyncio.sleep(dice.random() * 0.02)
        for done in await asyncio.gather(*creating):
            if done.outcome == "ok" and done.answer.status == Status.RESERVATION_STATUS_APPROVED:
                booked.add(reservation_id)

    async def _move(self, dice: random.Random, client: Client, name: str, old: str, booked: set[str]) -> None:
        """Another place instead of the one held; at times the old booking is cancelled at the same moment."""
        request_id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        hospital, day = dice.choice(self._hospitals)
        code = dice.choice(["", "207"])
        move = partial(client.move, old, hospital, day, request_id, code)
        doing = [self.insist(dice, name, "move", request_id, move, hospital, day, code, old)]
        if dice.random() < 0.2:
            doing.append(self.insist(dice, name, "cancel", old, partial(client.cancel, old)))
        done = (await asyncio.gather(*doing))[0]
        if done.outcome == "ok" and done.answer.status == Status.RESERVATION_STATUS_APPROVED:
            booked.discard(old)
            booked.add(done.answer.reservation_id)

    async def _manager(self, hospital: str, dice: random.Random) -> None:
        client = Person(self._world, "manager", ["manager"], hospital=hospital)
        day = dict(self._hospitals)[hospital]
        while not self._stop.is_set():
            what = dice.random()
            if what < 0.25:
                code, maker = dice.choice([("207", "MOD"), ("208", "PFR")])
                lot = delivery(
                    dice.randrange(1, 30),
                    lot_number=f"L{dice.getrandbits(40):x}",
                    vaccine_code=code,
                    manufacturer=maker,
                )
                await self.insist(
                    dice,
                    hospital,
                    "register",
                    lot.lot_number,
                    partial(client.register, hospital, lot),
                    lot.quantity,
                )
            elif what < 0.4 or (what < 0.78 and not self._since_0_4):
                await self._assign(dice, client, hospital)
            elif what < 0.55:
                await self._stock(dice, client, hospital)
            elif what < 0.75 and day <= date.today() + timedelta(1):
                for _ in range(dice.randrange(1, 5)):
                    await self._counter(dice, client, hospital, day)
            elif what < 0.78:
                call_off = partial(client.call_off, hospital, day)
                await self.insist(dice, hospital, "call off", hospital, call_off)
                await asyncio.sleep(dice.random() * 3)
                await self.insist(dice, hospital, "reopen", hospital, partial(client.reopen, hospital, day))
            elif what < 0.88:
                places = dice.randrange(len(self._people) // 2 + 1)  # at times fewer than are approved
                change = partial(client.set_capacity, hospital, day, places)
                await self.insist(dice, hospital, "capacity", hospital, change, places)
            else:
                await self._once(hospital, "waiting", hospital, lambda: client.waiting(hospital))
            await asyncio.sleep(dice.expovariate(1 / 1.0))

    async def _stock(self, dice: random.Random, client: Client, hospital: str) -> None:
        """Doses are written off, a lot is corrected or delivered once more, and now and then one is recalled."""
        lots = await self._once(hospital, "lots", hospital, lambda: client.lots(hospital))
        if lots.outcome != "ok" or not lots.answer:
            return
        lot, what = dice.choice(list(lots.answer)), dice.random()
        request_id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        if what < 0.3:
            quantity = dice.randrange(1, 4)
            call: Callable[[], Awaitable[Any]] = partial(client.write_off, lot.lot_id, quantity, request_id)
            await self.insist(dice, hospital, "write off", request_id, call, lot.lot_id, quantity)
        elif what < 0.6:
            more = delivery(
                dice.randrange(1, 9),
                lot_number=lot.lot_number,
                vaccine_code=lot.vaccine_code,
                manufacturer=lot.manufacturer,
                production_date=lot.production_date,
                expiry_date=lot.expiry_date,
                delivery_id=request_id,
            )
            call = partial(client.register, hospital, more)
            await self.insist(dice, hospital, "deliver", request_id, call, lot.lot_id, more.quantity)
        elif what < 0.8:
            # On some of these days the hospital's bookings cannot use the lot any more, on others they can again.
            expiry = date.today() + timedelta(dice.choice((0, 3, 300)))
            call = partial(client.correct, lot.lot_id, request_id, expiry_date=str(expiry))
            await self.insist(dice, hospital, "correct", request_id, call, lot.lot_id, str(expiry))
        else:
            call = partial(client.recall, lot, hospital)
            await self.insist(dice, hospital, "recall", lot.lot_id, call)

    async def recall_the_fullest(self, within: float) -> list[str]:
        """In the end each hospital's lot with the most bookings is recalled; returns what is wrong."""
        wrong = []
        for hospital, _ in self._hospitals:
            client, dice = Person(self._world, "manager", ["manager"], hospital=hospital), self._random
            lots = await self.insist(dice, hospital, "lots", hospital, partial(client.lots, hospital))
            fullest = max(lots.answer, key=lambda lot: lot.reserved) if lots.answer else None
            if fullest is None or not fullest.reserved:
                continue
            deadline = time.monotonic() + within
            while True:
                recall = partial(client.recall, fullest, hospital)
                done = await self.insist(dice, hospital, "recall", fullest.lot_id, recall)
                if done.outcome == "ok" and not done.answer.bookings_to_go:
                    break
                if time.monotonic() > deadline:
                    wrong.append(f"the recall of lot {fullest.lot_id} is not done: {done.answer}")
                    break
                await asyncio.sleep(0.2)
        return wrong

    async def _counter(self, dice: random.Random, client: Client, hospital: str, day: date) -> None:
        """Somebody comes, or does not; at times while that person cancels."""
        there = await self._once(hospital, "day", hospital, lambda: client.of_day(hospital, day))
        open_ones = [v for v in there.answer if v.status in (1, 2, 5)] if there.outcome == "ok" else []
        if not open_ones:
            return
        booking, what = dice.choice(open_ones), dice.random()
        lot_id, doing = "", []
        if dice.random() < 0.3:
            lots = await self._once(hospital, "lots", hospital, lambda: client.lots(hospital))
            lot_id = dice.choice(list(lots.answer)).lot_id if lots.outcome == "ok" and lots.answer else ""
        key = booking.reservation_id
        if what < 0.2:
            doing = [self.insist(dice, hospital, "check in", key, partial(client.check_in, key))]
        elif what < 0.7:
            doing = [self.insist(dice, hospital, "administer", key, partial(client.administer, key, lot_id), lot_id)]
        else:
            doing = [self.insist(dice, hospital, "miss", key, partial(client.miss, key))]
        if dice.random() < 0.3 and booking.customer_id in self._people:
            cancel = partial(self._people[booking.customer_id].cancel, key)
            doing.append(self.insist(dice, booking.customer_id, "cancel", key, cancel))
        await asyncio.gather(*doing)

    async def _assign(self, dice: random.Random, client: Client, hospital: str) -> None:
        """The manager changes somebody's lot, at times while that person cancels."""
        lots = await self._once(hospital, "lots", hospital, lambda: client.lots(hospital))
        completed = [
            (o.customer, o.answer.reservation_id)
            for o in self.history.operations[-200:]
            if o.kind == "create" and o.outcome == "ok" and o.answer.status == 1 and o.arguments[0] == hospital
        ]
        if lots.outcome != "ok" or not lots.answer or not completed:
            return
        customer, reservation_id = dice.choice(completed)
        request = vaccinemgmt_service_pb2.AssignLotRequest(
            reservation_id=reservation_id, lot_id=dice.choice(list(lots.answer)).lot_id
        )
        doing = [
            self._once(hospital, "assign", reservation_id, lambda: client.call(client.vaccinemgmt.AssignLot, request))
        ]
        if dice.random() < 0.3:
            cancel = partial(self._people[customer].cancel, reservation_id)
            doing.append(self.insist(dice, customer, "cancel", reservation_id, cancel))
        await asyncio.gather(*doing)

    async def insist(
        self, dice: random.Random, who: str, kind: str, key: str, call: Callable[[], Awaitable[Any]], *arguments: Any
    ) -> Operation:
        """Repeats a call until its outcome is known; each try is in the history. Some are in a hurry at first."""
        for attempt in range(self._tries):
            PATIENCE.set(dice.uniform(0.002, 0.1) if attempt == 0 and dice.random() < self._haste else 15.0)
            done = await self._once(who, kind, key, call, *arguments)
            if done.outcome is not None:
                return done
            await asyncio.sleep(min(0.1 * 2**attempt, 2.0) * (0.5 + dice.random()))
        return done

    async def _once(
        self, who: str, kind: str, key: str, call: Callable[[], Awaitable[Any]], *arguments: Any
    ) -> Operation:
        operation = Operation(time.time(), who, kind, key, arguments)
        self.history.operations.append(operation)
        begin = time.perf_counter()
        try:
            operation.answer = await call()
            operation.outcome = "ok"
        except grpc.aio.AioRpcError as error:
            operation.answer = f"{error.code().name}: {error.details()}"
            operation.outcome = None if error.code() in UNKNOWN else error.code().name
            if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                self.history.problems.append(f"{kind} {key}: {operation.answer}")
        operation.seconds = time.perf_counter() - begin
        return operation


class Crowd:
    """Customers whom nobody has met: each books at a hospital with places and doses for all; some cancel."""

    def __init__(self, world: World, hospitals: list[tuple[str, date]], seed: int, tries: int) -> None:
        # Of the driver only its memory: what each was asked and told.
        self.driver = Driver(world, seed, 0, hospitals, haste=0, tries=tries)
        self.answered: dict[str, float] = {}  # when the reservation was approved, by its id
        self.hospitals = hospitals
        self._world, self._dice = world, random.Random(seed)
        self._busy: set[asyncio.Task[None]] = set()

    @classmethod
    async def of(cls, world: World, people: int, seed: int, tries: int = 60) -> "Crowd":
        """With hospitals enough that no row of a store is everybody's."""
        return cls(world, [await world.new_hospital(people, people) for _ in range(4)], seed, tries)

    async def arrive(self, rate: float, seconds: float, cancelling: float = 0.5) -> None:
        """New customers come at a rate, whatever becomes of the earlier ones; then all have been answered."""
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < seconds:
            self.come(cancelling)
            await asyncio.sleep(self._dice.expovariate(rate) if passed else 0)
        await self.gone()

    def come(self, cancelling: float) -> None:
        """One customer, who cancels with this probability."""
        task = asyncio.create_task(self._visit(self._dice.random() < cancelling, self._dice.getrandbits(64)))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    @property
    def busy(self) -> int:
        """Customers who wait for an answer."""
        return len(self._busy)

    async def gone(self, but: int = 0) -> None:
        """Waits until at most `but` customers wait for an answer."""
        while len(self._busy) > but:
            await asyncio.wait(self._busy, return_when=asyncio.FIRST_COMPLETED)

    async def _visit(self, cancels: bool, seed: int) -> None:
        dice = random.Random(seed)
        name, request_id = f"p{seed:x}", str(uuid.UUID(int=dice.getrandbits(128), version=4))
        client, (hospital, day) = Person(self._world, name, ["customer"]), dice.choice(self.hospitals)
        insist = self.driver.insist
        done = await insist(
            dice, name, "create", request_id, lambda: client.create(hospital, day, request_id), hospital, day, ""
        )
        if done.outcome != "ok":
            return
        reservation_id = done.answer.reservation_id
        self.answered[reservation_id] = done.at + done.seconds
        if cancels:
            await insist(dice, name, "cancel", reservation_id, lambda: client.cancel(reservation_id))
