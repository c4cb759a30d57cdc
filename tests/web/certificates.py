"""Certificates for the tests, created in each run."""

from datetime import UTC, datetime
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """A certificate authority and the files that it issues into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")

    def issue(
        self,
        name: str,
        *identities: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> trustme.LeafCert:
        """Write `name`.pem and `name`.key."""
        issued = self.ca.issue_cert(
            *(identities or ("localhost", "127.0.0.1")),
            not_before=not_before,
            not_after=not_after,
            key_type=key_type,
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        (self.folder / f"{name}.pem").write_bytes(chain)
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")
        return issued


def write_corpus_certificates(folder: Path) -> None:
    """All files that the configurations of the corpus name."""
    authority = Authority(folder)
    authority.issue("server")
    authority.issue("other")
    authority.issue("rsa", key_type=trustme.KeyType.RSA)
    authority.issue(
        "expired",
        not_before=datetime(2020, 1, 1, tzinfo=UTC),
        not_after=datetime(2020, 1, 31, tzinfo=UTC),
    )
    authority.issue(
        "future",
        not_before=datetime(2090, 1, 1, tzinfo=UTC),
        not_after=datetime(2090, 1, 31, tzinfo=UTC),
    )
    server, expired = ((folder / name).read_bytes() for name in ("server.pem", "expired.pem"))
    (folder / "chain.pem").write_bytes(server + expired)
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    (folder / "encrypted.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    for name, kind, body in (
        ("junk.pem", "CERTIFICATE", "MAoCAQECAQECAQE="),
        ("bad_base64.pem", "CERTIFICATE", "MAo"),
        ("junk.key", "PRIVATE KEY", "MAoCAQECAQECAQE="),
    ):
        (folder / name).write_text(f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
    (folder / "folder").mkdir()
