"""Scrapers: one after another, paced, or fifty at once, on plain sockets that cost little."""

import gzip
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


_CHUNK = 1 << 20
TIMEOUT_SECONDS = 10.0  # Prometheus' own scrape timeout


@dataclass(slots=True)
class Outcome:
    """How scrapes went: seconds of each that succeeded, and how many failed."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, share: float) -> float:
        """Latency that this share of the scrapes stayed under; infinite if none succeeded."""
        ordered = sorted(self.seconds)
        if not ordered:
            return float("inf")
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class ScrapeError(Exception):
    """The answer was not a complete 200."""


def request(host: str, *, compressed: bool, keep: bool) -> bytes:
    """The bytes of a scrape's request."""
    return (
        f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n"
        f"Accept-Encoding: {'gzip' if compressed else 'identity'}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    ).encode()


def scrape(port: int, *, compressed: bool = False) -> bytes:
    """One scrape on its own connection; the decompressed body. Raises OSError or ScrapeError."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as client:
        client.sendall(request("localhost", compressed=compressed, keep=False))
        received = bytearray()
        while data := client.recv(_CHUNK):
            received += data
    body = whole_body(received)
    return gzip.decompress(body) if compressed else body


def whole_body(received: bytes | bytearray) -> bytes:
    """The body of an answer read to its end. Raises ScrapeError unless it is a complete 200."""
    head, separator, body = bytes(received).partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ScrapeError(bytes(received[:100]))
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and int(line.split(b":")[1]) != len(body):
            raise ScrapeError("short body")
    if not body:
        raise ScrapeError("empty body")
    return body


def scrape_paced(port: int, count: int, every: float, *, compressed: bool) -> Outcome:
    """Scrapes one after another, one each `every` seconds (0: without a pause)."""
    outcome = Outcome()
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number * every - time.monotonic()))
        started = time.perf_counter()
        try:
            scrape(port, compressed=compressed)
        except (OSError, ScrapeError):
            outcome.failed += 1
        else:
            outcome.seconds.append(time.perf_counter() - started)
    return outcome


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    started: float
    received: bytearray = field(default_factory=bytearray)


def scrape_crowded(ports: Sequence[int], scrapers: int, seconds: float) -> Outcome:
    """`scrapers` clients at once, each scraping again as soon as it has its answer."""
    outcome = Outcome()
    selector = selectors.DefaultSelector()
    wanted = request("localhost", compressed=False, keep=False)
    until = time.perf_counter() + seconds
    clients: set[int] = set()

    def begin(port: int) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        client = _Client(sock, time.perf_counter())
        sock.connect_ex(("127.0.0.1", port))
        selector.register(sock, selectors.EVENT_WRITE, (client, port))
        clients.add(sock.fileno())

    def end(client: _Client, port: int, *, failed: bool) -> None:
        selector.unregister(client.sock)
        clients.discard(client.sock.fileno())
        client.sock.close()
        now = time.perf_counter()
        if not failed:
            try:
                whole_body(client.received)
            except ScrapeError:
                failed = True
        if failed:
            outcome.failed += 1
        else:
            outcome.seconds.append(now - client.started)
        if now < until:
            begin(port)

    for number in range(scrapers):
        begin(ports[number % len(ports)])
    while clients:
        for key, events in selector.select(0.2):
            client, port = key.data
            try:
                if events & selectors.EVENT_WRITE:
                    client.sock.sendall(wanted)
                    selector.modify(client.sock, selectors.EVENT_READ, key.data)
                    continue
                data = client.sock.recv(_CHUNK)
            except OSError:
                end(client, port, failed=True)
                continue
            if data:
                client.received += data
            else:
                end(client, port, failed=False)
        late = time.perf_counter() - TIMEOUT_SECONDS
        for key in list(selector.get_map().values()):
            if key.data[0].started < late:
                end(*key.data, failed=True)
    selector.close()
    return outcome
