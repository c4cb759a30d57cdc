"""The findings: one pure function for each, with its text; None where the condition does not hold.

Ratios are 0..1. Thresholds are those of the alerts in deploy/prometheus, so that page and pager
agree. A text begins in lower case and stands alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from exporter.attribution.snapshot import Unresolved
from exporter.findings import (
    CRITICAL,
    DEFAULT_THRESHOLDS,
    HALF_COUNTED,
    INFO,
    STEADY_SPREAD,
    USEFUL_EXCESS,
    WARNING,
    XID_CRITICAL,
    XID_PROGRAM,
    Finding,
    Severity,
    Thresholds,
    limit,
)
from exporter.status.document import SPACE, count, megahertz, percent, quantity, span


# Lost clock below this share of the peak is not worth a sentence.
_CLOCK_LOSS_MIN: Final = 0.01
# A program's fault is reported for an hour; others stay until the GPU is repaired.
_PROGRAM_XID_SECONDS: Final = 3600.0
# A cache that saves less than this share of the prompts never mattered.
_CACHE_MATTERS: Final = 0.1
# An engine that loads its weights is idle for minutes, too.
_HELD_SECONDS: Final = 840.0
_XID_MEANING: Final[Mapping[int, str]] = {
    8: "a kernel exceeded the watchdog's timeout",
    13: "a program's kernel failed",
    31: "illegal memory access by a program",
    43: "a program's channel was stopped",
    45: "a program was terminated while it used the GPU",
    48: "double-bit memory error",
    61: "firmware halted",
    62: "firmware halted",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    74: "NVLink error",
    79: "the GPU fell off the bus",
    92: "many corrected memory errors",
    94: "a contained memory error ended one process",
    95: "an uncontained memory error",
    119: "the GPU's firmware does not answer",
    120: "the GPU's firmware failed",
    121: "C2C link error",
    140: "uncorrectable memory error",
    143: "the GPU could not be initialized",
}
_RECOVERY: Final[Mapping[str, str]] = {
    "gpu_reset": "the GPU requires a reset",
    "node_reboot": "the GPU requires a reboot of the node",
    "drain_p2p": "the GPU requires its peer-to-peer work to be drained",
    "drain_and_reset": "the GPU requires a drain and a reset",
    "recover_imex_domain": "the GPU requires a recovery of its IMEX domain",
    "bus_reset": "the GPU requires a bus reset",
    "system_reboot": "the GPU requires a reboot of the system",
}
_CAUSES: Final[Mapping[str, str]] = {
    "gpu_is_lost": "the GPU is lost: it has fallen off the bus, or its firmware has failed",
    "driver_not_loaded": "the NVIDIA driver is not loaded",
    "library_not_found": "the NVIDIA driver is not installed",
    "no_devices": "the driver lists no GPU",
    "turned_off": "NVML is turned off in the configuration",
    "reset_required": "the GPU needs a reset",
    "lib_rm_version_mismatch": "driver library and kernel module have different versions: restart the exporter",
}
_GATES: Final[Mapping[str, str]] = {
    "paused": "paused by the operator",
    "mig": "it is split into MIG instances",
    "compute_mode": "another process has exclusive use of it",
    "new_process": "a process has just started on it",
    "free_memory": "too little memory is free",
    "throttled_hot": "it is throttled by heat",
    "budget": "the budget is spent",
    "backoff": "the probe worker failed and will be restarted",
    "no_facts": "its state is unknown",
    "torch_missing": "torch is not installed",
}
_STALLED: Final = (
    "the SMs are busy (softmax, norms, latency, synchronization), tensor pipe and DRAM are not"
)


# ---- whether the device answers ----


def waiting(*, since_seconds: float) -> Finding:
    """The driver has not identified this device yet."""
    text = f"no answer from the driver yet, after {span(since_seconds)}"
    return Finding(WARNING if since_seconds > 10 else INFO, "waiting", text)


def hung(*, age_seconds: float) -> Finding:
    """A driver call does not return. Only the age of the last reading is known."""
    text = f"hung: a driver call does not return; last reading {span(age_seconds)} ago"
    return Finding(CRITICAL, "hung", text)


def lost(*, reason: str | None, since_seconds: float | None) -> Finding:
    """The device answers with an error. `reason` is NVML's name of it in snake case."""
    cause = _cause(reason) if reason else "no reading"
    since = "" if since_seconds is None else f"; last reading {span(since_seconds)} ago"
    return Finding(CRITICAL, "lost", f"down: {cause}{since}")


def stale(*, age_seconds: float) -> Finding:
    """The device is up, but its last tick is too old to be shown."""
    return Finding(CRITICAL, "stale", f"stale: the last reading is {span(age_seconds)} old")


def source_down(source: str, *, since_seconds: float | None, reason: str | None) -> Finding:
    """A source of a device that is up does not deliver."""
    why = f" ({reason})" if reason else ""
    if since_seconds is None:  # it may not have the counters, which is no fault
        return Finding(INFO, "source_down", f"no data from {source} so far{why}")
    text = f"no data from {source} for {span(since_seconds)}{why}"
    return Finding(WARNING, "source_down", text)


# ---- where the FLOPS go ----


def bottleneck(states: Mapping[str, float], *, dram: float | None) -> Finding | None:
    """What took most of the last minute, of the things that work itself decides.

    `states` are shares of time; `dram` the share of theoretical memory bandwidth used.
    """
    sure = ("tensor", "memory", "stall", "underfill", "idle")
    name = max(sure, key=lambda state: states.get(state, 0.0))
    share = states.get(name, 0.0)
    if share <= 0 or states.get("unresolved", 0.0) > share:
        return None
    often = f"for {percent(share)} of the time"
    memory = often if dram is None else f"DRAM at {percent(dram)}"
    kind, text = {
        "tensor": (
            "compute_bound",
            f"compute-bound: tensor pipe busy {percent(share)} of the time",
        ),
        "memory": ("memory_bound", f"memory-bound: {memory}, tensor pipe waits"),
        "stall": (
            "stall_bound",
            f"stalled {often}: {_STALLED}",
        ),
        "underfill": (
            "underfilled",
            f"underfilled {often}: kernels run, but leave SMs empty (small batches, tails, copies)",
        ),
        "idle": ("idle", f"idle for {percent(share)} of the last minute"),
    }[name]
    return Finding(INFO, kind, text)


def coarse(
    *, why: str | None, busy: float | None, flops: float | None = None, precision: str | None = None
) -> Finding:
    """Only coarse utilization is known. `flops` is what a probe measured that it can do."""
    parts = [] if busy is None else [f"busy {percent(busy)}"]
    if flops is not None:
        parts.append(f"a probe measured {quantity(flops, 'FLOP/s')} {precision}")
    if why is not None:
        parts.append(f"FLOPS unknown: {why}")
    return Finding(INFO, "coarse", "; ".join(parts))


def clock_held(
    cause: str,
    *,
    held: float,
    mean_hertz: float | None,
    max_hertz: float | None,
    lost_share: float,
    over: str,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """Power or heat (`cause`) held the clock for a share of the time, and at what clock.

    `lost_share` is the share of the peak that this cost, `over` the span in words.
    """
    if lost_share < _CLOCK_LOSS_MIN or held <= 0 or mean_hertz is None or max_hertz is None:
        return None
    bound = thresholds.heat_loss_warning if cause == "heat" else thresholds.power_loss_warning
    return Finding(
        WARNING if lost_share > bound else INFO,
        "clock_held_by_heat" if cause == "heat" else "clock_held_by_power",
        f"clock held down to {megahertz(mean_hertz)} of {megahertz(max_hertz)}{SPACE}MHz by {cause}"
        f" for {percent(held)} of {over}",
    )


# ---- health ----


def xid(code: int, *, times: int, age_seconds: float | None) -> Finding | None:
    """An XID event since the last reset; what it means by NVIDIA's catalogue."""
    program = code in XID_PROGRAM
    if age_seconds is None or (program and age_seconds > _PROGRAM_XID_SECONDS):
        return None
    severity = CRITICAL if code in XID_CRITICAL else INFO if program else WARNING
    meaning = f", {_XID_MEANING[code]}" if code in _XID_MEANING else ""
    often = f" ({times:,} times)" if times > 1 else ""
    return Finding(severity, "xid", f"XID {code}{meaning}, {span(age_seconds)} ago{often}")


def memory_errors(
    *, uncorrected: float, corrected: float, thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Finding | None:
    """ECC errors: uncorrected ones since the last reset, corrected ones since the exporter started."""
    if uncorrected > 0:
        text = count(uncorrected, "new uncorrected memory error")
        return Finding(CRITICAL, "ecc_uncorrected", text)
    if corrected > thresholds.corrected_errors:
        return Finding(WARNING, "ecc_corrected", count(corrected, "new corrected memory error"))
    return None


def row_remap(*, pending: bool | None, failed: bool | None) -> Finding | None:
    """Row remapping: failed, or pending until a reset."""
    if failed:
        text = "a memory row could not be remapped: replace the GPU"
        return Finding(CRITICAL, "row_remap_failed", text)
    if pending:
        text = "a memory row will be remapped at the next reset: drain and reset the GPU"
        return Finding(WARNING, "row_remap_pending", text)
    return None


def recovery(action: str | None) -> Finding | None:
    """What the driver asks for. `action` as in `flopwatch_recovery_action`."""
    if action is None or action == "none":
        return None
    text = _RECOVERY.get(action, f"the driver requires: {action}")
    return Finding(CRITICAL, "recovery_action", text)


def links_down(links: Mapping[str, bool]) -> Finding | None:
    """Some NVLinks are down. If all are, the GPU has no bridge."""
    down = sorted(
        (link for link, up in links.items() if not up), key=lambda link: (len(link), link)
    )
    if not down or len(down) == len(links):
        return None
    text = f"{count(len(down), 'NVLink')} of {len(links)} down: {', '.join(down)}"
    return Finding(WARNING, "nvlink_down", text)


def narrow_pcie(*, width: int | None, width_max: int | None) -> Finding | None:
    """The slot or a lane is bad. The generation is no sign: it falls when the link idles."""
    if not width or not width_max or width >= width_max:
        return None
    return Finding(WARNING, "pcie_narrow", f"PCIe link uses {width} of {width_max} lanes")


def hot(
    *,
    temperature_celsius: float | None,
    memory_celsius: float | None,
    idle_share: float,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """Memory so hot that it throttles, or a GPU that is hot while idle."""
    if memory_celsius is not None and memory_celsius >= thresholds.memory_hot_celsius:
        return Finding(WARNING, "memory_hot", f"memory at {memory_celsius:.0f}{SPACE}°C")
    if (
        temperature_celsius is not None
        and temperature_celsius > thresholds.idle_hot_celsius
        and idle_share > 1 - thresholds.idle_busy_ratio
    ):
        text = f"{temperature_celsius:.0f}{SPACE}°C while idle: check the cooling"
        return Finding(WARNING, "hot_while_idle", text)
    return None


def power_limit(
    *,
    watts: float | None,
    usual_watts: float | None,
    siblings: Sequence[float],
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """A limit below the highest that the GPU had, or below the median of its model on this host."""
    if watts is None:
        return None
    ratio = thresholds.power_limit_ratio
    median = sorted(siblings)[len(siblings) // 2] if siblings else 0.0
    if usual_watts is not None and watts < ratio * usual_watts:
        usual = f"it was {usual_watts:.0f}{SPACE}W before"
    elif watts < ratio * median:
        usual = f"its siblings have {median:.0f}{SPACE}W"
    else:
        return None
    text = f"power limit is {watts:.0f}{SPACE}W; {usual}"
    return Finding(WARNING, "power_limit_lowered", text)


def power_brake(reasons: Iterable[str]) -> Finding | None:
    """The external power brake is on now."""
    if not any(reason.startswith("hw_power_brake") for reason in reasons):
        return None
    text = "slowed down by the external power brake: check the power supplies"
    return Finding(WARNING, "power_brake", text)


def memory_held(
    workload: str,
    *,
    used_ratio: float,
    idle_share: float,
    watched_seconds: float,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """Memory taken on an idle GPU whose engine (`workload`) does not answer."""
    if used_ratio <= thresholds.memory_held_ratio:
        return None
    if watched_seconds < _HELD_SECONDS or idle_share < 0.99:
        return None
    text = f"{percent(used_ratio)} of memory is held, but the GPU is idle and {workload} does not answer"
    return Finding(WARNING, "memory_held", text)


def prefix_cache_collapsed(
    workload: str,
    *,
    recent: float | None,
    usual: float | None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """A prefix cache that saves far less than usual."""
    if recent is None or usual is None or usual < _CACHE_MATTERS:
        return None
    if recent >= thresholds.prefix_cache_ratio * usual:
        return None
    text = (
        f"{percent(recent)} of {workload}'s prompt tokens come from the prefix cache, usually "
        f"{percent(usual)}: prompts are computed again"
    )
    return Finding(WARNING, "prefix_cache_collapsed", text)


def precision_or_product_mismatch(
    workload: str, *, explained: float | None, spread: float | None
) -> Finding | None:
    """An engine that needs more than was executed, or steadily half of it.

    `explained` is what its tokens and the waste that it counts need, over the executed FLOP; `spread`
    is how far the minutes lie apart, over their mean.
    """
    if explained is None or spread is None:
        return None
    needs = f"{workload} needs {percent(explained)} of the counted FLOP"
    causes = "the assumed precision, product or model is wrong"
    if explained > USEFUL_EXCESS:
        return Finding(WARNING, "precision_or_product_mismatch", f"{needs}: {causes}")
    low, high = HALF_COUNTED
    if low <= explained <= high and spread <= STEADY_SPREAD:
        text = f"{needs}, steadily: {causes}, or half of the work is padding"
        return Finding(INFO, "precision_or_product_mismatch", text)
    return None


def useful_share_fell(
    workload: str, *, recent: float | None, usual: float | None
) -> Finding | None:
    """An engine that turns far less of the executed FLOP into tokens than usual."""
    if recent is None or usual is None or recent >= limit("usefulDrop") * usual:
        return None
    text = f"{percent(recent)} of what {workload} executes becomes tokens, usually {percent(usual)}"
    return Finding(INFO, "useful_share_fell", text)


def shares_not_measured(holders: int, why: Unresolved | None) -> Finding | None:
    """A shared device whose work is divided equally, and what would help."""
    if why is None:
        return None
    reason = {
        "namespace": "the exporter does not see the host's processes; hostPID: true would help",
        "owners": "no process could be assigned to a holder; CAP_SYS_PTRACE or root would help",
        "driver": "the driver reports no SM time per process",
    }[why]
    text = f"its work is divided equally among {holders} holders: {reason}"
    return Finding(INFO, "shares_not_measured", text)


# ---- probes ----


def slower_than_baseline(
    ratios: Mapping[str, float], thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Finding | None:
    """The kernel that fell furthest below this device's own baseline."""
    judged = {k: r for k, r in ratios.items() if k.startswith("gemm_") or k == "copy_device"}
    if not judged:
        return None
    kernel = min(judged, key=lambda name: judged[name])
    ratio = judged[kernel]
    if ratio >= thresholds.baseline_warning:
        return None
    severity = CRITICAL if ratio < thresholds.baseline_critical else WARNING
    text = f"slower than it was: {kernel} at {percent(ratio)} of its own baseline"
    return Finding(severity, "slower_than_baseline", text)


def slower_than_siblings(
    kernel: str,
    value: float,
    siblings: Sequence[float],
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Finding | None:
    """A device beside the median of those of its model on this host, itself included."""
    if len(siblings) < thresholds.peers_minimum:
        return None
    import statistics  # noqa: PLC0415  1 MB, for those who look at the page of probed devices

    middle = statistics.median(siblings)
    ratio = value / middle if middle > 0 else 1.0
    if ratio >= thresholds.peers_warning:
        return None
    severity = CRITICAL if ratio < thresholds.peers_critical else WARNING
    text = (
        f"slower than its siblings: {kernel} at {percent(ratio)} of the median of {len(siblings)}"
    )
    return Finding(severity, "slower_than_siblings", text)


def wrong_results(mismatches: Mapping[str, int]) -> Finding | None:
    """Probe results that were not bit for bit the expected ones."""
    wrong = {kernel: times for kernel, times in mismatches.items() if times > 0}
    if not wrong:
        return None
    kernels = ", ".join(sorted(wrong))
    text = f"computes wrong results: {count(sum(wrong.values()), 'mismatch', 'mismatches')}"
    return Finding(CRITICAL, "wrong_results", f"{text} in {kernels}; drain the GPU")


def not_probed(reason: str) -> Finding:
    """Why there is no fresh probe result, by the gate that held most runs back."""
    return Finding(INFO, "not_probed", f"not probed: {_GATES.get(reason, reason)}")


def contended(missing: Sequence[str], *, busy: float | None) -> Finding | None:
    """Why probes have measured nothing `missing` (FLOPS, memory bandwidth): others use the device."""
    if not missing:
        return None
    share = "" if busy is None else f" (busy {percent(busy)})"
    text = f"{' and '.join(missing)} not measured: other programs use the device{share}"
    return Finding(INFO, "not_probed", f"{text}, and probes run only while it is free")


# ---- the host ----


def no_gpu(reason: str) -> str:
    """Why the host shows no GPU. `reason` is NVML's name of its answer in snake case."""
    return f"No GPU: {_cause(reason)}."


def _cause(reason: str) -> str:
    return _CAUSES.get(reason) or f"the driver reports: {reason.replace('_', ' ')}"


def missing_gpus(expected: int, listed: int) -> str:
    """The PCI bus shows more GPUs than the driver lists."""
    return f"The PCI bus shows {count(expected, 'GPU')}, the driver lists {listed or 'none'}."


def host_summary(severities: Iterable[Severity | None], noun: str = "GPU") -> str:
    """The whole host in one sentence, from the worst severity of each device."""
    worst = list(severities)
    if not worst:
        return "No device to monitor: no GPU was found, and the host processor is not sampled."
    critical = sum(severity is CRITICAL for severity in worst)
    warned = sum(severity is WARNING for severity in worst)
    healthy = len(worst) - critical - warned
    if healthy == len(worst):
        return "The device is OK." if healthy == 1 else f"All {count(healthy, noun)} are OK."
    parts = [f"{critical} critical"] if critical else []
    parts += [f"{warned} warning"] if warned else []
    parts += [f"{healthy} OK"] if healthy else []
    return f"{count(len(worst), noun)}: {', '.join(parts)}."


def worst(findings: Iterable[Finding]) -> Severity | None:
    """The worst severity, None where there are at most notes."""
    found = {finding.severity for finding in findings}
    return CRITICAL if CRITICAL in found else WARNING if WARNING in found else None
