"""docs/metrics.md, generated from the catalogue."""

from exporter.metrics.catalogue import SUBJECTS
from exporter.metrics.family import Family


_HEAD = """# Metrics

Every family that flopwatch can expose, generated from the catalogue by `flopwatch metrics --markdown`.

- A value that could not be read is absent: never 0, never the old value.
- All values are in base units, and ratios are from 0 to 1. Cumulative values are counters (`_total`): use `rate()`.
- Families of a device have the labels `gpu` (the NVML index, or `cpu0` for the host processor) and `uuid`,
  and `mig` for a MIG instance. The table lists the other labels only.
- Gauges of the last tick are at most one sampling interval old (1 s by default), slow values (ECC, links, limits,
  processes) one `sampling.slow_interval` (15 s). Probe results are shown until the next probe.
"""


def metrics_page() -> str:
    """The whole page in Markdown."""
    parts = [_HEAD]
    for subject in SUBJECTS:
        parts.append(f"\n## {subject.title}\n")
        parts.append("| metric | type | unit | labels | description | interpretation |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        parts += [_row(family) for family in subject.families]
    return "\n".join(parts) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{name}`" for name in family.labels) or ""
    if not family.per_device:
        labels = f"{labels} (not per device)".strip()
    cells = (
        f"`{family.name}`",
        family.type,
        family.unit,
        labels,
        family.help,
        family.interpretation,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
