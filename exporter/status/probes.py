"""Probe results of one device: rows for the document, and what they say about it."""

from collections.abc import Mapping, Sequence

from exporter.accounting.peaks import Peaks
from exporter.findings import DEFAULT_THRESHOLDS, Finding, Thresholds
from exporter.status import document, verdict
from probes.records import ProbeResults


def probe_rows(probed: ProbeResults, peaks: Peaks | None) -> list[document.Probe]:
    """One row for each kernel with a fresh result, and for each that ever gave a wrong one."""

    def row(
        kernel: str,
        value: float | None,
        unit: str,
        *,
        peak: float | None = None,
        efficiency: float | None = None,
        peer: str | None = None,
    ) -> document.Probe:
        return document.Probe(
            kernel=kernel,
            value=value,
            unit=unit,
            peer=peer,
            peak_ratio=value / peak if value is not None and peak else None,
            efficiency_ratio=efficiency,
            baseline_ratio=probed.baseline_ratio.get(kernel),
            mismatches=probed.mismatches.get(kernel),
            last_success_unix_seconds=probed.last_success_seconds.get(kernel),
        )

    rows = [
        row(
            f"gemm_{precision}",
            flops,
            "FLOP/s",
            peak=peaks.flops.get(precision) if peaks else None,
            efficiency=probed.efficiency_ratio.get(precision),
        )
        for precision, flops in probed.flops.items()
    ]
    for (path, peer), bandwidth in probed.bandwidth_bytes_per_second.items():
        peak = peaks.dram_bytes_per_second if peaks and path == "device" else None
        rows.append(row(f"copy_{path}", bandwidth, "B/s", peak=peak, peer=peer or None))
    if probed.launch_latency_seconds is not None:
        rows.append(row("launch", probed.launch_latency_seconds, "s"))
    shown = {probe.kernel for probe in rows}
    rows += [
        row(kernel, None, "")
        for kernel, wrong in probed.mismatches.items()
        if wrong and kernel not in shown
    ]
    return rows


def attainable(
    probes: Sequence[document.Probe], precision: str | None
) -> document.Attainable | None:
    """The headline of what was measured; None where nothing was."""
    gemms = {
        probe.kernel.removeprefix("gemm_"): probe
        for probe in probes
        if probe.kernel.startswith("gemm_") and probe.value is not None
    }
    copies = [p for p in probes if p.kernel == "copy_device" and p.value is not None]
    if not gemms and not copies:
        return None
    if precision not in gemms:
        precision = max(gemms, key=lambda name: gemms[name].value or 0.0, default=None)
    gemm = gemms[precision] if precision is not None else None
    newest = [p.last_success_unix_seconds for p in (gemm, *copies) if p is not None]
    return document.Attainable(
        precision=precision,
        flops=None if gemm is None else gemm.value,
        peak_ratio=None if gemm is None else gemm.peak_ratio,
        bandwidth_bytes_per_second=copies[0].value if copies else None,
        last_success_unix_seconds=max((at for at in newest if at is not None), default=None),
    )


def _contended(probes: Sequence[document.Probe], probed: ProbeResults) -> list[str]:
    """Which headline figures are missing because all of their runs met other programs."""
    have = {probe.kernel for probe in probes if probe.value is not None}
    tried = {kernel for (kernel, outcome), runs in probed.runs.items() if outcome == "contended"}
    missing = []
    if not any(kernel.startswith("gemm_") for kernel in have) and any(
        kernel.startswith("gemm_") for kernel in tried
    ):
        missing.append("FLOPS")
    if "copy_device" in tried - have:
        missing.append("memory bandwidth")
    return missing


def comparable(probes: Sequence[document.Probe]) -> dict[str, float]:
    """What siblings are compared by: GEMMs with the clock divided out where it is known, copies."""
    values: dict[str, float] = {}
    for probe in probes:
        measure = probe.efficiency_ratio if probe.efficiency_ratio is not None else probe.value
        if measure is not None and (
            probe.kernel.startswith("gemm_") or probe.kernel == "copy_device"
        ):
            values[probe.kernel] = measure
    return values


def probe_findings(
    probes: Sequence[document.Probe],
    probed: ProbeResults | None,
    siblings: Mapping[str, Sequence[float]],
    *,
    busy: float | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> list[Finding]:
    """What the probes say. `siblings` holds the comparable values of all devices of the model.

    `busy` is the utilization of the device.
    """
    if probed is None:
        return []
    found = [
        verdict.wrong_results(probed.mismatches),
        verdict.slower_than_baseline(probed.baseline_ratio, thresholds),
    ]
    beside = [
        verdict.slower_than_siblings(kernel, value, siblings.get(kernel, ()), thresholds)
        for kernel, value in comparable(probes).items()
    ]
    # One sentence is enough: a sick GPU is slow in every precision.
    slower = [finding for finding in beside if finding is not None]
    found += sorted(slower, key=lambda finding: finding.severity)[:1]
    missing = _contended(probes, probed)
    found.append(verdict.contended(missing, busy=busy))
    if not missing and not any(probe.value is not None for probe in probes) and probed.skips:
        reason = max(probed.skips, key=lambda name: probed.skips[name])
        found.append(verdict.not_probed(reason))
    return [finding for finding in found if finding is not None]
