import os
import threading
import time
from _thread import start_new_thread
from collections.abc import Sequence
from socket import socket
from typing import TYPE_CHECKING

import structlog

from exporter.errors import ListenError
from exporter.web.acceptor import Acceptor
from exporter.web.addresses import inherited_listeners
from exporter.web.connections import Connection, ConnectionTable, Phase
from exporter.web.conversation import Conversation, NoSecurity, Security
from exporter.web.http import Handler
from exporter.web.limits import DEFAULT_LIMITS, Limits


if TYPE_CHECKING:
    from exporter.web.config import WebConfig


log = structlog.get_logger(__name__)


class Server:
    """An HTTP/1.1 server for a handful of scrapers that withstands hostile clients.

    One thread accepts on all addresses; each connection has a thread of its own, of which there are
    at most `limits.connections`. Only the standard library is used, and of that not http.server:
    deadlines that a dribbling client cannot renew need the socket calls themselves.

    `reload_web_config` and `close` may be called from any thread.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handler: Handler,
        *,
        web_config: "WebConfig | None" = None,
        limits: Limits = DEFAULT_LIMITS,
        systemd_socket: bool = False,
        unauthenticated_paths: frozenset[str] = frozenset({"/-/healthy", "/-/ready"}),
    ) -> None:
        self._wanted = tuple(addresses)
        self._systemd_socket = systemd_socket
        self._handler = handler
        self._limits = limits
        self._security: Security = NoSecurity()
        if web_config is not None:
            # 6 MB, for those who have a web configuration.
            from exporter.web.security import WebSecurity  # noqa: PLC0415

            self._security = WebSecurity(web_config, unauthenticated_paths)
        self._reloading = threading.Lock()
        self._closing = threading.Event()
        self._table = ConnectionTable(limits)
        self._acceptor = Acceptor(limits, self._take, self._table.evict)

    def start(self) -> None:
        """Bind all addresses and serve; raises ListenError, and then listens on none of them."""
        inherited = inherited_listeners(os.environ) if self._systemd_socket else ()
        if not (self._wanted or inherited):
            raise ListenError("no listen address is given")
        self._acceptor.start(self._wanted, inherited)

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

    def _take(self, sock: socket, client: str) -> None:
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
