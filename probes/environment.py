"""The worker's environment: its variables, without foreign settings, and torch."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flopwatch.state_file import IMAGE_VARIABLE


# Variables that an operator, a container image or a job script may have set for other programs, and
# that would change a kernel's speed, its bits or the worker's memory: TF32 for fp32
# (NVIDIA_TF32_OVERRIDE), launches that wait (CUDA_LAUNCH_BLOCKING), another allocator or workspace,
# emulation, a profiler, MPS.
FOREIGN_PREFIXES: Final = (
    "ATEN_",
    "CUBLAS",
    "CUDA_",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NVIDIA_TF32_",
    "OMP_",
    "ONEDNN_",
    "PYTORCH_",
    "TORCH_",
)
# Only file locations (the driver's cache of compiled kernels, the toolkit), and the variables
# without which an installation with two OpenMP libraries does not start.
KEPT: Final = (
    "CUDA_CACHE_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "KMP_DUPLICATE_LIB_OK",
    "MKL_THREADING_LAYER",
)
# The extra `probes` of pyproject.toml.
TORCH_REQUIREMENTS: Final = ("numpy>=1.26", "torch>=2.5,<3")


def worker_environment(
    devices: Sequence[str], threads: int, cores: Sequence[int] = ()
) -> dict[str, str]:
    """The worker's environment: with only `devices` (UUIDs; none for the CPU) visible.

    The daemon's environment, without variables that would change figures or bits. `cores` are the
    logical CPUs that its threads are bound to, one each; if empty, the scheduler places them.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(FOREIGN_PREFIXES)
    }
    root = str(Path(__file__).resolve().parent.parent)
    path = environment.get("PYTHONPATH")
    environment |= {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        # Loads only the kernels that run: 290 MB of context instead of 670 MB (pytorch#86509).
        "CUDA_MODULE_LOADING": "LAZY",
        # Never a client of the server's MPS: a fault in one client can take down the others.
        "CUDA_MPS_PIPE_DIRECTORY": "/dev/null",
        "OMP_NUM_THREADS": str(threads),
        "OMP_DYNAMIC": "false",
        # A thread that finishes early spins until the others are done, and sleeps after about a
        # millisecond.
        "GOMP_SPINCOUNT": "100000",
        "KMP_BLOCKTIME": "1",
        "MKL_NUM_THREADS": str(threads),
        "MKL_DYNAMIC": "FALSE",
        "PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if cores:
        # Two threads on one core wait for each other, which makes the machine look ten times
        # slower.
        places = ",".join(f"{{{core}}}" for core in cores)
        environment |= {"OMP_PROC_BIND": "close", "OMP_PLACES": places}
    return environment


def torch_is_installed() -> bool:
    """Whether torch is installed, without importing it."""
    try:
        return importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):
        # An entry in sys.modules that is not a module: the import is blocked.
        return False


def torch_remedy() -> str:
    """How to install torch in this environment."""
    if os.environ.get(IMAGE_VARIABLE):
        return "use the image that is built with --target full"
    wanted = " ".join(f"'{requirement}'" for requirement in TORCH_REQUIREMENTS)
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {sys.executable} {wanted}"
    return f"{sys.executable} -m pip install {wanted}"
