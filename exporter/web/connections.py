"""The sockets: those that listen, the table of open connections, and the limits on what clients can use."""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from exporter.config.model import parse_listen_address
from exporter.errors import AddressUnavailableError, ListenError


if TYPE_CHECKING:
    import ssl


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


# How long the accept loop waits for an evicted connection's thread to end: it is woken by the
# shutdown and only has to return, so this is reached when the processor is starved, not otherwise.
_EVICTION_SECONDS: Final = 0.25

# A client that has just connected, or just had its answer, may send its next request any moment: for
# so long it is not the first to go. It also bounds what a flood can hold up the accept loop.
_JUST_COME_SECONDS: Final = 0.2


class Phase(Enum):
    """The phase of a connection."""

    WAITING = "waiting"  # for the client: handshake, head, body, or the next request
    ANSWERING = "answering"  # in the handler
    WRITING = "writing"  # the client takes its answer


class Connection:
    """A client's socket. One worker thread talks on it; any thread may cut it off."""

    __slots__ = ("_gate", "client", "is_secured", "phase", "served", "since", "socket")

    def __init__(self, sock: socket.socket, client: str) -> None:
        self.socket = sock
        self.is_secured = False
        self.client = client
        self.served = 0
        self.phase = Phase.WAITING
        self.since = time.monotonic()
        self._gate = threading.Lock()

    def enter(self, phase: Phase) -> None:
        """Record the worker's new phase."""
        self.since = time.monotonic()
        self.phase = phase

    def wrap(self, context: "ssl.SSLContext") -> "ssl.SSLSocket":
        """Put TLS around the socket; the handshake is still to be done."""
        with self._gate:
            secured = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
            self.socket, self.is_secured = secured, True
            return secured

    def cut(self) -> None:
        """Shut the socket both ways, so that its worker wakes up and ends."""
        # By the base class: SSLSocket.shutdown drops the TLS layer under the worker's feet, after
        # which it would go on in plain text.
        with self._gate, contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def has_asked(self) -> bool:
        """Whether bytes have arrived that the worker has not read yet: then the client is not late."""
        with self._gate, contextlib.suppress(OSError, ValueError):  # closed meanwhile
            readable = select.poll()
            readable.register(self.socket, select.POLLIN)
            return bool(readable.poll(0))
        return False

    def close(self) -> None:
        """Close the socket; only the worker does that."""
        with self._gate, contextlib.suppress(OSError):
            self.socket.close()


class ConnectionTable:
    """All open connections, never more than `limits.connections`, each with its thread.

    A full table makes room for a newcomer by cutting off a connection that waits. Of those it takes
    one of the client that holds the most, of those one that never asked anything, of those the
    oldest: a flood from one place displaces itself and nobody else.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: set[Connection] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Add a connection, in another's place if needed; False when all are busy."""
        with self._changed:
            if len(self._open) >= self._limits.connections:
                self._make_room()
            if not self._has_room():
                return False
            self._open.add(connection)
            return True

    def leave(self, connection: Connection) -> None:
        """Forget a closed connection; its thread is about to end."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def evict(self, *, waiting_seconds: float = 0.0) -> bool:
        """Cut off the most expendable connection; False when there is none.

        One that has waited for less than `waiting_seconds` is kept.
        """
        with self._changed:
            held = Counter(connection.client for connection in self._open)
            latest = time.monotonic() - waiting_seconds
            spare = [
                connection
                for connection in self._open
                if connection.since <= latest and self._can_be_spared(connection)
            ]
            if not spare:
                return False
            victim = min(
                spare,
                key=lambda one: (
                    one.phase is not Phase.WAITING,
                    -held[one.client],
                    one.served > 0,
                    one.since,
                ),
            )
            victim.cut()
            return True

    def cut(self, phases: Collection[Phase]) -> None:
        """Cut off every connection in one of the phases."""
        with self._changed:
            for connection in self._open:
                if connection.phase in phases:
                    connection.cut()

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait for all connections to end; whether they did."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, seconds)

    def _make_room(self) -> None:
        if not self.evict(waiting_seconds=_JUST_COME_SECONDS):
            # All are busy or about to send a request: a crowd of scrapers is served in turn.
            if self._changed.wait_for(self._has_room, _JUST_COME_SECONDS):
                return
            self.evict()
        self._changed.wait_for(self._has_room, _EVICTION_SECONDS)

    def _has_room(self) -> bool:
        return len(self._open) < self._limits.connections

    def _can_be_spared(self, connection: Connection) -> bool:
        if connection.phase is Phase.WRITING:
            taken = time.monotonic() - connection.since
            return taken > self._limits.crowded_write_seconds
        return connection.phase is Phase.WAITING and not connection.has_asked()


# ---- listening ----

_LISTEN_FDS_START: Final = 3  # SD_LISTEN_FDS_START of sd-daemon.h


def format_address(host: str, port: int) -> str:
    """Write host and port as a listen address, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_listener(text: str, backlog: int) -> socket.socket:
    """Open a non-blocking listening socket; without a host it serves IPv6 and IPv4.

    Raises ListenError: "cannot listen on 127.0.0.1:9907: address already in use". It is an
    AddressUnavailableError where the same address may be bound later.
    """
    host, port = parse_listen_address(text)
    try:
        if host in {"", "::"}:
            return _listen_everywhere(port, backlog)
        return _listen(*_resolve(host, port), backlog)
    except OSError as error:
        # A resolver's error numbers (EAI_*) are negative and mean nothing to strerror.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        # A port below 1024 stays forbidden; a port in use and a name not yet resolved do not stay so.
        kind = ListenError if error.errno == errno.EACCES else AddressUnavailableError
        raise kind(f"cannot listen on {text}: {reason.lower()}") from error


def open_listeners(
    addresses: Sequence[str], backlog: int, *, systemd_socket: bool = False
) -> tuple[socket.socket, ...]:
    """Open all addresses, or take the sockets that systemd passes. Raises ListenError; none is open then."""
    if systemd_socket:
        return tuple(inherited_listeners(os.environ))
    with contextlib.ExitStack() as opened:
        listeners = [opened.enter_context(open_listener(each, backlog)) for each in addresses]
        opened.pop_all()
    return tuple(listeners)


def inherited_listeners(environment: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that systemd passes (sd_listen_fds(3)). Raises ListenError without any."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or count == "0":
        raise ListenError(
            "--web.systemd-socket: systemd passed no socket; start the service through its socket unit"
        )
    listeners: list[socket.socket] = []
    for descriptor in range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count[:3])):
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        if listener.family not in {socket.AF_INET, socket.AF_INET6}:
            raise ListenError(
                "--web.systemd-socket: ListenStream must be a TCP address, such as 9907"
            )
        listener.setblocking(False)
        listeners.append(listener)
    return listeners


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """One address for a host; of several the IPv4 one, as `localhost` has both on most machines."""
    # As bytes where it can be: text goes through Python's IDNA codec, with 1 MB of tables.
    name = host.encode("ascii") if host.isascii() else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]  # IPv6 has two more fields, kept as they are


def _listen_everywhere(port: int, backlog: int) -> socket.socket:
    try:
        return _listen(socket.AF_INET6, ("::", port), backlog, dual_stack=True)
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise
    # IPv6 is switched off.
    return _listen(socket.AF_INET, ("0.0.0.0", port), backlog)  # noqa: S104  # asked for


def _listen(
    family: socket.AddressFamily,
    address: tuple[str, int],
    backlog: int,
    *,
    dual_stack: bool = False,
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restarted daemon takes its port back at once, though old connections linger in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack))
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def is_exhaustion(error: OSError) -> bool:
    """Whether the machine has run out of descriptors or memory for a new socket."""
    return error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
