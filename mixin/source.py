"""What a rule is, and how a group of them is written as YAML and as Jsonnet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from mixin.config import PLACEHOLDER


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule. `why` becomes a comment."""

    name: str
    expr: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule. `finding` is the kind of exporter.findings that it pages for.

    `board` is the dashboard that its link opens: `gpu`, `host`, `models`, …
    """

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    board: str
    wait: str = ""
    why: str = ""
    finding: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after another; a later rule sees the results of earlier ones."""

    name: str
    rules: Sequence[Record | Alert]
    interval: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One file of deploy/prometheus: `folder` is `rules` or `alerts`."""

    folder: str
    name: str
    why: str
    groups: Sequence[Group]


_VARIABLES = {
    "fleet": ("cluster",),
    "models": ("cluster", "instance"),
    "exporter": ("cluster", "instance"),
    "host": ("cluster", "instance"),
    "gpu": ("cluster", "instance", "gpu"),
    "probes": ("cluster", "instance", "gpu"),
}
_HOLDERS = (
    "{{ range printf `gpu:flopwatch_holder:info{cluster=%q, instance=%q, gpu=~%q}`"
    ' $labels.cluster $labels.instance (or $labels.gpu ".*") | query }}'
    "GPU {{ .Labels.gpu }}: {{ .Labels.holder }}\n{{ end }}"
)


def annotations(alert: Alert) -> dict[str, str]:
    """Summary, description, links, and who holds the GPUs that it is about."""
    variables = "&".join(f"var-{name}={{{{ $labels.{name} }}}}" for name in _VARIABLES[alert.board])
    made = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"%{{runbooks}}/{alert.name}.md",
        "dashboard": f"%{{grafana}}/d/flopwatch-{alert.board}?{variables}",
    }
    if alert.board in {"gpu", "host", "probes"}:
        made["holders"] = _HOLDERS
    return made


def as_rule(rule: Record | Alert) -> dict[str, object]:
    """The rule as Prometheus reads it, with settings still to be filled in."""
    if isinstance(rule, Record):
        return {"record": rule.name, "expr": rule.expr.strip()}
    made: dict[str, object] = {"alert": rule.name, "expr": rule.expr.strip()}
    if rule.wait:
        made["for"] = rule.wait
    made["labels"] = {"severity": rule.severity} | rule.labels
    made["annotations"] = annotations(rule)
    return made


def as_yaml(file: RuleFile) -> str:
    """The file as YAML with comments, with settings still to be filled in."""
    lines = [
        "# Written by `python -m mixin.build` from mixin/. Do not edit.",
        *_comment(file.why, ""),
        "groups:",
    ]
    for group in file.groups:
        lines += _comment(group.why, "  ")
        lines.append(f"  - name: {group.name}")
        if group.interval:
            lines.append(f"    interval: {group.interval}")
        lines.append("    rules:")
        for rule in group.rules:
            lines += _comment(rule.why, "      ")
            lines += _mapping(as_rule(rule), "      ")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in text.strip().splitlines()]


def _mapping(rule: dict[str, object], indent: str) -> list[str]:
    lines: list[str] = []
    for index, (key, value) in enumerate(rule.items()):
        lead = indent + ("- " if index == 0 else "  ")
        if isinstance(value, dict):
            lines.append(f"{lead}{key}:")
            for name, text in value.items():
                lines += _scalar(f"{indent}    {name}:", str(text), f"{indent}      ")
        else:
            lines += _scalar(f"{lead}{key}:", str(value), f"{indent}    ")
    return lines


def _scalar(lead: str, text: str, indent: str) -> list[str]:
    # A block scalar where a setting may contain quotes, and where the text already has some.
    if "\n" in text.strip() or '"' in text or "%{" in text:
        style = "|-" if not text.endswith("\n") else "|"
        return [
            f"{lead} {style}",
            *(f"{indent}{line}".rstrip() for line in text.rstrip("\n").splitlines()),
        ]
    plain = text.replace("_", "").replace(":", "").isalnum() and not text.isdigit()
    return [f"{lead} {text}" if plain else f"{lead} {json.dumps(text, ensure_ascii=False)}"]


def as_jsonnet(value: object, indent: str = "") -> str:
    """A value as Jsonnet, each setting taken from `$._config`."""
    deeper = indent + "  "
    if isinstance(value, dict):
        inner = "".join(
            f"{deeper}{json.dumps(key)}: {as_jsonnet(item, deeper)},\n"
            for key, item in value.items()
        )
        return f"{{\n{inner}{indent}}}"
    if isinstance(value, list):
        inner = "".join(f"{deeper}{as_jsonnet(item, deeper)},\n" for item in value)
        return f"[\n{inner}{indent}]"
    parts: list[str] = []
    text = str(value)
    at = 0
    for match in PLACEHOLDER.finditer(text):
        if match.start() > at:
            parts.append(json.dumps(text[at : match.start()], ensure_ascii=False))
        parts.append(f"text($._config.{match[1]})")
        at = match.end()
    if at < len(text) or not parts:
        parts.append(json.dumps(text[at:], ensure_ascii=False))
    return " + ".join(parts)


def as_groups(file: RuleFile) -> list[dict[str, object]]:
    """The file's groups as Prometheus reads them, with settings still to be filled in."""
    return [
        {"name": group.name}
        | ({"interval": group.interval} if group.interval else {})
        | {"rules": [as_rule(rule) for rule in group.rules]}
        for group in file.groups
    ]
