"""A driver recorded through the real pynvml, and replayed by the fake driver library."""

import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_acceptance_parts import recording, replay
from exporter.collect.nvml import gpm
from tests.acceptance.driver import ROOT, record
from tests.fake_nvml import (
    A100,
    B200,
    H100,
    H100_NO_CYCLES,
    L4,
    RTX_5090,
    T4,
    FakeNvml,
    GpuProfile,
    Load,
)


RECORDINGS = ROOT / "benchmarks" / "results" / "recordings"
KEPT = sorted(RECORDINGS.glob("*.profile.json"))
NOT_SUPPORTED, NO_PERMISSION = 3, 4
# Found in no standard profile: a refused function, field and metric, and counters summed over the
# SMs.
ODD = replace(
    H100,
    name="NVIDIA Odd",
    cycles_mode="sum",
    function_codes={"nvmlDeviceGetPowerUsage": NO_PERMISSION, "nvmlDeviceGetSerial": NOT_SUPPORTED},
    field_codes={82: NOT_SUPPORTED},
    metric_codes={gpm.DMMA_TENSOR: NOT_SUPPORTED, gpm.FP16_CYCLES: NOT_SUPPORTED},
)


@pytest.mark.parametrize(
    "profile", [H100, H100_NO_CYCLES, B200, A100, L4, T4, RTX_5090, ODD], ids=lambda p: p.name
)
def test_a_recorded_device_replays_as_itself(tmp_path: Path, profile: GpuProfile) -> None:
    """Every call, field and metric of the replay has the return code of the recording."""
    with FakeNvml([profile], tmp_path) as fake:
        fake.gpu(0).set_load(profile.fit(Load.idle()))
        recorded = record(fake)
    made = GpuProfile.from_json(replay.profile_of(recorded).to_json())
    with FakeNvml([made], tmp_path) as fake:
        fake.gpu(0).set_load(made.fit(Load.idle()))
        replayed = record(fake)

    assert replay.differences(recorded, replayed) == []
    for name in (
        "name",
        "architecture",
        "compute_major",
        "compute_minor",
        "multiprocessor_count",
        "memory_bus_width_bits",
        "memory_total_bytes",
        "max_sm_clock_mhz",
        "max_memory_clock_mhz",
        "power_limit_watts",
        "nvlink_count",
        "gpm_support",
        "mig_supported",
        "ecc_supported",
        "pcie_generation_max",
        "pcie_width_max",
        "metric_codes",
    ):
        assert getattr(made, name) == getattr(profile, name), name
    if profile.gpm_support == "cycles":
        assert made.cycles_mode == profile.cycles_mode


@pytest.fixture(scope="module")
def h100(tmp_path_factory: pytest.TempPathFactory) -> recording.Recording:
    with FakeNvml([H100], tmp_path_factory.mktemp("fake")) as fake:
        fake.gpu(0).set_load(Load.decode())
        return record(fake)


def test_the_recording_has_what_the_daemon_asks(tmp_path: Path, h100: recording.Recording) -> None:
    """Every exported function that a running daemon calls on a GPU is in the recording."""
    from tests.daemon.process import DaemonProcess

    with (
        FakeNvml([H100], tmp_path) as fake,
        DaemonProcess(tmp_path, environment=fake.env) as daemon,
    ):
        daemon.wait_until(lambda scrape: scrape.total("flopwatch_gpu_seconds_total") > 1)
        called = set(fake.functions_called())

    recorded = {symbol for record in h100.calls for symbol in record.symbols}
    assert called - recorded == set()


def test_every_call_has_its_time_and_its_count(h100: recording.Recording) -> None:
    """Medians of several calls, in microseconds, and never above the longest."""
    power = h100.calls_of("nvmlDeviceGetPowerUsage")[0]

    assert power.count == 5
    assert power.code == 0
    assert 0 < power.median_microseconds <= power.longest_microseconds
    assert power.symbols == ("nvmlDeviceGetPowerUsage",)
    # The load's own power, in milliwatts.
    assert power.answer == pytest.approx(Load.decode().power_watts * 1000, rel=0.01)


def test_fields_and_metrics_have_codes_of_their_own(h100: recording.Recording) -> None:
    """The ids that the daemon reads, with values of the load."""
    codes = {record.id: record.code for record in h100.metrics}
    assert set(codes) == {*gpm.PERCENT_IDS, *gpm.RATE_IDS, *gpm.CYCLE_IDS}
    assert set(codes.values()) == {0}
    dram = next(record for record in h100.metrics if record.id == gpm.DRAM)
    assert dram.value == pytest.approx(100 * Load.decode().dram, rel=0.01)
    assert dram.unit == "%"
    assert {record.id for record in h100.fields} >= {74, 82, 83, 138, 139, 197, 198, 230, 297}


def test_nothing_names_the_one_device_or_its_processes(tmp_path: Path) -> None:
    """UUID, serial number, PCI address and processes are read and timed, but not stored."""
    secret = replace(H100, uuid="GPU-11111111-2222-3333-4444-555555555555", serial="1650522000042")
    with FakeNvml([secret], tmp_path) as fake:
        fake.set_processes(0, [(4711, 1 << 30, "compute")], {4711: "secret-model"})
        recorded = record(fake)
    recording.write(recorded, tmp_path / "recording.json")

    text = (tmp_path / "recording.json").read_text()
    for private in ("GPU-11111111", "1650522000042", "4711", "secret-model"):
        assert private not in text
    assert recorded.calls_of("nvmlDeviceGetUUID")[0].code == 0


def test_a_recording_without_capabilities_has_none(tmp_path: Path) -> None:
    """A process that gives up its privileges has empty capability sets and cannot regain any."""
    code = (
        "from benchmarks.gpu_acceptance_parts.recorder import become\n"
        "become('no-capabilities')\n"
        "print(open('/proc/self/status').read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    with FakeNvml([H100], tmp_path) as fake:
        assert replay.differences(record(fake), record(fake, "no-capabilities")) == []


def test_what_another_user_may_not_do_is_reported(tmp_path: Path) -> None:
    """A call that succeeds for one and fails for the other is listed with both codes."""
    with FakeNvml([H100], tmp_path) as fake:
        first = record(fake)
        fake.fail("nvmlGpmSampleGet", NO_PERMISSION)
        second = record(fake)

    told = replay.differences(first, second)
    assert "nvmlGpmSampleGet(): 0 and 4" in told
    assert f"metric {gpm.SM}: 0 and not asked" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_work_without_a_holder_has_no_name(tmp_path: Path) -> None:
    """All three user and group ids are 65534 and no group is left."""
    code = (
        "import os\n"
        "from benchmarks.gpu_acceptance_parts.recorder import become\n"
        "become('nobody')\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout.strip() == "(65534, 65534, 65534) (65534, 65534, 65534) []"


def test_a_missing_driver_is_recorded_as_missing(tmp_path: Path) -> None:
    """The one call that failed, with its code; no profile can be built from it."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.unload_driver()
        recorded = record(fake)

    by_function = defaultdict(set)
    for call in recorded.calls:
        by_function[call.function].add(call.code)
    assert by_function == {"nvmlInit": {9}}
    with pytest.raises(ValueError, match="did not say how much memory"):
        replay.profile_of(recorded)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_kept_recordings_replay(tmp_path: Path, path: Path) -> None:
    """What was recorded on real GPUs, against the fake that replays it."""
    recorded = recording.read(
        path.with_name(path.name.replace(".profile.", ".current.")).read_bytes()
    )
    with FakeNvml([GpuProfile.from_json(path.read_text())], tmp_path) as fake:
        assert replay.differences(recorded, record(fake)) == []
