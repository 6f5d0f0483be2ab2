"""Starts a service with places at which it can be killed or made wrong.

usage: -m tests.faults.launcher COMPONENT services.NAME

The services' code knows nothing of this. A process looks for a file FAULTS/<component> at each named place; when the
file names the place, the process removes the file and kills itself there. MUTATION makes the service break a rule on
purpose, to see that the checks find it. CLOCK_OFFSET, a file with seconds, steps the service's clock. A component whose
name is in the file NEXT is one of the next version, see variant. OWN_LINES, "port:port" pairs, are the ways to the
stores of every service's second replica, so that it can be cut off alone.
"""

import asyncio
import contextlib
import os
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.faults import variant

PLACES = {
    "approval-after-commit": "approval has committed a decision and not answered yet",
    "reservation-after-commit": "reservation has stored an answer and not replied yet",
    "relay-after-publish": "the stream has the events, the outbox still has them too",
    "consumer-after-commit": "a handler has committed, its messages are not acknowledged",
}
MUTATIONS = {
    "publish-before-commit": "approval publishes its events before the commit, which then may not come",
    "ack-before-commit": "consumers acknowledge before the handler has committed",
    "not-idempotent": "vaccine management takes a dose for every delivery of an approval",
    "read-then-write": "approval reads the places left without holding the day still",
    "validate-at-reader": "consumers refuse an event that breaks the contract as their version knows it",
    "widen-late": "no migration job runs: each consumer's filter is widened when its first new replica starts",
    "no-parking": "what this version does not know is tried a few times, and is a dead letter then",
    "recall-forgets": "a recall writes off the free doses, and looks at no booking on the lot",
    "gives-back-what-was-given": "a cancellation after the dose was given puts the dose back",
    "moves-keep-the-old-place": "a move claims the new place, and does not free the old one",
    "ledger-forgets-returns": "doses that come back are not entered in the ledger",
    "in-progress-for-ever": "a replica that is cut off from its store keeps the events that it has in hand",
}


def reached(place: str) -> None:
    """Dies here, if this process is the one that shall."""
    file = Path(os.environ["FAULTS"]) / COMPONENT
    with contextlib.suppress(FileNotFoundError):
        if file.read_text() == place:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def _after(cls: type, method: str, place: str) -> None:
    """Makes `place` of the moment after a method of a class has done its work."""
    original = getattr(cls, method)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        reached(place)
        return result

    setattr(cls, method, wrapped)


def _places() -> None:
    from services.approval.application import Approval
    from services.chassis.events import Bus, Subscription, delivery
    from services.reservation.application import ReservationDesk

    _after(Approval, "decide", "approval-after-commit")
    _after(ReservationDesk, "create", "reservation-after-commit")
    _after(Bus, "publish", "relay-after-publish")
    original = delivery.Delivery.__init__

    def init(self: Any, consumer: str, subscriptions: Sequence[Subscription[Any]]) -> None:
        wrapped: dict[Any, Callable[[Any], Awaitable[None]]] = {}  # who shares a handler goes on sharing it

        def then_reached(handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
            async def handle_and_reach(values: Any) -> None:
                await handle(values)
                reached("consumer-after-commit")

            return wrapped.setdefault(handle, handle_and_reach)

        original(self, consumer, [replace(s, handle=then_reached(s.handle)) for s in subscriptions])

    delivery.Delivery.__init__ = init  # type: ignore[method-assign]


def _mutate(name: str) -> None:
    if name == "ack-before-commit":
        from services.chassis.events import Consumer

        async def handle(self: Any, batch: Sequence[Any]) -> bool:
            for message in batch:
                await message.ack()
                self._pull.settled(message)
            await asyncio.sleep(0.05)
            reached("mutant-before-commit")
            with contextlib.suppress(Exception):
                async for _ in self._delivery.deliver(batch):
                    pass
            return True

        Consumer._handle = handle  # type: ignore[method-assign]
    elif name == "publish-before-commit":
        from services.approval.adapters.events import outgoing
        from services.approval.adapters.postgres import PostgresUnitOfWork

        save = PostgresUnitOfWork.save

        async def publish_then_save(self: PostgresUnitOfWork, ledger: Any) -> None:
            await _bus().publish([outgoing(event) for event in ledger.events])
            reached("mutant-before-commit")
            await save(self, ledger)

        PostgresUnitOfWork.save = publish_then_save  # type: ignore[method-assign]
    elif name == "not-idempotent":
        from services.vaccinemgmt.adapters.mongo import MongoUnitOfWork

        async def knows_nothing(self: Any, ids: Sequence[Any]) -> dict[Any, Any]:
            return {}

        MongoUnitOfWork.vaccinations = knows_nothing  # type: ignore[method-assign]
    elif name == "read-then-write":
        from services.approval.adapters import postgres as books

        books.LOCK_DAYS = books.LOCK_DAYS.replace(" FOR UPDATE", "")
        books.LOCK_ACTIVE = books.LOCK_ACTIVE.replace(" FOR UPDATE", "")
        books.TAKE_PLACES = books.TAKE_PLACES.replace(
            "approved = days.approved + d.n", "approved = least(d.n, capacity)"
        )

        async def write_what_was_read(self: Any, ledger: Any, granted: Sequence[Any], freed: Sequence[Any]) -> None:
            await asyncio.sleep(0.01)
            if keys := sorted({(a.hospital_id, a.date) for a in (*granted, *freed)}):
                numbers = [ledger.days[key].approved for key in keys]
                await self._transaction.write(books.TAKE_PLACES, [h for h, _ in keys], [d for _, d in keys], numbers)

        books.PostgresUnitOfWork._take_places = write_what_was_read  # type: ignore[method-assign]
    elif name == "validate-at-reader":
        from services.chassis.contract import violations
        from services.chassis.events.delivery import Delivery, Unprocessable

        read = Delivery._read

        def strictly(self: Delivery, arrived: Any) -> Any:
            event, value, subscription = read(self, arrived)
            if broken := violations(event.message):
                raise Unprocessable(str(broken))
            return event, value, subscription

        Delivery._read = strictly  # type: ignore[method-assign]
    elif name == "no-parking":
        from services.chassis.events import delivery

        original = delivery.Delivery._read

        def fails(self: Any, arrived: Any) -> Any:
            try:
                return original(self, arrived)
            except delivery.NotUnderstood as error:
                raise delivery.Unprocessable(str(error)) from error

        delivery.Delivery._read = fails  # type: ignore[method-assign]
    elif name == "in-progress-for-ever":
        from services.chassis.events import consumer, pull

        consumer.STORE_PATIENCE = pull.HOLD = float("inf")
    elif name in RULES_OF_THE_DOSE:
        RULES_OF_THE_DOSE[name]()
    elif name != "widen-late":  # the migration job's, see change
        raise SystemExit(f"no mutation {name}")


def _recall_forgets() -> None:
    from services.vaccinemgmt.application import Recalls

    async def look(self: Recalls, *, thoroughly: bool = False) -> int:
        return 0

    Recalls.look = look  # type: ignore[method-assign]


def _gives_back_what_was_given() -> None:
    from services.vaccinemgmt.domain import Status, Vaccination

    cancel = Vaccination.cancel

    def whatever_happened(self: Vaccination, now: datetime) -> Any:
        if self.status is Status.ADMINISTERED:
            self.status = Status.COMPLETED
        return cancel(self, now)

    Vaccination.cancel = whatever_happened  # type: ignore[method-assign]


def _moves_keep_the_old_place() -> None:
    from services.approval.domain import Ledger, Revocation, Revoked

    decide = Ledger.decide

    def and_keep(self: Ledger, request: Any, now: datetime) -> Any:
        decision = decide(self, request, now)
        moved = [e for e in self.events if isinstance(e, Revoked) and e.reason is Revocation.MOVED]
        for event in moved:
            self.events.remove(event)
        return decision

    Ledger.decide = and_keep  # type: ignore[method-assign]


def _ledger_forgets_returns() -> None:
    from services.vaccinemgmt.domain import Lot, MovementKind

    record = Lot._record

    def without(self: Lot, movement: Any) -> None:
        record(self, movement)
        if movement.kind is MovementKind.RETURNED:
            self.movements.remove(movement)

    Lot._record = without  # type: ignore[method-assign]


RULES_OF_THE_DOSE: dict[str, Callable[[], None]] = {
    "recall-forgets": _recall_forgets,
    "gives-back-what-was-given": _gives_back_what_was_given,
    "moves-keep-the-old-place": _moves_keep_the_old_place,
    "ledger-forgets-returns": _ledger_forgets_returns,
}


def _bus() -> Any:
    import gc

    from services.chassis.events import Bus

    gc.unfreeze()  # the services freeze what they begin with: it is not listed
    return next(o for o in gc.get_objects() if isinstance(o, Bus))


def _clock(file: Path) -> None:
    """The use cases get a clock that adds the file's seconds to their own."""
    import services.approval.application as approval
    import services.reservation.application as reservation

    def shifted(clock: Callable[[], datetime]) -> Callable[[], datetime]:
        def now() -> datetime:
            try:
                return clock() + timedelta(seconds=float(file.read_text() or 0))
            except (FileNotFoundError, ValueError):
                return clock()

        return now

    for cls, position in ((approval.Approval, 1), (reservation.ReservationDesk, 2)):
        original = cls.__init__

        def init(self: Any, *args: Any, original: Any = original, position: int = position) -> None:
            original(self, *args[:position], shifted(args[position]), *args[position + 1 :])

        cls.__init__ = init  # type: ignore[assignment]


def _hurry() -> None:
    """A replica that is cut off gives its events back sooner than in production, since runs are short; and customers,
    who are few and ask all the time, may be refused more often."""
    from services.approval import domain
    from services.chassis.events import consumer, pull

    consumer.STORE_PATIENCE, pull.HOLD = 5.0, 20.0
    domain.MOST_REFUSALS = 1_000_000


def _own_lines(ports: dict[str, str]) -> None:
    """This replica reaches its stores by ports of its own."""
    from pydantic import SecretStr

    from services.chassis.settings import Settings

    load = Settings.load.__func__  # type: ignore[attr-defined]

    def moved(text: str) -> str:
        for shared, own in ports.items():
            text = text.replace(f":{shared}", f":{own}")
        return text

    def load_moved(cls: type[Settings]) -> Settings:
        settings: Settings = load(cls)
        url = SecretStr(moved(settings.database_url.get_secret_value()))
        return settings.model_copy(update={"database_url": url, "nats_url": moved(settings.nats_url)})

    Settings.load = classmethod(load_moved)  # type: ignore[assignment]


COMPONENT = ""  # as mesh calls this process

if __name__ == "__main__":
    COMPONENT, service = sys.argv[1:3]
    del sys.argv[1:3]
    _places()
    _hurry()
    if (lines := os.environ.get("OWN_LINES")) and COMPONENT.endswith("-2"):
        _own_lines(dict(line.split(":") for line in lines.split()))
    if COMPONENT in Path(os.environ["NEXT"]).read_text().split():
        import services.chassis.version as code

        setattr(code, "version", lambda: "next")  # noqa: B010 - mypy knows it as what it is
        variant.install(service.rpartition(".")[2])
    if mutation := os.environ.get("MUTATION"):
        _mutate(mutation)
    if clock := os.environ.get("CLOCK_OFFSET"):
        _clock(Path(clock))
    runpy.run_module(service, run_name="__main__", alter_sys=True)
