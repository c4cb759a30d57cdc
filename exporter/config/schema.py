"""The shape of a configuration: sections of keys, each with a parser, a default and its meaning.

One declaration serves validation, environment variables, `flopwatch config` and the documentation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.config.nearest import nearest
from exporter.config.values import Parser


@dataclass(frozen=True, slots=True)
class Key:
    """One value. `default` is the parsed value, `example` how it is written in YAML."""

    parse: Parser
    default: Any
    help: str
    example: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of keys, sections and lists."""

    help: str
    keys: Mapping[str, "Node"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SectionList:
    """A list of mappings of one shape."""

    help: str
    item: Section
    example: str
    at_most: int = 1000


Node = Key | Section | SectionList
# Parsed values by key; sections are mappings, lists of sections tuples of mappings.
Values = dict[str, Any]


class Reader:
    """Reads a raw configuration against a schema and collects every mistake with its path."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.mistakes: list[str] = []

    def section(self, schema: Section, raw: Any, path: str = "") -> Values:
        """Values of a section; what is missing or wrong has its default."""
        if raw is None:
            raw = {}
        if not isinstance(raw, Mapping):
            self._mistake(path, f"must be a mapping of {', '.join(schema.keys)}, got {raw!r}")
            raw = {}
        for name in raw:
            if name not in schema.keys:
                self._mistake(_join(path, str(name)), _unknown(str(name), schema.keys))
        return {
            name: self._node(node, raw.get(name), _join(path, name), present=name in raw)
            for name, node in schema.keys.items()
        }

    def _node(self, node: Node, raw: Any, path: str, *, present: bool) -> Any:
        if isinstance(node, Section):
            return self.section(node, raw, path)
        if isinstance(node, SectionList):
            return self._list(node, raw, path)
        if not present:
            if node.required:
                self._mistake(path, f"is required, for example {node.example}")
            return node.default
        if raw is None:  # `key:` with nothing after it says nothing
            return node.default
        try:
            return node.parse(raw)
        except ValueError as error:
            self._mistake(path, str(error))
            return node.default

    def _list(self, node: SectionList, raw: Any, path: str) -> tuple[Values, ...]:
        if raw is None:
            return ()
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            self._mistake(path, f"must be a list, got {raw!r}")
            return ()
        if len(raw) > node.at_most:
            self._mistake(path, f"must have at most {node.at_most} items, got {len(raw)}")
            return ()
        return tuple(
            self.section(node.item, item, f"{path}[{position}]")
            for position, item in enumerate(raw)
        )

    def _mistake(self, path: str, what: str) -> None:
        place = f"{self._source}: {path}: " if path else f"{self._source}: "
        self.mistakes.append(place + what)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(name: str, known: Mapping[str, Node]) -> str:
    meant = nearest(name, known, cutoff=0.5)
    hint = f"did you mean {meant}?" if meant else f"known keys: {', '.join(known)}"
    return f"unknown key, {hint}"
