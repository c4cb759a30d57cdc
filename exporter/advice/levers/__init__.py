"""All levers: every module of this package that declares LEVER. No registration is needed."""

import importlib
import pkgutil

from exporter.advice.prediction import Lever


def _found() -> dict[str, Lever]:
    levers = [
        importlib.import_module(f"{__name__}.{module.name}").LEVER
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    ]
    return {lever.name: lever for lever in levers}


LEVERS: dict[str, Lever] = _found()
