"""How the samples of a family are read: declared once, as rows of family and accessor.

A scrape has the series of the scrape before, with other values. So reading is split in two: the
values, read for every scrape, and the series that they belong to, rebuilt only when the shape has
changed (a value is missing, a label value is new). `Rows` does that for what changes every tick;
`Samples` takes a plain generator for values that seldom do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from exporter.accounting.device import HistogramValue
from exporter.metrics.family import Family, Label, Labels, Sample


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Series(NamedTuple):
    """One series: its family, all of its labels, and `_bucket`, `_sum` or `_count` of a histogram."""

    family: Family
    labels: Labels
    suffix: str = ""


class Reader(ABC, Generic[T]):
    """Reads the samples of one kind of source. Readers are constants and compared by identity."""

    @abstractmethod
    def read(self, labels: Labels, source: T) -> tuple[Hashable, list[float]]:
        """The shape of the source's series, and their values in the order of `series`.

        Values may be integers or booleans: the writer converts them to floats.
        """

    @abstractmethod
    def series(self, labels: Labels, shape: Any) -> list[Series]:
        """The series of a shape. Equal shapes have the same series."""

    @abstractmethod
    def same(self, before: T, now: T) -> bool:
        """Whether `now` certainly has the samples of `before`. Cheap."""


# What is to be exported: a reader, the labels that all of its series have, and what it reads.
Part = tuple[Reader[Any], Labels, Any]


def part_samples(parts: Iterable[Part]) -> Iterator[Sample]:
    """All samples of the parts, one by one, for uses other than an exposition."""
    for reader, labels, source in parts:
        shape, values = reader.read(labels, source)
        for series, value in zip(reader.series(labels, shape), values, strict=True):
            yield Sample(series.family, series.labels, float(value), series.suffix)


class Samples(Reader[T]):
    """A generator of samples, asked again when its source (or that of `key`) is not equal."""

    def __init__(
        self,
        generate: Callable[[T], Iterable[Sample]],
        *,
        key: Callable[[T], object] | None = None,
    ) -> None:
        """`key` gives the part of the source on which the samples depend."""
        self._generate = generate
        self._key = key

    def of(self, source: T) -> Part:
        """The part that this source is."""
        return (self, (), source)

    def read(self, labels: Labels, source: T) -> tuple[Hashable, list[float]]:
        """The samples, taken apart."""
        samples = list(self._generate(source))
        shape = tuple(Series(family, labels, suffix) for family, labels, _, suffix in samples)
        return shape, [sample.value for sample in samples]

    def series(self, labels: Labels, shape: tuple[Series, ...]) -> list[Series]:
        """The shape is the series themselves."""
        return list(shape)

    def same(self, before: T, now: T) -> bool:
        """Whether the sources are equal."""
        if self._key is None:
            return before is now or before == now
        return self._key(before) == self._key(now)


class Row(ABC, Generic[T]):
    """Reads the samples of one family, and says which series they are."""

    @abstractmethod
    def read(self, source: T, values: list[float]) -> Hashable:
        """Append the values, and return their shape."""

    @abstractmethod
    def series(self, labels: Labels, shape: Any) -> Iterator[Series]:
        """The series of a shape."""


class Value(Row[T]):
    """One series, with fixed labels beside the source's own; absent where the accessor gives None."""

    def __init__(self, family: Family, read: Callable[[T], float | None], **labels: str) -> None:
        self.accessor = read
        self._family = family
        self._labels = tuple(labels.items())

    def read(self, source: T, values: list[float]) -> Hashable:
        """Whether there is a value."""
        value = self.accessor(source)
        if value is None:
            return False
        values.append(value)
        return True

    def series(self, labels: Labels, shape: bool) -> Iterator[Series]:
        """One or none."""
        if shape:
            yield Series(self._family, (*labels, *self._labels))


class ByKey(Row[T], Generic[T, K]):
    """A series for each key of a mapping, with the labels that `labels_of` makes of the key."""

    def __init__(
        self,
        family: Family,
        labels_of: Callable[[K], Labels],
        read: Callable[[T], Mapping[K, float]],
    ) -> None:
        self._family = family
        self._labels_of = labels_of
        self._read = read

    def read(self, source: T, values: list[float]) -> Hashable:
        """The keys."""
        mapping = self._read(source)
        values += mapping.values()
        return tuple(mapping)

    def series(self, labels: Labels, shape: tuple[K, ...]) -> Iterator[Series]:
        """One for each key."""
        for key in shape:
            yield Series(self._family, (*labels, *self._labels_of(key)))


class ByLabel(ByKey[T, Any]):
    """A series for each key of a mapping, which is the value of the label."""

    def __init__(
        self, family: Family, label: str, read: Callable[[T], Mapping[Any, float]]
    ) -> None:
        super().__init__(family, lambda key: ((label, str(key)),), read)


class Info(Row[T]):
    """One series that is always 1 and carries information in its labels; absent if they are None."""

    def __init__(self, family: Family, read: Callable[[T], tuple[Label, ...] | None]) -> None:
        self._family = family
        self._read = read

    def read(self, source: T, values: list[float]) -> Hashable:
        """The labels."""
        said = self._read(source)
        if said is not None:
            values.append(1.0)
        return said

    def series(self, labels: Labels, shape: Labels | None) -> Iterator[Series]:
        """One or none."""
        if shape is not None:
            yield Series(self._family, (*labels, *shape))


class HistogramRow(Row[T]):
    """Buckets, sum and count of histograms: one for each value of the label, or one without."""

    def __init__(
        self,
        family: Family,
        read: Callable[[T], Mapping[str, HistogramValue]],
        label: str | None = None,
    ) -> None:
        self._family = family
        self._label = label
        self._read = read

    def read(self, source: T, values: list[float]) -> Hashable:
        """Label values and bounds."""
        histograms = self._read(source)
        for histogram in histograms.values():
            values += accumulate(histogram.counts)
            values += (histogram.total, values[-1])
        return tuple((name, histogram.bounds) for name, histogram in histograms.items())

    def series(
        self, labels: Labels, shape: tuple[tuple[str, tuple[float, ...]], ...]
    ) -> Iterator[Series]:
        """All parts of all histograms."""
        for name, bounds in shape:
            own = labels if self._label is None else (*labels, (self._label, name))
            for bound in (*map(repr, map(float, bounds)), "+Inf"):
                yield Series(self._family, (*own, ("le", bound)), "_bucket")
            yield Series(self._family, own, "_sum")
            yield Series(self._family, own, "_count")


class Rows(Reader[T]):
    """The rows of one kind of source, whose values change with every source."""

    def __init__(self, *rows: Row[T]) -> None:
        # Values are by far the most frequent: they are read together.
        self._accessors = [row.accessor for row in rows if isinstance(row, Value)]
        self._singles = [row for row in rows if isinstance(row, Value)]
        self._others = [row for row in rows if not isinstance(row, Value)]

    def of(self, labels: Labels, source: T) -> Part:
        """The part that this source is, under these labels."""
        return (self, labels, source)

    def read(self, labels: Labels, source: T) -> tuple[Hashable, list[float]]:
        """The values of the source and their shape."""
        values: list[float] = []
        return self.read_into(source, values), values

    def read_into(self, source: T, values: list[float]) -> Hashable:
        """Append the values, and return which exist and the shapes of the other rows."""
        singles = [read(source) for read in self._accessors]
        known = [value for value in singles if value is not None]
        values += known
        present: Hashable = None  # all of them, as nearly always
        if len(known) < len(singles):
            present = tuple([value is not None for value in singles])
        if not self._others:
            return present
        return (present, *[row.read(source, values) for row in self._others])

    def series(self, labels: Labels, shape: Any) -> list[Series]:
        """The series of all rows."""
        present = shape[0] if self._others else shape
        there = [True] * len(self._singles) if present is None else present
        found = [
            series
            for row, is_there in zip(self._singles, there, strict=True)
            for series in row.series(labels, is_there)
        ]
        for row, its_shape in zip(self._others, shape[1:] if self._others else (), strict=True):
            found += row.series(labels, its_shape)
        return found

    def same(self, before: T, now: T) -> bool:
        """Whether it is the same object: sources are frozen."""
        return before is now


_NO_SOURCE = "no source"


class Joined(Reader[T]):
    """Rows that read different parts of one source which all change every tick, as one: that is cheaper."""

    def __init__(self, *joined: tuple[Callable[[T], Any], Rows[Any]]) -> None:
        """Each with the part that it reads, None where there is none."""
        self._joined = joined

    def of(self, labels: Labels, source: T) -> Part:
        """The part that this source is, under these labels."""
        return (self, labels, source)

    def read(self, labels: Labels, source: T) -> tuple[Hashable, list[float]]:
        """The values of all rows, and their shapes."""
        values: list[float] = []
        shapes: list[Hashable] = []
        for part_of, rows in self._joined:
            part = part_of(source)
            shapes.append(_NO_SOURCE if part is None else rows.read_into(part, values))
        return tuple(shapes), values

    def series(self, labels: Labels, shape: tuple[Any, ...]) -> list[Series]:
        """The series of all rows."""
        return [
            series
            for (_, rows), its_shape in zip(self._joined, shape, strict=True)
            if its_shape is not _NO_SOURCE
            for series in rows.series(labels, its_shape)
        ]

    def same(self, before: T, now: T) -> bool:
        """Whether it is the same object: sources are frozen."""
        return before is now
