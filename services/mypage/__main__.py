"""MyPage's composition root: `python -m services.mypage`, or `... rebuild` to empty the view before a replay."""

import sys
from pathlib import Path

from services.chassis.jetstream import Consumer
from services.chassis.postgres import Database
from services.chassis.server import Service, main
from services.chassis.settings import Settings

from . import projector, server
from .queries import Changes

MIGRATIONS = Path(__file__).parent / "migrations"


async def mypage() -> None:
    """Wires mypage and serves it."""
    settings = Settings.load()
    service = Service("mypage", settings, server.ERRORS)
    database = Database(settings.database_url.get_secret_value())
    changes = Changes(database)
    server.register(service.server, database, changes)
    await service.run(
        open_store=lambda: database.open(MIGRATIONS),
        close_store=database.close,
        consumer=Consumer(service.bus, service.name, projector.handlers(database)),
        background=[changes.run],
    )


async def rebuild() -> None:
    """Empties the view and forgets how far it had read: the next start replays the stream from its beginning."""
    settings = Settings.load()
    service = Service("mypage", settings, server.ERRORS)
    database = Database(settings.database_url.get_secret_value())
    await service.bus.connect()
    await service.bus.forget(service.name)
    await database.reset(MIGRATIONS)
    await database.close()
    await service.bus.close()


main(rebuild if sys.argv[1:] == ["rebuild"] else mypage)
