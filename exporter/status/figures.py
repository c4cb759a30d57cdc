"""The two pictures of the status page, as SVG: a stacked bar and the strip of an hour.

Colours come from the page's style by class, so that they follow light and dark. Positions are
attributes, never `style`: the Content-Security-Policy forbids that.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

from exporter.status.document import Device, Hour
from exporter.status.units import percent


# In the order of the stack: useful work first, lost time last. Names are the metric's labels.
STATES: Final[Mapping[str, str]] = {
    "tensor": "tensor pipe",
    "memory": "waiting for memory",
    "stall": "stalled",
    "underfill": "SMs empty",
    "unresolved": "not known",
    "clock_power": "clock held by power",
    "clock_thermal": "clock held by heat",
    "clock_other": "clock held, other",
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
    return f"The last hour by minute. On average: {', '.join(told) or 'nothing known'}."


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
