"""Which peak a board gets, and what its FLOP are worth then: through the real daemon."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess
from tests.fake_nvml import H100, FakeNvml, Load


CONFIG = """
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
sampling: {interval: 250ms}
"""
GPU_INFO = "flopwatch_gpu_info"
PEAK, INFO = "flopwatch_peak_flops", "flopwatch_peak_info"
DRAM = "flopwatch_peak_dram_bandwidth_bytes_per_second"


def test_boards_get_their_own_peak_or_none(tmp_path: Path) -> None:
    """L20 by its sheet; GB300 NVL without a core count by its sheet; a strange board called H20 by its silicon."""
    l20 = replace(
        H100,
        name="NVIDIA L20",
        architecture="ada",
        compute_major=8,
        compute_minor=9,
        num_gpu_cores=92 * 128,
        multiprocessor_count=92,
        memory_bus_width_bits=384,
        memory_total_bytes=46068 << 20,
        max_sm_clock_mhz=2520,
        max_memory_clock_mhz=9001,
    )
    gb300 = replace(
        H100,
        name="NVIDIA GB300 NVL",
        architecture="blackwell",
        compute_major=10,
        compute_minor=3,
        memory_bus_width_bits=8192,
        memory_total_bytes=284208 << 20,
        max_sm_clock_mhz=2062,
        max_memory_clock_mhz=3996,
        function_codes={**H100.function_codes, "nvmlDeviceGetNumGpuCores": 3},
    )
    h20_3e = replace(
        H100,
        name="NVIDIA H20-3e",
        num_gpu_cores=78 * 128,
        multiprocessor_count=78,
        memory_bus_width_bits=6144,
        memory_total_bytes=143771 << 20,
        max_memory_clock_mhz=3201,
    )
    strange = replace(h20_3e, name="NVIDIA H20")
    unknown = replace(l20, name="NVIDIA L23")
    with FakeNvml([l20, gb300, h20_3e, strange, unknown], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(gpu.profile.fit(Load.prefill()))
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: all(s.has("flopwatch_sm_active_ratio", gpu=str(n)) for n in range(5))
            )

    origins = {dict(labels)["gpu"]: dict(labels)["origin"] for labels in scrape.series(INFO)}
    assert origins == {
        "0": "datasheet",
        "1": "datasheet",
        "2": "datasheet",
        "3": "derived",
        "4": "derived",
    }
    assert scrape.value(PEAK, gpu="0", precision="bf16") == 119.5e12
    assert scrape.value(PEAK, gpu="1", precision="bf16") == 2.5e15
    assert scrape.value(DRAM, gpu="2") == 4.8e12
    assert scrape.value(PEAK, gpu="3", precision="bf16") == pytest.approx(148e12, rel=0.01)
    assert scrape.value(DRAM, gpu="3") == pytest.approx(2 * 3.201e9 * 6144 / 8)
    assert not scrape.has(PEAK, gpu="4")
    assert not scrape.has("flopwatch_flop_total", gpu="4")
    # 92 SMs x 512 FLOP a clock at the clock that runs: half of what compute capability 8.9 says.
    active = scrape.value("flopwatch_pipe_active_ratio", gpu="0", pipe="tensor")
    clock = scrape.value("flopwatch_sm_clock_hertz", gpu="0")
    achieved = scrape.value("flopwatch_achieved_flops", gpu="0", precision="bf16")
    assert achieved == pytest.approx(active * clock * 92 * 512, rel=0.02)


def test_the_configuration_takes_precedence(tmp_path: Path) -> None:
    """A board missing from the table, or wrong in it, gets its peaks from the configuration."""
    unknown = replace(H100, name="NVIDIA H30", num_gpu_cores=0)
    rules = """gpus:
  - {match: {name: "NVIDIA H30"}, sm_count: 100, peaks: {bf16: 4e14, fp8: 8e14}, dram_bandwidth: 3e12}
  - {match: {index: 1}, peaks: {bf16: 9.0e14}}
"""
    with FakeNvml([unknown, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.prefill())
        with DaemonProcess(tmp_path, config=CONFIG + rules, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: all(s.has("flopwatch_flops_utilization_ratio", gpu=n) for n in "01")
            )

    for gpu, bf16 in (("0", 4e14), ("1", 9e14)):
        assert scrape.value(INFO, gpu=gpu, origin="config") == 1
        assert scrape.value(PEAK, gpu=gpu, precision="bf16") == bf16
    assert scrape.value(GPU_INFO, gpu="0", sm_count="100") == 1
    assert scrape.value(DRAM, gpu="0") == 3e12
    assert scrape.value(DRAM, gpu="1") == 3.35e12
    assert scrape.value(PEAK, gpu="1", precision="fp8") == 1978.9e12
    # Its rate follows: the share of the peak is the pipe's active share, times that of the clock.
    active = scrape.value("flopwatch_pipe_active_ratio", gpu="0", pipe="hmma")
    clock = scrape.value("flopwatch_sm_clock_hertz", gpu="0")
    assert scrape.value(
        "flopwatch_flops_utilization_ratio", gpu="0", precision="bf16"
    ) == pytest.approx(active * clock / 1.98e9, rel=0.02)


@pytest.mark.parametrize(
    ("rule", "mistake"),
    [
        ("peaks: {bf61: 1e15}", "gpus[0].peaks: has an unknown key 'bf61', did you mean bf16?"),
        ("peaks: {bf16: fast}", "gpus[0].peaks: bf16 must be a number such as 2.5e15, got 'fast'"),
        ("peaks: 1e15", "gpus[0].peaks: must be a mapping of fp64, fp32"),
        ("sm_count: 0", "gpus[0].sm_count: must be at least 1, got 0"),
        ("dram_bandwidth: -1", "gpus[0].dram_bandwidth: must be above 0"),
    ],
)
def test_an_invalid_peak_is_refused(tmp_path: Path, rule: str, mistake: str) -> None:
    """One line with the place of the mistake, and exit code 2."""
    with (
        FakeNvml([H100], tmp_path) as fake,
        DaemonProcess(
            tmp_path, config=CONFIG + f"gpus: [{{{rule}}}]\n", environment=fake.env, wait=False
        ) as daemon,
    ):
        assert daemon.process.wait(20) == 2
        daemon._reader.join(5)
        assert mistake in daemon.log
