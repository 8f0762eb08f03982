"""Virtual time for every asynchronous test but those marked `real_time`."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.fake_server import FakeServer
from tests.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Chooses the event loop of a test (a hook of pytest-asyncio)."""
    if item.get_closest_marker("real_time"):
        return {"real_time": asyncio.SelectorEventLoop}
    return {"virtual_time": VirtualTimeLoop}


@pytest.fixture
def server() -> FakeServer:
    """A server without a network."""
    return FakeServer()
