"""Which part may import which: the walls that keep the daemon small and the GPU's server safe."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# Of the probes, the daemon may know what needs no torch.
PROBE_MODULES_FOR_THE_DAEMON = {
    "probes.clock",
    "probes.config",
    "probes.facts",
    "probes.protocol",
    "probes.records",
    "probes.service",
    "probes.state",
    "probes.supervisor",
    "probes.scheduler",
}


def imports(package: str) -> Iterator[tuple[Path, str]]:
    """Every module that a package's files import, wherever in the file."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module


def test_the_daemon_never_imports_torch() -> None:
    """Not even lazily: only the worker process pays for it, and only it touches CUDA."""
    assert [
        (path, name) for path, name in imports("exporter") if name.partition(".")[0] == "torch"
    ] == []


def test_probes_import_nothing_of_the_daemon() -> None:
    """The worker stands alone."""
    assert [
        (path, name) for path, name in imports("probes") if name.partition(".")[0] == "exporter"
    ] == []


def test_the_driver_library_is_called_from_one_package() -> None:
    """pynvml has one home, where its errors are translated once."""
    assert {
        path.parent.name for path, name in imports("exporter") if name.partition(".")[0] == "pynvml"
    } == {"nvml"}


def test_the_daemon_knows_only_the_light_side_of_the_probes() -> None:
    """Protocol and supervisor, no kernels and no worker."""
    known = {name for _path, name in imports("exporter") if name.partition(".")[0] == "probes"}

    assert known <= PROBE_MODULES_FOR_THE_DAEMON


@pytest.mark.parametrize("module", ["exporter.daemon", "exporter.cli.serve"])
def test_importing_the_daemon_loads_no_torch(module: str) -> None:
    """Said by the interpreter, not by reading the source."""
    code = f"import sys, {module}; print('torch' in sys.modules)"

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert result.stdout == "False\n"
