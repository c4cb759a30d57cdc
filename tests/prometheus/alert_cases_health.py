"""Cases of the alerts on hardware, links, probes and the exporter itself; see alert_cases."""

from .alert_cases import DAY, GPU, HOST, HOUR, ON_HOST, Case, gpu_series


def nvlinks(up_of_gpu_0: str, gpus: int = 8) -> dict[str, str]:
    """How many links are up on each of `gpus` GPUs: of GPU 0 as given, of the others two."""
    series = {}
    for index in range(gpus):
        who = f'{HOST}, gpu="{index}", uuid="GPU-{index}"'
        series[f"flopwatch_nvlinks_up{{{who}}}"] = up_of_gpu_0 if index == 0 else f"2x{2 * DAY}"
    return series


PCIE = {
    **gpu_series("flopwatch_pcie_link_width_max", "16x300"),
    **gpu_series("flopwatch_pcie_link_generation_max", "5x300"),
}
BUSY = {
    **gpu_series("flopwatch_gpu_seconds_total", "0+30x300", state="idle"),
    **gpu_series("flopwatch_gpu_seconds_total", "0+30x300", state="tensor"),
}
IDLE = gpu_series("flopwatch_gpu_seconds_total", "0+60x300", state="idle")

HEALTH = (
    Case(
        "GPULost",
        "the driver gives the GPU up and finds it again",
        gpu_series("flopwatch_gpu_up", "1x10 0x20 1x60"),
        quiet_at=(10, 40),
        fires_at=(15,),
    ),
    Case(
        "GPUMissing",
        "one of two GPUs is not listed after a reboot, and is later",
        {
            f'flopwatch_gpu_up{{{HOST}, gpu="1", uuid="GPU-1"}}': f"1x30 _x30 1x{2 * HOUR}",
        },
        quiet_at=(25, 36, 70),
        fires_at=(50,),
        labels=ON_HOST,
    ),
    Case(
        "GPUXidCritical",
        "XID 79 at minute 10 until the host is rebooted at minute 90",
        gpu_series("flopwatch_xid_last_timestamp_seconds", "_x10 600x120", xid="79")
        | {f"flopwatch_boot_time_seconds{{{HOST}}}": "1x89 5400x60"},
        quiet_at=(9, 92),
        fires_at=(12, 80),
        labels={"gpu": "0", "uuid": "GPU-0", "xid": "79"},
    ),
    Case(
        "GPUXidWarning",
        "XID 94 at minute 10 until the GPU is reset, though the exporter has forgotten it at minute 30",
        gpu_series("flopwatch_xid_last_timestamp_seconds", "_x10 600x20", xid="94")
        | gpu_series("flopwatch_gpu_reset_timestamp_seconds", "1x89 5400x60"),
        quiet_at=(9, 92),
        fires_at=(12, 80),
        labels={"gpu": "0", "uuid": "GPU-0", "xid": "94"},
    ),
    Case(
        "GPUXidBurst",
        "a crash-looping program faults once a minute for half an hour",
        gpu_series("flopwatch_xid_errors_total", "_x10 1+1x30 31x60", xid="31"),
        quiet_at=(12, 60),
        fires_at=(25, 35),
    ),
    Case(
        "GPUXidBurst",
        "one fault of a program pages nobody, at no severity",
        {
            **gpu_series("flopwatch_xid_errors_total", "_x10 1x60", xid="31"),
            **gpu_series("flopwatch_xid_last_timestamp_seconds", "_x10 600x60", xid="31"),
        },
        quiet_at=(12, 20, 60),
    ),
    Case(
        "GPUUncorrectableMemoryErrors",
        "one uncorrectable error, and a reset two hours later",
        gpu_series("flopwatch_ecc_errors_total", "3x20 4x200", kind="uncorrected")
        | gpu_series("flopwatch_gpu_reset_timestamp_seconds", "1x139 8400x60"),
        quiet_at=(20, 150),
        fires_at=(25, 130),
    ),
    Case(
        "GPUUncorrectableMemoryErrors",
        "errors of the card's past life do not count",
        gpu_series("flopwatch_ecc_errors_total", "7x120", kind="uncorrected"),
        quiet_at=(10, 110),
    ),
    Case(
        "GPUCorrectableMemoryErrors",
        "2,000 corrected errors in 20 minutes",
        gpu_series("flopwatch_ecc_errors_total", "0x20 0+100x20 2000x120", kind="corrected"),
        quiet_at=(20, 25, 110),
        fires_at=(45,),
    ),
    Case(
        "GPURowRemapPending",
        "pending until the reset at minute 40",
        gpu_series("flopwatch_row_remap_pending", "0x10 1x30 0x30"),
        quiet_at=(10, 13, 50),
        fires_at=(20,),
    ),
    Case(
        "GPURowRemapFailed",
        "failed until the card is replaced",
        gpu_series("flopwatch_row_remap_failed", "0x10 1x30 0x30"),
        quiet_at=(10, 50),
        fires_at=(20,),
    ),
    Case(
        "GPURecoveryActionNeeded",
        "the driver asks for a reset; `none` at 1 is the good state",
        {
            **gpu_series("flopwatch_recovery_action", "1x10 0x30 1x30", action="none"),
            **gpu_series("flopwatch_recovery_action", "0x10 1x30 0x30", action="gpu_reset"),
        },
        quiet_at=(10, 50),
        fires_at=(20,),
    ),
    Case(
        "GPURecoveryActionNeeded",
        "a newer driver asks for something that this exporter has no name for",
        {
            **gpu_series("flopwatch_recovery_action", "1x10 0x30 1x30", action="none"),
            **gpu_series("flopwatch_recovery_action", "0x70", action="gpu_reset"),
        },
        quiet_at=(10, 50),
        fires_at=(20,),
    ),
)

LINKS = (
    Case(
        "NVLinkDown",
        "one link of one GPU goes down for an hour",
        nvlinks("2x10 1x60 2x60"),
        quiet_at=(10, 14, 90),
        fires_at=(30,),
    ),
    Case(
        "NVLinkDown",
        "the only GPU of a host is compared with itself before",
        nvlinks(f"2x{DAY} 1x60 2x60", gpus=1),
        quiet_at=(DAY - 1, DAY + 90),
        fires_at=(DAY + 30,),
    ),
    Case(
        "NVLinkErrors",
        "ten replays a minute for half an hour",
        gpu_series("flopwatch_nvlink_errors_total", "0x10 0+10x30 300x60", kind="replay"),
        quiet_at=(10, 18, 75),
        fires_at=(35,),
    ),
    Case(
        "PCIeLinkDegraded",
        "width 8 of 16 for an hour",
        PCIE | IDLE | gpu_series("flopwatch_pcie_link_width", "16x10 8x60 16x60"),
        quiet_at=(10, 20, 90),
        fires_at=(50,),
    ),
    Case(
        "PCIeLinkDegraded",
        "generation 3 of 5 under load for an hour",
        PCIE | BUSY | gpu_series("flopwatch_pcie_link_generation", "5x10 3x60 5x60"),
        quiet_at=(10, 20, 90),
        fires_at=(50,),
    ),
    Case(
        "PCIeLinkDegraded",
        "an idle GPU lowers its generation to save power",
        PCIE | IDLE | gpu_series("flopwatch_pcie_link_generation", "1x200"),
        quiet_at=(60, 190),
    ),
    Case(
        "PCIeReplays",
        "ten replays a minute for twenty minutes",
        gpu_series("flopwatch_pcie_replays_total", "0x10 0+10x20 200x120"),
        quiet_at=(15, 100),
        fires_at=(40,),
    ),
)


def failures(in_a_row: str, in_all: str, **labels: str) -> dict[str, str]:
    """Runs of gemm_fp8 on GPU 0 that ended in an error: since it last gave a measurement, and altogether."""
    return {
        **gpu_series("flopwatch_probe_failures_in_a_row", in_a_row, kernel="gemm_fp8", **labels),
        **gpu_series(
            "flopwatch_probe_runs_total", in_all, kernel="gemm_fp8", outcome="error", **labels
        ),
    }


def newest_success(values: str) -> dict[str, str]:
    """When any judged kernel last gave a measurement on GPU 0."""
    return gpu_series("flopwatch_probe_newest_success_timestamp_seconds", values)


PROBES = (
    Case(
        "ProbesFailing",
        "an hour of errors, one a minute, after an hour of good runs, then good ones again",
        failures("0x60 1+1x59 0x60", "0x60 1+1x59 60x60"),
        quiet_at=(60, 80, 150),
        fires_at=(90, 110),
    ),
    Case(
        "ProbesFailing",
        "a kernel that failed from the first run on",
        failures("1+1x59 0x60", "1+1x59 60x60"),
        quiet_at=(20, 90),
        fires_at=(30,),
    ),
    Case(
        "ProbesFailing",
        "three errors in a row, and a good run, over and over",
        failures("0 1 2 3 " * 50, "0+0.75x200"),
        quiet_at=(60, 110, 190),
    ),
    Case(
        "ProbesFailing",
        "after half an hour of errors the kernel is left out of the configuration",
        failures("1+1x29 30x200", "1+1x29 30x200"),
        quiet_at=(20, 160, 220),
        fires_at=(32, 120),
    ),
    Case(
        "ProbesFailing",
        "a MIG instance has an alert of its own",
        failures("0x60 1+1x59 0x60", "0x60 1+1x59 60x60", mig="1"),
        quiet_at=(60, 80, 150),
        fires_at=(110,),
        labels={"gpu": "0", "uuid": "GPU-0", "mig": "1"},
    ),
    Case(
        "ProbesSkipped",
        "no measurement for seven hours, then one",
        newest_success(f"0+60x60 3600x{7 * HOUR} {8 * 3600}+60x60"),
        quiet_at=(6 * HOUR, 8 * HOUR + 10),
        fires_at=(8 * HOUR - 10,),
    ),
    Case(
        "ProbesSkipped",
        "never a measurement since the exporter's start, for gates held every run back",
        gpu_series("flopwatch_probe_skips_total", f"0+1x{8 * HOUR}", reason="paused")
        | {f"process_start_time_seconds{{{HOST}}}": f"0x{8 * HOUR}"},
        quiet_at=(6 * HOUR,),
        fires_at=(7 * HOUR,),
    ),
    Case(
        "ProbeWorkerRestarting",
        "five restarts in twenty minutes",
        gpu_series("flopwatch_probe_worker_restarts_total", "0x10 0+0.25x20 5x120"),
        quiet_at=(10, 100),
        fires_at=(32,),
        labels=ON_HOST,
    ),
    Case(
        "WorkloadDown",
        "an engine is gone for half an hour",
        {f'flopwatch_workload_up{{{HOST}, workload="chat"}}': "1x10 0x30 1x30"},
        quiet_at=(10, 18, 50),
        fires_at=(30,),
        labels={"workload": "chat"},
    ),
)

EXPORTER = (
    Case(
        "FlopwatchDown",
        "a host that was scraped before is gone for half an hour",
        {f"up{{{HOST}}}": "1x20 0x30 1x60"},
        quiet_at=(20, 23, 60),
        fires_at=(40,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchDown",
        "a host that stays down for hours is still known to have been up",
        {f"up{{{HOST}}}": f"1x20 0x{12 * HOUR}"},
        fires_at=(11 * HOUR,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchNeverScraped",
        "a target that never answered, until it does",
        {
            f"up{{{HOST}}}": "0x60 1x60",
            f"flopwatch_gpu_up{{{GPU}}}": "_x60 1x60",
        },
        quiet_at=(10, 70),
        fires_at=(40,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchNoTargets",
        "service discovery loses the job",
        {
            f"up{{{HOST}}}": "1x10 _x40 1x60",
            f"flopwatch_gpu_up{{{GPU}}}": "1x10 _x40 1x60",
        },
        quiet_at=(10, 15, 70),
        fires_at=(40,),
        labels={"cluster": "", "instance": ""},
    ),
    Case(
        "FlopwatchNoGPUs",
        "the exporter comes back without its GPUs",
        {f"flopwatch_gpu_up{{{GPU}}}": "_x40 1x60"},
        quiet_at=(5, 60),
        fires_at=(30,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchSourceHung",
        "a driver call hangs for ten minutes",
        gpu_series("flopwatch_source_hung", "0x10 1x10 0x30"),
        quiet_at=(10, 30),
        fires_at=(15,),
    ),
    Case(
        "FlopwatchSourceStale",
        "one source gives nothing from minute 10 to 40",
        gpu_series(
            "flopwatch_source_last_success_timestamp_seconds",
            "0+60x10 600x30 2400+60x60",
            source="gpm",
        ),
        quiet_at=(10, 14, 50),
        fires_at=(30,),
        labels={"gpu": "0", "uuid": "GPU-0", "source": "gpm"},
    ),
    Case(
        "FlopwatchTicksMissed",
        "a third of the ticks is missed for half an hour",
        {f"flopwatch_ticks_missed_total{{{HOST}}}": "0x10 0+20x30 600x60"},
        quiet_at=(10, 60),
        fires_at=(35,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchSeriesDropped",
        "the limit is reached for ten minutes",
        {f"flopwatch_series_dropped_total{{{HOST}}}": "0x10 0+50x10 500x60"},
        quiet_at=(10, 50),
        fires_at=(20,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchConfigReloadFailed",
        "a reload is refused and a later one is not",
        {f"flopwatch_config_last_reload_successful{{{HOST}}}": "1x10 0x20 1x30"},
        quiet_at=(10, 13, 40),
        fires_at=(20,),
        labels=ON_HOST,
    ),
    Case(
        "FlopwatchEstimatorOff",
        "the counter reads 15 % too low until the GPU is calibrated anew",
        gpu_series("flopwatch_estimator_error_ratio", "-0.15x30 -0.02x30", precision="fp8"),
        quiet_at=(3, 40),
        fires_at=(20,),
        labels={"gpu": "0", "uuid": "GPU-0", "precision": "fp8"},
    ),
)
