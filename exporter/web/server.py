"""The HTTP server: it accepts, and gives each connection a thread."""

import contextlib
import selectors
import socket
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from exporter.errors import AddressUnavailableError, ListenError
from exporter.web.connections import (
    DEFAULT_LIMITS,
    Connection,
    ConnectionTable,
    Limits,
    Phase,
    is_exhaustion,
    open_listeners,
)
from exporter.web.conversation import Conversation, Security
from exporter.web.http import Handler
from flopwatch.threads import ThreadGuard


if TYPE_CHECKING:
    from exporter.web.config import WebConfig


log = structlog.get_logger(__name__)


class Server:
    """An HTTP/1.1 server for a handful of scrapers that withstands hostile clients.

    One thread accepts on all addresses; each connection has a thread of its own, of which there are
    at most `limits.connections`. h11 parses the requests, and the sockets are handled here: deadlines
    that a client cannot renew with a byte at a time need the socket calls themselves.

    `reload_web_config` and `close` may be called from any thread.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handler: Handler,
        *,
        web_config: "WebConfig | None" = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._wanted = tuple(addresses)
        self._handler = handler
        self._limits = limits
        self._security = Security()
        if web_config is not None:
            # 6 MB, for those who have a web configuration.
            from exporter.web.security import WebSecurity  # noqa: PLC0415

            self._security = WebSecurity(web_config)
        self._reloading = threading.Lock()
        self._closing = threading.Event()
        self._table = ConnectionTable(limits)
        self._acceptor = Acceptor(limits, self._take, self._table.evict)

    def start(self, listeners: Sequence[socket.socket] = ()) -> None:
        """Serve on these sockets; without any, open the addresses. Raises ListenError, and then serves nothing."""
        if not (self._wanted or listeners):
            raise ListenError("no listen address is given")
        self._acceptor.start(listeners or open_listeners(self._wanted, self._limits.backlog))

    @property
    def authenticates(self) -> bool:
        """Whether a request needs a password or a client certificate now."""
        return self._security.authenticates

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each listening socket; empty before `start` and after `close`."""
        return self._acceptor.addresses

    def stalled(self, now: float) -> bool:
        """Whether the thread that accepts connections has ended or is stuck through a bug of ours."""
        return self._acceptor.guard.stalled(now)

    def reload_web_config(self) -> None:
        """Read the web configuration and its certificates again, for the next connections.

        Connections of the old configuration end after the answer in flight. Raises WebConfigError
        when the file cannot be used; the old configuration then stays. Nothing happens without one.
        """
        with self._reloading:
            security = self._security.reloaded()
            if security is not self._security:
                self._security = security
                self._table.cut({Phase.WAITING})

    def close(self, grace_seconds: float) -> None:
        """Stop accepting, let answers in flight finish, and return within the grace period."""
        deadline = time.monotonic() + grace_seconds
        self._closing.set()
        self._acceptor.stop(grace_seconds)
        self._table.cut({Phase.WAITING})
        if not self._table.wait_until_empty(max(0.0, deadline - time.monotonic())):
            log.warning("connections_abandoned", connections=len(self._table))
            self._table.cut(set(Phase))

    def _take(self, sock: socket.socket, client: str) -> None:
        connection = Connection(sock, client)
        if self._closing.is_set() or not self._table.admit(connection):
            connection.close()
            return
        try:
            # Not threading.Thread: its start() waits for a sign of life, forever where the new
            # thread finds no memory, and the thread that accepts would wait with it.
            start_new_thread(self._converse, (connection,))
        except RuntimeError:  # the machine or the control group has no thread left
            self._table.leave(connection)
            raise

    def _converse(self, connection: Connection) -> None:
        try:
            Conversation(
                connection,
                self._handler,
                self._limits,
                lambda: self._security,
                self._closing.is_set,
            ).run()
        except Exception:  # the top of a thread: a bug ends this connection and is logged
            log.exception("connection_failed", client=connection.client)
        finally:
            self._table.leave(connection)


# A flood that exhausts the machine must not also fill the disk with log lines.
_FAILURE_LOG_SECONDS: Final = 60.0
_IPV4_MAPPED: Final = "::ffff:"


class Acceptor:
    """The listening sockets and the one thread that accepts on all of them.

    The thread does nothing that a client could hold up: no handshake, no read. `take` gets each
    accepted socket and its peer's address and must not block for long; it may raise OSError or
    RuntimeError when it cannot have a thread. `make_room` is called when no descriptor is left.
    """

    def __init__(
        self,
        limits: Limits,
        take: Callable[[socket.socket, str], None],
        make_room: Callable[[], object],
    ) -> None:
        self._limits = limits
        self._take = take
        self._make_room = make_room
        self._listeners: list[socket.socket] = []
        self._stopping = threading.Event()
        self._wake: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.guard = ThreadGuard()
        self._failure_logged_at: float | None = None

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on these sockets.

        Raises ListenError where no descriptor or thread is left for it; the sockets are closed then.
        """
        with contextlib.ExitStack() as opened:
            for listener in listeners:
                opened.enter_context(listener)
            try:
                wake, woken = map(opened.enter_context, socket.socketpair())
                # Made here: the thread might not get a descriptor when it needs one.
                selector = opened.enter_context(selectors.DefaultSelector())
                for listener in listeners:
                    selector.register(listener, selectors.EVENT_READ, listener)
                selector.register(woken, selectors.EVENT_READ)
                thread = threading.Thread(
                    target=self.guard.run,
                    args=(lambda: self._run(selector, woken),),
                    name="web-accept",
                    daemon=True,
                )
                thread.start()
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise AddressUnavailableError(f"cannot listen: {reason.lower()}") from error
            opened.pop_all()
        self._listeners, self._wake, self._thread = list(listeners), wake, thread

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each listening socket; empty when not listening."""
        return tuple(listener.getsockname()[:2] for listener in self._listeners)

    def stop(self, wait_seconds: float) -> None:
        """Close the listening sockets; wait for the thread, but not longer than given."""
        self._stopping.set()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        if self._wake is not None:
            self._wake.close()  # makes its other end readable
        if self._thread is not None:
            self._thread.join(max(0.0, wait_seconds))

    def _run(self, selector: selectors.BaseSelector, woken: socket.socket) -> None:
        with selector, woken:
            while not self._stopping.is_set():
                with self.guard.waiting():
                    ready = selector.select()
                for key, _ in ready:
                    if key.data is not None:
                        self._accept(key.data)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except (OSError, MemoryError) as error:
            # The client may be gone already; only exhaustion would make the loop spin.
            if isinstance(error, MemoryError) or is_exhaustion(error):
                self._report("accept_failed", error)
                self._make_room()
                self._stopping.wait(self._limits.accept_pause_seconds)
            return
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._take(sock, str(address[0]).removeprefix(_IPV4_MAPPED))
        except (OSError, RuntimeError, MemoryError) as error:
            sock.close()
            self._report("connection_failed", error)
            self._stopping.wait(self._limits.accept_pause_seconds)

    def _report(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        last = self._failure_logged_at
        if last is None or now - last >= _FAILURE_LOG_SECONDS:
            self._failure_logged_at = now
            log.warning(event, error=str(error))
