"""The individual layers of a model, as returned by the builders of irregular families."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from exporter.inference.models.description import LayerGroup
from exporter.inference.models.fields import LARGEST_LAYER_COUNT, ConfigFields


@dataclass(frozen=True, slots=True)
class Stack:
    """Every layer, from first to last, and the other parts of the model."""

    layers: tuple[LayerGroup, ...]
    # Fields of ModelDescription that differ from the default.
    traits: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers, grouped by kind."""
        counted = Counter(self.layers)
        return tuple(replace(layer, count=count) for layer, count in counted.items())

    @property
    def dense(self) -> tuple[int, ...]:
        """Indices of the layers with a dense feed-forward part."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.intermediate_size)

    @property
    def experts(self) -> tuple[int, ...]:
        """Indices of the layers with experts."""
        return tuple(n for n, layer in enumerate(self.layers) if layer.mixture is not None)


def layer_total(fields: ConfigFields) -> int:
    """The number of layers; raises UnknownArchitectureError if it is implausible or missing."""
    count = fields.require("num_hidden_layers")
    fields.check()
    if count > LARGEST_LAYER_COUNT:
        raise fields.error(f"num_hidden_layers is {count}")
    return count


def kinds_of(
    fields: ConfigFields, name: str, count: int, allowed: Sequence[str]
) -> tuple[str, ...] | None:
    """The entries of a list with one kind per layer, or None if the file has no such list.

    Files may list draft layers after the model's own. Raises UnknownArchitectureError for kinds
    that are not `allowed`.
    """
    listed = fields.raw(name)
    if not isinstance(listed, list) or not listed:
        return None
    if len(listed) < count:
        raise fields.error(f"{name} has {len(listed)} entries for {count} layers")
    kinds = tuple(str(kind) for kind in listed[:count])
    unknown = set(kinds) - set(allowed)
    if unknown:
        raise fields.error(f"layer type {min(unknown)!r} is not described")
    return kinds


def layer_override(fields: ConfigFields, layer: int, name: str) -> int | None:
    """A whole number that `per_layer_config` gives for one layer, or None."""
    table = fields.raw("per_layer_config")
    if not isinstance(table, Mapping):
        return None
    for key in (str(layer), f"{layer:02d}", layer):
        entry = table.get(key)
        if isinstance(entry, Mapping):
            return fields.whole(name, entry.get(name))
    return None
