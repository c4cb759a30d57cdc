"""Users of another exporter's chart find each of its values in docs/migrating.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.documents import DOCS
from tests.deploy.manifests import CHART, container, of_kind, render


PEERS: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("peer_values.yml").read_text()
)
each_peer = pytest.mark.parametrize("peer", PEERS)


def rows(peer: str) -> list[tuple[list[str], list[str]]]:
    """Their values and ours, row by row."""
    page = (DOCS / "migrating.md").read_text()
    section = page.partition(f"### Helm values of {peer}\n")[2].partition("\n#")[0]
    cells = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]+)`", a), re.findall(r"`([^`]+)`", b)) for a, b in cells]


@each_peer
def test_each_value_of_the_other_chart_has_a_row(peer: str) -> None:
    """By its own name or by that of its map; and no row names a value that does not exist."""
    named = {name for theirs, _ours in rows(peer) for name in theirs}

    missing = [
        value
        for value in PEERS[peer]
        if not any(value == name or value.startswith(f"{name}.") for name in named)
    ]
    assert missing == []
    unknown = {
        name
        for name in named
        if not any(value == name or value.startswith(f"{name}.") for value in PEERS[peer])
    }
    assert unknown == set()


@each_peer
def test_each_value_of_ours_exists(peer: str) -> None:
    """In values.yaml, at that path."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for _theirs, ours in rows(peer):
        for name in ours:
            node: Any = values
            for part in name.split("."):
                assert part in node, name
                node = node[part]


def test_late_samples_reach_their_slot() -> None:
    """A port of the node, traffic that stays on it, and a monitor of a managed Prometheus."""
    objects = render(
        {
            "web": {"hostPort": 19907},
            "service": {"internalTrafficPolicy": "Local"},
            "monitor": {
                "enabled": True,
                "apiVersion": "azmonitoring.coreos.com/v1",
                "honorLabels": False,
            },
        }
    )
    (service,) = of_kind(objects, "Service")
    (monitor,) = of_kind(objects, "ServiceMonitor")

    assert container(objects)["ports"][0]["hostPort"] == 19907
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    assert monitor["apiVersion"] == "azmonitoring.coreos.com/v1"
    assert monitor["spec"]["endpoints"][0]["honorLabels"] is False


def test_by_default_it_is_absent() -> None:
    """No port of the node, the cluster's own traffic policy, labels of the holders kept."""
    objects = render({"monitor": {"enabled": True}})
    (service,) = of_kind(objects, "Service")
    (monitor,) = of_kind(objects, "ServiceMonitor")

    assert "hostPort" not in container(objects)["ports"][0]
    assert "internalTrafficPolicy" not in service["spec"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"]["endpoints"][0]["honorLabels"] is True
