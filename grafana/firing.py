"""The table of firing alerts, for a fleet or for one GPU."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import table

from grafana.frame import CLUSTER
from grafana.panels import SEVERITY_COLORS, Column, Query, rows


RUNBOOKS = "https://github.com/flopwatch/flopwatch/blob/main/docs/runbooks"
OURS = 'alertname=~"(GPU|NVLink|PCIe|Probe|Model|Workload|Flopwatch).+"'
RANKS = {"3": "critical", "2": "warning", "1": "info"}


def firing(
    title: str,
    description: str,
    selection: str,
    *,
    where: Sequence[Column] = (),
    span: int,
    height: int,
) -> table.Panel:
    """Firing alerts of this project, worst first; an alert's name leads to its runbook.

    `selection` narrows the cluster's alerts; `where` are columns that say where one fires.
    """
    severities = {rank: (name, SEVERITY_COLORS[name]) for rank, name in RANKS.items()}
    query = " or ".join(
        f'{rank} * max by (alertname, cluster, instance, gpu) (ALERTS{{alertstate="firing", severity="{name}", {CLUSTER}, {selection}, {OURS}}})'
        for rank, name in RANKS.items()
    )
    return rows(
        title,
        description,
        [Query(query)],
        [
            Column("A", "Severity", width=85, mappings=severities),
            Column(
                "alertname",
                "Alert",
                link=f"{RUNBOOKS}/${{__value.text}}.md",
                link_title="Open the runbook",
            ),
            *where,
        ],
        sort_by="Severity",
        span=span,
        height=height,
        no_value="nothing fires",
    )
