"""Fleet: delivered and peak FLOPS, where the rest goes, and which GPU is unhealthy."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.firing import firing
from grafana.frame import (
    CHOICES,
    FLEET,
    GPU_LINK,
    GPU_OF_LINE,
    HOST_LINK,
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
    bars,
    bucket_heatmap,
    extremes,
    good_above,
    lines,
    number,
    state_stack,
)
from grafana.tables import Column, rows
from grafana.verdicts import CLOCKS, PAST, PEERS, verdicts


# Hosts of the chosen GPU models; with All the join changes nothing.
OF_NAME = f'and on (cluster, job, instance) gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}}'
# Older GPUs without dcgm-exporter, and processors, have a peak but no counted work. So a share of a
# peak divides by the peak of the hosts that count, and values from engines and probes stand in
# elsewhere.
COUNTERS = "activity counters"
# Worst first: slower than the peers, or clocks held down. Two per host, so that one capped rack
# does not fill the table; all of them with fewer than four hosts.
HOST = "by (cluster, job, instance)"
LOST = (
    f"gpu:flopwatch_lost_speed:ratio{{{NODE}}} and on (cluster, job, instance, gpu)"
    f' gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}}'
)
OF_A_HOST = (
    f"scalar(2 + 1000 * (count(instance:flopwatch_gpu_up:count{{{NODE}}}) < bool 4) or vector(2))"
)
OF_HOST = f"(gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} {OF_NAME})"
BESIDE_HOST = f"{OF_HOST} / on (cluster, job, instance) group_left () (quantile {HOST} (0.5, {OF_HOST}) > 0.005)"
STATE = ', state="STATE"'
IDLE = ', state="idle"'
COUNTED = "and on (cluster, job, instance) instance:flopwatch_tensor_flop:rate5m"
ENERGY_OF_CLUSTER = (
    f"(1e15 * sum by (cluster, job) (instance:flopwatch_energy_joules:rate5m{{{NODE}}}@@ {COUNTED}{{{NODE}}}@@)"
    f" / (sum by (cluster, job) (instance:flopwatch_tensor_flop:rate5m{{{NODE}}}@@) > 0))"
)
WORST = f"topk(20, topk {HOST} ({OF_A_HOST}, {LOST}))"


def total(metric: str, more: str = "", at: str = "") -> str:
    """The sum of a recorded series of hosts, over what the variables select."""
    return f"sum({metric}{{{NODE}{more}}}{at} {OF_NAME})"


def counted(metric: str, counter: str) -> str:
    """`total` of the hosts that have `counter`."""
    on = "and on (cluster, job, instance)"
    return f"sum({metric}{{{NODE}}} {OF_NAME} {on} {counter}{{{NODE}}})"


def instead(substitute: str, *of: str) -> str:
    """`substitute` where none of the recorded series has a value at the end of the time range."""
    have = " or ".join(total(metric, at=" @ end()") for metric in of)
    return f"({substitute}) unless on () ({have})"


TENSOR = "instance:flopwatch_tensor_flop:rate5m"
MODEL = "workload:flopwatch_model_flop:rate5m"
DELIVERED = total(TENSOR)
PEAK = counted("instance:flopwatch_peak_flops:headline", "instance:flopwatch_tensor_flop:rate5m")
MOVED = total("instance:flopwatch_dram_bytes:rate5m")
BANDWIDTH = counted(
    "instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
    "instance:flopwatch_dram_bytes:rate5m",
)
ENERGY = total("instance:flopwatch_energy_joules:rate5m")
USEFUL = total(MODEL)
PROBED = f'sum(max by (cluster, job, instance, gpu) (flopwatch_probe_flops{{{NODE}, mig="", precision!~"int.+"}}) {OF_NAME})'
BUSY = (
    f"1 - {total('instance_state:flopwatch_peak_flops:rate5m', IDLE)}"
    f" / {total('instance_state:flopwatch_peak_flops:rate5m')}"
)


def by_name(metric: str) -> str:
    """The sum of a series of GPUs by their model."""
    return (
        f"sum by (name) ({metric}{{{NODE}}} * on (cluster, job, instance, gpu)"
        f' group_left (name) gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}})'
    )


def per_gpu(expr: str) -> str:
    """`expr` of the worst GPUs only, with labels that merge into one row a GPU."""
    return f"max by (cluster, instance, gpu) ({expr} and on (cluster, job, instance, gpu) {WORST})"


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "GPUs answering",
                "GPUs whose driver answers, and those that should: listed before, or on the PCI bus. Fewer than expected: see `Verdicts`, and the GPULost, GPUMissing and GPUDriverNotLoaded runbooks.",
                [
                    Query(total("instance:flopwatch_gpu_up:sum"), "answering"),
                    Query(
                        f"sum(instance:flopwatch_gpus:expected{{{NODE}}} > 0 or instance:flopwatch_gpu_up:count{{{NODE}}})",
                        "expected",
                    ),
                ],
                unit="none",
                spark=False,
                span=4,
            )
        )
        .with_panel(
            number(
                "Delivered",
                "FLOP/s of all tensor pipes, valued at each GPU's headline precision; where nobody counts them, what the engines' tokens took, or else what probes reached. It follows the traffic; if it falls while requests queue, read `Where the peak goes` below.",
                [
                    Query(DELIVERED, "delivered"),
                    Query(instead(USEFUL, TENSOR), "useful, of engines"),
                    Query(instead(PROBED, TENSOR, MODEL), "reached by probes"),
                ],
                unit="flops",
                thresholds=BLUE,
                span=4,
                needs="activity counters, an engine or probes",
            )
        )
        .with_panel(
            explained(
                number(
                    "Of peak",
                    "Delivered over the summed data-sheet peak of the hosts that count it; where none does, useful FLOPS over the peak of the engines' GPUs. 30-60 % is good for prefill and training-like loads, 2-10 % is normal for decode: compare with its own past, not with 100 %.",
                    [
                        Query(f"{DELIVERED} / {PEAK}", "of peak"),
                        Query(
                            instead(
                                f"{USEFUL} / {total('workload:flopwatch_model_peak_flops:headline')}",
                                TENSOR,
                            ),
                            "useful (MFU)",
                        ),
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    span=4,
                    needs="activity counters or an engine",
                ),
                NORMAL,
            )
        )
        .with_panel(
            number(
                "Busy",
                "Share of the time in which GPUs do anything at all. High with low FLOPS is work that waits for memory, or for itself; low is no traffic.",
                [Query(BUSY, "busy")],
                unit="percentunit",
                decimals=0,
                thresholds=BLUE,
                span=3,
            )
        )
        .with_panel(
            explained(
                number(
                    "Bandwidth used",
                    "Of the theoretical bandwidth of the device memory of hosts that count it. High with low FLOPS means decode at small batch: larger batches, quantised weights or KV cache make more of it.",
                    [Query(f"{MOVED} / {BANDWIDTH}", "of bandwidth")],
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    span=3,
                    needs=COUNTERS,
                ),
                CHOICES,
            )
        )
        .with_panel(
            number(
                "Power",
                "Of all GPUs, from their energy counters. High at low FLOPS: GPUs that idle at full clocks, or decode at tiny batches.",
                [Query(ENERGY, "power")],
                unit="watt",
                thresholds=BLUE,
                span=3,
            )
        )
        .with_panel(
            explained(
                number(
                    "Energy per PFLOP",
                    "Joules for 10^15 delivered operations, of the hosts that count both: what a unit of work costs. It rises when GPUs idle or wait for memory; consolidate replicas or grow the batch.",
                    [
                        Query(
                            f"1e15 * {counted('instance:flopwatch_energy_joules:rate5m', 'instance:flopwatch_tensor_flop:rate5m')} / ({DELIVERED} > 0)",
                            "per PFLOP",
                        )
                    ],
                    unit="joule",
                    thresholds=BLUE,
                    span=3,
                    needs=COUNTERS,
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
                "Firing alerts of this project, worst first, one row an alert and host. The alert's name opens its runbook, which says what to do; the number opens the GPU (the first of `GPUs`). Empty is good.",
                'instance=~"$instance|"',  # some alerts have no instance
                where=[
                    Column("instance", "Instance", link=HOST_LINK, link_title="Open the host"),
                    Column("cluster", "Cluster"),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                    Column("B", "GPUs", decimals=0, width=60),
                ],
                span=24,
                height=7,
            ),
            FLEET,
        )
    ).with_panel(
        explained(
            verdicts(
                "Verdicts",
                "What each exporter finds on its devices, worst first, one row a host and finding, with what it costs in speed, who holds the GPU and since when: the sentences of the status page. The host and the GPU open their dashboards. Empty is good.",
                by_host=True,
                where=[
                    Column("instance", "Instance", link=HOST_LINK, link_title="Open the host"),
                    Column("cluster", "Cluster"),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                    Column("D", "GPUs", decimals=0, width=60),
                ],
                span=24,
                height=8,
            ),
            FLEET,
        )
    )


def _states(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            explained(
                state_stack(
                    "Where the peak goes",
                    "Shares of the fleet's peak FLOP/s. Much `memory`: batch or quantise. `stall`: fuse kernels, fewer synchronisations. `underfill`: small grids, raise concurrency. `clock_*`: heat or power. `idle`: fewer replicas or more traffic.",
                    f"{total('instance_state:flopwatch_peak_flops:rate5m', STATE)} / {total('instance_state:flopwatch_peak_flops:rate5m')}",
                    span=12,
                    height=8,
                ),
                STATES,
            )
        )
        .with_panel(
            lines(
                "Demand beside supply",
                "Requests in flight and queued (right axis), and FLOP/s delivered. Demand that grows while supply falls is trouble; both falling is an ebb.",
                [
                    Query(DELIVERED, "delivered"),
                    Query(f'sum(flopwatch_model_requests{{{NODE}, state="running"}})', "running"),
                    Query(f'sum(flopwatch_model_requests{{{NODE}, state="waiting"}})', "waiting"),
                ],
                unit="flops",
                right={"running|waiting": "short"},
                colors={"delivered": "green", "running": "blue", "waiting": "orange"},
                fill=0,
                span=6,
                height=8,
            )
        )
        .with_panel(
            lines(
                "Peak: installed, answering, unthrottled",
                "The peak of all GPUs that were ever seen, of those that answer, and what heat and power leave of it. A gap below the first line is lost GPUs, a gap below the second throttled ones.",
                [
                    Query(total("instance:flopwatch_peak_flops:installed"), "installed"),
                    Query(total("instance:flopwatch_peak_flops:headline"), "answering"),
                    Query(
                        total("instance_state:flopwatch_peak_flops:rate5m", ', state!~"clock_.+"'),
                        "unthrottled",
                    ),
                ],
                unit="flops",
                fill=0,
                span=6,
                height=8,
            )
        )
    )


def _worst(dashboard: Dashboard) -> Dashboard:
    columns = [
        Column("cluster", "Cluster", width=180),
        Column("instance", "Instance", width=190),
        Column("gpu", "GPU", width=50, link=GPU_LINK),
        Column("name", "GPU model"),
        Column("H", "Lost speed", "percentunit", decimals=1, width=105),
        Column("A", "Probe of peers", "percentunit", PEERS, 1, 120),
        Column("B", "Probe of past", "percentunit", PAST, 1, 115),
        Column("C", "Delivered of peak", "percentunit", decimals=1, width=145, bar_maximum=0.6),
        Column("D", "Busy", "percentunit", decimals=0, width=65),
        Column("E", "Clocks lost", "percentunit", CLOCKS, 1, 100),
        Column("F", "Temperature", "celsius", decimals=0, width=110),
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
                    Query(by_name("gpu:flopwatch_tensor_flop:rate5m"), "{{name}}"),
                    Query(total("instance:flopwatch_peak_flops:headline"), "peak"),
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
                            f"{by_name('gpu:flopwatch_tensor_flop:rate5m')} / {by_name('gpu:flopwatch_peak_flops:headline')}",
                            "{{name}}",
                        )
                    ],
                    unit="percentunit",
                    span=8,
                    needs=COUNTERS,
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
                        f'count_values("le", ceil(20 * (gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} and on (cluster, job, instance, gpu) gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}})) / 20)',
                        "{{le}}",
                    ),
                    unit="percentunit",
                    cumulative=False,
                    span=8,
                    needs=COUNTERS,
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
                        extremes("topk", 5, ENERGY_OF_CLUSTER, on="cluster, job"),
                        "cluster {{cluster}}",
                    )
                ],
                unit="joule",
                fill=0,
                span=6,
                needs=COUNTERS,
            )
        )
        .with_panel(
            bars(
                "Nodes that deliver least",
                "Of their peak now, eight lowest. A node far below the others at equal traffic: click it to see its GPUs side by side, and look for one that the others wait for.",
                [
                    Query(
                        f"sort(bottomk(8, instance:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} {OF_NAME}))",
                        "{{instance}}",
                    )
                ],
                unit="percentunit",
                labels=["instance"],
                link=("Open the host", NODE_OF_BAR),
                needs=COUNTERS,
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
                    needs=COUNTERS,
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
                            f"sort_desc(topk(8, sum by (model) (workload:flopwatch_model_flop:rate5m{{{NODE}}} {OF_NAME}) / sum by (model) (workload:flopwatch_model_peak_flops:headline{{{NODE}}} {OF_NAME})))",
                            "{{model}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=[Threshold(None, "green")],
                    labels=["model"],
                    needs="an inference engine",
                    span=6,
                ),
                MODELS,
            )
        )
    )


def _levers(dashboard: Dashboard) -> Dashboard:
    """Useful FLOPS and money that each lever would bring, over all workloads shown."""
    workload = "cluster, job, instance, workload, model"
    useful = f"workload:flopwatch_model_flop:rate5m{{{NODE}}}"

    def flops(bound: str) -> Query:
        gain = f'flopwatch_lever_gain_ratio{{{NODE}, bound="{bound}"}} - 1'
        return Query(f"sum by (lever) (({gain}) * on ({workload}) group_left () {useful})")

    engine = "cluster, job, instance, workload"
    cost = f"1 - avg by ({workload}, lever) (flopwatch_lever_cost_ratio{{{NODE}}})"
    price = (
        f"sum by ({engine}) (flopwatch_workload_gpu_info{{{NODE}}} * on (cluster, job, instance, gpu, uuid)"
        f" group_left () flopwatch_price_per_gpu_hour{{{NODE}}})"
    )
    money = f"sum by (lever) (24 * ({cost}) * on ({engine}) group_left () {price})"
    return dashboard.with_panel(
        explained(
            rows(
                "What would help",
                "Predicted useful FLOPS that each lever would add over all workloads shown, and what it is worth a day at `prices`. The levers do not add up. `flopwatch advise --prometheus` prints the same with the track record; the Models dashboard has the workloads.",
                [flops("low"), flops("high"), Query(money)],
                [
                    Column("lever", "Lever"),
                    Column("A", "Useful at least", "flops", decimals=2, width=180),
                    Column("B", "at most", "flops", decimals=2, width=160),
                    Column("C", "Worth a day", decimals=0, width=150),
                ],
                sort_by="Useful at least",
                needs="an inference engine; docs/levers.md says which",
                height=7,
            ),
            MODELS,
        )
    )


def dashboard() -> Dashboard:
    """The Fleet dashboard."""
    made = board(
        "flopwatch-fleet",
        "flopwatch / Fleet",
        "Achieved FLOPS of the fleet, where the rest of the peak goes, and which GPU is sick.",
        narrow=("name",),
    )
    made = _worst(_states(_wrong(_now(made))))
    return _levers(_course(made.with_row(Row("How it got there"))))
