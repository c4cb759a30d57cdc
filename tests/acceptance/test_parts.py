"""The neighbour's arithmetic, the busy bracket, the scrape, and a rehearsal of whole parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_acceptance_parts import end_to_end, neighbour
from benchmarks.gpu_acceptance_parts.neighbour import Block
from benchmarks.gpu_acceptance_parts.probing import busy_bracket, per_clock, spread_per_clock
from benchmarks.gpu_acceptance_parts.schema import Results, decode
from probes.protocol import Result
from tests.acceptance.driver import ROOT
from tests.daemon.process import DaemonProcess
from tests.fake_nvml import H100, FakeNvml, Load


def result(seconds: list[float], *, hertz: float = 1e9) -> Result:
    """A probe's answer: runs of a GFLOP that took these seconds."""
    return Result(
        identifier=1,
        shape=(1, 1, 1),
        work_per_run=1e9,
        run_seconds=tuple(seconds),
        executed_runs=len(seconds),
        clock_hertz=hertz,
        digest="",
        repeats_agree=True,
        exact=None,
        memory_bytes=0,
    )


def test_tokens_per_second_by_condition() -> None:
    """Four tokens a step: steps of 0.1 s for two seconds, then of 0.125 s; a round cut short is left out."""
    ends = [0.1 * n for n in range(1, 21)] + [2 + 0.125 * n for n in range(1, 17)]
    fast, slow, none = (0.05, 1.95), (2.05, 3.95), (9.0, 10.0)
    spans = [fast, fast, slow, slow, fast, slow, fast, none, slow]
    blocks = [
        Block(condition, *span)
        for condition, span in zip(neighbour.CONDITIONS * 3, spans, strict=True)
    ]

    found = neighbour.rates([*blocks, Block("outer", *fast)], ends, 4)

    assert found["absent"] == pytest.approx([40.0, 32.0])
    assert found["passive"] == pytest.approx([40.0, 40.0])
    assert found["probing"] == pytest.approx([32.0, 32.0])
    assert found["outer"] == pytest.approx([40.0])
    with pytest.raises(ValueError, match="no two rounds"):
        neighbour.rates(blocks[:3], ends, 4)


def test_the_probes_share_of_the_loss_is_scaled_to_their_default_schedule() -> None:
    """0.05 % passive, 1.25 % with a cycle every 2 s: the probes cost 1.2 %, at 60 s 1/30 of it."""
    assert neighbour.at_default_schedule([0.0005], [0.0125], 2.0) == pytest.approx([0.0009])


def test_a_probe_is_compared_with_its_clock_divided_out() -> None:
    """Half the clock and half the speed are the same; the median run counts."""
    fast, slow = result([1e-3, 1e-3, 9e-3], hertz=2e9), result([2e-3, 2e-3, 2e-3], hertz=1e9)

    assert per_clock(fast) == per_clock(slow) == pytest.approx(500)
    assert spread_per_clock([fast, slow]) == pytest.approx(0)


def test_the_bracket_of_a_tenants_share() -> None:
    """Runs 1.5 times as long as alone: the tenant has a third to a half; equal runs mean none."""
    alone = [result([1e-3, 1e-3])]

    assert busy_bracket([result([1.5e-3, 1.5e-3])], alone) == pytest.approx((1 / 3, 1 / 2))
    assert busy_bracket(alone, alone) == pytest.approx((0, 0))


def test_a_scrape_is_what_prometheus_would_get(tmp_path: Path) -> None:
    """OpenMetrics, compressed on the wire, and the series of one GPU counted."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, environment=fake.env) as daemon:
            daemon.wait_until(lambda scrape: scrape.total("flopwatch_flop_total", gpu="1") >= 0)
            found = end_to_end.scrape(daemon.address)

    assert found.content_type.startswith("application/openmetrics-text")
    assert found.text.endswith("# EOF\n")
    assert found.wire_bytes < len(found.text) / 2
    assert 50 < end_to_end.series_of(found.text, "0") <= end_to_end.SERIES_GOAL.high
    assert end_to_end.series_of('a{gpu="0"} 1\na{gpu="10"} 1\n# a gpu="0"\n', "0") == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", ["facts", "accuracy", "probes", "neighbour", "end_to_end"])
def test_a_rehearsal_runs_every_part(tmp_path: Path, part: str) -> None:
    """With a fake GPU and workloads on the CPU every step runs; the results say it is a rehearsal."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.gpu_acceptance", "--rehearse"),
                *("--only", part, "--out", str(tmp_path / "out"), "--minutes", "6"),
            ],
            env={**os.environ, **fake.env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "REHEARSAL" in done.stdout
    results = only_results(tmp_path / "out")
    assert results.rehearsal
    assert results.machine.gpu == H100.name
    assert len(results.parts[0].figures) > 5
    if part == "facts":
        names = {path.suffixes[-2] for path in (tmp_path / "out" / "recordings").iterdir()}
        assert {".current", ".no-capabilities", ".profile"} <= names


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rehearsal_without_a_driver_uses_the_fake_one(tmp_path: Path) -> None:
    """The command as it is typed on a machine without a GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.gpu_acceptance", "--rehearse"),
            *("--only", "end_to_end", "--out", str(tmp_path), "--minutes", "2"),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert only_results(tmp_path).machine.gpu == H100.name


def only_results(folder: Path) -> Results:
    """The only results file in a folder."""
    (path,) = folder.glob("*.json")
    assert path.name.endswith(".rehearsal.json")
    return decode(path.read_bytes())
