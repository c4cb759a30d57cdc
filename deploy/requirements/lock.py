"""Regenerate the locked requirements: `python deploy/requirements/lock.py [UV OPTIONS]`.

Needs uv. slim.txt is what the daemon needs, full.txt adds the probes' torch, build.txt is what builds
the wheel; all with the hashes of every file of each version, for all platforms with Python 3.11.
`--upgrade` takes the newest versions that pyproject.toml and constraints.txt allow.
"""
# ruff: noqa: INP001  a script, not a package

import os
import subprocess
import sys
import tomllib
from pathlib import Path


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HEADER = """\
# Locked by `python deploy/requirements/lock.py`. Do not edit.
# Install with: pip install --require-hashes --no-deps -r {name}
"""


def main(options: list[str]) -> int:
    """Lock all three sets."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    _lock("slim", options, "pyproject.toml")
    _lock("full", options, "pyproject.toml", "--extra=probes")
    _lock("build", options, "-", given="\n".join(build))
    return 0


def _lock(name: str, options: list[str], *arguments: str, given: str = "") -> None:
    target = HERE / f"{name}.txt"
    command = [
        "uv", "pip", "compile", *arguments, "--constraint=constraints.txt", "--universal",
        "--python-version=3.11", "--generate-hashes", "--no-header", "--no-annotate",
        "--no-emit-index-url", "--quiet", f"--output-file={target}", *options,
    ]  # fmt: skip
    # The pip configuration of this machine must not get into the lock files.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    subprocess.run(  # noqa: S603  arguments are our own
        command, check=True, cwd=ROOT, input=given, text=True, env=environment
    )
    target.write_text(HEADER.format(name=target.name) + target.read_text())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
