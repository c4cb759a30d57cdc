"""Rows and layout: which series exist, and what is kept from one scrape to the next."""

from dataclasses import dataclass, field

from exporter.accounting.device import Histogram
from exporter.metrics.catalogue import CATALOGUE
from exporter.metrics.family import Family, MetricType, Sample
from exporter.metrics.holders import HolderLabels
from exporter.metrics.layout import Blocks, Format, Layout
from exporter.metrics.rows import (
    ByKey,
    ByLabel,
    HistogramRow,
    Info,
    Rows,
    Samples,
    Value,
    part_samples,
)


def family(name: str, type_: MetricType = MetricType.GAUGE, **facts) -> Family:
    return Family(f"flopwatch_{name}", type_, "", f"{name}.", "", **facts)


POWER, CLOCK, TIME, WORK, MODE = map(family, ("power", "clock", "time", "work", "mode"))
DURATION = family("duration", MetricType.HISTOGRAM)
GPU = (("gpu", "0"), ("uuid", "GPU-a"))


@dataclass(frozen=True)
class Reading:
    """A device's reading."""

    power: float | None = 1
    clock: float | None = 2.0
    times: dict[str, float] = field(default_factory=dict)
    work: dict[tuple[str, str], float] = field(default_factory=dict)
    mode: str | None = None
    durations: Histogram | None = None


ROWS = Rows[Reading](
    Value(POWER, lambda reading: reading.power),
    Value(CLOCK, lambda reading: reading.clock, kind="sm"),
    ByLabel(TIME, "state", lambda reading: reading.times),
    ByKey(
        WORK, lambda key: (("pipe", key[0]), ("precision", key[1])), lambda reading: reading.work
    ),
    Info(MODE, lambda reading: None if reading.mode is None else (("mode", reading.mode),)),
    HistogramRow(
        DURATION,
        lambda reading: {} if reading.durations is None else {"": reading.durations.value()},
    ),
)


def samples_of(reading: Reading) -> list[Sample]:
    return list(part_samples([ROWS.of(GPU, reading)]))


class TestRows:
    def test_a_value_that_is_not_known_is_absent(self) -> None:
        """None is no sample; integers become floats; fixed labels follow the device's own."""
        assert samples_of(Reading(power=None)) == [Sample(CLOCK, (*GPU, ("kind", "sm")), 2.0)]
        assert samples_of(Reading(clock=None)) == [Sample(POWER, GPU, 1.0)]

    def test_a_mapping_is_a_series_for_each_key(self) -> None:
        """By the key itself, or by the labels that belong to it."""
        reading = Reading(None, None, {"idle": 3.0}, {("tensor", "bf16"): 4.0})

        assert samples_of(reading) == [
            Sample(TIME, (*GPU, ("state", "idle")), 3.0),
            Sample(WORK, (*GPU, ("pipe", "tensor"), ("precision", "bf16")), 4.0),
        ]

    def test_an_info_metric_is_one_with_labels(self) -> None:
        """And is absent when there is no value."""
        assert samples_of(Reading(None, None, mode="default")) == [
            Sample(MODE, (*GPU, ("mode", "default")), 1.0)
        ]

    def test_buckets_of_a_histogram_are_cumulative(self) -> None:
        """Of 1, 3 and 9 at bounds 2 and 4: one, two, and all three; their sum is 13."""
        histogram = Histogram((2.0, 4.0))
        for value in (1.0, 3.0, 9.0):
            histogram.observe(value)

        assert [
            (sample.suffix, sample.labels[2:], sample.value)
            for sample in samples_of(Reading(None, None, durations=histogram))
        ] == [
            ("_bucket", (("le", "2.0"),), 1.0),
            ("_bucket", (("le", "4.0"),), 2.0),
            ("_bucket", (("le", "+Inf"),), 3.0),
            ("_sum", (), 13.0),
            ("_count", (), 3.0),
        ]


class TestLayout:
    def test_the_limit_drops_the_last_series_but_never_those_of_the_exporter(self) -> None:
        """Of five and one that must stay, three and that one stay; two are counted as dropped."""
        first, health = CATALOGUE[0], CATALOGUE[-1]
        samples = [Sample(first, (("gpu", str(gpu)),), 1.0) for gpu in range(5)]
        blocks = Blocks()
        blocks.update([Samples(iter).of([*samples, Sample(health, (), 1.0)])], HolderLabels())

        layout = Layout(blocks.blocks, CATALOGUE, limit=3, always={health})

        assert (layout.count, layout.dropped) == (4, 2)
        text = layout.write(Format.TEXT).decode()
        assert text.count(f"\n{first.name}{{") == 3
        assert text.endswith(f"\n{health.name} 1.0\n")

    def test_unchanged_samples_are_not_read_again(self) -> None:
        """Samples of a source that is equal to the one before, by what they depend on."""
        asked: list[int] = []

        def generate(source: tuple[int, int]) -> list[Sample]:
            asked.append(source[0])
            return [Sample(POWER, (), float(source[0]))]

        reader = Samples(generate, key=lambda source: source[0])
        blocks = Blocks()
        for source in ((1, 1), (1, 2), (2, 3)):
            blocks.update([reader.of(source)], HolderLabels())

        assert asked == [1, 2]

    def test_parts_that_are_gone_leave_nothing(self) -> None:
        """A thousand devices, one after the other, reuse one block."""
        blocks = Blocks()
        for number in range(1000):
            labels = (("gpu", "0"), ("uuid", f"MIG-{number}"))
            assert not blocks.update([ROWS.of(labels, Reading())], HolderLabels())

        assert len(blocks.blocks) == 1
        assert 'uuid="MIG-999"' in blocks.blocks[0].texts[0]

    def test_a_device_between_others_may_vanish(self) -> None:
        """The others keep their values under their own labels."""
        names = ("GPU-a", "GPU-b", "GPU-c")
        readings = {name: Reading(power=float(number)) for number, name in enumerate(names)}
        blocks = Blocks()
        for present in (names, ("GPU-a", "GPU-c")):
            blocks.update(
                [ROWS.of((("uuid", name),), readings[name]) for name in present], HolderLabels()
            )

        layout = Layout(blocks.blocks, (POWER,), limit=9, always=())

        assert layout.write(Format.TEXT).decode().splitlines()[2:] == [
            'flopwatch_power{uuid="GPU-a"} 0.0',
            'flopwatch_power{uuid="GPU-c"} 2.0',
        ]

    def test_only_values_that_move_are_written_again(self) -> None:
        """One of two devices' values changes: both get a slot for it, all others are fixed text."""
        blocks, layout = Blocks(), None
        names = ("GPU-a", "GPU-b")

        def scrape(power: float, clock: float) -> list[str]:
            nonlocal layout
            parts = [ROWS.of((("uuid", name),), Reading(power, clock)) for name in names]
            if not blocks.update(parts, HolderLabels()) or layout is None:
                layout = Layout(blocks.blocks, (POWER, CLOCK), limit=9, always=())
            layout.update(blocks.take_changed())
            lines = layout.write(Format.TEXT).decode().splitlines()
            return [line for line in lines if "GPU-a" in line]

        for power in (100.0, 200.0, 300.0):
            assert scrape(power, 2.0)[0] == f'flopwatch_power{{uuid="GPU-a"}} {power}'
        assert [block.moving for block in blocks.blocks] == [{0}, {0}]
        assert scrape(300.0, 1.0)[1] == 'flopwatch_clock{kind="sm",uuid="GPU-a"} 1.0'
        assert [block.moving for block in blocks.blocks] == [{0, 1}, {0, 1}]

    def test_a_part_that_changes_and_disappears_writes_nothing(self) -> None:
        """Its value would appear in the slot of another."""
        blocks = Blocks()
        one, two = (("uuid", "GPU-a"),), (("uuid", "GPU-b"),)

        def parts(*powers: float) -> list[tuple]:
            return [
                ROWS.of(labels, Reading(power))
                for labels, power in zip((one, two), powers, strict=False)
            ]

        blocks.update(parts(1.0, 2.0), HolderLabels())
        layout = Layout(blocks.blocks, (POWER, CLOCK), limit=9, always=())
        for power in (3.0, 4.0):
            assert blocks.update(parts(power, power), HolderLabels())
            layout.update(blocks.take_changed())
        assert blocks.update(parts(5.0, 6.0), HolderLabels())
        assert not blocks.update(parts(7.0), HolderLabels())
        layout = Layout(blocks.blocks, (POWER, CLOCK), limit=9, always=())
        layout.update(blocks.take_changed())

        assert layout.write(Format.TEXT).decode().splitlines()[2::3] == [
            'flopwatch_power{uuid="GPU-a"} 7.0',
            'flopwatch_clock{kind="sm",uuid="GPU-a"} 2.0',
        ]
