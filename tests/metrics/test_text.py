"""Our own writer of the exposition formats, held against prometheus_client's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as ClientSample

from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Family, MetricType, Sample
from exporter.metrics.text import Format, LineWriter, header, write_line


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


def ours(writer: LineWriter, samples: list[Sample], format_: Format) -> bytes:
    written = writer.write(samples, limit=len(samples))
    return "".join(
        header(family, format_) + "".join(lines) for family, lines in written.lines.items()
    ).encode()


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
    """Scrapes of the same few series, in which some values change."""
    families = draw(st.lists(FAMILIES, min_size=1, max_size=3))
    suffixes = st.sampled_from(["_bucket", "_sum", "_count"])
    series = [
        (family, draw(LABELS), draw(suffixes) if family.type is MetricType.HISTOGRAM else "")
        for family in families
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [
        [Sample(family, labels, draw(VALUES), suffix) for family, labels, suffix in series]
        for _ in range(draw(st.integers(1, 3)))
    ]


@pytest.mark.parametrize("format_", Format)
@given(scrapes=scrapes())
def test_every_byte_is_what_prometheus_client_writes(format_, scrapes) -> None:
    """Any labels, help and values, in both formats, also when lines of an earlier scrape are kept."""
    writer = LineWriter()
    for samples in scrapes:
        assert ours(writer, samples, format_) == reference(samples, format_)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (999999.5, "999999.5"),
        (1e6, "1e+06"),
        (1.98e9, "1.98e+09"),
        (1e22, "1e+22"),
        (5e-324, "5e-324"),
        (-1e16, "-1e+16"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_written_as_go_would(value: float, text: str) -> None:
    """Exponents from a million on, and the three names of what is no number."""
    assert write_line(Sample(CATALOGUE[0], (), value)).endswith(f" {text}\n")


def test_points_beyond_the_limit_are_counted_and_left_out() -> None:
    """The first ones stay, and those that may never be dropped."""
    first, health = CATALOGUE[0], CATALOGUE[-1]
    samples = [Sample(first, (("gpu", str(gpu)),), 1.0) for gpu in range(5)]
    samples.append(Sample(health, (), 1.0))

    written = LineWriter().write(samples, limit=3, always={health})

    assert (written.count, written.dropped) == (4, 2)
    assert len(written.lines[first]) == 3
    assert len(written.lines[health]) == 1


def test_lines_of_series_that_are_gone_are_forgotten() -> None:
    """A process that comes and goes a million times leaves nothing behind."""
    writer = LineWriter()
    family = CATALOGUE[0]
    for pid in range(10_000):
        writer.write([Sample(family, (("pid", str(pid)),), 1.0)], limit=1)

    assert sum(map(len, writer._lines.values())) < 2000
