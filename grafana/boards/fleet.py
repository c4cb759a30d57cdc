"""Fleet: delivered and peak FLOPS, where the rest goes, and which GPU is unhealthy."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.boards.fleet_problems import problems, worst_gpus
from grafana.frame import (
    CHOICES,
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
    NO_DATA,
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


# Hosts of the chosen GPU models; with All the join changes nothing.
OF_NAME = f'and on (cluster, job, instance) gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}}'
# Older GPUs without dcgm-exporter, and processors, have a peak but no counted work. So a share of a
# peak divides by the peak of the hosts that count, and values from engines and probes stand in
# elsewhere.
COUNTERS = "activity counters"
HOST = "by (cluster, job, instance)"
OF_HOST = f"(gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} {OF_NAME})"
BESIDE_HOST = f"{OF_HOST} / on (cluster, job, instance) group_left () (quantile {HOST} (0.5, {OF_HOST}) > 0.005)"
STATE = ', state="STATE"'
IDLE = ', state="idle"'
COUNTED = "and on (cluster, job, instance) instance:flopwatch_tensor_flop:rate5m"
ENERGY_OF_CLUSTER = (
    f"(1e15 * sum by (cluster, job) (instance:flopwatch_energy_joules:rate5m{{{NODE}}}@@ {COUNTED}{{{NODE}}}@@)"
    f" / (sum by (cluster, job) (instance:flopwatch_tensor_flop:rate5m{{{NODE}}}@@) > 0))"
)


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


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "GPUs answering",
                "GPUs whose driver answers, and how many are expected: those that were listed before or are on the PCI bus. If fewer answer, see `Verdicts` and the GPULost, GPUMissing and GPUDriverNotLoaded runbooks.",
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
                "FLOPS",
                "Delivered FLOP/s of all tensor pipes, at each GPU's headline precision. Without activity counters: useful FLOP/s of the engines, or else what the probes reached. It follows traffic. If it falls while requests queue, see `Where the peak goes`.",
                [
                    Query(DELIVERED, "delivered"),
                    Query(instead(USEFUL, TENSOR), "useful, from engines"),
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
                    "FLOPS utilization",
                    "Delivered FLOP/s over the data-sheet peak of the hosts with activity counters. Without any: useful FLOP/s over the peak of the engines' GPUs. 30-60 % is good for prefill and training-like loads, 2-10 % is normal for decode. Compare it with its own history, not with 100 %.",
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
                "Share of time in which the GPUs do any work. High with low FLOPS: the work waits for memory or for synchronization. Low: little traffic.",
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
                    "Share of the theoretical memory bandwidth of the hosts with activity counters. High with low FLOPS: decode at a small batch. Larger batches and quantized weights or KV cache get more work out of the same bandwidth.",
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
                "Power of all GPUs, from their energy counters. High with low FLOPS: GPUs that idle at full clocks, or decode at tiny batches.",
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
                    "Joules per 10^15 delivered operations, for hosts that count both: what a unit of work costs. It rises when GPUs idle or wait for memory. Consolidate replicas or increase the batch.",
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


def _states(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            explained(
                state_stack(
                    "Where the peak goes",
                    "Shares of the fleet's peak FLOP/s by state. Much `memory`: increase the batch or quantize. `stall`: fuse kernels, synchronize less. `underfill`: small grids; raise concurrency. `clock_*`: heat or power. `idle`: run fewer replicas, or send more traffic.",
                    f"{total('instance_state:flopwatch_peak_flops:rate5m', STATE)} / {total('instance_state:flopwatch_peak_flops:rate5m')}",
                    span=12,
                    height=8,
                ),
                STATES,
            )
        )
        .with_panel(
            lines(
                "Demand and supply",
                "FLOP/s delivered (without activity counters: useful FLOP/s), and requests running and waiting (right axis). If demand grows while supply falls, something is wrong. If both fall, there is less traffic.",
                [
                    Query(DELIVERED, "delivered"),
                    Query(instead(USEFUL, TENSOR), "useful, from engines"),
                    Query(f'sum(flopwatch_model_requests{{{NODE}, state="running"}})', "running"),
                    Query(f'sum(flopwatch_model_requests{{{NODE}, state="waiting"}})', "waiting"),
                ],
                unit="flops",
                right={"running|waiting": "short"},
                colors={
                    "delivered": "green",
                    "useful, from engines": "green",
                    "running": "blue",
                    "waiting": "orange",
                },
                fill=0,
                span=6,
                height=8,
            )
        )
        .with_panel(
            lines(
                "Peak: installed, answering, unthrottled",
                "Peak FLOP/s of all GPUs ever seen, of those that answer, and what heat and power leave of it. A gap below the first line: lost GPUs. A gap below the second: throttled GPUs.",
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


def _course(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            lines(
                "Delivered by GPU model",
                "FLOP/s delivered, stacked by GPU model. Dashed: the sum of the data-sheet peaks. A gap that grows at equal traffic is lost work: see `Where the peak goes`.",
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
                    "Utilization by GPU model",
                    "Delivered over peak FLOP/s, so that small groups are visible next to large ones; for models without activity counters, the share of time in which they do any work. If a model falls at equal traffic, look for its GPUs in `Worst GPUs`. 5 % is normal for decode.",
                    [
                        Query(
                            f"{by_name('gpu:flopwatch_tensor_flop:rate5m')} / {by_name('gpu:flopwatch_peak_flops:headline')}",
                            "{{name}}",
                        ),
                        Query(
                            f"avg by (name) (gpu:flopwatch_busy:ratio_rate5m{{{NODE}}} * on (cluster, job, instance, gpu)"
                            f' group_left (name) gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}})'
                            f" unless on (name) {by_name('gpu:flopwatch_tensor_flop:rate5m')}",
                            "{{name}} busy",
                        ),
                    ],
                    unit="percentunit",
                    span=8,
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                bucket_heatmap(
                    "GPUs by utilization",
                    "Number of GPUs by FLOPS utilization. Two bands are two kinds of load. A faint band below the others is a group of GPUs to look at.",
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
                "Joules per 10^15 delivered operations, five highest clusters. Rising: idle GPUs, smaller batches, or GPUs that are throttled by heat. Use it to decide what to run where.",
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
                "Hosts with the lowest utilization",
                "FLOPS utilization now, six lowest hosts. If one is far below the others at equal traffic, click it to see its GPUs side by side, and look for one that the others wait for.",
                [
                    Query(
                        f"sort(bottomk(6, instance:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}} {OF_NAME}))",
                        "{{instance}}",
                    )
                ],
                unit="percentunit",
                labels=["instance"],
                long_names=True,
                link=("Open the host", NODE_OF_BAR),
                needs=COUNTERS,
                span=6,
            )
        )
        .with_panel(
            explained(
                bars(
                    "GPUs behind their host",
                    "Utilization of a GPU over the median of its host's GPUs, six lowest. Far below siblings with the same work: another process uses it (`Who holds it` on its dashboard), or its replica gets no requests. GPUs with different work may differ.",
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
                    "MFU by served model",
                    "Model FLOPS utilization from the engines' token counts, six highest. Far below what the tensor pipes deliver: padding, recomputation or rejected drafts.",
                    [
                        Query(
                            f"sort_desc(topk(6, sum by (model) (workload:flopwatch_model_flop:rate5m{{{NODE}}} {OF_NAME}) / sum by (model) (workload:flopwatch_model_peak_flops:headline{{{NODE}}} {OF_NAME})))",
                            "{{model}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=[Threshold(None, "green")],
                    labels=["model"],
                    long_names=True,
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
                "Useful FLOP/s that each lever is predicted to add over all selected workloads, and what that is worth per day at `prices`. Gains of several levers do not add up. `flopwatch advise --prometheus` prints the same with the track record; the Models dashboard shows each workload.",
                [flops("low"), flops("high"), Query(money)],
                [
                    Column("lever", "Lever"),
                    Column("A", "Gain, low", "flops", decimals=2, width=180),
                    Column("B", "Gain, high", "flops", decimals=2, width=160),
                    Column("C", "Worth per day", decimals=0, width=150),
                ],
                sort_by="Gain, low",
                needs="an inference engine; docs/levers.md says which",
                empty=NO_DATA,
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
        "FLOPS that the fleet delivers, where the rest of the peak goes, and which GPU is unhealthy.",
        narrow=("name",),
    )
    made = worst_gpus(_states(problems(_now(made))))
    return _levers(_course(made.with_row(Row("History"))))
