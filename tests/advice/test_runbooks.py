"""Alerts about throughput, clocks and slow GPUs link to the advice."""

from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]
# The alerts for which a lever may be the remedy; the others need a repair.
ALERTS = (
    "GPUClocksHeldDownByHeat",
    "GPUClocksHeldDownByPower",
    "GPUFarSlowerThanPeers",
    "GPUPowerLimitLowered",
    "GPUSlowerThanPeers",
    "GPUUtilizationDropped",
    "ModelThroughputFell",
    "ModelUsefulShareFell",
    "PrefixCacheCollapsed",
    "WorkloadObjectiveMissed",
)


@pytest.mark.parametrize("name", ALERTS)
def test_the_runbook_points_to_the_advice(name: str) -> None:
    """The alert's runbook_url points to a page that names the command."""
    rules = [
        rule
        for path in (ROOT / "deploy/prometheus").rglob("*.yml")
        for group in (yaml.safe_load(path.read_text()) or {}).get("groups", ())
        for rule in group["rules"]
        if rule.get("alert") == name
    ]

    assert rules
    for rule in rules:
        page = rule["annotations"]["runbook_url"].rsplit("/", 1)[-1].removesuffix(".md")
        assert "`flopwatch advise`" in (ROOT / f"docs/runbooks/{page}.md").read_text()
