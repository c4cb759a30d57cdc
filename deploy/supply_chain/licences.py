"""Licences of everything in the container, as the packages themselves declare them.

    python -m deploy.supply_chain.licences --write    # docs/licences.md anew

What is installed is asked first; for the rest, the package index is.
"""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.supply_chain.locked import LOCKS, ROOT, Package, packages


PAGE = ROOT / "docs" / "licences.md"
_CLASSIFIER = "License :: "
_LONGEST_NAME = 60
# The lock files are valid for every Python from 3.11 on, and some packages have separate versions
# for some of them.
_NEWER_PYTHON = "3.13"

HEAD = """\
# Licences of dependencies

flopwatch itself is licensed under Apache-2.0. The table lists the packages that are installed with it, and the licences
that they declare. `slim` is the daemon, `full` adds torch and its CUDA libraries for the probes.
Written by `python -m deploy.supply_chain.licences --write`.

| package | version | licence | in |
| --- | --- | --- | --- |
"""


def licence(fields: Mapping[str, Any]) -> str:
    """The licence in a package's metadata: SPDX expression, else classifiers, else free text."""
    if fields.get("license_expression"):
        return str(fields["license_expression"])
    names = [
        classifier.rsplit(" :: ", 1)[-1]
        for classifier in fields.get("classifier") or []
        if classifier.startswith(_CLASSIFIER)
    ]
    text = str(fields.get("license") or "").strip()
    if names and names != ["Other/Proprietary License"]:
        return ", ".join(sorted(names))
    if text and "\n" not in text and len(text) <= _LONGEST_NAME:
        return f"{names[0]} ({text})" if names else text
    return names[0] if names else "not declared"


def declared(wanted: Sequence[Package]) -> dict[Package, str]:
    """The licence of each package."""
    found: dict[Package, str] = {}
    for package in wanted:
        try:
            fields = metadata.metadata(package.name)
        except metadata.PackageNotFoundError:
            continue
        if fields["Version"].partition("+")[0] == package.version:
            found[package] = licence(dict(fields.json))
    absent = [package for package in wanted if package not in found]
    return {**found, **_from_index(absent)}


def _from_index(wanted: Sequence[Package]) -> dict[Package, str]:
    """Ask the index for one package at a time: one that lacks this platform affects no other."""
    with tempfile.TemporaryDirectory() as folder:
        return {package: _asked(package, Path(folder)) for package in wanted}


def _asked(package: Package, folder: Path) -> str:
    """The licence in the package's file for this Python, else for a newer one."""
    report = folder / f"{package.name}-{package.version}.json"
    newer = ("--only-binary=:all:", f"--python-version={_NEWER_PYTHON}", f"--target={folder}")
    for platform in ((), newer):
        subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet",
                "--ignore-installed", "--report", str(report), *platform,
                f"{package.name}=={package.version}",
            ],
            capture_output=True,
            check=False,
        )  # fmt: skip
        if report.exists():
            (entry,) = json.loads(report.read_text())["install"]
            return licence(entry["metadata"])
    return "not found for this platform"


def page() -> str:
    """The whole page."""
    slim, full = set(packages(LOCKS["slim"])), set(packages(LOCKS["full"]))
    licences = declared(sorted(slim | full))
    lines = [
        f"| {package.name} | {package.version} | {licences[package]} |"
        f" {'slim, full' if package in slim else 'full'} |"
        for package in sorted(licences)
    ]
    return HEAD + "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain.licences")
    parser.add_argument("--write", action="store_true", help="write docs/licences.md")
    options = parser.parse_args(arguments)
    if options.write:
        PAGE.write_text(page())
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
