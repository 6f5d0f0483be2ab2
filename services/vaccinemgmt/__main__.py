"""Vaccine management's composition root."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from services.chassis import clock, retention
from services.chassis.errors import StoreUnavailable
from services.chassis.events import LOOK_EVERY, Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.mongo import Mongo
from services.chassis.server import Service, main
from services.chassis.settings import Days, Settings
from services.chassis.telemetry import log

from .adapters import accesses, counter, events, grpc, metrics
from .adapters import recalls as recalls_grpc
from .adapters.books import LotBooks
from .adapters.mongo import SCHEMA, MongoStock, rules
from .application import Accesses, Counter, Recalls, Stockroom, Vaccines

# Seconds between looks for what a look each second would make too dear.
LOOK_THOROUGHLY_EVERY = 60.0


class VaccinemgmtSettings(Settings):
    """The settings of every service, and those of the hospital's counter."""

    missed_after_hours: Annotated[int, Field(ge=0, le=240)] = 12
    """Hours from the end of the day at the hospital, after which a customer with a dose who was not given it has missed
    the appointment. Before, the staff can say so."""
    retention_accesses_days: Days = 731
    """Days for which it is kept who of the staff read whose data. 0: for ever."""


async def keep(what: str, act: Callable[[bool], Awaitable[int]], woken: Callable[[], Awaitable[None]]) -> None:
    """Acts when this process knows of a reason, and regularly since another replica may have had one.

    The argument is whether to do it thoroughly.
    """
    thorough = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await woken()
        except TimeoutError:
            pass
        try:
            thoroughly = time.monotonic() >= thorough
            if done := await act(thoroughly):
                log.info(what, number=done)
            if thoroughly:  # replicas do not all do it at once
                thorough = time.monotonic() + LOOK_THOROUGHLY_EVERY * random.uniform(0.8, 1.2)  # noqa: S311
        except StoreUnavailable:
            log.warning("store away: it waits", what=what)
        except Exception as error:  # trouble at one hospital must not end the service for all of them
            log.error("not done", what=what, exc_info=error)


async def end_days(counter: Counter) -> None:
    """Ends the vaccinations of days that are over; in every replica, since any other one may be gone."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            if ended := await counter.end_days():
                log.info("days ended", **{status.name.lower(): count for status, count in ended.items()})
        except StoreUnavailable:
            log.warning("store away: days that are over wait for their end")
        except Exception as error:  # see keep
            log.error("days that are over were not ended", exc_info=error)


async def vaccinemgmt() -> None:
    """Wires vaccine management and serves it."""
    settings = VaccinemgmtSettings.load()
    service = Service("vaccinemgmt", settings, grpc.ERRORS)
    mongo = Mongo(settings.database_url.get_secret_value())
    relay = Relay(mongo, service.bus.publish)
    stock, freed = MongoStock(mongo, relay.wake), asyncio.Event()
    vaccines, stockroom = Vaccines(stock, clock.now, freed), Stockroom(stock, clock.now, freed)
    record = Accesses(accesses.MongoAccesses(mongo), clock.now)
    desk = Counter(stock, clock.now, freed, timedelta(hours=settings.missed_after_hours))
    recalls = Recalls(stock, clock.now, freed, record.record)
    grpc.register(service.server, vaccines, stockroom, record)
    counter.register(service.server, desk, record)
    recalls_grpc.register(service.server, recalls)
    kept = retention.Retention(settings, clock.now)
    forgotten = [
        *rules(mongo, kept),
        accesses.rule(mongo, lambda: kept.ago(settings.retention_accesses_days)),
    ]

    async def look(thoroughly: bool) -> int:
        await recalls.open_ledgers()
        return await recalls.look(thoroughly=thoroughly)

    async def close() -> None:
        mongo.close()

    await service.run(
        open_store=lambda: mongo.open(SCHEMA),
        store=mongo,
        close_store=close,
        relay=relay,
        # A hospital's doses are one queue, of which each batch wants a part.
        consumer=Consumer(
            service.bus,
            service.name,
            kept.applied_to(events.subscriptions(vaccines), events.term),
            mongo,
            single_active=True,
        ),
        eraser=Eraser(lambda customer_id: record.erase(customer_id, vaccines.erase)),
        background=[
            lambda: keep("waiting list served", lambda t: vaccines.serve_waiting(thoroughly=t), vaccines.freed),
            lambda: keep("bookings on withdrawn or corrected lots looked at", look, recalls.woken),
            lambda: end_days(desk),
            lambda: retention.keep(service.name, forgotten),
        ],
        probes=[metrics.stock(mongo, clock.now)],
        books=lambda: LotBooks(mongo, kept),
    )


main(vaccinemgmt)
