"""A client cannot affect the others."""

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from exporter.errors import AddressUnavailableError
from exporter.web.connections import _JUST_COME_SECONDS, Limits, open_listener
from exporter.web.http import Request, Response, plain
from exporter.web.server import Server
from tests.web.clients import (
    RawClient,
    connection_threads,
    echo,
    eventually,
    request_bytes,
    server_threads,
)


Serve = Callable[..., Server]
FOREVER_SECONDS = 3600.0


def test_silent_clients_lock_no_one_out(serve: Serve) -> None:
    """With 300 silent connections that no deadline ends, a client is served, by at most 64 threads."""
    limits = Limits(head_seconds=FOREVER_SECONDS)
    server = serve(limits=limits)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(RawClient(server))
        client = stack.enter_context(RawClient(server))

        assert client.get("/metrics").status == 200
        assert connection_threads() <= limits.connections


def test_silent_clients_are_closed(serve: Serve) -> None:
    """A connection that says nothing ends at the deadline for its first request."""
    with RawClient(serve(limits=Limits(head_seconds=0.1))) as client:
        assert client.is_closed_by_peer()

    assert eventually(lambda: connection_threads() == 0)


def test_dribbled_headers_do_not_extend_the_deadline(serve: Serve) -> None:
    """A client that sends a byte now and then is cut off although it is never silent for long."""
    with RawClient(serve(limits=Limits(head_seconds=1.0))) as client:
        client.send(b"GET / HTTP/1.1\r\nX: ")
        client.socket.settimeout(0.02)
        received = b""
        while not received:
            client.send(b"x")
            with contextlib.suppress(TimeoutError):
                received = client.socket.recv(1000)

    assert received.startswith(b"HTTP/1.1 408 ")


def test_idle_connections_end(serve: Serve) -> None:
    """A connection without a next request ends after the idle time."""
    with RawClient(serve(limits=Limits(idle_seconds=0.1))) as client:
        client.get("/")

        assert client.is_closed_by_peer()


def test_idle_connections_outlive_the_deadline_of_a_request(serve: Serve) -> None:
    """Between two requests the idle time counts, not the time for a head."""
    with RawClient(serve(limits=Limits(head_seconds=1.0))) as client:
        client.get("/")
        threading.Event().wait(1.2)

        assert client.get("/").status == 200


def test_a_client_that_does_not_read_is_cut_off(serve: Serve) -> None:
    """An answer not read within its deadline ends the connection half way."""
    body = b"x" * 50_000_000
    server = serve(lambda _: Response(200, body), limits=Limits(response_seconds=0.2))
    with RawClient(server) as client:
        client.send(request_bytes("GET", "/"))
        received = len(client.socket.recv(1))
        assert eventually(lambda: connection_threads() == 0)

        with contextlib.suppress(ConnectionError):
            while data := client.socket.recv(1 << 20):
                received += len(data)

    assert 0 < received < len(body)


def test_a_client_that_does_not_read_is_closed_for_a_new_one(serve: Serve) -> None:
    """When all connections are busy, one whose answer is stuck is closed for a newcomer."""
    body = b"x" * 50_000_000
    limits = Limits(connections=1, response_seconds=FOREVER_SECONDS, crowded_write_seconds=0.0)

    def answer(request: Request) -> Response:
        return Response(200, body if request.path == "/large" else b"small")

    server = serve(answer, limits=limits)

    def is_served() -> bool:
        with RawClient(server) as newcomer, contextlib.suppress(ConnectionError):
            return newcomer.get("/").body == b"small"
        return False

    with RawClient(server) as stuck:
        stuck.send(request_bytes("GET", "/large"))
        stuck.socket.recv(1)

        assert eventually(is_served)


def test_a_refused_client_that_stays_is_closed_for_a_new_one(serve: Serve) -> None:
    """A client that was refused and does not leave is the first to be displaced."""
    limits = Limits(
        connections=1, linger_seconds=FOREVER_SECONDS, crowded_write_seconds=FOREVER_SECONDS
    )
    server = serve(limits=limits)
    with RawClient(server) as refused:
        refused.send(b"nonsense\r\n\r\n")
        assert refused.read_answer().status == 400

        def is_served() -> bool:
            with RawClient(server) as newcomer, contextlib.suppress(ConnectionError):
                return newcomer.get("/").status == 200
            return False

        assert eventually(is_served)


def test_a_full_table_closes_its_oldest_silent_connection(serve: Serve) -> None:
    """Of two connections that never asked anything, the older gives way; an idle scraper stays."""
    server = serve(limits=Limits(connections=3, head_seconds=FOREVER_SECONDS))
    with RawClient(server) as scraper:
        assert scraper.get("/").status == 200
        with RawClient(server) as oldest, RawClient(server) as younger:
            assert eventually(lambda: connection_threads() == 3)
            # A connection that has just come is not the first to go: let that time pass.
            threading.Event().wait(1.5 * _JUST_COME_SECONDS)
            with RawClient(server) as newcomer:
                assert newcomer.get("/").status == 200
                assert oldest.is_closed_by_peer()
                assert scraper.get("/").status == 200
                assert younger.get("/").status == 200


def test_a_flood_displaces_itself(serve: Serve) -> None:
    """However many connections one address opens, a waiting client of another address stays."""
    server = serve(limits=Limits(connections=4, head_seconds=FOREVER_SECONDS))
    with contextlib.ExitStack() as stack:
        victim = stack.enter_context(RawClient(server, source="127.0.0.2"))
        for _ in range(40):
            stack.enter_context(RawClient(server, source="127.0.0.3"))

        assert victim.get("/").status == 200


def test_responses_in_progress_are_not_closed(serve: Serve) -> None:
    """When every connection is in a handler, a newcomer is closed and the answers arrive."""
    entered = threading.Semaphore(0)
    leave = threading.Event()

    def work(_: Request) -> Response:
        entered.release()
        leave.wait()
        return plain(200, "done")

    server = serve(work, limits=Limits(connections=2))
    with RawClient(server) as first, RawClient(server) as second:
        for client in (first, second):
            client.send(request_bytes("GET", "/"))
            assert entered.acquire(timeout=30)
        with RawClient(server) as newcomer:
            assert newcomer.is_closed_by_peer()
        leave.set()

        assert [first.read_answer().body, second.read_answer().body] == [b"done\n", b"done\n"]


@pytest.fixture
def no_descriptors_left() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A context in which no new file descriptor can be had in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    @contextlib.contextmanager
    def exhaust() -> Iterator[None]:
        highest = os.open(os.devnull, os.O_RDONLY)
        held = [highest]
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(highest))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for descriptor in held:
                os.close(descriptor)

    yield exhaust
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_server_outlives_a_lack_of_descriptors(
    serve: Serve, no_descriptors_left: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """Without descriptors a connection waits in the backlog; the lack is logged once."""
    server = serve(limits=Limits(accept_pause_seconds=0.01))
    with capture_logs() as logs, LateClient(server) as client:
        with no_descriptors_left():
            client.connect()
            assert eventually(lambda: bool(logs))

        assert client.get("/").status == 200

    assert [e["event"] for e in logs if e["log_level"] == "warning"] == ["accept_failed"]


def test_a_server_that_gets_no_descriptor_gives_up_its_port(
    no_descriptors_left: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Clients are refused then, and do not wait in the backlog of a socket that nobody accepts on."""
    listener = open_listener("127.0.0.1:0", 1)
    server = Server(["127.0.0.1:0"], echo)
    refused = pytest.raises(AddressUnavailableError, match=r"^cannot listen: too many open files$")

    with no_descriptors_left(), refused:
        server.start([listener])

    assert (listener.fileno(), server.addresses) == (-1, ())


def test_a_server_that_gets_no_thread_gives_up_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the machine or the control group has no thread left."""

    def start(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", start)
    listener = open_listener("127.0.0.1:0", 1)
    server = Server(["127.0.0.1:0"], echo)

    with pytest.raises(AddressUnavailableError, match=r"^cannot listen: can't start new thread$"):
        server.start([listener])

    assert (listener.fileno(), server.addresses) == (-1, ())


def test_one_scraper_needs_no_new_thread(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one of two threads serves its connection, the other waits for the next one."""
    server = serve()
    with RawClient(server) as client:
        client.get("/")
    monkeypatch.setattr("_thread.start_new_thread", None)  # a call would fail

    for _ in range(5):
        assert eventually(lambda: server._acceptor._waiting == 2)
        with RawClient(server) as client:
            assert client.get("/").status == 200


def test_a_thread_that_never_begins_holds_up_nobody(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found no memory for its first frame. Its connection is closed, and the next ones are served."""
    server = serve()
    with monkeypatch.context() as memory:
        memory.setattr("flopwatch.threads.START_SECONDS", 0.05)
        memory.setattr("_thread.start_new_thread", lambda _function, _arguments: 1)
        with capture_logs() as logs, RawClient(server) as client:
            assert client.is_closed_by_peer()
            assert eventually(lambda: [entry["event"] for entry in logs] == ["connection_failed"])

    with RawClient(server) as first, RawClient(server) as second:
        assert [client.get("/").status for client in (first, second)] == [200, 200]


def test_threads_of_a_crowd_end(serve: Serve) -> None:
    """Twenty connections have a thread each, beside those that wait for more; two are left of them."""
    server = serve()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(20)]
        assert [client.get("/").status for client in clients] == [200] * 20
        assert connection_threads() == 20

    assert eventually(lambda: server_threads() == 2)


def test_an_idle_connection_is_closed_for_a_new_one(
    serve: Serve, no_descriptors_left: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """When all descriptors are in use, the server frees one of its own."""
    server = serve(limits=Limits(accept_pause_seconds=0.01))
    with RawClient(server) as idle, LateClient(server) as newcomer:
        idle.get("/")
        with no_descriptors_left():
            newcomer.connect()

            assert newcomer.get("/").status == 200
            assert idle.is_closed_by_peer()


class LateClient(RawClient):
    """A client whose descriptor exists before it connects."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(30)
        self._address = server.addresses[0]
        self._received = bytearray()

    def connect(self) -> None:
        self.socket.connect(self._address)
