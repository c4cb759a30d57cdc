"""A local engine that answers as the test wants: well, badly, slowly, endlessly or not at all."""

import gzip
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


EXPOSITIONS = Path(__file__).parent / "expositions"
Answer = Callable[["Exchange"], None]


def exposition(name: str) -> str:
    """The hand-written exposition called `name`."""
    return (EXPOSITIONS / f"{name}.txt").read_text()


class Exchange:
    """One request that was read; the answer writes to it."""

    def __init__(self, connection: Any, closing: threading.Event) -> None:
        self.connection = connection
        self.closing = closing

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)


class EngineServer:
    """Serves on a free local port; `answer` may be replaced at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self.heads: list[str] = []
        self._closing = threading.Event()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head = b""
                while b"\r\n\r\n" not in head:
                    part = self.request.recv(4096)
                    if not part:
                        return
                    head += part
                outer.requests.append(head.decode().splitlines()[0])
                outer.heads.append(head.decode())
                # The client hangs up, as it should, on most of these answers.
                with suppress(OSError):
                    outer.answer(Exchange(self.request, outer._closing))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(answer: Answer) -> Iterator[EngineServer]:
    server = EngineServer(answer)
    try:
        yield server
    finally:
        server.close()


def text(body: str, *, status: str = "200 OK", headers: str = "") -> Answer:
    """A complete answer."""
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode()
    return lambda exchange: exchange.send(head + data)


def gzipped(body: str | bytes) -> Answer:
    """A complete answer, compressed without being asked to."""
    data = gzip.compress(body if isinstance(body, bytes) else body.encode())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n"
    return lambda exchange: exchange.send(head.encode() + data)


def hang(exchange: Exchange) -> None:
    """Reads the request and never answers."""
    exchange.closing.wait()


def drip(exchange: Exchange) -> None:
    """An endless body, a byte at a time: every single read succeeds soon."""
    exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while not exchange.closing.wait(0.02):
        exchange.send(b"#")


def drip_headers(exchange: Exchange) -> None:
    """Endless headers, a byte at a time."""
    exchange.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not exchange.closing.wait(0.02):
        exchange.send(b"x")


def flood(exchange: Exchange) -> None:
    """A hundred megabytes of comment without saying how long it will be."""
    exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
    line = b"# " + b"x" * 65_533 + b"\n"
    for _ in range(1600):
        exchange.send(line)


def cut_short(exchange: Exchange) -> None:
    """Promises more than it sends."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nvllm:num")


def garbage(exchange: Exchange) -> None:
    """Something that is not HTTP."""
    exchange.send(b"\x16\x03\x01 hello\r\n\r\n")


def chunked(body: str) -> Answer:
    """A complete answer in chunks of 100 bytes."""
    data = body.encode()
    parts = [data[at : at + 100] for at in range(0, len(data), 100)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lambda exchange: exchange.send(head + framed)
