"""The status page as one HTML document, and the active configuration with secrets masked.

All text that is not from this module goes through `escape`. Styles and script are inline and
allowed by their hashes alone.
"""

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import yaml

from exporter.status.card import card
from exporter.status.document import Exporter, Host, Status
from exporter.status.units import SPACE, binary, count, percent, quantity, span
from exporter.status.verdict import no_gpu


_FOLDER: Final = Path(__file__).parent
_STYLE: Final = _FOLDER.joinpath("page.css").read_text(encoding="utf-8").strip()
_SCRIPT: Final = _FOLDER.joinpath("page.js").read_text(encoding="utf-8").strip()
# A chip, in one path.
_ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%231a8a50'/%3E"
    "%3Cpath d='M3 13V9h2v4zm4 0V3h2v10zm4 0V6h2v7z' fill='%23fff'/%3E%3C/svg%3E"
)
# Devices beyond this are shown without their details, unless they have problems.
FULL_CARDS: Final = 16
_REFRESH_SECONDS_MIN: Final = 2.0
_NO_SCRIPT_REFRESH_SECONDS: Final = 10
_LINKS: Final = (
    ("metrics", "Metrics"),
    ("status", "This page as JSON"),
    ("configuration", "Configuration"),
    ("healthy", "Liveness"),
    ("ready", "Readiness"),
    ("metric_reference", "Metric reference"),
    ("documentation", "Documentation"),
)


def _source_hash(text: str) -> str:
    """A hash source of the Content-Security-Policy for an inline element."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


SECURITY_HEADERS: Final = (
    (
        "Content-Security-Policy",
        (
            f"default-src 'none'; style-src {_source_hash(_STYLE)}; script-src {_source_hash(_SCRIPT)};"
            " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


def render_page(status: Status, *, only: str | None = None) -> str:
    """The page; `only` shows one device, by its `gpu`, with all its details."""
    host, exporter = status.host, status.exporter
    devices = [device for device in status.devices if only is None or device.gpu == only]
    cards = "".join(
        card(device, status.unix_seconds, full=place < FULL_CARDS or device.health == "critical")
        for place, device in enumerate(devices)
    )
    if only is not None and not devices:
        cards = f"<p>There is no device {escape(only)} on this host.</p>"
    refresh = max(_REFRESH_SECONDS_MIN, exporter.interval_seconds)
    title = f"{host.name}: {host.summary}" if host.health != "ok" else f"{host.name} is OK"
    back = '<p><a href="?">All devices</a></p>' if only is not None else ""
    return (
        f'<!doctype html><html lang="en" data-refresh-seconds="{refresh:g}"><head>'
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f'<link rel="icon" href="{_ICON}">'
        f'<noscript><meta http-equiv="refresh" content="{_NO_SCRIPT_REFRESH_SECONDS}"></noscript>'
        f"<style>{_STYLE}</style></head><body>"
        f'<header class="top"><h1>{escape(host.name)}</h1>'
        '<p class="grow">flopwatch: the FLOPS each GPU delivers, and where the rest of the peak is lost</p>'
        '<button id="pause" type="button" hidden>Pause updates</button></header>'
        '<p id="notice" class="notice" role="alert" hidden></p>'
        f'<main>{back}<p class="verdict {host.health}" role="status">{escape(host.summary)}</p>'
        f"{_tiles(host)}{_missing(host)}{_advice(host)}"
        f'<div class="cards">{cards}</div>{_footer(status)}</main>'
        f"<script>{_SCRIPT}</script></body></html>"
    )


def _tiles(host: Host) -> str:
    """The host's sums."""
    tiles: list[tuple[str, str]] = []
    for precision, peak in host.peak_flops.items():
        achieved = host.achieved_flops.get(precision)
        if achieved is not None:
            of_peak = f"{quantity(peak, 'FLOP/s')} {precision} ({percent(achieved / peak)})"
            tiles.append(("Delivered", f"{quantity(achieved, 'FLOP/s')} of {of_peak}"))
        else:
            tiles.append(("Peak", f"{quantity(peak, 'FLOP/s')} {precision}"))
    for precision, measured in host.attainable_flops.items():
        tiles.insert(0, ("Measured", f"{quantity(measured, 'FLOP/s')} {precision}"))
    if host.attainable_bandwidth_bytes_per_second is not None:
        memory = quantity(host.attainable_bandwidth_bytes_per_second, "B/s")
        tiles.insert(len(host.attainable_flops), ("Memory bandwidth", memory))
    if host.devices:
        tiles.append(("Devices up", f"{host.devices_up} of {host.devices}"))
    if host.power_watts is not None:
        tiles.append(("Power", quantity(host.power_watts, "W")))
    if host.memory_used_bytes is not None and host.memory_size_bytes is not None:
        size = binary(host.memory_size_bytes)
        tiles.append(("Memory", f"{binary(host.memory_used_bytes)} of {size}"))
    if host.driver_version:
        tiles.append(("Driver", host.driver_version))
    return _pairs("tiles", tiles)


def _missing(host: Host) -> str:
    """GPUs and engines that do not answer; answering engines are shown with their GPUs."""
    down = [workload for workload in host.workloads if not workload.up]
    no_driver = f"<p>{escape(no_gpu(host.driver_error))}</p>" if host.driver_error else ""
    return no_driver + "".join(
        f'<p class="warning">Engine {escape(workload.workload)} ({escape(workload.engine)}) does'
        f" not answer{f': {escape(workload.reason)}' if workload.reason else ''}.</p>"
        for workload in down
    )


def _advice(host: Host) -> str:
    """The change that would help each served model most."""
    return "".join(
        f"<p>What would help {escape(sentence)}</p>"
        for workload in host.workloads
        for sentence in workload.advice
    )


def _pairs(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in pairs
    )
    return f'<dl class="{name}">{items}</dl>' if items else ""


def _footer(status: Status) -> str:
    """The exporter's own health, and links."""
    links = "".join(
        f'<li><a href="{escape(status.links[name])}">{text}</a></li>'
        for name, text in _LINKS
        if name in status.links
    )
    moment = time.gmtime(status.unix_seconds)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)
    clock = time.strftime("%H:%M:%S UTC", moment)
    return (
        f'<footer><nav aria-label="Exporter"><ul>{links}</ul></nav>'
        f"<p>{escape(_exporter_words(status.exporter))} Status of"
        f' <time datetime="{stamp}">{clock}</time>.</p></footer>'
    )


def _exporter_words(exporter: Exporter) -> str:
    parts = [
        (
            f"flopwatch {exporter.version} (revision {exporter.revision}), up for"
            f" {span(exporter.uptime_seconds)}, reads every {exporter.interval_seconds:g}{SPACE}s"
        )
    ]
    if exporter.cpu_seconds is not None and exporter.uptime_seconds > 0:
        parts.append(f"{percent(exporter.cpu_seconds / exporter.uptime_seconds)} of one core")
    if exporter.resident_bytes is not None:
        parts.append(binary(exporter.resident_bytes))
    if exporter.ticks_missed:
        parts.append(count(exporter.ticks_missed, "missed tick"))
    text = f"{', '.join(parts)}. Probes are {exporter.probes}"
    if exporter.probe_gpu_seconds:
        text += f" and took {exporter.probe_gpu_seconds:.1f}{SPACE}s of GPU time"
    configuration = "" if exporter.configuration_ok else " The last configuration was refused."
    return f"{text}.{configuration}"


MASK: Final = "<secret>"
_SECRET_KEY = re.compile(
    r"passw|secret|token|credential|authorization|bearer|api_?key|private|^headers?$", re.IGNORECASE
)


def mask(value: Any, *, key: str = "") -> Any:
    """Plain data with secrets masked: values of keys that name one, and parts of URLs that may be one."""
    if _SECRET_KEY.search(key) and value not in (None, "", (), [], {}):
        return MASK
    if isinstance(value, Mapping):
        return {name: mask(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Sequence):
        return [mask(item) for item in value]
    return value


def mask_url(text: str) -> str:
    """A URL without user, password, query values and fragment; any other text as it is."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return MASK  # a malformed URL cannot be shown in part
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{host}" if "@" in parts.netloc else host
    query = "&".join(
        f"{name}={MASK}" if equals else MASK
        for name, equals, _value in (item.partition("=") for item in parts.query.split("&") if item)
    )
    return urlunsplit(
        SplitResult(parts.scheme, netloc, parts.path, query, MASK if parts.fragment else "")
    )


def configuration_text(values: Mapping[str, Any]) -> str:
    """The masked configuration as YAML."""
    return yaml.safe_dump(mask(values), sort_keys=False, allow_unicode=True)
