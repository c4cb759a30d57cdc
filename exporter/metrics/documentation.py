"""docs/metrics.md, generated from the catalogue."""

from exporter.metrics.catalogue import SECTIONS
from exporter.metrics.family import Family


_HEAD = """# Metrics

Every family that flopwatch can expose, generated from the catalogue by `flopwatch metrics --markdown`.

- A value that could not be read is absent: never 0, never the old value.
- Base units throughout; ratios run from 0 to 1. Cumulative values are counters (`_total`): use `rate()`.
- Families per device carry `gpu` (the NVML index, or `cpu0` for the host processor) and `uuid`;
  series of a MIG instance carry `mig` as well. Only the labels beside these are listed.
- Gauges of the last tick are cached for one sampling interval (1 s by default), values of the slow group
  (ECC, links, limits, processes) for `sampling.slow_interval` (15 s), probe results until the next probe.
- `process_*` and `python_gc_*` come from prometheus_client.
"""


def metrics_page() -> str:
    """The whole page in Markdown."""
    parts = [_HEAD]
    for title, families in SECTIONS:
        parts.append(f"\n## {title}\n")
        parts.append("| metric | type | unit | labels | what it is | what it tells |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        parts += [_row(family) for family in families]
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
