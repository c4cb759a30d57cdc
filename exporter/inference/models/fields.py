"""Reads the fields of a Hugging Face config.json under the names used by each family."""

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.inference.models.description import UnknownArchitectureError


# Canonical name: other names of the same field, in the order in which they are tried.
ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": (
        "num_kv_heads",
        "n_head_kv",
        "kv_n_heads",
        "multi_query_group_num",
        "num_attention_groups",
    ),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "intermediate_size": ("ffn_dim", "n_inner", "ffn_hidden_size"),
    "vocab_size": ("padded_vocab_size",),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
    ),
    "moe_intermediate_size": ("expert_intermediate_size", "expert_ffn_hidden_size"),
    "share_expert_dim": ("share_expert_dims",),
    "n_shared_experts": ("num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
}
# Keys under which multimodal models nest their language model.
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
# Fields that some families list once per layer (Hunyuan); a list of equal values counts as that
# value.
LISTED = frozenset({"num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"})
# Larger than in any real model; a larger value means a broken file.
LARGEST_FIELD = 10**9
LARGEST_LAYER_COUNT = 10_000


class ConfigFields:
    """One config.json object; remembers which required fields were missing."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = values
        self._defaults = defaults
        self.missing: list[str] = []
        self.model_type = str(values.get("model_type") or "unknown")

    def raw(self, name: str) -> Any:
        """The value under `name` or one of its aliases, else the family's default, else None."""
        for key in (name, *ALIASES.get(name, ())):
            if self._values.get(key) is not None:
                return self._values[key]
        return self._defaults.get(name)

    def integer(self, name: str) -> int | None:
        """The field as a non-negative whole number, or None if it is missing."""
        value = self.raw(name)
        if name in LISTED and isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]  # the same for every layer
        return self.whole(name, value)

    def whole(self, name: str, value: Any) -> int | None:
        """`value` as a non-negative whole number in range, called `name` in errors; else None."""
        if value is None or isinstance(value, bool):
            return None
        # Some exporters write 0.0 and 8.0, and some families list one value per layer.
        whole = value.is_integer() if isinstance(value, float) else isinstance(value, int)
        if not whole:
            raise self.error(f"{name} is {value!r}, not a whole number")
        if not 0 <= value <= LARGEST_FIELD:
            raise self.error(f"{name} is {value!r}, out of range")
        return int(value)

    def require(self, name: str) -> int:
        """The field as a positive whole number; if it is missing, 0, and the name is recorded."""
        value = self.integer(name)
        if not value:
            self.missing.append(name)
            return 0
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """The field as a boolean."""
        value = self.raw(name)
        return default if value is None else bool(value)

    def check(self) -> None:
        """Raise UnknownArchitectureError if a required field was missing."""
        if self.missing:
            raise UnknownArchitectureError(self.model_type, missing_fields=sorted(self.missing))

    def error(self, reason: str) -> UnknownArchitectureError:
        """An error about this configuration."""
        return UnknownArchitectureError(self.model_type, reason=reason)


def language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config.json, which is nested in multimodal models.

    Settings only in the outer object (quantization, data type) are copied into the inner one.
    """
    for name in NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            carried = {
                key: config[key]
                for key in ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")
                if key in config
            }
            # Nested twice: a thinker around a text model.
            return language_model({**carried, **inner})
    return config


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
        raise fields.error(f"layer type {min(unknown)!r} is not supported")
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
