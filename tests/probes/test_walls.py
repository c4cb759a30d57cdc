"""What may import what, proven in processes of their own."""

import json
import subprocess
import sys

import pytest


TORCH_FREE = (
    "probes",
    "probes.device_states",
    "probes.budget",
    "probes.config",
    "probes.environment",
    "probes.facts",
    "probes.gates",
    "probes.judgement",
    "probes.kernels",
    "probes.prober",
    "probes.protocol",
    "probes.records",
    "probes.schedule",
    "probes.scheduler",
    "probes.service",
    "probes.sizing",
    "probes.worker_pool",
    "probes.supervisor",
    "flopwatch.state_file",
    "flopwatch.threads",
)


def imported(code):
    """The modules in memory after running `code` in a fresh interpreter."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_daemons_side_is_torch_free(module):
    """Importing it loads neither torch nor anything of the exporter."""
    modules = imported(f"import {module}")

    assert module in modules
    assert "torch" not in modules
    assert not any(name.split(".")[0] in ("exporter", "pynvml") for name in modules)


def test_listing_the_kernels_is_torch_free():
    """The names for a configuration come without the 200 MB of torch."""
    modules = imported(
        "from probes.kernels import kernel_names; assert 'gemm_bf16' in kernel_names()"
    )

    assert "torch" not in modules


def test_the_worker_loads_nothing_of_the_exporter():
    """All modules of `probes`, those for the worker included."""
    modules = imported(
        "import importlib, pkgutil, probes\n"
        "for each in pkgutil.walk_packages(probes.__path__, 'probes.'):\n"
        "    importlib.import_module(each.name)"
    )

    assert {"probes.worker", "probes.cuda", "probes.kernels.gemm", "torch"} <= modules
    assert not any(name.split(".")[0] == "exporter" for name in modules)


def test_the_exporters_glue_is_torch_free():
    """The daemon's side of the wall."""
    modules = imported(
        "import exporter.services, exporter.metrics.probes, exporter.cli.probe,"
        " exporter.cli.calibrate"
    )

    assert "torch" not in modules
    for_the_worker = {"cuda", "device", "measure", "worker"}
    assert not {f"probes.{name}" for name in for_the_worker} & modules
