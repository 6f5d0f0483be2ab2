"""Vaccine management's composition root."""

import asyncio

from services.chassis import clock, retention
from services.chassis.errors import StoreUnavailable
from services.chassis.events import LOOK_EVERY, Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.mongo import Mongo
from services.chassis.server import Service, main
from services.chassis.settings import Settings
from services.chassis.telemetry import log

from .adapters import events, grpc, metrics
from .adapters.books import LotBooks
from .adapters.mongo import SCHEMA, MongoStock, rules
from .application import Stockroom, Vaccines


async def serve_waiting(vaccines: Vaccines) -> None:
    """Serves the waiting list when doses become free, and regularly since another replica may have freed some."""
    while True:
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await vaccines.freed()
        except TimeoutError:
            pass
        try:
            if served := await vaccines.serve_waiting():
                log.info("waiting list served", doses=served)
        except StoreUnavailable:
            log.warning("store away: the waiting list waits")
        except Exception as error:  # trouble at one hospital must not end the service for all of them
            log.error("the waiting list was not served", exc_info=error)


async def vaccinemgmt() -> None:
    """Wires vaccine management and serves it."""
    settings = Settings.load()
    service = Service("vaccinemgmt", settings, grpc.ERRORS)
    mongo = Mongo(settings.database_url.get_secret_value())
    relay = Relay(mongo, service.bus.publish)
    stock, freed = MongoStock(mongo, relay.wake), asyncio.Event()
    vaccines, stockroom = Vaccines(stock, clock.now, freed), Stockroom(stock, clock.now, freed)
    grpc.register(service.server, vaccines, stockroom)
    kept = retention.Retention(settings, clock.now)

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
            lambda: serve_waiting(vaccines),
            lambda: retention.keep(service.name, rules(mongo, kept)),
        ],
        probes=[metrics.stock(mongo, clock.now)],
        books=lambda: LotBooks(mongo, kept),
    )


main(vaccinemgmt)
