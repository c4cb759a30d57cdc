"""GPM and MIG mode refused for a while, or turned off: FLOPS and readings come back by themselves."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, H100_1G_10GB, H100_3G_40GB, H100_NO_CYCLES, FakeNvml, Load


NOT_SUPPORTED, INVALID_ARGUMENT, INVALID_STATE, NO_DATA = 3, 2, 29, 21
CONFIG = """
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
sampling: {interval: 250ms, slow_interval: 1s}
"""
FLOP, ERRORS = "flopwatch_flop_total", "flopwatch_source_errors_total"
# Far below the ten minutes after which a refusal that is believed would be asked again.
BACK_SECONDS = 120.0


def grown(daemon: DaemonProcess, gpu: str, since: Scrape) -> Callable[[Scrape], bool]:
    """Whether the GPU's FLOP have grown since a scrape."""
    before = since.total(FLOP, gpu=gpu)
    return lambda scrape: scrape.total(FLOP, gpu=gpu) > before


@pytest.mark.parametrize("code", [NOT_SUPPORTED, INVALID_ARGUMENT, INVALID_STATE, NO_DATA])
@pytest.mark.parametrize("function", ["nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_gpm_recovers_at_once_after_a_refusal(tmp_path: Path, function: str, code: int) -> None:
    """Another process that turns GPM's stream off and on costs at most the FLOPS of that time.

    Refused for 1.5 s: counted, logged once, and FLOPS return after its end.
    """
    with FakeNvml([H100, H100_NO_CYCLES, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: all(s.total(FLOP, gpu=gpu) > 0 for gpu in "012"))
            for gpu in (0, 1):
                fake.fail(function, code, gpu=gpu)
            refused = time.monotonic()
            during = daemon.wait_until(
                lambda s: (
                    time.monotonic() > refused + 1.5
                    and s.total(ERRORS, gpu="0", source="gpm_cycles") > 0
                    and s.total(ERRORS, gpu="1", source="gpm") > 0
                )
            )
            fake.clear()
            for gpu in "01":
                daemon.wait_until(grown(daemon, gpu, during), BACK_SECONDS)
            last = daemon.wait_until(lambda s: s.total("flopwatch_source_up", source="gpm") == 1)
            log = daemon.log

    assert during.total(FLOP, gpu="2") > 0
    assert during.total(ERRORS, gpu="0", source="gpm_cycles") > 0
    assert not last.has(ERRORS, gpu="2")
    assert last.value("flopwatch_source_up", gpu="0", source="gpm_cycles") == 1
    assert log.count("event=gpm_failed gpu=0") <= 2


@pytest.mark.parametrize("code", [NOT_SUPPORTED, INVALID_ARGUMENT])
def test_metrics_that_are_refused_for_a_while_are_asked_again(tmp_path: Path, code: int) -> None:
    """The call succeeds, but every metric in it fails."""
    with FakeNvml([H100, H100_NO_CYCLES], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: all(s.total(FLOP, gpu=gpu) > 0 for gpu in "01"))
            for metric in (*range(1, 14), *range(248, 261)):
                fake.fail_gpm_metric(metric, code)
            daemon.wait_until(lambda s: s.total(ERRORS, gpu="0", source="gpm_cycles") > 2)
            during = daemon.scrape()
            for metric in (*range(1, 14), *range(248, 261)):
                fake.fail_gpm_metric(metric, 0)
            for gpu in "01":
                last = daemon.wait_until(grown(daemon, gpu, during), BACK_SECONDS)

    assert last.value("flopwatch_source_up", gpu="0", source="gpm_cycles") == 1


def test_gpm_metrics_missing_beside_others_come_back(tmp_path: Path) -> None:
    """One metric that answered is refused for a while: its value alone is missing meanwhile."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.has("flopwatch_dram_bandwidth_utilization_ratio"))
            fake.fail_gpm_metric(10, NOT_SUPPORTED)
            daemon.wait_until(lambda s: not s.has("flopwatch_dram_bandwidth_utilization_ratio"))
            assert daemon.scrape().has("flopwatch_sm_active_ratio")
            fake.fail_gpm_metric(10, 0)
            daemon.wait_until(
                lambda s: s.has("flopwatch_dram_bandwidth_utilization_ratio"), BACK_SECONDS
            )


def test_turning_mig_mode_off_restores_all_values(tmp_path: Path) -> None:
    """Utilization, remapped rows and SM count, unavailable in MIG mode, are read again at once."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.set_mig(0, [H100_3G_40GB, H100_1G_10GB])
        for function in (
            "nvmlDeviceGetUtilizationRates",
            "nvmlDeviceGetRemappedRows",
            "nvmlDeviceGetNumGpuCores",
        ):
            fake.fail(function, NOT_SUPPORTED, gpu=0)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            cut = daemon.wait_until(
                lambda s: (
                    s.has("flopwatch_gpu_up", mig="7") and s.has("flopwatch_processes", mig="7")
                )
            )
            fake.clear()
            fake.set_mig(0, None)
            whole = daemon.wait_until(
                lambda s: (
                    s.has("flopwatch_engine_utilization_ratio", gpu="0", engine="gpu")
                    and s.has("flopwatch_remapped_rows", gpu="0")
                    and s.has("flopwatch_row_remap_failed", gpu="0")
                    and s.has("flopwatch_gpu_info", sm_count="132")
                    and s.value("flopwatch_mig_mode", gpu="0") == 0
                ),
                10,
            )

    for name in ("flopwatch_remapped_rows", "flopwatch_row_remap_failed"):
        assert not cut.has(name), name
    assert not whole.has("flopwatch_gpu_up", mig="7")


def test_an_unreadable_mig_mode_is_taken_as_unchanged(tmp_path: Path) -> None:
    """The instances and their counters continue: one refused call is not a reconfiguration."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.set_mig(0, [H100_3G_40GB])
        fake.gpu(0).instance_loads(1).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total(FLOP, mig="1") > 0)
            fake.fail("nvmlDeviceGetMigMode", NOT_SUPPORTED)
            during = daemon.wait_until(
                lambda s: s.total(ERRORS, source="nvml", reason="not_supported") > 4
            )
            log = daemon.log
            fake.clear()
            daemon.wait_until(
                lambda s: s.total(FLOP, mig="1") > during.total(FLOP, mig="1"), BACK_SECONDS
            )

    assert during.value("flopwatch_gpu_up", mig="1") == 1
    assert "mig_mode_changed" not in log
    assert "mig_instance_gone" not in log


def test_what_the_driver_does_not_report_is_named(tmp_path: Path) -> None:
    """A capability that no call provides gets a series; one that an older call provides does not."""
    with FakeNvml([H100], tmp_path) as fake:
        for function in ("_v3", "_v2", ""):
            fake.fail(f"nvmlDeviceGetComputeRunningProcesses{function}", 13)
        fake.fail("nvmlDeviceGetTemperatureV", 13)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: s.has("flopwatch_source_field_missing", source="nvml")
            )

    fields = {dict(labels)["field"] for labels in scrape.series("flopwatch_source_field_missing")}
    assert fields == {"processes"}
    assert scrape.has("flopwatch_temperature_celsius", sensor="gpu")
