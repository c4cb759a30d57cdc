"""The status document for a terminal, as lines of rich text."""

import textwrap
import time
from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Group
from rich.text import Text

from exporter.status.document import (
    HEALTH,
    SPACE,
    Device,
    Flops,
    Status,
    binary,
    clock_words,
    device_name,
    holder_words,
    percent,
    power_words,
    quantity,
    sentence,
)
from exporter.status.verdict import no_gpu


# A letter beside each colour, for terminals and eyes without them.
_DRAWN: Final[Mapping[str, tuple[str, str]]] = {
    "tensor": ("T", "green"),
    "memory": ("M", "blue"),
    "stall": ("S", "magenta"),
    "underfill": ("U", "cyan"),
    "unresolved": ("B", "white"),
    "clock_power": ("P", "yellow"),
    "clock_thermal": ("H", "red"),
    "clock_other": ("C", "bright_yellow"),
    "idle": ("·", "bright_black"),
}
# Words that fit, where the state's name does not.
_WORDS: Final[Mapping[str, str]] = {
    "unresolved": "unknown",
    "clock_power": "power",
    "clock_thermal": "heat",
    "clock_other": "clock",
}
_STYLES: Final = {"critical": "bold red", "warning": "bold yellow", "ok": "green", "info": ""}
_BAR_MAX: Final = 50
_FINDINGS_MAX: Final = 4
_NARROW: Final = 60


def render(status: Status, *, width: int, height: int | None = None) -> Group:
    """The whole host. With a `height` that cannot hold all details, one line for each device."""
    full = list(_lines(status, width=width, full=True))
    if height is not None and len(full) > height:
        short = list(_lines(status, width=width, full=False))
        # Devices with problems come first: what does not fit matters least.
        if len(short) > height:
            left = len(short) - height + 1
            short = [*short[: height - 1], Text(f"… and {left} more", style="dim")]
        return Group(*short)
    return Group(*full)


def plain(text: str) -> str:
    """Text without anything that a terminal would obey: names come from others."""
    return "".join(
        letter if letter.isprintable() or letter == SPACE else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def _lines(status: Status, *, width: int, full: bool) -> Iterable[Text]:
    host = status.host
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(status.unix_seconds))
    yield _line((plain(host.name), "bold"), (f"  {clock}  ", "dim"), (_sums(status), ""))
    yield _line((plain(host.summary), _STYLES.get(host.health, "")))
    if host.driver_error:
        yield _line((plain(no_gpu(host.driver_error)), ""))
    if full:
        yield _legend(status)
    for device in status.devices:
        if full:
            yield Text()
            yield from _block(device, width)
        else:
            yield _row(device, width)


def _sums(status: Status) -> str:
    host = status.host
    parts = [
        f"{quantity(achieved, 'FLOP/s')} of {quantity(host.peak_flops[precision], 'FLOP/s')}"
        f" {plain(precision)}"
        for precision, achieved in host.achieved_flops.items()
        if host.peak_flops.get(precision)
    ]
    if host.power_watts is not None:
        parts.append(quantity(host.power_watts, "W"))
    return ", ".join(parts)


def _legend(status: Status) -> Text:
    seen = {state for device in status.devices for state in device.minute.states}
    busy = all(device.utilization_ratio is not None for device in status.devices if device.up)
    words = {**_WORDS, "unresolved": "busy"} if busy else _WORDS
    line = Text(no_wrap=True, overflow="ellipsis")
    for state, (letter, colour) in _DRAWN.items():
        if state in seen:
            line.append(f"{letter} ", colour)
            line.append(f"{words.get(state, state)}  ", "dim")
    return line


def _block(device: Device, width: int) -> Iterable[Text]:
    """A device in four lines and more."""
    mark, word = HEALTH.get(device.health, ("?", device.health))
    style = _STYLES.get(device.health, "")
    yield _line(
        (f"{mark} {plain(device_name(device))} ", style),
        (plain(device.name), ""),
        (f"  {word}", style),
    )
    for finding in device.findings[:_FINDINGS_MAX]:
        text = plain(sentence(finding))
        # Not cut: the remedy stands at the end.
        for line in textwrap.wrap(
            text, max(width, 20), initial_indent="  ", subsequent_indent="    "
        ):
            yield _line((line, _STYLES.get(finding.severity, "")))
    if device.up:
        number = _number(device)
        bar = _bar(device, min(_BAR_MAX, max(10, width - len(number) - 6)))
        yield Text.assemble((f"  {number}", "bold"), "  ", bar, no_wrap=True, overflow="ellipsis")
        yield _line((f"  {' · '.join(filter(None, _facts(device)))}", "dim"))
    users = " · ".join(plain(text) for text in _users(device))
    if users:
        yield _line((f"  {users}", "dim"))
    for holder in device.holders:
        if holder.basis is not None or holder.share_ratio is not None:
            kind, words = holder_words(holder)
            yield _line((f"  {plain(f'{kind.lower()} {words}')}", "dim"))


def _row(device: Device, width: int) -> Text:
    """A device in one line."""
    mark, _word = HEALTH.get(device.health, ("?", ""))
    text = sentence(device.findings[0]) if device.findings else ""
    parts = Text(no_wrap=True, overflow="ellipsis")
    parts.append(f"{mark} {plain(device_name(device)):<8} ", _STYLES.get(device.health, ""))
    if width >= _NARROW:
        parts.append(f"{_number(device, short=True):>18}  " if device.up else " " * 20, "bold")
        parts.append_text(_bar(device, 20))
        parts.append("  ")
    parts.append(plain(text))
    return parts


def _number(device: Device, *, short: bool = False) -> str:
    flops, attainable = device.flops, device.attainable
    if flops.achieved_flops is None and attainable is not None and attainable.flops is not None:
        measured = f"{quantity(attainable.flops, 'FLOP/s')} {attainable.precision}"
        if short:
            return plain(measured)
        if attainable.bandwidth_bytes_per_second is not None:
            measured += f", {quantity(attainable.bandwidth_bytes_per_second, 'B/s')}"
        return plain(f"{measured} measured{_executed(flops)}")
    if flops.achieved_flops is None:
        if flops.peak_flops is None or short:
            return ""
        peak = quantity(flops.peak_flops, "FLOP/s")
        return plain(f"peak {peak} {flops.precision}{_executed(flops)}")
    ratio = f" {percent(flops.utilization_ratio)}" if flops.utilization_ratio is not None else ""
    if short or flops.peak_flops is None:
        return quantity(flops.achieved_flops, "FLOP/s") + ratio
    peak = quantity(flops.peak_flops, "FLOP/s")
    return plain(f"{quantity(flops.achieved_flops, 'FLOP/s')} of {peak} {flops.precision}{ratio}")


def _executed(flops: Flops) -> str:
    if flops.executed_flops is None:
        return ""
    return f", {quantity(flops.executed_flops, 'FLOP/s')} executed"


def _bar(device: Device, width: int) -> Text:
    """Letters in colours. Ends are rounded, not widths, so that they add up to the width."""
    bar = Text()
    before, end = 0, 0.0
    for state, (letter, colour) in _DRAWN.items():
        end += device.minute.states.get(state, 0.0) if device.up else 0.0
        here = min(width, round(end * width))
        bar.append(letter * (here - before), f"{colour} reverse")
        before = max(before, here)
    bar.append(" " * (width - before))
    return bar


def _facts(device: Device) -> Iterable[str]:
    memory = device.memory
    yield plain(clock_words(device.clock))
    yield power_words(device)
    if device.temperature_celsius is not None:
        yield f"{device.temperature_celsius:.0f}{SPACE}°C"
    if memory.used_bytes is not None and memory.size_bytes:
        yield f"{binary(memory.used_bytes)} of {binary(memory.size_bytes)}"
    if memory.bandwidth_ratio is not None:
        yield f"DRAM {percent(memory.bandwidth_ratio)}"


def _users(device: Device) -> Iterable[str]:
    for model in device.models:
        yield f"{model.model} ({model.engine})"
    for holder in device.holders:
        if holder.basis is not None or holder.share_ratio is not None:
            continue  # a line each
        if holder.pod is not None:
            yield f"pod {holder.namespace}/{holder.pod}"
        if holder.job is not None:
            yield f"job {holder.job}"
    ratios = [probe.baseline_ratio for probe in device.probes if probe.baseline_ratio is not None]
    if ratios:
        yield f"lowest probe at {percent(min(ratios))} of its baseline"


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
