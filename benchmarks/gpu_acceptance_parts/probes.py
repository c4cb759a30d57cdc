"""Part 3: the probes against a sweep, against themselves, against their budget and beside a tenant."""

import statistics
import time
from functools import partial
from typing import Any

import msgspec

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.daemon import settings, start_daemon, wait_for_gpu
from benchmarks.gpu_acceptance_parts.gpm_trials import Samples
from benchmarks.gpu_acceptance_parts.probing import (
    DirectProbe,
    busy_bracket,
    median_run,
    per_clock,
    spread_per_clock,
)
from benchmarks.gpu_acceptance_parts.schema import Goal
from benchmarks.gpu_acceptance_parts.statistics_of import seconds_to_steady, spread
from benchmarks.gpu_acceptance_parts.survey import facts_of
from benchmarks.gpu_acceptance_parts.tenant import Tenant
from exporter.collect.nvml import gpm
from exporter.collect.nvml.library import DriverLibrary, NvmlError, call
from probes.config import ProbeConfig
from probes.facts import DeviceFacts


SWEEP_GOAL = Goal(low=0.97)
SPREAD_GOAL = Goal(high=0.01)
# How far outside its bracket the tenant's true share may be before the bracket counts as wrong.
BRACKET_TOLERANCE = 0.05
DUTIES, DUTIES_SMALL = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.5)
TENANT_PERIOD_SECONDS = 0.008
SWEEP_SIZES = [1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384]
SWEEP_SIZES_SMALL = [64, 128, 256]
_PROBES = 10
_BESIDE = 12
# The budget is watched over this many seconds, at this interval between cycles.
_BUDGET_INTERVAL_SECONDS = 5.0


def run(context: Context) -> None:
    """All steps; the cheap and informative ones first."""
    report = context.report
    facts = facts_of(context.gpu, rehearsal=context.rehearsal)
    sweep = 1.0 if context.rehearsal else 18.0
    report.step("sweep and spread", sweep + 20, partial(_sweep, context, facts, sweep))
    report.step("busy estimate", 20, partial(_busy, context, facts))
    report.step("clock from idle", 10, partial(_ramp, context))
    report.step("random against zeros", 12, partial(_zeros, context))
    watched = min(10.0 if context.rehearsal else 30.0, report.box.left_seconds - 12)
    report.step(
        "GPU time against budget", max(watched, 10) + 12, partial(_budget, context, watched)
    )


def _sweep(context: Context, facts: DeviceFacts, seconds: float) -> None:
    """The probe's FLOP per clock over the best of a sweep in the same minutes, half before, half after."""
    report = context.report
    precision = "fp32" if context.rehearsal else "bf16"
    sizes = SWEEP_SIZES_SMALL if context.rehearsal else SWEEP_SIZES
    kernel = f"gemm_{precision}"
    with Tenant(context.device) as tenant:
        tenant.open()
        with DirectProbe(facts) as probe:
            probe.measure(kernel)  # chooses its size
            early = [probe.measure(kernel)[0] for _ in range(_PROBES // 2)]
            swept = tenant.ask("sweep", precision=precision, sizes=sizes, seconds=seconds)
            late = [probe.measure(kernel)[0] for _ in range(_PROBES - _PROBES // 2)]
            copies = [probe.measure("copy_device")[0] for _ in range(_PROBES)]
    rows = swept["rows"]
    results = early + late
    if not all(row["hertz"] for row in rows):
        # Only on the host processor, whose clock the sweep cannot measure: rates are compared then.
        results = [msgspec.structs.replace(result, clock_hertz=None) for result in results]
        rows = [{**row, "hertz": None} for row in rows]
    best = max(rows, key=lambda row: row["flops"] / (row["hertz"] or 1.0))
    best_per_clock = best["flops"] / (best["hertz"] or 1.0)
    probed = statistics.median(per_clock(result) for result in results)
    report.figure(
        f"{precision} probe over the sweep's best, per clock",
        probed / best_per_clock,
        "ratio",
        goal=SWEEP_GOAL,
        note=f"{len(rows)} of {swept['shapes']} shapes; best {'x'.join(map(str, best['shape']))},"
        f" probe {'x'.join(map(str, results[0].shape))}",
    )
    clocks = [result.clock_hertz for result in results if result.clock_hertz]
    if clocks and best["hertz"]:
        report.figure("clock during the probes", statistics.median(clocks), "Hz")
        report.figure("clock at the sweep's best", best["hertz"], "Hz")
    report.figure("sweep's best", best["flops"], "FLOP/s")
    report.figure(
        f"spread of {_PROBES} {precision} probes",
        spread_per_clock(results),
        "ratio",
        goal=SPREAD_GOAL,
    )
    bandwidths = [result.work_per_run / median_run(result) for result in copies]
    report.figure("device copy, median of probes", statistics.median(bandwidths), "B/s")
    report.figure(f"spread of {_PROBES} copy probes", spread(bandwidths), "ratio")
    report.detail("sweep", rows)


def _busy(context: Context, facts: DeviceFacts) -> None:
    """The estimate's bracket beside a tenant of known duty, which waits for its own steps."""
    precision = "fp32" if context.rehearsal else "bf16"
    shape = [128] * 3 if context.rehearsal else [4096] * 3
    kernel = f"gemm_{precision}"
    with (
        Tenant(context.device) as tenant,
        DirectProbe(facts, ProbeConfig(gap_seconds=0.003)) as probe,
    ):
        tenant.open()
        probe.measure(kernel)
        alone = [probe.measure(kernel)[0] for _ in range(_BESIDE)]
        for duty in DUTIES_SMALL if context.rehearsal else DUTIES:
            if not context.report.box.fits(6):
                context.report.left_out(f"busy estimate at {duty:.0%}", "no time left")
                continue
            true = 0.0
            if duty > 0:
                tenant.begin(
                    "gemm",
                    precision=precision,
                    shape=shape,
                    seconds=2.5,
                    duty=duty,
                    period=TENANT_PERIOD_SECONDS,
                )
                time.sleep(0.5)
            beside = [probe.measure(kernel)[0] for _ in range(_BESIDE)]
            if duty > 0:
                tenant.result(30)
                true = duty
            low, high = busy_bracket(beside, alone)
            outside = max(0.0, low - true, true - high)
            context.report.figure(
                f"busy estimate beside a tenant at {duty:.0%}: distance from its bracket",
                outside,
                "ratio",
                goal=Goal(high=BRACKET_TOLERANCE),
                note=f"bracket {low:.0%} to {high:.0%}",
            )


def _ramp(context: Context) -> None:
    """From an idle clock to a steady one, by spins between short GEMMs."""
    shape = [64] * 3 if context.rehearsal else [4096] * 3
    rest, seconds = (0.1, 0.2) if context.rehearsal else (4.0, 2.5)
    with Tenant(context.device) as tenant:
        tenant.open()
        samples = tenant.ask("ramp", shape=shape, rest=rest, seconds=seconds)["samples"]
    pairs = [(at, hertz) for at, hertz in samples]
    steady = seconds_to_steady(pairs)
    note = "" if pairs else "the device's clock cannot be measured"
    if pairs:
        note = f"from {pairs[0][1] / 1e6:.0f} to {pairs[-1][1] / 1e6:.0f} MHz"
        if steady is None:
            note += f"; not steady within {seconds:g} s"
    context.report.figure("seconds from idle to a steady clock", steady, "seconds", note=note)
    context.report.detail("clock from idle", pairs)


def _zeros(context: Context) -> None:
    """How much faster GEMMs of zeros are than of random data, in a short window and a long one."""
    precision = "fp32" if context.rehearsal else "bf16"
    shape = [256] * 3 if context.rehearsal else [8192] * 3
    windows = (0.05,) if context.rehearsal else (0.05, 2.0)
    with Tenant(context.device) as tenant:
        tenant.open()
        for seconds in windows:
            rates = {
                zeros: tenant.ask(
                    "rate", precision=precision, shape=shape, seconds=seconds, zeros=zeros
                )
                for zeros in (False, True)
            }
            context.report.figure(
                f"zeros over random data, {precision} for {seconds:g} s",
                rates[True]["flops"] / rates[False]["flops"],
                "ratio",
                note="a probe of zeros would overstate by what is above 100 %",
            )
            context.report.detail(f"zeros and random for {seconds:g} s", rates)


def _budget(context: Context, seconds: float) -> None:
    """Device time of the daemon's probes: as exported, as seen by GPM, as allowed by the budget."""
    if seconds < 10:
        context.report.left_out("GPU time against budget", "no time left")
        return
    config = ProbeConfig()
    interval = _BUDGET_INTERVAL_SECONDS
    probes: dict[str, Any] = {
        "interval": f"{interval:g}s",
        "budget": f"{config.budget_seconds * 1e3:g}ms",
        "hold_off": "0s",
        "pause_file": str(context.scratch / "pause"),
    }
    gpu = "cpu0" if context.rehearsal else str(context.gpu)
    configuration = settings(probes=probes) | {"sources": {"cpu": "on"}}
    name = "flopwatch_probe_gpu_seconds_total"
    with start_daemon(context.scratch / "budget", configuration) as daemon:
        wait_for_gpu(daemon, context.gpu)
        begin = time.monotonic()
        seen = _active_seconds(context, seconds)
        passed = time.monotonic() - begin
        if passed < seconds:  # without GPM there was no wait
            time.sleep(seconds - passed)
            passed = time.monotonic() - begin
        scrape = daemon.scrape()
        claimed = scrape.total(name, gpu=gpu)
        runs = scrape.total("flopwatch_probe_runs_total", gpu=gpu)
    # A cycle may overlap each end of the time; each may spend its whole budget.
    allowed = config.budget_seconds * (passed / interval + 2)
    context.report.figure(
        "probes' GPU time, as exported, of what the budget allows",
        claimed / allowed,
        "ratio",
        goal=Goal(high=1.0),
        note=f"{runs:.0f} runs, {claimed * 1e3:.1f} ms in {passed:.0f} s",
    )
    if seen is not None:
        context.report.figure(
            "GPU active time seen by GPM meanwhile, of what the budget allows",
            seen / allowed,
            "ratio",
            note="contexts being opened and closed are seen as well",
        )


def _active_seconds(context: Context, seconds: float) -> float | None:
    """Seconds that the graphics engine was active over the next `seconds`, by GPM; None without."""
    library = DriverLibrary()
    library.open()
    try:
        handle = call("nvmlDeviceGetHandleByIndex", context.gpu)
        with Samples(handle, 2) as samples:
            begin = samples.take(0)
            time.sleep(seconds)
            end = samples.take(1)
            percent = samples.single(0, 1, [gpm.GRAPHICS]).get(gpm.GRAPHICS)
    except NvmlError:
        return None
    finally:
        library.close()
    return None if percent is None else percent / 100 * (end - begin)
