"""What the machine has: `python -m benchmarks.gpu_acceptance_parts.survey INDEX`, answers as lines of JSON.

A separate process: a driver that hangs or crashes here affects nothing else. The first line has the
driver's answer, the second adds torch's: a cold import of torch can take a minute and more.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import msgspec

from benchmarks.gpu_acceptance_parts.context import Survey, log_to_stderr
from benchmarks.gpu_acceptance_parts.schema import Machine
from exporter import VERSION
from exporter.accounting.peaks import Peaks, find_peaks
from exporter.cli.probe import read_devices
from exporter.collect.nvml.identity import read_identity
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, NvmlError, call
from exporter.collect.nvml.reading import read_processes
from exporter.config.load import ConfigOrigin, load_config
from exporter.readings import DeviceIdentity
from probes.facts import DeviceFacts


def surveys(index: int) -> Iterator[Survey]:
    """The survey of the GPU with this NVML index, without torch and then with it."""
    versions = {"python": platform.python_version(), "flopwatch": VERSION}
    versions["nvidia-ml-py"] = _version_of("nvidia-ml-py")
    found = _driver_survey(index, versions)
    yield found
    no_cuda = _torch_obstacle(versions)
    machine = msgspec.structs.replace(found.machine, versions=versions)
    yield msgspec.structs.replace(found, machine=machine, no_cuda=no_cuda or found.no_gpu)


def _driver_survey(index: int, versions: dict[str, str]) -> Survey:
    library = DriverLibrary()
    try:
        library.open()
        handle = call("nvmlDeviceGetHandleByIndex", index)
        calls = DeviceCalls(handle, device=str(index))
        identity = read_identity(calls, index, library.driver_version())
        processes = read_processes(calls)["processes"] or ()
    except NvmlError as error:
        why = f"no GPU {index}: {error}"
        return Survey(
            Machine("unknown", "unknown", "unknown", None, versions), no_gpu=why, no_cuda=why
        )
    capability = identity.compute_capability
    machine = Machine(
        gpu=identity.name,
        driver=identity.driver_version or "unknown",
        compute_capability="unknown" if capability is None else ".".join(map(str, capability)),
        sm_count=identity.sm_count,
        versions=versions,
    )
    return Survey(machine, identity.uuid, in_use_by=len(processes))


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _torch_obstacle(versions: dict[str, str]) -> str:
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    versions["torch"] = str(torch.__version__)
    versions["cuda"] = str(torch.version.cuda)
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def identity_and_peaks(index: int) -> tuple[DeviceIdentity, Peaks]:
    """The GPU's identity and peaks. Raises NvmlError."""
    library = DriverLibrary()
    library.open()
    try:
        calls = DeviceCalls(call("nvmlDeviceGetHandleByIndex", index), device=str(index))
        identity = read_identity(calls, index, library.driver_version())
    finally:
        library.close()
    return identity, find_peaks(identity)


def facts_of(index: int, *, rehearsal: bool) -> DeviceFacts:
    """The facts that the daemon would give its probes; in a rehearsal the host processor's."""
    config = load_config(ConfigOrigin(environment={"FLOPWATCH_SOURCES_CPU": "on"}))
    devices = read_devices(config)
    kind = "cpu" if rehearsal else "cuda"
    for facts in devices:
        if facts.kind == kind and (rehearsal or facts.key == str(index)):
            return facts
    raise RuntimeError(f"the daemon's sampling shows no {kind} device for GPU {index}")


if __name__ == "__main__":
    log_to_stderr()
    for survey in surveys(int(sys.argv[1])):
        sys.stdout.buffer.write(msgspec.json.encode(survey) + b"\n")
        sys.stdout.buffer.flush()
