"""MyPage's composition root."""

from pathlib import Path

from services.chassis import clock, retention
from services.chassis.events import Consumer
from services.chassis.postgres import Database
from services.chassis.server import Service, main
from services.chassis.settings import Settings

from . import erasure, projector, rebuild, server
from .queries import Changes

MIGRATIONS = Path(__file__).parent / "migrations"


async def mypage() -> None:
    """Wires mypage and serves it."""
    settings = Settings.load()
    service = Service("mypage", settings, server.ERRORS)
    database = Database(settings.database_url.get_secret_value())
    changes = Changes(database)
    server.register(service.server, database, changes)
    kept = retention.Retention(settings, clock.now)
    consumer = Consumer(service.bus, service.name, projector.View(database).subscriptions(kept), database)
    rebuild.register(service.server, database, service.bus, consumer, kept)
    rules = [*projector.rules(database, kept), *projector.purge(database, service.bus, kept).rules()]
    await service.run(
        open_store=lambda: database.open(MIGRATIONS),
        store=database,
        close_store=database.close,
        consumer=consumer,
        eraser=erasure.eraser(database, service.bus),
        background=[changes.run, lambda: server.end_watches(changes), lambda: retention.keep(service.name, rules)],
    )


main(mypage)
