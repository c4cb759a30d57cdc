"""One device on the status page, with its two pictures in SVG: a stacked bar, and the last hour as a strip.

Colours come from the page's style by class, so that they follow light and dark. Positions are
attributes, never `style`: the Content-Security-Policy forbids that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final
from urllib.parse import quote

from exporter.status.document import Attainable, Device, Flops, Health, Holder, Hour, Probe
from exporter.status.units import SPACE, binary, count, megahertz, percent, quantity, span


# In the order of the stack: useful work first, lost time last. Names are the metric's labels.
STATES: Final[Mapping[str, str]] = {
    "tensor": "tensor pipe",
    "memory": "waiting for memory",
    "stall": "stalled",
    "underfill": "SMs empty",
    "unresolved": "unknown",
    "clock_power": "clock held down by power",
    "clock_thermal": "clock held down by heat",
    "clock_other": "clock held down, other cause",
    "idle": "idle",
}
_WIDTH: Final = 600
_BAR_HEIGHT: Final = 10
_STRIP_HEIGHT: Final = 40
# Smaller shares are not drawn.
_VISIBLE: Final = 0.002


def word(state: str, device: Device) -> str:
    """A state in words. Where utilization is known, so is idle time, and the rest was busy."""
    if state == "unresolved" and device.utilization_ratio is not None:
        return "busy"
    return STATES[state]


def bar(states: Mapping[str, float]) -> str:
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


def strip(hour: Hour, words: Callable[[str], str] = STATES.__getitem__) -> str:
    """The hour as stacked areas, a step a minute; minutes that were not watched stay empty."""
    columns = max((len(shares) for shares in hour.states.values()), default=0)
    if not columns:
        return ""
    step = _WIDTH // columns
    top = [0.0] * columns
    parts: list[str] = []
    for state in STATES:
        shares = hour.states.get(state)
        if shares is not None:
            top = [
                low if share is None else low + share
                for low, share in zip(top, shares, strict=True)
            ]
            outline = _area(
                [_STRIP_HEIGHT - int(value * _STRIP_HEIGHT + 0.5) for value in top], step
            )
            if outline:
                parts.append(f'<path class="{state}" d="{outline}"/>')
    # The largest area first: each next one is painted over it and needs no lower edge.
    return (
        f'<svg class="strip" viewBox="0 0 {step * columns} {_STRIP_HEIGHT}"'
        f' preserveAspectRatio="none" role="img" aria-label="{escape(strip_text(hour, words))}">'
        f"{''.join(reversed(parts))}</svg>"
    )


def strip_text(hour: Hour, words: Callable[[str], str] = STATES.__getitem__) -> str:
    """The strip in words, for screen readers: means over the watched minutes."""
    means: dict[str, float] = {}
    for state, shares in hour.states.items():
        known = [share for share in shares if share is not None]
        means[state] = sum(known) / len(known) if known else 0.0
    told = [
        f"{words(state)} {percent(means[state])}"
        for state in STATES
        if means.get(state, 0.0) >= _VISIBLE
    ]
    return f"The last hour by minute. On average: {', '.join(told) or 'no data'}."


def _area(levels: Sequence[int], step: int) -> str:
    """Outlines of the runs of columns that are not empty, each closed along the floor."""
    paths: list[str] = []
    column, columns = 0, len(levels)
    while column < columns:
        if levels[column] == _STRIP_HEIGHT:
            column += 1
            continue
        end = column
        while end < columns and levels[end] != _STRIP_HEIGHT:
            end += 1
        run = _steps(levels[column:end], step)
        paths.append(f"M{column * step} {_STRIP_HEIGHT}V{levels[column]}{run}V{_STRIP_HEIGHT}z")
        column = end
    return "".join(paths)


def _steps(levels: Sequence[int], step: int) -> str:
    """Relative steps along the levels; equal neighbours share one command."""
    commands: list[str] = []
    run = 0
    before = levels[0]
    for level in levels:
        if level != before:
            commands.append(f"h{run * step}v{level - before}")
            run, before = 0, level
        run += 1
    commands.append(f"h{run * step}")
    return "".join(commands)


# A shape and a word beside each colour.
HEALTH: Final = {
    "critical": ("✖", "critical"),
    "warning": ("▲", "warning"),
    "ok": ("✔", "OK"),
}
REASONS: Final = {
    "gpu_idle": "idle",
    "applications_clocks_setting": "application clocks",
    "sw_power_cap": "power cap",
    "hw_slowdown": "hardware slowdown",
    "sync_boost": "sync boost",
    "sw_thermal_slowdown": "heat (driver)",
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "power brake",
    "display_clock_setting": "display clock",
}
_BASIS: Final = {
    "process_utilization": "by SM time",
    "equal": "divided equally, not measured",
    "exclusive": "not shared",
}
_SEVERITY: Final = {"critical": "✖", "warning": "▲", "info": ""}
_LEGEND_MIN: Final = 0.005


def card(device: Device, unix_seconds: float, *, full: bool) -> str:
    """The device's card; not `full`: name, verdict, number and bar, and a link to the rest."""
    mark, word = HEALTH[device.health]
    name = f"GPU {device.gpu}" if device.gpu.isdigit() else device.gpu
    if device.mig is not None:
        name += f" MIG {device.mig}"
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
        parts.append(bar(device.minute.states) + _legend(device))
    if full:
        parts.append(_hour(device))
        parts.append(_pairs([*_physics(device), *_company(device)]))
        parts.append(_details(device, unix_seconds, anchor))
    else:
        parts.append(f'<p><a href="?gpu={quote(device.gpu)}">More on {escape(name)}</a></p>')
    parts.append("</article>")
    return "".join(parts)


def _findings(device: Device) -> str:
    items: list[str] = []
    for finding in device.findings:
        severity = finding.severity.value
        mark = _SEVERITY[severity]
        sign = f'<span aria-hidden="true">{mark} </span>' if mark else ""
        hidden = f'<span class="hidden">{severity}: </span>' if mark else ""
        text = finding.text[:1].upper() + finding.text[1:]
        items.append(f'<li class="{severity}">{sign}{hidden}{escape(text)}</li>')
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
        words = f"Peak {peak}{derived}{_executed(flops)}"
        return f'<p class="number"><small>{escape(words)}</small></p>'
    share = flops.utilization_ratio
    ratio = f"{SPACE}({percent(share)})" if share is not None else ""
    return (
        f'<p class="number">{escape(quantity(flops.achieved_flops, "FLOP/s"))}'
        f" <small>of {escape(peak + derived + ratio)}</small></p>"
    )


def _measured(could: Attainable, flops: Flops) -> str:
    """What the probes measured, where nothing counts what the device does."""
    rate = could.bandwidth_bytes_per_second
    memory = quantity(rate, "B/s") if rate is not None else None
    if could.flops is None:
        return f'<p class="number">{escape(memory or "")} <small>memory, measured by a probe</small></p>'
    words = f"{could.precision}, measured by a probe"
    if could.peak_ratio is not None and could.precision == flops.precision and flops.peak_flops:
        peak = quantity(flops.peak_flops, "FLOP/s")
        words += f", {percent(could.peak_ratio)} of the peak of {peak}"
    words += f"; memory {memory}" if memory else ""
    words += _executed(flops)
    return (
        f'<p class="number">{escape(quantity(could.flops, "FLOP/s"))}'
        f" <small>{escape(words)}</small></p>"
    )


def _executed(flops: Flops) -> str:
    """What a processor's own counters counted, where it has any."""
    if flops.executed_flops is None:
        return ""
    return f"; executed {quantity(flops.executed_flops, 'FLOP/s')} in the last minute"


def _legend(device: Device) -> str:
    """The bar in words, for screen readers and without colours."""
    shown = [
        f'<li><i class="{state}"></i>{word(state, device)} {escape(percent(device.minute.states[state]))}</li>'
        for state in STATES
        if device.minute.states.get(state, 0.0) >= _LEGEND_MIN
    ]
    seconds = round(device.minute.seconds)
    label = f"Where the last {seconds} seconds went"
    return f'<ul class="legend" aria-label="{label}">{"".join(shown)}</ul>'


def _hour(device: Device) -> str:
    if device.hour is None:
        return ""
    picture = strip(device.hour, lambda state: word(state, device))
    axis = '<div class="axis" aria-hidden="true"><span>1 h ago</span><span>now</span></div>'
    return picture + axis if picture else ""


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    items = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs if text
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _physics(device: Device) -> Iterable[tuple[str, str]]:
    clock, memory = device.clock, device.memory
    if clock.hertz is not None:
        top = f" of {megahertz(clock.max_hertz)}" if clock.max_hertz else ""
        reasons = ", ".join(REASONS.get(reason, reason) for reason in clock.reasons)
        held = f": {reasons}" if reasons else ""
        yield "Clock", f"{megahertz(clock.hertz)}{top}{SPACE}MHz{held}"
    if device.power_watts is not None:
        limit = f" of {device.power_limit_watts:,.0f}" if device.power_limit_watts else ""
        yield "Power", f"{device.power_watts:,.0f}{limit}{SPACE}W"
    if device.temperature_celsius is not None:
        hot = device.memory_temperature_celsius
        memory_text = f", memory {hot:.0f}{SPACE}°C" if hot is not None else ""
        yield "Temperature", f"{device.temperature_celsius:.0f}{SPACE}°C{memory_text}"
    if memory.used_bytes is not None and memory.size_bytes:
        yield "Memory", f"{binary(memory.used_bytes)} of {binary(memory.size_bytes)}"
    if memory.bandwidth_ratio is not None:
        rate = memory.bandwidth_bytes_per_second
        text = percent(memory.bandwidth_ratio)
        if rate is not None and memory.peak_bandwidth_bytes_per_second:
            peak = quantity(memory.peak_bandwidth_bytes_per_second, "B/s")
            text = f"{quantity(rate, 'B/s')} of {peak} ({text})"
        yield "DRAM", text


def _company(device: Device) -> Iterable[tuple[str, str]]:
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
    for holder in device.holders:
        yield holder_words(holder)


def holder_words(holder: Holder) -> tuple[str, str]:
    """The kind of holder and its name; on a shared device with what it did in the last minute."""
    kind, name = "No holder", ""
    if holder.pod is not None:
        kind, name = "Pod", f"{holder.namespace}/{holder.pod} ({holder.container})"
    elif holder.job is not None:
        kind, name = "Job", holder.job
    elif holder.workload is not None:
        kind, name = "Holder", holder.workload
    did = []
    if holder.share_ratio is not None:
        did.append(f"{percent(holder.share_ratio)} of the work")
    if holder.achieved_flops is not None:
        did.append(quantity(holder.achieved_flops, "FLOP/s"))
    if holder.basis is not None:
        did.append(_BASIS.get(holder.basis, holder.basis))
    return kind, ": ".join(part for part in (name, ", ".join(did)) if part)


def _details(device: Device, unix_seconds: float, anchor: str) -> str:
    """Rarely needed details, behind a disclosure that stays open over refreshes."""
    ratios = [probe.baseline_ratio for probe in device.probes if probe.baseline_ratio is not None]
    probes = count(len(device.probes), "probe") if device.probes else "no probe results"
    lowest = f" (lowest at {percent(min(ratios))} of its baseline)" if ratios else ""
    return (
        f'<details id="{anchor}-d"><summary>Details, {escape(probes + lowest)}</summary>'
        f"{_probes(device, unix_seconds, anchor)}{_pairs(_particulars(device, unix_seconds))}</details>"
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


def probe_value(probe: Probe) -> str:
    """A probe's result with its unit; a wrong one in words."""
    if probe.mismatches:
        return count(probe.mismatches, "wrong result")
    if probe.value is None:
        return "–"
    if probe.unit == "s":
        return f"{probe.value * 1e6:,.1f}{SPACE}µs"
    return quantity(probe.value, probe.unit)
