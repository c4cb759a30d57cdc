import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from exporter.errors import AddressUnavailableError
from exporter.web.addresses import is_exhaustion, open_listener
from exporter.web.limits import Limits
from flopwatch.threads import ThreadGuard


log = structlog.get_logger(__name__)

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

    def start(self, addresses: Sequence[str], inherited: Sequence[socket.socket] = ()) -> None:
        """Serve inherited sockets, or listen on all addresses or, raising ListenError, on none."""
        with contextlib.ExitStack() as opened:
            try:
                listeners = list(inherited) or [
                    opened.enter_context(open_listener(address, self._limits.backlog))
                    for address in addresses
                ]
                wake, woken = map(opened.enter_context, socket.socketpair())
                # Made here: the thread might not get a descriptor when it needs one.
                selector = opened.enter_context(selectors.DefaultSelector())
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise AddressUnavailableError(f"cannot listen: {reason}") from error
            opened.pop_all()
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ, listener)
        selector.register(woken, selectors.EVENT_READ)
        self._listeners, self._wake = listeners, wake
        self._thread = threading.Thread(
            target=self.guard.run,
            args=(lambda: self._run(selector, woken),),
            name="web-accept",
            daemon=True,
        )
        self._thread.start()

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
