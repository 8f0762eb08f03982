"""Whether the demo client in this container is well: exit code 0 while its stream to the server is open, else 1.

It asks the client's own metrics, at the port of ACKSTREAM_CLIENT_METRICS_LISTEN.
"""

import os
import sys
import urllib.request

TIMEOUT = 2.0
"""Seconds."""

CONNECTED = "ackstream_client_connected 1.0"


def find_problem() -> str | None:
    """Asks once, and returns what is wrong."""
    port = os.environ.get("ACKSTREAM_CLIENT_METRICS_LISTEN", ":9465").rpartition(":")[2]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as answer:
            connected = CONNECTED in answer.read().decode().splitlines()
    except OSError as error:
        return f"no metrics on port {port}: {error}"
    return None if connected else "no stream to the server is open"


if __name__ == "__main__":
    sys.exit(find_problem())  # a sentence goes to stderr, with exit code 1
