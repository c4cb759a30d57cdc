"""Records the daemon's calls on one GPU, with every answer, code and time.

    python -m benchmarks.gpu_acceptance_parts.recorder --gpu 0 --as nobody > recording.json

Privileges are given up before the driver is opened. Exit code 3: they could not be.
"""

import argparse
import ctypes
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pynvml

from benchmarks.gpu_acceptance_parts.call_recorder import CallRecorder
from benchmarks.gpu_acceptance_parts.context import log_to_stderr
from benchmarks.gpu_acceptance_parts.recording import FORMAT, Recording
from exporter.collect.nvml import gpm
from exporter.collect.nvml.identity import list_instances, read_identity
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, NvmlError, call
from exporter.collect.nvml.processes import ProcessUtilization
from exporter.collect.nvml.reading import SLOW_GROUPS, read_clock, read_fast


ROUNDS = 5
EXIT_NO_SUCH_USER = 3
# NVML asks for more than 100 ms between two samples.
_WINDOW_SECONDS = 0.15
_GPM_IDS = (*gpm.PERCENT_IDS, *gpm.RATE_IDS, *gpm.CYCLE_IDS)

User = Literal["current", "no-capabilities", "nobody"]
USERS: tuple[User, ...] = ("current", "no-capabilities", "nobody")

NOBODY = 65534
# linux/capability.h and linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--as", dest="user", choices=USERS, default="current")
    parsed = parser.parse_args(arguments)
    log_to_stderr()
    # Read first: afterwards the interpreter's own files may be unreadable.
    bindings = importlib.metadata.version("nvidia-ml-py")
    try:
        become(parsed.user)
    except OSError as error:
        print(f"cannot go on as {parsed.user}: {error.strerror}", file=sys.stderr)
        return EXIT_NO_SUCH_USER
    sys.stdout.buffer.write(msgspec.json.encode(record(parsed.gpu, parsed.user, bindings)))
    return 0


def record(index: int, user: User, bindings: str) -> Recording:
    """Make all of the daemon's calls several times and record them. Driver errors are never raised."""
    recorder = CallRecorder()
    recorder.install()
    library = DriverLibrary()
    speed: tuple[float | None, float | None] = (None, None)
    driver = None
    try:
        library.open()
        driver = library.driver_version()
        library.device_count()
        handle = call("nvmlDeviceGetHandleByIndex", index)
        for _ in range(ROUNDS):
            calls = DeviceCalls(handle, device=str(index))
            _read_all(calls, index, driver)
            speed = _read_gpm(handle, calls)
        _events(handle)
    except NvmlError:
        pass  # the recorder has its code
    library.close()
    return Recording(
        format=FORMAT,
        user=user,
        driver=driver or "unknown",
        nvidia_ml_py=bindings,
        calls=recorder.records(),
        fields=tuple(recorder.fields[key] for key in sorted(recorder.fields)),
        metrics=tuple(recorder.metrics[key] for key in sorted(recorder.metrics)),
        cycles_per_second=speed[0],
        sm_clock_hertz=speed[1],
    )


def _read_all(calls: DeviceCalls, index: int, driver: str | None) -> None:
    uuid = read_identity(calls, index, driver).uuid
    sample = read_clock(calls, time.monotonic)
    read_fast(calls, sample, traffic=True, utilization_of=ProcessUtilization())
    for group in SLOW_GROUPS:
        group(calls)
    list_instances(calls)
    # The calls that find a device again after a reload.
    _quietly(lambda: call("nvmlDeviceGetHandleByUUID", uuid))
    _quietly(lambda: call("nvmlDeviceGetIndex", calls.handle))


def _read_gpm(handle: Any, calls: DeviceCalls) -> tuple[float | None, float | None]:
    """Two windows, each metric alone and all together; the speed of the cycle counter and the clock."""
    session = gpm.GpmSession(handle)
    counts: list[tuple[float, float]] = []
    clock = None
    try:
        with gpm.gpm_lock():
            session.open()
            session.sample()
            for _ in range(2):
                time.sleep(_WINDOW_SECONDS)
                window = session.sample()
                values = session.metrics(_GPM_IDS)
                clock = read_clock(calls, time.monotonic).sm_clock_hertz
                if window is not None and gpm.SM_CYCLES_ELAPSED in values:
                    counts.append((window[1], values[gpm.SM_CYCLES_ELAPSED]))
    except NvmlError:
        return None, clock
    finally:
        session.close()
    if len(counts) < 2:
        return None, clock
    (begin, before), (end, after) = counts[-2:]
    return (after - before) / (end - begin), clock


def _events(handle: Any) -> None:
    events = call("nvmlEventSetCreate")
    kind = pynvml.nvmlEventTypeXidCriticalError
    _quietly(lambda: call("nvmlDeviceRegisterEvents", handle, kind, events))
    _quietly(lambda: call("nvmlEventSetWait", events, 1))
    call("nvmlEventSetFree", events)


def _quietly(ask: Callable[[], Any]) -> None:
    try:
        ask()
    except NvmlError:
        return  # its code is in the recording


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def become(user: User) -> None:
    """Continue as `user`, permanently. Raises OSError where that is refused."""
    if user == "nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if user != "current":
        drop_capabilities()


def drop_capabilities() -> None:
    """Empty all capability sets of this process, and let no program it starts gain any."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    empty = (_Sets * 2)()  # version 3 has two words a set
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(libc.capset(ctypes.byref(header), ctypes.byref(empty)))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main())
