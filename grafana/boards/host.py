"""Host: the GPUs of one host side by side, for what only the comparison shows."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from exporter.findings import limit
from grafana.firing import firing
from grafana.frame import FLEET, GPU_LINK, GPU_OF_LINE, NODE, STATES, board, explained
from grafana.panels import BLUE, Query, Threshold, lines, number, state_stack
from grafana.tables import Column, rows
from grafana.verdicts import CLOCKS, PAST, PEERS, verdicts


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
            "GPUs whose driver answers, and those that should: listed before, or on the PCI bus. Fewer: see the GPULost, GPUMissing and GPUDriverNotLoaded runbooks.",
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
            "Delivered",
            "FLOP/s of the tensor pipes of all its GPUs; where nobody counts them, what the engines' tokens took, or else what probes reached. It follows the traffic: compare the GPUs below with each other first.",
            [
                Query(DELIVERED, "delivered"),
                Query(f"{USEFUL} unless on () {DELIVERED}", "useful, of engines"),
                Query(
                    f'sum(max by (gpu) (flopwatch_probe_flops{{{WHOLE}, precision!~"int.+"}})) unless on () ({DELIVERED} or {USEFUL})',
                    "reached by probes",
                ),
            ],
            "flops",
            None,
        ),
        (
            "Of peak",
            "Delivered over the data-sheet peak of the GPUs that answer; where nobody counts, the share of time in which they do anything. 2-10 % is normal for decode, 30-60 % for prefill.",
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
            "Of all its GPUs, from their energy counters. High with low FLOPS: idling at full clocks, or small batches.",
            [Query(f"sum(instance:flopwatch_energy_joules:rate5m{{{NODE}}})", "power")],
            "watt",
            None,
        ),
        (
            "Up for",
            "Since the host's last boot. XIDs and memory errors from before it count as repaired.",
            [Query(f"time() - max(flopwatch_boot_time_seconds{{{NODE}}})", "up for")],
            "s",
            None,
        ),
        (
            "Clock skew",
            "How far the host's clock is ahead of Prometheus's. Beyond a minute, see the HostClockSkew runbook: ages on this host are wrong by as much.",
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
                "What the exporter finds on each GPU, worst first, with who holds it and since when: the sentences of its status page. The GPU opens its dashboard. Empty is good.",
                where=[
                    Column("gpu", "GPU", width=50, link=GPU_LINK),
                    Column("instance", "Instance", hidden=True),
                    Column("cluster", "Cluster", hidden=True),
                ],
                span=14,
                height=8,
            ),
            FLEET,
        )
    ).with_panel(
        firing(
            "Firing alerts of this host",
            "Worst first, one row an alert; its name opens the runbook, the number the first of its GPUs. Empty is good.",
            'instance=~"$instance"',
            where=[
                Column("gpu", "GPU", width=50, link=GPU_LINK),
                Column("B", "GPUs", decimals=0, width=65),
                Column("instance", "Instance", hidden=True),
                Column("cluster", "Cluster", hidden=True),
            ],
            span=10,
            height=8,
        )
    )


def _side_by_side(dashboard: Dashboard) -> Dashboard:
    return dashboard.with_panel(
        explained(
            rows(
                "GPUs side by side",
                "One row a GPU. Find the one that is unlike its siblings: hotter at the same power, a lower limit, a lower clock at the same load, a slower probe. Its number opens it.",
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
                    Query(f"max {BY} (gpu:flopwatch_probe_measure:min_peer_ratio{{{NODE}}})"),
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
                    Column("B", "Of peak", "percentunit", decimals=1, width=80),
                    Column("C", "Busy", "percentunit", decimals=0, width=65),
                    Column("D", "Clocks lost", "percentunit", CLOCKS, 1, 95),
                    Column("E", "SM clock", "hertz", decimals=2, width=90),
                    Column("F", "Core", "celsius", decimals=0, width=65),
                    Column("G", "Memory", "celsius", HOT_MEMORY_TEXT, 0, 75),
                    Column("H", "Power", "watt", decimals=0, width=75),
                    Column("I", "Limit", "watt", decimals=0, width=75),
                    Column("J", "Memory used", "percentunit", decimals=0, width=110),
                    Column("K", "Probe of peers", "percentunit", PEERS, 1, 115),
                    Column("L", "Probe of past", "percentunit", PAST, 1, 110),
                    Column("M", "NVLinks", decimals=0, width=75),
                    Column("holder", "Held by"),
                ],
                sort_by="GPU",
                descending=False,
                height=9,
            ),
            FLEET,
        )
    )


def _course(dashboard: Dashboard) -> Dashboard:
    panels = (
        (
            "Temperature",
            "Of each GPU. One above its siblings at the same power: its fan, pump or paste. All: the air.",
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
            "Power of each GPU",
            "Watts. One below its siblings at the same load has a lower limit, a lower clock or less work.",
            f"max by (cluster, instance, gpu) (gpu:flopwatch_energy_joules:rate5m{{{NODE}}})",
            "watt",
            None,
        ),
        (
            "Power limit",
            "A step, or a creep over days, is somebody's setting, a rack cap or a power supply in trouble: see the GPUPowerLimitLowered runbook.",
            f"max by (cluster, instance, gpu) (flopwatch_power_limit_watts{{{WHOLE}}})",
            "watt",
            None,
        ),
        (
            "SM clock",
            "Of each GPU. One below its siblings at the same load: heat or power holds it; `Clocks lost` says how much that costs.",
            f"max by (cluster, instance, gpu) (flopwatch_sm_clock_hertz{{{WHOLE}}})",
            "hertz",
            None,
        ),
        (
            "FLOPS of peak, by GPU",
            "GPUs with the same work deliver the same. One that falls behind: its probe says whether the hardware is at fault.",
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
                "Where the peak of the host goes",
                "Shares of the host's peak FLOP/s. `clock_*`: heat or power. `memory`: batch or quantise. `idle`: no work.",
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
        "The GPUs of one host side by side: findings, temperature, power, limits, clocks, probes and who holds them.",
        one_host=True,
    )
    return _course(_side_by_side(_findings(_now(made))))
