"""A process that uses the real pynvml on the fake library, and answers one expression at a time.

pynvml loads its library once for the life of a process, so every test needs a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.fake_nvml.control import FakeNvml


class NvmlError(Exception):
    """The NVML return code of a failed expression."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML return code {code}")
        self.code = code


class Client:
    """`ask` evaluates an expression in the other process; `pynvml` and the functions of `pynvml_worker` are there."""

    def __init__(self, fake: FakeNvml, *, environment: dict[str, str] | None = None) -> None:
        worker = Path(__file__).with_name("pynvml_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(worker)],
            env={**os.environ, **fake.env, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def begin(self, expression: str) -> None:
        """Start an expression without waiting for its value."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression.replace("\n", " ") + "\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """The value of the oldest expression; raises NvmlError, and EOFError if the process died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise EOFError(f"the process ended with {self.process.returncode}")
        answer = json.loads(line)
        if "code" in answer:
            raise NvmlError(answer["code"])
        return answer["value"]

    def ask(self, expression: str) -> Any:
        """The value of an expression."""
        self.begin(expression)
        return self.result()

    def code(self, expression: str) -> int:
        """The NVML return code of an expression: 0 for success."""
        try:
            self.ask(expression)
        except NvmlError as error:
            return error.code
        return 0
