"""Reservation's composition root."""

from pathlib import Path
from typing import Any

import grpc.aio

from services.chassis import clock, retention
from services.chassis.events import Consumer, Relay
from services.chassis.events.erasure import Eraser
from services.chassis.postgres import Database
from services.chassis.server import Service, main
from services.chassis.settings import Settings

from .adapters import events
from .adapters import grpc as inbound
from .adapters.approval import GrpcApproval
from .adapters.postgres import PostgresReservations, rules
from .application import Followup, ReservationDesk


class ReservationSettings(Settings):
    """The settings of every service, and how reservation reaches approval."""

    approval_target: str
    """The address of approval, host:port, as the mesh offers it."""
    approval_timeout: float = 2.5
    """Seconds for the whole call, retries included: above the mesh's own timeout, so that the mesh answers first."""
    approval_service_config: str = ""
    """gRPC's own configuration for balancing and retries, as JSON; empty where there is a mesh, which does both."""

    @property
    def approval_options(self) -> list[tuple[str, Any]]:
        """gRPC's options for the channel to approval."""
        if not self.approval_service_config:
            # A second retrying layer here would multiply the mesh's tries.
            return [("grpc.enable_retries", 0)]
        return [
            ("grpc.service_config", self.approval_service_config),
            # gRPC asks DNS for the replicas when a connection ends, but no more often than this. Its default of 30 s
            # is longer than an update takes to replace all of them.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            # A replica that hangs keeps its connection open. It is sent pings while calls wait for it, and gets no
            # more calls when a ping has had no answer for 5 s.
            ("grpc.keepalive_time_ms", 6 * 1000),
            ("grpc.http2.ping_timeout_ms", 5 * 1000),  # gRPC ignores grpc.keepalive_timeout_ms here
            ("grpc.http2.max_pings_without_data", 0),
        ]


async def reservation() -> None:
    """Wires reservation and serves it."""
    settings = ReservationSettings.load()
    service = Service("reservation", settings, inbound.ERRORS)
    database = Database(settings.database_url.get_secret_value())
    relay = Relay(database, service.bus.publish)
    reservations = PostgresReservations(database, relay.committed, clock.now)
    channel = grpc.aio.insecure_channel(settings.approval_target, options=settings.approval_options)
    desk = ReservationDesk(reservations, GrpcApproval(channel, settings.approval_timeout), clock.now)
    inbound.register(service.server, desk)
    kept = retention.Retention(settings, clock.now)
    await service.run(
        open_store=lambda: database.open(Path(__file__).parent / "migrations"),
        store=database,
        close_store=database.close,
        relay=relay,
        consumer=Consumer(
            service.bus,
            service.name,
            kept.applied_to(events.subscriptions(Followup(reservations)), events.term),
            database,
        ),
        eraser=Eraser(desk.erase),
        background=[lambda: retention.keep(service.name, rules(database, kept))],
    )


main(reservation)
