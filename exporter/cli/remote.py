"""What the commands read over HTTP: the status of a daemon, and instant queries of a Prometheus."""

import json
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, unquote, urlsplit

import msgspec

from exporter.errors import FlopwatchError, Reason
from exporter.http_client import ScrapeError, fetch, without_credentials
from exporter.status.document import API_VERSION, STATUS_PATH, Status


# 64 devices make 400 kB.
_LIMIT_BYTES = 16 * 1024 * 1024


class StatusError(FlopwatchError):
    """The document could not be read; the message names the daemon and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a daemon. `password` is not shown in messages."""

    url: str
    user: str | None = None
    password: str | None = None
    ca_file: str | None = None
    verify: bool = True
    timeout_seconds: float = 5.0


class _Version(msgspec.Struct):
    api_version: int = 0


def fetch_status(access: Access) -> Status:
    """The current document. Raises StatusError with one line for people."""
    url, shown = _address(access)
    try:
        text = fetch(
            url,
            timeout_seconds=access.timeout_seconds,
            limit_bytes=_LIMIT_BYTES,
            tls_context=_context(access) if url.startswith("https") else None,
        )
    except ScrapeError as error:
        raise StatusError(f"{shown}: {_failure(error)}") from None
    return _decode(text, shown)


def _address(access: Access) -> tuple[str, str]:
    """The document's address, and how messages show it. A bare `host:port` is plain HTTP."""
    text = access.url if "://" in access.url else f"http://{access.url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    # A user may give the page's address, the document's, or a proxy's prefix.
    path = parts.path.removesuffix(STATUS_PATH).rstrip("/") + STATUS_PATH
    words = f"{host}{path}"
    if parts.scheme not in {"http", "https"} or not host or not path.isascii():
        raise StatusError("--url must be an address such as http://node:9907")
    if not words.isprintable() or " " in words:
        raise StatusError("--url must be an address such as http://node:9907")
    place = f"[{host}]" if ":" in host else host
    place += "" if port is None else f":{port}"
    user = access.user or unquote(parts.username or "")
    password = access.password or unquote(parts.password or "")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
    return f"{parts.scheme}://{login}{place}{path}", f"{parts.scheme}://{place}"


def _failure(error: ScrapeError) -> str:
    """What failed, in words for people."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {cause.verify_message} (see --ca-file)"
    if str(error) == f"status {HTTPStatus.UNAUTHORIZED}":
        return "user or password not accepted (see --user)"
    if error.reason in {Reason.HTTP_STATUS, Reason.REDIRECT}:
        return f"answered with {error}; is it the address of a flopwatch?"
    return str(error).lower() if error.reason is Reason.CONNECTION else str(error)


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = (error.strerror or str(error)).lower()
        raise StatusError(f"--ca-file {access.ca_file}: {reason}") from None
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _decode(text: str, shown: str) -> Status:
    """The version is read first: a document of another version may have any form."""
    try:
        version = msgspec.json.decode(text, type=_Version).api_version
    except msgspec.DecodeError:
        raise StatusError(f"{shown}: the answer is not a status document") from None
    if version != API_VERSION:
        raise StatusError(
            f"{shown}: serves version {version} of the status API, but this program reads version {API_VERSION}"
        )
    try:
        return msgspec.json.decode(text, type=Status)
    except msgspec.DecodeError as error:
        raise StatusError(f"{shown}: its status document is malformed: {error}") from None


# Prometheus explains a query that it refuses in a line or two.
_REFUSAL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Series:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float


class PrometheusApi:
    """Queries a Prometheus-compatible API. `url` may carry a user name and a password."""

    def __init__(self, url: str, *, timeout_seconds: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    def query(self, expression: str, at_unix_seconds: float) -> list[Series]:
        """The instant vector of an expression. Raises FlopwatchError with Prometheus' message."""
        arguments = urllib.parse.urlencode({"query": expression, "time": f"{at_unix_seconds:.3f}"})
        shown = without_credentials(self._url)
        try:
            text = fetch(
                f"{self._url}/api/v1/query?{arguments}",
                timeout_seconds=self._timeout_seconds,
                refusal_bytes=_REFUSAL_BYTES,
            )
            answer = json.loads(text)
            found = answer["data"]["result"]
            return [
                Series(dict(each["metric"]), float(each["value"][1]))
                for each in found
                if answer["data"]["resultType"] == "vector"
            ]
        except ScrapeError as error:
            message = _refusal(error) or f"{error}; is it the address of a Prometheus?"
            raise FlopwatchError(f"{shown}: {message}") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise FlopwatchError(f"{shown}: the answer is not from a Prometheus API") from None


def _refusal(error: ScrapeError) -> str | None:
    """Prometheus' own reason for refusing a query."""
    try:
        answer = json.loads(error.answer)
        return " ".join(str(answer["error"]).split()) if answer["status"] == "error" else None
    except (ValueError, KeyError, TypeError):
        return None
