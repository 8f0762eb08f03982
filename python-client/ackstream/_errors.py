"""What can go wrong, as one small tree.

AckstreamError
├── ServerUnreachable   no server could be had within `connect_timeout`                   a retry helps, later
├── StreamRefused       the server says that this client is wrong: unknown topic, ...     a retry does not help
├── StreamEnded         the server has finished, or this client was closed, before a      a retry helps where a
│                       publish had its answer: it may be stored                          server is left
├── PublishRefused      the server did not take one publish: nothing of it is stored      `retryable` says
├── UnsupportedByServer the server is of a version that cannot do it: nothing was sent    a retry does not help
└── Misused             the client belongs to another event loop or process               a retry does not help

Reject                  no error: raised by a handler to give its message up
"""

from collections.abc import Mapping

import grpc

__all__ = [
    "AckstreamError",
    "Misused",
    "PublishRefused",
    "Reject",
    "ServerUnreachable",
    "StreamEnded",
    "StreamRefused",
    "UnsupportedByServer",
]


class AckstreamError(Exception):
    """What every error of this library is.

    Attributes:
        retryable: Whether the same call can succeed later, with nothing changed.
    """

    retryable: bool = False


class ServerUnreachable(AckstreamError):
    """No server could be had for `connect_timeout` seconds. A retry helps, later.

    The text ends with what the last attempt met. Publishes without an answer fail with it too, and may be stored all
    the same.
    """

    retryable = True


class StreamRefused(AckstreamError):
    """The server ended the stream with an error of the client, for example NOT_FOUND for a topic that it does not have.

    A retry does not help: something has to be changed first.

    Attributes:
        code: The gRPC status code with which the stream ended.
    """

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code


class StreamEnded(AckstreamError):
    """The stream came to its regular end before a publish had its answer: it may be stored, or not.

    A retry helps where a server is left, and may store the message twice.
    """

    retryable = True


class PublishRefused(AckstreamError):
    """The server did not accept a publish, and stored nothing of it.

    Attributes:
        code: RESOURCE_EXHAUSTED (a backlog is full: retry later), UNAVAILABLE (the server is draining: retry
            elsewhere), INVALID_ARGUMENT (too large or invalid), or PERMISSION_DENIED (this client may not publish
            there): a retry does not help.
        retryable: Whether a retry helps; see `code`.
        position: Which message of `publish_many` it was, from 0; 0 for `publish`.
        accepted: The ids of those messages of `publish_many` that were accepted, by their position.
    """

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code
        self.retryable = code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        self.position = 0
        self.accepted: Mapping[int, int] = {}


class UnsupportedByServer(AckstreamError):
    """The server does not say that it can do this: nothing was sent.

    Attributes:
        feature: What it cannot do.
    """

    def __init__(self, feature: str, target: str) -> None:
        super().__init__(f"the server at {target} cannot {feature}: it is of an older version; update it first")
        self.feature = feature


class Misused(AckstreamError, RuntimeError):
    """A client is used from another event loop, thread or process than the one that it began in."""


class Reject(Exception):
    """Raised by a handler to give its message up at once, whatever retries are left (a nack with `drop`).

    The server drops the message, with the reason "rejected", into the dead-letter topic where one is set.
    """
