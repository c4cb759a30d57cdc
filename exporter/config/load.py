"""Loads the configuration. Flags override the environment, which overrides file and defaults.

YAML files, the web configuration too, are read strictly: see `load_strict`.
"""

import os
import re
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import yaml

from exporter.collect.settings import SamplingSettings
from exporter.config.model import (
    SCHEMA,
    Config,
    Node,
    Section,
    SectionList,
    UnknownVariable,
    Values,
    build_config,
    join_key,
)
from exporter.errors import ConfigError
from flopwatch.option_parsers import nearest


ENVIRONMENT_PREFIX = "FLOPWATCH_"
CONFIG_FILE_VARIABLE = "FLOPWATCH_CONFIG_FILE"
# Variables with our prefix that set no option.
_OTHER_VARIABLES = frozenset(
    {
        CONFIG_FILE_VARIABLE,
        "FLOPWATCH_IMAGE",
        "FLOPWATCH_PASSWORD",
        "FLOPWATCH_REVISION",
        "FLOPWATCH_TRACEBACK",
    }
)
# Variables that the kubelet sets for a Service called flopwatch or flopwatch-something.
_SERVICE_VARIABLE = re.compile(
    r"FLOPWATCH_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)
# A configuration for thousands of GPUs takes 100 kB.
_FILE_BYTES_MAX = 1 << 20
# Paths that the server uses itself; at / the metrics replace the status page.
_RESERVED_PATHS = frozenset({"/config"})
_RESERVED_PREFIXES = ("/-/", "/api/", "/docs/")


@dataclass(frozen=True, slots=True)
class ConfigOrigin:
    """The sources of a configuration, kept to read it again at a reload.

    `flags` are values given on the command line, by path (`log.level`), with the flag as typed.
    """

    file: str | None = None
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def load_config(origin: ConfigOrigin) -> Config:
    """Read the whole configuration. Raises ConfigError with every mistake found."""
    source = origin.file or "configuration"
    reader = Reader(source)
    values = reader.section(SCHEMA, read_strict(origin.file) if origin.file is not None else None)
    mistakes = reader.mistakes
    variables = {variable_of(path): path for path, _option in SCHEMA.options()}
    unknown: list[UnknownVariable] = []
    for name, given in sorted(origin.environment.items()):
        if name in variables:
            _override(values, variables[name], name, given, mistakes)
        elif _sets_nothing(name):
            unknown.append(UnknownVariable(name, _nearest_variable(name, variables)))
    for path, (flag, given) in origin.flags.items():
        _override(values, path, flag, given, mistakes)
    mistakes += [f"{source}: {mistake}" for mistake in _cross_check(values)]
    if mistakes:
        raise ConfigError(mistakes)
    try:
        return build_config(values, tuple(unknown))
    except ValueError as error:
        raise ConfigError([f"{source}: {error}"]) from None


def variable_of(path: str) -> str:
    """Environment variable of a key: `sampling.interval` is FLOPWATCH_SAMPLING_INTERVAL."""
    return ENVIRONMENT_PREFIX + path.replace(".", "_").upper()


def read_strict(file: str) -> Any:
    """The value of a YAML file, see `load_strict`. Raises ConfigError, also for what is no regular file."""
    try:
        content = _read_bounded(file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([f"{file}: cannot be read: {reason}"]) from None
    try:
        return load_strict(content.decode("utf-8"), source=file)
    except UnicodeDecodeError:
        raise ConfigError([f"{file}: is not UTF-8 text"]) from None


def _read_bounded(file: str) -> bytes:
    """The file's content. Raises ConfigError for files that never end or could block."""
    # Without O_NONBLOCK, opening a named pipe would wait for its writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:  # noqa: PTH123  a descriptor, not a path
        kind = os.fstat(descriptor).st_mode
        # A shell's <(…) is a pipe too, and its writer exists.
        of_shell = stat.S_ISFIFO(kind) and file.startswith(("/dev/fd/", "/proc/self/fd/"))
        if of_shell:
            os.set_blocking(descriptor, True)
        elif not stat.S_ISREG(kind) and file != os.devnull:
            raise ConfigError([f"{file}: is not a regular file"])
        content = opened.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError([f"{file}: is larger than {_FILE_BYTES_MAX} bytes"])
    return content


def _override(values: Values, path: str, place: str, given: Any, mistakes: list[str]) -> None:
    """Set one value from the environment or a flag; `place` identifies it in a mistake."""
    section: Any = SCHEMA
    target = values
    *parents, name = path.split(".")
    for parent in parents:
        section = section.keys[parent]
        target = target[parent]
    try:
        target[name] = section.keys[name].parse(given)
    except ValueError as error:
        mistakes.append(f"{place}: {error}")


def _nearest_variable(name: str, variables: Iterable[str]) -> str | None:
    """The nearest known variable, compared without the common prefix."""
    known = [variable.removeprefix(ENVIRONMENT_PREFIX) for variable in variables]
    found = nearest(name.removeprefix(ENVIRONMENT_PREFIX), known)
    return None if found is None else ENVIRONMENT_PREFIX + found


def _sets_nothing(name: str) -> bool:
    """Whether a variable looks like one of ours but is not."""
    return (
        name.startswith(ENVIRONMENT_PREFIX)
        and name not in _OTHER_VARIABLES
        and not _SERVICE_VARIABLE.fullmatch(name)
    )


def _cross_check(values: Values) -> Iterator[str]:
    """Checks across several values; sets defaults that depend on another value."""
    sampling, probes = values["sampling"], values["probes"]
    if sampling["slow_interval"] < sampling["interval"]:
        if sampling["slow_interval"] == SamplingSettings().slow_interval:
            # A longer configured interval overrides the default.
            sampling["slow_interval"] = sampling["interval"]
        else:
            yield (
                "sampling.slow_interval: must not be shorter than sampling.interval "
                f"({sampling['interval']:g} s), got {sampling['slow_interval']:g} s"
            )
    if probes["budget"] > probes["interval"]:
        yield (
            f"probes.budget: must not exceed probes.interval ({probes['interval']:g} s), "
            f"got {probes['budget']:g} s"
        )
    path = values["web"]["telemetry_path"]
    if not path.startswith("/"):
        yield f"web.telemetry_path: must start with /, got {path!r}"
    elif path in _RESERVED_PATHS or path.startswith(_RESERVED_PREFIXES):
        yield f"web.telemetry_path: {path} is taken by the server; choose another, such as /metrics"
    names = [workload["name"] for workload in values["workloads"]]
    for position, name in enumerate(names):
        if name and name in names[:position]:
            yield f"workloads[{position}].name: is used twice: {name!r}"
    for position, workload in enumerate(values["workloads"]):
        here, total = len(set(workload["gpus"])), workload["gpus_total"]
        if total is not None and total < here:
            yield (
                f"workloads[{position}].gpus_total: must be at least {here}, as many as gpus names, "
                f"got {total}"
            )


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
                self._mistake(join_key(path, str(name)), _unknown(str(name), schema.keys))
        return {
            name: self._node(node, raw.get(name), join_key(path, name), present=name in raw)
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


def _unknown(name: str, known: Mapping[str, Node]) -> str:
    meant = nearest(name, known, cutoff=0.5)
    hint = f"did you mean {meant}?" if meant else f"known keys: {', '.join(known)}"
    return f"unknown key, {hint}"


# ---- strict YAML ----

# PyYAML's safe loader implements YAML 1.1 and is lenient: the last of two equal keys wins silently,
# `on` is true, `1e3` is a string, `1:30` is 90, `2024-01-01` a date. This one resolves scalars by the
# YAML 1.2 core schema (null, true, false, integers, floats; all else is a string), allows each key
# once, allows only string keys, and says where a mistake is.

_SIZE_MAX: Final = 1 << 20  # characters; a configuration of thousands of GPUs has 100 kB
_NODES_MAX: Final = 100_000  # with aliases expanded: a few lines of them can expand to billions
_NULL_TAG, _BOOL_TAG, _INT_TAG, _FLOAT_TAG, _STR_TAG, _SEQUENCE_TAG, _MAPPING_TAG, _MERGE_TAG = (
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)

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


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "not valid YAML"
