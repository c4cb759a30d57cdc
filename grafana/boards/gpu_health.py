"""GPU, lower half: memory and links, probes, health events, MIG instances."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from grafana.frame import (
    CHOICES,
    GPU,
    PROBES,
    STATES,
    WHOLE_GPU,
    explained,
)
from grafana.panels import NONE_REPORTED, Query, Threshold, lines, states_over_time
from grafana.tables import Column, rows


RATE = "$__rate_interval"
INSTANCES = f'{GPU}, mig!=""'


def memory_and_links(dashboard: Dashboard) -> Dashboard:
    """Device memory and the links to it."""
    return (
        dashboard.with_row(Row("Memory and links"))
        .with_panel(
            explained(
                lines(
                    "Device memory bandwidth",
                    "Bandwidth used. Dashed: the theoretical peak. Above 80 % of it the GPU is memory-bound: more FLOPS come from a larger batch or smaller weights, not from a faster clock.",
                    [
                        Query(
                            f"sum by (instance, gpu) (rate(flopwatch_dram_bytes_total{{{WHOLE_GPU}}}[{RATE}]))",
                            "used",
                        ),
                        Query(
                            f"flopwatch_peak_dram_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                            "peak",
                        ),
                    ],
                    unit="Bps",
                    dashed=["peak"],
                    span=6,
                ),
                CHOICES,
            )
        )
        .with_panel(
            lines(
                "Device memory",
                "Memory used, and its size. Inference engines take nearly all of it when they start; a later change comes from another process.",
                [
                    Query(f"flopwatch_memory_used_bytes{{{WHOLE_GPU}}}", "used"),
                    Query(f"flopwatch_memory_size_bytes{{{WHOLE_GPU}}}", "size"),
                ],
                unit="bytes",
                dashed=["size"],
                span=6,
            )
        )
        .with_panel(
            lines(
                "PCIe",
                "Traffic as the GPU sees it. Dashed: the peak of the link as it runs now. Near the peak: offloading, or KV transfer over PCIe. If the peak itself is low, see PCIeLinkDegraded.",
                [
                    Query(
                        f"rate(flopwatch_pcie_receive_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        "receive",
                    ),
                    Query(
                        f"rate(flopwatch_pcie_transmit_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                        "transmit",
                    ),
                    Query(
                        f"flopwatch_peak_pcie_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        "peak",
                    ),
                ],
                unit="Bps",
                dashed=["peak"],
                span=6,
            )
        )
        .with_panel(
            explained(
                lines(
                    "NVLink",
                    "Traffic of all links. High together with much `stall`: collectives dominate; use a smaller tensor-parallel group. None although a model uses several GPUs: the traffic goes over PCIe.",
                    [
                        Query(
                            f"rate(flopwatch_nvlink_receive_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                            "receive",
                        ),
                        Query(
                            f"rate(flopwatch_nvlink_transmit_bytes_total{{{WHOLE_GPU}}}[{RATE}])",
                            "transmit",
                        ),
                    ],
                    unit="Bps",
                    span=6,
                    needs="NVLink, and counters of its traffic",
                ),
                CHOICES,
            )
        )
    )


def probes(dashboard: Dashboard) -> Dashboard:
    """The micro-probes against the GPU's own baseline."""
    return (
        dashboard.with_row(Row("Probes"))
        .with_panel(
            explained(
                lines(
                    "Probe vs baseline, by kernel",
                    "Every kernel should be at 100 %. All lower: heat, power or software. One lower: the unit that it exercises. Below 90 % an alert fires.",
                    [Query(f"flopwatch_probe_baseline_ratio{{{WHOLE_GPU}}}", "{{kernel}}")],
                    fill=0,
                    unit="percentunit",
                    minimum=None,
                    soft_maximum=1.05,
                    thresholds=[Threshold(None, "red"), Threshold(0.9, "transparent")],
                    span=8,
                    needs="probes",
                ),
                PROBES,
            )
        )
        .with_panel(
            explained(
                lines(
                    "Probe efficiency",
                    "Measured over theoretical FLOP per clock, by precision: the health of the hardware, independent of its clock. A step down: silicon, memory or a new library.",
                    [Query(f"flopwatch_probe_efficiency_ratio{{{WHOLE_GPU}}}", "{{precision}}")],
                    fill=0,
                    unit="percentunit",
                    span=8,
                    needs="probes",
                ),
                PROBES,
            )
        )
        .with_panel(
            lines(
                "Probe bandwidth",
                "Bandwidth of device memory, and of copies to the host and to peers. Host copies fall with a degraded link or a busy host. Device memory should not change at all.",
                [
                    Query(
                        f"flopwatch_probe_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        "{{path}} {{peer}}",
                    )
                ],
                unit="Bps",
                minimum=None,
                logarithmic=True,
                fill=0,
                span=8,
                needs="probes",
            )
        )
    )


def health(dashboard: Dashboard) -> Dashboard:
    """What the hardware reports about itself, and who holds it."""
    return (
        dashboard.with_row(Row("Health events"))
        .with_panel(
            states_over_time(
                "Driver, links, memory rows",
                "Green is good. A lost or hung GPU needs a reset or a reboot. For links that are down, see NVLinkDown.",
                [
                    Query(
                        f"min by (instance, gpu) (flopwatch_gpu_up{{{WHOLE_GPU}}})",
                        "driver answers",
                    ),
                    Query(
                        f"1 - max by (instance, gpu) (flopwatch_source_hung{{{WHOLE_GPU}}})",
                        "no call hangs",
                    ),
                    Query(
                        f"min by (instance, gpu) (flopwatch_nvlink_up{{{WHOLE_GPU}}})",
                        "all NVLinks up",
                    ),
                    Query(
                        f"1 - max by (instance, gpu) (flopwatch_row_remap_pending{{{WHOLE_GPU}}})",
                        "no row remap pending",
                    ),
                ],
                {"0": ("bad", "red"), "1": ("good", "green")},
            )
        )
        .with_panel(
            rows(
                "XIDs",
                "XIDs that the driver reported, and how often since the exporter started. 13, 31, 43 and 45 are caused by programs; 48, 63, 64, 74, 79, 94, 95, 119 and 120 by hardware.",
                [
                    Query(
                        f"1000 * max by (instance, gpu, xid) (flopwatch_xid_last_timestamp_seconds{{{WHOLE_GPU}}})"
                    ),
                    Query(
                        f"max by (instance, gpu, xid) (flopwatch_xid_errors_total{{{WHOLE_GPU}}})"
                    ),
                ],
                [
                    Column("xid", "XID", width=70),
                    Column("B", "Count", width=80),
                    Column("A", "Last", "dateTimeFromNow"),
                ],
                sort_by="Last",
                empty=NONE_REPORTED,
                span=6,
            )
        )
        .with_panel(
            lines(
                "Memory errors and link replays",
                "New ECC errors, NVLink errors and PCIe replays per hour. An uncorrected error kills the process that hit it. A steady stream of the others points to a part that is failing.",
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
                "Pod or job that holds the GPU, and the workload on it. If the table is empty while memory is in use, a process outside the scheduler uses the GPU.",
                [
                    Query(
                        f'max by (instance, gpu, holder) (gpu:flopwatch_holder:info{{{GPU}, holder!~"workload .+"}})'
                    ),
                    Query(
                        f"max by (instance, gpu, workload) (flopwatch_workload_gpu_info{{{GPU}}})"
                    ),
                ],
                [
                    Column("holder", "Held by"),
                    Column("workload", "Workload"),
                ],
                sort_by="Held by",
                span=12,
                height=6,
            )
        )
        .with_panel(
            rows(
                "Identity",
                "What a vendor ticket needs: serial number, PCI address, driver. A driver version other than the siblings' can explain a different speed.",
                [
                    Query(
                        f"max by (instance, gpu, uuid, serial, pci_bus_id, driver_version, sm_count) (flopwatch_gpu_info{{{WHOLE_GPU}}})"
                    )
                ],
                [
                    Column("uuid", "UUID"),
                    Column("serial", "Serial", width=130),
                    Column("pci_bus_id", "PCI address", width=140),
                    Column("driver_version", "Driver", width=100),
                    Column("sm_count", "SMs", width=60),
                ],
                sort_by="UUID",
                span=12,
                height=6,
            )
        )
    )


def instances(dashboard: Dashboard) -> Dashboard:
    """The GPU's MIG instances, in a row that is collapsed by default."""
    idle = f'flopwatch_gpu_seconds_total{{{INSTANCES}, state="idle"}}'
    row = (
        Row("MIG instances")
        .collapsed(True)
        .with_panel(
            explained(
                rows(
                    "Instances",
                    "One row per MIG instance, idle ones last. `Utilization` refers to the instance's own share of SMs. If one is idle while others are full, give its tenant a smaller instance, or the others a larger one.",
                    [
                        Query(
                            f'sum by (mig) (rate(flopwatch_flop_total{{{INSTANCES}, pipe="tensor"}}[{RATE}]))'
                        ),
                        Query(f"max by (mig) (flopwatch_flops_utilization_ratio{{{INSTANCES}}})"),
                        Query(
                            f"max by (mig) (flopwatch_dram_bandwidth_utilization_ratio{{{INSTANCES}}})"
                        ),
                        Query(f"sum by (mig) (rate({idle}[{RATE}]))"),
                        Query(f"max by (mig) (flopwatch_memory_used_bytes{{{INSTANCES}}})"),
                    ],
                    [
                        Column("mig", "Instance", width=85),
                        Column("A", "Delivered", "flops", decimals=1),
                        Column("B", "Utilization", "percentunit", decimals=1, width=95),
                        Column("C", "Bandwidth used", "percentunit", decimals=0, width=130),
                        Column("D", "Idle", "percentunit", decimals=0, width=70),
                        Column("E", "Memory used", "bytes", decimals=1, width=120),
                    ],
                    sort_by="Delivered",
                    span=12,
                    needs="MIG instances",
                ),
                STATES,
            )
        )
        .with_panel(
            lines(
                "Delivered by instance",
                "FLOP/s of each MIG instance's tensor pipes. If one falls while the others are steady, its traffic fell. If all fall together, see the clock above.",
                [
                    Query(
                        f'sum by (mig) (rate(flopwatch_flop_total{{{INSTANCES}, pipe="tensor"}}[{RATE}]))',
                        "instance {{mig}}",
                    )
                ],
                unit="flops",
                span=12,
                needs="MIG instances",
            )
        )
    )
    return dashboard.with_row(row)
