"""All supported engines: every `Engine` that a module of this package declares. No registration is needed."""

import importlib
import pkgutil
from collections.abc import Collection
from pathlib import Path

from exporter.inference.reading import Engine


def _found() -> dict[str, Engine]:
    found = (
        value
        for module in pkgutil.iter_modules(__path__)
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        if isinstance(value, Engine)
    )
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


def identify(prefixes: Collection[str]) -> str | None:
    """Return the engine that exposes metrics with these prefixes, or None."""
    for engine in ENGINES.values():
        if engine.matches(prefixes) and (not engine.marker or engine.marker in prefixes):
            return engine.name
    return None


DOCUMENT = Path("docs/models.md")
_BEGIN, _END = "<!-- engines: make generate -->\n", "<!-- end of engines -->\n"


def table() -> str:
    """The engines in Markdown, by name."""
    lines = [
        "| `engine` | product | how to enable its metrics | default address | what it reports |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{engine.name}` | {engine.title} | {engine.enable} "
        f"| `:{engine.ports[0]}{engine.path}` | {engine.reports} |"
        for engine in sorted(ENGINES.values(), key=lambda engine: engine.name)
    ]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its markers."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + "\n" + table() + "\n" + _END + rest.partition(_END)[2]


def write_table() -> None:
    """Write the table in docs/models.md anew."""
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
