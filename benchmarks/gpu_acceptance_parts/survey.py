"""What the machine has: `python -m benchmarks.gpu_acceptance_parts.survey INDEX`, answers as lines of JSON.

A separate process: a driver that hangs or crashes here affects nothing else. The first line has the
driver's answer, the second adds torch's: a cold import of torch can take a minute and more.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import msgspec

from benchmarks.gpu_acceptance_parts.context import Survey
from benchmarks.gpu_acceptance_parts.logs import log_to_stderr
from benchmarks.gpu_acceptance_parts.schema import Machine
from exporter.collect.nvml.errors import NvmlError
from exporter.collect.nvml.identity import read_identity
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, call
from exporter.collect.nvml.reading import read_processes
from exporter.version import VERSION


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


if __name__ == "__main__":
    log_to_stderr()
    for survey in surveys(int(sys.argv[1])):
        sys.stdout.buffer.write(msgspec.json.encode(survey) + b"\n")
        sys.stdout.buffer.flush()
