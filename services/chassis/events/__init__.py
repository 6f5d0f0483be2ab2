"""Events: written beside the state they tell of, published by a relay, handled by durable consumers.

| module     | what it is                                                                    |
|------------|-------------------------------------------------------------------------------|
| stream     | the connection to NATS, its streams, publishing in atomic batches             |
| outbox     | events on their way: rows beside the state, and the relay that publishes them |
| pull       | a consumer's messages in batches, for as long as somebody asks                |
| delivery   | what becomes of an event that arrives: plain logic                            |
| consumer   | a service's durable consumer: pull, deliver, settle                           |
| setaside   | dead letters, parked events, events that will be tried again                  |
| redrive    | what was set aside comes back by itself                                       |
| purge      | events leave the stream when they are over                                    |
| erasure    | a person's events leave the streams                                           |
| replay     | what a stream holds, once more                                                |
| books      | the store's accounts, and what the events say they should be                  |
| operations | looking after all of it, over gRPC                                            |
"""

from .consumer import Consumer
from .delivery import Event, NotUnderstood, Subscription, Unprocessable
from .outbox import LOOK_EVERY, OutboxStore, Outgoing, PublishFailed, Relay
from .stream import STREAM, Bus

__all__ = [
    "LOOK_EVERY",
    "STREAM",
    "Bus",
    "Consumer",
    "Event",
    "NotUnderstood",
    "OutboxStore",
    "Outgoing",
    "PublishFailed",
    "Relay",
    "Subscription",
    "Unprocessable",
]
