"""The errors that reach a user, as one tree.

* FlopwatchError             anything a command reports in one line, with its exit code
  + ConfigError              a configuration file, flag or environment variable is wrong
  + WebConfigError           the file behind --web.config.file is wrong
  + ListenError              an address is malformed, or may never be bound
    + AddressUnavailableError    it cannot be bound now; later it may
"""

from collections.abc import Sequence
from typing import ClassVar


# Exit codes. A supervisor starts the process again after the first, and not after the second.
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
