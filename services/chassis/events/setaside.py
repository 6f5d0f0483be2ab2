"""Events that a consumer could not handle now, kept in a stream of their own so that nothing behind them waits.

| kind   | its subject in the stream             | until                                       |
|--------|---------------------------------------|---------------------------------------------|
| DEAD   | DEAD_LETTERS.CONSUMER                 | an operator redrives or discards it         |
| PARKED | DEAD_LETTERS.CONSUMER.parked.EVENT    | a version that knows it starts, or as above |
| RETRY  | DEAD_LETTERS.CONSUMER.retry.EVENT     | its pause is over, and it is tried again    |
| (none) | DEAD_LETTERS.CONSUMER.discarded       | RETENTION_STREAM_DAYS are over; it tells    |
|        |                                       | the content, who gave it up, and why        |
"""

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum

from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from ..telemetry import without_row_values
from .stream import SET_ASIDE, Bus

_HISTORY, _NOT_BEFORE = "Dead-Letter-History", "Dead-Letter-Not-Before"
_FAILURES, _ATTEMPTS, _PARKED_BY = "Dead-Letter-Failures", "Dead-Letter-Attempts", "Dead-Letter-Parked-By"
KEPT_HISTORY = 20  # entries: a message's headers have a limit


class Kind(Enum):
    """What a letter waits for: see this module's table."""

    DEAD = ""
    PARKED = ".parked."
    RETRY = ".retry."


@dataclass(frozen=True)
class Failure:
    """A time an event could not be handled: when, why, and tries until then."""

    time: str
    reason: str
    tries: int

    @classmethod
    def of(cls, error: Exception, tries: int) -> "Failure":
        """Now, and why."""
        reason = f"{type(error).__name__}: {without_row_values(str(error))}"[:500]
        return cls(datetime.now(UTC).isoformat(), reason, tries)


@dataclass(frozen=True)
class Letter:
    """An event that was set aside.

    `subject` is the event's type and `stream_sequence` its number in the stream that it came from; `sequence` is the
    letter's own number. `failures` counts how often its handler failed, and `attempts` how often somebody began to
    handle the letter and did not say how it went. `parked_by` is the version that last could not handle it.
    """

    subject: str
    stream_sequence: int
    headers: Mapping[str, str]
    data: bytes
    history: Sequence[Failure] = ()
    sequence: int = 0
    kind: Kind = Kind.DEAD
    failures: int = 0
    attempts: int = 0
    parked_by: str = ""
    not_before: datetime = field(default=datetime.min.replace(tzinfo=UTC))

    def noted(self, error: Exception, tries: int) -> "Letter":
        """With one more entry in its history, of which the last ones are kept."""
        return replace(self, history=[*self.history, Failure.of(error, tries)][-KEPT_HISTORY:])


class SetAside:
    """The letters of one consumer."""

    def __init__(self, bus: Bus, consumer: str) -> None:
        self._bus, self.consumer = bus, consumer
        self._subject = f"{SET_ASIDE}.{consumer}"

    @property
    def _js(self) -> JetStreamContext:
        return self._bus.js

    async def put(self, letter: Letter, kind: Kind, only_once: bool = True) -> Letter:
        """Adds a letter, and returns it with its number.

        With `only_once` the same one added once more, since its delivery was repeated, changes nothing.
        """
        headers = {
            "Nats-Msg-Id": f"{self.consumer}-{letter.stream_sequence}-{len(letter.history)}{kind.value}"
            if only_once
            else uuid.uuid4().hex,
            "Dead-Letter-Consumer": self.consumer,
            "Dead-Letter-Subject": letter.subject,
            "Dead-Letter-Sequence": str(letter.stream_sequence),
            _HISTORY: json.dumps([[f.time, f.reason, f.tries] for f in letter.history]),
            _NOT_BEFORE: letter.not_before.isoformat(),
            _FAILURES: str(letter.failures),
            _ATTEMPTS: str(letter.attempts),
            _PARKED_BY: letter.parked_by,
        }
        if letter.history:
            last = letter.history[-1]
            reason = last.reason.encode("ascii", "replace").decode().replace("\n", " ")
            headers |= {"Dead-Letter-Tries": str(last.tries), "Dead-Letter-Reason": reason}
        subject = self._subject + (f"{kind.value}{letter.subject}" if kind.value else "")
        ack = await self._js.publish(subject, letter.data, headers=_kept(letter.headers) | headers)
        return replace(letter, sequence=ack.seq, kind=kind)

    async def remove(self, letter: Letter) -> bool:
        """Takes a letter away; False if it was gone already: then somebody else has it in hand."""
        try:
            return await self._js.delete_msg(SET_ASIDE, letter.sequence)
        except APIError as error:
            if error.err_code not in (10043, 10057):  # there is no such message, or no more
                raise
            return False

    async def replace(self, letter: Letter, by: Letter, kind: Kind) -> Letter | None:
        """Puts another letter in a letter's place; None if somebody else has taken that in hand meanwhile.

        The new one is there before the old one goes: a death in between leaves both, and loses none.
        """
        put = await self.put(by, kind, only_once=False)
        if await self.remove(letter):
            return put
        await self.remove(put)
        return None

    async def claim(self, letter: Letter, until: datetime) -> Letter | None:
        """Takes a letter in hand: nobody else gets it before `until`; None if somebody else was faster.

        What the claimant writes down first is that it has tried once more. So a letter that kills whoever handles it
        is noticed, and one whose claimant died is tried again.
        """
        mine = replace(letter, attempts=letter.attempts + 1, not_before=until)
        return await self.replace(letter, mine, Kind.RETRY)

    async def discard(self, letter: Letter, who: str, why: str) -> None:
        """Gives a letter up: it moves out of the list; who did it and why stays beside its content."""
        about = {"Nats-Msg-Id": f"discard-{letter.sequence}", "Discard-By": who, "Discard-Reason": json.dumps(why)}
        kept = {key: value.encode("ascii", "replace").decode() for key, value in letter.headers.items()}
        await self._js.publish(f"{self._subject}.discarded", letter.data, headers=kept | about)
        await self.remove(letter)

    async def page(self, kind: Kind, after: int, limit: int, event: str = ">") -> list[Letter]:
        """The oldest of a kind behind a sequence number, of one type of event or of all."""
        found: list[Letter] = []
        while len(found) < limit:
            letter = await self._next(self._subject + (f"{kind.value}{event}" if kind.value else ""), after + 1)
            if letter is None:
                break
            found.append(letter)
            after = letter.sequence
        return found

    async def get(self, sequence: int) -> Letter | None:
        """A dead or parked letter of this consumer."""
        for subject in (self._subject, f"{self._subject}{Kind.PARKED.value}>"):
            letter = await self._next(subject, sequence)
            if letter and letter.sequence == sequence:
                return letter
        return None

    async def dead(self) -> int:
        """How many dead letters there are."""
        info = await self._js.stream_info(SET_ASIDE, subjects_filter=self._subject)
        return sum((info.state.subjects or {}).values())

    async def waiting(self) -> dict[Kind, Counter[str]]:
        """How many letters are parked, and how many will be tried again, by their event's type; one request."""
        info = await self._js.stream_info(SET_ASIDE, subjects_filter=f"{self._subject}.>")
        counts = {kind: Counter[str]() for kind in (Kind.PARKED, Kind.RETRY)}
        for subject, count in (info.state.subjects or {}).items():
            for kind, of_kind in counts.items():
                if subject.startswith(prefix := self._subject + kind.value):
                    of_kind[subject.removeprefix(prefix)] += count
        return counts

    async def first(self) -> int | None:
        """The smallest number in the stream of an event that is parked or will be tried again; None without any."""
        numbers = [letter.stream_sequence for kind in (Kind.PARKED, Kind.RETRY) for letter in await self._all(kind)]
        return min(numbers, default=None)

    async def _all(self, kind: Kind) -> list[Letter]:
        found: list[Letter] = []
        while page := await self.page(kind, found[-1].sequence if found else 0, 256):
            found += page
        return found

    async def last_sequence(self) -> int:
        """The number of the last letter there is, of any consumer."""
        return (await self._js.stream_info(SET_ASIDE)).state.last_seq

    async def _next(self, subject: str, sequence: int) -> Letter | None:
        """The first from a sequence number on."""
        try:
            message = await self._js.get_msg(SET_ASIDE, seq=sequence, subject=subject, next=True)
        except NotFoundError:
            return None
        # The client hands out values that are not ASCII as objects of its own.
        headers = {k: str(v) for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
        return Letter(
            subject=headers.get("Dead-Letter-Subject", ""),
            stream_sequence=int(headers.get("Dead-Letter-Sequence", 0)),
            headers=headers,
            data=message.data or b"",
            history=[Failure(*entry) for entry in json.loads(headers.get(_HISTORY, "[]"))],
            sequence=message.seq or 0,
            kind=next((k for k in (Kind.PARKED, Kind.RETRY) if k.value in (message.subject or "")), Kind.DEAD),
            failures=int(headers.get(_FAILURES, 0)),
            attempts=int(headers.get(_ATTEMPTS, 0)),
            parked_by=headers.get(_PARKED_BY, ""),
            not_before=datetime.fromisoformat(headers.get(_NOT_BEFORE, "0001-01-01T00:00:00+00:00")),
        )


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """The event's own headers: anybody's may be of a kind that cannot be written again."""
    kept = {key: headers[key] for key in headers if key.startswith("ce-") or key in ("traceparent", "content-type")}
    return {key: value.encode("ascii", "replace").decode() for key, value in kept.items()}
