"""The file behind --web.config.file, in the format of Prometheus' exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Read strictly:
what this server cannot do is an error or, where doing less is safe, a warning.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from exporter.config.load import read_strict
from exporter.errors import ConfigError, WebConfigError
from exporter.web.tls import Pem, TlsSettings, build_context, comparable_names
from flopwatch.option_parsers import nearest


_VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1_2,
    "TLS11": ssl.TLSVersion.TLSv1_2,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_OBSOLETE_VERSIONS: Final = frozenset({"TLS10", "TLS11"})
_CLIENT_AUTH: Final = {
    "": ssl.CERT_NONE,
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
# These request a certificate and trust any.
_UNVERIFIED_CLIENT_AUTH: Final = frozenset(
    {"RequestClientCert", "RequireAnyClientCert", "RequireClientCert"}
)
# Go's secure cipher suites (https://pkg.go.dev/crypto/tls#CipherSuites). Those of TLS 1.3 are
# always on, in Go as in OpenSSL.
_TLS13_CIPHERS: Final = frozenset(
    {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
)
_TLS12_CIPHERS: Final = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
_CURVES: Final = {
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
}


class TlsServerConfig(msgspec.Struct, forbid_unknown_fields=True):
    """The section as written. Relative file names are relative to the folder of the file."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: str = ""
    client_allowed_sans: list[str] | None = None
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    cipher_suites: list[str] = []
    prefer_server_cipher_suites: bool = True
    curve_preferences: list[str] = []


# Version, cost, 22 characters of salt (of the last only two bits count), 31 of hash.
BCRYPT_HASH: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
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
        tls = self._tls(file.tls_server_config or TlsServerConfig())
        if tls is not None:
            build_context(tls)
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
            data = read_strict(str(self._path))
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

    def _tls(self, config: TlsServerConfig) -> TlsSettings | None:
        if config == TlsServerConfig():
            return None
        certificate = self._pem("cert", config.cert, config.cert_file)
        private_key = self._pem("key", config.key, config.key_file)
        if certificate is None:
            self._refuse_tls("cert_file", "is missing")
        if private_key is None:
            self._refuse_tls("key_file", "is missing")
        client_ca = self._pem("client_ca", config.client_ca, config.client_ca_file)
        client_verification = self._client_verification(config, client_ca)
        min_version, max_version = self._versions(config)
        ciphers, has_tls12 = self._ciphers(config)
        if not has_tls12:
            if max_version is ssl.TLSVersion.TLSv1_2:
                self._refuse_tls(
                    "cipher_suites", "contains no suite of TLS 1.2, but max_version is TLS12"
                )
            min_version = ssl.TLSVersion.TLSv1_3
        return TlsSettings(
            source=str(self._path),
            certificate=certificate,
            private_key=private_key,
            client_ca=client_ca,
            client_verification=client_verification,
            allowed_sans=comparable_names(config.client_allowed_sans or []),
            min_version=min_version,
            max_version=max_version,
            ciphers=ciphers,
            prefer_server_ciphers=config.prefer_server_cipher_suites,
            curve=self._curve(config),
        )

    def _pem(self, key: str, inline: str, name: str) -> Pem | None:
        if inline and name:
            self._refuse_tls(f"{key}_file", f"give either this or '{key}', not both")
        if name:
            return Pem(f"{key}_file", self._path.parent / name)
        return Pem(key, None, inline) if inline else None

    def _client_verification(
        self, config: TlsServerConfig, client_ca: Pem | None
    ) -> ssl.VerifyMode:
        name = config.client_auth_type
        if name in _UNVERIFIED_CLIENT_AUTH:
            self._refuse_tls(
                "client_auth_type",
                f"'{name}' would trust any certificate; use RequireAndVerifyClientCert",
            )
        if name not in _CLIENT_AUTH:
            choices = ", ".join(choice for choice in _CLIENT_AUTH if choice)
            self._refuse_tls("client_auth_type", f"must be one of {choices}, got '{name}'")
        verification = _CLIENT_AUTH[name]
        if client_ca is not None and verification is ssl.CERT_NONE:
            self._refuse_tls(
                client_ca.key, "needs a client_auth_type, such as RequireAndVerifyClientCert"
            )
        if client_ca is None and verification is not ssl.CERT_NONE:
            self._refuse_tls("client_auth_type", f"{name} needs a client_ca_file")
        sans = config.client_allowed_sans
        if sans is not None and verification is not ssl.CERT_REQUIRED:
            self._refuse_tls(
                "client_allowed_sans", "needs client_auth_type RequireAndVerifyClientCert"
            )
        if sans == []:
            self._refuse_tls("client_allowed_sans", "is empty, so that no client could connect")
        return verification

    def _versions(self, config: TlsServerConfig) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
        for key, name in (("min_version", config.min_version), ("max_version", config.max_version)):
            if name not in _VERSIONS:
                self._refuse_tls(key, f"must be TLS12 or TLS13, got '{name}'")
        if config.max_version in _OBSOLETE_VERSIONS:
            self._refuse_tls("max_version", f"{config.max_version} is obsolete; use TLS12 or TLS13")
        if config.min_version in _OBSOLETE_VERSIONS:
            self._warnings.append(
                f"tls_server_config.min_version: {config.min_version} is obsolete; TLS12 is used"
            )
        low, high = _VERSIONS[config.min_version], _VERSIONS[config.max_version]
        if low > high:
            self._refuse_tls(
                "min_version", f"{config.min_version} is above max_version {config.max_version}"
            )
        return low, high

    def _ciphers(self, config: TlsServerConfig) -> tuple[str | None, bool]:
        """OpenSSL's list for TLS 1.2, None for its default, and whether any of TLS 1.2 is wanted."""
        names = config.cipher_suites
        for name in names:
            if name not in _TLS12_CIPHERS and name not in _TLS13_CIPHERS:
                self._refuse_tls("cipher_suites", f"'{name}' is unknown or insecure")
        wanted = [_TLS12_CIPHERS[name] for name in names if name in _TLS12_CIPHERS]
        return (":".join(wanted) or None), bool(wanted or not names)

    def _curve(self, config: TlsServerConfig) -> str | None:
        names = config.curve_preferences
        for name in names:
            if name not in _CURVES:
                choices = ", ".join(_CURVES)
                self._refuse_tls("curve_preferences", f"must be one of {choices}, got '{name}'")
        if len(names) > 1:
            # Python's ssl takes one curve or OpenSSL's default list, which holds all four.
            self._warnings.append(
                "tls_server_config.curve_preferences: an order cannot be set, all curves are offered"
            )
            return None
        return _CURVES[names[0]] if names else None

    def _refuse_tls(self, key: str, what: str) -> NoReturn:
        self._refuse(f"tls_server_config.{key}", what)

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
    return f"; did you mean '{meant}'?" if meant else f"; known keys: {', '.join(known)}"


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
