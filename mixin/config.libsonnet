// Written by `python -m mixin.build`. Do not edit.
{
  _config+:: {
    // Selects the exporters' targets in `up`.
    selector: "job=\"flopwatch\"",
    // Labels that tell clusters apart.
    cluster: "cluster, job",
    // Labels that tell hosts apart; add `rack` here to keep it.
    host: "cluster, job, instance",
    // Labels that tell GPUs apart.
    gpu: "cluster, job, instance, gpu, uuid",
    // GPUs that agree in these labels are compared.
    peers: "cluster, job, name",
    // Where the runbooks are.
    runbooks: "https://github.com/flopwatch/flopwatch/blob/main/docs/runbooks",
    // Base URL of Grafana for links in alerts; by default Prometheus's external label `grafana`.
    grafana: "{{ $externalLabels.grafana }}",
    // XIDs that need a reset, a reboot or a new board.
    xidCritical: "46|48|61|62|64|74|79|95|119|120|140|143",
    // XIDs that are contained, or mended by the next reset.
    xidWarning: "63|92|94|121|144|145|146|147|148|149|150",
    // XIDs that programs cause.
    xidProgram: "8|13|31|32|43|45|68|69|109",
    // Warn if the power limit costs more than this share of the peak.
    powerLossWarning: 0.25,
    // Warn if heat costs more than this share of the peak.
    heatLossWarning: 0.05,
    // Warn if a probe result is below this fraction of the GPU's own baseline.
    baselineWarning: 0.9,
    // Critical if a probe result is below this fraction of the GPU's own baseline.
    baselineCritical: 0.75,
    // Warn if a probe result is below this fraction of the peers' median.
    peersWarning: 0.95,
    // Critical if a probe result is below this fraction of the peers' median.
    peersCritical: 0.75,
    // Compare GPUs of one model only if there are at least this many.
    peersMinimum: 4,
    // A GPU is a straggler if it is this many robust standard deviations below the median.
    peersDeviations: 3.5,
    // Warn at or above this memory temperature. HBM and GDDR6X throttle at the default.
    memoryHotCelsius: 95,
    // Warn if an idle GPU is hotter than this.
    idleHotCelsius: 70,
    // A GPU counts as idle if it is busy for less than this share of the time.
    idleBusyRatio: 0.1,
    // Warn if there are more corrected memory errors than this within an hour.
    correctedErrors: 1000,
    // Warn if the power limit is below this fraction of the usual one or of the siblings' median.
    powerLimitRatio: 0.9,
    // Warn if an idle GPU whose engine does not answer holds more of its memory than this.
    memoryHeldRatio: 0.2,
    // Warn if the cached share of prompt tokens is below this fraction of the usual one.
    prefixCacheRatio: 0.5,
    // Warn if the external power brake is on for more than this share of the time.
    powerBrakeRatio: 0.05,
    // Warn if there are more NVLink errors than this within half an hour.
    nvlinkErrors: 100,
    // Warn if there are more PCIe replays than this within an hour.
    pcieReplays: 100,
    // Warn if FLOPS fall below this fraction of those at the same hour on earlier days.
    utilizationDrop: 0.6,
    // Warn if tokens per second fall below this fraction of the usual rate.
    throughputDrop: 0.7,
    // Report a useful share of the work below this fraction of the usual one.
    usefulDrop: 0.7,
    // Warn if less than this share of the targets of the last two weeks is left.
    targetsRatio: 0.75,
    // Warn if there are more restarts than this within an hour.
    restartsPerHour: 3,
    // Warn if the clocks of the host and Prometheus differ by more than this.
    clockSkewSeconds: 60,
    // Report a GPU whose newest probe result is older than this.
    probeAgeSeconds: 21600,
    // Report a FLOP counter that differs from GEMMs of known size by more than this.
    estimatorError: 0.1,
  },
}
