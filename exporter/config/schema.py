"""The schema of the configuration file, derived from the settings classes.

One declaration serves validation, environment variables, flags, `flopwatch config` and the
documentation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flopwatch.option_parsers import nearest
from flopwatch.options import Nested, Option, OptionGroup, OptionList, declarations


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of keys, sections and lists."""

    help: str
    keys: dict[str, "Node"] = field(default_factory=dict)

    def options(self, path: str = "") -> Iterator[tuple[str, Option]]:
        """The path and declaration of every key outside lists."""
        for name, node in self.keys.items():
            here = _join(path, name)
            if isinstance(node, Option):
                yield here, node
            elif isinstance(node, Section):
                yield from node.options(here)


@dataclass(frozen=True, slots=True)
class SectionList:
    """A list of mappings with the same keys."""

    help: str
    item: Section
    example: str
    at_most: int = 1000


Node = Option | Section | SectionList
# Parsed values by key; sections are mappings, lists of sections tuples of mappings.
Values = dict[str, Any]


class Reader:
    """Reads a raw configuration against a schema and collects every mistake with its path."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.mistakes: list[str] = []

    def section(self, schema: Section, raw: Any, path: str = "") -> Values:
        """Values of a section; missing or invalid values get their default."""
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
        if raw is None:  # `key:` with no value sets nothing
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


def schema_of(cls: type, help_: str, sections: Mapping[str, str]) -> Section:
    """The schema of a settings class; `sections` has help by path, in the order of the file."""
    schema = Section(help_)
    for path in sections:  # first fix the order
        if "[]" not in path:
            schema.keys[path] = Section(sections[path])
    _add(schema, cls, sections, "")
    return schema


def _add(schema: Section, cls: type, sections: Mapping[str, str], path: str) -> None:
    """Add the declarations of a class to the section at `path`."""
    for declared in declarations(cls).values():
        if isinstance(declared, Nested):
            _add(schema, declared.item, sections, path)
        elif isinstance(declared, OptionGroup):
            for each in declared.options.values():
                _place(schema, each.path, each, sections, path)
        elif isinstance(declared, OptionList):
            item = Section(declared.item_help)
            _add(item, declared.item, sections, f"{path}{declared.path}[]")
            node = SectionList(declared.help, item, declared.example)
            _place(schema, declared.path, node, sections, path)
        else:
            _place(schema, declared.path, declared, sections, path)


def _place(schema: Section, key: str, node: Node, sections: Mapping[str, str], path: str) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        path = _join(path, parent)
        section = schema.keys.setdefault(parent, Section(sections.get(path, "")))
        assert isinstance(section, Section)
        schema = section
    schema.keys[name] = node


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(name: str, known: Mapping[str, Node]) -> str:
    meant = nearest(name, known, cutoff=0.5)
    hint = f"did you mean {meant}?" if meant else f"known keys: {', '.join(known)}"
    return f"unknown key, {hint}"
