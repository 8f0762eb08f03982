"""Publishes to one topic over a stream of its own."""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable

from ackstream._backoff import Backoff
from ackstream._errors import AckstreamError, PublishRefused, StreamEnded
from ackstream._link import Link
from ackstream._publications import Message, Publications
from ackstream._tracing import PublisherSpans, end_sending
from ackstream._transport import StreamBroken, Transport

logger = logging.getLogger("ackstream")

MAX_UNANSWERED = 5_000
"""Publishes of one stream without an answer: half of the 10,000 unsent answers at which a server ends a publisher's
stream."""


class Publisher:
    """The publishes of one client to one topic. Its stream opens with the first of them."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        *,
        client_id: str,
        connect_timeout: float | None,
        spans: PublisherSpans,
    ) -> None:
        self._transport = transport
        self._topic = topic
        self._connect_timeout = connect_timeout
        self._spans = spans
        self._publications = Publications(topic, client_id, MAX_UNANSWERED)
        self._link: Link | None = None
        self._closed = False

    async def publish(self, message: Message, retry_for: float) -> int:
        """Returns the message's id once it is accepted."""
        return await self._settle(message, await self._send(message), retry_for)

    async def publish_many(
        self, messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes], window: int, retry_for: float
    ) -> list[int]:
        """Returns the messages' ids, in their order, once all are accepted."""
        ids: list[int] = []
        sent: deque[tuple[Message, asyncio.Future[int]]] = deque()
        try:
            async for each in _iterate(messages):
                message = each if isinstance(each, Message) else Message(each)
                if len(sent) == window:
                    ids.append(await self._settle(*sent[0], retry_for))
                    sent.popleft()
                sent.append((message, await self._send(message)))
            while sent:
                ids.append(await self._settle(*sent[0], retry_for))
                sent.popleft()
        except PublishRefused as refusal:
            refusal.position = len(ids)
            answers = await asyncio.gather(*(answer for _, answer in sent), return_exceptions=True)
            accepted = dict(enumerate(ids))
            accepted |= {len(ids) + i: answer for i, answer in enumerate(answers) if isinstance(answer, int)}
            refusal.accepted = accepted
            raise
        finally:
            for _, answer in sent:
                answer.cancel()
        return ids

    async def close(self) -> None:
        """Half-closes, takes the answers that the server still sends, and fails what is left."""
        self._closed = True
        if self._link is not None:
            await self._link.leave()

    async def _send(self, message: Message) -> asyncio.Future[int]:
        await self._publications.room()
        if self._closed:
            self._publications.give_back()
            raise StreamEnded("the client is closed")
        if self._link is None:
            self._spans.opening()
            self._link = Link(
                self._transport, self._publications, connect_timeout=self._connect_timeout, on_lost=self._log_lost
            )
            self._link.task.add_done_callback(self._end)
        traced = self._spans.send(message.attributes)
        if traced is None:
            answer = self._publications.add(message)
        else:
            span, trace_context = traced
            answer = self._publications.add(message, trace_context)
            answer.add_done_callback(functools.partial(end_sending, span))
        self._link.wake()
        return answer

    async def _settle(self, message: Message, answer: asyncio.Future[int], retry_for: float) -> int:
        try:
            return await answer
        except PublishRefused as refusal:
            if not refusal.retryable or retry_for <= 0:
                raise
        return await self._retry(message, retry_for)

    async def _retry(self, message: Message, retry_for: float) -> int:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + retry_for
        backoff = Backoff()
        while True:
            await asyncio.sleep(min(backoff.next(), max(give_up_at - loop.time(), 0)))
            try:
                return await (await self._send(message))
            except PublishRefused as refusal:
                if not refusal.retryable or loop.time() >= give_up_at:
                    raise

    def _end(self, task: asyncio.Task[None]) -> None:
        """The stream will not be opened again; the next publish opens another."""
        self._link = None
        reason = None if task.cancelled() else task.exception()
        if isinstance(reason, AckstreamError):
            self._publications.fail(reason)
            return
        if reason is not None:
            logger.error("the publishing stream failed", exc_info=reason)
        self._publications.fail(
            StreamEnded(f"the stream to topic {self._topic!r} ended before the publish had its answer")
        )

    def _log_lost(self, broken: StreamBroken, retry_in: float) -> None:
        logger.debug(
            "publishing stream to %s lost (%s); next attempt in %.2f s", self._transport.target, broken, retry_in
        )


async def _iterate(
    messages: Iterable[Message | bytes] | AsyncIterable[Message | bytes],
) -> AsyncIterator[Message | bytes]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
