"""What a user may set: labels, selectors, thresholds, links. A rule names a setting as `%{name}`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from exporter.findings import THRESHOLDS, XID_CRITICAL, XID_PROGRAM, XID_WARNING


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's default and what it is for."""

    default: str | float
    help: str


def _codes(xids: tuple[int, ...]) -> str:
    return "|".join(map(str, xids))


SETTINGS: dict[str, Setting] = {
    "selector": Setting('job="flopwatch"', "Selects the exporters' targets in `up`."),
    "cluster": Setting("cluster, job", "Labels that tell clusters apart."),
    "host": Setting(
        "cluster, job, instance", "Labels that tell hosts apart; add `rack` here to keep it."
    ),
    "gpu": Setting("cluster, job, instance, gpu, uuid", "Labels that tell GPUs apart."),
    "peers": Setting("cluster, job, name", "GPUs that agree in these labels are compared."),
    "runbooks": Setting(
        "https://github.com/flopwatch/flopwatch/blob/main/docs/runbooks", "Where the runbooks are."
    ),
    "grafana": Setting(
        "{{ $externalLabels.grafana }}",
        "Base URL of Grafana for links in alerts; by default Prometheus's external label `grafana`.",
    ),
    "xidCritical": Setting(
        _codes(XID_CRITICAL), "XIDs that need a reset, a reboot or a new board."
    ),
    "xidWarning": Setting(
        _codes(XID_WARNING), "XIDs that are contained, or mended by the next reset."
    ),
    "xidProgram": Setting(_codes(XID_PROGRAM), "XIDs that programs cause."),
} | {name: Setting(threshold.value, threshold.help) for name, threshold in THRESHOLDS.items()}

PLACEHOLDER = re.compile(r"%\{(\w+)\}")


def text(value: str | float) -> str:
    """A setting as it is written in a rule."""
    return value if isinstance(value, str) else f"{value:g}"


def substituted(rule_text: str, value: Callable[[str], str] | None = None) -> str:
    """The text with every setting's default, or the result of `value`. Raises KeyError if unknown."""
    find = value or (lambda name: text(SETTINGS[name].default))
    return PLACEHOLDER.sub(lambda match: find(match[1]), rule_text)
