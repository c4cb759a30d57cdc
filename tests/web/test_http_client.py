"""Every way in which an endpoint can misbehave ends in a reason, in time and within limits."""

import pytest

from exporter.errors import Reason, ScrapeError
from exporter.http_client import fetch, without_credentials
from tests.inference.engines import server
from tests.inference.engines.server import serving


def reason_of(answer, *, timeout=0.3, limit=1 << 20, path="/metrics"):
    with serving(answer) as engine, pytest.raises(ScrapeError) as caught:
        fetch(f"http://127.0.0.1:{engine.port}{path}", timeout_seconds=timeout, limit_bytes=limit)
    return caught.value.reason


class TestGoodAnswers:
    @pytest.mark.parametrize("answer", [server.text, server.gzipped, server.chunked])
    def test_the_text_is_returned(self, answer):
        """Plain, compressed or chunked, the text is the same."""
        with serving(answer("vllm:up 1\n" * 50)) as engine:
            assert fetch(engine.url, timeout_seconds=5) == "vllm:up 1\n" * 50

    def test_path_and_query_are_kept(self):
        """The request asks for exactly what the address says."""
        with serving(server.text("")) as engine:
            fetch(f"http://127.0.0.1:{engine.port}/prometheus/metrics?a=1", timeout_seconds=5)

            assert engine.requests == ["GET /prometheus/metrics?a=1 HTTP/1.1"]

    def test_credentials_of_the_address_are_sent_and_never_logged(self):
        """Basic authentication: base64 of `me:a b` is bWU6YSBi."""
        with serving(server.text("")) as engine:
            url = f"http://me:a%20b@127.0.0.1:{engine.port}/metrics"
            fetch(url, timeout_seconds=5)

            assert "Authorization: Basic bWU6YSBi" in engine.heads[0]
            assert without_credentials(url) == engine.url

    def test_an_address_without_a_path_means_metrics(self):
        """The usual path is the default."""
        with serving(server.text("")) as engine:
            fetch(f"http://127.0.0.1:{engine.port}", timeout_seconds=5)

            assert engine.requests == ["GET /metrics HTTP/1.1"]


class TestBadAnswers:
    @pytest.mark.parametrize("answer", [server.hang, server.drip, server.drip_headers])
    def test_slowness_ends_at_the_deadline(self, answer):
        """A hang, or a byte at a time, is a timeout: the deadline is for the whole answer."""
        assert reason_of(answer) is Reason.TIMEOUT

    def test_a_hundred_megabytes(self):
        """Reading stops at the limit."""
        assert reason_of(server.flood, timeout=30) is Reason.TOO_LARGE

    def test_a_length_beyond_the_limit_is_not_even_read(self):
        """A Content-Length above the limit is believed."""
        assert reason_of(server.text("x" * 200), limit=100) is Reason.TOO_LARGE

    def test_a_small_answer_that_unfolds(self):
        """Ten megabytes of zeros in ten kilobytes of gzip stop at the limit too."""
        assert reason_of(server.gzipped(b"\0" * 10_000_000)) is Reason.TOO_LARGE

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (server.text("boom", status="500 Internal Server Error"), Reason.HTTP_STATUS),
            (server.text("", status="404 Not Found"), Reason.HTTP_STATUS),
            (server.text("", status="302 Found", headers="Location: /x\r\n"), Reason.REDIRECT),
            (server.cut_short, Reason.PROTOCOL),
            (server.garbage, Reason.PROTOCOL),
            (lambda exchange: exchange.connection.close(), Reason.PROTOCOL),
            (server.text("x", headers="Content-Encoding: gzip\r\n"), Reason.ENCODING),
            (server.text("x", headers="Content-Encoding: br\r\n"), Reason.ENCODING),
        ],
    )
    def test_each_has_a_reason(self, answer, reason):
        """Status, redirect, protocol and encoding errors are distinguished."""
        assert reason_of(answer, timeout=60) is reason

    @pytest.mark.parametrize("kept", [0, 4096])
    @pytest.mark.parametrize(
        "body", ["Content-Length: 10\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"]
    )
    def test_a_status_is_the_reason_although_its_body_does_not_arrive(self, body, kept):
        """A stalled or broken body of a 503 is neither waited for nor reported in its place."""

        def refuse(exchange):
            exchange.send(f"HTTP/1.1 503 Service Unavailable\r\n{body}".encode())
            if kept == 0:
                exchange.closing.wait()  # would take the whole deadline

        with serving(refuse) as engine, pytest.raises(ScrapeError) as caught:
            fetch(engine.url, timeout_seconds=600, refusal_bytes=kept)

        assert caught.value.reason is Reason.HTTP_STATUS

    def test_the_body_of_a_refusal_is_kept_on_request(self):
        with (
            serving(server.text("x" * 9000, status="400 Bad Request")) as engine,
            pytest.raises(ScrapeError) as caught,
        ):
            fetch(engine.url, timeout_seconds=60, refusal_bytes=4096)

        assert caught.value.answer == b"x" * 4096

    def test_bytes_that_are_not_text(self):
        """Latin-1 in an exposition is refused."""
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe"

        assert reason_of(lambda exchange: exchange.send(raw), timeout=60) is Reason.ENCODING

    def test_no_listener(self):
        """A closed port is a connection error."""
        with serving(server.text("")) as engine:
            url = engine.url

        with pytest.raises(ScrapeError) as caught:
            fetch(url, timeout_seconds=5)

        assert caught.value.reason is Reason.CONNECTION

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://host/",
            "file:///etc/passwd",
            "http://",
            "http://[::1",
            "http://a:b/",
            "x",
            "http://a b/metrics",
        ],
    )
    def test_invalid_addresses(self, url):
        """Nothing but http and https with a host is asked."""
        with pytest.raises(ScrapeError) as caught:
            fetch(url, timeout_seconds=1)

        assert caught.value.reason is Reason.BAD_URL

    def test_a_space_in_the_path(self):
        """Asked of a server that answers, but no request line can hold it."""
        assert reason_of(server.text(""), path="/a b") is Reason.BAD_URL
