"""The exporters' own verdicts: findings by device, with magnitude, holder and start time."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import table

from exporter.findings import KINDS, limit
from grafana.frame import CLUSTER, NODE
from grafana.panels import (
    NEUTRAL,
    NONE_REPORTED,
    SEVERITY_COLORS,
    Query,
    Threshold,
    good_above,
)
from grafana.tables import Column, rows


STATUS_PAGE = (
    "https://github.com/flopwatch/flopwatch/blob/main/docs/status-page.md#what-the-sentences-mean"
)
# Colours at the limits of the findings.
PEERS = good_above(limit("peersCritical"), limit("peersWarning"))
PAST = good_above(limit("baselineCritical"), limit("baselineWarning"))
# For a comparison with peers. A GPU without any is its own median, which deviates by nothing.
PEERED = (
    "and on (cluster, job, name)"
    f" (max by (cluster, job, name) (name_unit:flopwatch_probe_measure:mad_peer_ratio{{{CLUSTER}}}) > 0)"
)
# Below the limit of power, heat may still be a finding: no colour says that all is well there.
CLOCKS = [
    Threshold(None, "text"),
    Threshold(limit("powerLossWarning"), "orange"),
    Threshold(0.5, "red"),
]
BY = "cluster, instance, gpu"
RANKS = {"3": "critical", "2": "warning"}
# Kinds that cost speed: for the others the speed lost to clocks and slow silicon is not relevant.
SLOW = 'kind=~"clock_held_by_.+|power_brake|power_limit_lowered|slower_than_.+"'


def verdicts(
    title: str,
    description: str,
    *,
    selection: str = NODE,
    where: Sequence[Column] = (),
    by_host: bool = False,
    brief: bool = False,
    span: int,
    height: int,
) -> table.Panel:
    """One row for each device and kind of finding that is more than an explanation, the worst first.

    `where` are columns that say which device. `by_host` makes it one row a host and kind: `gpu` is the first of its
    GPUs, the letter D how many there are. `brief` leaves out speed and holder. The same kinds, words and thresholds
    are on the status page and in the alerts.
    """
    every = " or ".join(
        f'{rank} * max by ({BY}, kind) (flopwatch_finding{{{selection}, severity="{name}"}})'
        for rank, name in RANKS.items()
    )
    ranked = f"(topk by (cluster, instance, kind) (1, {every}))" if by_host else f"({every})"
    holder = f"max by ({BY}, holder) (topk by ({BY}) (1, gpu:flopwatch_holder:info{{{selection}}}))"
    held = (
        f"{ranked} * on ({BY}) group_left (holder) {holder} or {ranked} unless on ({BY}) {holder}"
    )
    # What the clocks and the slowest probe cost, where that is known.
    slow = ranked.replace("severity=", f"{SLOW}, severity=")
    lost = f"{slow} * 0 + on ({BY}) group_left () max by ({BY}) (gpu:flopwatch_lost_speed:ratio{{{selection}}})"
    since = (
        f"1000 * max by ({BY}, kind) (flopwatch_finding_since_timestamp_seconds{{{selection}}})"
        f" and on ({BY}, kind) {ranked}"
    )
    # The first GPU stands for the row, so the count has its labels.
    count = f"{ranked} * 0 + on (cluster, instance, kind) group_left () count by (cluster, instance, kind) ({every})"
    severities = {rank: (name, SEVERITY_COLORS[name]) for rank, name in RANKS.items()}
    columns = [
        Column("A", "Severity", width=85, mappings=severities),
        Column(
            "kind",
            "Finding",
            names={name: kind.symptom for name, kind in KINDS.items()},
            link=STATUS_PAGE,
            link_title="What it means",
        ),
        *where,
        Column("C", "Lost speed", "percentunit", NEUTRAL, 1, 85),
        Column("holder", "Held by"),
        Column("B", "Since", "dateTimeFromNow", width=120),
    ]
    queries = [Query(f"topk(40, {held})"), Query(since), Query(lost)]
    if by_host:
        queries.append(Query(count))
    if brief:
        columns = [column for column in columns if column.source not in {"C", "holder"}]
        queries = [Query(f"topk(40, {every})"), Query(since)]
    return rows(
        title,
        description,
        queries,
        columns,
        sort_by="Severity",
        empty=NONE_REPORTED,
        span=span,
        height=height,
    )
