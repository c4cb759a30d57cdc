"""Unusual hardware as files: how its answers differ from those of a similar standard board."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tests import fake_nvml
from tests.dcgm.server import ALL_FIELDS, DEFAULT_FIELDS, Device
from tests.fake_nvml import FakeNvml, GpuProfile, Load


FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

# Series of the exporter's own process and of time: they do not depend on the hardware.
_NOT_OF_THE_HARDWARE = re.compile(
    r"(process_|python_|flopwatch_(build_info|config_|series|tick_duration|ticks_missed|probe_|holder_"
    r"|finding|time_seconds|boot_time|gpu_reset_timestamp|expected_gpus))"
)
_DCGM_FIELDS = {"default": DEFAULT_FIELDS, "all": ALL_FIELDS}
_LOAD_OF_FIELD = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "graphics",
    "DCGM_FI_PROF_SM_ACTIVE": "sm",
    "DCGM_FI_PROF_SM_OCCUPANCY": "occupancy",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "any_tensor",
    "DCGM_FI_PROF_DRAM_ACTIVE": "dram",
    "DCGM_FI_PROF_PIPE_FP64_ACTIVE": "fp64",
    "DCGM_FI_PROF_PIPE_FP32_ACTIVE": "fp32",
    "DCGM_FI_PROF_PIPE_FP16_ACTIVE": "fp16",
}
_GROWS = re.compile(r"_(total|bucket|sum|count|created)$|timestamp")


@dataclass(frozen=True, slots=True)
class Scenario:
    """The GPUs of one host and their MIG instances. `about` says what is unusual and how we know.

    `dcgm` is the counters file of a dcgm-exporter beside them: "default", "all", or "" for none.
    """

    name: str
    about: str
    driver_version: str
    gpus: tuple[GpuProfile, ...]
    mig: tuple[fake_nvml.MigInstance, ...]
    dcgm: str

    @classmethod
    def read(cls, name: str) -> "Scenario":
        """A scenario by the name of its file."""
        given = json.loads((FOLDER / f"{name}.json").read_text())
        return cls(
            name=name,
            about=given["about"],
            driver_version=given.get("driver_version", "595.71.05"),
            gpus=tuple(_profile(gpu) for gpu in given["gpus"]),
            mig=tuple(getattr(fake_nvml, instance) for instance in given.get("mig", ())),
            dcgm=given.get("dcgm", ""),
        )

    def put_to_work(self, fake: FakeNvml) -> None:
        """Create the MIG instances, and load GPUs and instances with token generation."""
        for gpu in fake.gpus:
            load = at_work(gpu.profile)
            if self.mig:
                gpu.set_mig(self.mig)
            for instance in self.mig:
                memory = instance.memory_mib * 2**19
                gpu.instance_loads(instance.gpu_instance_id).set_load(
                    replace(load, memory_used_bytes=memory)
                )
            gpu.set_load(load)

    def collected(self, fake: FakeNvml) -> list[Device]:
        """What the dcgm-exporter collects: rows of the GPUs, or of their instances in place of them."""
        devices: list[Device] = []
        for gpu in fake.gpus:
            load = at_work(gpu.profile)
            values = {
                field: getattr(load, _LOAD_OF_FIELD[field]) for field in _DCGM_FIELDS[self.dcgm]
            }
            labels = {"gpu": str(gpu.slot), "UUID": gpu.uuid, "Hostname": "node"}
            devices += [
                Device({**labels, "GPU_I_ID": str(instance.gpu_instance_id)}, values)
                for instance in self.mig
            ] or [Device(labels, values)]
        return devices


def at_work(profile: GpuProfile) -> Load:
    """Token generation, limited to the activities that the board has."""
    return replace(
        Load.decode(),
        sm_clock_mhz=profile.max_sm_clock_mhz * 0.95 // 1,
        memory_clock_mhz=profile.max_memory_clock_mhz,
        power_watts=profile.power_limit_watts * 0.65,
        memory_used_bytes=profile.memory_total_bytes / 2,
        nvlink_rx_bytes_per_second=9e9 if profile.nvlink_count else 0.0,
        nvlink_tx_bytes_per_second=9e9 if profile.nvlink_count else 0.0,
        c2c_rx_bytes_per_second=20e9 if profile.c2c_link_count else 0.0,
        c2c_tx_bytes_per_second=5e9 if profile.c2c_link_count else 0.0,
        module_power_watts=profile.module_power_limit_watts * 0.7,
    )


def masked(text: str) -> str:
    """An exposition without what changes from run to run: counters keep their names and labels only."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or _NOT_OF_THE_HARDWARE.match(line):
            continue
        series, value = line.rsplit(" ", 1)
        name = series.partition("{")[0]
        if _GROWS.search(name):
            if name.endswith(("_bucket", "_sum")):
                continue
            value = "*"
        else:
            value = f"{float(value):.3g}"
        lines.append(f"{series} {value}")
    return "\n".join([*lines, ""])


def _profile(given: dict[str, object]) -> GpuProfile:
    changes = dict(given)
    base: GpuProfile = getattr(fake_nvml, str(changes.pop("like")))
    for key in ("field_codes", "metric_codes"):
        codes = changes.get(key)
        if isinstance(codes, dict):
            merged = {int(number): code for number, code in codes.items()}
            changes[key] = {**getattr(base, key), **merged}
    return replace(base, **changes)
