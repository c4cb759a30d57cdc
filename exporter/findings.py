"""The findings: every kind that the exporter can report, and every threshold, declared once.

The status page, `flopwatch top`, the JSON document, the series `flopwatch_finding`, the dashboards and
the alerts in deploy/prometheus all read these. `symptom` continues "GPU 3 on node7 …", `likely` continues
"Likely: …", and `action` is a sentence of its own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from flopwatch.option_parsers import integer, number
from flopwatch.options import option


class Severity(StrEnum):
    """How bad it is: needs an operator now, needs one soon, or only explains the number."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


CRITICAL, WARNING, INFO = Severity.CRITICAL, Severity.WARNING, Severity.INFO


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is true of a device. `kind` is a key of KINDS; `text` is complete by itself."""

    severity: Severity
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit that a finding or an alert compares with. `help` says which side is bad."""

    value: float
    help: str


# In the order in which the mixin's configuration and the chart's values list them.
THRESHOLDS: Final[Mapping[str, Threshold]] = {
    "powerLossWarning": Threshold(
        0.25, "Warn if the power limit costs more than this share of the peak."
    ),
    "heatLossWarning": Threshold(0.05, "Warn if heat costs more than this share of the peak."),
    "baselineWarning": Threshold(
        0.9, "Warn if a probe result is below this fraction of the GPU's own baseline."
    ),
    "baselineCritical": Threshold(
        0.75, "Critical if a probe result is below this fraction of the GPU's own baseline."
    ),
    "peersWarning": Threshold(
        0.95, "Warn if a probe result is below this fraction of the peers' median."
    ),
    "peersCritical": Threshold(
        0.75, "Critical if a probe result is below this fraction of the peers' median."
    ),
    "peersMinimum": Threshold(4, "Compare GPUs of one model only if there are at least this many."),
    "peersDeviations": Threshold(
        3.5, "A GPU is a straggler if it is this many robust standard deviations below the median."
    ),
    "memoryHotCelsius": Threshold(
        95, "Warn at or above this memory temperature. HBM and GDDR6X throttle at the default."
    ),
    "idleHotCelsius": Threshold(70, "Warn if an idle GPU is hotter than this."),
    "idleBusyRatio": Threshold(
        0.1, "A GPU counts as idle if it is busy for less than this share of the time."
    ),
    "correctedErrors": Threshold(
        1000, "Warn if there are more corrected memory errors than this within an hour."
    ),
    "powerLimitRatio": Threshold(
        0.9,
        "Warn if the power limit is below this fraction of the usual one or of the siblings' median.",
    ),
    "memoryHeldRatio": Threshold(
        0.2, "Warn if an idle GPU whose engine does not answer holds more of its memory than this."
    ),
    "prefixCacheRatio": Threshold(
        0.5, "Warn if the cached share of prompt tokens is below this fraction of the usual one."
    ),
    "powerBrakeRatio": Threshold(
        0.05, "Warn if the external power brake is on for more than this share of the time."
    ),
    "nvlinkErrors": Threshold(
        100, "Warn if there are more NVLink errors than this within half an hour."
    ),
    "pcieReplays": Threshold(100, "Warn if there are more PCIe replays than this within an hour."),
    "utilizationDrop": Threshold(
        0.6, "Warn if FLOPS fall below this fraction of those at the same hour on earlier days."
    ),
    "throughputDrop": Threshold(
        0.7, "Warn if tokens per second fall below this fraction of the usual rate."
    ),
    "usefulDrop": Threshold(
        0.7, "Report a useful share of the work below this fraction of the usual one."
    ),
    "targetsRatio": Threshold(
        0.75, "Warn if less than this share of the targets of the last two weeks is left."
    ),
    "restartsPerHour": Threshold(3, "Warn if there are more restarts than this within an hour."),
    "clockSkewSeconds": Threshold(
        60, "Warn if the clocks of the host and Prometheus differ by more than this."
    ),
    "probeAgeSeconds": Threshold(
        21600, "Report a GPU whose newest probe result is older than this."
    ),
    "estimatorError": Threshold(
        0.1, "Report a FLOP counter that differs from GEMMs of known size by more than this."
    ),
}


# Thresholds of findings on the useful share that no alert has. What tokens and known waste need cannot be
# more than was executed; a counter that is wrong by two shows half of a usual share, or twice it.
USEFUL_EXCESS: Final = 1.05
HALF_COUNTED: Final = (0.40, 0.55)
# Minutes of one load differ by at most this much, relative to their mean.
STEADY_SPREAD: Final = 0.1


def limit(name: str) -> float:
    """The threshold's value. Raises KeyError for a name that is not declared."""
    return THRESHOLDS[name].value


_SHARE: Final = number(above=0, at_most=1)
_CELSIUS: Final = number(above=0, at_most=150)


def _option(name: str, parse: Callable[[Any], Any] = _SHARE) -> Any:
    """The option of a threshold: `findings.power_loss_warning` for `powerLossWarning`."""
    threshold = THRESHOLDS[name]
    path = re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)
    text = f"{threshold.help} The rules call it `{name}`."
    # As in a file, so that a printed configuration can be read again.
    return option(f"findings.{path}", parse, parse(threshold.value), text, f"{threshold.value:g}")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of the findings, as the configuration may set them.

    The rules have a corresponding setting for each: change both together.
    """

    power_loss_warning: float = _option("powerLossWarning")
    heat_loss_warning: float = _option("heatLossWarning")
    baseline_warning: float = _option("baselineWarning")
    baseline_critical: float = _option("baselineCritical")
    peers_warning: float = _option("peersWarning")
    peers_critical: float = _option("peersCritical")
    peers_minimum: float = _option("peersMinimum", integer(at_least=2, at_most=10_000))
    memory_hot_celsius: float = _option("memoryHotCelsius", _CELSIUS)
    idle_hot_celsius: float = _option("idleHotCelsius", _CELSIUS)
    idle_busy_ratio: float = _option("idleBusyRatio")
    corrected_errors: float = _option("correctedErrors", integer(at_least=1, at_most=1_000_000_000))
    power_limit_ratio: float = _option("powerLimitRatio")
    memory_held_ratio: float = _option("memoryHeldRatio")
    prefix_cache_ratio: float = _option("prefixCacheRatio")


DEFAULT_THRESHOLDS: Final = Thresholds()

# By the actions in NVIDIA's XID catalogue: reset, reboot or replace; contained, or fixed by the
# next reset; and those that a program causes.
XID_CRITICAL: Final = (46, 48, 61, 62, 64, 74, 79, 95, 119, 120, 140, 143)
XID_WARNING: Final = (63, 92, 94, 121, 144, 145, 146, 147, 148, 149, 150)
XID_PROGRAM: Final = (8, 13, 31, 32, 43, 45, 68, 69, 109)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding, in words that do not depend on the numbers."""

    symptom: str
    likely: str = ""
    action: str = ""

    @property
    def advice(self) -> str:
        """The likely cause and what to do, as in an alert's description."""
        likely = f"Likely: {self.likely}." if self.likely else ""
        return " ".join(part for part in (likely, self.action) if part)


KINDS: Final[Mapping[str, Kind]] = {
    # Whether the device answers.
    "waiting": Kind("has not answered yet"),
    "hung": Kind(
        "does not answer the driver",
        "the GPU or its firmware is wedged, and the engine's next call will hang too",
        "Drain the host and reboot it.",
    ),
    "lost": Kind(
        "is lost",
        "it fell off the bus (XID 79), its firmware died (XID 119, 120), or it waits for a reset",
        "Work on it is gone. Reset the GPU; if it does not come back, reboot the host.",
    ),
    "stale": Kind("has no recent reading", "the exporter is starved of processor time"),
    "source_down": Kind(
        "has a source without readings",
        "a profiler holds the counters, a permission is missing, or dcgm-exporter is down",
    ),
    # Where the FLOPS go.
    "compute_bound": Kind("is compute-bound"),
    "memory_bound": Kind("is memory-bound"),
    "stall_bound": Kind("is stalled"),
    "underfilled": Kind("is underfilled"),
    "idle": Kind("is idle"),
    "coarse": Kind("has no activity counters"),
    "clock_held_by_heat": Kind(
        "loses FLOPS to heat",
        "a failed fan or pump, blocked air, hot inlet air, or dried thermal paste when its neighbors"
        " stay cool",
        "Compare the temperatures of the host's GPUs.",
    ),
    "clock_held_by_power": Kind(
        "loses FLOPS to its power limit",
        "a lowered limit or a power supply in trouble; a dense prefill load loses 10 to 20 % at the"
        " default limit",
        "Compare the limit with the siblings' (nvidia-smi -q -d POWER).",
    ),
    "power_brake": Kind(
        "is slowed down by the external power brake",
        "a failed or overloaded power supply, or a rack power cap",
        "The brake comes from the chassis: check its power supplies.",
    ),
    "power_limit_lowered": Kind(
        "has a lowered power limit",
        "someone or a tool changed it (nvidia-smi -pl), a rack power cap, or a firmware change",
        "Restore the limit, or accept it as the runbook says.",
    ),
    # Health.
    "xid": Kind(
        "reported an XID error",
        "memory (48, 63, 64, 92, 94, 95, 140), NVLink (74, 121, 144 to 150), off the bus (79), firmware"
        " (61, 62, 119, 120, 143)",
        "Drain the GPU and reset it; replace it if the error comes back.",
    ),
    "ecc_uncorrected": Kind(
        "has uncorrectable memory errors",
        "a failing memory cell",
        "Processes that touched it were killed. Drain the GPU and reset it, which remaps the row;"
        " replace it if the errors come back.",
    ),
    "ecc_corrected": Kind(
        "corrects many memory errors",
        "memory that is starting to fail",
        "Nothing is lost yet. Plan a reset.",
    ),
    "row_remap_pending": Kind(
        "waits for a reset to remap a memory row",
        "a memory row was marked bad",
        "Drain the GPU and reset it when convenient.",
    ),
    "row_remap_failed": Kind(
        "has run out of spare memory rows",
        "failing memory",
        "Replace the GPU: this is the vendor's criterion.",
    ),
    "recovery_action": Kind(
        "needs a recovery action",
        "an error that the driver cannot clear by itself",
        "Take the recommended action; results and performance are not reliable until then.",
    ),
    "nvlink_down": Kind(
        "has lost NVLinks",
        "a link that could not be retrained, a switch or its fabric manager, or a bridge",
        "Collectives run at the pace of the slowest member: drain the host and reset it.",
    ),
    "pcie_narrow": Kind(
        "has a degraded PCIe link",
        "seating, a riser or a BIOS setting",
        "Weights load and KV blocks move that much slower. Reseat the board.",
    ),
    "nvlink_errors": Kind(
        "has NVLink errors",
        "a connector, a cable or a switch port",
        "Data is sent again, which costs bandwidth and latency. Such a link usually fails later.",
    ),
    "pcie_replays": Kind(
        "repeats PCIe transfers", "seating, a riser or the slot", "Reseat the board."
    ),
    "utilization_dropped": Kind(
        "delivers far fewer FLOPS than usual at the same demand",
        "a changed engine or batch setting, a neighbor on the GPU, a replica out of the load balancer's"
        " rotation, or a GPU that became slow",
        "Compare it with the other GPUs of its workload.",
    ),
    "memory_hot": Kind(
        "has memory at its temperature limit",
        "a failed fan or pump, blocked air, or thermal pads that have lost contact",
        "It throttles at this temperature. Check the cooling of this slot.",
    ),
    "hot_while_idle": Kind(
        "is hot while idle",
        "the cooling of this slot has failed, or a busy neighbor heats it",
        "It will throttle under load. Check fans and air flow.",
    ),
    "memory_held": Kind(
        "holds memory but does no work",
        "an engine that died or hangs with its memory still allocated, or a leftover process",
        "Find the process (nvidia-smi) and end it, or restart the pod.",
    ),
    "prefix_cache_collapsed": Kind(
        "computes prompts that its engine used to take from the prefix cache",
        "a restart, a router that scatters sessions, a changed prompt template, or a KV cache that is too small",
        "FLOP/s and MFU rise while fewer answers come out. Compare flopwatch_model_cached_tokens_total with deployments.",
    ),
    "precision_or_product_mismatch": Kind(
        "executes a different amount of work than its engine's tokens need",
        "the engine computes in another precision than the configured one, the product or its number of SMs is not"
        " the assumed one, or the configured model is not the one that is served",
        "Compare flopwatch_headline_precision_info and flopwatch_gpu_info with the engine, and correct gpus[].precision,"
        " gpus[].sm_count or the workload's model.",
    ),
    "useful_share_fell": Kind(
        "turns less of its work into tokens than usual",
        "smaller batches, recomputed prompts, rejected drafts, another precision, or another process on the GPU",
        "flopwatch_model_wasted_flop_total has the causes that the engine counts.",
    ),
    "shares_not_measured": Kind(
        "is shared, and what each holder did is assumed, not measured",
        "the exporter cannot see the host's processes, or the driver reports no SM time per process",
        "Run the exporter in the host's PID namespace (hostPID: true), with CAP_SYS_PTRACE or as root.",
    ),
    # Probes.
    "slower_than_baseline": Kind(
        "is slower than it used to be",
        "a lowered clock or power limit, worse cooling, or aging silicon or memory",
        "Compare it with its siblings first, to tell a change of the whole fleet from a fault of one GPU.",
    ),
    "slower_than_siblings": Kind(
        "is slower than its peers",
        "failing silicon or memory, or software that the peers do not have",
        "Run the vendor's diagnostics.",
    ),
    "wrong_results": Kind(
        "computes wrong results",
        "failing silicon; the hardware raised no error",
        "Answers served by this GPU cannot be trusted: take it out of service.",
    ),
    "not_probed": Kind(
        "is not probed",
        "probes are paused, too little memory is free for the worker, or the GPU is never idle",
        "Its speed is unknown until a probe has run.",
    ),
}
