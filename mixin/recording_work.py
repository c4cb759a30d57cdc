"""Recording rules of served models, of objectives, and of probes compared with their peers."""

from mixin.promql import LISTED, labelled, model_of_engine, recent, remembered
from mixin.source import Group, Record, RuleFile


def models_file() -> RuleFile:
    """Rules of served models and of objectives."""

    def usual(name: str, of: str, on: str, alert: str, why: str = "") -> Record:
        hours = f"{of}[6h] offset 30m"
        held = (
            f'on ({on}) ALERTS{{alertname="{alert}", alertstate="firing"}}\n'
            f'      and on ({on}) (ALERTS_FOR_STATE{{alertname="{alert}"}} > time() - 1209600)'
        )
        return Record(
            name,
            f"(avg_over_time({hours}) and count_over_time({hours}) > 60\n    unless ({name} and {held}))\n"
            f"  or ({remembered(name, on)} and {held})",
            why,
        )

    workload = [
        Record(
            "workload:flopwatch_model_flop:rate5m",
            "sum by (%{host}, workload, model) (rate(flopwatch_model_flop_total[5m]))",
        ),
        Record(
            "workload:flopwatch_model_dram_bytes:rate5m",
            "sum by (%{host}, workload, model) (rate(flopwatch_model_dram_bytes_total[5m]))",
        ),
        Record(
            "workload_phase:flopwatch_model_tokens:rate5m",
            "sum by (%{host}, workload, model, phase) (rate(flopwatch_model_tokens_total[5m]))",
        ),
        Record(
            "workload:flopwatch_model_tokens:rate5m",
            "sum by (%{host}, workload, model) (workload_phase:flopwatch_model_tokens:rate5m)",
        ),
        Record(
            "workload:flopwatch_model_cached_tokens:rate5m",
            "sum by (%{host}, workload, model) (rate(flopwatch_model_cached_tokens_total[5m]))",
        ),
        Record(
            "workload:flopwatch_model_cached_tokens:ratio_rate5m",
            "workload:flopwatch_model_cached_tokens:rate5m\n"
            "  / (workload:flopwatch_model_cached_tokens:rate5m\n"
            "    + on (%{host}, workload, model) group_left ()\n"
            '      sum by (%{host}, workload, model) (workload_phase:flopwatch_model_tokens:rate5m{phase="prefill"}) > 0)',
            why="Share of prompt tokens from caches. When it falls, FLOP/s and MFU rise while fewer answers come out.",
        ),
        usual(
            "workload:flopwatch_model_cached_tokens:usual",
            "workload:flopwatch_model_cached_tokens:ratio_rate5m",
            "%{host}, workload, model",
            "PrefixCacheCollapsed",
        ),
        Record(
            "workload:flopwatch_tokens:rate5m",
            "sum by (%{host}, workload) (workload:flopwatch_model_tokens:rate5m)",
        ),
        Record(
            "workload:flopwatch_model_requests:waiting_avg5m",
            'sum by (%{host}, workload, model) (avg_over_time(flopwatch_model_requests{state="waiting"}[5m]))',
            why="Requests that wait, for the look back over hours.",
        ),
        Record(
            "workload:flopwatch_demand:sum",
            "sum by (%{host}, workload) (avg_over_time(flopwatch_model_requests[5m]))\n"
            "  or on (%{host}, workload) workload:flopwatch_tokens:rate5m",
            why="Demand: requests in flight and queued, or tokens where the engine does not report its requests.",
        ),
        usual(
            "workload:flopwatch_model_tokens:usual",
            "workload:flopwatch_model_tokens:rate5m",
            "%{host}, workload, model",
            "ModelThroughputFell",
            why="The mean of six hours; while ModelThroughputFell fires, the one from before, for two weeks.",
        ),
        *(
            Record(
                f"workload:{metric}",
                "sum by (%{host}, workload) (\n"
                f"    gpu_workload:flopwatch_workload_gpu:info * on (%{{gpu}}) group_left () gpu:{metric})",
                why=why,
            )
            for metric, why in (
                (
                    "flopwatch_peak_flops:headline",
                    "What a workload's GPUs could do, and what their tensor pipes did. A GPU that is shared\ncounts for each of its workloads.",
                ),
                ("flopwatch_tensor_flop:rate5m", ""),
            )
        ),
    ]
    named = "workload:{0} * " + model_of_engine().replace("{", "{{").replace("}", "}}")
    model = [
        Record(
            "model:flopwatch_model_flop:rate5m",
            "sum by (%{cluster}, model) (workload:flopwatch_model_flop:rate5m)",
        ),
        Record(
            "model:flopwatch_model_dram_bytes:rate5m",
            "sum by (%{cluster}, model) (workload:flopwatch_model_dram_bytes:rate5m)",
        ),
        Record(
            "model_phase:flopwatch_model_tokens:rate5m",
            "sum by (%{cluster}, model, phase) (workload_phase:flopwatch_model_tokens:rate5m)",
        ),
        Record(
            "workload:flopwatch_model_peak_flops:headline",
            named.format("flopwatch_peak_flops:headline"),
        ),
        Record(
            "workload:flopwatch_model_tensor_flop:rate5m",
            named.format("flopwatch_tensor_flop:rate5m"),
        ),
        Record(
            "model:flopwatch_peak_flops:headline",
            "sum by (%{cluster}, model) (workload:flopwatch_model_peak_flops:headline)",
        ),
        Record(
            "model:flopwatch_tensor_flop:rate5m",
            "sum by (%{cluster}, model) (workload:flopwatch_model_tensor_flop:rate5m)",
        ),
        Record(
            "model:flopwatch_model_flops_utilization:ratio_rate5m",
            "model:flopwatch_model_flop:rate5m / model:flopwatch_peak_flops:headline",
            why="Model FLOPS utilization: useful work over the peak.",
        ),
        Record(
            "model:flopwatch_useful_flop:ratio_rate5m",
            "model:flopwatch_model_flop:rate5m / (model:flopwatch_tensor_flop:rate5m > 0)",
            why="Useful over executed: padding, recomputation and rejected drafts make it smaller than 1.",
        ),
        usual(
            "model:flopwatch_useful_flop:usual",
            "model:flopwatch_useful_flop:ratio_rate5m",
            "%{cluster}, model",
            "ModelUsefulShareFell",
        ),
        Record(
            "model:flopwatch_arithmetic_intensity:ratio_rate5m",
            "model:flopwatch_model_flop:rate5m / (model:flopwatch_model_dram_bytes:rate5m > 0)",
        ),
    ]
    return RuleFile(
        "rules",
        "models",
        "Served models: useful FLOPS by the engine's own token counts, beside the hardware's.",
        [Group("flopwatch-models", [*workload, *model], "1m"), _objectives()],
    )


def _objectives() -> Group:
    measured = (
        labelled(
            "objective",
            "tokens_per_second",
            "sum by (%{cluster}, workload) (workload:flopwatch_tokens:rate5m)",
        )
        + "\n      or "
        + labelled(
            "objective",
            "mfu",
            "sum by (%{cluster}, workload) (workload:flopwatch_model_flop:rate5m)\n"
            "        / sum by (%{cluster}, workload) (workload:flopwatch_peak_flops:headline)",
        )
    )
    return Group(
        "flopwatch-objectives",
        [
            Record(
                "workload_objective:flopwatch_objective:missed",
                f"(({measured})\n    < bool on (workload, objective) group_left ()\n"
                "      max by (workload, objective) (flopwatch_objective))\n"
                "  and on (%{cluster}, workload) sum by (%{cluster}, workload) (workload:flopwatch_demand:sum) > 0",
                why="1 in each minute in which a workload with demand missed its objective. Objectives are yours:\n"
                "deploy/prometheus/objectives.example.yml shows how to set them.",
            )
        ],
        "1m",
    )


def probes_file() -> RuleFile:
    """Rules of probes, and of each GPU compared with its peers."""
    efficiency = 'flopwatch_probe_efficiency_ratio{mig=""}'
    copy = 'flopwatch_probe_bandwidth_bytes_per_second{mig="", path="device"}'
    joined = " * on (%{gpu}) group_left (name) gpu:flopwatch_gpu:info"
    median = "name_kernel:flopwatch_probe_measure:median"
    ratio = "gpu_unit:flopwatch_probe_measure:peer_ratio"
    middle = "name_unit:flopwatch_probe_measure:median_peer_ratio"
    spread = "name_unit:flopwatch_probe_measure:mad_peer_ratio"
    line = "name_unit:flopwatch_probe_measure:straggler_peer_ratio"
    slow = "gpu_unit:flopwatch_probe_measure:slow_peer_ratio"
    slower = "gpu:flopwatch_probe_baseline_ratio:slow"
    lowest = "max by (%{gpu}, mig) (flopwatch_probe_lowest_baseline_ratio)"
    beside = "on (%{peers}, unit) group_left ()"
    rules = [
        Record(
            "gpu:flopwatch_probe_baseline_ratio:min",
            'max by (%{gpu}) (flopwatch_probe_lowest_baseline_ratio{mig=""})',
            why="One series per GPU: the slowest judged kernel over its baseline, and when one last gave a measurement.",
        ),
        Record(
            "gpu:flopwatch_probe_last_success_timestamp_seconds:max",
            recent('flopwatch_probe_newest_success_timestamp_seconds{mig=""}', "%{gpu}"),
        ),
        Record(
            "gpu:flopwatch_probe_mismatches:sum",
            "max by (%{gpu}, mig) (flopwatch_probe_wrong_results_total) > 0",
            why="Recorded only while there is something to record.",
        ),
        Record(
            median,
            f"quantile by (%{{peers}}, precision) (0.5, {efficiency}{joined})\n"
            f"  or quantile by (%{{peers}}, path) (0.5, {copy}{joined})",
            why="A kernel is told by its `precision` (GEMMs) or its `path` (the copy).",
        ),
        Record(
            ratio,
            labelled(
                "unit",
                "compute",
                f"min by (%{{gpu}}, name) (\n    {efficiency}{joined}\n"
                f"      / on (%{{peers}}, precision) group_left () {median}{{precision!=''}})",
            )
            + "\nor "
            + labelled(
                "unit",
                "memory",
                f"min by (%{{gpu}}, name) (\n    {copy}{joined}\n      / on (%{{peers}}, path) group_left () {median}{{path!=''}})",
            ),
        ),
        Record(middle, f"quantile by (%{{peers}}, unit) (0.5, {ratio})"),
        Record(spread, f"quantile by (%{{peers}}, unit) (0.5, abs({ratio} - {beside} {middle}))"),
        Record(
            line,
            f"{middle} - %{{peersDeviations}} * clamp_min(1.4826 * {spread}, 0.01)",
            why="The peer ratio of a straggler: the alerts compare with it, and so need no z of each GPU.",
        ),
        Record(
            "gpu:flopwatch_probe_measure:min_robust_z",
            f"min by (%{{gpu}}, name) (({ratio} - {beside} {middle})\n"
            f"    / {beside} clamp_min(1.4826 * {spread}, 0.01))",
            why="The worse unit of each GPU.",
        ),
        Record("gpu:flopwatch_probe_measure:min_peer_ratio", f"min by (%{{gpu}}, name) ({ratio})"),
        Record(
            slow,
            f"max by (%{{gpu}}, name, unit) (\n    {ratio} < %{{peersWarning}}\n      <= {beside} {line}\n"
            "      and on (%{peers}) name:flopwatch_gpu:count >= %{peersMinimum}\n  )\n"
            f"  or ({remembered(slow, '%{gpu}, name, unit')}\n"
            f"    unless on (%{{gpu}}, unit) ({ratio} >= %{{peersWarning}} or {ratio} > {beside} {line})\n"
            f"    and {LISTED})",
            why="Stragglers, remembered until a measurement says otherwise.",
        ),
        Record(
            slower,
            f"({lowest} < %{{baselineWarning}})\n"
            f"  or ({remembered(slower, '%{gpu}, mig')} unless on (%{{gpu}}, mig) {lowest} and {LISTED})",
        ),
    ]
    lost = [
        Record(
            "gpu:flopwatch_lost_speed:ratio",
            "gpu:flopwatch_clock_loss:ratio_rate5m\n"
            "    + on (%{gpu}) max by (%{gpu}) (clamp_min(1 - gpu:flopwatch_probe_measure:min_peer_ratio, 0))\n"
            "  or on (%{gpu}) gpu:flopwatch_clock_loss:ratio_rate5m",
            why="One number to sort GPUs by: what the slowest probe lacks beside its peers, and what the clocks lose.",
        )
    ]
    return RuleFile(
        "rules",
        "stragglers",
        "A GPU beside its peers: the GPUs of the same product name in the same cluster.\n"
        "The measure is what a probe reached: for GEMMs the efficiency (the SM clock divided out), for the copy bytes\n"
        "per second. Each kernel is compared with its own median; the slowest kernel speaks for the unit, compute or\n"
        "memory. Robust z = (x - median) / (1.4826 MAD). The divisor has a floor of one percent: in a small or very\n"
        "even group the MAD comes out near zero, and every GPU would look like a straggler.",
        [
            Group("flopwatch-probes-recorded", rules, "1m", why="Probes run once a minute."),
            Group("flopwatch-stragglers", lost, "1m"),
        ],
    )
