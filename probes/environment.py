"""The worker's environment variables: its devices, its threads, and no foreign settings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final


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
