"""The configuration of a GPU: its headline precision and its peaks. Pure functions."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from exporter.accounting.peaks import PeakOverride, Peaks
from exporter.collect.settings import GpuRule
from exporter.readings import DeviceIdentity


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
