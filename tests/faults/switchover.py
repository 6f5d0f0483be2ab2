"""Switchovers under load: a store's server stops taking writes, and a while later it, or another one, takes them again.

`python -m tests.faults study switchover` prints what customers saw of each case, and how long it took.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import asyncpg
import grpc.aio
from nats.js.errors import NotFoundError

from mesh.machine.home import STORE_OF
from mesh.machine.processes import MeshError
from services.chassis.events import STREAM
from services.chassis.events.stream import SET_ASIDE as DEAD_LETTERS
from tests.e2e.conftest import Status, World

from .checks import INTERNAL
from .drive import PATIENCE, Crowd, Person

RATE = 10.0  # bookings a second
READ_ONLY = 10.0  # seconds
SERVED_WITHIN = 10.0  # seconds from the store's return
# Seconds after which nobody waits any longer: what is not served by then never is.
GIVEN_UP = 60.0


async def read_only(service: str, world: World) -> None:
    """The service's database refuses writes for a while, and whoever was connected has to connect anew."""
    admin = await asyncpg.connect(world.mesh.stores.postgres_url)
    try:
        await admin.execute(f"ALTER DATABASE {service} SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", service)
        await asyncio.sleep(READ_ONLY)
        await admin.execute(f"ALTER DATABASE {service} RESET default_transaction_read_only")
    finally:
        await admin.close()


async def promotion(world: World) -> None:
    """Postgres' primary dies, its standby is promoted."""
    await asyncio.to_thread(world.mesh.promote_postgres)


async def mongo_primary(world: World) -> None:
    """MongoDB's primary dies, the other two elect a new one."""
    await asyncio.to_thread(world.mesh.kill_mongo_primary)
    await _chosen(world.mesh.stores.mongo.primary)


async def nats_leader(world: World) -> None:
    """The NATS server that leads the events' stream dies, the other two elect a new leader."""
    await asyncio.to_thread(world.mesh.kill_nats_leader, STREAM)
    await _chosen(partial(world.mesh.stores.nats.leader, STREAM))


async def _chosen(who: Callable[[], str]) -> None:
    async with asyncio.timeout(GIVEN_UP):
        while True:
            with suppress(MeshError):
                await asyncio.to_thread(who)
                return


Case = Callable[[World], Awaitable[None]]
"""Makes it happen; returns when the store takes writes again."""

# One server for each store. No other takes over, so sessions that refuse writes look like any other to who opens them.
REFUSALS: dict[str, Case] = {
    f"{service}'s database read-only": partial(read_only, service)
    for service, store in STORE_OF.items()
    if store == "postgres"
}
# Replicated stores.
FAILOVERS: dict[str, Case] = {
    "Postgres promoted": promotion,
    "MongoDB's primary killed": mongo_primary,
    "NATS' leader killed": nats_leader,
}


@dataclass
class Seen:
    """What a case did to those who booked. Seconds; None: not within GIVEN_UP."""

    away: float = 0.0
    """From the fault to the store's return."""
    booked: float | None = None
    """From the store's return until somebody new had an answer."""
    completed: float | None = None
    """From the store's return until that booking was completed on the customer's screen."""
    answers: Counter[str] = field(default_factory=Counter)
    """Of all calls, by status code."""
    internal: list[str] = field(default_factory=list)
    """What was told as a bug, which a store that is away is not."""
    dead_letters: int = 0

    def violations(self) -> list[str]:
        """What must not be, however slow the machine."""
        wrong = [f"{INTERNAL}: {problem}" for problem in self.internal]
        wrong += [f"{self.dead_letters} dead letters"] if self.dead_letters else []
        return wrong + ([f"not served again within {GIVEN_UP:.0f} s"] if self.completed is None else [])


async def observe(world: World, crowd: Crowd, case: Case, seconds: float, rate: float = RATE) -> Seen:
    """Plays a case a fifth of the way into so many seconds of bookings; everything runs again when it returns."""
    seen, history = Seen(), crowd.driver.history
    asked, told, letters = len(history.operations), len(history.problems), await _dead_letters(world)
    arriving = asyncio.create_task(crowd.arrive(rate, seconds))
    await asyncio.sleep(seconds / 5)
    begin = time.monotonic()
    await case(world)
    seen.away = time.monotonic() - begin
    with suppress(TimeoutError):
        async with asyncio.timeout(GIVEN_UP):
            await _serve(world, crowd, seen)
    await asyncio.to_thread(world.mesh.up)  # the server that died comes back as a member
    await arriving
    seen.answers = Counter("OK" if o.outcome == "ok" else _code(o.answer) for o in history.operations[asked:])
    seen.internal = history.problems[told:]
    seen.dead_letters = await _dead_letters(world) - letters
    return seen


async def _serve(world: World, crowd: Crowd, seen: Seen) -> None:
    """Somebody new books and looks at the screen, until the booking is there and completed."""
    begin, (hospital, day), request_id = time.monotonic(), crowd.hospitals[0], str(uuid.uuid4())
    customer = Person(world, f"new-{request_id}", ["customer"])
    PATIENCE.set(5.0)
    while seen.completed is None:
        try:
            if seen.booked is None:
                await customer.create(hospital, day, request_id)
                seen.booked = time.monotonic() - begin
            if any(shown.status == Status.RESERVATION_STATUS_COMPLETED for shown in await customer.screen()):
                seen.completed = time.monotonic() - begin
        except grpc.aio.AioRpcError:
            pass
        await asyncio.sleep(0.05)


def _code(answer: object) -> str:
    return str(answer).partition(":")[0]


async def _dead_letters(world: World) -> int:
    try:
        return await asyncio.to_thread(world.mesh.stores.nats.last_sequence, DEAD_LETTERS)
    except NotFoundError:
        return 0
