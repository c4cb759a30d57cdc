"""MIG instances of a simulated GPU."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tests.fake_nvml import layout


_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A GPU instance with one compute instance that takes all of it. An empty `uuid` is made up."""

    gpu_instance_id: int
    slice_count: int
    multiprocessor_count: int
    memory_mib: int
    profile_id: int
    placement_start: int = 0
    copy_engine_count: int = 1
    decoder_count: int = 1
    compute_instance_id: int = 0
    uuid: str = ""

    def fill(self, shared: layout.Instance, gpu_uuid: str, gpu_name: str) -> None:
        """Write it into the control block."""
        for name in (
            "gpu_instance_id", "slice_count", "multiprocessor_count", "memory_mib", "profile_id", "placement_start",
            "copy_engine_count", "decoder_count", "compute_instance_id",
        ):  # fmt: skip
            setattr(shared, name, getattr(self, name))
        shared.placement_size = self.slice_count
        made_up = uuid.uuid5(_NAMESPACE, f"{gpu_uuid} {self.gpu_instance_id} {self.slice_count}")
        shared.uuid = (self.uuid or f"MIG-{made_up}").encode()
        shared.name = f"{gpu_name} MIG {self.slice_count}g.{-(-self.memory_mib // 1024)}gb".encode()


# Slices of an A100 80GB (MIG User Guide: 14 SMs a slice; 39.25, 19.5 and 9.5 GiB).
A100_3G_40GB = MigInstance(gpu_instance_id=1, slice_count=3, multiprocessor_count=42, memory_mib=40192, profile_id=9, copy_engine_count=3, decoder_count=2)  # fmt: skip
A100_2G_20GB = MigInstance(gpu_instance_id=3, slice_count=2, multiprocessor_count=28, memory_mib=19968, profile_id=14, copy_engine_count=2, decoder_count=1)  # fmt: skip
A100_1G_10GB = MigInstance(
    gpu_instance_id=7, slice_count=1, multiprocessor_count=14, memory_mib=9728, profile_id=19
)

# Slices of an H100 80GB: SM counts and memory as NVML gives them (60, 32 and 16 SMs; 124 of 132 at most).
H100_3G_40GB = MigInstance(gpu_instance_id=1, slice_count=3, multiprocessor_count=60, memory_mib=40448, profile_id=9, copy_engine_count=3, decoder_count=3)  # fmt: skip
H100_2G_20GB = MigInstance(gpu_instance_id=3, slice_count=2, multiprocessor_count=32, memory_mib=20096, profile_id=14, copy_engine_count=2, decoder_count=2)  # fmt: skip
H100_1G_10GB = MigInstance(
    gpu_instance_id=7, slice_count=1, multiprocessor_count=16, memory_mib=9984, profile_id=19
)
