"""Vaccine management's composition root."""

import asyncio
from datetime import timedelta
from typing import Annotated

from pydantic import Field

from services.chassis import clock, retention
from services.chassis.events import Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.mongo import Mongo
from services.chassis.server import Service, main
from services.chassis.settings import Days, Settings
from services.chassis.upkeep import keep

from .adapters import accesses, counter, events, grpc, metrics
from .adapters import recalls as recalls_grpc
from .adapters.books import LotBooks
from .adapters.mongo import SCHEMA, MongoStock, rules
from .application import Accesses, Counter, Recalls, Stockroom, Vaccines


class VaccinemgmtSettings(Settings):
    """The settings of every service, and those of the hospital's counter."""

    missed_after_hours: Annotated[int, Field(ge=0, le=240)] = 12
    """Hours from the end of the day at the hospital, after which a customer with a dose who was not given it has missed
    the appointment. Before, the staff can say so."""
    retention_accesses_days: Days = 731
    """Days for which it is kept who of the staff read whose data. 0: for ever."""


async def end_days(counter: Counter) -> dict[str, int]:
    """Ends the vaccinations of days that are over; returns how many ended how."""
    return {status.name.lower(): count for status, count in (await counter.end_days()).items()}


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
            lambda: keep("ledgers opened", lambda _: recalls.open_ledgers()),
            lambda: keep(
                "bookings on withdrawn or corrected lots looked at",
                lambda t: recalls.look(thoroughly=t),
                recalls.woken,
            ),
            lambda: keep("days ended", lambda _: end_days(desk)),
            lambda: retention.keep(service.name, forgotten),
        ],
        probes=[metrics.stock(mongo, clock.now)],
        books=lambda: LotBooks(mongo, kept),
    )


main(vaccinemgmt)
