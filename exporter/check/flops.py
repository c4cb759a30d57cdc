"""Where a GPU's FLOPS come from on this host; if there is no source, why, and the remedy.

GPM is available from Hopper on. On older GPUs, DCGM profiles only data-centre and professional
boards. From Hopper on DCGM reads GPM itself, so a dcgm-exporter has nothing that GPM refuses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.check.report import CheckResult, Level
from exporter.collect.dcgm.exposition import DcgmDevice, DeviceSample, parse
from exporter.config.model import Config
from exporter.http_client import ScrapeError, fetch


_TIMEOUT_SECONDS = 3.0
_HOPPER = (9, 0)
_CONSUMER = ("GeForce", "TITAN")
_DENIED = "no_permission"


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


def ask_dcgm(config: Config, gpus: Sequence[Mapping[str, Any]]) -> DcgmAnswer:
    """Scrape the dcgm-exporter once, if one of these GPUs can use it."""
    mode = config.sampling.modes["dcgm"]
    if mode == "off" or (mode == "auto" and not any(_may_use_dcgm(gpu, config) for gpu in gpus)):
        return DcgmAnswer()
    try:
        devices = parse(
            fetch(
                config.sampling.dcgm_url,
                timeout_seconds=_TIMEOUT_SECONDS,
                undecodable="replace",
            )
        )
    except ScrapeError as error:
        return DcgmAnswer(asked=True, error=str(error))
    if not devices and devices.malformed:
        fault = f"it answers with {devices.malformed} malformed lines and no samples"
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
            "look at its answer and its log"
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


def _is_profiled(gpu: Mapping[str, Any]) -> bool:
    """Whether DCGM can profile this GPU model without GPM."""
    capability = tuple(gpu.get("compute_capability") or ())
    consumer = any(word in gpu.get("name", "") for word in _CONSUMER)
    return (
        bool(capability)
        and capability < _HOPPER
        and not consumer
        and bool(gpu.get("memory"))
        and gpu.get("virtualization") != "vgpu"
    )


def _without_gpm(gpu: Mapping[str, Any], config: Config) -> FlopsSource:
    if gpu["gpm"]["error"] == _DENIED:
        return FlopsSource(
            None,
            "no permission to use GPM",
            "run as root, or run dcgm-exporter, see dcgm below",
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
    if not gpu.get("memory"):
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
        return CheckResult(
            "dcgm",
            Level.WARNING,
            f"no metrics of {name}",
            "let dcgm-exporter see all GPUs (-d f), or set dcgm.url to this node's",
        )
    if sample.missing_fields:
        return CheckResult(
            "dcgm",
            Level.WARNING,
            f"{name}: does not export {', '.join(sample.missing_fields)}",
            "add them to dcgm-exporter's counters file (-f, DCGM_EXPORTER_COLLECTORS)",
        )
    return CheckResult("dcgm", Level.OK, f"{name}: all fields that FLOPS need")
