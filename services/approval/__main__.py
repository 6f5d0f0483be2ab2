"""Approval's composition root."""

import asyncio
from pathlib import Path

from services.chassis import clock, retention
from services.chassis.errors import StoreUnavailable
from services.chassis.events import LOOK_EVERY, Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.postgres import Database
from services.chassis.server import Service, main
from services.chassis.settings import Settings
from services.chassis.telemetry import log

from .adapters import events, grpc, metrics
from .adapters.books import ApprovalBooks
from .adapters.postgres import PostgresBooks, rules
from .application import Approval


async def revoke(use_cases: Approval) -> None:
    """Ends the bookings of days that are called off, at once and regularly: a replica may have died with some left."""
    while True:
        try:
            async with asyncio.timeout(LOOK_EVERY):
                await use_cases.called_off()
        except TimeoutError:
            pass
        try:
            if revoked := await use_cases.revoke():
                log.info("bookings of days called off have ended", bookings=revoked)
        except StoreUnavailable:
            log.warning("store away: bookings of days called off wait")
        except Exception as error:  # trouble with one day must not end the service for all of them
            log.error("the bookings of a day called off have not ended", exc_info=error)


async def approval() -> None:
    """Wires approval and serves it."""
    settings = Settings.load()
    service = Service("approval", settings, grpc.ERRORS)
    database = Database(settings.database_url.get_secret_value())
    relay = Relay(database, service.bus.publish)
    use_cases = Approval(PostgresBooks(database, relay.wake), clock.now)
    grpc.register(service.server, use_cases)
    kept = retention.Retention(settings, clock.now)
    await service.run(
        open_store=lambda: database.open(Path(__file__).parent / "migrations"),
        store=database,
        close_store=database.close,
        relay=relay,
        consumer=Consumer(
            service.bus,
            service.name,
            kept.applied_to(events.subscriptions(use_cases), events.term),
            database,
        ),
        background=[
            lambda: revoke(use_cases),
            lambda: retention.keep(service.name, rules(database, kept)),
        ],
        eraser=Eraser(use_cases.erase),
        probes=[metrics.outlook(database, clock.now)],
        books=lambda: ApprovalBooks(database, kept, clock.now),
    )


main(approval)
