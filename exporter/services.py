"""The services besides the sampling: probes, engines, GPU holders, calibration, advice.

Each has its own threads or processes, reads only the State, and returns a frozen value that becomes
a part of the next State. The probes run in their own process (`probes/`): `ProbeFacts` converts the
State, without new readings, into the facts that their gates and their judgement need.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec

from exporter import procfs
from exporter.accounting.peaks import pcie_bytes_per_second
from exporter.accounting.time_split import EVENT_REASONS
from exporter.advisor import Advisor
from exporter.attribution.service import HolderService
from exporter.config.model import Config
from exporter.device_state import UNKNOWN, DeviceState
from exporter.inference.models import matrix_products
from exporter.inference.service import WorkloadService
from exporter.readings import FastReading, SlowReading
from exporter.state import State
from flopwatch.state_file import StateFile, usable_state_path
from probes.facts import ComputeMode, DeviceFacts, ModelGemm, ProcessFacts
from probes.service import ProbeService


class Services:
    """Owns the services beside the sampling."""

    def __init__(
        self, config: Config, *, now: Callable[[], State], latest: Callable[[], State]
    ) -> None:
        """`now` returns the current State, `latest` the last one built."""
        state_path = usable_state_path(config.state_file)
        self.calibration = CalibrationFile(state_path)
        self.workloads = WorkloadService(
            config.workloads,
            state=latest,
            discovery=config.discovery,
        )
        self.probes = ProbeService(
            config.probes,
            ProbeFacts(now, instances=True, model_gemms=self._model_gemms),
            state_path=state_path,
        )
        self.holders = HolderService(config.holders, latest)
        self.advisor = Advisor(
            now,
            self.workloads.served,
            prices=config.prices,
            settings=config.advice,
            state_path=state_path,
        )
        self._all = (self.probes, self.workloads, self.holders, self.advisor)

    def _model_gemms(self, state: State) -> dict[str, tuple[ModelGemm, ...]]:
        """The matrix products of the served models, by the UUID of the devices that compute them."""
        found: dict[str, tuple[ModelGemm, ...]] = {}
        for served in self.workloads.served(state):
            if served.description is None:
                continue
            products = matrix_products(served.description, served.tensor_parallel)
            gemms = tuple(ModelGemm(each.precision, each.n, each.k) for each in products)
            for gpu in served.gpus:
                found[gpu.uuid] = tuple(dict.fromkeys((*found.get(gpu.uuid, ()), *gemms)))
        return found

    def start(self) -> None:
        """Start all services."""
        for service in self._all:
            service.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stop all services; each has at most this long."""
        for service in self._all:
            service.stop(timeout_seconds)

    def stalled(self, now: float) -> tuple[str, ...]:
        """Names of the threads that have ended or are stuck through a bug of ours."""
        return tuple(name for service in self._all for name in service.stalled(now))

    def configure(self, config: Config) -> None:
        """Apply another configuration."""
        self.probes.configure(config.probes)
        self.workloads.configure(config.workloads)
        self.holders.configure(config.holders)
        self.advisor.configure(config.prices)


_COMPUTE_MODES = frozenset({"default", "exclusive_process", "exclusive_thread", "prohibited"})


class ProcessAges:
    """How long each process has been on a device, as far as it can be known.

    One that appears while we watch counts from its first sighting, or from its start time if that
    is later. One that was there before us is as old as /proc says; in a container, where /proc does
    not show it, it counts as new, which is the cautious choice.
    """

    def __init__(self, proc: Path = procfs.PROC) -> None:
        self._proc = proc
        # First sighting by device, process id and start time: ids are reused.
        self._first_seen: dict[tuple[str, int, int | None], float] = {}
        self._watched: set[str] = set()

    def ages(self, uuid: str, pids: Iterable[int], now: float) -> tuple[ProcessFacts, ...]:
        """The processes of a device with their ages; `now` is the monotonic clock."""
        first_seen: dict[tuple[str, int, int | None], float] = {}
        facts = []
        for pid in sorted(set(pids)):
            process = procfs.process(pid, self._proc)
            started = procfs.age_seconds(process, self._proc) if process else None
            key = (uuid, pid, process.start_ticks if process else None)
            before_us = uuid not in self._watched and started is not None
            first = now - (started or 0.0) if before_us else now
            first_seen[key] = first = self._first_seen.get(key, first)
            facts.append(ProcessFacts(pid, now - first))
        self._first_seen = {k: at for k, at in self._first_seen.items() if k[0] != uuid}
        self._first_seen.update(first_seen)
        self._watched.add(uuid)
        return tuple(facts)

    def forget_all_but(self, uuids: Container[str]) -> None:
        """Forget devices that are gone: MIG instances are recreated with other UUIDs."""
        self._watched = {uuid for uuid in self._watched if uuid in uuids}
        self._first_seen = {key: at for key, at in self._first_seen.items() if key[0] in uuids}


class ProbeFacts:
    """Turns the devices of the State that are fresh into facts."""

    def __init__(
        self,
        state: Callable[[], State],
        *,
        clock: Callable[[], float] = time.monotonic,
        ages: ProcessAges | None = None,
        instances: bool = False,
        model_gemms: Callable[[State], Mapping[str, tuple[ModelGemm, ...]]] = lambda _state: {},
    ) -> None:
        """`instances`: include MIG instances in addition to their GPUs.

        `model_gemms` gives the matrix products of the models that are served, by device UUID.
        """
        self._state = state
        self._clock = clock
        self._ages = ages or ProcessAges()
        self._instances = instances
        self._model_gemms = model_gemms

    def __call__(self) -> list[DeviceFacts]:
        """The facts of all devices that the driver lists now."""
        state = self._state()
        self._ages.forget_all_but({device.identity.uuid for device in state.devices})
        gemms = self._model_gemms(state)
        facts: list[DeviceFacts] = []
        for device in state.devices:
            identity = device.identity
            # An instance comes with its GPU.
            if identity.mig is not None or not device.up or identity.uuid == UNKNOWN:
                continue
            facts.append(self._facts(device, gpu=None))
            if self._instances:
                facts += [self._facts(i, gpu=device) for i in device.instances if i.up]
        return [replace(each, model_gemms=gemms.get(each.uuid, ())) for each in facts]

    def _facts(self, device: DeviceState, *, gpu: DeviceState | None) -> DeviceFacts:
        """A device's facts; `gpu` is the one that a MIG instance belongs to."""
        identity = device.identity
        fast = device.fast or FastReading(at_seconds=device.at_seconds)
        slow = device.slow or SlowReading(at_seconds=device.at_seconds)
        # What an instance does not have itself comes from its GPU: clock, compute mode, links.
        of_gpu = gpu or device
        gpu_fast = of_gpu.fast or FastReading(at_seconds=of_gpu.at_seconds)
        gpu_slow = of_gpu.slow or SlowReading(at_seconds=of_gpu.at_seconds)
        peaks = device.peaks
        pids = [process.pid for process in slow.processes or ()]
        free = fast.memory_free_bytes
        return DeviceFacts(
            key=identity.index,
            uuid=identity.uuid,
            name=identity.name,
            kind="cpu" if identity.index.startswith("cpu") else "cuda",
            peak_flops={} if peaks is None else dict(peaks.flops),
            # The tensor pipe's where it has the precision.
            flop_per_clock_per_sm=(
                {} if peaks is None else {**peaks.plain_rate, **peaks.tensor_rate}
            ),
            sm_count=identity.sm_count,
            sm_clock_max_hertz=identity.sm_clock_max_hertz,
            peak_dram_bandwidth_bytes_per_second=(
                None if peaks is None else peaks.dram_bytes_per_second
            ),
            peak_pcie_bandwidth_bytes_per_second=_pcie(gpu_slow),
            free_memory_bytes=None if free is None else int(free),
            compute_mode=_compute_mode(gpu_slow.compute_mode),
            mig=gpu is None and bool(slow.mig_enabled),
            instance=identity.mig,
            gpu_uuid=None if gpu is None else gpu.identity.uuid,
            processes=self._ages.ages(identity.uuid, pids, self._clock()),
            clock_event_reasons=_reasons(gpu_fast.event_reasons),
            utilization_ratio=fast.gpu_utilization,
            driver_version=identity.driver_version or "",
            headline_precision=device.precision or "",
        )


def _pcie(slow: SlowReading) -> float | None:
    """The link's maximum bandwidth: it may be at a lower generation while idle."""
    generation, width = slow.pcie_link_generation_max, slow.pcie_link_width
    if generation is None or width is None:
        return None
    return pcie_bytes_per_second(generation, width)


def _compute_mode(name: str | None) -> ComputeMode:
    # Unknown counts as the default: hardly any driver hides it, and the gates look at processes and
    # memory as well.
    return cast("ComputeMode", name) if name in _COMPUTE_MODES else "default"


def _reasons(mask: int | None) -> frozenset[str]:
    return frozenset(name for name, bit in EVENT_REASONS.items() if mask is not None and mask & bit)


# ---- the error of the FLOP counter, as `flopwatch calibrate` measured it ----

_CALIBRATION_SECTION = "calibration"


class Calibration(msgspec.Struct, frozen=True):
    """The signed error of the FLOP counter in one precision: counted over true, minus 1."""

    error_ratio: float
    timestamp_seconds: float


Calibrations = dict[str, dict[str, Calibration]]
"""By device UUID and precision."""


def read_calibrations(file: StateFile) -> Calibrations:
    """All measurements; empty when there are none or they are unusable."""
    return file.read(_CALIBRATION_SECTION, Calibrations) or {}


def save_calibrations(file: StateFile, uuid: str, errors: Mapping[str, Calibration]) -> None:
    """Keep one device's errors by precision; those of other precisions and devices stay."""

    def change(section: Any) -> Any:
        try:
            current = msgspec.convert(section or {}, Calibrations)
        except msgspec.ValidationError:
            current = {}
        current[uuid] = {**current.get(uuid, {}), **errors}
        return msgspec.to_builtins(current)

    file.update(_CALIBRATION_SECTION, change)


class CalibrationFile:
    """Follows the file: read again when `flopwatch calibrate` has written it."""

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path)
        self._changed_at: float | None = None
        self._errors: Mapping[str, Mapping[str, float]] = {}

    def read(self) -> Mapping[str, Mapping[str, float]]:
        """Signed error by device UUID and precision."""
        try:
            changed_at: float | None = self._file.path.stat().st_mtime
        except OSError:
            changed_at = None
        if changed_at != self._changed_at:
            self._changed_at = changed_at
            self._errors = {
                uuid: {name: entry.error_ratio for name, entry in errors.items()}
                for uuid, errors in read_calibrations(self._file).items()
            }
        return self._errors
