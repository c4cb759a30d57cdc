"""The workload process: it reports the work that it did, and a failure affects one request only."""

import os
import signal
import threading
from pathlib import Path

import pytest

from benchmarks.gpu_acceptance_parts.accuracy import TINY_MODEL, gemm_cases
from benchmarks.gpu_acceptance_parts.tenant import Tenant, TenantError
from benchmarks.gpu_acceptance_parts.truth import GEMM_PRECISIONS, TransformerShape, decode_step


@pytest.fixture(scope="module")
def tenant():
    with Tenant("cpu") as running:
        running.open()
        yield running


@pytest.mark.parametrize("precision", GEMM_PRECISIONS)
def test_every_precision_is_worked_in(tenant: Tenant, precision: str) -> None:
    """FLOP are runs times 2MNK; the work fills the time that was asked for."""
    done = tenant.ask(
        "gemm", precision=precision, shape=[32, 48, 64], seconds=0.05, duty=1.0, period=0.01
    )

    assert done["flop"] == done["runs"] * 2 * 32 * 48 * 64
    assert done["runs"] > 3
    assert done["end"] - done["begin"] >= 0.05


def test_a_duty_cycle_rests(tenant: Tenant) -> None:
    """Busy a quarter of the time: far from all of it, however slow the machine is."""
    done = tenant.ask(
        "gemm", precision="fp32", shape=[64, 64, 64], seconds=0.5, duty=0.25, period=0.02
    )

    assert done["duty"] < 0.9


def test_copies_count_both_ways(tenant: Tenant) -> None:
    """Bytes are runs times twice the size."""
    done = tenant.ask("copy", size_bytes=1 << 16, seconds=0.05, duty=1.0, period=0.01)

    assert done["bytes"] == done["runs"] * 2 * (1 << 16)


def test_decoding_counts_every_step_it_made(tenant: Tenant, tmp_path: Path) -> None:
    """Every step's end is recorded; three steps before the loop count as work; a file ends it."""
    stop = tmp_path / "stop"
    tenant.begin("transformer", model=TINY_MODEL, prefills=0, decodes=1, seconds=60, stop=str(stop))
    threading.Timer(0.3, stop.touch).start()

    done = tenant.result(40)

    step = decode_step(
        TransformerShape(**TINY_MODEL["shape"]), TINY_MODEL["batch"], TINY_MODEL["context_tokens"]
    )
    steps = len(done["ends"]) + 1  # one runs before the loop: there is one in each round
    assert done["linear_flop"] == steps * step.linear_flop
    assert done["attention_flop"] == steps * step.attention_flop
    assert done["bytes"] == steps * step.dram_bytes
    assert done["ends"] == sorted(done["ends"])
    assert done["tokens_per_step"] == TINY_MODEL["batch"]


def test_a_sweep_covers_its_sizes(tenant: Tenant) -> None:
    """All of them when there is time, each once; the host's clock is not measured."""
    found = tenant.ask("sweep", precision="fp32", sizes=[16, 32], seconds=60)

    assert found["shapes"] == 8
    assert len({tuple(row["shape"]) for row in found["rows"]}) == 8
    assert all(row["flops"] > 0 and row["hertz"] is None for row in found["rows"])


def test_a_request_that_fails_says_why_and_the_next_one_runs(tenant: Tenant) -> None:
    """torch's own message, on one line."""
    with pytest.raises(TenantError, match="KeyError"):
        tenant.ask("gemm", precision="fp3", shape=[8, 8, 8], seconds=0.01, duty=1.0, period=0.01)

    assert tenant.ask("clock") == {"hertz": None}


def test_a_workload_that_dies_or_hangs_is_an_error() -> None:
    """In bounded time, whichever it is."""
    with Tenant("cpu") as running:
        running.open()
        running.begin("copy", size_bytes=1 << 10, seconds=60.0, duty=1.0, period=0.01)
        with pytest.raises(TenantError, match="in time"):
            running.result(0.05)
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(TenantError, match="died"):
            running.result(30)


def test_every_precision_comes_first_and_then_sizes_and_duties() -> None:
    """So a short run covers all precisions; four sizes and duty cycles follow for the common ones."""
    cases = gemm_cases(rehearsal=False)

    assert [case.precision for case in cases[: len(GEMM_PRECISIONS)]] == list(GEMM_PRECISIONS)
    bf16 = {(case.shape, case.duty) for case in cases if case.precision == "bf16"}
    assert len(bf16) == 5
    assert len({case.name for case in cases}) == len(cases)
