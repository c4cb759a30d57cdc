"""Builds the window of a workload from observations of the State: counter differences, gauge means."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exporter.advice.prediction import GpuWindow, Price, Reference, WorkloadWindow
from exporter.attribution.snapshot import Charges
from exporter.device_state import DeviceState
from exporter.inference.service import Served
from exporter.inference.snapshot import ModelSnapshot
from exporter.readings import RECOVERY_ACTIONS
from exporter.state import State


# A hit rate or a batch over a shorter time says little.
LEAST_TOKENS = 100.0
# A tenant with less of the busy time than this does not change what a pass takes.
_LEAST_SHARE = 0.02
_LOST = ("power", "thermal", "other")
_BUSY = ("tensor", "memory", "stall", "underfill", "unresolved")

Key = tuple[str, str]  # workload and model


@dataclass(frozen=True, slots=True)
class Observation:
    """The host at one instant: `at_seconds` on the monotonic clock."""

    state: State
    served: Mapping[Key, Served]

    @property
    def at_seconds(self) -> float:
        """The time of the observation."""
        return self.state.at_seconds


def observation_of(state: State, served: Iterable[Served]) -> Observation:
    """An observation, with the served models by workload and model."""
    return Observation(state, {(each.workload, each.shown.model): each for each in served})


def windows(
    observations: Sequence[Observation],
    *,
    best_hits: Mapping[Key, float],
    prices: Mapping[str, Price],
) -> tuple[WorkloadWindow, ...]:
    """The windows of all models present in every observation. `prices` are by device UUID."""
    if len(observations) < 2:
        return ()
    keys = [
        key for key in observations[-1].served if all(key in each.served for each in observations)
    ]
    found = (_window(observations, key, best_hits.get(key), prices) for key in sorted(keys))
    return tuple(window for window in found if window is not None)


def _window(
    observations: Sequence[Observation],
    key: Key,
    best_hits: float | None,
    prices: Mapping[str, Price],
) -> WorkloadWindow | None:
    first, last = observations[0].served[key], observations[-1].served[key]
    seconds = observations[-1].at_seconds - observations[0].at_seconds
    if seconds <= 0 or first.gpus != last.gpus:
        return None
    gpus = tuple(
        gpu
        for gpu in (_gpu(observations, reference.uuid, key) for reference in last.gpus)
        if gpu is not None
    )
    missed = last.passes_missed - first.passes_missed
    shown = last.shown
    return WorkloadWindow(
        workload=last.workload,
        model=shown.model,
        seconds=seconds,
        gpus=gpus if len(gpus) == len(last.gpus) else (),
        gpu_count=max(1, last.gpu_count),
        tensor_parallel=max(1, last.tensor_parallel),
        replicas=sum(each.shown.model == shown.model for each in observations[-1].served.values()),
        description=last.description if last.description == first.description else None,
        prefill_tokens=_grown(first.shown.prefill_tokens, shown.prefill_tokens),
        cached_tokens=_grown(first.shown.cached_tokens, shown.cached_tokens),
        decode_tokens=_grown(first.shown.decode_tokens, shown.decode_tokens),
        prompts=last.prompts - first.prompts,
        passes=None if missed else last.passes - first.passes,
        running_requests=_mean(each.served[key].shown.running_requests for each in observations),
        waiting_requests=_mean(each.served[key].shown.waiting_requests for each in observations),
        cache_usage_ratio=_mean(each.served[key].shown.cache_usage_ratio for each in observations),
        decode_context=shown.decode_context_tokens,
        useful_flops=_useful(first.shown, shown, seconds),
        best_cache_hit_ratio=best_hits,
        reference=_reference(observations[-1].state, gpus),
        price=_price(gpus, prices),
    )


def _gpu(observations: Sequence[Observation], uuid: str, key: Key) -> GpuWindow | None:
    """One GPU over the observations; None if it is missing in one of them."""
    devices = [each.state.fresh(uuid) for each in observations]
    first, last = devices[0], devices[-1]
    if first is None or last is None or None in devices or last.peaks is None:
        return None
    seconds = observations[-1].at_seconds - observations[0].at_seconds
    states = _state_shares(first, last)
    lost = {name: states.get(f"clock_{name}", 0.0) for name in _LOST}
    clock = 1.0 - sum(lost.values()) if states else None
    bandwidth, flops, links = _probes(observations[-1].state, uuid)
    peaks, fast, slow = last.peaks, last.fast, last.slow
    moved = _grown(_total(first.counters.dram_bytes), _total(last.counters.dram_bytes))
    sent = _grown(first.counters.nvlink_transmit_bytes, last.counters.nvlink_transmit_bytes)
    peak = peaks.dram_bytes_per_second
    return GpuWindow(
        gpu=last.identity.index,
        uuid=uuid,
        name=last.identity.name,
        peaks=peaks,
        clock_ratio=clock,
        clock_lost_to=lost if sum(lost.values()) > 0 else {},
        graphics=_busy(states, clock),
        dram=moved / seconds / peak if moved is not None and peak else None,
        reachable_bandwidth_bytes_per_second=bandwidth,
        reachable_flops=flops,
        link_bytes_per_second=None if sent is None else sent / seconds,
        reachable_link_bytes_per_second=links,
        memory_size_bytes=fast.memory_size_bytes if fast else None,
        power_watts=_mean(
            device.fast.power_watts if device and device.fast else None for device in devices
        ),
        power_limit_watts=slow.power_limit_watts if slow else None,
        power_limit_max_watts=peaks.board_watts,
        fault=_fault_of(last, observations[-1].state),
        shared_with=_sharer(observations[0], observations[-1], uuid, key),
    )


def _state_shares(first: DeviceState, last: DeviceState) -> dict[str, float]:
    """Shares of the time in between by state; empty if nothing was accounted."""
    before = first.counters.state_seconds
    spent = {
        name: max(0.0, seconds - before.get(name, 0.0))
        for name, seconds in last.counters.state_seconds.items()
    }
    total = sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()} if total > 0 else {}


def _busy(states: Mapping[str, float], clock: float | None) -> float | None:
    """Share of the time with a kernel on the device: the busy states are at full clock."""
    if not states or not clock:
        return None
    return min(1.0, sum(states.get(name, 0.0) for name in _BUSY) / clock)


def _probes(state: State, uuid: str) -> tuple[float | None, Mapping[str, float], float | None]:
    """Bandwidth, FLOP/s by precision and link bandwidth measured by the probes."""
    for results in state.probes.devices:
        if results.uuid == uuid and results.instance is None:
            paths = results.bandwidth_bytes_per_second
            peers = [value for (path, _peer), value in paths.items() if path == "peer"]
            return paths.get(("device", "")), results.flops, min(peers, default=None)
    return None, {}, None


def _reference(state: State, gpus: Sequence[GpuWindow]) -> Reference | None:
    """The medians of all GPUs of the same product on this host."""
    from statistics import median  # noqa: PLC0415  1 MB, needed only with an engine

    names = {gpu.name for gpu in gpus}
    if len(names) != 1:
        return None
    same = {
        device.identity.uuid
        for device in state.devices
        if device.identity.name in names and device.identity.mig is None and device.up
    }
    results = [each for each in state.probes.devices if each.uuid in same and not each.instance]
    bandwidths = [
        value
        for each in results
        if (value := each.bandwidth_bytes_per_second.get(("device", ""))) is not None
    ]
    precisions = {name for each in results for name in each.flops}
    return Reference(
        devices=sum(bool(each.flops or each.bandwidth_bytes_per_second) for each in results),
        bandwidth_bytes_per_second=median(bandwidths) if bandwidths else None,
        flops={
            name: median(each.flops[name] for each in results if name in each.flops)
            for name in precisions
        },
    )


def _fault_of(device: DeviceState, state: State) -> str | None:
    """Why the device needs repair before any advice makes sense; None for a healthy device."""
    fast, slow = device.fast, device.slow
    if fast is not None and fast.recovery_action:
        action = RECOVERY_ACTIONS.get(fast.recovery_action, str(fast.recovery_action))
        return f"the driver requests a recovery ({action})"
    if slow is not None and slow.row_remap_failed:
        return "a memory row could not be remapped"
    if any(
        sum(results.mismatches.values())
        for results in state.probes.devices
        if results.uuid == device.identity.uuid
    ):
        return "its probes computed wrong results"
    return None


def _sharer(first: Observation, last: Observation, uuid: str, key: Key) -> str | None:
    """Who else worked on the device in the window; None where the model had it to itself."""
    workload, model = key
    for (name, other), served in last.served.items():
        before = first.served.get((name, other))
        if name == workload and other != model and (before is None or _worked(before, served)):
            return "another model of the engine"
    charges = last.state.bill.devices.get(uuid)
    if charges is not None:
        others = _tenants_at_work(first.state.bill.devices.get(uuid), charges) - 1
        if others > 0:
            return "another tenant" if others == 1 else f"{others} other tenants"
        if len(charges.basis) > 1:
            return None
    for other_engine in last.state.workloads.workloads:
        if other_engine.name != workload and any(gpu.uuid == uuid for gpu in other_engine.gpus):
            return f"the engine {other_engine.name}"
    return None


def _tenants_at_work(first: Charges | None, last: Charges) -> int:
    """Holders that had a part of the busy time in between, those that came or left included."""
    before = first.accounts if first is not None else {}
    busy = [
        account.busy_seconds - (before[holder].busy_seconds if holder in before else 0.0)
        for holder, account in last.accounts.items()
    ]
    return sum(seconds > _LEAST_SHARE * sum(busy) for seconds in busy)


def _worked(before: Served, now: Served) -> bool:
    return any(
        _grown(getattr(before.shown, name), getattr(now.shown, name)) != 0.0
        for name in ("prefill_tokens", "decode_tokens")
    )


def _price(gpus: Sequence[GpuWindow], prices: Mapping[str, Price]) -> Price | None:
    """The mean price of the workload's GPUs; None unless all have one, in one currency."""
    found = [prices[gpu.uuid] for gpu in gpus if gpu.uuid in prices]
    currencies = {price.currency for price in found}
    if not gpus or len(found) != len(gpus) or len(currencies) != 1:
        return None
    return Price(sum(price.per_gpu_hour for price in found) / len(found), currencies.pop())


def _useful(before: ModelSnapshot, now: ModelSnapshot, seconds: float) -> float | None:
    prefill = _grown(before.prefill_flop, now.prefill_flop)
    decode = _grown(before.decode_flop, now.decode_flop)
    return None if prefill is None or decode is None else (prefill + decode) / seconds


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or after < before else after - before


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if a value is missing."""
    wanted = list(values)
    known = [value for value in wanted if value is not None]
    return sum(known) / len(known) if known and len(known) == len(wanted) else None


def _total(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) if values else None
