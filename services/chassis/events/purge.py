"""Events leave the stream when they are over and no consumer needs them any more.

Never by a limit of the stream's own: the server would take away what a consumer that is behind has not had yet.
"""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime, timedelta
from functools import partial

from google.protobuf.message import Message

from ..retention import EPOCH, Retention, Rule
from .outbox import PublishFailed
from .stream import SET_ASIDE, STREAM, Bus, boundary

PURGE_WITHIN = 60.0  # seconds
# The stream's time and the services' are two clocks.
SKEW = timedelta(1)
DISCARDED = f"{SET_ASIDE}.*.discarded"


class Purge:
    """Rules for one service to apply, in any number of replicas: a purge of what is gone purges nothing.

    `refusals` are the events about what is kept only as long as refusals are. `needed_since` tells when the first of
    the things was decided that were decided before a time and whose events are needed all the same.
    """

    def __init__(
        self,
        bus: Bus,
        retention: Retention,
        refusals: Collection[type[Message]],
        needed_since: Callable[[datetime], Awaitable[datetime | None]],
    ) -> None:
        self._bus, self._retention, self._needed_since = bus, retention, needed_since
        self._refusals = [event.DESCRIPTOR.full_name for event in refusals]

    def rules(self) -> list[Rule]:
        """Each purges in one request whatever is over, however much that is."""
        refused = [Rule(f"{subject} in the stream", partial(self._refused, subject)) for subject in self._refusals]
        return [
            Rule("events", self._events),
            *refused,
            Rule("discarded dead letters", self._discarded),
        ]

    async def _events(self, _limit: int) -> int:
        before = self._retention.published_before
        needed = await self._needed_since(before)
        return await self._purge(STREAM, ">", min(before, needed - SKEW) if needed else before)

    async def _refused(self, subject: str, _limit: int) -> int:
        return await self._purge(STREAM, subject, self._retention.refused_before - SKEW)

    async def _discarded(self, _limit: int) -> int:
        return await self._purge(SET_ASIDE, DISCARDED, self._retention.published_before)

    async def _purge(self, stream: str, subject: str, before: datetime) -> int:
        """Takes away what the stream took before a time, and what every consumer of it has acknowledged."""
        if before <= EPOCH:
            return 0
        with boundary():
            first = (await self._bus.js.stream_info(stream)).state.first_seq
            end = min(await self._bus.first_since(stream, before), await self._unhandled(stream))
            if end <= first:  # a purge up to the first message would be one without a limit
                return 0
            answer = await self._bus.ask(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": end}, PURGE_WITHIN)
        if refused := answer.get("error"):
            raise PublishFailed(f"stream {stream}: {refused.get('description')}")
        return int(answer["purged"])

    async def _unhandled(self, stream: str) -> int:
        """The number of the first message that a consumer still needs, or one behind the last."""
        end = (await self._bus.js.stream_info(stream)).state.last_seq + 1
        seen = 0
        while page := await self._bus.js.consumers_info(stream, seen):
            for info in page:
                if info.num_pending or info.num_ack_pending:
                    end = min(end, (info.ack_floor.stream_seq if info.ack_floor else 0) + 1)
            seen += len(page)
        return end
