"""Panels in this project's manner: every one has a description, a unit and the data source variable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as mc
from grafana_foundation_sdk.models import dashboard as md
from grafana_foundation_sdk.models import heatmap as mh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat


DATASOURCE = md.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Read at a glance, apart for colour-blind eyes, and on dark as on light ground.
STATE_COLORS = {
    "tensor": "#56A64B",
    "memory": "#3274D9",
    "stall": "#A352CC",
    "underfill": "#E0B400",
    "clock_power": "#FF780A",
    "clock_thermal": "#E02F44",
    "clock_other": "#C15C17",
    "unresolved": "#8F8F8F",
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
    """The course of the `count` series that are lowest (`bottomk`) or highest (`topk`) at the end of the time range.

    Chosen once, so that no line comes and goes. `@@` in `expr` stands behind each selector and range.
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
    """Targets whose present values come as one table each."""
    return _targets(queries, instant=True, tabular=True)


def _value(name: str, value: object) -> md.DynamicConfigValue:
    return md.DynamicConfigValue(id_val=name, value=value)


def fixed_color(color: str) -> md.DynamicConfigValue:
    """An override that paints a field in one colour."""
    return _value("color", {"mode": "fixed", "fixedColor": color})


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
    mappings: Mapping[str, tuple[str, str]] | None = None,
    no_value: str | None = None,
) -> stat.Panel:
    """One big number, with its course behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=not spark, tabular=False))
        .unit(unit)
        .thresholds(_thresholds(thresholds))
        .color_mode(mc.BigValueColorMode.VALUE)
        .graph_mode(mc.BigValueGraphMode.AREA if spark else mc.BigValueGraphMode.NONE)
        .text_mode(mc.BigValueTextMode.NAME if name_only else mc.BigValueTextMode.AUTO)
        # Grafana's own choice of size follows each panel's width, and the row looks ragged.
        .text(common.VizTextDisplayOptions().value_size(14 if name_only else 30))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(span)
        .height(height)
    )
    if spark:
        # From zero on: else the breathing of a steady load fills the panel.
        panel = panel.min(0)
    if decimals is not None:
        panel = panel.decimals(decimals)
    if no_value is not None:
        panel = panel.no_value(no_value)
    if mappings:
        panel = panel.mappings([_value_map(mappings)])
    return panel


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
    soft_maximum: float | None = None,
    stacked: bool = False,
    fill: int = 4,
    colors: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    thresholds: Sequence[Threshold] | None = None,
    legend_side: bool = False,
    calcs: Sequence[str] = ("lastNotNull",),
    no_value: str | None = None,
) -> timeseries.Panel:
    """Lines over time. `dashed` are names (regular expressions) of limits, drawn without fill."""
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
        .description(description)
        .datasource(DATASOURCE)
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
    if soft_maximum is not None:
        panel = panel.axis_soft_max(soft_maximum)
    if no_value is not None:
        panel = panel.no_value(no_value)
    if thresholds is not None:
        panel = panel.thresholds(_thresholds(thresholds)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(mc.GraphThresholdsStyleMode.DASHED)
        )
    for name, color in (colors or {}).items():
        panel = panel.override_by_name(name, [fixed_color(color)])
    for pattern in dashed:
        panel = panel.override_by_regexp(
            pattern,
            [
                _value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                _value("custom.fillOpacity", 0),
                _value("custom.stacking", {"mode": "none", "group": "B"}),
                _value("custom.lineWidth", 1),
            ],
        )
    return panel


def state_stack(
    title: str, description: str, by_state: str, *, span: int, height: int
) -> timeseries.Panel:
    """The states of the GPU's time, filling 0 to 100 %: work at the bottom, idleness on top.

    `by_state` is a query with STATE where the state's name goes; one target a state keeps the order.
    """
    return lines(
        title,
        description,
        [Query(by_state.replace("STATE", state), state) for state in STATE_COLORS],
        unit="percentunit",
        stacked=True,
        maximum=1,
        colors=STATE_COLORS,
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
) -> bargauge.Panel:
    """The present values, longest bar first as the query sorts them; `labels` name a bar, above it if long."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
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
        # A lone bar has no name otherwise.
        .display_name(" ".join(f"${{__field.labels.{label}}}" for label in labels))
        .span(span)
        .height(height)
    )
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
) -> heatmap.Panel:
    """Buckets over time: a Prometheus histogram's, which are cumulative, or plain counts by upper edge."""
    panel = (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(mh.HeatmapColorMode.SCHEME)
            .scheme("Turbo")
            .scale(mh.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
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
    no_value: str | None = None,
) -> statetimeline.Panel:
    """One coloured band a series."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=False, tabular=False))
        .unit("none")
        .mappings([_value_map(mappings)])
        .merge_values(True)
        .show_value(mc.VisibilityMode.NEVER)
        .row_height(0.8)
        .span(span)
        .height(height)
    )
    return panel if no_value is None else panel.no_value(no_value)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: where it comes from, what it is called and how it looks.

    `source` is a label's name, or the letter of the query whose value it shows.
    """

    source: str
    title: str
    unit: str = "none"
    thresholds: Sequence[Threshold] = ()
    decimals: int | None = None
    width: int | None = None
    bar_maximum: float | None = None
    link: str | None = None
    link_title: str = "Open the GPU"
    mappings: Mapping[str, tuple[str, str]] | None = None

    def field(self, queries: int) -> str:
        """The field's name after the frames are merged; the value of a lone query has no letter."""
        if not self.source.isupper():
            return self.source
        return f"Value #{self.source}" if queries > 1 else "Value"


def rows(
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: Sequence[Column],
    *,
    sort_by: str,
    descending: bool = True,
    span: int = 24,
    height: int = 8,
    no_value: str | None = None,
) -> table.Panel:
    """A table: one row a label set, one column a label or query."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .targets(_targets(queries, instant=True, tabular=True))
        .unit("none")
        .filterable(False)
        .sort_by([common.TableSortByFieldState().display_name(sort_by).desc(descending)])
        .cell_height(mc.TableCellHeight.SM)
        .span(span)
        .height(height)
        .with_transformation(md.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            md.DataTransformerConfig(
                id_val="filterFieldsByName",
                options={"include": {"names": [column.field(len(queries)) for column in columns]}},
            )
        )
        .with_transformation(
            md.DataTransformerConfig(
                id_val="organize",
                options={
                    "indexByName": {
                        column.field(len(queries)): index for index, column in enumerate(columns)
                    },
                    "renameByName": {
                        column.field(len(queries)): column.title for column in columns
                    },
                },
            )
        )
    )
    if no_value is not None:
        panel = panel.no_value(no_value)
    for column in columns:
        panel = panel.override_by_name(column.title, _column_look(column))
    return panel


def _column_look(column: Column) -> list[md.DynamicConfigValue]:
    look = [_value("unit", column.unit)]
    if column.decimals is not None:
        look.append(_value("decimals", column.decimals))
    if column.width is not None:
        look.append(_value("custom.width", column.width))
    if column.thresholds:
        steps = [{"value": step.value, "color": step.color} for step in column.thresholds]
        look.append(_value("thresholds", {"mode": "absolute", "steps": steps}))
        look.append(_value("color", {"mode": "thresholds"}))
        look.append(_value("custom.cellOptions", {"type": "color-text"}))
    if column.bar_maximum is not None:
        look.append(_value("min", 0))
        look.append(_value("max", column.bar_maximum))
        look.append(
            _value(
                "custom.cellOptions", {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
            )
        )
    if column.link is not None:
        look.append(
            _value(
                "links",
                [{"title": column.link_title, "url": column.link, "targetBlank": False}],
            )
        )
    if column.mappings:
        options = {
            value: {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(column.mappings.items())
        }
        look.append(_value("mappings", [{"type": "value", "options": options}]))
        look.append(_value("custom.cellOptions", {"type": "color-text"}))
    return look
