"""Runs part of the acceptance in its own process on a fake driver: pynvml loads its library once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_acceptance_parts.recording import Recording, read
from tests.fake_nvml import FakeNvml


ROOT = Path(__file__).parents[2]


def record(fake: FakeNvml, user: str = "current") -> Recording:
    """The recorder's answer about GPU 0 of the fake."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_acceptance_parts.recorder", "--as", user],
        env={**os.environ, **fake.env},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return read(done.stdout)


def evaluate(fake: FakeNvml, expression: str) -> Any:
    """An expression of `trials` (the module) and `handle` (GPU 0), as JSON makes it."""
    code = (
        "import json, sys\n"
        "from dataclasses import asdict\n"
        "from benchmarks.gpu_acceptance_parts import gpm_trials as trials\n"
        "from exporter.collect.nvml.library import DriverLibrary, call\n"
        "DriverLibrary().open()\n"
        "handle = call('nvmlDeviceGetHandleByIndex', 0)\n"
        "print(json.dumps(eval(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, expression],
        env={**os.environ, **fake.env},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)
