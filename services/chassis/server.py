"""The life of a service: start in any order, serve, drain, exit."""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.api import annotations_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from . import gauges, telemetry, tracing
from .edge import Edge
from .errors import Errors, StoreUnavailable
from .events import Bus, Consumer, PublishFailed, Relay, operations
from .events.books import Books, Check
from .events.erasure import Eraser
from .lifecycle import draining
from .reflection import Commented
from .retry import Backoff
from .settings import Settings
from .store import Store
from .telemetry import log

WAITING = Backoff(first=0.1, longest=5.0)  # between tries of a store or a stream that is away, at the start
CHECK_EVERY = 2.0  # seconds between looks whether the store answers
# Seconds without an answer after which this replica is not ready: calls go to others, which may reach the store.
UNREADY_AFTER = 5.0
# New objects after which cycles among them are looked for. Few are made here; Python looks after 700 to 2,000.
GARBAGE = 10_000
SECRETS_EVERY = 15.0  # seconds between looks at the secrets' files
SECRETS_WITHIN = 30.0  # seconds in which a process has to get into store and stream with changed secrets
# Seconds over which replicas spread their restarts when a secret has changed, so that they do not all stop at once.
SECRETS_SPREAD = 60.0


class Service:
    """One process: its gRPC server, its relay and its consumer."""

    def __init__(self, name: str, settings: Settings, errors: Errors) -> None:
        telemetry.start(name, settings.log_level, settings.metrics_listen)
        tracing.start(name, settings.otel_exporter_otlp_endpoint)
        self.name, self.settings = name, settings
        self._edge = Edge(
            errors,
            operations.ERRORS,
            max_calls=settings.max_calls,
            max_streams=settings.max_streams,
            claim_names=settings.claim_names,
        )
        self.server = grpc.aio.server(
            interceptors=[self._edge],
            options=[
                ("grpc.max_receive_message_length", 4 * 1024 * 1024),
                ("grpc.max_metadata_size", 96 * 1024),
                ("grpc.so_reuseport", 0),
                ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
                ("grpc.max_connection_age_grace_ms", 60 * 1000),
                ("grpc.keepalive_time_ms", 60 * 1000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5 * 1000),
            ],
        )
        self._ready = False
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self.bus = Bus(
            settings.nats_url,
            settings.nats_user,
            settings.nats_password.get_secret_value(),
            name,
            settings.stream_replicas,
        )

    async def run(
        self,
        *,
        open_store: Callable[[], Awaitable[None]],
        store: Store,
        close_store: Callable[[], Awaitable[None]],
        consumer: Consumer,
        eraser: Eraser,
        relay: Relay | None = None,
        background: Iterable[Callable[[], Coroutine[Any, Any, None]]] = (),
        probes: Iterable[gauges.Probe] = (),
        books: Callable[[], Books] | None = None,
    ) -> None:
        """Serves until SIGTERM, SIGINT or a changed secret, then drains; raises if a background task fails.

        With the argument `migrate` it brings the store's schema and the consumer's filter up to date, as a start does
        first, and returns. `probes` are for the service's own figures, beside those that every service has.
        `books` makes what a check of the service's accounts needs.
        """
        if sys.argv[1:] == ["migrate"]:
            await _until_there(open_store, self.bus.connect, consumer.ensure)
            await self.bus.close()
            await close_store()
            log.info("migrated")
            return
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        check = (lambda: Check(self.bus, books())) if books else None
        operations.register(self.server, self.name, consumer, relay.store if relay else None, eraser, check)
        _reflect(self.server)
        await self._health.set(self.name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        if self.server.add_insecure_port(self.settings.listen) == 0:
            raise SystemExit(f"cannot listen on {self.settings.listen}")
        await self.server.start()
        # What has been made until here stays: the collector of reference cycles need not go through it ever again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE)
        log.info("alive", listen=self.settings.listen)

        stopping = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(_until_there(open_store, self.bus.connect, consumer.ensure))
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        tasks: list[asyncio.Task[None]] = []
        consuming: asyncio.Task[None] | None = None
        telling: asyncio.Task[None] | None = None
        if starting.done():
            starting.result()
            if relay is not None:
                tasks.append(asyncio.create_task(relay.run()))
            consuming = asyncio.create_task(consumer.run())
            tasks.append(consuming)
            tasks += [asyncio.create_task(work()) for work in background]
            own = gauges.of_component(self.name, consumer, relay.store if relay else None)
            tasks.append(asyncio.create_task(gauges.keep([*own, *probes])))
            telling = asyncio.create_task(self._tell_readiness(store))
            tasks.append(telling)
            tasks.append(asyncio.create_task(_until_secrets_change(self.name, stop)))
            await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
        if telling is not None:
            telling.cancel()
        try:
            await asyncio.wait_for(self._drain(relay, consumer, consuming, tasks), self.settings.shutdown_seconds)
        except TimeoutError:
            log.warning("drain took too long; what is left goes on in another replica")
        for task in (starting, *tasks):
            task.cancel()
        await self.bus.close()
        await close_store()
        await asyncio.to_thread(tracing.stop)
        log.info("stopped")
        for task in failed:
            task.result()

    async def _tell_readiness(self, store: Store) -> None:
        """Ready is who can do what callers want, and that is who reaches the store."""
        answered = time.monotonic()
        while True:
            try:
                await store.check()
                answered = time.monotonic()
                await self._set_ready(True)
            except Exception as error:  # whatever it is, the store did not answer
                if time.monotonic() - answered > UNREADY_AFTER:
                    await self._set_ready(False, why=str(error.__cause__ or error))
            await asyncio.sleep(CHECK_EVERY)

    async def _set_ready(self, ready: bool, why: str = "") -> None:
        if ready is self._ready:
            return
        self._ready = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(self.name, status)
        telemetry.component_ready.labels(self.name).set(ready)
        log.info("ready") if ready else log.warning("not ready", why=why)

    async def _drain(
        self,
        relay: Relay | None,
        consumer: Consumer,
        consuming: asyncio.Task[None] | None,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        log.info("draining")
        await self._set_ready(False, why="draining")
        await asyncio.sleep(self.settings.drain_seconds)
        draining.set()
        await self.server.stop(self.settings.shutdown_seconds / 2)
        await self._edge.finish()
        if consuming is not None:
            consumer.stop()
            await asyncio.wait([consuming])
        if relay is not None:
            relay.stop()
        for task in tasks:
            task.cancel()
        if tasks:  # the relay's too: what it is publishing is held by it until it has ended
            await asyncio.wait(tasks)
        if relay is not None and consuming is not None:
            try:
                await relay.flush()
            except (StoreUnavailable, PublishFailed):
                log.info("outbox left to another replica")


async def _until_there(*openings: Callable[[], Awaitable[None]]) -> None:
    """Opens store and stream, with backoff for as long as they are away."""
    tries = 0
    while True:
        try:
            for opening in openings:
                await opening()
        except (StoreUnavailable, PublishFailed, OSError, TimeoutError) as error:
            log.warning("waiting", error=type(error).__name__, detail=str(error))
            tries += 1
            await asyncio.sleep(WAITING.pause(tries))
        else:
            return


async def _until_secrets_change(name: str, stop: asyncio.Event) -> None:
    """Sets `stop` some time after a file in SECRETS_DIR has changed: the process that takes our place reads it anew.

    Kubernetes writes a changed Secret into running pods and restarts nothing. A secret with which nobody gets into the
    store or the stream restarts nothing either: what serves goes on serving.
    """
    folder = os.environ.get("SECRETS_DIR", "")
    known = _secrets(folder)
    while not (known and await _changed_and_works(name, folder, known)):  # noqa: ASYNC110
        await asyncio.sleep(SECRETS_EVERY)  # a file system tells nobody that a mounted Secret has changed
    pause = random.uniform(0, SECRETS_SPREAD)  # noqa: S311 - spreads restarts
    log.info("a secret has changed: this replica will restart", seconds=round(pause))
    await asyncio.sleep(pause)
    stop.set()
    await asyncio.Event().wait()


async def _changed_and_works(name: str, folder: str, known: Mapping[str, bytes]) -> bool:
    if _secrets(folder) in (known, {}):  # empty while it is being replaced
        return False
    env = os.environ | {"METRICS_LISTEN": "127.0.0.1:0"}
    command = [sys.executable, "-m", f"services.{name}", "migrate"]
    trying: asyncio.subprocess.Process | None = None
    try:
        trying = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.DEVNULL)
        works = await asyncio.wait_for(trying.wait(), SECRETS_WITHIN) == 0
    except (OSError, TimeoutError):
        works = False
    finally:
        if trying is not None and trying.returncode is None:
            trying.kill()
    if not works:
        log.error("a secret has changed, and the service cannot start with it: this replica goes on with the old one")
    return works


def _secrets(folder: str) -> Mapping[str, bytes]:
    try:
        return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()} if folder else {}
    except OSError:
        return {}


def _reflect(server: grpc.aio.Server) -> None:
    """Describes every public service, whichever process answers: a service is public when it has an HTTP form."""
    import vaccination

    public = {health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME}
    root = Path(next(iter(vaccination.__path__)))
    for file in root.rglob("*_pb2.py"):
        module = import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
        for service in module.DESCRIPTOR.services_by_name.values():
            if any(method.GetOptions().HasExtension(annotations_pb2.http) for method in service.methods):
                public.add(service.full_name)
    reflection.enable_server_reflection(sorted(public), server, pool=Commented(root / "image.binpb"))


def main(service: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a composition root."""
    uvloop.run(service())
