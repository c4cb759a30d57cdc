"""GPUs without GPM beside a dcgm-exporter, through the real daemon."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.dcgm.server import ALL_FIELDS, DEFAULT_FIELDS, DcgmExporter, Device, collecting
from tests.fake_nvml import A100, H100, FakeNvml, Load


COLLECT_SECONDS = 2.0
FAST = "sampling: {interval: 250ms, slow_interval: 1s}\n"
WORK = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.9,
    "DCGM_FI_PROF_SM_ACTIVE": 0.8,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.5,
    "DCGM_FI_PROF_DRAM_ACTIVE": 0.4,
}


def config(url: str) -> str:
    return f"probes: {{enabled: false}}\nsources: {{cpu: 'off'}}\ndcgm: {{url: '{url}'}}\n"


def one_gpu(uuid: str, values: Mapping[str, float]) -> list[Device]:
    return [Device({"gpu": "0", "UUID": uuid, "Hostname": "node"}, values)]


def test_flops_of_an_a100(tmp_path: Path) -> None:
    """Tensor work is the tensor activity's share of the peak at the clock, each sample counted once."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        values = {**dict.fromkeys(ALL_FIELDS, 0.0), **WORK}
        with (
            collecting(dcgm, one_gpu(fake.gpu(0).uuid, values), COLLECT_SECONDS),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            first = daemon.wait_until(lambda s: s.total("flopwatch_flop_total") > 0)
            last = daemon.wait_until(lambda s: accounted(s) >= accounted(first) + 8)

    seconds = accounted(last) - accounted(first)
    grown = {
        name: last.value(name, **labels) - first.value(name, **labels)
        for name, labels in (
            ("flopwatch_flop_total", {"pipe": "tensor"}),
            ("flopwatch_dram_bytes_total", {}),
        )
    }
    # 108 SMs x 2048 FLOP per clock x 1.41 GHz x 0.5
    assert grown["flopwatch_flop_total"] / seconds == pytest.approx(155.9e12, rel=0.01)
    # 0.4 of 2039 GB/s
    assert grown["flopwatch_dram_bytes_total"] / seconds == pytest.approx(815.6e9, rel=0.01)
    states = {
        state: (last.value(SECONDS, state=state) - first.value(SECONDS, state=state)) / seconds
        for state in ("tensor", "memory", "stall", "underfill", "idle")
    }
    # (0.8 - 0.5) of the time outside the tensor pipe; memory explains 0.4 / 0.8 / 0.92 of it.
    assert states == pytest.approx(
        {"tensor": 0.5, "memory": 0.163, "stall": 0.137, "underfill": 0.1, "idle": 0.1}, abs=0.01
    )
    assert last.value("flopwatch_source_up", source="dcgm") == 1
    assert last.value("flopwatch_sm_active_ratio") == pytest.approx(0.8, abs=1e-6)


SECONDS, FLOP = "flopwatch_gpu_seconds_total", "flopwatch_flop_total"
ERRORS = "flopwatch_source_errors_total"
MISSING = "flopwatch_source_field_missing"
UP = "flopwatch_source_up"


def accounted(scrape: Scrape) -> float:
    return scrape.total(SECONDS)


def test_default_fields_leave_the_rest_unresolved(tmp_path: Path) -> None:
    """Without SM activity, time that is neither tensor nor idle is unresolved; the field is named.

    Once in the log, and in /metrics until the counters file has it.
    """
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        values = {name: WORK[name] for name in DEFAULT_FIELDS}
        whole = {**dict.fromkeys(ALL_FIELDS, 0.25), **values}
        with DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon:
            with collecting(dcgm, one_gpu(fake.gpu(0).uuid, values), COLLECT_SECONDS):
                first = daemon.wait_until(lambda s: s.total("flopwatch_flop_total") > 0)
                last = daemon.wait_until(lambda s: accounted(s) >= accounted(first) + 4)
                daemon.wait_for(lambda: "dcgm_fields_missing" in daemon.log)
                log = daemon.log
            with collecting(dcgm, one_gpu(fake.gpu(0).uuid, whole), COLLECT_SECONDS):
                complete = daemon.wait_until(lambda s: s.has("flopwatch_sm_active_ratio"))

    assert {dict(labels)["field"] for labels in last.series(MISSING, source="dcgm")} == {
        "DCGM_FI_PROF_SM_ACTIVE",
        "DCGM_FI_PROF_PIPE_FP64_ACTIVE",
        "DCGM_FI_PROF_PIPE_FP32_ACTIVE",
        "DCGM_FI_PROF_PIPE_FP16_ACTIVE",
    }
    assert set(last.series(MISSING).values()) == {1.0}
    assert not complete.has(MISSING)
    seconds = accounted(last) - accounted(first)
    unresolved = last.value(SECONDS, state="unresolved") - first.value(SECONDS, state="unresolved")
    assert unresolved / seconds == pytest.approx(0.4, abs=0.01)
    assert last.value(SECONDS, state="stall") == 0
    assert log.count("dcgm_fields_missing") == 1
    assert "DCGM_FI_PROF_SM_ACTIVE" in log


def test_a_dead_dcgm_exporter_affects_nothing_else(tmp_path: Path) -> None:
    """NVML's values go on, the time is unresolved, and `auto` counts no error for what never was."""
    with FakeNvml([A100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        url = "http://127.0.0.1:1/metrics"
        with DaemonProcess(tmp_path, config=config(url), environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SECONDS) >= 2)

    assert scrape.value("flopwatch_source_up", source="dcgm") == 0
    assert scrape.value("flopwatch_power_watts") == 455
    assert not scrape.has("flopwatch_source_errors_total", source="dcgm")
    assert not scrape.has("flopwatch_flop_total")


def test_gpus_with_gpm_do_not_ask(tmp_path: Path) -> None:
    """No connection is made where GPM answers for every GPU."""
    with (
        FakeNvml([H100], tmp_path) as fake,
        DcgmExporter() as dcgm,
        DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
    ):
        scrape = daemon.wait_until(lambda s: s.total(SECONDS) >= 2)

    assert dcgm.scrapes == 0
    assert not scrape.has("flopwatch_source_up", source="dcgm")


def test_garbage_is_an_error_of_the_source(tmp_path: Path) -> None:
    """Another program on the port is not mistaken for a dcgm-exporter."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        dcgm.show(["<html>hello</html>"])
        with DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: s.has("flopwatch_source_errors_total", source="dcgm")
            )
            time.sleep(0.1)

    assert scrape.value("flopwatch_source_errors_total", source="dcgm", reason="not_dcgm") >= 1
    assert scrape.value("flopwatch_source_up", source="dcgm") == 0


def test_a_counters_file_without_pipes_is_not_up(tmp_path: Path) -> None:
    """Memory and engine activity alone give no FLOPS: the source reports it, and uses what it has."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        values = {
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 0.9,
            "DCGM_FI_PROF_DRAM_ACTIVE": 0.4,
        }
        with (
            collecting(dcgm, one_gpu(fake.gpu(0).uuid, values), COLLECT_SECONDS),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            scrape = daemon.wait_until(lambda s: s.total("flopwatch_dram_bytes_total") > 0)
            log = daemon.log

    assert scrape.value("flopwatch_source_up", source="dcgm") == 0
    assert scrape.total("flopwatch_source_errors_total", source="dcgm", reason="no_fields") > 0
    assert not scrape.has(FLOP)
    assert scrape.value("flopwatch_gpu_active_ratio") == pytest.approx(0.9, abs=1e-6)
    assert "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" in log
    assert "DCGM_EXPORTER_COLLECTORS" in log


def test_a_frozen_profiler_is_implausible(tmp_path: Path) -> None:
    """The same activities for 2.5 intervals of a busy GPU: counted, left out, and logged once."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        with DaemonProcess(
            tmp_path, config=config(dcgm.url) + FAST, environment=fake.env
        ) as daemon:
            with collecting(dcgm, one_gpu(fake.gpu(0).uuid, WORK), 1.0):
                daemon.wait_until(lambda s: s.total(FLOP) > 0)
                # The interval is learned from two more changes.
                known = daemon.scrape().total(SECONDS)
                daemon.wait_until(lambda s: s.total(SECONDS) >= known + 3)
            # Collection has stopped, and the last collection is shown forever.
            still = daemon.wait_until(
                lambda s: s.total(ERRORS, source="dcgm", reason="implausible") > 1
            )
            daemon.wait_until(lambda s: s.total(SECONDS, state="unresolved") > 1)
            with collecting(dcgm, one_gpu(fake.gpu(0).uuid, WORK), 1.0):
                daemon.wait_until(lambda s: s.value(UP, source="dcgm") == 1)
                daemon.wait_for(lambda: "dcgm_moves_again" in daemon.log)
            log = daemon.log

    assert still.value(UP, source="dcgm") == 0
    assert not still.has("flopwatch_sm_active_ratio")
    assert log.count("event=dcgm_stands_still") == 1


def test_a_profiler_that_returns_only_zeros_is_implausible(tmp_path: Path) -> None:
    """Zeros at full utilization and 300 of 400 W (DCGM#303): left out, counted, the time unresolved."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(
            Load(sm_clock_mhz=1410, graphics=1.0, gpu_utilization=1.0, power_watts=300)
        )
        silent = one_gpu(fake.gpu(0).uuid, dict.fromkeys(ALL_FIELDS, 0.0))
        with DaemonProcess(
            tmp_path, config=config(dcgm.url) + FAST, environment=fake.env
        ) as daemon:
            with collecting(dcgm, one_gpu(fake.gpu(0).uuid, WORK), 1.0):
                daemon.wait_until(lambda s: s.total(FLOP) > 0)
                # The interval is learned from two more changes.
                known = daemon.scrape().total(SECONDS)
                daemon.wait_until(lambda s: s.total(SECONDS) >= known + 3)
            with collecting(dcgm, silent, 1.0):
                scrape = daemon.wait_until(
                    lambda s: s.total(ERRORS, source="dcgm", reason="implausible") > 1
                )

    assert not scrape.has("flopwatch_sm_active_ratio")
    assert scrape.value(SECONDS, state="unresolved") > 0
