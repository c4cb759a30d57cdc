"""The file behind --web.config.file, in the format of Prometheus' exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Read strictly:
what this server cannot do is an error or, where doing less is safe, a warning.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from exporter.errors import ConfigError, WebConfigError
from exporter.strict_yaml import load_strict
from exporter.web.authentication import BCRYPT_HASH
from exporter.web.tls import TlsSettings, build_context
from exporter.web.tls_config import TlsServerConfig, tls_settings
from flopwatch.option_parsers import nearest


# A comparison at cost 16 takes 5 s of one core, and every new client waits for it.
_COST_MIN: Final = 4
_COST_MAX: Final = 16
# The headers that the format allows, with their values where those are fixed.
_HEADERS: Final[Mapping[str, frozenset[str]]] = {
    "Content-Security-Policy": frozenset(),
    "Strict-Transport-Security": frozenset(),
    "X-Content-Type-Options": frozenset({"nosniff"}),
    "X-Frame-Options": frozenset({"deny", "sameorigin"}),
    "X-XSS-Protection": frozenset(),
}
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `burst` requests at once, and one each `interval_seconds` over time."""

    interval_seconds: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """A checked web configuration. `users` pairs names with bcrypt hashes."""

    path: Path
    tls: TlsSettings | None = None
    headers: tuple[tuple[str, str], ...] = ()
    users: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    rate_limit: RateLimit | None = None
    warnings: tuple[str, ...] = ()


class _HttpServerConfig(msgspec.Struct, forbid_unknown_fields=True):
    http2: bool | None = None
    headers: dict[str, Any] = {}


class _RateLimitConfig(msgspec.Struct, forbid_unknown_fields=True):
    interval: str | int = 0
    burst: int = 0


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tls_server_config: TlsServerConfig | None = None
    http_server_config: _HttpServerConfig | None = None
    basic_auth_users: dict[str, Any] | None = None
    rate_limit: _RateLimitConfig | None = None


_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "tls_server_config": TlsServerConfig,
    "http_server_config": _HttpServerConfig,
    "rate_limit": _RateLimitConfig,
}


def load_web_config(path: Path) -> WebConfig:
    """Read and check a web configuration and the certificates it names.

    Raises WebConfigError, one line: "web.yml: tls_server_config.cert_file: …".
    """
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._warnings: list[str] = []

    def read(self) -> WebConfig:
        file = self._parse()
        http = file.http_server_config or _HttpServerConfig()
        if http.http2:
            self._warnings.append("http_server_config.http2: only HTTP/1.1 is supported")
        tls = None
        if file.tls_server_config:
            tls, warnings = tls_settings(file.tls_server_config, self._path)
            self._warnings += warnings
        if tls is not None:
            build_context(tls, time.time())
        return WebConfig(
            path=self._path,
            tls=tls,
            headers=self._headers(http.headers),
            users=self._users(file.basic_auth_users or {}),
            rate_limit=self._rate_limit(file.rate_limit or _RateLimitConfig()),
            warnings=tuple(self._warnings),
        )

    def _parse(self) -> _File:
        try:
            data = load_strict(self._path.read_text("utf-8"), source=str(self._path))
        except OSError as error:
            raise WebConfigError(
                f"{self._path}: cannot be read: {(error.strerror or str(error)).lower()}"
            ) from None
        except UnicodeDecodeError:
            raise WebConfigError(f"{self._path}: the file is not UTF-8") from None
        except ConfigError as error:
            raise WebConfigError(str(error)) from None
        data = {} if data is None else data
        self._refuse_unknown_keys(data)
        try:
            return msgspec.convert(data, _File)
        except msgspec.ValidationError as error:
            self._refuse(*_translate(str(error)))

    def _refuse_unknown_keys(self, data: object) -> None:
        self._check_keys("", data, _File)
        if isinstance(data, dict):
            for section, kind in _SECTIONS.items():
                self._check_keys(section, data.get(section), kind)

    def _check_keys(self, section: str, data: object, kind: type[msgspec.Struct]) -> None:
        known = [entry.name for entry in msgspec.structs.fields(kind)]
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                place = f"{section}.{key}" if section else key
                self._refuse(place, f"unknown key{_suggestion(key, known)}")

    def _headers(self, headers: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        chosen = []
        for name, given in headers.items():
            place = f"http_server_config.headers.{name}"
            if name not in _HEADERS:
                hint = _suggestion(name, list(_HEADERS))
                self._refuse(place, f"this header cannot be configured{hint}")
            # `X-XSS-Protection: 0` is natural to write, and a number to YAML.
            value = str(given) if type(given) is int else given
            if not isinstance(value, str):
                self._refuse(place, "must be a string")
            if not (value.isascii() and value.isprintable()):
                self._refuse(place, "the value must be printable ASCII on one line")
            if _HEADERS[name] and value and value not in _HEADERS[name]:
                choices = " or ".join(f"'{choice}'" for choice in sorted(_HEADERS[name]))
                self._refuse(place, f"must be {choices}, got '{value}'")
            if value:  # blank is unset
                chosen.append((name, value))
        return tuple(chosen)

    def _users(self, users: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        for name, hashed in users.items():
            place = f"basic_auth_users.{name}"
            if ":" in name:
                self._refuse(place, "a user name cannot contain ':'")
            found = BCRYPT_HASH.fullmatch(hashed) if isinstance(hashed, str) else None
            if found is None:  # the value is not shown: it may well be the password
                self._refuse(
                    place,
                    "not a bcrypt hash (a password in clear text?); "
                    "make one with: htpasswd -nBC 10 USER",
                )
            if not _COST_MIN <= int(found[1]) <= _COST_MAX:
                self._refuse(
                    place,
                    f"the bcrypt cost must be from {_COST_MIN} to {_COST_MAX}, got {int(found[1])}",
                )
        return tuple(users.items())

    def _rate_limit(self, config: _RateLimitConfig) -> RateLimit | None:
        interval_seconds = _duration_seconds(config.interval)
        if interval_seconds is None:
            self._refuse(
                "rate_limit.interval", f"must be a duration such as '1s', got '{config.interval}'"
            )
        if interval_seconds == 0:
            return None
        if config.burst < 1:
            self._refuse("rate_limit.burst", f"must be at least 1, got {config.burst}")
        return RateLimit(interval_seconds, config.burst)

    def _refuse(self, place: str, what: str) -> NoReturn:
        raise WebConfigError(f"{self._path}: {f'{place}: ' if place else ''}{what}")


def _duration_seconds(value: str | int) -> float | None:
    """Seconds of a duration as Go writes it (`250ms`, `1m30s`, `0`); None when it is not one."""
    if value in {0, "0"}:
        return 0.0
    if isinstance(value, int) or not value or _DURATION_PART.sub("", value):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


def _suggestion(key: str, known: list[str]) -> str:
    meant = nearest(key, known)
    return f"; did you mean '{meant}'?" if meant else f"; known are {', '.join(known)}"


_TYPES: Final = {
    "object": "a mapping",
    "array": "a list",
    "str": "a string",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "null": "nothing",
}
_TYPE_NAMES: Final = re.compile(r"`([a-z |]+)`")


def _translate(message: str) -> tuple[str, str]:
    """Place and fault of a msgspec error, in the words of the file rather than of Python."""
    what, _, place = message.partition(" - at `$")
    what = _TYPE_NAMES.sub(_type_words, what)
    return place.strip("`").lstrip("."), what[:1].lower() + what[1:]


def _type_words(match: re.Match[str]) -> str:
    names = match[1].split(" | ")
    wanted = [name for name in names if name != "null"] or names
    return " or ".join(_TYPES.get(name, name) for name in wanted)
