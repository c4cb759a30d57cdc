"""Exporter: is the monitoring itself healthy, and what does it cost?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import (
    NODE,
    TRUST,
    board,
    explained,
)
from grafana.panels import BLUE, NONE_REPORTED, Query, bad_above, extremes, lines, number
from grafana.tables import Column, rows


RATE = "$__rate_interval"


def highest(expr: str) -> str:
    """The history of the five hosts with the highest value now."""
    return extremes("topk", 5, expr, on="cluster, job, instance")


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "Exporters answering",
                "Exporters that Prometheus can scrape, and all targets of the job. If one is missing, the host is down, the process has died, or it was never installed. `Hosts` below shows which.",
                [
                    Query(f"sum(up{{{NODE}}})", "up"),
                    Query(f"count(up{{{NODE}}})", "targets"),
                ],
                unit="none",
                spark=False,
                span=5,
            )
        )
        .with_panel(
            explained(
                number(
                    "Stale sources",
                    "Sources, counted once per host, that have given no value for five minutes for a GPU that answers. `Age of the last value` below shows which; the exporter's log says why. Runbook: FlopwatchSourceStale.",
                    [
                        Query(
                            f"count(count by (cluster, job, instance, source) ((time() - flopwatch_source_last_success_timestamp_seconds{{{NODE}}} > 300)"
                            f" and on (cluster, job, instance, gpu) gpu:flopwatch_gpu_up:recent{{{NODE}}} == 1)) or vector(0)",
                            "stale",
                        )
                    ],
                    unit="none",
                    thresholds=bad_above(1, 1),
                    spark=False,  # it reads each source of each GPU
                    named=True,
                    span=4,
                ),
                TRUST,
            )
        )
        .with_panel(
            number(
                "Hung GPUs",
                "GPUs with a driver call that does not return. `What is wrong now` on the Fleet dashboard lists them. The engine's next call will hang too: drain the host and reboot it.",
                [Query(f"sum(flopwatch_source_hung{{{NODE}}}) or vector(0)", "hung")],
                unit="none",
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "Series",
                "Series of all exporters: what they cost Prometheus. A jump comes from a per-process option or from many MIG instances.",
                [Query(f"sum(flopwatch_series{{{NODE}}})", "series")],
                unit="short",
                thresholds=BLUE,
                span=4,
            )
        )
        .with_panel(
            number(
                "Dropped series",
                "Series left out in the last hour because of `limits.series`. If this is not 0, raise the limit, or find out which label multiplies the series.",
                [
                    Query(
                        f"sum(increase(flopwatch_series_dropped_total{{{NODE}}}[1h])) or vector(0)",
                        "dropped",
                    )
                ],
                unit="short",
                decimals=0,
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "Failed reloads",
                "Exporters that still run with their previous configuration because the last reload failed. Their log names the file and line.",
                [
                    Query(
                        f"count(flopwatch_config_last_reload_successful{{{NODE}}} == 0) or vector(0)",
                        "failed",
                    )
                ],
                unit="none",
                thresholds=bad_above(1, 1),
                span=3,
            )
        )
    )


def _cost(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Cost"))
        .with_panel(
            lines(
                "Processor time",
                "Processor cores that an exporter uses, five highest. Over a tenth of a core: a slow driver, or a sampling interval that is too short.",
                [
                    Query(
                        highest(f"rate(process_cpu_seconds_total{{{NODE}}}[{RATE}]@@)"),
                        "{{instance}}",
                    )
                ],
                unit="suffix:cores",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Memory",
                "Resident memory of an exporter, five highest. It should be flat. Please report steady growth: it is a leak.",
                [Query(highest(f"process_resident_memory_bytes{{{NODE}}}@@"), "{{instance}}")],
                unit="bytes",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Scrape duration",
                "As measured by Prometheus, five slowest. Scrapes are served from memory, so a slow one points to the network or to a host without free processor time.",
                [Query(highest(f"scrape_duration_seconds{{{NODE}}}@@"), "{{instance}}")],
                unit="s",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Probe workers",
                "Device memory that a probe worker holds, three highest hosts, and its restarts per hour (right axis). Memory must not grow, because the engine on the same GPU needs it. For restarts, see ProbeWorkerRestarting.",
                [
                    Query(
                        extremes(
                            "topk",
                            3,
                            f"max by (cluster, job, instance) (flopwatch_probe_worker_memory_bytes{{{NODE}}}@@)",
                            on="cluster, job, instance",
                        ),
                        "{{instance}}",
                    ),
                    Query(
                        f"topk(3, sum by (cluster, job, instance) (increase(flopwatch_probe_worker_restarts_total{{{NODE}}}[1h])) > 0)",
                        "restarts {{instance}}",
                    ),
                ],
                unit="bytes",
                right={"restarts .*": "none"},
                fill=0,
                span=6,
                needs="probes",
            )
        )
    )


def _sampling(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Sampling"))
        .with_panel(
            explained(
                lines(
                    "Time spent reading",
                    "Share of time in which a GPU's sampling thread waits for the driver, mean over the host's GPUs, five slowest hosts. A line that climbs is a driver that becomes slow, often before it hangs. Near 100 %, ticks are missed.",
                    [
                        Query(
                            highest(f"instance:flopwatch_tick_duration_seconds:rate5m{{{NODE}}}@@"),
                            "{{instance}}",
                        )
                    ],
                    unit="percentunit",
                    fill=0,
                    span=8,
                ),
                TRUST,
            )
        )
        .with_panel(
            lines(
                "Missed ticks",
                "Missed ticks per second, five highest hosts. Counters stay correct, but short dips may not be seen. Caused by a slow driver, or by too little processor time.",
                [
                    Query(
                        highest(
                            f"sum by (cluster, job, instance) (rate(flopwatch_ticks_missed_total{{{NODE}}}[{RATE}]@@))"
                        ),
                        "{{instance}}",
                    )
                ],
                unit="none",
                soft_maximum=1,
                span=8,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Age of the last value",
                    "Time since a source last gave a value for all GPUs of a host, five oldest. A line that climbs is a source that has stopped: a GPU is lost, a profiler holds the counters, a permission is missing, or dcgm-exporter is down.",
                    [
                        Query(
                            extremes(
                                "topk",
                                5,
                                f"(time() - instance_source:flopwatch_source_last_success_timestamp_seconds:min{{{NODE}}}@@)",
                                on="cluster, job, instance, source",
                            ),
                            "{{source}} {{instance}}",
                        )
                    ],
                    unit="s",
                    span=8,
                ),
                TRUST,
            )
        )
        .with_panel(
            lines(
                "Source errors by reason",
                "Errors per hour. `not_supported` is normal once per start. If another reason persists, see the exporter's log.",
                [
                    Query(
                        f"sum by (source, reason) (increase(flopwatch_source_errors_total{{{NODE}}}[1h]))",
                        "{{source}} {{reason}}",
                    )
                ],
                unit="none",
                soft_maximum=1,
                span=10,
                no_value=NONE_REPORTED,
            )
        )
        .with_panel(
            rows(
                "Hosts",
                "State, version and series of each exporter, those that are down first (see FlopwatchDown). Different versions may not be comparable: finish the rollout.",
                [
                    Query(f"max by (cluster, instance) (up{{{NODE}}})"),
                    Query(f"max by (cluster, instance, version) (flopwatch_build_info{{{NODE}}})"),
                    Query(f"max by (cluster, instance) (flopwatch_series{{{NODE}}})"),
                    Query(f"sum by (cluster, instance) (flopwatch_gpu_up{{{NODE}}})"),
                    Query(
                        f"max by (cluster, instance) (time() - process_start_time_seconds{{{NODE}}})"
                    ),
                ],
                [
                    Column("cluster", "Cluster"),
                    Column("instance", "Instance"),
                    Column(
                        "A",
                        "State",
                        mappings={"0": ("down", "red"), "1": ("up", "green")},
                        width=70,
                    ),
                    Column("version", "Version", width=90),
                    Column("D", "GPUs up", decimals=0, width=90),
                    Column("C", "Series", decimals=0, width=90),
                    Column("E", "Running for", "s", width=110),
                ],
                sort_by="State",
                descending=False,
                span=14,
            )
        )
    )


def dashboard() -> Dashboard:
    """The Exporter dashboard."""
    made = board(
        "flopwatch-exporter",
        "flopwatch / Exporter",
        "Health of the exporters: reachability, freshness, cost, sampling, configuration.",
    )
    return _sampling(_cost(_now(made)))
