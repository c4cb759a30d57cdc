"""GPM: exact averages, raw counters, and what it gets wrong in the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_nvml import H100, H100_NO_CYCLES, FakeNvml, Load
from tests.fake_nvml.client import Client
from tests.fake_nvml.known import (
    FP32_UTIL,
    GRAPHICS_UTIL,
    HMMA_CYCLES_ACTIVE,
    HMMA_UTIL,
    INVALID_ARGUMENT,
    NO_DATA,
    NOT_SUPPORTED,
    NVLINK_L0_RX_PER_SEC,
    NVLINK_RX_PER_SEC,
    PCIE_TX,
    PCIE_TX_PER_SEC,
    SM_CYCLES_ELAPSED,
    SM_UTIL,
    STANDSTILL,
    run_known_work,
)


def test_gpm_answers_the_exact_average_of_its_window(fake: FakeNvml, client: Client) -> None:
    """Shares are of elapsed cycles, not of time: half of 4e8 cycles ran HMMA, though it was on 40 % of the time."""
    fake.gpu(0).set_load(STANDSTILL)
    client.ask("sample('a', device(0))")
    run_known_work(fake)
    client.ask("sample('b', device(0))")
    ids = [SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE]
    (_, hmma), (_, sm), (_, elapsed_after), (_, hmma_after) = client.ask(
        f"metrics('a', 'b', {[HMMA_UTIL, SM_UTIL, *ids]})"
    )
    assert hmma == pytest.approx(50.0, rel=1e-9)
    assert sm == pytest.approx(100 * (0.5 * 2e8 + 0.9 * 2e8) / 4e8, rel=1e-9)
    assert elapsed_after > 1e15  # raw counters count from boot, not from the first sample
    client.ask("sample('c', device(0))")
    (_, elapsed_again), (_, hmma_again) = client.ask(f"metrics('b', 'c', {ids})")
    assert (elapsed_again, hmma_again) == (elapsed_after, hmma_after)  # the clock is stopped again


def test_raw_counters_advance_by_the_cycles_of_the_window(fake: FakeNvml, client: Client) -> None:
    """Cycle and byte counters since boot, as of the second sample."""
    fake.gpu(0).set_load(STANDSTILL)
    client.ask("sample('a', device(0)), sample('b', device(0))")
    ids = [SM_CYCLES_ELAPSED, HMMA_CYCLES_ACTIVE, PCIE_TX]
    before = client.ask(f"metrics('a', 'b', {ids})")
    run_known_work(fake)
    client.ask("sample('c', device(0))")
    after = client.ask(f"metrics('b', 'c', {ids})")
    advance = [late - early for (_, early), (_, late) in zip(before, after, strict=True)]
    assert advance == [
        pytest.approx(4e8, abs=2),
        pytest.approx(2e8, abs=2),
        pytest.approx(2e8, abs=2),
    ]


def test_raw_counters_can_be_sums_over_the_sms(tmp_path: Path) -> None:
    """Whether NVIDIA counts the mean or the sum is unknown; the fake has both."""
    profiles = [replace(H100, cycles_mode=mode) for mode in ("mean", "sum")]
    with FakeNvml(profiles, tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        counts = []
        for index in (0, 1):
            fake.gpu(index).set_load(STANDSTILL)
            client.ask(f"sample('a{index}', device({index})), sample('b{index}', device({index}))")
            answers = client.ask(f"metrics('a{index}', 'b{index}', [{HMMA_CYCLES_ACTIVE}])")
            counts.append(answers[0][1])
        assert counts[1] / counts[0] == pytest.approx(132)


def test_older_drivers_answer_percentages_only(tmp_path: Path) -> None:
    """Unknown metric ids fail in their own entries and leave the others alone."""
    with FakeNvml([H100_NO_CYCLES], tmp_path) as fake, Client(fake) as client:
        client.ask("pynvml.nvmlInit()")
        fake.gpu(0).set_load(Load(sm=0.25, graphics=0.5))
        client.ask("sample('a', device(0)), time.sleep(0.02), sample('b', device(0))")
        answers = client.ask(
            f"metrics('a', 'b', [{SM_CYCLES_ELAPSED}, {SM_UTIL}, 476, {GRAPHICS_UTIL}])"
        )
        assert [code for code, _ in answers] == [NOT_SUPPORTED, 0, NOT_SUPPORTED, 0]
        assert answers[1][1] == pytest.approx(25)
        assert answers[3][1] == pytest.approx(50)


def test_traffic_is_in_mebibytes_per_second(fake: FakeNvml, client: Client) -> None:
    """GPM rates are MiB/s, NVLink ones for all links or for each that is up."""
    mib = 2**20
    fake.gpu(0).set_load(
        Load(pcie_tx_bytes_per_second=3 * mib, nvlink_rx_bytes_per_second=34 * mib)
    )
    fake.set_nvlink_state(0, 17, up=False)
    client.ask("sample('a', device(0)), time.sleep(0.02), sample('b', device(0))")
    last_link = 62 + 2 * 17
    ids = [PCIE_TX_PER_SEC, NVLINK_RX_PER_SEC, NVLINK_L0_RX_PER_SEC, last_link, last_link + 116]
    answers = client.ask(f"metrics('a', 'b', {ids})")
    assert [value for _, value in answers[:4]] == pytest.approx([3, 34, 2, 0])
    assert answers[4][0] == NOT_SUPPORTED  # link 18: an H100 has 18, from 0 on


@pytest.mark.parametrize(
    ("member", "is_expected"),
    [
        ("gpm_zero", lambda value: value == 0.0),
        ("gpm_blank", lambda value: value == 140737488355328.0),
        ("gpm_nan", math.isnan),
    ],
)
def test_gpm_can_answer_nonsense(
    fake: FakeNvml, client: Client, member: str, is_expected: Callable[[float], bool]
) -> None:
    """Zeros, DCGM's blank value and NaN come with a return code of success."""
    fake.set(0, **{member: 1})
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    ((code, value),) = client.ask(f"metrics('a', 'b', [{SM_UTIL}])")
    assert code == 0
    assert is_expected(value)


def test_a_multi_metric_call_can_collapse(fake: FakeNvml, client: Client) -> None:
    """Every entry then answers the first one's value; single-metric calls stay right."""
    fake.gpu(0).set_load(Load(sm=0.5, fp32=0.1))
    fake.set(0, gpm_collapse=1)
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    together = [value for _, value in client.ask(f"metrics('a', 'b', [{SM_UTIL}, {FP32_UTIL}])")]
    assert together == pytest.approx([50, 50])
    ((_, alone),) = client.ask(f"metrics('a', 'b', [{FP32_UTIL}])")
    assert alone == pytest.approx(10)


def test_sample_pairs_can_be_too_close(fake: FakeNvml, client: Client) -> None:
    """With a minimum interval set, a shorter window answers NO_DATA."""
    fake.set(0, gpm_minimum_interval_ns=10**12)
    client.ask("sample('a', device(0)), sample('b', device(0))")
    assert client.code(f"metrics('a', 'b', [{SM_UTIL}])") == NO_DATA


def test_parallel_gpm_calls_are_noticed(fake: FakeNvml, client: Client) -> None:
    """Two threads in GPM at once count as an overlap; one after the other does not."""
    fake.set(0, gpm_call_ns=50_000_000)
    fake.set(1, gpm_call_ns=50_000_000)
    client.ask("sample('0', device(0)), sample('1', device(1))")
    assert fake.gpm_overlaps == 0
    client.ask("in_threads(2, lambda index: sample(str(index), device(index)))")
    assert fake.gpm_overlaps > 0


def test_misused_samples_are_detected(fake: FakeNvml, client: Client) -> None:
    """Freed, never taken, swapped and mixed samples are refused and counted; leaks show."""
    client.ask("sample('a', device(0)), time.sleep(0.01), sample('b', device(0))")
    client.ask("sample('other', device(1)), keep('empty', pynvml.nvmlGpmSampleAlloc())")
    for first, second in [("b", "a"), ("a", "other"), ("a", "empty")]:
        assert client.code(f"metrics('{first}', '{second}', [{SM_UTIL}])") == INVALID_ARGUMENT
    alive = fake.gpm_samples_alive
    client.ask("pynvml.nvmlGpmSampleFree(KEPT['a'])")
    assert fake.gpm_samples_alive == alive - 1
    assert client.code(f"metrics('a', 'b', [{SM_UTIL}])") == INVALID_ARGUMENT
    assert client.code("pynvml.nvmlGpmSampleFree(KEPT['a'])") == INVALID_ARGUMENT
    assert fake.gpm_misuses == 5


def test_no_sample_outlives_a_shutdown(fake: FakeNvml, client: Client) -> None:
    """A sample from before the last nvmlInit is refused."""
    client.ask("sample('a', device(0)), pynvml.nvmlShutdown(), pynvml.nvmlInit()")
    assert client.code("sample('a', device(0))") == INVALID_ARGUMENT
    assert fake.gpm_misuses == 1
