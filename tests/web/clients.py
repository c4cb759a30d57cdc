"""Clients for the web tests: raw sockets, so that a test says exactly which bytes it sends."""

import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from traceback import walk_stack
from types import FunctionType
from typing import Self

from exporter.web.http import Request, Response, plain
from exporter.web.server import Acceptor, Server


PATIENCE_SECONDS = 30.0  # for a busy machine; no test waits so long when the code is right


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection to a server; `source` is the address that it comes from."""

    def __init__(
        self, server: Server, *, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        host, port = server.addresses[0]
        self.socket = socket.create_connection(
            (host, port), timeout=PATIENCE_SECONDS, source_address=(source, 0)
        )
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, path: str, *headers: str) -> Answer:
        self.send(request_bytes("GET", path, *headers))
        return self.read_answer()

    def read_answer(self, *, has_body: bool = True) -> Answer:
        while b"\r\n\r\n" not in self._received:
            self._read_more()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("Content-Length", "0")) if has_body else 0
        self._received = rest
        while len(self._received) < length:
            self._read_more()
        body, self._received = bytes(self._received[:length]), self._received[length:]
        return Answer(int(status_line.split()[1]), headers, body)

    def receive_some(self) -> None:
        """Wait for the beginning of an answer, which stays to be read."""
        self._read_more()

    def is_closed_by_peer(self) -> bool:
        """Wait for the end of the connection; False when data comes instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        self._received += data


def request_bytes(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: test", *headers, "", "")).encode()


def echo(request: Request) -> Response:
    return plain(200, f"{request.method} {request.path} {request.query}")


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.005)
    return True


def connection_threads() -> int:
    """How many threads of the server talk on a connection right now."""
    return _threads_in(Server._converse)


def server_threads() -> int:
    """How many threads of servers there are: those on a connection, and those that wait for one."""
    return _threads_in(Acceptor._run)


def _threads_in(function: FunctionType) -> int:
    return sum(
        any(called.f_code is function.__code__ for called, _line in walk_stack(frame))
        for frame in sys._current_frames().values()
    )
