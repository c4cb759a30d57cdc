"""The exporters' own verdicts: findings by device, with magnitude, holder and since when."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import table

from exporter.findings import limit
from grafana.frame import NODE
from grafana.panels import NEUTRAL, SEVERITY_COLORS, Query, bad_above, good_above
from grafana.tables import Column, rows


STATUS_PAGE = (
    "https://github.com/flopwatch/flopwatch/blob/main/docs/status-page.md#what-the-sentences-mean"
)
# Colours at the limits of the findings.
PEERS = good_above(limit("peersCritical"), limit("peersWarning"))
PAST = good_above(limit("baselineCritical"), limit("baselineWarning"))
CLOCKS = bad_above(limit("powerLossWarning"), 0.5)
BY = "cluster, instance, gpu"
RANKS = {"3": "critical", "2": "warning"}


def verdicts(
    title: str,
    description: str,
    *,
    selection: str = NODE,
    where: Sequence[Column] = (),
    span: int,
    height: int,
) -> table.Panel:
    """One row for each device and kind of finding that is more than an explanation, the worst first.

    `where` are columns that say which device. The same kinds and thresholds are on the status page and in the alerts.
    """
    ranked = " or ".join(
        f'{rank} * max by ({BY}, kind) (flopwatch_finding{{{selection}, severity="{name}"}})'
        for rank, name in RANKS.items()
    )
    holder = f"max by ({BY}, holder) (topk by ({BY}) (1, gpu:flopwatch_holder:info{{{selection}}}))"
    held = f"({ranked}) * on ({BY}) group_left (holder) {holder} or ({ranked}) unless on ({BY}) {holder}"
    # What the clocks and the slowest probe cost, where that can be said.
    lost = f"({ranked}) * 0 + on ({BY}) group_left () max by ({BY}) (gpu:flopwatch_lost_speed:ratio{{{selection}}})"
    since = (
        f"1000 * max by ({BY}, kind) (flopwatch_finding_since_timestamp_seconds{{{selection}}})"
        f" and on ({BY}, kind) ({ranked})"
    )
    severities = {rank: (name, SEVERITY_COLORS[name]) for rank, name in RANKS.items()}
    return rows(
        title,
        description,
        [Query(f"topk(40, {held})"), Query(since), Query(lost)],
        [
            Column("A", "Severity", width=85, mappings=severities),
            Column("kind", "Finding", link=STATUS_PAGE, link_title="What it means"),
            *where,
            Column("C", "Lost speed", "percentunit", NEUTRAL, 1, 95),
            Column("holder", "Held by"),
            Column("B", "Since", "dateTimeFromNow", width=130),
        ],
        sort_by="Severity",
        span=span,
        height=height,
        no_value="-",
    )
