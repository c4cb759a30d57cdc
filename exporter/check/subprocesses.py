"""Queries that may hang or be expensive, run in subprocesses that can be abandoned.

`python -m exporter.check.subprocesses SECONDS` is the query of the driver. A driver call can hang
forever and cannot be interrupted. Every GPU therefore has its own thread there; when the time is
up, the process writes what is known and exits without waiting for any thread. The output is one
line of JSON for the driver, then one per GPU.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.accounting.peaks import find_peaks
from exporter.collect.gpm_windows import GpmWindows, open_together
from exporter.collect.nvml.gpm import GpmSession, instance_sessions
from exporter.collect.nvml.identity import list_instances, mig_enabled, read_identity, read_instance
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, NvmlError, call
from exporter.collect.nvml.reading import (
    SLOW_GROUPS,
    read_clock,
    read_fast,
    read_memory,
    unsupported_capabilities,
)
from exporter.logging_setup import set_up_logging


# Time for an interpreter to start and exit, on top of the time that the query itself gets.
_MARGIN_SECONDS = 5.0

# Uses NVML, not CUDA: a check must not create a CUDA context on a GPU that serves traffic.
_TORCH = """
import json, os
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
try:
    import torch
except Exception as error:
    print(json.dumps({"error": type(error).__name__ + ": " + str(error)[:200]}))
else:
    print(json.dumps({
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cuda_available": bool(torch.version.cuda) and torch.cuda.is_available(),
        "architectures": torch.cuda.get_arch_list() if torch.version.cuda else [],
    }))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """Lines of JSON from a process. `late`: it was killed. `error`: the end of its stderr."""

    documents: tuple[dict[str, Any], ...]
    late: bool = False
    error: str = ""


class Question:
    """A running process whose answer has not been read yet."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self._seconds = seconds + _MARGIN_SECONDS
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and arguments
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    def answer(self) -> Answer:
        """Wait for the answer, but never longer than the time allowed."""
        late = False
        try:
            output, errors = self._process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired as expired:
            late = True
            self._process.kill()  # dies when its driver call returns; do not wait for it
            output, errors = _text(expired.stdout), _text(expired.stderr)
        lines = errors.strip().splitlines()
        return Answer(tuple(_documents(output)), late, lines[-1] if lines else "")


def ask_driver(seconds: float) -> Question:
    """Query the driver about itself and its GPUs."""
    return Question(["-m", "exporter.check.subprocesses", str(seconds)], seconds)


def ask_torch(seconds: float) -> Question:
    """Query which torch the probes would use."""
    return Question(["-c", _TORCH], seconds)


def _documents(output: str) -> list[dict[str, Any]]:
    documents = []
    for line in output.splitlines():
        try:
            document = json.loads(line)
        except ValueError:
            continue  # a library's greeting, or a line cut off
        if isinstance(document, dict):
            documents.append(document)
    return documents


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


_VIRTUALIZATION = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}


def main() -> None:
    """Write the driver's answers within the number of seconds given as argument."""
    set_up_logging("error", "logfmt")
    deadline = time.monotonic() + float(sys.argv[1])
    driver: dict[str, Any] = {}
    library = DriverLibrary()
    asked = threading.Thread(target=_ask_driver, args=(library, driver), daemon=True)
    asked.start()
    asked.join(max(0.0, deadline - time.monotonic()))
    if asked.is_alive():
        driver["error"] = "hung"
    _write(driver)
    devices: list[dict[str, Any]] = [{"index": index} for index in range(driver.get("count", 0))]
    threads = [
        threading.Thread(target=_ask_device, args=(library, device), daemon=True)
        for device in devices
    ]
    for thread in threads:
        thread.start()
    for thread, device in zip(threads, devices, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        _write({**device, "error": "hung"} if thread.is_alive() else device)
    sys.stdout.flush()
    os._exit(0)


def _ask_driver(library: DriverLibrary, driver: dict[str, Any]) -> None:
    try:
        library.open()
        driver["driver_version"] = library.driver_version()
        driver["count"] = library.device_count()
    except NvmlError as error:
        driver["error"] = error.reason
        return
    for name, function in (
        ("nvml_version", "nvmlSystemGetNVMLVersion"),
        ("cuda_driver_version", "nvmlSystemGetCudaDriverVersion"),
    ):
        try:
            driver[name] = call(function)
        except NvmlError:
            driver[name] = None


def _ask_device(library: DriverLibrary, device: dict[str, Any]) -> None:
    try:
        _describe(library, device)
    except NvmlError as error:
        device["error"] = error.reason
    except Exception as fault:  # noqa: BLE001  an unexpected error must not cost the report
        device["error"] = "internal_error"
        device["fault"] = f"{type(fault).__name__}: {fault}"


def _describe(library: DriverLibrary, device: dict[str, Any]) -> None:
    calls = DeviceCalls(
        call("nvmlDeviceGetHandleByIndex", device["index"]), device=str(device["index"])
    )
    identity = read_identity(calls, device["index"], library.driver_version())
    peaks = find_peaks(identity)
    device.update(
        uuid=identity.uuid,
        name=identity.name,
        architecture=identity.architecture,
        compute_capability=identity.compute_capability,
        sm_count=identity.sm_count,
        peaks={
            "origin": peaks.origin,
            "model": peaks.model,
            "known": bool(peaks.flops),
            "rates": bool(peaks.tensor_rate or peaks.plain_rate),
            "doubt": peaks.doubt,
        },
        virtualization=_VIRTUALIZATION.get(calls.ask("nvmlDeviceGetVirtualizationMode")),
        memory=read_memory(calls),
        mig=mig_enabled(calls),
    )
    device["instances"] = _instances(calls, identity.sm_clock_max_hertz) if device["mig"] else []
    read_fast(calls, read_clock(calls, time.monotonic), traffic=True)
    for group in SLOW_GROUPS:
        slow = group(calls)
        if "compute_mode" in slow:
            device["compute_mode"] = slow["compute_mode"]
        if slow.get("processes") is not None:
            device["processes"] = len(slow["processes"])
    device["missing"] = list(unsupported_capabilities(calls))
    device["refused"] = dict(calls.errors)
    whole = GpmWindows(
        [GpmSession(calls.handle)],
        sm_count=identity.sm_count,
        max_hertz=identity.sm_clock_max_hertz,
        on_implausible=lambda _what: None,
    )
    device["gpm"] = _gpm(calls, [whole])[0]


def _instances(calls: DeviceCalls, max_hertz: float | None) -> list[dict[str, Any]]:
    """The MIG instances, each with whether GPM answers for it."""
    instances: list[dict[str, Any]] = []
    sources: list[GpmWindows] = []
    for listed in list_instances(calls):
        facts = read_instance(calls, listed.handle, listed.gpu_instance_id)
        instances.append(
            {"uuid": listed.uuid, "gpu_instance_id": listed.gpu_instance_id, **asdict(facts)}
        )
        source = GpmWindows(
            instance_sessions(calls.handle, listed.handle, listed.gpu_instance_id),
            sm_count=facts.sm_count,
            max_hertz=max_hertz,
            on_implausible=lambda _what: None,
            is_instance=True,
        )
        sources.append(source)
    answers = _gpm(calls, sources)
    return [{**each, "gpm": answer} for each, answer in zip(instances, answers, strict=True)]


def _gpm(calls: DeviceCalls, sources: Sequence[GpmWindows]) -> list[dict[str, str]]:
    """For each source the name of what answers, or the error."""
    failures = dict(
        open_together(sources, lambda: read_clock(calls, time.monotonic).sm_clock_hertz)
    )
    answers = []
    for source in sources:
        error = failures.get(source)
        answers.append({"source": source.name} if error is None else {"error": error.reason})
        if error is None:
            source.close()
    return answers


def _write(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
