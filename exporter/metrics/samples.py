"""Small helpers that turn values into samples, leaving out what is not known."""

from collections.abc import Iterable, Iterator, Mapping

from exporter.metrics.family import MIG_LABEL, Family, Label, Sample
from exporter.readings import DeviceIdentity


Labels = tuple[Label, ...]


def device_labels(identity: DeviceIdentity) -> Labels:
    """The labels of every series of a device."""
    labels = (("gpu", identity.index), ("uuid", identity.uuid))
    return labels if identity.mig is None else (*labels, (MIG_LABEL, identity.mig))


def optional(family: Family, labels: Labels, value: float | None) -> Iterator[Sample]:
    """One sample, or none when the value is not known."""
    if value is not None:
        yield Sample(family, labels, float(value))


def each_known(labels: Labels, values: Iterable[tuple[Family, float | None]]) -> Iterator[Sample]:
    """One sample for each family whose value is known."""
    for family, value in values:
        if value is not None:
            yield Sample(family, labels, float(value))


def by_label(
    family: Family, labels: Labels, name: str, values: Mapping[str, float]
) -> Iterator[Sample]:
    """One sample for each entry of a mapping from label value to value."""
    for label_value, value in values.items():
        yield Sample(family, (*labels, (name, label_value)), float(value))
