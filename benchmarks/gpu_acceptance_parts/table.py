"""The results as a table for people."""

from benchmarks.gpu_acceptance_parts.schema import Figure, Goal, Results


def render(results: Results) -> str:
    """Every figure with its goal and verdict, then what is missing and the errors."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [f"{machine.gpu}, driver {machine.driver}, {versions}"]
    if results.rehearsal:
        lines.append("REHEARSAL: workloads on the host processor; no figure here is of a GPU")
    for part in results.parts:
        lines += ["", f"{part.name}: {part.status.replace('_', ' ')}, {part.seconds:.0f} s"]
        cells = [_cells(figure) for figure in part.figures]
        widths = [max((len(row[column]) for row in cells), default=0) for column in range(4)]
        lines += [
            "  " + "  ".join(c.ljust(w) for c, w in zip(row, (*widths, 0), strict=True)).rstrip()
            for row in cells
        ]
        lines += [f"  left out: {text}" for text in part.left_out]
        lines += [f"  failed: {text}" for text in part.errors]
    return "\n".join(lines)


def _cells(figure: Figure) -> tuple[str, str, str, str, str]:
    return (figure.name, quantity(figure), goal_text(figure), figure.verdict, figure.note)


def quantity(figure: Figure) -> str:
    """The value in its unit, with its confidence interval."""
    if figure.value is None:
        return "-"
    text = number(figure.value, figure.unit)
    if figure.low is not None and figure.high is not None:
        text += f" ({number(figure.low, figure.unit)} to {number(figure.high, figure.unit)})"
    return text


def goal_text(figure: Figure) -> str:
    """The goal in words."""
    return "" if figure.goal is None else _goal(figure.goal, figure.unit)


def _goal(goal: Goal, unit: str) -> str:
    if goal.low is None and goal.high is None:
        return ""
    if goal.low is None:
        assert goal.high is not None
        return f"<= {number(goal.high, unit)}"
    if goal.high is None:
        return f">= {number(goal.low, unit)}"
    return f"{number(goal.low, unit)} to {number(goal.high, unit)}"


_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def number(value: float, unit: str) -> str:
    """A value with its unit: ratios as percentages, times in the unit that fits."""
    if unit == "ratio":
        return f"{value:+.3%}" if abs(value) < 0.1 else f"{value:.2%}"
    if unit == "seconds":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value * 1e6:.3g} us"
    if unit == "count":
        return f"{value:g}"
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"
