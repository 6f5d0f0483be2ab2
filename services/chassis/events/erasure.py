"""What is kept of a person is erased: rows by each service, events by the one whose view is made of them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from nats.js.errors import APIError, NotFoundError

from .outbox import PublishFailed
from .replay import BATCH, replay
from .stream import SET_ASIDE, STREAM, Bus, boundary


class PersonActive(Exception):
    """Something of the person's is not over, and all of the person's is needed until it is."""


@dataclass(frozen=True)
class Found:
    """How far a look through a stream is: messages deleted, the number of the last one looked at, messages left."""

    deleted: int
    looked_at: int
    to_go: int


class StreamEraser:
    """Deletes a person's messages from both streams. `subject_of` tells from a payload whose it is, "" for nobody's."""

    def __init__(self, bus: Bus, subject_of: Callable[[bytes], str]) -> None:
        self._bus, self._subject_of = bus, subject_of

    async def erase(self, subject: str, after: int) -> AsyncIterator[Found]:
        """Looks at every message that is there now, of the stream of events behind `after`; raises PublishFailed."""
        deleted, looked_at = 0, after
        for stream in (STREAM, SET_ASIDE):
            async for found in self._erase_from(stream, subject, after if stream == STREAM else 0):
                looked_at = found.looked_at if stream == STREAM else looked_at
                yield Found(deleted + found.deleted, looked_at, found.to_go)
            deleted += found.deleted

    async def _erase_from(self, stream: str, subject: str, after: int) -> AsyncIterator[Found]:
        wanted, deleted, looked_at = subject.encode(), 0, after
        with boundary():
            last = (await self._bus.js.stream_info(stream)).state.last_seq
            while await self._next_after(stream, begun := looked_at) <= last:
                async with aclosing(replay(self._bus, stream, looked_at, batch=BATCH)) as batches:
                    async for batch, left in batches:
                        for message in batch:
                            if wanted in message.data and self._subject_of(message.data) == subject:
                                deleted += await self._delete(stream, message.metadata.sequence.stream)
                        looked_at = batch[-1].metadata.sequence.stream if batch else looked_at
                        yield Found(deleted, looked_at, left)
                        if looked_at >= last:
                            break
                if looked_at == begun:
                    raise PublishFailed(f"the stream {stream} does not deliver")
        yield Found(deleted, max(looked_at, last), 0)

    async def _next_after(self, stream: str, sequence: int) -> int:
        """The number of the next message, or one that no message has."""
        try:
            return (await self._bus.js.get_msg(stream, seq=sequence + 1, subject=">", next=True)).seq or 0
        except NotFoundError:
            return sequence + 2**62

    async def _delete(self, stream: str, sequence: int) -> bool:
        """Deletes a message, and overwrites it where it was on the disk; False when it was gone already."""
        try:
            return await self._bus.js.delete_msg(stream, sequence)
        except APIError as error:
            if error.err_code not in (10043, 10057):  # no such message
                raise
            return False


@dataclass(frozen=True)
class Eraser:
    """What a service has of a person.

    `rows` deletes all that is stored, or gives it to nobody where an account needs it; it returns how many rows, or
    None when something of the person's is not over: then nothing has changed. `is_active` tells before `stream`
    deletes events whether it would be so.
    """

    rows: Callable[[str], Awaitable[int | None]]
    stream: StreamEraser | None = None
    is_active: Callable[[str], Awaitable[bool]] | None = None
