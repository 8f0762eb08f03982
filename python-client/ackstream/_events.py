"""What a consumer reports about its stream, for logs, metrics and people. Events never alter delivery."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["AnswersDiscarded", "StreamEvent", "StreamLost", "StreamOpened"]


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The server has answered: deliveries come from now on.

    Attributes:
        target: The server's address, as given to `connect`.
        epoch: Names one life of the topic's message ids. Ids compare only within an epoch: after a restart the server
            counts from 1 again, under another epoch. To recognise a message that was seen before, remember `(epoch,
            id)`.
        topic: The topic in effect.
        subscription: The subscription in effect.
        ack_deadline: Seconds that the server waits for an answer before it delivers a message again.
        max_retries: How many retries a message has after its first delivery; None = unlimited.
        server_version: For example "0.1.0".
        reconnected: False for the consumer's first stream.
    """

    target: str
    epoch: int
    topic: str
    subscription: str
    ack_deadline: float
    max_retries: int | None
    server_version: str
    reconnected: bool


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream broke, or could not be opened; the consumer tries again.

    Attributes:
        target: The server's address, as given to `connect`.
        reason: What happened, with the gRPC status code.
        retry_in: Seconds until the next attempt.
    """

    target: str
    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class AnswersDiscarded:
    """Acks, nacks and extends to an epoch that is over were thrown away: they would settle strangers with the same ids.

    Attributes:
        count: How many.
    """

    count: int


StreamEvent: TypeAlias = StreamOpened | StreamLost | AnswersDiscarded
OnEvent: TypeAlias = Callable[[StreamEvent], None]
