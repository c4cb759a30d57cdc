// Written by `python -m mixin.build`. Do not edit.
local text(value) = if std.isNumber(value) then '%g' % value else value;
{
  prometheusRules+:: {
    groups+: [
      {
        "name": "flopwatch-gpu",
        "interval": "1m",
        "rules": [
          {
            "record": "gpu:flopwatch_gpu:info",
            "expr": "max by (" + text($._config.gpu) + ", name) (last_over_time(flopwatch_gpu_info{mig=\"\"}[5m]))",
          },
          {
            "record": "gpu:flopwatch_peak_flops:headline",
            "expr": "max by (" + text($._config.gpu) + ") (flopwatch_headline_peak_flops{mig=\"\"})",
          },
          {
            "record": "gpu:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_flop_total{pipe=\"tensor\", mig=\"\"}[5m]))",
          },
          {
            "record": "gpu:flopwatch_flops_utilization:ratio_rate5m",
            "expr": "gpu:flopwatch_tensor_flop:rate5m / gpu:flopwatch_peak_flops:headline",
          },
          {
            "record": "gpu:flopwatch_busy:ratio_rate5m",
            "expr": "1 - sum by (" + text($._config.gpu) + ") (rate(flopwatch_gpu_seconds_total{state=\"idle\", mig=\"\"}[5m]))",
          },
          {
            "record": "gpu:flopwatch_clock_loss:ratio_rate5m",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_gpu_seconds_total{state=~\"clock_.+\", mig=\"\"}[5m]))",
          },
          {
            "record": "gpu:flopwatch_dram_bytes:rate5m",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_dram_bytes_total{mig=\"\"}[5m]))",
          },
          {
            "record": "gpu_workload:flopwatch_workload_gpu:info",
            "expr": "max by (" + text($._config.gpu) + ", workload) (last_over_time(flopwatch_workload_gpu_info[5m]))\n  or (max by (" + text($._config.gpu) + ", workload) (last_over_time(gpu_workload:flopwatch_workload_gpu:info[1h]))\n    and on (" + text($._config.host) + ", workload) last_over_time(flopwatch_workload_up[5m]) == 0)",
          },
          {
            "record": "gpu:flopwatch_sm_active:avg5m",
            "expr": "max by (" + text($._config.gpu) + ") (avg_over_time(flopwatch_sm_active_ratio{mig=\"\"}[5m]))\n  unless on (" + text($._config.gpu) + ") gpu_workload:flopwatch_workload_gpu:info",
          },
          {
            "record": "gpu:flopwatch_dram_bytes_without_engine:rate5m",
            "expr": "gpu:flopwatch_dram_bytes:rate5m\n  unless on (" + text($._config.gpu) + ") gpu_workload:flopwatch_workload_gpu:info",
          },
          {
            "record": "gpu:flopwatch_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_energy_joules_total{mig=\"\"}[5m]))",
          },
        ],
      },
      {
        "name": "flopwatch-memory",
        "interval": "1m",
        "rules": [
          {
            "record": "instance:flopwatch_up:recent",
            "expr": "max by (" + text($._config.host) + ") (max_over_time(up{" + text($._config.selector) + "}[5m]))",
          },
          {
            "record": "instance:flopwatch_scraped:ever",
            "expr": "max by (" + text($._config.host) + ") (up{" + text($._config.selector) + "} == 1)\n  or (max by (" + text($._config.host) + ") (last_over_time(instance:flopwatch_scraped:ever[1h])) and on (" + text($._config.host) + ") up{" + text($._config.selector) + "})",
          },
          {
            "record": "gpu:flopwatch_gpu_up:recent",
            "expr": "min by (" + text($._config.gpu) + ") (last_over_time(flopwatch_gpu_up[5m]))",
          },
          {
            "record": "instance:flopwatch_gpus:listed",
            "expr": "count by (" + text($._config.host) + ") (max by (" + text($._config.host) + ", gpu) (gpu:flopwatch_gpu_up:recent{gpu!~\"cpu0|unknown\"}))",
          },
          {
            "record": "instance:flopwatch_gpus:expected",
            "expr": "max by (" + text($._config.host) + ") (\n    instance:flopwatch_gpus:listed\n    or label_replace(max by (" + text($._config.host) + ") (last_over_time(flopwatch_expected_gpus[5m])), \"from\", \"bus\", \"\", \"\")\n    or label_replace(last_over_time(instance:flopwatch_gpus:expected[1h]), \"from\", \"memory\", \"\", \"\"))\n  and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h])",
          },
          {
            "record": "gpu:flopwatch_nvlinks_up:expected",
            "expr": "max by (" + text($._config.gpu) + ") (\n    max by (" + text($._config.gpu) + ") (flopwatch_nvlinks_up{mig=\"\"})\n    or label_replace(last_over_time(gpu:flopwatch_nvlinks_up:expected[1h]), \"from\", \"memory\", \"\", \"\"))\n  and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h])",
          },
          {
            "record": "gpu:flopwatch_power_limit_watts:usual",
            "expr": "max by (" + text($._config.gpu) + ") (\n    max by (" + text($._config.gpu) + ") (flopwatch_power_limit_watts{mig=\"\"})\n    or label_replace(last_over_time(gpu:flopwatch_power_limit_watts:usual[1h]), \"from\", \"memory\", \"\", \"\"))\n  and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h])",
          },
          {
            "record": "gpu:flopwatch_peak_flops:installed",
            "expr": "max by (" + text($._config.gpu) + ") (\n    max by (" + text($._config.gpu) + ") (flopwatch_headline_peak_flops{mig=\"\"})\n    or label_replace(last_over_time(gpu:flopwatch_peak_flops:installed[1h]), \"from\", \"memory\", \"\", \"\"))\n  and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h])",
          },
          {
            "record": "gpu:flopwatch_reset:timestamp",
            "expr": "max by (" + text($._config.gpu) + ") (\n    last_over_time(flopwatch_gpu_reset_timestamp_seconds[5m])\n    or label_replace((0 * gpu:flopwatch_gpu_up:recent or 0 * last_over_time(gpu:flopwatch_reset:timestamp[1h]))\n      + on (" + text($._config.host) + ") group_left () max by (" + text($._config.host) + ") (last_over_time(flopwatch_boot_time_seconds[5m])), \"from\", \"boot\", \"\", \"\")\n    or label_replace(last_over_time(gpu:flopwatch_reset:timestamp[1h]), \"from\", \"memory\", \"\", \"\"))\n  and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h])",
          },
          {
            "record": "gpu_xid:flopwatch_xid:timestamp",
            "expr": "max by (" + text($._config.gpu) + ", xid) (flopwatch_xid_last_timestamp_seconds{xid=~\"" + text($._config.xidCritical) + "|" + text($._config.xidWarning) + "\"})\n  or (max by (" + text($._config.gpu) + ", xid) (last_over_time(gpu_xid:flopwatch_xid:timestamp[1h])) and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h]))",
          },
          {
            "record": "gpu:flopwatch_ecc_uncorrected:timestamp",
            "expr": "(((max by (" + text($._config.gpu) + ") (flopwatch_ecc_errors_total{mig=\"\", kind=\"uncorrected\"}) > max by (" + text($._config.gpu) + ") (last_over_time(gpu:flopwatch_ecc_uncorrected:seen[1h])))) * 0 + time())\n  or (max by (" + text($._config.gpu) + ") (last_over_time(gpu:flopwatch_ecc_uncorrected:timestamp[1h])) and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h]))",
          },
          {
            "record": "gpu:flopwatch_ecc_uncorrected:seen",
            "expr": "max by (" + text($._config.gpu) + ") (flopwatch_ecc_errors_total{mig=\"\", kind=\"uncorrected\"})\n  or (max by (" + text($._config.gpu) + ") (last_over_time(gpu:flopwatch_ecc_uncorrected:seen[1h])) and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h]))",
          },
          {
            "record": "gpu:flopwatch_probe_wrong_results:timestamp",
            "expr": "(((max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_wrong_results_total) > max by (" + text($._config.gpu) + ", mig) (last_over_time(gpu:flopwatch_probe_wrong_results:seen[1h]))) or ((max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_wrong_results_total) > 0) unless max by (" + text($._config.gpu) + ", mig) (last_over_time(gpu:flopwatch_probe_wrong_results:seen[1h])))) * 0 + time())\n  or (max by (" + text($._config.gpu) + ", mig) (last_over_time(gpu:flopwatch_probe_wrong_results:timestamp[1h])) and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h]))",
          },
          {
            "record": "gpu:flopwatch_probe_wrong_results:seen",
            "expr": "max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_wrong_results_total)\n  or (max by (" + text($._config.gpu) + ", mig) (last_over_time(gpu:flopwatch_probe_wrong_results:seen[1h])) and on (" + text($._config.host) + ") last_over_time(instance:flopwatch_up:recent[1h]))",
          },
        ],
      },
      {
        "name": "flopwatch-holders",
        "interval": "1m",
        "rules": [
          {
            "record": "gpu:flopwatch_holder:info",
            "expr": "max by (" + text($._config.host) + ", gpu, holder) (\n    label_replace(label_join(label_replace(label_replace(label_replace(label_replace(flopwatch_gpu_allocation_info, \"h_pod\", \"$1\", \"pod\", \"(.+)\"), \"h_pod\", \"$1\", \"exported_pod\", \"(.+)\"), \"h_namespace\", \"$1\", \"namespace\", \"(.+)\"), \"h_namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"h\", \"/\", \"h_namespace\", \"h_pod\"), \"holder\", \"pod $1\", \"h\", \"(.+)\")\n    or label_replace(label_replace(label_replace(flopwatch_gpu_job_info, \"h_job\", \"$1\", \"exported_job\", \"(.+)\"), \"h_job\", \"$1\", \"hpc_job\", \"(.+)\"), \"holder\", \"job $1\", \"h_job\", \"(.+)\")\n    or label_replace(flopwatch_workload_gpu_info, \"holder\", \"workload $1\", \"workload\", \"(.+)\"))",
          },
        ],
      },
      {
        "name": "flopwatch-instance",
        "interval": "1m",
        "rules": [
          {
            "record": "instance:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ") (gpu:flopwatch_tensor_flop:rate5m)",
          },
          {
            "record": "instance:flopwatch_peak_flops:headline",
            "expr": "sum by (" + text($._config.host) + ") (gpu:flopwatch_peak_flops:headline)",
          },
          {
            "record": "instance:flopwatch_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.host) + ") (gpu:flopwatch_energy_joules:rate5m)",
          },
          {
            "record": "instance:flopwatch_flops_utilization:ratio_rate5m",
            "expr": "instance:flopwatch_tensor_flop:rate5m / instance:flopwatch_peak_flops:headline",
          },
          {
            "record": "instance:flopwatch_gpu_up:sum",
            "expr": "sum by (" + text($._config.host) + ") (min by (" + text($._config.host) + ", gpu) (gpu:flopwatch_gpu_up:recent{gpu!=\"unknown\"}))",
          },
          {
            "record": "instance:flopwatch_gpu_up:count",
            "expr": "count by (" + text($._config.host) + ") (max by (" + text($._config.host) + ", gpu) (gpu:flopwatch_gpu_up:recent{gpu!=\"unknown\"}))",
          },
          {
            "record": "instance_source:flopwatch_source_last_success_timestamp_seconds:min",
            "expr": "min by (" + text($._config.host) + ", source) (flopwatch_source_last_success_timestamp_seconds{mig=\"\"})",
          },
          {
            "record": "instance:flopwatch_tick_duration_seconds:rate5m",
            "expr": "sum by (" + text($._config.host) + ") (rate(flopwatch_tick_duration_seconds_sum{mig=\"\"}[5m]))\n  / instance:flopwatch_gpu_up:count",
          },
          {
            "record": "instance:flopwatch_dram_bytes:rate5m",
            "expr": "sum by (" + text($._config.host) + ") (gpu:flopwatch_dram_bytes:rate5m)",
          },
          {
            "record": "instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
            "expr": "sum by (" + text($._config.host) + ") (flopwatch_peak_dram_bandwidth_bytes_per_second{mig=\"\"})",
          },
          {
            "record": "instance:flopwatch_peak_flops:installed",
            "expr": "sum by (" + text($._config.host) + ") (gpu:flopwatch_peak_flops:installed)",
          },
          {
            "record": "instance:flopwatch_probe_gpu_seconds:rate5m",
            "expr": "sum by (" + text($._config.host) + ") (rate(flopwatch_probe_gpu_seconds_total{mig=\"\"}[5m]))",
          },
          {
            "record": "instance_outcome:flopwatch_probe_runs:rate5m",
            "expr": "sum by (" + text($._config.host) + ", outcome) (rate(flopwatch_probe_runs_total{mig=\"\", outcome!=\"ok\"}[5m]))",
          },
          {
            "record": "instance_reason:flopwatch_probe_skips:rate5m",
            "expr": "sum by (" + text($._config.host) + ", reason) (rate(flopwatch_probe_skips_total{mig=\"\"}[5m]))",
          },
          {
            "record": "instance:flopwatch_clock_skew:seconds",
            "expr": "max by (" + text($._config.host) + ") (flopwatch_time_seconds - timestamp(flopwatch_time_seconds))",
          },
        ],
      },
      {
        "name": "flopwatch-cluster",
        "interval": "1m",
        "rules": [
          {
            "record": "cluster:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_tensor_flop:rate5m)",
          },
          {
            "record": "cluster:flopwatch_peak_flops:headline",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_peak_flops:headline)",
          },
          {
            "record": "cluster:flopwatch_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_energy_joules:rate5m)",
          },
          {
            "record": "cluster:flopwatch_flops_utilization:ratio_rate5m",
            "expr": "cluster:flopwatch_tensor_flop:rate5m / cluster:flopwatch_peak_flops:headline",
          },
          {
            "record": "cluster:flopwatch_energy_joules_per_flop:ratio_rate5m",
            "expr": "cluster:flopwatch_energy_joules:rate5m / (cluster:flopwatch_tensor_flop:rate5m > 0)",
          },
          {
            "record": "cluster:flopwatch_dram_bytes:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_dram_bytes:rate5m)",
          },
          {
            "record": "cluster:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_peak_dram_bandwidth_bytes_per_second:sum)",
          },
          {
            "record": "cluster:flopwatch_dram_bandwidth_utilization:ratio_rate5m",
            "expr": "cluster:flopwatch_dram_bytes:rate5m / cluster:flopwatch_peak_dram_bandwidth_bytes_per_second:sum",
          },
          {
            "record": "cluster:flopwatch_gpu_up:sum",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_gpu_up:sum)",
          },
          {
            "record": "cluster:flopwatch_gpu_up:count",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_gpu_up:count)",
          },
          {
            "record": "cluster:flopwatch_gpus:expected",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_gpus:expected)",
          },
          {
            "record": "cluster:flopwatch_targets:count",
            "expr": "count by (" + text($._config.cluster) + ") (up{" + text($._config.selector) + "})",
          },
          {
            "record": "cluster:flopwatch_targets:up",
            "expr": "sum by (" + text($._config.cluster) + ") (up{" + text($._config.selector) + "})",
          },
          {
            "record": "cluster:flopwatch_probed_gpus:count",
            "expr": "count by (" + text($._config.cluster) + ") (time() - gpu:flopwatch_probe_last_success_timestamp_seconds:max < " + text($._config.probeAgeSeconds) + ")",
          },
          {
            "record": "cluster:flopwatch_probe_gpu_seconds:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ") (instance:flopwatch_probe_gpu_seconds:rate5m)",
          },
          {
            "record": "cluster_outcome:flopwatch_probe_runs:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", outcome) (instance_outcome:flopwatch_probe_runs:rate5m)",
          },
          {
            "record": "cluster_reason:flopwatch_probe_skips:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", reason) (instance_reason:flopwatch_probe_skips:rate5m)",
          },
          {
            "record": "instance_state:flopwatch_peak_flops:rate5m",
            "expr": "sum by (" + text($._config.host) + ", state) (\n    rate(flopwatch_gpu_seconds_total{mig=\"\"}[5m])\n      * on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_peak_flops:headline)",
          },
          {
            "record": "cluster_state:flopwatch_peak_flops:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", state) (instance_state:flopwatch_peak_flops:rate5m)",
          },
          {
            "record": "cluster_le:flopwatch_flops_utilization:count",
            "expr": "count_values by (" + text($._config.cluster) + ") (\"le\", ceil(20 * gpu:flopwatch_flops_utilization:ratio_rate5m) / 20)",
          },
        ],
      },
      {
        "name": "flopwatch-name",
        "interval": "1m",
        "rules": [
          {
            "record": "name:flopwatch_gpu:count",
            "expr": "count by (" + text($._config.peers) + ") (gpu:flopwatch_gpu:info)",
          },
          {
            "record": "name:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.peers) + ") (gpu:flopwatch_tensor_flop:rate5m * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info)",
          },
          {
            "record": "name:flopwatch_peak_flops:headline",
            "expr": "sum by (" + text($._config.peers) + ") (gpu:flopwatch_peak_flops:headline * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info)",
          },
          {
            "record": "name:flopwatch_flops_utilization:ratio_rate5m",
            "expr": "name:flopwatch_tensor_flop:rate5m / name:flopwatch_peak_flops:headline",
          },
        ],
      },
      {
        "name": "flopwatch-models",
        "interval": "1m",
        "rules": [
          {
            "record": "workload:flopwatch_model_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model) (rate(flopwatch_model_flop_total[5m]))",
          },
          {
            "record": "workload:flopwatch_model_dram_bytes:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model) (rate(flopwatch_model_dram_bytes_total[5m]))",
          },
          {
            "record": "workload_phase:flopwatch_model_tokens:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model, phase) (rate(flopwatch_model_tokens_total[5m]))",
          },
          {
            "record": "workload:flopwatch_model_tokens:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model) (workload_phase:flopwatch_model_tokens:rate5m)",
          },
          {
            "record": "workload:flopwatch_model_cached_tokens:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model) (rate(flopwatch_model_cached_tokens_total[5m]))",
          },
          {
            "record": "workload:flopwatch_model_cached_tokens:ratio_rate5m",
            "expr": "workload:flopwatch_model_cached_tokens:rate5m\n  / (workload:flopwatch_model_cached_tokens:rate5m\n    + on (" + text($._config.host) + ", workload, model) group_left ()\n      sum by (" + text($._config.host) + ", workload, model) (workload_phase:flopwatch_model_tokens:rate5m{phase=\"prefill\"}) > 0)",
          },
          {
            "record": "workload:flopwatch_model_cached_tokens:usual",
            "expr": "(avg_over_time(workload:flopwatch_model_cached_tokens:ratio_rate5m[6h] offset 30m) and count_over_time(workload:flopwatch_model_cached_tokens:ratio_rate5m[6h] offset 30m) > 60\n    unless (workload:flopwatch_model_cached_tokens:usual and on (" + text($._config.host) + ", workload, model) ALERTS{alertname=\"PrefixCacheCollapsed\", alertstate=\"firing\"}\n      and on (" + text($._config.host) + ", workload, model) (ALERTS_FOR_STATE{alertname=\"PrefixCacheCollapsed\"} > time() - 1209600)))\n  or (max by (" + text($._config.host) + ", workload, model) (last_over_time(workload:flopwatch_model_cached_tokens:usual[1h])) and on (" + text($._config.host) + ", workload, model) ALERTS{alertname=\"PrefixCacheCollapsed\", alertstate=\"firing\"}\n      and on (" + text($._config.host) + ", workload, model) (ALERTS_FOR_STATE{alertname=\"PrefixCacheCollapsed\"} > time() - 1209600))",
          },
          {
            "record": "workload:flopwatch_tokens:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload) (workload:flopwatch_model_tokens:rate5m)",
          },
          {
            "record": "workload:flopwatch_model_requests:waiting_avg5m",
            "expr": "sum by (" + text($._config.host) + ", workload, model) (avg_over_time(flopwatch_model_requests{state=\"waiting\"}[5m]))",
          },
          {
            "record": "workload:flopwatch_demand:sum",
            "expr": "sum by (" + text($._config.host) + ", workload) (avg_over_time(flopwatch_model_requests[5m]))\n  or on (" + text($._config.host) + ", workload) workload:flopwatch_tokens:rate5m",
          },
          {
            "record": "workload:flopwatch_model_tokens:usual",
            "expr": "(avg_over_time(workload:flopwatch_model_tokens:rate5m[6h] offset 30m) and count_over_time(workload:flopwatch_model_tokens:rate5m[6h] offset 30m) > 60\n    unless (workload:flopwatch_model_tokens:usual and on (" + text($._config.host) + ", workload, model) ALERTS{alertname=\"ModelThroughputFell\", alertstate=\"firing\"}\n      and on (" + text($._config.host) + ", workload, model) (ALERTS_FOR_STATE{alertname=\"ModelThroughputFell\"} > time() - 1209600)))\n  or (max by (" + text($._config.host) + ", workload, model) (last_over_time(workload:flopwatch_model_tokens:usual[1h])) and on (" + text($._config.host) + ", workload, model) ALERTS{alertname=\"ModelThroughputFell\", alertstate=\"firing\"}\n      and on (" + text($._config.host) + ", workload, model) (ALERTS_FOR_STATE{alertname=\"ModelThroughputFell\"} > time() - 1209600))",
          },
          {
            "record": "workload:flopwatch_peak_flops:headline",
            "expr": "sum by (" + text($._config.host) + ", workload) (\n    gpu_workload:flopwatch_workload_gpu:info * on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_peak_flops:headline)",
          },
          {
            "record": "workload:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload) (\n    gpu_workload:flopwatch_workload_gpu:info * on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_tensor_flop:rate5m)",
          },
          {
            "record": "model:flopwatch_model_flop:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model) (workload:flopwatch_model_flop:rate5m)",
          },
          {
            "record": "model:flopwatch_model_dram_bytes:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model) (workload:flopwatch_model_dram_bytes:rate5m)",
          },
          {
            "record": "model_phase:flopwatch_model_tokens:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model, phase) (workload_phase:flopwatch_model_tokens:rate5m)",
          },
          {
            "record": "workload:flopwatch_model_peak_flops:headline",
            "expr": "workload:flopwatch_peak_flops:headline * on (" + text($._config.host) + ", workload) group_left (model) (\n      max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))\n        unless on (" + text($._config.host) + ", workload) group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1)\n      or label_replace(group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1), \"model\", \"(several)\", \"\", \"\"))",
          },
          {
            "record": "workload:flopwatch_model_tensor_flop:rate5m",
            "expr": "workload:flopwatch_tensor_flop:rate5m * on (" + text($._config.host) + ", workload) group_left (model) (\n      max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))\n        unless on (" + text($._config.host) + ", workload) group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1)\n      or label_replace(group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1), \"model\", \"(several)\", \"\", \"\"))",
          },
          {
            "record": "model:flopwatch_peak_flops:headline",
            "expr": "sum by (" + text($._config.cluster) + ", model) (workload:flopwatch_model_peak_flops:headline)",
          },
          {
            "record": "model:flopwatch_tensor_flop:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model) (workload:flopwatch_model_tensor_flop:rate5m)",
          },
          {
            "record": "model:flopwatch_model_flops_utilization:ratio_rate5m",
            "expr": "model:flopwatch_model_flop:rate5m / model:flopwatch_peak_flops:headline",
          },
          {
            "record": "model:flopwatch_useful_flop:ratio_rate5m",
            "expr": "model:flopwatch_model_flop:rate5m / (model:flopwatch_tensor_flop:rate5m > 0)",
          },
          {
            "record": "model:flopwatch_useful_flop:usual",
            "expr": "(avg_over_time(model:flopwatch_useful_flop:ratio_rate5m[6h] offset 30m) and count_over_time(model:flopwatch_useful_flop:ratio_rate5m[6h] offset 30m) > 60\n    unless (model:flopwatch_useful_flop:usual and on (" + text($._config.cluster) + ", model) ALERTS{alertname=\"ModelUsefulShareFell\", alertstate=\"firing\"}\n      and on (" + text($._config.cluster) + ", model) (ALERTS_FOR_STATE{alertname=\"ModelUsefulShareFell\"} > time() - 1209600)))\n  or (max by (" + text($._config.cluster) + ", model) (last_over_time(model:flopwatch_useful_flop:usual[1h])) and on (" + text($._config.cluster) + ", model) ALERTS{alertname=\"ModelUsefulShareFell\", alertstate=\"firing\"}\n      and on (" + text($._config.cluster) + ", model) (ALERTS_FOR_STATE{alertname=\"ModelUsefulShareFell\"} > time() - 1209600))",
          },
          {
            "record": "model:flopwatch_arithmetic_intensity:ratio_rate5m",
            "expr": "model:flopwatch_model_flop:rate5m / (model:flopwatch_model_dram_bytes:rate5m > 0)",
          },
        ],
      },
      {
        "name": "flopwatch-objectives",
        "interval": "1m",
        "rules": [
          {
            "record": "workload_objective:flopwatch_objective:missed",
            "expr": "((label_replace(sum by (" + text($._config.cluster) + ", workload) (workload:flopwatch_tokens:rate5m), \"objective\", \"tokens_per_second\", \"\", \"\")\n      or label_replace(sum by (" + text($._config.cluster) + ", workload) (workload:flopwatch_model_flop:rate5m)\n        / sum by (" + text($._config.cluster) + ", workload) (workload:flopwatch_peak_flops:headline), \"objective\", \"mfu\", \"\", \"\"))\n    < bool on (workload, objective) group_left ()\n      max by (workload, objective) (flopwatch_objective))\n  and on (" + text($._config.cluster) + ", workload) sum by (" + text($._config.cluster) + ", workload) (workload:flopwatch_demand:sum) > 0",
          },
        ],
      },
      {
        "name": "flopwatch-holder",
        "interval": "1m",
        "rules": [
          {
            "record": "holder_state:flopwatch_holder_gpu_seconds:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, state) (\n    label_replace(label_replace(label_replace(label_replace(sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod, state) (rate(flopwatch_holder_gpu_seconds_total{mig=\"\"}[5m])), \"namespace\", \"\", \"holder\", \"job|workload|process|none\"), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"\", \"holder\", \"job|workload|process|none\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\"))",
          },
          {
            "record": "holder:flopwatch_holder_gpu_seconds:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload) (holder_state:flopwatch_holder_gpu_seconds:rate5m)",
          },
          {
            "record": "holder:flopwatch_holder_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload) (\n    label_replace(label_replace(label_replace(label_replace(sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod) (rate(flopwatch_holder_flop_total{mig=\"\"}[5m])), \"namespace\", \"\", \"holder\", \"job|workload|process|none\"), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"\", \"holder\", \"job|workload|process|none\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\"))",
          },
          {
            "record": "holder:flopwatch_holder_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload) (\n    label_replace(label_replace(label_replace(label_replace(sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod) (rate(flopwatch_holder_energy_joules_total{mig=\"\"}[5m])), \"namespace\", \"\", \"holder\", \"job|workload|process|none\"), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"\", \"holder\", \"job|workload|process|none\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\"))",
          },
          {
            "record": "holder:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, currency) (\n    label_replace(label_replace(label_replace(label_replace(sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod, currency) (sum by (" + text($._config.gpu) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod) (rate(flopwatch_holder_gpu_seconds_total{mig=\"\"}[5m])) * on (" + text($._config.gpu) + ") group_left (currency) (max by (" + text($._config.gpu) + ", currency) (last_over_time(flopwatch_price_per_gpu_hour[5m])) / 3600)), \"namespace\", \"\", \"holder\", \"job|workload|process|none\"), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"\", \"holder\", \"job|workload|process|none\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\"))",
          },
          {
            "record": "holder:flopwatch_idle_cost:rate5m",
            "expr": "sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, currency) (\n    label_replace(label_replace(label_replace(label_replace(sum by (" + text($._config.host) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod, currency) (sum by (" + text($._config.gpu) + ", holder, namespace, pod, hpc_job, workload, exported_namespace, exported_pod) (rate(flopwatch_holder_gpu_seconds_total{mig=\"\", state=\"idle\"}[5m])) * on (" + text($._config.gpu) + ") group_left (currency) (max by (" + text($._config.gpu) + ", currency) (last_over_time(flopwatch_price_per_gpu_hour[5m])) / 3600)), \"namespace\", \"\", \"holder\", \"job|workload|process|none\"), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"), \"pod\", \"\", \"holder\", \"job|workload|process|none\"), \"pod\", \"$1\", \"exported_pod\", \"(.+)\"))",
          },
        ],
      },
      {
        "name": "flopwatch-workload-cost",
        "interval": "1m",
        "rules": [
          {
            "record": "workload:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, currency) (\n    (last_over_time(flopwatch_workload_gpu_info[5m])\n      / on (" + text($._config.gpu) + ") group_left ()\n        count by (" + text($._config.gpu) + ") (last_over_time(flopwatch_workload_gpu_info[5m])))\n      * on (" + text($._config.gpu) + ") group_left (currency) (max by (" + text($._config.gpu) + ", currency) (last_over_time(flopwatch_price_per_gpu_hour[5m])) / 3600))",
          },
          {
            "record": "workload:flopwatch_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload) (\n    (last_over_time(flopwatch_workload_gpu_info[5m])\n      / on (" + text($._config.gpu) + ") group_left ()\n        count by (" + text($._config.gpu) + ") (last_over_time(flopwatch_workload_gpu_info[5m])))\n      * on (" + text($._config.gpu) + ") group_left () sum by (" + text($._config.gpu) + ") (rate(flopwatch_energy_joules_total[5m])))",
          },
          {
            "record": "workload:flopwatch_joules_per_token:ratio_rate5m",
            "expr": "workload:flopwatch_energy_joules:rate5m / (workload:flopwatch_tokens:rate5m > 0)",
          },
          {
            "record": "workload:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * workload:flopwatch_cost:rate5m\n  / on (" + text($._config.host) + ", workload) group_left () (workload:flopwatch_tokens:rate5m > 0)",
          },
          {
            "record": "workload:flopwatch_cost_per_million_output_tokens:ratio_rate5m",
            "expr": "1e6 * workload:flopwatch_cost:rate5m\n  / on (" + text($._config.host) + ", workload) group_left ()\n    (sum by (" + text($._config.host) + ", workload) (workload_phase:flopwatch_model_tokens:rate5m{phase=\"decode\"}) > 0)",
          },
          {
            "record": "workload:flopwatch_cost_per_useful_pflop:ratio_rate5m",
            "expr": "1e15 * workload:flopwatch_cost:rate5m\n  / on (" + text($._config.host) + ", workload) group_left ()\n    (sum by (" + text($._config.host) + ", workload) (workload:flopwatch_model_flop:rate5m) > 0)",
          },
        ],
      },
      {
        "name": "flopwatch-model-cost",
        "interval": "1m",
        "rules": [
          {
            "record": "workload_model:flopwatch_cost:rate5m",
            "expr": "workload:flopwatch_cost:rate5m * on (" + text($._config.host) + ", workload) group_left (model) (\n      max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))\n        unless on (" + text($._config.host) + ", workload) group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1)\n      or label_replace(group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1), \"model\", \"(several)\", \"\", \"\"))",
          },
          {
            "record": "workload_model:flopwatch_energy_joules:rate5m",
            "expr": "workload:flopwatch_energy_joules:rate5m * on (" + text($._config.host) + ", workload) group_left (model) (\n      max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))\n        unless on (" + text($._config.host) + ", workload) group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1)\n      or label_replace(group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1), \"model\", \"(several)\", \"\", \"\"))",
          },
          {
            "record": "model:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model, currency) (workload_model:flopwatch_cost:rate5m)",
          },
          {
            "record": "model:flopwatch_energy_joules:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model) (workload_model:flopwatch_energy_joules:rate5m)",
          },
          {
            "record": "model:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * model:flopwatch_cost:rate5m\n  / on (" + text($._config.cluster) + ", model) group_left ()\n    (sum by (" + text($._config.cluster) + ", model) (model_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
          {
            "record": "model:flopwatch_joules_per_token:ratio_rate5m",
            "expr": "model:flopwatch_energy_joules:rate5m\n  / on (" + text($._config.cluster) + ", model)\n    (sum by (" + text($._config.cluster) + ", model) (model_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
        ],
      },
      {
        "name": "flopwatch-phase-cost",
        "interval": "1m",
        "rules": [
          {
            "record": "workload:flopwatch_peak_dram_bandwidth:sum",
            "expr": "sum by (" + text($._config.host) + ", workload) (\n    gpu_workload:flopwatch_workload_gpu:info * on (" + text($._config.gpu) + ") group_left ()\n      max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_peak_dram_bandwidth_bytes_per_second[5m])))",
          },
          {
            "record": "workload_phase:flopwatch_least_seconds:rate5m",
            "expr": "(\n    sum by (" + text($._config.host) + ", workload, phase) (rate(flopwatch_model_flop_total[5m]))\n    / on (" + text($._config.host) + ", workload) group_left () workload:flopwatch_peak_flops:headline\n  >=\n    sum by (" + text($._config.host) + ", workload, phase) (rate(flopwatch_model_phase_dram_bytes_total[5m]))\n    / on (" + text($._config.host) + ", workload) group_left () workload:flopwatch_peak_dram_bandwidth:sum\n  )\n  or\n  (\n    sum by (" + text($._config.host) + ", workload, phase) (rate(flopwatch_model_phase_dram_bytes_total[5m]))\n    / on (" + text($._config.host) + ", workload) group_left () workload:flopwatch_peak_dram_bandwidth:sum\n  >\n    sum by (" + text($._config.host) + ", workload, phase) (rate(flopwatch_model_flop_total[5m]))\n    / on (" + text($._config.host) + ", workload) group_left () workload:flopwatch_peak_flops:headline\n  )",
          },
          {
            "record": "workload_phase:flopwatch_time_share:ratio_rate5m",
            "expr": "workload_phase:flopwatch_least_seconds:rate5m\n  / on (" + text($._config.host) + ", workload) group_left ()\n    (sum by (" + text($._config.host) + ", workload) (workload_phase:flopwatch_least_seconds:rate5m) > 0)",
          },
          {
            "record": "workload_phase:flopwatch_cost:rate5m",
            "expr": "label_replace(workload:flopwatch_cost:rate5m * on (" + text($._config.host) + ", workload) group_left () workload_phase:flopwatch_time_share:ratio_rate5m{phase=\"prefill\"}, \"phase\", \"prefill\", \"\", \"\")\n  or label_replace(workload:flopwatch_cost:rate5m * on (" + text($._config.host) + ", workload) group_left () workload_phase:flopwatch_time_share:ratio_rate5m{phase=\"decode\"}, \"phase\", \"decode\", \"\", \"\")",
          },
          {
            "record": "gpu_workload:flopwatch_workload_namespace:info",
            "expr": "gpu_workload:flopwatch_workload_gpu:info\n  * on (" + text($._config.gpu) + ") group_left (namespace)\n    (group by (" + text($._config.gpu) + ", namespace)\n      (label_replace(last_over_time(flopwatch_gpu_allocation_info[5m]), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"))\n      and on (" + text($._config.gpu) + ") count by (" + text($._config.gpu) + ") (group by (" + text($._config.gpu) + ", namespace)\n      (label_replace(last_over_time(flopwatch_gpu_allocation_info[5m]), \"namespace\", \"$1\", \"exported_namespace\", \"(.+)\"))) == 1)",
          },
          {
            "record": "namespace_workload:flopwatch_workload:info",
            "expr": "group by (" + text($._config.host) + ", workload, namespace) (gpu_workload:flopwatch_workload_namespace:info)\n  and on (" + text($._config.host) + ", workload)\n    count by (" + text($._config.host) + ", workload) (group by (" + text($._config.host) + ", workload, namespace) (gpu_workload:flopwatch_workload_namespace:info)) == 1\n  and on (" + text($._config.host) + ", workload)\n    count by (" + text($._config.host) + ", workload) (gpu_workload:flopwatch_workload_namespace:info)\n      == on (" + text($._config.host) + ", workload) count by (" + text($._config.host) + ", workload) (gpu_workload:flopwatch_workload_gpu:info)",
          },
          {
            "record": "workload_model_phase:flopwatch_cost:rate5m",
            "expr": "workload_phase:flopwatch_cost:rate5m * on (" + text($._config.host) + ", workload) group_left (model) (\n      max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))\n        unless on (" + text($._config.host) + ", workload) group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1)\n      or label_replace(group by (" + text($._config.host) + ", workload) (count by (" + text($._config.host) + ", workload) (max by (" + text($._config.host) + ", workload, model) (last_over_time(flopwatch_model_info[5m]))) > 1), \"model\", \"(several)\", \"\", \"\"))",
          },
          {
            "record": "model_phase:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", model, currency, phase) (workload_model_phase:flopwatch_cost:rate5m)",
          },
          {
            "record": "namespace_phase:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", namespace, currency, phase) (\n    workload_phase:flopwatch_cost:rate5m * on (" + text($._config.host) + ", workload) group_left (namespace) namespace_workload:flopwatch_workload:info)",
          },
          {
            "record": "namespace_phase:flopwatch_model_tokens:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", namespace, phase) (\n    workload_phase:flopwatch_model_tokens:rate5m * on (" + text($._config.host) + ", workload) group_left (namespace) namespace_workload:flopwatch_workload:info)",
          },
          {
            "record": "cluster_phase:flopwatch_cost:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", currency, phase) (workload_phase:flopwatch_cost:rate5m)",
          },
          {
            "record": "cluster_phase:flopwatch_model_tokens:rate5m",
            "expr": "sum by (" + text($._config.cluster) + ", phase) (workload_phase:flopwatch_model_tokens:rate5m)",
          },
          {
            "record": "workload_phase:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * workload_phase:flopwatch_cost:rate5m\n  / on (" + text($._config.host) + ", workload, phase) group_left () (sum by (" + text($._config.host) + ", workload, phase) (workload_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
          {
            "record": "model_phase:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * model_phase:flopwatch_cost:rate5m\n  / on (" + text($._config.cluster) + ", model, phase) group_left () (sum by (" + text($._config.cluster) + ", model, phase) (model_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
          {
            "record": "namespace_phase:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * namespace_phase:flopwatch_cost:rate5m\n  / on (" + text($._config.cluster) + ", namespace, phase) group_left () (sum by (" + text($._config.cluster) + ", namespace, phase) (namespace_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
          {
            "record": "cluster_phase:flopwatch_cost_per_million_tokens:ratio_rate5m",
            "expr": "1e6 * cluster_phase:flopwatch_cost:rate5m\n  / on (" + text($._config.cluster) + ", phase) group_left () (sum by (" + text($._config.cluster) + ", phase) (cluster_phase:flopwatch_model_tokens:rate5m) > 0)",
          },
        ],
      },
      {
        "name": "flopwatch-waste",
        "interval": "1m",
        "rules": [
          {
            "record": "workload:flopwatch_executed_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload) (rate(flopwatch_workload_executed_flop_total[5m]))",
          },
          {
            "record": "workload_cause:flopwatch_wasted_flop:rate5m",
            "expr": "sum by (" + text($._config.host) + ", workload, cause) (rate(flopwatch_model_wasted_flop_total[5m]))",
          },
        ],
      },
      {
        "name": "flopwatch-probes-recorded",
        "interval": "1m",
        "rules": [
          {
            "record": "gpu:flopwatch_probe_baseline_ratio:min",
            "expr": "max by (" + text($._config.gpu) + ") (flopwatch_probe_lowest_baseline_ratio{mig=\"\"})",
          },
          {
            "record": "gpu:flopwatch_probe_last_success_timestamp_seconds:max",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_probe_newest_success_timestamp_seconds{mig=\"\"}[5m]))",
          },
          {
            "record": "gpu:flopwatch_probe_mismatches:sum",
            "expr": "max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_wrong_results_total) > 0",
          },
          {
            "record": "name_kernel:flopwatch_probe_measure:median",
            "expr": "quantile by (" + text($._config.peers) + ", precision) (0.5, flopwatch_probe_efficiency_ratio{mig=\"\"} * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info)\n  or quantile by (" + text($._config.peers) + ", path) (0.5, flopwatch_probe_bandwidth_bytes_per_second{mig=\"\", path=\"device\"} * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info)",
          },
          {
            "record": "gpu_unit:flopwatch_probe_measure:peer_ratio",
            "expr": "label_replace(min by (" + text($._config.gpu) + ", name) (\n    flopwatch_probe_efficiency_ratio{mig=\"\"} * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info\n      / on (" + text($._config.peers) + ", precision) group_left () name_kernel:flopwatch_probe_measure:median{precision!=''}), \"unit\", \"compute\", \"\", \"\")\nor label_replace(min by (" + text($._config.gpu) + ", name) (\n    flopwatch_probe_bandwidth_bytes_per_second{mig=\"\", path=\"device\"} * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info\n      / on (" + text($._config.peers) + ", path) group_left () name_kernel:flopwatch_probe_measure:median{path!=''}), \"unit\", \"memory\", \"\", \"\")",
          },
          {
            "record": "name_unit:flopwatch_probe_measure:median_peer_ratio",
            "expr": "quantile by (" + text($._config.peers) + ", unit) (0.5, gpu_unit:flopwatch_probe_measure:peer_ratio)",
          },
          {
            "record": "name_unit:flopwatch_probe_measure:mad_peer_ratio",
            "expr": "quantile by (" + text($._config.peers) + ", unit) (0.5, abs(gpu_unit:flopwatch_probe_measure:peer_ratio - on (" + text($._config.peers) + ", unit) group_left () name_unit:flopwatch_probe_measure:median_peer_ratio))",
          },
          {
            "record": "name_unit:flopwatch_probe_measure:straggler_peer_ratio",
            "expr": "name_unit:flopwatch_probe_measure:median_peer_ratio - " + text($._config.peersDeviations) + " * clamp_min(1.4826 * name_unit:flopwatch_probe_measure:mad_peer_ratio, 0.01)",
          },
          {
            "record": "gpu:flopwatch_probe_measure:min_robust_z",
            "expr": "min by (" + text($._config.gpu) + ", name) ((gpu_unit:flopwatch_probe_measure:peer_ratio - on (" + text($._config.peers) + ", unit) group_left () name_unit:flopwatch_probe_measure:median_peer_ratio)\n    / on (" + text($._config.peers) + ", unit) group_left () clamp_min(1.4826 * name_unit:flopwatch_probe_measure:mad_peer_ratio, 0.01))",
          },
          {
            "record": "gpu:flopwatch_probe_measure:min_peer_ratio",
            "expr": "min by (" + text($._config.gpu) + ", name) (gpu_unit:flopwatch_probe_measure:peer_ratio)",
          },
          {
            "record": "gpu_unit:flopwatch_probe_measure:slow_peer_ratio",
            "expr": "max by (" + text($._config.gpu) + ", name, unit) (\n    gpu_unit:flopwatch_probe_measure:peer_ratio < " + text($._config.peersWarning) + "\n      <= on (" + text($._config.peers) + ", unit) group_left () name_unit:flopwatch_probe_measure:straggler_peer_ratio\n      and on (" + text($._config.peers) + ") name:flopwatch_gpu:count >= " + text($._config.peersMinimum) + "\n  )\n  or (max by (" + text($._config.gpu) + ", name, unit) (last_over_time(gpu_unit:flopwatch_probe_measure:slow_peer_ratio[1h]))\n    unless on (" + text($._config.gpu) + ", unit) (gpu_unit:flopwatch_probe_measure:peer_ratio >= " + text($._config.peersWarning) + " or gpu_unit:flopwatch_probe_measure:peer_ratio > on (" + text($._config.peers) + ", unit) group_left () name_unit:flopwatch_probe_measure:straggler_peer_ratio)\n    and on (" + text($._config.gpu) + ") last_over_time(gpu:flopwatch_gpu_up:recent[1h]))",
          },
          {
            "record": "gpu:flopwatch_probe_baseline_ratio:slow",
            "expr": "(max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_lowest_baseline_ratio) < " + text($._config.baselineWarning) + ")\n  or (max by (" + text($._config.gpu) + ", mig) (last_over_time(gpu:flopwatch_probe_baseline_ratio:slow[1h])) unless on (" + text($._config.gpu) + ", mig) max by (" + text($._config.gpu) + ", mig) (flopwatch_probe_lowest_baseline_ratio) and on (" + text($._config.gpu) + ") last_over_time(gpu:flopwatch_gpu_up:recent[1h]))",
          },
        ],
      },
      {
        "name": "flopwatch-stragglers",
        "interval": "1m",
        "rules": [
          {
            "record": "gpu:flopwatch_lost_speed:ratio",
            "expr": "gpu:flopwatch_clock_loss:ratio_rate5m\n    + on (" + text($._config.gpu) + ") max by (" + text($._config.gpu) + ") (clamp_min(1 - gpu:flopwatch_probe_measure:min_peer_ratio, 0))\n  or on (" + text($._config.gpu) + ") gpu:flopwatch_clock_loss:ratio_rate5m",
          },
        ],
      },
      {
        "name": "flopwatch-baselines",
        "interval": "2m",
        "rules": [
          {
            "record": "gpu:flopwatch_flops_utilization:avg1h",
            "expr": "(avg_over_time(gpu:flopwatch_flops_utilization:ratio_rate5m[1h]) unless on (" + text($._config.gpu) + ") (ALERTS_FOR_STATE{alertname=\"GPUUtilizationDropped\"} > time() - 1209600))\n  or (gpu:flopwatch_flops_utilization:avg1h offset 1d and on (" + text($._config.gpu) + ") (ALERTS_FOR_STATE{alertname=\"GPUUtilizationDropped\"} > time() - 1209600))",
          },
          {
            "record": "gpu:flopwatch_flops_utilization:same_hour",
            "expr": "min by (" + text($._config.gpu) + ") (\n    label_replace(gpu:flopwatch_flops_utilization:avg1h offset 1d, \"day\", \"yesterday\", \"\", \"\")\n    or label_replace(gpu:flopwatch_flops_utilization:avg1h offset 7d, \"day\", \"last week\", \"\", \"\"))",
          },
          {
            "record": "gpu:flopwatch_sm_active:avg1h",
            "expr": "avg_over_time(gpu:flopwatch_sm_active:avg5m[1h])",
          },
          {
            "record": "gpu:flopwatch_sm_active:same_hour",
            "expr": "min by (" + text($._config.gpu) + ") (\n    label_replace(gpu:flopwatch_sm_active:avg1h offset 1d, \"day\", \"yesterday\", \"\", \"\")\n    or label_replace(gpu:flopwatch_sm_active:avg1h offset 7d, \"day\", \"last week\", \"\", \"\"))",
          },
          {
            "record": "gpu:flopwatch_dram_bytes:avg1h",
            "expr": "(avg_over_time(gpu:flopwatch_dram_bytes_without_engine:rate5m[1h]) unless on (" + text($._config.gpu) + ") (ALERTS_FOR_STATE{alertname=\"GPUUtilizationDropped\"} > time() - 1209600))\n  or (gpu:flopwatch_dram_bytes:avg1h offset 1d and on (" + text($._config.gpu) + ") (ALERTS_FOR_STATE{alertname=\"GPUUtilizationDropped\"} > time() - 1209600))",
          },
          {
            "record": "gpu:flopwatch_dram_bytes:same_hour",
            "expr": "min by (" + text($._config.gpu) + ") (\n    label_replace(gpu:flopwatch_dram_bytes:avg1h offset 1d, \"day\", \"yesterday\", \"\", \"\")\n    or label_replace(gpu:flopwatch_dram_bytes:avg1h offset 7d, \"day\", \"last week\", \"\", \"\"))",
          },
          {
            "record": "workload:flopwatch_demand:avg1h",
            "expr": "avg_over_time(workload:flopwatch_demand:sum[1h])",
          },
          {
            "record": "workload:flopwatch_demand:same_hour",
            "expr": "min by (" + text($._config.host) + ", workload) (\n    label_replace(workload:flopwatch_demand:avg1h offset 1d, \"day\", \"yesterday\", \"\", \"\")\n    or label_replace(workload:flopwatch_demand:avg1h offset 7d, \"day\", \"last week\", \"\", \"\"))",
          },
          {
            "record": "workload:flopwatch_tokens:avg1h",
            "expr": "avg_over_time(workload:flopwatch_tokens:rate5m[1h])",
          },
          {
            "record": "workload:flopwatch_tokens:same_hour",
            "expr": "min by (" + text($._config.host) + ", workload) (\n    label_replace(workload:flopwatch_tokens:avg1h offset 1d, \"day\", \"yesterday\", \"\", \"\")\n    or label_replace(workload:flopwatch_tokens:avg1h offset 7d, \"day\", \"last week\", \"\", \"\"))",
          },
          {
            "record": "gpu:flopwatch_flops_utilization:same_hour_ratio",
            "expr": "avg_over_time(gpu:flopwatch_flops_utilization:ratio_rate5m[15m])\n  / (gpu:flopwatch_flops_utilization:same_hour > 0.01)",
          },
          {
            "record": "gpu:flopwatch_probe_baseline_ratio:avg1h",
            "expr": "avg_over_time(gpu:flopwatch_probe_baseline_ratio:min[1h])",
          },
        ],
      },
    ],
  },
}
