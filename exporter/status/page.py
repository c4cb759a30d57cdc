"""The status page as one HTML document.

All text that is not from this module goes through `escape`. Styles and script are inline and
allowed by their hashes alone. The pictures of a device, a stacked bar and the last hour as a strip,
take their colours from the page's style by class, so that they follow light and dark; positions are
attributes, never `style`: the Content-Security-Policy forbids that.
"""

import base64
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from exporter.status.document import (
    HEALTH,
    SPACE,
    STATES,
    Attainable,
    Device,
    Exporter,
    Flops,
    Health,
    Host,
    Probe,
    Status,
    binary,
    clock_words,
    count,
    device_name,
    holder_words,
    percent,
    power_words,
    probe_value,
    quantity,
    sentence,
    span,
    state_word,
)
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
    items = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(text)}</dd></div>" for term, text in tiles
    )
    return f'<dl class="tiles">{items}</dl>' if items else ""


def _missing(host: Host) -> str:
    """GPUs and engines that do not answer; answering engines are shown with their GPUs."""
    no_driver = f"<p>{escape(no_gpu(host.driver_error))}</p>" if host.driver_error else ""
    return no_driver + "".join(
        f'<p class="warning">Engine {escape(workload.workload)} ({escape(workload.engine)}) does'
        f" not answer{f': {escape(workload.reason)}' if workload.reason else ''}.</p>"
        for workload in host.workloads
        if not workload.up
    )


def _advice(host: Host) -> str:
    """The change that would help each served model most."""
    return "".join(
        f"<p>What would help {escape(sentence)}</p>"
        for workload in host.workloads
        for sentence in workload.advice
    )


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


# ---- one device ----

_WIDTH: Final = 600
_BAR_HEIGHT: Final = 10
_STRIP_HEIGHT: Final = 40
# Smaller shares are not drawn, and not in the legend.
_VISIBLE: Final = 0.002
_LEGEND_MIN: Final = 0.005


def _bar(states: Mapping[str, float]) -> str:
    """A stacked bar over the full width. The text beside it says the same."""
    parts: list[str] = []
    x = 0.0
    for state in STATES:
        width = states.get(state, 0.0) * _WIDTH
        if width >= _VISIBLE * _WIDTH:
            parts.append(
                f'<rect class="{state}" x="{x:.0f}" width="{max(1.0, width):.0f}"'
                f' height="{_BAR_HEIGHT}"/>'
            )
        x += width
    return (
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {_BAR_HEIGHT}" preserveAspectRatio="none"'
        f' aria-hidden="true">{"".join(parts)}</svg>'
    )


def _hour(device: Device) -> str:
    """The last hour as stacked areas, a step a minute; minutes that were not watched stay empty."""
    hour = device.hour.states if device.hour is not None else {}
    columns = max(map(len, hour.values()), default=0)
    if not columns:
        return ""
    step = _WIDTH // columns
    top = [0.0] * columns
    areas: list[str] = []
    means: list[str] = []
    for state in STATES:
        shares = hour.get(state, [])
        known = [share for share in shares if share is not None]
        if not known:
            continue
        top = [low + (share or 0.0) for low, share in zip(top, shares, strict=True)]
        levels = [_STRIP_HEIGHT - int(value * _STRIP_HEIGHT + 0.5) for value in top]
        areas.append(f'<path class="{state}" d="{_outline(levels, step)}"/>')
        mean = sum(known) / len(known)
        if mean >= _VISIBLE:
            means.append(f"{state_word(state, device)} {percent(mean)}")
    label = f"The last hour by minute. On average: {', '.join(means) or 'no data'}."
    # The largest area first: each next one is painted over it and needs no lower edge.
    return (
        f'<svg class="strip" viewBox="0 0 {step * columns} {_STRIP_HEIGHT}"'
        f' preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f"{''.join(reversed(areas))}</svg>"
        '<div class="axis" aria-hidden="true"><span>1 h ago</span><span>now</span></div>'
    )


def _outline(levels: Sequence[int], step: int) -> str:
    """A path along the levels and back along the floor; equal neighbours share one command."""
    path, before = f"M0 {_STRIP_HEIGHT}", _STRIP_HEIGHT
    for level, run in groupby(levels):
        path += f"v{level - before}h{step * len(list(run))}"
        before = level
    return f"{path}V{_STRIP_HEIGHT}z"


def card(device: Device, unix_seconds: float, *, full: bool) -> str:
    """The device's card; not `full`: name, verdict, number and bar, and a link to the rest."""
    mark, word = HEALTH[device.health]
    name = device_name(device)
    anchor = escape(f"gpu-{device.gpu}-{device.mig or ''}")
    parts = [
        (
            f'<article class="card is-{device.health}" id="{anchor}" aria-labelledby="{anchor}-h">'
            f'<div class="head"><h2 id="{anchor}-h">{escape(name)} <span>{escape(device.name)}</span></h2>'
            f'<span class="state {device.health}"><span aria-hidden="true">{mark} </span>{word}</span></div>'
        ),
        _findings(device),
        _number(device),
    ]
    if device.minute.states and device.up:
        parts.append(_bar(device.minute.states) + _legend(device))
    if full:
        parts += [
            _hour(device),
            _facts([*_physics(device), *_users(device)]),
            _details(device, unix_seconds, anchor),
        ]
    else:
        parts.append(f'<p><a href="?gpu={quote(device.gpu)}">More on {escape(name)}</a></p>')
    parts.append("</article>")
    return "".join(parts)


def _findings(device: Device) -> str:
    items: list[str] = []
    for finding in device.findings:
        severity = finding.severity.value
        mark, _word = HEALTH.get(severity, ("", ""))
        sign = f'<span aria-hidden="true">{mark} </span>' if mark else ""
        hidden = f'<span class="hidden">{severity}: </span>' if mark else ""
        items.append(f'<li class="{severity}">{sign}{hidden}{escape(sentence(finding))}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _number(device: Device) -> str:
    flops = device.flops
    if flops.achieved_flops is None and device.up and device.attainable is not None:
        return _measured(device.attainable, flops)
    if flops.peak_flops is None or flops.precision is None:
        return ""
    peak = f"{quantity(flops.peak_flops, 'FLOP/s')} {flops.precision}"
    derived = " (derived)" if flops.peak_origin == "derived" else ""
    if flops.achieved_flops is None or not device.up:
        return _big("", f"Peak {peak}{derived}{_executed(flops)}")
    share = flops.utilization_ratio
    ratio = f"{SPACE}({percent(share)})" if share is not None else ""
    return _big(quantity(flops.achieved_flops, "FLOP/s"), f"of {peak}{derived}{ratio}")


def _measured(measured: Attainable, flops: Flops) -> str:
    """What the probes measured, where nothing counts what the device does."""
    rate = measured.bandwidth_bytes_per_second
    memory = quantity(rate, "B/s") if rate is not None else None
    if measured.flops is None:
        return _big(memory or "", "memory, measured by a probe")
    words = f"{measured.precision}, measured by a probe"
    if (
        measured.peak_ratio is not None
        and measured.precision == flops.precision
        and flops.peak_flops
    ):
        peak = quantity(flops.peak_flops, "FLOP/s")
        words += f", {percent(measured.peak_ratio)} of the peak of {peak}"
    words += f"; memory {memory}" if memory else ""
    return _big(quantity(measured.flops, "FLOP/s"), words + _executed(flops))


def _big(number: str, words: str) -> str:
    shown = f"{escape(number)} " if number else ""
    return f'<p class="number">{shown}<small>{escape(words)}</small></p>'


def _executed(flops: Flops) -> str:
    """What a processor's own counters counted, where it has any."""
    if flops.executed_flops is None:
        return ""
    return f"; executed {quantity(flops.executed_flops, 'FLOP/s')} in the last minute"


def _legend(device: Device) -> str:
    """The bar in words, for screen readers and without colours."""
    shown = [
        f'<li><i class="{state}"></i>{state_word(state, device)} {escape(percent(device.minute.states[state]))}</li>'
        for state in STATES
        if device.minute.states.get(state, 0.0) >= _LEGEND_MIN
    ]
    seconds = round(device.minute.seconds)
    label = f"Where the last {seconds} seconds went"
    return f'<ul class="legend" aria-label="{label}">{"".join(shown)}</ul>'


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs if text
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _physics(device: Device) -> Iterable[tuple[str, str]]:
    yield "Clock", clock_words(device.clock)
    yield "Power", power_words(device)
    if device.temperature_celsius is not None:
        hot = device.memory_temperature_celsius
        memory_text = f", memory {hot:.0f}{SPACE}°C" if hot is not None else ""
        yield "Temperature", f"{device.temperature_celsius:.0f}{SPACE}°C{memory_text}"
    memory = device.memory
    if memory.used_bytes is not None and memory.size_bytes:
        yield "Memory", f"{binary(memory.used_bytes)} of {binary(memory.size_bytes)}"
    if memory.bandwidth_ratio is not None:
        rate = memory.bandwidth_bytes_per_second
        text = percent(memory.bandwidth_ratio)
        if rate is not None and memory.peak_bandwidth_bytes_per_second:
            peak = quantity(memory.peak_bandwidth_bytes_per_second, "B/s")
            text = f"{quantity(rate, 'B/s')} of {peak} ({text})"
        yield "DRAM", text


def _users(device: Device) -> Iterable[tuple[str, str]]:
    """Who uses the device."""
    for model in device.models:
        mfu, mbu = model.flops_utilization_ratio, model.bandwidth_utilization_ratio
        ratios = [
            f"{name} {percent(ratio)}" for name, ratio in (("MFU", mfu), ("MBU", mbu)) if ratio
        ]
        left_out = [f"{part} not counted" for part in model.not_counted]
        precision = [model.precision] if model.precision else []
        served = ", ".join([model.engine, *precision, *ratios, *left_out])
        yield "Model", f"{model.model} ({served})"
    yield from map(holder_words, device.holders)


def _details(device: Device, unix_seconds: float, anchor: str) -> str:
    """Rarely needed details, behind a disclosure that stays open over refreshes."""
    ratios = [probe.baseline_ratio for probe in device.probes if probe.baseline_ratio is not None]
    probes = count(len(device.probes), "probe") if device.probes else "no probe results"
    lowest = f" (lowest at {percent(min(ratios))} of its baseline)" if ratios else ""
    return (
        f'<details id="{anchor}-d"><summary>Details, {escape(probes + lowest)}</summary>'
        f"{_probes(device, unix_seconds, anchor)}{_facts(_particulars(device, unix_seconds))}</details>"
    )


def _particulars(device: Device, unix_seconds: float) -> Iterable[tuple[str, str]]:
    if device.utilization_ratio is not None:
        resident = " of the time a kernel was resident" if device.gpu.isdigit() else ""
        yield "Utilization", percent(device.utilization_ratio) + resident
    yield "Events", _event_words(device.events, unix_seconds)
    if device.processes is not None:
        yield "Processes", f"{device.processes:,}"
    sources = [name.source + ("" if name.up else " (down)") for name in device.sources]
    yield "Sources", ", ".join(sources)
    yield "UUID", device.uuid
    yield "PCI address", device.pci_bus_id or ""
    yield "Serial number", device.serial or ""


def _event_words(events: Health, unix_seconds: float) -> str:
    parts: list[str] = []
    for event in events.xids:
        at = event.last_unix_seconds
        ago = f", last {span(unix_seconds - at)} ago" if at is not None else ""
        parts.append(f"XID {event.xid} × {event.count:,}{ago}")
    if events.ecc_errors:
        kinds = ", ".join(f"{errors:,.0f} {kind}" for kind, errors in events.ecc_errors.items())
        parts.append(f"ECC errors over its lifetime: {kinds}")
    rows = sum(events.remapped_rows.values())
    if rows:
        parts.append(count(rows, "row") + " remapped")
    if events.nvlinks:
        parts.append(f"NVLink {events.nvlinks_up} of {events.nvlinks} up")
    return "; ".join(parts)


def _probes(device: Device, unix_seconds: float, anchor: str) -> str:
    if not device.probes:
        return ""
    rows = "".join(_probe_row(probe, unix_seconds) for probe in device.probes)
    return (
        # On a narrow screen it scrolls, so it must be focusable by keyboard.
        f'<div class="scroll" id="{anchor}-t" tabindex="0" role="group" aria-labelledby="{anchor}-h">'
        '<table><thead><tr><th scope="col">Kernel</th><th scope="col">Result</th>'
        '<th scope="col">of peak</th><th scope="col">of baseline</th><th scope="col">Age</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _probe_row(probe: Probe, unix_seconds: float) -> str:
    kernel = probe.kernel + (f" → GPU {probe.peer}" if probe.peer else "")
    at = probe.last_success_unix_seconds
    cells = [
        probe_value(probe),
        percent(probe.peak_ratio) if probe.peak_ratio is not None else "–",
        percent(probe.baseline_ratio) if probe.baseline_ratio is not None else "–",
        span(unix_seconds - at) if at is not None else "–",
    ]
    return (
        f"<tr><td>{escape(kernel)}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    )
