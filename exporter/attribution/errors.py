"""Why it is not known who holds the GPUs."""


class HolderSourceError(Exception):
    """A source could not be read. `reason` is one of a few words, fit for a label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
