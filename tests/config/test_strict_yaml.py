import contextlib
import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from exporter.config.load import load_strict
from exporter.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("# a comment", None),
        ("a:", {"a": None}),
        ("a: ~", {"a": None}),
        ("a: null", {"a": None}),
        ("a: ''", {"a": ""}),
        ("a: true", {"a": True}),
        ("a: FALSE", {"a": False}),
        # What YAML 1.1 would turn into something else.
        ("a: on", {"a": "on"}),
        ("a: off", {"a": "off"}),
        ("a: yes", {"a": "yes"}),
        ("a: y", {"a": "y"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: 010", {"a": 10}),
        ("a: 0o10", {"a": 8}),
        ("a: 0xff", {"a": 255}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: =", {"a": "="}),
        ("a: -3", {"a": -3}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: .5", {"a": 0.5}),
        ("a: 1.", {"a": 1.0}),
        ("a: -.inf", {"a": -math.inf}),
        ("a: '1'", {"a": "1"}),
        ("a: 1s", {"a": "1s"}),
        ("on: 1", {"on": 1}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("- [1, a]\n- {}", [[1, "a"], {}]),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, expected: object) -> None:
    """Null, true, false and numbers; everything else is a string as written."""
    assert load_strict(text, source="c.yaml") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "c.yaml:3: key 'a' is already on line 1"),
        ("x:\n- a: 1\n  a: 2", "c.yaml:3: key 'a' is already on line 2"),
        ("x: &y {a: 1}\nz:\n  <<: *y\n  b: 1\n  b: 2", "c.yaml:5: key 'b' is already on line 4"),
        ("1: a", "c.yaml:1: a key must be a string; quote it"),
        ("? [a]\n: b", "c.yaml:1: a key must be a string; quote it"),
        ("~: a", "c.yaml:1: a key must be a string; quote it"),
        ("a: b: c", "c.yaml:1: mapping values are not allowed here"),
        (
            "a: [1\n",
            "c.yaml:2: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'",
        ),
        (
            "a\n---\nb",
            "c.yaml:2: expected a single document in the stream: but found another document",
        ),
        ("a: *b", "c.yaml:1: found undefined alias 'b'"),
        ("a: !b c", "c.yaml:1: could not determine a constructor for the tag '!b'"),
        (
            "a: !!timestamp 2024-01-01",
            "c.yaml:1: could not determine a constructor for the tag 'tag:yaml.org,2002:timestamp'",
        ),
        ("a: !!int x", "c.yaml: invalid literal for int() with base 10: 'x'"),
        ("a: \x01", "c.yaml: unacceptable character #x0001: special characters are not allowed"),
        ("[" * 100_000, "c.yaml: nested too deeply"),
        ("&a [*a]", "c.yaml: its aliases expand to more than 100000 values"),
        ("#" * 2_000_000, "c.yaml: larger than 1048576 characters"),
    ],
)
def test_mistakes_are_placed(text: str, message: str) -> None:
    """One line says where and what; it is never left to chance which of two keys wins."""
    with pytest.raises(ConfigError) as raised:
        load_strict(text, source="c.yaml")

    assert raised.value.mistakes == (message,)


def test_a_few_aliases_cannot_stand_for_billions() -> None:
    """Ten levels of ten references each are refused before anything walks them."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]

    with pytest.raises(ConfigError, match="aliases expand"):
        load_strict("\n".join(lines), source="c.yaml")


@given(st.one_of(st.text(), st.text("ab:-&*!<>[]{},'\"|\n #?~01.e", max_size=40)))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    """No text raises anything but ConfigError, in one line."""
    mistake = ""
    try:
        load_strict(text, source="c.yaml")
    except ConfigError as error:
        mistake = str(error)

    assert "\n" not in mistake


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(values)
def test_quoted_values_are_read_back(value: Any) -> None:
    """A document written by PyYAML, which quotes by YAML 1.1, means the same here."""
    written = yaml.safe_dump(value)
    # `0E0` is text to YAML 1.1 and a number to 1.2: an unquoted one is what its reader says.
    assume(not re.search(r"(?<!['\"])\b[-+.\d]+[eE][-+]?\d+\b(?!['\"])", written))

    assert load_strict(written, source="c.yaml") == value


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever the file holds, the only error is a ConfigError."""
    with contextlib.suppress(ConfigError):
        load_strict(text, source="c.yaml")
