"""The dates of X.509 certificates, read from their DER bytes.

The ssl module decodes only certificates that it has verified, which an expired one is not; so the
few ASN.1 elements on the way to the validity are walked here (RFC 5280, section 4.1).
"""

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final


_PEM: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[^-]{1,100000}-----END CERTIFICATE-----", re.ASCII
)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0  # [0] EXPLICIT, absent in version 1
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18


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
        return _read_validity(der)
    except IndexError:
        raise ValueError("truncated certificate") from None


def _read_validity(der: bytes) -> Validity:
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
