"""Breaks things on a seeded schedule, one after the other, and heals them."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from mesh.machine import Mesh
from mesh.machine.home import SERVICES, STORE_OF, STORES
from mesh.machine.processes import MeshError

from .launcher import PLACES
from .proxy import Proxy

PASSES = {  # which services come by a place
    "approval-after-commit": ("approval",),
    "reservation-after-commit": ("reservation",),
    "relay-after-publish": ("approval", "reservation", "vaccinemgmt"),
    "consumer-after-commit": SERVICES,
}

# Seconds for which a replica that is cut off from its store may keep events: see launcher._hurry, and a busy machine.
KEPT_AT_MOST = 60.0


class Nemesis:
    """The faults. Each method breaks something, waits a while, and heals it."""

    def __init__(
        self, mesh: Mesh, seed: int, proxies: dict[str, Proxy], folder: Path, own_lines: dict[str, Proxy] | None = None
    ) -> None:
        self._mesh, self._proxies, self._folder, self._own_lines = mesh, proxies, folder, own_lines or {}
        self.violations: list[str] = []
        self._dice = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event, pause: float, kinds: Sequence[str]) -> None:
        """One fault after the other until `stop`, of the `kinds` if any are named; then everything is whole again."""
        faults: list[Callable[[], Awaitable[str]]] = [
            self.kill, self.kill, self.kill, self.hang, self.crash, self.crash, self.crash, self.kill_store,
            self.restart_store, self.cut, self.refuse, self.slow, self.step_clock, self.stop_service, self.duplicate,
            self.hang_store, self.two_at_once, self.two_at_once,
        ]  # fmt: skip
        if self._mesh.home.replicated:
            faults = [
                self.kill, self.kill, self.hang, self.crash, self.crash, self.stop_service, self.duplicate,
                self.step_clock, self.kill_store, self.restart_store, self.promote_postgres, self.promote_postgres,
                self.kill_mongo_primary, self.kill_nats_leader, self.two_at_once, self.two_at_once,
            ]  # fmt: skip
        if self._own_lines:
            faults.append(self.cut_alone)
        if kinds:
            faults = [getattr(self, kind) for kind in kinds]
        while not stop.is_set():
            fault = self._dice.choice(faults)
            self.done[await fault()] += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._dice.expovariate(1 / pause))
        await self.heal()

    async def heal(self) -> None:
        """Everything runs, at full speed, at the right time."""
        for proxy in (*self._proxies.values(), *self._own_lines.values()):
            proxy.refuse(False)
            proxy.slow(0)
        self._clock(0)
        for file in self._folder.glob("*"):
            if file.name != "clock":
                file.unlink(missing_ok=True)
        await self.up()

    def _replica(self, services: tuple[str, ...] = SERVICES) -> str:
        return self._dice.choice([name for s in services for name in self._mesh.home.processes_of(s)])

    def _signal(self, name: str, number: signal.Signals) -> bool:
        process = self._mesh.processes.find(name)
        if process is None:
            return False
        os.kill(process.pid, number)
        return True

    async def up(self) -> None:
        for attempt in range(5):
            try:
                await asyncio.to_thread(self._mesh.up)
                return
            except MeshError:
                if attempt == 4:
                    raise

    async def kill(self) -> str:
        """SIGKILL of a service's process, at any instant."""
        name = self._replica()
        self._signal(name, signal.SIGKILL)
        await asyncio.sleep(self._dice.random() * 2)
        await self.up()
        return f"kill {name.split('-')[0]}"

    async def hang(self) -> str:
        """A process that stands still for a while, and then goes on as if nothing had been."""
        name = self._replica()
        self._signal(name, signal.SIGSTOP)
        await asyncio.sleep(1 + self._dice.random() * 6)
        self._signal(name, signal.SIGCONT)
        return f"hang {name.split('-')[0]}"

    async def crash(self) -> str:
        """A process that dies at a named place."""
        place = self._dice.choice(sorted(PLACES))
        name = self._replica(PASSES[place])
        file = self._folder / name
        file.write_text(place)
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not file.exists():
                break
        reached = not file.exists()
        file.unlink(missing_ok=True)
        await self.up()
        return f"crash {place}" if reached else "crash not reached"

    async def crash_mutant(self) -> str:
        """Services die after publishing or acknowledging and before their commit; only mutants come by there."""
        for service in ("approval", "reservation"):
            for name in self._mesh.home.processes_of(service):
                (self._folder / name).write_text("mutant-before-commit")
        await asyncio.sleep(1)
        await self.up()
        return "crash mutant"

    async def stop_service(self) -> str:
        """A graceful stop, as in a rolling restart."""
        name = self._replica()
        await asyncio.to_thread(self._mesh.stop, name)
        await self.up()
        return f"restart {name.split('-')[0]}"

    async def kill_store(self) -> str:
        """A store's server dies at once."""
        store = self._mesh.stores.kinds[self._dice.choice(STORES)]
        name = self._dice.choice(store.members)
        self._signal(name, store.crash_signal)
        await asyncio.sleep(self._dice.random() * 4)
        await self.up()
        return f"kill {name}"

    async def hang_store(self) -> str:
        """A store that stands still; clients' deadlines expire, their connections stay."""
        name = self._dice.choice(self._mesh.stores.names)
        self._signal(name, signal.SIGSTOP)
        await asyncio.sleep(0.5 + self._dice.random() * 4)
        self._signal(name, signal.SIGCONT)
        return f"hang {name}"

    async def two_at_once(self) -> str:
        """What no single fault shows: a service dies while a store is away, and the like."""
        of_services = self._dice.choice([self.kill, self.hang, self.crash, self.stop_service])
        faults = [self.kill_store, self.duplicate]
        if self._mesh.home.replicated:
            faults += [self.promote_postgres, self.kill_mongo_primary, self.kill_nats_leader]
        else:
            faults += [self.cut, self.refuse, self.slow]
        of_stores = self._dice.choice(faults)
        self.done.update(await asyncio.gather(of_services(), of_stores()))
        return "(two at once)"

    async def restart_store(self) -> str:
        """An orderly restart of a store's server."""
        name = self._dice.choice(self._mesh.stores.names)
        await asyncio.to_thread(self._mesh.stop, name)
        await asyncio.sleep(self._dice.random() * 3)
        await self.up()
        return f"restart {name}"

    async def promote_postgres(self) -> str:
        """The primary dies, the standby is promoted; later the dead one comes back as the new one's standby."""
        return await self._switch_over("promote postgres", self._mesh.promote_postgres)

    async def kill_mongo_primary(self) -> str:
        """The primary dies, the others elect a new one."""
        return await self._switch_over("kill mongo primary", self._mesh.kill_mongo_primary)

    async def kill_nats_leader(self) -> str:
        """The server that leads the stream dies, the others elect a new leader."""
        return await self._switch_over("kill nats leader", lambda: self._mesh.kill_nats_leader("VACCINATION"))

    async def _switch_over(self, what: str, do: Callable[[], object]) -> str:
        try:
            await asyncio.to_thread(do)
        except MeshError:  # the store has not recovered from a fault at the same time
            what = f"no {what}"
        await asyncio.sleep(self._dice.random() * 15)  # an election takes five or more
        await self.up()
        return what

    async def cut(self) -> str:
        """Every connection to a store breaks at once."""
        name = self._dice.choice(STORES)
        for _ in range(self._dice.randrange(1, 6)):
            self._proxies[name].cut()
            await asyncio.sleep(self._dice.random() * 0.5)
        return f"cut {name}"

    async def cut_alone(self) -> str:
        """One replica of each service is cut off from a store for long, and the other is not.

        Whatever is in the stream when the cut begins has to be handled while it lasts: by the other one.
        """
        store = self._dice.choice([store for store in ("postgres", "mongo") if store in self._own_lines])
        consumers = [service for service in SERVICES if STORE_OF[service] == store]
        line, nats = self._own_lines[store], self._mesh.stores.nats
        line.refuse(True)
        await asyncio.sleep(2)  # what is in hand then has been refused
        target = await asyncio.to_thread(nats.last_sequence, "VACCINATION")
        deadline = time.monotonic() + KEPT_AT_MOST
        left = set(consumers)
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            left = {c for c in left if await asyncio.to_thread(nats.handled, "VACCINATION", c) < target}
        line.refuse(False)
        self.violations += [
            f"cut off from {store}, a replica of {consumer} kept its events for {KEPT_AT_MOST:.0f} s"
            for consumer in left
        ]
        return f"cut {store} of one replica"

    async def refuse(self) -> str:
        """A store that cannot be reached for a while."""
        name = self._dice.choice(STORES)
        self._proxies[name].refuse(True)
        await asyncio.sleep(self._dice.random() * 6)
        self._proxies[name].refuse(False)
        return f"refuse {name}"

    async def slow(self) -> str:
        """A line that is slow: clients' deadlines expire while commits are under way."""
        name = self._dice.choice(STORES)
        self._proxies[name].slow(self._dice.choice([0.05, 0.3, 1.5]))
        await asyncio.sleep(2 + self._dice.random() * 5)
        self._proxies[name].slow(0)
        return f"slow {name}"

    async def step_clock(self) -> str:
        """The services' clocks jump, forth and back."""
        self._clock(self._dice.choice([-3600, -60, 60, 3600]))
        await asyncio.sleep(1 + self._dice.random() * 4)
        self._clock(0)
        return "clock step"

    async def duplicate(self) -> str:
        """Events of the past come once more, in another order, as messages of their own."""
        count = await asyncio.to_thread(
            self._mesh.stores.nats.republish, "VACCINATION", 200, self._dice.randrange(2**32)
        )
        return "duplicate events" if count else "no events to duplicate"

    def _clock(self, seconds: float) -> None:
        (self._folder / "clock").write_text(str(seconds))
