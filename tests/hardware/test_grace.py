"""A GPU that shares a module with a Grace processor: the link between them, and the power of both."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess
from tests.fake_nvml import H100, FakeNvml
from tests.hardware.scenario import Scenario
from tests.hardware.test_profiles import CONFIG


RECEIVED = "flopwatch_c2c_receive_bytes_total"
SENT = "flopwatch_c2c_transmit_bytes_total"
SECONDS = "flopwatch_gpu_seconds_total"
PEAK = "flopwatch_peak_c2c_bandwidth_bytes_per_second"
MODULE_POWER = "flopwatch_module_power_watts"


@pytest.mark.parametrize("name", ["gh200", "gb200"])
def test_traffic_to_the_processor_is_counted(name: str, tmp_path: Path) -> None:
    """20 GB/s in and 5 GB/s out, over windows that tile the time that the states account for."""
    scenario = Scenario.read(name)
    with FakeNvml(scenario.gpus, tmp_path, driver_version=scenario.driver_version) as fake:
        scenario.put_to_work(fake)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            first = daemon.wait_until(lambda s: s.total(RECEIVED, gpu="0") > 0)
            last = daemon.wait_until(
                lambda s: s.total(SECONDS, gpu="0") >= first.total(SECONDS, gpu="0") + 3
            )

    seconds, received, sent = (
        last.total(family, gpu="0") - first.total(family, gpu="0")
        for family in (SECONDS, RECEIVED, SENT)
    )
    assert received / seconds == pytest.approx(20e9, rel=0.01)
    assert sent / seconds == pytest.approx(5e9, rel=0.01)
    assert last.value(MODULE_POWER, gpu="0") > last.value("flopwatch_power_watts", gpu="0")


def test_energy_is_the_gpus_and_the_modules_stands_beside_it(tmp_path: Path) -> None:
    """585 W of 700 W are the GPU's, although the counter without a scope is the module's here."""
    scenario = Scenario.read("gh200")
    with FakeNvml(scenario.gpus, tmp_path, driver_version=scenario.driver_version) as fake:
        scenario.put_to_work(fake)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            first = daemon.wait_until(lambda s: s.total(SECONDS) > 0)
            last = daemon.wait_until(lambda s: s.total(SECONDS) >= first.total(SECONDS) + 4)

    gpu, module = (
        last.value(family) - first.value(family)
        for family in ("flopwatch_energy_joules_total", "flopwatch_module_energy_joules_total")
    )
    assert gpu > 0
    assert module / gpu == pytest.approx(700 / 585, rel=0.001)


def test_a_link_that_is_down_takes_its_bandwidth_with_it(tmp_path: Path) -> None:
    """Ten links of 44.712 GB/s; the third goes down, the fourth rests, and CRC errors are counted."""
    scenario = Scenario.read("gb200")
    with FakeNvml(scenario.gpus, tmp_path) as fake:
        scenario.put_to_work(fake)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            whole = daemon.wait_until(lambda s: s.has(PEAK, gpu="0"))
            fake.set(0, c2c_down=1 << 2, c2c_low_power=1 << 3, c2c_errors=[7, 0, 2])
            less = daemon.wait_until(
                lambda s: s.value("flopwatch_c2c_up", gpu="0", link="2") == 0, seconds=60
            )

    assert whole.value(PEAK, gpu="0") == pytest.approx(447.12e9)
    assert less.value(PEAK, gpu="0") == pytest.approx(9 * 44.712e9)
    assert less.total("flopwatch_c2c_up", gpu="0") == 9
    assert less.value("flopwatch_c2c_low_power", gpu="0", link="3") == 1
    errors = less.series("flopwatch_c2c_errors_total", gpu="0")
    assert {dict(labels)["kind"]: count for labels, count in errors.items()} == {
        "crc": 7,
        "replay": 0,
        "replay_back_to_back": 2,
    }


def test_gpus_on_other_boards_have_none_of_it(tmp_path: Path) -> None:
    """A GPU without C2C is not asked for a module's power, which an old driver might answer with its own."""
    profile = replace(H100, module_power_limit_watts=1000)
    with FakeNvml([profile], tmp_path) as fake:
        fake.gpu(0).set_load(replace(profile.idle(), module_power_watts=500.0))
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SECONDS) >= 2)

    assert not [name for name, _labels in scrape.samples if "c2c" in name or "module" in name]
