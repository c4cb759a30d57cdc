import base64
import binascii
import hashlib
import hmac
import random
import re
import secrets
import threading
from collections.abc import Mapping
from enum import Enum
from typing import Final


# Version, cost, 22 characters of salt (of the last only two bits count), 31 of hash.
BCRYPT_HASH: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")

_PASSWORD_BYTES_MAX: Final = 72  # bcrypt reads no more, and its newer versions raise
_VERDICTS_MAX: Final = 100  # a handful of scrapers and the passwords that were mistyped lately
# Beyond these the port is under attack: a queue of comparisons at 0.1 s each would fill the
# connection table, and a rightful client, whose verdict is cached, does not stand in it.
_WAITING_MAX: Final = 8


class Verdict(Enum):
    """What to do with a request's credentials."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    OVERLOADED = "overloaded"  # too many comparisons are waiting; none was made


class BasicAuthenticator:
    """Checks HTTP basic authentication against bcrypt hashes, by user name.

    A user that does not exist costs the same comparison as one that does. One comparison runs at a
    time, as each is meant to be expensive; verdicts are remembered, so that a scrape is not. The
    memory's keys are keyed hashes: it holds no password, and its lookup time says nothing of one.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        self._hashes = {name: text.encode("ascii") for name, text in users.items()}
        cost = max(int(found[1]) for text in users.values() if (found := BCRYPT_HASH.match(text)))
        # A well-formed hash of nothing known; made of random characters, as a real one would take
        # as long to make as a comparison.
        self._decoy = f"$2b${cost:02d}${_characters(21)}.{_characters(31)}".encode()
        self._pepper = secrets.token_bytes(32)
        self._verdicts: dict[bytes, bool] = {}
        self._comparing = threading.Lock()
        self._waiting = 0
        self._counting = threading.Lock()

    def check(self, authorization: str | None) -> Verdict:
        """Judge an Authorization header; a missing or malformed one is refused at once."""
        credentials = _parse(authorization)
        if credentials is None:
            return Verdict.REFUSED
        user, password = credentials
        known = user in self._hashes
        hashed = self._hashes.get(user, self._decoy)
        key = self._key(user, hashed, password)
        matches = self._verdicts.get(key)
        if matches is None:
            with self._counting:
                if self._waiting >= _WAITING_MAX:
                    return Verdict.OVERLOADED
                self._waiting += 1
            try:
                matches = self._compare(key, hashed, password)
            finally:
                with self._counting:
                    self._waiting -= 1
        return Verdict.ADMITTED if matches and known else Verdict.REFUSED

    def _compare(self, key: bytes, hashed: bytes, password: bytes) -> bool:
        import bcrypt  # noqa: PLC0415  only where there are users: it takes 1 MB

        with self._comparing:
            remembered = self._verdicts.get(key)
            if remembered is not None:  # another thread has compared the same meanwhile
                return remembered
            # A password beyond bcrypt's reach is wrong, but takes as long to be found so.
            short = password[:_PASSWORD_BYTES_MAX]
            matches = bcrypt.checkpw(short, hashed) and short == password
            self._remember(key, matches=matches)
            return matches

    def _remember(self, key: bytes, *, matches: bool) -> None:
        if len(self._verdicts) >= _VERDICTS_MAX:
            # Refusals first: guessing must not push a scraper's verdict out.
            refusals = [old for old, matched in self._verdicts.items() if not matched]
            del self._verdicts[random.choice(refusals or list(self._verdicts))]
        self._verdicts[key] = matches

    def _key(self, user: str, hashed: bytes, password: bytes) -> bytes:
        parts = (user.encode("utf-8", "surrogateescape"), hashed, password)
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._pepper, message, hashlib.sha256)


def _parse(authorization: str | None) -> tuple[str, bytes] | None:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip().encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = decoded.partition(b":")
    return (user.decode("utf-8", "surrogateescape"), password) if colon else None


def _characters(count: int) -> str:
    alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(count))
