"""The worker process: `python -m probes.worker <read fd> <write fd>`.

The only process that imports torch or touches CUDA. It answers one request at a time, and exits
when the daemon asks it to, closes its pipe, or dies.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from probes.kernels import all_kernels
from probes.protocol import (
    PROTOCOL_VERSION,
    Describe,
    Described,
    Device,
    Exit,
    Failure,
    FrameReader,
    FromWorker,
    Hello,
    Open,
    Run,
    ToWorker,
    decode_to_worker,
    encode,
)


if TYPE_CHECKING:  # these import torch
    from probes.device import ProbeDevice


PR_SET_PDEATHSIG: Final = 1
# Yield to the server's threads when the host is short of cores.
NICENESS: Final = 5
# The OOM killer ends this process first when the host or the container runs out of memory.
OOM_SCORE_ADJUSTMENT: Final = 1000
# Part of every baseline's versions: increment it when a kernel's operands or method change.
KERNELS_REVISION: Final = 2
TEXT_LENGTH_MAX: Final = 500
ENDED_BY_DAEMON: Final = 0


class Channel:
    """The two pipes, blocking."""

    def __init__(self, read_descriptor: int, write_descriptor: int) -> None:
        self._read = read_descriptor
        self._write = write_descriptor
        self._reader = FrameReader()

    def send(self, message: FromWorker) -> None:
        """Write a whole frame."""
        frame = memoryview(encode(message))
        while frame:
            frame = frame[os.write(self._write, frame) :]

    def receive(self) -> ToWorker | None:
        """The next request; None when the daemon has closed its end."""
        while (body := self._reader.next_body()) is None:
            data = os.read(self._read, 65536)
            if not data:
                return None
            self._reader.feed(data)
        return decode_to_worker(body)


class Devices:
    """The worker's devices and the kernels prepared on them."""

    def __init__(self, channel: Channel, request: Open) -> None:
        self._channel = channel
        self._request = request
        self._benches: dict[int, Any] = {}

    def describe(self, index: int) -> Described:
        """Open a device and determine which kernels it supports."""
        from probes.device import Allowance
        from probes.measure import Workbench

        spec = self._request.devices[index]
        allowance = Allowance(self._channel.send, float("inf"))
        bench = self._benches.get(index)
        device = self._opened(spec, index) if bench is None else bench.device
        device.select()
        found = [k.info for k in all_kernels().values() if k.available(device, allowance)]
        if bench is None:
            # Libraries and code are loaded by now: the memory left below the limit is known.
            device.settle()
            self._benches[index] = Workbench(device)
        device.arena.reset()
        return Described(
            device=index,
            kernels=tuple(found),
            versions=f"{device.versions()} kernels {KERNELS_REVISION}",
            units=device.units,
            memory_bytes=device.memory_bytes(),
            device_seconds=allowance.spent_seconds,
        )

    def _opened(self, spec: Device, ordinal: int) -> "ProbeDevice":
        """The device behind `spec`; `ordinal` counts the visible CUDA devices."""
        request = self._request
        if spec.kind == "cpu":
            from probes.cpu import CpuDevice

            return CpuDevice(spec, request.cpu_threads, request.cores)
        from probes.cuda import CudaDevice

        return CudaDevice(spec, ordinal, request.memory_limit_bytes)

    def run(self, request: Run) -> FromWorker:
        """Measure one kernel."""
        from probes.device import Allowance
        from probes.measure import measure

        kernel = all_kernels().get(request.kernel)
        bench = self._benches.get(request.device)
        if kernel is None or bench is None:
            return Failure(outcome="error", text=f"no {request.kernel} on device {request.device}")
        bench.device.select()
        allowance = Allowance(self._channel.send, request.allowance_seconds)
        return measure(bench, kernel, request, allowance)


def main(arguments: list[str]) -> int:
    """Serve requests until asked to exit; the exit status is for the log only."""
    _die_with_parent()
    _give_way()
    channel = Channel(int(arguments[0]), int(arguments[1]))
    request = channel.receive()
    if not isinstance(request, Open) or request.protocol != PROTOCOL_VERSION:
        return 1
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise  # torch is installed but broken: the last line on standard error says why
        channel.send(
            Failure(outcome="torch_missing", text=str(error)[:TEXT_LENGTH_MAX], fatal=True)
        )
        return 1
    torch.set_num_threads(request.cpu_threads)
    torch.set_grad_enabled(mode=False)
    devices = Devices(channel, request)
    channel.send(
        Hello(protocol=PROTOCOL_VERSION, pid=os.getpid(), torch_version=str(torch.__version__))
    )
    # A garbage collection within a chunk would be part of its time.
    gc.collect()
    gc.freeze()
    gc.disable()
    while (message := channel.receive()) is not None and not isinstance(message, Exit):
        answer = _guarded(devices, message)
        channel.send(answer)
        if isinstance(answer, Failure) and answer.fatal:
            return 1
        gc.collect()
    return ENDED_BY_DAEMON


def _guarded(devices: Devices, message: ToWorker) -> FromWorker:
    """The answer to a request, whatever happens."""
    from probes.device import AllowanceError, is_out_of_memory

    try:
        if isinstance(message, Describe):
            return devices.describe(message.device)
        if isinstance(message, Run):
            return devices.run(message)
        return Failure(outcome="error", text="unexpected request", fatal=True)
    except AllowanceError as error:
        return Failure(outcome="allowance", text=str(error))
    except Exception as error:  # noqa: BLE001 - the daemon must be informed, and the context may be lost
        # Out of memory can leave the context unusable as well: start a new process.
        return Failure(
            outcome="out_of_memory" if is_out_of_memory(error) else "error",
            text=_text(error),
            fatal=True,
        )


def _text(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:TEXT_LENGTH_MAX]


def _give_way() -> None:
    """Yield to the server: lowest priority for processor time, first to be killed without memory."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUSTMENT), encoding="ascii")
    with contextlib.suppress(OSError, ValueError):
        # A core dump would take gigabytes. The limit is one byte, because 0 does not apply to dumps
        # into a pipe.
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _die_with_parent() -> None:
    """Have the kernel kill this process when the daemon thread that started it ends."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(ENDED_BY_DAEMON)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(1)
