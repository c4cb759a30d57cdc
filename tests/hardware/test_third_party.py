"""Boards as NVIDIA's mock of NVML simulates them: values are right, or absent and explained."""

from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import FakeNvml, Load
from tests.fake_nvml.third_party import MOCKED_GB300, MOCKED_H100, MOCKED_UNKNOWN


CONFIG = """
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
sampling: {interval: 250ms, slow_interval: 1s}
"""
FLOP, SECONDS, ENERGY = (
    "flopwatch_flop_total",
    "flopwatch_gpu_seconds_total",
    "flopwatch_energy_joules_total",
)
ERRORS = "flopwatch_source_errors_total"
# Busy, at the clock of an idle GPU.
BUSY = Load(
    graphics=0.9,
    sm=0.6,
    any_tensor=0.32,
    hmma_tensor=0.32,
    dram=0.3,
    sm_clock_mhz=345,
    power_watts=350,
)


def rate(before: Scrape, after: Scrape, gpu: int) -> float:
    """Tensor FLOP per second of accounted time."""
    gpu_label = str(gpu)
    seconds = after.total(SECONDS, gpu=gpu_label) - before.total(SECONDS, gpu=gpu_label)
    flop = after.total(FLOP, gpu=gpu_label, pipe="tensor") - before.total(
        FLOP, gpu=gpu_label, pipe="tensor"
    )
    return flop / seconds


def test_a_busy_h100_at_its_idle_clock(tmp_path: Path) -> None:
    """0.32 x 132 SMs x 4096 FLOP per clock x 345 MHz = 5.969e13 FLOP/s, without a core count.

    The SM count is the data sheet's. The raw cycle counters are above the last metric: percentages do.
    """
    with FakeNvml([MOCKED_H100], tmp_path) as fake:
        fake.gpu(0).set_load(BUSY)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            before = daemon.wait_until(lambda s: s.total(FLOP, pipe="tensor") > 0)
            after = daemon.wait_until(lambda s: s.total(SECONDS) > before.total(SECONDS) + 3)

    assert rate(before, after, 0) == pytest.approx(5.969e13, rel=1e-3)
    assert after.value("flopwatch_achieved_flops", precision="bf16") == pytest.approx(
        5.969e13, rel=1e-3
    )
    assert {dict(labels)["source"] for labels in after.series(FLOP)} == {"gpm"}
    (info,) = after.series("flopwatch_gpu_info")
    assert dict(info)["sm_count"] == "132"
    assert after.value("flopwatch_peak_flops", precision="bf16") == 989.4e12


def test_an_energy_counter_that_does_not_move(tmp_path: Path) -> None:
    """At 350 W a counter stuck for ten seconds is wrong: counted, named, and no longer exported."""
    with FakeNvml([MOCKED_H100], tmp_path) as fake:
        fake.gpu(0).set_load(BUSY)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            first = daemon.wait_until(lambda s: s.has(ENERGY))
            scrape = daemon.wait_until(
                lambda s: s.total(ERRORS, source="nvml", reason="implausible") > 0, 60
            )
            absent = daemon.wait_until(lambda s: not s.has(ENERGY), 60)
            daemon.wait_for(lambda: "counter_frozen" in daemon.log)

    # It still had the value of the driver's counter.
    assert first.value(ENERGY) == pytest.approx(512_345.678)
    assert scrape.total(ERRORS, source="nvml", reason="implausible") > 0
    assert absent.value("flopwatch_power_watts") == 350


def test_a_gb300_of_another_compute_capability(tmp_path: Path) -> None:
    """By name a GB300, by capability a B200, no core count: no FLOP, no peak, and a log line.

    The same for an unknown board. Values that need no SM count remain: time by state, clock, power.
    """
    with FakeNvml([MOCKED_GB300, MOCKED_UNKNOWN], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(BUSY)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            before = daemon.wait_until(
                lambda s: all(
                    s.has("flopwatch_sm_active_ratio", gpu=str(number)) for number in range(2)
                )
            )
            after = daemon.wait_until(
                lambda s: all(
                    s.total(SECONDS, gpu=str(number)) > before.total(SECONDS, gpu=str(number)) + 3
                    for number in range(2)
                )
            )
            log = daemon.log

    for number in range(2):
        gpu_label = str(number)
        assert not after.has(FLOP, gpu=gpu_label)
        assert not after.has("flopwatch_peak_flops", gpu=gpu_label)
        assert not after.has("flopwatch_achieved_flops", gpu=gpu_label)
        tensor = [
            scrape.value(SECONDS, gpu=gpu_label, state="tensor") for scrape in (before, after)
        ]
        seconds = [scrape.total(SECONDS, gpu=gpu_label) for scrape in (before, after)]
        # 345 of 2062 MHz, 0.32 of the cycles.
        share = (tensor[1] - tensor[0]) / (seconds[1] - seconds[0])
        assert share == pytest.approx(345 / 2062 * 0.32, rel=0.01)
        assert after.value("flopwatch_power_watts", gpu=gpu_label) == 350
    assert log.count("event=peak_unknown") == 2
    assert "it is called GB300 (per GPU), but has compute capability 10.0" in log
    assert log.count("the driver does not tell its number of SMs") == 2


def test_the_configuration_supplies_what_the_driver_does_not_report(tmp_path: Path) -> None:
    """With 152 SMs set: 0.32 x 152 x 8192 FLOP per clock x 345 MHz = 1.375e14 FLOP/s."""
    with FakeNvml([MOCKED_GB300], tmp_path) as fake:
        fake.gpu(0).set_load(BUSY)
        config = CONFIG + 'gpus: [{match: {name: "NVIDIA GB300*"}, sm_count: 152}]\n'
        with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
            before = daemon.wait_until(lambda s: s.total(FLOP, pipe="tensor") > 0)
            after = daemon.wait_until(lambda s: s.total(SECONDS) > before.total(SECONDS) + 3)
            log = daemon.log

    assert rate(before, after, 0) == pytest.approx(1.375e14, rel=1e-3)
    assert "peak_unknown" not in log
