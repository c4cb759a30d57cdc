"""The table of firing alerts, for a fleet or for one GPU."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import table

from grafana.frame import CLUSTER
from grafana.panels import NONE_FIRING, SEVERITY_COLORS, Query
from grafana.tables import Column, rows


RUNBOOKS = "https://github.com/flopwatch/flopwatch/blob/main/docs/runbooks"
OURS = 'alertname=~"(GPU|NVLink|PCIe|Probe|Model|Workload|Flopwatch|Host|PrefixCache).+"'
RANKS = {"3": "critical", "2": "warning", "1": "info"}
# A capped rack fires for each of its GPUs; one row per host leaves room for other alerts.
ROW = "by (alertname, cluster, instance)"


def _named(alerts: str) -> str:
    """One series per alert and GPU; an alert on a model has the model's name there."""
    joined = f'label_join({alerts}, "who", ";", "instance", "model")'
    return f'label_replace({joined}, "instance", "$1", "who", ";(.+)")'


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

    `selection` narrows the cluster's alerts; `where` are columns that say where one fires. Among them `gpu` is the
    first GPU of the host for which an alert fires, and the letter B how many there are.
    """
    severities = {rank: (name, SEVERITY_COLORS[name]) for rank, name in RANKS.items()}
    chosen = f"{CLUSTER}, {selection}, {OURS}"
    ranked = _named(
        " or ".join(
            f'{rank} * max by (alertname, cluster, instance, gpu, model) (ALERTS{{alertstate="firing", severity="{name}", {chosen}}})'
            for rank, name in RANKS.items()
        )
    )
    since = _named(
        f'(ALERTS_FOR_STATE{{{chosen}}} and ignoring (alertstate) ALERTS{{alertstate="firing", {chosen}}})'
    )
    return rows(
        title,
        description,
        [
            Query(f"topk {ROW} (1, max by (alertname, cluster, instance, gpu) ({ranked}))"),
            Query(f"count {ROW} (max by (alertname, cluster, instance, gpu) ({ranked}))"),
            Query(f"1000 * min {ROW} ({since})"),
        ],
        [
            Column("A", "Severity", width=85, mappings=severities),
            Column(
                "alertname",
                "Alert",
                link=f"{RUNBOOKS}/${{__value.text}}.md",
                link_title="Open the runbook",
            ),
            *where,
            Column("C", "Since", "dateTimeFromNow", width=120),
        ],
        sort_by="Severity",
        empty=NONE_FIRING,
        span=span,
        height=height,
    )
