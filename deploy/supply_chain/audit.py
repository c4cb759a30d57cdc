"""Known vulnerabilities in the container's locked packages: `python -m deploy.supply_chain.audit`.

Exit code 1 when there is one. When the advisory service cannot be reached nothing is audited: this
is reported prominently, and is a failure only with --require. A release needs --require.
"""
# ruff: noqa: S603, T201  a command line that runs fixed tools

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.supply_chain.locked import LOCKS, ToolMissingError, tool


_TIMEOUT_SECONDS = 300
# Findings that do not affect this program, by id, each with the reason. They are reported but are
# not failures; remove one when a newer version fixes it.
ACCEPTED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an audit ended: packages that were looked up, those that were not, and what was found."""

    audited: int
    unknown: tuple[str, ...]
    findings: tuple[str, ...]
    accepted: tuple[str, ...] = ()


class NotAuditedError(Exception):
    """The advisory service gave no answer."""


def judge(document: Mapping[str, Any], accepted: Mapping[str, str] = ACCEPTED) -> Verdict:
    """Read pip-audit's JSON."""
    audited = 0
    unknown: list[str] = []
    findings: list[str] = []
    let_be: list[str] = []
    for package in document["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
            continue
        audited += 1
        for found in package["vulns"]:
            name = f"{package['name']} {package['version']}: {found['id']}"
            if found["id"] in accepted:
                let_be.append(f"{name}, accepted: {accepted[found['id']]}")
                continue
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            findings.append(f"{name}, mended in {fixed}")
    return Verdict(audited, tuple(unknown), tuple(findings), tuple(let_be))


def audit(name: str) -> Verdict:
    """Audit one lock. Raises NotAuditedError, ToolMissingError."""
    command = [
        str(tool("pip-audit")), "--requirement", str(LOCKS[name]), "--disable-pip", "--require-hashes",
        "--progress-spinner", "off", "--format", "json",
    ]  # fmt: skip
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotAuditedError(f"no answer within {_TIMEOUT_SECONDS} s") from None
    try:
        verdict = judge(json.loads(result.stdout))
    except (ValueError, KeyError, TypeError):
        words = result.stderr.strip().splitlines() or ["no reason given"]
        raise NotAuditedError(words[-1]) from None
    if not verdict.audited:
        raise NotAuditedError("the service knows none of the packages")
    return verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit all lock files and report the findings."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply_chain.audit")
    parser.add_argument("--require", action="store_true", help="fail when nothing could be audited")
    options = parser.parse_args(arguments)
    failed = False
    for name in LOCKS:
        try:
            verdict = audit(name)
        except (NotAuditedError, ToolMissingError) as error:
            print(f"WARNING: {name}.txt was NOT AUDITED for vulnerabilities: {error}")
            failed |= options.require
            continue
        print(
            f"{name}.txt: {verdict.audited} packages audited, {len(verdict.findings)} vulnerabilities"
        )
        for line in (*verdict.findings, *verdict.accepted):
            print(f"  {line}")
        if verdict.unknown:
            print(f"  not known to the service: {', '.join(verdict.unknown)}")
        failed |= bool(verdict.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
