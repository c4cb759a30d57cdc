import contextlib
from datetime import UTC, datetime

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from exporter.web.tls import Validity, read_validity, split_pem


AUTHORITY = trustme.CA()
LEAF = split_pem(AUTHORITY.issue_cert("localhost").cert_chain_pems[0].bytes())[0]


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [
        # Up to 2049 dates are UTCTime with two digits of year, then GeneralizedTime.
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (datetime(2049, 12, 31, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_dates_are_those_of_issue(not_before: datetime, not_after: datetime) -> None:
    """The dates that the authority wrote are the ones read."""
    issued = AUTHORITY.issue_cert("localhost", not_before=not_before, not_after=not_after)

    (der,) = split_pem(issued.cert_chain_pems[0].bytes())

    assert read_validity(der) == Validity(not_before, not_after)


def test_both_ends_are_valid() -> None:
    """A certificate is valid in the second of either date, and not one second beyond."""
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)
    validity = Validity(start, end)

    assert validity.fault(start) is None
    assert validity.fault(end) is None
    assert (
        validity.fault(datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))
        == "the certificate is not valid before 2026-01-01 00:00:00 UTC"
    )
    assert (
        validity.fault(datetime(2026, 1, 1, 0, 0, 3, tzinfo=UTC))
        == "the certificate expired on 2026-01-01 00:00:02 UTC"
    )


def test_all_certificates_of_a_file_are_found() -> None:
    """Text around and between them does not matter."""
    pem = AUTHORITY.cert_pem.bytes()

    assert len(split_pem(b"subject: a\n" + pem + b"\nsubject: b\n" + pem)) == 2
    assert split_pem(b"nothing here") == []


@given(st.integers(min_value=0, max_value=len(LEAF) - 1), st.integers(0, 255))
def test_a_damaged_certificate_is_read_or_refused(position: int, byte: int) -> None:
    """Whatever byte is wrong, reading ends with dates or ValueError."""
    damaged = LEAF[:position] + bytes([byte]) + LEAF[position + 1 :]

    with contextlib.suppress(ValueError):
        read_validity(damaged)


@given(st.binary(max_size=64))
def test_noise_is_refused(noise: bytes) -> None:
    """Short input is never a certificate."""
    with pytest.raises(ValueError):
        read_validity(noise)
