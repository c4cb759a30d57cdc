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
    // Share of the peak lost to the power limit above which it is a warning.
    powerLossWarning: 0.25,
    // Share of the peak lost to heat above which it is a warning.
    heatLossWarning: 0.05,
    // Probe result over the GPU's own baseline below which it is a warning.
    baselineWarning: 0.9,
    // Probe result over the GPU's own baseline below which it is critical.
    baselineCritical: 0.75,
    // Probe result over the median of the peers below which it is a warning.
    peersWarning: 0.95,
    // Probe result over the median of the peers below which it is critical.
    peersCritical: 0.75,
    // GPUs of one model below which there is no comparison.
    peersMinimum: 4,
    // Robust standard deviations below the median that make a GPU a straggler.
    peersDeviations: 3.5,
    // Memory temperature from which it is a warning: HBM and GDDR6X throttle there.
    memoryHotCelsius: 95,
    // Temperature above which an idle GPU is a warning.
    idleHotCelsius: 70,
    // Share of busy time below which a GPU counts as idle.
    idleBusyRatio: 0.1,
    // Corrected memory errors within an hour above which it is a warning.
    correctedErrors: 1000,
    // Power limit over the usual one, or the siblings' median, below which it is a warning.
    powerLimitRatio: 0.9,
    // Share of device memory that an idle GPU without a working engine may hold.
    memoryHeldRatio: 0.2,
    // Cached share of prompt tokens over the usual one below which it is a warning.
    prefixCacheRatio: 0.5,
    // Share of time with the external power brake on above which it is a warning.
    powerBrakeRatio: 0.05,
    // NVLink errors within half an hour above which it is a warning.
    nvlinkErrors: 100,
    // PCIe replays within an hour above which it is a warning.
    pcieReplays: 100,
    // Delivered FLOPS over those at the same hour before, below which they have dropped.
    utilizationDrop: 0.6,
    // Tokens per second over the usual ones, below which throughput has fallen.
    throughputDrop: 0.7,
    // Useful share of the work over the usual one, below which it has fallen.
    usefulDrop: 0.7,
    // Targets over the most of the last two weeks, below which some have vanished.
    targetsRatio: 0.75,
    // Restarts within an hour above which it is a warning.
    restartsPerHour: 3,
    // Difference between the clocks of host and Prometheus above which it is a warning.
    clockSkewSeconds: 60,
    // Age of the newest probe result that is too old.
    probeAgeSeconds: 21600,
    // Error of the FLOP counter against GEMMs of known size that is worth a note.
    estimatorError: 0.1,
  },
}
