"""Figures and their verdicts, the results file, the table, and the page generated from them."""

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.gpu_acceptance_parts import schema
from benchmarks.gpu_acceptance_parts.document import (
    CLAIMS,
    NOT_MEASURED,
    accuracy_page,
    number,
    read_results,
    render,
)
from benchmarks.gpu_acceptance_parts.evidence import EVIDENCE, Evidence
from benchmarks.gpu_acceptance_parts.schema import (
    FORMAT,
    Figure,
    Goal,
    Machine,
    PartReport,
    Results,
)


ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "benchmarks" / "levers" / "published"
MACHINE = Machine("Test GPU", "600.1", "9.0", 132, {"torch": "2.13"})


def results(
    *parts: PartReport, started: str = "2026-01-31T10:00:00", rehearsal: bool = False
) -> Results:
    return Results(FORMAT, started, rehearsal, MACHINE, parts)


ERROR = Figure("error of FLOP, bf16 4096x4096x4096 at 100%", 0.013, "ratio", goal=Goal(-0.02, 0.02))


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("a", 0.01, "ratio", goal=Goal(high=0.02)), "pass"),
        (Figure("a", 0.03, "ratio", goal=Goal(high=0.02)), "fail"),
        (Figure("a", 0.03, "ratio"), ""),
        (Figure("a", None, "ratio", goal=Goal(high=0.02)), "undecided"),
        (Figure("a", 0.01, "ratio", 0.0, 0.03, goal=Goal(high=0.02)), "undecided"),
        (Figure("a", 0.01, "ratio", 0.0, 0.015, goal=Goal(high=0.02)), "pass"),
        (Figure("a", 0.05, "ratio", 0.03, 0.07, goal=Goal(high=0.02)), "fail"),
        (Figure("a", -0.03, "ratio", goal=Goal(-0.02, 0.02)), "fail"),
        (Figure("a", 0.0, "ratio", -0.05, 0.05, goal=Goal(-0.02, 0.02)), "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(figure: Figure, verdict: str) -> None:
    """When the goal's bound is inside the interval there is no verdict."""
    assert figure.verdict == verdict


def test_results_survive_their_file() -> None:
    """Results are the same after writing and reading; another format is rejected."""
    run = results(PartReport("accuracy", "done", 3.0, (ERROR,), details={"values": [1, 2]}))

    assert schema.decode(schema.encode(run)) == run
    newer = msgspec.structs.replace(run, format=FORMAT + 1)
    with pytest.raises(ValueError, match="format"):
        schema.decode(schema.encode(newer))


def test_a_run_is_complete_when_all_parts_ran() -> None:
    """A part that there was no time for is not an error; one that could not run, or failed, is."""
    assert results(PartReport("facts", "partial", left_out=("x: no time",))).sound
    assert not results(PartReport("facts", "done"), PartReport("accuracy", "not_run")).sound
    assert not results(PartReport("facts", "timed_out")).sound


def test_files_are_named_by_gpu_and_day(tmp_path: Path) -> None:
    """A second run of a day does not overwrite the first."""
    stem = schema.file_stem("NVIDIA H100 80GB HBM3", "2026-01-31T10:00:00")

    assert stem == "nvidia-h100-80gb-hbm3-2026-01-31"
    first = schema.free_path(tmp_path, stem, ".json")
    first.touch()
    assert schema.free_path(tmp_path, stem, ".json").name == f"{stem}-2.json"


def test_the_table_shows_figures_goals_and_what_is_missing() -> None:
    """Everything a reader needs to judge the run; a rehearsal is marked as one."""
    part = PartReport(
        "accuracy", "failed", 12.0, (ERROR,), ("copies: no time",), ("fp8: TenantError: no",)
    )

    text = render(results(part, rehearsal=True))

    assert "REHEARSAL" in text
    assert "+1.300%" in text
    assert "-2.000% to +2.000%" in text
    assert "pass" in text
    assert "left out: copies: no time" in text
    assert "failed: fp8: TenantError: no" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0004, "ratio", "+0.040%"),
        (1.25, "ratio", "125.00%"),
        (0.0123, "seconds", "12.3 ms"),
        (4.2e-6, "seconds", "4.2 us"),
        (7.5e14, "FLOP/s", "750 TFLOP/s"),
        (3, "count", "3"),
    ],
)
def test_numbers_for_people(value: float, unit: str, text: str) -> None:
    """Ratios in per cent, times and rates with a prefix."""
    assert number(value, unit) == text


def test_without_results_every_claim_is_not_measured_yet() -> None:
    """The page names the command that would measure it."""
    page = accuracy_page([])

    for claim in CLAIMS:
        assert f"| {claim.text} | {NOT_MEASURED} |" in page
    assert "python -m benchmarks.gpu_acceptance\n" in page


def test_a_claim_shows_its_figures_or_why_it_has_none() -> None:
    """The newest run of each GPU; a failed part is reported as failed instead of showing figures."""
    old = results(PartReport("accuracy", "done"), started="2026-01-01T00:00:00")
    new = results(
        PartReport("accuracy", "done", figures=(ERROR,)),
        PartReport("probes", "failed", errors=("its process ended with -11",)),
    )

    page = accuracy_page([old, new])

    assert "2026-01-31" in page
    assert "2026-01-01" not in page
    row = next(line for line in page.splitlines() if ERROR.name in line)
    assert "+1.300%" in row
    assert "| pass |" in row
    section = page.partition("\n## ")[2]
    sweep = next(line for line in section.splitlines() if "97 % of an exhaustive sweep" in line)
    assert NOT_MEASURED in sweep
    assert "its process ended with -11" in sweep


def test_every_proof_exists() -> None:
    """A claim moves to another column only through a test, and the test exists."""
    for evidence in EVIDENCE.values():
        for proof in (*evidence.recorded, *evidence.fake):
            assert f"def {proof.test}(" in (ROOT / proof.file).read_text(), proof


def test_a_recording_is_a_table_with_its_source() -> None:
    """The recordings column has only tests that replay a published table or a third party's driver.

    Each table names its source; a test based on our own assumptions cannot be listed there.
    """
    files = {proof.file for evidence in EVIDENCE.values() for proof in evidence.recorded}
    for file in files - {"tests/hardware/test_third_party.py"}:
        source = (ROOT / file).read_text()
        tables = [
            path
            for path in (*ROOT.glob("tests/evidence/*.csv"), *PUBLISHED.glob("*.csv"))
            if f'"{path.stem}"' in source or "published" in source
        ]
        assert tables, file
        for path in tables:
            assert re.search(r"[\w-]+/[\w-]+|arXiv", path.read_text().splitlines()[0]), path
    third_party = (ROOT / "tests/fake_nvml/third_party.py").read_text()
    assert "NVIDIA/k8s-test-infra" in third_party


def test_nothing_moves_a_column_without_its_evidence() -> None:
    """ "Silicon" needs figures for that claim from a run on a GPU; other evidence does not count."""
    page = accuracy_page([results(PartReport("accuracy", "done", figures=(ERROR,)))])
    table = page.partition("\n## ")[0].splitlines()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table]
    overview = {cells[0]: cells[1:] for cells in rows if len(cells) == 4 and cells[0] != "claim"}
    del overview["---"]

    measured = [text for text, cells in overview.items() if cells[0].startswith("measured on")]
    assert measured == ["FLOP of GEMMs are counted within 2 %"]
    for text, (_silicon, recorded, fake) in overview.items():
        evidence = EVIDENCE.get(text, Evidence())
        for cell, proofs in ((recorded, evidence.recorded), (fake, evidence.fake)):
            assert cell.count("`: `") == len(proofs), text


def test_a_rehearsal_never_becomes_documentation(tmp_path: Path) -> None:
    """Neither by name nor by content; a file that is not a results file is named in the error."""
    rehearsal = results(PartReport("facts", "done"), rehearsal=True)
    (tmp_path / "a.rehearsal.json").write_bytes(schema.encode(rehearsal))
    (tmp_path / "b.json").write_bytes(schema.encode(rehearsal))
    (tmp_path / "c.json").write_bytes(schema.encode(results(PartReport("facts", "done"))))

    assert [run.rehearsal for run in read_results(tmp_path)] == [False]
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ValueError, match=r"d\.json"):
        read_results(tmp_path)


def test_the_page_in_the_repository_is_fresh() -> None:
    """Else run `python -m benchmarks.gpu_acceptance --document`."""
    page = accuracy_page(read_results(ROOT / "benchmarks" / "results"))

    assert (ROOT / "docs" / "accuracy.md").read_text() == page
