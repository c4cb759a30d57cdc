"""Which part may import which: the walls that keep the daemon small and the GPU's server safe."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[2]


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


def test_importing_every_module_of_the_daemon_loads_no_torch() -> None:
    """Checked in the interpreter, not in the source; the parts of probes that it loads are light."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "exporter").rglob("*.py"))
        if path.name not in ("__main__.py", "__init__.py")
    ]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )

    result = subprocess.run(
        [sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert result.stdout == "[]\n"
