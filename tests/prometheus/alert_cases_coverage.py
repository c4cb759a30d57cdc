"""Histories of unwatched GPUs, of repeated restarts, and of objectives; see alert_cases."""

from .alert_cases import HOST, HOUR, ON_HOST, Case, gpu_series


def others(metric: str, values: str, hosts: int = 4, labels: str = "") -> dict[str, str]:
    """The same series of further hosts of the cluster."""
    return {
        f'{metric}{{cluster="c", job="flopwatch", instance="other{number}"{labels}}}': values
        for number in range(hosts)
    }


IN_CLUSTER = {"instance": ""}
OTHER_GPUS = others("flopwatch_gpu_up", f"1x{6 * HOUR}", labels=', gpu="0", uuid="GPU-X"')
COVERAGE = (
    Case(
        "FlopwatchTargetsVanished",
        "service discovery loses four of five hosts and finds them again",
        others("up", f"1x{2 * HOUR} _x{HOUR} 1x{HOUR}")
        | others(
            "flopwatch_gpu_up",
            f"1x{2 * HOUR} _x{HOUR} 1x{HOUR}",
            labels=', gpu="0", uuid="GPU-X"',
        ),
        quiet_at=(2 * HOUR - 1, 2 * HOUR + 10, 4 * HOUR - 10),
        fires_at=(2 * HOUR + 30,),
        labels=IN_CLUSTER,
    ),
    Case(
        "FlopwatchTargetsVanished",
        "one of five hosts is taken out of service",
        OTHER_GPUS | others("up", f"1x{4 * HOUR}") | others("up", f"1x{2 * HOUR}", hosts=1),
        quiet_at=(2 * HOUR + 30, 4 * HOUR - 10),
    ),
    Case(
        "FlopwatchRestarting",
        "the exporter is killed every five minutes for an hour",
        {
            f"process_start_time_seconds{{{HOST}}}": "0x60 "
            + " ".join(f"{3600 + 300 * n}x4" for n in range(12))
            + " 6900x120"
        },
        quiet_at=(60, 240),
        fires_at=(90, 120),
        labels=ON_HOST,
    ),
    Case(
        "WorkloadRestarting",
        "an engine crashes every eight minutes and needs two to come back",
        {f'flopwatch_workload_up{{{HOST}, workload="chat"}}': "1x60 " + "0 0 1x5 " * 10 + "1x120"},
        quiet_at=(60, 250),
        fires_at=(110,),
        labels={"workload": "chat"},
    ),
    Case(
        "ProbesMissing",
        "four hosts are probed, this one is not, until somebody installs torch there",
        OTHER_GPUS
        | others("up", f"1x{6 * HOUR}")
        | others(
            "flopwatch_probe_newest_success_timestamp_seconds",
            f"0+60x{6 * HOUR}",
            labels=', gpu="0", uuid="GPU-X"',
        )
        | gpu_series(
            "flopwatch_probe_newest_success_timestamp_seconds",
            f"_x{3 * HOUR} {180 * 60}+60x{2 * HOUR}",
        ),
        quiet_at=(50, 4 * HOUR),
        fires_at=(2 * HOUR,),
        labels=IN_CLUSTER,
    ),
    Case(
        "ProbesMissing",
        "nobody probes anything: that is a decision",
        OTHER_GPUS | others("up", f"1x{6 * HOUR}"),
        quiet_at=(2 * HOUR, 5 * HOUR),
    ),
)
