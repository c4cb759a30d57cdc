"""Fleet: how many FLOPS are delivered, of how many, where the others go, and which GPU is sick."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.firing import firing
from grafana.frame import (
    CHOICES,
    CLUSTER,
    FLEET,
    GPU_LINK,
    GPU_OF_LINE,
    MODELS,
    NODE,
    NODE_OF_BAR,
    NORMAL,
    STATES,
    board,
    explained,
)
from grafana.panels import (
    BLUE,
    Query,
    Threshold,
    bad_above,
    bars,
    bucket_heatmap,
    extremes,
    good_above,
    lines,
    number,
    state_stack,
)
from grafana.tables import Column, rows


NAME = f'{CLUSTER}, name=~"$name"'
# Older GPUs without dcgm-exporter, and processors: there is a peak, and no count of what was done.
UNCOUNTED = "operations are not counted here"
# Worst first: slow beside the peers, or clocks held down. Two of a host, lest one capped rack fill the table; all where
# there are fewer than four hosts.
HOST = "by (cluster, job, instance)"
LOST = (
    f"gpu:flopwatch_lost_speed:ratio{{{NODE}}} and on (cluster, job, instance, gpu)"
    f' gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}}'
)
OF_A_HOST = (
    f"scalar(2 + 1000 * (count(instance:flopwatch_gpu_up:count{{{NODE}}}) < bool 4) or vector(2))"
)
OF_HOST = f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}}"
BESIDE_HOST = f"{OF_HOST} / on (cluster, job, instance) group_left () (quantile {HOST} (0.5, {OF_HOST}) > 0.005)"
WORST = f"topk(20, topk {HOST} ({OF_A_HOST}, {LOST}))"


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
                no_value=UNCOUNTED,
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
                    no_value=UNCOUNTED,
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
                    no_value=UNCOUNTED,
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
                no_value="not read",
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
                "Firing alerts of this project, worst first, one row an alert and host. The alert's name opens its runbook, which says what to do; the number opens the GPU (the first of `Count`). Empty is good.",
                'instance=~"$instance|"',  # some alerts are of no instance
                where=[
                    Column("cluster", "Cluster", width=160),
                    Column("instance", "Instance", width=175),
                    Column("gpu", "GPU", width=55, link=GPU_LINK),
                    Column("B", "Count", decimals=0, width=65),
                ],
                span=14,
                height=10,
            ),
            FLEET,
        )
    ).with_panel(
        explained(
            state_stack(
                "Where the peak goes",
                "Shares of the fleet's peak FLOP/s. Much `memory`: batch or quantise. `stall`: fuse kernels, fewer synchronisations. `underfill`: small grids, raise concurrency. `clock_*`: heat or power. `idle`: fewer replicas or more traffic.",
                f'sum(cluster_state:flopwatch_peak_flops:rate5m{{{CLUSTER}, state="STATE"}}) / sum(cluster_state:flopwatch_peak_flops:rate5m{{{CLUSTER}}})',
                span=10,
                height=10,
            ),
            STATES,
        )
    )


def _worst(dashboard: Dashboard) -> Dashboard:
    columns = [
        Column("cluster", "Cluster", width=180),
        Column("instance", "Instance", width=190),
        Column("gpu", "GPU", width=50, link=GPU_LINK),
        Column("name", "GPU model"),
        Column("H", "Lost speed", "percentunit", bad_above(0.05, 0.1), 1, 105),
        Column("A", "Probe of peers", "percentunit", good_above(0.9, 0.95), 1, 120),
        Column("B", "Probe of past", "percentunit", good_above(0.9, 0.95), 1, 115),
        Column("C", "Delivered of peak", "percentunit", decimals=1, width=145, bar_maximum=0.6),
        Column("D", "Busy", "percentunit", decimals=0, width=65),
        Column("E", "Clocks lost", "percentunit", bad_above(0.1, 0.25), 1, 100),
        Column("F", "Temperature", "celsius", bad_above(80, 87), 0, 110),
        Column("G", "Power", "watt", decimals=0, width=75),
    ]
    return dashboard.with_panel(
        explained(
            rows(
                "Worst GPUs",
                "The GPUs that lost most speed, beside the median of their model or to clocks: at most two of a host and 20 in all (of fewer than four hosts all: choose one above). A low probe with good clocks is sick silicon or memory; lost clocks are heat or power; low delivery with good probes is traffic or software. Open the GPU by its number.",
                [
                    Query(per_gpu(f"gpu:flopwatch_probe_measure:min_peer_ratio{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_probe_baseline_ratio:min{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_busy:ratio_rate5m{{{NODE}}}")),
                    Query(per_gpu(f"gpu:flopwatch_clock_loss:ratio_rate5m{{{NODE}}}")),
                    Query(
                        per_gpu(f'flopwatch_temperature_celsius{{{NODE}, mig="", sensor="gpu"}}')
                    ),
                    Query(per_gpu(f"gpu:flopwatch_energy_joules:rate5m{{{NODE}}}")),
                    Query(
                        f"max by (cluster, instance, gpu, name) ({WORST} * on (cluster, job, instance, gpu) group_left (name) gpu:flopwatch_gpu:info{{{NODE}}})"
                    ),
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
                "FLOP/s delivered, model upon model, and dashed what all data sheets promise together. A growing gap at equal traffic is lost work: see where the peak goes.",
                [
                    Query(
                        f"sum by (name) (name:flopwatch_tensor_flop:rate5m{{{NAME}}})", "{{name}}"
                    ),
                    Query(f"sum(name:flopwatch_peak_flops:headline{{{NAME}}})", "peak"),
                ],
                unit="flops",
                stacked=True,
                dashed=["peak"],
                span=8,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Of peak, by GPU model",
                    "Delivered over the peak, so that few GPUs show beside many. A model that falls at equal traffic: see its GPUs under `Worst GPUs`; a level of 5 % is normal for decode.",
                    [
                        Query(
                            f"sum by (name) (name:flopwatch_tensor_flop:rate5m{{{NAME}}}) / sum by (name) (name:flopwatch_peak_flops:headline{{{NAME}}})",
                            "{{name}}",
                        )
                    ],
                    unit="percentunit",
                    span=8,
                    no_value=UNCOUNTED,
                ),
                NORMAL,
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
                    span=8,
                    no_value=UNCOUNTED,
                ),
                NORMAL,
            )
        )
        .with_panel(
            lines(
                "Energy per PFLOP by cluster",
                "Joules for 10^15 delivered operations, five dearest clusters. Rising: idle GPUs, smaller batches, or GPUs held by heat. Use it to decide what runs where.",
                [
                    Query(
                        extremes(
                            "topk",
                            5,
                            f"(1e15 * cluster:flopwatch_energy_joules_per_flop:ratio_rate5m{{{CLUSTER}}}@@)",
                            on="cluster, job",
                        ),
                        "cluster {{cluster}}",
                    )
                ],
                unit="joule",
                span=6,
                no_value=UNCOUNTED,
            )
        )
        .with_panel(
            bars(
                "Nodes that deliver least",
                "Of their peak now, eight lowest. A node far below the others at equal traffic: click it to see its GPUs above, and look for one that the others wait for.",
                [
                    Query(
                        f"sort(bottomk(8, instance:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}}))",
                        "{{instance}}",
                    )
                ],
                unit="percentunit",
                labels=["instance"],
                link=("Show this node", NODE_OF_BAR),
                no_value=UNCOUNTED,
                span=6,
            )
        )
        .with_panel(
            explained(
                bars(
                    "GPUs behind their host",
                    "Delivered over the median of the host's GPUs, six lowest. One far below siblings with the same work: somebody else is on it (`Who holds it` on its dashboard) or its replica gets no requests. Different work on one host is no fault.",
                    [Query(f"sort(bottomk(6, {BESIDE_HOST}))", "{{instance}} GPU {{gpu}}")],
                    unit="percentunit",
                    labels=["instance", "gpu"],
                    thresholds=good_above(0.6, 0.8),
                    maximum=1,
                    long_names=True,
                    link=("Open the GPU", GPU_OF_LINE),
                    no_value=UNCOUNTED,
                    span=6,
                ),
                CHOICES,
            )
        )
        .with_panel(
            explained(
                bars(
                    "Served models, useful of peak",
                    "Model FLOPS utilization by the engines' own token counts, eight highest; empty without an engine to read. Far below what the tensor pipes deliver: padding, recomputation, rejected drafts.",
                    [
                        Query(
                            f'sort_desc(topk(8, sum by (model) (model:flopwatch_model_flop:rate5m{{{CLUSTER}, model=~"$model"}}) / sum by (model) (model:flopwatch_peak_flops:headline{{{CLUSTER}, model=~"$model"}})))',
                            "{{model}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=[Threshold(None, "green")],
                    labels=["model"],
                    no_value="no engine is read",
                    span=6,
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
