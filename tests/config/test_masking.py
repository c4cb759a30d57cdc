"""What the shown configuration reveals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.documentation import MASK, configuration_text, mask, mask_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/metrics", "http://127.0.0.1:8000/metrics"),
        ("http://bob:hunter2@host:1/m", f"http://{MASK}@host:1/m"),
        ("http://host/m?token=abc&x=1", f"http://host/m?token={MASK}&x={MASK}"),
        ("http://host/m?abc", f"http://host/m?{MASK}"),
        ("http://host/m#abc", f"http://host/m#{MASK}"),
        ("http://[::1/m", MASK),
        ("/models/chat/config.json", "/models/chat/config.json"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """Users and addresses stay, secrets are masked."""
    assert mask_url(url) == shown


def test_keys_that_name_a_secret() -> None:
    """At any depth; an empty one is not a secret."""
    values = {"a": [{"password": "x", "api_key": "y", "name": "z"}], "token": None}

    assert mask(values) == {
        "a": [{"password": MASK, "api_key": MASK, "name": "z"}],
        "token": None,
    }


def test_the_text_is_yaml() -> None:
    """Tuples are lists, and nothing else changes."""
    assert configuration_text({"gpus": (0, 1), "run": True}) == "gpus:\n- 0\n- 1\nrun: true\n"


@given(st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True))
def test_a_password_never_shows(secret: str) -> None:
    """Whatever it is, wherever it appears in an address."""
    secret = f"Q{secret}Q"
    values = {
        "url": f"http://user:{secret}@host/path?key={secret}#{secret}",
        "nested": [f"https://{secret}@host/"],
    }

    assert secret not in configuration_text(values)
