import socket
import time
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from exporter.errors import ListenError
from exporter.web.connections import Limits
from exporter.web.http import Request, Response, Router, plain
from exporter.web.server import Server
from tests.web.clients import RawClient, eventually, request_bytes


Serve = Callable[..., Server]


class TestAnswers:
    def test_a_connection_serves_many_requests(self, serve: Serve) -> None:
        """HTTP/1.1 connections stay open between requests."""
        with RawClient(serve()) as client:
            bodies = [client.get(f"/{number}?a=b").body for number in range(3)]

        assert bodies == [b"GET /0 a=b\n", b"GET /1 a=b\n", b"GET /2 a=b\n"]

    def test_answers_carry_what_a_client_needs_and_no_banner(self, serve: Serve) -> None:
        """Date, type and length are there; the server's name and version are not."""
        with RawClient(serve()) as client:
            answer = client.get("/")

        assert set(answer.headers) == {"Date", "Content-Type", "Content-Length"}
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"

    def test_the_handlers_headers_are_sent(self, serve: Serve) -> None:
        """A response's own headers and content type reach the client."""
        response = Response(200, b"{}", "application/json", (("Content-Encoding", "gzip"),))

        with RawClient(serve(lambda _: response)) as client:
            answer = client.get("/")

        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Type"] == "application/json"

    def test_head_has_the_length_and_no_body(self, serve: Serve) -> None:
        """HEAD answers as GET would, without the body, and the connection stays usable."""
        router = Router()
        router.add("/metrics", "GET", lambda _: plain(200, "0123456789"))
        with RawClient(serve(router)) as client:
            client.send(request_bytes("HEAD", "/metrics"))
            answer = client.read_answer(has_body=False)
            next_answer = client.get("/metrics")

        assert answer.headers["Content-Length"] == "11"
        assert next_answer.body == b"0123456789\n"

    def test_no_content_has_neither_body_nor_length(self, serve: Serve) -> None:
        """204 ends with its headers."""
        with RawClient(serve(lambda _: Response(204))) as client:
            answer = client.get("/")
            assert client.get("/").status == 204

        assert set(answer.headers) == {"Date"}

    def test_large_bodies_arrive_whole(self, serve: Serve) -> None:
        """A body larger than all buffers arrives byte for byte."""
        body = bytes(range(256)) * 20_000
        with RawClient(serve(lambda _: Response(200, body))) as client:
            assert client.get("/").body == body

    def test_pipelined_requests_are_answered_in_order(self, serve: Serve) -> None:
        """Requests sent without waiting are answered one by one, bodies between them skipped."""
        with RawClient(serve()) as client:
            client.send(
                request_bytes("GET", "/1")
                + request_bytes("POST", "/2", "Content-Length: 9")
                + b"GET /no\r\n"
                + request_bytes("GET", "/3")
            )
            bodies = [client.read_answer().body for _ in range(3)]

        assert bodies == [b"GET /1 \n", b"POST /2 \n", b"GET /3 \n"]

    def test_a_request_may_arrive_in_pieces(self, serve: Serve) -> None:
        """Where the network splits a request does not matter."""
        with RawClient(serve()) as client:
            for byte in b"\r\n" + request_bytes("GET", "/slow", "A: b"):
                client.send(bytes([byte]))

            assert client.read_answer().body == b"GET /slow \n"

    def test_the_client_says_close(self, serve: Serve) -> None:
        """`Connection: close` is honoured and confirmed."""
        with RawClient(serve()) as client:
            answer = client.get("/", "Connection: Close")

            assert answer.headers["Connection"] == "close"
            assert client.is_closed_by_peer()

    def test_http_1_0_is_answered_and_closed(self, serve: Serve) -> None:
        """An old client gets its answer without a Host header."""
        with RawClient(serve()) as client:
            client.send(b"GET /old HTTP/1.0\r\n\r\n")

            assert client.read_answer().body == b"GET /old \n"
            assert client.is_closed_by_peer()

    def test_a_client_that_expects_100_continue_receives_it(self, serve: Serve) -> None:
        """`Expect: 100-continue` gets its interim answer before the body is sent."""
        with RawClient(serve()) as client:
            client.send(request_bytes("POST", "/", "Content-Length: 2", "Expect: 100-continue"))
            assert client.read_answer(has_body=False).status == 100
            client.send(b"ok")

            assert client.read_answer().body == b"POST / \n"

    def test_the_handler_receives_client_and_path(self, serve: Serve) -> None:
        """Paths are decoded, header names lower-case, repeated headers joined."""
        seen: list[Request] = []

        def remember(request: Request) -> Response:
            seen.append(request)
            return plain(200)

        with RawClient(serve(remember), source="127.0.0.2") as client:
            client.get("/a%20b?c=%20", "Accept:  text/plain ", "ACCEPT: */*")

        assert seen == [
            Request(
                "GET",
                "/a b",
                "c=%20",
                {"host": "test", "accept": "text/plain, */*"},
                "127.0.0.2",
            )
        ]

    def test_a_proxys_absolute_target_is_understood(self, serve: Serve) -> None:
        """A target with scheme and host names the same path."""
        with RawClient(serve()) as client:
            assert client.get("http://elsewhere/metrics?x").body == b"GET /metrics x\n"
            assert client.get("http://elsewhere").body == b"GET / \n"

    def test_a_failing_handler_answers_500(self, serve: Serve) -> None:
        """A handler that raises, even an OSError, costs this answer, not the connection."""

        def fail(request: Request) -> Response:
            if request.path == "/broken":
                raise BrokenPipeError("not the client's pipe")
            return plain(200)

        with capture_logs() as logs, RawClient(serve(fail)) as client:
            statuses = [client.get("/broken").status, client.get("/").status]

        assert statuses == [500, 200]
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
            "request_failed"
        ]

    def test_a_response_cannot_smuggle_headers(self, serve: Serve) -> None:
        """A header value with a line break is a bug: it ends the connection and is logged."""
        forged = Response(200, headers=(("A", "b\r\nSet-Cookie: c"),))
        with capture_logs() as logs, RawClient(serve(lambda _: forged)) as client:
            client.send(request_bytes("GET", "/"))
            assert client.is_closed_by_peer()
            assert eventually(lambda: any(e["event"] == "connection_failed" for e in logs))


class TestRefusals:
    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"GET\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            (b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", 400),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                400,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 501),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", 400),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
                400,
            ),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"F" * 30
                + b"\r\n",
                400,
            ),
            (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n"
                + b"x" * 65537,
                413,
            ),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n", 413),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n", 400),
            (b"GET /" + b"a" * 4096 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 64 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 20_000, 431),
            (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"\x00", 400),
        ],
    )
    def test_malformed_requests_are_refused_and_closed(
        self, serve: Serve, sent: bytes, status: int
    ) -> None:
        """An invalid request gets its status as plain text, and the connection ends."""
        with RawClient(serve()) as client:
            client.send(sent)
            answer = client.read_answer()

            assert answer.status == status
            assert answer.headers["Connection"] == "close"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert client.is_closed_by_peer()

    @pytest.mark.parametrize(
        ("body", "answers"),
        [
            # A length twice, the same each time, is one length (RFC 9110, section 8.6).
            ("Content-Length: 3\r\nContent-Length: 3\r\n\r\nGET", [b"GET /1 \n", b"GET /2 \n"]),
            # A body on a GET is read as such, and is no second request.
            ("Content-Length: 24\r\n\r\nGET /3 HTTP/1.1\r\nHost: a", [b"GET /1 \n", b"GET /2 \n"]),
            (
                "Transfer-Encoding: chunked\r\n\r\n18;x=y\r\nGET /3 HTTP/1.1\r\nHost: a\r\n0\r\n\r\n",
                [b"GET /1 \n", b"GET /2 \n"],
            ),
            # A folded line belongs to the header before it.
            ("A: b\r\n Content-Length: 5\r\n\r\n", [b"GET /1 \n", b"GET /2 \n"]),
        ],
        ids=["length-twice", "length-on-get", "chunks-on-get", "folded-line"],
    )
    def test_no_second_request_hides_in_the_first(
        self, serve: Serve, body: str, answers: list[bytes]
    ) -> None:
        """A proxy may have counted differently: each request is answered exactly once."""
        with RawClient(serve()) as client:
            client.send(
                b"GET /1 HTTP/1.1\r\nHost: a\r\n" + body.encode() + request_bytes("GET", "/2")
            )

            assert [client.read_answer().body for _ in answers] == answers

    def test_the_largest_allowed_request_is_served(self, serve: Serve) -> None:
        """The limits are inclusive: 64 headers and a body of 64 KiB are fine."""
        with RawClient(serve()) as client:
            names = (f"A{number}: b" for number in range(62))
            client.send(request_bytes("POST", "/", *names, "Content-Length: 65536"))
            client.send(b"x" * 65536)

            assert client.read_answer().status == 200

    def test_a_chunked_body_is_read_and_dropped(self, serve: Serve) -> None:
        """The next request on the connection begins where the chunks end."""
        with RawClient(serve()) as client:
            client.send(
                request_bytes("POST", "/1", "Transfer-Encoding: chunked")
                + b"3\r\nGET\r\n0\r\n\r\n"
                + request_bytes("GET", "/2")
            )

            assert [client.read_answer().body for _ in range(2)] == [b"POST /1 \n", b"GET /2 \n"]

    def test_a_refusal_survives_a_body_on_its_way(self, serve: Serve) -> None:
        """A client that sends too much gets the reason instead of a connection reset."""
        with RawClient(serve(limits=Limits(linger_seconds=60))) as client:
            client.send(request_bytes("POST", "/", "Content-Length: 200000"))
            client.socket.recv(1, socket.MSG_PEEK)
            for _ in range(10):
                client.send(b"x" * 20_000)
                time.sleep(0.01)  # a reset needs a moment to arrive

            assert client.read_answer().body == b"the body is larger than 65536 bytes\n"

    def test_a_half_sent_request_is_answered_with_a_timeout(self, serve: Serve) -> None:
        """408 after the deadline for the head."""
        with RawClient(serve(limits=Limits(head_seconds=0.5))) as client:
            client.send(b"GET / HTTP/1.1\r\nHo")

            assert client.read_answer().status == 408
            assert client.is_closed_by_peer()

    def test_a_half_sent_body_is_answered_with_a_timeout(self, serve: Serve) -> None:
        """408 also when the announced body does not come."""
        with RawClient(serve(limits=Limits(head_seconds=0.5))) as client:
            client.send(request_bytes("POST", "/", "Content-Length: 10") + b"half")

            assert client.read_answer().status == 408


class TestListening:
    def test_several_addresses_share_a_handler(self) -> None:
        """A server listens on all its addresses, IPv6 and IPv4; port 0 is resolved."""
        server = Server(["127.0.0.1:0", "[::1]:0"], lambda _: plain(200, "shared"))
        server.start()
        try:
            bodies = []
            for host, port in server.addresses:
                with socket.create_connection((host, port), timeout=30) as client:
                    client.sendall(request_bytes("GET", "/", "Connection: close"))
                    bodies.append(client.makefile("rb").read().partition(b"\r\n\r\n")[2])
        finally:
            server.close(0)

        assert bodies == [b"shared\n", b"shared\n"]

    def test_all_addresses_or_none(self, serve: Serve) -> None:
        """When the second address is taken, the first is given back."""
        taken = f"127.0.0.1:{serve().addresses[0][1]}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            free_address = f"127.0.0.1:{free.getsockname()[1]}"
        server = Server([free_address, taken], lambda _: plain(200))

        with pytest.raises(ListenError, match=f"^cannot listen on {taken}: address already in use"):
            server.start()

        assert server.addresses == ()
        assert serve(address=free_address).addresses

    def test_a_client_by_ipv4_of_a_dual_stack_address_has_its_ipv4_name(self, serve: Serve) -> None:
        """`client` is 127.0.0.1, not ::ffff:127.0.0.1."""
        server = serve(lambda request: plain(200, request.client), address=":0")
        port = server.addresses[0][1]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(request_bytes("GET", "/", "Connection: close"))

            assert client.makefile("rb").read().endswith(b"\r\n\r\n127.0.0.1\n")

    def test_requests_are_logged_at_debug_only(self, serve: Serve) -> None:
        """A scrape every second must not fill the log."""
        with capture_logs() as logs, RawClient(serve()) as client:
            client.get("/metrics")
            assert eventually(lambda: any(entry["event"] == "request_served" for entry in logs))

        assert {entry["log_level"] for entry in logs} == {"debug"}
