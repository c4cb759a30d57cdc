"""Known vulnerabilities of what the container is locked to: `python -m deploy.supply_chain.audit`.

Exit code 1 when there is one. Where the advisory service cannot be reached nothing was audited:
that is said, and is no failure unless --require is given.
"""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.supply_chain.locked import LOCKS, tool


_TIMEOUT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an audit ended: packages that were looked up, those that were not, and what was found."""

    audited: int
    unknown: tuple[str, ...]
    findings: tuple[str, ...]


def judge(document: Mapping[str, Any]) -> Verdict:
    """Read pip-audit's JSON."""
    audited = 0
    unknown: list[str] = []
    findings: list[str] = []
    for package in document["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        audited += 1
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            findings.append(
                f"{package['name']} {package['version']}: {found['id']}, mended in {fixed}"
            )
    return Verdict(audited, tuple(unknown), tuple(findings))


def audit(name: str) -> Verdict | None:
    """Audit one lock; None where the advisory service gave no answer."""
    command = [
        str(tool("pip-audit")), "--requirement", str(LOCKS[name]), "--disable-pip", "--require-hashes",
        "--progress-spinner", "off", "--format", "json",
    ]  # fmt: skip
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
        return judge(json.loads(result.stdout))
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit all locks and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain.audit")
    parser.add_argument("--require", action="store_true", help="fail when nothing could be audited")
    options = parser.parse_args(arguments)
    failed = False
    for name in LOCKS:
        verdict = audit(name)
        if verdict is None or not verdict.audited:
            print(
                f"{name}.txt: SKIPPED, the advisory service could not be reached: nothing audited"
            )
            failed |= options.require
            continue
        print(
            f"{name}.txt: {verdict.audited} packages audited, {len(verdict.findings)} vulnerabilities"
        )
        for line in verdict.findings:
            print(f"  {line}")
        if verdict.unknown:
            print(f"  not known to the service: {', '.join(verdict.unknown)}")
        failed |= bool(verdict.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
