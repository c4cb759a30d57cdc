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
from grafana.panels import Query, Threshold, lines, states_over_time
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
                    "Used, and dashed the theoretical roof. Above 80 % the GPU is memory-bound: more FLOPS come from a larger batch or smaller weights, not from a faster clock.",
                    [
                        Query(
                            f"sum by (instance, gpu) (rate(flopwatch_dram_bytes_total{{{WHOLE_GPU}}}[{RATE}]))",
                            "used",
                        ),
                        Query(
                            f"flopwatch_peak_dram_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                            "roof",
                        ),
                    ],
                    unit="Bps",
                    dashed=["roof"],
                    span=6,
                ),
                CHOICES,
            )
        )
        .with_panel(
            lines(
                "Device memory",
                "Used of what there is. Inference engines take nearly all at start; a change later is another process.",
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
                "Traffic as the GPU sees it, and dashed the roof of the present link. Near the roof: offloading or KV transfer over PCIe. A low roof: see PCIeLinkDegraded.",
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
                        "roof",
                    ),
                ],
                unit="Bps",
                dashed=["roof"],
                span=6,
            )
        )
        .with_panel(
            explained(
                lines(
                    "NVLink",
                    "Traffic of all links. High beside much `stall`: collectives dominate, use a smaller tensor-parallel group. None at all on a multi-GPU model: it goes over PCIe.",
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
                    needs="NVLink",
                ),
                CHOICES,
            )
        )
    )


def probes(dashboard: Dashboard) -> Dashboard:
    """The micro-probes against the GPU's own baseline."""
    return (
        dashboard.with_row(Row("Probes against its own baseline"))
        .with_panel(
            explained(
                lines(
                    "Probe over own baseline",
                    "Every kernel should lie on 100 %. All lower: heat, power or software. One lower: that unit. Below 90 % an alert fires.",
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
                    "FLOP per clock over what is possible, by precision: hardware health with the clock divided out. A step down is silicon, memory or a new library.",
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
                "Device memory, host copies and peers. Host copies fall with a degraded link or a busy host; device memory should not move at all.",
                [
                    Query(
                        f"flopwatch_probe_bandwidth_bytes_per_second{{{WHOLE_GPU}}}",
                        "{{path}} {{peer}}",
                    )
                ],
                unit="Bps",
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
                "Answering, hung, links",
                "Green is good. LOST and hung end in a reset or reboot; fewer links than its siblings is NVLinkDown.",
                [
                    Query(f"min by (instance, gpu) (flopwatch_gpu_up{{{WHOLE_GPU}}})", "driver"),
                    Query(
                        f"1 - max by (instance, gpu) (flopwatch_source_hung{{{WHOLE_GPU}}})",
                        "not hung",
                    ),
                    Query(
                        f"min by (instance, gpu) (flopwatch_nvlink_up{{{WHOLE_GPU}}})",
                        "all links",
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
                        f'max by (instance, gpu, holder) (gpu:flopwatch_holder:info{{{GPU}, holder!~"workload .+"}})'
                    ),
                    Query(
                        f"max by (instance, gpu, workload) (flopwatch_workload_gpu_info{{{GPU}}})"
                    ),
                ],
                [
                    Column("instance", "Instance"),
                    Column("gpu", "GPU", width=60),
                    Column("holder", "Held by", width=450),
                    Column("workload", "Workload"),
                ],
                sort_by="Instance",
                span=12,
                height=6,
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
                    "One row a MIG instance, idle ones last. `Of peak` is of the instance's own share of SMs. One at 100 % idle beside full ones: give its tenant less, or the others more.",
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
                        Column("B", "Of peak", "percentunit", decimals=1, width=85),
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
                "FLOP/s of each MIG instance's tensor pipes. One that falls while the others hold: its own traffic. All at once: the clock, see above.",
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
