"""A recall of a lot that thousands have a dose of, with every replica killed in the middle, again and again.

`python -m tests.faults study recall` prints how long it takes, and what became of the bookings.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import grpc.aio

from tests.e2e.conftest import World, delivery, eventually
from vaccination.vaccinemgmt.v1 import lot_pb2, recall_service_pb2

from .drive import PATIENCE, Crowd, Person
from .run import again_while_away

AT_ONCE = 64  # customers who book at a time
DONE_WITHIN = 600.0  # seconds


@dataclass
class Seen:
    """What a recall did."""

    seconds: float = 0.0
    """From the call until no booking is left to look at."""
    told: float = 0.0
    """From the call until every customer's screen says so."""
    kills: int = 0
    recall: Any = None
    violations: list[str] = field(default_factory=list)


async def book(world: World, crowd: Crowd, bookings: int) -> None:
    """As many customers book at the crowd's one hospital, and all of them have a dose."""
    for _ in range(bookings):
        crowd.come(cancelling=0.0)
        if crowd.busy >= AT_ONCE:
            await crowd.gone(but=AT_ONCE - 1)
    await crowd.gone()
    await world.quiet(300)


async def recalled(world: World, seed: int, bookings: int, kills: int) -> tuple[Seen, Crowd]:
    """Books one lot out, and recalls it while another one has doses for 60 of 100."""
    hospital, day = await world.new_hospital(bookings)
    manager = Person(world, "manager", ["manager"], hospital=hospital)
    soon, late = str(date.today() + timedelta(30)), str(date.today() + timedelta(90))
    [bad] = await manager.register(hospital, delivery(bookings, expiry_date=soon))
    crowd = Crowd(world, [(hospital, day)], seed, tries=60)
    await book(world, crowd, bookings)
    spare = bookings * 6 // 10
    [good] = await manager.register(hospital, delivery(spare, expiry_date=late))
    seen, begin = Seen(), time.monotonic()
    recall = await _insist(lambda: manager.recall(bad, hospital))
    killing = asyncio.create_task(_kill(world, random.Random(seed), kills, seen))
    seen.recall = await _done(manager, recall)
    seen.seconds = time.monotonic() - begin
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    await again_while_away(lambda: asyncio.to_thread(world.mesh.up))
    seen.recall = await _insist(lambda: manager.recall(bad, hospital))  # once more changes nothing
    await _told(world, hospital, spare, bookings)
    seen.told = time.monotonic() - begin
    seen.violations = await _wrong(world, manager, hospital, bad, good, seen.recall, bookings, spare)
    return seen, crowd


async def _kill(world: World, dice: random.Random, kills: int, seen: Seen) -> None:
    """Kills every replica of vaccine management at once, at an instant of the recall, and starts them again."""
    for _ in range(kills):
        await asyncio.sleep(dice.uniform(0.1, 1.0))
        for name in world.mesh.home.processes_of("vaccinemgmt"):
            await asyncio.to_thread(world.mesh.processes.stop, name, signal.SIGKILL, 10)
        seen.kills += 1
        await again_while_away(lambda: asyncio.to_thread(world.mesh.up))


async def _insist(call: Any) -> Any:
    """Repeats a call until it is answered."""
    PATIENCE.set(15.0)
    deadline = time.monotonic() + DONE_WITHIN
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.5)


async def _done(manager: Person, recall: Any) -> Any:
    request = recall_service_pb2.GetRecallRequest(recall_id=recall.recall_id)

    async def look() -> Any:
        return (await _insist(lambda: manager.call(manager.recalls.GetRecall, request))).recall

    return await eventually(look, lambda r: r.bookings_to_go == 0, DONE_WITHIN)


async def _told(world: World, hospital: str, spare: int, bookings: int) -> None:
    """Waits until the screens say that so many have a dose, and the others wait."""
    sql = "SELECT status, count(*) AS n FROM my_reservations WHERE hospital_id = $1 GROUP BY status"

    async def look() -> Counter[int]:
        return Counter({row["status"]: row["n"] for row in await world.query("mypage", sql, hospital)})

    told = "SELECT count(*) AS n FROM my_reservations r JOIN timeline t USING (reservation_id) WHERE hospital_id = $1 "
    told += "AND t.reason = 'LOT_RECALLED'"

    async def letters() -> int:
        return int((await world.query("mypage", told, hospital))[0]["n"])

    await eventually(look, lambda n: (n[3], n[1]) == (spare, bookings - spare), DONE_WITHIN)
    await eventually(letters, lambda n: n == bookings, DONE_WITHIN)


async def _wrong(
    world: World,
    manager: Person,
    hospital: str,
    bad: lot_pb2.Lot,
    good: lot_pb2.Lot,
    recall: Any,
    bookings: int,
    spare: int,
) -> list[str]:
    lots = {lot.lot_id: lot for lot in await manager.lots(hospital)}
    old, new = lots[bad.lot_id], lots[good.lot_id]
    expected = {
        "the recalled lot": ((old.free, old.reserved, old.written_off), (0, 0, bookings)),
        "the other lot": ((new.free, new.reserved), (0, spare)),
        "the recall": ((recall.reassigned, recall.waiting, recall.bookings_to_go), (spare, bookings - spare, 0)),
    }
    wrong = [f"{what} is {seen}, not {right}" for what, (seen, right) in expected.items() if seen != right]
    # First come, first served: those with a dose decided before those who wait, in milliseconds as MongoDB keeps them.
    came = "date_trunc('milliseconds', decide_time)"
    order = f"SELECT (max({came}) FILTER (WHERE status = 3) <= min({came}) FILTER (WHERE status = 1)) AS fair "
    order += "FROM my_reservations WHERE hospital_id = $1"
    if (await world.query("mypage", order, hospital))[0]["fair"] is not True:
        wrong.append("somebody who came later has a dose, and somebody who came earlier waits")
    return wrong
