"""Findings about the driver and its GPUs."""

import glob
import os
from collections.abc import Iterator, Mapping
from typing import Any

from exporter.check.flops import DcgmAnswer, FlopsSource, flops_source, instance_source
from exporter.check.report import CheckResult, Level
from exporter.check.subprocesses import Answer
from exporter.config.model import Config


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
        "driver library and kernel module are of different versions",
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
        "the driver does not return from a call",
        "see dmesg for Xid lines; a GPU reset or a reboot is needed",
    ),
    "gpu_is_lost": ("the GPU has fallen off the bus", "drain the node and reset or replace it"),
    "internal_error": (
        "flopwatch failed to process an answer of this GPU",
        "report it, with the output of flopwatch check --json",
    ),
    "reset_required": ("the GPU needs a reset", "drain the node: nvidia-smi --gpu-reset"),
}


def driver_findings(answer: Answer, config: Config) -> Iterator[CheckResult]:
    """The library and the driver behind it."""
    wanted = config.sampling.modes["nvml"] == "on"
    if config.sampling.modes["nvml"] == "off":
        yield CheckResult("driver", Level.NOTE, "turned off by sources.nvml")
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
        yield CheckResult(
            "driver", Level.NOTE, "no NVIDIA driver here: the host processor is monitored"
        )
        return
    yield CheckResult("driver", Level.FAILURE, text, remedy)
    yield from _permissions(Level.FAILURE, "nothing works without it")


def gpu_findings(answer: Answer, config: Config, dcgm: DcgmAnswer) -> Iterator[CheckResult]:
    """For each GPU: the product, the source of its FLOPS, and any obstacles."""
    for device in answer.documents[1:]:
        area = f"gpu {device['index']}"
        name = f"{device.get('name', 'unknown')}: "
        error = device.get("error")
        if error is not None:
            text, remedy = _ERRORS.get(error, (f"the driver reports {error}", "see dmesg"))
            yield CheckResult(area, Level.FAILURE, name + text, remedy)
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
        yield CheckResult(
            "configuration",
            Level.WARNING,
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
        return CheckResult(area, Level.WARNING, text)
    if source.name is not None:
        return CheckResult(area, Level.OK, f"{name}FLOPS from {source.name}")
    return CheckResult(area, source.level, name + source.why, source.remedy)


def _peculiarities(area: str, device: Mapping[str, Any], config: Config) -> Iterator[CheckResult]:
    peaks = device["peaks"]
    doubt = peaks.get("doubt") or "not in the table of models"
    if not peaks["known"] and not device.get("mig"):
        lost = "no ratios" if peaks.get("rates") else "no FLOPS and no ratios"
        remedy = "set sm_count, peaks and dram_bandwidth under gpus in the configuration"
        yield CheckResult(area, Level.WARNING, f"peak unknown: {lost} ({doubt})", remedy)
    elif peaks["origin"] == "derived":
        yield CheckResult(area, Level.NOTE, f"derived peak ({doubt})")
    if device["missing"]:
        yield CheckResult(
            area, Level.NOTE, f"the driver does not report {', '.join(device['missing'])}"
        )
    if device["refused"].get("no_permission"):
        yield CheckResult(
            area,
            Level.WARNING,
            "the driver refuses calls: no permission",
            "run as root, or see dmesg",
        )
    mode = device.get("compute_mode")
    if config.probes.enabled and mode not in (None, "default"):
        yield CheckResult(
            area,
            Level.WARNING,
            f"compute mode {mode}: "
            + (
                "neither CUDA programs nor probes can use the GPU"
                if mode == "prohibited"
                else "probes do not run while another process uses the GPU"
            ),
            "nvidia-smi --compute-mode=0, or probes.enabled: false",
        )
    free = device["memory"].get("memory_free_bytes")
    if not device["memory"]:
        yield CheckResult(area, Level.NOTE, "has no memory of its own (unified memory)")
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
        yield CheckResult(area, Level.NOTE, "not probed: probes.mig is skip")


def _device_nodes() -> list[str]:
    return [node for node in sorted(glob.glob("/dev/nvidia*")) if not os.path.isdir(node)]  # noqa: PTH112, PTH207  pathlib raises if access to a node is denied
