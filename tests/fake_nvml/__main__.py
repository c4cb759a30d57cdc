"""Runs a command on a simulated machine: `python -m tests.fake_nvml --gpus 8 -- nvitop-exporter --port 9400`.

The GPUs serve: each goes through prompts, token generation and pauses, out of step with the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import fake_nvml
from tests.fake_nvml import FakeNvml, GpuProfile, Load


_PROFILES = {
    name: value
    for name in fake_nvml.__all__
    if isinstance(value := getattr(fake_nvml, name), GpuProfile)
}
_CYCLE = (Load.prefill(), Load.decode(), Load.decode(), Load.decode(), Load.idle(72 << 30))
_STEP_SECONDS = 2.0


def main() -> int:
    """Run the command until it ends; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_nvml", description=__doc__)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--profile", choices=sorted(_PROFILES), default="H100")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    profile = _PROFILES[options.profile]
    with (
        tempfile.TemporaryDirectory() as directory,
        FakeNvml([profile] * options.gpus, Path(directory)) as fake,
        subprocess.Popen(options.command, env={**os.environ, **fake.env}) as command,
    ):
        step = 0
        try:
            while command.poll() is None:
                for gpu in fake.gpus:
                    gpu.set_load(profile.fit(_CYCLE[(step + gpu.slot) % len(_CYCLE)]))
                step += 1
                time.sleep(_STEP_SECONDS)
        except KeyboardInterrupt:
            command.terminate()
        return command.wait()


if __name__ == "__main__":
    sys.exit(main())
