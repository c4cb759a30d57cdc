"""Samples of the sampled devices: identity, FLOPS, the device's own counters, health."""

from collections.abc import Iterable, Iterator
from itertools import chain

from exporter.accounting.clocks import EVENT_REASONS
from exporter.accounting.device import COARSE_SOURCE
from exporter.accounting.peaks import Peaks, pcie_bytes_per_second
from exporter.collect.dcgm.windows import SOURCE as DCGM
from exporter.collect.nvml.reading import RECOVERY_ACTIONS
from exporter.exposition.samples import (
    Labels,
    by_label,
    device_labels,
    each_known,
    histogram,
    kept,
    optional,
)
from exporter.metrics import device, gpu, own
from exporter.metrics.family import Sample
from exporter.readings import ActivityWindow, DeviceIdentity, FastReading, SlowReading
from exporter.state import UNKNOWN, DeviceState, State


def device_samples(state: State) -> Iterable[Sample]:
    """All samples of all devices. Of a device that is down, hung or stale only its health."""
    parts: list[Iterable[Sample]] = []
    for device_state in state.devices:
        parts.append(_health(device_state))
        if device_state.up:
            parts.append(_readings(device_state))
    if state.pending or not state.devices:
        parts.append(_no_device(state))
    return chain.from_iterable(parts)  # a loop in C for each of thousands of samples


def calibration_samples(state: State) -> Iterator[Sample]:
    """The FLOP counter's error, as `flopwatch calibrate` last measured it."""
    for found in state.devices:
        errors = state.calibration.get(found.identity.uuid, {})
        labels = device_labels(found.identity)
        yield from by_label(gpu.ESTIMATOR_ERROR_RATIO, labels, "precision", errors)


def _no_device(state: State) -> Iterator[Sample]:
    """No device to speak of yet: that, too, is said, so that it can be alerted on."""
    labels = (("gpu", UNKNOWN), ("uuid", UNKNOWN))
    yield Sample(own.GPU_UP, labels, 0.0)
    yield Sample(own.SOURCE_HUNG, labels, float(state.hung))
    if state.driver_error is not None:
        reason = (("source", "nvml"), ("reason", state.driver_error))
        yield Sample(own.SOURCE_ERRORS_TOTAL, (*labels, *reason), 1.0)


def _health(snapshot: DeviceState) -> Iterator[Sample]:
    """What is shown of a device in any state: who it is, and how it fares."""
    identity = snapshot.identity
    labels = device_labels(identity)
    yield Sample(own.GPU_UP, labels, float(snapshot.up))
    yield Sample(own.SOURCE_HUNG, labels, float(snapshot.absent == "hung"))
    if identity.uuid != UNKNOWN:
        yield from _info(labels, identity)
    for source, health in snapshot.sources.items():
        source_labels = (*labels, ("source", source))
        yield Sample(own.SOURCE_UP, source_labels, float(health.up))
        yield from optional(
            own.SOURCE_LAST_SUCCESS_TIMESTAMP_SECONDS,
            source_labels,
            health.last_success_unix_seconds,
        )
        yield from by_label(own.SOURCE_ERRORS_TOTAL, source_labels, "reason", health.errors)
        for name in health.missing_fields:
            yield Sample(own.SOURCE_FIELD_MISSING, (*source_labels, ("field", name)), 1.0)
    yield from histogram(own.TICK_DURATION_SECONDS, labels, snapshot.tick_duration)
    if identity.mig is None:  # an instance is sampled in its GPU's ticks
        yield Sample(own.TICKS_MISSED_TOTAL, labels, float(snapshot.ticks_missed))
    for xid, count in snapshot.xids.counts.items():
        yield Sample(device.XID_ERRORS_TOTAL, (*labels, ("xid", str(xid))), float(count))
    for xid, at in snapshot.xids.last_unix_seconds.items():
        yield Sample(device.XID_LAST_TIMESTAMP_SECONDS, (*labels, ("xid", str(xid))), at)


@kept
def _info(labels: Labels, identity: DeviceIdentity) -> Iterator[Sample]:
    capability = identity.compute_capability
    yield Sample(
        gpu.GPU_INFO,
        (
            *labels,
            ("name", identity.name),
            ("architecture", identity.architecture or ""),
            ("compute_capability", f"{capability[0]}.{capability[1]}" if capability else ""),
            ("pci_bus_id", identity.pci_bus_id or ""),
            ("driver_version", identity.driver_version or ""),
            ("serial", identity.serial or ""),
            ("sm_count", str(identity.sm_count or "")),
        ),
        1.0,
    )


def _readings(snapshot: DeviceState) -> Iterable[Sample]:
    labels = device_labels(snapshot.identity)
    last = snapshot.last
    parts: list[Iterable[Sample]] = []
    if snapshot.peaks is not None:
        parts.append(_peaks(labels, snapshot.peaks, snapshot.slow))
    if snapshot.precision is not None:
        precision = (("precision", snapshot.precision), ("origin", snapshot.precision_origin))
        parts.append((Sample(gpu.HEADLINE_PRECISION_INFO, (*labels, *precision), 1.0),))
        if snapshot.peaks is not None:
            peak = snapshot.peaks.flops.get(snapshot.precision)
            parts.append(optional(gpu.HEADLINE_PEAK_FLOPS, labels, peak))
    parts.append(_counters(labels, snapshot))
    if last is not None:
        parts.append(by_label(gpu.ACHIEVED_FLOPS, labels, "precision", last.achieved_flops))
        shares = last.flops_utilization
        parts.append(by_label(gpu.FLOPS_UTILIZATION_RATIO, labels, "precision", shares))
        if last.activity.source != COARSE_SOURCE:
            parts.append(_activity(labels, last.activity))
    parts.append(_clocks(labels, snapshot))
    if snapshot.fast is not None:
        parts.append(_fast(labels, snapshot.fast))
    if snapshot.slow is not None:
        parts.append(_slow(labels, snapshot.slow))
    return chain.from_iterable(parts)


@kept
def _peaks(labels: Labels, peaks: Peaks, slow: SlowReading | None) -> Iterator[Sample]:
    yield from by_label(gpu.PEAK_FLOPS, labels, "precision", peaks.flops)
    yield Sample(gpu.PEAK_INFO, (*labels, ("origin", peaks.origin), ("model", peaks.model)), 1.0)
    yield from optional(
        gpu.PEAK_DRAM_BANDWIDTH_BYTES_PER_SECOND, labels, peaks.dram_bytes_per_second
    )
    yield from optional(
        gpu.PEAK_NVLINK_BANDWIDTH_BYTES_PER_SECOND, labels, peaks.nvlink_bytes_per_second
    )
    if slow is not None and slow.pcie_link_generation and slow.pcie_link_width:
        yield from optional(
            gpu.PEAK_PCIE_BANDWIDTH_BYTES_PER_SECOND,
            labels,
            pcie_bytes_per_second(slow.pcie_link_generation, slow.pcie_link_width),
        )


def _counters(labels: Labels, snapshot: DeviceState) -> Iterator[Sample]:
    counters = snapshot.counters
    for (work, source), flop in counters.flop.items():
        yield Sample(
            gpu.FLOP_TOTAL,
            (*labels, ("pipe", work.pipe), ("precision", work.precision), ("source", source)),
            flop,
        )
    yield from by_label(gpu.GPU_SECONDS_TOTAL, labels, "state", counters.state_seconds)
    yield from by_label(gpu.DRAM_BYTES_TOTAL, labels, "source", counters.dram_bytes)
    yield from each_known(
        labels,
        (
            (gpu.PCIE_RECEIVE_BYTES_TOTAL, counters.pcie_receive_bytes),
            (gpu.PCIE_TRANSMIT_BYTES_TOTAL, counters.pcie_transmit_bytes),
            (gpu.NVLINK_RECEIVE_BYTES_TOTAL, counters.nvlink_receive_bytes),
            (gpu.NVLINK_TRANSMIT_BYTES_TOTAL, counters.nvlink_transmit_bytes),
            (gpu.C2C_RECEIVE_BYTES_TOTAL, counters.c2c_receive_bytes),
            (gpu.C2C_TRANSMIT_BYTES_TOTAL, counters.c2c_transmit_bytes),
        ),
    )
    # The device's own counters are shown as long as the device answers for them.
    if snapshot.fast is not None and snapshot.fast.energy_joules is not None:
        yield from optional(gpu.ENERGY_JOULES_TOTAL, labels, counters.energy_joules)
    if snapshot.fast is not None and snapshot.fast.module_energy_joules is not None:
        yield from optional(
            device.MODULE_ENERGY_JOULES_TOTAL, labels, counters.module_energy_joules
        )
    yield from by_label(
        device.CLOCK_EVENT_SECONDS_TOTAL, labels, "reason", counters.event_reason_seconds
    )
    for precision, ticks in counters.tick_utilization.items():
        yield from histogram(
            gpu.TICK_FLOPS_UTILIZATION_RATIO, (*labels, ("precision", precision)), ticks
        )


def _activity(labels: Labels, window: ActivityWindow) -> Iterator[Sample]:
    yield from each_known(
        labels,
        (
            (gpu.DRAM_BANDWIDTH_UTILIZATION_RATIO, window.dram),
            (gpu.GPU_ACTIVE_RATIO, window.graphics),
            (gpu.SM_ACTIVE_RATIO, window.sm),
            (gpu.SM_OCCUPANCY_RATIO, window.occupancy),
        ),
    )
    pipes = {
        "tensor": window.any_tensor,
        "fp64": window.fp64,
        "fp32": window.fp32,
        "fp16": window.fp16,
        "int": window.integer,
        "hmma": window.hmma_tensor,
        "imma": window.imma_tensor,
        "dmma": window.dmma_tensor,
        "dfma": window.dfma_tensor,
    }
    known = {pipe: share for pipe, share in pipes.items() if share is not None}
    yield from by_label(gpu.PIPE_ACTIVE_RATIO, labels, "pipe", known)


def _clocks(labels: Labels, snapshot: DeviceState) -> Iterator[Sample]:
    """The window's mean clock where it is known, else the sampled one."""
    clock = snapshot.fast.sm_clock_hertz if snapshot.fast else None
    held = snapshot.last is not None and snapshot.last.activity.source == DCGM  # not of this tick
    if snapshot.last is not None and snapshot.last.clock.mean_hertz is not None and not held:
        clock = snapshot.last.clock.mean_hertz
    yield from each_known(
        labels,
        (
            (device.SM_CLOCK_HERTZ, clock),
            (device.SM_CLOCK_MAX_HERTZ, snapshot.identity.sm_clock_max_hertz),
        ),
    )


def _fast(labels: Labels, fast: FastReading) -> Iterator[Sample]:
    yield from each_known(
        labels,
        (
            (device.MEMORY_CLOCK_HERTZ, fast.memory_clock_hertz),
            (device.POWER_WATTS, fast.power_watts),
            (device.MODULE_POWER_WATTS, fast.module_power_watts),
            (device.MEMORY_SIZE_BYTES, fast.memory_size_bytes),
            (device.MEMORY_USED_BYTES, fast.memory_used_bytes),
            (device.MEMORY_FREE_BYTES, fast.memory_free_bytes),
            (device.MEMORY_RESERVED_BYTES, fast.memory_reserved_bytes),
            (device.PERFORMANCE_STATE, fast.performance_state),
            (device.TENSOR_STALL_RATIO, fast.tensor_stall),
        ),
    )
    for sensor, celsius in (
        ("gpu", fast.temperature_celsius),
        ("memory", fast.memory_temperature_celsius),
    ):
        yield from optional(device.TEMPERATURE_CELSIUS, (*labels, ("sensor", sensor)), celsius)
    for engine, share in (("gpu", fast.gpu_utilization), ("memory", fast.memory_utilization)):
        yield from optional(device.ENGINE_UTILIZATION_RATIO, (*labels, ("engine", engine)), share)
    if fast.event_reasons is not None:
        yield from _clock_events(labels, fast.event_reasons)
    if fast.recovery_action is not None:
        yield from _recovery_actions(labels, fast.recovery_action)


@kept
def _clock_events(labels: Labels, reasons: int) -> Iterator[Sample]:
    for reason, bit in EVENT_REASONS.items():
        held = float(bool(reasons & bit))
        yield Sample(device.CLOCK_EVENT, (*labels, ("reason", reason)), held)


@kept
def _recovery_actions(labels: Labels, recommended: int) -> Iterator[Sample]:
    for code, action in RECOVERY_ACTIONS.items():
        wanted = float(code == recommended)
        yield Sample(device.RECOVERY_ACTION, (*labels, ("action", action)), wanted)


@kept
def _slow(labels: Labels, slow: SlowReading) -> Iterator[Sample]:
    yield from each_known(
        labels,
        (
            (device.POWER_LIMIT_WATTS, slow.power_limit_watts),
            (device.MODULE_POWER_LIMIT_WATTS, slow.module_power_limit_watts),
            (gpu.PEAK_C2C_BANDWIDTH_BYTES_PER_SECOND, slow.c2c_bandwidth_bytes_per_second),
            (device.ROW_REMAP_PENDING, slow.row_remap_pending),
            (device.ROW_REMAP_FAILED, slow.row_remap_failed),
            (device.PCIE_LINK_GENERATION, slow.pcie_link_generation),
            (device.PCIE_LINK_GENERATION_MAX, slow.pcie_link_generation_max),
            (device.PCIE_LINK_WIDTH, slow.pcie_link_width),
            (device.PCIE_LINK_WIDTH_MAX, slow.pcie_link_width_max),
            (device.PCIE_REPLAYS_TOTAL, slow.pcie_replays),
            (device.FAN_SPEED_RATIO, slow.fan_speed),
            (
                device.NVLINKS_UP,
                sum(slow.nvlink_up.values())
                if slow.nvlink_up and not slow.nvlinks_unknown
                else None,
            ),
            (device.MIG_MODE, slow.mig_enabled),
            (
                device.PROCESSES,
                None
                if slow.processes is None or slow.processes_incomplete
                else len(slow.processes),
            ),
        ),
    )
    for mapped, name, values in (
        (device.ENGINE_UTILIZATION_RATIO, "engine", slow.engine_utilization),
        (device.ECC_ERRORS_TOTAL, "kind", slow.ecc_errors),
        (device.REMAPPED_ROWS, "kind", slow.remapped_rows),
        (device.RETIRED_PAGES, "kind", slow.retired_pages),
        (device.NVLINK_UP, "link", slow.nvlink_up),
        (device.NVLINK_ERRORS_TOTAL, "kind", slow.nvlink_errors),
        (device.C2C_UP, "link", slow.c2c_up),
        (device.C2C_LOW_POWER, "link", slow.c2c_low_power),
        (device.C2C_ERRORS_TOTAL, "kind", slow.c2c_errors),
    ):
        yield from by_label(mapped, labels, name, values)
    if slow.compute_mode is not None:
        yield Sample(device.COMPUTE_MODE_INFO, (*labels, ("mode", slow.compute_mode)), 1.0)
