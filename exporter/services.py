"""What runs beside the sampling: probes, inference engines, holders of the GPUs, calibration.

Each has threads or processes of its own and answers with a frozen snapshot. Sampling asks them
for two facts (serving precision, reachable bandwidth), from a copy that is refreshed off the tick.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from exporter.attribution.service import HolderService
from exporter.attribution.settings import HolderSettings
from exporter.collect.host import HostSampling
from exporter.config.model import Config
from exporter.exposition.holders import holder_samples
from exporter.exposition.probes import probe_samples
from exporter.exposition.samples import by_label, device_labels
from exporter.exposition.workloads import workload_samples
from exporter.inference.config import DiscoveryConfig, GpuHooks, WorkloadConfig
from exporter.inference.service import WorkloadService
from exporter.inference.snapshot import GpuRef
from exporter.metrics.family import Sample
from exporter.metrics.gpu import ESTIMATOR_ERROR_RATIO
from exporter.probe_facts import ProbeFacts
from exporter.readings import DeviceIdentity
from exporter.state import DeviceSnapshot, HostSnapshot
from probes.service import ProbeService
from probes.state import StateFile, usable_state_path


log = structlog.get_logger(__name__)

# A copy probe that reached less than half of the theoretical bandwidth, or more than all of it, says
# something about the probe and not about the memory.
_REACHABLE_BANDWIDTH_RANGE = (0.5, 1.0)


class Companions:
    """Owns the services beside the sampling."""

    def __init__(self, config: Config, host: HostSampling) -> None:
        self._host = host
        state_path = usable_state_path(config.state_file)
        self._state = StateFile(state_path)
        self._state_changed_at: float | None = None
        self._calibration: Mapping[str, Mapping[str, float]] = {}
        self._precisions: Mapping[str, str] = {}
        self._reachable: Mapping[str, float] = {}
        self.probes = ProbeService(
            config.probes, ProbeFacts(host.view, instances=True), state_path=state_path
        )
        self.workloads = WorkloadService(
            workload_configs(config),
            gpus=GpuHooks(
                resolve=self._resolve,
                peaks=self._peak_flops,
                bandwidth=self._bandwidth,
                processes=self._processes,
            ),
            # Read at start: the ports of a host do not change while it runs.
            discovery=DiscoveryConfig(
                ports=config.discovery_ports, interval_seconds=config.discovery_interval
            ),
        )
        self.holders = HolderService(holder_settings(config), host.view)

    def start(self) -> None:
        """Start all services."""
        self.refresh()
        self.probes.start()
        self.workloads.start()
        self.holders.start()

    def stop(self, timeout_seconds: float) -> None:
        """End all services; none gets longer than this."""
        self.probes.stop(timeout_seconds)
        self.workloads.stop(timeout_seconds)
        self.holders.stop(timeout_seconds)

    def configure(self, config: Config) -> None:
        """Go on with another configuration."""
        self.probes.configure(config.probes)
        self.workloads.configure(workload_configs(config))
        self.holders.configure(holder_settings(config))

    def refresh(self) -> None:
        """Copy what sampling may ask for. Called by the daemon's main loop."""
        self._precisions = dict(self.workloads.precisions())
        self._reachable = self._measured_bandwidth()
        self._refresh_calibration()

    def precision(self, identity: DeviceIdentity) -> str | None:
        """Precision in which a joined engine serves on the device."""
        return self._precisions.get(identity.uuid)

    def reachable_bandwidth(self, identity: DeviceIdentity) -> float | None:
        """Share of the theoretical DRAM bandwidth that the copy probe reached on the device."""
        return self._reachable.get(identity.uuid)

    def samples(self, host: HostSnapshot) -> Iterator[Sample]:
        """Samples of all services."""
        yield from probe_samples(self.probes.snapshot())
        yield from workload_samples(self.workloads.snapshot())
        yield from holder_samples(self.holders.snapshot(), host)
        for device in host.devices:
            errors = self._calibration.get(device.identity.uuid, {})
            labels = device_labels(device.identity)
            yield from by_label(ESTIMATOR_ERROR_RATIO, labels, "precision", errors)

    def _refresh_calibration(self) -> None:
        """Read the state file when `flopwatch calibrate` has written it."""
        try:
            changed_at: float | None = self._state.path.stat().st_mtime
        except OSError:
            changed_at = None
        if changed_at == self._state_changed_at:
            return
        self._state_changed_at = changed_at
        self._calibration = {
            uuid: {name: entry.error_ratio for name, entry in errors.items()}
            for uuid, errors in self._state.calibration().items()
        }

    def _measured_bandwidth(self) -> dict[str, float]:
        peaks = {
            device.identity.uuid: device.peaks.dram_bytes_per_second
            for device in self._devices()
            if device.peaks is not None
        }
        lowest, highest = _REACHABLE_BANDWIDTH_RANGE
        reachable: dict[str, float] = {}
        for probed in self.probes.snapshot().devices:
            measured = probed.bandwidth_bytes_per_second.get(("device", ""))
            peak = peaks.get(probed.uuid)
            if measured is not None and peak and lowest <= measured / peak <= highest:
                reachable[probed.uuid] = measured / peak
        return reachable

    def _devices(self) -> tuple[DeviceSnapshot, ...]:
        return self._host.view().devices

    def _resolve(self, key: int | str) -> GpuRef | None:
        wanted = str(key)
        for device in self._devices():
            identity = device.identity
            if wanted in (identity.index, identity.uuid):
                return _reference(identity)
        return None

    def _peak_flops(self, uuid: str, precision: str) -> float | None:
        for device in self._devices():
            if device.identity.uuid == uuid and device.peaks is not None:
                return device.peaks.flops.get(precision)
        return None

    def _bandwidth(self, uuid: str) -> float | None:
        for device in self._devices():
            if device.identity.uuid == uuid and device.peaks is not None:
                return device.peaks.dram_bytes_per_second
        return None

    def _processes(self) -> dict[GpuRef, frozenset[int]]:
        return {
            _reference(device.identity): frozenset(
                process.pid for process in device.slow.processes or ()
            )
            for device in self._devices()
            if device.slow is not None
        }


def workload_configs(config: Config) -> tuple[WorkloadConfig, ...]:
    """The workloads as their service takes them."""
    return tuple(
        WorkloadConfig(
            name=workload.name,
            engine=workload.engine,
            url=workload.url,
            model=Path(workload.model) if workload.model else None,
            gpus=workload.gpus,
            tensor_parallel=workload.tensor_parallel,
            pipeline_parallel=workload.pipeline_parallel,
            precision=workload.precision,
            kv_cache_dtype=workload.kv_cache_precision,
            interval_seconds=workload.interval,
            timeout_seconds=workload.timeout,
        )
        for workload in config.workloads
    )


def holder_settings(config: Config) -> HolderSettings:
    """What the holders' service needs of the configuration."""
    return HolderSettings(
        pod_resources=config.pod_resources,
        socket=Path(config.pod_resources_socket),
        job_mapping_dir=Path(config.job_mapping_dir) if config.job_mapping_dir else None,
        job_processes=config.job_processes,
    )


def _reference(identity: DeviceIdentity) -> GpuRef:
    return GpuRef(identity.index, identity.uuid, identity.mig)
