from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exporter.web.http import Handler
from exporter.web.server import Server
from tests.web.clients import echo


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers on free ports and closes them after the test."""
    started: list[Server] = []

    def start(handler: Handler = echo, *, address: str = "127.0.0.1:0", **options: Any) -> Server:
        server = Server([address], handler, **options)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.close(5)
