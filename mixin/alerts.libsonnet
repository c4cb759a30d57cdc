// Written by `python -m mixin.build`. Do not edit.
local text(value) = if std.isNumber(value) then '%g' % value else value;
{
  prometheusAlerts+:: {
    groups+: [
      {
        "name": "flopwatch-health",
        "interval": "1m",
        "rules": [
          {
            "alert": "GPULost",
            "expr": "min by (" + text($._config.gpu) + ") (last_over_time(flopwatch_gpu_up{mig=\"\", gpu!=\"unknown\"}[5m])) == 0",
            "for": "1m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} is lost",
              "description": "The driver no longer answers for it (UUID {{ $labels.uuid }}). Likely: it fell off the bus (XID 79), its firmware died (XID 119, 120), or it waits for a reset. Work on it is gone. Reset the GPU; if it does not come back, reboot the host.",
              "runbook_url": text($._config.runbooks) + "/GPULost.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUMissing",
            "expr": "instance:flopwatch_gpus:expected - instance:flopwatch_gpus:listed > 0\n  and on (" + text($._config.host) + ") instance:flopwatch_up:recent == 1",
            "for": "5m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "{{ $labels.instance }} lists fewer GPUs than it should",
              "description": "{{ $value }} GPUs that were listed before, or that are on the PCI bus, are missing from the driver's list. Likely: not enumerated after a reboot, passed to a virtual machine, or removed. Reset or reboot the host; if the GPU was removed on purpose, the runbook says how to accept it.",
              "runbook_url": text($._config.runbooks) + "/GPUMissing.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-host?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUDriverNotLoaded",
            "expr": "max by (" + text($._config.host) + ") (last_over_time(flopwatch_expected_gpus[5m])) > 0\n  unless on (" + text($._config.host) + ") instance:flopwatch_gpus:listed\n  and on (" + text($._config.host) + ") instance:flopwatch_up:recent == 1",
            "for": "5m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "{{ $labels.instance }} has GPUs but no driver",
              "description": "The PCI bus shows {{ $value }} GPUs and the driver lists none. Likely: the kernel module is not loaded or was not built for this kernel, or the library and the module differ in version. Check `dmesg` and `nvidia-smi` on the host.",
              "runbook_url": text($._config.runbooks) + "/GPUDriverNotLoaded.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-host?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUXidCritical",
            "expr": "time() - (gpu_xid:flopwatch_xid:timestamp{xid=~\"" + text($._config.xidCritical) + "\"}\n  unless (gpu_xid:flopwatch_xid:timestamp{xid=~\"" + text($._config.xidCritical) + "\"} <= on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_reset:timestamp))",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} reported XID {{ $labels.xid }}",
              "description": "XID {{ $labels.xid }} was reported {{ $value | humanizeDuration }} ago, and the GPU has not been reset since. Likely: memory (48, 63, 64, 92, 94, 95, 140), NVLink (74, 121, 144 to 150), off the bus (79), firmware (61, 62, 119, 120, 143). Drain the GPU and reset it; replace it if the error comes back.",
              "runbook_url": text($._config.runbooks) + "/GPUXidCritical.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUXidWarning",
            "expr": "time() - (gpu_xid:flopwatch_xid:timestamp{xid=~\"" + text($._config.xidWarning) + "\"}\n  unless (gpu_xid:flopwatch_xid:timestamp{xid=~\"" + text($._config.xidWarning) + "\"} <= on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_reset:timestamp))",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} reported XID {{ $labels.xid }}",
              "description": "XID {{ $labels.xid }} was reported {{ $value | humanizeDuration }} ago. The error was contained, or the next reset will clear it. Likely: memory (48, 63, 64, 92, 94, 95, 140), NVLink (74, 121, 144 to 150), off the bus (79), firmware (61, 62, 119, 120, 143). Drain the GPU and reset it; replace it if the error comes back.",
              "runbook_url": text($._config.runbooks) + "/GPUXidWarning.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUXidBurst",
            "expr": "sum by (" + text($._config.gpu) + ") (\n    increase(flopwatch_xid_errors_total{mig=\"\", xid=~\"" + text($._config.xidProgram) + "\"}[15m])\n      or (flopwatch_xid_errors_total{mig=\"\", xid=~\"" + text($._config.xidProgram) + "\"} unless last_over_time(flopwatch_xid_errors_total[5m] offset 15m))\n  ) > 5",
            "labels": {
              "severity": "info",
            },
            "annotations": {
              "summary": "Software on {{ $labels.instance }} keeps faulting on GPU {{ $labels.gpu }}",
              "description": "About {{ $value | humanize }} XIDs of the kinds that programs cause (13, 31, 43, 45 and similar) in 15 minutes. Likely: a crash-looping engine. If other programs also fault on this GPU, suspect the hardware.",
              "runbook_url": text($._config.runbooks) + "/GPUXidBurst.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUUncorrectableMemoryErrors",
            "expr": "time() - (gpu:flopwatch_ecc_uncorrected:timestamp\n  unless (gpu:flopwatch_ecc_uncorrected:timestamp <= on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_reset:timestamp))",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has uncorrectable memory errors",
              "description": "The last one was {{ $value | humanizeDuration }} ago, and the GPU has not been reset since. Likely: a failing memory cell. Processes that touched it were killed. Drain the GPU and reset it, which remaps the row; replace it if the errors come back.",
              "runbook_url": text($._config.runbooks) + "/GPUUncorrectableMemoryErrors.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUCorrectableMemoryErrors",
            "expr": "sum by (" + text($._config.gpu) + ") (increase(flopwatch_ecc_errors_total{mig=\"\", kind=\"corrected\"}[1h])) > " + text($._config.correctedErrors),
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} corrects many memory errors",
              "description": "About {{ $value | humanize }} corrected ECC errors within an hour. Likely: memory that is starting to fail. Nothing is lost yet. Plan a reset.",
              "runbook_url": text($._config.runbooks) + "/GPUCorrectableMemoryErrors.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPURowRemapPending",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_row_remap_pending{mig=\"\"}[5m])) == 1",
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} waits for a reset to remap a memory row",
              "description": "Likely: a memory row was marked bad. Drain the GPU and reset it when convenient.",
              "runbook_url": text($._config.runbooks) + "/GPURowRemapPending.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPURowRemapFailed",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_row_remap_failed{mig=\"\"}[5m])) == 1",
            "for": "1m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has run out of spare memory rows",
              "description": "A bad memory row could not be remapped. Likely: failing memory. Replace the GPU: this is the vendor's criterion.",
              "runbook_url": text($._config.runbooks) + "/GPURowRemapFailed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPURecoveryActionNeeded",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_recovery_action{mig=\"\", action=\"none\"}[5m])) == 0",
            "for": "1m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} needs a recovery action",
              "description": "The driver recommends {{ with printf `flopwatch_recovery_action{cluster=%q, instance=%q, uuid=%q, action!=\"none\"} == 1` $labels.cluster $labels.instance $labels.uuid | query }}{{ . | first | label \"action\" }}{{ else }}an action that this exporter does not know{{ end }}. Likely: an error that the driver cannot clear by itself. Take the recommended action; results and performance are not reliable until then.",
              "runbook_url": text($._config.runbooks) + "/GPURecoveryActionNeeded.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUMemoryHeld",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_memory_used_bytes{mig=\"\"}[5m])\n    / last_over_time(flopwatch_memory_size_bytes{mig=\"\"}[5m])) > " + text($._config.memoryHeldRatio) + "\n  and on (" + text($._config.gpu) + ") max_over_time(gpu:flopwatch_busy:ratio_rate5m[15m]) < 0.01\n  and on (" + text($._config.gpu) + ") (gpu_workload:flopwatch_workload_gpu:info\n    unless on (" + text($._config.host) + ", workload) max by (" + text($._config.host) + ", workload) (max_over_time(flopwatch_workload_up[15m])) == 1)",
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} holds memory but does no work",
              "description": "{{ $value | humanizePercentage }} of its memory is allocated, nothing has run on it for 15 minutes, and its engine does not answer. Likely: an engine that died or hangs with its memory still allocated, or a leftover process. Find the process (nvidia-smi) and end it, or restart the pod.",
              "runbook_url": text($._config.runbooks) + "/GPUMemoryHeld.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-links",
        "interval": "1m",
        "rules": [
          {
            "alert": "NVLinkDown",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_nvlinks_up{mig=\"\"}[5m]))\n    < on (" + text($._config.host) + ") group_left ()\n      quantile by (" + text($._config.host) + ") (0.25, last_over_time(flopwatch_nvlinks_up{mig=\"\"}[5m]))\nor\nmax by (" + text($._config.gpu) + ") (last_over_time(flopwatch_nvlinks_up{mig=\"\"}[5m])) < gpu:flopwatch_nvlinks_up:expected",
            "for": "5m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has lost NVLinks",
              "description": "Only {{ $value }} of its NVLinks are up, fewer than on its siblings or than before. Likely: a link that could not be retrained, a switch or its fabric manager, or a bridge. Collectives run at the pace of the slowest member: drain the host and reset it.",
              "runbook_url": text($._config.runbooks) + "/NVLinkDown.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "NVLinkErrors",
            "expr": "sum by (" + text($._config.gpu) + ") (increase(flopwatch_nvlink_errors_total{mig=\"\"}[30m]) > 0) > " + text($._config.nvlinkErrors),
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has NVLink errors",
              "description": "About {{ $value | humanize }} link errors in half an hour. Likely: a connector, a cable or a switch port. Data is sent again, which costs bandwidth and latency. Such a link usually fails later.",
              "runbook_url": text($._config.runbooks) + "/NVLinkErrors.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "PCIeLinkDegraded",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_pcie_link_width[5m]) / last_over_time(flopwatch_pcie_link_width_max[5m])) < 1\nor (\n  max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_pcie_link_generation[5m]) / last_over_time(flopwatch_pcie_link_generation_max[5m])) < 1\n  and on (" + text($._config.gpu) + ") gpu:flopwatch_busy:ratio_rate5m > 0.2\n)",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has a degraded PCIe link",
              "description": "The link runs at {{ $value | humanizePercentage }} of the width or generation that the GPU and its slot support. Likely: seating, a riser or a BIOS setting. Weights load and KV blocks move that much slower. Reseat the board.",
              "runbook_url": text($._config.runbooks) + "/PCIeLinkDegraded.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "PCIeReplays",
            "expr": "sum by (" + text($._config.gpu) + ") (increase(flopwatch_pcie_replays_total{mig=\"\"}[1h])) > " + text($._config.pcieReplays),
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} repeats PCIe transfers",
              "description": "About {{ $value | humanize }} PCIe replays within an hour: packets arrived corrupted and were sent again. Likely: seating, a riser or the slot. Reseat the board.",
              "runbook_url": text($._config.runbooks) + "/PCIeReplays.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-performance",
        "interval": "1m",
        "rules": [
          {
            "alert": "GPUUtilizationDropped",
            "expr": "gpu:flopwatch_flops_utilization:same_hour_ratio < " + text($._config.utilizationDrop) + "\nand on (" + text($._config.gpu) + ") (\n  (gpu_workload:flopwatch_workload_gpu:info and on (" + text($._config.gpu) + ") gpu:flopwatch_flops_utilization:same_hour_ratio < " + text($._config.utilizationDrop) + ")\n    and on (" + text($._config.host) + ", workload)\n      avg_over_time(workload:flopwatch_demand:sum[15m]) / (workload:flopwatch_demand:same_hour > 0) >= 0.85\n    and on (" + text($._config.host) + ", workload)\n      avg_over_time(workload:flopwatch_tokens:rate5m[15m]) / (workload:flopwatch_tokens:same_hour > 0) < " + text($._config.throughputDrop) + "\n  or\n  (gpu_workload:flopwatch_workload_gpu:info and on (" + text($._config.gpu) + ") gpu:flopwatch_flops_utilization:same_hour_ratio < " + text($._config.utilizationDrop) + ")\n    * on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_flops_utilization:same_hour_ratio\n    < on (" + text($._config.host) + ", workload) group_left () (0.75 *\n      quantile by (" + text($._config.host) + ", workload) (0.5,\n        (gpu_workload:flopwatch_workload_gpu:info and on (" + text($._config.host) + ", workload) (gpu_workload:flopwatch_workload_gpu:info and on (" + text($._config.gpu) + ") gpu:flopwatch_flops_utilization:same_hour_ratio < " + text($._config.utilizationDrop) + "))\n          * on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_flops_utilization:same_hour_ratio)\n      and on (" + text($._config.host) + ", workload)\n        avg_over_time(workload:flopwatch_demand:sum[15m]) / (workload:flopwatch_demand:same_hour > 0) >= 0.85)\n  or\n  (avg_over_time(gpu:flopwatch_sm_active:avg5m[15m]) / (gpu:flopwatch_sm_active:same_hour > 0.1) >= 0.9\n    and avg_over_time(gpu:flopwatch_dram_bytes_without_engine:rate5m[15m]) / (gpu:flopwatch_dram_bytes:same_hour > 0) < 0.7\n    unless on (" + text($._config.gpu) + ") gpu_workload:flopwatch_workload_gpu:info)\n)",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} delivers far fewer FLOPS than usual at the same demand",
              "description": "The tensor pipe delivers {{ $value | humanizePercentage }} of what this GPU delivered at the same hour yesterday or a week ago (the lower of the two), while the demand has not changed. Likely: a changed engine or batch setting, a neighbor on the GPU, a replica out of the load balancer's rotation, or a GPU that became slow. Compare it with the other GPUs of its workload.",
              "runbook_url": text($._config.runbooks) + "/GPUUtilizationDropped.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUSlowerThanPeers",
            "expr": "max by (" + text($._config.gpu) + ", name) (gpu_unit:flopwatch_probe_measure:slow_peer_ratio{unit=\"compute\"}) >= " + text($._config.peersCritical),
            "for": "15m",
            "labels": {
              "severity": "warning",
              "unit": "compute",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} computes slower than its peers",
              "description": "Its slowest GEMM probe reaches {{ $value | humanizePercentage }} of the median of the {{ $labels.name }} in {{ $labels.cluster }}, corrected for the SM clock, so neither heat nor a power limit explains it. Likely: failing silicon or memory, or software that the peers do not have. Run the vendor's diagnostics.",
              "runbook_url": text($._config.runbooks) + "/GPUSlowerThanPeers.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUSlowerThanPeers",
            "expr": "max by (" + text($._config.gpu) + ", name) (gpu_unit:flopwatch_probe_measure:slow_peer_ratio{unit=\"memory\"}) >= " + text($._config.peersCritical),
            "for": "15m",
            "labels": {
              "severity": "warning",
              "unit": "memory",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has slower memory than its peers",
              "description": "Its device-memory probe reaches {{ $value | humanizePercentage }} of the median of the {{ $labels.name }} in {{ $labels.cluster }}, more than 3.5 robust standard deviations below it. A lower memory clock or different ECC settings would also explain it. Likely: failing silicon or memory, or software that the peers do not have. Run the vendor's diagnostics.",
              "runbook_url": text($._config.runbooks) + "/GPUSlowerThanPeers.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUFarSlowerThanPeers",
            "expr": "min by (" + text($._config.gpu) + ", name) (gpu_unit:flopwatch_probe_measure:slow_peer_ratio) < " + text($._config.peersCritical),
            "for": "10m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} is far slower than its peers",
              "description": "Its slowest probe reaches {{ $value | humanizePercentage }} of the median of the {{ $labels.name }} in {{ $labels.cluster }}. A tensor-parallel group runs at the pace of its slowest member: take it out of service. Likely: failing silicon or memory, or software that the peers do not have. Run the vendor's diagnostics.",
              "runbook_url": text($._config.runbooks) + "/GPUFarSlowerThanPeers.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUSlowerThanOwnBaseline",
            "expr": "gpu:flopwatch_probe_baseline_ratio:slow >= " + text($._config.baselineCritical) + "\n  unless on (" + text($._config.gpu) + ") gpu_unit:flopwatch_probe_measure:slow_peer_ratio",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }} on {{ $labels.instance }} is slower than it used to be",
              "description": "Its slowest probe{{ with printf `bottomk(1, flopwatch_probe_baseline_ratio{cluster=%q, instance=%q, uuid=%q, kernel=~\"gemm_.+|copy_device\"})` $labels.cluster $labels.instance $labels.uuid | query }} ({{ . | first | label \"kernel\" }}){{ end }} reaches {{ $value | humanizePercentage }} of this GPU's own baseline for the same software. As far as it can be compared, it is not slower than its peers. Likely: a lowered clock or power limit, worse cooling, or aging silicon or memory. Compare it with its siblings first, to tell a change of the whole fleet from a fault of one GPU.",
              "runbook_url": text($._config.runbooks) + "/GPUSlowerThanOwnBaseline.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUFarSlowerThanOwnBaseline",
            "expr": "gpu:flopwatch_probe_baseline_ratio:slow < " + text($._config.baselineCritical) + "\n  unless on (" + text($._config.gpu) + ") gpu_unit:flopwatch_probe_measure:slow_peer_ratio",
            "for": "10m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }} on {{ $labels.instance }} has lost more than a quarter of its speed",
              "description": "Its slowest probe{{ with printf `bottomk(1, flopwatch_probe_baseline_ratio{cluster=%q, instance=%q, uuid=%q, kernel=~\"gemm_.+|copy_device\"})` $labels.cluster $labels.instance $labels.uuid | query }} ({{ . | first | label \"kernel\" }}){{ end }} reaches {{ $value | humanizePercentage }} of this GPU's own baseline for the same software. As far as it can be compared, it is not slower than its peers. Likely: a lowered clock or power limit, worse cooling, or aging silicon or memory. Compare it with its siblings first, to tell a change of the whole fleet from a fault of one GPU.",
              "runbook_url": text($._config.runbooks) + "/GPUFarSlowerThanOwnBaseline.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUSilentDataCorruption",
            "expr": "time() - (gpu:flopwatch_probe_wrong_results:timestamp\n  unless (gpu:flopwatch_probe_wrong_results:timestamp <= on (" + text($._config.gpu) + ") group_left () gpu:flopwatch_reset:timestamp))",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }} on {{ $labels.instance }} computes wrong results",
              "description": "The last probe result that differed from earlier results for the same inputs was {{ $value | humanizeDuration }} ago{{ with printf `flopwatch_probe_mismatches_total{cluster=%q, instance=%q, uuid=%q} > 0` $labels.cluster $labels.instance $labels.uuid | query }} ({{ range $index, $each := . }}{{ if $index }}, {{ end }}{{ $each | label \"kernel\" }}{{ end }}){{ end }}, and the GPU has not been reset since. Likely: failing silicon; the hardware raised no error. Answers served by this GPU cannot be trusted: take it out of service.",
              "runbook_url": text($._config.runbooks) + "/GPUSilentDataCorruption.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUClocksHeldDownByHeat",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_gpu_seconds_total{state=\"clock_thermal\", mig=\"\"}[5m])) > " + text($._config.heatLossWarning),
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} loses FLOPS to heat",
              "description": "{{ $value | humanizePercentage }} of its peak is lost to clocks held down by temperature. Likely: a failed fan or pump, blocked air, hot inlet air, or dried thermal paste when its neighbors stay cool. Compare the temperatures of the host's GPUs.",
              "runbook_url": text($._config.runbooks) + "/GPUClocksHeldDownByHeat.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUClocksHeldDownByPower",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_gpu_seconds_total{state=\"clock_power\", mig=\"\"}[5m])) > " + text($._config.powerLossWarning),
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} loses FLOPS to its power limit",
              "description": "{{ $value | humanizePercentage }} of its peak is lost to clocks held down by power. Likely: a lowered limit or a power supply in trouble; a dense prefill load loses 10 to 20 % at the default limit. Compare the limit with the siblings' (nvidia-smi -q -d POWER).",
              "runbook_url": text($._config.runbooks) + "/GPUClocksHeldDownByPower.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUPowerBrake",
            "expr": "sum by (" + text($._config.gpu) + ") (rate(flopwatch_clock_event_seconds_total{mig=\"\", reason=~\"hw_power_brake.*\"}[5m])) > " + text($._config.powerBrakeRatio),
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} is slowed down by the external power brake",
              "description": "The external power brake was on {{ $value | humanizePercentage }} of the time. Likely: a failed or overloaded power supply, or a rack power cap. The brake comes from the chassis: check its power supplies.",
              "runbook_url": text($._config.runbooks) + "/GPUPowerBrake.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUPowerLimitLowered",
            "expr": "(max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_power_limit_watts{mig=\"\"}[5m]))\n    < " + text($._config.powerLimitRatio) + " * gpu:flopwatch_power_limit_watts:usual)\nor (\n  max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_power_limit_watts{mig=\"\"}[5m]))\n    * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info\n    < on (" + text($._config.peers) + ") group_left () (" + text($._config.powerLimitRatio) + "\n      * quantile by (" + text($._config.peers) + ") (0.5, gpu:flopwatch_power_limit_watts:usual\n          * on (" + text($._config.gpu) + ") group_left (name) gpu:flopwatch_gpu:info))\n  unless on (" + text($._config.gpu) + ") (max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_power_limit_watts{mig=\"\"}[5m])) < " + text($._config.powerLimitRatio) + " * gpu:flopwatch_power_limit_watts:usual)\n)",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has a lowered power limit",
              "description": "The limit is {{ $value | humanize }} W, less than 90 % of this GPU's earlier limit or of the median of its model. Likely: someone or a tool changed it (nvidia-smi -pl), a rack power cap, or a firmware change. Restore the limit, or accept it as the runbook says.",
              "runbook_url": text($._config.runbooks) + "/GPUPowerLimitLowered.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUMemoryHot",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_temperature_celsius{mig=\"\", sensor=\"memory\"}[5m])) >= " + text($._config.memoryHotCelsius),
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has memory at its temperature limit",
              "description": "Its memory is at {{ $value | humanize }} °C. Likely: a failed fan or pump, blocked air, or thermal pads that have lost contact. It throttles at this temperature. Check the cooling of this slot.",
              "runbook_url": text($._config.runbooks) + "/GPUMemoryHot.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "GPUHotWhileIdle",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_temperature_celsius{mig=\"\", sensor=\"gpu\"}[5m])) > " + text($._config.idleHotCelsius) + "\n  and on (" + text($._config.gpu) + ") gpu:flopwatch_busy:ratio_rate5m < " + text($._config.idleBusyRatio),
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} is hot while idle",
              "description": "It is at {{ $value | humanize }} °C with nothing to do. Likely: the cooling of this slot has failed, or a busy neighbor heats it. It will throttle under load. Check fans and air flow.",
              "runbook_url": text($._config.runbooks) + "/GPUHotWhileIdle.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-workloads",
        "interval": "1m",
        "rules": [
          {
            "alert": "WorkloadStuck",
            "expr": "sum by (" + text($._config.host) + ", workload) (min_over_time(flopwatch_model_requests[5m])) > 0\n  and on (" + text($._config.host) + ", workload) sum by (" + text($._config.host) + ", workload) (increase(flopwatch_model_tokens_total[5m])) == 0\n  and on (" + text($._config.host) + ", workload) max by (" + text($._config.host) + ", workload) (max_over_time(flopwatch_workload_up[5m])) == 1",
            "for": "2m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} on {{ $labels.instance }} has requests but delivers no tokens",
              "description": "{{ $value | humanize }} requests are in flight or queued, and no token has come out for five minutes. Likely: a collective that hangs (NCCL), a rank that died, or a deadlocked engine. Restart the workload; if it hangs again, look for a faulty GPU or link among its GPUs.",
              "runbook_url": text($._config.runbooks) + "/WorkloadStuck.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "WorkloadDown",
            "expr": "max by (" + text($._config.host) + ", workload) (last_over_time(flopwatch_workload_up[5m])) == 0",
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} on {{ $labels.instance }} does not answer",
              "description": "The metrics of its inference engine could not be read for ten minutes. Likely: the engine is down or still loading, or its address in the configuration is wrong.",
              "runbook_url": text($._config.runbooks) + "/WorkloadDown.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "WorkloadRestarting",
            "expr": "max by (" + text($._config.host) + ", workload) (changes(flopwatch_workload_up[1h])) / 2 > " + text($._config.restartsPerHour),
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} on {{ $labels.instance }} keeps restarting",
              "description": "It went away and came back about {{ $value | humanize }} times within an hour. Likely: out of memory, a failing health check, or a crash at a certain request. Read the engine's log.",
              "runbook_url": text($._config.runbooks) + "/WorkloadRestarting.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-model-performance",
        "interval": "2m",
        "rules": [
          {
            "alert": "ModelThroughputFell",
            "expr": "workload:flopwatch_model_tokens:rate5m < " + text($._config.throughputDrop) + " * workload:flopwatch_model_tokens:usual\n  and on (" + text($._config.host) + ", workload, model)\n    (max by (" + text($._config.host) + ", workload, model) (avg_over_time(flopwatch_model_requests{state=\"waiting\"}[15m]))\n      >= 0.9 * avg_over_time(workload:flopwatch_model_requests:waiting_avg5m[6h] offset 30m))\n  and on (" + text($._config.host) + ", workload, model)\n    max by (" + text($._config.host) + ", workload, model) (avg_over_time(flopwatch_model_requests{state=\"waiting\"}[15m])) > 0",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} on {{ $labels.instance }} delivers fewer tokens with the same queue",
              "description": "{{ $labels.model }} delivers {{ $value | humanize }} tokens/s, less than 70 % of its usual throughput, while as many requests wait as before. Likely: one of its GPUs is slower or gone, clocks are held down, prompts became longer, or a new version of the engine. Compare the workload's GPUs.",
              "runbook_url": text($._config.runbooks) + "/ModelThroughputFell.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "PrefixCacheCollapsed",
            "expr": "workload:flopwatch_model_cached_tokens:ratio_rate5m\n  < " + text($._config.prefixCacheRatio) + " * (workload:flopwatch_model_cached_tokens:usual > 0.05)",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} on {{ $labels.instance }} has lost its prefix cache",
              "description": "{{ $value | humanizePercentage }} of the prompt tokens come from the cache, less than half of the usual share: prompts are computed again, so FLOPS and MFU rise while fewer answers come out. Likely: a changed system prompt or chat template, a router that scatters sessions, a new version of the engine, or a cache that is too small. Compare the replicas.",
              "runbook_url": text($._config.runbooks) + "/PrefixCacheCollapsed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "ModelUsefulShareFell",
            "expr": "model:flopwatch_useful_flop:ratio_rate5m < " + text($._config.usefulDrop) + " * model:flopwatch_useful_flop:usual",
            "for": "30m",
            "labels": {
              "severity": "info",
            },
            "annotations": {
              "summary": "A smaller share of the work for {{ $labels.model }} is useful",
              "description": "{{ $value | humanizePercentage }} of what the tensor pipes compute is useful work. This is less than 70 % of the usual share. Likely: padding, recomputed prompts, rejected draft tokens, another precision, or another process on its GPUs.",
              "runbook_url": text($._config.runbooks) + "/ModelUsefulShareFell.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-objective-alerts",
        "interval": "1m",
        "rules": [
          {
            "alert": "WorkloadObjectiveMissed",
            "expr": "avg_over_time(workload_objective:flopwatch_objective:missed[1h]) > on (workload, objective) group_left () 14.4 * max by (workload, objective) (flopwatch_objective_budget_ratio)\n  and avg_over_time(workload_objective:flopwatch_objective:missed[5m]) > on (workload, objective) group_left () 14.4 * max by (workload, objective) (flopwatch_objective_budget_ratio)",
            "for": "2m",
            "labels": {
              "severity": "critical",
              "window": "1h",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} misses its objective for {{ $labels.objective }}",
              "description": "Over the last 1h it missed the objective in {{ $value | humanizePercentage }} of the minutes with demand, more than 14.4 times what the error budget allows. Likely: fewer or slower GPUs, a smaller batch, or more waste. The Models dashboard shows which replica fell behind.",
              "runbook_url": text($._config.runbooks) + "/WorkloadObjectiveMissed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "WorkloadObjectiveMissed",
            "expr": "avg_over_time(workload_objective:flopwatch_objective:missed[6h]) > on (workload, objective) group_left () 6 * max by (workload, objective) (flopwatch_objective_budget_ratio)\n  and avg_over_time(workload_objective:flopwatch_objective:missed[30m]) > on (workload, objective) group_left () 6 * max by (workload, objective) (flopwatch_objective_budget_ratio)",
            "for": "15m",
            "labels": {
              "severity": "critical",
              "window": "6h",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} misses its objective for {{ $labels.objective }}",
              "description": "Over the last 6h it missed the objective in {{ $value | humanizePercentage }} of the minutes with demand, more than 6 times what the error budget allows. Likely: fewer or slower GPUs, a smaller batch, or more waste. The Models dashboard shows which replica fell behind.",
              "runbook_url": text($._config.runbooks) + "/WorkloadObjectiveMissed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "WorkloadObjectiveMissed",
            "expr": "avg_over_time(workload_objective:flopwatch_objective:missed[3d]) > on (workload, objective) group_left () 1 * max by (workload, objective) (flopwatch_objective_budget_ratio)\n  and avg_over_time(workload_objective:flopwatch_objective:missed[6h]) > on (workload, objective) group_left () 1 * max by (workload, objective) (flopwatch_objective_budget_ratio)",
            "for": "1h",
            "labels": {
              "severity": "warning",
              "window": "3d",
            },
            "annotations": {
              "summary": "{{ $labels.workload }} misses its objective for {{ $labels.objective }}",
              "description": "Over the last 3d it missed the objective in {{ $value | humanizePercentage }} of the minutes with demand, more than what the error budget allows. Likely: fewer or slower GPUs, a smaller batch, or more waste. The Models dashboard shows which replica fell behind.",
              "runbook_url": text($._config.runbooks) + "/WorkloadObjectiveMissed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-models?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-probes",
        "interval": "2m",
        "rules": [
          {
            "alert": "ProbesFailing",
            "expr": "count by (" + text($._config.gpu) + ", mig) (\n    last_over_time(flopwatch_probe_failures_in_a_row[5m]) > 5\n    and on (" + text($._config.gpu) + ", kernel)\n      increase(flopwatch_probe_runs_total{outcome=~\"error|timeout|out_of_memory\"}[2h]) > 0\n  )",
            "for": "20m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "Probes of GPU {{ $labels.gpu }}{{ with $labels.mig }} (MIG instance {{ . }}){{ end }} on {{ $labels.instance }} fail",
              "description": "{{ $value }} of its kernels{{ with printf `flopwatch_probe_failures_in_a_row{cluster=%q, instance=%q, uuid=%q} > 5` $labels.cluster $labels.instance $labels.uuid | query }} ({{ range $index, $each := . }}{{ if $index }}, {{ end }}{{ $each | label \"kernel\" }}{{ end }}){{ end }} failed repeatedly for twenty minutes because of errors, timeouts or a lack of memory. Likely: incompatible versions of torch and the driver, a full GPU, or a GPU that hangs.",
              "runbook_url": text($._config.runbooks) + "/ProbesFailing.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "ProbesSkipped",
            "expr": "(\n  time() - gpu:flopwatch_probe_last_success_timestamp_seconds:max > " + text($._config.probeAgeSeconds) + "\n  or (\n    time() - (\n      sum by (" + text($._config.gpu) + ") (last_over_time(flopwatch_probe_skips_total{mig=\"\"}[5m]) > 0) * 0\n        + on (" + text($._config.host) + ") group_left () max by (" + text($._config.host) + ") (last_over_time(process_start_time_seconds{" + text($._config.selector) + "}[5m]))\n    ) > " + text($._config.probeAgeSeconds) + "\n    unless on (" + text($._config.gpu) + ") gpu:flopwatch_probe_last_success_timestamp_seconds:max\n  )\n)\nunless on (" + text($._config.host) + ") abs(last_over_time(instance:flopwatch_clock_skew:seconds[5m])) > " + text($._config.clockSkewSeconds),
            "for": "30m",
            "labels": {
              "severity": "info",
            },
            "annotations": {
              "summary": "GPU {{ $labels.gpu }} on {{ $labels.instance }} has not been probed for hours",
              "description": "No probe has given a measurement for {{ $value | humanizeDuration }}, so its speed is unknown. Likely: probes are paused, too little memory is free for the worker, or the GPU is never idle.",
              "runbook_url": text($._config.runbooks) + "/ProbesSkipped.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-probes?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "ProbesMissing",
            "expr": "count by (" + text($._config.cluster) + ") (\n    gpu:flopwatch_gpu_up:recent{gpu!~\"cpu0|unknown\"} == 1\n    unless on (" + text($._config.gpu) + ") gpu:flopwatch_probe_last_success_timestamp_seconds:max\n    unless on (" + text($._config.gpu) + ") last_over_time(flopwatch_probe_skips_total{mig=\"\"}[5m])\n    unless on (" + text($._config.gpu) + ") last_over_time(flopwatch_mig_mode[5m]) == 1\n  )\n  and on (" + text($._config.cluster) + ") cluster:flopwatch_probed_gpus:count > 0",
            "for": "1h",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "GPUs in {{ $labels.cluster }} are not probed",
              "description": "{{ $value }} GPUs have no probe results, although others in the cluster do. A slow or corrupting GPU among them would go unnoticed. Likely: hosts without torch or with probes disabled. The Probes dashboard lists them.",
              "runbook_url": text($._config.runbooks) + "/ProbesMissing.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-fleet?var-cluster={{ $labels.cluster }}",
            },
          },
          {
            "alert": "ProbeWorkerRestarting",
            "expr": "sum by (" + text($._config.host) + ") (increase(flopwatch_probe_worker_restarts_total[1h])) > " + text($._config.restartsPerHour),
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "The probe worker of {{ $labels.instance }} keeps dying",
              "description": "About {{ $value | humanize }} restarts within an hour. Monitoring continues without probes. Likely: out of host memory, a broken torch installation, or a GPU that faults under the probe.",
              "runbook_url": text($._config.runbooks) + "/ProbeWorkerRestarting.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
        ],
      },
      {
        "name": "flopwatch-exporter",
        "interval": "1m",
        "rules": [
          {
            "alert": "FlopwatchDown",
            "expr": "max by (" + text($._config.host) + ") (up{" + text($._config.selector) + "}) == 0\n  and on (" + text($._config.host) + ") instance:flopwatch_scraped:ever",
            "for": "5m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} is down",
              "description": "The exporter answered before and no longer does, so its GPUs are not monitored. Likely: the host is down, the process died, or a firewall blocks the port. Check the host first.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchDown.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchNeverScraped",
            "expr": "max by (" + text($._config.host) + ") (up{" + text($._config.selector) + "}) == 0\n  unless on (" + text($._config.host) + ") instance:flopwatch_scraped:ever",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} was never scraped",
              "description": "The host is a target, but no scrape of it has ever succeeded. Likely: not installed yet, another port, TLS or credentials that do not match, or a stale inventory.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchNeverScraped.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchRestarting",
            "expr": "max by (" + text($._config.host) + ") (changes(process_start_time_seconds{" + text($._config.selector) + "}[1h])) > " + text($._config.restartsPerHour),
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} keeps restarting",
              "description": "It has restarted {{ $value }} times within an hour. Each restart resets its counters and windows. Likely: a memory limit that is too low, a failing liveness probe, or a crash; its log says which.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchRestarting.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchNoTargets",
            "expr": "absent(up{" + text($._config.selector) + "})",
            "for": "10m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "Prometheus has no flopwatch targets",
              "description": "The job has no targets, so nothing is monitored. Likely: service discovery is broken, or the job has another name.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchNoTargets.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchTargetsVanished",
            "expr": "cluster:flopwatch_targets:count\n  < " + text($._config.targetsRatio) + " * max_over_time(cluster:flopwatch_targets:count[14d])",
            "for": "15m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "Targets in {{ $labels.cluster }} have vanished",
              "description": "Only {{ $value }} hosts are left of those that service discovery listed in the last two weeks. Prometheus no longer knows the others, so no alert can fire for them. Likely: broken service discovery, a changed label selector, or hosts that were removed on purpose.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchTargetsVanished.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchNoGPUs",
            "expr": "instance:flopwatch_up:recent == 1\n  unless on (" + text($._config.host) + ") gpu:flopwatch_gpu_up:recent\n  unless on (" + text($._config.host) + ") max by (" + text($._config.host) + ") (last_over_time(flopwatch_expected_gpus[5m])) > 0",
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} sees no device",
              "description": "The exporter answers, but finds no GPU. Likely: no driver, a container without the NVIDIA runtime, or all GPUs gone.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchNoGPUs.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchSourceHung",
            "expr": "max by (" + text($._config.gpu) + ") (last_over_time(flopwatch_source_hung{mig=\"\"}[5m])) == 1",
            "for": "2m",
            "labels": {
              "severity": "critical",
            },
            "annotations": {
              "summary": "The driver does not answer for GPU {{ $labels.gpu }} on {{ $labels.instance }}",
              "description": "A driver call has not returned within its deadline. Likely: the GPU or its firmware is wedged; the engine's next call will hang too. Drain the host and reboot it.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchSourceHung.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-gpu?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}&var-gpu={{ $labels.gpu }}",
              "holders": "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}` $labels.cluster $labels.instance (or $labels.gpu \".*\") | query }}GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}",
            },
          },
          {
            "alert": "FlopwatchSourceStale",
            "expr": "(time() - (max by (" + text($._config.gpu) + ", mig, source) (last_over_time(flopwatch_source_last_success_timestamp_seconds[5m])) < time() - 300))\n  and on (" + text($._config.gpu) + ") gpu:flopwatch_gpu_up:recent == 1\n  unless on (" + text($._config.host) + ") abs(last_over_time(instance:flopwatch_clock_skew:seconds[5m])) > " + text($._config.clockSkewSeconds),
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "Source {{ $labels.source }} of GPU {{ $labels.gpu }} on {{ $labels.instance }} is stale",
              "description": "It last gave a value {{ $value | humanizeDuration }} ago. Until it recovers, its metrics are absent. Likely: a profiler holds the counters, a permission is missing, or dcgm-exporter is down.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchSourceStale.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "HostClockSkew",
            "expr": "abs(last_over_time(instance:flopwatch_clock_skew:seconds[5m])) > " + text($._config.clockSkewSeconds),
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "The clock of {{ $labels.instance }} is off",
              "description": "It differs from Prometheus's clock by {{ $value | humanizeDuration }}. Ages of readings, probes and XIDs on this host are wrong by the same amount, and alerts that depend on ages do not fire. Likely: NTP or chrony is not running. Check `chronyc tracking` on the host.",
              "runbook_url": text($._config.runbooks) + "/HostClockSkew.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchTicksMissed",
            "expr": "sum by (" + text($._config.host) + ") (increase(flopwatch_ticks_missed_total[10m])) > 60",
            "for": "10m",
            "labels": {
              "severity": "info",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} cannot keep up",
              "description": "About {{ $value | humanize }} ticks were missed in ten minutes. Counters stay correct, but short dips may not be seen. Likely: a slow driver, or too little processor time for the exporter.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchTicksMissed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchSeriesDropped",
            "expr": "sum by (" + text($._config.host) + ") (increase(flopwatch_series_dropped_total[15m])) > 0",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} drops series",
              "description": "About {{ $value | humanize }} series were left out in 15 minutes because `limits.series` is reached. Likely: per-process series, or more MIG instances than the limit allows for.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchSeriesDropped.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchConfigReloadFailed",
            "expr": "max by (" + text($._config.host) + ") (last_over_time(flopwatch_config_last_reload_successful[5m])) == 0",
            "for": "5m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "flopwatch on {{ $labels.instance }} refused its configuration",
              "description": "The last reload failed; the previous configuration is still active. The log names the line.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchConfigReloadFailed.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchConfigurationProblem",
            "expr": "max by (" + text($._config.host) + ", problem) (last_over_time(flopwatch_configuration_problem[5m])) == 1",
            "for": "10m",
            "labels": {
              "severity": "warning",
            },
            "annotations": {
              "summary": "The configuration of flopwatch on {{ $labels.instance }} does not match the host",
              "description": "{{ $labels.problem }}. Likely: a GPU that is gone, or a configuration written for another host.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchConfigurationProblem.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
          {
            "alert": "FlopwatchEstimatorOff",
            "expr": "abs(max by (" + text($._config.gpu) + ", precision) (last_over_time(flopwatch_estimator_error_ratio{mig=\"\"}[5m]))) > " + text($._config.estimatorError),
            "for": "5m",
            "labels": {
              "severity": "info",
            },
            "annotations": {
              "summary": "FLOPS of GPU {{ $labels.gpu }} on {{ $labels.instance }} are miscounted",
              "description": "At {{ $labels.precision }} the counted FLOPS differ by {{ $value | humanizePercentage }} from GEMMs of known size. Likely: a driver that reports the pipes differently, or another program used the GPU during `flopwatch calibrate`.",
              "runbook_url": text($._config.runbooks) + "/FlopwatchEstimatorOff.md",
              "dashboard": text($._config.grafana) + "/d/flopwatch-exporter?var-cluster={{ $labels.cluster }}&var-instance={{ $labels.instance }}",
            },
          },
        ],
      },
    ],
  },
}
