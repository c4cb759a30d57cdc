"""Fleet, the tables of problems: firing alerts, the exporters' verdicts, and the slowest GPUs."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.firing import firing
from grafana.frame import FLEET, GPU_LINK, HOST_LINK, NODE, explained
from grafana.panels import Query
from grafana.tables import Column, rows
from grafana.verdicts import CLOCKS, PAST, PEERED, PEERS, verdicts


# Worst first: slower than the peers, or clocks held down. Two per host, so that one capped rack
# does not fill the table; all of them with fewer than four hosts.
HOST = "by (cluster, job, instance)"
LOST = (
    f"gpu:flopwatch_lost_speed:ratio{{{NODE}}} and on (cluster, job, instance, gpu)"
    f' gpu:flopwatch_gpu:info{{{NODE}, name=~"$name"}}'
)
OF_A_HOST = (
    f"scalar(2 + 1000 * (count(instance:flopwatch_gpu_up:count{{{NODE}}}) < bool 4) or vector(2))"
)
WORST = f"topk(20, topk {HOST} ({OF_A_HOST}, {LOST}))"


def _per_gpu(expr: str) -> str:
    """`expr` of the worst GPUs only, with labels that merge into one row a GPU."""
    return f"max by (cluster, instance, gpu) ({expr} and on (cluster, job, instance, gpu) {WORST})"


def problems(dashboard: Dashboard) -> Dashboard:
    """Firing alerts, and what the exporters find on their devices."""
    return dashboard.with_panel(
        explained(
            firing(
                "What is wrong now",
                "Firing flopwatch alerts, worst first, one row per alert and host. The alert's name opens its runbook. `GPU` is the first affected GPU and opens its dashboard; `GPUs` is how many are affected. Empty is good.",
                'instance=~"$instance|"',  # some alerts have no instance
                where=[
                    Column("instance", "Instance", link=HOST_LINK, link_title="Open the host"),
                    Column("cluster", "Cluster"),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                    Column("B", "GPUs", decimals=0, width=60),
                ],
                span=24,
                height=7,
            ),
            FLEET,
        )
    ).with_panel(
        explained(
            verdicts(
                "Verdicts",
                "What each exporter finds on its devices, in the words of its status page, worst first, one row per host and finding: speed lost, who holds the GPU, and since when. The host and the GPU open their dashboards. Empty is good.",
                by_host=True,
                where=[
                    Column("instance", "Instance", link=HOST_LINK, link_title="Open the host"),
                    Column("cluster", "Cluster"),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                    Column("D", "GPUs", decimals=0, width=60),
                ],
                span=24,
                height=8,
            ),
            FLEET,
        )
    )


def worst_gpus(dashboard: Dashboard) -> Dashboard:
    """The GPUs that have lost the most speed, even before an alert fires."""
    columns = [
        Column("cluster", "Cluster", width=180),
        Column("instance", "Instance", width=190),
        Column("gpu", "GPU", width=50, link=GPU_LINK),
        Column("name", "GPU model"),
        Column("H", "Lost speed", "percentunit", decimals=1, width=105),
        Column("A", "Probe vs peers", "percentunit", PEERS, 1, 120),
        Column("B", "Probe vs baseline", "percentunit", PAST, 1, 135),
        Column("C", "Utilization", "percentunit", decimals=1, width=145, bar_maximum=0.6),
        Column("D", "Busy", "percentunit", decimals=0, width=65),
        Column("E", "Clocks lost", "percentunit", CLOCKS, 1, 100),
        Column("F", "Temperature", "celsius", decimals=0, width=110),
        Column("G", "Power", "watt", decimals=0, width=75),
    ]
    return dashboard.with_panel(
        explained(
            rows(
                "Worst GPUs",
                "GPUs that have lost the most speed, compared with the median of their model or to lower clocks: at most two per host and 20 in total (all GPUs if fewer than four hosts are selected). Low probe, good clocks: failing silicon or memory. Lost clocks: heat or power. Low utilization, good probes: traffic or software. The number opens the GPU.",
                [
                    Query(
                        _per_gpu(f"gpu:flopwatch_probe_measure:min_peer_ratio{{{NODE}}} {PEERED}")
                    ),
                    Query(_per_gpu(f"gpu:flopwatch_probe_baseline_ratio:min{{{NODE}}}")),
                    Query(_per_gpu(f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{NODE}}}")),
                    Query(_per_gpu(f"gpu:flopwatch_busy:ratio_rate5m{{{NODE}}}")),
                    Query(_per_gpu(f"gpu:flopwatch_clock_loss:ratio_rate5m{{{NODE}}}")),
                    Query(
                        _per_gpu(f'flopwatch_temperature_celsius{{{NODE}, mig="", sensor="gpu"}}')
                    ),
                    Query(_per_gpu(f"gpu:flopwatch_energy_joules:rate5m{{{NODE}}}")),
                    Query(
                        f"max by (cluster, instance, gpu, name) ({WORST} * on (cluster, job, instance, gpu) group_left (name) gpu:flopwatch_gpu:info{{{NODE}}})"
                    ),
                ],
                columns,
                sort_by="Lost speed",
                height=9,
            ),
            FLEET,
        )
    )
