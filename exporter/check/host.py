"""Findings about the host around the GPUs: sockets, files, clocks, other services."""

import contextlib
import ctypes
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.accounting.processor import PerfUnavailableError
from exporter.attribution.pod_resources import list_allocations
from exporter.check import CheckResult, Level, failure, note, ok, warning
from exporter.check.subprocesses import Answer
from exporter.collect.cpu import LinuxKernel, PerfCounters
from exporter.config.model import Config, parse_listen_address
from exporter.errors import HolderSourceError, ListenError, Reason, ScrapeError
from exporter.http_client import fetch
from exporter.inference.engines import ENGINES, PREFIXES, identify
from exporter.inference.reading import parse
from exporter.web.connections import open_listener
from flopwatch.processor import read_processor
from flopwatch.state_file import state_remedy, usable_state_path
from probes.environment import torch_remedy


_TIMEOUT_SECONDS = 3.0
# adjtimex(2): the return value for a clock that is not synchronized.
_TIME_ERROR = 5
_TIMEX_BYTES = 256  # struct timex is 208 bytes on 64-bit Linux
# Longs before `maxerror`: modes (padded), offset, freq. In microseconds.
_TIMEX_MAXERROR = struct.Struct("@lll l")
# torch.cuda.get_arch_list: sm_80, sm_90a, compute_120.
_BUILT = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)[af]?")
# The size of a state file for sixteen GPUs.
_STATE_TRIAL_BYTES = 64 * 1024
# Scrapes are at least a second apart: a larger clock error makes timestamps misleading.
_CLOCK_ERROR_SECONDS = 1.0


def port_findings(config: Config) -> Iterator[CheckResult]:
    """Whether the daemon could listen, or already does."""
    with contextlib.ExitStack() as listening:
        for address in config.web.listen_address:
            try:
                # Kept open until the end, so that an address given twice is found in use the second
                # time.
                listening.enter_context(open_listener(address, 1))
            except ListenError as error:
                host, port = parse_listen_address(address)
                if _is_flopwatch(host, port):
                    yield ok("port", f"{address}: flopwatch is already listening")
                else:
                    yield failure("port", str(error), "choose another address")
            else:
                yield ok("port", f"{address} is free")


def state_findings(config: Config) -> Iterator[CheckResult]:
    """Where baselines and calibration will be kept."""
    path = config.state_file
    obstacle = _obstacle(path)
    if obstacle is None:
        yield ok("state file", str(path))
        return
    other = usable_state_path(path)  # the user's path, if the default folder is not writable
    if other != path and _obstacle(other) is None:
        yield note("state file", f"{path}: {obstacle}; {other} is used")
        return
    if other != path:
        obstacle = f"{obstacle}; {other}: {_obstacle(other)}"
    yield warning(
        "state file",
        f"{path}: {obstacle}: baselines are lost when the process ends",
        state_remedy(),
    )


def _obstacle(path: Path) -> str | None:
    """Why a state file cannot be written there, or None if it can. May create folders."""
    if os.path.isdir(path):  # noqa: PTH112  pathlib raises if access is denied
        return "is a folder"
    folder = path.parent
    while not os.path.isdir(folder) and folder != folder.parent:  # noqa: PTH112
        folder = folder.parent
    try:
        # Only a written byte proves that the disk has space: a full disk still allows empty files.
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(_STATE_TRIAL_BYTES))
    except OSError as error:
        return f"{folder} cannot be written: {(error.strerror or str(error)).lower()}"
    return None


def engine_findings(config: Config) -> Iterator[CheckResult]:
    """Whether the configured inference engines answer."""
    for workload in config.workloads:
        try:
            text = fetch(
                workload.url, timeout_seconds=min(workload.timeout_seconds, _TIMEOUT_SECONDS)
            )
        except ScrapeError as error:
            hint = "start it" if error.reason is Reason.CONNECTION else "check workloads.url"
            yield warning(f"engine {workload.name}", f"{workload.url}: {error}", hint)
        else:
            yield _answer_finding(workload.name, workload.engine, workload.url, text)


def _answer_finding(name: str, engine: str, url: str, text: str) -> CheckResult:
    """Whether the engine that answers is the configured one."""
    prefixes = parse(text, (), PREFIXES).prefixes
    configured = ENGINES[engine]
    if configured.matches(prefixes) or (configured.silent_at_start and not text.strip()):
        return ok(f"engine {name}", f"{url} answers")
    found = identify(prefixes)
    hint = f"set workloads.engine to {found}" if found else "check workloads.url"
    who = f"metrics of {found}" if found else "no inference engine's metrics"
    return warning(f"engine {name}", f"{url}: {who}, not {engine}'s", hint)


def kubernetes_findings(config: Config) -> Iterator[CheckResult]:
    """Whether the kubelet reports which pods hold the GPUs."""
    if config.holders.pod_resources == "off":
        return
    socket = Path(config.holders.socket)
    try:
        socket.stat()
    except PermissionError:
        yield CheckResult(
            "kubernetes",
            Level.FAILURE if config.holders.pod_resources == "on" else Level.WARNING,
            f"{socket}: permission denied: pods are not named",
            "run as root, or kubernetes.pod_resources: off",
        )
        return
    except OSError:
        if config.holders.pod_resources == "on":
            yield failure("kubernetes", f"{socket} does not exist", "mount it into the pod")
        else:
            yield note("kubernetes", f"no kubelet on this host ({socket})")
        return
    try:
        allocations = list_allocations(socket, _TIMEOUT_SECONDS)
    except (HolderSourceError, OSError) as error:
        yield warning("kubernetes", f"{socket}: {error}", "run as root, or mount the socket")
    else:
        yield ok("kubernetes", f"{socket}: {len(allocations)} GPU allocation(s)")


def clock_findings() -> Iterator[CheckResult]:
    """Whether the clock is synchronized: a drifting host exports misleading timestamps."""
    found = _clock()
    if found is None:
        return
    status, error_seconds = found
    if status == _TIME_ERROR:
        yield warning(
            "clock",
            f"not synchronized ({time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())})",
            "run chrony or systemd-timesyncd",
        )
    elif error_seconds > _CLOCK_ERROR_SECONDS:
        yield warning(
            "clock",
            f"synchronized, but may be {error_seconds:.1f} s off",
            "see chronyc tracking, or timedatectl timesync-status",
        )
    else:
        yield ok("clock", f"synchronized, at most {error_seconds * 1e3:.3g} ms off")


def perf_findings(
    config: Config, gpus: Sequence[Mapping[str, Any]], kernel: LinuxKernel | None = None
) -> Iterator[CheckResult]:
    """Whether the CPU's own operation counters can be read, if CPU monitoring is on."""
    modes = config.sampling.modes
    if modes["perf"] == "off" or modes["cpu"] == "off" or (gpus and modes["cpu"] != "on"):
        return
    try:
        PerfCounters(read_processor(), kernel or LinuxKernel()).close()
    except PerfUnavailableError as error:
        level = Level.WARNING if modes["perf"] == "on" else Level.NOTE
        yield CheckResult(
            "perf", level, f"the processor's FLOP are not counted: {error}", error.remedy
        )
    else:
        yield ok("perf", "the processor's FLOP are counted")


def probe_findings(
    answer: Answer,
    config: Config,
    gpus: Sequence[Mapping[str, Any]],
    driver: Mapping[str, Any] | None = None,
) -> Iterator[CheckResult]:
    """Whether torch is installed for the probes and can use these GPUs."""
    if not config.probes.enabled:
        yield note("probes", "turned off by probes.enabled")
        return
    pause = config.probes.pause_file
    if pause is not None and os.path.exists(pause):  # noqa: PTH110  pathlib raises if access is denied
        yield note("probes", f"paused: {pause} exists")
    torch = answer.documents[-1] if answer.documents else {"error": answer.error or "no answer"}
    if "error" in torch:
        text = "torch took too long to load" if answer.late else f"no torch: {torch['error']}"
        yield warning("probes", text, f"{torch_remedy()}, or probes.enabled: false")
    elif gpus and not torch["cuda_available"]:
        built = f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
        yield warning(
            "probes",
            f"torch {torch['version']}, {built}, finds no GPU",
            "install a torch build for a CUDA version that the driver supports",
        )
    else:
        cuda = f", CUDA {torch['cuda']}" if torch["cuda"] else ""
        yield ok("probes", f"torch {torch['version']}{cuda}")
        yield from _newer_cuda(torch, driver or {})
        yield from _foreign_gpus(torch, gpus)


def _newer_cuda(torch: Mapping[str, Any], driver: Mapping[str, Any]) -> Iterator[CheckResult]:
    """A finding if torch is built for a newer CUDA major version than the driver's.

    Within a major version every torch runs on every driver (CUDA Compatibility Guide, minor version
    compatibility).
    """
    built, runs = torch["cuda"], driver.get("cuda_driver_version")
    if not built or not runs or int(built.partition(".")[0]) <= runs // 1000:
        return
    yield warning(
        "probes",
        f"torch is built for CUDA {built}, the driver runs CUDA {runs // 1000}.{runs % 1000 // 10}",
        f"update the driver, or install a torch built for CUDA {runs // 1000}",
    )


def _foreign_gpus(
    torch: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]]
) -> Iterator[CheckResult]:
    """GPUs for which the installed torch has no code."""
    built = [match for name in torch.get("architectures", ()) if (match := _BUILT.fullmatch(name))]
    if not built:
        return
    for gpu in gpus:
        major, minor = gpu.get("compute_capability") or (0, 0)
        # Machine code for 8.0 also runs on 8.6, but on no other major version. PTX runs on all
        # newer ones.
        usable = any(
            (int(match["major"]), int(match["minor"])) <= (major, minor)
            and (match["kind"] == "compute" or int(match["major"]) == major)
            for match in built
        )
        if major and not usable:
            yield warning(
                "probes",
                f"this torch has no code for GPU {gpu['index']} (compute capability {major}.{minor})",
                "install a torch that is built for it",
            )


def _is_flopwatch(host: str, port: int) -> bool:
    """Whether a flopwatch answers there; one behind TLS or a password is not recognized."""
    name = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104  compared, not bound
    try:
        text = fetch(f"http://{name}:{port}/metrics", timeout_seconds=_TIMEOUT_SECONDS)
    except ScrapeError:
        return False
    return "flopwatch_build_info" in text


def _clock() -> tuple[int, float] | None:
    """The kernel's clock state and its maximum error in seconds; None if the call fails."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    # All zeros: modes 0 changes nothing.
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    status = int(adjtimex(timex))
    if status < 0:
        return None
    microseconds = _TIMEX_MAXERROR.unpack_from(timex.raw)[-1]
    return status, microseconds / 1e6
