"""The page's composition root."""

import uvloop

from services.chassis import http, telemetry

from .site import Settings, Site


async def web() -> None:
    """Serves the page."""
    settings = Settings.load()
    telemetry.start("web", settings.log_level, settings.metrics_listen)
    await http.serve("web", settings, Site(settings).answer)


uvloop.run(web())
