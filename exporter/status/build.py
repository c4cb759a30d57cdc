"""The whole status document from what the daemon knows at one instant."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from exporter import REVISION, VERSION
from exporter.accounting.peaks import Peaks
from exporter.advice.advise import AdviceSnapshot, best_sentence
from exporter.device_state import UNKNOWN, DeviceState
from exporter.findings import Finding, Severity, Thresholds
from exporter.inference.snapshot import WorkloadsSnapshot
from exporter.readings import HostFacts
from exporter.state import State
from exporter.status import document, verdict
from exporter.status.devices import Look, build_device
from exporter.status.history import Histories
from probes.records import ProbeResults


_LINKS = {
    "status": document.STATUS_PATH,
    "configuration": "/config",
    "healthy": "/-/healthy",
    "ready": "/-/ready",
    "metric_reference": "/docs/metrics",
    "documentation": "https://github.com/flopwatch/flopwatch/tree/main/docs",
}
_HEALTH_RANK = {"critical": 0, "warning": 1, "ok": 2}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSources:
    """What the status is built from. Each source is cheap, thread-safe and never touches a device.

    `configuration` gives the active configuration as plain data; `interval_seconds` the time
    between ticks.
    """

    state: Callable[[], State]
    configuration: Callable[[], Mapping[str, Any]]
    interval_seconds: Callable[[], float]
    host_name: str
    telemetry_path: str = "/metrics"
    wall_clock: Callable[[], float] = time.time
    facts: Callable[[], HostFacts] = HostFacts
    advice: Callable[[], AdviceSnapshot] = AdviceSnapshot
    thresholds: Callable[[], Thresholds] = Thresholds


def build_status(
    sources: StatusSources,
    histories: Histories,
    *,
    now_seconds: float,
    uptime_seconds: float,
    charts: bool = True,
) -> document.Status:
    """The document as of `now_seconds` (monotonic). Critical devices come first, then those with warnings.

    Without `charts` the states of the last hour by minute are left out: half of the work.
    """
    state, thresholds, unix_seconds = sources.state(), sources.thresholds(), sources.wall_clock()
    probed = {results.uuid: results for results in state.probes.devices}
    rows: dict[str, list[document.Probe]] = {}
    siblings: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    power_limits: defaultdict[str, list[float]] = defaultdict(list)
    for snapshot in state.devices:
        uuid, model = snapshot.identity.uuid, snapshot.identity.name
        rows[uuid] = _probe_rows(probed[uuid], snapshot.peaks) if uuid in probed else []
        for kernel, value in _comparable(rows[uuid]).items():
            siblings[model].setdefault(kernel, []).append(value)
        if snapshot.slow is not None and snapshot.slow.power_limit_watts is not None:
            power_limits[model].append(snapshot.slow.power_limit_watts)
    devices: list[document.Device] = []
    for snapshot in state.devices:
        uuid, model = snapshot.identity.uuid, snapshot.identity.name
        further = [
            *_engine_findings(state, uuid, thresholds),
            *_probe_findings(snapshot, rows[uuid], probed.get(uuid), siblings[model], thresholds),
        ]
        with histories.lock:
            history = histories.get(snapshot)
            look = Look(
                snapshot=snapshot,
                history=history,
                memory=histories.memory.of(uuid),
                minute=history.ring.minute(now_seconds),
                hour=history.ring.hour(now_seconds),
                now_seconds=now_seconds,
                unix_seconds=unix_seconds,
                thresholds=thresholds,
            )
            devices.append(
                build_device(
                    look,
                    state,
                    probes=rows[uuid],
                    attainable=_attainable(rows[uuid], snapshot.precision) if snapshot.up else None,
                    further=further,
                    since=partial(histories.memory.judged, uuid),
                    power_limits=power_limits[model],
                    silent_engine=_silent_engine(state.workloads, uuid),
                    charts=charts,
                )
            )
    # Sorting is stable: within one health the host's own order stays.
    devices.sort(key=lambda device: _HEALTH_RANK[device.health])
    return document.Status(
        unix_seconds=unix_seconds,
        host=_host(sources, state, devices),
        exporter=_exporter(state, sources.interval_seconds(), uptime_seconds),
        devices=devices,
        links={"metrics": sources.telemetry_path, **_LINKS},
    )


def _silent_engine(workloads: WorkloadsSnapshot, uuid: str) -> str | None:
    """An engine that uses the device and does not answer, unless another one answers."""
    names = {
        workload.up: workload.name
        for workload in workloads.workloads
        if any(gpu.uuid == uuid for gpu in workload.gpus)
    }
    return None if True in names else names.get(False)


def _engine_findings(state: State, uuid: str, thresholds: Thresholds) -> Iterator[Finding | None]:
    """Findings about the engines that use the device, and about its holders."""
    for workload in state.workloads.workloads:
        if not workload.up or not any(gpu.uuid == uuid for gpu in workload.gpus):
            continue
        for model in workload.models:
            yield verdict.prefix_cache_collapsed(
                workload.name,
                recent=model.cached_share,
                usual=model.usual_cached_share,
                thresholds=thresholds,
            )
        use = state.bill.workloads.get(workload.name)
        if use is not None:
            yield verdict.precision_or_product_mismatch(
                workload.name, explained=use.explained_share, spread=use.explained_spread
            )
            yield verdict.useful_share_fell(
                workload.name, recent=use.useful_share, usual=use.usual_useful_share
            )
    charges = state.bill.devices.get(uuid)
    if charges is not None:
        yield verdict.shares_not_measured(len(charges.basis), state.bill.unresolved.get(uuid))


def _probe_rows(probed: ProbeResults, peaks: Peaks | None) -> list[document.Probe]:
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


def _attainable(
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


def _comparable(probes: Sequence[document.Probe]) -> dict[str, float]:
    """What siblings are compared by: GEMMs with the clock divided out where it is known, copies."""
    values: dict[str, float] = {}
    for probe in probes:
        measure = probe.efficiency_ratio if probe.efficiency_ratio is not None else probe.value
        if measure is not None and (
            probe.kernel.startswith("gemm_") or probe.kernel == "copy_device"
        ):
            values[probe.kernel] = measure
    return values


def _probe_findings(
    snapshot: DeviceState,
    probes: Sequence[document.Probe],
    probed: ProbeResults | None,
    siblings: Mapping[str, Sequence[float]],
    thresholds: Thresholds,
) -> Iterator[Finding | None]:
    """What the probes say. `siblings` holds the comparable values of all devices of the model."""
    if probed is None:
        return
    yield verdict.wrong_results(probed.mismatches)
    yield verdict.slower_than_baseline(probed.baseline_ratio, thresholds)
    beside = [
        verdict.slower_than_siblings(kernel, value, siblings.get(kernel, ()), thresholds)
        for kernel, value in _comparable(probes).items()
    ]
    # One sentence is enough: a sick GPU is slow in every precision.
    slower = [finding for finding in beside if finding is not None]
    yield min(slower, key=lambda finding: finding.severity, default=None)
    missing = _contended(probes, probed)
    busy = snapshot.fast.gpu_utilization if snapshot.fast else None
    yield verdict.contended(missing, busy=busy)
    if not missing and not any(probe.value is not None for probe in probes) and probed.skips:
        yield verdict.not_probed(max(probed.skips, key=lambda name: probed.skips[name]))


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


def _host(sources: StatusSources, state: State, devices: list[document.Device]) -> document.Host:
    worst = min((device.health for device in devices), key=_HEALTH_RANK.__getitem__, default="ok")
    if not devices and not state.pending:
        worst = "critical"
    severities = [None if device.health == "ok" else Severity(device.health) for device in devices]
    gpus = all(device.gpu != "cpu0" for device in devices)
    summary = verdict.host_summary(severities, "GPU" if gpus else "device")
    expected = sources.facts().expected_gpus
    listed = len({device.gpu for device in devices if device.gpu not in ("cpu0", UNKNOWN)})
    if expected is not None and expected > listed:
        worst = "critical"
        summary = f"{verdict.missing_gpus(expected, listed)} {summary}"
    if state.pending:
        summary = "Waiting for the driver to say which GPUs there are."
    drivers = {device.driver_version for device in devices if device.driver_version}
    whole = [device for device in devices if device.mig is None]
    achieved, peak = _delivered(whole, [device for device in devices if device.mig is not None])
    return document.Host(
        name=sources.host_name,
        expected_gpus=expected,
        summary=summary,
        health=worst,
        devices=len(devices),
        devices_up=sum(device.up for device in devices),
        searching=state.pending,
        # Why there is no GPU; where there is one, an older answer is irrelevant.
        driver_error=state.driver_error if not devices or not gpus else None,
        driver_version=", ".join(sorted(drivers)) or None,
        achieved_flops=achieved,
        peak_flops=peak,
        attainable_flops=_measured(whole, achieved),
        attainable_bandwidth_bytes_per_second=_sum(
            device.attainable.bandwidth_bytes_per_second
            for device in whole
            if device.attainable is not None and not achieved
        ),
        power_watts=_sum(device.power_watts for device in whole),
        memory_used_bytes=_sum(device.memory.used_bytes for device in whole),
        memory_size_bytes=_sum(
            device.memory.size_bytes for device in whole if device.memory.used_bytes is not None
        ),
        workloads=[
            document.Workload(
                workload=workload.name,
                engine=workload.engine,
                up=workload.up,
                reason=workload.reason,
                advice=[
                    sentence
                    for advice in sources.advice().workloads
                    if advice.window.workload == workload.name
                    and (sentence := best_sentence(advice)) is not None
                ],
            )
            for workload in state.workloads.workloads
        ],
    )


def _delivered(
    whole: list[document.Device], instances: list[document.Device]
) -> tuple[dict[str, float], dict[str, float]]:
    """Achieved and peak FLOP/s by precision, each GPU once: as a whole, else by its MIG instances."""
    achieved: defaultdict[str, float] = defaultdict(float)
    peak: defaultdict[str, float] = defaultdict(float)
    for device in whole:
        flops = device.flops
        if flops.precision is None or flops.peak_flops is None:
            continue
        peak[flops.precision] += flops.peak_flops
        parts = [flops.achieved_flops]
        if flops.achieved_flops is None:
            parts = [
                instance.flops.achieved_flops
                for instance in instances
                if instance.gpu == device.gpu and instance.flops.precision == flops.precision
            ]
        known = _sum(parts)
        if known is not None:
            achieved[flops.precision] += known
    return dict(achieved), dict(peak)


def _measured(devices: list[document.Device], achieved: dict[str, float]) -> dict[str, float]:
    """What the probes measured by precision, over the devices; empty where FLOPS are counted."""
    sums: defaultdict[str, float] = defaultdict(float)
    for device in devices:
        measured = device.attainable
        if measured is not None and measured.flops is not None and measured.precision is not None:
            sums[measured.precision] += measured.flops
    return {} if achieved else dict(sums)


def _exporter(state: State, interval_seconds: float, uptime_seconds: float) -> document.Exporter:
    probes, reload = state.probes, state.reload
    return document.Exporter(
        version=VERSION,
        revision=REVISION,
        uptime_seconds=uptime_seconds,
        interval_seconds=interval_seconds,
        configuration_ok=reload.successful,
        configuration_unix_seconds=reload.last_success_unix_seconds,
        probes="off" if not probes.running else "paused" if probes.paused else "running",
        probe_gpu_seconds=sum(device.gpu_seconds for device in probes.devices),
        ticks_missed=sum(device.ticks_missed for device in state.devices),
        resident_bytes=_resident_bytes(),
        cpu_seconds=time.process_time(),
    )


def _resident_bytes() -> float | None:
    """Resident memory of this process (Linux)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    return None


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
