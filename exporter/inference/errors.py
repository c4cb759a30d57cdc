"""Why a scrape of an engine yielded nothing. Never reaches a user as anything but a reason."""

from enum import StrEnum


class Reason(StrEnum):
    """Values of the `reason` label of `flopwatch_workload_errors_total`."""

    CONNECTION = "connection"  # refused, reset, no route, no such host
    TIMEOUT = "timeout"  # the whole answer was not there within the deadline
    HTTP_STATUS = "http_status"  # an answer other than 200
    REDIRECT = "redirect"  # never followed: an engine has no reason to send us elsewhere
    TOO_LARGE = "too_large"
    PROTOCOL = "protocol"  # not HTTP, or an answer cut short
    ENCODING = "encoding"  # broken compression, or not UTF-8
    WRONG_ENGINE = "wrong_engine"  # metrics of another program, or no metrics at all
    BAD_URL = "bad_url"
    HUNG = "hung"  # the scraping thread itself has not come back
    INTERNAL = "internal"  # a fault of ours


class ScrapeError(Exception):
    """A scrape failed for `reason`; the text is for logs."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason
