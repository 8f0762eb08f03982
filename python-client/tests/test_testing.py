"""The server that other people's test suites start."""

import json
import os
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import ackstream
import ackstream.testing
from ackstream.testing import ServerFailed, server

from .processes import BINARY

pytestmark = [pytest.mark.real_time, pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no binary")]

ORDERS: ackstream.testing.Topics = {
    "orders": {"billing": {"max_retries": 0, "dead_letter_topic": "dead"}, "audit": {}},
    "dead": {"dead": {"max_retries": "unlimited"}},
}


async def test_topics_are_those_that_the_test_wants() -> None:
    with server(ORDERS) as running:
        async with ackstream.connect(running.target) as client:
            await client.publish("orders", b"x")
            async for delivery in client.consume("orders", "billing"):
                delivery.nack(drop=True)
                break
            async for delivery in client.consume("dead", "dead"):
                assert delivery.payload == b"x"
                assert delivery.attributes["ackstream.origin.subscription"] == "billing"
                history = json.loads(delivery.attributes["ackstream.origin.attempts"])
                assert [attempt["outcome"] for attempt in history] == ["nacked"]
                delivery.ack()
                break


async def test_without_topics_there_is_demo_and_settings_are_those_of_the_file() -> None:
    with server(ack_deadline="120ms") as running:
        async with ackstream.connect(running.target) as client:
            await client.publish("demo", b"x")
            consumer = client.consume("demo", "demo")
            assert (await anext(consumer)).payload == b"x"
            assert any("Starting gRPC server" in line for line in running.lines)


def test_it_shows_its_metrics() -> None:
    with server(ORDERS) as running, urllib.request.urlopen(running.metrics_url) as page:  # noqa: S310 - loopback
        text = page.read().decode()
    assert 'ackstream_messages_published_total{topic="orders",subscription="audit"} 0' in text


def test_several_run_side_by_side() -> None:
    with server() as one, server() as other:
        assert one.target != other.target


def test_nothing_of_the_machine_s_configuration_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACKSTREAM_ACK_DEADLINE", "nonsense")
    (tmp_path / "ackstream.toml").write_text("nonsense")
    monkeypatch.chdir(tmp_path)
    with server():
        pass


def test_what_the_server_refuses_is_an_error_with_its_words() -> None:
    with (
        pytest.raises(ServerFailed, match=r"ack_deadline = .*parsecs.*must be a length of time"),
        server(ack_deadline="2 parsecs"),
    ):
        pass
    with pytest.raises(ServerFailed, match=r"topics.orders.*has no subscription"), server({"orders": {}}):
        pass


def test_without_a_binary_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACKSTREAM_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerFailed, match="set ACKSTREAM_BIN"), server():
        pass
    with pytest.raises(ServerFailed, match="/nowhere/at/all cannot be run"), server(binary="/nowhere/at/all"):
        pass


def test_the_binary_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ackstream").symlink_to(Path(BINARY).resolve())
    monkeypatch.delenv("ACKSTREAM_BIN")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with server() as running:
        assert running.target


def test_a_binary_that_is_something_else_is_told_with_its_output(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(f"#!{sys.executable}\nprint('I am something else')\n")
    other.chmod(0o755)
    with pytest.raises(ServerFailed, match="the server does not start\nI am something else"), server(binary=str(other)):
        pass


README = Path(__file__).parents[2] / "README.md"


def test_the_readme_s_test_and_its_blocking_program_work_as_they_stand() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (test,) = [block for block in blocks if "ackstream.testing" in block]
    (program,) = [block for block in blocks if "publish_many" in block]
    names: dict[str, Any] = {}
    exec(test, names)  # noqa: S102 - it is ours, and what people copy
    names["test_an_empty_order_becomes_a_dead_letter"]()
    with server() as running:
        exec(program.replace("ackstream.connect()", f"ackstream.connect({running.target!r})"), names)  # noqa: S102
    assert names["ids"] == [1, 2]
