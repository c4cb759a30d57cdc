import contextlib
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.web.connections import Limits
from exporter.web.http import HttpProtocol, KnownHeads, RefusedError, Request, Response


LIMITS = Limits()

token = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=20)
value = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).map(str.strip)


def read_head(data: bytes) -> Request | None:
    protocol = HttpProtocol(LIMITS, "192.0.2.1")
    protocol.feed(data)
    return protocol.request()


def test_a_pipelined_request_is_answered_once() -> None:
    """Two heads in one piece are two requests, and the second is not lost."""
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    protocol = HttpProtocol(LIMITS, "192.0.2.1")
    protocol.feed(head + head)
    for _ in range(2):
        assert protocol.request() is not None
        assert protocol.body_is_complete()
        assert protocol.next_request()
    assert protocol.request() is None


SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n"


def conversation(pieces: list[bytes], known: KnownHeads) -> list[object]:
    """What becomes of these pieces, as the server asks for it after each."""
    protocol = HttpProtocol(LIMITS, "192.0.2.1", known)
    seen: list[object] = []
    request: Request | None = None
    try:
        for piece in pieces:
            protocol.feed(piece)
            while True:
                seen.append((protocol.has_received, protocol.awaits_continue))
                request = request or protocol.request()
                if request is None or not protocol.body_is_complete():
                    break
                answer = protocol.encode(
                    Response(200, b"x"), extra_headers=(), close=False, unix_seconds=0.0
                )
                seen.append((request, answer))
                request = None
                if not protocol.next_request():
                    return seen
    except RefusedError as refused:
        seen.append((refused.status, refused.text))
    return seen


@given(
    st.lists(
        st.sampled_from(
            [
                SCRAPE,
                SCRAPE + SCRAPE,
                b"\r\n" + SCRAPE,
                SCRAPE[:20],
                SCRAPE[20:],
                SCRAPE + b"GE",
                b"T / HTTP/1.1\r\nHost: a\r\n\r\n",
                b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET / HTTP/1.0\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
                b"GET",
                b"\r\n",
            ]
        ),
        max_size=8,
    )
)
def test_a_request_that_was_parsed_before_is_read_as_if_for_the_first_time(
    pieces: list[bytes],
) -> None:
    """However requests arrive, known ones are read exactly as h11 parses them."""
    known = KnownHeads()
    first = conversation(pieces, known)

    assert conversation(pieces, known) == first == conversation(pieces, KnownHeads())


def test_scrapes_are_known_and_secrets_are_not() -> None:
    """A whole request without a body is kept, unless it is long or could hold a secret."""
    known = KnownHeads()
    others = [
        SCRAPE[:-2] + b"Authorization: Basic cm9vdDpyb290\r\n\r\n",
        SCRAPE[:-2] + b"X-Api-Key: s3cret\r\n\r\n",
        SCRAPE.replace(b"/metrics", b"/metrics?token=s3cret"),
        SCRAPE.replace(b"/metrics", b"http://root:s3cret@a/metrics"),
        SCRAPE.replace(b"text/plain", 2048 * b"a"),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n",
    ]
    for data in (SCRAPE, *others):
        conversation([data], known)

    assert known.find(SCRAPE) is not None
    assert [known.find(data) for data in others] == [None] * len(others)


def test_the_memory_of_requests_is_bounded() -> None:
    """A client that never repeats itself fills it with 32 requests, and no more."""
    known = KnownHeads(limit=32)
    heads = [SCRAPE.replace(b"/metrics", b"/%d" % number) for number in range(100)]
    for head in heads:
        conversation([head], known)

    assert sum(known.find(head) is not None for head in heads) <= 32


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    """No input raises anything but RefusedError."""
    with contextlib.suppress(RefusedError):
        read_head(data)


@given(
    st.lists(
        st.sampled_from(
            [
                b"GET ",
                b"/",
                b"http://",
                b" HTTP/1.1",
                b"\r\n",
                b"\n",
                b"\r",
                b"Host: a",
                b"A:",
                b" ",
                b"\x00",
                b"Content-Length: ",
                b"9",
                b"?",
                b"%",
                b"\t",
                b"Transfer-Encoding: chunked",
            ]
        ),
        max_size=20,
    )
)
def test_nearly_a_request_is_a_request_or_refused(parts: list[bytes]) -> None:
    """No shuffling of a request's parts raises anything but RefusedError, its body included."""
    protocol = HttpProtocol(LIMITS, "192.0.2.1")
    with contextlib.suppress(RefusedError):
        protocol.feed(b"".join(parts))
        head = protocol.request()
        if head is not None:
            assert head.path.startswith("/")
            protocol.body_is_complete()


@given(method=token, names=st.lists(token, unique_by=str.lower, max_size=10), value=value)
def test_written_requests_are_read_back(method: str, names: list[str], value: str) -> None:
    """Method, target and headers come out as they went in, with names in lower case."""
    names = [f"X-{name}" for name in names]
    lines = [f"{method} /a%2Fb?c HTTP/1.1", "Host: h", *(f"{name}: {value}" for name in names)]

    head = read_head(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    assert head is not None
    assert (head.method, head.path, head.query) == (method, "/a/b", "c")
    assert head.headers == {"host": "h"} | {name.lower(): value for name in names}


def test_whitespace_costs_linear_time() -> None:
    """The largest header of blanks before a forbidden byte is refused as any other."""
    data = b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b" \t" * 8000 + b"\x00\r\n\r\n"

    with pytest.raises(RefusedError, match="illegal header"):
        read_head(data)


@given(st.text(max_size=30))
def test_a_response_head_has_the_lines_it_was_given(text: str) -> None:
    """No header value ends up as more than one line: it is written whole or refused."""
    response = Response(200, headers=(("A", text),))
    protocol = HttpProtocol(LIMITS, "192.0.2.1")
    protocol.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    protocol.request()
    protocol.body_is_complete()
    try:
        head, body = protocol.encode(response, extra_headers=(), close=True, unix_seconds=0.0)
    except ValueError:  # of UnicodeEncodeError's kind, too
        return

    assert body == b""
    assert head.decode("latin-1").split("\r\n") == [
        "HTTP/1.1 200 OK",
        "Date: Thu, 01 Jan 1970 00:00:00 GMT",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Length: 0",
        f"A: {text}",
        "Connection: close",
        "",
        "",
    ]


@given(st.integers(0, 4_102_444_800))
def test_a_date_matches_the_standard_library(unix_seconds: int) -> None:
    """Up to the year 2100."""
    protocol = HttpProtocol(LIMITS, "192.0.2.1")
    head, _ = protocol.encode(
        Response(204), extra_headers=(), close=True, unix_seconds=float(unix_seconds)
    )

    assert head.decode().split("\r\n")[1] == f"Date: {formatdate(unix_seconds, usegmt=True)}"
