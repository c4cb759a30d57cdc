"""Tables in this project's style: one row per label set, one column per label or query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, table
from grafana_foundation_sdk.models import common as mc
from grafana_foundation_sdk.models import dashboard as md

from grafana.panels import (
    DATASOURCE,
    NO_CELL,
    Query,
    Threshold,
    instant_tables,
    override,
    with_needs,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: where it comes from, what it is called and how it looks.

    `source` is a label's name, or the letter of the query whose value it shows. A hidden column
    exists for its row's links. `names` are texts for values, in the colour of the others.
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
    names: Mapping[str, str] | None = None
    hidden: bool = False

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
    empty: str = NO_CELL,
    needs: str = "",
) -> table.Panel:
    """A table: one row per label set, one column per label or query. `empty` is what one without rows says."""
    panel = (
        table.Panel()
        .title(title)
        .description(with_needs(description, needs))
        .datasource(DATASOURCE)
        .no_value(empty)
        .targets(instant_tables(queries))
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
    for column in columns:
        look = _column_look(column)
        if empty != NO_CELL:
            look.append(override("noValue", NO_CELL))
        panel = panel.override_by_name(column.title, look)
    return panel


def _column_look(column: Column) -> list[md.DynamicConfigValue]:
    look = [override("unit", column.unit)]
    if column.decimals is not None:
        look.append(override("decimals", column.decimals))
    if column.width is not None:
        look.append(override("custom.width", column.width))
    if column.thresholds:
        steps = [{"value": step.value, "color": step.color} for step in column.thresholds]
        look.append(override("thresholds", {"mode": "absolute", "steps": steps}))
        look.append(override("color", {"mode": "thresholds"}))
        look.append(override("custom.cellOptions", {"type": "color-text"}))
    if column.bar_maximum is not None:
        look.append(override("min", 0))
        look.append(override("max", column.bar_maximum))
        look.append(
            override(
                "custom.cellOptions", {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
            )
        )
    if column.link is not None:
        look.append(
            override(
                "links",
                [{"title": column.link_title, "url": column.link, "targetBlank": False}],
            )
        )
    if column.hidden:
        look.append(override("custom.hidden", True))  # to Grafana 12.1
        look.append(override("custom.hideFrom", {"viz": True, "legend": False, "tooltip": False}))
    if column.names:
        named = {
            value: {"text": name, "index": index}
            for index, (value, name) in enumerate(column.names.items())
        }
        look.append(override("mappings", [{"type": "value", "options": named}]))
    if column.mappings:
        options = {
            value: {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(column.mappings.items())
        }
        look.append(override("mappings", [{"type": "value", "options": options}]))
        look.append(override("custom.cellOptions", {"type": "color-text"}))
    return look
