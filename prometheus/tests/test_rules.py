"""When each alert fires, and that it is silent otherwise, as promtool's rule tests say it.

A scenario is a healthy server in which some series go another way. promtool reads YAML, of which JSON is a part.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).parents[1] / "rules" / "ackstream.yml"
PROMTOOL = shutil.which("promtool")

SERVER = {"job": "ackstream-server", "instance": "server:9464"}
TOPIC = {**SERVER, "topic": "demo"}
SUBSCRIPTION = {**TOPIC, "subscription": "demo"}

Labels = dict[str, str]

SERIES: dict[str, tuple[str, Labels]] = {
    "published": ("ackstream_messages_published_total", SUBSCRIPTION),
    "acked": ("ackstream_messages_acked_total", SUBSCRIPTION),
    "dropped": ("ackstream_messages_dropped_total", {**SUBSCRIPTION, "reason": "max_retries"}),
    "sent": ("ackstream_messages_sent_total", SUBSCRIPTION),
    "ended": ("ackstream_deliveries_ended_total", {**SUBSCRIPTION, "outcome": "acked"}),
    "expired": ("ackstream_deliveries_ended_total", {**SUBSCRIPTION, "outcome": "expired"}),
    "interrupted": ("ackstream_deliveries_ended_total", {**SUBSCRIPTION, "outcome": "interrupted"}),
    "exploded": ("ackstream_messages_dropped_total", {**SUBSCRIPTION, "reason": "max_interruptions"}),
    "retried": ("ackstream_messages_retried_total", {**SUBSCRIPTION, "retry": "1", "reason": "expired"}),
    "ready": ("ackstream_messages", {**SUBSCRIPTION, "state": "ready"}),
    "delayed": ("ackstream_messages", {**SUBSCRIPTION, "state": "delayed"}),
    "outstanding": ("ackstream_messages", {**SUBSCRIPTION, "state": "outstanding"}),
    "oldest": ("ackstream_oldest_unacked_timestamp_seconds", SUBSCRIPTION),
    "waiting": ("ackstream_consumers", {**SUBSCRIPTION, "state": "waiting"}),
    "full": ("ackstream_consumers", {**SUBSCRIPTION, "state": "full"}),
    "unresponsive": ("ackstream_consumers", {**SUBSCRIPTION, "state": "unresponsive"}),
    "max_interruptions": ("ackstream_config_max_interruptions", SUBSCRIPTION),
    "max_retries": ("ackstream_config_max_retries", SUBSCRIPTION),
    "ack_deadline": ("ackstream_config_ack_deadline_seconds", SUBSCRIPTION),
    "refused": ("ackstream_dead_letters_total", {**SUBSCRIPTION, "outcome": "refused"}),
    "rejected": ("ackstream_messages_rejected_total", {**TOPIC, "reason": "backlog_full"}),
    "up": ("up", SERVER),
}

# Half an hour, a value every 15 s: 20 messages a second, each acked at once.
FLOW, STILL, FIVE_MINUTES = "0+300x120", "0x120", "0+300x20 "
HEALTHY = dict.fromkeys(SERIES, STILL) | {
    "published": FLOW,
    "acked": FLOW,
    "sent": FLOW,
    "ended": FLOW,
    "waiting": "1x120",
    "max_retries": "3x120",
    "max_interruptions": "3x120",
    "ack_deadline": "2x120",
    "up": "1x120",
}

ALERTS: dict[str, Labels] = {
    "AckstreamUnaccounted": {**SUBSCRIPTION, "severity": "page"},
    "AckstreamBacklogFull": {**TOPIC, "severity": "page"},
    "AckstreamNoConsumer": {**SUBSCRIPTION, "severity": "page"},
    "AckstreamNothingAcked": {**SUBSCRIPTION, "severity": "page"},
    "AckstreamDown": {**SERVER, "severity": "page"},
    "AckstreamDrops": {**SUBSCRIPTION, "severity": "ticket", "reason": "max_retries"},
    "AckstreamRetryStorm": {**SUBSCRIPTION, "severity": "ticket"},
    "AckstreamInterruptions": {**SUBSCRIPTION, "severity": "ticket"},
    "AckstreamUnresponsive": {**SUBSCRIPTION, "severity": "ticket"},
    "AckstreamFallingBehind": {**SUBSCRIPTION, "severity": "ticket"},
    "AckstreamDeadLetterTopicFull": {**SUBSCRIPTION, "severity": "ticket"},
}

# What differs from a healthy server, and the minutes at which alerts fire; at all other minutes they must be silent.
STOPS_AT_5 = FIVE_MINUTES + "6000x100"
SCENARIOS: dict[str, tuple[dict[str, str], dict[str, range]]] = {
    "a healthy server is silent": ({}, {}),
    "a message that is lost from sight pages after a minute": (
        {"acked": FIVE_MINUTES + "6299+300x100"},
        {"AckstreamUnaccounted": range(7, 30)},
    ),
    "a delivery that is lost from sight pages after a minute": (
        {"ended": FIVE_MINUTES + "6299+300x100"},
        {"AckstreamUnaccounted": range(7, 30)},
    ),
    "a law that is broken for a moment pages nobody": ({"acked": FIVE_MINUTES + "6299 6600+300x99"}, {}),
    "refusals because a backlog is full page after 2 minutes": (
        {"rejected": "0x20 15+15x100"},
        {"AckstreamBacklogFull": range(8, 30)},
    ),
    "a short burst of refusals pages nobody": ({"rejected": "0x20 15 30x100"}, {}),
    "a backlog without a consumer pages after 5 minutes": (
        {
            "sent": STOPS_AT_5,
            "ended": STOPS_AT_5,
            "acked": STOPS_AT_5,
            "ready": "0x20 300+300x100",
            "waiting": "1x20 0x100",
        },
        {"AckstreamNoConsumer": range(12, 30)},
    ),
    "consumers that ack nothing page after 5 minutes": (
        {"acked": STOPS_AT_5, "ended": STOPS_AT_5, "outstanding": "0x20 300+300x100"},
        {"AckstreamNothingAcked": range(12, 30)},
    ),
    "consumers that hang with full windows page after 5 minutes": (
        {
            "sent": STOPS_AT_5,
            "ended": FIVE_MINUTES + "5000x100",
            "acked": FIVE_MINUTES + "5000x100",
            "outstanding": "0x20 1000x100",
            "ready": "0x20 300+300x100",
            "waiting": "1x20 0x100",
            "full": "0x20 1x100",
        },
        {"AckstreamNothingAcked": range(12, 30)},
    ),
    "dead letters that find no room are a ticket": (
        {"refused": "0x20 1+1x100"},
        {"AckstreamDeadLetterTopicFull": range(8, 30)},
    ),
    "nothing published and nothing acked pages nobody": (
        {"published": STOPS_AT_5, "sent": STOPS_AT_5, "ended": STOPS_AT_5, "acked": STOPS_AT_5},
        {},
    ),
    "a server that cannot be scraped pages after 2 minutes": ({"up": "1x20 0x100"}, {"AckstreamDown": range(8, 30)}),
    "a drop is a ticket for as long as it is recent": (
        {
            "acked": FIVE_MINUTES + "6299+300x100",
            "dropped": "0x20 1x100",
            "ended": FIVE_MINUTES + "6296+300x100",
            "expired": "0x20 4x100",
        },
        {"AckstreamDrops": range(5, 10)},
    ),
    "a drop without failures of its own pages after a minute": (
        {
            "acked": FIVE_MINUTES + "6299+300x100",
            "dropped": "0x20 1x100",
            "ended": FIVE_MINUTES + "6297+300x100",
            "expired": "0x20 3x100",
        },
        {"AckstreamDrops": range(5, 10), "AckstreamUnaccounted": range(7, 30)},
    ),
    "consumers that break off again and again are a ticket after 10 minutes": (
        {"sent": FIVE_MINUTES + "6301+301x100", "interrupted": "0x20 1+1x100"},
        {"AckstreamInterruptions": range(16, 30)},
    ),
    "a consumer that says nothing is a ticket after 5 minutes": (
        {"unresponsive": "0x20 1x100"},
        {"AckstreamUnresponsive": range(11, 30)},
    ),
    "a retry storm is a ticket after 10 minutes": (
        {
            "sent": FIVE_MINUTES + "6450+450x100",
            "ended": FIVE_MINUTES + "6450+450x100",
            "retried": "0x20 150+150x100",
        },
        {"AckstreamRetryStorm": range(17, 30)},
    ),
    "few retries are no storm, however large their share": (
        {"published": "0+3x120", "acked": "0+3x120", "sent": "0+6x120", "ended": "0+6x120", "retried": "0+3x120"},
        {},
    ),
    "a backlog that grows and ages is a ticket": (
        {
            "acked": FIVE_MINUTES + "6290+290x100",
            "sent": FIVE_MINUTES + "6290+290x100",
            "ended": FIVE_MINUTES + "6290+290x100",
            "ready": "0x20 10+10x100",
            "oldest": "0x20 300x100",
        },
        {"AckstreamFallingBehind": range(12, 30)},
    ),
    "so is one of a subscription whose retries are unlimited": (
        {
            "acked": FIVE_MINUTES + "6290+290x100",
            "sent": FIVE_MINUTES + "6290+290x100",
            "ended": FIVE_MINUTES + "6290+290x100",
            "ready": "0x20 10+10x100",
            "oldest": "0x20 300x100",
            "max_retries": " ".join(["Inf"] * 121),
        },
        {"AckstreamFallingBehind": range(12, 30)},
    ),
    "an old message in a backlog that does not grow is silent": (
        {"published": "1+300x120", "ready": "1x120", "oldest": "1x120"},
        {},
    ),
    # A tenth of 20 deliveries a second is dropped on purpose, some are nacked, two messages of 300 are poisoned.
    "the demo's defaults page nobody": (
        {
            "published": "40+300x120",
            "acked": "0+298x120",
            "dropped": "0+2x120",
            "sent": "30+370x120",
            "ended": "0+292x120",
            "expired": "0+78x120",
            "retried": "0+70x120",
            "outstanding": "30x120",
            "delayed": "10x120",
            "oldest": "0+15x120",
        },
        {"AckstreamDrops": range(1, 30)},
    ),
}

# Minutes at which an alert may fire or not: between what happens and the end of its "for".
MAY_FIRE = {
    "AckstreamNoConsumer": range(10, 12),
    "AckstreamNothingAcked": range(10, 12),
    "AckstreamDrops": range(10, 12),
}
MAY_FIRE |= {"AckstreamDeadLetterTopicFull": range(5, 8)}
MAY_FIRE |= {"AckstreamInterruptions": range(14, 16), "AckstreamUnresponsive": range(9, 11)}
MAY_FIRE |= {"AckstreamFallingBehind": range(10, 12), "AckstreamRetryStorm": range(15, 17)}
MAY_FIRE |= {"AckstreamUnaccounted": range(6, 7), "AckstreamBacklogFull": range(7, 8), "AckstreamDown": range(7, 8)}


def promtool(tmp_path: Path, tests: list[dict[str, object]]) -> None:
    """Runs rule tests; a failure shows what promtool says."""
    if PROMTOOL is None:
        pytest.skip("promtool is not installed")
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}))
    done = subprocess.run([PROMTOOL, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def series(changes: dict[str, str]) -> list[dict[str, str]]:
    """Returns the input of promtool: a healthy server with these changes."""
    return [{"series": selector(*SERIES[name]), "values": values} for name, values in (HEALTHY | changes).items()]


def selector(name: str, labels: Labels) -> str:
    """Returns a series as PromQL writes it."""
    pairs = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}"


def firing_at(time: str, alerts: dict[str, Labels], unsure: list[str] | None = None) -> dict[str, object]:
    """Returns the check that exactly these alerts fire, whatever those of which nobody can be sure do."""
    samples = [
        {"labels": selector("ALERTS", {"alertname": name, "alertstate": "firing", **labels}), "value": 1}
        for name, labels in alerts.items()
    ]
    but = "|".join(unsure or [])
    expression = f'ALERTS{{alertstate="firing", alertname!~"{but}"}}'
    return {"expr": expression, "eval_time": time, "exp_samples": samples}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_alerts(scenario: str, tmp_path: Path) -> None:
    changes, fires = SCENARIOS[scenario]
    checks = []
    for minute in range(2, 30):
        unsure = [alert for alert in fires if minute in MAY_FIRE[alert] and minute not in fires[alert]]
        firing = {alert: ALERTS[alert] for alert, minutes in fires.items() if minute in minutes}
        checks.append(firing_at(f"{minute}m30s", firing, unsure))
    promtool(tmp_path, [{"interval": "15s", "input_series": series(changes), "promql_expr_test": checks}])


def test_a_server_that_nobody_finds_pages_after_2_minutes(tmp_path: Path) -> None:
    checks = [
        firing_at("1m", {}),
        firing_at("3m", {"AckstreamDown": {"job": "ackstream-server", "severity": "page"}}),
    ]
    other = [{"series": 'up{job="other"}', "values": "1x120"}]
    promtool(tmp_path, [{"interval": "15s", "input_series": other, "promql_expr_test": checks}])


def test_the_age_of_the_oldest_message_is_not_there_where_nothing_waits(tmp_path: Path) -> None:
    age = "ackstream:oldest_unacked_age_seconds"
    checks: list[dict[str, object]] = [
        {"expr": age, "eval_time": "1m"},
        {"expr": age, "eval_time": "5m", "exp_samples": [{"labels": selector(age, SUBSCRIPTION), "value": 210}]},
        {
            "expr": "ackstream:messages_unaccounted",
            "eval_time": "5m",
            "exp_samples": [{"labels": selector("ackstream:messages_unaccounted", SUBSCRIPTION), "value": 0}],
        },
    ]
    changes = {"oldest": "0x8 90x112"}
    promtool(tmp_path, [{"interval": "15s", "input_series": series(changes), "promql_expr_test": checks}])
