"""GPU: one device in depth."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.boards.gpu_health import health, instances, memory_and_links, probes
from grafana.firing import firing
from grafana.frame import (
    CHOICES,
    GPU,
    NORMAL,
    PROBES,
    STATES,
    WHOLE_GPU,
    WORDS,
    board,
    explained,
)
from grafana.panels import (
    BLUE,
    Query,
    Threshold,
    bucket_heatmap,
    good_above,
    lines,
    number,
    state_stack,
)
from grafana.verdicts import PAST, PEERED, PEERS, verdicts


UP = {"0": ("LOST", "red"), "1": ("up", "green")}
RATE = "$__rate_interval"
DELIVERED = (
    f'sum by (instance, gpu) (rate(flopwatch_flop_total{{{WHOLE_GPU}, pipe="tensor"}}[{RATE}]))'
)
OF_PEAK = f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{GPU}}}"


def _now(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_panel(
            number(
                "State",
                "Whether the driver answers for this GPU. LOST: drain the host and follow the GPULost runbook.",
                [Query(f"min by (instance, gpu) (flopwatch_gpu_up{{{WHOLE_GPU}}})", "GPU {{gpu}}")],
                unit="none",
                mappings=UP,
                thresholds=good_above(0.5, 1),
                spark=False,
                span=2,
                height=4,
            )
        )
        .with_panel(
            number(
                "Product",
                "Name of the device. Simulated devices are marked. If it differs from your inventory, see `Identity` at the bottom.",
                [Query(f"max by (name) (flopwatch_gpu_info{{{WHOLE_GPU}}})", "{{name}}")],
                unit="none",
                thresholds=BLUE,
                spark=False,
                name_only=True,
                span=4,
                height=4,
            )
        )
        .with_panel(
            explained(
                number(
                    "FLOPS",
                    "Delivered FLOP/s of the tensor pipe at the headline precision; without activity counters, what a probe reached. Low with much `memory` in `Where the peak goes`: small batch. Low with much `idle`: little traffic.",
                    [
                        Query(DELIVERED, "delivered"),
                        Query(
                            f'topk(1, flopwatch_probe_flops{{{WHOLE_GPU}, precision!~"int.+"}}) unless on () {DELIVERED}',
                            "{{precision}} probe",
                        ),
                    ],
                    needs="activity counters or probes",
                    unit="flops",
                    thresholds=BLUE,
                    spark=False,
                    named=True,
                    span=3,
                ),
                WORDS,
            )
        )
        .with_panel(
            explained(
                number(
                    "Utilization",
                    "Delivered FLOP/s over the data sheet's dense peak; without activity counters, the share of time in which the GPU does any work. 2-10 % is normal for decode. Compare it with its own week below.",
                    [
                        Query(OF_PEAK, "of peak"),
                        Query(
                            f"gpu:flopwatch_busy:ratio_rate5m{{{GPU}}} unless on () {OF_PEAK}",
                            "busy",
                        ),
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=BLUE,
                    spark=False,
                    named=True,
                    span=3,
                ),
                NORMAL,
            )
        )
        .with_panel(
            explained(
                number(
                    "Probe vs baseline",
                    "Slowest probe over this GPU's own baseline. Below 90 % it is slower than it was. Below 75 %, take it out of service.",
                    [
                        Query(
                            f"gpu:flopwatch_probe_baseline_ratio:min{{{GPU}}}",
                            "GPU {{gpu}}",
                        )
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=PAST,
                    needs="probes",
                    spark=False,
                    span=3,
                ),
                PROBES,
            )
        )
        .with_panel(
            explained(
                number(
                    "Probe vs peers",
                    "Slowest probe over the median of the same model in the cluster; GEMMs are corrected for the clock. Below 95 % with a robust z below -3.5, it is a straggler.",
                    [
                        Query(
                            f"gpu:flopwatch_probe_measure:min_peer_ratio{{{GPU}}} {PEERED}",
                            "GPU {{gpu}}",
                        )
                    ],
                    unit="percentunit",
                    decimals=1,
                    thresholds=PEERS,
                    needs="probes, and another GPU of the model",
                    spark=False,
                    span=3,
                ),
                PROBES,
            )
        )
        .with_panel(
            number(
                "Temperature",
                "Temperature of the GPU core. Most GPUs begin to throttle at 85-90 °C. If it is hot, compare it with its siblings, and check fans, pump and air flow.",
                [
                    Query(
                        f'max by (instance, gpu) (flopwatch_temperature_celsius{{{WHOLE_GPU}, sensor="gpu"}})',
                        "GPU {{gpu}}",
                    )
                ],
                unit="celsius",
                decimals=0,
                spark=False,
                span=3,
            )
        )
        .with_panel(
            number(
                "Power",
                "Power drawn now. If it is at the limit and the clock is below its maximum, the limit costs FLOPS.",
                [Query(f"flopwatch_power_watts{{{WHOLE_GPU}}}", "GPU {{gpu}}")],
                unit="watt",
                decimals=0,
                thresholds=BLUE,
                spark=False,
                span=3,
            )
        )
    )


def _where(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Problems, and where the peak goes"))
        .with_panel(
            explained(
                firing(
                    "What is wrong now",
                    "Alerts that are firing for this GPU or its host, worst first. The alert's name opens its runbook. Empty is good.",
                    'instance=~"$instance", gpu=~"$gpu|"',  # those of its host too
                    span=8,
                    height=5,
                ),
                CHOICES,
            )
        )
        .with_panel(
            explained(
                state_stack(
                    "Where the peak goes",
                    "Share of time by state; the states add up to 100 %. `memory`: increase the batch or quantize. `stall`: fuse kernels, synchronize less. `underfill`: more concurrency. `clock_thermal`: cooling. `clock_power`: power limit or supply. `idle`: traffic or scheduling.",
                    f'sum(rate(flopwatch_gpu_seconds_total{{{WHOLE_GPU}, state="STATE"}}[{RATE}])) / sum(rate(flopwatch_gpu_seconds_total{{{WHOLE_GPU}}}[{RATE}]))',
                    span=10,
                    height=10,
                ),
                STATES,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Utilization, now and before",
                    "FLOPS utilization now, at the same hour before (the lower of yesterday and a week ago), and the means of a day and of a week. If it is well below its past at equal traffic, `Where the peak goes` shows the reason.",
                    [
                        Query(f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{GPU}}}", "now"),
                        Query(
                            f"gpu:flopwatch_flops_utilization:same_hour{{{GPU}}}",
                            "same hour before",
                        ),
                        Query(
                            f"avg_over_time(gpu:flopwatch_flops_utilization:avg1h{{{GPU}}}[1d:1h])",
                            "day",
                        ),
                        Query(
                            f"avg_over_time(gpu:flopwatch_flops_utilization:avg1h{{{GPU}}}[7d:1h])",
                            "week",
                        ),
                    ],
                    needs="activity counters",
                    unit="percentunit",
                    dashed=["same hour before|day|week"],
                    span=6,
                    height=5,
                ),
                CHOICES,
            )
        )
        .with_panel(
            verdicts(
                "Verdicts",
                "What the exporter finds on this GPU, in the words of its status page, worst first. Verdicts appear a few minutes before their alerts. Empty is good.",
                selection=GPU,
                brief=True,
                span=8,
                height=5,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Activity",
                    "Share of time with any work, GPU activity, SM activity, and occupancy (warps). `gpu` at 100 % with a far lower `SM`: the GPU looks busy but is not, because its grids are small.",
                    [
                        Query(
                            f'1 - sum(rate(flopwatch_gpu_seconds_total{{{WHOLE_GPU}, state="idle"}}[{RATE}]))',
                            "busy",
                        ),
                        Query(f"flopwatch_gpu_active_ratio{{{WHOLE_GPU}}}", "gpu"),
                        Query(f"flopwatch_sm_active_ratio{{{WHOLE_GPU}}}", "SM"),
                        Query(f"flopwatch_sm_occupancy_ratio{{{WHOLE_GPU}}}", "occupancy"),
                    ],
                    unit="percentunit",
                    maximum=1,
                    span=6,
                    height=5,
                ),
                STATES,
            )
        )
    )


def _inside(dashboard: Dashboard) -> Dashboard:
    """What only activity counters show, in a row that is collapsed by default."""
    row = (
        Row("Inside the SMs")
        .collapsed(True)
        .with_panel(
            explained(
                lines(
                    "Pipes",
                    "Share of cycles in which each pipe was active. hmma, imma and dmma are parts of `tensor` (floating point, integer, fp64). High fp32 with low tensor: a model or kernel that does not use the tensor cores.",
                    [Query(f"flopwatch_pipe_active_ratio{{{WHOLE_GPU}}}", "{{pipe}}")],
                    unit="percentunit",
                    span=8,
                ),
                STATES,
            )
        )
        .with_panel(
            bucket_heatmap(
                "Utilization per tick",
                "One observation per second, so that dips between two scrapes are visible. Two bands, one at zero: the GPU alternates between work and waiting. Look for a busy host or a slow peer.",
                Query(
                    f"sum by (le) (rate(flopwatch_tick_flops_utilization_ratio_bucket{{{WHOLE_GPU}}}[{RATE}]))",
                    "{{le}}",
                ),
                needs="activity counters",
                unit="percentunit",
                span=8,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Delivered by pipe and precision",
                    "Values of the plain pipes are upper bounds: every instruction is counted as a multiply-add. If a precision is unexpected, check the engine's settings.",
                    [
                        Query(
                            f'sum by (precision) (rate(flopwatch_flop_total{{{WHOLE_GPU}, pipe="tensor"}}[{RATE}]))',
                            "tensor {{precision}}",
                        ),
                        Query(
                            f'sum by (precision) (rate(flopwatch_flop_total{{{WHOLE_GPU}, pipe!="tensor"}}[{RATE}]))',
                            "plain {{precision}}",
                        ),
                    ],
                    needs="activity counters",
                    unit="flops",
                    span=8,
                ),
                WORDS,
            )
        )
    )
    return dashboard.with_row(row)


def _clocks(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Clocks, power and heat"))
        .with_panel(
            lines(
                "SM clock",
                "Clock now, its maximum, and the clock that the last probe measured on the device. If it is below the maximum under load, the next panel shows why.",
                [
                    Query(f"flopwatch_sm_clock_hertz{{{WHOLE_GPU}}}", "now"),
                    Query(f"flopwatch_sm_clock_max_hertz{{{WHOLE_GPU}}}", "maximum"),
                    Query(f"flopwatch_probe_sm_clock_hertz{{{WHOLE_GPU}}}", "probe"),
                ],
                unit="hertz",
                dashed=["maximum"],
                span=6,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Clock event reasons",
                    "Share of time in which the driver reported each reason. `…_thermal_slowdown`: cooling. `sw_power_cap`: the power limit. `hw_power_brake_slowdown`: the chassis. `gpu_idle` alone is harmless.",
                    [
                        Query(
                            f"max by (reason) (rate(flopwatch_clock_event_seconds_total{{{WHOLE_GPU}}}[{RATE}])) > 0",
                            "{{reason}}",
                        ),
                        Query(
                            f'max(rate(flopwatch_clock_event_seconds_total{{{WHOLE_GPU}, reason!="gpu_idle"}}[{RATE}])) == 0',
                            "none but idle",
                        ),
                    ],
                    unit="percentunit",
                    maximum=1,
                    span=6,
                ),
                CHOICES,
            )
        )
        .with_panel(
            lines(
                "Power",
                "Power drawn, and the limit. Flat at the limit: the GPU is power-bound. If the limit is lower than on its siblings, restore it.",
                [
                    Query(f"flopwatch_power_watts{{{WHOLE_GPU}}}", "draw"),
                    Query(f"flopwatch_power_limit_watts{{{WHOLE_GPU}}}", "limit"),
                ],
                unit="watt",
                dashed=["limit"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "Temperature",
                "Core and memory. The dashed line applies to the core; memory may be 10 degrees hotter. Hot while idle, or hotter than its siblings at equal power: the cooling of this slot.",
                [Query(f"flopwatch_temperature_celsius{{{WHOLE_GPU}}}", "{{sensor}}")],
                unit="celsius",
                thresholds=[Threshold(None, "transparent"), Threshold(87, "red")],
                span=6,
            )
        )
    )


def dashboard() -> Dashboard:
    """The GPU dashboard."""
    made = board(
        "flopwatch-gpu",
        "flopwatch / GPU",
        "One GPU in depth: where its peak goes, clocks and what holds them down, memory, links, probes, health.",
        narrow=("gpu",),
        one_gpu=True,
    )
    return instances(health(probes(memory_and_links(_inside(_clocks(_where(_now(made))))))))
