"""Host: the GPUs of one host side by side, to find the one that differs from its siblings."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from exporter.findings import limit
from grafana.firing import firing
from grafana.frame import FLEET, GPU_LINK, GPU_OF_LINE, NODE, STATES, board, explained
from grafana.panels import BLUE, Query, Threshold, lines, number, state_stack
from grafana.tables import Column, rows
from grafana.verdicts import CLOCKS, PAST, PEERED, PEERS, verdicts


WHOLE = f'{NODE}, mig=""'
BY = "by (cluster, instance, gpu)"
DELIVERED = f"sum(instance:flopwatch_tensor_flop:rate5m{{{NODE}}})"
USEFUL = f"sum(workload:flopwatch_model_flop:rate5m{{{NODE}}})"
OF_PEAK = f"sum(instance:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}})"
WHO = "GPU {{gpu}}"
HOT_MEMORY_TEXT = [Threshold(None, "text"), Threshold(limit("memoryHotCelsius"), "orange")]
HOT_MEMORY = [Threshold(None, "transparent"), Threshold(limit("memoryHotCelsius"), "red")]


def _now(dashboard: Dashboard) -> Dashboard:
    facts = (
        (
            "GPUs answering",
            "GPUs whose driver answers, and how many are expected: those that were listed before or are on the PCI bus. If fewer answer, see the GPULost, GPUMissing and GPUDriverNotLoaded runbooks.",
            [
                Query(f"sum(instance:flopwatch_gpu_up:sum{{{NODE}}})", "answering"),
                Query(
                    f"sum(instance:flopwatch_gpus:expected{{{NODE}}} > 0 or instance:flopwatch_gpu_up:count{{{NODE}}})",
                    "expected",
                ),
            ],
            "none",
            None,
        ),
        (
            "FLOPS",
            "Delivered FLOP/s of the tensor pipes of all GPUs. Without activity counters: useful FLOP/s of the engines, or else what the probes reached. It follows traffic, so compare the GPUs below with each other first.",
            [
                Query(DELIVERED, "delivered"),
                Query(f"{USEFUL} unless on () {DELIVERED}", "useful, from engines"),
                Query(
                    f'sum(max by (gpu) (flopwatch_probe_flops{{{WHOLE}, precision!~"int.+"}})) unless on () ({DELIVERED} or {USEFUL})',
                    "reached by probes",
                ),
            ],
            "flops",
            None,
        ),
        (
            "Utilization",
            "Delivered FLOP/s over the data-sheet peak of the GPUs that answer; without activity counters, the share of time in which they do any work. 2-10 % is normal for decode, 30-60 % for prefill.",
            [
                Query(OF_PEAK, "of peak"),
                Query(
                    f"avg(gpu:flopwatch_busy:ratio_rate5m{{{NODE}}}) unless on () {OF_PEAK}", "busy"
                ),
            ],
            "percentunit",
            1,
        ),
        (
            "Power",
            "Power of all GPUs, from their energy counters. High with low FLOPS: GPUs that idle at full clocks, or small batches.",
            [Query(f"sum(instance:flopwatch_energy_joules:rate5m{{{NODE}}})", "power")],
            "watt",
            None,
        ),
        (
            "Uptime",
            "Time since the host's last boot. XIDs and memory errors from before the boot count as repaired.",
            [Query(f"time() - max(flopwatch_boot_time_seconds{{{NODE}}})", "since boot")],
            "s",
            None,
        ),
        (
            "Clock skew",
            "How far the host's clock is ahead of Prometheus's clock. Beyond a minute, all ages on this host are wrong by as much: see the HostClockSkew runbook.",
            [Query(f"max(instance:flopwatch_clock_skew:seconds{{{NODE}}})", "skew")],
            "s",
            0,
        ),
    )
    for title, description, queries, unit, decimals in facts:
        dashboard = dashboard.with_panel(
            number(
                title,
                description,
                queries,
                unit=unit,
                decimals=decimals,
                thresholds=BLUE,
                spark=False,
                named=True,
                span=4,
            )
        )
    return dashboard


def _findings(dashboard: Dashboard) -> Dashboard:
    return dashboard.with_panel(
        explained(
            verdicts(
                "Verdicts",
                "What the exporter finds on each GPU, in the words of its status page, worst first: speed lost, who holds the GPU, and since when. The GPU's number opens it. Empty is good.",
                where=[
                    Column("gpu", "GPU", width=50, link=GPU_LINK),
                    Column("instance", "Instance", hidden=True),
                    Column("cluster", "Cluster", hidden=True),
                ],
                span=14,
                height=6,
            ),
            FLEET,
        )
    ).with_panel(
        firing(
            "What is wrong now",
            "Alerts that are firing for this host, worst first, one row per alert. The alert's name opens its runbook. `GPU` is the first affected GPU and opens its dashboard. Empty is good.",
            'instance=~"$instance"',
            where=[
                Column("gpu", "GPU", width=50, link=GPU_LINK),
                Column("B", "GPUs", decimals=0, width=65),
                Column("instance", "Instance", hidden=True),
                Column("cluster", "Cluster", hidden=True),
            ],
            span=10,
            height=6,
        )
    )


def _side_by_side(dashboard: Dashboard) -> Dashboard:
    return dashboard.with_panel(
        explained(
            rows(
                "GPUs side by side",
                "One row per GPU. Look for the one that differs from its siblings: hotter at the same power, a lower limit, a lower clock at the same load, or a slower probe. The number opens the GPU.",
                [
                    Query(f"min {BY} (gpu:flopwatch_gpu_up:recent{{{NODE}}})"),
                    Query(f"max {BY} (gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}})"),
                    Query(f"max {BY} (gpu:flopwatch_busy:ratio_rate5m{{{NODE}}})"),
                    Query(f"max {BY} (gpu:flopwatch_clock_loss:ratio_rate5m{{{NODE}}})"),
                    Query(f"max {BY} (flopwatch_sm_clock_hertz{{{WHOLE}}})"),
                    Query(f'max {BY} (flopwatch_temperature_celsius{{{WHOLE}, sensor="gpu"}})'),
                    Query(f'max {BY} (flopwatch_temperature_celsius{{{WHOLE}, sensor="memory"}})'),
                    Query(f"max {BY} (gpu:flopwatch_energy_joules:rate5m{{{NODE}}})"),
                    Query(f"max {BY} (flopwatch_power_limit_watts{{{WHOLE}}})"),
                    Query(
                        f"max {BY} (flopwatch_memory_used_bytes{{{WHOLE}}} / flopwatch_memory_size_bytes{{{WHOLE}}})"
                    ),
                    Query(
                        f"max {BY} (gpu:flopwatch_probe_measure:min_peer_ratio{{{NODE}}} {PEERED})"
                    ),
                    Query(f"max {BY} (gpu:flopwatch_probe_baseline_ratio:min{{{NODE}}})"),
                    Query(f"max {BY} (flopwatch_nvlinks_up{{{WHOLE}}})"),
                    Query(
                        f"max by (cluster, instance, gpu, holder) (topk by (cluster, instance, gpu) (1, gpu:flopwatch_holder:info{{{NODE}}}))"
                    ),
                ],
                [
                    Column("gpu", "GPU", width=50, link=GPU_LINK),
                    Column("instance", "Instance", hidden=True),
                    Column("cluster", "Cluster", hidden=True),
                    Column(
                        "A",
                        "State",
                        width=65,
                        mappings={"0": ("LOST", "red"), "1": ("up", "green")},
                    ),
                    Column("B", "Utilization", "percentunit", decimals=1, width=90),
                    Column("C", "Busy", "percentunit", decimals=0, width=65),
                    Column("D", "Clocks lost", "percentunit", CLOCKS, 1, 95),
                    Column("E", "SM clock", "hertz", decimals=2, width=90),
                    Column("F", "Core temp.", "celsius", decimals=0, width=95),
                    Column("G", "Memory temp.", "celsius", HOT_MEMORY_TEXT, 0, 115),
                    Column("H", "Power", "watt", decimals=0, width=75),
                    Column("I", "Limit", "watt", decimals=0, width=75),
                    Column("J", "Memory used", "percentunit", decimals=0, width=110),
                    Column("K", "Probe vs peers", "percentunit", PEERS, 1, 115),
                    Column("L", "Probe vs baseline", "percentunit", PAST, 1, 135),
                    Column("M", "NVLinks", decimals=0, width=75),
                    Column("holder", "Held by"),
                ],
                sort_by="GPU",
                descending=False,
                height=10,
            ),
            FLEET,
        )
    )


def _course(dashboard: Dashboard) -> Dashboard:
    panels = (
        (
            "Temperature",
            "Core temperature of each GPU. One above its siblings at the same power: its fan, pump or thermal paste. All: the inlet air.",
            f'max by (cluster, instance, gpu) (flopwatch_temperature_celsius{{{WHOLE}, sensor="gpu"}})',
            "celsius",
            None,
        ),
        (
            "Memory temperature",
            "HBM and GDDR6X throttle at 95 °C. One above its siblings: thermal pads that have lost contact.",
            f'max by (cluster, instance, gpu) (flopwatch_temperature_celsius{{{WHOLE}, sensor="memory"}})',
            "celsius",
            HOT_MEMORY,
        ),
        (
            "Power by GPU",
            "One below its siblings at the same load has a lower limit, a lower clock or less work.",
            f"max by (cluster, instance, gpu) (gpu:flopwatch_energy_joules:rate5m{{{NODE}}})",
            "watt",
            None,
        ),
        (
            "Power limit",
            "A step, or a decline over days, comes from a changed setting, a rack power cap or a failing power supply: see the GPUPowerLimitLowered runbook.",
            f"max by (cluster, instance, gpu) (flopwatch_power_limit_watts{{{WHOLE}}})",
            "watt",
            None,
        ),
        (
            "SM clock",
            "One below its siblings at the same load is held down by heat or power. `Clocks lost` shows how much that costs.",
            f"max by (cluster, instance, gpu) (flopwatch_sm_clock_hertz{{{WHOLE}}})",
            "hertz",
            None,
        ),
        (
            "FLOPS utilization by GPU",
            "GPUs with the same work deliver the same. If one falls behind, its probes show whether the hardware is at fault.",
            f"max by (cluster, instance, gpu) (gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}})",
            "percentunit",
            None,
        ),
    )
    dashboard = dashboard.with_row(Row("Over time"))
    for title, description, expr, unit, thresholds in panels:
        dashboard = dashboard.with_panel(
            lines(
                title,
                description,
                [Query(expr, WHO)],
                unit=unit,
                minimum=None,
                fill=0,
                thresholds=thresholds,
                link=GPU_OF_LINE,
                span=8,
            )
        )
    return dashboard.with_panel(
        explained(
            state_stack(
                "Where the peak goes",
                "Shares of the host's peak FLOP/s by state. `clock_*`: heat or power. `memory`: increase the batch or quantize. `idle`: no work.",
                f'sum(instance_state:flopwatch_peak_flops:rate5m{{{NODE}, state="STATE"}}) / sum(instance_state:flopwatch_peak_flops:rate5m{{{NODE}}})',
                span=24,
                height=8,
            ),
            STATES,
        )
    )


def dashboard() -> Dashboard:
    """The Host dashboard."""
    made = board(
        "flopwatch-host",
        "flopwatch / Host",
        "The GPUs of one host side by side: verdicts, temperature, power, limits, clocks, probes, and who holds them.",
        one_host=True,
    )
    return _course(_side_by_side(_findings(_now(made))))
