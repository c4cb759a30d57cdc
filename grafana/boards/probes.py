"""Probes and stragglers: which GPU is slower than its peers or than before, and what probing costs."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from exporter.findings import limit
from grafana.frame import (
    CLUSTER,
    GPU,
    GPU_LINK,
    GPU_OF_LINE,
    NODE,
    PROBES,
    WHOLE_GPU,
    board,
    explained,
)
from grafana.panels import (
    NONE_REPORTED,
    Query,
    Threshold,
    bad_above,
    bars,
    extremes,
    good_above,
    lines,
    number,
)
from grafana.tables import Column, rows
from grafana.verdicts import PAST, PEERED, PEERS


NAME = 'name=~"$name"'
JUDGED = 'kernel=~"gemm_.+|copy_device"'
WHO = "{{instance}} GPU {{gpu}}"
# No verdict by itself: a straggler is also 5 % below its peers.
LOW_Z = [Threshold(None, "orange"), Threshold(-3.5, "text")]
STEPS = 200  # for lines for which Prometheus reads every GPU at each step


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "Wrong results",
                "Probe results that were not bit for bit correct, since the exporters started. If this is not 0, `Wrong results by GPU` below shows which GPU to take out of service; see GPUSilentDataCorruption.",
                [
                    Query(
                        f"sum(gpu:flopwatch_probe_mismatches:sum{{{GPU}}}) or vector(0)",
                        "wrong",
                    )
                ],
                unit="none",
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "GPUs with a fresh probe",
                "GPUs that answer and have a probe measurement from the last 15 minutes. If some are missing, `Skipped runs` shows why.",
                [
                    Query(
                        f"count(time() - gpu:flopwatch_probe_last_success_timestamp_seconds:max{{{GPU}}} < 900 and on (cluster, job, instance, gpu) flopwatch_gpu_up{{{WHOLE_GPU}}} == 1) or vector(0)",
                        "fresh",
                    ),
                    Query(f"count(flopwatch_gpu_up{{{WHOLE_GPU}}} == 1)", "GPUs"),
                ],
                unit="none",
                spark=False,
                span=5,
            )
        )
        .with_panel(
            number(
                "Stragglers",
                "GPUs with a robust z of -3.5 or less that are also at least 5 % below their peers. The table below lists them; a GPU's number opens it. GPUSlowerThanPeers fires after 15 minutes.",
                [
                    Query(
                        f"count(gpu:flopwatch_probe_measure:min_robust_z{{{GPU}, {NAME}}} <= -3.5 and gpu:flopwatch_probe_measure:min_peer_ratio < 0.95) or vector(0)",
                        "stragglers",
                    )
                ],
                unit="none",
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "Slower than baseline",
                "GPUs with a kernel below 90 % of their own baseline. Many at once: new software, or hot inlet air. Only one: that GPU.",
                [
                    Query(
                        f"count(gpu:flopwatch_probe_baseline_ratio:min{{{GPU}}} < {limit('baselineWarning'):g}) or vector(0)",
                        "slower",
                    )
                ],
                unit="none",
                thresholds=bad_above(1, 1),
                span=4,
            )
        )
        .with_panel(
            number(
                "Cost of probing",
                "Share of the GPUs' time that probes take. The default budget is 20 ms per minute, 0.033 %. If it is more, check `probes.budget` and `probes.interval`.",
                [
                    Query(
                        f"sum(instance:flopwatch_probe_gpu_seconds:rate5m{{{NODE}}}) / sum(instance:flopwatch_gpu_up:count{{{NODE}}})",
                        "of GPU time",
                    )
                ],
                unit="percentunit",
                decimals=3,
                thresholds=bad_above(0.001, 0.01),
                span=7,
            )
        )
    )


def _table(dashboard: Dashboard) -> Dashboard:
    worst = f"bottomk(20, gpu:flopwatch_probe_measure:min_robust_z{{{GPU}, {NAME}}})"

    last = f"gpu:flopwatch_probe_last_success_timestamp_seconds:max{{{GPU}}}"
    fresh = f"and on (cluster, job, instance, gpu) time() - {last} < {limit('probeAgeSeconds'):g}"

    def of_worst(expr: str) -> str:
        return (
            f"max by (cluster, instance, gpu) ({expr} and on (cluster, job, instance, gpu) {worst})"
        )

    def of_fresh(expr: str) -> str:
        """A stale result has no value, so it has no colour."""
        return of_worst(f"({expr}) {fresh}")

    return dashboard.with_panel(
        explained(
            rows(
                "Worst by robust z",
                "z is the distance to the peers' median in robust standard deviations; read it together with the ratios. Slow GEMMs, good copies: silicon. Slow copies: memory. Both slow and a low probe clock: heat or power. Results older than six hours are left out; `Age` still shows how old they are.",
                [
                    Query(
                        of_worst(
                            f"gpu:flopwatch_probe_measure:min_robust_z{{{GPU}, {NAME}}} {PEERED}"
                        )
                    ),
                    Query(
                        of_fresh(
                            f'gpu_unit:flopwatch_probe_measure:peer_ratio{{{GPU}, unit="compute"}} {PEERED}'
                        )
                    ),
                    Query(
                        of_fresh(
                            f'gpu_unit:flopwatch_probe_measure:peer_ratio{{{GPU}, unit="memory"}} {PEERED}'
                        )
                    ),
                    Query(of_fresh(f"gpu:flopwatch_probe_baseline_ratio:min{{{GPU}}}")),
                    Query(
                        of_fresh(
                            f"gpu:flopwatch_probe_baseline_ratio:avg1h{{{GPU}}} / (gpu:flopwatch_probe_baseline_ratio:avg1h{{{GPU}}} offset 7d > 0) - 1"
                        )
                    ),
                    Query(
                        of_fresh(
                            f"flopwatch_probe_sm_clock_hertz{{{WHOLE_GPU}}} / on (cluster, job, instance, gpu) flopwatch_sm_clock_max_hertz{{{WHOLE_GPU}}}"
                        )
                    ),
                    Query(of_worst(f"time() - {last}")),
                    Query(f"max by (cluster, instance, gpu, name) ({worst})"),
                ],
                [
                    Column("cluster", "Cluster", width=190),
                    Column("instance", "Instance", width=180),
                    Column("gpu", "GPU", width=60, link=GPU_LINK),
                    Column("name", "GPU model"),
                    Column("A", "Worst z", thresholds=LOW_Z, decimals=1, width=90),
                    Column("B", "GEMM vs peers", "percentunit", PEERS, 1, 130),
                    Column("C", "Memory vs peers", "percentunit", PEERS, 1, 140),
                    Column("D", "Probe vs baseline", "percentunit", PAST, 1, 140),
                    Column("E", "Drift per week", "percentunit", good_above(-0.05, -0.02), 1, 130),
                    Column("F", "Clock during probe", "percentunit", decimals=0, width=150),
                    Column("G", "Age", "s", decimals=0, width=80),
                ],
                sort_by="Worst z",
                descending=False,
                height=9,
            ),
            PROBES,
        )
    )


def _peers(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Compared with peers and with the past"))
        .with_panel(
            explained(
                lines(
                    "Lowest robust z",
                    "Five lowest GPUs. A line that leaves the others and stays away is a straggler; one that dips and returns ran beside other work. Click a line to open the GPU.",
                    [
                        Query(
                            extremes(
                                "bottomk",
                                5,
                                f"(gpu:flopwatch_probe_measure:min_robust_z{{{GPU}, {NAME}}}@@ {PEERED})",
                            ),
                            WHO,
                        )
                    ],
                    unit="none",
                    minimum=None,
                    soft_minimum=-5,
                    soft_maximum=1,
                    needs="probes",
                    thresholds=[Threshold(None, "red"), Threshold(-3.5, "transparent")],
                    fill=0,
                    span=8,
                    points=STEPS,
                    link=GPU_OF_LINE,
                ),
                PROBES,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Lowest vs baseline",
                    "Slowest kernel over the GPU's own baseline, five lowest GPUs. Steps come from software, slopes from aging or dust, daily waves from heat.",
                    [
                        Query(
                            extremes(
                                "bottomk", 5, f"gpu:flopwatch_probe_baseline_ratio:min{{{GPU}}}@@"
                            ),
                            WHO,
                        )
                    ],
                    unit="percentunit",
                    minimum=None,
                    soft_maximum=1.02,
                    needs="probes",
                    thresholds=[Threshold(None, "red"), Threshold(0.9, "transparent")],
                    fill=0,
                    span=8,
                    points=STEPS,
                    link=GPU_OF_LINE,
                ),
                PROBES,
            )
        )
        .with_panel(
            lines(
                "Baseline drift",
                "Slowest probe of the last hour against the same hour a week ago, five lowest GPUs. If a whole GPU model drifts after a driver update, the update is the cause: compare versions before you call the vendor.",
                [
                    Query(
                        extremes(
                            "bottomk",
                            5,
                            f"(gpu:flopwatch_probe_baseline_ratio:avg1h{{{GPU}}}@@ / (gpu:flopwatch_probe_baseline_ratio:avg1h{{{GPU}}}@@ offset 7d > 0) - 1)",
                        ),
                        WHO,
                    )
                ],
                unit="percentunit",
                minimum=None,
                fill=0,
                span=8,
                needs="a week of history",
                points=STEPS,
                link=GPU_OF_LINE,
            )
        )
        .with_panel(
            explained(
                bars(
                    "Spread among peers",
                    "Robust standard deviation over the median, by GPU model and unit. 1-3 % is normal for silicon. More points to a mixed group, such as two cooling systems or two driver versions.",
                    [
                        Query(
                            f"sort_desc(max by (name, unit) (1.4826 * name_unit:flopwatch_probe_measure:mad_peer_ratio{{{CLUSTER}, {NAME}}} > 0))",
                            "{{unit}} {{name}}",
                        )
                    ],
                    unit="percentunit",
                    span=6,
                    labels=["unit", "name"],
                    long_names=True,
                    maximum=0.1,
                    needs="two probed GPUs",
                ),
                PROBES,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Median probe efficiency",
                    "Measured over theoretical FLOP per clock, by GPU model and precision. A step of a whole model is software: the library or the driver. A processor in a virtual machine may exceed 100 %.",
                    [
                        Query(
                            f'max by (name, precision) (name_kernel:flopwatch_probe_measure:median{{{CLUSTER}, {NAME}, precision!=""}})',
                            "{{name}} {{precision}}",
                        )
                    ],
                    unit="percentunit",
                    soft_maximum=1,
                    fill=0,
                    legend_side=True,
                    span=11,
                    needs="probes",
                ),
                PROBES,
            )
        )
        .with_panel(
            explained(
                rows(
                    "Wrong results by GPU",
                    "GPUs that computed wrong results, and how many since the exporter started. Take any GPU in this table out of service: the answers it serves are wrong too. See GPUSilentDataCorruption.",
                    [
                        Query(
                            f"topk(20, max by (cluster, instance, gpu) (gpu:flopwatch_probe_mismatches:sum{{{GPU}}}))"
                        )
                    ],
                    [
                        Column("cluster", "Cluster"),
                        Column("instance", "Instance"),
                        Column("gpu", "GPU", width=50, link=GPU_LINK),
                        Column(
                            "A", "Wrong", thresholds=[Threshold(None, "red")], decimals=0, width=70
                        ),
                    ],
                    sort_by="Wrong",
                    empty=NONE_REPORTED,
                    span=7,
                ),
                PROBES,
            )
        )
    )


def _cost(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Probe runs and their cost"))
        .with_panel(
            lines(
                "Runs without a measurement",
                "Runs per minute, by outcome. `contended` and `throttled` do not count against the GPU. `mismatch` is corruption. The others are failures of the probe itself.",
                [
                    Query(
                        f"60 * sum by (outcome) (instance_outcome:flopwatch_probe_runs:rate5m{{{NODE}}})",
                        "{{outcome}}",
                    )
                ],
                unit="none",
                stacked=True,
                colors={
                    "contended": "blue",
                    "throttled": "orange",
                    "mismatch": "red",
                    "error": "dark-red",
                    "timeout": "purple",
                    "out_of_memory": "yellow",
                },
                no_value=NONE_REPORTED,
                span=6,
            )
        )
        .with_panel(
            lines(
                "Skipped runs",
                "Runs per minute, by the reason that stopped them. `paused` for a long time: someone forgot to resume. `free_memory`: the engine has taken the memory. `new_process` ends by itself.",
                [
                    Query(
                        f"60 * sum by (reason) (instance_reason:flopwatch_probe_skips:rate5m{{{NODE}}})",
                        "{{reason}}",
                    )
                ],
                unit="none",
                stacked=True,
                span=6,
                no_value=NONE_REPORTED,
            )
        )
        .with_panel(
            lines(
                "Other work during probes",
                "Share of the GPU that other processes used while the probe ran (upper bound), five highest GPUs. If it stays high, the GPU is never free enough to be measured, and runs end as `contended`.",
                [
                    Query(
                        extremes(
                            "topk",
                            5,
                            f'flopwatch_probe_tenant_busy_ratio{{{WHOLE_GPU}, bound="high"}}@@',
                        ),
                        WHO,
                    )
                ],
                unit="percentunit",
                soft_maximum=0.1,
                fill=0,
                span=6,
                needs="probes",
                points=STEPS,
                link=GPU_OF_LINE,
            )
        )
        .with_panel(
            lines(
                "Cost by cluster",
                "Share of GPU time that probes take, four highest clusters. Dashed: the default budget. If a cluster exceeds its configured budget, that is a bug: raise `probes.interval` and report it.",
                [
                    Query(
                        extremes(
                            "topk",
                            4,
                            f"(sum by (cluster) (instance:flopwatch_probe_gpu_seconds:rate5m{{{NODE}}}@@) / sum by (cluster) (instance:flopwatch_gpu_up:count{{{NODE}}}@@))",
                            on="cluster",
                        ),
                        "cost {{cluster}}",
                    ),
                    Query("vector(0.02 / 60)", "default budget"),
                ],
                unit="percentunit",
                dashed=["default budget"],
                fill=0,
                span=6,
            )
        )
    )


def dashboard() -> Dashboard:
    """The Probes and stragglers dashboard."""
    made = board(
        "flopwatch-probes",
        "flopwatch / Probes and stragglers",
        "What the GPUs can do: probe results against peers and baselines, and what probing costs.",
        narrow=("gpu", "name"),
    )
    return _cost(_peers(_table(_now(made))))
