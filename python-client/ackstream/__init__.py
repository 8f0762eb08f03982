"""Messages delivered at least once over gRPC streams: the Python client of ackstream.

    import asyncio, ackstream

    async def handle(delivery: ackstream.Delivery) -> None:
        print(delivery.id, delivery.attempt, delivery.published_at, delivery.payload)

    async def main() -> None:
        async with ackstream.connect("localhost:50051") as client:
            await client.publish("demo", b"hello", attributes={"kind": "new"})
            await client.consume("demo", "demo").run(handle, concurrency=16)

    asyncio.run(main())

What is accepted is delivered until it is acked, or dropped by the server for a reason that it counts. A message may
come more than once and, after a retry, out of order: handlers should bear that. Lengths of time are in seconds,
everywhere. The library logs to the logger "ackstream".
"""

from ackstream._client import Client, connect
from ackstream._consumer import Consumer, Handler
from ackstream._credentials import Tls, Token, read_token
from ackstream._delivery import Delivery
from ackstream._errors import (
    AckstreamError,
    Misused,
    PublishRefused,
    Reject,
    ServerUnreachable,
    StreamEnded,
    StreamRefused,
    UnsupportedByServer,
)
from ackstream._events import AnswersDiscarded, StreamEvent, StreamLost, StreamOpened
from ackstream._publications import Message

__all__ = [
    "AckstreamError",
    "AnswersDiscarded",
    "Client",
    "Consumer",
    "Delivery",
    "Handler",
    "Message",
    "Misused",
    "PublishRefused",
    "Reject",
    "ServerUnreachable",
    "StreamEnded",
    "StreamEvent",
    "StreamLost",
    "StreamOpened",
    "StreamRefused",
    "Tls",
    "Token",
    "UnsupportedByServer",
    "connect",
    "read_token",
]
