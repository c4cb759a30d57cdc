"""All levers: every `Lever` that a module of this package declares. No registration is needed."""

import importlib
import pkgutil

from exporter.advice.prediction import Lever


def _found() -> dict[str, Lever]:
    levers = (
        value
        for module in pkgutil.iter_modules(__path__)
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        if isinstance(value, Lever)
    )
    return {lever.name: lever for lever in sorted(levers, key=lambda lever: lever.name)}


LEVERS: dict[str, Lever] = _found()
