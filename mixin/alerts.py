"""The alerts. Each tolerates a failed scrape, and holds until there is evidence of a repair."""

from exporter.findings import KINDS
from mixin.alerts_service import service_files
from mixin.promql import recent
from mixin.source import Alert, Group, RuleFile


GPU = "GPU {{ $labels.gpu }}"
PART = "GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }}"
ON = " on {{ $labels.instance }} "


def on_gpu(
    name: str,
    expr: str,
    severity: str,
    finding: str,
    value: str,
    *,
    wait: str = "",
    board: str = "gpu",
    who: str = GPU,
    why: str = "",
    labels: dict[str, str] | None = None,
    symptom: str = "",
) -> Alert:
    """An alert on one GPU: it uses the finding's words, `value` gives the number."""
    kind = KINDS[finding]
    return Alert(
        name,
        expr,
        severity,
        f"{who}{ON}{symptom or kind.symptom}",
        f"{value} {kind.advice}".strip(),
        board,
        wait,
        why,
        finding,
        labels or {},
    )


def _unrepaired(event: str) -> str:
    """The event's series, unless a reset or boot is newer."""
    return (
        f"{event}\n  unless ({event} <= on (%{{gpu}}) group_left () gpu:flopwatch_reset:timestamp)"
    )


def _ago(event: str) -> str:
    return f"time() - ({_unrepaired(event)})"


def _xids(which: str) -> str:
    return _ago(f'gpu_xid:flopwatch_xid:timestamp{{xid=~"%{{{which}}}"}}')


_HEALTH = (
    on_gpu(
        "GPULost",
        'min by (%{gpu}) (last_over_time(flopwatch_gpu_up{mig="", gpu!="unknown"}[5m])) == 0',
        "critical",
        "lost",
        "The driver no longer answers for it (UUID {{ $labels.uuid }}).",
        wait="1m",
    ),
    Alert(
        "GPUMissing",
        "instance:flopwatch_gpus:expected - instance:flopwatch_gpus:listed > 0\n"
        "  and on (%{host}) instance:flopwatch_up:recent == 1",
        "critical",
        "{{ $labels.instance }} lists fewer GPUs than it should",
        "{{ $value }} GPUs that were listed before, or that are on the PCI bus, are missing from the driver's list."
        " Likely: not enumerated after a reboot, passed to a virtual machine, or removed."
        " Reset or reboot the host; if the GPU was removed on purpose, the runbook says how to accept it.",
        "host",
        "5m",
    ),
    Alert(
        "GPUDriverNotLoaded",
        recent("flopwatch_expected_gpus", "%{host}")
        + " > 0\n  unless on (%{host}) instance:flopwatch_gpus:listed\n"
        "  and on (%{host}) instance:flopwatch_up:recent == 1",
        "critical",
        "{{ $labels.instance }} has GPUs but no driver",
        "The PCI bus shows {{ $value }} GPUs and the driver lists none. Likely: the kernel module is not loaded or was not built"
        " for this kernel, or the library and the module differ in version. Check `dmesg` and `nvidia-smi` on the host.",
        "host",
        "5m",
    ),
    on_gpu(
        "GPUXidCritical",
        _xids("xidCritical"),
        "critical",
        "xid",
        "XID {{ $labels.xid }} was reported {{ $value | humanizeDuration }} ago, and the GPU has not been reset since.",
        symptom="reported XID {{ $labels.xid }}",
        why="By the time of the last event, and not by increase(): the counter of a code begins with its first event.",
    ),
    on_gpu(
        "GPUXidWarning",
        _xids("xidWarning"),
        "warning",
        "xid",
        "XID {{ $labels.xid }} was reported {{ $value | humanizeDuration }} ago. The error was contained, or the next reset will clear it.",
        symptom="reported XID {{ $labels.xid }}",
    ),
    Alert(
        "GPUXidBurst",
        "sum by (%{gpu}) (\n"
        '    increase(flopwatch_xid_errors_total{mig="", xid=~"%{xidProgram}"}[15m])\n'
        '      or (flopwatch_xid_errors_total{mig="", xid=~"%{xidProgram}"} unless last_over_time(flopwatch_xid_errors_total[5m] offset 15m))\n'
        "  ) > 5",
        "info",
        "Software on {{ $labels.instance }} keeps faulting on GPU {{ $labels.gpu }}",
        "About {{ $value | humanize }} XIDs of the kinds that programs cause (13, 31, 43, 45 and similar) in 15 minutes. Likely: a"
        " crash-looping engine. If other programs also fault on this GPU, suspect the hardware.",
        "gpu",
    ),
    on_gpu(
        "GPUUncorrectableMemoryErrors",
        _ago("gpu:flopwatch_ecc_uncorrected:timestamp"),
        "critical",
        "ecc_uncorrected",
        "The last one was {{ $value | humanizeDuration }} ago, and the GPU has not been reset since.",
    ),
    on_gpu(
        "GPUCorrectableMemoryErrors",
        'sum by (%{gpu}) (increase(flopwatch_ecc_errors_total{mig="", kind="corrected"}[1h])) > %{correctedErrors}',
        "warning",
        "ecc_corrected",
        "About {{ $value | humanize }} corrected ECC errors within an hour.",
    ),
    on_gpu(
        "GPURowRemapPending",
        recent('flopwatch_row_remap_pending{mig=""}', "%{gpu}") + " == 1",
        "warning",
        "row_remap_pending",
        "",
        wait="5m",
    ),
    on_gpu(
        "GPURowRemapFailed",
        recent('flopwatch_row_remap_failed{mig=""}', "%{gpu}") + " == 1",
        "critical",
        "row_remap_failed",
        "A bad memory row could not be remapped.",
        wait="1m",
    ),
    on_gpu(
        "GPURecoveryActionNeeded",
        recent('flopwatch_recovery_action{mig="", action="none"}', "%{gpu}") + " == 0",
        "critical",
        "recovery_action",
        'The driver recommends {{ with printf `flopwatch_recovery_action{cluster=%q, instance=%q, uuid=%q, action!="none"} == 1`'
        ' $labels.cluster $labels.instance $labels.uuid | query }}{{ . | first | label "action" }}'
        "{{ else }}an action that this exporter does not know{{ end }}.",
        wait="1m",
    ),
    on_gpu(
        "GPUMemoryHeld",
        'max by (%{gpu}) (last_over_time(flopwatch_memory_used_bytes{mig=""}[5m])\n'
        '    / last_over_time(flopwatch_memory_size_bytes{mig=""}[5m])) > %{memoryHeldRatio}\n'
        "  and on (%{gpu}) max_over_time(gpu:flopwatch_busy:ratio_rate5m[15m]) < 0.01\n"
        "  and on (%{gpu}) (gpu_workload:flopwatch_workload_gpu:info\n"
        "    unless on (%{host}, workload) max by (%{host}, workload) (max_over_time(flopwatch_workload_up[15m])) == 1)",
        "warning",
        "memory_held",
        "{{ $value | humanizePercentage }} of its memory is allocated, nothing has run on it for 15 minutes, and its engine does not answer.",
        wait="5m",
        why="An engine that answers may idle with its weights loaded; one that does not wastes the GPU.",
    ),
)

_LINKS = (
    on_gpu(
        "NVLinkDown",
        recent('flopwatch_nvlinks_up{mig=""}', "%{gpu}")
        + '\n    < on (%{host}) group_left ()\n      quantile by (%{host}) (0.25, last_over_time(flopwatch_nvlinks_up{mig=""}[5m]))\n'
        "or\n"
        + recent('flopwatch_nvlinks_up{mig=""}', "%{gpu}")
        + " < gpu:flopwatch_nvlinks_up:expected",
        "critical",
        "nvlink_down",
        "Only {{ $value }} of its NVLinks are up, fewer than on its siblings or than before.",
        wait="5m",
        why="Bridges may join only some GPUs of a host, so a GPU is compared with the lower quartile of its host, and\n"
        "with the most links that it ever had.",
    ),
    on_gpu(
        "NVLinkErrors",
        'sum by (%{gpu}) (increase(flopwatch_nvlink_errors_total{mig=""}[30m]) > 0) > %{nvlinkErrors}',
        "warning",
        "nvlink_errors",
        "About {{ $value | humanize }} link errors in half an hour.",
        wait="5m",
    ),
    on_gpu(
        "PCIeLinkDegraded",
        "max by (%{gpu}) (last_over_time(flopwatch_pcie_link_width[5m]) / last_over_time(flopwatch_pcie_link_width_max[5m])) < 1\n"
        "or (\n"
        "  max by (%{gpu}) (last_over_time(flopwatch_pcie_link_generation[5m]) / last_over_time(flopwatch_pcie_link_generation_max[5m])) < 1\n"
        "  and on (%{gpu}) gpu:flopwatch_busy:ratio_rate5m > 0.2\n"
        ")",
        "warning",
        "pcie_narrow",
        "The link runs at {{ $value | humanizePercentage }} of the width or generation that the GPU and its slot support.",
        wait="15m",
        why="An idle GPU lowers its link's generation to save power, so that half only counts under load.",
    ),
    on_gpu(
        "PCIeReplays",
        'sum by (%{gpu}) (increase(flopwatch_pcie_replays_total{mig=""}[1h])) > %{pcieReplays}',
        "warning",
        "pcie_replays",
        "About {{ $value | humanize }} PCIe replays within an hour: packets arrived corrupted and were sent again.",
    ),
)

_KERNEL = (
    '{{ with printf `bottomk(1, flopwatch_probe_baseline_ratio{cluster=%q, instance=%q, uuid=%q, kernel=~"gemm_.+|copy_device"})`'
    ' $labels.cluster $labels.instance $labels.uuid | query }} ({{ . | first | label "kernel" }}){{ end }}'
)
_LIMIT = recent('flopwatch_power_limit_watts{mig=""}', "%{gpu}")
_SLOW = "gpu_unit:flopwatch_probe_measure:slow_peer_ratio"
_PAST = "gpu:flopwatch_probe_baseline_ratio:slow"
_RATIO = "gpu:flopwatch_flops_utilization:same_hour_ratio"
_USING = "gpu_workload:flopwatch_workload_gpu:info"
_DROPPED = f"{_RATIO} < %{{utilizationDrop}}"


def _over(series: str, same: str, floor: str) -> str:
    return f"avg_over_time({series}[15m]) / ({same} > {floor})"


def _beside_peers(unit: str, worst: str, words: str) -> Alert:
    return on_gpu(
        "GPUSlowerThanPeers",
        f'max by (%{{gpu}}, name) ({_SLOW}{{unit="{unit}"}}) >= %{{peersCritical}}',
        "warning",
        "slower_than_siblings",
        f"Its {worst} reaches {{{{ $value | humanizePercentage }}}} of the median of the {{{{ $labels.name }}}} in {{{{ $labels.cluster }}}},"
        f" {words}",
        wait="15m",
        board="probes",
        labels={"unit": unit},
        symptom="computes slower than its peers"
        if unit == "compute"
        else "has slower memory than its peers",
    )


def _own_past(name: str, compare: str, severity: str, wait: str, symptom: str) -> Alert:
    return on_gpu(
        name,
        f"{_PAST} {compare}\n  unless on (%{{gpu}}) {_SLOW}",
        severity,
        "slower_than_baseline",
        f"Its slowest probe{_KERNEL} reaches {{{{ $value | humanizePercentage }}}} of this GPU's own baseline for the same software."
        " As far as it can be compared, it is not slower than its peers.",
        wait=wait,
        board="probes",
        who=PART,
        symptom=symptom,
    )


_PERFORMANCE = (
    on_gpu(
        "GPUUtilizationDropped",
        f"{_DROPPED}\n"
        "and on (%{gpu}) (\n"
        f"  ({_USING} and on (%{{gpu}}) {_DROPPED})\n"
        "    and on (%{host}, workload)\n"
        f"      {_over('workload:flopwatch_demand:sum', 'workload:flopwatch_demand:same_hour', '0')} >= 0.85\n"
        "    and on (%{host}, workload)\n"
        f"      {_over('workload:flopwatch_tokens:rate5m', 'workload:flopwatch_tokens:same_hour', '0')} < %{{throughputDrop}}\n"
        "  or\n"
        f"  ({_USING} and on (%{{gpu}}) {_DROPPED})\n"
        f"    * on (%{{gpu}}) group_left () {_RATIO}\n"
        "    < on (%{host}, workload) group_left () (0.75 *\n"
        "      quantile by (%{host}, workload) (0.5,\n"
        f"        ({_USING} and on (%{{host}}, workload) ({_USING} and on (%{{gpu}}) {_DROPPED}))\n"
        f"          * on (%{{gpu}}) group_left () {_RATIO})\n"
        "      and on (%{host}, workload)\n"
        f"        {_over('workload:flopwatch_demand:sum', 'workload:flopwatch_demand:same_hour', '0')} >= 0.85)\n"
        "  or\n"
        f"  ({_over('gpu:flopwatch_sm_active:avg5m', 'gpu:flopwatch_sm_active:same_hour', '0.1')} >= 0.9\n"
        f"    and {_over('gpu:flopwatch_dram_bytes_without_engine:rate5m', 'gpu:flopwatch_dram_bytes:same_hour', '0')} < 0.7\n"
        f"    unless on (%{{gpu}}) {_USING})\n"
        ")",
        "warning",
        "utilization_dropped",
        "The tensor pipe delivers {{ $value | humanizePercentage }} of what this GPU delivered at the same hour yesterday or a week ago"
        " (the lower of the two), while the demand has not changed.",
        wait="15m",
        why="With an engine: the demand held and fewer tokens came out, or this GPU fell behind the others of its workload.\n"
        "A rollout that needs fewer FLOPS for the same tokens is neither. Without an engine the SMs are as busy as ever\n"
        "AND move fewer bytes: a decode server whose traffic ebbs goes on reading its weights at full speed.",
    ),
    _beside_peers(
        "compute",
        "slowest GEMM probe",
        "corrected for the SM clock, so neither heat nor a power limit explains it.",
    ),
    _beside_peers(
        "memory",
        "device-memory probe",
        "more than 3.5 robust standard deviations below it. A lower memory clock or different ECC settings would also explain it.",
    ),
    on_gpu(
        "GPUFarSlowerThanPeers",
        f"min by (%{{gpu}}, name) ({_SLOW}) < %{{peersCritical}}",
        "critical",
        "slower_than_siblings",
        "Its slowest probe reaches {{ $value | humanizePercentage }} of the median of the {{ $labels.name }} in {{ $labels.cluster }}."
        " A tensor-parallel group runs at the pace of its slowest member: take it out of service.",
        wait="10m",
        board="probes",
        symptom="is far slower than its peers",
    ),
    _own_past(
        "GPUSlowerThanOwnBaseline",
        ">= %{baselineCritical}",
        "warning",
        "15m",
        "is slower than it used to be",
    ),
    _own_past(
        "GPUFarSlowerThanOwnBaseline",
        "< %{baselineCritical}",
        "critical",
        "10m",
        "has lost more than a quarter of its speed",
    ),
    on_gpu(
        "GPUSilentDataCorruption",
        _ago("gpu:flopwatch_probe_wrong_results:timestamp"),
        "critical",
        "wrong_results",
        "The last probe result that differed from earlier results for the same inputs was {{ $value | humanizeDuration }} ago"
        "{{ with printf `flopwatch_probe_mismatches_total{cluster=%q, instance=%q, uuid=%q} > 0` $labels.cluster $labels.instance $labels.uuid | query }}"
        ' ({{ range $index, $each := . }}{{ if $index }}, {{ end }}{{ $each | label "kernel" }}{{ end }}){{ end }},'
        " and the GPU has not been reset since.",
        board="probes",
        who=PART,
        why="No `for`: one wrong result is one too many.",
    ),
    on_gpu(
        "GPUClocksHeldDownByHeat",
        'sum by (%{gpu}) (rate(flopwatch_gpu_seconds_total{state="clock_thermal", mig=""}[5m])) > %{heatLossWarning}',
        "warning",
        "clock_held_by_heat",
        "{{ $value | humanizePercentage }} of its peak is lost to clocks held down by temperature.",
        wait="10m",
    ),
    on_gpu(
        "GPUClocksHeldDownByPower",
        'sum by (%{gpu}) (rate(flopwatch_gpu_seconds_total{state="clock_power", mig=""}[5m])) > %{powerLossWarning}',
        "warning",
        "clock_held_by_power",
        "{{ $value | humanizePercentage }} of its peak is lost to clocks held down by power.",
        wait="15m",
    ),
    on_gpu(
        "GPUPowerBrake",
        'sum by (%{gpu}) (rate(flopwatch_clock_event_seconds_total{mig="", reason=~"hw_power_brake.*"}[5m])) > %{powerBrakeRatio}',
        "warning",
        "power_brake",
        "The external power brake was on {{ $value | humanizePercentage }} of the time.",
        wait="5m",
    ),
    on_gpu(
        "GPUPowerLimitLowered",
        f"({_LIMIT}\n"
        "    < %{powerLimitRatio} * gpu:flopwatch_power_limit_watts:usual)\n"
        f"or (\n  {_LIMIT}\n"
        "    * on (%{gpu}) group_left (name) gpu:flopwatch_gpu:info\n"
        "    < on (%{peers}) group_left () (%{powerLimitRatio}\n"
        "      * quantile by (%{peers}) (0.5, gpu:flopwatch_power_limit_watts:usual\n"
        "          * on (%{gpu}) group_left (name) gpu:flopwatch_gpu:info))\n"
        "  unless on (%{gpu}) "
        f"({_LIMIT} < %{{powerLimitRatio}} * gpu:flopwatch_power_limit_watts:usual)\n)",
        "warning",
        "power_limit_lowered",
        "The limit is {{ $value | humanize }} W, less than 90 % of this GPU's earlier limit or of the median of its model.",
        wait="15m",
    ),
    on_gpu(
        "GPUMemoryHot",
        recent('flopwatch_temperature_celsius{mig="", sensor="memory"}', "%{gpu}")
        + " >= %{memoryHotCelsius}",
        "warning",
        "memory_hot",
        "Its memory is at {{ $value | humanize }} °C.",
        wait="10m",
    ),
    on_gpu(
        "GPUHotWhileIdle",
        recent('flopwatch_temperature_celsius{mig="", sensor="gpu"}', "%{gpu}")
        + " > %{idleHotCelsius}\n"
        "  and on (%{gpu}) gpu:flopwatch_busy:ratio_rate5m < %{idleBusyRatio}",
        "warning",
        "hot_while_idle",
        "It is at {{ $value | humanize }} °C with nothing to do.",
        wait="15m",
    ),
)


def alert_files() -> list[RuleFile]:
    """All files of alerts."""
    return [
        RuleFile(
            "alerts",
            "health",
            "Faults that the hardware or the driver reports.",
            [Group("flopwatch-health", _HEALTH, "1m")],
        ),
        RuleFile(
            "alerts",
            "links",
            "PCIe and NVLink.",
            [Group("flopwatch-links", _LINKS, "1m")],
        ),
        RuleFile(
            "alerts",
            "performance",
            "A GPU is slower than before or than its peers, or its clock is held down.",
            [Group("flopwatch-performance", _PERFORMANCE, "1m")],
        ),
        *service_files(),
    ]
