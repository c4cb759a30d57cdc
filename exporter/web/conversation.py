"""One connection from handshake to close."""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import structlog

from exporter.web.connections import Connection, Limits, Phase
from exporter.web.http import (
    CONTINUE,
    Handler,
    HttpProtocol,
    KnownHeads,
    RefusedError,
    Request,
    Response,
    plain,
    respond,
)


if TYPE_CHECKING:
    import ssl  # 5 MB, only for servers with TLS


log = structlog.get_logger(__name__)

_RECEIVE_BYTES: Final = 16 * 1024  # one TLS record
_JOINED_BYTES: Final = 64 * 1024  # up to here one copy is cheaper than a second piece
_TLS_HANDSHAKE: Final = b"\x16"  # content type of a TLS record that opens a handshake


class Security:
    """What the web configuration adds to a conversation. Without one: plain HTTP for everybody."""

    headers: tuple[tuple[str, str], ...] = ()
    """Headers added to every response."""

    @property
    def authenticates(self) -> bool:
        """Whether a request needs a password or a client certificate."""
        return False

    def reloaded(self) -> "Security":
        """The same with its files read again; itself if there are none. Raises WebConfigError."""
        return self

    def tls_context(self) -> "ssl.SSLContext | None":
        """The context for a new connection, with the newest certificates; None for plain HTTP."""
        return None

    def admits_peer(self, secured: "ssl.SSLSocket") -> bool:
        """Whether the client certificate names an allowed client; after the handshake."""
        return True

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that may not reach the handler, or None."""
        return None


class _ClosedError(Exception):
    """The client has closed the connection, or the server has cut it off."""


class Conversation:
    """One connection from handshake to close, on the worker thread that calls `run`.

    Every wait for the client has an absolute deadline, which is given to the socket as the timeout
    of each single call: what is left of the time, not the whole of it anew. `security` is asked for
    the active configuration; when that is no longer the one the connection began with, the
    conversation ends. `draining` says whether the server is closing.
    """

    def __init__(
        self,
        connection: Connection,
        handler: Handler,
        limits: Limits,
        security: Callable[[], Security],
        *,
        draining: Callable[[], bool],
        known: KnownHeads,
    ) -> None:
        self._connection = connection
        self._handler = handler
        self._limits = limits
        self._newest_security = security
        self._security = security()
        self._draining = draining
        self._protocol = HttpProtocol(limits, connection.client, known)

    def run(self) -> None:
        """Serve requests until either side ends the connection; the socket is closed afterwards."""
        try:
            deadline = time.monotonic() + self._limits.head_seconds
            if self._secure(deadline) and self._exchange(deadline):
                while self._exchange(None):
                    pass
        except (_ClosedError, OSError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            self._note("connection_ended", reason=str(error) or type(error).__name__)
        finally:
            self._say_goodbye()
            self._connection.close()

    def _secure(self, deadline: float) -> bool:
        """Complete the TLS handshake, where TLS is configured; False when the client is refused."""
        context = self._security.tls_context()
        if context is None:
            return True
        # Looking at the first byte keeps a silent client from costing a TLS session, and tells a
        # client that speaks plain HTTP what is wrong.
        first = self._within(deadline).recv(1, socket.MSG_PEEK)
        if first != _TLS_HANDSHAKE:
            if first:
                self._refuse(RefusedError(400, "this is an HTTPS server, the request was HTTP"))
            return False
        secured = self._connection.wrap(context)
        self._within(deadline)
        secured.do_handshake()
        if not self._security.admits_peer(secured):
            self._note("client_certificate_refused")
            return False
        return True

    def _exchange(self, deadline: float | None) -> bool:
        """Read one request and answer it; whether another may follow.

        The first request shares the handshake's deadline. A later one (None) may come for as long
        as a connection may be idle, and has a deadline of its own from its first byte on.
        """
        if deadline is None:
            if not self._protocol.has_received:
                self._receive(time.monotonic() + self._limits.idle_seconds)
            deadline = time.monotonic() + self._limits.head_seconds
        try:
            request = self._read_request(deadline)
            self._skip_body(deadline)
        except RefusedError as refused:
            self._refuse(refused)
            return False
        if self._is_outdated():
            return False
        return self._answer(request)

    def _answer(self, request: Request) -> bool:
        connection = self._connection
        connection.enter(Phase.ANSWERING)
        response = respond(self._permitted, request)
        close = self._draining() or self._is_outdated()
        self._write(response, close=close)
        connection.served += 1
        connection.enter(Phase.WAITING)
        self._note(
            "request_served", method=request.method, path=request.path, status=response.status
        )
        # Once more, as the server may have begun to close, or read its configuration again, after it
        # looked for waiting connections.
        return self._protocol.next_request() and not (self._draining() or self._is_outdated())

    def _permitted(self, request: Request) -> Response:
        return self._security.refusal(request) or self._handler(request)

    def _is_outdated(self) -> bool:
        return self._newest_security() is not self._security

    def _read_request(self, deadline: float) -> Request:
        while (request := self._protocol.request()) is None:
            try:
                self._receive(deadline)
            except TimeoutError:
                if not self._protocol.has_received:
                    raise
                raise RefusedError(408, "the request did not arrive in time") from None
        return request

    def _skip_body(self, deadline: float) -> None:
        if self._protocol.awaits_continue and not self._protocol.has_received:
            self._send(CONTINUE, deadline)
        while not self._protocol.body_is_complete():
            try:
                self._receive(deadline)
            except TimeoutError:
                raise RefusedError(408, "the body did not arrive in time") from None

    def _refuse(self, refused: RefusedError) -> None:
        """Answer a malformed request, and wait until the client has read the answer."""
        self._note("request_refused", status=refused.status, reason=refused.text)
        self._write(plain(refused.status, refused.text), close=True)
        self._say_goodbye()
        with contextlib.suppress(OSError):
            self._linger()

    def _linger(self) -> None:
        """Discard what the client still sends: closing with unread data would reset the connection."""
        sock = self._connection.socket
        self._connection.enter(Phase.WAITING)  # from now on it may be cut off
        deadline = time.monotonic() + self._limits.linger_seconds
        socket.socket.shutdown(sock, socket.SHUT_WR)
        dropped = 0
        while dropped < self._limits.linger_bytes:
            self._within(deadline)
            # Below TLS, as there is nobody left to read it.
            data = socket.socket.recv(sock, _RECEIVE_BYTES)
            if not data:
                return
            dropped += len(data)

    def _write(self, response: Response, *, close: bool) -> None:
        head, body = self._protocol.encode(
            response,
            extra_headers=self._security.headers,
            close=close,
            unix_seconds=time.time(),
        )
        self._connection.enter(Phase.WRITING)
        deadline = time.monotonic() + self._limits.response_seconds
        if len(body) <= _JOINED_BYTES or self._connection.is_secured:
            self._send(head + body, deadline)
        else:
            sent = self._within(deadline).sendmsg((head, body))
            self._send(memoryview(head)[sent:], deadline)
            self._send(memoryview(body)[max(0, sent - len(head)) :], deadline)

    def _send(self, data: bytes | memoryview, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            sent = self._within(deadline).send(rest)
            rest = rest[sent:]

    def _receive(self, deadline: float) -> None:
        data = self._within(deadline).recv(_RECEIVE_BYTES)
        if not data:
            raise _ClosedError("closed")
        self._protocol.feed(data)

    def _within(self, deadline: float) -> socket.socket:
        """The socket, with its timeout set to the time left until the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline passed")
        self._connection.socket.settimeout(left)
        return self._connection.socket

    def _say_goodbye(self) -> None:
        """Send TLS's close_notify without waiting for the reply."""
        if self._connection.is_secured:
            sock = cast("ssl.SSLSocket", self._connection.socket)
            with contextlib.suppress(OSError, ValueError):
                sock.settimeout(0)
                sock.unwrap()

    def _note(self, event: str, **values: object) -> None:
        log.debug(event, client=self._connection.client, **values)
