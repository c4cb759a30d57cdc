"""The workload process as the parts see it."""

import json
import os
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

from benchmarks.gpu_acceptance_parts.runner import ROOT


# A cold import of torch can take a minute.
START_SECONDS = 90.0
# What a request takes beyond the seconds of work: operands, loading code.
SLACK_SECONDS = 45.0


class TenantError(Exception):
    """The workload failed, died, or did not answer in time."""


class Tenant:
    """A process that works on the device on request. Use it as a context manager."""

    def __init__(self, device: str) -> None:
        self._command = [sys.executable, "-m", f"{__package__}.workload", device]
        self._buffer = b""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,  # into the part's log
            cwd=ROOT,
            env={**os.environ, "CUDA_MODULE_LOADING": "LAZY"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, request: str, **arguments: Any) -> None:
        """Start a request; `result` waits for it. Raises TenantError when the process is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([request, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise TenantError(f"the workload died ({self._process.wait()})") from None

    def result(self, timeout_seconds: float) -> Any:
        """The oldest request's answer. Raises TenantError."""
        line = self._line(time.monotonic() + timeout_seconds)
        answer = json.loads(line)
        if "error" in answer:
            raise TenantError(answer["error"])
        return answer["value"]

    def ask(self, request: str, **arguments: Any) -> Any:
        """Both at once. Raises TenantError."""
        self.begin(request, **arguments)
        work = sum(float(arguments.get(name, 0.0)) for name in ("seconds", "rest"))
        return self.result(work + SLACK_SECONDS)

    def open(self) -> dict[str, Any]:
        """Open the device. Raises TenantError."""
        self.begin("open")
        found: dict[str, Any] = self.result(START_SECONDS)
        return found

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TenantError("the workload did not answer in time")
                data = os.read(descriptor, 1 << 20)
                if not data:
                    raise TenantError(f"the workload died ({self._process.wait()})")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
