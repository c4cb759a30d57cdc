"""One H100 under six power caps, as published: clocks, power and FLOP through the accounting."""

from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.levers
from tests.daemon.process import Scrape, passive
from tests.evidence.tables import table
from tests.fake_nvml import H100, Load
from tests.fake_nvml.loads import EventReason


ROWS = table("h100-power-cap", Path(benchmarks.levers.__file__).parent / "published")
SECONDS, FLOP = "flopwatch_gpu_seconds_total", "flopwatch_flop_total"
MAX_MHZ = 1980
# Training keeps the tensor pipe at the same share of cycles whatever the clock is.
TENSOR = 0.5
# By hand: 1 - clock / 1980 MHz.
LOST = (0.684, 0.428, 0.242, 0.126, 0.046, 0.006)


def least_seconds(scrape: Scrape) -> float:
    return min(scrape.total(SECONDS, gpu=str(gpu)) for gpu in range(len(ROWS)))


def test_the_cap_is_recognized_as_a_power_cap(start) -> None:
    """Draw and clock are the published ones; what the cap takes is lost to power, and to nothing else.

    FLOP follow the clock. So did the published throughput of a training that the tensor pipe limits:
    Llama 3 8B lost what the clock lost within 6.5 points of the uncapped rate at each cap.
    """
    boards = [
        replace(H100, power_limit_watts=int(row["cap_w"]), power_limit_min_watts=200)
        for row in ROWS
    ]
    fake, daemon = start(boards, config=passive("sampling: {interval: 250ms, slow_interval: 1s}\n"))
    for gpu, row in enumerate(ROWS):
        fake.gpu(gpu).set_load(
            Load(
                graphics=1.0,
                sm=0.95,
                any_tensor=TENSOR,
                hmma_tensor=TENSOR,
                dram=0.3,
                sm_clock_mhz=float(row["sm_clock_mhz"]),
                power_watts=float(row["draw_w"]),
                event_reasons=EventReason.SW_POWER_CAP,
            )
        )
    settled = daemon.wait_until(
        lambda scrape: (
            all(
                scrape.value("flopwatch_sm_clock_hertz", gpu=str(gpu))
                == pytest.approx(1e6 * float(row["sm_clock_mhz"]), rel=1e-3)
                for gpu, row in enumerate(ROWS)
            )
            and least_seconds(scrape) > 0
        )
    )
    before = daemon.wait_until(lambda scrape: least_seconds(scrape) > least_seconds(settled) + 1)
    after = daemon.wait_until(lambda scrape: least_seconds(scrape) > least_seconds(before) + 3)

    rates = []
    for gpu, (row, lost) in enumerate(zip(ROWS, LOST, strict=True)):
        label = str(gpu)
        seconds = after.total(SECONDS, gpu=label) - before.total(SECONDS, gpu=label)

        def grown(name: str, gpu: str = label, seconds: float = seconds, **labels: str) -> float:
            return (
                after.total(name, gpu=gpu, **labels) - before.total(name, gpu=gpu, **labels)
            ) / seconds

        assert grown(SECONDS, state="clock_power") == pytest.approx(lost, abs=0.005)
        assert grown(SECONDS, state="clock_thermal") == grown(SECONDS, state="clock_other") == 0
        assert grown(SECONDS, state="tensor") == pytest.approx((1 - lost) * TENSOR, abs=0.005)
        assert after.value("flopwatch_power_watts", gpu=label) == float(row["draw_w"])
        assert after.value("flopwatch_power_limit_watts", gpu=label) == float(row["cap_w"])
        assert after.value("flopwatch_clock_event", gpu=label, reason="sw_power_cap") == 1
        flops = grown(FLOP, pipe="tensor")
        # 132 SMs x 4096 dense bf16 FLOP per clock.
        hertz = 1e6 * float(row["sm_clock_mhz"])
        assert flops == pytest.approx(TENSOR * 132 * 4096 * hertz, rel=0.01)
        rates.append(flops)

    uncapped = float(ROWS[-1]["llama3_8b_tokens_per_s"])
    for row, flops in zip(ROWS, rates, strict=True):
        throughput = float(row["llama3_8b_tokens_per_s"]) / uncapped
        assert flops / rates[-1] == pytest.approx(throughput, abs=0.065)
