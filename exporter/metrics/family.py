"""A metric family: the single declaration that exposition, documentation and tests read.

Each file of this package declares the families of one subject, next to the functions that yield
their samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Required, TypedDict, Unpack

from exporter.readings import DeviceIdentity


class MetricType(StrEnum):
    """The Prometheus types that the catalogue uses."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


DEVICE_LABELS = ("gpu", "uuid")

# Series of a MIG instance have this label in addition to those of their GPU.
MIG_LABEL = "mig"

# A label as it appears in an exposition: name and value.
Label = tuple[str, str]
Labels = tuple[Label, ...]

# The base unit that a name's suffix states.
_UNITS = (
    ("_bytes_per_second", "bytes/s"),
    ("_seconds", "seconds"),
    ("_bytes", "bytes"),
    ("_hertz", "hertz"),
    ("_watts", "watts"),
    ("_joules", "joules"),
    ("_celsius", "celsius"),
    ("_ratio", "ratio"),
    ("_flops", "FLOP/s"),
)


# Each family exists once: it is compared by identity, which is also what makes it a cheap key.
@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric family of the contract.

    `name` is the full name (counters end in `_total`), `labels` are those besides the device's
    own `gpu` and `uuid`, `help` states the source and the quality of the value, and
    `interpretation` what a reader learns from it. `unit` is the base unit for the documentation.
    """

    name: str
    type: MetricType
    unit: str
    help: str
    interpretation: str
    labels: tuple[str, ...] = ()
    per_device: bool = True
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """All label names in the order in which they are exposed."""
        return (*DEVICE_LABELS, *self.labels) if self.per_device else self.labels


class _Facts(TypedDict, total=False):
    """What a declaration says besides type and name; see Family."""

    help: Required[str]
    interpretation: Required[str]
    # By default the base unit that the name states, or none.
    unit: str
    labels: tuple[str, ...]
    # By default the subject's.
    per_device: bool


class Subject:
    """A section of the catalogue: the families of one subject, in the order of their declaration."""

    def __init__(self, title: str, *, per_device: bool = True) -> None:
        """`per_device` applies to the families that do not say otherwise."""
        self.title = title
        self._per_device = per_device
        self._families: list[Family] = []

    @property
    def families(self) -> tuple[Family, ...]:
        """All families of the subject."""
        return tuple(self._families)

    def gauge(self, name: str, **facts: Unpack[_Facts]) -> Family:
        """Declare a gauge."""
        return self._declare(MetricType.GAUGE, name, facts)

    def counter(self, name: str, **facts: Unpack[_Facts]) -> Family:
        """Declare a counter; its name ends in `_total`."""
        return self._declare(MetricType.COUNTER, name, facts)

    def histogram(
        self, name: str, *, buckets: tuple[float, ...], **facts: Unpack[_Facts]
    ) -> Family:
        """Declare a histogram by the upper bounds of its buckets."""
        return self._declare(MetricType.HISTOGRAM, name, facts, buckets)

    def _declare(
        self, type_: MetricType, name: str, facts: _Facts, buckets: tuple[float, ...] = ()
    ) -> Family:
        family = Family(
            name=name,
            type=type_,
            unit=facts.get("unit", _unit_of(name)),
            help=facts["help"],
            interpretation=facts["interpretation"],
            labels=facts.get("labels", ()),
            per_device=facts.get("per_device", self._per_device),
            buckets=buckets,
        )
        self._families.append(family)
        return family


def _unit_of(name: str) -> str:
    base = name.removesuffix("_total")
    return next((unit for suffix, unit in _UNITS if base.endswith(suffix)), "")


class Sample(NamedTuple):
    """One sample on its way to the exposition: a family, all of its labels, a value.

    `suffix` is empty except for the parts of a histogram (`_bucket`, `_sum`, `_count`).
    """

    family: Family
    labels: Labels
    value: float
    suffix: str = ""


def device_labels(identity: DeviceIdentity) -> Labels:
    """The labels of every series of a device."""
    labels = (("gpu", identity.index), ("uuid", identity.uuid))
    return labels if identity.mig is None else (*labels, (MIG_LABEL, identity.mig))


def optional(family: Family, labels: Labels, value: float | None) -> Iterator[Sample]:
    """One sample, or none when the value is not known."""
    if value is not None:
        yield Sample(family, labels, float(value))


def by_label(
    family: Family, labels: Labels, name: str, values: Mapping[str, float]
) -> Iterator[Sample]:
    """One sample for each entry of a mapping from label value to value."""
    for label_value, value in values.items():
        yield Sample(family, (*labels, (name, label_value)), float(value))
