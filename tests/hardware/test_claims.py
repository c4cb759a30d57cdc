"""NOT_SUPPORTED is not final: drivers may answer it for a while only. Through the real daemon."""

from pathlib import Path

import pytest

from exporter.collect.nvml.library import CLAIM_SECONDS, DeviceCalls, error_for
from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, FakeNvml, Load


NOT_SUPPORTED, INVALID_ARGUMENT, FUNCTION_NOT_FOUND, UNKNOWN = 3, 2, 13, 999
CONFIG = """
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
sampling: {interval: 250ms, slow_interval: 1s}
processes: {memory: true}
"""
ERRORS = "flopwatch_source_errors_total"
PROCESS_MEMORY = "flopwatch_process_memory_bytes"
LINKS = 18  # NVLinks of an H100 SXM


def every_family(scrape: Scrape, gpu: int) -> set[str]:
    """Names of all families exported for a GPU."""
    return {name for name, labels in scrape.samples if ("gpu", str(gpu)) in labels}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, INVALID_ARGUMENT])
def test_calls_that_worked_before_are_retried(tmp_path: Path, code: int) -> None:
    """Readings that a GPU refuses for a while all return; each is counted and logged once."""
    functions = (
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo*",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetComputeRunningProcesses*",
    )
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        fake.set_processes(0, [(4242, 2**30, "compute")])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            whole = daemon.wait_until(
                lambda s: (
                    s.has("flopwatch_processes", gpu="0")
                    and s.has("flopwatch_tick_flops_utilization_ratio_count", gpu="0")
                    and s.has("flopwatch_nvlinks_up", gpu="0")
                )
            )
            for function in functions:
                fake.fail(function, code, gpu=0)
            refused = daemon.wait_until(
                lambda s: (
                    not any(
                        s.has(name, gpu="0")
                        for name in (
                            "flopwatch_power_watts",
                            "flopwatch_memory_clock_hertz",
                            "flopwatch_remapped_rows",
                            "flopwatch_processes",
                            "flopwatch_nvlinks_up",
                            "flopwatch_memory_used_bytes",
                        )
                    )
                )
            )
            fake.clear()
            healed = daemon.wait_until(lambda s: every_family(s, 0) >= every_family(whole, 0), 120)
            log = daemon.log

    reason = "not_supported" if code == NOT_SUPPORTED else "invalid_argument"
    assert refused.value("flopwatch_gpu_up", gpu="0") == 1
    assert refused.total(ERRORS, gpu="0", reason=reason) > 0
    assert every_family(refused, 1) >= every_family(whole, 1)
    assert healed.value("flopwatch_nvlinks_up", gpu="0") == LINKS
    assert log.count("event=nvml_call_failed device=0 function=nvmlDeviceGetPowerUsage") == 1
    assert log.count("event=nvml_call_answers_again device=0 function=nvmlDeviceGetPowerUsage") == 1
    assert log.count("event=nvml_call_failed device=0 function=nvmlDeviceGetNvLinkState") == 1


def test_a_link_that_does_not_answer_is_not_down(tmp_path: Path) -> None:
    """Of 18 links one fails: 17 are shown as they are, their sum is not known, and no other link is lost."""
    with (
        FakeNvml([H100, H100], tmp_path) as fake,
        DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon,
    ):
        daemon.wait_until(lambda s: s.total("flopwatch_nvlinks_up") == 2 * LINKS)
        fake.fail_nvlink_state(0, 3, UNKNOWN)
        scrape = daemon.wait_until(lambda s: not s.has("flopwatch_nvlink_up", gpu="0", link="3"))
        fake.fail_nvlink_state(0, 3, NOT_SUPPORTED)
        fake.set_nvlink_state(0, 17, up=False)
        later = daemon.wait_until(lambda s: s.value("flopwatch_nvlink_up", gpu="0", link="17") == 0)
        fake.fail_nvlink_state(0, 3, 0)
        healed = daemon.wait_until(lambda s: s.has("flopwatch_nvlinks_up", gpu="0"))

    for seen in (scrape, later):
        assert len(seen.series("flopwatch_nvlink_up", gpu="0")) == LINKS - 1
        assert not seen.has("flopwatch_nvlinks_up", gpu="0")
        assert seen.value("flopwatch_nvlinks_up", gpu="1") == LINKS
    assert healed.value("flopwatch_nvlinks_up", gpu="0") == LINKS - 1


def test_a_link_without_an_answer_hides_no_other_link(tmp_path: Path) -> None:
    """The list of links does not end with the first that has no answer."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.fail_nvlink_state(0, 3, NOT_SUPPORTED)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.has("flopwatch_nvlink_up", gpu="0"))

    assert len(scrape.series("flopwatch_nvlink_up", gpu="0")) == LINKS - 1
    assert scrape.has("flopwatch_nvlink_up", gpu="0", link="17")


@pytest.mark.parametrize(
    "missing",
    [
        ("nvmlDeviceGetComputeRunningProcesses_v3",),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    ],
)
def test_old_drivers_list_processes_by_their_own_calls(
    tmp_path: Path, missing: tuple[str, ...]
) -> None:
    """Drivers before 510 have no _v3, those before 450 no suffix: the processes are the same."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.set_processes(0, [(4242, 3 * 2**30, "compute"), (4243, 2**30, "compute")])
        for function in missing:
            fake.fail(function, FUNCTION_NOT_FOUND)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.has("flopwatch_processes", gpu="0"))

    assert scrape.value("flopwatch_processes", gpu="0") == 2
    assert scrape.value(PROCESS_MEMORY, gpu="0", pid="4242") == 3 * 2**30
    assert scrape.value(PROCESS_MEMORY, gpu="0", pid="4243") == 2**30


def test_impossible_processes_are_left_out(tmp_path: Path) -> None:
    """Pids beyond Linux's maximum, memory beyond the GPU's: left out and counted; valid ones stay.

    With an entry that is not a process, the number of processes is unknown.
    """
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.set_processes(
            0,
            [
                (4242, 2**30, "compute"),
                (0, 2**30, "compute"),
                (2**22 + 1, 2**30, "compute"),
                (2**32 - 1, 2**64 - 2, "compute"),
            ],
        )
        fake.set_processes(1, [(4343, 2**30, "compute"), (4344, 2**40, "compute")])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: s.has("flopwatch_processes", gpu="1") and s.has(PROCESS_MEMORY, gpu="0")
            )

    assert [dict(labels)["pid"] for labels in scrape.series(PROCESS_MEMORY, gpu="0")] == ["4242"]
    assert not scrape.has("flopwatch_processes", gpu="0")
    assert scrape.total(ERRORS, gpu="0", source="nvml", reason="implausible") >= 3
    assert [dict(labels)["pid"] for labels in scrape.series(PROCESS_MEMORY, gpu="1")] == ["4343"]
    assert scrape.value("flopwatch_processes", gpu="1") == 2


@pytest.mark.parametrize("blank", [2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_blank_is_never_a_first_value(tmp_path: Path, blank: int) -> None:
    """A counter that begins with a blank of any width is absent, and counts from its first true value on."""
    fields = (138, 139, 74, 83, 269)  # NVLink transmit and receive, two event reasons, energy
    with FakeNvml([H100], tmp_path) as fake:
        fake.fail("nvmlGpm*", NOT_SUPPORTED)  # so that link bytes come from field values
        fake.fail("nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED)
        for field in fields:
            fake.set_field(0, field, blank)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            blanked = daemon.wait_until(
                lambda s: s.total(ERRORS, gpu="0", source="nvml", reason="implausible") > 5
            )
            for field, value in zip(fields, (1000, 2000, 3 * 10**9, 5 * 10**6, 10**9), strict=True):
                fake.set_field(0, field, value)
            first = daemon.wait_until(lambda s: s.has("flopwatch_energy_joules_total", gpu="0"))
            for field, value in zip(
                fields, (1500, 2700, 4 * 10**9, 5 * 10**6 + 800, 10**9), strict=True
            ):
                fake.set_field(0, field, value)
            last = daemon.wait_until(
                lambda s: s.value("flopwatch_energy_joules_total", gpu="0") > 5000
            )

    for name in (
        "flopwatch_nvlink_transmit_bytes_total",
        "flopwatch_nvlink_receive_bytes_total",
        "flopwatch_energy_joules_total",
    ):
        assert not blanked.has(name, gpu="0"), name
    assert first.value("flopwatch_energy_joules_total", gpu="0") == 5000
    assert last.value("flopwatch_energy_joules_total", gpu="0") == pytest.approx(5000.8)
    assert last.value("flopwatch_nvlink_transmit_bytes_total", gpu="0") == 1500 * 1024
    assert last.value("flopwatch_nvlink_receive_bytes_total", gpu="0") == 2700 * 1024
    reasons = {
        dict(labels)["reason"]: value
        for labels, value in last.series("flopwatch_clock_event_seconds_total", gpu="0").items()
    }
    # While blanks came, the mask of reasons was counted: from then on a counter adds what it grows by.
    assert 1.0 <= reasons["sw_power_cap"] < 10
    assert 0.0 <= reasons["sw_thermal_slowdown"] < 10


def test_calls_that_never_worked_are_retried_after_ten_minutes() -> None:
    """One question, then none for ten minutes; what a MIG mode change may bring is asked at once."""
    now = [0.0]
    calls = DeviceCalls(None, device="0", clock=lambda: now[0])
    key = ("nvmlDeviceGetPowerUsage",)

    calls.refuse(key, error_for("nvmlDeviceGetPowerUsage", NOT_SUPPORTED))
    assert not calls.may_ask(key)
    assert calls.unsupported(*key)
    assert not calls.errors
    now[0] = CLAIM_SECONDS
    assert calls.may_ask(key)
    calls.refuse(key, error_for("nvmlDeviceGetPowerUsage", NOT_SUPPORTED))
    assert not calls.may_ask(key)
    calls.forget_claims()
    assert calls.may_ask(key)
    assert not calls.unsupported(*key)
