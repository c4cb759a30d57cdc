"""Recording rules of the FLOP bill: who holds and uses the GPUs, and what it costs."""

from mixin.promql import labelled, model_of_engine, recent
from mixin.source import Group, Record, RuleFile


_HOLDER = "%{host}, holder, namespace, pod, hpc_job, workload"
# As scraped: without honor_labels, Prometheus renames the holder's labels.
_SCRAPED = "holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod"
_PRICE = "max by (%{gpu}, currency) (last_over_time(flopwatch_price_per_gpu_hour[5m])) / 3600"
# A MIG instance's work is part of its GPU's.
_WHOLE = '{mig=""}'


def _own_labels(rate: str) -> str:
    """`rate` with the holder's namespace and pod.

    Without honor_labels, Prometheus renames them to exported_… and puts those of the target, which are the
    exporter's own, in their place. A holder that is not a pod has neither.
    """
    for label in ("namespace", "pod"):
        rate = f'label_replace({rate}, "{label}", "", "holder", "job|workload|process|none")'
        rate = f'label_replace({rate}, "{label}", "$1", "exported_{label}", "(.+)")'
    return rate


def cost_file() -> RuleFile:
    """Rules of holders, and of the cost of tokens."""

    def by_holder(rate: str, *more: str) -> str:
        # Summed before labels are replaced, which costs more than the sum.
        scraped = f"sum by ({', '.join(('%{host}', _SCRAPED, *more))}) ({rate})"
        return f"sum by ({', '.join((_HOLDER, *more))}) (\n    {_own_labels(scraped)})"

    def priced(selector: str) -> str:
        rate = f"rate(flopwatch_holder_gpu_seconds_total{selector}[5m])"
        of_gpu = f"sum by (%{{gpu}}, {_SCRAPED}) ({rate})"
        return f"{of_gpu} * on (%{{gpu}}) group_left (currency) ({_PRICE})"

    holder = [
        Record(
            "holder_state:flopwatch_holder_gpu_seconds:rate5m",
            by_holder(f"rate(flopwatch_holder_gpu_seconds_total{_WHOLE}[5m])", "state"),
            why="GPUs that each holder has, by state: idle is what it holds and does not use.",
        ),
        Record(
            "holder:flopwatch_holder_gpu_seconds:rate5m",
            f"sum by ({_HOLDER}) (holder_state:flopwatch_holder_gpu_seconds:rate5m)",
        ),
        Record(
            "holder:flopwatch_holder_flop:rate5m",
            by_holder(f"rate(flopwatch_holder_flop_total{_WHOLE}[5m])"),
        ),
        Record(
            "holder:flopwatch_holder_energy_joules:rate5m",
            by_holder(f"rate(flopwatch_holder_energy_joules_total{_WHOLE}[5m])"),
        ),
        Record(
            "holder:flopwatch_cost:rate5m",
            by_holder(priced(_WHOLE), "currency"),
            why="Money per second, in the currency of the price.",
        ),
        Record(
            "holder:flopwatch_idle_cost:rate5m",
            by_holder(priced('{mig="", state="idle"}'), "currency"),
            why="Money per second for time that nobody used.",
        ),
    ]
    # Workloads that share a GPU pay equal parts of it.
    gpus = (
        "last_over_time(flopwatch_workload_gpu_info[5m])\n"
        "      / on (%{gpu}) group_left ()\n"
        "        count by (%{gpu}) (last_over_time(flopwatch_workload_gpu_info[5m]))"
    )
    workload = [
        Record(
            "workload:flopwatch_cost:rate5m",
            "sum by (%{host}, workload, currency) (\n"
            f"    ({gpus})\n"
            f"      * on (%{{gpu}}) group_left (currency) ({_PRICE}))",
            why="Money per second for the GPUs of each engine.",
        ),
        Record(
            "workload:flopwatch_energy_joules:rate5m",
            "sum by (%{host}, workload) (\n"
            f"    ({gpus})\n"
            "      * on (%{gpu}) group_left () sum by (%{gpu}) (rate(flopwatch_energy_joules_total[5m])))",
        ),
        Record(
            "workload:flopwatch_joules_per_token:ratio_rate5m",
            "workload:flopwatch_energy_joules:rate5m / (workload:flopwatch_tokens:rate5m > 0)",
            why="Computed tokens, prefill and decode: cache hits cost no energy to speak of.",
        ),
        Record(
            "workload:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "1e6 * workload:flopwatch_cost:rate5m\n"
            "  / on (%{host}, workload) group_left () (workload:flopwatch_tokens:rate5m > 0)",
        ),
        Record(
            "workload:flopwatch_cost_per_million_output_tokens:ratio_rate5m",
            "1e6 * workload:flopwatch_cost:rate5m\n"
            "  / on (%{host}, workload) group_left ()\n"
            '    (sum by (%{host}, workload) (workload_phase:flopwatch_model_tokens:rate5m{phase="decode"}) > 0)',
            why="What a service sells: the whole cost, over generated tokens.",
        ),
        Record(
            "workload:flopwatch_cost_per_useful_pflop:ratio_rate5m",
            "1e15 * workload:flopwatch_cost:rate5m\n"
            "  / on (%{host}, workload) group_left ()\n"
            "    (sum by (%{host}, workload) (workload:flopwatch_model_flop:rate5m) > 0)",
        ),
    ]
    model_of = model_of_engine()
    model = [
        Record(
            "workload_model:flopwatch_cost:rate5m",
            f"workload:flopwatch_cost:rate5m * {model_of}",
        ),
        Record(
            "workload_model:flopwatch_energy_joules:rate5m",
            f"workload:flopwatch_energy_joules:rate5m * {model_of}",
        ),
        Record(
            "model:flopwatch_cost:rate5m",
            "sum by (%{cluster}, model, currency) (workload_model:flopwatch_cost:rate5m)",
        ),
        Record(
            "model:flopwatch_energy_joules:rate5m",
            "sum by (%{cluster}, model) (workload_model:flopwatch_energy_joules:rate5m)",
        ),
        Record(
            "model:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "1e6 * model:flopwatch_cost:rate5m\n"
            "  / on (%{cluster}, model) group_left ()\n"
            "    (sum by (%{cluster}, model) (model_phase:flopwatch_model_tokens:rate5m) > 0)",
        ),
        Record(
            "model:flopwatch_joules_per_token:ratio_rate5m",
            "model:flopwatch_energy_joules:rate5m\n"
            "  / on (%{cluster}, model)\n"
            "    (sum by (%{cluster}, model) (model_phase:flopwatch_model_tokens:rate5m) > 0)",
        ),
    ]
    return RuleFile(
        "rules",
        "tenants",
        "Who holds and uses the GPUs, and what it costs. Without prices everything but money works.",
        [
            Group("flopwatch-holder", holder, "1m"),
            Group("flopwatch-workload-cost", workload, "1m"),
            Group("flopwatch-model-cost", model, "1m"),
            Group("flopwatch-phase-cost", _phases(model_of), "1m"),
            Group("flopwatch-waste", _waste(), "1m"),
        ],
    )


def _phases(model_of: str) -> list[Record]:
    """Separate costs of prompt and output tokens, by the minimum time that each phase needs."""

    def per_token(level: str, by: str) -> Record:
        rate = f"{level}_phase:flopwatch_model_tokens:rate5m"
        return Record(
            f"{level}_phase:flopwatch_cost_per_million_tokens:ratio_rate5m",
            f"1e6 * {level}_phase:flopwatch_cost:rate5m\n"
            f"  / on ({by}, phase) group_left () (sum by ({by}, phase) ({rate}) > 0)",
        )

    def of_phase(phase: str) -> str:
        share = f'workload_phase:flopwatch_time_share:ratio_rate5m{{phase="{phase}"}}'
        cost = f"workload:flopwatch_cost:rate5m * on (%{{host}}, workload) group_left () {share}"
        return labelled("phase", phase, cost)

    flop = (
        "sum by (%{host}, workload, phase) (rate(flopwatch_model_flop_total[5m]))\n"
        "    / on (%{host}, workload) group_left () workload:flopwatch_peak_flops:headline"
    )
    moved = (
        "sum by (%{host}, workload, phase) (rate(flopwatch_model_phase_dram_bytes_total[5m]))\n"
        "    / on (%{host}, workload) group_left () workload:flopwatch_peak_dram_bandwidth:sum"
    )
    allocated = (
        "group by (%{gpu}, namespace)\n"
        "      (label_replace(last_over_time(flopwatch_gpu_allocation_info[5m]),"
        ' "namespace", "$1", "exported_namespace", "(.+)"))'
    )
    namespaces = "gpu_workload:flopwatch_workload_namespace:info"
    namespace_of = (
        "on (%{host}, workload) group_left (namespace) namespace_workload:flopwatch_workload:info"
    )
    return [
        Record(
            "workload:flopwatch_peak_dram_bandwidth:sum",
            "sum by (%{host}, workload) (\n"
            "    gpu_workload:flopwatch_workload_gpu:info * on (%{gpu}) group_left ()\n"
            f"      {recent('flopwatch_peak_dram_bandwidth_bytes_per_second', '%{gpu}')})",
        ),
        Record(
            "workload_phase:flopwatch_least_seconds:rate5m",
            f"(\n    {flop}\n  >=\n    {moved}\n  )\n  or\n  (\n    {moved}\n  >\n    {flop}\n  )",
            why="Roofline: seconds per second that a phase needs at least, by its FLOP at the peak or its bytes at the\n"
            "bandwidth, whichever takes longer.",
        ),
        Record(
            "workload_phase:flopwatch_time_share:ratio_rate5m",
            "workload_phase:flopwatch_least_seconds:rate5m\n"
            "  / on (%{host}, workload) group_left ()\n"
            "    (sum by (%{host}, workload) (workload_phase:flopwatch_least_seconds:rate5m) > 0)",
            why="The phases' shares of the engine's time, as far as the roofline tells: an estimate.",
        ),
        Record(
            "workload_phase:flopwatch_cost:rate5m",
            f"{of_phase('prefill')}\n  or {of_phase('decode')}",
        ),
        Record(
            namespaces,
            "gpu_workload:flopwatch_workload_gpu:info\n"
            "  * on (%{gpu}) group_left (namespace)\n"
            f"    ({allocated}\n"
            f"      and on (%{{gpu}}) count by (%{{gpu}}) ({allocated}) == 1)",
            why="The namespace of an engine's GPU, where pods of only one hold it.",
        ),
        Record(
            "namespace_workload:flopwatch_workload:info",
            f"group by (%{{host}}, workload, namespace) ({namespaces})\n"
            "  and on (%{host}, workload)\n"
            f"    count by (%{{host}}, workload) (group by (%{{host}}, workload, namespace) ({namespaces})) == 1\n"
            "  and on (%{host}, workload)\n"
            f"    count by (%{{host}}, workload) ({namespaces})\n"
            "      == on (%{host}, workload) count by (%{host}, workload) (gpu_workload:flopwatch_workload_gpu:info)",
            why="The namespace that holds all GPUs of an engine; engines in several have none.",
        ),
        Record(
            "workload_model_phase:flopwatch_cost:rate5m",
            f"workload_phase:flopwatch_cost:rate5m * {model_of}",
        ),
        Record(
            "model_phase:flopwatch_cost:rate5m",
            "sum by (%{cluster}, model, currency, phase) (workload_model_phase:flopwatch_cost:rate5m)",
        ),
        Record(
            "namespace_phase:flopwatch_cost:rate5m",
            "sum by (%{cluster}, namespace, currency, phase) (\n"
            f"    workload_phase:flopwatch_cost:rate5m * {namespace_of})",
        ),
        Record(
            "namespace_phase:flopwatch_model_tokens:rate5m",
            "sum by (%{cluster}, namespace, phase) (\n"
            f"    workload_phase:flopwatch_model_tokens:rate5m * {namespace_of})",
        ),
        Record(
            "cluster_phase:flopwatch_cost:rate5m",
            "sum by (%{cluster}, currency, phase) (workload_phase:flopwatch_cost:rate5m)",
        ),
        Record(
            "cluster_phase:flopwatch_model_tokens:rate5m",
            "sum by (%{cluster}, phase) (workload_phase:flopwatch_model_tokens:rate5m)",
        ),
        per_token("workload", "%{host}, workload"),
        per_token("model", "%{cluster}, model"),
        per_token("namespace", "%{cluster}, namespace"),
        per_token("cluster", "%{cluster}"),
    ]


def _waste() -> list[Record]:
    return [
        Record(
            "workload:flopwatch_executed_flop:rate5m",
            "sum by (%{host}, workload) (rate(flopwatch_workload_executed_flop_total[5m]))",
        ),
        Record(
            "workload_cause:flopwatch_wasted_flop:rate5m",
            "sum by (%{host}, workload, cause) (rate(flopwatch_model_wasted_flop_total[5m]))",
            why="What engines count as computed in vain. lost_cache_hits are part of the model's FLOP.",
        ),
    ]
