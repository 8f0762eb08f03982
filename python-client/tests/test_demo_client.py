"""The demo consumer: its options, its decisions, its lines."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.trace import TracerProvider

import ackstream
import client as demo
import client_output
from client_metrics import Metrics
from client_options import BadOptions, Options, parse_options
from tests.fake_server import FakeServer, FakeStream
from tests.virtual_time import everything_that_needs_no_time


def options(*arguments: str) -> Options:
    return parse_options(arguments, {})


# Options


def test_the_defaults_drop_10_percent_of_the_topic_demo_on_this_machine() -> None:
    assert options() == Options(
        target="localhost:50051",
        topic="demo",
        subscription="demo",
        drop_rate=0.1,
        nack_rate=0.0,
        fail_rate=0.0,
        poison_rate=0.0,
        delay=0.0,
        slow_rate=0.0,
        slow_delay=2.5,
        max_extension=3600.0,
        seed=None,
        connect_timeout=30.0,
        tls_ca=None,
        tls_cert=None,
        tls_key=None,
        token_file=None,
        metrics_listen=None,
        log_format="text",
        log_lines_per_second=1000,
        log_summary_interval=1.0,
    )


def test_a_flag_comes_before_the_environment_and_that_before_the_default() -> None:
    environment = {"ACKSTREAM_CLIENT_DROP_RATE": "0.5", "ACKSTREAM_CLIENT_SEED": "7"}
    parsed = parse_options(["--drop-rate", "0.25"], environment)
    assert (parsed.drop_rate, parsed.seed, parsed.topic) == (0.25, 7, "demo")


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("2s", 2.0), ("1.5s", 1.5), ("3m", 180.0), ("24h", 86400.0), ("0s", 0.0)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert options("--delay", text).delay == pytest.approx(seconds)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--drop-rate", "1.01"],
        ["--drop-rate", "nan"],
        ["--nack-rate=-0.1"],
        ["--delay", "2"],
        ["--delay", "2 s"],
        ["--delay", "25h"],
        ["--connect-timeout", "-1s"],
        ["--slow-rate", "2"],
        ["--max-extension", "61m"],
        ["--log-lines-per-second", "-1"],
        ["--log-summary-interval", "99ms"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--target", "localhost"],
        ["--target", "localhost:0"],
        ["--target", "::1:50051"],
        ["--topic", ""],
        ["--seed"],
        ["stray"],
        ["--drop", "0.1"],
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_its_source(arguments: list[str]) -> None:
    with pytest.raises(BadOptions) as raised:
        options(*arguments)
    assert "command line" in raised.value.problems[0]


def test_every_problem_is_reported_at_once_with_its_key_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"ACKSTREAM_CLIENT_DELAY": "5", "ACKSTREAM_CLIENT_DELAI": "5s", "ACKSTREAM_DELAY": "the server's"}
    with pytest.raises(BadOptions) as raised:
        parse_options(["--drop-rte", "--seed=x", "--fail-rate", "0.6", "--nack-rate", "0.6"], environment)
    assert raised.value.problems == [
        "--drop-rte: unknown argument (command line); did you mean --drop-rate?",
        "ACKSTREAM_CLIENT_DELAI: unknown option (environment); did you mean ACKSTREAM_CLIENT_DELAY?",
        "ACKSTREAM_CLIENT_DELAY (environment): '5' is not a duration: it takes a number and a unit (ms, s, m, h), "
        'for example "2s"',
        "--seed (command line): 'x' is not a seed: it takes a whole number of at most 19 digits",
        "--drop-rate, --nack-rate and --fail-rate: together they are more than 1",
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")


def test_what_kubernetes_sets_for_a_service_is_nobodys_option() -> None:
    environment = {
        "ACKSTREAM_CLIENT_PORT": "tcp://10.0.0.1:9464",
        "ACKSTREAM_CLIENT_SERVICE_HOST": "10.0.0.1",
        "ACKSTREAM_CLIENT_PORT_9464_TCP_ADDR": "10.0.0.1",
    }
    assert parse_options([], environment) == options()


# Decisions


def test_a_seed_decides_the_same_whatever_the_order() -> None:
    one, other = demo.Demo(options("--drop-rate=0.3", "--seed=7")), demo.Demo(options("--drop-rate=0.3", "--seed=7"))
    forwards = [one.decide(message_id, 1) for message_id in range(1, 201)]
    backwards = [other.decide(message_id, 1) for message_id in range(200, 0, -1)]
    assert forwards == backwards[::-1]
    different = demo.Demo(options("--drop-rate=0.3", "--seed=8"))
    assert forwards != [different.decide(message_id, 1) for message_id in range(1, 201)]


def test_rates_are_kept() -> None:
    demo_client = demo.Demo(options("--drop-rate=0.3", "--nack-rate=0.2", "--fail-rate=0.1", "--seed=1"))
    counts = Counter(demo_client.decide(message_id, 1) for message_id in range(10_000))
    assert {decision: round(count / 10_000, 1) for decision, count in counts.items()} == {
        "ack": 0.4,
        "drop": 0.3,
        "nack": 0.2,
        "fail": 0.1,
    }


def test_every_attempt_is_decided_anew_but_a_poisoned_message_fails_at_each() -> None:
    drops = demo.Demo(options("--drop-rate=0.5", "--seed=1"))
    assert {drops.decide(1, attempt) for attempt in range(1, 30)} == {"ack", "drop"}
    poisons = demo.Demo(options("--drop-rate=0", "--poison-rate=0.5", "--seed=1"))
    by_message = [{poisons.decide(message_id, attempt) for attempt in range(1, 9)} for message_id in range(100)]
    assert by_message.count({"fail"}) + by_message.count({"ack"}) == 100
    assert 30 < by_message.count({"fail"}) < 70


def test_a_share_of_the_deliveries_is_slow_whatever_else_is_decided_about_them() -> None:
    slow = demo.Demo(options("--drop-rate=0.5", "--slow-rate=0.2", "--slow-delay=3s", "--seed=1"))
    again = demo.Demo(options("--drop-rate=0", "--slow-rate=0.2", "--slow-delay=3s", "--seed=1"))
    delays = [slow.slowness(message_id, 1) for message_id in range(10_000)]
    assert delays == [again.slowness(message_id, 1) for message_id in range(10_000)]
    assert set(delays) == {0.0, 3.0}
    assert round(delays.count(3.0) / 10_000, 1) == 0.2


async def test_lines_about_messages_beyond_the_cap_are_left_out_and_counted_when_it_is_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_output.time.monotonic", lambda: 7.5)
    output = client_output.Output(lines_per_second=2, summary_interval=10.0)
    for number in range(5):
        output.say_of_message(f"line {number}")
    output.say("not about a message")
    await asyncio.sleep(9.99)
    before = capsys.readouterr().out.splitlines()
    await asyncio.sleep(0.02)
    after = capsys.readouterr().out.splitlines()
    assert before == [f"[PYTHON CLIENT] {line}" for line in ("line 0", "line 1", "not about a message")]
    assert after == ["[PYTHON CLIENT] ... and 3 more lines about messages (--log-lines-per-second 2)"]
    output.say_what_was_left_out()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("decision", ["drop", "nack", "fail"])
def test_a_rate_of_1_is_every_delivery_and_0_is_none(decision: str) -> None:
    rates = {"drop": "0", "nack": "0", "fail": "0"} | {decision: "1"}
    always = demo.Demo(options(*(f"--{name}-rate={rate}" for name, rate in rates.items())))
    assert {always.decide(message_id, 1) for message_id in range(1000)} == {decision}


# Lines


def test_a_payload_is_printed_as_one_safe_line() -> None:
    assert client_output.shown(b"Message 1") == "Message 1"
    assert client_output.shown("Grüße 🎈".encode()) == "Grüße 🎈"
    assert client_output.shown(b"a\nb\x1b[31m\x00") == r"a\nb\x1b[31m\x00"
    assert client_output.shown(b"\xff\xfe") == r"\xff\xfe"
    assert client_output.shown("\u202e".encode()) == r"\u202e"
    long = client_output.shown(b"x" * 1_048_576)
    assert long == "x" * 200 + "... (1,048,576 bytes)"


def test_without_a_stdout_nothing_is_printed_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    closed: list[bool] = []
    output = client_output.Output()
    output.when_closed(lambda: closed.append(True))

    output.say("hello")

    assert closed == []
    sys.stdout.close()  # what the output put in its place


def test_an_output_without_room_is_told_once_and_ends_the_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        closed: list[bool] = []
        output = client_output.Output()
        output.say("before anybody asked")
        output.when_closed(lambda: closed.append(True))
        output.say("more")

    assert closed == [True]
    assert capsys.readouterr().err == "client.py: cannot print: No space left on device; leaving\n"


class Demonstration:
    """A demo consumer against the fake server."""

    def __init__(self, stream: FakeStream, task: asyncio.Task[int]) -> None:
        self.stream = stream
        self.task = task


@asynccontextmanager
async def demonstrating(
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    metrics: Metrics | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AsyncIterator[Demonstration]:
    def connect(_target: str, *, tls: None, token: None, **how: Any) -> ackstream.Client:
        assert tls is token is None, "nobody asked for credentials"
        return server.client(**how)

    monkeypatch.setattr(ackstream, "connect", connect)
    task = asyncio.create_task(
        demo.Demo(options("--seed=1", *arguments), metrics=metrics, tracer_provider=tracer_provider).run()
    )
    stream = await server.next_stream()
    stream.accept()
    await everything_that_needs_no_time()
    yield Demonstration(stream, task)
    task.cancel()
    await asyncio.wait([task])


async def test_the_story_is_told_line_by_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=0") as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        it.stream.deliver(3, attempt=2)
        await everything_that_needs_no_time()
        it.stream.end()
        assert await it.task == 0
    assert capsys.readouterr().out.splitlines() == [
        "[PYTHON CLIENT] Connecting to localhost:50051, topic demo, subscription demo",
        "[PYTHON CLIENT] Dropping 0 % on purpose; --seed 1 tells the same story again",
        "[PYTHON CLIENT] Connected to fake:50051 (version 0.1.0, ack deadline 2s, retries: 3)",
        "[PYTHON CLIENT] Received message 1: Message 1",
        "[PYTHON CLIENT] Sent ACK for message 1",
        "[PYTHON CLIENT] Received message 3 again (attempt 2): Message 3",
        "[PYTHON CLIENT] Sent ACK for message 3",
        "[PYTHON CLIENT] The stream has ended",
        "[PYTHON CLIENT] Received 2 deliveries of 2 messages: 2 acked, 0 dropped on purpose, 0 nacked, 0 failed, "
        "0 seen twice",
    ]


async def test_a_drop_on_purpose_is_neither_answered_nor_extended(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=1") as it:
        it.stream.deliver(1)
        await asyncio.sleep(10)
        it.stream.deliver(1, attempt=2)
        await asyncio.sleep(10)
        assert len(it.stream.sent) == 1
    assert "[PYTHON CLIENT] Dropped message 1 on purpose: it gets no answer" in capsys.readouterr().out


async def test_nacks_and_failures_nack_and_a_failure_on_purpose_is_not_logged(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=0", "--nack-rate=0.5", "--fail-rate=0.5") as it:
        it.stream.deliver(*range(1, 11))
        await everything_that_needs_no_time()
    assert len(it.stream.nacks) == 10
    output = capsys.readouterr().out
    assert output.count("Sent NACK for message") + output.count("Failed on message") == 10


async def test_delay_holds_all_messages_at_the_same_time_and_keeps_them(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=0", "--delay=5s") as it:
        it.stream.deliver(*range(1, 1001))
        await asyncio.sleep(4.9)
        assert it.stream.acked == []
        assert all(len(ids) == 1000 for _, ids in it.stream.extensions)
        await asyncio.sleep(0.2)
        assert sorted(it.stream.acked) == list(range(1, 1001))


async def test_a_message_that_comes_again_after_its_ack_is_seen_twice_but_not_one_of_another_epoch(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=0") as it:
        it.stream.deliver(1)
        it.stream.deliver(2)
        await everything_that_needs_no_time()
        it.stream.deliver(1, attempt=2)
        await everything_that_needs_no_time()
        it.stream.break_off()
        second = await server.next_stream()
        second.accept(epoch=2)
        second.deliver(1)
        second.deliver(2)
        await everything_that_needs_no_time()
        second.end()
        await it.task
    assert "Received 5 deliveries of 4 messages: 5 acked, 0 dropped" in capsys.readouterr().out.splitlines()[-1]


async def test_what_was_held_over_a_restart_of_the_server_is_neither_answered_nor_counted_as_acked(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch, "--drop-rate=0", "--delay=5s") as it:
        it.stream.deliver(*range(1, 1001))
        await asyncio.sleep(1)
        it.stream.break_off()
        second = await server.next_stream()
        second.accept(epoch=2)
        second.deliver(*range(1, 1001))
        await asyncio.sleep(4.5)
        assert second.acked == []
        await asyncio.sleep(5)
        second.end()
        assert await it.task == 0
    assert sorted(second.acked) == list(range(1, 1001))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "[PYTHON CLIENT] Received 2000 deliveries of 2000 messages: 1000 acked, 0 dropped on purpose, 0 nacked, "
        "0 failed, 0 seen twice, 1000 answer(s) discarded"
    )


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_leaves_cleanly_and_ends_with_0(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, name: signal.Signals
) -> None:
    async with demonstrating(server, monkeypatch, "--delay=60s") as it:
        it.stream.deliver(1)
        await everything_that_needs_no_time()
        os.kill(os.getpid(), name)
        assert await it.task == 0
    assert it.stream.half_closed


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("NOT_FOUND", 64), ("INVALID_ARGUMENT", 64), ("PERMISSION_DENIED", 69), ("UNIMPLEMENTED", 69)],
)
async def test_a_refusal_ends_with_its_sentence_and_code(
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    exit_code: int,
) -> None:
    async with demonstrating(server, monkeypatch) as it:
        it.stream.break_off(grpc.StatusCode[code], "no topic 'demo'; there are: news")
        assert await it.task == exit_code
    assert f"refused this consumer: {code}: no topic 'demo'; there are: news" in capsys.readouterr().out


async def test_without_a_server_it_says_what_it_tries_and_ends_with_69(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with demonstrating(server, monkeypatch) as it:
        server.down = grpc.StatusCode.UNAVAILABLE
        it.stream.break_off()
        assert await it.task == 69
    output = capsys.readouterr().out
    assert "No stream to fake:50051 (UNAVAILABLE: nobody listens); trying again in" in output
    assert "No server: gave up on fake:50051 after 30 s" in output
