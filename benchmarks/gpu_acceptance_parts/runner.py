"""Runs the parts, each in its own process and time box."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.gpu_acceptance_parts.context import (
    RESERVE_SECONDS,
    Order,
    Survey,
    TimeBox,
    collect,
    share_out,
)
from benchmarks.gpu_acceptance_parts.schema import FORMAT, Machine, PartReport, Results


ROOT = Path(__file__).resolve().parents[2]
# Shares of the time, by the amount of work; time that a part does not use goes to the later ones.
PARTS: Mapping[str, float] = {
    "facts": 0.14,
    "accuracy": 0.33,
    "probes": 0.20,
    "neighbour": 0.17,
    "end_to_end": 0.16,
}
# A part watches the end of its box itself; this much later it is killed.
GRACE_SECONDS = 5.0
SURVEY_SECONDS = 90.0
STDERR_CHARACTERS = 400
_MODULES = "benchmarks.gpu_acceptance_parts"


def child_command(part: str) -> list[str]:
    """The command of a part's process."""
    return [sys.executable, "-m", f"{_MODULES}.child", part]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for."""

    parts: tuple[str, ...]
    seconds: float
    gpu: int
    rehearsal: bool
    out: Path
    scratch: Path
    command: Callable[[str], list[str]] = field(default=child_command)
    """Tests put other processes in the parts' place."""


def look_around(request: Request) -> Survey:
    """What the machine has; never raises: a driver that hangs or crashes is a finding.

    If torch is slow to import, the driver's answer is enough: the parts check torch themselves.
    """
    unknown = Machine("unknown", "unknown", "unknown", None, {})
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"{_MODULES}.survey", str(request.gpu)],
            capture_output=True,
            timeout=min(SURVEY_SECONDS, request.seconds / 3),
            cwd=ROOT,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        found = _last_survey(late.stdout or b"")
        return found or Survey(
            unknown, no_gpu="the driver did not answer", no_cuda="no GPU was found"
        )
    found = _last_survey(done.stdout)
    if found is None or done.returncode != 0:
        why = f"the survey ended with {done.returncode}: {_last_line(done.stderr.decode(errors='replace'))}"
        return Survey(unknown, no_gpu=why, no_cuda=why)
    return found


def _last_survey(lines: bytes) -> Survey | None:
    """The newest completely written survey."""
    found = None
    for line in lines.splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            found = msgspec.json.decode(line, type=Survey)
    return found


def obstacle(part: str, survey: Survey, *, rehearsal: bool) -> str:
    """Why a part cannot run here; empty: it can."""
    if survey.no_gpu:
        return survey.no_gpu
    if part != "facts" and survey.no_cuda and not rehearsal:
        return survey.no_cuda
    return ""


def run_parts(request: Request, known: Survey | None = None) -> Results:
    """Run the parts one after the other; a part that cannot run says why.

    `known` is what the machine has, where that was found out before.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    box = TimeBox(request.seconds - RESERVE_SECONDS)
    survey = look_around(request) if known is None else known
    reports: list[PartReport] = []
    for position, part in enumerate(request.parts):
        why = obstacle(part, survey, rehearsal=request.rehearsal)
        if why:
            reports.append(PartReport(part, "not_run", left_out=(why,)))
            continue
        weights = [PARTS[name] for name in request.parts[position:]]
        seconds = share_out(box.left_seconds, weights)
        print(f"{part}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
        reports.append(_run_part(request, survey, part, seconds))
    return Results(FORMAT, started, request.rehearsal, survey.machine, tuple(reports))


def _run_part(request: Request, survey: Survey, part: str, seconds: float) -> PartReport:
    lines = request.scratch / f"{part}.jsonl"
    scratch = request.scratch / part
    scratch.mkdir(exist_ok=True)
    grace = min(GRACE_SECONDS, seconds / 4)
    order = Order(
        part=part,
        lines=str(lines),
        seconds=seconds - grace,
        gpu=request.gpu,
        rehearsal=request.rehearsal,
        out=str(request.out.resolve()),
        scratch=str(scratch),
        survey=survey,
    )
    log = scratch / "stderr"
    began = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(
            request.command(part),
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
        ended = ""
        try:
            process.communicate(msgspec.json.encode(order), timeout=seconds)
        except subprocess.TimeoutExpired:
            ended = f"no time left: killed after {seconds:.0f} s"
        finally:
            _end_session(process)
    if not ended and process.returncode != 0:
        text = log.read_text(errors="replace")
        ended = f"its process ended with {process.returncode}: {_last_line(text)}"
    return collect(part, lines, time.monotonic() - began, ended=ended)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End the part and everything it started: daemons and tenants are of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process stuck in the driver cannot be killed; it is abandoned rather than waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2.0)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:STDERR_CHARACTERS] if lines else "no message"
