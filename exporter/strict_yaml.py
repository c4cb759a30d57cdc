"""Strict YAML.

PyYAML's safe loader implements YAML 1.1 and is lenient: the last of two equal keys wins silently,
`on` is true, `1e3` is a string, `1:30` is 90, `2024-01-01` a date. This one resolves scalars by the
YAML 1.2 core schema (null, true, false, integers, floats; all else is a string), allows each key
once, allows only string keys, and says where a mistake is.
"""

import re
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Final

import yaml

from exporter.errors import ConfigError


_SIZE_MAX: Final = 1 << 20  # characters; a configuration of thousands of GPUs has 100 kB
_NODES_MAX: Final = 100_000  # with aliases expanded: a few lines of them can expand to billions
_NULL_TAG: Final = "tag:yaml.org,2002:null"
_BOOL_TAG: Final = "tag:yaml.org,2002:bool"
_INT_TAG: Final = "tag:yaml.org,2002:int"
_FLOAT_TAG: Final = "tag:yaml.org,2002:float"
_STR_TAG: Final = "tag:yaml.org,2002:str"
_SEQUENCE_TAG: Final = "tag:yaml.org,2002:seq"
_MAPPING_TAG: Final = "tag:yaml.org,2002:map"
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"

# https://yaml.org/spec/1.2.2/#103-core-schema; digits are bounded, as Python refuses to parse
# integers of more than 4300.
_RESOLVERS: Final = (
    (_NULL_TAG, re.compile(r"(?:~|null|Null|NULL|)$"), "~nN"),
    (_BOOL_TAG, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    (
        _INT_TAG,
        re.compile(r"(?:[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40})$"),
        "-+0123456789",
    ),
    (
        _FLOAT_TAG,
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    (_MERGE_TAG, re.compile(r"<<$"), "<"),
)


class _StrictLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (_NULL_TAG, _STR_TAG, _SEQUENCE_TAG, _MAPPING_TAG, None)
    }

    def get_single_node(self) -> yaml.Node | None:
        root = super().get_single_node()
        waiting = [root] if root else []
        seen = 0
        while waiting:
            node = waiting.pop()
            seen += 1
            if seen > _NODES_MAX:
                raise yaml.YAMLError(f"its aliases expand to more than {_NODES_MAX} values")
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                waiting += [part for pair in node.value for part in pair]
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # Twice, around the merge of `<<`: a key may override a merged one, but not its neighbour.
        self._check_keys(node)
        return super().construct_mapping(node, deep=deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE_TAG:
                continue
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != _STR_TAG:
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a string; quote it", key.start_mark
                )
            if key.value in first_lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key '{key.value}' is already on line {first_lines[key.value]}",
                    key.start_mark,
                )
            first_lines[key.value] = line


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() == "true"


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    for prefix, base in (("0o", 8), ("0x", 16)):
        if text.startswith(prefix):
            return int(text[2:], base)
    return int(text, 10)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in _RESOLVERS:
    _StrictLoader.add_implicit_resolver(_tag, _pattern, list(_first))
# An empty scalar has no first character.
_StrictLoader.add_implicit_resolver(_NULL_TAG, _RESOLVERS[0][1], [""])
_StrictLoader.add_constructor(_BOOL_TAG, _construct_bool)
_StrictLoader.add_constructor(_INT_TAG, _construct_int)
_StrictLoader.add_constructor(_FLOAT_TAG, _construct_float)


def load_strict(text: str, *, source: str) -> Any:
    """The value of one YAML document, None when it is empty.

    Raises ConfigError with one mistake, `source:line: what`.
    """
    if len(text) > _SIZE_MAX:
        raise ConfigError([f"{source}: larger than {_SIZE_MAX} characters"])
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([f"{place}: {_one_line(what)}"]) from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: an explicit tag on a value that is not of its kind, as in `!!int x`.
        raise ConfigError([f"{source}: {_one_line(str(error).partition(chr(10))[0])}"]) from None
    except RecursionError:
        raise ConfigError([f"{source}: nested too deeply"]) from None


def locate(text: str, path: Sequence[str | int]) -> int | None:
    """The line, from 1, of the deepest part of `path` that is in the document.

    Keys are strings, list positions integers; None when not even the first part exists, or the text
    is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    line = None
    for part in path:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return line


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == part:
                return key.start_mark.line + 1, value
        return None
    if not (isinstance(node, yaml.SequenceNode) and isinstance(part, int)):
        return None
    if not 0 <= part < len(node.value):
        return None
    child = node.value[part]
    return child.start_mark.line + 1, child


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "not valid YAML"
