"""Questions that may hang or cost much, asked in processes that can be left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


# Time for an interpreter to start and end, beside the time that the question itself gets.
_MARGIN_SECONDS = 5.0

# Asks through NVML, not CUDA: a check must not make a context on a GPU that somebody serves from.
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
    """Lines of JSON that a process wrote; `late` if it had to be killed, `error` its last words."""

    documents: tuple[dict[str, Any], ...]
    late: bool = False
    error: str = ""


class Question:
    """A process that was asked and has not been heard yet."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self._seconds = seconds + _MARGIN_SECONDS
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and our own words
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    def answer(self) -> Answer:
        """Wait for it, but never longer than its time."""
        late = False
        try:
            output, errors = self._process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired as expired:
            late = True
            self._process.kill()  # in a driver call it dies when that returns; nobody waits for it
            output, errors = _text(expired.stdout), _text(expired.stderr)
        lines = errors.strip().splitlines()
        return Answer(tuple(_documents(output)), late, lines[-1] if lines else "")


def ask_driver(seconds: float) -> Question:
    """What the driver says of itself and its GPUs."""
    return Question(["-m", "exporter.check.driver", str(seconds)], seconds)


def ask_torch(seconds: float) -> Question:
    """Which torch the probes would use."""
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
