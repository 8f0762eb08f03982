"""How frames travel: over gRPC, behind two small protocols that tests implement without a network."""

import asyncio
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from ackstream._credentials import Tls, Token, authorization
from ackstream._proto import ackstream_pb2 as pb

METHOD = "/ackstream.v1.MessageStream/Exchange"

# A server accepts messages of at most 16 MiB, and a larger frame than 1 MiB holds one message alone; 1 MiB is left for
# what surrounds it. gRPC's default of 4 MiB would end the stream again and again at the same message.
MAX_FRAME_BYTES = 17 * 1024 * 1024

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.enable_http_proxy", 0),
    # Each stream has a connection of its own, and the backoff between connections is this library's: with a shared
    # subchannel, gRPC would answer an attempt with the failure of an earlier one.
    ("grpc.use_local_subchannel_pool", 1),
    # A peer that is gone without a word is noticed after 90 s: on a slow line the PING waits behind our own data.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class StreamBroken(Exception):
    """A stream ended with another status than OK."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}" if sentence else code.name)
        self.code = code
        self.sentence = sentence


class Stream(Protocol):
    """One conversation. Every method but `close` raises StreamBroken once it has ended with another status than OK."""

    async def read(self) -> pb.StreamMessage | None:
        """Returns the next frame, or None when the server has ended the stream with OK."""

    async def write(self, frame: pb.StreamMessage) -> None:
        """Returns once the frame is on its way, which may take as long as the server does not read."""

    async def half_close(self) -> None:
        """Says that no frame will follow."""

    async def close(self) -> None:
        """Ends the conversation in whatever state it is. Never raises."""


class Transport(Protocol):
    """Makes streams."""

    target: str

    async def open(self) -> Stream:
        """Starts a stream, without waiting for the server; raises StreamBroken where that is not possible."""


class GrpcTransport:
    """Streams over grpcio, each on a connection of its own."""

    def __init__(self, target: str, *, tls: Tls | None = None, token: Token | None = None) -> None:
        self.target = target
        self._tls = tls
        self._token = token
        self._credentials()  # what is wrong is told before anything is tried

    async def open(self) -> "GrpcStream":
        try:
            tls, metadata = self._credentials()
        except (OSError, ValueError) as error:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, f"not tried: {error}") from None
        if tls is None:
            channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        else:
            channel = grpc.aio.secure_channel(self.target, tls, options=CHANNEL_OPTIONS)
        return GrpcStream(channel, metadata)

    def _credentials(self) -> tuple[grpc.ChannelCredentials | None, tuple[tuple[str, str], ...]]:
        tls = None if self._tls is None else self._tls.read()
        return tls, () if self._token is None else (authorization(self._token),)


class GrpcStream:
    """One call of `Exchange`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._channel = channel
        exchange: grpc.aio.StreamStreamMultiCallable[pb.StreamMessage, pb.StreamMessage] = channel.stream_stream(
            METHOD,
            request_serializer=pb.StreamMessage.SerializeToString,
            response_deserializer=pb.StreamMessage.FromString,
        )
        self._call = exchange(metadata=metadata)
        self._closed = False

    async def read(self) -> pb.StreamMessage | None:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _broken(error) from None
        except DecodeError as error:
            raise StreamBroken(
                grpc.StatusCode.INTERNAL, f"the server sent a frame that is no StreamMessage: {error}"
            ) from None
        except asyncio.CancelledError:
            # gRPC says so too when the call, and not the caller, was cancelled.
            if self._closed:
                raise StreamBroken(grpc.StatusCode.CANCELLED, "closed by this client") from None
            raise
        return frame if isinstance(frame, pb.StreamMessage) else None

    async def write(self, frame: pb.StreamMessage) -> None:
        try:
            await self._call.write(frame)
        except grpc.aio.AioRpcError as error:
            raise _broken(error) from None
        except asyncio.InvalidStateError:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, "the stream has ended") from None

    async def half_close(self) -> None:
        try:
            await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise _broken(error) from None

    async def close(self) -> None:
        self._closed = True
        self._call.cancel()
        await self._channel.close()


def _broken(error: grpc.aio.AioRpcError) -> StreamBroken:
    return StreamBroken(error.code(), error.details() or "")
