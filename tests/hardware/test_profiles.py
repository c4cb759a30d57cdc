"""Every kind of NVIDIA GPU through the real daemon: it exports true values and nothing else."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.dcgm.server import DcgmExporter, collecting
from tests.fake_nvml import FakeNvml
from tests.hardware.scenario import FOLDER, NAMES, Scenario, masked


CONFIG = """
sampling: {interval: 250ms, slow_interval: 1s}
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
kubernetes: {pod_resources: "off"}
"""
# A tick is 0.25 s: after this many, slow readings and GPM's trials are complete.
TICKS = 16
COLLECT_SECONDS = 1.0
BLANKS = (140737488355328.0, float(2**32 - 1), float(2**64 - 1), float(2**63 - 1))


@pytest.fixture(params=NAMES)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return Scenario.read(request.param)


def test_exposition_is_the_golden_one(
    scenario: Scenario, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The daemon starts on the profile, exports what it really has, and every second has a state."""
    just_counted = JustCounted(slow=bool(scenario.dcgm))
    with (
        FakeNvml(scenario.gpus, tmp_path, driver_version=scenario.driver_version) as fake,
        config_of(scenario, fake) as config,
    ):
        scenario.put_to_work(fake)
        with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
            first = daemon.wait_until(
                lambda scrape: just_counted(scrape) and every_device(scrape, counted(1))
            )
            last = daemon.wait_until(
                lambda scrape: just_counted(scrape) and every_device(scrape, counted(TICKS))
            )
            assert "Traceback" not in daemon.log

    golden = FOLDER / "golden" / f"{scenario.name}.prom"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(masked(last.text))
    wanted, found = values(golden.read_text()), values(masked(last.text))
    # A tick before the first window closes has no activity yet; on a busy machine there may be one.
    found = {
        series: value
        for series, value in found.items()
        if series in wanted or 'state="unresolved"' not in series
    }
    assert list(found) == list(wanted)
    for series, value in wanted.items():
        # Golden values have three digits; windows of a quarter of a second add their own scatter.
        assert found[series] == pytest.approx(value, rel=0.01), series
    assert_true(last)
    assert_states_sum_to_elapsed_time(first, last)


@contextmanager
def config_of(scenario: Scenario, fake: FakeNvml) -> Iterator[str]:
    """The daemon's configuration, with a dcgm-exporter behind it where the scenario has one."""
    if not scenario.dcgm:
        yield CONFIG
        return
    with DcgmExporter() as dcgm, collecting(dcgm, scenario.collected(fake), COLLECT_SECONDS):
        yield CONFIG.replace('dcgm: "off"', 'dcgm: "on"') + f'dcgm: {{url: "{dcgm.url}"}}\n'


class JustCounted:
    """Whether a scrape is the first after a window closed, which is when its end can be told.

    Windows of every tick close all the time; those of DCGM (`slow`) once in a collection.
    """

    def __init__(self, *, slow: bool) -> None:
        self._slow = slow
        self._before = 0.0

    def __call__(self, scrape: Scrape) -> bool:
        if not self._slow:
            return True
        flop = scrape.total("flopwatch_flop_total")
        before, self._before = self._before, flop
        return 0 < before < flop


def values(text: str) -> dict[str, float]:
    """Value by series, in the order of the exposition; 0 stands for values that grow with time."""
    pairs = (line.rsplit(" ", 1) for line in text.splitlines())
    return {series: 0.0 if value == "*" else float(value) for series, value in pairs}


def every_device(scrape: Scrape, condition: Callable[[Scrape, str], bool]) -> bool:
    devices = uuids(scrape)
    return bool(devices) and all(condition(scrape, uuid) for uuid in devices)


def counted(times: int) -> Callable[[Scrape, str], bool]:
    """Whether a device has accounted this many ticks of 0.25 s."""
    return lambda scrape, uuid: (
        scrape.total("flopwatch_gpu_seconds_total", uuid=uuid) >= times * 0.25 - 0.1
    )


def uuids(scrape: Scrape) -> set[str]:
    return {dict(labels)["uuid"] for labels in scrape.series("flopwatch_gpu_info")}


def assert_true(scrape: Scrape) -> None:
    """No blanks, no negative or endless values, ratios within what the metric allows."""
    for (name, labels), value in scrape.samples.items():
        assert math.isfinite(value), (name, labels)
        assert value not in BLANKS, (name, labels)
        if name.startswith("flopwatch_"):
            assert value >= 0, (name, labels)
        if name.endswith("_ratio"):
            assert value <= 1.2, (name, labels)


def assert_states_sum_to_elapsed_time(first: Scrape, last: Scrape) -> None:
    """Between two ticks, the states of each device grow by the time between them, within 1 %."""
    for uuid in uuids(last):
        grown = last.total("flopwatch_gpu_seconds_total", uuid=uuid) - first.total(
            "flopwatch_gpu_seconds_total", uuid=uuid
        )
        elapsed = accounted_until(last, uuid) - accounted_until(first, uuid)
        # A busy machine takes the two instants some hundredths of a second apart.
        assert grown == pytest.approx(elapsed, rel=0.01, abs=0.06)


def accounted_until(scrape: Scrape, uuid: str) -> float:
    """Unix time of the device's last closed window: GPM's or DCGM's (its instances' for a GPU), else a tick."""
    found = scrape.series("flopwatch_source_last_success_timestamp_seconds")
    times = [({**dict(labels)}, at) for labels, at in found.items()]
    gpu = next(labels["gpu"] for labels, _at in times if labels["uuid"] == uuid)
    of_windows = [(labels, at) for labels, at in times if labels["source"] != "nvml"]
    own = [at for labels, at in of_windows if labels["uuid"] == uuid]
    of_instances = [at for labels, at in of_windows if labels["gpu"] == gpu and "mig" in labels]
    ticks = [at for labels, at in times if labels["uuid"] == uuid and labels["source"] == "nvml"]
    return max(own or of_instances or ticks)


def test_every_profile_has_its_golden_file() -> None:
    """No golden file is left from a removed profile, and none is missing."""
    assert sorted(path.stem for path in (FOLDER / "golden").glob("*.prom")) == NAMES
