"""For every alert: a history in which it is quiet, fires, and resolves; and near misses in which it never fires.

A case's series are promtool's notation (`1x10 0x5`: eleven ones, six zeros; `0+3x4`: 0 3 6 9 12), one value a minute.
Every case also has a healthy exporter and GPU (BASE), whose series a case may replace.
"""

from dataclasses import dataclass, field


HOST = 'cluster="c", job="flopwatch", instance="node1"'
GPU = f'{HOST}, gpu="0", uuid="GPU-0"'
HOUR = 60
DAY = 24 * HOUR

BASE = {
    f"up{{{HOST}}}": f"1x{2 * DAY}",
    f"flopwatch_gpu_up{{{GPU}}}": f"1x{2 * DAY}",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One history. Minutes in `fires_at` must show exactly this alert firing, minutes in `quiet_at` none at all."""

    alert: str
    story: str
    series: dict[str, str]
    fires_at: tuple[int, ...] = ()
    quiet_at: tuple[int, ...] = ()
    labels: dict[str, str] = field(default_factory=lambda: {"gpu": "0", "uuid": "GPU-0"})

    @property
    def lasts_a_day(self) -> bool:
        """Whether it is so long that promtool needs ten seconds or more with all rules."""
        return max(self.fires_at + self.quiet_at) >= DAY


def gpu_series(metric: str, values: str, **labels: str) -> dict[str, str]:
    """One series of GPU 0 of node1."""
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    return {f"{metric}{{{GPU}{more}}}": values}


def probe_fleet(metric: str, sick: str, **labels: str) -> dict[str, str]:
    """Seven GPUs with a measure of 0.80 and GPU 0 with `sick`, all of one product."""
    more = "".join(f', {name}="{value}"' for name, value in labels.items())
    series: dict[str, str] = {}
    for index in range(8):
        who = f'{HOST}, gpu="{index}", uuid="GPU-{index}"'
        series[f'flopwatch_gpu_info{{{who}, name="H100", driver_version="1"}}'] = "1x400"
        series[f"{metric}{{{who}{more}}}"] = sick if index == 0 else "0.80x400"
    return series


def flops(tensor: str, sm_active: str, dram: str) -> dict[str, str]:
    """What GPUUtilizationDropped reads of one GPU with a peak of 1000 FLOP/s."""
    return {
        **gpu_series("flopwatch_headline_peak_flops", f"1000x{2 * DAY}"),
        **gpu_series("flopwatch_flop_total", tensor, pipe="tensor", precision="bf16", source="gpm"),
        **gpu_series("flopwatch_sm_active_ratio", sm_active),
        **gpu_series("flopwatch_dram_bytes_total", dram, source="gpm"),
    }


def workload(tokens: str, requests: str = f"60x{2 * DAY}") -> dict[str, str]:
    """An engine joined to GPU 0, with the requests that it has in flight."""
    return {
        **gpu_series("flopwatch_workload_gpu_info", f"1x{2 * DAY}", workload="chat"),
        f'flopwatch_model_tokens_total{{{HOST}, workload="chat", model="m", phase="decode"}}': tokens,
        f'flopwatch_model_requests{{{HOST}, workload="chat", model="m", state="running"}}': requests,
    }


def sibling() -> dict[str, str]:
    """A second GPU of the same engine that stays at 40 %."""
    who = f'{HOST}, gpu="1", uuid="GPU-1"'
    return {
        f"flopwatch_gpu_up{{{who}}}": f"1x{2 * DAY}",
        f'flopwatch_workload_gpu_info{{{who}, workload="chat"}}': f"1x{2 * DAY}",
        f"flopwatch_headline_peak_flops{{{who}}}": f"1000x{2 * DAY}",
        f'flopwatch_flop_total{{{who}, pipe="tensor"}}': f"0+24000x{2 * DAY}",
    }


RESET_AT_DAY = gpu_series("flopwatch_gpu_reset_timestamp_seconds", f"0x{DAY} {60 * DAY + 60}x{DAY}")
NAMED = {"gpu": "0", "uuid": "GPU-0", "name": "H100"}
ON_HOST: dict[str, str] = {}
YESTERDAY = DAY + HOUR

PERFORMANCE = (
    Case(
        "GPUPowerLimitLowered",
        "the limit creeps from 700 W to 450 W by half a watt a minute, and is restored",
        gpu_series("flopwatch_power_limit_watts", "700x60 699.5-0.5x499 450x60 700x120"),
        quiet_at=(60, 200, 700),
        fires_at=(230, 560, 610),
    ),
    Case(
        "GPUUtilizationDropped",
        "after a day at 40 % the SMs stay busy, but FLOPS and bytes fall to a quarter; two hours later all is well",
        flops(
            f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+6000x120 {24000 * YESTERDAY + 6000 * 120}+24000x240",
            f"0.9x{YESTERDAY + 400}",
            f"0+60000x{YESTERDAY} {60000 * YESTERDAY}+15000x120 {60000 * YESTERDAY + 15000 * 120}+60000x240",
        ),
        quiet_at=(YESTERDAY - 5, YESTERDAY + 15, YESTERDAY + 180),
        fires_at=(YESTERDAY + 60,),
    ),
    Case(
        "GPUUtilizationDropped",
        "decode traffic ebbs: FLOPS fall to a tenth, SMs stay busy, the weights are read as fast as ever",
        flops(
            f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+2400x240",
            f"0.9x{YESTERDAY + 400}",
            f"0+60000x{YESTERDAY + 240}",
        ),
        quiet_at=(YESTERDAY + 60, YESTERDAY + 120, YESTERDAY + 239),
    ),
    Case(
        "GPUUtilizationDropped",
        "prefill traffic ebbs: FLOPS, bytes and SM activity fall together",
        flops(
            f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+2400x240",
            f"0.9x{YESTERDAY} 0.1x240",
            f"0+60000x{YESTERDAY} {60000 * YESTERDAY}+6000x240",
        ),
        quiet_at=(YESTERDAY + 60, YESTERDAY + 120, YESTERDAY + 239),
    ),
    Case(
        "GPUUtilizationDropped",
        "an engine's tokens hold while one of its GPUs falls out of rotation and back in",
        {
            **flops(
                f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+2400x120 {24000 * YESTERDAY + 2400 * 120}+24000x240",
                f"0.9x{YESTERDAY} 0.1x120 0.9x240",
                f"0+60000x{YESTERDAY + 400}",
            ),
            **workload(f"0+600x{YESTERDAY + 400}"),
            **sibling(),
        },
        quiet_at=(YESTERDAY - 5, YESTERDAY + 180),
        fires_at=(YESTERDAY + 60,),
    ),
    Case(
        "GPUUtilizationDropped",
        "a rollout needs half of the FLOPS for the same tokens, on every GPU of its engine",
        {
            **flops(
                f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+12000x240",
                f"0.9x{YESTERDAY + 400}",
                f"0+60000x{YESTERDAY} {60000 * YESTERDAY}+15000x240",
            ),
            **workload(f"0+600x{YESTERDAY + 400}"),
        },
        quiet_at=(YESTERDAY + 60, YESTERDAY + 120, YESTERDAY + 239),
    ),
    Case(
        "GPUUtilizationDropped",
        "as many requests are in flight, and half of the tokens come out",
        {
            **flops(
                f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+12000x120 {24000 * YESTERDAY + 12000 * 120}+24000x240",
                f"0.9x{YESTERDAY + 400}",
                f"0+60000x{YESTERDAY + 400}",
            ),
            **workload(
                f"0+600x{YESTERDAY} {600 * YESTERDAY}+300x120 {600 * YESTERDAY + 300 * 120}+600x240"
            ),
        },
        quiet_at=(YESTERDAY - 5, YESTERDAY + 180),
        fires_at=(YESTERDAY + 60,),
    ),
    Case(
        "GPUUtilizationDropped",
        "an engine's tokens ebb with the FLOPS, whatever SMs and memory do",
        {
            **flops(
                f"0+24000x{YESTERDAY} {24000 * YESTERDAY}+2400x240",
                f"0.9x{YESTERDAY + 400}",
                f"0+60000x{YESTERDAY} {60000 * YESTERDAY}+15000x240",
            ),
            **workload(f"0+600x{YESTERDAY} {600 * YESTERDAY}+60x240", f"60x{YESTERDAY} 6x240"),
        },
        quiet_at=(YESTERDAY + 60, YESTERDAY + 120, YESTERDAY + 239),
    ),
    Case(
        "GPUSlowerThanPeers",
        "GPU 0 reaches 0.70 of 0.80 for an hour",
        probe_fleet(
            "flopwatch_probe_efficiency_ratio", "0.80x30 0.70x60 0.80x90", precision="bf16"
        ),
        quiet_at=(20, 40, 120),
        fires_at=(60,),
        labels=NAMED | {"unit": "compute"},
    ),
    Case(
        "GPUSlowerThanPeers",
        "GPU 0 copies at 0.70 of 0.80 for an hour",
        probe_fleet(
            "flopwatch_probe_bandwidth_bytes_per_second", "0.80x30 0.70x60 0.80x90", path="device"
        ),
        quiet_at=(20, 40, 120),
        fires_at=(60,),
        labels=NAMED | {"unit": "memory"},
    ),
    Case(
        "GPUSlowerThanPeers",
        "3 % below the peers is the ordinary spread of silicon, however even the others are",
        probe_fleet("flopwatch_probe_efficiency_ratio", "0.776x200", precision="bf16"),
        quiet_at=(60, 120, 190),
    ),
    Case(
        "GPUSlowerThanPeers",
        "host copies depend on the host: they are shown, and page nobody",
        probe_fleet(
            "flopwatch_probe_bandwidth_bytes_per_second", "0.40x200", path="host_to_device"
        ),
        quiet_at=(60, 120, 190),
    ),
    Case(
        "GPUFarSlowerThanPeers",
        "GPU 0 reaches 0.40 of 0.80 for an hour",
        probe_fleet(
            "flopwatch_probe_efficiency_ratio", "0.80x30 0.40x60 0.80x90", precision="bf16"
        ),
        quiet_at=(20, 35, 120),
        fires_at=(60,),
        labels=NAMED,
    ),
    Case(
        "GPUSlowerThanOwnBaseline",
        "the slowest kernel falls to 0.85 of the GPU's own baseline",
        {
            **gpu_series("flopwatch_probe_lowest_baseline_ratio", "1x20 0.85x60 1x60"),
            **gpu_series("flopwatch_probe_baseline_ratio", "1x20 0.85x60 1x60", kernel="gemm_bf16"),
            **gpu_series("flopwatch_probe_baseline_ratio", "1x200", kernel="copy_device"),
            **gpu_series("flopwatch_probe_baseline_ratio", "0.5x200", kernel="copy_host_to_device"),
        },
        quiet_at=(15, 30, 100),
        fires_at=(50,),
    ),
    Case(
        "GPUSlowerThanOwnBaseline",
        "a MIG instance falls to 0.85 of its own baseline, and the instance beside it does not",
        {
            **gpu_series("flopwatch_probe_lowest_baseline_ratio", "1x20 0.85x60 1x60", mig="1"),
            **gpu_series("flopwatch_probe_lowest_baseline_ratio", "1x200", mig="2"),
        },
        quiet_at=(15, 30, 100),
        fires_at=(50,),
        labels={"gpu": "0", "uuid": "GPU-0", "mig": "1"},
    ),
    Case(
        "GPUSlowerThanOwnBaseline",
        "5 % below is within what temperature and neighbours do",
        gpu_series("flopwatch_probe_lowest_baseline_ratio", "0.95x200"),
        quiet_at=(60, 190),
    ),
    Case(
        "GPUFarSlowerThanOwnBaseline",
        "device memory falls to 0.6 of its baseline",
        gpu_series("flopwatch_probe_lowest_baseline_ratio", "1x20 0.6x60 1x60"),
        quiet_at=(15, 25, 100),
        fires_at=(50,),
    ),
    Case(
        "GPUSilentDataCorruption",
        "a counter that stood at zero goes up once; a reset ends it",
        gpu_series("flopwatch_probe_wrong_results_total", f"0x30 1x{2 * DAY}") | RESET_AT_DAY,
        quiet_at=(30, DAY + 2 * HOUR),
        fires_at=(35, 20 * HOUR),
    ),
    Case(
        "GPUSilentDataCorruption",
        "one wrong result of a MIG instance",
        gpu_series("flopwatch_probe_wrong_results_total", f"0x30 1x{2 * DAY}", mig="3")
        | gpu_series(
            "flopwatch_probe_mismatches_total", f"0x30 1x{2 * DAY}", kernel="gemm_int8", mig="3"
        )
        | gpu_series(
            "flopwatch_probe_mismatches_total", f"0x{2 * DAY}", kernel="gemm_bf16", mig="3"
        )
        | RESET_AT_DAY,
        quiet_at=(30, DAY + 2 * HOUR),
        fires_at=(35, 20 * HOUR),
        labels={"gpu": "0", "uuid": "GPU-0", "mig": "3"},
    ),
    Case(
        "GPUSilentDataCorruption",
        "a counter that begins with its first mismatch",
        gpu_series("flopwatch_probe_wrong_results_total", f"_x30 1x{2 * DAY}") | RESET_AT_DAY,
        quiet_at=(29, DAY + 2 * HOUR),
        fires_at=(35, 20 * HOUR),
    ),
    Case(
        "GPUClocksHeldDownByHeat",
        "a fifth of the peak is lost to heat for half an hour",
        gpu_series("flopwatch_gpu_seconds_total", "0x20 0+12x30 360x60", state="clock_thermal"),
        quiet_at=(20, 28, 70),
        fires_at=(40,),
    ),
    Case(
        "GPUClocksHeldDownByHeat",
        "3 % lost to heat on a warm day",
        gpu_series("flopwatch_gpu_seconds_total", "0+1.8x120", state="clock_thermal"),
        quiet_at=(60, 110),
    ),
    Case(
        "GPUClocksHeldDownByPower",
        "40 % of the peak is lost to the power limit for 40 minutes",
        gpu_series("flopwatch_gpu_seconds_total", "0x20 0+24x40 960x60", state="clock_power"),
        quiet_at=(20, 33, 80),
        fires_at=(50,),
    ),
    Case(
        "GPUClocksHeldDownByPower",
        "a dense prefill load at the default limit loses 18 %",
        gpu_series("flopwatch_gpu_seconds_total", "0+10.8x120", state="clock_power"),
        quiet_at=(60, 110),
    ),
    Case(
        "GPUPowerBrake",
        "the brake is on half of the time for 20 minutes",
        gpu_series(
            "flopwatch_clock_event_seconds_total",
            "0x20 0+30x20 600x60",
            reason="hw_power_brake_slowdown",
        ),
        quiet_at=(20, 60),
        fires_at=(35,),
    ),
    Case(
        "GPUHotWhileIdle",
        "82 degrees with nothing to do, then the cooling is mended",
        {
            **gpu_series("flopwatch_temperature_celsius", "82x60 40x60", sensor="gpu"),
            **gpu_series("flopwatch_gpu_seconds_total", "0+59x200", state="idle"),
            **gpu_series("flopwatch_gpu_seconds_total", "0+1x200", state="tensor"),
        },
        quiet_at=(10, 70),
        fires_at=(40,),
    ),
    Case(
        "GPUHotWhileIdle",
        "82 degrees at full load is what the cooling is for",
        {
            **gpu_series("flopwatch_temperature_celsius", "82x120", sensor="gpu"),
            **gpu_series("flopwatch_gpu_seconds_total", "0+6x200", state="idle"),
            **gpu_series("flopwatch_gpu_seconds_total", "0+54x200", state="tensor"),
        },
        quiet_at=(60, 110),
    ),
)
