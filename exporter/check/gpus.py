"""Findings about the driver and its GPUs, and where the FLOPS of each GPU come from.

GPM is available from Hopper on. On older GPUs, DCGM profiles only data-centre and professional
boards. From Hopper on DCGM reads GPM itself, so a dcgm-exporter has nothing that GPM refuses.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.check import CheckResult, Level, failure, note, ok, warning
from exporter.check.subprocesses import Answer
from exporter.collect.dcgm_windows import DcgmDevice, DeviceSample, parse
from exporter.config.model import Config
from exporter.errors import ScrapeError
from exporter.http_client import fetch


_TIMEOUT_SECONDS = 3.0
_HOPPER = (9, 0)
_CONSUMER = ("GeForce", "TITAN")
_DENIED = "no_permission"
_ERRORS = {
    "library_not_found": (
        "the driver library libnvidia-ml.so.1 was not found",
        (
            "install the NVIDIA driver; in a container use the NVIDIA runtime with "
            "NVIDIA_DRIVER_CAPABILITIES=utility"
        ),
    ),
    "driver_not_loaded": ("the kernel driver is not loaded", "load it: modprobe nvidia"),
    "driver_mismatch": (
        "the driver library and the kernel module have different versions",
        "reboot, or reload the kernel module; then restart flopwatch",
    ),
    "no_permission": (
        "no permission to use the driver",
        "give the user access to /dev/nvidiactl and /dev/nvidia*",
    ),
    "unknown": (
        "the driver library cannot be initialized",
        (
            "in a container this means that device access was lost: create the container again (if `systemctl "
            "daemon-reload` caused it, list the device nodes explicitly)"
        ),
    ),
    "hung": (
        "a driver call does not return",
        "see dmesg for Xid lines; a GPU reset or a reboot is needed",
    ),
    "gpu_is_lost": ("the GPU has fallen off the bus", "drain the node and reset or replace it"),
    "internal_error": (
        "flopwatch failed to process a reading of this GPU",
        "report it, with the output of flopwatch check --json",
    ),
    "reset_required": ("the GPU needs a reset", "drain the node: nvidia-smi --gpu-reset"),
}


@dataclass(frozen=True, slots=True)
class FlopsSource:
    """The source (`gpm_cycles`, `gpm`, `dcgm`), or None and the reason."""

    name: str | None
    why: str = ""
    remedy: str | None = None
    level: Level = Level.WARNING


@dataclass(frozen=True, slots=True)
class DcgmAnswer:
    """What this node's dcgm-exporter exposes; empty if no GPU needs one. `error`: why it failed.

    `answers` with an `error`: a dcgm-exporter is running, but its answer is unusable.
    """

    asked: bool = False
    devices: Mapping[DcgmDevice, DeviceSample] = field(default_factory=dict)
    error: str | None = None
    answers: bool = False

    def tells_flops(self, uuid: str, gpu_instance_id: Any = None) -> bool:
        """Whether it exposes the activity of any pipe of the device."""
        key = DcgmDevice(uuid, None if gpu_instance_id is None else str(gpu_instance_id))
        sample = self.devices.get(key)
        return sample is not None and sample.tells_flops


def driver_findings(answer: Answer, config: Config) -> Iterator[CheckResult]:
    """The library and the driver behind it."""
    wanted = config.sampling.modes["nvml"] == "on"
    if config.sampling.modes["nvml"] == "off":
        yield note("driver", "turned off by sources.nvml")
        return
    driver: Mapping[str, Any] = answer.documents[0] if answer.documents else {"error": "hung"}
    error = driver.get("error")
    if error is None:
        count = driver["count"]
        level = Level.OK if count else Level.FAILURE if wanted else Level.WARNING
        version = driver.get("cuda_driver_version")
        cuda = f", CUDA {version // 1000}.{version % 1000 // 10}" if version else ""
        library = f", library {driver['nvml_version']}" if driver.get("nvml_version") else ""
        text = f"{driver.get('driver_version')}{library}{cuda}, {count} GPU(s)"
        yield CheckResult("driver", level, text)
        if config.probes.enabled:
            yield from _permissions(Level.WARNING, "probes need it")
        return
    text, remedy = _ERRORS.get(error, (f"the driver reports {error}", "see dmesg"))
    nodes = _device_nodes()
    if error == "library_not_found" and not nodes and not wanted:
        yield note("driver", "no NVIDIA driver here: the host processor is monitored")
        return
    yield failure("driver", text, remedy)
    yield from _permissions(Level.FAILURE, "nothing works without it")


def gpu_findings(answer: Answer, config: Config, dcgm: DcgmAnswer) -> Iterator[CheckResult]:
    """For each GPU: the product, the source of its FLOPS, and any obstacles."""
    for device in answer.documents[1:]:
        area = f"gpu {device['index']}"
        name = f"{device.get('name', 'unknown')}: "
        error = device.get("error")
        if error is not None:
            text, remedy = _ERRORS.get(error, (f"the driver reports {error}", "see dmesg"))
            yield failure(area, name + text, remedy)
            continue
        yield _source(area, name, flops_source(device, dcgm, config), device["peaks"])
        yield from _peculiarities(area, device, config)
        if device.get("mig"):
            yield from _instances(area, device, config, dcgm)


def missing_gpu_findings(answer: Answer, config: Config) -> Iterator[CheckResult]:
    """GPUs that the configuration names, by index or UUID, and that this host does not list."""
    if not answer.documents or answer.documents[0].get("error") is not None:
        return
    indices = [str(device["index"]) for device in answer.documents[1:]]
    known = {*indices, *(device.get("uuid") for device in answer.documents[1:])}
    for device in answer.documents[1:]:
        known |= {instance.get("uuid") for instance in device.get("instances", ())}
    for place, gpu in config.missing_gpus(known):
        yield warning(
            "configuration",
            f"{place}: no GPU {gpu} on this host, GPUs: {', '.join(indices) or 'none'}",
            "correct it, or find out why the GPU is missing: nvidia-smi -L",
        )


def _permissions(level: Level, why: str) -> Iterator[CheckResult]:
    for node in _device_nodes():
        if not os.access(node, os.R_OK | os.W_OK):
            yield CheckResult(
                "permissions",
                level,
                f"{node} cannot be opened: {why}",
                f"give the user read and write access to {node}",
            )


def _source(area: str, name: str, source: FlopsSource, peaks: Mapping[str, Any]) -> CheckResult:
    if source.name is not None and not peaks.get("rates", True):
        text = f"{name}{source.name} answers, but no FLOPS can be counted: see its peak below"
        return warning(area, text)
    if source.name is not None:
        return ok(area, f"{name}FLOPS from {source.name}")
    return CheckResult(area, source.level, name + source.why, source.remedy)


def _peculiarities(area: str, device: Mapping[str, Any], config: Config) -> Iterator[CheckResult]:
    peaks = device["peaks"]
    doubt = peaks.get("doubt") or "not in the table of models"
    if not peaks["known"] and not device.get("mig"):
        lost = "no ratios" if peaks.get("rates") else "no FLOPS and no ratios"
        remedy = "set sm_count, peaks and dram_bandwidth under gpus in the configuration"
        yield warning(area, f"peak unknown: {lost} ({doubt})", remedy)
    elif peaks["origin"] == "derived":
        yield note(area, f"derived peak ({doubt})")
    if device["missing"]:
        yield note(area, f"the driver does not report {', '.join(device['missing'])}")
    if device["refused"].get("no_permission"):
        yield warning(area, "the driver refuses calls: no permission", "run as root, or see dmesg")
    mode = device.get("compute_mode")
    if config.probes.enabled and mode not in (None, "default"):
        yield warning(
            area,
            f"compute mode {mode}: "
            + (
                "neither CUDA programs nor probes can use the GPU"
                if mode == "prohibited"
                else "probes do not run while another process uses the GPU"
            ),
            "nvidia-smi --compute-mode=0, or probes.enabled: false",
        )
    free = device["memory"].get("memory_free_bytes")
    if _is_integrated(device):
        yield note(area, "has no memory of its own (unified memory)")
    elif free is None:
        yield warning(area, "its memory could not be read", "see dmesg")
    elif config.probes.enabled and not device.get("mig"):
        needed = config.probes.min_free_memory_bytes
        text = f"{free / 2**20:.0f} MiB of memory free, probes need {needed / 2**20:.0f} MiB"
        yield CheckResult(area, Level.NOTE if free < needed else Level.OK, text)


def _instances(
    area: str, device: Mapping[str, Any], config: Config, dcgm: DcgmAnswer
) -> Iterator[CheckResult]:
    instances = device["instances"]
    sizes = ", ".join(
        f"{i['gpu_instance_id']} ({i['sm_count']} SMs, "
        f"{instance_source(i, device['uuid'], dcgm, config)})"
        for i in instances
    )
    yield CheckResult(
        area,
        Level.OK if instances else Level.WARNING,
        f"MIG instances: {sizes}" if instances else "MIG mode, but no instances are visible",
        None if instances else "in a container set NVIDIA_MIG_MONITOR_DEVICES=all",
    )
    if config.probes.enabled and config.probes.mig == "skip":
        yield note(area, "not probed: probes.mig is skip")


def _device_nodes() -> list[str]:
    return [node for node in sorted(glob.glob("/dev/nvidia*")) if not os.path.isdir(node)]  # noqa: PTH112, PTH207  pathlib raises if access to a node is denied


def ask_dcgm(config: Config, gpus: Sequence[Mapping[str, Any]]) -> DcgmAnswer:
    """Scrape the dcgm-exporter once, if one of these GPUs can use it."""
    mode = config.sampling.modes["dcgm"]
    if mode == "off" or (mode == "auto" and not any(_may_use_dcgm(gpu, config) for gpu in gpus)):
        return DcgmAnswer()
    try:
        devices = parse(
            fetch(config.sampling.dcgm_url, timeout_seconds=_TIMEOUT_SECONDS, undecodable="replace")
        )
    except ScrapeError as error:
        return DcgmAnswer(asked=True, error=str(error))
    if not devices and devices.malformed:
        fault = f"its response has {devices.malformed} malformed lines and no samples"
        return DcgmAnswer(asked=True, answers=True, error=fault)
    if not devices:
        return DcgmAnswer(asked=True, error="no metrics of DCGM there")
    return DcgmAnswer(asked=True, devices=devices)


def flops_source(gpu: Mapping[str, Any], dcgm: DcgmAnswer, config: Config) -> FlopsSource:
    """Where the FLOPS of a GPU come from, not counting its MIG instances."""
    gpm = gpu["gpm"]
    off = config.sampling.modes["gpm"] == "off"
    if "source" in gpm and not off:
        return FlopsSource(gpm["source"])
    if _may_use_dcgm(gpu, config) and dcgm.tells_flops(gpu["uuid"]):
        return FlopsSource("dcgm")
    if gpu.get("mig"):
        why = "in MIG mode the GPU itself reports no FLOPS; see its instances"
        return FlopsSource(None, why, level=Level.NOTE)
    if off:
        return FlopsSource(None, "GPM is turned off by sources.gpm", level=Level.NOTE)
    if gpm["error"] not in ("not_supported", _DENIED):
        return FlopsSource(
            None,
            f"GPM fails: {gpm['error']}",
            "look for another profiler on this GPU; the daemon tries again every minute and uses "
            "a dcgm-exporter, if there is one, until then",
        )
    return _without_gpm(gpu, config)


def instance_source(
    instance: Mapping[str, Any], uuid: str, dcgm: DcgmAnswer, config: Config
) -> str:
    """The same for a MIG instance, in a few words; `uuid` is that of its GPU."""
    gpm: Mapping[str, str] = instance["gpm"]
    if "source" in gpm and config.sampling.modes["gpm"] != "off":
        return f"FLOPS from {gpm['source']}"
    if dcgm.tells_flops(uuid, instance["gpu_instance_id"]):
        return "FLOPS from dcgm"
    if gpm.get("error") in (None, "not_supported"):
        return "no GPM"
    return f"GPM fails: {gpm['error']}"


def dcgm_findings(
    dcgm: DcgmAnswer, config: Config, gpus: Sequence[Mapping[str, Any]]
) -> Iterator[CheckResult]:
    """Whether a dcgm-exporter answers for the GPUs that need it, and with which metrics."""
    if not dcgm.asked:
        return
    if dcgm.error is not None:
        yield CheckResult(
            "dcgm",
            Level.FAILURE if config.sampling.modes["dcgm"] == "on" else Level.WARNING,
            f"{config.sampling.dcgm_url}: {dcgm.error}",
            "check its response and its log"
            if dcgm.answers
            else "run dcgm-exporter on this node, or set dcgm.url",
        )
        return
    for gpu in gpus:
        if not _may_use_dcgm(gpu, config):
            continue
        # For a GPU in MIG mode the rows are those of its instances.
        wanted = [(f"GPU {gpu['index']}", DcgmDevice(gpu["uuid"]))]
        if gpu["instances"]:
            wanted = [
                (f"{name}, MIG instance {mig}", DcgmDevice(key.uuid, mig))
                for name, key in wanted
                for mig in (str(i["gpu_instance_id"]) for i in gpu["instances"])
            ]
        for name, key in wanted:
            yield _dcgm_finding(name, dcgm.devices.get(key))


def _may_use_dcgm(gpu: Mapping[str, Any], config: Config) -> bool:
    """Whether the daemon would ask a dcgm-exporter about this GPU and could get an answer."""
    if "gpm" not in gpu or config.sampling.modes["dcgm"] == "off":
        return False
    if config.sampling.modes["gpm"] == "off":
        return True
    if any("source" in instance["gpm"] for instance in gpu["instances"]):
        return False
    error = gpu["gpm"].get("error")
    if error == "not_supported":
        return _is_profiled(gpu) or config.sampling.modes["dcgm"] == "on"
    return error is not None


def _is_integrated(gpu: Mapping[str, Any]) -> bool:
    """Whether the driver says that the GPU has no memory of its own."""
    return "memory" in gpu["missing"]


def _is_profiled(gpu: Mapping[str, Any]) -> bool:
    """Whether DCGM can profile this GPU model without GPM."""
    capability = tuple(gpu.get("compute_capability") or ())
    consumer = any(word in gpu.get("name", "") for word in _CONSUMER)
    return (
        bool(capability)
        and capability < _HOPPER
        and not consumer
        and not _is_integrated(gpu)
        and gpu.get("virtualization") != "vgpu"
    )


def _without_gpm(gpu: Mapping[str, Any], config: Config) -> FlopsSource:
    if gpu["gpm"]["error"] == _DENIED:
        return FlopsSource(
            None, "no permission to use GPM", "run as root, or run dcgm-exporter, see dcgm below"
        )
    if _is_profiled(gpu):
        if config.sampling.modes["dcgm"] == "off":
            return FlopsSource(
                None,
                "this GPU has no GPM: FLOPS need DCGM, which sources.dcgm turns off",
                "set sources.dcgm to auto",
            )
        return FlopsSource(
            None, "this GPU has no GPM: FLOPS need DCGM", "run dcgm-exporter, see dcgm below"
        )
    if gpu.get("virtualization") == "vgpu":
        why = "no FLOPS: a vGPU has GPM only where it owns a whole MIG instance"
        return FlopsSource(None, why, "watch the GPU on its host", Level.NOTE)
    if _is_integrated(gpu):
        why = "no FLOPS: the driver has no GPM for this integrated GPU"
        return FlopsSource(None, why, level=Level.NOTE)
    if tuple(gpu.get("compute_capability") or ()) < _HOPPER:
        why = (
            "no FLOPS: GeForce and TITAN have neither GPM nor DCGM's profiling before the 50 series"
        )
        return FlopsSource(None, why, level=Level.NOTE)
    return FlopsSource(
        None,
        "no FLOPS: the driver refuses GPM for this GPU, and DCGM has no other source",
        "a newer driver may support it; confidential computing disables it (see nvidia-smi conf-compute -q)",
    )


def _dcgm_finding(name: str, sample: DeviceSample | None) -> CheckResult:
    if sample is None:
        return warning(
            "dcgm",
            f"no metrics of {name}",
            "let dcgm-exporter see all GPUs (-d f), or set dcgm.url to this node's",
        )
    if sample.missing_fields:
        return warning(
            "dcgm",
            f"{name}: does not export {', '.join(sample.missing_fields)}",
            "add them to dcgm-exporter's counters file (-f, DCGM_EXPORTER_COLLECTORS)",
        )
    return ok("dcgm", f"{name}: all fields that FLOPS need")
