"""Vaccine management's composition root."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from services.chassis import clock, retention
from services.chassis.errors import StoreUnavailable
from services.chassis.events import LOOK_EVERY, Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.mongo import Mongo
from services.chassis.server import Service, main
from services.chassis.settings import Settings
from services.chassis.telemetry import log

from .adapters import events, grpc, metrics
from .adapters import recalls as recalls_grpc
from .adapters.mongo import SCHEMA, MongoStock, rules
from .application import Recalls, Stockroom, Vaccines


# Seconds between looks for what a look each second would make too dear.
LOOK_THOROUGHLY_EVERY = 60.0


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
                thorough = time.monotonic() + LOOK_THOROUGHLY_EVERY * random.uniform(0.8, 1.2)
        except StoreUnavailable:
            log.warning("store away: it waits", what=what)
        except Exception as error:  # trouble at one hospital must not end the service for all of them
            log.error("not done", what=what, exc_info=error)


async def vaccinemgmt() -> None:
    """Wires vaccine management and serves it."""
    settings = Settings.load()
    service = Service("vaccinemgmt", settings, grpc.ERRORS)
    mongo = Mongo(settings.database_url.get_secret_value())
    relay = Relay(mongo, service.bus.publish)
    stock, freed = MongoStock(mongo, relay.wake), asyncio.Event()
    vaccines, stockroom = Vaccines(stock, clock.now, freed), Stockroom(stock, clock.now, freed)
    accesses = Accesses(mongo.database, clock.now)
    recalls = Recalls(stock, clock.now, freed, accesses.record)
    grpc.register(service.server, vaccines, stockroom)
    recalls_grpc.register(service.server, recalls)
    kept = retention.Retention(settings, clock.now)

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
        eraser=Eraser(vaccines.erase),
        background=[
            lambda: keep("waiting list served", lambda t: vaccines.serve_waiting(thoroughly=t), vaccines.freed),
            lambda: keep("bookings on withdrawn or corrected lots looked at", look, recalls.woken),
            lambda: retention.keep(service.name, rules(mongo, kept)),
        ],
        probes=[metrics.stock(mongo, clock.now)],
    )


main(vaccinemgmt)
