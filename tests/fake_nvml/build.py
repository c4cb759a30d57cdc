"""Compiles the fake driver library, once per version of its sources and of nvml.h."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from tests.fake_nvml.layout import c_header


SOURCE = Path(__file__).parent / "source"
LIBRARY = "libnvidia-ml.so.1"
COMPILER_FLAGS = (
    "-Wall", "-Wextra", "-Werror", "-O2", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread",
    "-D_POSIX_C_SOURCE=200809L", "-DNVML_NO_UNVERSIONED_FUNC_DEFS",
)  # fmt: skip

_PROTOTYPE = re.compile(r"nvmlReturn_t\s+DECLDIR\s+(nvml\w+)\s*\(([^)]*)\)\s*;")
_IMPLEMENTED = re.compile(r"^[A-Z]+\((nvml\w+)", re.MULTILINE)  # API(…), or a macro that makes one


class BuildError(RuntimeError):
    """The library cannot be built: no compiler, no nvml.h, or code that does not compile."""


def nvml_header() -> Path:
    """NVIDIA's own nvml.h, from the package nvidia-nvml-dev."""
    try:
        files = metadata.files("nvidia-nvml-dev") or []
    except metadata.PackageNotFoundError as error:
        raise BuildError("nvml.h is missing: install nvidia-nvml-dev") from error
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate()))
    raise BuildError("the package nvidia-nvml-dev holds no nvml.h")


def declared_functions(header: str) -> dict[str, str]:
    """Every function that nvml.h declares, with its parameters."""
    return {name: " ".join(parameters.split()) for name, parameters in _PROTOTYPE.findall(header)}


def stubs(declared: dict[str, str], implemented: set[str]) -> str:
    """C code for the functions not written by hand: counted, faultable, and not supported."""
    lines = ['#include "stub.h"', ""]
    for name, parameters in sorted(declared.items()):
        if name in implemented:
            continue
        if parameters.startswith("nvmlDevice_t"):
            lines.append(
                f"EXPORT int {name}(void *device) {{ return fake_stub(FN_{name}, 1, device); }}"
            )
        else:
            lines.append(f"EXPORT int {name}(void) {{ return fake_stub(FN_{name}, 0, 0); }}")
    return "\n".join([*lines, ""])


def function_names(directory: Path) -> dict[str, int]:
    """The number of each NVML function in the control block, from a built library's directory."""
    names = (directory / "functions.txt").read_text().split()
    return {name: number for number, name in enumerate(names)}


def layout_stamp(directory: Path) -> int:
    """What the library expects in `Control.layout`."""
    return int(directory.name[:16], 16)


def build(cache_dir: Path | None = None) -> Path:
    """Compile if needed; the directory holding libnvidia-ml.so.1, for LD_LIBRARY_PATH."""
    header_path = nvml_header()
    header = header_path.read_text()
    sources = sorted(SOURCE.glob("*.[ch]"))
    declared = declared_functions(header)
    implemented = set(_IMPLEMENTED.findall("\n".join(path.read_text() for path in sources)))
    functions = sorted(declared.keys() | implemented)
    generated = {"generated.h": c_header(functions), "stubs.c": stubs(declared, implemented)}

    digest = hashlib.sha256(header.encode())
    for text in (*(path.read_text() for path in sources), *generated.values(), *COMPILER_FLAGS):
        digest.update(text.encode())
    root = cache_dir or Path(tempfile.gettempdir()) / f"flopwatch-fake-nvml-{os.getuid()}"
    target = root / digest.hexdigest()[:32]
    if (target / LIBRARY).exists():
        return target

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as name:
        work = Path(name)
        for file, text in generated.items():
            (work / file).write_text(text)
        (work / "functions.txt").write_text("\n".join(functions) + "\n")
        _compile(work, sources, header_path.parent, layout_stamp(target))
        copy = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copytree(work, copy)
        try:
            copy.rename(target)
        except OSError:  # another process was faster; its result is the same
            shutil.rmtree(copy)
    return target


def _compile(work: Path, sources: list[Path], include: Path, stamp: int) -> None:
    command = [
        os.environ.get("CC", "gcc"), *COMPILER_FLAGS, f"-DLAYOUT_STAMP=UINT64_C({stamp})",
        f"-I{work}", f"-I{SOURCE}", f"-isystem{include}",
        *(str(path) for path in sources if path.suffix == ".c"), str(work / "stubs.c"),
        "-o", str(work / LIBRARY), f"-Wl,-soname,{LIBRARY}", "-lm",
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"no C compiler: {error}") from error
    if result.returncode:
        raise BuildError(result.stderr)
