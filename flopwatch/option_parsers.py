"""Parsers of one configuration value, from YAML or an environment variable to a typed value.

A parser raises ValueError with a description of the mistake, without its place, which the caller
knows.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


Parser = Callable[[Any], Any]

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|m|h|d)")
_SIZES = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_CHOICES_SHOWN_MAX = 20
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


def duration(*, at_least: float = 0.0, at_most: float = math.inf) -> Parser:
    """Seconds, from `250ms`, `1s`, `1h30m`, or a plain number of seconds."""

    def parse(value: Any) -> float:
        seconds = _seconds(value)
        if seconds < at_least:
            raise ValueError(f"must be at least {_show(at_least)} s, got {value}")
        if seconds > at_most:
            raise ValueError(f"must be at most {_show(at_most)} s, got {value}")
        return seconds

    return parse


def _seconds(value: Any) -> float:
    wrong = f"must be a duration such as 250ms, 1s or 15m, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(wrong)
    if not isinstance(value, str):
        if not math.isfinite(value):
            raise ValueError(wrong)
        return float(value)
    text = value.strip()
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", text):
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(wrong) from None
    if not math.isfinite(seconds):
        raise ValueError(wrong)
    return seconds


def size() -> Parser:
    """Bytes, from `2GiB`, `600MB` or a plain number."""

    def parse(value: Any) -> int:
        match = _SIZE.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
        if match is None or match[2] not in _SIZES:
            raise ValueError(f"must be a size such as 2GiB or 600MB, got {value!r}")
        return int(float(match[1]) * _SIZES[match[2]])

    return parse


def integer(*, at_least: int, at_most: int = 2**31) -> Parser:
    """A whole number within bounds."""

    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"must be a whole number, got {value!r}")
        if number < at_least:
            raise ValueError(f"must be at least {at_least}, got {value}")
        if number > at_most:
            raise ValueError(f"must be at most {at_most}, got {value}")
        return number

    return parse


def number(*, above: float, at_most: float) -> Parser:
    """A number within bounds; also `2.5e15`, which YAML 1.1 reads as a string."""

    def parse(value: Any) -> float:
        try:
            parsed = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            parsed = math.nan
        if not math.isfinite(parsed):
            raise ValueError(f"must be a number such as 2.5e15, got {value!r}")
        if not above < parsed <= at_most:
            raise ValueError(
                f"must be above {_show(above)} and at most {_show(at_most)}, got {value}"
            )
        return parsed

    return parse


def mapping(keys: Sequence[str], parse_value: Parser) -> Parser:
    """A mapping from some of these words to values of one type."""

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping of {', '.join(keys)}, got {value!r}")
        parsed: dict[str, Any] = {}
        for key, content in value.items():
            if key not in keys:
                meant = nearest(str(key), keys)
                hint = f", did you mean {meant}?" if meant else f", known: {', '.join(keys)}"
                raise ValueError(f"has an unknown key {key!r}{hint}")
            try:
                parsed[key] = parse_value(content)
            except ValueError as error:
                raise ValueError(f"{key} {error}") from None
        return parsed

    return parse


def boolean() -> Parser:
    """True or false."""

    def parse(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise ValueError(f"must be true or false, got {value!r}")

    return parse


def choice(*allowed: str, aliases: Mapping[str, str] | None = None) -> Parser:
    """One of a few words. YAML 1.1 reads `on` and `off` as booleans: both forms are accepted.

    `aliases` are other spellings. With aliases, matching ignores case.
    """

    def parse(value: Any) -> str:
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if aliases is not None and isinstance(text, str):
            text = aliases.get(text.lower(), text.lower())
        if text in allowed:
            return str(text)
        if len(allowed) <= _CHOICES_SHOWN_MAX:
            raise ValueError(f"must be one of {', '.join(allowed)}, got {value!r}")
        meant = nearest(str(value), allowed)
        hint = f", did you mean {meant}?" if meant else ""
        raise ValueError(f"is not one of the {len(allowed)} names known: {value!r}{hint}")

    return parse


def text(*, empty: bool = False) -> Parser:
    """A string."""

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a string, got {value!r}")
        if not value and not empty:
            raise ValueError("must not be empty")
        return value

    return parse


def currency_code() -> Parser:
    """Three capital letters, as in ISO 4217."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{3}", value):
            raise ValueError(f"must be a currency code such as USD or EUR, got {value!r}")
        return value.upper()

    return parse


def http_url() -> Parser:
    """An http or https address."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError(
                f"must be an address such as http://127.0.0.1:8000/metrics, got {value!r}"
            )
        return value

    return parse


def items(parse_item: Parser, *, at_most: int = 10_000) -> Parser:
    """A list; in an environment variable, the items are separated by commas."""

    def parse(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [item.strip() for item in value.split(",") if item.strip()]
        if not isinstance(value, Sequence):
            raise ValueError(f"must be a list, got {value!r}")
        if len(value) > at_most:
            raise ValueError(f"must have at most {at_most} items, got {len(value)}")
        return tuple(parse_item(item) for item in value)

    return parse


def one_of(*parsers: Parser, otherwise: str) -> Parser:
    """The result of the first parser that accepts the value."""

    def parse(value: Any) -> Any:
        for parser in parsers:
            try:
                return parser(value)
            except ValueError:
                continue
        raise ValueError(f"must be {otherwise}, got {value!r}")

    return parse


def optional(parser: Parser) -> Parser:
    """Null, or a value that the parser accepts."""

    def parse(value: Any) -> Any:
        return None if value is None else parser(value)

    return parse


def _show(number: float) -> str:
    return f"{number:g}"


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name most like `name`; None if none reaches the similarity `cutoff` (0 to 1)."""
    import difflib

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None
