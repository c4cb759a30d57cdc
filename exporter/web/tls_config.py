"""The `tls_server_config` section: Go's names for TLS put into OpenSSL's."""

import ssl
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from exporter.errors import WebConfigError
from exporter.web.tls import Pem, TlsSettings, comparable_names


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
    """The section as written."""

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


def tls_settings(config: TlsServerConfig, path: Path) -> tuple[TlsSettings | None, list[str]]:
    """The settings of a section, None when it is empty, and warnings about keys without effect.

    Relative file names are relative to the folder of `path`. Raises WebConfigError.
    """
    if config == TlsServerConfig():
        return None, []
    return _Section(config, path).settings()


class _Section:
    def __init__(self, config: TlsServerConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._warnings: list[str] = []

    def settings(self) -> tuple[TlsSettings, list[str]]:
        config = self._config
        certificate = self._pem("cert", config.cert, config.cert_file)
        private_key = self._pem("key", config.key, config.key_file)
        if certificate is None:
            self._refuse("cert_file", "is missing")
        if private_key is None:
            self._refuse("key_file", "is missing")
        client_ca = self._pem("client_ca", config.client_ca, config.client_ca_file)
        client_verification = self._client_verification(client_ca)
        min_version, max_version = self._versions()
        ciphers, has_tls12 = self._ciphers()
        if not has_tls12:
            if max_version is ssl.TLSVersion.TLSv1_2:
                self._refuse("cipher_suites", "names none of TLS 1.2, the max_version")
            min_version = ssl.TLSVersion.TLSv1_3
        settings = TlsSettings(
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
            curve=self._curve(),
        )
        return settings, self._warnings

    def _pem(self, key: str, inline: str, name: str) -> Pem | None:
        if inline and name:
            self._refuse(f"{key}_file", f"give either this or '{key}', not both")
        if name:
            return Pem(f"{key}_file", self._path.parent / name)
        return Pem(key, None, inline) if inline else None

    def _client_verification(self, client_ca: Pem | None) -> ssl.VerifyMode:
        name = self._config.client_auth_type
        if name in _UNVERIFIED_CLIENT_AUTH:
            self._refuse(
                "client_auth_type",
                f"'{name}' would trust any certificate; use RequireAndVerifyClientCert",
            )
        if name not in _CLIENT_AUTH:
            choices = ", ".join(choice for choice in _CLIENT_AUTH if choice)
            self._refuse("client_auth_type", f"must be one of {choices}, got '{name}'")
        verification = _CLIENT_AUTH[name]
        if client_ca is not None and verification is ssl.CERT_NONE:
            self._refuse(
                client_ca.key, "needs a client_auth_type, such as RequireAndVerifyClientCert"
            )
        if client_ca is None and verification is not ssl.CERT_NONE:
            self._refuse("client_auth_type", f"{name} needs a client_ca_file")
        sans = self._config.client_allowed_sans
        if sans is not None and verification is not ssl.CERT_REQUIRED:
            self._refuse("client_allowed_sans", "needs client_auth_type RequireAndVerifyClientCert")
        if sans == []:
            self._refuse("client_allowed_sans", "is empty, so that no client could connect")
        return verification

    def _versions(self) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
        config = self._config
        for key, name in (("min_version", config.min_version), ("max_version", config.max_version)):
            if name not in _VERSIONS:
                self._refuse(key, f"must be TLS12 or TLS13, got '{name}'")
        if config.max_version in _OBSOLETE_VERSIONS:
            self._refuse("max_version", f"{config.max_version} is obsolete; use TLS12 or TLS13")
        if config.min_version in _OBSOLETE_VERSIONS:
            self._warnings.append(
                f"tls_server_config.min_version: {config.min_version} is obsolete, TLS12 is the least"
            )
        low, high = _VERSIONS[config.min_version], _VERSIONS[config.max_version]
        if low > high:
            self._refuse(
                "min_version", f"{config.min_version} is above max_version {config.max_version}"
            )
        return low, high

    def _ciphers(self) -> tuple[str | None, bool]:
        """OpenSSL's list for TLS 1.2, None for its default, and whether any of TLS 1.2 is wanted."""
        names = self._config.cipher_suites
        for name in names:
            if name not in _TLS12_CIPHERS and name not in _TLS13_CIPHERS:
                self._refuse("cipher_suites", f"'{name}' is unknown or insecure")
        wanted = [_TLS12_CIPHERS[name] for name in names if name in _TLS12_CIPHERS]
        return (":".join(wanted) or None), bool(wanted or not names)

    def _curve(self) -> str | None:
        names = self._config.curve_preferences
        for name in names:
            if name not in _CURVES:
                choices = ", ".join(_CURVES)
                self._refuse("curve_preferences", f"must be of {choices}, got '{name}'")
        if len(names) > 1:
            # Python's ssl takes one curve or OpenSSL's default list, which holds all four.
            self._warnings.append(
                "tls_server_config.curve_preferences: an order cannot be set, all curves are offered"
            )
            return None
        return _CURVES[names[0]] if names else None

    def _refuse(self, key: str, what: str) -> NoReturn:
        raise WebConfigError(f"{self._path}: tls_server_config.{key}: {what}")
