"""The container's dependencies: locked, listed, audited."""

from pathlib import Path

import pytest

from deploy.supply_chain import audit
from deploy.supply_chain.audit import Verdict, judge
from deploy.supply_chain.licences import PAGE, licence
from deploy.supply_chain.locked import LOCKS, ROOT, ToolMissingError, packages
from deploy.supply_chain.sbom import bill, inventory


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
    """A dependency that is added or changes its version is listed, too."""
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
    """A package unknown to the service was not audited, and is not reported as safe."""
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


def test_a_finding_that_was_accepted_fails_nothing() -> None:
    """It is listed with the reason why it does not affect this program."""
    vulnerable = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": []}]}

    assert judge({"dependencies": [vulnerable]}, {"CVE-1": "Windows only"}) == Verdict(
        1, (), (), ("bad 2: CVE-1, accepted: Windows only",)
    )


class Service:
    """pip-audit as the test wants it: a program that prints, complains, and ends."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._program = folder / "pip-audit"
        monkeypatch.setattr(audit, "tool", lambda _name: self._program)

    def answers(self, document: str, complaint: str = "", code: int = 0) -> None:
        self._program.write_text(
            f"#!/bin/sh\ncat <<'END'\n{document}\nEND\necho '{complaint}' >&2\nexit {code}\n"
        )
        self._program.chmod(0o755)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """In place of pip-audit."""
    return Service(tmp_path, monkeypatch)


GOOD = '{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}'
BAD = (
    '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}'
)
UNKNOWN = '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}'


def test_a_vulnerability_fails_the_check(service: Service, capsys) -> None:
    """And it is named."""
    service.answers(BAD, code=1)

    assert audit.main([]) == 1
    assert "a 1: X, mended in no version yet" in capsys.readouterr().out


def test_everything_is_healthy(service: Service, capsys) -> None:
    """The number of packages, nothing found."""
    service.answers(GOOD)

    assert audit.main(["--require"]) == 0
    assert "slim.txt: 1 packages audited, 0 vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("document", "why"),
    [("", "Name or service not known"), (UNKNOWN, "knows none of the packages")],
)
def test_a_service_out_of_reach_is_said_and_fails_only_a_release(
    service: Service, capsys, document: str, why: str
) -> None:
    """A check without network must not fail, and must not look like an audit."""
    service.answers(document, "Name or service not known", code=1)

    assert audit.main([]) == 0
    said = capsys.readouterr().out
    assert said.count("WARNING") == len(LOCKS)
    assert "NOT AUDITED" in said
    assert why in said
    assert audit.main(["--require"]) == 1


def test_the_check_that_runs_everywhere_audits() -> None:
    """`make test`, which is what CI runs, ends with the audit."""
    recipe = (ROOT / "Makefile").read_text().split("\ntest: ", 1)[1].split("\n\n", 1)[0]

    assert "deploy.supply_chain.audit" in recipe
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


def test_the_bill_of_materials_lists_what_is_locked() -> None:
    """Every package with its version, its address in the index and its hashes."""
    try:
        document = bill("slim")
    except ToolMissingError as error:
        pytest.skip(str(error))
    components = {(entry["name"], entry["version"]): entry for entry in document["components"]}

    assert set(components) == {
        (package.name, package.version) for package in packages(LOCKS["slim"])
    }
    for (name, version), entry in components.items():
        assert entry["purl"].startswith(f"pkg:pypi/{name}@{version}")
        hashes = [h for reference in entry["externalReferences"] for h in reference["hashes"]]
        assert hashes
        assert {h["alg"] for h in hashes} == {"SHA-256"}


def test_the_bill_of_a_folder_lists_python_and_debian_packages(tmp_path: Path) -> None:
    """The installed packages with versions: not those of a lock file, nor those removed again."""
    metadata = tmp_path / "opt/x/site-packages/Some_Thing-1.2.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: Some_Thing\nVersion: 1.2\nLicense-Expression: MIT\n\nText\n")
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u10\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )

    assert [
        (each["purl"], each.get("licenses")) for each in inventory(tmp_path, "x")["components"]
    ] == [
        ("pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64", None),
        ("pkg:pypi/some-thing@1.2", [{"license": {"name": "MIT"}}]),
    ]
