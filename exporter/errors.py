"""The errors that reach a user, as one tree.

* FlopwatchError             anything a command reports in one line, with exit code 2
  + ConfigError              a configuration file, flag or environment variable is wrong
  + WebConfigError           the file behind --web.config.file is wrong
  + ListenError              an address cannot be listened on
"""

from collections.abc import Sequence


class FlopwatchError(Exception):
    """A failure with a message made for people: one line, naming the place and the remedy."""


class ConfigError(FlopwatchError):
    """One or more mistakes in the configuration, each already formatted as `file: path: what`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class WebConfigError(FlopwatchError):
    """The web configuration (TLS, authentication, headers) cannot be used."""


class ListenError(FlopwatchError):
    """An address is malformed, in use, or not ours to bind."""
