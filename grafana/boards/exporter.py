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
                "Of the targets that Prometheus knows. A missing one: host down, process dead or never installed; the table names it.",
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
                    "Sources of hosts with a GPU that has had no value for five minutes. `Age of the sources' last value` below says which, its exporter's log why; the runbook is FlopwatchSourceStale.",
                    [
                        Query(
                            f"count(time() - instance_source:flopwatch_source_last_success_timestamp_seconds:min{{{NODE}}} > 300) or vector(0)",
                            "stale",
                        )
                    ],
                    unit="none",
                    thresholds=bad_above(1, 1),
                    span=4,
                ),
                TRUST,
            )
        )
        .with_panel(
            number(
                "Hung GPUs",
                "GPUs whose driver call does not return; `What is wrong now` on the Fleet dashboard names them. The engine's next call will hang too: drain the node and reboot it.",
                [Query(f"sum(flopwatch_source_hung{{{NODE}}}) or vector(0)", "hung")],
                unit="none",
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "Series",
                "Of all exporters: what they cost your Prometheus. A jump is a per-process option or many MIG instances.",
                [Query(f"sum(flopwatch_series{{{NODE}}})", "series")],
                unit="short",
                thresholds=BLUE,
                span=4,
            )
        )
        .with_panel(
            number(
                "Dropped series",
                "Left out in the last hour because of `limits.series`. Not 0: raise the limit or find out what multiplies.",
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
                "Refused config",
                "Exporters that run on an older configuration because the last one was refused. Their log names file and line.",
                [
                    Query(
                        f"count(flopwatch_config_last_reload_successful{{{NODE}}} == 0) or vector(0)",
                        "refused",
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
                "Cores that each exporter uses, five highest. Over a tenth of a core: a slow driver or a too short interval.",
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
                "Resident memory of each exporter, five highest. It should be flat; a slope is a leak, tell us.",
                [Query(highest(f"process_resident_memory_bytes{{{NODE}}}@@"), "{{instance}}")],
                unit="bytes",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Scrape duration",
                "As Prometheus measured it, five slowest. Scrapes are served from memory: a slow one is the network or a starved host.",
                [Query(highest(f"scrape_duration_seconds{{{NODE}}}@@"), "{{instance}}")],
                unit="s",
                span=6,
            )
        )
        .with_panel(
            lines(
                "Probe workers",
                "Device memory that the worker on a host's GPU holds, three highest, and at the right its restarts in an hour. Memory must not grow: the engine beside it counts on it. Restarts: see ProbeWorkerRestarting.",
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
                    "Share of the time in which a GPU's thread waits for the driver, mean of the host's GPUs, five slowest hosts. One that climbs is a driver that becomes slow, often before it hangs; near 100 % ticks are missed.",
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
                "A second and host, five highest. Counters stay right, dips may go unseen. The cause is a slow driver or no processor time.",
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
                    "Age of the sources' last value",
                    "Seconds since each source last gave a value, five oldest hosts. A line that climbs is a source that stopped: profiler, right, or dcgm-exporter.",
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
                "An hour. `not_supported` is asked once and forgotten; anything steady is worth the exporter's log.",
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
                "Version, series and state of each exporter. Mixed versions make odd comparisons: finish the rollout. `down` first: see FlopwatchDown.",
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
        "The exporter's own health: reachability, freshness, cost, sampling, configuration.",
    )
    return _sampling(_cost(_now(made)))
