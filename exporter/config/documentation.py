"""docs/configuration.md, generated from the schema."""

from exporter.config.keys import SCHEMA
from exporter.config.load import variable_of
from exporter.config.schema import Key, Node, Section, SectionList


_HEAD = """# Configuration

Generated from the schema by `flopwatch config --markdown`.

{help} `flopwatch config --config.file FILE` checks a file and prints what is in force.

A value is taken from the command line, else from the environment, else from the file, else from
the default. Keys outside of lists can be set by the environment variable named below; lists are
written there with commas. Durations are written `250ms`, `1s`, `15m`; a plain number is seconds.

`SIGHUP`, or `POST /-/reload` with `--web.enable-lifecycle`, reads everything again. A file with a
mistake is refused as a whole, and the configuration in force stays. The sections `web` and `log`
are read at start only, but for certificates, users and headers in the web configuration file.

| flag | environment | key |
| --- | --- | --- |
| `--config.file` | `FLOPWATCH_CONFIG_FILE` | |
| `--web.listen-address` (several allowed) | `FLOPWATCH_WEB_LISTEN_ADDRESS` | `web.listen_address` |
| `--web.telemetry-path` | `FLOPWATCH_WEB_TELEMETRY_PATH` | `web.telemetry_path` |
| `--web.config.file` | `FLOPWATCH_WEB_CONFIG_FILE` | `web.config_file` |
| `--web.enable-lifecycle` | `FLOPWATCH_WEB_ENABLE_LIFECYCLE` | `web.enable_lifecycle` |
| `--log.level` | `FLOPWATCH_LOG_LEVEL` | `log.level` |
| `--log.format` | `FLOPWATCH_LOG_FORMAT` | `log.format` |
"""


def configuration_page() -> str:
    """The whole page in Markdown."""
    parts = [_HEAD.format(help=SCHEMA.help)]
    top = {name: node for name, node in SCHEMA.keys.items() if isinstance(node, Key)}
    parts += _section("General", Section("", top), "")
    for name, node in SCHEMA.keys.items():
        if not isinstance(node, Key):
            parts += _section(f"`{name}`", node, name)
    return "\n".join(parts) + "\n"


def _section(title: str, node: Section | SectionList, path: str) -> list[str]:
    lines = [f"\n## {title}\n"]
    if node.help:
        lines.append(f"{node.help}\n")
    if isinstance(node, SectionList):
        lines.append(f"A list, empty by default. Example: `{path}: {node.example}`\n")
        node, path = node.item, f"{path}[]"
    lines += [
        "| key | default | example | meaning | environment |",
        "| --- | --- | --- | --- | --- |",
    ]
    return lines + _rows(node, path)


def _rows(section: Section, path: str) -> list[str]:
    rows: list[str] = []
    for name, node in section.keys.items():
        here = f"{path}.{name}" if path else name
        if isinstance(node, Section):
            rows += _rows(node, here)
        elif isinstance(node, Key):
            rows.append(_row(here, node))
    return rows


def _row(path: str, key: Key) -> str:
    default = "required" if key.required else f"`{_shown(key.default, key)}`"
    variable = "" if "[]" in path else f"`{variable_of(path)}`"
    cells = (f"`{path}`", default, f"`{key.example}`", key.help, variable)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object, key: Node) -> str:
    """A default as one would write it."""
    if value is None or value == ():
        return "not given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"
    return str(value)
