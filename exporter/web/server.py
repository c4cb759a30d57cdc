"""The HTTP server: it accepts, and gives each connection a thread."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from exporter.web.http import Handler, KnownHeads
from flopwatch.threads import BoundedThread, ThreadGuard


if TYPE_CHECKING:
    from exporter.web.config import WebConfig


log = structlog.get_logger(__name__)


class Server:
    """An HTTP/1.1 server for a handful of scrapers that withstands hostile clients.

    The thread that accepts a connection serves it, while another one waits for the next; at most
    `limits.connections` are served at a time. h11 parses the requests, and the sockets are handled here: deadlines
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
        self._known = KnownHeads()
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
        """Whether the threads that accept connections have ended or are stuck through a bug of ours."""
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

    def _take(self, sock: socket.socket, client: str) -> Callable[[], None] | None:
        connection = Connection(sock, client)
        # `close` looks into the table after it has set `_closing`: it waits for this connection, or
        # the connection ends here.
        if self._table.admit(connection) and not self._closing.is_set():
            return lambda: self._converse(connection)
        connection.close()
        self._table.leave(connection)
        return None

    def _converse(self, connection: Connection) -> None:
        try:
            Conversation(
                connection,
                self._handler,
                self._limits,
                lambda: self._security,
                draining=self._closing.is_set,
                known=self._known,
            ).run()
        except Exception:  # the top of a thread: a bug ends this connection and is logged
            log.exception("connection_failed", client=connection.client)
        finally:
            self._table.leave(connection)


# A flood that exhausts the machine must not also fill the disk with log lines.
_FAILURE_LOG_SECONDS: Final = 60.0
_IPV4_MAPPED: Final = "::ffff:"
# A connection wakes one thread, and the next one only after that thread has accepted.
_ONE_THREAD: Final = select.EPOLLIN | select.EPOLLONESHOT
# Threads that wait for connections. With two, one scraper makes no thread: while its connection is
# served by one of them, the other waits.
_WAITING_THREADS: Final = 2


class Acceptor:
    """The listening sockets and the threads that accept on all of them.

    The thread that accepts a connection also serves it, because handing it over to another thread would
    take more processor time. Before it serves, it makes sure that another thread waits. `take` gets each
    accepted socket and its peer's address, must not block for long, and returns what serves the
    connection, None where it was turned away. `make_room` is called when no descriptor is left.
    """

    def __init__(
        self,
        limits: Limits,
        take: Callable[[socket.socket, str], Callable[[], None] | None],
        make_room: Callable[[], object],
    ) -> None:
        self._limits = limits
        self._take = take
        self._make_room = make_room
        self._listeners: dict[int, socket.socket] = {}
        self._stopping = threading.Event()
        self._wake: socket.socket | None = None
        self._opened = contextlib.ExitStack()
        self._accepting = threading.Lock()
        self._counting = threading.Condition()
        self._waiting = 0
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
                # Made here: a thread might not get a descriptor when it needs one.
                ready = opened.enter_context(select.epoll())
                for listener in listeners:
                    ready.register(listener, _ONE_THREAD)
                ready.register(woken, select.EPOLLIN)
                self._listeners = {listener.fileno(): listener for listener in listeners}
                self._start_thread(ready)
            except (OSError, RuntimeError) as error:
                self._listeners = {}
                reason = getattr(error, "strerror", None) or str(error)
                raise AddressUnavailableError(f"cannot listen: {reason.lower()}") from error
            self._wake, self._opened = wake, opened.pop_all()

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each listening socket; empty when not listening."""
        return tuple(listener.getsockname()[:2] for listener in self._listeners.values())

    def stop(self, wait_seconds: float) -> None:
        """Close the listening sockets; wait for the waiting threads, but not longer than given."""
        self._stopping.set()
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.close()
        if self._wake is not None:
            self._wake.close()  # makes its other end readable, for every thread
        with self._counting:
            self._counting.wait_for(lambda: not self._waiting, max(0.0, wait_seconds))
            self._close_when_unused()

    def _close_when_unused(self) -> None:
        """After the last thread that waited, nothing uses the descriptors."""
        if self._stopping.is_set() and not self._waiting:
            self._opened.close()

    def _start_thread(self, ready: select.epoll) -> None:
        """Have one more thread wait. Raises RuntimeError where the host or control group has none left."""
        with self._counting:
            if self._stopping.is_set():
                return  # nothing may be left to wait on
            self._waiting += 1
        try:
            BoundedThread(target=self._run, args=(ready,), name="web-server").start()
        except RuntimeError:
            self._leave_waiting()
            raise

    def _leave_waiting(self) -> None:
        with self._counting:
            self._waiting -= 1
            self._close_when_unused()
            self._counting.notify_all()

    def _run(self, ready: select.epoll) -> None:
        """Wait, accept, serve; until the server stops or enough other threads wait."""
        while True:
            ((descriptor, _),) = ready.poll(maxevents=1)
            self._leave_waiting()
            listener = self._listeners.get(descriptor)
            if listener is None:
                return  # it was woken to stop
            with self._accepting:
                serve = self.guard.run(partial(self._accept, listener, ready))
            if serve is not None:
                serve()
                del serve
            with self._counting:
                if self._waiting >= _WAITING_THREADS or self._stopping.is_set():
                    return
                self._waiting += 1

    def _accept(self, listener: socket.socket, ready: select.epoll) -> Callable[[], None] | None:
        """The next connection, ready to be served; None where there is none, or it cannot be served."""
        try:
            return self._accepted(listener, ready)
        finally:
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile: the server stops
                ready.modify(listener, _ONE_THREAD)

    def _accepted(self, listener: socket.socket, ready: select.epoll) -> Callable[[], None] | None:
        try:
            sock, address = listener.accept()
        except (OSError, MemoryError) as error:
            # The client may be gone already; only exhaustion would make the loop spin.
            if isinstance(error, MemoryError) or is_exhaustion(error):
                self._report("accept_failed", error)
                self._make_room()
                self._stopping.wait(self._limits.accept_pause_seconds)
            return None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._waiting:
                self._start_thread(ready)
            return self._take(sock, str(address[0]).removeprefix(_IPV4_MAPPED))
        except (OSError, RuntimeError, MemoryError) as error:
            sock.close()
            self._report("connection_failed", error)
            self._stopping.wait(self._limits.accept_pause_seconds)
            return None

    def _report(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        last = self._failure_logged_at
        if last is None or now - last >= _FAILURE_LOG_SECONDS:
            self._failure_logged_at = now
            log.warning(event, error=str(error))
