"""What a metric family is: the one declaration that exposition, documentation and tests read."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class MetricType(StrEnum):
    """The Prometheus types that the catalogue uses."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


DEVICE_LABELS = ("gpu", "uuid")

# Series of a MIG instance carry this label beside those of their GPU.
MIG_LABEL = "mig"

# A label as it stands in an exposition: name and value.
Label = tuple[str, str]


# Each family exists once: it is compared by identity, which is also what makes it a cheap key.
@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric family of the contract.

    `name` is the full name (counters end in `_total`), `labels` are those beside the device's
    own `gpu` and `uuid`, `help` says the source and how good the value is, and `interpretation` what a
    person learns from it. `unit` is the base unit, as the documentation prints it.
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


class Sample(NamedTuple):
    """One sample on its way to the exposition: a family, all of its labels, a value.

    `suffix` is empty but for the parts of a histogram (`_bucket`, `_sum`, `_count`).
    """

    family: Family
    labels: tuple[Label, ...]
    value: float
    suffix: str = ""
