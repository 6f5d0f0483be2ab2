"""What a stream holds, once more, beside the consumers that handle it."""

from collections.abc import AsyncGenerator, Sequence

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from .stream import PUBLISH_TIMEOUT, Bus

BATCH = 500  # messages


async def replay(
    bus: Bus, stream: str, after: int, subjects: Sequence[str] = (), batch: int = BATCH
) -> AsyncGenerator[tuple[list[Msg], int], None]:
    """What comes behind a message, and how many more there are then, by a consumer that is thrown away at the end.

    First it tells with an empty batch how many there are. It ends when nothing more is there, and also where something
    was lost on the way: the caller goes on behind the last message that it got. `subjects`: only these.
    Raises what nats-py raises; see stream.boundary.
    """
    begin = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=after + 1,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=60,
        filter_subjects=list(subjects) or None,
    )
    messages = await bus.js.pull_subscribe(">", stream=stream, config=begin)
    info = await messages.consumer_info()
    try:
        expected, left = 1, info.num_pending or 0
        yield [], left
        while left:
            try:
                found = await messages.fetch(batch, PUBLISH_TIMEOUT)
            except nats.errors.TimeoutError:  # or all that was left has been deleted
                return
            numbers = [message.metadata.sequence.consumer for message in found]
            if numbers != [*range(expected, expected + len(found))]:
                return
            expected, left = expected + len(found), found[-1].metadata.num_pending or 0
            yield found, left
    finally:
        await messages.unsubscribe()
        await bus.js.delete_consumer(stream, info.name)
