"""The software bill of materials, CycloneDX JSON, of installed or of locked packages.

    python -m deploy.supply_chain.sbom --root FOLDER     of an unpacked image or package
    python -m deploy.supply_chain.sbom slim              of a lock, with the hashes of its files

A folder's bill lists each Python distribution and each Debian package in it, with versions and licences.
"""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.supply_chain.licences import licence
from deploy.supply_chain.locked import LOCKS, ROOT, ToolMissingError, tool


def bill(name: str) -> dict[str, Any]:
    """The bill of one lock; the same lock gives the same bill."""
    result = subprocess.run(
        [
            str(tool("cyclonedx-py")), "requirements", str(LOCKS[name]),
            "--pyproject", str(ROOT / "pyproject.toml"),
            "--output-reproducible", "--of", "JSON",
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    document: dict[str, Any] = json.loads(result.stdout)
    for component in document["components"]:
        component.pop("description", None)  # the requirement's line with every hash, once more
    return document


def inventory(root: Path, name: str) -> dict[str, Any]:
    """The bill of a folder that stands for `/`; the same content gives the same bill."""
    components = [*_distributions(root), *_debian_packages(root)]
    unique = {component["purl"]: component for component in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": name, "bom-ref": name}},
        "components": [unique[purl] for purl in sorted(unique)],
    }


def _distributions(root: Path) -> Iterator[dict[str, Any]]:
    for metadata in sorted(root.rglob("*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(metadata.read_text("utf-8", "replace"))
        name, version = str(fields["Name"]), str(fields["Version"])
        declared = {
            "license_expression": fields["License-Expression"],
            "classifier": fields.get_all("Classifier") or [],
            "license": fields["License"],
        }
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "bom-ref": f"pypi/{name}/{version}",
            "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version)}",
            "licenses": [{"license": {"name": licence(declared)}}],
        }


def _debian_packages(root: Path) -> Iterator[dict[str, Any]]:
    status = root / "var/lib/dpkg/status"
    if not status.is_file():
        return
    for paragraph in status.read_text("utf-8", "replace").split("\n\n"):
        fields = HeaderParser().parsestr(paragraph)
        if "installed" not in str(fields["Status"]).split():
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        yield {
            "type": "library",
            "name": str(name),
            "version": str(version),
            "bom-ref": f"deb/{name}/{version}/{architecture}",
            "purl": f"pkg:deb/debian/{name}@{quote(str(version))}?arch={architecture}",
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bill."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain.sbom")
    parser.add_argument("lock", choices=sorted(LOCKS), nargs="?", default="full")
    parser.add_argument("--root", type=Path, help="an unpacked image or package, instead of a lock")
    options = parser.parse_args(arguments)
    try:
        if options.root is not None:
            document = inventory(options.root, options.root.name)
        else:
            document = bill(options.lock)
    except (ToolMissingError, subprocess.CalledProcessError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    json.dump(document, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
