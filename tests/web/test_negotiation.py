import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.metrics.layout import Format
from exporter.web.routes import accepts_gzip, choose_format


TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_2_5 = (
    "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        (BROWSER, TEXT),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_2_5, TEXT),
        # Without a version, it is the one that we support.
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("text/plain", TEXT),
        # q-values decide, not the order; 0 is no.
        ("application/openmetrics-text;q=0.3, text/plain;q=0.5", TEXT),
        ("text/plain;q=0.3, application/openmetrics-text;q=0.5", OPENMETRICS),
        ("application/openmetrics-text;q=0, */*", TEXT),
        ("text/plain;q=0, application/openmetrics-text;q=0.001", OPENMETRICS),
        # With equal q the more precise wins, then the first.
        ("text/plain, application/openmetrics-text", TEXT),
        ("application/openmetrics-text, text/plain", OPENMETRICS),
        ("*/*, application/openmetrics-text", OPENMETRICS),
        # A precise range overrules a loose one, in either order.
        (
            "text/plain;version=0.0.4;q=0.2, text/*;q=0.9, application/openmetrics-text;q=0.5",
            OPENMETRICS,
        ),
        (
            "text/*;q=0.9, text/plain;version=0.0.4;q=0.2, application/openmetrics-text;q=0.5",
            OPENMETRICS,
        ),
        # OpenMetrics is never given to a client that did not name it.
        ("text/plain;q=0.1, */*;q=0.9", TEXT),
        ("application/*", TEXT),
        # Versions that we do not support are not promised.
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;version=abc", TEXT),
        ("text/plain;version=9.9.9", TEXT),
        ("application/json", TEXT),
        # Escaping schemes: known ones come back, `dots` becomes one that changes nothing.
        (
            "application/openmetrics-text;escaping=underscores",
            f"{OPENMETRICS}; escaping=underscores",
        ),
        ("application/openmetrics-text;escaping=values", f"{OPENMETRICS}; escaping=values"),
        ("application/openmetrics-text;escaping=dots", f"{OPENMETRICS}; escaping=underscores"),
        ("application/openmetrics-text;escaping=magic", OPENMETRICS),
        ("text/plain;version=0.0.4;escaping=allow-utf-8", f"{TEXT}; escaping=allow-utf-8"),
        # Malformed elements count as not sent.
        ("application/openmetrics-text;q=2", TEXT),
        ("application/openmetrics-text;q=abc", TEXT),
        ("application/openmetrics-text;q=-1", TEXT),
        ("application/openmetrics-text;q=0.1234", TEXT),
        ("application/openmetrics-text;version", TEXT),
        ("application/openmetrics-text version=1.0.0", TEXT),
        ('text/plain;a="unclosed, application/openmetrics-text', TEXT),
        (";;;,,,===", TEXT),
        (", ,application/openmetrics-text, ,", OPENMETRICS),
    ],
)
def test_the_format_follows_the_accept_header(accept: str | None, expected: str) -> None:
    """Each scraper gets the best of the formats it named, under its exact name."""
    chosen, content_type = choose_format(accept)

    assert content_type == expected
    assert expected.startswith(chosen.value)


@given(st.one_of(st.text(), st.from_regex(r"([a-z*/;=q.0-9,\" ]|openmetrics-text|version){0,60}")))
def test_any_header_gets_one_of_the_two_formats(accept: str) -> None:
    """No header raises, and no part of it is returned except a known escaping scheme."""
    chosen, content_type = choose_format(accept)

    schemes = {"", "; escaping=allow-utf-8", "; escaping=underscores", "; escaping=values"}
    assert chosen in Format
    assert content_type.removeprefix(chosen.value) in schemes


quality = st.integers(min_value=0, max_value=1000)


@given(text=quality, openmetrics=quality, reverse=st.booleans())
def test_the_higher_quality_wins(text: int, openmetrics: int, reverse: bool) -> None:
    """Of two formats named alike, the one with the higher q is served, whatever the order."""
    ranges = [
        f"text/plain;version=0.0.4;q={text / 1000}",
        f"application/openmetrics-text;version=1.0.0;q={openmetrics / 1000}",
    ]
    accept = ",".join(reversed(ranges) if reverse else ranges)

    chosen, _ = choose_format(accept)

    if text != openmetrics:
        assert (Format.OPENMETRICS if openmetrics > text else Format.TEXT) is chosen


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("br, gzip;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity, *;q=0.5", True),
        ("gzip;q=abc", False),
        ("gzipped", False),
        ('"gzip', False),
    ],
)
def test_gzip_is_sent_to_those_who_take_it(accept_encoding: str | None, expected: bool) -> None:
    """The answer is compressed when the client says so, and q=0 says no."""
    assert accepts_gzip(accept_encoding) is expected


@given(st.text())
def test_any_accept_encoding_gets_an_answer(accept_encoding: str) -> None:
    """No Accept-Encoding header raises."""
    assert accepts_gzip(accept_encoding) in {True, False}
