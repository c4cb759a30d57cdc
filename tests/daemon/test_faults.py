"""What a driver may do to the daemon, and what the metrics say meanwhile and afterwards."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape, passive
from tests.fake_nvml import A100, H100, Load
from tests.faults.invariants import HEALTH


FAST = passive("sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n")
GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN, NO_PERMISSION = 15, 3, 999, 4


def ticking(scrape: Scrape, gpu: int) -> bool:
    return scrape.total("flopwatch_gpu_seconds_total", gpu=str(gpu)) > 0


def wait_for_gpus(daemon: DaemonProcess, *gpus: int) -> Scrape:
    return daemon.wait_until(lambda scrape: all(ticking(scrape, gpu) for gpu in gpus))


def ticks(scrape: Scrape, gpu: int) -> float:
    """Ticks of a GPU so far."""
    return scrape.total("flopwatch_tick_duration_seconds_count", gpu=str(gpu))


def assert_only_health(scrape: Scrape, gpu: int) -> None:
    """A device that does not answer shows its identity and health, and no reading."""
    shown = {name for name, labels in scrape.samples if ("gpu", str(gpu)) in labels}
    assert shown <= HEALTH


# What each call feeds, so that its absence can be seen.
CALLS = {
    "nvmlDeviceGetPowerUsage": "flopwatch_power_watts",
    "nvmlDeviceGetUtilizationRates": "flopwatch_engine_utilization_ratio",
    "nvmlDeviceGetMemoryInfo_v2": "flopwatch_memory_reserved_bytes",
    "nvmlDeviceGetTotalEccErrors": "flopwatch_ecc_errors_total",
    "nvmlDeviceGetRemappedRows": "flopwatch_remapped_rows",
    "nvmlDeviceGetCurrPcieLinkGeneration": "flopwatch_pcie_link_generation",
    "nvmlDeviceGetNvLinkState": "flopwatch_nvlink_up",
    "nvmlDeviceGetComputeRunningProcesses_v3": "flopwatch_processes",
    "nvmlDeviceGetComputeMode": "flopwatch_compute_mode_info",
    "nvmlDeviceGetPerformanceState": "flopwatch_performance_state",
}


@pytest.mark.parametrize("code", [UNKNOWN, NO_PERMISSION], ids=["unknown", "no_permission"])
def test_a_failing_call_loses_only_its_own_value(start, code: int) -> None:
    """Every call fails at some time: the value is absent, the error counted, and it comes back."""
    fake, daemon = start([H100], config=FAST)
    whole = wait_for_gpus(daemon, 0)
    families = {name for name, _labels in whole.samples}

    for function, metric in CALLS.items():
        assert metric in families, metric
        fake.fail(function, code)
    allowed = set(CALLS.values()) | {
        "flopwatch_peak_pcie_bandwidth_bytes_per_second",
        "flopwatch_row_remap_pending",
        "flopwatch_row_remap_failed",
        "flopwatch_nvlink_errors_total",
        "flopwatch_nvlinks_up",
    }

    def only_these_are_lost(scrape: Scrape) -> bool:
        lost = families - {name for name, _labels in scrape.samples}
        return lost <= allowed and not any(
            scrape.series(metric, gpu="0") for metric in CALLS.values() if "engine" not in metric
        )

    without = daemon.wait_until(only_these_are_lost)
    assert without.value("flopwatch_gpu_up", gpu="0") == 1
    assert not without.has("flopwatch_engine_utilization_ratio", engine="gpu")
    assert without.has("flopwatch_engine_utilization_ratio", engine="encoder")
    assert without.total("flopwatch_source_errors_total", source="nvml") >= len(CALLS)
    assert without.has("flopwatch_flop_total")

    for function in CALLS:
        fake.clear(function)
    daemon.wait_until(
        lambda scrape: all(scrape.series(metric, gpu="0") for metric in CALLS.values())
    )


def test_unsupported_calls_are_made_once(start) -> None:
    """A refusal is remembered: a monitor must not fill the driver's log."""
    fake, daemon = start(
        [H100],
        config=FAST,
        prepare=lambda fake: fake.fail("nvmlDeviceGetPowerUsage", NOT_SUPPORTED),
    )
    wait_for_gpus(daemon, 0)
    scrape = daemon.wait_until(lambda scrape: ticks(scrape, 0) >= 5)

    assert fake.calls("nvmlDeviceGetPowerUsage") == 1
    assert not scrape.has("flopwatch_power_watts")
    assert not scrape.has("flopwatch_source_errors_total", reason="not_supported")


def test_a_hung_call_stops_its_own_gpu_only(start) -> None:
    """The others tick on, scrapes stay fast, the hang is reported, the gap stays, and it recovers."""
    fake, daemon = start([H100, H100], config=FAST)
    for gpu in (0, 1):
        fake.gpu(gpu).set_load(Load.decode())
    before = wait_for_gpus(daemon, 0, 1)

    fake.hang("nvmlDeviceGetPowerUsage", gpu=1)
    hung = daemon.wait_until(lambda scrape: scrape.value("flopwatch_source_hung", gpu="1") == 1)
    began = time.monotonic()
    assert hung.value("flopwatch_gpu_up", gpu="1") == 0
    assert_only_health(hung, 1)
    assert hung.value("flopwatch_gpu_up", gpu="0") == 1

    counted = hung.total("flopwatch_gpu_seconds_total", gpu="0")
    daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", gpu="0") > counted + 2
    )
    fake.release("nvmlDeviceGetPowerUsage", gpu=1)
    back = daemon.wait_until(
        lambda scrape: (
            scrape.value("flopwatch_gpu_up", gpu="1") == 1
            and scrape.has("flopwatch_power_watts", gpu="1")
            and scrape.value("flopwatch_ticks_missed_total", gpu="1") > 0
        )
    )
    gap = time.monotonic() - began

    assert back.value("flopwatch_source_hung", gpu="1") == 0
    for name in ("flopwatch_flop_total", "flopwatch_gpu_seconds_total"):
        for labels, value in before.series(name, gpu="1").items():
            assert back.samples[(name, labels)] >= value
    # The hang is in no counter: GPU 1 has at least the hang less than GPU 0.
    behind = back.total("flopwatch_gpu_seconds_total", gpu="0") - back.total(
        "flopwatch_gpu_seconds_total", gpu="1"
    )
    assert behind >= 0.9 * 2
    assert behind <= gap + 3


def test_gpm_calls_are_never_concurrent(start) -> None:
    """Parallel GPM calls crash drivers in the field; and device state is never changed."""
    fake, daemon = start([H100] * 4, config=FAST)
    wait_for_gpus(daemon, 0, 1, 2, 3)
    daemon.wait_until(lambda scrape: all(ticks(scrape, gpu) >= 8 for gpu in range(4)))

    assert fake.gpm_overlaps == 0
    assert fake.gpm_misuses == 0
    assert fake.calls("nvmlGpmSetStreamingEnabled") == 0
    assert fake.calls("nvmlDeviceSet*") == 0


def test_a_hung_gpm_call_costs_other_gpus_only_their_activity(start) -> None:
    """One GPU hangs in GPM and holds its lock: the others still tick, without GPM values."""
    fake, daemon = start([H100, H100], config=FAST)
    wait_for_gpus(daemon, 0, 1)

    fake.hang("nvmlGpmSampleGet", gpu=0)
    scrape = daemon.wait_until(
        lambda scrape: (
            scrape.value("flopwatch_source_hung", gpu="0") == 1
            and not scrape.has("flopwatch_sm_active_ratio", gpu="1")
        )
    )
    assert scrape.value("flopwatch_gpu_up", gpu="1") == 1
    assert scrape.has("flopwatch_power_watts", gpu="1")
    assert scrape.total("flopwatch_source_errors_total", gpu="1", reason="timeout") > 0

    fake.release("nvmlGpmSampleGet", gpu=0)
    daemon.wait_until(
        lambda scrape: all(scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu)) for gpu in (0, 1))
    )


def test_a_lost_gpu_goes_down_alone_and_comes_back(start) -> None:
    """Fallen off the bus: up 0, no old values, the others continue; found again by its UUID."""
    fake, daemon = start([H100, H100], config=FAST)
    fake.gpu(1).set_load(Load.decode())
    before = wait_for_gpus(daemon, 0, 1)

    fake.lose(1)
    lost = daemon.wait_until(lambda scrape: scrape.value("flopwatch_gpu_up", gpu="1") == 0)
    assert_only_health(lost, 1)
    assert lost.total("flopwatch_source_errors_total", gpu="1", reason="gpu_is_lost") > 0
    assert lost.value("flopwatch_gpu_up", gpu="0") == 1
    assert daemon.get("/-/ready")[0] == 200

    fake.restore(1)
    back = daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio", gpu="1"))
    for name in ("flopwatch_flop_total", "flopwatch_gpu_seconds_total"):
        for labels, value in before.series(name, gpu="1").items():
            assert back.samples[(name, labels)] >= value


def test_a_driver_reload_is_survived(start) -> None:
    """Unloaded: all GPUs down, health endpoints alive; loaded again: all come back."""
    fake, daemon = start([H100, A100], config=FAST)
    wait_for_gpus(daemon, 0, 1)

    fake.unload_driver()
    down = daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_up") == 0 and scrape.has("flopwatch_gpu_up")
    )
    for gpu in (0, 1):
        assert_only_health(down, gpu)
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.get("/-/ready")[0] == 503

    fake.load_driver()
    daemon.wait_until(
        lambda scrape: (
            scrape.has("flopwatch_sm_active_ratio", gpu="0")
            and scrape.has("flopwatch_power_watts", gpu="1")
        )
    )
    assert fake.stale_handles == 0


def test_a_driver_of_another_version_ends_the_process_after_it_was_shown(start) -> None:
    """This process cannot recover: it is shown in the metrics once, then exit code 1."""
    fake, daemon = start([H100], config=FAST)
    wait_for_gpus(daemon, 0)

    fake.mismatch_driver()
    daemon.wait_until(
        lambda scrape: scrape.has("flopwatch_source_errors_total", reason="driver_mismatch")
    )
    deadline = time.monotonic() + 60
    while daemon.process.poll() is None and time.monotonic() < deadline:
        try:
            daemon.scrape()
        except OSError:
            break
        time.sleep(0.2)

    assert daemon.process.wait(timeout=60) == 1
    assert "driver_mismatch" in daemon.log


def test_sigterm_ends_within_two_seconds_also_while_a_call_hangs(start) -> None:
    """A supervisor must not have to kill it."""
    fake, daemon = start([H100, H100], config=FAST)
    wait_for_gpus(daemon, 0, 1)
    fake.hang("nvmlDeviceGetClockInfo")
    daemon.wait_until(lambda scrape: scrape.total("flopwatch_source_hung") == 2)

    code, seconds = daemon.terminate()

    assert code == 0
    assert seconds < 2


def test_a_driver_that_hangs_at_start_leaves_the_metrics_reachable(start) -> None:
    """nvmlInit never returns: /metrics shows it at once, and all is well once it does return."""
    fake, daemon = start([H100], config=FAST, prepare=lambda fake: fake.hang("nvmlInitWithFlags"))

    scrape = daemon.scrape()
    assert scrape.value("flopwatch_gpu_up", gpu="unknown") == 0
    assert scrape.has("flopwatch_build_info")
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.get("/-/ready")[0] == 503
    daemon.wait_until(lambda scrape: scrape.value("flopwatch_source_hung", gpu="unknown") == 1)

    fake.release("nvmlInitWithFlags")
    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio", gpu="0"))
    assert not scrape.has("flopwatch_gpu_up", gpu="unknown")


def test_a_gpu_that_is_lost_at_start_does_not_hide_the_others(start) -> None:
    """Its index is known, its UUID is not."""
    fake, daemon = start([H100, H100], config=FAST, prepare=lambda fake: fake.lose(1))

    scrape = wait_for_gpus(daemon, 0)
    assert scrape.value("flopwatch_gpu_up", gpu="1", uuid="unknown") == 0

    fake.restore(1)
    scrape = wait_for_gpus(daemon, 1)
    assert not scrape.has("flopwatch_gpu_up", uuid="unknown")


def test_xids_are_counted_by_code_with_their_time(start) -> None:
    """A counter and a timestamp for each code, on the GPU that it came from."""
    fake, daemon = start([H100, H100], config=FAST)
    wait_for_gpus(daemon, 0, 1)
    daemon.wait_for(lambda: fake.registered_for_events(1))
    fake.xid(1, 79)
    fake.xid(1, 31)
    fake.xid(1, 31)

    scrape = daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_xid_errors_total", gpu="1") == 3
    )

    assert scrape.value("flopwatch_xid_errors_total", gpu="1", xid="79") == 1
    assert scrape.value("flopwatch_xid_errors_total", gpu="1", xid="31") == 2
    assert not scrape.has("flopwatch_xid_errors_total", gpu="0")
    assert abs(scrape.value("flopwatch_xid_last_timestamp_seconds", xid="79") - time.time()) < 10


def test_blanks_and_nonsense_are_left_out(start) -> None:
    """A GPM value of 140737488355328 is not a percentage; the rest of the window is kept."""
    fake, daemon = start([H100], config=FAST)
    fake.gpu(0).set_load(Load.decode())
    wait_for_gpus(daemon, 0)

    fake.fail("nvmlDeviceGetUtilizationRates", 0)  # a code of 0 changes nothing
    fake.set(0, gpm_blank=1)
    scrape = daemon.wait_until(
        lambda scrape: scrape.has("flopwatch_source_errors_total", reason="implausible")
    )
    assert all(
        value < 2 for (name, _labels), value in scrape.samples.items() if name.endswith("_ratio")
    )


def test_the_environment_cannot_turn_nvml_into_mps_mode(start, monkeypatch) -> None:
    """With NVML_MPS_DEVICE_ENUMERATION nearly every call would answer NOT_SUPPORTED."""
    monkeypatch.setenv("NVML_MPS_DEVICE_ENUMERATION", "1")
    _fake, daemon = start([H100], config=FAST)
    wait_for_gpus(daemon, 0)

    environment = Path(f"/proc/{daemon.process.pid}/environ").read_bytes()
    assert b"NVML_MPS_DEVICE_ENUMERATION" in environment  # as the caller set it
    assert daemon.scrape().has("flopwatch_power_watts")


def test_a_burst_of_signals_changes_nothing(start) -> None:
    """A hundred SIGHUPs: the configuration is read again, the counters continue."""
    _fake, daemon = start([H100], config=FAST)
    before = wait_for_gpus(daemon, 0)
    for _ in range(100):
        os.kill(daemon.process.pid, signal.SIGHUP)
    after = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_gpu_seconds_total")
            > before.total("flopwatch_gpu_seconds_total") + 1
        )
    )
    assert after.value("flopwatch_config_last_reload_successful") == 1


def test_a_driver_of_another_version_at_start(start) -> None:
    """The GPUs exist, but not for this process: shown in the metrics, then exit code 1."""
    _fake, daemon = start([H100], config=FAST, prepare=lambda fake: fake.mismatch_driver())

    scrape = daemon.scrape()
    assert scrape.value("flopwatch_gpu_up", gpu="unknown") == 0
    assert scrape.value("flopwatch_source_errors_total", reason="driver_mismatch") == 1
    assert not scrape.has("flopwatch_gpu_up", gpu="cpu0")
    deadline = time.monotonic() + 60
    while daemon.process.poll() is None and time.monotonic() < deadline:
        try:
            daemon.scrape()
        except OSError:
            break
        time.sleep(0.2)
    assert daemon.process.wait(timeout=60) == 1


def test_a_missing_driver_where_one_is_required(start_on_cpu) -> None:
    """With `nvml: on`, a host without a driver is a fault; the CPU does not stand in."""
    daemon = start_on_cpu(config=passive("sources: {nvml: on}\n"))

    scrape = daemon.scrape()
    assert scrape.value("flopwatch_gpu_up") == 0
    assert scrape.value("flopwatch_source_errors_total", reason="library_not_found") == 1
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.get("/-/ready")[0] == 503
