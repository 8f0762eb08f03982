"""The options of client.py: flags before environment before defaults, and every problem reported at once."""

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ENVIRONMENT_PREFIX = "ACKSTREAM_CLIENT_"

# What Kubernetes sets in every pod for a Service named ackstream-client: nobody's option.
KUBERNETES = re.compile(ENVIRONMENT_PREFIX + r"(SERVICE_.*|PORT|PORT_.*)")

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

MAX_DURATION = 24 * 3600.0

MAX_PORT = 65535

SHORTEST_INTERVAL = 0.1

LONGEST_EXTENSION = 3600.0

# What an option means that has no default.
WITHOUT = {"seed": "random"}


@dataclass(frozen=True)
class Options:
    """What the demo consumer was asked for. Durations are in seconds, rates from 0 to 1."""

    target: str
    topic: str
    subscription: str
    drop_rate: float
    nack_rate: float
    fail_rate: float
    poison_rate: float
    delay: float
    slow_rate: float
    slow_delay: float
    max_extension: float
    seed: int | None
    connect_timeout: float
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    token_file: str | None
    metrics_listen: tuple[str, int] | None
    log_format: str
    log_lines_per_second: int
    log_summary_interval: float


class BadOptions(Exception):
    """Some options cannot be used; `problems` names each with the source that it came from."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Returns the options in effect, or prints the help and exits with 0.

    Raises:
        BadOptions: With every problem there is.
    """
    parser = argparse.ArgumentParser(
        prog="client.py",
        description="Consumes a subscription, and drops, nacks, fails and delays deliveries on purpose.",
        epilog=f"Each option is also an environment variable, for example {ENVIRONMENT_PREFIX}DROP_RATE; a flag comes "
        "first. Traces go where the standard OTEL_* variables say, for example "
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317. Exit codes: 0 the server has finished, or SIGINT or "
        "SIGTERM; 64 a wrong option, or a topic or subscription that the server does not have; 69 no server within "
        "the connect timeout, or it refused this client, or the metrics port cannot be had; 70 a bug.",
        allow_abbrev=False,
    )
    for key, (_, default, text) in OPTIONS.items():
        # Values stay text here: argparse would stop at the first wrong one. A flag without a value is "", judged later.
        parser.add_argument(
            f"--{key}",
            nargs="?",
            const="",
            metavar="VALUE",
            help=f"{text} (default: {default or WITHOUT.get(key, 'off')})",
        )
    flags, unknown = parser.parse_known_args(arguments)

    problems = [f"{argument}: unknown argument (command line){_nearest_flag(argument)}" for argument in unknown]
    problems += _unknown_variables(environment)
    values: dict[str, object] = {}
    for key, (parse, default, _) in OPTIONS.items():
        name = key.replace("-", "_")
        variable = ENVIRONMENT_PREFIX + name.upper()
        flag: str | None = getattr(flags, name)
        text, source = default, f"--{key} (default)"
        if flag is not None:
            text, source = flag, f"--{key} (command line)"
        elif variable in environment:
            text, source = environment[variable], f"{variable} (environment)"
        try:
            values[name] = parse(text) if text or source.endswith("line)") else None
        except ValueError as error:
            problems.append(f"{source}: {error}")
    rates = [values.get(name) for name in ("drop_rate", "nack_rate", "fail_rate")]
    if sum(rate for rate in rates if isinstance(rate, float)) > 1:
        problems.append("--drop-rate, --nack-rate and --fail-rate: together they are more than 1")
    if bool(values.get("tls_cert")) != bool(values.get("tls_key")):
        problems.append("--tls-cert and --tls-key: a certificate and its private key go together")
    if problems:
        raise BadOptions(problems)
    return Options(**values)  # type: ignore[arg-type] # each value was made by the parser of its field


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"{text!r} is not a rate: it takes a number from 0 to 1")
    return rate


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if match is None:
        raise ValueError(f'{text!r} is not a duration: it takes a number and a unit (ms, s, m, h), for example "2s"')
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds > MAX_DURATION:
        raise ValueError(f"{text!r} is too long: at most 24h")
    return seconds


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{text!r} is not a whole number of at most 9 digits")
    return int(text)


def _log_format(text: str) -> str:
    if text not in {"text", "json"}:
        raise ValueError(f'{text!r} is not "text" or "json"')
    return text


def _extension(text: str) -> float:
    seconds = _duration(text)
    if seconds > LONGEST_EXTENSION:
        raise ValueError(f"{text!r} is too long: the server extends by at most 1h")
    return seconds


def _interval(text: str) -> float:
    seconds = _duration(text)
    if seconds < SHORTEST_INTERVAL:
        raise ValueError(f"{text!r} is too short: at least 100ms")
    return seconds


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d{1,19}", text):
        raise ValueError(f"{text!r} is not a seed: it takes a whole number of at most 19 digits")
    return int(text)


def _name(text: str) -> str:
    if not text:
        raise ValueError("it takes a name, and none was given")
    return text


def _file(text: str) -> str:
    if not text:
        raise ValueError("it takes the path of a file, and none was given")
    return text


def _target(text: str) -> str:
    match = re.fullmatch(r"([^:\s]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= MAX_PORT:
        raise ValueError(f'{text!r} is not an address: it takes host:port, for example "localhost:50051"')
    return text


def _listen(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"([^:\s\[\]]*|\[[0-9a-fA-F:.]+\]):(\d{1,5})", text)
    if match is None or int(match[2]) > MAX_PORT:
        raise ValueError(
            f'{text!r} is not an address: it takes host:port, for example "[::1]:9465", or ":9465" for all addresses'
        )
    return match[1].strip("[]"), int(match[2])


# Each option's parser, its default as it would be typed, and its help.
OPTIONS: dict[str, tuple[Callable[[str], object], str, str]] = {
    "target": (_target, "localhost:50051", "the server"),
    "topic": (_name, "demo", "the topic"),
    "subscription": (_name, "demo", "its subscription"),
    "drop-rate": (_rate, "0.1", "share of deliveries that are held and never answered"),
    "nack-rate": (_rate, "0", "share of deliveries that are nacked"),
    "fail-rate": (_rate, "0", "share of deliveries on which the handler fails"),
    "poison-rate": (_rate, "0", "share of messages on which the handler fails at every attempt"),
    "delay": (_duration, "0s", "how long each message is held before its answer, all at the same time"),
    "slow-rate": (_rate, "0", "share of deliveries that are held for longer"),
    "slow-delay": (_duration, "2500ms", "by how much longer"),
    "max-extension": (_extension, "1h", "for how long the ack deadline of what is held is extended; 0s = never"),
    "seed": (_seed, "", "decides which deliveries these are: the same seed tells the same story"),
    "connect-timeout": (_duration, "30s", "how long to go on without a server"),
    "tls-ca": (_file, "", 'speak TLS, and trust the authorities in this file; "default" are those of gRPC'),
    "tls-cert": (_file, "", "speak TLS, and show the certificate in this file"),
    "tls-key": (_file, "", "the file with its private key"),
    "token-file": (_file, "", "the file with this client's token"),
    "metrics-listen": (_listen, "", "where Prometheus may ask for metrics, for example [::1]:9465; port 0 picks one"),
    "log-format": (_log_format, "text", "text or json"),
    "log-lines-per-second": (_count, "1000", "lines about single messages, at most; 0 = none"),
    "log-summary-interval": (_interval, "1s", "after so long it says how many such lines were left out"),
}


def _unknown_variables(environment: Mapping[str, str]) -> list[str]:
    known = [ENVIRONMENT_PREFIX + key.replace("-", "_").upper() for key in OPTIONS]
    unknown = [
        name
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not KUBERNETES.fullmatch(name)
    ]
    return [f"{name}: unknown option (environment){_nearest(name, known)}" for name in sorted(unknown)]


def _nearest_flag(argument: str) -> str:
    return _nearest(argument.partition("=")[0], [f"--{key}" for key in OPTIONS])


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
