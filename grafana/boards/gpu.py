"""GPU: one device in depth."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import GPU, WHOLE_GPU, board
from grafana.panels import (
    BLUE,
    Column,
    Query,
    Threshold,
    bad_above,
    good_above,
    lines,
    number,
    rows,
    state_stack,
    states_over_time,
)


WHO = "{{instance}} GPU {{gpu}}"
UP = {"0": ("LOST", "red"), "1": ("up", "green")}
RATE = "$__rate_interval"


def _now(dashboard: Dashboard) -> Dashboard:
    small = {"span": 3, "height": 4}
    return (
        dashboard.with_panel(
            number(
                "State",
                "Whether the driver answers for it. LOST: drain the node and follow the GPULost runbook.",
                [Query(f"min by (instance, gpu) (flopwatch_gpu_up{{{WHOLE_GPU}}})", WHO)],
                unit="none",
                mappings=UP,
                thresholds=good_above(0.5, 1),
                spark=False,
                **small,
            )
        )
        .with_panel(
            number(
                "Product",
                "The device's name. Simulated devices say so here.",
                [Query(f"max by (name) (flopwatch_gpu_info{{{WHOLE_GPU}}})", "{{name}}")],
                unit="none",
                thresholds=BLUE,
                spark=False,
                name_only=True,
                **small,
            )
        )
        .with_panel(
            number(
                "Delivered",
                "FLOP/s of the tensor pipe at the headline precision. Low with much `memory` in the stack: batch; low with much `idle`: traffic.",
                [
                    Query(
                        f'sum by (instance, gpu) (rate(flopwatch_flop_total{{{WHOLE_GPU}, pipe="tensor"}}[{RATE}]))',
                        WHO,
                    )
                ],
                unit="flops",
                thresholds=BLUE,
                **small,
            )
        )
        .with_panel(
            number(
                "Of peak",
                "Of the data sheet's dense peak. 2-10 % is normal for decode. Compare with the GPU's own week below before you worry.",
                [Query(f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{GPU}}}", WHO)],
                unit="percentunit",
                decimals=1,
                thresholds=BLUE,
                **small,
            )
        )
        .with_panel(
            number(
                "Slowest probe of own past",
                "The slowest micro-probe over this GPU's own baseline. Below 95 % it is slower than it was; below 75 % take it out of service.",
                [
                    Query(
                        f'min by (instance, gpu) (flopwatch_probe_baseline_ratio{{{WHOLE_GPU}, kernel=~"gemm_.+|copy_device"}})',
                        WHO,
                    )
                ],
                unit="percentunit",
                decimals=1,
                thresholds=good_above(0.75, 0.95),
                no_value="not probed",
                **small,
            )
        )
        .with_panel(
            number(
                "Slowest probe of peers",
                "The slowest micro-probe over the median of the same model in the cluster, clock divided out for GEMMs. Below 95 % with a robust z under -3.5 it is a straggler.",
                [Query(f"gpu:flopwatch_probe_measure:min_peer_ratio{{{GPU}}}", WHO)],
                unit="percentunit",
                decimals=1,
                thresholds=good_above(0.75, 0.95),
                no_value="not probed",
                **small,
            )
        )
        .with_panel(
            number(
                "Temperature",
                "Of the GPU core. Most parts begin to slow down near 85-90 °C; look at the fan, the pump and the neighbours.",
                [
                    Query(
                        f'max by (instance, gpu) (flopwatch_temperature_celsius{{{WHOLE_GPU}, sensor="gpu"}})',
                        WHO,
                    )
                ],
                unit="celsius",
                decimals=0,
                thresholds=bad_above(80, 87),
                **small,
            )
        )
        .with_panel(
            number(
                "Power",
                "Draw now. At the limit with clocks below their maximum, the limit costs FLOPS.",
                [Query(f"flopwatch_power_watts{{{WHOLE_GPU}}}", WHO)],
                unit="watt",
                decimals=0,
                thresholds=BLUE,
                **small,
            )
        )
    )


def _where(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Where the peak goes"))
        .with_panel(
            state_stack(
                "Where the peak goes",
                "Fills 0 to 100 %. `memory`: grow the batch, quantise. `stall`: fuse, synchronise less. `underfill`: more concurrency. `clock_thermal`: cooling. `clock_power`: limit or supply. `idle`: traffic or scheduling.",
                Query(
                    f"avg by (state) (rate(flopwatch_gpu_seconds_total{{{WHOLE_GPU}}}[{RATE}]))",
                    "{{state}}",
                ),
                span=16,
                height=10,
            )
        )
        .with_panel(
            lines(
                "Delivered, against its own past",
                "Now, and the same hour before (lower of yesterday and a week ago), a day's and a week's mean. Well below its past at equal traffic: see the stack for the reason.",
                [
                    Query(f"gpu:flopwatch_flops_utilization:ratio_rate5m{{{GPU}}}", f"now {WHO}"),
                    Query(
                        f"gpu:flopwatch_flops_utilization:same_hour{{{GPU}}}",
                        f"same hour before {WHO}",
                    ),
                    Query(f"gpu:flopwatch_flops_utilization:avg1d{{{GPU}}}", f"day {WHO}"),
                    Query(f"gpu:flopwatch_flops_utilization:avg7d{{{GPU}}}", f"week {WHO}"),
                ],
                unit="percentunit",
                dashed=["(same hour|day|week) .*"],
                span=8,
                height=10,
            )
        )
        .with_panel(
            lines(
                "Pipes",
                "Share of cycles in which each pipe worked. fp32 high and tensor low: a model or kernel that does not use the tensor cores.",
                [Query(f"flopwatch_pipe_active_ratio{{{WHOLE_GPU}}}", "{{pipe}} " + WHO)],
                unit="percentunit",
                span=8,
            )
        )
        .with_panel(
            lines(
                "Activity",
                "Graphics engine, SMs, warps. `gpu` at 100 % with `SM` far lower is a GPU that looks busy and is not: small grids.",
                [
                    Query(f"flopwatch_gpu_active_ratio{{{WHOLE_GPU}}}", f"gpu {WHO}"),
                    Query(f"flopwatch_sm_active_ratio{{{WHOLE_GPU}}}", f"SM {WHO}"),
                    Query(f"flopwatch_sm_occupancy_ratio{{{WHOLE_GPU}}}", f"occupancy {WHO}"),
                ],
                unit="percentunit",
                maximum=1,
                span=8,
            )
        )
        .with_panel(
            lines(
                "Delivered by pipe and precision",
                "Plain pipes are upper bounds: every instruction is taken for a multiply-add. A precision you do not expect here points at the engine's settings.",
                [
                    Query(
                        f"sum by (pipe, precision) (rate(flopwatch_flop_total{{{WHOLE_GPU}}}[{RATE}]))",
                        "{{pipe}} {{precision}}",
                    )
                ],
                unit="flops",
                span=8,
            )
        )
    )


def _clocks(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Clocks, power and heat"))
        .with_panel(
            lines(
                "SM clock",
                "Now, its maximum, and as measured on the device by the last probe. Below the maximum under load: the next panel says why.",
                [
                    Query(f"flopwatch_sm_clock_hertz{{{WHOLE_GPU}}}", f"now {WHO}"),
                    Query(f"flopwatch_sm_clock_max_hertz{{{WHOLE_GPU}}}", f"maximum {WHO}"),
                    Query(f"flopwatch_probe_sm_clock_hertz{{{WHOLE_GPU}}}", f"probe {WHO}"),
                ],
                unit="hertz",
                dashed=["maximum .*"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "Reasons for the clock",
                "Share of time in which each reason held. thermal: cooling. power_cap: the limit. power_brake: the chassis. gpu_idle alone is harmless.",
                [
                    Query(
                        f"max by (reason) (rate(flopwatch_clock_event_seconds_total{{{WHOLE_GPU}}}[{RATE}])) > 0",
                        "{{reason}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
                span=6,
                no_value="no reason held",
            )
        )
        .with_panel(
            lines(
                "Power",
                "Draw and limit. Flat at the limit: the GPU is power-bound; a lower limit than its siblings have is a setting to mend.",
                [
                    Query(f"flopwatch_power_watts{{{WHOLE_GPU}}}", f"draw {WHO}"),
                    Query(f"flopwatch_power_limit_watts{{{WHOLE_GPU}}}", f"limit {WHO}"),
                ],
                unit="watt",
                dashed=["limit .*"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "Temperature",
                "Core and memory. Hot while idle, or hotter than its neighbours at equal power: cooling of this slot.",
                [Query(f"flopwatch_temperature_celsius{{{WHOLE_GPU}}}", "{{sensor}} " + WHO)],
                unit="celsius",
                thresholds=[Threshold(None, "transparent"), Threshold(87, "red")],
                span=6,
            )
        )
    )


def _memory(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Memory and links"))
        .with_panel(
            lines(
                "Device memory bandwidth",
                "Used, and dashed the theoretical roof. Above 80 % the GPU is memory-bound: more FLOPS come from a larger batch or smaller weights, not from a faster clock.",
                [
                    Query(
                        f"sum by (instance, gpu) (rate(flopwatch_dram_bytes_total{{{WHOLE_GPU}}}[{RATE}]))",
                        f"used {WHO}",
                    ),
                    Query(
                        f"flopwatch_peak_dram_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        f"roof {WHO}",
                    ),
                ],
                unit="Bps",
                dashed=["roof .*"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "Device memory",
                "Used of what there is. Inference engines take nearly all at start; a change later is another process.",
                [
                    Query(f"flopwatch_memory_used_bytes{{{WHOLE_GPU}}}", f"used {WHO}"),
                    Query(f"flopwatch_memory_size_bytes{{{WHOLE_GPU}}}", f"size {WHO}"),
                ],
                unit="bytes",
                dashed=["size .*"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "PCIe",
                "Traffic as the GPU sees it, and dashed the roof of the present link. Near the roof: offloading or KV transfer over PCIe. A low roof: see PCIeLinkDegraded.",
                [
                    Query(
                        f"rate(flopwatch_pcie_receive_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        f"receive {WHO}",
                    ),
                    Query(
                        f"rate(flopwatch_pcie_transmit_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        f"transmit {WHO}",
                    ),
                    Query(
                        f"flopwatch_peak_pcie_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        f"roof {WHO}",
                    ),
                ],
                unit="Bps",
                dashed=["roof .*"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "NVLink",
                "Traffic of all links. High beside much `stall`: collectives dominate, use a smaller tensor-parallel group. None at all on a multi-GPU model: it goes over PCIe.",
                [
                    Query(
                        f"rate(flopwatch_nvlink_receive_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        f"receive {WHO}",
                    ),
                    Query(
                        f"rate(flopwatch_nvlink_transmit_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        f"transmit {WHO}",
                    ),
                ],
                unit="Bps",
                span=6,
                no_value="no NVLink",
            )
        )
    )


def _probes(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Probes against its own baseline"))
        .with_panel(
            lines(
                "Probe over own baseline",
                "Every kernel should lie on 100 %. All lower: heat, power or software. One lower: that unit. Below 90 % an alert fires.",
                [Query(f"flopwatch_probe_baseline_ratio{{{WHOLE_GPU}}}", "{{kernel}} " + WHO)],
                unit="percentunit",
                minimum=None,
                soft_maximum=1.05,
                thresholds=[Threshold(None, "red"), Threshold(0.9, "transparent")],
                span=8,
                no_value="not probed",
            )
        )
        .with_panel(
            lines(
                "Probe efficiency",
                "FLOP per clock over what is possible, by precision: hardware health with the clock divided out. A step down is silicon, memory or a new library.",
                [Query(f"flopwatch_probe_efficiency_ratio{{{WHOLE_GPU}}}", "{{precision}} " + WHO)],
                unit="percentunit",
                span=8,
                no_value="not probed",
            )
        )
        .with_panel(
            lines(
                "Probe bandwidth",
                "Device memory, host copies and peers. Host copies fall with a degraded link or a busy host; device memory should not move at all.",
                [
                    Query(
                        f"flopwatch_probe_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        "{{path}} {{peer}} " + WHO,
                    )
                ],
                unit="Bps",
                span=8,
                no_value="not probed",
            )
        )
    )


def _health(dashboard: Dashboard) -> Dashboard:
    return (
        dashboard.with_row(Row("Health events"))
        .with_panel(
            states_over_time(
                "Answering, hung, links",
                "Green is good. LOST and hung end in a reset or reboot; fewer links than its siblings is NVLinkDown.",
                [
                    Query(
                        f"min by (instance, gpu) (flopwatch_gpu_up{{{WHOLE_GPU}}})", f"driver {WHO}"
                    ),
                    Query(
                        f"1 - max by (instance, gpu) (flopwatch_source_hung{{{WHOLE_GPU}}})",
                        f"not hung {WHO}",
                    ),
                    Query(
                        f"min by (instance, gpu) (flopwatch_nvlink_up{{{WHOLE_GPU}}})",
                        f"all links {WHO}",
                    ),
                    Query(
                        f"1 - max by (instance, gpu) (flopwatch_row_remap_pending{{{WHOLE_GPU}}})",
                        f"no row pending {WHO}",
                    ),
                ],
                {"0": ("bad", "red"), "1": ("good", "green")},
            )
        )
        .with_panel(
            rows(
                "XIDs",
                "Codes that the driver reported, and how often since the exporter started. 13, 31, 43, 45 are programs; 48, 63, 64, 74, 79, 94, 95, 119, 120 are hardware.",
                [
                    Query(
                        f"1000 * max by (instance, gpu, xid) (flopwatch_xid_last_timestamp_seconds{{{WHOLE_GPU}}})"
                    ),
                    Query(
                        f"max by (instance, gpu, xid) (flopwatch_xid_errors_total{{{WHOLE_GPU}}})"
                    ),
                ],
                [
                    Column("instance", "Instance"),
                    Column("gpu", "GPU", width=60),
                    Column("xid", "XID", width=70),
                    Column("B", "Count", width=80),
                    Column("A", "Last", "dateTimeFromNow"),
                ],
                sort_by="Last",
                span=6,
                no_value="none",
            )
        )
        .with_panel(
            lines(
                "Memory errors and link replays",
                "New ECC errors, NVLink errors and PCIe replays an hour. Any uncorrected error kills its process; a steady stream of the others is a part that wears out.",
                [
                    Query(
                        f"sum by (kind) (increase(flopwatch_ecc_errors_total{{{WHOLE_GPU}}}[1h]))",
                        "ECC {{kind}}",
                    ),
                    Query(
                        f"sum by (kind) (increase(flopwatch_nvlink_errors_total{{{WHOLE_GPU}}}[1h]))",
                        "NVLink {{kind}}",
                    ),
                    Query(
                        f"sum(increase(flopwatch_pcie_replays_total{{{WHOLE_GPU}}}[1h]))",
                        "PCIe replays",
                    ),
                ],
                unit="none",
                span=6,
                soft_maximum=1,
            )
        )
        .with_panel(
            rows(
                "Who holds it",
                "Pod or job on the GPU, and the workload joined to it. Nobody here and memory in use: a process outside the scheduler.",
                [
                    Query(
                        f"max by (instance, gpu, namespace, pod, container) (flopwatch_gpu_allocation_info{{{GPU}}})"
                    ),
                    Query(
                        f"max by (instance, gpu, workload) (flopwatch_workload_gpu_info{{{GPU}}})"
                    ),
                ],
                [
                    Column("instance", "Instance"),
                    Column("gpu", "GPU", width=60),
                    Column("namespace", "Namespace"),
                    Column("pod", "Pod"),
                    Column("workload", "Workload"),
                ],
                sort_by="Instance",
                span=12,
                height=6,
                no_value="no allocation known",
            )
        )
        .with_panel(
            rows(
                "What it is",
                "Identity for a ticket to the vendor: serial, bus address, driver. Other drivers than the siblings have explain other speeds.",
                [
                    Query(
                        f"max by (instance, gpu, uuid, serial, pci_bus_id, driver_version, sm_count) (flopwatch_gpu_info{{{WHOLE_GPU}}})"
                    )
                ],
                [
                    Column("instance", "Instance"),
                    Column("gpu", "GPU", width=60),
                    Column("uuid", "UUID"),
                    Column("serial", "Serial"),
                    Column("pci_bus_id", "PCI address"),
                    Column("driver_version", "Driver"),
                    Column("sm_count", "SMs", width=60),
                ],
                sort_by="Instance",
                span=12,
                height=6,
            )
        )
    )


def dashboard() -> Dashboard:
    """The GPU dashboard."""
    made = board(
        "flopwatch-gpu",
        "flopwatch / GPU",
        "One GPU in depth: where its peak goes, clocks and their reasons, memory, links, probes, health.",
        narrow=("gpu",),
    )
    return _health(_probes(_memory(_clocks(_where(_now(made))))))
