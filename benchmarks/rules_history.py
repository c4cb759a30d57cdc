"""A history for a new Prometheus, as blocks: what rules with long windows read of a fleet.

The metrics, and how far back each is read, are taken from the rules themselves.
"""

import math
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Sample
from exporter.simulate.host import SimulatedHost


DAY_SECONDS = 86400
LIVE_SECONDS = 300.0  # the run itself fills the last five minutes
RUN_SECONDS = 1800.0  # the maximum length of a run
DEFAULT_INTERVAL_SECONDS = 30
SCRAPE_SECONDS = 15
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Selector, window, step of a subquery, offset, as written in the rules.
_READ = re.compile(
    r"(?P<name>[a-z_][\w:]*)(?:\{(?P<matchers>[^}]*)\})?"
    r"(?:\[(?P<window>\d+[smhd])(?::\w+)?\])?(?: offset (?P<offset>\d+[smhd]))?"
)
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|=)\s*"([^"]*)"')
# Recorded only during a fault.
_SELDOM = {
    "gpu:flopwatch_probe_mismatches:sum",
    "gpu_xid:flopwatch_xid:timestamp",
    "gpu:flopwatch_ecc_uncorrected:timestamp",
    "gpu:flopwatch_probe_wrong_results:timestamp",
    "gpu_unit:flopwatch_probe_measure:slow_peer_ratio",
    "gpu:flopwatch_probe_baseline_ratio:slow",
    "workload_objective:flopwatch_objective:missed",
}
# Recorded only of GPUs without an engine, and the simulated ones have one.
_WITHOUT_ENGINE = {
    "gpu:flopwatch_sm_active:avg5m",
    "gpu:flopwatch_sm_active:avg1h",
    "gpu:flopwatch_dram_bytes_without_engine:rate5m",
    "gpu:flopwatch_dram_bytes:avg1h",
}
# Series without a host.
_WIDE = ("model:", "cluster:")
# Low enough that the present never looks like a drop, and above what the rules leave out as idle.
_RECORDED_VALUE = 0.5
_RECORDED_RATIO = 0.02
# Labels of recorded series besides cluster, job and instance, by name prefix; the longest wins.
_RECORDED_LABELS = {
    "gpu:": ("gpu", "uuid"),
    "gpu_workload:": ("gpu", "uuid", "workload"),
    "instance:": (),
    "cluster:": (),
    "workload:": ("workload",),
    "workload:flopwatch_model_tokens": ("workload", "model"),
    "workload:flopwatch_model_requests": ("workload", "model"),
    "model:": ("model",),
}


@dataclass(frozen=True, slots=True)
class Read:
    """A selector that a rule reads from `begins` to `ends` seconds ago, of samples `step` seconds apart."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    begins: float
    ends: float
    step: float


def seconds_of(duration: str) -> int:
    """`15m` in seconds."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


def rule_groups(folder: Path) -> list[dict[str, Any]]:
    """All groups of the rule files under a folder."""
    return [
        group
        for path in sorted(folder.glob("*/*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]


def long_reads(groups: Sequence[dict[str, Any]]) -> list[Read]:
    """Every selector of the rules that looks back farther than the run lasts."""
    steps = {
        rule["record"]: seconds_of(group.get("interval", f"{DEFAULT_INTERVAL_SECONDS}s"))
        for group in groups
        for rule in group["rules"]
        if "record" in rule
    }
    found = {
        read
        for group in groups
        for rule in group["rules"]
        for read in _reads(rule["expr"], steps)
        if read.begins > LIVE_SECONDS and read.name not in _SELDOM | _WITHOUT_ENGINE
    }
    return sorted(found, key=lambda read: (read.name, read.begins, read.matchers))


def _reads(expr: str, steps: dict[str, int]) -> Iterator[Read]:
    for found in _READ.finditer(expr):
        if not (found["window"] or found["offset"]):
            continue
        offset = seconds_of(found["offset"]) if found["offset"] else 0
        # An instant value is looked up in the last five minutes.
        window = seconds_of(found["window"]) if found["window"] else LIVE_SECONDS
        name = found["name"]
        matchers = tuple(_MATCHER.findall(found["matchers"] or ""))
        step = steps.get(name, SCRAPE_SECONDS)
        yield Read(name, matchers, offset + window, offset, step)


def write_history(folder: Path, hosts: Sequence[SimulatedHost], reads: Sequence[Read]) -> None:
    """Write blocks of a day each, the last one up to this moment.

    One file a block: promtool reads all of a file for each block that it makes of it.
    """
    now = time.time()
    oldest = max(read.begins for read in reads)
    midnight = int(now - oldest) // DAY_SECONDS * DAY_SECONDS
    for begins, ends in pairwise(range(midnight, int(now) + 2 * DAY_SECONDS, DAY_SECONDS)):
        text = folder / "history.om"
        if begins < time.time():
            with text.open("w") as out:
                out.writelines(_lines(hosts, reads, now, begins, ends))
            _make_block(text, folder / "data")


def _make_block(text: Path, data: Path) -> None:
    command = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=24h"]
    command += ["openmetrics", "--quiet", str(text), str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    text.unlink()


def _lines(
    hosts: Sequence[SimulatedHost], reads: Sequence[Read], now: float, begins: float, ends: float
) -> Iterator[str]:
    samples = {host.name: list(host.samples()) for host in hosts}
    for name in dict.fromkeys(read.name for read in reads):
        # A model is served by many hosts but has one series.
        for host in hosts[:1] if name.startswith(_WIDE) else hosts:
            for labels, value, wanted in _series(host, samples[host.name], name, reads):
                times = sorted({at for read in wanted for at in _times(read, now, begins, ends)})
                # A gauge was lower than it is now: or each GPU would look as if it had lost links.
                wiggle = 0.0 if name.endswith("_total") else 0.001 if ":" in name else -0.001
                for step, at in enumerate(times):
                    yield f"{name}{labels} {value * (1 + wiggle * (step % 97))} {at}\n"
    yield "# EOF\n"


def _times(read: Read, now: float, begins: float, ends: float) -> range:
    """The times of a read's samples between two instants, at multiples of its step."""
    # Reads with an offset advance during the run; the newest block goes up to the time of writing.
    newest = time.time() - (max(0.0, read.ends - RUN_SECONDS))
    first = math.ceil(max(now - read.begins, begins) / read.step) * int(read.step)
    return range(first, int(min(newest, ends)), int(read.step))


def _series(
    host: SimulatedHost, samples: Sequence[Sample], name: str, reads: Sequence[Read]
) -> Iterator[tuple[str, float, list[Read]]]:
    """Labels and value of the host's series of this name, each with the reads that want it."""
    for labels, value in (
        _recorded(host, samples, name) if ":" in name else _exported(samples, name)
    ):
        wanted = [
            read for read in reads if read.name == name and _selects(read.matchers, dict(labels))
        ]
        if wanted:
            target = {"cluster": host.cluster, "instance": host.name, "job": "flopwatch"}
            if name.startswith(_WIDE):
                del target["instance"]
            text = ",".join(f'{key}="{text}"' for key, text in (target | dict(labels)).items())
            yield f"{{{text}}}", value, wanted


def _exported(
    samples: Sequence[Sample], name: str
) -> Iterator[tuple[tuple[tuple[str, str], ...], float]]:
    for sample in samples:
        if sample.family.name + sample.suffix == name:
            yield tuple((key, value) for key, value in sample.labels if value), sample.value


def recorded_level(name: str) -> str:
    """The longest prefix of a recorded series' name whose labels are known; KeyError for a new level."""
    known = [prefix for prefix in _RECORDED_LABELS if name.startswith(prefix)]
    if not known:
        raise KeyError(f"{name}: add the labels of its level to _RECORDED_LABELS")
    return max(known, key=len)


def _recorded(
    host: SimulatedHost, samples: Sequence[Sample], name: str
) -> Iterator[tuple[tuple[tuple[str, str], ...], float]]:
    prefix = recorded_level(name)
    wanted = _RECORDED_LABELS[prefix]
    # A family that has these labels: the series' source, if it is exported.
    own = name.split(":")[1]
    if own not in {family.name for family in CATALOGUE}:
        own = {
            "gpu:": "flopwatch_gpu_up",
            "gpu_workload:": "flopwatch_workload_gpu_info",
            "instance:": "flopwatch_build_info",
            "cluster:": "flopwatch_build_info",
        }.get(prefix, "flopwatch_model_info")
    value = _RECORDED_RATIO if "flops_utilization" in name else _RECORDED_VALUE
    if name.endswith(":info"):
        value = 1.0
    found = {
        tuple((key, text) for key, text in sample.labels if key in wanted): value
        for sample in samples
        if sample.family.name == own
    }
    yield from found.items()


def _selects(matchers: Sequence[tuple[str, str, str]], labels: dict[str, str]) -> bool:
    for key, operator, value in matchers:
        if key in {"job", "cluster", "instance"}:
            continue
        has = labels.get(key, "")
        if operator == "=~" and not re.fullmatch(value, has):
            return False
        if (operator == "=" and has != value) or (operator == "!=" and has == value):
            return False
    return True
