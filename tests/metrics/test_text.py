"""Our writer of the exposition formats, compared with prometheus_client's."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as ClientSample

from exporter.metrics.family import Family, MetricType, Sample
from exporter.metrics.holders import HolderLabels
from exporter.metrics.layout import Blocks, Format, Layout, number_texts
from exporter.metrics.rows import Samples


class Reference(Collector):
    """The same samples as prometheus_client's own families."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self):
        families = dict.fromkeys(sample.family for sample in self._samples)
        for family in families:
            name = family.name
            if family.type is MetricType.COUNTER:
                name = name.removesuffix("_total")
            metric = Metric(name, family.help, family.type)
            metric.samples = [
                ClientSample(family.name + sample.suffix, dict(sample.labels), sample.value)
                for sample in self._samples
                if sample.family is family
            ]
            yield metric


def reference(samples: list[Sample], format_: Format) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reference(samples))
    generate = generate_openmetrics if format_ is Format.OPENMETRICS else generate_latest
    return generate(registry).removesuffix(b"# EOF\n")


PASS_THROUGH: Samples[list[Sample]] = Samples(iter)


class Writer:
    """Writes scrapes of samples, given in two parts, as the daemon writes the samples of a State."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.layout: Layout | None = None
        self.layouts = 0

    def write(self, samples: list[Sample], format_: Format) -> bytes:
        half = len(samples) // 2
        parts = [PASS_THROUGH.of(samples[:half]), PASS_THROUGH.of(samples[half:])]
        if not self.blocks.update(parts, HolderLabels()) or self.layout is None:
            families: Iterable[Family] = dict.fromkeys(sample.family for sample in samples)
            self.layout = Layout(self.blocks.blocks, families, limit=len(samples), always=())
            self.layouts += 1
        self.layout.update(self.blocks.take_changed())
        return self.layout.write(format_)


# No sum of non-negative readings is -0.0, and Prometheus knows one zero only.
VALUES = st.floats().map(lambda value: value + 0.0)
NAMES = st.sampled_from(["gpu", "uuid", "mig", "reason", "le", "a", "z"])
LABELS = st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=12)).map(
    lambda labels: tuple(labels.items())
)
HELPS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)
FAMILIES = st.builds(
    lambda type_, text: Family(
        name="flopwatch_x_total" if type_ is MetricType.COUNTER else "flopwatch_x",
        type=type_,
        unit="",
        help=text,
        interpretation="",
    ),
    st.sampled_from(MetricType),
    HELPS,
)


@st.composite
def scrapes(draw) -> list[list[Sample]]:
    """Scrapes of the same few series, in which values change, and series come and go."""
    families = draw(st.lists(FAMILIES, min_size=1, max_size=3))
    suffixes = st.sampled_from(["_bucket", "_sum", "_count"])
    series = [
        (family, draw(LABELS), draw(suffixes) if family.type is MetricType.HISTOGRAM else "")
        for family in families
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [
        [
            Sample(family, labels, draw(VALUES), suffix)
            for family, labels, suffix in series
            if not number or draw(st.integers(0, 9))
        ]
        for number in range(draw(st.integers(1, 4)))
    ]


@pytest.mark.parametrize("format_", Format)
@given(scrapes=scrapes())
def test_every_byte_but_the_digits_is_what_prometheus_client_writes(format_, scrapes) -> None:
    """Any labels, help and values, in both formats, also when text of an earlier scrape is kept.

    Every number is read as the same value: prometheus_client writes large ones with an exponent.
    """
    writer = Writer()
    for samples in scrapes:
        written, wanted = writer.write(samples, format_), reference(samples, format_)
        assert with_values(written) == with_values(wanted)


def with_values(exposition: bytes) -> list[bytes]:
    """The lines, with each number as Python reads and writes it."""
    lines = []
    for line in exposition.split(b"\n"):
        before, _, number = line.rpartition(b" ")
        is_sample = line and not line.startswith(b"#")
        lines.append(b"%s %r" % (before, float(number)) if is_sample else line)
    return lines


def test_a_layout_is_kept_while_the_series_are_the_same() -> None:
    """Other values need no other layout; a series that vanishes does."""
    family = Family("flopwatch_x", MetricType.GAUGE, "", "X.", "")
    one, two = (("gpu", "0"),), (("gpu", "1"),)
    writer = Writer()

    writer.write([Sample(family, one, 1.0), Sample(family, two, 2.0)], Format.TEXT)
    writer.write([Sample(family, one, 3.0), Sample(family, two, 2.0)], Format.TEXT)
    assert writer.layouts == 1

    body = writer.write([Sample(family, two, 2.0)], Format.TEXT)
    assert writer.layouts == 2
    assert body.endswith(b'gauge\nflopwatch_x{gpu="1"} 2.0\n')


NUMBERS = [
    (0.0, b"0.0"),
    (1.0, b"1.0"),
    (True, b"1.0"),
    (999999.5, b"999999.5"),
    (1234567.25, b"1234567.25"),
    (1.98e9, b"1980000000.0"),
    (9007199254740993.0, b"9007199254740992.0"),
    (1e22, b"1e22"),
    (0.00001, b"0.00001"),
    (5e-324, b"5e-324"),
    (-1e16, b"-1e16"),
    (math.inf, b"+Inf"),
    (-math.inf, b"-Inf"),
    (math.nan, b"NaN"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_numbers_have_the_fewest_digits_that_keep_their_value(value: float, text: bytes) -> None:
    """Both formats allow an exponent; infinities and NaN have the names that Prometheus reads."""
    assert number_texts([value]) == [text]
    assert number_texts([2.5, value]) == [b"2.5", text]
