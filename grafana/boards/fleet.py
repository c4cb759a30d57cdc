"""Fleet: how many FLOPS are delivered, of how many, where the others go, and which GPU is sick."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.firing import firing
from grafana.frame import (
    CHOICES,
    CLUSTER,
    FLEET,
    GPU_LINK,
    MODELS,
    NODE,
    NORMAL,
    STATES,
    board,
    explained,
)
from grafana.panels import (
    BLUE,
    Column,
    Query,
    Threshold,
    bad_above,
    bars,
    bucket_heatmap,
    good_above,
    lines,
    number,
    rows,
    state_stack,
)


NAME = f'{CLUSTER}, name=~"$name"'
# Worst first: slow beside the peers, or clocks held down.
WORST = (
    f"topk(20, gpu:flopwatch_lost_speed:ratio{{{NODE}}} and on (cluster, job, instance, gpu)"
    f' gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}})'
)


def per_gpu(expr: str) -> str:
    """`expr` of the worst GPUs only, with labels that merge into one row a GPU."""
    return f"max by (cluster, instance, gpu) ({expr} and on (cluster, job, instance, gpu) {WORST})"


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "GPUs answering",
                "GPUs whose driver answers, of all that the exporters know. Fewer than all: see `What is wrong now` for the host and run the GPULost runbook.",
                [
                    Query(f"sum(cluster:flopwatch_gpu_up:sum{{{CLUSTER}}})", "up"),
                    Query(f"sum(cluster:flopwatch_gpu_up:count{{{CLUSTER}}})", "known"),
                ],
                unit="none",
                spark=False,
                span=4,
            )
        )
        .with_panel(
            number(
                "Delivered",
                "FLOP/s of all tensor pipes, valued at each GPU's headline precision. It follows the traffic; if it falls while requests queue, read `Where the peak goes` below.",
                [Query(f"sum(cluster:flopwatch_tensor_flop:rate5m{{{CLUSTER}}})", "delivered")],
                unit="flops",
                thresholds=BLUE,
                span=4,
            )
        )
        .with_panel(
            explained(
                number(
                    "Of peak",
                    "Delivered over the summed data-sheet peak. 30-60 % is good for prefill and training-like loads, 2-10 % is normal for decode: compare with its own past, not with 100 %.",
                    [
                        Query(
                            f"sum(cluster:flopwatch_tensor_flop:rate5m{{{CLUSTER}}}) / sum(cluster:flopwatch_peak_flops:headline{{{CLUSTER}}})",
                            "of peak",
                        )
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    span=4,
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                number(
                    "Memory bandwidth used",
                    "Of the theoretical bandwidth of all device memory. High with low FLOPS means decode at small batch: larger batches, quantised weights or KV cache make more of it.",
                    [
                        Query(
                            f"sum(cluster:flopwatch_dram_bytes:rate5m{{{CLUSTER}}}) / sum(cluster:flopwatch_peak_dram_bandwidth_bytes_per_second:sum{{{CLUSTER}}})",
                            "of bandwidth",
                        )
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    span=4,
                ),
                CHOICES,
            )
        )
        .with_panel(
            number(
                "Power",
                "Of all GPUs, from their energy counters. High at low FLOPS: GPUs that idle at full clocks, or decode at tiny batches.",
                [Query(f"sum(cluster:flopwatch_energy_joules:rate5m{{{CLUSTER}}})", "power")],
                unit="watt",
                thresholds=BLUE,
                span=4,
            )
        )
        .with_panel(
            explained(
                number(
                    "Energy per PFLOP",
                    "Joules for 10^15 delivered operations: what a unit of work costs. It rises when GPUs idle or wait for memory; consolidate replicas or grow the batch.",
                    [
                        Query(
                            f"1e15 * sum(cluster:flopwatch_energy_joules:rate5m{{{CLUSTER}}}) / (sum(cluster:flopwatch_tensor_flop:rate5m{{{CLUSTER}}}) > 0)",
                            "per PFLOP",
                        )
                    ],
                    unit="joule",
                    thresholds=BLUE,
                    span=4,
                    no_value="no work",
                ),
                CHOICES,
            )
        )
    )


def _wrong(dashboard: Dashboard) -> Dashboard:
    return dashboard.with_panel(
        explained(
            firing(
                "What is wrong now",
                "Firing alerts of this project, worst first. Open the GPU by its number, the runbook by the alert's name: it says what to do. Empty is good.",
                'instance=~"$instance|"',  # some alerts are of no instance
                where=[
                    Column("cluster", "Cluster", width=180),
                    Column("instance", "Instance", width=190),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                ],
                span=12,
                height=9,
            ),
            FLEET,
        )
    ).with_panel(
        explained(
            state_stack(
                "Where the peak goes",
                "Shares of the fleet's peak FLOP/s. Much `memory`: batch or quantise. `stall`: fuse kernels, fewer synchronisations. `underfill`: small grids, raise concurrency. `clock_*`: heat or power. `idle`: fewer replicas or more traffic.",
                f'sum(cluster_state:flopwatch_peak_flops:rate5m{{{CLUSTER}, state="STATE"}}) / sum(cluster_state:flopwatch_peak_flops:rate5m{{{CLUSTER}}})',
                span=12,
                height=9,
            ),
            STATES,
        )
    )


def _worst(dashboard: Dashboard) -> Dashboard:
    columns = [
        Column("cluster", "Cluster", width=180),
        Column("instance", "Instance", width=190),
        Column("gpu", "GPU", width=50, link=GPU_LINK),
        Column("name", "Model"),
        Column("H", "Lost speed", "percentunit", bad_above(0.05, 0.1), 1, 105),
        Column("A", "Probe / peers", "percentunit", good_above(0.9, 0.95), 1, 120),
        Column("B", "Probe / past", "percentunit", good_above(0.9, 0.95), 1, 115),
        Column("C", "Delivered of peak", "percentunit", decimals=1, width=145, bar_maximum=0.6),
        Column("D", "Busy", "percentunit", decimals=0, width=65),
        Column("E", "Clocks lost", "percentunit", bad_above(0.1, 0.25), 1, 100),
        Column("F", "Heat", "celsius", bad_above(80, 87), 0, 70),
        Column("G", "Power", "watt", decimals=0, width=75),
    ]
    return dashboard.with_panel(
        explained(
            rows(
                "Worst GPUs",
                "The 20 GPUs that lost most speed: beside the median of their model, or to clocks. A low probe with good clocks is sick silicon or memory; lost clocks are heat or power; low delivery with good probes is traffic or software. Open the GPU by its number.",
                [
                    Query(per_gpu(f"gpu:flopwatch_probe_measure:min_peer_ratio{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_probe_baseline_ratio:min{{{NODE}}}")),
                    Query(
                        f"max by (cluster, instance, gpu, name) ((gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} and on (cluster, job, instance, gpu) {WORST}) * on (cluster, job, instance, gpu) group_left (name) gpu:flopwatch_gpu:info{{{NODE}}})"
                    ),
                    Query(per_gpu(f"gpu:flopwatch_busy:ratio_rate5m{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_clock_loss:ratio_rate5m{{{NODE}}}")),
                    Query(
                        per_gpu(f'flopwatch_temperature_celsius{{{NODE}, mig="", sensor="gpu"}}')
                    ),
                    Query(per_gpu(f"gpu:flopwatch_energy_joules:rate5m{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_lost_speed:ratio{{{NODE}}}")),
                ],
                columns,
                sort_by="Lost speed",
                height=9,
            ),
            FLEET,
        )
    )


def _course(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            lines(
                "Delivered by GPU model, and the peak",
                "FLOP/s delivered, and dashed what the data sheets promise. A growing gap at equal traffic is lost work: see where the peak goes.",
                [
                    Query(
                        f"sum by (name) (name:flopwatch_tensor_flop:rate5m{{{NAME}}})", "{{name}}"
                    ),
                    Query(
                        f"sum by (name) (name:flopwatch_peak_flops:headline{{{NAME}}})",
                        "peak {{name}}",
                    ),
                ],
                unit="flops",
                dashed=["peak .*"],
            )
        )
        .with_panel(
            explained(
                bucket_heatmap(
                    "GPUs by utilization",
                    "How many GPUs deliver which share of their peak. Two bands are two kinds of load; a faint band below the others is a group of GPUs to look at.",
                    Query(
                        f"sum by (le) (cluster_le:flopwatch_flops_utilization:count{{{CLUSTER}}})",
                        "{{le}}",
                    ),
                    unit="percentunit",
                    cumulative=False,
                ),
                NORMAL,
            )
        )
        .with_panel(
            lines(
                "Energy per PFLOP by cluster",
                "Joules for 10^15 delivered operations. Rising: idle GPUs, smaller batches, or GPUs held by heat. Use it to decide what runs where.",
                [
                    Query(
                        f"1e15 * cluster:flopwatch_energy_joules_per_flop:ratio_rate5m{{{CLUSTER}}}",
                        "{{cluster}}",
                    )
                ],
                unit="joule",
                span=8,
            )
        )
        .with_panel(
            bars(
                "Nodes that deliver least",
                "Of their peak, now. A node far below the others at equal traffic: open the GPU dashboard for it and look for one GPU that the others wait for.",
                [
                    Query(
                        f"sort(bottomk(10, instance:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}}))",
                        "{{instance}}",
                    )
                ],
                unit="percentunit",
                labels=["instance"],
            )
        )
        .with_panel(
            explained(
                bars(
                    "Served models, useful of peak",
                    "Model FLOPS utilization by the engines' own token counts. Far below what the tensor pipes deliver: padding, recomputation, rejected drafts.",
                    [
                        Query(
                            f'sort_desc(sum by (model) (model:flopwatch_model_flop:rate5m{{{CLUSTER}, model=~"$model"}}) / sum by (model) (model:flopwatch_peak_flops:headline{{{CLUSTER}, model=~"$model"}}))',
                            "{{model}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=[Threshold(None, "green")],
                    labels=["model"],
                ),
                MODELS,
            )
        )
    )


def dashboard() -> Dashboard:
    """The Fleet dashboard."""
    made = board(
        "flopwatch-fleet",
        "flopwatch / Fleet",
        "Achieved FLOPS of the fleet, where the rest of the peak goes, and which GPU is sick.",
        narrow=("name", "model"),
    )
    made = _worst(_wrong(_now(made)))
    return _course(made.with_row(Row("How it got there")))
