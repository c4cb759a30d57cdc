"""The software bill of materials, CycloneDX JSON: `python -m deploy.supply_chain.sbom slim > sbom.json`."""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the bill."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain.sbom")
    parser.add_argument("lock", choices=sorted(LOCKS), nargs="?", default="full")
    options = parser.parse_args(arguments)
    try:
        document = bill(options.lock)
    except (ToolMissingError, subprocess.CalledProcessError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    json.dump(document, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
