"""Declares each configuration option once, at the field that holds it.

A settings dataclass declares its fields by `option`, `option_list` and `settings`. The file's schema,
environment variables, flags, documentation and the typed configuration all derive from that.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from flopwatch.option_parsers import Parser


_METADATA: Final = "flopwatch.option"
_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True)
class Option:
    """One value of the configuration.

    `path` is its place in the file (`probes.budget`; within a list item, relative to the item).
    `default` and the result of `parse` are plain data; `convert` turns them into the field's type.
    `example` is an example in YAML. With `reload` False a change needs a restart. `flag` is the
    command-line flag that sets it.
    """

    path: str
    parse: Parser
    default: Any
    help: str
    example: str
    required: bool = False
    reload: bool = True
    convert: Callable[[Any], Any] | None = None
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Several options in one field, a mapping keyed by the last part of their paths."""

    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class OptionList:
    """A list of settings of one class; `help` describes the list, `item_help` one item."""

    path: str
    item: type
    help: str
    item_help: str
    example: str
    reload: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """Settings of another class, which declares its own options."""

    item: type


Declaration = Option | OptionGroup | OptionList | Nested


def option(
    path: str,
    parse: Parser,
    default: Any,
    help: str,  # noqa: A002  the natural name
    example: str,
    *,
    required: bool = False,
    reload: bool = True,
    convert: Callable[[Any], Any] | None = None,
    flag: str | None = None,
) -> Any:
    """A dataclass field that holds one option; see Option."""
    declared = Option(path, parse, default, help, example, required, reload, convert, flag)
    return _field(declared, lambda: _converted(declared, default))


def option_group(*options: Option) -> Any:
    """A dataclass field that holds several options, keyed by the last part of their paths."""
    declared = OptionGroup({each.path.rpartition(".")[2]: each for each in options})
    return _field(declared, lambda: {name: each.default for name, each in declared.options.items()})


def option_list(
    path: str,
    item: type,
    help: str,  # noqa: A002  the natural name
    item_help: str,
    example: str,
    *,
    reload: bool = True,
) -> Any:
    """A dataclass field that holds a tuple of settings, empty by default."""
    return _field(OptionList(path, item, help, item_help, example, reload), tuple)


def settings(item: type) -> Any:
    """A dataclass field that holds settings of another class."""
    return _field(Nested(item), item)


def declarations(cls: type) -> Mapping[str, Declaration]:
    """The declarations of a settings class, by field name; fields without one are left out."""
    return {
        field.name: field.metadata[_METADATA]
        for field in dataclasses.fields(cls)
        if _METADATA in field.metadata
    }


def build(cls: type[_Settings], values: Mapping[str, Any], /, **others: Any) -> _Settings:
    """Settings built from parsed values, by path; `others` are fields that are not options.

    Raises ValueError if the class rejects the combination of values.
    """
    fields: dict[str, Any] = dict(others)
    for name, declared in declarations(cls).items():
        if isinstance(declared, Option):
            fields[name] = _converted(declared, value_at(values, declared.path))
        elif isinstance(declared, OptionGroup):
            fields[name] = {
                key: _converted(each, value_at(values, each.path))
                for key, each in declared.options.items()
            }
        elif isinstance(declared, OptionList):
            items = value_at(values, declared.path)
            fields[name] = tuple(build(declared.item, item) for item in items)
        else:
            fields[name] = build(declared.item, values)
    return cls(**fields)


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested mappings."""
    found: Any = values
    for part in path.split("."):
        found = found[part]
    return found


def _field(declared: Declaration, default: Callable[[], Any]) -> Any:
    return dataclasses.field(default_factory=default, metadata={_METADATA: declared})


def _converted(declared: Option, value: Any) -> Any:
    return value if declared.convert is None or value is None else declared.convert(value)
