"""The whole status document from the inputs of one instant."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from exporter.advice.advise import AdviceSnapshot, best_sentence
from exporter.attribution.snapshot import DeviceKey, Holder
from exporter.device_state import UNKNOWN
from exporter.findings import DEFAULT_THRESHOLDS, Finding, Severity, Thresholds
from exporter.inference.snapshot import WorkloadsSnapshot
from exporter.readings import DeviceIdentity, HostFacts
from exporter.state import State
from exporter.status import document, verdict
from exporter.status.devices import build_device
from exporter.status.history import Histories
from exporter.status.probes import comparable, probe_rows
from exporter.status.verdict import host_summary, missing_gpus
from exporter.version import REVISION, VERSION
from probes.records import ProbeResults


DOCUMENTATION_URL = "https://github.com/flopwatch/flopwatch/tree/main/docs"
_HEALTH_RANK = {"critical": 0, "warning": 1, "ok": 2}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the status is built from. `unix_seconds` and `now_seconds` (monotonic) are the same moment."""

    state: State
    interval_seconds: float
    host_name: str
    telemetry_path: str
    unix_seconds: float
    now_seconds: float
    uptime_seconds: float
    facts: HostFacts = field(default_factory=HostFacts)
    advice: AdviceSnapshot = field(default_factory=AdviceSnapshot)
    thresholds: Thresholds = DEFAULT_THRESHOLDS


def build_status(inputs: Inputs, histories: Histories, *, charts: bool = True) -> document.Status:
    """Critical devices first, then those with warnings, then by index.

    Without `charts` the states of the last hour by minute are left out: half of the work.
    """
    probed = {results.uuid: results for results in inputs.state.probes.devices}
    siblings = _siblings(inputs, probed)
    power_limits = _power_limits(inputs.state)
    devices: list[document.Device] = []
    for snapshot in inputs.state.devices:
        identity = snapshot.identity
        with histories.lock:
            devices.append(
                build_device(
                    snapshot,
                    histories.get(snapshot),
                    now_seconds=inputs.now_seconds,
                    unix_seconds=inputs.unix_seconds,
                    probed=probed.get(identity.uuid),
                    siblings=siblings[identity.name],
                    models=_models(inputs.state.workloads, identity.uuid),
                    holders=_holders(inputs.state, identity),
                    memory=histories.memory.of(identity.uuid),
                    since=partial(histories.memory.judged, identity.uuid),
                    power_limits=power_limits[identity.name],
                    thresholds=inputs.thresholds,
                    silent=_silent(inputs.state.workloads, identity.uuid),
                    charts=charts,
                    company=_company(inputs.state, identity.uuid, inputs.thresholds),
                )
            )
    # Sorting is stable: within one health the host's own order stays.
    devices.sort(key=lambda device: _HEALTH_RANK[device.health])
    return document.Status(
        unix_seconds=inputs.unix_seconds,
        host=_host(inputs, devices),
        exporter=_exporter(inputs),
        devices=devices,
        links={
            "metrics": inputs.telemetry_path,
            "status": document.STATUS_PATH,
            "configuration": "/config",
            "healthy": "/-/healthy",
            "ready": "/-/ready",
            "metric_reference": "/docs/metrics",
            "documentation": DOCUMENTATION_URL,
        },
    )


def _siblings(
    inputs: Inputs, probed: dict[str, ProbeResults]
) -> defaultdict[str, dict[str, list[float]]]:
    """Comparable probe results by the devices' model and kernel."""
    values: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    for snapshot in inputs.state.devices:
        device = probed.get(snapshot.identity.uuid)
        if device is not None:
            for kernel, value in comparable(probe_rows(device, snapshot.peaks)).items():
                values[snapshot.identity.name].setdefault(kernel, []).append(value)
    return values


def _power_limits(state: State) -> defaultdict[str, list[float]]:
    """Power limits in watts by the devices' model."""
    limits: defaultdict[str, list[float]] = defaultdict(list)
    for device in state.devices:
        if device.slow is not None and device.slow.power_limit_watts is not None:
            limits[device.identity.name].append(device.slow.power_limit_watts)
    return limits


def _silent(workloads: WorkloadsSnapshot, uuid: str) -> str | None:
    """An engine that uses the device and does not answer, unless another one answers."""
    names = {
        workload.up: workload.name
        for workload in workloads.workloads
        if any(gpu.uuid == uuid for gpu in workload.gpus)
    }
    return None if True in names else names.get(False)


def _company(state: State, uuid: str, thresholds: Thresholds) -> list[Finding]:
    """Findings about the engines that use the device, and about its holders."""
    found: list[Finding | None] = []
    for workload in state.workloads.workloads:
        if not workload.up or not any(gpu.uuid == uuid for gpu in workload.gpus):
            continue
        found += [
            verdict.prefix_cache_collapsed(
                workload.name,
                recent=model.cached_share,
                usual=model.usual_cached_share,
                thresholds=thresholds,
            )
            for model in workload.models
        ]
        use = state.bill.workloads.get(workload.name)
        if use is not None:
            found += [
                verdict.precision_or_product_mismatch(
                    workload.name, explained=use.explained_share, spread=use.explained_spread
                ),
                verdict.useful_share_fell(
                    workload.name, recent=use.useful_share, usual=use.usual_useful_share
                ),
            ]
    charges = state.bill.devices.get(uuid)
    if charges is not None:
        found.append(
            verdict.shares_not_measured(len(charges.basis), state.bill.unresolved.get(uuid))
        )
    return [finding for finding in found if finding is not None]


def _models(workloads: WorkloadsSnapshot, uuid: str) -> list[document.Model]:
    return [
        document.Model(
            workload=workload.name,
            model=model.model,
            engine=workload.engine,
            precision=model.precision,
            flops_utilization_ratio=model.flops_utilization,
            bandwidth_utilization_ratio=model.bandwidth_utilization,
            not_counted=list(model.not_counted),
        )
        for workload in workloads.workloads
        if any(gpu.uuid == uuid for gpu in workload.gpus)
        for model in workload.models
    ]


def _holders(state: State, identity: DeviceIdentity) -> list[document.Holder]:
    """The holders of the device, found as for the metrics; on a shared one, with what each did."""

    def holds(key: DeviceKey) -> bool:
        found = state.held(key)
        return found is not None and found.identity.key == identity.key

    present = [
        Holder("pod", each.namespace, each.pod, each.container)
        for each in state.holders.allocations
        if holds(each.device)
    ]
    present += [Holder("job", hpc_job=use.job) for use in state.holders.jobs if holds(use.device)]
    held = {holder: _named(holder) for holder in present}
    charges = state.bill.devices.get(identity.uuid)
    if charges is not None and len(charges.basis) > 1:
        for holder, did in charges.recent().items():
            if holder not in charges.basis and not did.share:
                continue
            # Of a partitioned GPU also those of its instances.
            held[holder] = msgspec.structs.replace(
                _named(holder),
                basis=charges.basis.get(holder),
                share_ratio=did.share,
                achieved_flops=did.flops,
            )
    return list(held.values())


def _named(holder: Holder) -> document.Holder:
    return document.Holder(
        namespace=holder.namespace or None,
        pod=holder.pod or None,
        container=holder.container or None,
        job=holder.hpc_job or None,
        workload=holder.workload or None,
    )


def _host(inputs: Inputs, devices: list[document.Device]) -> document.Host:
    worst = min((device.health for device in devices), key=_HEALTH_RANK.__getitem__, default="ok")
    if not devices and not inputs.state.pending:
        worst = "critical"
    severities = [None if device.health == "ok" else Severity(device.health) for device in devices]
    gpus = all(device.gpu != "cpu0" for device in devices)
    summary = host_summary(severities, "GPU" if gpus else "device")
    expected = inputs.facts.expected_gpus
    listed = len({device.gpu for device in devices if device.gpu not in ("cpu0", UNKNOWN)})
    if expected is not None and expected > listed:
        worst = "critical"
        summary = f"{missing_gpus(expected, listed)} {summary}"
    if inputs.state.pending:
        summary = "Waiting for the driver to say which GPUs there are."
    drivers = {device.driver_version for device in devices if device.driver_version}
    whole = [device for device in devices if device.mig is None]
    achieved, peak = _delivered(whole, [device for device in devices if device.mig is not None])
    return document.Host(
        name=inputs.host_name,
        expected_gpus=expected,
        summary=summary,
        health=worst,
        devices=len(devices),
        devices_up=sum(device.up for device in devices),
        searching=inputs.state.pending,
        # Why there is no GPU; where there is one, an older answer is irrelevant.
        driver_error=inputs.state.driver_error if not devices or not gpus else None,
        driver_version=", ".join(sorted(drivers)) or None,
        achieved_flops=achieved,
        peak_flops=peak,
        attainable_flops=_attainable(whole, achieved),
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
                    for advice in inputs.advice.workloads
                    if advice.window.workload == workload.name
                    and (sentence := best_sentence(advice)) is not None
                ],
            )
            for workload in inputs.state.workloads.workloads
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


def _attainable(devices: list[document.Device], achieved: dict[str, float]) -> dict[str, float]:
    """What the probes measured by precision, over the devices; empty where FLOPS are counted."""
    sums: defaultdict[str, float] = defaultdict(float)
    for device in devices:
        could = device.attainable
        if could is not None and could.flops is not None and could.precision is not None:
            sums[could.precision] += could.flops
    return {} if achieved else dict(sums)


def _exporter(inputs: Inputs) -> document.Exporter:
    probes, reload = inputs.state.probes, inputs.state.reload
    return document.Exporter(
        version=VERSION,
        revision=REVISION,
        uptime_seconds=inputs.uptime_seconds,
        interval_seconds=inputs.interval_seconds,
        configuration_ok=reload.successful,
        configuration_unix_seconds=reload.last_success_unix_seconds,
        probes="off" if not probes.running else "paused" if probes.paused else "running",
        probe_gpu_seconds=sum(device.gpu_seconds for device in probes.devices),
        ticks_missed=sum(device.ticks_missed for device in inputs.state.devices),
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
