from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """The number on everything a client can make the server spend, each with its reason.

    Times are absolute: they are not renewed by a byte arriving now and then, so a client that
    dribbles is cut off as surely as one that is silent.

    connections: over all listen addresses; a thread each. A pair of Prometheus servers, an agent
        and some people need ten; when it is reached, a waiting connection is closed for the new one.
    backlog: connections the kernel keeps until they are accepted; a fleet's scrapers may all
        connect in the same second, and a dropped SYN costs the scraper one second.
    head_seconds: for the TLS handshake and the request's head and body together; a scraper needs
        milliseconds, over a bad link a second.
    response_seconds: to take one response; Prometheus gives up after its scrape timeout, 10 s.
    idle_seconds: between two requests; above twice the usual scrape intervals (15 s to 60 s), so
        that Prometheus keeps its connection.
    crowded_write_seconds: when all connections are busy, a client that has not taken its answer
        for this long gives way to a new one; a scrape of 1 MB takes 0.1 s at 100 Mbit/s.
    head_bytes: request line and headers; Prometheus sends under 1 kB, a browser with cookies 4 kB.
    target_bytes: the request's path and query; the longest of ours has 20.
    header_count: a browser sends about 20.
    body_bytes: no endpoint reads a body; what a client sends anyway is read and dropped up to this.
    linger_seconds, linger_bytes: after a refusal, wait so long for the client to stop sending and
        read so much of it, as closing on unread data would destroy the refusal on its way.
    accept_pause_seconds: rest after a failed accept (no file descriptors left), so that it does
        not spin; connections wait in the backlog meanwhile.
    """

    connections: int = 64
    backlog: int = 128
    head_seconds: float = 5.0
    response_seconds: float = 10.0
    idle_seconds: float = 120.0
    crowded_write_seconds: float = 1.0
    head_bytes: int = 16 * 1024
    target_bytes: int = 4 * 1024
    header_count: int = 64
    body_bytes: int = 64 * 1024
    linger_seconds: float = 1.0
    linger_bytes: int = 256 * 1024
    accept_pause_seconds: float = 0.1


DEFAULT_LIMITS: Final = Limits()
