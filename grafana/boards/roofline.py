"""Roofline: arithmetic intensity against delivered FLOP/s, under the roof of memory and tensor pipe."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common, xychart
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import common as mc
from grafana_foundation_sdk.models import dashboard as md
from grafana_foundation_sdk.models import xychart as mx

from exporter.findings import limit
from grafana.frame import (
    CHOICES,
    GPU,
    GPU_LINK,
    MODELS,
    NODE,
    NORMAL,
    board,
    explained,
)
from grafana.panels import (
    DATASOURCE,
    NO_DATA,
    Query,
    Threshold,
    bars,
    extremes,
    fixed_color,
    instant_tables,
    lines,
    override,
)
from grafana.tables import Column, rows
from grafana.verdicts import CLOCKS


NAME = 'name=~"$name"'
NAMED = f"gpu:flopwatch_gpu:info{{{GPU}, {NAME}}}"
# No green: a GPU that reaches half its roof with its clocks held down is not healthy.
OF_ROOF_COLORS = [Threshold(None, "red"), Threshold(0.15, "orange"), Threshold(0.3, "text")]
MOST = 300  # points: more would overlap, and a browser draws them slowly
LEFT, RIGHT = 1, 10_000  # FLOP per byte, ends of the roofs
JOIN = "* on (cluster, job, instance, gpu) group_left (name)"
ON_GPU = "on (cluster, job, instance, gpu)"

DELIVERED = f"gpu:flopwatch_tensor_flop:rate5m{{{GPU}}}"
INTENSITY = f"({DELIVERED} / (gpu:flopwatch_dram_bytes:rate5m{{{GPU}}} > 0))"
BANDWIDTH = f'flopwatch_peak_dram_bandwidth_bytes_per_second{{{GPU}, mig=""}}'
PEAK = f"gpu:flopwatch_peak_flops:headline{{{GPU}}}"
OF_PEAK = f"(gpu:flopwatch_flops_utilization:ratio_rate5m{{{GPU}}} > 0)"
# Exported families carry the labels of their target (pod, node, …), which recorded series do not have.
OF_BANDWIDTH = f"(gpu:flopwatch_dram_bytes:rate5m{{{GPU}}} / on (cluster, job, instance, gpu, uuid) {BANDWIDTH})"
# Delivered over min(peak, intensity x bandwidth) is the larger of what is used of the peak and of the bandwidth.
OF_ROOF = f"({OF_PEAK} > {OF_BANDWIDTH} or ({OF_BANDWIDTH} and {OF_PEAK}))"
_OF_PEAK_OF_CLUSTER = (
    f"(sum by (cluster, job) (instance:flopwatch_tensor_flop:rate5m{{{NODE}}}@@)"
    f" / sum by (cluster, job) (instance:flopwatch_peak_flops:headline{{{NODE}}}@@))"
)
_OF_BANDWIDTH_OF_CLUSTER = (
    f"(sum by (cluster, job) (instance:flopwatch_dram_bytes:rate5m{{{NODE}}}@@)"
    f" / sum by (cluster, job) (instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum{{{NODE}}}@@))"
)
INTENSITY_OF_CLUSTER = f"({_OF_PEAK_OF_CLUSTER} / ({_OF_BANDWIDTH_OF_CLUSTER} > 0))"
OF_ROOF_OF_CLUSTER = (
    f"({_OF_PEAK_OF_CLUSTER} > {_OF_BANDWIDTH_OF_CLUSTER} or {_OF_BANDWIDTH_OF_CLUSTER})"
)
# Clocks that take as much as the findings warn of, or that a finding is about: the roof of such a
# GPU is lower than its data sheet says, and it is unhealthy even when it reaches the rest.
CLOCK_LOSS = f"gpu:flopwatch_clock_loss:ratio_rate5m{{{GPU}}}"
HELD_DOWN = (
    f"({CLOCK_LOSS} > {limit('heatLossWarning'):g} or {ON_GPU} max by (cluster, job, instance, gpu)"
    f' (flopwatch_finding{{{GPU}, kind=~"clock_held_by_.+|power_brake|power_limit_lowered"}}))'
)
# One choice for all columns and both axes, or a point would lack one of its two.
FARTHEST = f"bottomk({MOST}, {OF_ROOF} and {ON_GPU} {NAMED})"


def _named(expr: str) -> str:
    """`expr` of the GPUs farthest below their roofs, with the labels that the table shows."""
    return (
        f"max by (cluster, instance, gpu, name) ((({expr}) and {ON_GPU} {FARTHEST}) {JOIN} {NAMED})"
    )


def _per_gpu_of_model(numerator: str) -> str:
    """A model's rate divided by its GPUs, so that it fits under the roof of one.

    Models of an engine with several are left out: how much of a GPU each has is not known.
    """
    engine = "cluster, job, instance, workload"
    models = f"group by ({engine}, model) (flopwatch_model_info{{{NODE}}})"
    return (
        f'sum by (model) ({numerator}{{{NODE}, model=~"$model"}}) / on (model) '
        f"count by (model) (flopwatch_workload_gpu_info{{{GPU}}} * on ({engine}) group_left (model) "
        f"({models} unless on ({engine}) (count by ({engine}) ({models}) > 1)))"
    )


def _curve(corners: Sequence[str], which: str) -> str:
    """One row per corner and GPU model; `curve` sorts them into the order in which a line joins them.

    The line goes to the right end and back, so that what leads on to the next model's roof runs along the axis.
    """
    there_and_back = [*corners, *reversed(corners[:-1])]
    return " or ".join(
        f'label_replace({corner}, "curve", "$1 {which} {index}", "name", "(.*)")'
        for index, corner in enumerate(there_and_back)
    )


def _roof() -> tuple[str, str]:
    """FLOP per byte and FLOP/s at the corners of each GPU model's roof: left end, ridge point, right end.

    GPUs of one model have different peaks when their headline precisions differ: the lowest and the highest are drawn.
    """
    model = f"max by (name) ({NAMED})"
    bandwidth = f"max by (name) ({BANDWIDTH} {JOIN} {NAMED})"
    xs, ys = [], []
    for which in ("min", "max"):
        peak = f"{which} by (name) ({PEAK} {JOIN} {NAMED})"
        xs.append(
            _curve([f"{model} * {LEFT}", f"{peak} / {bandwidth}", f"{model} * {RIGHT}"], which)
        )
        ys.append(_curve([f"{bandwidth} * {LEFT}", peak, peak], which))
    return " or ".join(xs), " or ".join(ys)


def _series(name: str, x: str, y: str) -> xychart.XYSeriesConfig:
    by_name = "byName"
    return (
        xychart.XYSeriesConfig()
        .name(xychart.XychartXYSeriesConfigName().fixed(name))
        # Grafana draws no manually mapped series without a frame; after the merge there is one.
        .frame(
            xychart.XychartXYSeriesConfigFrame().matcher(
                xychart.MatcherConfig().id("byIndex").options(0)
            )
        )
        .x(xychart.XychartXYSeriesConfigX().matcher(xychart.MatcherConfig().id(by_name).options(x)))
        .y(xychart.XychartXYSeriesConfigY().matcher(xychart.MatcherConfig().id(by_name).options(y)))
    )


def _scatter(title: str, description: str, queries: Sequence[Query]) -> xychart.Panel:
    log_scale = common.ScaleDistributionConfig().type(mc.ScaleDistribution.LOG).log(10)
    names = {
        "Value #A": "roof: FLOP per byte",
        "Value #B": "Roof",
        "Value #C": "FLOP per byte",
        "Value #D": "Delivered",
        "Value #E": "model: FLOP per byte",
        "Value #F": "Model, useful",
        "Value #G": "Delivered, held down",
    }
    return (
        xychart.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(instant_tables(queries))
        .with_transformation(md.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            md.DataTransformerConfig(id_val="organize", options={"renameByName": names})
        )
        .with_transformation(
            md.DataTransformerConfig(
                id_val="sortBy", options={"sort": [{"field": "curve", "desc": False}]}
            )
        )
        .mapping(mx.SeriesMapping.MANUAL)
        .series(
            [
                _series("Roof of each GPU model", "roof: FLOP per byte", "Roof"),
                _series("GPUs, delivered", "FLOP per byte", "Delivered"),
                _series("GPUs with clocks held down", "FLOP per byte", "Delivered, held down"),
                _series(
                    "Served models, useful FLOPS per GPU", "model: FLOP per byte", "Model, useful"
                ),
            ]
        )
        .show(mx.XYShowMode.POINTS)
        .unit("flops")
        .no_value(NO_DATA)
        .scale_distribution(log_scale)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .placement(mc.LegendPlacement.BOTTOM)
            .display_mode(mc.LegendDisplayMode.LIST)
        )
        .override_by_regexp(
            ".*FLOP per byte",
            [
                override("unit", "short"),
                override("custom.axisLabel", "FLOP per byte of device memory"),
            ],
        )
        .override_by_name(
            "Roof",
            [
                fixed_color("#8F8F8F"),
                override("custom.show", "points+lines"),
                override("custom.lineWidth", 1),
                override("custom.pointSize", {"fixed": 4}),
            ],
        )
        .override_by_name(
            "Delivered", [fixed_color("green"), override("custom.pointSize", {"fixed": 7})]
        )
        .override_by_name(
            "Delivered, held down",
            [fixed_color("orange"), override("custom.pointSize", {"fixed": 9})],
        )
        .override_by_name(
            "Model, useful", [fixed_color("blue"), override("custom.pointSize", {"fixed": 11})]
        )
        .span(11)
        .height(14)
    )


def dashboard() -> Dashboard:
    """The Roofline dashboard."""
    roof_x, roof_y = _roof()
    made = board(
        "flopwatch-roofline",
        "flopwatch / Roofline",
        "Whether memory or the tensor pipe limits each GPU and model, and how far below the roof they are.",
        narrow=("gpu", "name", "model"),
    )
    return (
        made.with_panel(
            explained(
                _scatter(
                    "Roofline",
                    f"Left of the ridge point a GPU is limited by its memory, right of it by its tensor pipe. On the slope: increase the batch or quantize to move right. Far below the line: stalls, small grids or low clocks; see the table. Orange GPUs lose 5 % or more to power, heat or limits, so their own roof is lower. A GPU model has two roofs if its GPUs run at two headline precisions. Shows the {MOST} GPUs farthest below their roof, and models by useful FLOPS. Needs activity counters.",
                    [
                        Query(roof_x),
                        Query(roof_y),
                        Query(_named(INTENSITY)),
                        Query(_named(f"{DELIVERED} unless {ON_GPU} {HELD_DOWN}")),
                        Query(
                            f'sum by (model) (workload:flopwatch_model_flop:rate5m{{{NODE}, model=~"$model"}})'
                            f' / sum by (model) (workload:flopwatch_model_dram_bytes:rate5m{{{NODE}, model=~"$model"}})'
                        ),
                        Query(_per_gpu_of_model("workload:flopwatch_model_flop:rate5m")),
                        Query(_named(f"{DELIVERED} and {ON_GPU} {HELD_DOWN}")),
                    ],
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                rows(
                    "GPUs by distance to their roof",
                    "Farthest below its roof first. Below 30 % of the roof, memory is not the limit: `Where the peak goes` on the GPU dashboard shows stalls, small grids or idle time. `Clocks lost` is what power, heat and limits take from the roof itself.",
                    [
                        Query(_named(OF_ROOF)),
                        Query(_named(INTENSITY)),
                        Query(_named(f"{PEAK} / {ON_GPU} {BANDWIDTH}")),
                        Query(_named(DELIVERED)),
                        Query(_named(CLOCK_LOSS)),
                    ],
                    [
                        Column("cluster", "Cluster"),
                        Column("instance", "Instance"),
                        Column("gpu", "GPU", width=50, link=GPU_LINK),
                        Column("A", "Of roof", "percentunit", OF_ROOF_COLORS, 0, 80),
                        Column("E", "Clocks lost", "percentunit", CLOCKS, 0, 90),
                        Column("B", "FLOP/byte", decimals=0, width=85),
                        Column("C", "Ridge at", decimals=0, width=70),
                        Column("D", "Delivered", "flops", decimals=1, width=110),
                    ],
                    sort_by="Of roof",
                    descending=False,
                    span=13,
                    height=14,
                ),
                CHOICES,
            )
        )
        .with_row(Row("Over time"))
        .with_panel(
            explained(
                lines(
                    "Intensity relative to the ridge point",
                    "FLOP per byte of device memory over FLOP per byte at the ridge point of the roofline, five lowest clusters. Below 100 % memory is the limit: use a larger batch or smaller weights. Above it the tensor pipe is: use a lower precision or more GPUs. It falls with longer contexts and smaller batches.",
                    [
                        Query(
                            extremes("bottomk", 5, INTENSITY_OF_CLUSTER, on="cluster, job"),
                            "cluster {{cluster}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=[Threshold(None, "transparent"), Threshold(1, "text")],
                    soft_maximum=1.05,
                    fill=0,
                    span=8,
                    height=9,
                    needs="activity counters",
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Share of the roof by cluster",
                    "The larger of FLOPS utilization and bandwidth utilization, five lowest clusters. If it falls at equal traffic, neither memory nor the tensor pipe is the limit any more; see the table for the GPUs.",
                    [
                        Query(
                            extremes("bottomk", 5, OF_ROOF_OF_CLUSTER, on="cluster, job"),
                            "cluster {{cluster}}",
                        )
                    ],
                    unit="percentunit",
                    fill=0,
                    span=8,
                    height=9,
                    needs="activity counters",
                ),
                CHOICES,
            )
        )
        .with_panel(
            explained(
                bars(
                    "Useful of executed, by model",
                    "Useful model FLOPS over what the tensor pipes executed. Well below 100 %: padding, recomputation, rejected drafts, or a wrong precision in the configuration.",
                    [
                        Query(
                            f'sort_desc(sum by (model) (workload:flopwatch_model_flop:rate5m{{{NODE}, model=~"$model"}}) / sum by (model) (workload:flopwatch_model_tensor_flop:rate5m{{{NODE}, model=~"$model"}}))',
                            "{{model}}",
                        )
                    ],
                    unit="percentunit",
                    height=9,
                    maximum=1,
                    labels=["model"],
                ),
                MODELS,
            )
        )
    )
