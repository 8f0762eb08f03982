"""Every expression of dashboards and rules, asked of a real Prometheus that scrapes real servers and real clients.

Each of the four bad days is made to happen, beside a good one. The signs by which the dashboard tells them apart must
be there on the right day and on no other. On one more day everything else happens that a panel shows.
"""

import asyncio
import itertools
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.processes import BINARY, CLIENT, Process, running

PROMETHEUS = shutil.which("prometheus")

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not BINARY, reason="ACKSTREAM_BIN names no server binary"),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds until every sign must have been there. It takes about 20."""

RATE, RANGE = "8s", "30s"
DEADLINE, SCRAPE = "500ms", "500ms"

SERVER = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--ack-deadline", DEADLINE)
LINES = ("--log-lines-per-second", "0")

METRIC = re.compile(r"\b(?:ackstream[_:]|process_|grpc_server_)[a-z_:]+")

Result = dict[str, float]


@dataclass(frozen=True)
class Day:
    """What kind of day it is, and by which signs it must be known."""

    server: tuple[str, ...]
    client: tuple[str, ...]
    signs: frozenset[str]


# Slow deliveries are answered after their deadline.
SLOW = ("--slow-delay", "600ms", "--max-extension", "0s")
# The answer comes before the next attempt, which would be the one that is acked.
BACKOFF = ("--min-backoff", "700ms", "--max-backoff", "700ms")
DAYS = {
    "good": Day(
        ("--interval", "20ms"),
        ("--drop-rate=0.1", "--nack-rate=0.05", "--poison-rate=0.01", "--slow-rate=0.02", *SLOW),
        frozenset(),
    ),
    "retry-storm": Day(
        ("--interval", "20ms", *BACKOFF),
        ("--drop-rate=0.1", "--fail-rate=0.5", "--slow-rate=0.2", *SLOW),
        frozenset({"deliveries are amplified", "late acks are up"}),
    ),
    "poison-message": Day(
        ("--interval", "20ms"),
        ("--drop-rate=0", "--poison-rate=0.05"),
        frozenset({"retries are flat over the attempts", "few messages are dropped and grow old"}),
    ),
    "slow-consumer": Day(
        ("--interval", "20ms", "--max-outstanding-messages", "10", *BACKOFF),
        ("--drop-rate=0", "--delay=420ms", "--slow-rate=0.2", *SLOW),
        frozenset({"acks come at the deadline", "consumers are full", "late acks are up"}),
    ),
    "lost-consumer": Day(
        ("--interval", "20ms"),
        ("--drop-rate=0", "--delay=100ms"),
        frozenset({"a backlog without consumers", "deliveries were interrupted"}),
    ),
}

# Dead letters, refused publishes, lost spans, and a server that is killed and comes again.
EVENTFUL = Day(
    ("--interval=20ms", "--max-backlog-messages=20"),
    ("--drop-rate=0.1", "--poison-rate=0.2", "--delay=300ms"),
    frozenset(),
)
TOPICS = """
max_retries = 3
min_backoff = "0s"
max_backoff = "0s"
[topics.demo.subscriptions.demo]
dead_letter_topic = "dead"
[topics.dead.subscriptions.dead]
dead_letter_topic = "discard"
"""
JOBS = (*DAYS, "eventful")

NEVER_MOVES = {"Unaccounted", "Pages"}
"""What must stay at 0: no day here is so bad, or lasts so long, that it would wake somebody."""

A_FEW_A_SECOND = 3.0
"""Acks that come late or change nothing, on a good day at most: a share of the demo's clients is slow now and then."""

FEW = 30
"""Messages in the small backlog of a day with poison: those that are retried."""


class Prometheus:
    """A running Prometheus, asked as Grafana does."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def get(self, path: str, **parameters: str) -> Any:
        """Returns the data of an answer."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=10)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")
        with answer:
            return json.load(answer)["data"]

    async def ask(self, expression: str, job: str) -> Result:
        """Returns what a panel shows for a day: values by their legend, here the labels that differ."""
        for variable, value in {"$__rate_interval": RATE, "$__range": RANGE, "$job": job}.items():
            expression = expression.replace(variable, value)
        expression = re.sub(r"\$(instance|topic|subscription)", ".+", expression)
        series = (await self.get("query", query=expression))["result"]
        return {" ".join(v for k, v in one["metric"].items() if k != "job"): float(one["value"][1]) for one in series}


def expressions(name: str) -> dict[str, list[str]]:
    """Returns what the panels of a dashboard ask Prometheus, by title."""
    dashboard = json.loads((ROOT / "grafana" / "dashboards" / name).read_text())
    asked: dict[str, list[str]] = {}
    for panel in dashboard["panels"]:
        asked[panel["title"]] = [target["expr"] for target in panel.get("targets", []) if "expr" in target]
    return asked | {annotation["name"]: [annotation["expr"]] for annotation in dashboard["annotations"]["list"]}


DELIVERY, CLIENTS = expressions("message-delivery.json"), expressions("client.json")


@asynccontextmanager
async def days(folder: Path) -> AsyncIterator[tuple[Prometheus, dict[str, Process], Callable[[], Awaitable[None]]]]:
    """Starts all days at once, and a Prometheus that scrapes them: a job each, and one with "-client" behind it.

    With it come the clients, which a test may kill, and what kills the server of the eventful day and starts it again.
    """
    configuration_file = folder / "eventful.toml"
    configuration_file.write_text(TOPICS)
    async with AsyncExitStack() as stack:
        jobs, clients = [], {}
        for name, day in (DAYS | {"eventful": EVENTFUL}).items():
            command = (BINARY, "demo", "0", *SERVER, *LINES, *day.server)
            environment = {}
            if name == "eventful":
                command += ("--config", str(configuration_file))
                environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
            server = await stack.enter_async_context(running(*command, **environment))
            target = (await server.line(r"Starting gRPC server on (\S+)$"))[1]
            metrics = (await server.line(r"Serving metrics on http://(\S+)/metrics$"))[1]
            options = ("--target", target, "--metrics-listen", "127.0.0.1:0", "--seed", "7", *LINES, *day.client)
            clients[name] = await stack.enter_async_context(running(sys.executable, str(CLIENT), *options))
            client_metrics = (await clients[name].line(r"Metrics on http://(\S+)/metrics$"))[1]
            jobs += [(name, metrics), (f"{name}-client", client_metrics)]
        configuration: dict[str, object] = {
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": [str(ROOT / "prometheus" / "rules" / "*.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [address]}]} for name, address in jobs
            ],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(configuration))  # YAML, too
        assert PROMETHEUS is not None
        prometheus = await stack.enter_async_context(
            running(
                PROMETHEUS,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            )
        )
        address = (await prometheus.line(r'msg="Listening on" .*address=(\S+)'))[1]
        await prometheus.line("Server is ready to receive web requests")

        async def restart() -> None:
            await server.kill()
            again = (*command, "--listen", target, "--metrics-listen", metrics)
            await (await stack.enter_async_context(running(*again, **environment))).line("Serving metrics on")
            publish = ("publish", "--attribute", "traceparent=nonsense", str(ROOT / "rustfmt.toml"))
            for command_line in (publish, ("health",)):
                async with running(BINARY, *command_line, "--target", target) as tool:
                    assert await tool.exit_code() == 0

        yield Prometheus(f"http://{address}"), clients, restart


async def signs(prometheus: Prometheus, job: str) -> frozenset[str]:
    """Returns the signs of bad days that the dashboard shows, each read off the panels that its text names."""

    async def shows(title: str, query: int = 0) -> Result:
        return await prometheus.ask(DELIVERY[title][query], job)

    found = set()
    amplification = (await shows("Amplification")).get("", 1.0)
    by_number = await shows("Retries by number")
    first, third = by_number.get("1", 0.0), by_number.get("3", 0.0)
    if amplification > 1.8 and first > third > 1:
        found.add("deliveries are amplified")
    late = [sum((await shows("Late and ignored acks", query)).values()) for query in (0, 1)]
    if sum(late) > A_FEW_A_SECOND:
        found.add("late acks are up")
    if first > 0.5 and third > 0.6 * first:
        found.add("retries are flat over the attempts")
    median, deadline = (await shows("Ack latency")).get("", 0.0), (await shows("Ack latency", 3)).get("", 0.0)
    outcomes = await shows("Delivery outcomes")
    aged = (await shows("Oldest unacked")).get("", 0.0)
    dropped, backlog = (await shows("Flow", 4)).get("", 0.0), (await shows("Backlog")).get("", 0.0)
    if dropped > 0.5 and aged > 2 * deadline and backlog < FEW:
        found.add("few messages are dropped and grow old")
    if outcomes.get("interrupted", 0.0) > 0:
        found.add("deliveries were interrupted")
    if deadline and median > 0.7 * deadline and outcomes.get("expired", 0.0) > 0:
        found.add("acks come at the deadline")
    consumers = await shows("Consumers by state")
    if consumers.get("full", 0) > 0:
        found.add("consumers are full")
    messages = await shows("Messages not settled")
    sent = (await shows("Flow", 1)).get("", 0.0)
    if not any(consumers.values()) and messages.get("ready", 0) > 0 and sent == 0:
        found.add("a backlog without consumers")
    return frozenset(found)


async def test_every_expression_has_data_and_each_bad_day_has_its_signs(tmp_path: Path) -> None:
    async with days(tmp_path) as (prometheus, clients, restart):
        until = time.monotonic() + PATIENCE
        lost = restarted = False
        interrupted = False
        moved: set[str] = set()
        while True:
            acked = await prometheus.ask('sum(ackstream_messages_acked_total{job=~"$job"})', "lost-consumer")
            if not lost and acked.get("", 0) > 100:
                await clients["lost-consumer"].kill()
                lost = True
            acked = await prometheus.ask('sum(ackstream_messages_acked_total{job=~"$job"})', "eventful")
            if not restarted and acked.get("", 0) > 50:
                await restart()
                restarted = True
            found = {day: await signs(prometheus, day) for day in DAYS}
            # A burst, and not what goes on.
            interrupted |= "deliveries were interrupted" in found["lost-consumer"]
            found["lost-consumer"] |= {"deliveries were interrupted"} if interrupted else set()
            empty = await without_data(prometheus)
            moved |= await that_move(prometheus)
            missing = ALL - moved
            wrong = {day: found[day] for day, expected in DAYS.items() if found[day] != expected.signs}
            if not wrong and not empty and not missing:
                break
            assert time.monotonic() < until, f"signs {wrong}; no data: {empty}; not moved: {missing}"
            await asyncio.sleep(0.5)

        rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]
        assert len(rules) >= 11
        assert [rule for rule in rules if rule["health"] != "ok"] == []
        names = set(await prometheus.get("label/__name__/values"))
        asked = [query for panel in (DELIVERY | CLIENTS).values() for query in panel]
        used = {name for query in asked + [rule["query"] for rule in rules] for name in METRIC.findall(query)}
        assert len(used) > 30
        assert used - names == set(), "only what is there is asked for"


async def without_data(prometheus: Prometheus) -> list[str]:
    """Returns the panels that show nothing on a good day."""
    may_be_empty = {"Pages", "Tickets"}  # an alert that does not fire has no series
    asked = [
        (title, query, "good") for title, queries in DELIVERY.items() for query in queries if title not in may_be_empty
    ]
    asked += [(title, query, "good-client") for title, queries in CLIENTS.items() for query in queries]
    return [f"{title}: {query}" for title, query, job in asked if not await prometheus.ask(query, job)]


ALL = {
    f"{title}: {query}"
    for title, queries in (DELIVERY | CLIENTS).items()
    for query in queries
    if title not in NEVER_MOVES
}
"""Whatever a dashboard shows and may move."""


async def that_move(prometheus: Prometheus) -> set[str]:
    """Returns what shows more than 0 on one day or another."""
    moving: set[str] = set()
    for dashboard, behind in ((DELIVERY, ""), (CLIENTS, "-client")):
        asked = [(title, query) for title, queries in dashboard.items() for query in queries]
        for (title, query), job in itertools.product(asked, JOBS):
            key = f"{title}: {query}"
            if key in ALL - moving and any(value > 0 for value in (await prometheus.ask(query, job + behind)).values()):
                moving.add(key)
    return moving
