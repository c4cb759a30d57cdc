"""Compares the counters with known work: the fake driver did it, so it is known exactly."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_acceptance_parts import accuracy
from benchmarks.gpu_acceptance_parts.accuracy import Comparison, GemmCase
from benchmarks.gpu_acceptance_parts.context import Context, Reporter, Survey, TimeBox, collect
from benchmarks.gpu_acceptance_parts.daemon import settings, start_daemon, wait_for_gpu
from benchmarks.gpu_acceptance_parts.schema import Figure, Machine
from exporter.accounting.peaks import find_peaks
from exporter.readings import DeviceIdentity
from tests.fake_nvml import H100, FakeNvml, Load


CLOCK_MHZ, SMS = 1500, 132
# The clock stays the same when idle: a window that is half idle at another clock would be split by
# the daemon's own rules, which are not under test here.
REST = replace(Load.idle(), dram=0.0, sm_clock_mhz=CLOCK_MHZ)
# FLOP per clock and SM of Hopper's tensor pipe (H100 whitepaper).
RATES = {"bf16": 4096, "fp8": 8192}
IDENTITY = DeviceIdentity(
    index="0",
    uuid="GPU-1",
    name=H100.name,
    compute_capability=(9, 0),
    sm_count=SMS,
    sm_clock_max_hertz=1.98e9,
)


class FakeTenant:
    """Work done by the fake GPU: half of the tensor pipe's cycles for the seconds asked for."""

    def __init__(self, fake: FakeNvml, *, boast: float = 1.0) -> None:
        self._fake = fake
        self._boast = boast

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        load = Load(graphics=1, sm=1, sm_clock_mhz=CLOCK_MHZ, memory_clock_mhz=2619)
        if request == "copy":
            load = replace(load, dram=0.8)
        else:
            load = replace(load, any_tensor=0.5, hmma_tensor=0.5, dram=0.4)
        begin = self._fake.gpu(0).set_load(load)
        time.sleep(1.0)
        end = self._fake.gpu(0).set_load(REST)
        truth = self._fake.gpu(0).truth(begin, end)
        flop = truth.hmma_tensor_cycles * SMS * RATES[arguments.get("precision", "bf16")]
        moved = truth.dram_fraction_seconds * 3.35e12
        return {
            "flop": flop * self._boast,
            "bytes": moved,
            "linear_flop": 0.9 * flop,
            "attention_flop": 0.2 * flop,
        }


@pytest.fixture
def surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FakeNvml, Context]]:
    monkeypatch.setattr(
        accuracy, "identity_and_peaks", lambda index: (IDENTITY, find_peaks(IDENTITY))
    )
    with FakeNvml([H100], tmp_path) as fake:
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        fake.gpu(0).set_load(REST)
        report = Reporter(tmp_path / "lines", TimeBox(100))
        survey = Survey(Machine(H100.name, "595", "9.0", SMS, {}))
        yield fake, Context(report, survey, 0, False, tmp_path, tmp_path)


def figures(context: Context) -> dict[str, Figure]:
    part = collect("accuracy", context.scratch / "lines", 1, ended="")
    assert part.errors == ()
    return {figure.name: figure for figure in part.figures}


def test_true_counters_meet_the_goals(surroundings: tuple[FakeNvml, Context]) -> None:
    """bf16, then fp8 after a change of the headline precision, copies, and a transformer."""
    fake, context = surroundings
    with start_daemon(context.scratch, settings(precision="bf16")) as daemon:
        wait_for_gpu(daemon, 0)
        comparison = Comparison(context, daemon, FakeTenant(fake))  # type: ignore[arg-type]
        for precision in ("bf16", "fp8"):
            comparison.gemm(GemmCase(precision, (4096, 4096, 4096), 1.0))
        comparison.copy()
        comparison.transformer("decode", 0, 1)

    found = figures(context)
    bf16, fp8 = "bf16 4096x4096x4096 at 100%", "fp8 4096x4096x4096 at 100%"
    expected = {
        f"error of FLOP, {bf16}",
        f"error of the state tensor, {bf16}",
        f"states minus elapsed time, {bf16}",
        f"error of FLOP, {fp8}",
        f"error of the state tensor, {fp8}",
        "error of DRAM bytes, copies",
        "error of FLOP, transformer decode",
        "error of DRAM bytes, transformer decode",
    }
    assert expected <= found.keys()
    verdicts = {name: found[name].verdict for name in expected}
    assert set(verdicts.values()) == {"pass"}, {n: found[n].value for n in expected}
    # The counted work is within the known range: linear layers alone, or attention as well.
    assert found["error of FLOP, transformer decode"].value == 0
    kept = {row["name"]: row for row in comparison.values}
    assert kept[fp8]["flop"]["tensor fp8"] == pytest.approx(kept[fp8]["done"]["flop"], rel=0.02)


def test_an_inaccurate_counter_misses_its_goal(surroundings: tuple[FakeNvml, Context]) -> None:
    """A claim 10 % too high reads as a counter 9 % low; a precision never counted has no value."""
    fake, context = surroundings
    with start_daemon(context.scratch, settings(precision="bf16")) as daemon:
        wait_for_gpu(daemon, 0)
        tenant = FakeTenant(fake, boast=1.1)
        comparison = Comparison(context, daemon, tenant)  # type: ignore[arg-type]
        comparison.gemm(GemmCase("bf16", (8192, 8192, 8192), 1.0))
        comparison._flop_figure("FLOP of nobody", None, 1.0, 1.0, accuracy.GEMM_GOAL)

    found = figures(context)
    error = found["error of FLOP, bf16 8192x8192x8192 at 100%"]
    assert error.value == pytest.approx(1 / 1.1 - 1, abs=0.02)
    assert error.verdict == "fail"
    assert found["error of FLOP of nobody"].verdict == "undecided"


def test_only_a_headline_that_matters_is_changed(tmp_path: Path) -> None:
    """The settings are a configuration that the daemon accepts: JSON is YAML."""
    made = json.loads(json.dumps(settings(precision="fp8")))

    assert made == {
        "probes": {"enabled": False},
        "gpus": [{"match": {"name": "*"}, "precision": "fp8"}],
    }
