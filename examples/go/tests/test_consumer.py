"""The consumer in Go against a real server: what it prints, and that it keeps the rules of a client."""

import os
import signal
import urllib.request
from subprocess import PIPE, Popen, run

import pytest
from ackstream.testing import Server, server

pytestmark = pytest.mark.real_time
CONSUMER = os.environ["GO_CONSUMER"]
PUBLISH = [os.environ["ACKSTREAM_BIN"], "publish", "--target"]


def publish(running: Server, text: str) -> None:
    run([*PUBLISH, running.target], input=text, text=True, check=True, stderr=PIPE)


def metric(running: Server, series: str) -> float:
    """The value of the one series that begins so."""
    with urllib.request.urlopen(running.metrics_url) as page:  # noqa: S310 - loopback
        lines = page.read().decode().splitlines()
    (found,) = [line for line in lines if line.startswith(series)]
    return float(found.rsplit(" ", 1)[1])


def test_it_prints_and_acks_each_message_and_leaves_at_no_cost() -> None:
    with server(max_retries=0) as running:
        publish(running, "".join(f"line {number}\n" for number in range(500)))
        consumer = [CONSUMER, "-target", running.target, "-count", "200"]
        first = run(consumer, stdout=PIPE, text=True, check=True).stdout
        second = run([*consumer[:-1], "300"], stdout=PIPE, text=True, check=True).stdout
        assert (first + second).splitlines() == [f"line {number}" for number in range(500)]
        assert metric(running, "ackstream_messages_acked_total") == 500
        assert (
            metric(running, 'ackstream_messages_dropped_total{topic="demo",subscription="demo",reason="max_retries"}')
            == 0
        )


def test_it_leaves_when_it_is_told_to() -> None:
    with server() as running, Popen([CONSUMER, "-target", running.target], stdout=PIPE, text=True) as consumer:
        publish(running, "one\n")
        assert consumer.stdout
        assert consumer.stdout.readline() == "one\n"
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(30) == 0
        assert metric(running, 'ackstream_streams_closed_total{grpc_code="CANCELLED"}') == 0, "it said good-bye"


def test_a_topic_that_is_not_there_is_an_error_at_once() -> None:
    with server() as running:
        done = run([CONSUMER, "-target", running.target, "-topic", "nope"], stderr=PIPE, text=True, check=False)
        assert done.returncode == 1
        assert 'there is no topic "nope"' in done.stderr
