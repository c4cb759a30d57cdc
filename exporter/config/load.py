"""Loads the configuration. Flags override the environment, which overrides file and defaults."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.collect.settings import SamplingSettings
from exporter.config.model import SCHEMA, Config, UnknownVariable, build_config
from exporter.config.schema import Reader, Values
from exporter.errors import ConfigError
from exporter.strict_yaml import load_strict
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
    values = reader.section(SCHEMA, _file_content(origin.file))
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


def _file_content(file: str | None) -> Any:
    if file is None:
        return None
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
