"""The active web configuration: TLS, authentication, rate limit."""

import ssl
import threading
import time
from collections.abc import Callable

import structlog

from exporter.web.authentication import BasicAuthenticator, Verdict, VerdictMemory
from exporter.web.config import WebConfig, load_web_config
from exporter.web.conversation import Security
from exporter.web.http import Request, Response, plain
from exporter.web.tls import ContextSource, names_allowed_client


log = structlog.get_logger(__name__)


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


_CHALLENGE = (("WWW-Authenticate", 'Basic realm="flopwatch", charset="UTF-8"'),)


class WebSecurity(Security):
    """An active web configuration: certificates, passwords, rate limit.

    Raises WebConfigError when the certificates cannot be used.
    """

    def __init__(
        self,
        config: WebConfig,
        unauthenticated_paths: frozenset[str],
        verdicts: VerdictMemory | None = None,
    ) -> None:
        self._config = config
        self.headers = config.headers
        self._unauthenticated_paths = unauthenticated_paths
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
        return WebSecurity(
            load_web_config(self._config.path), self._unauthenticated_paths, self._verdicts
        )

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

        Health paths are free, of the rate limit too: a kubelet has no password, and a flood of
        scrapes must not have the pod killed.
        """
        if request.path in self._unauthenticated_paths:
            return None
        if self._limiter and not self._limiter.allows():
            return plain(429)
        if self._authenticator is None:
            return None
        verdict = self._authenticator.check(request.headers.get("authorization"), request.client)
        if verdict is Verdict.OVERLOADED:
            return plain(429, headers=(("Retry-After", "1"),))
        return plain(401, headers=_CHALLENGE) if verdict is Verdict.REFUSED else None
