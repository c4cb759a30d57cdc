"""Part 1: the driver's answers by user, their time; the meaning of GPM's values; worker memory."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu_acceptance_parts import gpm_trials, recording, replay
from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.probing import run_request
from benchmarks.gpu_acceptance_parts.recorder import EXIT_NO_SUCH_USER, USERS
from benchmarks.gpu_acceptance_parts.runner import ROOT
from benchmarks.gpu_acceptance_parts.schema import Goal, file_stem, free_path
from benchmarks.gpu_acceptance_parts.statistics_of import kind_of_count, scale_of_cycles
from benchmarks.gpu_acceptance_parts.tenant import Tenant
from benchmarks.gpu_acceptance_parts.truth import GEMM_PRECISIONS
from exporter.collect.nvml import gpm
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, call
from exporter.collect.nvml.reading import read_clock, read_memory
from probes.config import ProbeConfig
from probes.protocol import Device
from probes.supervisor import WorkerProcess


LOAD_SHAPE, LOAD_SHAPE_SMALL = [8192, 8192, 4096], [64, 64, 64]
# A metric counts as moved when a load raises it by this many percentage points.
MOVED_POINTS = 5.0
RECORDER_SECONDS = 30.0
MEMORY_GOAL_BYTES = 600e6
_WINDOWS = 8


def run(context: Context) -> None:
    """All steps; those that need work on the device report it where torch cannot use it."""
    report = context.report
    report.step("recordings", 12, partial(_recordings, context))
    library = DriverLibrary()
    library.open()
    handle = call("nvmlDeviceGetHandleByIndex", context.gpu)
    calls = DeviceCalls(handle, device=str(context.gpu))
    report.step("GPM cost", 3, partial(_gpm_cost, context, handle))
    if context.has_device:
        report.step("GPM under load", 25, partial(_under_load, context, handle, calls))
        report.step("worker memory", 25, partial(_worker_memory, context, calls))
    else:
        report.left_out("GPM under load, worker memory", context.survey.no_cuda)
    library.close()


def _recordings(context: Context) -> None:
    """One recording for each user, kept as files, compared by return codes."""
    report = context.report
    folder = context.out / "recordings"
    folder.mkdir(exist_ok=True)
    stem = file_stem(context.survey.machine.gpu, time.strftime("%Y-%m-%d", time.gmtime()))
    found: dict[str, recording.Recording] = {}
    for user in USERS:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                f"{__package__}.recorder",
                "--gpu",
                str(context.gpu),
                "--as",
                user,
            ],
            capture_output=True,
            timeout=RECORDER_SECONDS,
            cwd=ROOT,
            check=False,
        )
        if done.returncode == 0:
            found[user] = recording.read(done.stdout)
            recording.write(found[user], free_path(folder, stem, f".{user}.json"))
            continue
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        kind = "not possible here" if done.returncode == EXIT_NO_SUCH_USER else "failed"
        report.left_out(f"recording as {user}", f"{kind}: {why[0]}")
    if "current" not in found:
        raise RuntimeError("the driver could not be recorded; see what was left out")
    current = found["current"]
    _summary(context, current)
    for user in USERS[1:]:
        if user in found:
            refused = replay.differences(current, found[user])
            report.figure(
                f"answers that differ as {user}",
                len(refused),
                "count",
                goal=Goal(high=0),
                note="; ".join(refused[:5]),
            )
            report.detail(f"answers that differ as {user}", refused)
    profile = free_path(folder, stem, ".profile.json")
    profile.write_text(replay.profile_of(current).to_json())


def _summary(context: Context, current: recording.Recording) -> None:
    report = context.report
    report.figure("NVML calls that answer", sum(r.code == 0 for r in current.calls), "count")
    report.figure(
        "NVML calls refused",
        sum(r.code != 0 for r in current.calls),
        "count",
        note=", ".join(sorted({r.function for r in current.calls if r.code != 0})),
    )
    slowest = max(current.calls, key=lambda r: r.median_microseconds)
    report.figure(
        "slowest call, median", slowest.median_microseconds / 1e6, "seconds", note=slowest.function
    )
    answering = [str(r.id) for r in current.metrics if r.code == 0]
    report.figure("GPM metrics that answer", len(answering), "count", note=" ".join(answering))
    counters = [m for m in gpm.CYCLE_IDS if str(m) in answering]
    report.figure("GPM cycle counters that answer", len(counters), "count")
    per_tick = sum(r.median_microseconds * r.count for r in current.calls) / 1e6
    report.detail("seconds in the driver while recording", per_tick)


def _gpm_cost(context: Context, handle: Any) -> None:
    for name, ids in (
        ("with cycle counters", (1, 3, 10, *gpm.RATE_IDS, *gpm.CYCLE_IDS)),
        ("percentages only", (*gpm.PERCENT_IDS, *gpm.RATE_IDS)),
    ):
        sample, alone, together = gpm_trials.tick_cost(handle, ids, 9)
        context.report.figure(f"GPM sample ({name})", sample, "seconds")
        context.report.figure(f"GPM metrics, single calls ({name})", alone, "seconds")
        context.report.figure(f"GPM metrics, one call ({name})", together, "seconds")


def _under_load(context: Context, handle: Any, calls: DeviceCalls) -> None:
    report = context.report
    shape = LOAD_SHAPE_SMALL if context.rehearsal else LOAD_SHAPE

    def clock() -> float | None:
        return read_clock(calls, time.monotonic).sm_clock_hertz

    with Tenant(context.device) as tenant:
        tenant.open()

        def under(
            precision: str, seconds: float, task: Callable[[], Any], duty: float = 1.0
        ) -> Any:
            """The task's answer, while the tenant works, and some time around it."""
            tenant.begin(
                "gemm", precision=precision, shape=shape, seconds=seconds, duty=duty, period=0.02
            )
            time.sleep(0.4)  # operands are made and the first runs done
            try:
                return task()
            finally:
                tenant.result(seconds + 30)

        trial = under(
            "bf16", 3.0, lambda: gpm_trials.multi_equals_single(handle, _WINDOWS, 0.15), 0.5
        )
        report.figure(
            "metrics that a multi-metric call gets wrong",
            len(trial.unequal),
            "count",
            goal=Goal(high=0),
            note=f"{trial.windows} windows; {' '.join(map(str, trial.unequal))}".strip("; "),
        )
        _cycle_facts(context, under("bf16", 1.6, lambda: gpm_trials.cycles(handle, 0.4, clock)))
        idle = gpm_trials.window_under(handle, 0.3)
        table: dict[str, Any] = {"idle": idle}
        for precision in GEMM_PRECISIONS:
            needed = 3.0
            if not report.box.fits(needed):
                report.left_out(f"pipes that {precision} moves", "no time left")
                continue
            try:
                loaded = under(precision, 1.2, lambda: gpm_trials.window_under(handle, 0.5))
            except Exception as error:
                report.error(f"pipes that {precision} moves", error)
                continue
            table[precision] = loaded
            pipes = [m for m in gpm_trials.moved(idle, loaded, MOVED_POINTS) if m in _PIPE_NAMES]
            names = ", ".join(f"{_PIPE_NAMES[m]} {loaded[m]:.1f} %" for m in pipes)
            report.figure(
                f"pipes that {precision} moves", len(pipes), "count", note=names or "none"
            )
        report.detail("GPM values by load", table)


def _cycle_facts(context: Context, trial: gpm_trials.CycleTrial) -> None:
    report = context.report
    elapsed = gpm.SM_CYCLES_ELAPSED
    if elapsed not in trial.second:
        report.figure(
            "cycle counters", None, "count", note="the driver does not answer ids 248-260"
        )
        return
    kinds = {
        metric: kind_of_count(trial.first[metric], trial.second[metric], trial.both[metric])
        for metric in trial.second
        if metric in trial.first and metric in trial.both
    }
    report.figure(
        "cycle counters since boot",
        sum(kind == "since_boot" for kind in kinds.values()),
        "count",
        note=", ".join(f"{m} {kind}" for m, kind in sorted(kinds.items()) if kind != "since_boot"),
    )
    hertz, sms = trial.hertz, context.survey.machine.sm_count
    if hertz and sms:
        growth = trial.second[elapsed]
        if kinds[elapsed] == "since_boot":
            growth -= trial.first[elapsed]
        ratio = growth / (trial.seconds * hertz)
        report.figure(
            "elapsed cycles over clock and time",
            ratio,
            "count",
            note=f"{scale_of_cycles(growth, trial.seconds, hertz, sms)} over {sms} SMs",
        )
    shares = gpm_trials.cycle_percentages(trial.first, trial.second)
    report.detail("cycle counters as percentages of elapsed", shares)


def _worker_memory(context: Context, calls: DeviceCalls) -> None:
    """Device memory by stage of a torch process, then of the product's worker."""
    report = context.report

    def used() -> float:
        memory = read_memory(calls)
        if not memory:
            raise RuntimeError("the driver does not tell the device's memory")
        return float(memory["memory_used_bytes"])

    small = [256, 256, 256]
    before = used()
    stages: dict[str, float] = {}
    with Tenant(context.device) as tenant:
        tenant.open()
        stages["context"] = used() - before
        for precision in ("bf16", "fp8", "int8"):
            try:
                tenant.ask("stage", precision=precision, shape=small)
            except Exception as error:
                report.error(f"memory after {precision}", error)
            else:
                stages[f"after {precision}"] = used() - before
    for name, size in stages.items():
        report.figure(f"memory of a torch process: {name}", size, "B")
    _own_worker(context, calls, used)


def _own_worker(context: Context, calls: DeviceCalls, used: Callable[[], float]) -> None:
    report = context.report
    time.sleep(0.5)  # the driver takes the ended process's memory back
    before = used()
    free = read_memory(calls).get("memory_free_bytes")
    kind: Any = "cpu" if context.rehearsal else "cuda"
    device = Device(
        kind=kind, key=str(context.gpu), free_memory_bytes=None if free is None else int(free)
    )
    visible = () if context.rehearsal else (context.survey.uuid,)
    began = time.monotonic()
    worker = WorkerProcess((device,), visible, ProbeConfig())
    try:
        worker.start()
        imported = time.monotonic()
        at_start = used() - before
        described = worker.describe(0)
        opened = time.monotonic()
        at_open = used() - before
        # Larger GEMMs load additional code, and copies take blocks outside the arena.
        reported = described.memory_bytes
        for number, kernel in enumerate(described.kernels):
            measured = worker.run(run_request(kernel.name, number))
            if measured.result is not None:
                reported = measured.result.memory_bytes
        at_end = used() - before
    finally:
        worker.close()
    report.figure("worker: seconds to import torch", imported - began, "seconds")
    report.figure("worker: seconds to open the device", opened - imported, "seconds")
    report.figure("worker: device memory before it opens the device", at_start, "B")
    report.figure(
        "worker: device memory, by the driver", at_open, "B", goal=Goal(high=MEMORY_GOAL_BYTES)
    )
    report.figure(
        "worker: device memory after every kernel, by the driver",
        at_end,
        "B",
        goal=Goal(high=MEMORY_GOAL_BYTES),
    )
    report.figure("worker: device memory after every kernel, as it reports", reported, "B")
    report.detail("worker kernels", [kernel.name for kernel in described.kernels])
    report.detail("worker device seconds to open", described.device_seconds)


_PIPE_NAMES = {
    gpm.INTEGER: "integer",
    gpm.ANY_TENSOR: "any tensor",
    gpm.DFMA_TENSOR: "DFMA",
    gpm.HMMA_TENSOR: "HMMA",
    gpm.DMMA_TENSOR: "DMMA",
    gpm.IMMA_TENSOR: "IMMA",
    gpm.FP64: "fp64",
    gpm.FP32: "fp32",
    gpm.FP16: "fp16",
    gpm.MMA_CYCLES: "MMA cycles",
    gpm.DMMA_CYCLES: "DMMA cycles",
    gpm.HMMA_CYCLES: "HMMA cycles",
    gpm.IMMA_CYCLES: "IMMA cycles",
    gpm.DFMA_CYCLES: "DFMA cycles",
}
