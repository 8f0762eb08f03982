"""A server without a network: it is the transport of the clients under test, and the test says what it does."""

import asyncio
import os
from collections.abc import Iterable
from datetime import UTC, datetime

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.trace import TracerProvider

import ackstream
from ackstream._proto import ackstream_pb2 as pb
from ackstream._transport import StreamBroken

ACCEPTED_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ACK_DEADLINE = 2.0


class FakeStream:
    """One stream, with the client's half (`ackstream._transport.Stream`) first and the server's after it."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, pb.StreamMessage]] = []
        self.half_closed = False
        self.closed = False
        self.reads = True
        self.writable = True
        self.ends_on_half_close = True
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[pb.StreamMessage | StreamBroken | None] = asyncio.Queue()
        self._over: StreamBroken | None = None

    async def read(self) -> pb.StreamMessage | None:
        frame = await self._frames.get()
        if isinstance(frame, StreamBroken):
            raise frame
        return frame

    async def write(self, frame: pb.StreamMessage) -> None:
        while not self.reads and not self._over and self.writable:
            await asyncio.sleep(0.001)
        if self._over:
            raise self._over
        if not self.writable:
            raise StreamBroken(grpc.StatusCode.UNAVAILABLE, "the stream has ended")
        self.sent.append((self._loop.time(), frame))

    async def half_close(self) -> None:
        self.half_closed = True
        if self.ends_on_half_close:
            self.end()

    async def close(self) -> None:
        self.closed = True
        self.break_off(grpc.StatusCode.CANCELLED)

    # What the server does

    def accept(
        self,
        *,
        epoch: int = 1,
        ack_deadline: float = ACK_DEADLINE,
        max_message_bytes: int = 1 << 20,
        features: Iterable[pb.Feature] = (pb.FEATURE_SESSIONS, pb.FEATURE_RELEASE),
        resumes: bool = True,
    ) -> None:
        """The server's answer to `open`. A session that is asked for is resumed, or another one begins."""
        deadline = Duration()
        deadline.FromMicroseconds(round(ack_deadline * 1e6))
        asked = self.sent[0][1].open
        session = (asked.resume.session if resumes else b"") or os.urandom(16)
        self.send(
            pb.StreamMessage(
                opened=pb.Opened(
                    epoch=epoch,
                    topic=asked.topic,
                    subscription=asked.subscription,
                    ack_deadline=deadline,
                    max_retries=3,
                    max_message_bytes=max_message_bytes,
                    server_version="0.1.0",
                    features=features,
                    session=session if pb.FEATURE_SESSIONS in features and asked.HasField("resume") else b"",
                )
            )
        )

    def deliver(self, *ids: int, attempt: int = 1, trace_context: str = "", failures: int = 0) -> None:
        messages = [delivery(message_id, attempt, trace_context, failures) for message_id in ids]
        if len(messages) == 1:
            self.send(pb.StreamMessage(data=messages[0]))
        else:
            self.send(pb.StreamMessage(data_batch=pb.DataBatch(messages=messages)))

    def send(self, frame: pb.StreamMessage) -> None:
        self._frames.put_nowait(frame)

    def end(self) -> None:
        self.writable = False
        self._frames.put_nowait(None)

    def break_off(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, sentence: str = "gone") -> None:
        self._over = StreamBroken(code, sentence)
        self._frames.put_nowait(self._over)

    # What the client said

    @property
    def acked(self) -> list[int]:
        return [i for _, frame in self.sent if frame.HasField("ack_batch") for i in frame.ack_batch.ack_ids]

    @property
    def nacks(self) -> list[pb.Nack]:
        return [frame.nack for _, frame in self.sent if frame.HasField("nack")]

    @property
    def released(self) -> list[int]:
        return [nack.ack_id for nack in self.nacks if nack.release]

    @property
    def resumed(self) -> pb.Resume:
        return self.sent[0][1].open.resume

    @property
    def extensions(self) -> list[tuple[float, list[int]]]:
        return [(at, list(frame.extend_batch.ack_ids)) for at, frame in self.sent if frame.HasField("extend_batch")]

    @property
    def published(self) -> list[pb.DataMessage]:
        return [m for _, frame in self.sent if frame.HasField("data_batch") for m in frame.data_batch.messages]

    def answer(self, publishes: Iterable[pb.DataMessage], first_id: int = 1) -> None:
        numbers = [message.id for message in publishes]
        ids = range(first_id, first_id + len(numbers))
        self.send(pb.StreamMessage(ack_batch=pb.AckBatch(ack_ids=numbers, message_ids=ids)))

    def refuse(self, publish: pb.DataMessage, code: grpc.StatusCode, reason: str) -> None:
        self.send(pb.StreamMessage(nack=pb.Nack(ack_id=publish.id, code=code.value[0], reason=reason)))


class FakeServer:
    """Takes streams, one after the other."""

    target = "fake:50051"

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.down: grpc.StatusCode | None = None
        self.down_reason = "nobody listens"
        self.opened_at: list[float] = []
        self._given = 0

    async def open(self) -> FakeStream:
        stream = FakeStream()
        self.streams.append(stream)
        self.opened_at.append(asyncio.get_running_loop().time())
        if self.down:
            stream.break_off(self.down, self.down_reason)
        return stream

    def client(
        self, *, connect_timeout: float | None = 30.0, tracer_provider: TracerProvider | None = None
    ) -> ackstream.Client:
        return ackstream.Client(
            self, client_id="test", connect_timeout=connect_timeout, tracer_provider=tracer_provider
        )

    async def next_stream(self) -> FakeStream:
        """Returns the next stream that a client opens, once its first frame is there; passes over failed attempts."""
        while True:
            fresh = [stream for stream in self.streams[self._given :] if stream.sent]
            if fresh:
                self._given = self.streams.index(fresh[0]) + 1
                return fresh[0]
            await asyncio.sleep(0.001)


def delivery(message_id: int, attempt: int = 1, trace_context: str = "", failures: int = 0) -> pb.DataMessage:
    accepted = Timestamp()
    accepted.FromDatetime(ACCEPTED_AT)
    return pb.DataMessage(
        id=message_id,
        timestamp=accepted,
        payload=f"Message {message_id}".encode(),
        requires_ack=True,
        delivery_attempt=attempt,
        failures=failures,
        attributes={"kind": "test"},
        trace_context=trace_context,
    )
