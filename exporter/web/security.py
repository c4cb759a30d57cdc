"""The active web configuration: TLS, authentication, rate limit."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import random
import secrets
import ssl
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Final

import structlog

from exporter.web.config import BCRYPT_HASH, WebConfig, load_web_config
from exporter.web.conversation import Security
from exporter.web.http import Request, Response, plain
from exporter.web.tls import ContextSource, names_allowed_client


log = structlog.get_logger(__name__)

_PASSWORD_BYTES_MAX: Final = 72  # bcrypt reads no more, and its newer versions raise
_VERDICTS_MAX: Final = 100  # a handful of scrapers, and recently mistyped passwords
# A Prometheus pair behind one address needs two at a restart. An address with more is guessing.
_WAITING_PER_ADDRESS_MAX: Final = 4
# Providers hand a host a whole IPv6 subnet of this size.
_IPV6_PREFIX_BITS: Final = 64


class Verdict(Enum):
    """What to do with a request's credentials."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    OVERLOADED = "overloaded"  # too many comparisons are waiting; none was made


class BasicAuthenticator:
    """Checks HTTP basic authentication against bcrypt hashes, by user name.

    A user that does not exist costs the same comparison as one that does. One comparison runs at a
    time, because each is meant to be expensive, and client addresses take turns: an address that
    guesses passwords delays the others by one comparison each, and never refuses them. Verdicts are
    remembered, so a scrape needs no comparison. The memory's keys are keyed hashes: it holds no
    password, and its lookup time says nothing about one.
    """

    def __init__(self, users: Mapping[str, str], memory: "VerdictMemory | None" = None) -> None:
        """`memory` outlives a reload: verdicts on unchanged hashes stay valid."""
        self._hashes = {name: text.encode("ascii") for name, text in users.items()}
        cost = max(int(found[1]) for text in users.values() if (found := BCRYPT_HASH.match(text)))
        # A well-formed hash of no known password, made of random characters: computing a real one
        # would take as long as a comparison.
        self._decoy = f"$2b${cost:02d}${_characters(21)}.{_characters(31)}".encode()
        self._memory = VerdictMemory() if memory is None else memory
        self._turns = _Turns()

    def check(self, authorization: str | None, client: str) -> Verdict:
        """Judge an Authorization header from an IP address; a malformed one is refused at once."""
        credentials = _parse(authorization)
        if credentials is None:
            return Verdict.REFUSED
        user, password = credentials
        known = user in self._hashes
        hashed = self._hashes.get(user, self._decoy)
        key = self._memory.key(user, hashed, password)
        matches = self._memory.get(key)
        if matches is None:
            with self._turns.take(_subnet(client)) as taken:
                if not taken:
                    return Verdict.OVERLOADED
                matches = self._compare(key, hashed, password)
        return Verdict.ADMITTED if matches and known else Verdict.REFUSED

    def _compare(self, key: bytes, hashed: bytes, password: bytes) -> bool:
        import bcrypt  # noqa: PLC0415  only where there are users: it takes 1 MB

        remembered = self._memory.get(key)
        if remembered is not None:  # another thread has compared the same in the meantime
            return remembered
        # A password longer than bcrypt reads is wrong, and refusing it takes as long.
        short = password[:_PASSWORD_BYTES_MAX]
        matches = bcrypt.checkpw(short, hashed) and short == password
        self._memory.remember(key, matches=matches)
        return matches


class VerdictMemory:
    """Verdicts by keyed hash of user, bcrypt hash and password. Thread-safe by the interpreter's lock."""

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(32)
        self._verdicts: dict[bytes, bool] = {}

    def __len__(self) -> int:
        return len(self._verdicts)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._verdicts)

    def get(self, key: bytes) -> bool | None:
        """Whether the password matched, None when it was never compared."""
        return self._verdicts.get(key)

    def remember(self, key: bytes, *, matches: bool) -> None:
        """Keep a verdict; a full memory forgets refusals first, so guesses displace no scraper."""
        if len(self._verdicts) >= _VERDICTS_MAX:
            refusals = [old for old, matched in self._verdicts.items() if not matched]
            del self._verdicts[random.choice(refusals or list(self._verdicts))]
        self._verdicts[key] = matches

    def key(self, user: str, hashed: bytes, password: bytes) -> bytes:
        """A changed password has another hash, and so another key."""
        parts = (user.encode("utf-8", "surrogateescape"), hashed, password)
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._pepper, message, hashlib.sha256)


class _Turns:
    """One comparison at a time; addresses that wait are served in rotation."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[object]] = OrderedDict()
        self._busy = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, address: str) -> Iterator[bool]:
        """Wait for a turn; yields False at once where the address waits too often already."""
        if not self._wait(address):
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _wait(self, address: str) -> bool:
        ticket = object()
        with self._changed:
            queue = self._waiting.setdefault(address, deque())
            if len(queue) >= _WAITING_PER_ADDRESS_MAX:
                return False
            queue.append(ticket)
            self._changed.wait_for(lambda: not self._busy and self._next() is ticket)
            queue.popleft()
            if queue:
                self._waiting.move_to_end(address)
            else:
                del self._waiting[address]
            self._busy = True
            return True

    def _next(self) -> object:
        return next(iter(self._waiting.values()))[0]


def _subnet(client: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 subnet."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if address.version == 4:
        return client
    return str(ipaddress.ip_network((address, _IPV6_PREFIX_BITS), strict=False))


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


class RateLimiter:
    """A token bucket: `burst` requests at once, then one each `interval_seconds`."""

    def __init__(
        self, interval_seconds: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._counted_at = clock()

    def allows(self) -> bool:
        """Take a token; False when there is none."""
        with self._lock:
            now = self._clock()
            earned = (now - self._counted_at) / self._interval_seconds
            self._tokens = min(float(self._burst), self._tokens + earned)
            self._counted_at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


# A kubelet has no password, and a flood of scrapes must not have the pod killed.
_FREE_PATHS: Final = frozenset({"/-/healthy", "/-/ready"})
_CHALLENGE = (("WWW-Authenticate", 'Basic realm="flopwatch", charset="UTF-8"'),)


class WebSecurity(Security):
    """An active web configuration: certificates, passwords, rate limit.

    Raises WebConfigError when the certificates cannot be used.
    """

    def __init__(self, config: WebConfig, verdicts: VerdictMemory | None = None) -> None:
        self._config = config
        self.headers = config.headers
        self._verdicts = verdicts or VerdictMemory()
        tls = config.tls
        self._contexts = ContextSource(tls) if tls else None
        self._allowed_sans = tls.allowed_sans if tls else frozenset()
        users = dict(config.users)
        self._authenticator = BasicAuthenticator(users, self._verdicts) if users else None
        rate = config.rate_limit
        self._limiter = RateLimiter(rate.interval_seconds, rate.burst) if rate else None
        for warning in config.warnings:
            log.warning("web_config_key_without_effect", what=warning)

    def reloaded(self) -> "WebSecurity":
        """The same with its files read again; verdicts on unchanged hashes stay. Raises WebConfigError."""
        return WebSecurity(load_web_config(self._config.path), self._verdicts)

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for a new connection, with the newest certificates; None for plain HTTP."""
        return self._contexts.context() if self._contexts else None

    def admits_peer(self, secured: ssl.SSLSocket) -> bool:
        """Whether the client certificate names an allowed client, where a list of them is set."""
        return not self._allowed_sans or names_allowed_client(
            secured.getpeercert(), self._allowed_sans
        )

    @property
    def authenticates(self) -> bool:
        """Whether a request needs a password or a client certificate."""
        tls = self._config.tls
        by_certificate = tls is not None and tls.client_verification is ssl.CERT_REQUIRED
        return self._authenticator is not None or by_certificate

    def refusal(self, request: Request) -> Response | None:
        """The answer for a request that may not go on to the handler, or None.

        Health paths are free, of the rate limit too.
        """
        if request.path in _FREE_PATHS:
            return None
        if self._limiter and not self._limiter.allows():
            return plain(429)
        if self._authenticator is None:
            return None
        verdict = self._authenticator.check(request.headers.get("authorization"), request.client)
        if verdict is Verdict.OVERLOADED:
            return plain(429, headers=(("Retry-After", "1"),))
        return plain(401, headers=_CHALLENGE) if verdict is Verdict.REFUSED else None
