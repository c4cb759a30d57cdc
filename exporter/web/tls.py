"""TLS contexts from PEM files, made anew when a file has changed."""

import contextlib
import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from exporter.errors import WebConfigError


log = structlog.get_logger(__name__)

_FILE_BYTES_MAX: Final = 4 << 20  # a bundle of all public authorities has 0.3 MB
_MISMATCHES: Final = frozenset(
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
)


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM text in a file or, without `path`, inline; `key` is where the configuration has it."""

    key: str
    path: Path | None
    inline: str = field(default="", repr=False)

    def read(self) -> bytes:
        """The text's bytes; raises OSError."""
        if self.path is None:
            return self.inline.encode()
        with self.path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)

    def stamp(self) -> tuple[int, int, int] | None:
        """A value that changes when the file is written or replaced; None when it is gone."""
        if self.path is None:
            return (0, 0, 0)
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    @contextlib.contextmanager
    def as_file(self) -> Iterator[Path]:
        """A path for OpenSSL, which takes private keys from files only; inline text stays in memory."""
        if self.path is not None:
            yield self.path
            return
        descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self.inline.encode())
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """A checked `tls_server_config`; `source` is the configuration file, for messages.

    `ciphers` is in OpenSSL's notation and concerns TLS 1.2; None leaves OpenSSL's choice.
    """

    source: str
    certificate: Pem
    private_key: Pem
    client_ca: Pem | None
    client_verification: ssl.VerifyMode
    allowed_sans: frozenset[str]
    min_version: ssl.TLSVersion
    max_version: ssl.TLSVersion
    ciphers: str | None
    prefer_server_ciphers: bool
    curve: str | None

    def refuse(self, pem: Pem, what: str) -> NoReturn:
        """Raise WebConfigError naming the file, the key and the fault."""
        place = f"{pem.path}: " if pem.path else ""
        raise WebConfigError(f"{self.source}: tls_server_config.{pem.key}: {place}{what}")


def build_context(settings: TlsSettings) -> ssl.SSLContext:
    """A server context from the files as they are now; raises WebConfigError.

    The certificate must be valid now and belong to the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = settings.min_version
    context.maximum_version = settings.max_version
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not settings.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.ciphers is not None:
        context.set_ciphers(settings.ciphers)
    if settings.curve is not None:
        context.set_ecdh_curve(settings.curve)
    # A client that also speaks HTTP/2 is told which of the two it is.
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, settings, datetime.now(UTC))
    context.verify_mode = settings.client_verification
    if settings.client_ca is not None:
        _load_client_ca(context, settings, settings.client_ca)
    return context


def _load_certificate(context: ssl.SSLContext, settings: TlsSettings, now: datetime) -> None:
    chain = _certificates(settings, settings.certificate)
    for position, der in enumerate(chain, start=1):
        try:
            fault = read_validity(der).fault(now)
        except ValueError:
            fault = "the certificate cannot be read"
        if fault:
            which = f" (number {position} in the file)" if position > 1 else ""
            settings.refuse(settings.certificate, fault + which)
    key = _read(settings, settings.private_key)
    if b"PRIVATE KEY-----" not in key:
        settings.refuse(settings.private_key, "contains no private key")
    try:
        with (
            settings.certificate.as_file() as cert_path,
            settings.private_key.as_file() as key_path,
        ):
            context.load_cert_chain(cert_path, key_path, password=_no_passphrase)
    except _PassphraseError:
        settings.refuse(settings.private_key, "the key has a passphrase; give one without")
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            settings.refuse(settings.private_key, "the key does not belong to the certificate")
        settings.refuse(
            settings.private_key, f"certificate and key cannot be used: {_words(error)}"
        )
    except OSError as error:
        settings.refuse(
            settings.private_key, f"certificate and key cannot be used: {error.strerror}"
        )


class _PassphraseError(Exception):
    """Called when OpenSSL wants a passphrase; without a callback it would ask on the terminal."""


def _no_passphrase() -> NoReturn:
    raise _PassphraseError


def _load_client_ca(context: ssl.SSLContext, settings: TlsSettings, client_ca: Pem) -> None:
    chain = _certificates(settings, client_ca)
    try:
        context.load_verify_locations(cadata=b"".join(chain))
    except ssl.SSLError as error:
        settings.refuse(client_ca, f"the certificates cannot be used: {_words(error)}")
    # As in the format's other implementations, an intermediate authority can be the anchor.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _certificates(settings: TlsSettings, pem: Pem) -> list[bytes]:
    try:
        found = split_pem(_read(settings, pem))
    except ValueError:
        settings.refuse(pem, "the certificate cannot be read")
    if not found:
        settings.refuse(pem, "contains no PEM certificate")
    return found


def _read(settings: TlsSettings, pem: Pem) -> bytes:
    try:
        return pem.read()
    except OSError as error:
        settings.refuse(pem, f"cannot be read: {(error.strerror or str(error)).lower()}")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


class ContextSource:
    """The context for the next connection, made anew when a file behind it has changed.

    A whole new context rather than new files in the old one, as OpenSSL can add authorities to a
    context but not take one away. When the new files cannot be used (the certificate is there and
    its key not yet) the old context stays, and one log line says why.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stamps = self._read_stamps()
        self._context = build_context(settings)

    def context(self) -> ssl.SSLContext:
        """The newest context that could be made; costs one stat of each file."""
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return self._context
        with self._lock:
            if stamps != self._stamps:
                self._stamps = stamps
                self._rebuild()
            return self._context

    def _rebuild(self) -> None:
        try:
            self._context = build_context(self._settings)
        except WebConfigError as error:
            log.warning("certificate_reload_failed", error=str(error))
        else:
            log.info("certificate_reloaded", file=str(self._settings.certificate.path))

    def _read_stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        settings = self._settings
        parts = (settings.certificate, settings.private_key, settings.client_ca)
        return tuple(part.stamp() for part in parts if part is not None)


def names_allowed_client(peer: dict[str, Any] | None, allowed: frozenset[str]) -> bool:
    """Whether a verified client certificate has one of the allowed subject alternative names."""
    names = (peer or {}).get("subjectAltName", ())
    return any(_comparable(name) in allowed for _, name in names)


def _comparable(name: str) -> str:
    """A name as the allow-list has it: OpenSSL writes IPv6 addresses in full and upper-case."""
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def comparable_names(names: list[str]) -> frozenset[str]:
    """An allow-list of subject alternative names, ready for `names_allowed_client`."""
    return frozenset(map(_comparable, names))


_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[^-]{1,100000}-----END CERTIFICATE-----", re.ASCII
)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0] EXPLICIT, absent in version 1
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


# The ssl module decodes only certificates that it has verified, and so no expired one. The few ASN.1
# elements on the way to the dates are therefore read here (RFC 5280, section 4.1).


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity period of a certificate, both ends included."""

    not_before: datetime
    not_after: datetime

    def fault(self, now: datetime) -> str | None:
        """Why the certificate is not valid now, or None."""
        if now > self.not_after:
            return f"the certificate expired on {_readable(self.not_after)}"
        if now < self.not_before:
            return f"the certificate is not valid before {_readable(self.not_before)}"
        return None


def split_pem(text: bytes) -> list[bytes]:
    """The DER bytes of each certificate in a PEM text. Raises ValueError on broken base64."""
    return [ssl.PEM_cert_to_DER_cert(found.decode("ascii")) for found in _PEM.findall(text)]


def read_validity(der: bytes) -> Validity:
    """The validity of one certificate. Raises ValueError when the bytes are no certificate."""
    try:
        _, start, _ = _element(der, 0, _SEQUENCE)  # Certificate
        _, start, _ = _element(der, start, _SEQUENCE)  # TBSCertificate
        tag, _, end = _element(der, start)
        if tag == _VERSION:
            _, _, end = _element(der, end)  # serialNumber
        _, _, end = _element(der, end, _SEQUENCE)  # signature
        _, _, end = _element(der, end, _SEQUENCE)  # issuer
        _, start, _ = _element(der, end, _SEQUENCE)  # validity
        not_before, end = _time(der, start)
        not_after, _ = _time(der, end)
    except IndexError:
        raise ValueError("truncated certificate") from None
    return Validity(not_before, not_after)


def _element(der: bytes, offset: int, expected_tag: int | None = None) -> tuple[int, int, int]:
    """Tag, start and end of the contents of the element at an offset."""
    tag = der[offset]
    if expected_tag is not None and tag != expected_tag:
        raise ValueError(f"expected ASN.1 tag {expected_tag:#x} at {offset}, found {tag:#x}")
    length = der[offset + 1]
    start = offset + 2
    if length & 0x80:  # the long form: so many bytes of length follow
        count = length & 0x7F
        length = int.from_bytes(der[start : start + count], "big")
        start += count
    if start + length > len(der):
        raise ValueError("an ASN.1 element is longer than the certificate")
    return tag, start, start + length


def _time(der: bytes, offset: int) -> tuple[datetime, int]:
    tag, start, end = _element(der, offset)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        century = "20" if int(text[:2]) < 50 else "19"  # RFC 5280, section 4.1.2.5.1
        text = century + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"expected a time at {offset}, found ASN.1 tag {tag:#x}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), end


def _readable(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")
