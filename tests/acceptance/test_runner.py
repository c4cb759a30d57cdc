"""Each part has its own time box and process: a failing part does not affect the others."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_acceptance
from benchmarks.gpu_acceptance_parts.context import Reporter, Survey, TimeBox, collect, share_out
from benchmarks.gpu_acceptance_parts.runner import (
    PARTS,
    Request,
    look_around,
    obstacle,
    run_parts,
)
from benchmarks.gpu_acceptance_parts.schema import Machine, PartReport
from tests.fake_nvml import H100, BuildError, FakeNvml


MACHINE = Machine("Test GPU", "600.1", "9.0", 132, {})
WHOLE = Survey(MACHINE, uuid="GPU-1")
# A part's process that reads its order, writes one figure, and then does what the test wants.
PART = """
import json, os, signal, sys, time
order = json.load(sys.stdin)
with open(order["lines"], "a") as file:
    file.write(json.dumps(["figure", {"name": "one", "value": 1, "unit": "count"}]) + "\\n")
"""


def run(tmp_path: Path, endings: dict[str, str], seconds: float = 60) -> dict[str, PartReport]:
    """The reports of parts that end this way."""

    def command(part: str) -> list[str]:
        return [sys.executable, "-c", PART + endings[part]]

    request = Request(
        parts=tuple(endings),
        seconds=seconds,
        gpu=0,
        rehearsal=False,
        out=tmp_path,
        scratch=tmp_path,
        command=command,
    )
    return {part.name: part for part in run_parts(request, WHOLE).parts}


def test_time_is_shared_by_weight_and_left_over_time_goes_on() -> None:
    """100 s for weights 1, 1, 2: 25 s; if the first took 10 of them, 30 s for the next."""
    assert share_out(100, [1, 1, 2]) == 25
    assert share_out(90, [1, 2]) == 30
    assert share_out(-5, [1]) == 0


def test_the_default_run_stays_below_nine_minutes() -> None:
    """Every part has a share, and the shares sum to the whole time."""
    assert gpu_acceptance.MINUTES == 9
    assert sum(PARTS.values()) == pytest.approx(1)


def test_a_box_ends() -> None:
    """A step that would end later no longer fits."""
    now = [100.0]
    box = TimeBox(10, clock=lambda: now[0])

    assert box.fits(10)
    now[0] = 104
    assert box.left_seconds == 6
    assert not box.fits(7)
    now[0] = 200
    assert box.left_seconds == 0


def test_a_part_that_crashes_keeps_what_it_found_and_the_next_one_runs(tmp_path: Path) -> None:
    """A part killed by a signal keeps its figure, and the other part still runs."""
    reports = run(tmp_path, {"facts": "os.kill(os.getpid(), signal.SIGSEGV)", "accuracy": ""})

    assert reports["facts"].status == "failed"
    assert "ended with -11" in reports["facts"].errors[0]
    assert [figure.name for figure in reports["facts"].figures] == ["one"]
    assert reports["accuracy"].status == "done"


def test_a_hanging_part_is_killed_with_its_children(tmp_path: Path) -> None:
    """It gets no more than its time box, and its children do not outlive it."""
    hanging = (
        "import subprocess\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )

    reports = run(tmp_path, {"facts": hanging}, seconds=18)

    assert reports["facts"].status == "timed_out"
    assert len(reports["facts"].figures) == 1
    child = Path("/proc") / (tmp_path / "pid").read_text()
    # A killed process may exist a little longer: the kernel can be slow on a busy machine.
    deadline = time.monotonic() + 20
    while state_of(child) not in ("gone", "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state_of(process: Path) -> str:
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


def test_a_part_that_raises_says_where(tmp_path: Path) -> None:
    """The last line of its output becomes its error."""
    reports = run(tmp_path, {"facts": "raise ValueError('no such register')"})

    assert reports["facts"].errors == ("its process ended with 1: ValueError: no such register",)


@pytest.mark.parametrize(
    ("survey", "part", "rehearsal", "why"),
    [
        (WHOLE, "accuracy", False, ""),
        (Survey(MACHINE, no_gpu="no GPU 0", no_cuda="x"), "facts", False, "no GPU 0"),
        (Survey(MACHINE, no_cuda="torch sees no CUDA device"), "facts", False, ""),
        (Survey(MACHINE, no_cuda="torch sees no CUDA device"), "accuracy", False, "torch sees no CUDA device"),
        (Survey(MACHINE, no_cuda="torch sees no CUDA device"), "accuracy", True, ""),
    ],
)  # fmt: skip
def test_why_a_part_cannot_run(survey: Survey, part: str, rehearsal: bool, why: str) -> None:
    """The driver's facts need no torch; everything else does, unless it is a rehearsal."""
    assert obstacle(part, survey, rehearsal=rehearsal) == why


def test_without_a_gpu_it_says_so_and_leaves_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real survey on a host without a driver: every part is named with the reason, exit code 1."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)

    code = gpu_acceptance.main(["--out", str(tmp_path), "--minutes", "2"])

    table = capsys.readouterr().out
    assert code == 1
    assert table.count("not run") == len(PARTS)
    assert "library_not_found" in table
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_without_a_driver_names_what_the_fake_one_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, one line with the missing package."""

    def no_header() -> None:
        raise BuildError("nvml.h is missing: install nvidia-nvml-dev")

    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(sys.modules["tests.fake_nvml.build"], "build", no_header)

    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.main(["--rehearse", "--out", str(tmp_path)])

    assert ended.value.code == 2
    assert "install nvidia-nvml-dev" in capsys.readouterr().err


def test_a_torch_that_is_slow_to_import_hides_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold import from a slow disk exceeds the survey's limit: the driver's facts are enough."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("import time; time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{gpu_acceptance.ROOT}")
    request = Request(("facts",), 60.0, 0, rehearsal=False, out=tmp_path, scratch=tmp_path)
    with FakeNvml([H100], tmp_path) as fake:
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        survey = look_around(request)

    assert survey.machine.gpu == H100.name
    assert survey.uuid == fake.gpu(0).uuid
    assert (survey.no_gpu, survey.no_cuda) == ("", "")


@pytest.mark.parametrize(
    "arguments", [["--only", "fact"], ["--minutes", "0"], ["--only", ""], ["--out", "/proc/none"]]
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and the last line states the problem."""
    with pytest.raises(SystemExit) as ended:
        gpu_acceptance.main(arguments)

    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def reporter(tmp_path: Path) -> Callable[[float], Reporter]:
    return lambda seconds: Reporter(tmp_path / "part.jsonl", TimeBox(seconds, clock=lambda: 0.0))


def test_a_failing_step_ends_only_itself(tmp_path: Path, reporter) -> None:
    """Its error is kept with its location; a step that no longer fits is skipped with both times."""
    report = reporter(10)

    def fail() -> None:
        raise RuntimeError("the tenant is gone")

    assert not report.step("first", 1, fail)
    assert not report.step("long", 60, fail)
    assert report.step("last", 1, lambda: report.figure("two", 2.0, "count"))
    part = collect("facts", tmp_path / "part.jsonl", 3, ended="")
    assert part.status == "failed"
    assert part.errors[0].startswith("first: RuntimeError: the tenant is gone (test_runner.py:")
    assert part.left_out == ("long: needs about 60 s, 10 s were left",)
    assert [figure.value for figure in part.figures] == [2.0]


def test_a_truncated_line_affects_no_other_line(tmp_path: Path, reporter) -> None:
    """A part killed while it wrote."""
    report = reporter(10)
    report.figure("one", 1.0, "count")
    report.detail("raw", [1, 2])
    with (tmp_path / "part.jsonl").open("a") as file:
        file.write(json.dumps(["figure", {"name": "two"}])[:20])

    part = collect("facts", tmp_path / "part.jsonl", 3, ended="")

    assert [figure.name for figure in part.figures] == ["one"]
    assert part.details == {"raw": [1, 2]}
    assert part.status == "done"
