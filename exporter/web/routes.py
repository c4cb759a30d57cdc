"""The daemon's HTTP endpoints, and the format and encoding that a scraper gets."""

import ipaddress
import os
import re
import socket
import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from exporter.errors import FlopwatchError
from exporter.metrics.catalogue import BY_NAME
from exporter.metrics.layout import Format
from exporter.metrics.render import Exposition
from exporter.web.http import Request, Response, Router, plain


# Families that prometheus_client contributes.
_CLIENT_LIBRARY_PREFIXES = ("process_", "python_")


def metrics_handler(exposition: Exposition[Any]) -> Callable[[Request], Response]:
    """`/metrics`: the last snapshot's bytes; no request ever reaches a device."""

    def handle(request: Request) -> Response:
        format_, content_type = choose_format(request.headers.get("accept"))
        compressed = accepts_gzip(request.headers.get("accept-encoding"))
        if request.query:
            parameters = urllib.parse.parse_qs(request.query, keep_blank_values=True)
            if "collect[]" in parameters:
                return plain(400, "collect[] is not supported; choose families with name[]")
            if "name[]" in parameters:
                names = frozenset(parameters["name[]"])
                unknown = sorted(name for name in names if not _is_family(name))
                if unknown:
                    return plain(400, f"name[]: unknown metric family: {', '.join(unknown)}")
                body = only_families(exposition.render(format_, compressed=False), names)
                return Response(200, body, content_type, (("Vary", "Accept"),))
        body = exposition.render(format_, compressed=compressed)
        headers = (("Content-Encoding", "gzip"),) if compressed else ()
        return Response(200, body, content_type, (*headers, ("Vary", "Accept, Accept-Encoding")))

    return handle


def only_families(exposition: bytes, names: Collection[str]) -> bytes:
    """The part of an exposition that belongs to the families, by their full names (`_total`)."""
    kept: list[str] = []
    wanted = True
    for line in exposition.decode().splitlines(keepends=True):
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            # OpenMetrics leaves the suffix of a counter out of its HELP line.
            wanted = name in names or f"{name}_total" in names
        if wanted or line.startswith("# EOF"):
            kept.append(line)
    return "".join(kept).encode()


def _is_family(name: str) -> bool:
    return name in BY_NAME or name.startswith(_CLIENT_LIBRARY_PREFIXES)


def add_health(router: Router, ready: Callable[[], bool]) -> None:
    """`/-/healthy`: the HTTP loop lives; `/-/ready`: a device's snapshot is fresh. No driver call."""

    def is_ready(_request: Request) -> Response:
        return plain(200, "ready") if ready() else plain(503, "no device has a fresh snapshot")

    router.add("/-/healthy", "GET", lambda _request: plain(200, "healthy"))
    router.add("/-/ready", "GET", is_ready)


# What a form can send without a preflight request (Fetch standard, section 2.2.2).
_FORM_TYPES: Final = frozenset(
    {"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"}
)


class CrossSiteGuard:
    """Refuses requests that a page of another site may have caused through a visitor's browser.

    A browser names the page's site in `Origin` (Fetch standard, section 3.2), and sends a form with
    one of three content types. Against DNS rebinding, where the page's own name resolves to this
    host, the `Host` header must be a name of this host.

    `authenticates` says whether a request needs a password or certificate, which such a page does
    not have: any Host is then fine. `allowed_hosts` are names of this host beside its own.
    """

    def __init__(
        self, authenticates: Callable[[], bool], allowed_hosts: Collection[str] = ()
    ) -> None:
        self._authenticates = authenticates
        self._allowed_hosts = frozenset(host.lower() for host in (*allowed_hosts, *_own_names()))

    def refusal(self, request: Request) -> Response | None:
        """403 or 415 with the reason, or None."""
        headers = request.headers
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return plain(403, "requests from pages of other sites are refused (Origin header)")
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return plain(403, "requests from pages of other sites are refused (Sec-Fetch-Site)")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in _FORM_TYPES and headers.get("content-length", "0") != "0":
            return plain(415, "send no body, or one of type application/json")
        if not self._authenticates() and not self._knows(host):
            return plain(
                403,
                f"the Host header names {host!r}, which is not a known name of this host; "
                "use an IP address, or add it to web.allowed_hosts",
            )
        return None

    def _knows(self, host: str) -> bool:
        name = _without_port(host).lower()
        if not name or name in self._allowed_hosts:
            return True  # HTTP/1.0 has no Host, and no browser speaks it
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _own_names() -> frozenset[str]:
    own = socket.gethostname()
    # The node's name, which a pod gets from the downward API.
    return frozenset({"localhost", own, own.partition(".")[0], os.environ.get("NODE_NAME") or own})


def add_lifecycle(
    router: Router,
    guard: CrossSiteGuard,
    *,
    enabled: bool,
    reload: Callable[[], str],
    pause_probes: Callable[[], None],
    resume_probes: Callable[[], None],
) -> None:
    """The endpoints that change the daemon, by POST or PUT, behind the guard.

    They are refused unless --web.enable-lifecycle was given. An action returns the outcome as text,
    or None, and raises FlopwatchError with the reason for a failure.
    """

    def add(path: str, action: Callable[[], str | None], done: str) -> None:
        def handle(request: Request) -> Response:
            refused = guard.refusal(request)
            if refused is not None:
                return refused
            if not enabled:
                return plain(
                    403, "the lifecycle API is disabled; enable it with --web.enable-lifecycle"
                )
            try:
                outcome = action()
            except FlopwatchError as error:
                return plain(500, str(error))
            return plain(200, outcome or done)

        router.add(path, ("POST", "PUT"), handle)

    add("/-/reload", reload, "configuration reloaded")
    add("/-/probes/pause", pause_probes, "probes paused")
    add("/-/probes/resume", resume_probes, "probes resumed")


# ---- the format and encoding, by the headers Accept and Accept-Encoding ----
#
# prometheus_client's own `choose_encoder` ignores q-values and echoes versions it does not speak;
# Prometheus 3 fails a scrape whose Content-Type it does not know. Hence a table of our own: text
# 0.0.4 and OpenMetrics 1.0.0, nothing else.

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


class _Offer(NamedTuple):
    """How much a format is wanted: quality first, then named rather than `*`, then the first named."""

    quality: float = 0.0
    precision: int = 0
    order: int = 0
    escaping: str = ""

    @property
    def rank(self) -> tuple[float, int, int]:
        return self[:3]


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
    if offers[Format.OPENMETRICS].rank > offers[Format.TEXT].rank:
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
    best = _Offer()
    for position, wish in enumerate(wishes):
        precision = _precision(kind, wish)
        escaping = _ESCAPINGS.get(wish.parameters.get("escaping", ""), "")
        offer = _Offer(wish.quality, precision, -position, escaping)
        if precision > best.precision or (
            precision == best.precision > 0 and offer.rank > best.rank
        ):
            best = offer
    return best if best.quality > 0 else _Offer()


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
