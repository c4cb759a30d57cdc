"""The counters report what the GPU did."""

import json
import random
import re
import time
from dataclasses import replace

import pytest

from tests.fake_nvml import A100, H100, H100_NO_CYCLES, L4, FakeNvml, GpuProfile, Load


SMS = 132
BF16, FP32 = 4096, 256
SECONDS = 10
REST = Load.idle()
SECONDS_TOTAL = "flopwatch_gpu_seconds_total"


def varying_load(fake: FakeNvml, begin_ns: int, seed: int) -> int:
    """Ten seconds of loads of 0.3 to 0.9 s at clocks that move with them, rest before and after."""
    chance = random.Random(seed)
    at, end = begin_ns, begin_ns + SECONDS * 1_000_000_000
    while at < end:
        hmma = chance.uniform(0.0, 0.8)
        load = Load(
            graphics=1.0,
            sm=min(1.0, hmma + chance.uniform(0.0, 0.3)),
            any_tensor=hmma,
            hmma_tensor=hmma,
            dram=chance.uniform(0.0, 0.9),
            fp32=chance.uniform(0.0, 0.1),
            sm_clock_mhz=chance.randrange(1500, 1980),
            memory_clock_mhz=2619,
            power_watts=chance.uniform(200, 700),
            nvlink_rx_bytes_per_second=chance.uniform(0, 300e9),
            pcie_tx_bytes_per_second=chance.uniform(0, 20e9),
        )
        fake.gpu(0).set_load(load, at)
        at = min(end, at + int(chance.uniform(0.3, 0.9) * 1e9))
    fake.gpu(0).set_load(REST, end)
    return end


@pytest.mark.parametrize(
    ("profile", "source", "tolerance"),
    [(H100, "gpm_cycles", 0.01), (H100_NO_CYCLES, "gpm", 0.02)],
    ids=["cycles", "percent"],
)
@pytest.mark.parametrize("slow_calls", [False, True], ids=["on time", "ticks missed"])
def test_flop_and_bytes_follow_a_varying_load(
    start, profile: GpuProfile, source: str, tolerance: float, slow_calls: bool
) -> None:
    """Over ten seconds of a constantly changing load, FLOP, bytes and time agree with the truth.

    Also when driver calls take so long that ticks are missed: their windows are only longer. Where the
    device counts no cycles, a longer window has fewer samples of its clock, so the bound is wider.
    """
    if slow_calls and source == "gpm":
        tolerance *= 2
    fake, daemon = start([profile], prepare=lambda fake: fake.gpu(0).set_load(REST))
    ticked = daemon.wait_until(lambda scrape: scrape.has("flopwatch_flop_total", source=source))
    # The first window is a short one between two ticks: begin with a whole one.
    first = daemon.wait_until(
        lambda scrape: scrape.total(SECONDS_TOTAL) > ticked.total(SECONDS_TOTAL)
    )

    begin = time.monotonic_ns() + 100_000_000
    end = varying_load(fake, begin, seed=7)
    while time.monotonic_ns() < end:
        if slow_calls:
            fake.delay("nvmlDeviceGetPowerUsage", 1.3)
            time.sleep(1.4)
            fake.release("nvmlDeviceGetPowerUsage")
            fake.clear("nvmlDeviceGetPowerUsage")
        time.sleep(0.5)
    # The tick that saw the end, and one more.
    watched = daemon.scrape().total(SECONDS_TOTAL)
    last = daemon.wait_until(lambda scrape: scrape.total(SECONDS_TOTAL) > watched + 2)
    seen = time.monotonic_ns()

    truth = fake.gpu(0).truth(begin, end)

    def grown(name: str, **labels: str) -> float:
        return last.total(name, **labels) - first.total(name, **labels)

    assert grown("flopwatch_flop_total", pipe="tensor", precision="bf16") == pytest.approx(
        truth.hmma_tensor_cycles * SMS * BF16, rel=tolerance
    )
    assert grown("flopwatch_flop_total", pipe="fp32") == pytest.approx(
        truth.fp32_cycles * SMS * FP32, rel=tolerance
    )
    # An idle GPU still has a little memory and link traffic: the truth includes it.
    rest = fake.gpu(0).truth(end, seen)
    assert grown("flopwatch_dram_bytes_total") == pytest.approx(
        (truth.dram_fraction_seconds + rest.dram_fraction_seconds) * 3.35e12, rel=tolerance
    )
    assert grown("flopwatch_nvlink_receive_bytes_total") == pytest.approx(
        truth.nvlink_rx_bytes, rel=tolerance
    )
    assert grown("flopwatch_pcie_transmit_bytes_total") == pytest.approx(
        truth.pcie_tx_bytes, rel=tolerance
    )
    assert grown("flopwatch_gpu_seconds_total", state="tensor") == pytest.approx(
        truth.hmma_tensor_cycles / 1.98e9, rel=tolerance
    )
    if slow_calls:
        assert grown("flopwatch_ticks_missed_total") > 0


def test_states_sum_to_elapsed_time(start) -> None:
    """The states of GPUs under different loads sum to the seconds that passed.

    That windows tile time to the last microsecond is proven in tests/accounting; here, with ticks
    of 200 ms, a scrape may be a tick early or late on a busy machine.
    """
    loads = [REST, Load.decode(), Load.prefill(), REST]
    profiles = [H100, H100, H100_NO_CYCLES, A100]
    fake, daemon = start(profiles, config="probes: {enabled: false}\nsampling: {interval: 200ms}\n")
    for index, load in enumerate(loads):
        fake.gpu(index).set_load(load)
    daemon.wait_until(
        lambda scrape: all(
            scrape.total("flopwatch_gpu_seconds_total", gpu=str(gpu)) > 0 for gpu in range(4)
        )
    )

    began, first = time.monotonic(), daemon.scrape()
    time.sleep(10)
    ended, last = time.monotonic(), daemon.scrape()

    for gpu in range(4):
        grown = last.total("flopwatch_gpu_seconds_total", gpu=str(gpu)) - first.total(
            "flopwatch_gpu_seconds_total", gpu=str(gpu)
        )
        assert grown == pytest.approx(ended - began, abs=0.6)


def test_a_gpu_without_gpm_says_what_it_knows(start) -> None:
    """An A100 alone has no FLOP counter: only idle time and clocks; the rest is unresolved."""
    fake, daemon = start([A100])
    fake.gpu(0).set_load(Load.decode())

    scrape = daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", state="unresolved") > 1
    )

    assert not scrape.has("flopwatch_flop_total")
    assert not scrape.has("flopwatch_sm_active_ratio")
    assert scrape.value("flopwatch_source_up", source="gpm") == 0
    assert scrape.value("flopwatch_source_up", source="nvml") == 1
    assert scrape.value("flopwatch_peak_flops", precision="bf16") == 312e12
    assert not scrape.has("flopwatch_peak_flops", precision="fp8")


@pytest.mark.parametrize("profile", [A100, L4], ids=lambda profile: profile.name)
def test_the_page_is_useful_without_counters(start, profile: GpuProfile) -> None:
    """It shows busy and idle time, clock and peak, and says which counters are missing."""
    fake, daemon = start([profile])
    fake.gpu(0).set_load(Load.decode())
    daemon.wait_until(
        lambda scrape: scrape.total("flopwatch_gpu_seconds_total", state="unresolved") > 1
    )
    (device,) = json.loads(daemon.get("/api/v1/status")[-1])["devices"]
    page = str(daemon.get("/")[-1])

    (finding,) = [each for each in device["findings"] if each["kind"] == "coarse"]
    assert re.fullmatch(
        r"busy \d+\s%; FLOPS unknown:"
        r" only DCGM reads its activity counters, and no dcgm-exporter answers on this node",
        finding["text"],
    )
    assert device["flops"]["peak_flops"] == {A100.name: 312e12, L4.name: 121e12}[profile.name]
    assert "</i>busy" in page
    assert "unknown 100" not in page


def test_the_headline_precision_comes_from_the_configuration(start) -> None:
    """A rule by name values the tensor pipe in fp8: twice the FLOP of bf16 for the same time."""
    config = 'probes: {enabled: false}\ngpus: [{match: {name: "NVIDIA H100*"}, precision: fp8}]\n'
    fake, daemon = start([H100], config=config)
    fake.gpu(0).set_load(Load(graphics=1, sm=1, any_tensor=0.5, hmma_tensor=0.5, sm_clock_mhz=1980))

    scrape = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_achieved_flops", precision="fp8")
            > 0.99 * 0.5 * SMS * 1.98e9 * 8192
        )
    )

    assert scrape.value("flopwatch_headline_precision_info", origin="config", precision="fp8") == 1
    assert scrape.value("flopwatch_flops_utilization_ratio", precision="fp8") == pytest.approx(
        0.5 * SMS * 1.98e9 * 8192 / 1978.9e12, rel=0.01
    )


def test_two_counts_of_cycles_are_distinguished(start) -> None:
    """Whether the driver counts a mean over the SMs or their sum, the FLOP are the same."""
    summing = replace(H100, cycles_mode="sum")
    fake, daemon = start([H100, summing])
    for gpu in (0, 1):
        fake.gpu(gpu).set_load(Load.prefill())

    # Windows that began before the load have ended when both GPUs agree.
    scrape = daemon.wait_until(
        lambda scrape: (
            scrape.total("flopwatch_achieved_flops", gpu="0", precision="bf16") > 1e14
            and scrape.total("flopwatch_achieved_flops", gpu="1", precision="bf16")
            == pytest.approx(
                scrape.total("flopwatch_achieved_flops", gpu="0", precision="bf16"), rel=0.01
            )
        )
    )

    for gpu in ("0", "1"):
        assert scrape.value("flopwatch_source_up", gpu=gpu, source="gpm_cycles") == 1
