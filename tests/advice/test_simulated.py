"""Predictions compared with the simulated engine: the spans hold for random workloads."""

import ast
from pathlib import Path

import pytest

from benchmarks.levers import simulated
from benchmarks.levers.__main__ import BEST, INSIDE, WIDTH
from exporter.simulate.forward_pass import Shape, Silicon
from exporter.simulate.serving import Engine, Setup, Traffic


ROOT = Path(__file__).parents[2]


def bounds_missed(count: int, seed: int) -> list[str]:
    outcome = simulated.compare(count, seed)
    return simulated.missed(outcome, inside=INSIDE, best=BEST, width=WIDTH)


def test_the_bounds_hold_for_a_few_workloads() -> None:
    assert bounds_missed(12, seed=11) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [21, 22])
def test_the_bounds_hold_for_two_hundred_workloads(seed: int) -> None:
    assert bounds_missed(200, seed) == []


def test_the_simulator_and_the_predictor_share_no_code() -> None:
    """The truth must not be the predictor's own formula."""
    imported = {
        node.module
        for name in ("serving", "forward_pass")
        for node in ast.walk(ast.parse((ROOT / f"exporter/simulate/{name}.py").read_text()))
        if isinstance(node, ast.ImportFrom)
    }

    assert {name for name in imported if name and name.startswith("exporter")} == {
        "exporter.simulate.forward_pass"
    }


def test_the_levers_are_pure() -> None:
    """No I/O and no clock: the predictions depend on the window alone."""
    impure = {"time", "os", "pathlib", "socket", "random", "subprocess", "structlog", "threading"}
    found = set()
    for path in (ROOT / "exporter/advice").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & impure
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module or ""} & impure

    assert found == set()


def setup(**traffic: float) -> Setup:
    silicon = Silicon({"bf16": 989e12}, 3.35e12, 450e9, 80e9)
    shape = Shape(4096, 32, 32, 8, 128, 14336, 128256)
    return Setup(silicon, shape, Traffic(500, 0.5, 100, 0.5, **traffic), batch_limit=16)  # type: ignore[arg-type]


def test_the_simulated_engine_accounts_for_everything() -> None:
    """Every answer's tokens are decoded once, and the batch is as full as its limit while they wait."""
    counters = Engine(setup(clients=40)).run(100, 400)

    assert counters.prompts == pytest.approx(300, abs=16)
    assert counters.decode_tokens == pytest.approx(counters.answer_tokens, rel=0.05)
    assert counters.prefill_tokens + counters.cached_tokens == pytest.approx(
        counters.prompt_tokens, rel=0.05
    )
    assert counters.running / counters.seconds == pytest.approx(16, abs=0.2)
    assert counters.waiting / counters.seconds == pytest.approx(24, abs=0.2)
    assert (
        counters.tensor_seconds < counters.sm_seconds < counters.kernel_seconds < counters.seconds
    )


def test_a_simulated_pass_is_no_faster_than_its_weights_can_be_read() -> None:
    """32 layers of 218.1e6 weights and a head of 525.3e6, in 16 bits: 15.0 GB, 4.48 ms at 3.35 TB/s."""
    counters = Engine(setup(clients=40)).run(100, 400)

    assert counters.seconds / counters.passes > 15.0e9 / 3.35e12


def test_without_a_queue_throughput_is_what_is_asked_for() -> None:
    counters = Engine(setup(arrivals_per_second=2.0)).run(100, 400)

    assert 300 / counters.seconds == pytest.approx(2.0, rel=0.2)
    assert counters.waiting / counters.seconds < 0.2
