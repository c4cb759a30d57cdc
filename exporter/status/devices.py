"""Builds one device's part of the status document from its state, history and surroundings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from exporter.accounting.device import COARSE_SOURCE, PERF_SOURCE
from exporter.accounting.time_split import EVENT_REASONS
from exporter.attribution.snapshot import DeviceKey, Holder
from exporter.device_state import DeviceState
from exporter.findings import Finding, Severity, Thresholds
from exporter.readings import RECOVERY_ACTIONS, DeviceIdentity, SlowReading
from exporter.state import State
from exporter.status import document, verdict
from exporter.status.history import COLUMN_SECONDS, DeviceHistory, DeviceMemory, Summary


# A source is late and not failing for this many times the span for which a reading may be shown.
_SOURCE_PATIENCE = 3
# An engine that loads its weights is idle for minutes, too.
_HELD_MINUTES = 15
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One device at one moment, on the monotonic and the Unix clock, and what is remembered of it."""

    snapshot: DeviceState
    history: DeviceHistory
    memory: DeviceMemory
    minute: Summary
    hour: Summary
    now_seconds: float
    unix_seconds: float
    thresholds: Thresholds

    @property
    def age_seconds(self) -> float:
        """The time since the device's last tick."""
        return max(0.0, self.now_seconds - self.snapshot.at_seconds)


def build_device(
    look: Look,
    state: State,
    *,
    probes: list[document.Probe],
    attainable: document.Attainable | None,
    further: Sequence[Finding | None],
    since: Callable[[Sequence[Finding]], dict[str, float]],
    power_limits: Sequence[float],
    silent_engine: str | None,
    charts: bool,
) -> document.Device:
    """Everything about one device of the State.

    `further` are the findings on its engines, its holders and its probes; `silent_engine` is one that uses
    the device and does not answer. `power_limits` are those of all devices of its model, in watts.
    `since` says from when on each kind of finding holds. `charts` are the states of the last hour by
    minute.
    """
    snapshot, minute = look.snapshot, look.minute
    identity, slow, fast = snapshot.identity, snapshot.slow, snapshot.fast
    events, clock = _events(look), _clock(snapshot, look.hour)
    own = _own_findings(look, events, clock, attainable, power_limits)
    found = (*own, _held(look, silent_engine), *further)
    findings = [finding for finding in found if finding is not None]
    findings.sort(key=lambda finding: _RANK[finding.severity])
    return document.Device(
        gpu=identity.index,
        uuid=identity.uuid,
        name=identity.name,
        mig=identity.mig,
        architecture=identity.architecture,
        pci_bus_id=identity.pci_bus_id,
        serial=identity.serial,
        driver_version=identity.driver_version,
        up=snapshot.up,
        health=verdict.worst(findings) or "ok",
        findings=findings,
        finding_since_unix_seconds=since(findings),
        reset_unix_seconds=look.memory.reset_at,
        age_seconds=look.age_seconds,
        flops=_flops(snapshot, minute),
        attainable=attainable,
        minute=document.Span(seconds=minute.seconds, states=dict(minute.states)),
        hour=_hour(look) if charts else None,
        clock=clock,
        power_watts=fast.power_watts if fast else None,
        power_limit_watts=slow.power_limit_watts if slow else None,
        temperature_celsius=fast.temperature_celsius if fast else None,
        memory_temperature_celsius=fast.memory_temperature_celsius if fast else None,
        utilization_ratio=fast.gpu_utilization if fast else None,
        memory=_memory(snapshot, minute),
        processes=_processes(slow),
        models=_models(state, identity.uuid),
        holders=_holders(state, identity),
        probes=probes,
        events=events,
        sources=[
            document.Source(
                source=name,
                up=health.up,
                last_success_unix_seconds=health.last_success_unix_seconds,
                errors=dict(health.errors),
            )
            for name, health in snapshot.sources.items()
        ],
    )


def _own_findings(
    look: Look,
    events: document.Health,
    clock: document.Clock,
    attainable: document.Attainable | None,
    power_limits: Sequence[float],
) -> Iterator[Finding | None]:
    """What the device itself shows."""
    snapshot, memory = look.snapshot, look.memory
    if snapshot.up:
        yield from _working(look, attainable)
        yield from _source_findings(look)
    else:
        yield _absent(look)
    # XIDs since the last reset, those from before the exporter's start among them.
    times = {event.xid: event.count for event in events.xids}
    for code, at in sorted(memory.xids.items()):
        age = max(0.0, look.unix_seconds - at)
        yield verdict.xid(int(code), times=times.get(int(code), 1), age_seconds=age)
    yield from _health_findings(look, events)
    yield verdict.power_brake(clock.reasons)
    yield verdict.power_limit(
        watts=snapshot.slow.power_limit_watts if snapshot.slow else None,
        usual_watts=memory.power_limit_watts,
        siblings=power_limits if len(power_limits) > 1 else (),
        thresholds=look.thresholds,
    )


def _absent(look: Look) -> Finding:
    """Why the device has no readings."""
    absent = look.snapshot.absent
    if absent == "hung":
        return verdict.hung(age_seconds=look.age_seconds)
    if absent == "stale":
        return verdict.stale(age_seconds=look.age_seconds)
    if absent == "waiting":
        return verdict.waiting(since_seconds=look.age_seconds)
    seen = [
        health.last_success_unix_seconds
        for health in look.snapshot.sources.values()
        if health.last_success_unix_seconds is not None
    ]
    since = max(0.0, look.unix_seconds - max(seen)) if seen else None
    return verdict.lost(reason=look.history.failure, since_seconds=since)


def _working(look: Look, attainable: document.Attainable | None) -> Iterator[Finding | None]:
    """Where the FLOPS of an answering device go."""
    snapshot, minute, hour = look.snapshot, look.minute, look.hour
    if snapshot.last is not None and snapshot.last.activity.source == COARSE_SOURCE:
        yield verdict.coarse(
            why=_why_coarse(snapshot),
            busy=1 - minute.states.get("idle", 0.0) if minute.seconds else None,
            flops=attainable.flops if attainable else None,
            precision=attainable.precision if attainable else None,
        )
    else:
        yield verdict.bottleneck(minute.states, dram=minute.dram_bandwidth)
    for cause, held, state in (
        ("heat", hour.thermal_held, "clock_thermal"),
        ("power", hour.power_held, "clock_power"),
    ):
        yield verdict.clock_held(
            cause,
            held=held.share,
            mean_hertz=held.mean_hertz,
            max_hertz=snapshot.identity.sm_clock_max_hertz,
            lost_share=hour.states.get(state, 0.0),
            over=_span_words(hour.seconds),
            thresholds=look.thresholds,
        )


def _why_coarse(snapshot: DeviceState) -> str | None:
    """Why it is not known how many FLOPS the device does; None where the processor counts them."""
    perf = snapshot.sources.get(PERF_SOURCE)
    if perf is not None and perf.up:
        return None
    if snapshot.is_processor:
        return "the kernel or the hypervisor hides its counters (`flopwatch check` says why)"
    counting = [
        health
        for name, health in snapshot.sources.items()
        if name.startswith(("gpm", "dcgm")) and (health.last_success_unix_seconds or health.errors)
    ]
    if counting:
        return "its activity counters are silent"
    return "only DCGM reads its activity counters, and no dcgm-exporter answers on this node"


def _span_words(seconds: float) -> str:
    """The span that the ring covers: an hour, or the exporter's uptime."""
    minutes = round(seconds / 60)
    if minutes >= 59:
        return "the last hour"
    return "the last minute" if minutes <= 1 else f"the last {minutes} minutes"


def _source_findings(look: Look) -> Iterator[Finding]:
    """Sources that fail on a device that answers; for one that does not, another finding says so."""
    for name, health in look.snapshot.sources.items():
        at = health.last_success_unix_seconds
        since = None if at is None else max(0.0, look.unix_seconds - at)
        late = since is not None and since > _SOURCE_PATIENCE * look.snapshot.max_age_seconds
        if late or (not health.up and (since is not None or health.errors)):
            reason = max(health.errors, key=lambda key: health.errors[key], default=None)
            yield verdict.source_down(name, since_seconds=since, reason=reason)


def _health_findings(look: Look, events: document.Health) -> Iterator[Finding | None]:
    slow, fast, thresholds = look.snapshot.slow, look.snapshot.fast, look.thresholds
    yield verdict.memory_errors(
        uncorrected=events.new_ecc_errors.get("uncorrected", 0.0),
        corrected=events.new_ecc_errors.get("corrected", 0.0),
        thresholds=thresholds,
    )
    yield verdict.row_remap(pending=events.row_remap_pending, failed=events.row_remap_failed)
    yield verdict.recovery(events.recovery_action)
    if slow is not None:
        yield verdict.links_down(slow.nvlink_up)
        yield verdict.narrow_pcie(width=slow.pcie_link_width, width_max=slow.pcie_link_width_max)
    if slow is not None and fast is not None:
        yield verdict.hot(
            temperature_celsius=fast.temperature_celsius,
            memory_celsius=fast.memory_temperature_celsius,
            idle_share=look.minute.states.get("idle", 0.0),
            thresholds=thresholds,
        )


def _held(look: Look, silent_engine: str | None) -> Finding | None:
    fast = look.snapshot.fast
    if silent_engine is None or fast is None or fast.memory_used_bytes is None:
        return None
    if not fast.memory_size_bytes:
        return None
    minutes = look.history.ring.columns(look.now_seconds).get("idle", [])[-_HELD_MINUTES:]
    idle = [share for share in minutes if share is not None]
    return verdict.memory_held(
        silent_engine,
        used_ratio=fast.memory_used_bytes / fast.memory_size_bytes,
        idle_share=min(idle, default=0.0),
        watched_seconds=float(COLUMN_SECONDS * len(idle)),
        thresholds=look.thresholds,
    )


def _events(look: Look) -> document.Health:
    snapshot = look.snapshot
    slow, fast = snapshot.slow, snapshot.fast
    xids = [
        document.Xid(
            xid=code, count=times, last_unix_seconds=snapshot.xids.last_unix_seconds.get(code)
        )
        for code, times in sorted(snapshot.xids.counts.items())
    ]
    if slow is None:
        return document.Health(xids=xids)
    action = fast.recovery_action if fast is not None else None
    all_links_known = slow.nvlink_up and not slow.nvlinks_unknown
    return document.Health(
        xids=xids,
        ecc_errors=dict(slow.ecc_errors),
        new_ecc_errors=_new_ecc_errors(look, slow),
        remapped_rows=dict(slow.remapped_rows),
        row_remap_pending=slow.row_remap_pending,
        row_remap_failed=slow.row_remap_failed,
        recovery_action=None if action is None else RECOVERY_ACTIONS.get(action, str(action)),
        nvlinks_up=sum(slow.nvlink_up.values()) if all_links_known else None,
        nvlinks=(len(slow.nvlink_up) + slow.nvlinks_unknown) or None,
    )


def _new_ecc_errors(look: Look, slow: SlowReading) -> dict[str, float]:
    """Corrected errors since the exporter's start, uncorrected ones since the last repair."""
    new = look.history.new_ecc_errors(slow.ecc_errors)
    errors = slow.ecc_errors.get("uncorrected")
    repaired_at = look.memory.uncorrected
    if errors is not None and repaired_at is not None:
        new["uncorrected"] = max(0.0, errors - repaired_at)
    return new


def _flops(snapshot: DeviceState, minute: Summary) -> document.Flops:
    precision = snapshot.precision
    peak = snapshot.peaks.flops.get(precision) if snapshot.peaks and precision else None
    counted = minute.achieved_flops if snapshot.up else None
    achieved, executed = (None, counted) if snapshot.is_processor else (counted, None)
    return document.Flops(
        precision=precision,
        precision_origin=snapshot.precision_origin if precision else None,
        achieved_flops=achieved,
        peak_flops=peak,
        peak_origin=snapshot.peaks.origin if snapshot.peaks and peak else None,
        utilization_ratio=achieved / peak if achieved is not None and peak else None,
        executed_flops=executed,
    )


def _hour(look: Look) -> document.Hour | None:
    if look.hour.seconds <= 0:
        return None
    return document.Hour(
        step_seconds=COLUMN_SECONDS,
        watched_seconds=round(look.hour.seconds, 1),
        states=look.history.ring.columns(look.now_seconds),
    )


def _processes(slow: SlowReading | None) -> int | None:
    if slow is None or slow.processes is None or slow.processes_incomplete:
        return None
    return len(slow.processes)


def _clock(snapshot: DeviceState, hour: Summary) -> document.Clock:
    max_hertz = snapshot.identity.sm_clock_max_hertz
    if not snapshot.up:
        return document.Clock(max_hertz=max_hertz)
    fast, last = snapshot.fast, snapshot.last
    hertz = last.clock.mean_hertz if last else None
    if hertz is None and fast is not None:
        hertz = fast.sm_clock_hertz
    mask = fast.event_reasons if fast else None
    return document.Clock(
        hertz=hertz,
        max_hertz=max_hertz,
        reasons=[name for name, bit in EVENT_REASONS.items() if mask and mask & bit],
        held_by_power_ratio=hour.power_held.share if mask is not None else None,
        held_by_heat_ratio=hour.thermal_held.share if mask is not None else None,
    )


def _memory(snapshot: DeviceState, minute: Summary) -> document.Memory:
    peak = snapshot.peaks.dram_bytes_per_second if snapshot.peaks else None
    ratio = minute.dram_bandwidth if snapshot.up else None
    fast = snapshot.fast
    return document.Memory(
        used_bytes=fast.memory_used_bytes if fast else None,
        size_bytes=fast.memory_size_bytes if fast else snapshot.identity.memory_size_bytes,
        bandwidth_ratio=ratio,
        bandwidth_bytes_per_second=ratio * peak if ratio is not None and peak else None,
        peak_bandwidth_bytes_per_second=peak,
    )


def _models(state: State, uuid: str) -> list[document.Model]:
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
        for workload in state.workloads.workloads
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
