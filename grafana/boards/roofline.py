"""Roofline: arithmetic intensity against delivered FLOP/s, under the roof of memory and tensor pipe."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common, xychart
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models import common as mc
from grafana_foundation_sdk.models import dashboard as md
from grafana_foundation_sdk.models import xychart as mx

from grafana.frame import (
    CHOICES,
    CLUSTER,
    GPU,
    GPU_LINK,
    MODELS,
    NORMAL,
    board,
    explained,
)
from grafana.panels import (
    DATASOURCE,
    Column,
    Query,
    bars,
    good_above,
    instant_tables,
    lines,
    rows,
)


NAME = 'name=~"$name"'
NAMED = f"gpu:flopwatch_gpu:info{{{GPU}, {NAME}}}"
MOST = 300  # points: more hide each other, and a browser draws them slowly
JOIN = "* on (cluster, job, instance, gpu) group_left (name)"
ON_GPU = "on (cluster, job, instance, gpu)"
INTENSITIES = [2**power for power in range(13)]


def _named(expr: str) -> str:
    return f"topk({MOST}, max by (cluster, instance, gpu, name) (({expr}) {JOIN} {NAMED}))"


def _per_gpu_of_model(numerator: str) -> str:
    """A model's rate spread over its GPUs, so that it stands under the roof of one."""
    return (
        f'sum by (model) ({numerator}{{{CLUSTER}, model=~"$model"}}) / on (model) '
        f"count by (model) (flopwatch_workload_gpu_info{{{GPU}}} * on (cluster, job, instance, workload) "
        f'group_left (model) max by (cluster, job, instance, workload, model) (flopwatch_model_info{{{CLUSTER}, model=~"$model"}}))'
    )


def _roof() -> str:
    """min(peak, intensity x bandwidth) of each GPU model at each point of the axis."""
    bandwidth = f'max by (name) (flopwatch_peak_dram_bandwidth_bytes_per_second{{{GPU}, mig=""}} {JOIN} {NAMED})'
    peak = f"max by (name) (gpu:flopwatch_peak_flops:headline{{{GPU}}} {JOIN} {NAMED})"
    return " or ".join(
        f'label_replace({bandwidth} * {value} < {peak} or {peak}, "point", "{index:02d}", "", "")'
        for index, value in enumerate(INTENSITIES)
    )


def _roof_x() -> str:
    return " or ".join(
        f'label_replace(max by (name) ({NAMED}) * {value}, "point", "{index:02d}", "", "")'
        for index, value in enumerate(INTENSITIES)
    )


def _series(name: str, x: str, y: str) -> xychart.XYSeriesConfig:
    by_name = "byName"
    return (
        xychart.XYSeriesConfig()
        .name(xychart.XychartXYSeriesConfigName().fixed(name))
        .x(xychart.XychartXYSeriesConfigX().matcher(xychart.MatcherConfig().id(by_name).options(x)))
        .y(xychart.XychartXYSeriesConfigY().matcher(xychart.MatcherConfig().id(by_name).options(y)))
    )


def _scatter(title: str, description: str, queries: Sequence[Query]) -> xychart.Panel:
    log_scale = common.ScaleDistributionConfig().type(mc.ScaleDistribution.LOG).log(10)
    names = {
        "Value #A": "FLOP per byte",
        "Value #B": "Delivered",
        "Value #C": "roof: FLOP per byte",
        "Value #D": "Roof",
        "Value #E": "model: FLOP per byte",
        "Value #F": "Model, useful",
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
        .mapping(mx.SeriesMapping.MANUAL)
        .series(
            [
                _series("Roof", "roof: FLOP per byte", "Roof"),
                _series("GPUs", "FLOP per byte", "Delivered"),
                _series("Models, useful FLOPS a GPU", "model: FLOP per byte", "Model, useful"),
            ]
        )
        .show(mx.XYShowMode.POINTS)
        .unit("flops")
        .scale_distribution(log_scale)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .placement(mc.LegendPlacement.BOTTOM)
            .display_mode(mc.LegendDisplayMode.LIST)
        )
        .override_by_regexp(".*FLOP per byte", [md.DynamicConfigValue(id_val="unit", value="none")])
        .override_by_name(
            "Roof", [md.DynamicConfigValue(id_val="custom.pointSize", value={"fixed": 3})]
        )
        .span(12)
        .height(14)
    )


def dashboard() -> Dashboard:
    """The Roofline dashboard."""
    delivered = f"gpu:flopwatch_tensor_flop:rate5m{{{GPU}}}"
    intensity = f"({delivered} / (gpu:flopwatch_dram_bytes:rate5m{{{GPU}}} > 0))"
    bandwidth = f'flopwatch_peak_dram_bandwidth_bytes_per_second{{{GPU}, mig=""}}'
    peak = f"gpu:flopwatch_peak_flops:headline{{{GPU}}}"
    # min(peak, intensity x bandwidth)
    roof = f"(({intensity} * {bandwidth} < {peak}) or ({peak} and {intensity}))"
    made = board(
        "flopwatch-roofline",
        "flopwatch / Roofline",
        "Is it the memory or the tensor pipe that limits each GPU and model, and how far below the roof are they?",
        narrow=("gpu", "name", "model"),
    )
    return (
        made.with_panel(
            explained(
                _scatter(
                    "Roofline",
                    "Left of the bend a GPU is limited by its memory, right of it by its tensor pipe. On the slope: grow the batch or quantise to move right. Right of the bend and below: stalls, small grids or clocks. Models are drawn with useful FLOPS only.",
                    [
                        Query(_named(f"{intensity} > 0")),
                        Query(_named(f"{delivered} > 0")),
                        Query(_roof_x()),
                        Query(_roof()),
                        Query(
                            f'sum by (model) (model:flopwatch_model_flop:rate5m{{{CLUSTER}, model=~"$model"}})'
                            f' / sum by (model) (model:flopwatch_model_dram_bytes:rate5m{{{CLUSTER}, model=~"$model"}})'
                        ),
                        Query(_per_gpu_of_model("model:flopwatch_model_flop:rate5m")),
                    ],
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                rows(
                    "Where each GPU stands",
                    "Sorted by the distance to the roof. Under 30 % of the roof the memory is not the reason: see the GPU's stack for stalls, small grids, clocks or idling.",
                    [
                        Query(_named(f"{delivered} / {roof}")),
                        Query(_named(f"{intensity} > 0")),
                        Query(
                            _named(
                                f"({peak} / {ON_GPU} {bandwidth}) and {ON_GPU} ({intensity} > 0)"
                            )
                        ),
                        Query(_named(f"{delivered} > 0")),
                    ],
                    [
                        Column("cluster", "Cluster"),
                        Column("instance", "Instance"),
                        Column("gpu", "GPU", width=50, link=GPU_LINK),
                        Column("A", "Of roof", "percentunit", good_above(0.15, 0.3), 0, 75),
                        Column("B", "FLOP/byte", decimals=1, width=90),
                        Column("C", "Bend at", decimals=0, width=75),
                        Column("D", "Delivered", "flops", decimals=0, width=110),
                    ],
                    sort_by="Of roof",
                    descending=False,
                    span=12,
                    height=14,
                ),
                CHOICES,
            )
        )
        .with_row(Row("Over time"))
        .with_panel(
            explained(
                lines(
                    "Arithmetic intensity",
                    "FLOP per byte of device memory, by GPU model, and dashed its bend. It rises with batch size and falls with context length; below the bend more bandwidth helps, above it more FLOPS.",
                    [
                        Query(
                            f"sum by (name) ({delivered} {JOIN} {NAMED}) / sum by (name) (gpu:flopwatch_dram_bytes:rate5m{{{GPU}}} {JOIN} {NAMED})",
                            "{{name}}",
                        ),
                        Query(
                            f"sum by (name) ({peak} {JOIN} {NAMED}) / sum by (name) ({bandwidth} {JOIN} {NAMED})",
                            "bend {{name}}",
                        ),
                    ],
                    unit="none",
                    dashed=["bend .*"],
                    span=8,
                    height=9,
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Of the roof",
                    "Delivered over what memory and tensor pipe allow at this intensity, by GPU model. Falling at equal traffic: something other than memory and pipe has begun to limit.",
                    [
                        Query(
                            f"sum by (name) ({delivered} {JOIN} {NAMED}) / sum by (name) ({roof} {JOIN} {NAMED})",
                            "{{name}}",
                        )
                    ],
                    unit="percentunit",
                    span=8,
                    height=9,
                ),
                CHOICES,
            )
        )
        .with_panel(
            explained(
                bars(
                    "Models: useful of executed",
                    "Useful model FLOPS over what the tensor pipes did. Well below 100 %: padding, recomputation, rejected drafts, or a wrong precision in the configuration.",
                    [
                        Query(
                            f'sort_desc(sum by (model) (model:flopwatch_model_flop:rate5m{{{CLUSTER}, model=~"$model"}}) / sum by (model) (model:flopwatch_tensor_flop:rate5m{{{CLUSTER}, model=~"$model"}}))',
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
