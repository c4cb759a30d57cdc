"""The configuration as the daemon uses it, and the schema of its file, derived from the declarations.

One declaration serves validation, environment variables, flags, `flopwatch config` and the
documentation.
"""

import ipaddress
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.advice import AdviceSettings
from exporter.attribution.settings import HolderSettings, PriceRule
from exporter.collect.settings import SamplingSettings
from exporter.errors import ListenError
from exporter.findings import Thresholds
from exporter.inference.config import DiscoveryConfig, WorkloadConfig
from flopwatch.option_parsers import boolean, choice, integer, items, optional, text
from flopwatch.options import (
    Nested,
    Option,
    OptionGroup,
    OptionList,
    build,
    declarations,
    option,
    option_list,
    settings,
)
from probes.config import ProbeConfig


_PORT_MAX = 65535
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of keys, sections and lists."""

    help: str
    keys: dict[str, "Node"] = field(default_factory=dict)

    def options(self, path: str = "") -> Iterator[tuple[str, Option]]:
        """The path and declaration of every key outside lists."""
        for name, node in self.keys.items():
            here = join_key(path, name)
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


def parse_listen_address(text: str) -> tuple[str, int]:
    """Split `:9907`, `127.0.0.1:9907`, `[::1]:9907` or `localhost:0` into host and port.

    The host is empty for all addresses of the machine, port 0 lets the kernel choose one.
    Raises ListenError, naming the text and what is wrong with it.
    """
    if text.startswith("unix:"):
        raise ListenError(
            f"listen address '{text}': Unix sockets are not supported; use a TCP address, or a "
            "socket unit with --web.systemd-socket"
        )
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        hint = f"; for all addresses write ':{text}'" if text.isdecimal() else ""
        raise ListenError(f"listen address '{text}': the port is missing{hint}")
    if not (port.isascii() and port.isdecimal()):
        raise ListenError(f"listen address '{text}': the port must be a number, got '{port}'")
    if int(port[:9]) > _PORT_MAX:
        raise ListenError(f"listen address '{text}': the port must be at most {_PORT_MAX}")
    return _parse_host(text, host), int(port)


def _parse_host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ListenError(
                f"listen address '{text}': '{host[1:-1]}' is not an IPv6 address"
            ) from None
        return host[1:-1]
    if ":" in host:
        raise ListenError(
            f"listen address '{text}': an IPv6 address must be in brackets, as in '[::1]:9907'"
        )
    if host and not _HOST_NAME.fullmatch(host):
        raise ListenError(f"listen address '{text}': '{host}' is not a host name or an address")
    return host


def _listen_addresses(value: Any) -> tuple[str, ...]:
    """One or several listen addresses, commas between them or not.

    Raises ValueError on what the server could not listen on.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be an address such as ':9907', or a list, got {value!r}")
    addresses = tuple(part.strip() for text in texts for part in text.split(",") if part.strip())
    if not addresses:
        raise ValueError("must name at least one address")
    for address in addresses:
        try:
            parse_listen_address(address)
        except ListenError as error:
            raise ValueError(str(error).removeprefix("listen address ")) from None
    return addresses


def _device_family(value: Any) -> str:
    """A parser of the name of a family that has the labels of a device."""
    # Loaded only where the option is used: sampling begins before the metrics are loaded.
    from exporter.metrics.catalogue import CATALOGUE  # noqa: PLC0415

    name: str = choice(*(family.name for family in CATALOGUE if family.per_device))(value)
    return name


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The daemon's listening addresses and server settings."""

    listen_address: tuple[str, ...] = option(
        "web.listen_address",
        _listen_addresses,
        (":9907",),
        "Addresses to listen on: one, or a list.",
        '":9907"',
        reload=False,
        flag="--web.listen-address",
    )
    systemd_socket: bool = option(
        "web.systemd_socket",
        boolean(),
        False,
        "Serve on the sockets that systemd passes instead of opening the listen addresses.",
        "false",
        reload=False,
        flag="--web.systemd-socket",
    )
    telemetry_path: str = option(
        "web.telemetry_path",
        text(),
        "/metrics",
        "Path of the metrics.",
        "/metrics",
        reload=False,
        flag="--web.telemetry-path",
    )
    config_file: str | None = option(
        "web.config_file",
        optional(text()),
        None,
        "TLS and authentication, in the format of Prometheus' exporter-toolkit. A reload reads its content again.",
        "/etc/flopwatch/web.yml",
        reload=False,
        flag="--web.config.file",
    )
    allowed_hosts: tuple[str, ...] = option(
        "web.allowed_hosts",
        items(text()),
        (),
        "Additional names that the Host header of a POST may contain if requests need no password.",
        "[gpu-node-7.example.com]",
        reload=False,
    )
    enable_lifecycle: bool = option(
        "web.enable_lifecycle",
        boolean(),
        False,
        "Allow POST /-/reload, /-/probes/pause and /-/probes/resume.",
        "false",
        reload=False,
        flag="--web.enable-lifecycle",
    )


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """An environment variable with our prefix that sets nothing, and the nearest valid one."""

    name: str
    nearest: str | None

    @property
    def remark(self) -> str:
        """The text that follows its name in a warning."""
        meant = f"; did you mean {self.nearest}?" if self.nearest else ""
        return f"is set, but there is no such option{meant}"


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. `values` holds the same as plain data, for `flopwatch config`."""

    values: Values
    unknown_variables: tuple[UnknownVariable, ...] = ()
    sampling: SamplingSettings = settings(SamplingSettings)
    probes: ProbeConfig = settings(ProbeConfig)
    workloads: tuple[WorkloadConfig, ...] = option_list(
        "workloads",
        WorkloadConfig,
        "Inference engines of this host whose tokens are turned into model FLOPs.",
        "One engine.",
        "[{name: chat, engine: vllm, url: 'http://127.0.0.1:8000/metrics'}]",
    )
    discovery: DiscoveryConfig = settings(DiscoveryConfig)
    holders: HolderSettings = settings(HolderSettings)
    prices: tuple[PriceRule, ...] = option_list(
        "prices",
        PriceRule,
        "What the GPUs of this host cost. The first match applies; without a match there is no price.",
        "One price. A GPU must fit all given patterns; without any, all GPUs fit.",
        '[{match: {name: "NVIDIA H100*"}, per_gpu_hour: 2.50, currency: USD}]',
    )
    advice: AdviceSettings = settings(AdviceSettings)
    holder_labels: frozenset[str] = option(
        "kubernetes.labels",
        items(_device_family),
        (),
        "Families whose series also carry namespace, pod, container and hpc_job of their device, where it "
        "has one holder only.",
        "[flopwatch_achieved_flops]",
        convert=frozenset,
    )
    thresholds: Thresholds = settings(Thresholds)
    process_memory: bool = option(
        "processes.memory",
        boolean(),
        False,
        "Export flopwatch_process_memory_bytes: a series per process.",
        "false",
    )
    state_file: Path = option(
        "state_file",
        text(),
        "/var/lib/flopwatch/state.json",
        "Baselines and calibration; where it cannot be written, the user's state directory is used.",
        "/var/lib/flopwatch/state.json",
        reload=False,
        convert=Path,
    )
    series_limit: int = option(
        "limits.series",
        integer(at_least=100, at_most=1_000_000),
        20_000,
        "Maximum number of series in one exposition. Further ones are dropped and counted.",
        "20000",
    )
    web: WebSettings = settings(WebSettings)
    log_level: str = option(
        "log.level",
        choice("debug", "info", "warning", "error", aliases={"warn": "warning"}),
        "info",
        "Lowest level.",
        "info",
        reload=False,
        flag="--log.level",
    )
    log_format: str = option(
        "log.format",
        choice("auto", "console", "logfmt", "json", aliases={}),
        "auto",
        "auto: console on a terminal, logfmt otherwise.",
        "json",
        reload=False,
        flag="--log.format",
    )

    def missing_gpus(self, known: Container[object]) -> Iterator[tuple[str, int | str]]:
        """Where it names a GPU that is not among these indices and UUIDs, and its name there."""
        named: list[tuple[str, int | str | None]] = [
            (f"gpus[{position}].match.index", rule.index)
            for position, rule in enumerate(self.sampling.gpus)
        ]
        named += [
            (f"workloads[{position}].gpus", gpu)
            for position, workload in enumerate(self.workloads)
            for gpu in workload.gpus
        ]
        for place, gpu in named:
            if gpu is not None and str(gpu) not in known:
                yield place, gpu


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
        path = join_key(path, parent)
        section = schema.keys.setdefault(parent, Section(sections.get(path, "")))
        assert isinstance(section, Section)
        schema = section
    schema.keys[name] = node


def join_key(path: str, name: str) -> str:
    """The path of a key in the section at `path`."""
    return f"{path}.{name}" if path else name


# The sections of the file, in the order of the documentation.
_SECTIONS: Mapping[str, str] = {
    "sampling": "How often the devices are read.",
    "sources": "Where readings come from: auto (where it is available), on, off.",
    "dcgm": "The dcgm-exporter of this host.",
    "gpus": "",
    "prices": "",
    "prices[].match": "Which GPUs: all given patterns must fit; without any, all GPUs fit.",
    "gpus[].match": "Which GPUs: all given patterns must fit; without any, all GPUs fit.",
    "probes": "The micro-probes. They need torch ([install.md](install.md)).",
    "workloads": "",
    "advice": "The periods that `flopwatch advise` uses ([levers.md](levers.md)).",
    "workload_discovery": "Discovery of engines on this host that are not listed in `workloads`.",
    "kubernetes": "Which pods hold the GPUs.",
    "hpc": "Which batch jobs hold the GPUs.",
    "processes": "Per-process series.",
    "findings": "The thresholds of the exporter's findings. The alert rules have a corresponding setting for each: [change both](dashboards.md#thresholds).",
    "state_file": "",
    "limits": "Bounds on what is exported.",
    "web": "The web server.",
    "log": "The log, on standard error.",
}

SCHEMA: Section = schema_of(
    Config,
    "flopwatch reads one YAML file; every key has a default, and an empty file is valid.",
    _SECTIONS,
)


def build_config(values: Values, unknown_variables: tuple[UnknownVariable, ...] = ()) -> Config:
    """The typed configuration. Raises ValueError if values cannot work together."""
    return build(Config, values, values=values, unknown_variables=unknown_variables)


def after_reload(active: Config, loaded: Config) -> tuple[Config, tuple[str, ...]]:
    """The configuration after a reload, and the changed keys that need a restart."""
    values: Values = _copy(loaded.values)
    waiting: list[str] = []
    for path, declared in SCHEMA.options():
        *parents, name = path.split(".")
        old: Any = active.values
        new: Any = values
        for parent in parents:
            old, new = old[parent], new[parent]
        if not declared.reload and old[name] != new[name]:
            waiting.append(path)
            new[name] = old[name]
    return build_config(values, loaded.unknown_variables), tuple(waiting)


def _copy(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _copy(value) for name, value in values.items()}
    return values
