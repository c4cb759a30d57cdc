"""A page of another site cannot control the daemon through a visitor's browser."""

import socket

import pytest

from exporter.web.http import Request
from exporter.web.routes import CrossSiteGuard


def post(**headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("POST", "/-/reload", "", {"host": "127.0.0.1:9907", **named}, "127.0.0.1")


OPEN = CrossSiteGuard(lambda: False, ["gpu-7.example.com"])
LOCKED = CrossSiteGuard(lambda: True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "application/json", "content_length": "2"},
        {"content_type": "application/x-www-form-urlencoded", "content_length": "0"},
        {"origin": "http://127.0.0.1:9907"},
        {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:9907"},
        {"sec_fetch_site": "none"},
        {"host": "localhost:9907"},
        {"host": "[::1]:9907"},
        {"host": "10.0.0.7"},
        {"host": socket.gethostname()},
        {"host": "GPU-7.example.com:9907"},
        {"host": ""},
    ],
)
def test_an_operators_requests_pass(headers: dict[str, str]) -> None:
    """curl, a kubelet's hook, the page itself, by address or by a name of this host."""
    assert OPEN.refusal(post(**headers)) is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"content_type": "text/plain", "content_length": "5"}, 415),
        ({"content_type": "multipart/form-data; boundary=x", "content_length": "5"}, 415),
        ({"host": "evil.example:9907"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
    ],
)
def test_cross_site_requests_are_refused(headers: dict[str, str], status: int) -> None:
    """By its origin, by a form's content type, and by a name that was bound to this address."""
    answer = OPEN.refusal(post(**headers))

    assert answer is not None
    assert answer.status == status


def test_with_a_password_every_host_name_is_accepted() -> None:
    """The page has no password; a proxy may use any name."""
    assert LOCKED.refusal(post(host="proxy.example")) is None
    assert LOCKED.refusal(post(origin="https://evil.example")) is not None


def test_the_refusal_names_the_remedy() -> None:
    """An operator who uses an alias learns which option to set."""
    answer = OPEN.refusal(post(host="alias.example"))

    assert answer is not None
    assert b"web.allowed_hosts" in answer.body
