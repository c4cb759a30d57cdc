"""The results for people: a table, and docs/accuracy.md.

The page has each claim about GPUs with its measured figures, or "not measured yet".
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_acceptance_parts.evidence import EVIDENCE, Evidence, Proof
from benchmarks.gpu_acceptance_parts.schema import Figure, Goal, Results, decode


COMMAND = "python -m benchmarks.gpu_acceptance"
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the product promises or assumes about a GPU, and the figures that show it."""

    text: str
    part: str
    figures: tuple[str, ...]
    """Beginnings of the figures' names."""


CLAIMS = (
    Claim("The daemon needs no privileges", "facts", ("answers that differ as",)),
    Claim("GPM calls for many metrics equal calls for one", "facts", ("metrics that a multi",)),
    Claim("SM cycle counters are exact and since boot", "facts", ("cycle counters", "GPM cycle", "elapsed cycles")),
    Claim("A GPM tick costs a few milliseconds", "facts", ("GPM sample", "GPM metrics,")),
    Claim("FP8 and INT8 move the pipes that the accounting takes them for", "facts", ("pipes that",)),
    Claim("The probe worker stays below 600 MB of device memory", "facts", ("worker: device memory",)),
    Claim("FLOP of GEMMs are counted within 2 %", "accuracy", ("error of FLOP, bf", "error of FLOP, fp", "error of FLOP, tf", "error of FLOP, int")),
    Claim("DRAM bytes of copies are counted within 2 %", "accuracy", ("error of DRAM bytes, copies",)),
    Claim("FLOP and DRAM bytes of a transformer are counted within 5 %", "accuracy", ("error of FLOP, transformer", "error of DRAM bytes, transformer")),
    Claim("The state tensor is the GEMMs' share of the peak", "accuracy", ("error of the state tensor",)),
    Claim("The states sum to elapsed time", "accuracy", ("states minus",)),
    Claim("A probe reaches 97 % of an exhaustive sweep at the same clock", "probes", ("bf16 probe over",)),
    Claim("Probes agree with each other within 1 %", "probes", ("spread of",)),
    Claim("The busy estimate brackets a tenant", "probes", ("busy estimate",)),
    Claim("Random data and the time to a steady clock matter", "probes", ("zeros over", "seconds from idle")),
    Claim("Probes keep to their budget", "probes", ("probes' GPU time, as", "GPU active time")),
    Claim("A neighbour loses less than 0.1 %", "neighbour", ("loss,", "tokens per second,", "not started")),
    Claim("The daemon serves a GPU with little CPU, memory and series", "end_to_end", ("scrape", "series", "daemon,", "remarks", "errors of", "ticks missed")),
    Claim("`flopwatch calibrate` states the counter's error", "end_to_end", ("estimator error",)),
)  # fmt: skip

_HEAD = f"""# Accuracy and cost: what is proven, and by what

Generated from `benchmarks/results/` by `{COMMAND} --document`; do not edit.

[accuracy-engines.md](accuracy-engines.md) compares tokens, model FLOPs and bytes with real inference engines, on a processor.

Every claim about GPUs is measured by one command, on a machine with an NVIDIA GPU that nobody else uses,
in less than nine minutes and without a network:

    {COMMAND}

It prints a table, and writes its figures to `benchmarks/results/` and the driver's answers to
`benchmarks/results/recordings/`. A claim below without figures is {NOT_MEASURED}.

The other columns show what is proven without a GPU: by published recordings and figures of real GPUs and third-party drivers, and by
the project's own fake driver (whose true values are known exactly), a simulation, or the processor.
`python -m pytest FILE -k TEST` runs a proof.

For a machine without a network, download the missing packages elsewhere as wheels for its version of Python (`pip download --no-deps -d .whl structlog msgspec
bcrypt h2 hpack hyperframe h11`), copy them into the checkout, and run there:

    python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site:$PWD python3 -m benchmarks.gpu_acceptance --minutes 8.5 --out OUT

The parts run in order of importance: facts, accuracy, probes, neighbour, end_to_end. A part that exceeds its share of the time is stopped.

This was rehearsed without a GPU, by adding `--rehearse`: with Python 3.12 and torch 2.11, those seven wheels, no network, in one call with a limit of
590 s. All five parts ran, in 94 s at a load of 1 to 2 and in 122 s at a load of 6 to 8, and left six files. The workloads of a rehearsal are small and
run on the processor: it shows that the command works, and nothing about a GPU. It needs the tests' fake driver (gcc and the package nvidia-nvml-dev).

A verdict is `undecided` where the goal lies inside the figure's 95 % confidence interval.
"""


def write_page(results_folder: Path, page: Path) -> Path:
    """Write the page from all results in the folder; returns its path."""
    page.write_text(accuracy_page(read_results(results_folder)))
    return page


def read_results(folder: Path) -> list[Results]:
    """The results of real runs, oldest first. Raises ValueError for any other file."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".rehearsal.json"):
            continue
        try:
            results = decode(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not results of the acceptance: {error}") from None
        if not results.rehearsal:
            found.append(results)
    return sorted(found, key=lambda results: results.started)


def accuracy_page(results: list[Results]) -> str:
    """The page in Markdown: the newest run of each GPU model, claim by claim."""
    newest = {run.machine.gpu: run for run in results}
    parts = [_HEAD, *_overview(newest)]
    for gpu in sorted(newest):
        parts += _section(newest[gpu])
    return "\n".join(parts) + "\n"


def _overview(newest: dict[str, Results]) -> list[str]:
    """What is proven of each claim, and by what."""
    lines = [
        "\n| claim | on silicon | on recordings or third-party drivers | on the fake driver or the processor |",
        "| --- | --- | --- | --- |",
    ]
    texts = [claim.text for claim in CLAIMS]
    for text in (*texts, *(text for text in EVIDENCE if text not in texts)):
        claim = next((claim for claim in CLAIMS if claim.text == text), None)
        measured = [gpu for gpu, run in sorted(newest.items()) if claim and _figures_of(run, claim)]
        silicon = f"measured on {', '.join(measured)}: see below" if measured else NOT_MEASURED
        evidence = EVIDENCE.get(text, Evidence())
        lines.append(_row(text, silicon, _proofs(evidence.recorded), _proofs(evidence.fake)))
    return lines


def _proofs(proofs: tuple[Proof, ...]) -> str:
    return "; ".join(f"{proof.text} (`{proof.file}`: `{proof.test}`)" for proof in proofs)


def _section(run: Results) -> list[str]:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
    lines = [
        f"\n## {machine.gpu}\n",
        f"{run.started[:10]}, driver {machine.driver}, {versions}.\n",
        "| claim | figure | value | goal | verdict | note |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        figures = _figures_of(run, claim)
        if not figures:
            lines.append(_row(claim.text, "", NOT_MEASURED, "", "", _why(run, claim)))
        for position, figure in enumerate(figures):
            lines.append(
                _row(
                    "" if position else claim.text,
                    figure.name,
                    quantity(figure),
                    goal_text(figure),
                    figure.verdict,
                    figure.note,
                )
            )
    return lines


def _figures_of(run: Results, claim: Claim) -> list[Figure]:
    return [
        figure
        for part in run.parts
        if part.name == claim.part
        for figure in part.figures
        if figure.name.startswith(claim.figures)
    ]


def _why(run: Results, claim: Claim) -> str:
    """Why a part has no figures."""
    for part in run.parts:
        if part.name == claim.part:
            return "; ".join([*part.errors, *part.left_out])[:300]
    return "the part was not asked for"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


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
