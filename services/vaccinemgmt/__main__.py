"""Vaccine management's composition root."""

import asyncio
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
from .adapters.books import LotBooks
from .adapters.mongo import SCHEMA, MongoStock, rules
from .application import Accesses, Counter, Stockroom, Vaccines


class VaccinemgmtSettings(Settings):
    """The settings of every service, and those of the hospital's counter."""

    missed_after_hours: Annotated[int, Field(ge=0, le=240)] = 12
    """Hours from the end of the day at the hospital, after which a customer with a dose who was not given it has missed
    the appointment. Before, the staff can say so."""
    retention_accesses_days: Days = 731
    """Days for which it is kept who of the staff read whose data. 0: for ever."""


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


async def end_days(counter: Counter) -> None:
    """Ends the vaccinations of days that are over; in every replica, since any other one may be gone."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            if ended := await counter.end_days():
                log.info("days ended", **{status.name.lower(): count for status, count in ended.items()})
        except StoreUnavailable:
            log.warning("store away: days that are over wait for their end")
        except Exception as error:  # see serve_waiting
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
    grpc.register(service.server, vaccines, stockroom, record)
    counter.register(service.server, desk, record)
    kept = retention.Retention(settings, clock.now)
    forgotten = [
        *rules(mongo, kept),
        accesses.rule(mongo, lambda: kept.ago(settings.retention_accesses_days)),
    ]

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
            lambda: serve_waiting(vaccines),
            lambda: end_days(desk),
            lambda: retention.keep(service.name, forgotten),
        ],
        probes=[metrics.stock(mongo, clock.now)],
        books=lambda: LotBooks(mongo, kept),
    )


main(vaccinemgmt)
