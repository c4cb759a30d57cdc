"""The errors that reach a user, as one tree, and why another program could not be read.

* FlopwatchError             anything a command reports in one line, with its exit code
  + ConfigError              a configuration file, flag or environment variable is wrong
  + WebConfigError           the file behind --web.config.file is wrong
  + ListenError              an address is malformed, or may never be bound
    + AddressUnavailableError    it cannot be bound now; later it may
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar


# Exit codes. A supervisor restarts the process after the first, and not after the second.
EXIT_TRANSIENT = 1
EXIT_USAGE = 2


class FlopwatchError(Exception):
    """A failure with a message for people: one line, naming the place and the remedy."""

    exit_code: ClassVar[int] = EXIT_USAGE


class ConfigError(FlopwatchError):
    """One or more mistakes in the configuration, each already formatted as `file: path: what`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class WebConfigError(FlopwatchError):
    """The web configuration (TLS, authentication, headers) cannot be used."""


class ListenError(FlopwatchError):
    """An address is malformed, or may never be bound."""


class AddressUnavailableError(ListenError):
    """An address that cannot be bound now: in use, not assigned yet, or not resolved yet."""

    exit_code = EXIT_TRANSIENT


class Reason(StrEnum):
    """Values of the `reason` label of `flopwatch_workload_errors_total`."""

    CONNECTION = "connection"  # refused, reset, no route, no such host
    TIMEOUT = "timeout"  # the answer was not complete within the deadline
    HTTP_STATUS = "http_status"  # an answer other than 200
    REDIRECT = "redirect"  # never followed: an engine has no reason to send us elsewhere
    TOO_LARGE = "too_large"
    PROTOCOL = "protocol"  # not HTTP, or an answer cut short
    ENCODING = "encoding"  # broken compression, or not UTF-8
    WRONG_ENGINE = "wrong_engine"  # metrics of another program, or no metrics at all
    BAD_URL = "bad_url"
    HUNG = "hung"  # the scraping thread itself is stuck
    INTERNAL = "internal"  # a bug of ours


class ScrapeError(Exception):
    """A scrape failed for `reason`; the text is for logs. `answer` is the start of a refusal's body."""

    def __init__(self, reason: Reason, detail: str = "", answer: bytes = b"") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason
        self.answer = answer


class HolderSourceError(Exception):
    """A source of holders could not be read. `reason` is one of a few words, usable as a label value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
