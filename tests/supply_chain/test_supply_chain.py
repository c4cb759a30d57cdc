"""What the container brings along: locked, listed, audited."""

import pytest

from deploy.supply_chain.audit import Verdict, judge
from deploy.supply_chain.licences import PAGE, licence
from deploy.supply_chain.locked import LOCKS, packages


def test_every_locked_package_has_hashes() -> None:
    """A lock without hashes trusts whatever the index serves."""
    for lock in LOCKS.values():
        text = lock.read_text()
        pinned = packages(lock)
        assert pinned
        for package in pinned:
            block = text.split(f"{package.name}=={package.version}", 1)[1].split("\n", 2)[1]
            assert "--hash=sha256:" in block, package


def test_the_page_of_licences_lists_what_is_locked() -> None:
    """A dependency that is added or moved to another version is listed, too."""
    text = PAGE.read_text()
    for lock in LOCKS.values():
        for package in packages(lock):
            assert f"| {package.name} | {package.version} |" in text, "licences.md is stale"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"license_expression": "MIT OR Apache-2.0", "license": "x"}, "MIT OR Apache-2.0"),
        (
            {"classifier": ["License :: OSI Approved :: BSD License", "Typing :: Typed"]},
            "BSD License",
        ),
        (
            {"classifier": ["License :: Other/Proprietary License"], "license": "NVIDIA"},
            "Other/Proprietary License (NVIDIA)",
        ),
        ({"license": "MIT"}, "MIT"),
        ({"license": "Copyright\nall of it"}, "not declared"),
        ({}, "not declared"),
    ],
)
def test_a_licence_is_what_the_package_declares(fields, expected: str) -> None:
    """The SPDX expression before classifiers before free text."""
    assert licence(fields) == expected


def test_an_audit_names_what_is_vulnerable_and_what_was_not_looked_up() -> None:
    """A package that the service does not know was not audited, and is not called safe."""
    document = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {
                "name": "bad",
                "version": "2",
                "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}],
            },
            {"name": "unknown", "skip_reason": "not found"},
        ]
    }

    assert judge(document) == Verdict(2, ("unknown",), ("bad 2: CVE-1, mended in 2.1",))
