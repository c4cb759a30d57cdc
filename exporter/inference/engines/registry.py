"""All supported engines: every module of this package that defines ENGINE."""

import importlib
import pkgutil
from collections.abc import Collection

from exporter.inference import engines
from exporter.inference.reading import Engine


def _found() -> dict[str, Engine]:
    modules = (
        importlib.import_module(f"{engines.__name__}.{module.name}")
        for module in pkgutil.iter_modules(engines.__path__)
        if module.name not in {"registry", "table"}
    )
    found = [module.ENGINE for module in modules if hasattr(module, "ENGINE")]
    return {engine.name: engine for engine in sorted(found, key=lambda e: (e.rank, e.name))}


ENGINES: dict[str, Engine] = _found()
PREFIXES: tuple[str, ...] = tuple(
    dict.fromkeys(
        prefix
        for engine in ENGINES.values()
        for prefix in (*engine.prefixes, engine.marker)
        if prefix
    )
)


def speaks(engine: Engine, prefixes: Collection[str]) -> bool:
    """Whether `engine` exposes metrics with these prefixes."""
    return any(prefix in prefixes for prefix in engine.prefixes)


def identify(prefixes: Collection[str]) -> str | None:
    """Return the engine that exposes metrics with these prefixes, or None."""
    for engine in ENGINES.values():
        if speaks(engine, prefixes) and (not engine.marker or engine.marker in prefixes):
            return engine.name
    return None
