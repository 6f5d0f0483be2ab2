"""Gauges that need a question to a store or to the stream, asked now and then by every replica.

All replicas of a component see the same, so whoever reads these takes the max over them, never the sum. While a
question has no answer its gauges are gone: an old value would look like health.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

from .events import Consumer, OutboxStore
from .events.setaside import Kind
from .telemetry import log

EVERY = 15.0  # seconds: as often as Prometheus usually looks

outbox_depth = Gauge("outbox_depth", "Events that the stream has not acknowledged yet.", ["component"])
outbox_oldest = Gauge("outbox_oldest_seconds", "Age of the oldest of them, in seconds.", ["component"])
consumer_pending = Gauge("consumer_pending", "Events that were not delivered to the component yet.", ["component"])
consumer_in_flight = Gauge("consumer_in_flight", "Events delivered and not acknowledged yet.", ["component"])
consumer_redelivered = Gauge("consumer_redelivered", "Of these, delivered more than once.", ["component"])
consumer_paused = Gauge("consumer_paused", "1 while an operator has paused deliveries, else 0.", ["component"])
dead_letters = Gauge("dead_letters", "Events that the component could not handle, undecided.", ["component"])
parked_events = Gauge("parked_events", "Events that wait for a version that knows them.", ["component"])
retry_events = Gauge("retry_events", "Events that failed and will be tried again.", ["component"])


@dataclass(frozen=True)
class Probe:
    """`ask` sets `gauges`, which have labels, or raises."""

    gauges: Sequence[Gauge]
    ask: Callable[[], Awaitable[None]]

    async def take(self) -> None:
        """Asks once."""
        try:
            await self.ask()
        except Exception as error:  # whatever it is, the service serves on
            log.warning("gauges not known", error=type(error).__name__)
            for gauge in self.gauges:
                gauge.clear()


def of_component(name: str, consumer: Consumer, outbox: OutboxStore | None) -> list[Probe]:
    """What every component has: a consumer, and an outbox or none."""

    async def stream() -> None:
        info = await consumer.info()
        consumer_pending.labels(name).set(info.num_pending or 0)
        consumer_in_flight.labels(name).set(info.num_ack_pending or 0)
        consumer_redelivered.labels(name).set(info.num_redelivered or 0)
        consumer_paused.labels(name).set(bool(info.paused))

    async def letters() -> None:
        waiting, dead = await consumer.set_aside.waiting(), await consumer.set_aside.dead()
        dead_letters.labels(name).set(dead)
        parked_events.labels(name).set(waiting[Kind.PARKED].total())
        retry_events.labels(name).set(waiting[Kind.RETRY].total())

    probes = [
        Probe([consumer_pending, consumer_in_flight, consumer_redelivered, consumer_paused], stream),
        Probe([dead_letters, parked_events, retry_events], letters),
    ]
    if outbox is not None:

        async def backlog() -> None:
            depth, oldest = await outbox.backlog()
            outbox_depth.labels(name).set(depth)
            outbox_oldest.labels(name).set(oldest)

        probes.append(Probe([outbox_depth, outbox_oldest], backlog))
    return probes


async def keep(probes: Iterable[Probe]) -> None:
    """Asks for ever."""
    probes = list(probes)
    while True:
        await asyncio.gather(*(probe.take() for probe in probes))
        await asyncio.sleep(EVERY)
