"""Alerts on workloads, probes and the exporter itself."""

from mixin.promql import recent
from mixin.source import Alert, Group, RuleFile


_HOST = "{{ $labels.instance }}"
_SKEWED = "unless on (%{host}) abs(last_over_time(instance:flopwatch_clock_skew:seconds[5m])) > %{clockSkewSeconds}"
_WORKLOAD = "{{ $labels.workload }} on {{ $labels.instance }}"

_WORKLOADS = (
    Alert(
        "WorkloadStuck",
        "sum by (%{host}, workload) (min_over_time(flopwatch_model_requests[5m])) > 0\n"
        "  and on (%{host}, workload) sum by (%{host}, workload) (increase(flopwatch_model_tokens_total[5m])) == 0\n"
        "  and on (%{host}, workload) max by (%{host}, workload) (max_over_time(flopwatch_workload_up[5m])) == 1",
        "critical",
        f"{_WORKLOAD} has requests but delivers no tokens",
        "{{ $value | humanize }} requests are in flight or queued, and no token has come out for five minutes. Likely: a collective that"
        " hangs (NCCL), a rank that died, or a deadlocked engine. Restart the workload; if it hangs again, look for a faulty GPU or link"
        " among its GPUs.",
        "models",
        "2m",
        why="Work in flight and no output: needs no history.",
    ),
    Alert(
        "WorkloadDown",
        recent("flopwatch_workload_up", "%{host}, workload") + " == 0",
        "warning",
        f"{_WORKLOAD} does not answer",
        "The metrics of its inference engine could not be read for ten minutes. Likely: the engine is down or still loading, or its"
        " address in the configuration is wrong.",
        "models",
        "10m",
    ),
    Alert(
        "WorkloadRestarting",
        "max by (%{host}, workload) (changes(flopwatch_workload_up[1h])) / 2 > %{restartsPerHour}",
        "warning",
        f"{_WORKLOAD} keeps restarting",
        "It went away and came back about {{ $value | humanize }} times within an hour. Likely: out of memory, a failing health check, or"
        " a crash at a certain request. Read the engine's log.",
        "models",
        why="Each restart is two changes. WorkloadDown never sees an outage of less than ten minutes.",
    ),
)

_MODELS = (
    Alert(
        "ModelThroughputFell",
        "workload:flopwatch_model_tokens:rate5m < %{throughputDrop} * workload:flopwatch_model_tokens:usual\n"
        "  and on (%{host}, workload, model)\n"
        '    (max by (%{host}, workload, model) (avg_over_time(flopwatch_model_requests{state="waiting"}[15m]))\n'
        "      >= 0.9 * avg_over_time(workload:flopwatch_model_requests:waiting_avg5m[6h] offset 30m))\n"
        "  and on (%{host}, workload, model)\n"
        '    max by (%{host}, workload, model) (avg_over_time(flopwatch_model_requests{state="waiting"}[15m])) > 0',
        "warning",
        f"{_WORKLOAD} delivers fewer tokens with the same queue",
        "{{ $labels.model }} delivers {{ $value | humanize }} tokens/s, less than 70 % of its usual throughput, while as many requests wait"
        " as before. Likely: one of its GPUs is slower or gone, clocks are held down, prompts became longer, or a new version of the"
        " engine. Compare the workload's GPUs.",
        "models",
        "15m",
        why="Against its own last hours, and only while requests wait as they did: an ebb of traffic empties the queue.",
    ),
    Alert(
        "PrefixCacheCollapsed",
        "workload:flopwatch_model_cached_tokens:ratio_rate5m\n"
        "  < %{prefixCacheRatio} * (workload:flopwatch_model_cached_tokens:usual > 0.05)",
        "warning",
        f"{_WORKLOAD} has lost its prefix cache",
        "{{ $value | humanizePercentage }} of the prompt tokens come from the cache, less than half of the usual share: prompts are computed"
        " again, so FLOPS and MFU rise while fewer answers come out. Likely: a changed system prompt or chat template, a router that scatters"
        " sessions, a new version of the engine, or a cache that is too small. Compare the replicas.",
        "models",
        "15m",
        finding="prefix_cache_collapsed",
    ),
    Alert(
        "ModelUsefulShareFell",
        "model:flopwatch_useful_flop:ratio_rate5m < %{usefulDrop} * model:flopwatch_useful_flop:usual",
        "info",
        "A smaller share of the work for {{ $labels.model }} is useful",
        "{{ $value | humanizePercentage }} of what the tensor pipes compute is useful work. This is less than 70 % of the usual share."
        " Likely: padding, recomputed prompts, rejected draft tokens, another precision, or another process on its GPUs.",
        "models",
        "30m",
        finding="useful_share_fell",
        why="Useful over executed work: what the tokens needed, of what the tensor pipes did.",
    ),
)


def _burn(long: str, short: str, factor: str, severity: str, wait: str) -> Alert:
    missed = "workload_objective:flopwatch_objective:missed"
    times = (
        "what the error budget allows"
        if factor == "1"
        else f"{factor} times what the error budget allows"
    )
    budget = "on (workload, objective) group_left () max by (workload, objective) (flopwatch_objective_budget_ratio)"
    return Alert(
        "WorkloadObjectiveMissed",
        f"avg_over_time({missed}[{long}]) > {factor} * {budget}\n"
        f"  and avg_over_time({missed}[{short}]) > {factor} * {budget}".replace(
            f"> {factor} * on (workload, objective) group_left () max",
            f"> on (workload, objective) group_left () {factor} * max",
        ),
        severity,
        "{{ $labels.workload }} misses its objective for {{ $labels.objective }}",
        f"Over the last {long} it missed the objective in {{{{ $value | humanizePercentage }}}} of the minutes with demand,"
        f" more than {times}. Likely: fewer or slower GPUs, a smaller batch, or more waste."
        " The Models dashboard shows which replica fell behind.",
        "models",
        wait,
        labels={"window": long},
    )


_OBJECTIVES = (
    _burn("1h", "5m", "14.4", "critical", "2m"),
    _burn("6h", "30m", "6", "critical", "15m"),
    _burn("3d", "6h", "1", "warning", "1h"),
)

_PROBES = (
    Alert(
        "ProbesFailing",
        "count by (%{gpu}, mig) (\n"
        "    last_over_time(flopwatch_probe_failures_in_a_row[5m]) > 5\n"
        "    and on (%{gpu}, kernel)\n"
        '      increase(flopwatch_probe_runs_total{outcome=~"error|timeout|out_of_memory"}[2h]) > 0\n'
        "  )",
        "warning",
        "Probes of GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }} on {{ $labels.instance }} fail",
        "{{ $value }} of its kernels{{ with printf `flopwatch_probe_failures_in_a_row{cluster=%q, instance=%q, uuid=%q} > 5`"
        " $labels.cluster $labels.instance $labels.uuid | query }} ({{ range $index, $each := . }}{{ if $index }}, {{ end }}"
        '{{ $each | label "kernel" }}{{ end }}){{ end }} failed repeatedly for twenty minutes because of errors,'
        " timeouts or a lack of memory. Likely: incompatible versions of torch and the driver, a full GPU, or a GPU that hangs.",
        "probes",
        "20m",
        why="The second half ends it when the kernel is no longer run; one that kills the worker is run once an hour.",
    ),
    Alert(
        "ProbesSkipped",
        "(\n"
        "  time() - gpu:flopwatch_probe_last_success_timestamp_seconds:max > %{probeAgeSeconds}\n"
        "  or (\n"
        "    time() - (\n"
        '      sum by (%{gpu}) (last_over_time(flopwatch_probe_skips_total{mig=""}[5m]) > 0) * 0\n'
        "        + on (%{host}) group_left () max by (%{host}) (last_over_time(process_start_time_seconds{%{selector}}[5m]))\n"
        "    ) > %{probeAgeSeconds}\n"
        "    unless on (%{gpu}) gpu:flopwatch_probe_last_success_timestamp_seconds:max\n"
        "  )\n"
        f")\n{_SKEWED}",
        "info",
        "GPU {{ $labels.gpu }} on {{ $labels.instance }} has not been probed for hours",
        "No probe has given a measurement for {{ $value | humanizeDuration }}, so its speed is unknown. Likely: probes are paused, too little"
        " memory is free for the worker, or the GPU is never idle.",
        "probes",
        "30m",
    ),
    Alert(
        "ProbesMissing",
        "count by (%{cluster}) (\n"
        '    gpu:flopwatch_gpu_up:recent{gpu!~"cpu0|unknown"} == 1\n'
        "    unless on (%{gpu}) gpu:flopwatch_probe_last_success_timestamp_seconds:max\n"
        '    unless on (%{gpu}) last_over_time(flopwatch_probe_skips_total{mig=""}[5m])\n'
        "    unless on (%{gpu}) last_over_time(flopwatch_mig_mode[5m]) == 1\n"
        "  )\n"
        "  and on (%{cluster}) cluster:flopwatch_probed_gpus:count > 0",
        "warning",
        "GPUs in {{ $labels.cluster }} are not probed",
        "{{ $value }} GPUs have no probe results, although others in the cluster do. A slow or corrupting GPU among them would go unnoticed. Likely:"
        " hosts without torch or with probes disabled. The Probes dashboard lists them.",
        "fleet",
        "1h",
        why="A cluster without any probes is a choice; a cluster with some is expected to probe every GPU.",
    ),
    Alert(
        "ProbeWorkerRestarting",
        "sum by (%{host}) (increase(flopwatch_probe_worker_restarts_total[1h])) > %{restartsPerHour}",
        "warning",
        f"The probe worker of {_HOST} keeps dying",
        "About {{ $value | humanize }} restarts within an hour. Monitoring continues without probes. Likely: out of host memory, a"
        " broken torch installation, or a GPU that faults under the probe.",
        "exporter",
    ),
)

_EXPORTER = (
    Alert(
        "FlopwatchDown",
        "max by (%{host}) (up{%{selector}}) == 0\n  and on (%{host}) instance:flopwatch_scraped:ever",
        "critical",
        f"flopwatch on {_HOST} is down",
        "The exporter answered before and no longer does, so its GPUs are not monitored. Likely: the host is down, the process died, or a"
        " firewall blocks the port. Check the host first.",
        "exporter",
        "5m",
    ),
    Alert(
        "FlopwatchNeverScraped",
        "max by (%{host}) (up{%{selector}}) == 0\n  unless on (%{host}) instance:flopwatch_scraped:ever",
        "warning",
        f"flopwatch on {_HOST} was never scraped",
        "The host is a target, but no scrape of it has ever succeeded. Likely: not installed yet, another port, TLS or credentials that do"
        " not match, or a stale inventory.",
        "exporter",
        "15m",
    ),
    Alert(
        "FlopwatchRestarting",
        "max by (%{host}) (changes(process_start_time_seconds{%{selector}}[1h])) > %{restartsPerHour}",
        "warning",
        f"flopwatch on {_HOST} keeps restarting",
        "It has restarted {{ $value }} times within an hour. Each restart resets its counters and windows. Likely: a memory limit that"
        " is too low, a failing liveness probe, or a crash; its log says which.",
        "exporter",
    ),
    Alert(
        "FlopwatchNoTargets",
        "absent(up{%{selector}})",
        "critical",
        "Prometheus has no flopwatch targets",
        "The job has no targets, so nothing is monitored. Likely: service discovery is broken, or the job has another name.",
        "exporter",
        "10m",
    ),
    Alert(
        "FlopwatchTargetsVanished",
        "cluster:flopwatch_targets:count\n"
        "  < %{targetsRatio} * max_over_time(cluster:flopwatch_targets:count[14d])",
        "warning",
        "Targets in {{ $labels.cluster }} have vanished",
        "Only {{ $value }} hosts are left of those that service discovery listed in the last two weeks. Prometheus no longer knows the"
        " others, so no alert can fire for them. Likely: broken service discovery, a changed label selector, or hosts that were removed on purpose.",
        "exporter",
        "15m",
    ),
    Alert(
        "FlopwatchNoGPUs",
        "instance:flopwatch_up:recent == 1\n  unless on (%{host}) gpu:flopwatch_gpu_up:recent\n"
        f"  unless on (%{{host}}) {recent('flopwatch_expected_gpus', '%{host}')} > 0",
        "warning",
        f"flopwatch on {_HOST} sees no device",
        "The exporter answers, but finds no GPU. Likely: no driver, a container without the NVIDIA runtime, or all GPUs gone.",
        "exporter",
        "10m",
    ),
    Alert(
        "FlopwatchSourceHung",
        recent('flopwatch_source_hung{mig=""}', "%{gpu}") + " == 1",
        "critical",
        "The driver does not answer for GPU {{ $labels.gpu }} on {{ $labels.instance }}",
        "A driver call has not returned within its deadline. Likely: the GPU or its firmware is wedged; the engine's next call will hang too."
        " Drain the host and reboot it.",
        "gpu",
        "2m",
        finding="hung",
    ),
    Alert(
        "FlopwatchSourceStale",
        "(time() - (max by (%{gpu}, mig, source) (last_over_time(flopwatch_source_last_success_timestamp_seconds[5m])) < time() - 300))\n"
        f"  and on (%{{gpu}}) gpu:flopwatch_gpu_up:recent == 1\n  {_SKEWED}",
        "warning",
        "Source {{ $labels.source }} of GPU {{ $labels.gpu }} on {{ $labels.instance }} is stale",
        "It last gave a value {{ $value | humanizeDuration }} ago. Until it recovers, its metrics are absent. Likely: a profiler holds the"
        " counters, a permission is missing, or dcgm-exporter is down.",
        "exporter",
        "5m",
        finding="source_down",
    ),
    Alert(
        "HostClockSkew",
        "abs(last_over_time(instance:flopwatch_clock_skew:seconds[5m])) > %{clockSkewSeconds}",
        "warning",
        f"The clock of {_HOST} is off",
        "It differs from Prometheus's clock by {{ $value | humanizeDuration }}. Ages of readings, probes and XIDs on this host are wrong by the"
        " same amount, and alerts that depend on ages do not fire. Likely: NTP or chrony is not running. Check `chronyc tracking` on the host.",
        "exporter",
        "10m",
    ),
    Alert(
        "FlopwatchTicksMissed",
        "sum by (%{host}) (increase(flopwatch_ticks_missed_total[10m])) > 60",
        "info",
        f"flopwatch on {_HOST} cannot keep up",
        "About {{ $value | humanize }} ticks were missed in ten minutes. Counters stay correct, but short dips may not be seen. Likely: a slow driver,"
        " or too little processor time for the exporter.",
        "exporter",
        "10m",
    ),
    Alert(
        "FlopwatchSeriesDropped",
        "sum by (%{host}) (increase(flopwatch_series_dropped_total[15m])) > 0",
        "warning",
        f"flopwatch on {_HOST} drops series",
        "About {{ $value | humanize }} series were left out in 15 minutes because `limits.series` is reached. Likely: per-process series, or"
        " more MIG instances than the limit allows for.",
        "exporter",
    ),
    Alert(
        "FlopwatchConfigReloadFailed",
        recent("flopwatch_config_last_reload_successful", "%{host}") + " == 0",
        "warning",
        f"flopwatch on {_HOST} refused its configuration",
        "The last reload failed; the previous configuration is still active. The log names the line.",
        "exporter",
        "5m",
    ),
    Alert(
        "FlopwatchConfigurationProblem",
        recent("flopwatch_configuration_problem", "%{host}, problem") + " == 1",
        "warning",
        f"The configuration of flopwatch on {_HOST} does not match the host",
        "{{ $labels.problem }}. Likely: a GPU that is gone, or a configuration written for another host.",
        "exporter",
        "10m",
    ),
    Alert(
        "FlopwatchEstimatorOff",
        'abs(max by (%{gpu}, precision) (last_over_time(flopwatch_estimator_error_ratio{mig=""}[5m]))) > %{estimatorError}',
        "info",
        "FLOPS of GPU {{ $labels.gpu }} on {{ $labels.instance }} are miscounted",
        "At {{ $labels.precision }} the counted FLOPS differ by {{ $value | humanizePercentage }} from GEMMs of known size. Likely: a driver"
        " that reports the pipes differently, or another program used the GPU during `flopwatch calibrate`.",
        "exporter",
        "5m",
    ),
)


def service_files() -> list[RuleFile]:
    """The files of these alerts."""
    return [
        RuleFile(
            "alerts",
            "models",
            "Served models: requests, throughput, cache hits, useful share, objectives.",
            [
                Group("flopwatch-workloads", _WORKLOADS, "1m"),
                Group("flopwatch-model-performance", _MODELS, "2m"),
                Group("flopwatch-objective-alerts", _OBJECTIVES, "1m"),
            ],
        ),
        RuleFile(
            "alerts",
            "probes",
            "Probes fail or are missing, so the speed of a GPU is unknown.",
            [Group("flopwatch-probes", _PROBES, "2m")],
        ),
        RuleFile(
            "alerts",
            "exporter",
            "Health of the exporters. The scrape job must be called `flopwatch`, or be set in mixin/config.libsonnet.",
            [Group("flopwatch-exporter", _EXPORTER, "1m")],
        ),
    ]
