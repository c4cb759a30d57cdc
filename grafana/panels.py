"""Panels in this project's style: each has a description, a unit and the data source variable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.builders.dashboard import DashboardLink, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as mc
from grafana_foundation_sdk.models import dashboard as md
from grafana_foundation_sdk.models import heatmap as mh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat


# What an empty panel says. It never names a cause: Prometheus cannot know why a series is missing.
# What a panel needs is in its description (`needs`).
NO_DATA = "no data"
NONE_REPORTED = "none reported"
NONE_FIRING = "none firing"
NO_CELL = "-"  # of a table: it appears in each empty cell, too

DATASOURCE = md.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Distinct on dark and light backgrounds; the hues are those of the status page.
STATE_COLORS = {
    "tensor": "#56A64B",
    "memory": "#3274D9",
    "stall": "#A352CC",
    "underfill": "#1F9EB3",
    "clock_power": "#FF780A",
    "clock_thermal": "#E02F44",
    "clock_other": "#C9A227",
    "unresolved": "#7A6F5D",
    "idle": "#B7B7B7",
}
SEVERITY_COLORS = {"critical": "red", "warning": "orange", "info": "blue"}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query of a panel and what its lines are called."""

    expr: str
    legend: str = "__auto"


def extremes(
    function: str, count: int, expr: str, *, on: str = "cluster, job, instance, gpu"
) -> str:
    """The history of the `count` series lowest (`bottomk`) or highest (`topk`) at the range's end.

    Chosen once, so that no line comes and goes. `@@` in `expr` follows each selector and range.
    """
    return f"{expr.replace('@@', '')} and on ({on}) {function}({count}, {expr.replace('@@', ' @ end()')})"


@dataclass(frozen=True, slots=True)
class Threshold:
    """From `value` on the colour is `color`; the first threshold of a panel has no value."""

    value: float | None
    color: str


def good_above(warning: float, good: float) -> list[Threshold]:
    """Red, orange, green."""
    return [Threshold(None, "red"), Threshold(warning, "orange"), Threshold(good, "green")]


def bad_above(warning: float, bad: float) -> list[Threshold]:
    """Green, orange, red."""
    return [Threshold(None, "green"), Threshold(warning, "orange"), Threshold(bad, "red")]


NEUTRAL = [Threshold(None, "text")]
BLUE = [Threshold(None, "blue")]


def _thresholds(steps: Sequence[Threshold]) -> ThresholdsConfig:
    return (
        ThresholdsConfig()
        .mode(md.ThresholdsMode.ABSOLUTE)
        .steps([md.Threshold(value=step.value, color=step.color) for step in steps])
    )


def _targets(queries: Sequence[Query], *, instant: bool, tabular: bool) -> list[Builder[Dataquery]]:
    targets: list[Builder[Dataquery]] = []
    for index, query in enumerate(queries):
        target = (
            prometheus.Dataquery()
            .datasource(DATASOURCE)
            .ref_id(chr(ord("A") + index))
            .expr(query.expr)
            .legend_format(query.legend)
        )
        target = target.instant() if instant else target.range()
        targets.append(target.format(PromQueryFormat.TABLE) if tabular else target)
    return targets


def instant_tables(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    """Targets whose present values are returned as one table each."""
    return _targets(queries, instant=True, tabular=True)


def override(name: str, value: object) -> md.DynamicConfigValue:
    """One property of a field, set in addition to the panel's defaults."""
    return md.DynamicConfigValue(id_val=name, value=value)


def _link(title: str, url: str) -> DashboardLink:
    return DashboardLink(title).url(url)


def with_needs(description: str, needs: str) -> str:
    """The description, with what the panel needs before it can show anything."""
    return f"{description} Needs {needs}." if needs else description


def fixed_color(color: str) -> md.DynamicConfigValue:
    """An override that paints a field in one colour."""
    return override("color", {"mode": "fixed", "fixedColor": color})


def number(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    thresholds: Sequence[Threshold] = NEUTRAL,
    span: int = 4,
    height: int = 4,
    decimals: int | None = None,
    spark: bool = True,
    name_only: bool = False,
    named: bool = False,
    mappings: Mapping[str, tuple[str, str]] | None = None,
    no_value: str = NO_DATA,
    needs: str = "",
) -> stat.Panel:
    """One big number over its history. `named` shows its name, for a query with a substitute."""
    panel = (
        stat.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(no_value)
        .targets(_targets(queries, instant=not spark, tabular=False))
        .unit(unit)
        .thresholds(_thresholds(thresholds))
        .color_mode(mc.BigValueColorMode.VALUE)
        .graph_mode(mc.BigValueGraphMode.AREA if spark else mc.BigValueGraphMode.NONE)
        .text_mode(_text_mode(named=spark or named, name_only=name_only))
        # Grafana's own size depends on each panel's width, and the row would look ragged.
        .text(common.VizTextDisplayOptions().title_size(12).value_size(14 if name_only else 26))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(span)
        .height(height)
    )
    if spark:
        # Start at zero: otherwise the small variation of a steady load fills the panel.
        panel = panel.min(0)
    if decimals is not None:
        panel = panel.decimals(decimals)
    if mappings:
        panel = panel.mappings([_value_map(mappings)])
    return panel


def _text_mode(*, named: bool, name_only: bool) -> mc.BigValueTextMode:
    if name_only:
        return mc.BigValueTextMode.NAME
    # Without a name the number is in the middle, and the line of its history crosses it.
    return mc.BigValueTextMode.VALUE_AND_NAME if named else mc.BigValueTextMode.AUTO


def _value_map(mappings: Mapping[str, tuple[str, str]]) -> md.ValueMap:
    return md.ValueMap(
        options={
            value: md.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(mappings.items())
        }
    )


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    span: int = 12,
    height: int = 8,
    minimum: float | None = 0,
    maximum: float | None = None,
    soft_minimum: float | None = None,
    soft_maximum: float | None = None,
    stacked: bool = False,
    fill: int = 4,
    colors: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    thresholds: Sequence[Threshold] | None = None,
    legend_side: bool = False,
    calcs: Sequence[str] = ("lastNotNull",),
    no_value: str = NO_DATA,
    needs: str = "",
    points: int | None = None,
    link: str | None = None,
    right: Mapping[str, str] | None = None,
    decimals: int | None = None,
    logarithmic: bool = False,
) -> timeseries.Panel:
    """Lines over time. `dashed` are names (regular expressions) of limits, drawn without fill.

    `points` bounds the steps of a query that touches every GPU. A click on a line follows `link`. `right` gives the
    names (regular expressions) of lines with a unit of their own, and an axis at the right. A `logarithmic` axis shows
    values of different size, and has no minimum.
    """
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(mc.LegendDisplayMode.TABLE if legend_side else mc.LegendDisplayMode.LIST)
        .placement(mc.LegendPlacement.RIGHT if legend_side else mc.LegendPlacement.BOTTOM)
        .calcs(list(calcs) if legend_side else [])
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(no_value)
        .targets(_targets(queries, instant=False, tabular=False))
        .unit(unit)
        .legend(legend)
        .tooltip(
            common.VizTooltipOptions()
            .mode(mc.TooltipDisplayMode.MULTI)
            .sort(mc.SortOrder.DESCENDING)
        )
        .line_width(0 if stacked else 1)
        .fill_opacity(80 if stacked else fill)
        .show_points(mc.VisibilityMode.NEVER)
        .span(span)
        .height(height)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(mc.StackingMode.NORMAL).group("A"))
    if minimum is not None:
        panel = panel.min(minimum)
    if maximum is not None:
        panel = panel.max(maximum)
    if soft_minimum is not None:
        panel = panel.axis_soft_min(soft_minimum)
    if soft_maximum is not None:
        panel = panel.axis_soft_max(soft_maximum)
    if thresholds is not None:
        panel = panel.thresholds(_thresholds(thresholds)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(mc.GraphThresholdsStyleMode.DASHED)
        )
    for name, color in (colors or {}).items():
        panel = panel.override_by_name(name, [fixed_color(color)])
    if decimals is not None:
        panel = panel.decimals(decimals)
    if logarithmic:
        log_scale = common.ScaleDistributionConfig().type(mc.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(log_scale)
    if points is not None:
        panel = panel.max_data_points(points)
    if link is not None:
        panel = panel.data_links([_link("Open the GPU", link)])
    for pattern, other_unit in (right or {}).items():
        panel = panel.override_by_regexp(
            pattern, [override("unit", other_unit), override("custom.axisPlacement", "right")]
        )
    for pattern in dashed:
        panel = panel.override_by_regexp(
            pattern,
            [
                override("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                override("custom.fillOpacity", 0),
                override("custom.stacking", {"mode": "none", "group": "B"}),
                override("custom.lineWidth", 1),
            ],
        )
    return panel


def state_stack(
    title: str, description: str, by_state: str, *, span: int, height: int
) -> timeseries.Panel:
    """The states of the GPU's time, filling 0 to 100 %: work at the bottom, idle time on top.

    `by_state` is a query with STATE where the state's name goes; one target a state keeps the order.
    """
    return lines(
        title,
        description,
        [
            # Rounded: the remainder of a float difference is not a share.
            Query(f"round({by_state.replace('STATE', state)}, 0.001)", state)
            for state in STATE_COLORS
        ],
        unit="percentunit",
        stacked=True,
        maximum=1,
        colors=STATE_COLORS,
        decimals=1,
        legend_side=True,
        span=span,
        height=height,
    )


def bars(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    labels: Sequence[str],
    thresholds: Sequence[Threshold] = BLUE,
    span: int = 8,
    height: int = 8,
    maximum: float | None = None,
    long_names: bool = False,
    link: tuple[str, str] | None = None,
    no_value: str = NO_DATA,
    needs: str = "",
) -> bargauge.Panel:
    """The present values, longest bar first as the query sorts them; `labels` name a bar, above it if long.

    A click on a bar follows `link`, a title and an address.
    """
    panel = (
        bargauge.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(no_value)
        .targets(_targets(queries, instant=True, tabular=False))
        .unit(unit)
        .min(0)
        .thresholds(_thresholds(thresholds))
        .orientation(mc.VizOrientation.HORIZONTAL)
        .display_mode(mc.BarGaugeDisplayMode.BASIC)
        .name_placement(
            mc.BarGaugeNamePlacement.TOP if long_names else mc.BarGaugeNamePlacement.AUTO
        )
        .sizing(mc.BarGaugeSizing.MANUAL)
        .min_viz_height(16)
        .max_viz_height(32)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        # Otherwise a single bar has no name.
        .display_name(
            " ".join(
                f"{'GPU ' if label == 'gpu' else ''}${{__field.labels.{label}}}" for label in labels
            )
        )
        .span(span)
        .height(height)
    )
    if link is not None:
        panel = panel.data_links([_link(*link)])
    return panel if maximum is None else panel.max(maximum)


def bucket_heatmap(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str,
    span: int = 12,
    height: int = 8,
    cumulative: bool = True,
    no_value: str = NO_DATA,
    needs: str = "",
) -> heatmap.Panel:
    """Buckets over time: a Prometheus histogram's, which are cumulative, or plain counts by upper edge."""
    panel = (
        heatmap.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(no_value)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(mh.HeatmapColorMode.SCHEME)
            # A single GPU must be visible on dark and light backgrounds: other schemes begin with
            # the background colour.
            .scheme("Cool")
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(mc.AxisPlacement.LEFT))
        .cell_gap(1)
        .show_legend()
        .tooltip(heatmap.HeatmapTooltip().mode(mc.TooltipDisplayMode.SINGLE).show_color_scale(True))
        .unit("short")
        .span(span)
        .height(height)
    )
    target = (
        prometheus.Dataquery()
        .datasource(DATASOURCE)
        .ref_id("A")
        .expr(query.expr)
        .legend_format(query.legend)
        .range()
        .format(PromQueryFormat.HEATMAP if cumulative else PromQueryFormat.TIME_SERIES)
    )
    return panel.with_target(target)


def states_over_time(
    title: str,
    description: str,
    queries: Sequence[Query],
    mappings: Mapping[str, tuple[str, str]],
    *,
    span: int = 12,
    height: int = 8,
    no_value: str = NO_DATA,
    needs: str = "",
) -> statetimeline.Panel:
    """One coloured band per series."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(no_value)
        .targets(_targets(queries, instant=False, tabular=False))
        .unit("none")
        .mappings([_value_map(mappings)])
        .merge_values(True)
        .show_value(mc.VisibilityMode.NEVER)
        .row_height(0.8)
        .span(span)
        .height(height)
    )
