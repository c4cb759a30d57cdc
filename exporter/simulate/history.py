"""The past of a simulated fleet as OpenMetrics with timestamps, for `promtool tsdb create-blocks-from openmetrics`."""

import math
from collections.abc import Iterator, Sequence

from exporter.metrics.family import Sample
from exporter.simulate.host import SimulatedHost


JOB = "flopwatch"


def history(
    hosts: Sequence[SimulatedHost], *, begins: float, ends: float, step_seconds: float
) -> Iterator[str]:
    """All series of all hosts, as Prometheus would have scraped them, and the EOF marker."""
    now = begins + step_seconds
    while now <= ends:
        for host in hosts:
            host.advance(now)
            target = f'cluster="{host.cluster}",instance="{host.name}",job="{JOB}"'
            yield f"up{{{target}}} 1 {now:.3f}\n"
            for sample in host.samples():
                yield _line(sample, target, now)
        now += step_seconds
    yield "# EOF\n"


def _line(sample: Sample, target: str, now: float) -> str:
    labels = "".join(f',{name}="{_escape(value)}"' for name, value in sample.labels if value)
    value = "NaN" if math.isnan(sample.value) else repr(float(sample.value))
    return f"{sample.family.name}{sample.suffix}{{{target}{labels}}} {value} {now:.3f}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
