"""Prometheus' HTTP API, as far as the commands use it: instant queries."""

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from exporter.errors import FlopwatchError
from exporter.http_client import ScrapeError, fetch, without_credentials


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
            raise FlopwatchError(f"{shown}: {error}; is it the address of a Prometheus?") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise FlopwatchError(f"{shown}: the answer is not Prometheus'") from None
