"""What the commands read over HTTP: the status of a daemon, and instant queries of a Prometheus."""

import base64
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import msgspec

from exporter.errors import FlopwatchError
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


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: int | None
    path: str
    shown: str
    user: str | None
    password: str | None


def fetch_status(access: Access) -> Status:
    """The current document. Raises StatusError with one line for people."""
    target = _target(access)
    try:
        status, body = _get(target, access)
    except ssl.SSLCertVerificationError as error:
        raise StatusError(
            f"{target.shown}: certificate not accepted: {error.verify_message} (see --ca-file)"
        ) from None
    except TimeoutError:
        raise StatusError(f"{target.shown}: no answer in {access.timeout_seconds:g} s") from None
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # the host name may be malformed
        raise StatusError(f"{target.shown}: {_reason(error)}") from None
    if status == http.client.UNAUTHORIZED:
        raise StatusError(f"{target.shown}: user or password not accepted (see --user)")
    if status != http.client.OK:
        raise StatusError(
            f"{target.shown}: answered with status {status}; is it the address of a flopwatch?"
        )
    return _decode(body, target.shown)


def _target(access: Access) -> _Target:
    """Parse the address: a bare `host:port` is plain HTTP."""
    text = access.url if "://" in access.url else f"http://{access.url}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or not host.isprintable() or " " in host:
        raise StatusError("--url must be an address such as http://node:9907")
    # A user may give the page's address, the document's, or a proxy's prefix.
    path = parts.path.removesuffix(STATUS_PATH).rstrip("/") + STATUS_PATH
    if not path.isascii() or not path.isprintable() or " " in path:
        raise StatusError("--url must be an address such as http://node:9907")
    shown_host = f"[{host}]" if ":" in host else host
    return _Target(
        scheme=parts.scheme,
        host=host,
        port=port,
        path=path,
        shown=f"{parts.scheme}://{shown_host}{'' if port is None else f':{port}'}",
        user=access.user or (unquote(parts.username) if parts.username else None),
        password=access.password or (unquote(parts.password) if parts.password else None),
    )


def _get(target: _Target, access: Access) -> tuple[int, bytes]:
    connection: http.client.HTTPConnection
    if target.scheme == "https":
        connection = http.client.HTTPSConnection(
            target.host, target.port, timeout=access.timeout_seconds, context=_context(access)
        )
    else:
        connection = http.client.HTTPConnection(
            target.host, target.port, timeout=access.timeout_seconds
        )
    headers = {"Accept": "application/json", "User-Agent": "flopwatch-top", "Connection": "close"}
    if target.user is not None:
        pair = f"{target.user}:{target.password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    try:
        connection.request("GET", target.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_LIMIT_BYTES)
    finally:
        connection.close()


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise StatusError(f"--ca-file {access.ca_file}: {_reason(error)}") from None
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _decode(body: bytes, shown: str) -> Status:
    """The version is read first: a document of another version may have any form."""
    try:
        version = msgspec.json.decode(body, type=_Version).api_version
    except msgspec.DecodeError:
        raise StatusError(f"{shown}: the answer is not a status document") from None
    if version != API_VERSION:
        raise StatusError(
            f"{shown}: serves version {version} of the status API, but this program reads version {API_VERSION}"
        )
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as error:
        raise StatusError(f"{shown}: its status document is malformed: {error}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


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
                f"{self._url}/api/v1/query?{arguments}", timeout_seconds=self._timeout_seconds
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
            raise FlopwatchError(f"{shown}: the answer is not one of Prometheus") from None


def _refusal(error: ScrapeError) -> str | None:
    """Prometheus' own reason for refusing a query."""
    try:
        answer = json.loads(error.answer)
        return " ".join(str(answer["error"]).split()) if answer["status"] == "error" else None
    except (ValueError, KeyError, TypeError):
        return None
