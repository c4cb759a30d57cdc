"""Cost and tenants: who used the fleet, how much of it was useful, what was paid for but unused."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import NODE, board, explained
from grafana.frame import TENANTS as SECTION
from grafana.panels import BLUE, NEUTRAL, NONE_REPORTED, Query, bad_above, bars, lines, number
from grafana.tables import Column, rows


TENANTS = f'{NODE}, namespace=~"$namespace"'
HOLDER = "cluster, job, instance, holder, namespace, pod, hpc_job, workload"
HOLDERS = "exporters that know who holds their GPUs"
PRICES = "prices in the exporters' configuration"
HELD = f"holder:flopwatch_holder_gpu_seconds:rate5m{{{TENANTS}}}"
IDLE = f'holder_state:flopwatch_holder_gpu_seconds:rate5m{{{TENANTS}, state="idle"}}'
COST = f"holder:flopwatch_cost:rate5m{{{TENANTS}}}"
IDLE_COST = f"holder:flopwatch_idle_cost:rate5m{{{TENANTS}}}"
DAY = 86400
EXECUTED = f"workload:flopwatch_executed_flop:rate5m{{{NODE}}}"
ALL_USEFUL = f"workload:flopwatch_model_flop:rate5m{{{NODE}}}"
# Of the engines whose executed work is counted, for the rest.
COUNTED = f"and on (cluster, job, instance, workload) {EXECUTED}"
USEFUL = f"{ALL_USEFUL} {COUNTED}"
LOST = f'workload_cause:flopwatch_wasted_flop:rate5m{{{NODE}, cause="lost_cache_hits"}}'
IN_VAIN = (
    f'workload_cause:flopwatch_wasted_flop:rate5m{{{NODE}, cause!="lost_cache_hits"}} {COUNTED}'
)
WASTE_COLORS = {
    "useful": "#56A64B",
    "rejected_drafts": "#FF780A",
    "preemption": "#E02F44",
    "lost_cache_hits": "#A352CC",
    "the rest": "#B7B7B7",
}


def _now(dashboard: Dashboard) -> Dashboard:
    """What was paid for but unused."""
    return (
        dashboard.with_panel(
            number(
                "Paid for but not used",
                "Cost per day of idle GPU time, whether the GPU is held or not. Without prices, see `Idle GPUs`.",
                [Query(f"{DAY} * sum by (currency) ({IDLE_COST})", "{{currency}} per day")],
                unit="none",
                decimals=0,
                thresholds=[*NEUTRAL],
                needs=PRICES,
                span=6,
            )
        )
        .with_panel(
            number(
                "Idle GPUs",
                "Idle time in whole GPUs: of GPUs that a pod or job holds, and of GPUs that nobody holds. 2.0 means two GPUs that do nothing.",
                [
                    Query(f'sum({IDLE[:-1]}, holder!="none"}})', "held"),
                    Query(f'sum({IDLE[:-1]}, holder="none"}})', "not held"),
                ],
                unit="none",
                decimals=1,
                needs=HOLDERS,
                span=6,
            )
        )
        .with_panel(
            number(
                "Cost",
                "Cost per day of all GPUs that have a price, used or not.",
                [Query(f"{DAY} * sum by (currency) ({COST})", "{{currency}} per day")],
                unit="none",
                decimals=0,
                thresholds=BLUE,
                needs=PRICES,
                span=6,
            )
        )
        .with_panel(
            number(
                "Power",
                "Power of all GPUs, from their energy counters.",
                [Query(f"sum(holder:flopwatch_holder_energy_joules:rate5m{{{TENANTS}}})", "power")],
                unit="watt",
                thresholds=BLUE,
                needs=HOLDERS,
                span=6,
            )
        )
    )


def _who(dashboard: Dashboard) -> Dashboard:
    now = f"and sum by ({HOLDER}) ({HELD}) > 0.005"  # without those that have left
    return dashboard.with_panel(
        explained(
            rows(
                "Who uses the fleet",
                "One row per holder: a pod, a batch job, an engine, or nobody. `GPUs held` is the mean number of GPUs; `Idle` is the share of that time in which they did nothing.",
                [
                    Query(f"sum by ({HOLDER}) ({HELD}) > 0.005"),
                    Query(f"sum by ({HOLDER}) ({IDLE}) / (sum by ({HOLDER}) ({HELD}) > 0.005)"),
                    Query(
                        f"sum by ({HOLDER}) (holder:flopwatch_holder_flop:rate5m{{{TENANTS}}}) {now}"
                    ),
                    Query(
                        f"sum by ({HOLDER}) (holder:flopwatch_holder_energy_joules:rate5m{{{TENANTS}}}) {now}"
                    ),
                    Query(f"{DAY} * sum by ({HOLDER}) ({COST}) {now}"),
                    Query(f"{DAY} * sum by ({HOLDER}) ({IDLE_COST}) {now}"),
                ],
                [
                    Column("cluster", "Cluster"),
                    Column("instance", "Instance"),
                    Column("namespace", "Namespace"),
                    Column("pod", "Pod"),
                    Column("hpc_job", "Job"),
                    Column("workload", "Workload"),
                    Column("A", "GPUs held", decimals=2, width=100),
                    Column(
                        "B",
                        "Idle",
                        "percentunit",
                        decimals=0,
                        width=140,
                        bar_maximum=1,
                        thresholds=bad_above(0.5, 0.8),
                    ),
                    Column("C", "Executed", "flops", decimals=1, width=120),
                    Column("D", "Power", "watt", decimals=1, width=90),
                    Column("E", "Cost per day", decimals=0, width=110),
                    Column("F", "Idle cost per day", decimals=0, width=140),
                ],
                sort_by="GPUs held",
                height=10,
                needs=HOLDERS,
            ),
            SECTION,
        )
    )


def _by_namespace(held: str) -> str:
    """The sum of what somebody holds. Jobs and engines outside Kubernetes have no namespace."""
    inner = f'sum by (namespace) ({held[:-1]}, holder!="none"}})'
    return f'label_replace({inner}, "namespace", "no namespace", "namespace", "")'


def _waste(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Waste"))
        .with_panel(
            bars(
                "Holders with the most idle GPUs",
                "Idle time in whole GPUs, six highest holders. If it is close to the number of GPUs that the holder has, it could give them back.",
                [
                    Query(
                        f'sort_desc(topk(6, sum by (cluster, namespace, pod, hpc_job, workload) ({IDLE[:-1]}, holder!="none"}}) > 0.005))',
                        "{{cluster}} {{namespace}} {{pod}}{{hpc_job}}{{workload}}",
                    )
                ],
                unit="none",
                labels=("cluster", "namespace", "pod", "hpc_job", "workload"),
                long_names=True,
                span=12,
                no_value=NONE_REPORTED,
            )
        )
        .with_panel(
            lines(
                "Useful and wasted",
                "FLOP/s of the engines, stacked: useful, wasted by a cause that the engines count, and the rest of what their GPUs executed. The rest is mostly padding; it is unknown without activity counters. If it is large, or missing because the tokens need more than was executed, the configured precision or product is wrong.",
                [
                    Query(f"sum({ALL_USEFUL}) - (sum({LOST}) or vector(0))", "useful"),
                    Query(
                        f"sum by (cause) (workload_cause:flopwatch_wasted_flop:rate5m{{{NODE}}})",
                        "{{cause}}",
                    ),
                    Query(
                        f"clamp_min(sum({EXECUTED}) - sum({USEFUL}) - (sum({IN_VAIN}) or vector(0)), 0)",
                        "the rest",
                    ),
                ],
                unit="flops",
                stacked=True,
                fill=40,
                colors=WASTE_COLORS,
                needs="an inference engine",
            )
        )
        .with_panel(
            lines(
                "Idle GPUs by namespace",
                "Idle time in whole GPUs, stacked. GPUs that nobody holds are shown as `nobody`.",
                [
                    Query(_by_namespace(IDLE), "{{namespace}}"),
                    Query(f'sum({IDLE[:-1]}, holder="none"}})', "nobody"),
                ],
                unit="none",
                stacked=True,
                fill=40,
                needs=HOLDERS,
            )
        )
        .with_panel(
            lines(
                "GPUs held by namespace",
                "Mean number of GPUs held, stacked to the size of the fleet.",
                [
                    Query(_by_namespace(HELD), "{{namespace}}"),
                    Query(f'sum({HELD[:-1]}, holder="none"}})', "nobody"),
                ],
                unit="none",
                stacked=True,
                fill=40,
                needs=HOLDERS,
            )
        )
    )


def _tokens(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Cost of tokens"))
        .with_panel(
            lines(
                "Cost of a million tokens",
                "Cost of a model's GPUs over its computed tokens, prefill and decode, without cache hits. It rises when traffic falls but the number of GPUs does not.",
                [
                    Query(
                        f"1e6 * sum by (model, currency) (workload_model:flopwatch_cost:rate5m{{{NODE}}}) / on (model) group_left () (sum by (model) (workload:flopwatch_model_tokens:rate5m{{{NODE}}}) > 0)",
                        "{{model}} ({{currency}})",
                    )
                ],
                unit="none",
                needs=PRICES,
            )
        )
        .with_panel(
            lines(
                "Cost by phase",
                "Cost of a million computed prompt tokens, and of a million generated tokens, by model. This is an estimate: the cost is split by the minimum time that each phase needs (roofline).",
                [
                    Query(
                        f"1e6 * sum by (model, currency, phase) (workload_model_phase:flopwatch_cost:rate5m{{{NODE}}}) / on (model, phase) group_left () (sum by (model, phase) (workload_phase:flopwatch_model_tokens:rate5m{{{NODE}}}) > 0)",
                        "{{model}} {{phase}} ({{currency}})",
                    )
                ],
                unit="none",
                needs=PRICES,
            )
        )
        .with_panel(
            lines(
                "Energy per token",
                "Energy of a model's GPUs over its computed tokens, prefill and decode, without cache hits.",
                [
                    Query(
                        f"sum by (model) (workload_model:flopwatch_energy_joules:rate5m{{{NODE}}}) / (sum by (model) (workload:flopwatch_model_tokens:rate5m{{{NODE}}}) > 0)",
                        "{{model}}",
                    )
                ],
                unit="joule",
                span=24,
                needs="an inference engine",
            )
        )
    )


def dashboard() -> Dashboard:
    """The dashboard "Cost and tenants"."""
    made = board(
        "flopwatch-tenants",
        "flopwatch / Cost and tenants",
        "Who used the fleet, what was idle, and what it costs. Shared GPUs are split by the SM time that the driver reports for each process.",
        narrow=("namespace",),
    )
    return _tokens(_waste(_who(_now(made))))
