"""What can go wrong when a model is described; each with one line made for people."""

from collections.abc import Sequence

from exporter.errors import FlopwatchError


class ModelDescriptionError(FlopwatchError):
    """A model cannot be described: its tokens are still counted, its FLOPs are not."""


class UnknownArchitectureError(ModelDescriptionError):
    """A config.json lacks fields that the formulas need, or uses layers that they do not know."""

    def __init__(
        self,
        model_type: str,
        *,
        missing_fields: Sequence[str] = (),
        reason: str = "",
    ) -> None:
        self.model_type = model_type
        self.missing_fields = tuple(missing_fields)
        what = f"missing fields: {', '.join(self.missing_fields)}" if missing_fields else reason
        super().__init__(f"cannot describe architecture {model_type!r}: {what}")
