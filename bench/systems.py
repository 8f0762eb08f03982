"""The servers that are measured: started on free ports of this machine, watched, and stopped."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
ACKSTREAM = TARGET / "release" / "ackstream"
BENCH = TARGET / "bench" / "release"
"""Where the programs of this folder are."""

STARTED_WITHIN = 30.0
"""Seconds that a server may take to listen; RabbitMQ needs several."""
ANSWERED_WITHIN = 60.0
"""Seconds that a program of this folder may take for one answer."""
TICKS = os.sysconf("SC_CLK_TCK")

Json = dict[str, Any]


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    metrics: int = 0
    vm: int = 0
    """The process whose CPU counts, where it is a child of the one that was started."""

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.vm or self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self, field: str = "VmRSS") -> int:
        """Bytes; `VmHWM` = the most that it has been."""
        text = Path(f"/proc/{self.vm or self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]

    def metric(self, name: str, *labels: str) -> float:
        """The sum of our metric of this name, over all series with these labels."""
        lines = (line for line in self.scrape().splitlines() if line.startswith(f"ackstream_{name}{{"))
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))

    def scrape(self) -> str:
        text: bytes = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10).read()
        return text.decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


@contextmanager
def running(command: list[str], port: int, environment: dict[str, str] | None = None, **more: Any) -> Iterator[Server]:
    """A process that listens on `port`, until the block ends."""
    process = subprocess.Popen(command, text=True, env=os.environ | (environment or {}), **more)
    try:
        wait_for(port, process)
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def raw(count: int, payload: int, *options: str) -> Iterator[Server]:
    """The limit: a tonic stream with no tracking. What it says at the end is in `server.process.stdout`."""
    command = [str(BENCH / "raw"), "--count", str(count), "--payload", str(payload), *options]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        yield Server(process, int(process.stdout.readline().rsplit(":", 1)[1]))
    finally:
        process.kill()
        process.wait()


LAWS = re.compile(
    r"messages: +(\d+) published = (\d+) acked \+ (\d+) dropped \+ (\d+) ready \+ (\d+) delayed \+ (\d+) outstanding"
)
DELIVERIES = re.compile(
    r"deliveries: +(\d+) sent = (\d+) acked \+ (\d+) nacked \+ (\d+) expired"
    r" \+ (\d+) interrupted \+ (\d+) released \+ (\d+) outstanding"
)


@contextmanager
def ackstream(
    *, metrics: bool = False, traces: str | None = None, share: str = "1", config: str = "", **keys: str
) -> Iterator[Server]:
    """Our server. When the block ends, its last lines must show that both laws held.

    `keys` are configuration keys; `traces` is the address of a collector, `share` that of the messages which are traced
    without reason, and `config` the text of a configuration file.
    """
    port, metrics_port = free_port(), free_port()
    # What was measured in every version, whatever the defaults are.
    policy = {"ack_deadline": "2s", "max_retries": "3", "min_backoff": "0s", "max_backoff": "0s"}
    environment = {f"ACKSTREAM_{name.upper()}": value for name, value in (policy | keys).items()}
    environment["ACKSTREAM_LISTEN"] = f"127.0.0.1:{port}"
    environment["ACKSTREAM_METRICS_LISTEN"] = f"127.0.0.1:{metrics_port}" if metrics else "off"
    if traces:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{traces}"
        environment["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        environment["OTEL_TRACES_SAMPLER_ARG"] = share
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ackstream.toml"
        file.write_text(config)
        log = Path(folder) / "log"
        with log.open("w") as out:
            command = [str(ACKSTREAM), "serve", "--config", str(file)]
            with running(command, port, environment, stdout=out, stderr=subprocess.STDOUT) as server:
                server.metrics = metrics_port if metrics else 0
                yield server
        said = log.read_text()
        laws = [list(map(int, found)) for law in (LAWS, DELIVERIES) for found in law.findall(said)]
        if not laws or any(whole != sum(parts) for whole, *parts in laws):
            raise RuntimeError(f"a law did not hold, or the server did not say so:\n{said[-2000:]}")


@contextmanager
def running_load(target: str, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """`ackstream bench` with these options, until the block ends; it reports in JSON."""
    command = [str(ACKSTREAM), "bench", "--json", "--target", target, "--metrics", "off", *options]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    """Waits for it, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("it did not come about within a minute")
        time.sleep(0.01)


def load(target: str, *options: str, metrics: int = 0) -> Json:
    """What `ackstream bench` reports with these options. A law that is seen broken, or a lost message, is an error."""
    where = f"127.0.0.1:{metrics}" if metrics else "off"
    command = [str(ACKSTREAM), "bench", "--json", "--target", target, "--metrics", where, *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    report: Json = json.loads(done.stdout)
    return report


@contextmanager
def collector() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """An OTLP collector: its address, and the process to ask."""
    process = subprocess.Popen([str(BENCH / "collector")], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scraped(server: Server) -> Iterator[None]:
    """Its metrics are scraped once a second, on a connection that stays open, as Prometheus would."""
    stop = threading.Event()

    def scrape() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.metrics, timeout=10)
        while not stop.wait(1.0):
            connection.request("GET", "/metrics")
            connection.getresponse().read()

    with ThreadPoolExecutor(1) as thread:
        scraping = thread.submit(scrape)
        try:
            yield
        finally:
            stop.set()
        scraping.result()  # whatever went wrong there


# ---- rivals

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's, without the wrapper that asks for a user of its own."""


def missing_rivals() -> dict[str, str]:
    """The rivals that this machine has not got, and what was looked for."""
    wanted = {"NATS JetStream": "nats-server", "Redis Streams": "redis-server", "RabbitMQ": str(RABBITMQ)}
    return {name: program for name, program in wanted.items() if shutil.which(program) is None}


@contextmanager
def rival(name: str) -> Iterator[Server]:
    """A rival's server, empty and in memory as far as it can be."""
    port = free_port()
    quiet: Json = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        match name:
            case "NATS JetStream":
                command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder]
                yield stack.enter_context(running(command, port, **quiet))
            case "Redis Streams":
                memory = ["--save", "", "--appendonly", "no"]
                command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", *memory]
                yield stack.enter_context(running(command, port, cwd=folder, **quiet))
            case "RabbitMQ":
                names = free_port()  # of Erlang's own name server
                stack.enter_context(running(["epmd", "-address", "127.0.0.1", "-port", str(names)], names, **quiet))
                environment = {
                    "RABBITMQ_NODENAME": f"bench{port}@localhost",
                    "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                    "RABBITMQ_NODE_PORT": str(port),
                    "RABBITMQ_DIST_PORT": str(free_port()),
                    "ERL_EPMD_PORT": str(names),
                    "RABBITMQ_MNESIA_BASE": folder,
                    "RABBITMQ_LOG_BASE": folder,
                    "HOME": folder,
                }
                server = stack.enter_context(running([str(RABBITMQ)], port, environment, **quiet))
                children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
                server.vm = next((int(pid) for pid in children if "beam" in Path(f"/proc/{pid}/comm").read_text()), 0)
                yield server


@contextmanager
def stored_in_rival(name: str, server: Server, count: int, payload: int) -> Iterator[tuple[float, Callable[[], float]]]:
    """So many messages, stored: how many seconds that took, and what consumes them and returns the seconds of that."""
    kind = {"NATS JetStream": "nats", "Redis Streams": "redis", "RabbitMQ": "rabbitmq"}[name]
    size = ["--count", str(count), "--payload", str(payload)]
    command = [str(BENCH / "rival"), kind, "--port", str(server.port), *size]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield ask(process), lambda: ask(process, "consume")
    finally:
        process.kill()
        process.wait()


def ask(process: "subprocess.Popen[str]", question: str | None = None) -> Any:
    """The next line of JSON that a program says, where there is a question after that."""
    assert process.stdout
    if question is not None:
        assert process.stdin
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
    impatience = threading.Timer(ANSWERED_WITHIN, process.kill)
    impatience.start()
    answer = process.stdout.readline()
    impatience.cancel()
    if not answer:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()} or was silent for {ANSWERED_WITHIN:.0f} s")
    return json.loads(answer)
