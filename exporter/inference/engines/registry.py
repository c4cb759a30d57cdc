"""All engines that we can read: every module of this package that has an ENGINE."""

import importlib
import pkgutil

from exporter.inference import engines
from exporter.inference.reading import Engine


def _found() -> dict[str, Engine]:
    modules = (
        importlib.import_module(f"{engines.__name__}.{module.name}")
        for module in pkgutil.iter_modules(engines.__path__)
        if module.name != "registry"
    )
    found = [module.ENGINE for module in modules if hasattr(module, "ENGINE")]
    return {engine.name: engine for engine in sorted(found, key=lambda e: (e.rank, e.name))}


ENGINES: dict[str, Engine] = _found()
PREFIXES: tuple[str, ...] = tuple(
    dict.fromkeys(prefix for engine in ENGINES.values() for prefix in engine.prefixes)
)
