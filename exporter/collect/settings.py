"""The configuration of sampling: intervals, sources, and what is known about the GPUs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from exporter.accounting.flop import PRECISIONS
from exporter.accounting.peaks import PeakOverride, Peaks
from exporter.readings import DeviceIdentity
from flopwatch.option_parsers import (
    choice,
    duration,
    http_url,
    integer,
    mapping,
    number,
    optional,
    text,
)
from flopwatch.options import Option, option, option_group, option_list


def _mode(source: str, text: str) -> Option:
    return Option(
        f"sources.{source}", choice("auto", "on", "off"), "auto", text, "auto", reload=False
    )


@dataclass(frozen=True, slots=True)
class GpuRule:
    """One entry of `gpus`: a device fits when all given patterns do.

    `peaks` is dense FLOP/s by precision, `dram_bandwidth` bytes/s; with `sm_count` they override
    the table and the driver.
    """

    uuid: str | None = option("match.uuid", optional(text()), None, "Device UUID (glob).", "GPU-*")
    index: int | None = option(
        "match.index", optional(integer(at_least=0, at_most=10_000)), None, "NVML index.", "0"
    )
    name: str | None = option(
        "match.name", optional(text()), None, "Product name (glob).", '"NVIDIA H100*"'
    )
    precision: str | None = option(
        "precision",
        choice(*PRECISIONS),
        None,
        "Precision at which the tensor pipe's work is valued.",
        "fp8",
    )
    sm_count: int | None = option(
        "sm_count",
        optional(integer(at_least=1, at_most=1024)),
        None,
        "Number of SMs, instead of the driver's figure.",
        "152",
    )
    peaks: Mapping[str, float] = option(
        "peaks",
        mapping(PRECISIONS, number(above=0, at_most=1e20)),
        {},
        "Dense peak in FLOP/s by precision, instead of the built-in table's.",
        "{bf16: 2.5e15, fp8: 5e15}",
    )
    dram_bandwidth: float | None = option(
        "dram_bandwidth",
        optional(number(above=0, at_most=1e15)),
        None,
        "Device memory bandwidth in bytes per second, instead of the built-in table's.",
        "8e12",
    )


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Intervals in seconds. `deadline` is how long a driver call may take before it counts as hung.

    `modes` is auto, on or off for each source. The first of `gpus` that fits a device applies.
    """

    interval: float = option(
        "sampling.interval", duration(at_least=0.1, at_most=60), 1.0, "Time between ticks.", "1s"
    )
    slow_interval: float = option(
        "sampling.slow_interval",
        duration(at_least=1, at_most=3600),
        15.0,
        "Time between readings of ECC, links, limits and processes.",
        "15s",
    )
    deadline: float = option(
        "sampling.deadline",
        duration(at_least=0.5, at_most=60),
        2.0,
        "A driver call that takes longer counts as hung: its device is down, and no counter includes that time.",
        "2s",
    )
    modes: Mapping[str, str] = option_group(
        _mode("nvml", "The NVIDIA driver's management library."),
        _mode("gpm", "NVML's performance monitoring, on Hopper and newer."),
        _mode("dcgm", "A dcgm-exporter on this host, for GPUs without GPM."),
        _mode("cpu", "The host processor; auto: where there is no GPU."),
        _mode(
            "perf",
            "The processor's own count of floating-point operations, where the kernel exposes it.",
        ),
    )
    dcgm_url: str = option(
        "dcgm.url",
        http_url(),
        "http://127.0.0.1:9400/metrics",
        "Address of its metrics.",
        "http://127.0.0.1:9400/metrics",
    )
    gpus: tuple[GpuRule, ...] = option_list(
        "gpus",
        GpuRule,
        "Properties of the GPUs of this host. The first match applies.",
        "One rule. A GPU must fit all given patterns; without any, all GPUs fit.",
        '[{match: {name: "NVIDIA H100*"}, precision: fp8}]',
    )

    @property
    def max_window(self) -> float:
        """The longest span that counts as watched: a missed tick is, a hung call is not."""
        return 2 * self.interval + self.deadline

    @property
    def max_age(self) -> float:
        """How long a tick's values are shown when no newer tick follows."""
        return self.max_window


class Headline(NamedTuple):
    """The headline precision and its origin: `config`, `engine` or `default`.

    `refused` is a precision that was asked for and that the device has no unit for.
    """

    precision: str | None
    origin: str
    refused: str | None = None


def headline_precision(
    rules: Iterable[GpuRule], engine: str | None, identity: DeviceIdentity, peaks: Peaks
) -> Headline:
    """The configuration's precision, else that of the joined engine, else the device's default.

    `engine` is the precision that an inference engine serves in on this device, if any does.
    """
    configured = next((rule.precision for rule in rules if matches(rule, identity)), None)
    refused = None
    for precision, origin in ((configured, "config"), (engine, "engine")):
        if precision is None:
            continue
        if precision in peaks.tensor_rate:
            return Headline(precision, origin, refused)
        refused = refused or precision
    return Headline(peaks.default_precision, "default", refused)


def peak_override(rules: Iterable[GpuRule], identity: DeviceIdentity) -> PeakOverride | None:
    """The configured peaks of the device; None if there are none."""
    rule = next((rule for rule in rules if matches(rule, identity)), None)
    if rule is None:
        return None
    override = PeakOverride(rule.peaks, rule.sm_count, rule.dram_bandwidth)
    return override or None


class MatchRule(Protocol):
    """Patterns of a rule of the configuration; None fits every device."""

    @property
    def uuid(self) -> str | None:
        """Glob of the UUID."""

    @property
    def index(self) -> int | None:
        """NVML index."""

    @property
    def name(self) -> str | None:
        """Glob of the product name."""


def matches(rule: MatchRule, identity: DeviceIdentity) -> bool:
    """Whether all patterns of the rule fit the device."""
    return (
        (rule.uuid is None or fnmatchcase(identity.uuid, rule.uuid))
        and (rule.index is None or identity.index == str(rule.index))
        and (rule.name is None or fnmatchcase(identity.name, rule.name))
    )
