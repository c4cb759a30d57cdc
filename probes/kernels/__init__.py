"""The kernels, one module per kernel or family; adding a file here adds its kernels.

A module offers `KERNELS`, a tuple of `Kernel`. Importing one does not import torch: that happens
inside the functions, which only the worker calls.
"""

import importlib
import pkgutil
from functools import cache

from probes.kernels.base import Kernel
from probes.protocol import Quantity


_TURNS: dict[Quantity, int] = {"latency": 0, "flops": 1, "bandwidth": 2}


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel by name, in the order in which they run."""
    found: dict[str, Kernel] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "base":
            continue
        for kernel in importlib.import_module(f"{__name__}.{module.name}").KERNELS:
            if kernel.name in found:
                raise RuntimeError(f"two kernels are called {kernel.name}")
            found[kernel.name] = kernel
    # Cheap kernels first, then the most wanted ones: on a small budget the rest comes later.
    return dict(sorted(found.items(), key=lambda item: _TURNS[item[1].quantity]))


def kernel_names() -> tuple[str, ...]:
    """The kernel names allowed in a configuration."""
    return tuple(all_kernels())
