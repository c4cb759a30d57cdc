"""Drives the fake driver library while another process uses it."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from tests.fake_nvml import layout
from tests.fake_nvml.build import build, function_names, layout_stamp
from tests.fake_nvml.functions import Functions
from tests.fake_nvml.gpu import FakeGpu
from tests.fake_nvml.mig import MigInstance
from tests.fake_nvml.profiles import GpuProfile


ProcessKind = Literal["compute", "graphics", "mps"]
_KINDS = {
    "compute": layout.PROCESS_COMPUTE,
    "graphics": layout.PROCESS_GRAPHICS,
    "mps": layout.PROCESS_MPS,
}
_XID_CRITICAL_ERROR = 0x8
_MIG_CONFIG_CHANGE = 0x100
_WHOLE_GPU = 0xFFFFFFFF


class FakeNvml(Functions):
    """A machine with simulated GPUs. Merge `env` into the environment of the process under test.

    Function names are NVML's C names as exported (`nvmlDeviceGetHandleByIndex_v2`), or patterns (`nvmlDeviceSet*`).
    `gpu` is always the place in the list of profiles, never the NVML index, which changes.
    """

    def __init__(
        self,
        gpus: Sequence[GpuProfile],
        directory: Path,
        *,
        driver_version: str = "595.71.05",
        cuda_driver_version: int = 13020,
    ) -> None:
        if len(gpus) > layout.MAX_GPUS:
            raise ValueError(f"at most {layout.MAX_GPUS} GPUs")
        self._library = build()
        self._path = directory / "fake-nvml-control"
        schedules = layout.Schedule * (len(gpus) * layout.SCHEDULES_PER_GPU)
        with self._path.open("w+b") as file:
            file.truncate(ctypes.sizeof(layout.Control) + ctypes.sizeof(schedules))
            self._memory = mmap.mmap(file.fileno(), 0)
        super().__init__(layout.Control.from_buffer(self._memory), function_names(self._library))
        shared_schedules = schedules.from_buffer(self._memory, ctypes.sizeof(layout.Control))
        self.control.gpu_count = len(gpus)
        self.control.driver_loaded = 1
        self.control.driver_generation = 1
        self.control.driver_version = driver_version.encode()
        self.control.nvml_version = f"13.{driver_version}".encode()
        self.control.cuda_driver_version = cuda_driver_version
        begin_ns = time.monotonic_ns()
        self.gpus = [
            FakeGpu(slot, profile, self.control.gpus[slot], shared_schedules, begin_ns)
            for slot, profile in enumerate(gpus)
        ]
        for gpu in self.gpus:
            for name, code in gpu.profile.function_codes.items():
                self.control.functions[self._functions[name]].profile_code[gpu.slot + 1] = code
        self._enumerate([gpu.slot for gpu in self.gpus])
        self.control.layout = layout_stamp(self._library)
        self.control.magic = layout.MAGIC

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()  # no call stays hung in the library after its test

    @property
    def env(self) -> dict[str, str]:
        """The environment variables of the process under test."""
        path = [str(self._library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(path), "FAKE_NVML_CONTROL": str(self._path)}

    @property
    def library_directory(self) -> Path:
        """The folder of libnvidia-ml.so.1."""
        return self._library

    def gpu(self, slot: int) -> FakeGpu:
        """One GPU, by its place in the list of profiles."""
        return self.gpus[slot]

    def fail_field(self, field_id: int, code: int, gpu: int | None = None) -> None:
        """Make one field id answer `code` in its own entry; 0 ends it."""
        for one in self._gpus(gpu):
            one.shared.field_fault[field_id] = code

    def fail_gpm_metric(self, metric_id: int, code: int, gpu: int | None = None) -> None:
        """Make one GPM metric answer `code` in its own entry; 0 ends it."""
        for one in self._gpus(gpu):
            one.shared.metric_fault[metric_id] = code

    # ---- the driver and the bus ----

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus: every call on it answers GPU_IS_LOST."""
        self.control.gpus[gpu].lost = 1

    def restore(self, gpu: int) -> None:
        """The GPU is back."""
        self.control.gpus[gpu].lost = 0

    def unload_driver(self) -> None:
        """nvmlInit answers DRIVER_NOT_LOADED, everything else UNINITIALIZED."""
        self.control.driver_loaded = 0

    def load_driver(self) -> None:
        """The driver is back; every process must initialise again, and energy counts from zero."""
        for gpu in self.gpus:
            gpu.restart_energy()
        self.control.driver_generation += 1
        self.control.driver_loaded = 1

    def mismatch_driver(self, mismatched: bool = True) -> None:
        """Every call answers LIB_RM_VERSION_MISMATCH: the driver was upgraded under a running process."""
        self.control.driver_mismatch = int(mismatched)

    def remove_gpu(self, gpu: int) -> None:
        """The GPU is no longer enumerated; the indices after it move up."""
        self.control.gpus[gpu].is_present = 0
        self._enumerate([slot for slot in self._visible() if slot != gpu])

    def add_gpu(self, gpu: int, index: int | None = None) -> None:
        """A removed GPU is enumerated again, last or at the given index."""
        order = [slot for slot in self._visible() if slot != gpu]
        order.insert(len(order) if index is None else index, gpu)
        self.control.gpus[gpu].is_present = 1
        self._enumerate(order)

    def invalidate_handles(self) -> None:
        """Handles of whole GPUs are refused from now on, as a rediscovery of the bus may do (nvml.h)."""
        for gpu in self.gpus:
            gpu.shared.handle_generation += 1

    # ---- what a GPU reports about itself ----

    def set(self, gpu: int, **members: float | Sequence[int]) -> None:
        """Set any number of `layout.Gpu`, for example `recovery_action=1`, `compute_mode=3`, `pcie_replays=7`."""
        self.gpus[gpu].set(**members)

    def set_field(self, gpu: int, field_id: int, value: int | None) -> None:
        """Make a field id answer this whole number (type unsigned long long); None ends it."""
        shared = self.gpus[gpu].shared
        shared.field_value[field_id] = value or 0
        shared.field_override[field_id] = int(value is not None)

    def set_processes(self, gpu: int, processes: Iterable[tuple[int, int, ProcessKind]], names: Mapping[int, str] | None = None, sm_percent: Mapping[int, int] | None = None) -> None:  # fmt: skip
        """Replace the processes on a GPU, each given as (pid, bytes, kind), with its share of the SMs' time."""
        shared = self.gpus[gpu].shared
        entries = list(processes)
        shared.process_sequence += 1
        for place, (pid, used_bytes, kind) in enumerate(entries):
            name = (names or {}).get(pid, f"process-{pid}")
            shared.processes[place] = layout.Process(
                pid, _KINDS[kind], used_bytes, -1, (sm_percent or {}).get(pid, 0), name.encode()
            )
        shared.process_count = len(entries)
        shared.process_sequence += 1

    def set_ecc(self, gpu: int, *, corrected: int = 0, uncorrected: int = 0, volatile_corrected: int = 0, volatile_uncorrected: int = 0) -> None:  # fmt: skip
        """Set the lifetime (aggregate) and the since-boot (volatile) ECC error counts."""
        errors = self.gpus[gpu].shared.ecc_errors
        errors[0][:] = [volatile_corrected, corrected]
        errors[1][:] = [volatile_uncorrected, uncorrected]

    def set_remapped(self, gpu: int, *, correctable: int = 0, uncorrectable: int = 0, pending: bool = False, failed: bool = False) -> None:  # fmt: skip
        """Set the remapped rows and the remapping's state."""
        self.set(gpu, remapped_correctable=correctable, remapped_uncorrectable=uncorrectable, remap_pending=pending, remap_failed=failed)  # fmt: skip

    def set_nvlink_state(self, gpu: int, link: int, up: bool) -> None:
        """Take a link down or up."""
        self.gpus[gpu].shared.links[link].up = int(up)

    def fail_nvlink_state(self, gpu: int, link: int, code: int) -> None:
        """Make asking for the state of one link return this code; 0 ends it."""
        self.gpus[gpu].shared.links[link].state_code = code

    def set_nvlink_errors(self, gpu: int, link: int, **counters: int) -> None:
        """Set a link's `replay_errors`, `recovery_errors`, `crc_flit_errors`, `crc_data_errors`, `ecc_errors`."""
        for name, value in counters.items():
            # A misspelt name must not pass silently.
            getattr(self.gpus[gpu].shared.links[link], name)
            setattr(self.gpus[gpu].shared.links[link], name, value)

    def set_mig(self, gpu: int, instances: Sequence[MigInstance] | None) -> None:
        """Turn MIG on with these instances or off with None, and tell the waiters of MIG configuration changes."""
        self.gpus[gpu].set_mig(instances)
        self.event(gpu, _MIG_CONFIG_CHANGE)

    def event(self, gpu: int, event_type: int, data: int = 0, gpu_instance_id: int = _WHOLE_GPU, compute_instance_id: int = _WHOLE_GPU) -> None:  # fmt: skip
        """Deliver an event to every waiter that has registered its type on this GPU."""
        number = self.control.event_count
        self.control.events[number % layout.MAX_EVENTS] = layout.Event(gpu, gpu_instance_id, compute_instance_id, event_type, data)  # fmt: skip
        self.control.event_count = number + 1

    def xid(self, gpu: int, code: int) -> None:
        """Deliver an Xid error."""
        self.event(gpu, _XID_CRITICAL_ERROR, code)

    # ---- what the library saw ----

    def registered_for_events(self, *gpus: int) -> bool:
        """Whether somebody has registered for events of each of these GPUs; earlier events are not delivered."""
        return all(self.control.event_registrations[gpu] for gpu in gpus)

    @property
    def gpm_overlaps(self) -> int:
        """GPM calls that began while another one ran in the same process: must stay 0."""
        return int(self.control.gpm_overlaps)

    @property
    def gpm_misuses(self) -> int:
        """GPM calls with samples that were freed, never taken, swapped or of different GPUs: must stay 0."""
        return int(self.control.gpm_misuses)

    @property
    def gpm_samples_alive(self) -> int:
        """Samples allocated and not freed."""
        return int(self.control.gpm_samples_alive)

    @property
    def stale_handles(self) -> int:
        """Calls with a device handle from before the last nvmlInit: must stay 0."""
        return int(self.control.stale_handles)

    def _gpus(self, gpu: int | None) -> list[FakeGpu]:
        return self.gpus if gpu is None else [self.gpus[gpu]]

    def _visible(self) -> list[int]:
        return list(self.control.visible[: self.control.visible_count])

    def _enumerate(self, slots: list[int]) -> None:
        self.control.visible[: len(slots)] = slots
        self.control.visible_count = len(slots)
