"""Queries that may hang or be expensive, run in subprocesses that can be abandoned."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
    return Question(["-m", "exporter.check.driver", str(seconds)], seconds)


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
