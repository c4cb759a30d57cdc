"""The probe of `docs/how-to-add-a-probe.md`, added as described: one file, and no other change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
# The daemon's side, with a real worker: what there is, and one measurement.
DAEMON = """
import json
from probes.config import ProbeConfig
from probes.kernels import kernel_names
from probes.protocol import Device, Run
from probes.supervisor import WorkerProcess

worker = WorkerProcess((Device(kind="cpu", key="cpu0"),), (), ProbeConfig(chunk_deadline_seconds=5))
worker.start()
described = worker.describe(0)
report = worker.run(
    Run(identifier=1, kernel="read_device", device=0, allowance_seconds=0.5,
        max_chunk_seconds=0.001, gap_seconds=0.0, timed_runs=5)
)
worker.close()
print(json.dumps({
    "configured": "read_device" in kernel_names(),
    "described": [[k.name, k.quantity, k.label] for k in described.kernels],
    "bytes": report.result and report.result.work_per_run,
    "text": report.text,
}))
"""


def test_adding_a_probe_is_adding_one_file(tmp_path):
    """The page's example in a folder of its own: configured, described and measured, 4 MiB a run."""
    page = (ROOT / "docs" / "how-to-add-a-probe.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    shutil.copytree(ROOT / "probes", tmp_path / "probes")
    (tmp_path / "probes" / "kernels" / "read.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-P", "-c", DAEMON],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seen = json.loads(done.stdout)

    assert seen["configured"]
    assert ["read_device", "bandwidth", "read"] in seen["described"]
    assert seen["bytes"] == 4 * 2**20, seen["text"]
