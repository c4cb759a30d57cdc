"""dcgm-exporters of every generation, and answers with broken lines, through the real daemon."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.collect.dcgm_windows import DcgmDevice, DeviceWindows, parse
from tests.daemon.process import DaemonProcess, Scrape
from tests.dcgm.server import DcgmExporter, device_rows, row
from tests.fake_nvml import A100, H100, FakeNvml, Load


ERRORS, FLOP, UP = "flopwatch_source_errors_total", "flopwatch_flop_total", "flopwatch_source_up"
# What dcgm-exporter 4.9 has as its default and its profiling fields.
NEW_NAMES = {
    "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO": 0.9,
    "DCGM_FI_PROF_SM_UTIL_RATIO": 0.8,
    "DCGM_FI_PROF_SM_OCCUPANCY_RATIO": 0.4,
    "DCGM_FI_PROF_TENSOR_UTIL_RATIO": 0.5,
    "DCGM_FI_PROF_DRAM_UTIL_RATIO": 0.4,
    "DCGM_FI_PROF_FP64_UTIL_RATIO": 0.0,
    "DCGM_FI_PROF_FP32_UTIL_RATIO": 0.1,
    "DCGM_FI_PROF_FP16_UTIL_RATIO": 0.0,
    # Renamed with new units, or new: none of them is read.
    "DCGM_FI_DEV_SM_CLOCK_HERTZ": 1.41e9,
    "DCGM_FI_DEV_FB_CAPACITY_BYTES": 85899345920.0,
    "DCGM_FI_DEV_GPU_UTIL_RATIO": 0.9,
}
BROKEN = (
    # dcgm-exporter could not convert a field's value.
    'DCGM_FI_DEV_VGPU_TYPE_INFO{{gpu="0",UUID="{0}"}} ERROR - FAILED TO CONVERT TO STRING',
    'DCGM_FI_PROF_PIPE_INT_ACTIVE{{gpu="0",UUID="{0}"}} ',
    'DCGM_FI_PROF_PIPE_INT_ACTIVE{{gpu="0",UUID="{0}",modelName="A100 "special" 80GB"}} 0.5',
    'DCGM_FI_PROF_PIPE_INT_ACTIVE{{gpu="0",UUID="{0}" 0.5',
    'DCGM_FI_PROF_PIPE_INT_ACTIVE{{gpu="0",UUID="{0}"}} 0,5',
)


def config(url: str) -> str:
    return (
        "probes: {enabled: false}\n"
        "sampling: {interval: 250ms}\n"
        "sources: {cpu: 'off', gpm: 'off'}\n"
        f"dcgm: {{url: '{url}'}}\n"
    )


@contextmanager
def showing(dcgm: DcgmExporter, rows: object, seconds: float = 1.0) -> Iterator[None]:
    """Show what `rows(number)` returns, renewed at this interval in seconds."""
    done = threading.Event()

    def collect() -> None:
        number = 0
        while not done.is_set():
            number += 1
            dcgm.show(rows(number))  # type: ignore[operator]
            done.wait(seconds)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def accounted(scrape: Scrape) -> float:
    return scrape.total("flopwatch_gpu_seconds_total", gpu="0")


def moving(values: dict[str, float], number: int) -> dict[str, float]:
    """Activities differ in the ninth digit from collection to collection, as real ones do."""
    return {
        name: value + number * 1e-9 if name.startswith("DCGM_FI_PROF") and value else value
        for name, value in values.items()
    }


def test_the_new_names_give_the_same_flops(tmp_path: Path) -> None:
    """dcgm-exporter 4.9: 108 SMs x 2048 FLOP per clock x 1.41 GHz x 0.5, and no field is missing."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))
        labels = {"gpu": "0", "uuid": fake.gpu(0).uuid, "hostname": "node"}
        with (
            showing(dcgm, lambda number: device_rows(moving(NEW_NAMES, number), **labels)),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            first = daemon.wait_until(lambda s: s.total(FLOP) > 0)
            last = daemon.wait_until(lambda s: accounted(s) >= accounted(first) + 4)

    grown = last.value(FLOP, pipe="tensor") - first.value(FLOP, pipe="tensor")
    assert grown / (accounted(last) - accounted(first)) == pytest.approx(155.9e12, rel=0.01)
    assert last.value("flopwatch_sm_occupancy_ratio") == pytest.approx(0.4, abs=1e-6)
    assert not last.has("flopwatch_source_field_missing")
    assert not last.has(ERRORS, source="dcgm")


def test_a_malformed_line_affects_no_other_line(tmp_path: Path) -> None:
    """Both GPUs keep their FLOPS; the broken lines are counted per device and logged once."""
    with FakeNvml([A100, A100], tmp_path) as fake, DcgmExporter() as dcgm:
        for gpu in fake.gpus:
            gpu.set_load(Load(sm_clock_mhz=1410, graphics=0.9, power_watts=300))

        def rows(number: int) -> list[str]:
            lines = [line.format(fake.gpu(0).uuid) for line in BROKEN]
            for gpu in fake.gpus:
                lines += device_rows(moving(NEW_NAMES, number), gpu=str(gpu.slot), UUID=gpu.uuid)
            return lines

        with (
            showing(dcgm, rows),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            scrape = daemon.wait_until(
                lambda s: (
                    all(s.total(FLOP, gpu=gpu) > 0 for gpu in ("0", "1"))
                    and s.total(ERRORS, source="dcgm", reason="malformed") > 5
                )
            )
            log = daemon.log

    for gpu in ("0", "1"):
        assert scrape.value(UP, gpu=gpu, source="dcgm") == 1
    assert scrape.value(ERRORS, gpu="0", source="dcgm", reason="malformed") % 5 == 0
    assert not scrape.has(ERRORS, gpu="1", source="dcgm")
    assert log.count("event=dcgm_lines_malformed") == 1
    assert "run dcgm-exporter" not in log


def test_an_answer_with_only_malformed_lines_is_not_a_missing_exporter(tmp_path: Path) -> None:
    """The remedy does not ask for a dcgm-exporter that already runs."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        dcgm.show([line.format(fake.gpu(0).uuid) for line in BROKEN])
        with DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.has(ERRORS, source="dcgm", reason="malformed"))
            log = daemon.log

    assert scrape.value(UP, source="dcgm") == 0
    assert "it answers, but with no usable metric" in log
    assert "run dcgm-exporter" not in log


def test_cycle_totals_are_exact(tmp_path: Path) -> None:
    """132 SMs x 4096 FLOP x the HMMA pipe's active cycles, whatever the means show.

    Half of the cycles at 1.2 GHz, although NVML shows a clock of 1.98 GHz between.
    """
    hertz, share = 1.2e9, 0.5
    with FakeNvml([H100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1980, graphics=0.9, power_watts=300))
        began = time.monotonic()

        def rows(number: int) -> list[str]:
            cycles = 3e15 + hertz * (time.monotonic() - began)
            values = {
                "DCGM_FI_PROF_SM_CYCLES_ELAPSED_TOTAL": cycles,
                "DCGM_FI_PROF_SM_CYCLES_ACTIVE_TOTAL": 0.8 * cycles,
                "DCGM_FI_PROF_MMA_CYCLES_ACTIVE_TOTAL": share * cycles,
                "DCGM_FI_PROF_HMMA_CYCLES_ACTIVE_TOTAL": share * cycles,
                "DCGM_FI_PROF_FP64_CYCLES_ACTIVE_TOTAL": 0.0,
                "DCGM_FI_PROF_FP32_CYCLES_ACTIVE_TOTAL": 0.1 * cycles,
                "DCGM_FI_PROF_FP16_CYCLES_ACTIVE_TOTAL": 0.0,
                "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.25 + number * 1e-9,
                "DCGM_FI_PROF_SM_ACTIVE": 0.3,
            }
            return [
                row(
                    name,
                    f"{value:.0f}" if "CYCLES" in name else value,
                    gpu="0",
                    UUID=fake.gpu(0).uuid,
                )  # type: ignore[arg-type]
                for name, value in values.items()
            ]

        with (
            showing(dcgm, rows),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            first = daemon.wait_until(lambda s: s.total(FLOP) > 0)
            last = daemon.wait_until(lambda s: accounted(s) >= accounted(first) + 6)

    seconds = accounted(last) - accounted(first)
    grown = last.value(FLOP, pipe="tensor", precision="bf16") - first.value(
        FLOP, pipe="tensor", precision="bf16"
    )
    # A window spans the looks that saw two collections: each end may be off by one look.
    assert grown / seconds == pytest.approx(132 * 4096 * hertz * share, rel=0.2)
    assert last.value("flopwatch_pipe_active_ratio", pipe="hmma") == pytest.approx(share, rel=1e-6)
    assert last.value("flopwatch_sm_active_ratio") == pytest.approx(0.8, rel=1e-6)


def test_totals_that_fall_are_a_reset() -> None:
    """The mean of the collection is used for the window in which the device was reset."""

    def sample(elapsed: float, active: float, mean: float):
        text = "\n".join(
            (
                row("DCGM_FI_PROF_SM_CYCLES_ELAPSED_TOTAL", elapsed, UUID="GPU-1"),
                row("DCGM_FI_PROF_SM_CYCLES_ACTIVE_TOTAL", active, UUID="GPU-1"),
                row("DCGM_FI_PROF_SM_ACTIVE", mean, UUID="GPU-1"),
            )
        )
        return parse(text)[DcgmDevice("GPU-1")]

    windows = DeviceWindows()
    windows.observe(sample(1e15, 5e14, 0.5), 100.0, 30.0)
    _new, (exact,) = windows.observe(sample(1e15 + 30e9, 5e14 + 6e9, 0.4), 130.0, 30.0)
    _new, (reset,) = windows.observe(sample(20e9, 2e9, 0.1), 160.0, 30.0)

    assert (exact.sm, exact.sm_cycles) == (0.2, 30e9)
    assert (reset.sm, reset.sm_cycles) == (0.1, None)


@pytest.mark.parametrize(
    "line",
    [
        "DCGM_FI_X 1",
        'DCGM_FI_DEV_OTHER{UUID="GPU-1"} 1',
        'go_gc{UUID="GPU-1"} 1',
        'DCGM_FI_PROF_SM_ACTIVE{UUID="GPU-%d"} 0.5',
    ],
)
def test_an_answer_of_eight_megabytes_takes_bounded_time(line: str) -> None:
    """Whatever it contains, reading it takes less than 4 MiB in addition to the text itself."""
    lines = 8 * 2**20 // (len(line) + 5)
    text = "\n".join(line % number if "%d" in line else line for number in range(lines))
    text += "\n" + row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5, UUID="GPU-1")
    tracemalloc.start()
    devices = parse(text)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * 2**20
    assert len(devices) <= 1024
