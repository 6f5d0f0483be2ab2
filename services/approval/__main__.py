"""Approval's composition root."""

from pathlib import Path

from services.chassis import clock, retention
from services.chassis.events import Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.postgres import Database
from services.chassis.server import Service, main
from services.chassis.settings import Settings
from services.chassis.upkeep import keep

from .adapters import events, grpc, metrics
from .adapters.books import ApprovalBooks
from .adapters.postgres import PostgresBooks, rules
from .application import Approval


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
            lambda: keep("bookings of days called off ended", lambda _: use_cases.revoke(), use_cases.called_off),
            lambda: retention.keep(service.name, rules(database, kept)),
        ],
        eraser=Eraser(use_cases.erase),
        probes=[metrics.outlook(database, clock.now)],
        books=lambda: ApprovalBooks(database, kept, clock.now),
    )


main(approval)
