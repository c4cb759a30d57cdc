import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

import structlog

from exporter.errors import ListenError
from exporter.web.addresses import is_exhaustion, open_listener
from exporter.web.config import WebConfig, load_web_config
from exporter.web.connections import Connection, ConnectionTable, Phase
from exporter.web.conversation import Conversation
from exporter.web.http import Handler
from exporter.web.limits import DEFAULT_LIMITS, Limits
from exporter.web.security import WebSecurity


log = structlog.get_logger(__name__)

# A flood that exhausts the machine must not fill the disk with its own report.
_FAILURE_LOG_SECONDS: Final = 60.0
_IPV4_MAPPED: Final = "::ffff:"


class Server:
    """An HTTP/1.1 server for a handful of scrapers, made to withstand everybody else.

    One thread accepts on all addresses and does nothing else: no handshake, no read, nothing a
    client could hold up. Each connection has a thread of its own, of which there are at most
    `limits.connections`. Only the standard library is used, and of that not http.server: deadlines
    that a dribbling client cannot renew need the socket calls themselves.

    `reload_web_config` and `close` may be called from any thread.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handler: Handler,
        *,
        web_config: WebConfig | None = None,
        limits: Limits = DEFAULT_LIMITS,
        unauthenticated_paths: frozenset[str] = frozenset({"/-/healthy", "/-/ready"}),
    ) -> None:
        self._wanted = tuple(addresses)
        self._handler = handler
        self._limits = limits
        self._unauthenticated_paths = unauthenticated_paths
        self._security = WebSecurity(web_config, unauthenticated_paths)
        self._reloading = threading.Lock()
        self._table = ConnectionTable(limits)
        self._listeners: list[socket.socket] = []
        self._stopping = threading.Event()
        self._wake: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._failure_logged_at: float | None = None

    def start(self) -> None:
        """Bind all addresses and serve; raises ListenError, and then listens on none of them."""
        if not self._wanted:
            raise ListenError("no listen address is given")
        try:
            for address in self._wanted:
                self._listeners.append(open_listener(address, self._limits.backlog))
        except ListenError:
            self._close_listeners()
            raise
        woken, self._wake = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept_until_stopped, args=(woken,), name="web-accept", daemon=True
        )
        self._acceptor.start()

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each listening socket; empty before `start` and after `close`."""
        return tuple(listener.getsockname()[:2] for listener in self._listeners)

    def reload_web_config(self) -> None:
        """Read the web configuration and its certificates again, for the next connections.

        Connections of the old configuration end after the answer in flight. Raises WebConfigError
        when the file cannot be used; the old configuration then stays. Nothing happens without one.
        """
        with self._reloading:
            config = self._security.config
            if config is None:
                return
            self._security = WebSecurity(load_web_config(config.path), self._unauthenticated_paths)
            self._table.cut({Phase.WAITING})

    def close(self, grace_seconds: float) -> None:
        """Stop accepting at once, let answers in flight end, return after the grace at the latest."""
        deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        if self._wake is not None:
            self._wake.close()  # the other end becomes readable
        if self._acceptor is not None:
            self._acceptor.join(max(0.0, grace_seconds))
        self._close_listeners()
        self._table.cut({Phase.WAITING})
        if not self._table.wait_until_empty(max(0.0, deadline - time.monotonic())):
            log.warning("connections_abandoned", connections=len(self._table))
            self._table.cut(set(Phase))

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()

    def _accept_until_stopped(self, woken: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, woken:
            selector.register(woken, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    if isinstance(key.fileobj, socket.socket) and key.fileobj is not woken:
                        self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError as error:
            # The client may have gone again; only exhaustion would make the loop spin.
            if is_exhaustion(error):
                self._report("accept_failed", error)
                self._table.evict()
                self._stopping.wait(self._limits.accept_pause_seconds)
            return
        connection = Connection(sock, str(address[0]).removeprefix(_IPV4_MAPPED))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._stopping.is_set() or not self._table.admit(connection):
                connection.close()
                return
            threading.Thread(
                target=self._converse, args=(connection,), name="web-connection", daemon=True
            ).start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread to be had
            self._report("connection_failed", error)
            self._table.leave(connection)
            connection.close()
            self._stopping.wait(self._limits.accept_pause_seconds)

    def _converse(self, connection: Connection) -> None:
        try:
            Conversation(
                connection,
                self._handler,
                self._limits,
                lambda: self._security,
                self._stopping.is_set,
            ).run()
        except Exception:  # the top of a thread: a bug ends this connection and is logged
            log.exception("connection_failed", client=connection.client)
        finally:
            self._table.leave(connection)

    def _report(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        last = self._failure_logged_at
        if last is None or now - last >= _FAILURE_LOG_SECONDS:
            self._failure_logged_at = now
            log.warning(event, error=str(error), connections=len(self._table))
