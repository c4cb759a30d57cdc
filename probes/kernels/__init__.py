"""The kernels, one module each or one per family; adding a file here adds its kernels.

A module offers `KERNELS`, a tuple of `Kernel`. Importing one does not import torch: that happens
inside the functions, which only the worker calls.
"""

import importlib
import pkgutil
from functools import cache

from probes.kernels.base import Kernel


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel by name, in the order of the modules' names."""
    found: dict[str, Kernel] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "base":
            continue
        for kernel in importlib.import_module(f"{__name__}.{module.name}").KERNELS:
            if kernel.name in found:
                raise RuntimeError(f"two kernels are called {kernel.name}")
            found[kernel.name] = kernel
    return found


def kernel_names() -> tuple[str, ...]:
    """The names a configuration may give."""
    return tuple(all_kernels())
