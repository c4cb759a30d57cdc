"""One declaration of a configuration option: the field that holds it.

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

    `path` is its place in the file (`probes.budget`; in an item of a list, relative to the item).
    `default` and what `parse` returns are plain data; `convert` makes the field's type of it.
    `example` is how one writes it in YAML. With `reload` False a change needs a restart. `flag` is
    the command-line flag that sets it.
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
    """Several options in one field, a mapping by their last names."""

    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class OptionList:
    """A list of settings of one class; `help` is of the list, `item_help` of one of them."""

    path: str
    item: type
    help: str
    item_help: str
    example: str
    reload: bool = True


@dataclass(frozen=True, slots=True)
class Nested:
    """Settings of another class, with options of their own."""

    item: type


Declaration = Option | OptionGroup | OptionList | Nested


def option(
    path: str,
    parse: Parser,
    default: Any,
    help: str,  # noqa: A002  the word for it
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
    """A dataclass field that holds several options, by the last part of their paths."""
    declared = OptionGroup({each.path.rpartition(".")[2]: each for each in options})
    return _field(declared, lambda: {name: each.default for name, each in declared.options.items()})


def option_list(
    path: str,
    item: type,
    help: str,  # noqa: A002  the word for it
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
    """What the fields of a settings class declare, by field name; other fields are left out."""
    return {
        field.name: field.metadata[_METADATA]
        for field in dataclasses.fields(cls)
        if _METADATA in field.metadata
    }


def build(cls: type[_Settings], values: Mapping[str, Any], /, **others: Any) -> _Settings:
    """Settings from parsed values, by path; `others` are fields that are no options.

    Raises ValueError where the class refuses values that cannot work together.
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
