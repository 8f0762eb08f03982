#!/usr/bin/env python3
"""The demo consumer: says what it receives, and drops, nacks, fails and delays some of it on purpose.

    python client.py --drop-rate 0.3 --seed 7

It shows what the server does about it: what is not acked comes again, at most as often as the subscription allows.
`python client.py --help` lists its options and exit codes.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import signal
import sys
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import grpc
from opentelemetry.trace import TracerProvider, format_span_id, format_trace_id, get_current_span

import ackstream
from ackstream._version import VERSION
from client_environment import BadVariables, Environment, read_environment
from client_options import BadOptions, Options, parse_options
from client_output import GREEN, PLAIN, PREFIX, RED, YELLOW, JsonFormatter, Output, printable, shown
from client_tracing import start_tracing, stop_tracing

if TYPE_CHECKING:
    from client_metrics import Metrics

GRPCS_OWN = "default"
"""Stands for the authorities that gRPC comes with."""

EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_BUG = 70

WINDOW = 1_000
"""Messages that are held at the same time."""

GRACE = 1.0
"""Seconds that handlers have after SIGINT or SIGTERM."""

MAX_REMEMBERED = 100_000
"""Acked messages that are remembered, to tell which come twice."""


def main() -> int:
    """Runs the consumer and returns the exit code."""
    logging.basicConfig(format=f"{PREFIX} %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("ackstream").addFilter(lambda record: not is_on_purpose(record))
    try:
        options, environment = read_all()
        exporter = start_tracing(environment.traces, VERSION) if environment.traces else None
    except (BadOptions, BadVariables) as error:
        for problem in error.problems:
            print(f"{PREFIX} {problem}", file=sys.stderr)
        return EXIT_USAGE
    output = output_of(options)
    if options.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
    if environment.ignored:
        output.say(f"Set, but not supported by this client: {', '.join(environment.ignored)}", YELLOW)
    try:
        metrics = serve_metrics(options.metrics_listen, output) if options.metrics_listen else None
        provider = exporter.provider if exporter else None
        return asyncio.run(Demo(options, output=output, metrics=metrics, tracer_provider=provider).run())
    except MetricsPortTaken as error:
        print(f"{PREFIX} {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    except Exception:  # noqa: BLE001 - the last resort, with its own exit code
        traceback.print_exc()
        return EXIT_BUG
    finally:
        if exporter and (lost := stop_tracing(exporter)):
            output.say(f"{lost} span(s) were not exported", YELLOW)


def read_all() -> tuple[Options, Environment]:
    """Returns the options and what the standard variables ask for, or raises all of their problems at once."""
    options, environment = None, None
    problems: list[str] = []
    try:
        options = parse_options(sys.argv[1:], os.environ)
    except BadOptions as error:
        problems += error.problems
    try:
        environment = read_environment(os.environ)
    except BadVariables as error:
        problems += error.problems
    if options is None or environment is None:
        raise BadOptions(problems)
    return options, environment


def output_of(options: Options) -> Output:
    """Returns the output that the options ask for."""
    as_json = options.log_format == "json"
    return Output(options.log_lines_per_second, options.log_summary_interval, as_json=as_json)


def serve_metrics(listen: tuple[str, int], output: Output) -> "Metrics":
    """Returns metrics that Prometheus can ask for.

    Raises:
        MetricsPortTaken: The address cannot be had.
    """
    # Imported only when it is asked for, so that the first line comes at once.
    from client_metrics import Metrics  # noqa: PLC0415

    metrics = Metrics()
    host, port = listen
    try:
        _, url = metrics.serve(host, port)
    except OSError as error:
        shown = f"[{host}]" if ":" in host else host
        raise MetricsPortTaken(f"Metrics cannot be served on {shown}:{port}: {error.strerror or error}") from error
    output.say(f"Metrics on {url}")
    return metrics


class MetricsPortTaken(Exception):
    """The address of --metrics-listen cannot be had."""


class FailedOnPurpose(Exception):
    """What the handler raises where the options ask for a failure."""


@dataclass
class Tally:
    """What the closing summary says."""

    deliveries: int = 0
    messages: int = 0
    acked: int = 0
    dropped: int = 0
    nacked: int = 0
    failed: int = 0
    seen_twice: int = 0
    discarded: int = 0
    remembered: OrderedDict[tuple[int, int], bool] = field(default_factory=OrderedDict)
    """Whether a message was acked, by its epoch and id: after a restart of the server an id means another message."""

    def receive(self, key: tuple[int, int]) -> None:
        """Counts a delivery."""
        self.deliveries += 1
        self.messages += key not in self.remembered
        self.seen_twice += self.remembered.setdefault(key, False)
        if len(self.remembered) > MAX_REMEMBERED:
            self.remembered.popitem(last=False)

    def ack(self, key: tuple[int, int]) -> None:
        """Counts an ack."""
        self.acked += 1
        self.remembered[key] = True

    def __str__(self) -> str:
        text = (
            f"Received {self.deliveries} deliveries of {self.messages} messages: {self.acked} acked, "
            f"{self.dropped} dropped on purpose, {self.nacked} nacked, {self.failed} failed, "
            f"{self.seen_twice} seen twice"
        )
        return f"{text}, {self.discarded} answer(s) discarded" if self.discarded else text


class Demo:
    """One run of the demo consumer."""

    def __init__(
        self,
        options: Options,
        *,
        output: Output | None = None,
        metrics: "Metrics | None" = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.options = options
        self.metrics = metrics
        self.tracer_provider = tracer_provider
        self.seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
        self.tally = Tally()
        self.output = output or output_of(options)
        self.epoch = 0
        """The server's present life; a delivery of an earlier one can be answered no more."""

    async def run(self) -> int:
        """Consumes until the server has finished or a signal comes; returns the exit code."""
        options = self.options
        say = self.output.say
        say(f"Connecting to {options.target}, topic {options.topic}, subscription {options.subscription}")
        say(f"Dropping {options.drop_rate * 100:g} % on purpose; --seed {self.seed} tells the same story again")
        try:
            connecting = self.connect()
        except (OSError, ValueError) as error:
            say(f"A file of --tls-ca, --tls-cert, --tls-key or --token-file cannot be used: {error}", RED)
            return EXIT_USAGE
        async with connecting as client:
            consumer = client.consume(
                options.topic,
                options.subscription,
                max_outstanding_messages=WINDOW,
                max_extension=options.max_extension,
                on_event=self.on_event,
            )

            if self.metrics:
                self.metrics.watch_outstanding(lambda: consumer.outstanding)

            def leave() -> None:
                consumer.stop(GRACE)

            def leave_on_signal() -> None:
                say("Leaving: what has no answer goes back to the subscription")
                leave()

            self.output.when_closed(leave)
            for name in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(name, leave_on_signal)
            try:
                await consumer.run(self.handle, concurrency=WINDOW)
            except ackstream.StreamRefused as error:
                say(f"The server refused this consumer: {printable(str(error))}", RED)
                code = EXIT_USAGE if error.code in WRONG_NAME else EXIT_UNAVAILABLE
            except ackstream.ServerUnreachable as error:
                say(f"No server: {printable(str(error))}", RED)
                code = EXIT_UNAVAILABLE
            else:
                say("The stream has ended")
                code = 0
            finally:
                if self.metrics:
                    self.metrics.disconnected()
        self.output.say_what_was_left_out()
        say(str(self.tally))
        return code

    def connect(self) -> ackstream.Client:
        """Returns a client with the credentials that the options name."""
        options, token = self.options, None
        if file := options.token_file:
            token = partial(ackstream.read_token, file)
        authorities = None if options.tls_ca == GRPCS_OWN else options.tls_ca
        wants_tls = options.tls_ca or options.tls_cert
        return ackstream.connect(
            options.target,
            connect_timeout=options.connect_timeout,
            tracer_provider=self.tracer_provider,
            tls=ackstream.Tls(authorities, options.tls_cert, options.tls_key) if wants_tls else None,
            token=token,
        )

    async def handle(self, delivery: ackstream.Delivery) -> None:
        """Receives one delivery and answers it, or not, as the seed decides."""
        tally = self.tally
        fields = fields_of(delivery)

        def say(line: str, colour: str = PLAIN) -> None:
            self.output.say_of_message(line, colour, **fields)

        began = time.perf_counter()
        key = (delivery.epoch, delivery.id)
        if self.metrics:
            self.metrics.received()
        duplicate = tally.remembered.get(key, False)
        again = f" again (attempt {delivery.attempt})" if delivery.attempt > 1 else ""
        tally.receive(key)
        say(f"Received message {delivery.id}{again}: {shown(delivery.payload)}")
        if hold := self.options.delay + self.slowness(delivery.id, delivery.attempt):
            await asyncio.sleep(hold)
        if delivery.epoch != self.epoch:
            delivery.ack()  # which the library discards, and says so
            return
        decision = self.decide(delivery.id, delivery.attempt)
        if self.metrics:
            outcome = "duplicate" if duplicate and decision == "ack" else OUTCOMES[decision]
            self.metrics.processed(outcome, time.perf_counter() - began)
        match decision:
            case "ack":
                delivery.ack()
                tally.ack(key)
                say(f"Sent ACK for message {delivery.id}", GREEN)
            case "drop":
                delivery.leave()
                tally.dropped += 1
                say(f"Dropped message {delivery.id} on purpose: it gets no answer", YELLOW)
            case "nack":
                delivery.nack()
                tally.nacked += 1
                say(f"Sent NACK for message {delivery.id}", YELLOW)
            case "fail":
                tally.failed += 1
                say(f"Failed on message {delivery.id} on purpose: it is nacked", RED)
                raise FailedOnPurpose

    def decide(self, message_id: int, attempt: int) -> str:
        """Returns "ack", "drop", "nack" or "fail", always the same for the same seed, message and attempt."""
        options = self.options
        if share(f"poison {self.seed} {message_id}") < options.poison_rate:
            return "fail"
        draw = share(f"attempt {self.seed} {message_id} {attempt}")
        for rate, decision in ((options.drop_rate, "drop"), (options.nack_rate, "nack"), (options.fail_rate, "fail")):
            if draw < rate:
                return decision
            draw -= rate
        return "ack"

    def slowness(self, message_id: int, attempt: int) -> float:
        """Returns the seconds by which this attempt is slow, always the same for the same seed, message and attempt."""
        options = self.options
        slow = share(f"slow {self.seed} {message_id} {attempt}") < options.slow_rate
        return options.slow_delay if slow else 0.0

    def on_event(self, event: ackstream.StreamEvent) -> None:
        """Says what happens to the stream."""
        match event:
            case ackstream.StreamOpened():
                self.epoch = event.epoch
                if self.metrics:
                    self.metrics.connected(again=event.reconnected)
                retries = "unlimited" if event.max_retries is None else event.max_retries
                what = "Reconnected" if event.reconnected else "Connected"
                self.output.say(
                    f"{what} to {event.target} (version {printable(event.server_version)}, "
                    f"ack deadline {event.ack_deadline:g}s, retries: {retries})"
                )
            case ackstream.StreamLost():
                reason = printable(event.reason)
                if self.metrics:
                    self.metrics.disconnected()
                self.output.say(
                    f"No stream to {event.target} ({reason}); trying again in {event.retry_in:.1f}s", YELLOW
                )
            case ackstream.AnswersDiscarded():
                self.tally.discarded += event.count
                if self.metrics:
                    self.metrics.discarded(event.count)
                self.output.say(f"Discarded {event.count} answer(s) to messages of the server's earlier life", YELLOW)


def fields_of(delivery: ackstream.Delivery) -> dict[str, str | int]:
    """Returns what a line in JSON says of its message, with the span that handles it, where there is one."""
    fields: dict[str, str | int] = {"topic": delivery.topic, "subscription": delivery.subscription}
    fields |= {"message_id": delivery.id, "delivery_attempt": delivery.attempt}
    context = get_current_span().get_span_context()
    if context.is_valid:
        fields |= {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
    return fields


OUTCOMES = {"ack": "acked", "drop": "simulated_drop", "nack": "nacked", "fail": "failed"}
"""What each decision is called in the metrics."""

WRONG_NAME = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
"""Statuses that mean a wrong --topic or --subscription."""


def share(text: str) -> float:
    """Returns a number from 0 up to 1, evenly spread, that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def is_on_purpose(record: logging.LogRecord) -> bool:
    """Says whether a log record is about a failure that the options asked for: it has its line already."""
    return bool(record.exc_info) and isinstance(record.exc_info, tuple) and record.exc_info[0] is FailedOnPurpose


if __name__ == "__main__":
    sys.exit(main())
