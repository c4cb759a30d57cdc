"""The daemon's import graph: layers on top of each other, without cycles."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# From the bottom up, as in docs/architecture.md. The longest name that fits a module is its part; a
# part may import itself and all parts of the layers below, none beside it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("exporter.errors",),
    (
        "exporter.findings",
        "exporter.http_client",
        "exporter.logging_setup",
        "exporter.procfs",
        "exporter.readings",
    ),
    ("exporter.accounting",),
    (
        "exporter.attribution.settings",
        "exporter.attribution.snapshot",
        "exporter.collect.settings",
        "exporter.device_state",
        "exporter.inference.snapshot",
    ),
    ("exporter.state",),
    ("exporter.attribution", "exporter.collect", "exporter.inference"),
    ("exporter.advice",),
    ("exporter.advisor",),
    ("exporter.metrics",),
    ("exporter.config",),
    ("exporter.documentation", "exporter.web"),
    ("exporter.status",),
    ("exporter.early_start", "exporter.services"),
    ("exporter.app", "exporter.check", "exporter.simulate"),
    ("exporter.cli",),
    ("exporter.__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


@cache
def modules(package: str = "exporter") -> dict[str, Path]:
    """All modules of a package by name; packages are their `__init__`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of its own package that a module imports, wherever in its file."""
    known = modules(module.partition(".")[0])
    names: set[str] = set()
    for node in ast.walk(ast.parse(known[module].read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                names.add(name if name in known else node.module)
    return frozenset(name for name in names if name in known and name != module)


def part_of(module: str) -> str | None:
    """The part of the daemon that a module belongs to."""
    fitting = [part for part in LEVEL if f"{module}.".startswith(f"{part}.")]
    return max(fitting, key=len, default=None)


def test_every_module_has_its_layer() -> None:
    """A new part must be added to the list before it is used."""
    assert [name for name in modules() if part_of(name) is None and name != "exporter"] == []


@pytest.mark.parametrize("module", modules())
def test_nothing_imports_upwards(module: str) -> None:
    """A module imports its own part and the layers below, never one above or beside it."""
    own = part_of(module)
    upwards = [
        name
        for name in sorted(imported(module))
        if (part := part_of(name)) != own
        and own is not None
        and part is not None
        and LEVEL[part] >= LEVEL[own]
    ]

    assert upwards == []


@pytest.mark.parametrize("package", ["exporter", "flopwatch", "probes"])
def test_the_import_graph_has_no_circle(package: str) -> None:
    """No cycles within a part either: every module can be read before the modules that use it."""
    graph = {name: imported(name) for name in modules(package)}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports go round: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "name", ["DeviceState", "DeviceKey", "Exposition", "Family", "Finding", "Judgement", "Limits"]
)
def test_a_word_that_is_used_everywhere_has_one_meaning(name: str) -> None:
    """One class of that name in all packages."""
    found = [
        path
        for package in ("exporter", "flopwatch", "probes")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == name
    ]

    assert len(found) == 1, found


def test_the_daemon_loads_no_other_command() -> None:
    """`flopwatch serve` runs for months beside a server: it loads nothing of the other subcommands."""
    code = (
        "import sys\n"
        "from exporter.cli.main import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "import exporter.app\n"
        "print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = result.stdout.splitlines()[-1].split()

    assert "exporter.app" in loaded
    others = ("exporter.check", "exporter.simulate", "torch", "numpy", "rich", "difflib")
    assert [name for name in loaded if name.startswith(others)] == []
    # 15 MB that a host needs only with TLS, an engine, or a viewer of the status page.
    spared = {"ssl", "_hashlib", "http.client", "email", "html", "prometheus_client", "statistics"}
    assert spared & set(loaded) == set()
    assert {name for name in loaded if name.startswith("exporter.cli.")} == {
        "exporter.cli.main",
        "exporter.cli.daemon",
    }
