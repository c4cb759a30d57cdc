import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from exporter.web.connections import Connection, ConnectionTable, open_listener
from exporter.web.http import Request, Response, plain
from exporter.web.server import Server
from tests.web.clients import RawClient, eventually, request_bytes, server_threads


Serve = Callable[..., Server]


class Gate:
    """A handler that signals when it was entered and answers when it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, _: Request) -> Response:
        self.entered.set()
        self.go.wait()
        return plain(200, "finished")


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def test_an_answer_in_flight_is_finished(serve: Serve, gate: Gate) -> None:
    """Closing waits for a running handler and its answer; the client learns that it was the last."""
    server = serve(gate)
    address = server.addresses[0]
    with RawClient(server) as client:
        client.send(request_bytes("GET", "/"))
        assert gate.entered.wait(30)
        closing = threading.Thread(target=server.close, args=(60,))
        closing.start()
        assert eventually(lambda: server.addresses == ())
        gate.go.set()
        answer = client.read_answer()
        closing.join()

    assert answer.body == b"finished\n"
    assert answer.headers["Connection"] == "close"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=30)


def test_waiting_connections_end_at_once(serve: Serve) -> None:
    """Silent and idle connections do not delay the server."""
    server = serve()
    with RawClient(server) as idle, RawClient(server) as silent, RawClient(server) as half:
        idle.get("/")
        half.send(b"GET / HTTP/1.1\r\n")
        server.close(60)

        assert all(client.is_closed_by_peer() for client in (idle, silent, half))


class LateListener(socket.socket):
    """Hands over a connection when it is told to."""

    def __init__(self) -> None:
        super().__init__(fileno=open_listener("127.0.0.1:0", 1).detach())
        self.setblocking(False)
        self.accepted = threading.Event()
        self.go = threading.Event()

    def accept(self) -> Any:
        accepted = super().accept()
        self.accepted.set()
        self.go.wait(60)
        return accepted


def test_a_connection_that_comes_while_the_server_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was accepted, but nothing is left that another thread could wait on: it ends unserved."""
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    monkeypatch.setattr(threading, "excepthook", printed.append)
    listener = LateListener()
    server = Server(["127.0.0.1:0"], lambda _: plain(200))
    server.start([listener])
    with RawClient(server) as client:
        assert listener.accepted.wait(60)
        server.close(60)
        listener.go.set()

        assert client.is_closed_by_peer()

    assert eventually(lambda: server_threads() == 0)
    assert printed == []


def test_nothing_is_served_after_closing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing found no connection to wait for, as this one got its place a moment later."""
    arrived, go = threading.Event(), threading.Event()
    admit = ConnectionTable.admit

    def late(table: ConnectionTable, connection: Connection) -> bool:
        arrived.set()
        go.wait(60)
        return admit(table, connection)

    monkeypatch.setattr(ConnectionTable, "admit", late)
    server = serve()
    with RawClient(server) as client:
        client.send(request_bytes("GET", "/"))
        assert arrived.wait(60)
        server.close(60)
        go.set()

        assert client.is_closed_by_peer()


def test_a_stuck_handler_does_not_delay_the_servers_exit(serve: Serve, gate: Gate) -> None:
    """After the grace, closing returns though a handler hangs; its client sees the end."""
    server = serve(gate)
    with RawClient(server) as client:
        client.send(request_bytes("GET", "/"))
        assert gate.entered.wait(30)
        with capture_logs() as logs:
            server.close(0.05)

        assert not gate.go.is_set()
        assert client.is_closed_by_peer()
        assert [entry["event"] for entry in logs] == ["connections_abandoned"]


def test_closing_twice_or_unstarted_is_harmless(serve: Serve) -> None:
    """Close can be called in any state."""
    server = serve()
    server.close(1)
    server.close(1)
    Server(["127.0.0.1:0"], lambda _: plain(200)).close(1)

    assert server.addresses == ()


def test_no_thread_is_left(serve: Serve) -> None:
    """After closing, all threads of the server have ended or are about to."""
    server = serve()
    with RawClient(server) as client:
        client.get("/")
        server.close(60)

    assert eventually(lambda: server_threads() == 0)
