"""Which exposition format and encoding a scraper gets, by its Accept and Accept-Encoding headers.

prometheus_client's own `choose_encoder` ignores q-values and echoes versions it does not speak;
Prometheus 3 fails a scrape whose Content-Type it does not know. Hence a table of our own: text
0.0.4 and OpenMetrics 1.0.0, nothing else.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from exporter.metrics.layout import Format


_VERSIONS: Final = {
    "text/plain": (Format.TEXT, "0.0.4"),
    "application/openmetrics-text": (Format.OPENMETRICS, "1.0.0"),
}
# All our names are of the legacy charset, so these three schemes render them alike. `dots` would
# double each underscore: it gets `underscores`, as a client that asks for an unknown one gets none.
_ESCAPINGS: Final = {
    "allow-utf-8": "allow-utf-8",
    "underscores": "underscores",
    "values": "values",
    "dots": "underscores",
}
_RANGES_MAX: Final = 32  # Prometheus sends six, a browser eight

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # RFC 9110's word for it
_BALANCED: Final = re.compile(r'(?:[^"]|"(?:\\.|[^"\\])*")*')
_ELEMENT: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_RANGE: Final = re.compile(rf"\s*({_TOKEN}/{_TOKEN})\s*((?:;.*)?)", re.DOTALL)
_CODING: Final = re.compile(rf"\s*({_TOKEN})\s*((?:;.*)?)", re.DOTALL)
_PARAMETER: Final = re.compile(rf';\s*(?:({_TOKEN})=({_TOKEN}|"(?:\\.|[^"\\])*")\s*)?')
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class _Wish:
    """One element of the header: what is wanted, how much, and how exactly it was named."""

    name: str
    parameters: dict[str, str]
    quality: float


@dataclass(frozen=True, slots=True)
class _Offer:
    """How much a format is wanted: quality first, then named rather than `*`, then the order."""

    quality: float
    precision: int
    position: int
    escaping: str

    def beats(self, other: "_Offer") -> bool:
        mine = (self.quality, self.precision, -self.position)
        return mine > (other.quality, other.precision, -other.position)


_UNWANTED: Final = _Offer(0.0, 0, 0, "")


# A scraper sends the same headers each time. A head has 16 KiB at most, so that these stay small.
_HEADERS_MAX: Final = 16


@lru_cache(_HEADERS_MAX)
def choose_format(accept: str | None) -> tuple[Format, str]:
    """The format for an Accept header, and the exact Content-Type of the answer.

    OpenMetrics must be asked for by name and win over text by its q-value; everything else,
    malformed headers too, gets text 0.0.4 rather than a 406, as a scrape is worth more than a
    point of protocol.
    """
    wishes = _wishes(accept or "", _RANGE)
    offers = {kind: _offer(kind, wishes) for kind in Format}
    chosen = Format.TEXT
    if offers[Format.OPENMETRICS].beats(offers[Format.TEXT]):
        chosen = Format.OPENMETRICS
    escaping = offers[chosen].escaping
    return chosen, f"{chosen.value}; escaping={escaping}" if escaping else chosen.value


@lru_cache(_HEADERS_MAX)
def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a gzip-encoded answer is welcome; `gzip;q=0` says no, also beside a `*`."""
    wishes = _wishes(accept_encoding or "", _CODING)
    named = [wish.quality for wish in wishes if wish.name in {"gzip", "x-gzip"}]
    others = [wish.quality for wish in wishes if wish.name == "*"]
    return any(quality > 0 for quality in named or others)


def _offer(kind: Format, wishes: list[_Wish]) -> _Offer:
    """The best offer among the most specific ranges that cover the format."""
    best = _UNWANTED
    for position, wish in enumerate(wishes):
        precision = _precision(kind, wish)
        if not precision or precision < best.precision:
            continue
        escaping = _ESCAPINGS.get(wish.parameters.get("escaping", ""), "")
        offer = _Offer(wish.quality, precision, position, escaping)
        if precision > best.precision or offer.beats(best):
            best = offer
    return best if best.quality > 0 else _UNWANTED


def _precision(kind: Format, wish: _Wish) -> int:
    """How exactly a range names a format: 4 with version, 3 without, 2 `text/*`, 1 `*/*`, 0 not."""
    if wish.name in _VERSIONS:
        named, version = _VERSIONS[wish.name]
        asked = wish.parameters.get("version")
        if named is not kind or asked not in {None, version}:
            return 0
        return 3 if asked is None else 4
    if kind is Format.OPENMETRICS:
        return 0
    return {"text/*": 2, "*/*": 1}.get(wish.name, 0)


def _wishes(header: str, element: re.Pattern[str]) -> list[_Wish]:
    """The header's well-formed elements; malformed ones are ignored."""
    found: list[_Wish] = []
    if not _BALANCED.fullmatch(header):
        return found
    for text in _ELEMENT.findall(header)[:_RANGES_MAX]:
        match = element.fullmatch(text)
        parameters = _parameters(match[2]) if match else None
        if match is None or parameters is None:
            continue
        quality = parameters.pop("q", "1")
        if _QUALITY.fullmatch(quality):
            found.append(_Wish(match[1].lower(), parameters, float(quality)))
    return found


def _parameters(text: str) -> dict[str, str] | None:
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            return None
        if match[1]:
            found[match[1].lower()] = re.sub(r'^"|"$|\\(.)', r"\1", match[2]).lower()
        position = match.end()
    return found
