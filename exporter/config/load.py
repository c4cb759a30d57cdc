"""Where a configuration comes from: flag over environment over file over default."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from exporter.collect.settings import SamplingSettings
from exporter.config.keys import SCHEMA
from exporter.config.model import Config, build_config
from exporter.config.nearest import nearest
from exporter.config.schema import Key, Reader, Section, Values
from exporter.config.strict_yaml import load_strict
from exporter.errors import ConfigError


log = structlog.get_logger(__name__)

ENVIRONMENT_PREFIX = "FLOPWATCH_"
CONFIG_FILE_VARIABLE = "FLOPWATCH_CONFIG_FILE"


@dataclass(frozen=True, slots=True)
class ConfigOrigin:
    """Everything that a configuration is read from, so that it can be read again at a reload.

    `flags` are values given on the command line, by path (`log.level`), with the flag as given.
    """

    file: str | None = None
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def load_config(origin: ConfigOrigin) -> Config:
    """Read the whole configuration. Raises ConfigError with every mistake that was found."""
    source = origin.file or "configuration"
    reader = Reader(source)
    values = reader.section(SCHEMA, _file_content(origin.file))
    mistakes = reader.mistakes
    variables = {variable_of(path): path for path, _key in scalar_keys(SCHEMA)}
    for name, given in sorted(origin.environment.items()):
        if name in variables:
            _override(values, variables[name], name, given, mistakes)
        elif name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_FILE_VARIABLE:
            _hint(name, variables)
    for path, (flag, given) in origin.flags.items():
        _override(values, path, flag, given, mistakes)
    mistakes += [f"{source}: {mistake}" for mistake in _cross_check(values)]
    if mistakes:
        raise ConfigError(mistakes)
    try:
        return build_config(values)
    except ValueError as error:
        raise ConfigError([f"{source}: {error}"]) from None


def scalar_keys(section: Section, path: str = "") -> Iterator[tuple[str, Key]]:
    """Path and declaration of every key outside of lists: those that the environment can set."""
    for name, node in section.keys.items():
        here = f"{path}.{name}" if path else name
        if isinstance(node, Key):
            yield here, node
        elif isinstance(node, Section):
            yield from scalar_keys(node, here)


def variable_of(path: str) -> str:
    """Environment variable of a key: `sampling.interval` is FLOPWATCH_SAMPLING_INTERVAL."""
    return ENVIRONMENT_PREFIX + path.replace(".", "_").upper()


def _file_content(file: str | None) -> Any:
    if file is None:
        return None
    try:
        content = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            [f"{file}: cannot be read: {(error.strerror or str(error)).lower()}"]
        ) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{file}: is not UTF-8 text"]) from None
    return load_strict(content, source=file)


def _override(values: Values, path: str, place: str, given: Any, mistakes: list[str]) -> None:
    """Set one value from the environment or a flag; `place` names it in a mistake."""
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


def _hint(name: str, variables: Mapping[str, str]) -> None:
    """Other programs may own the prefix; a near miss is probably a typing mistake."""
    meant = nearest(name, variables, cutoff=0.85)
    if meant:
        log.warning("environment_variable_unknown", name=name, nearest=meant)


def _cross_check(values: Values) -> Iterator[str]:
    """What no single value can tell; settles defaults that depend on another value."""
    sampling, probes = values["sampling"], values["probes"]
    if sampling["slow_interval"] < sampling["interval"]:
        if sampling["slow_interval"] == SamplingSettings().slow_interval:
            # The default gives way to a longer interval that somebody chose.
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
    if not values["web"]["telemetry_path"].startswith("/"):
        yield f"web.telemetry_path: must start with /, got {values['web']['telemetry_path']!r}"
    if not values["web"]["listen_address"]:
        yield "web.listen_address: must name at least one address"
    names = [workload["name"] for workload in values["workloads"]]
    for position, name in enumerate(names):
        if name and name in names[:position]:
            yield f"workloads[{position}].name: is used twice: {name!r}"
