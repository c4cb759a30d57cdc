"""A model description from whatever file describes it: config.json, its folder, or a GGUF file."""

from pathlib import Path

from exporter.inference.models.config import load_description
from exporter.inference.models.description import ModelDescription
from exporter.inference.models.gguf import is_gguf, load_gguf


def load_model(
    path: Path | str, *, cache_data_type: str | None = None, precision: str | None = None
) -> ModelDescription:
    """Return the description of the model that `path` describes.

    `cache_data_type` (as the engine names it) and `precision` override what the file says.
    Raises ModelDescriptionError with one line naming the file and what is wrong.
    """
    place = Path(path)
    load = load_gguf if is_gguf(place) else load_description
    return load(place, cache_data_type=cache_data_type, precision=precision)
