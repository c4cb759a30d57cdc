"""docs/support-matrix.md: `python -m benchmarks.support_matrix > docs/support-matrix.md`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.accounting.peaks import find_peaks
from exporter.readings import DeviceIdentity


_TABLE = Path(__file__).parents[1] / "exporter" / "accounting" / "peaks.json"

_HEAD = """# Support matrix

What flopwatch measures on which GPU, how accurately, and what is an estimate. The tables are generated from the
table of GPU models by `python -m benchmarks.support_matrix`; nothing here was measured on hardware
unless it says so. `flopwatch check` reports the same for the host it runs on.

## Where the FLOPS come from

| source | GPUs | what it is | accuracy |
| --- | --- | --- | --- |
| `gpm_cycles` | Hopper and newer, drivers of the 595 branch and newer | SM cycles elapsed and active by pipe, counted by the device since boot | Cycles are counted, not sampled. Operations per cycle are the data sheet's: an active pipe is assumed to be full, and the tensor pipe is counted at the headline precision. |
| `gpm` | Hopper and newer, GeForce from the 50 series on, MIG-backed vGPU | activity of each tick in percent | As above, times the mean of the SM clock samples (four a tick): equally accurate at a steady clock. |
| `dcgm` | Volta to Ada data-centre GPUs, with a dcgm-exporter on the node | means over DCGM's collection interval (30 s by default), for the fields in its counters file | As `gpm`, at DCGM's interval. If the counters need two passes, DCGM multiplexes them. |
| none | GeForce before the 50 series, vGPU that shares a GPU, Jetson, confidential computing | NVML's utilization, clocks, power | No FLOPS. Time is `idle`, `clock_*` or `unresolved`. |

Support is detected by taking samples, never by the name of the device: when it is opened, after a driver reload, and
after a change of the MIG mode. If GPM has no values (a sleeping GPU) or the driver refuses it, it is retried every
minute, and `dcgm` is used meanwhile. If GPM has worked before and is refused, it is retried at once, then every second,
and finally once a minute. The table of models below determines only the peaks.

## By family

| family | FLOPS | memory bytes | where the time went | what else is different |
| --- | --- | --- | --- | --- |
"""

# Family, FLOPS, memory bytes, time, peculiarities.
_FAMILIES: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "Blackwell data centre (B200, B300, GB200, GB300)",
        "`gpm_cycles` or `gpm`",
        "`gpm`",
        "all states",
        (
            "FP8, FP6 and FP4 have no counter of their own: they are counted with HMMA, or by the union of the "
            "tensor pipes if only that changes. Set the precision, or let it be detected from an engine. "
            "NVLink recoveries come from new fields."
        ),
    ),
    (
        "Hopper (H100, H200, H800, H20, GH200)",
        "`gpm_cycles` or `gpm`",
        "`gpm`",
        "all states",
        (
            "The data sheet rates the tensor pipe below the boost clock (H100 SXM: 1830 of 1980 MHz): ratios may "
            "exceed 1 by 8 %. H20 and H800 have peaks of their own."
        ),
    ),
    (
        "Grace Hopper and Grace Blackwell (GH200, GB200, GB300), in addition to the above",
        "as the GPU",
        "as the GPU; C2C traffic by `gpm`",
        "as the GPU",
        (
            "C2C links to the processor: traffic, state, speed, errors (newer drivers). Power, energy and power limit "
            "of the module in addition to those of the GPU; the GPUs of one module show the same. Energy is read with "
            "the GPU's scope, where the driver has it: without one, GH200 has been reported to return the module's "
            "(zeus#172). Memory is the GPU's own as NVML reports it; the processor's memory is not included."
        ),
    ),
    (
        "MIG instances (Hopper and newer)",
        "`gpm_cycles` or `gpm`, each instance",
        "by memory slices",
        "all states",
        (
            "Series with `mig` and the instance's UUID; peaks by SMs and memory slices. Probes with `probes.mig: run`, "
            "never tried on hardware. Power, energy, clocks and "
            "links are the GPU's. A GPU that does not answer GPM for itself in MIG mode is summed from its instances."
        ),
    ),
    (
        "MIG instances (A100, A30)",
        "`dcgm`, rows with `GPU_I_ID`",
        "`dcgm`, by memory slices",
        "as the fields allow",
        (
            "SM count, memory and peaks by the instance's profile. The GPU itself: its own row where dcgm-exporter "
            "has one, otherwise assembled from its instances' rows by their share of the SMs (bandwidth: of the memory "
            "slices); an activity that one instance does not report is unknown for the GPU. With instances of different "
            "sizes DCGM has been reported to show the larger ones too low (DCGM#138, DCGM#248), and values above 1 "
            "(DCGM#152), which are left out."
        ),
    ),
    (
        "Ampere and Ada data centre (A100, A30, A10, A10G, A40, L4, L40, L40S)",
        "`dcgm`",
        "`dcgm`",
        "all states with all fields; with dcgm-exporter's default fields tensor and idle only, the rest `unresolved`",
        (
            "Profiling needs a dcgm-exporter with SYS_ADMIN and no other profiler on the GPU. Fields missing from its "
            "counters file are named by `flopwatch_source_field_missing`."
        ),
    ),
    (
        "Turing and Volta data centre (T4, V100)",
        "`dcgm`",
        "`dcgm`",
        "as above",
        "No BF16: tensor work is valued as FP16. HMMA and IMMA are not distinguished. Pages are retired where newer GPUs remap rows.",
    ),
    (
        "GeForce from the 50 series, RTX PRO Blackwell",
        "`gpm`",
        "`gpm`",
        "all states",
        (
            "GeForce: half tensor rate with FP32 accumulation, no ECC. Memory runs below its maximum clock in P2: "
            "bandwidth ratios are of the maximum."
        ),
    ),
    (
        "GeForce before the 50 series, TITAN",
        "none",
        "none",
        "`idle`, `clock_*`, `unresolved`",
        "Neither GPM nor DCGM profiling.",
    ),
    (
        "GB10 (DGX Spark), Thor, Orin",
        "`gpm` where the driver answers, else none",
        "where GPM answers",
        "as the source allows",
        "Unified memory: no memory and no PCIe series. No power limit.",
    ),
    (
        "vGPU with a MIG instance of its own",
        "`gpm`",
        "`gpm`",
        "all states",
        "The guest sees no power, energy or temperature. Peaks are derived from what it sees.",
    ),
    (
        "vGPU that shares a GPU",
        "none",
        "none",
        "`idle`, `unresolved`",
        "Peaks are those of the whole GPU, of which the guest has a time slice. Monitor the host instead.",
    ),
    (
        "Confidential computing",
        "none while performance counters are closed",
        "none",
        "`idle`, `clock_*`, `unresolved`",
        "Probes still measure what the GPU can do.",
    ),
    (
        "Exclusive and prohibited compute mode",
        "as the GPU",
        "as the GPU",
        "as the GPU",
        "Reading needs no CUDA context. Probes are skipped and report why.",
    ),
)

_ESTIMATES = """
## What is an estimate

| figure | derived from | accuracy |
| --- | --- | --- |
| `flopwatch_flop_total{pipe="tensor"}` | operations, from the time the pipe was active | An upper bound: it includes issue gaps while the pipe is active. `flopwatch calibrate` measures the error of a device, and `flopwatch_estimator_error_ratio` exports it. Structured sparsity counts as dense. |
| `flopwatch_flop_total{pipe="fp64|fp32|fp16"}` | operations, every instruction counted as a fused multiply-add | An upper bound: a plain addition or multiplication is only half of that. |
| `flopwatch_dram_bytes_total` | share of the theoretical bandwidth x time | As accurate as the theoretical bandwidth, within a few percent. |
| state `memory` | waiting explained by bandwidth | A model: DRAM activity divided by what a copy reaches (measured by the probe, else 92 %). |
| `flopwatch_peak_flops` of `flopwatch_peak_info{origin="derived"}` | SMs x rate x maximum clock | Within about 10 % of a data sheet; where that cannot be guaranteed (laptop boards, desktop boards that are not in the table, boards with a D suffix) there is no peak. |

## Implausible values

A utilization of 100 % without an active SM at idle power, activities of zero at the power of a busy GPU, and counters that
get stuck, jump, or fall for one reading are left out and counted in
`flopwatch_source_errors_total{reason="implausible"}`; time that becomes unknown goes to `unresolved`.
A contradiction counts once it has lasted three seconds. If all MIG instances report no activity while the power of their GPU
shows that it is busy, all of them are left out, because it is not known which one is wrong.

## Peaks by model

Dense data-sheet figures in TFLOP/s (TOP/s for int8), from NVIDIA's data sheets and whitepapers; figures that a
sheet leaves out are SMs x rate x its clock. 'Tensor clock' is the clock at which the sheet rates the tensor
pipe. At the boost clock, ratios reach the boost clock divided by the tensor clock.

A row is used only for a board that matches it in compute capability, SM count, memory size (86 to 106 % of the
sheet's) and memory clock x bus width (92 to 109 % of its bandwidth) as reported by NVML. The peaks of a board that
contradicts its row are derived from its silicon, and `flopwatch check` says why. Boards of one compute capability differ by two (GeForce, L40, L20) or by
four (H20): where neither name nor silicon decides, there is no peak and no FLOP rather than a wrong one. `gpus` in the
configuration overrides everything: `peaks`, `sm_count`, `dram_bandwidth`.

| model | NVML names | class | SMs | boost / tensor clock MHz | fp64 | fp32 | fp16 | bf16 | fp8 | fp4 | int8 | memory GB | memory GB/s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

_RATES_HEAD = """
## Rates by class

Dense operations per clock and SM, a fused multiply-add counted as two: used for GPUs that are not among the
models above. `dc` data centre and professional boards, `gf` GeForce, `a10g`, `l40` and `h20` boards of their own.
CUDA C++ Programming Guide and Best Practices Guide, architecture whitepapers.

"""
_PRECISIONS = ("fp64", "fp32", "fp16", "bf16", "fp8", "fp4", "int8")
_RATE_COLUMNS = (
    "fp64",
    "fp64t",
    "fp32",
    "fp16",
    "tf32",
    "fp16t",
    "fp8",
    "fp6",
    "fp4",
    "int8",
    "int4",
)
_TERA = 1e12


def support_page() -> str:
    """The whole page in Markdown."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    parts = [_HEAD]
    parts += [f"| {' | '.join(family)} |\n" for family in _FAMILIES]
    parts.append(_ESTIMATES.replace("fp64|fp32|fp16", "fp64\\|fp32\\|fp16"))
    parts += [_model_row(gpu, table["rates"]) for gpu in table["gpus"]]
    parts.append(_RATES_HEAD)
    parts.append(f"| class | {' | '.join(_RATE_COLUMNS)} |\n")
    parts.append(f"|{' --- |' * (len(_RATE_COLUMNS) + 1)}\n")
    for name, rates in table["rates"].items():
        cells = [f"{rates[column]:g}" if column in rates else "" for column in _RATE_COLUMNS]
        parts.append(f"| {name} | {' | '.join(cells)} |\n")
    return "".join(parts)


def _model_row(gpu: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]]) -> str:
    names = [*gpu["names"], *gpu.get("like", ())]
    capability = tuple(int(number) for number in gpu["class"].partition("/")[0].split("."))
    peaks = find_peaks(
        DeviceIdentity(
            index="0",
            uuid="",
            name=names[0].replace("*", ""),
            compute_capability=(capability[0], capability[1]),
            sm_count=gpu["sm_count"],
        )
    )
    tensor = gpu["teraflops"].get("fp16t")
    rate = rates[gpu["class"]].get("fp16t")
    clock = f"{gpu['boost_mhz']}"
    if tensor and rate:
        clock += f" / {tensor * 1e6 / (gpu['sm_count'] * rate):.0f}"
    cells = [
        gpu["model"],
        ", ".join(f"`{name}`" for name in names),
        gpu["class"],
        str(gpu["sm_count"]),
        clock,
        *(
            f"{peaks.flops[precision] / _TERA:.4g}" if precision in peaks.flops else ""
            for precision in _PRECISIONS
        ),
        " or ".join(f"{size:g}" for size in gpu.get("memory_gigabytes", ())),
        f"{gpu['dram_gigabytes_per_second']:g}",
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.stdout.write(support_page())
