"""docs/faults.md: everything that it cites as proof is one."""

import re
from pathlib import Path

from exporter.metrics.catalogue import BY_NAME


ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "faults.md").read_text()


def test_every_proof_exists() -> None:
    """Each file and test that the page names exists, and slow ones are marked as slow."""
    proofs = re.findall(r"`([a-z_/]+\.py)`: ((?:`test_\w+`(?: \([^)]*\))?(?:, )?)+)", TEXT)
    assert len(proofs) > 30
    for file, named in proofs:
        folder = ROOT / "tests" if "/" in file else ROOT / "tests" / "faults"
        source = (folder / file).read_text()
        for name, note in re.findall(r"`(test_\w+)`(?: \(([^)]*)\))?", named):
            found = re.search(rf"((?:^@.*\n(?:^[ )].*\n)*)*)^def {name}\(", source, re.MULTILINE)
            assert found, f"{file} has no {name}"
            assert ("mark.slow" in found[1]) == ("slow" in note), f"{file}: {name}"


def test_every_fault_test_is_listed() -> None:
    """No test of faults, hangs, load or disks is missing from the page, but those about pages and leaks."""
    for file in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        if file.name in ("test_documentation.py", "test_soak.py", "test_processor.py"):
            continue
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE):
            assert f"`{name}`" in TEXT, f"{file.name}: {name}"


def test_every_metric_exists() -> None:
    """Names, and beginnings of names that end in a star."""
    for name, star in re.findall(r"`(flopwatch_[a-z0-9_]+)(\*?)", TEXT):
        known = [other for other in BY_NAME if other == name or (star and other.startswith(name))]
        assert known, name


def test_every_link_leads_somewhere() -> None:
    """All linked files exist."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
