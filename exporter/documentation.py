"""The reference pages in Markdown, generated from the declarations, and the active configuration.

Secrets in the configuration are masked: the server shows it to everybody who may see the status page.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import yaml

from exporter.config.load import CONFIG_FILE_VARIABLE, variable_of
from exporter.config.model import SCHEMA, Node, Section, SectionList
from exporter.metrics.catalogue import SUBJECTS
from exporter.metrics.family import Family
from flopwatch.options import Option


_METRICS_HEAD = """# Metrics

Every family that flopwatch can expose, generated from the catalogue by `flopwatch metrics --markdown`.

- A value that could not be read is absent: never 0, never the old value.
- All values are in base units, and ratios are from 0 to 1. Cumulative values are counters (`_total`): use `rate()`.
- Families of a device have the labels `gpu` (the NVML index, or `cpu0` for the host processor) and `uuid`,
  and `mig` for a MIG instance. The table lists the other labels only.
- Gauges of the last tick are at most one sampling interval old (1 s by default), slow values (ECC, links, limits,
  processes) one `sampling.slow_interval` (15 s). Probe results are shown until the next probe.
"""

_CONFIGURATION_HEAD = """# Configuration

Generated from the declarations by `flopwatch config --markdown`.

{help} `flopwatch config --config.file FILE` checks a file and prints the effective configuration.

The command line takes precedence over the environment, the environment over the file, and the file
over the defaults. Keys outside of lists can be set by the environment variable named below; lists are
written there with commas. Durations are written `250ms`, `1s`, `15m`; a plain number is seconds.

`SIGHUP`, or `POST /-/reload` with `--web.enable-lifecycle`, reads everything again. A configuration
with a mistake is refused as a whole, and the active one stays. A change to a key marked "restart"
takes effect at the next start: the log and the answer of `/-/reload` name it, and `/config` shows
the values that are active.

| flag | environment | key |
| --- | --- | --- |
| `--config.file` | `{file_variable}` | |
{flags}
"""


def metrics_page() -> str:
    """docs/metrics.md, from the catalogue."""
    parts = [_METRICS_HEAD]
    for subject in SUBJECTS:
        parts.append(f"\n## {subject.title}\n")
        parts.append("| metric | type | unit | labels | description | interpretation |")
        parts.append("| --- | --- | --- | --- | --- | --- |")
        parts += [_family_row(family) for family in subject.families]
    return "\n".join(parts) + "\n"


def _family_row(family: Family) -> str:
    labels = ", ".join(f"`{name}`" for name in family.labels) or ""
    if not family.per_device:
        labels = f"{labels} (not per device)".strip()
    cells = (
        f"`{family.name}`",
        family.type,
        family.unit,
        labels,
        family.help,
        family.interpretation,
    )
    return _table_row(cells)


def configuration_page() -> str:
    """docs/configuration.md, from the schema."""
    parts = [
        _CONFIGURATION_HEAD.format(
            help=SCHEMA.help, file_variable=CONFIG_FILE_VARIABLE, flags=_flags()
        )
    ]
    top: dict[str, Node] = {
        name: node for name, node in SCHEMA.keys.items() if isinstance(node, Option)
    }
    parts += _section("General", Section("", top), "")
    for name, node in SCHEMA.keys.items():
        if not isinstance(node, Option):
            parts += _section(f"`{name}`", node, name)
    return "\n".join(parts) + "\n"


def _flags() -> str:
    rows = [
        f"| `{option.flag}` | `{variable_of(path)}` | `{path}` |"
        for path, option in SCHEMA.options()
        if option.flag
    ]
    return "\n".join(rows)


def _section(title: str, node: Section | SectionList, path: str) -> list[str]:
    lines = [f"\n## {title}\n"]
    if node.help:
        lines.append(f"{node.help}\n")
    if isinstance(node, SectionList):
        lines.append(f"A list, empty by default. Example: `{path}: {node.example}`\n")
        node, path = node.item, f"{path}[]"
    lines += [
        "| key | default | example | meaning | environment | change |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return lines + _rows(node, path)


def _rows(section: Section, path: str) -> list[str]:
    rows: list[str] = []
    for name, node in section.keys.items():
        here = f"{path}.{name}" if path else name
        if isinstance(node, Section):
            rows += _rows(node, here)
        elif isinstance(node, Option):
            rows.append(_option_row(here, node))
    return rows


def _option_row(path: str, key: Option) -> str:
    default = "required" if key.required else f"`{_shown(key)}`"
    variable = "" if "[]" in path else f"`{variable_of(path)}`"
    change = "reload" if key.reload else "restart"
    cells = (f"`{path}`", default, f"`{key.example}`", key.help, variable, change)
    return _table_row(cells)


def _shown(key: Option) -> str:
    """A default as written in YAML: seconds as a duration if the example is one."""
    value: object = key.default
    if value is None or value in ((), {}):
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float) and not key.example[-1:].isalpha():
        return f"{value:g}"
    if isinstance(value, float):
        return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"
    return str(value)


def _table_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


MASK: Final = "<secret>"
_SECRET_KEY = re.compile(
    r"passw|secret|token|credential|authorization|bearer|api_?key|private|^headers?$", re.IGNORECASE
)


def mask(value: Any, *, key: str = "") -> Any:
    """Plain data with secrets masked: values of keys that name one, and parts of URLs that may be one."""
    if _SECRET_KEY.search(key) and value not in (None, "", (), [], {}):
        return MASK
    if isinstance(value, Mapping):
        return {name: mask(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Sequence):
        return [mask(item) for item in value]
    return value


def mask_url(text: str) -> str:
    """A URL without user, password, query values and fragment; any other text as it is."""
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return MASK  # a malformed URL cannot be shown in part
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{MASK}@{host}" if "@" in parts.netloc else host
    query = "&".join(
        f"{name}={MASK}" if equals else MASK
        for name, equals, _value in (item.partition("=") for item in parts.query.split("&") if item)
    )
    return urlunsplit(
        SplitResult(parts.scheme, netloc, parts.path, query, MASK if parts.fragment else "")
    )


def configuration_text(values: Mapping[str, Any]) -> str:
    """The masked configuration as YAML."""
    return yaml.safe_dump(mask(values), sort_keys=False, allow_unicode=True)
