"""Small helpers that turn values into points, leaving out what is not known."""

from collections.abc import Iterator, Mapping

from exporter.accounting.counters import HistogramValue
from exporter.metrics.family import Family, Label, Point
from exporter.readings import DeviceIdentity


Labels = tuple[Label, ...]


def device_labels(identity: DeviceIdentity) -> Labels:
    """The labels that every series of a device carries."""
    labels = (("gpu", identity.index), ("uuid", identity.uuid))
    return labels if identity.mig is None else (*labels, ("mig", identity.mig))


def optional(family: Family, labels: Labels, value: float | None) -> Iterator[Point]:
    """One point, or none when the value is not known."""
    if value is not None:
        yield Point(family, labels, float(value))


def by_label(
    family: Family, labels: Labels, name: str, values: Mapping[str, float]
) -> Iterator[Point]:
    """One point for each entry of a mapping from label value to value."""
    for label_value, value in values.items():
        yield Point(family, (*labels, (name, label_value)), float(value))


def histogram(family: Family, labels: Labels, value: HistogramValue | None) -> Iterator[Point]:
    """Buckets, sum and count of a histogram."""
    if value is None:
        return
    cumulative = 0
    for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
        cumulative += count
        text = "+Inf" if bound == float("inf") else repr(float(bound))
        yield Point(family, (*labels, ("le", text)), float(cumulative), "_bucket")
    yield Point(family, labels, value.total, "_sum")
    yield Point(family, labels, float(cumulative), "_count")
