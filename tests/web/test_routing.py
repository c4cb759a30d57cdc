import pytest
from structlog.testing import capture_logs

from exporter.web.http import Request, Response, Router, plain


def request(method: str, path: str) -> Request:
    return Request(method, path, "", {}, "127.0.0.1")


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("/metrics", "GET", lambda _: plain(200, "metrics"))
    router.add("/-/reload", ("POST", "PUT"), lambda _: plain(200, "reloaded"))
    return router


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/metrics", plain(200, "metrics")),
        ("HEAD", "/metrics", plain(200, "metrics")),
        ("POST", "/metrics", plain(405, headers=(("Allow", "GET, HEAD"),))),
        ("BREW", "/metrics", plain(405, headers=(("Allow", "GET, HEAD"),))),
        ("get", "/metrics", plain(405, headers=(("Allow", "GET, HEAD"),))),
        ("PUT", "/-/reload", plain(200, "reloaded")),
        ("GET", "/-/reload", plain(405, headers=(("Allow", "POST, PUT"),))),
        ("HEAD", "/-/reload", plain(405, headers=(("Allow", "POST, PUT"),))),
        ("GET", "/metrics/", plain(200, "metrics")),
        ("GET", "/metrics/x", plain(404)),
        ("GET", "/METRICS", plain(404)),
        ("GET", "", plain(404)),
    ],
)
def test_requests_find_their_handler(
    router: Router, method: str, path: str, expected: Response
) -> None:
    """Paths match except for a trailing slash; HEAD is served from GET; 405 names the methods."""
    assert router(request(method, path)) == expected


def test_refusals_are_plain_text(router: Router) -> None:
    """A 404 is a line of text, not a page."""
    answer = router(request("GET", "/nowhere"))

    assert answer.body == b"not found\n"
    assert answer.content_type == "text/plain; charset=utf-8"


def test_a_failing_handler_answers_500_and_is_logged_once(router: Router) -> None:
    """The client learns nothing about the bug; the log has everything but the request's headers."""

    def fail(_: Request) -> Response:
        raise RuntimeError("secret of the trade")

    router.add("/broken", "GET", fail)

    with capture_logs() as logs:
        answer = router(request("GET", "/broken"))

    assert answer == plain(500)
    assert answer.body == b"internal server error\n"
    assert [{key: entry[key] for key in ("event", "log_level", "exc_info")} for entry in logs] == [
        {"event": "request_failed", "log_level": "error", "exc_info": True}
    ]


def test_a_request_does_not_show_its_headers() -> None:
    """A traceback that shows a request does not show the password in it."""
    shown = repr(Request("GET", "/", "", {"authorization": "Basic c2VjcmV0"}, "127.0.0.1"))

    assert "c2VjcmV0" not in shown


def test_a_route_is_added_once(router: Router) -> None:
    """A second handler for the same method and path is a mistake in the program."""
    with pytest.raises(ValueError, match="PUT /-/reload has a handler already"):
        router.add("/-/reload", "PUT", lambda _: plain(200))
