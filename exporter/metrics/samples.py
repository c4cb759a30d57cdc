"""Small helpers that turn values into samples, leaving out what is not known."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from operator import is_

from exporter.accounting.counters import HistogramValue
from exporter.metrics.family import Family, Label, Sample
from exporter.readings import DeviceIdentity


Labels = tuple[Label, ...]

# Label sets that are made once and not once a scrape: some 20 of each GPU or MIG instance, and
# enough for 16 GPUs with 7 instances each.
_KEPT = 2048
_keepers: list[Callable[[], None]] = []


def forget_labels() -> None:
    """Let go of what is kept: devices that are gone stay gone, the others' is made once more.

    Without it, a host whose MIG instances are made anew for months would fill all that is allowed.
    """
    for forget in _keepers:
        forget()


def device_labels(identity: DeviceIdentity) -> Labels:
    """The labels that every series of a device carries."""
    return _device_labels(identity.index, identity.uuid, identity.mig)


@lru_cache(_KEPT)
def _device_labels(index: str, uuid: str, mig: str | None) -> Labels:
    labels = (("gpu", index), ("uuid", uuid))
    return labels if mig is None else (*labels, ("mig", mig))


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
    if values:
        for all_labels, value in zip(_each(labels, name, *values), values.values(), strict=True):
            yield Sample(family, all_labels, float(value))


def histogram(family: Family, labels: Labels, value: HistogramValue | None) -> Iterator[Sample]:
    """Buckets, sum and count of a histogram."""
    if value is None:
        return
    cumulative = 0
    for bucket_labels, count in zip(_buckets(labels, value.bounds), value.counts, strict=True):
        cumulative += count
        yield Sample(family, bucket_labels, float(cumulative), "_bucket")
    yield Sample(family, labels, value.total, "_sum")
    yield Sample(family, labels, float(cumulative), "_count")


def kept(make: Callable[..., Iterator[Sample]]) -> Callable[..., Iterable[Sample]]:
    """Make samples anew only when one of the values that they show is another object.

    For what is read seldom: `make` takes the labels, and then immutable values.
    """
    made: dict[Labels, tuple[tuple[object, ...], tuple[Sample, ...]]] = {}
    _keepers.append(made.clear)

    @wraps(make)
    def samples(labels: Labels, *values: object) -> Iterable[Sample]:
        entry = made.get(labels)
        if entry is None or not all(map(is_, entry[0], values)):
            if len(made) >= _KEPT:
                made.clear()
            entry = made[labels] = (values, tuple(make(labels, *values)))
        return entry[1]

    return samples


@lru_cache(_KEPT)
def _each(labels: Labels, name: str, *label_values: str) -> tuple[Labels, ...]:
    return tuple((*labels, (name, label_value)) for label_value in label_values)


@lru_cache(_KEPT)
def _buckets(labels: Labels, bounds: tuple[float, ...]) -> tuple[Labels, ...]:
    return _each(labels, "le", *(repr(float(bound)) for bound in bounds), "+Inf")


_keepers += [cached.cache_clear for cached in (_device_labels, _each, _buckets)]
