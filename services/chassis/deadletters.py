"""Events that a consumer could not handle: kept in a stream of their own, with why, until somebody decides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from .telemetry import without_row_values

STREAM = "DEAD_LETTERS"
_HISTORY = "Dead-Letter-History"


@dataclass(frozen=True)
class Failure:
    """A time an event could not be handled: when, why, and deliveries until then."""

    time: str
    reason: str
    tries: int

    @classmethod
    def of(cls, error: Exception, tries: int) -> "Failure":
        """Now, and why."""
        return cls(
            datetime.now(UTC).isoformat(), f"{type(error).__name__}: {without_row_values(str(error))}"[:500], tries
        )


@dataclass(frozen=True)
class DeadLetter:
    """An event that could not be handled. `sequence` is its number here, `stream_sequence` where it came from."""

    sequence: int
    subject: str
    stream_sequence: int
    headers: Mapping[str, str]
    data: bytes
    history: Sequence[Failure]


class DeadLetters:
    """One consumer's."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._subject = f"{STREAM}.{consumer}"

    async def bury(
        self,
        js: JetStreamContext,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        stream_sequence: int,
        history: Sequence[Failure],
    ) -> None:
        """Adds one; the same one once more, before its delivery has ended, changes nothing."""
        # Only what is ours: anybody's header may be of a kind that cannot be written again.
        kept = {key: headers[key] for key in headers if key.startswith("ce-") or key in ("traceparent", "content-type")}
        kept = {key: value.encode("ascii", "replace").decode() for key, value in kept.items()}
        about = {
            "Nats-Msg-Id": f"{self._consumer}-{stream_sequence}-{len(history)}",
            "Dead-Letter-Consumer": self._consumer,
            "Dead-Letter-Subject": subject,
            "Dead-Letter-Sequence": str(stream_sequence),
            "Dead-Letter-Tries": str(history[-1].tries),
            "Dead-Letter-Reason": history[-1].reason.encode("ascii", "replace").decode().replace("\n", " "),
            _HISTORY: json.dumps([[f.time, f.reason, f.tries] for f in history]),
        }
        await js.publish(self._subject, data, headers=kept | about)

    async def page(self, js: JetStreamContext, after: int, limit: int) -> list[DeadLetter]:
        """The oldest behind a sequence number."""
        found: list[DeadLetter] = []
        while len(found) < limit:
            letter = await self._next(js, after + 1)
            if letter is None:
                break
            found.append(letter)
            after = letter.sequence
        return found

    async def get(self, js: JetStreamContext, sequence: int) -> DeadLetter | None:
        """One, if it is this consumer's."""
        letter = await self._next(js, sequence)
        return letter if letter and letter.sequence == sequence else None

    async def count(self, js: JetStreamContext) -> int:
        """How many there are."""
        info = await js.stream_info(STREAM, subjects_filter=self._subject)
        return sum((info.state.subjects or {}).values())

    async def last_sequence(self, js: JetStreamContext) -> int:
        """The number of the last one there is, of any consumer."""
        return (await js.stream_info(STREAM)).state.last_seq

    async def remove(self, js: JetStreamContext, sequence: int) -> None:
        """Takes one away; one that is gone already stays so."""
        try:
            await js.delete_msg(STREAM, sequence)
        except NotFoundError:
            pass

    async def discard(self, js: JetStreamContext, letter: DeadLetter, who: str, why: str) -> None:
        """Gives one up: it moves out of the list; who did it and why stays beside its content."""
        about = {"Nats-Msg-Id": f"discard-{letter.sequence}", "Discard-By": who, "Discard-Reason": json.dumps(why)}
        kept = {key: value.encode("ascii", "replace").decode() for key, value in letter.headers.items()}
        await js.publish(f"{self._subject}.discarded", letter.data, headers=kept | about)
        await self.remove(js, letter.sequence)

    async def _next(self, js: JetStreamContext, sequence: int) -> DeadLetter | None:
        """The first from a sequence number on."""
        try:
            message = await js.get_msg(STREAM, seq=sequence, subject=self._subject, next=True)
        except NotFoundError:
            return None
        # The client hands out values that are not ASCII as objects of its own.
        headers = {k: str(v) for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
        history = [Failure(*entry) for entry in json.loads(headers.get(_HISTORY, "[]"))]
        return DeadLetter(
            message.seq or 0,
            headers.get("Dead-Letter-Subject", ""),
            int(headers.get("Dead-Letter-Sequence", 0)),
            headers,
            message.data or b"",
            history,
        )
