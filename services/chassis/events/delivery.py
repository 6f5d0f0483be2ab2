"""What becomes of an event that arrives. Plain logic: it knows no stream, and tests need no server for it.

| what happens                                                  | fate              |
|---------------------------------------------------------------|-------------------|
| the handler returned: its effect is committed                 | HANDLED           |
| it has nothing to do for the event any more                   | HANDLED           |
| the store is not there now, which is nobody's fault           | WAITS_FOR_STORE   |
| this version has no handler, or cannot read a value           | WAITS_FOR_VERSION |
| the handler failed; the next try may succeed                  | FAILED            |
| it is no event at all, or a rule says that it never can be so | UNPROCESSABLE     |
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from .. import tracing
from ..errors import StoreUnavailable
from ..telemetry import traces_by_key
from .outbox import BrokenContract


class Unprocessable(Exception):
    """The event can never be handled, however often it is tried and by whatever version."""


class NotUnderstood(Exception):
    """This version cannot handle the event. A newer one may: it was written by a newer one, or by another service."""


class NothingToDo(Exception):
    """The event is about something that is kept no longer: it counts as handled, and no handler gets it."""


@dataclass(frozen=True)
class Event:
    """A received event. `message` is the protobuf message of its type, as it could be decoded."""

    id: str
    key: str
    type: str
    time: datetime
    message: Any


T = TypeVar("T")


@dataclass(frozen=True)
class Subscription(Generic[T]):
    """What a service does with one type of event.

    `read` takes from an event what the handler needs; what it raises means that this version cannot read the event,
    except Unprocessable and NothingToDo. `handle` gets all of a batch in one call, and order does not matter to it; it
    returns when their effect is committed. Subscriptions with the same handler share its calls. `never` are the
    handler's errors that no repetition mends, and `not_yet` those that a newer version may not have.
    """

    event: type[Message]
    read: Callable[[Event], T]
    handle: Callable[[Sequence[T]], Awaitable[None]]
    never: tuple[type[Exception], ...] = ()
    not_yet: tuple[type[Exception], ...] = ()


class Arrived(Protocol):
    """A message as the stream delivers it: the event's type is its subject."""

    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str] | None: ...


A = TypeVar("A", bound=Arrived)


class Fate(Enum):
    """See this module's table."""

    HANDLED = auto()
    WAITS_FOR_STORE = auto()
    WAITS_FOR_VERSION = auto()
    FAILED = auto()
    UNPROCESSABLE = auto()


@dataclass(frozen=True)
class Outcome:
    """How it went; `error` says why, unless the event was handled."""

    fate: Fate
    error: Exception | None = None


@dataclass(frozen=True)
class _Readable(Generic[A]):
    arrived: A
    event: Event
    value: Any
    subscription: Subscription[Any]


class Delivery:
    """Hands events to the handlers of a service. `consumer` is its name."""

    def __init__(self, consumer: str, subscriptions: Sequence[Subscription[Any]]) -> None:
        self._consumer = consumer
        self._subscriptions = {s.event.DESCRIPTOR.full_name: s for s in subscriptions}

    @property
    def types(self) -> frozenset[str]:
        """The types of events that this version handles."""
        return frozenset(self._subscriptions)

    def message_class(self, subject: str) -> type[Message] | None:
        """The protobuf message of a type that it handles."""
        known = self._subscriptions.get(subject)
        return known.event if known else None

    def understands(self, arrived: Arrived) -> bool:
        """Whether this version can read the event, so that handing it over is worth a try."""
        try:
            self._read(arrived)
        except NothingToDo:
            return True
        except (NotUnderstood, Unprocessable):
            return False
        return True

    async def deliver(self, batch: Sequence[A]) -> AsyncIterator[tuple[Sequence[A], Outcome]]:
        """Hands over a batch, and tells what became of its messages as soon as it is known."""
        runs: dict[Callable[..., Any], list[_Readable[A]]] = {}
        for arrived in batch:
            try:
                event, value, subscription = self._read(arrived)
            except Unprocessable as error:
                yield [arrived], Outcome(Fate.UNPROCESSABLE, error)
            except NotUnderstood as error:
                yield [arrived], Outcome(Fate.WAITS_FOR_VERSION, error)
            except NothingToDo:
                yield [arrived], Outcome(Fate.HANDLED)
            else:
                runs.setdefault(subscription.handle, []).append(_Readable(arrived, event, value, subscription))
        for run in runs.values():
            async for some in self._hand_over(run):
                yield some

    async def _hand_over(self, run: Sequence[_Readable[A]]) -> AsyncIterator[tuple[Sequence[A], Outcome]]:
        """All in one call; when that fails, one by one, so that no event spoils another's."""
        outcome = Outcome(Fate.HANDLED)
        try:
            with self._spans(run):
                await run[0].subscription.handle([readable.value for readable in run])
        except StoreUnavailable as error:
            outcome = Outcome(Fate.WAITS_FOR_STORE, error)
        except Exception as error:
            if len(run) > 1:
                for one in run:
                    async for some in self._hand_over([one]):
                        yield some
                return
            outcome = Outcome(_fate_of(error, run[0].subscription), error)
        yield [readable.arrived for readable in run], outcome

    def _read(self, arrived: Arrived) -> tuple[Event, Any, Subscription[Any]]:
        subscription = self._subscriptions.get(arrived.subject)
        if subscription is None:
            raise NotUnderstood(f"{self._consumer} has no handler for {arrived.subject}")
        message, headers = subscription.event(), arrived.headers or {}
        try:
            message.ParseFromString(arrived.data)
            time = datetime.fromisoformat(headers["ce-time"])
            event = Event(headers["ce-id"], headers["ce-subject"], arrived.subject, time, message)
        except (DecodeError, KeyError, ValueError) as error:
            raise Unprocessable(f"undecodable: {type(error).__name__}") from error
        try:
            return event, subscription.read(event), subscription
        except (Unprocessable, NothingToDo):
            raise
        except Exception as error:
            raise NotUnderstood(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _spans(self, run: Sequence[_Readable[Any]]) -> Iterator[None]:
        """Handling a batch is a span in each of its events' traces, and what comes out of an event goes on from it."""
        traces = [(readable.event, (readable.arrived.headers or {}).get("traceparent", "")) for readable in run]
        if not tracing.exporting():
            traces_by_key.set({event.key: trace for event, trace in traces})
            yield
            return
        spans = []
        for event, trace in traces:
            about = tracing.of_message("process", event.type, len(traces))
            about["messaging.consumer.group.name"] = self._consumer
            spans.append(tracing.begin(f"process {event.type}", "CONSUMER", trace, about))
        traces_by_key.set({event.key: span.traceparent for (event, _), span in zip(traces, spans, strict=True)})
        failed = True
        try:
            yield
            failed = False
        finally:
            for span in spans:
                span.end(failed=failed)


def _fate_of(error: Exception, subscription: Subscription[Any]) -> Fate:
    if isinstance(error, (Unprocessable, *subscription.never)):
        return Fate.UNPROCESSABLE
    # An event that follows from this one would break the contract as this version knows it.
    if isinstance(error, (NotUnderstood, BrokenContract, *subscription.not_yet)):
        return Fate.WAITS_FOR_VERSION
    return Fate.FAILED
