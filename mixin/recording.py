"""Recording rules of GPUs, hosts and clusters, and of the state that must be remembered.

Each rule aggregates `by` the levels that mixin.config declares, so that no label of a target can
split a group or break a join.
"""

from mixin.promql import TARGET, highest, labelled, recent, remembered
from mixin.recording_cost import cost_file
from mixin.recording_work import models_file, probes_file
from mixin.source import Group, Record, RuleFile


def _gpu() -> RuleFile:
    rules = [
        Record(
            "gpu:flopwatch_gpu:info",
            recent('flopwatch_gpu_info{mig=""}', "%{gpu}, name"),
            why="Identity, for joins: the only label kept is the product's name.",
        ),
        Record(
            "gpu:flopwatch_peak_flops:headline",
            'max by (%{gpu}) (flopwatch_headline_peak_flops{mig=""})',
            why="The peak at the precision at which the tensor pipe's work is valued.",
        ),
        Record(
            "gpu:flopwatch_tensor_flop:rate5m",
            'sum by (%{gpu}) (rate(flopwatch_flop_total{pipe="tensor", mig=""}[5m]))',
            why="Achieved FLOP/s of the tensor pipe.",
        ),
        Record(
            "gpu:flopwatch_flops_utilization:ratio_rate5m",
            "gpu:flopwatch_tensor_flop:rate5m / gpu:flopwatch_peak_flops:headline",
        ),
        Record(
            "gpu:flopwatch_busy:ratio_rate5m",
            '1 - sum by (%{gpu}) (rate(flopwatch_gpu_seconds_total{state="idle", mig=""}[5m]))',
            why="Shares of the time: with kernels resident, and lost to a lowered clock.",
        ),
        Record(
            "gpu:flopwatch_clock_loss:ratio_rate5m",
            'sum by (%{gpu}) (rate(flopwatch_gpu_seconds_total{state=~"clock_.+", mig=""}[5m]))',
        ),
        Record(
            "gpu:flopwatch_dram_bytes:rate5m",
            'sum by (%{gpu}) (rate(flopwatch_dram_bytes_total{mig=""}[5m]))',
        ),
        Record(
            "gpu_workload:flopwatch_workload_gpu:info",
            recent("flopwatch_workload_gpu_info", "%{gpu}, workload")
            + "\n  or ("
            + remembered("gpu_workload:flopwatch_workload_gpu:info", "%{gpu}, workload")
            + "\n    and on (%{host}, workload) last_over_time(flopwatch_workload_up[5m]) == 0)",
            why="Which engine uses which GPU; of one that is down, which it used.",
        ),
        Record(
            "gpu:flopwatch_sm_active:avg5m",
            'max by (%{gpu}) (avg_over_time(flopwatch_sm_active_ratio{mig=""}[5m]))\n'
            "  unless on (%{gpu}) gpu_workload:flopwatch_workload_gpu:info",
            why="Only of GPUs without an engine: of the others the engine tells the demand.",
        ),
        Record(
            "gpu:flopwatch_dram_bytes_without_engine:rate5m",
            "gpu:flopwatch_dram_bytes:rate5m\n"
            "  unless on (%{gpu}) gpu_workload:flopwatch_workload_gpu:info",
        ),
        Record(
            "gpu:flopwatch_energy_joules:rate5m",
            'sum by (%{gpu}) (rate(flopwatch_energy_joules_total{mig=""}[5m]))',
            why="Watts.",
        ),
    ]
    return RuleFile(
        "rules",
        "gpu",
        'One series per GPU. `mig=""` keeps whole GPUs: the work of a MIG instance is part of its GPU\'s.',
        [Group("flopwatch-gpu", rules, "1m", why="Rates over five minutes.")],
    )


def _holders() -> Group:
    """Who holds a GPU, in words, whether the exporter's labels were honored or renamed."""

    def plain(name: str, *found: str, inner: str) -> str:
        for label in found:
            inner = f'label_replace({inner}, "{name}", "$1", "{label}", "(.+)")'
        return inner

    pod = plain("h_pod", "pod", "exported_pod", inner="flopwatch_gpu_allocation_info")
    pod = plain("h_namespace", "namespace", "exported_namespace", inner=pod)
    job = plain("h_job", "exported_job", "hpc_job", inner="flopwatch_gpu_job_info")
    workload = "flopwatch_workload_gpu_info"
    parts = "\n    or ".join(
        (
            f'label_replace(label_join({pod}, "h", "/", "h_namespace", "h_pod"), "holder", "pod $1", "h", "(.+)")',
            f'label_replace({job}, "holder", "job $1", "h_job", "(.+)")',
            f'label_replace({workload}, "holder", "workload $1", "workload", "(.+)")',
        )
    )
    return Group(
        "flopwatch-holders",
        [
            Record(
                "gpu:flopwatch_holder:info",
                f"max by (%{{host}}, gpu, holder) (\n    {parts})",
                why="Pods, batch jobs and engines by GPU. Without honor_labels Prometheus renames the\n"
                "exporter's labels namespace, pod and job to exported_….",
            )
        ],
        "1m",
    )


def _memory() -> RuleFile:
    rules = [
        Record(
            "instance:flopwatch_up:recent",
            "max by (%{host}) (max_over_time(up{%{selector}}[5m]))",
            why="1 when a scrape of the last five minutes succeeded.",
        ),
        Record(
            "instance:flopwatch_scraped:ever",
            "max by (%{host}) (up{%{selector}} == 1)\n"
            f"  or ({remembered('instance:flopwatch_scraped:ever', '%{host}')} and on (%{{host}}) up{{%{{selector}}}})",
            why="1 from the first good scrape of a host on, for as long as the host is a target.",
        ),
        Record(
            "gpu:flopwatch_gpu_up:recent",
            recent("flopwatch_gpu_up", "%{gpu}", "min"),
            why="1 while the GPU answers, 0 while it does not; also of MIG instances.",
        ),
        Record(
            "instance:flopwatch_gpus:listed",
            'count by (%{host}) (max by (%{host}, gpu) (gpu:flopwatch_gpu_up:recent{gpu!~"cpu0|unknown"}))',
        ),
        highest(
            "instance:flopwatch_gpus:expected",
            "%{host}",
            listed="instance:flopwatch_gpus:listed",
            bus=recent("flopwatch_expected_gpus", "%{host}"),
        ),
        highest(
            "gpu:flopwatch_nvlinks_up:expected",
            "%{gpu}",
            now='max by (%{gpu}) (flopwatch_nvlinks_up{mig=""})',
        ),
        highest(
            "gpu:flopwatch_power_limit_watts:usual",
            "%{gpu}",
            now='max by (%{gpu}) (flopwatch_power_limit_watts{mig=""})',
        ),
        highest(
            "gpu:flopwatch_peak_flops:installed",
            "%{gpu}",
            now='max by (%{gpu}) (flopwatch_headline_peak_flops{mig=""})',
        ),
        Record(
            "gpu:flopwatch_reset:timestamp",
            "max by (%{gpu}) (\n    "
            + "\n    or ".join(
                (
                    "last_over_time(flopwatch_gpu_reset_timestamp_seconds[5m])",
                    labelled(
                        "from",
                        "boot",
                        "(0 * gpu:flopwatch_gpu_up:recent or 0 * last_over_time(gpu:flopwatch_reset:timestamp[1h]))\n"
                        "      + on (%{host}) group_left () "
                        + recent("flopwatch_boot_time_seconds", "%{host}"),
                    ),
                    labelled("from", "memory", "last_over_time(gpu:flopwatch_reset:timestamp[1h])"),
                )
            )
            + f")\n  and {TARGET}",
            why="When the GPU was last reset, or its host booted: what was wrong before counts as repaired.",
        ),
        Record(
            "gpu_xid:flopwatch_xid:timestamp",
            'max by (%{gpu}, xid) (flopwatch_xid_last_timestamp_seconds{xid=~"%{xidCritical}|%{xidWarning}"})\n'
            f"  or ({remembered('gpu_xid:flopwatch_xid:timestamp', '%{gpu}, xid')} and {TARGET})",
            why="When an XID last came, remembered when the exporter forgets it.",
        ),
        *_events(
            "gpu:flopwatch_ecc_uncorrected",
            'max by (%{gpu}) (flopwatch_ecc_errors_total{mig="", kind="uncorrected"})',
            "%{gpu}",
            from_zero=False,
        ),
        *_events(
            "gpu:flopwatch_probe_wrong_results",
            "max by (%{gpu}, mig) (flopwatch_probe_wrong_results_total)",
            "%{gpu}, mig",
            from_zero=True,
        ),
    ]
    return RuleFile(
        "rules",
        "memory",
        "What must be remembered while scrapes fail, exporters restart and days pass: how a host looked when it\n"
        "was whole, and which faults nobody has repaired yet. Memory bridges an hour without evaluation, and ends\n"
        "when the host is no target any more. docs/runbooks/README.md says how to accept a change.",
        [Group("flopwatch-memory", rules, "1m"), _holders()],
    )


def _events(name: str, counter: str, by: str, *, from_zero: bool) -> tuple[Record, Record]:
    """When a counter last grew, and its value; the order matters."""
    seen, event = f"{name}:seen", f"{name}:timestamp"
    before = remembered(seen, by)
    grew = f"({counter} > {before})"
    if from_zero:
        grew += f" or (({counter} > 0) unless {before})"
    return (
        Record(
            event,
            f"(({grew}) * 0 + time())\n  or ({remembered(event, by)} and {TARGET})",
            why="When it last grew.",
        ),
        Record(seen, f"{counter}\n  or ({before} and {TARGET})"),
    )


def _kept(name: str, expr: str, on: str, alert: str) -> Record:
    """A mean of an hour; while the alert holds, that of the day before instead, for two weeks."""
    held = f'on ({on}) (ALERTS_FOR_STATE{{alertname="{alert}"}} > time() - 1209600)'
    return Record(
        name, f"(avg_over_time({expr}[1h]) unless {held})\n  or ({name} offset 1d and {held})"
    )


def _same_hour(name: str, by: str) -> Record:
    base = name.rsplit(":", 1)[0]
    hour = f"{base}:avg1h"
    return Record(
        name,
        f"min by ({by}) (\n    {labelled('day', 'yesterday', f'{hour} offset 1d')}\n"
        f"    or {labelled('day', 'last week', f'{hour} offset 7d')})",
    )


def _baselines() -> RuleFile:
    alert = "GPUUtilizationDropped"
    rules: list[Record] = []
    for base, expr, by, kept in (
        (
            "gpu:flopwatch_flops_utilization",
            "gpu:flopwatch_flops_utilization:ratio_rate5m",
            "%{gpu}",
            True,
        ),
        ("gpu:flopwatch_sm_active", "gpu:flopwatch_sm_active:avg5m", "%{gpu}", False),
        (
            "gpu:flopwatch_dram_bytes",
            "gpu:flopwatch_dram_bytes_without_engine:rate5m",
            "%{gpu}",
            True,
        ),
        ("workload:flopwatch_demand", "workload:flopwatch_demand:sum", "%{host}, workload", False),
        (
            "workload:flopwatch_tokens",
            "workload:flopwatch_tokens:rate5m",
            "%{host}, workload",
            True,
        ),
    ):
        on = "%{gpu}" if by == "%{gpu}" else "%{host}, workload"
        hour = f"{base}:avg1h"
        rules.append(
            _kept(hour, expr, on, alert)
            if kept and by == "%{gpu}"
            else Record(hour, f"avg_over_time({expr}[1h])")
        )
        rules.append(_same_hour(f"{base}:same_hour", by))
    rules.append(
        Record(
            "gpu:flopwatch_flops_utilization:same_hour_ratio",
            "avg_over_time(gpu:flopwatch_flops_utilization:ratio_rate5m[15m])\n"
            "  / (gpu:flopwatch_flops_utilization:same_hour > 0.01)",
            why="What each GPU delivers now, over what it delivered at this hour.",
        )
    )
    rules.append(
        Record(
            "gpu:flopwatch_probe_baseline_ratio:avg1h",
            "avg_over_time(gpu:flopwatch_probe_baseline_ratio:min[1h])",
            why="The slowest probe over its baseline.",
        )
    )
    return RuleFile(
        "rules",
        "baselines",
        "What each GPU and workload usually does: the mean of an hour, looked up a day and a week later, so that\n"
        "no rule reads days of samples. The same-hour baseline takes the lower of yesterday and last week: a\n"
        "weekend is measured against the last weekend. While GPUUtilizationDropped holds, the baseline stays as\n"
        "it was before, for two weeks: a fault does not become the norm overnight.",
        [Group("flopwatch-baselines", rules, "2m")],
    )


def _fleet() -> RuleFile:
    def summed(by: str, level: str, of: str) -> list[Record]:
        return [
            Record(f"{level}:{name}", f"sum by ({by}) ({of}:{name})")
            for name in (
                "flopwatch_tensor_flop:rate5m",
                "flopwatch_peak_flops:headline",
                "flopwatch_energy_joules:rate5m",
            )
        ] + [
            Record(
                f"{level}:flopwatch_flops_utilization:ratio_rate5m",
                f"{level}:flopwatch_tensor_flop:rate5m / {level}:flopwatch_peak_flops:headline",
            )
        ]

    instance = [
        *summed("%{host}", "instance", "gpu"),
        Record(
            "instance:flopwatch_gpu_up:sum",
            'sum by (%{host}) (min by (%{host}, gpu) (gpu:flopwatch_gpu_up:recent{gpu!="unknown"}))',
        ),
        Record(
            "instance:flopwatch_gpu_up:count",
            'count by (%{host}) (max by (%{host}, gpu) (gpu:flopwatch_gpu_up:recent{gpu!="unknown"}))',
        ),
        Record(
            "instance_source:flopwatch_source_last_success_timestamp_seconds:min",
            'min by (%{host}, source) (flopwatch_source_last_success_timestamp_seconds{mig=""})',
        ),
        Record(
            "instance:flopwatch_tick_duration_seconds:rate5m",
            'sum by (%{host}) (rate(flopwatch_tick_duration_seconds_sum{mig=""}[5m]))\n'
            "  / instance:flopwatch_gpu_up:count",
            why="Seconds of each second that reading a GPU takes, mean of the host's.",
        ),
        Record(
            "instance:flopwatch_dram_bytes:rate5m",
            "sum by (%{host}) (gpu:flopwatch_dram_bytes:rate5m)",
        ),
        Record(
            "instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
            'sum by (%{host}) (flopwatch_peak_dram_bandwidth_bytes_per_second{mig=""})',
        ),
        Record(
            "instance:flopwatch_peak_flops:installed",
            "sum by (%{host}) (gpu:flopwatch_peak_flops:installed)",
            why="The peak of all GPUs of the host, those that do not answer among them.",
        ),
        Record(
            "instance:flopwatch_probe_gpu_seconds:rate5m",
            'sum by (%{host}) (rate(flopwatch_probe_gpu_seconds_total{mig=""}[5m]))',
        ),
        Record(
            "instance_outcome:flopwatch_probe_runs:rate5m",
            'sum by (%{host}, outcome) (rate(flopwatch_probe_runs_total{mig="", outcome!="ok"}[5m]))',
            why="Runs that gave no measurement; those that did are the rule.",
        ),
        Record(
            "instance_reason:flopwatch_probe_skips:rate5m",
            'sum by (%{host}, reason) (rate(flopwatch_probe_skips_total{mig=""}[5m]))',
        ),
        Record(
            "instance:flopwatch_clock_skew:seconds",
            "max by (%{host}) (flopwatch_time_seconds - timestamp(flopwatch_time_seconds))",
            why="How far the host's clock is ahead of Prometheus's.",
        ),
    ]
    cluster = [
        *summed("%{cluster}", "cluster", "instance"),
        Record(
            "cluster:flopwatch_energy_joules_per_flop:ratio_rate5m",
            "cluster:flopwatch_energy_joules:rate5m / (cluster:flopwatch_tensor_flop:rate5m > 0)",
            why="Joules per FLOP of the tensor pipe.",
        ),
        Record(
            "cluster:flopwatch_dram_bytes:rate5m",
            "sum by (%{cluster}) (instance:flopwatch_dram_bytes:rate5m)",
        ),
        Record(
            "cluster:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
            "sum by (%{cluster}) (instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum)",
        ),
        Record(
            "cluster:flopwatch_dram_bandwidth_utilization:ratio_rate5m",
            "cluster:flopwatch_dram_bytes:rate5m / cluster:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
        ),
        Record(
            "cluster:flopwatch_gpu_up:sum", "sum by (%{cluster}) (instance:flopwatch_gpu_up:sum)"
        ),
        Record(
            "cluster:flopwatch_gpu_up:count",
            "sum by (%{cluster}) (instance:flopwatch_gpu_up:count)",
        ),
        Record(
            "cluster:flopwatch_gpus:expected",
            "sum by (%{cluster}) (instance:flopwatch_gpus:expected)",
            why="Coverage: what should be watched, and what is.",
        ),
        Record("cluster:flopwatch_targets:count", "count by (%{cluster}) (up{%{selector}})"),
        Record("cluster:flopwatch_targets:up", "sum by (%{cluster}) (up{%{selector}})"),
        Record(
            "cluster:flopwatch_probed_gpus:count",
            "count by (%{cluster}) (time() - gpu:flopwatch_probe_last_success_timestamp_seconds:max < %{probeAgeSeconds})",
        ),
        Record(
            "cluster:flopwatch_probe_gpu_seconds:rate5m",
            "sum by (%{cluster}) (instance:flopwatch_probe_gpu_seconds:rate5m)",
        ),
        Record(
            "cluster_outcome:flopwatch_probe_runs:rate5m",
            "sum by (%{cluster}, outcome) (instance_outcome:flopwatch_probe_runs:rate5m)",
            why="Runs that gave no measurement; those that did are the rule.",
        ),
        Record(
            "cluster_reason:flopwatch_probe_skips:rate5m",
            "sum by (%{cluster}, reason) (instance_reason:flopwatch_probe_skips:rate5m)",
        ),
        Record(
            "instance_state:flopwatch_peak_flops:rate5m",
            "sum by (%{host}, state) (\n"
            '    rate(flopwatch_gpu_seconds_total{mig=""}[5m])\n'
            "      * on (%{gpu}) group_left () gpu:flopwatch_peak_flops:headline)",
            why="Where the peak goes, in FLOP/s: the states sum to the peak of the GPUs that answer.",
        ),
        Record(
            "cluster_state:flopwatch_peak_flops:rate5m",
            "sum by (%{cluster}, state) (instance_state:flopwatch_peak_flops:rate5m)",
        ),
        Record(
            "cluster_le:flopwatch_flops_utilization:count",
            'count_values by (%{cluster}) ("le", ceil(20 * gpu:flopwatch_flops_utilization:ratio_rate5m) / 20)',
            why="How many GPUs there are in each twentieth of utilization, by its upper edge, for a heatmap.",
        ),
    ]
    joined = "{} * on (%{{gpu}}) group_left (name) gpu:flopwatch_gpu:info"
    name = [
        Record("name:flopwatch_gpu:count", "count by (%{peers}) (gpu:flopwatch_gpu:info)"),
        *(
            Record(
                f"name:{metric}",
                f"sum by (%{{peers}}) ({joined.format(f'gpu:{metric}')})",
            )
            for metric in ("flopwatch_tensor_flop:rate5m", "flopwatch_peak_flops:headline")
        ),
        Record(
            "name:flopwatch_flops_utilization:ratio_rate5m",
            "name:flopwatch_tensor_flop:rate5m / name:flopwatch_peak_flops:headline",
        ),
    ]
    return RuleFile(
        "rules",
        "fleet",
        "Hosts, GPU models and clusters: numerators and denominators are added up first, and divided last.",
        [
            Group("flopwatch-instance", instance, "1m"),
            Group("flopwatch-cluster", cluster, "1m"),
            Group("flopwatch-name", name, "1m"),
        ],
    )


def recording_files() -> list[RuleFile]:
    """All files of recording rules, named so that memory and GPUs sort before their readers."""
    return [_gpu(), _memory(), _fleet(), models_file(), cost_file(), probes_file(), _baselines()]
