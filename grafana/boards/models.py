"""Models: what is served, at what share of the peak, and what the hardware does."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import (
    CHOICES,
    HOST_LINK,
    MODELS,
    NODE,
    WORDS,
    board,
    explained,
)
from grafana.panels import (
    BLUE,
    NO_DATA,
    Query,
    bars,
    extremes,
    good_above,
    lines,
    number,
    states_over_time,
)
from grafana.tables import Column, rows


WORKLOAD = "cluster, job, instance, workload"
TOKENS_A_SECOND = "si:tok/s"
MODEL = f'{NODE}, model=~"$model"'
USEFUL = f"sum by (model) (workload:flopwatch_model_flop:rate5m{{{MODEL}}})"
PEAK = f"sum by (model) (workload:flopwatch_model_peak_flops:headline{{{MODEL}}})"
EXECUTED = f"sum by (model) (workload:flopwatch_model_tensor_flop:rate5m{{{MODEL}}})"
BYTES = f"sum by (model) (workload:flopwatch_model_dram_bytes:rate5m{{{MODEL}}})"
TOKENS = f"workload_phase:flopwatch_model_tokens:rate5m{{{MODEL}"
# Engines report no model while they are down, so these use the instance alone.
REPLICA = "by (cluster, instance, workload)"
ENGINE = "an inference engine"


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "Workloads answering",
                "Engines whose metrics can be read, and all that are configured. If some are missing, see `Engines` below and the WorkloadDown runbook.",
                [
                    Query(f"sum(flopwatch_workload_up{{{NODE}}})", "up"),
                    Query(f"count(flopwatch_workload_up{{{NODE}}})", "configured"),
                ],
                needs="an inference engine",
                unit="none",
                spark=False,
                span=6,
            )
        )
        .with_panel(
            number(
                "Tokens",
                "Computed tokens per second, prefill and decode, without prefix-cache hits. Falling while `Demand` below is steady: the engine became slow, see ModelThroughputFell. Falling with demand: less traffic.",
                [
                    Query(f'sum({TOKENS}, phase="prefill"}})', "prefill"),
                    Query(f'sum({TOKENS}, phase="decode"}})', "decode"),
                ],
                needs="an inference engine",
                unit=TOKENS_A_SECOND,
                thresholds=BLUE,
                span=6,
            )
        )
        .with_panel(
            explained(
                number(
                    "MFU",
                    "Model FLOPS utilization: useful FLOP/s over the peak of the workloads' GPUs. 2-10 % is normal for decode, 30-60 % for prefill. Falling at equal traffic: see `Where the peak goes` on the Host dashboard.",
                    [
                        Query(
                            f"sum({USEFUL}) / sum({PEAK})",
                            "MFU",
                        )
                    ],
                    needs="an inference engine",
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    span=6,
                ),
                MODELS,
            )
        )
        .with_panel(
            explained(
                number(
                    "Useful of executed",
                    "Share of the tensor pipes' work that the tokens needed. Well below 80 %: padding, recomputation, rejected drafts, or a wrong headline precision.",
                    [
                        Query(
                            f"sum({USEFUL}) / sum({EXECUTED})",
                            "useful",
                        )
                    ],
                    needs="an inference engine",
                    unit="percentunit",
                    decimals=0,
                    thresholds=BLUE,
                    span=6,
                ),
                MODELS,
            )
        )
    )


def _table(dashboard: Dashboard) -> Dashboard:
    return dashboard.with_panel(
        explained(
            rows(
                "Models",
                "One row per model. Low MFU and few FLOP per byte: increase the batch. Low `Of executed`: wasted work. More FLOP per byte than at the ridge point of the roofline: compute-bound; a lower precision or more GPUs help.",
                [
                    Query(f"{USEFUL} / {PEAK}"),
                    Query(f"{USEFUL} / {EXECUTED}"),
                    Query(f"{USEFUL} / {BYTES}"),
                    Query(f'sum by (model) ({TOKENS}, phase="prefill"}})'),
                    Query(f'sum by (model) ({TOKENS}, phase="decode"}})'),
                    Query(USEFUL),
                ],
                [
                    Column("model", "Model"),
                    Column("F", "Useful", "flops", decimals=1, width=140),
                    Column("A", "MFU", "percentunit", decimals=1, width=170, bar_maximum=0.6),
                    Column("B", "Of executed", "percentunit", good_above(0.5, 0.75), 0, 120),
                    Column("C", "FLOP per byte", decimals=0, width=130),
                    Column("D", "Prefill tokens", TOKENS_A_SECOND, decimals=0, width=140),
                    Column("E", "Decode tokens", TOKENS_A_SECOND, decimals=0, width=140),
                ],
                sort_by="Useful",
                height=5,
            ),
            MODELS,
        )
    )


def _replicas(dashboard: Dashboard) -> Dashboard:
    cached = (
        f"sum {REPLICA} (rate(flopwatch_model_cached_tokens_total{{{MODEL}}}[$__rate_interval]))"
    )
    # Between down and up, so that what hangs is sorted next to what is down.
    up = f"min {REPLICA} (flopwatch_workload_up{{{NODE}}})"
    stuck = (
        f"0.5 * ({up} == 1 and sum {REPLICA} (flopwatch_model_requests{{{MODEL}}}) > 0"
        f" and sum {REPLICA} (workload:flopwatch_model_tokens:rate5m{{{MODEL}}}) == 0)"
    )
    prefill = f'sum {REPLICA} ({TOKENS}, phase="prefill"}})'
    return dashboard.with_panel(
        explained(
            rows(
                "Replicas",
                "One row per engine. Requests but no tokens: it is stuck. A full KV cache and requests waiting: the cache is the limit; quantize it or shorten contexts. A replica with fewer cache hits than the others recomputes prompts. The instance opens the Host dashboard.",
                [
                    Query(f"sum {REPLICA} (workload:flopwatch_model_tokens:rate5m{{{MODEL}}})"),
                    Query(f'sum {REPLICA} (flopwatch_model_requests{{{MODEL}, state="running"}})'),
                    Query(f'sum {REPLICA} (flopwatch_model_requests{{{MODEL}, state="waiting"}})'),
                    Query(f"max {REPLICA} (flopwatch_model_kv_cache_usage_ratio{{{MODEL}}})"),
                    Query(f"{cached} / ({cached} + {prefill} > 0)"),
                    Query(
                        f"sum {REPLICA} (workload:flopwatch_model_flop:rate5m{{{MODEL}}}) / sum {REPLICA} (workload:flopwatch_model_peak_flops:headline{{{MODEL}}})"
                    ),
                    Query(f"{stuck} or {up}"),
                ],
                [
                    Column("cluster", "Cluster", width=190),
                    Column("instance", "Instance", link=HOST_LINK, link_title="Open the host"),
                    Column("workload", "Workload"),
                    Column(
                        "G",
                        "State",
                        width=90,
                        mappings={
                            "0": ("down", "red"),
                            "0.5": ("no tokens", "red"),
                            "1": ("up", "green"),
                        },
                    ),
                    Column("A", "Tokens", TOKENS_A_SECOND, decimals=0, width=110),
                    Column("B", "Running", decimals=0, width=90),
                    Column("C", "Waiting", decimals=0, width=90),
                    Column(
                        "D", "KV cache used", "percentunit", decimals=0, width=130, bar_maximum=1
                    ),
                    Column("E", "Prompt from cache", "percentunit", decimals=0, width=150),
                    Column("F", "MFU", "percentunit", decimals=1, width=90),
                ],
                sort_by="State",
                descending=False,
                height=9,
            ),
            MODELS,
        )
    )


def _engine(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            lines(
                "KV cache used",
                "Share of the KV cache in use, five fullest engines. Near 100 % the engine preempts requests and recomputes their prompts: allow fewer requests at once, use a smaller KV cache type, or add GPUs.",
                [
                    Query(
                        extremes(
                            "topk",
                            5,
                            f"flopwatch_model_kv_cache_usage_ratio{{{MODEL}}}@@",
                            on=WORKLOAD,
                        ),
                        "{{workload}} {{instance}}",
                    )
                ],
                needs=ENGINE,
                unit="percentunit",
                maximum=1,
                fill=0,
                span=8,
            )
        )
        .with_panel(
            lines(
                "Prompt tokens from cache",
                "Share of prompt tokens that came from the prefix cache or from another server, by workload, five lowest. If it falls, prompts are recomputed: useful FLOPS and MFU rise while throughput of answers falls.",
                [
                    Query(
                        extremes(
                            "bottomk",
                            5,
                            f"workload:flopwatch_model_cached_tokens:ratio_rate5m{{{NODE}}}@@",
                            on=WORKLOAD,
                        ),
                        "{{workload}} {{instance}}",
                    )
                ],
                needs="an engine that counts cache hits",
                unit="percentunit",
                maximum=1,
                fill=0,
                span=8,
            )
        )
        .with_panel(
            lines(
                "Running and waiting",
                "Requests by state and model. A queue while the KV cache is not full: the batch limit is too low. A queue that grows while tokens fall: the engine became slow.",
                [
                    Query(
                        f"sum by (model, state) (flopwatch_model_requests{{{MODEL}}})",
                        "{{state}} {{model}}",
                    )
                ],
                needs=ENGINE,
                unit="none",
                fill=0,
                span=8,
            )
        )
    )


def _course(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Over time"))
        .with_panel(
            lines(
                "Tokens by phase",
                "Tokens per second, by model. Decode follows the number of running requests, prefill follows new requests. If both fall together, it is traffic.",
                [
                    Query(
                        f"sum by (model, phase) ({TOKENS}}})",
                        "{{phase}} {{model}}",
                    )
                ],
                needs="an inference engine",
                unit=TOKENS_A_SECOND,
                span=12,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Useful, executed, peak",
                    "FLOP/s that the models' tokens needed, and that the tensor pipes executed. Dashed: the peak. A growing gap between useful and executed is wasted work.",
                    [
                        Query(USEFUL, "useful {{model}}"),
                        Query(EXECUTED, "executed {{model}}"),
                        Query(PEAK, "peak {{model}}"),
                    ],
                    needs="an inference engine",
                    unit="flops",
                    dashed=["peak .*"],
                    span=12,
                ),
                WORDS,
            )
        )
        .with_panel(
            lines(
                "MFU by model",
                "Compare it with the same hour of other days. A step at the time of a deployment was caused by it.",
                [Query(f"{USEFUL} / {PEAK}", "{{model}}")],
                needs="an inference engine",
                unit="percentunit",
                span=8,
            )
        )
        .with_panel(
            lines(
                "Demand",
                "Requests running and waiting (tokens, for engines that do not report requests), five largest workloads. If demand grows while tokens fall, the engine became slow.",
                [
                    Query(
                        extremes(
                            "topk", 5, f"workload:flopwatch_demand:sum{{{NODE}}}@@", on=WORKLOAD
                        ),
                        "{{workload}} {{instance}}",
                    )
                ],
                needs="an inference engine",
                unit="none",
                fill=0,
                span=8,
            )
        )
        .with_panel(
            explained(
                bars(
                    "Bytes that tokens needed",
                    "Weights and KV cache read per second, by model. Divided by the bandwidth of its GPUs this is MBU. High MBU and low MFU: decode at a small batch.",
                    [Query(f"sort_desc({BYTES})", "{{model}}")],
                    needs="an inference engine",
                    unit="Bps",
                    span=8,
                    labels=["model"],
                    long_names=True,
                ),
                CHOICES,
            )
        )
        .with_panel(
            states_over_time(
                "Engines",
                "Red while an engine's metrics cannot be read: it is down, still loading, or its address is wrong. Shows twelve, those that are down first.",
                [
                    Query(
                        extremes("bottomk", 12, f"flopwatch_workload_up{{{NODE}}}@@", on=WORKLOAD),
                        "{{workload}} {{instance}}",
                    )
                ],
                {"0": ("down", "red"), "1": ("up", "green")},
                needs="an inference engine",
                span=24,
                height=9,
            )
        )
    )


def _levers(dashboard: Dashboard) -> Dashboard:
    lever = f'flopwatch_lever_gain_ratio{{{NODE}, model=~"$model"'
    cost = f'flopwatch_lever_cost_ratio{{{NODE}, model=~"$model"'
    by = "by (model, workload, lever)"
    return dashboard.with_panel(
        explained(
            rows(
                "What would help",
                "Predicted change of throughput and of cost per token for each lever, best first. `flopwatch advise` on the host prints the evidence, the track record and what to change. A lower cost without more throughput: no requests wait, so the change frees capacity.",
                [
                    Query(f'min {by} ({lever}, bound="low"}}) - 1'),
                    Query(f'max {by} ({lever}, bound="high"}}) - 1'),
                    Query(f'min {by} ({cost}, bound="low"}}) - 1'),
                    Query(f'max {by} ({cost}, bound="high"}}) - 1'),
                ],
                [
                    Column("model", "Model"),
                    Column("workload", "Workload"),
                    Column("lever", "Lever"),
                    Column("A", "Throughput, low", "percentunit", decimals=0, width=150),
                    Column("B", "Throughput, high", "percentunit", decimals=0, width=150),
                    Column("C", "Cost per token, low", "percentunit", decimals=0, width=170),
                    Column("D", "Cost per token, high", "percentunit", decimals=0, width=170),
                ],
                sort_by="Throughput, low",
                needs="an inference engine; docs/levers.md says which",
                empty=NO_DATA,
                height=7,
            ),
            MODELS,
        )
    )


def dashboard() -> Dashboard:
    """The Models dashboard."""
    made = board(
        "flopwatch-models",
        "flopwatch / Models",
        "Served models: useful FLOPS and bandwidth from the engines' token counts, compared with what the hardware did.",
        narrow=("model",),
    )
    return _levers(_engine(_course(_replicas(_table(_now(made))))))
