"""Converts a pending trial to plain data for the state file, and back.

Values are checked against the types of their fields, so that a damaged file cannot bring invalid
data into a comparison. Monotonic times are not stored, since they are lost with the process: all
times are Unix seconds.
"""

from dataclasses import MISSING, fields, replace
from typing import Any

import msgspec

from exporter.advice.backtest import Trial
from exporter.advice.window import WorkloadWindow
from exporter.inference.models.attention import (
    Attention,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    RecurrentMixer,
)
from exporter.inference.models.description import LayerGroup, ModelDescription


_ATTENTION: dict[str, type[Attention]] = {
    "grouped": GroupedAttention,
    "latent": LatentAttention,
    "compressed": CompressedAttention,
    "recurrent": RecurrentMixer,
}


def _without(cls: type, left_out: str) -> type[msgspec.Struct]:
    """A type with all fields of a dataclass except one."""
    kept: list[Any] = []
    for each in fields(cls):
        if each.name == left_out:
            continue
        if each.default_factory is not MISSING:
            kept.append((each.name, each.type, msgspec.field(default_factory=each.default_factory)))
        elif each.default is not MISSING:
            kept.append((each.name, each.type, each.default))
        else:
            kept.append((each.name, each.type))
    return msgspec.defstruct(f"Saved{cls.__name__}", kept, kw_only=True)


# msgspec cannot distinguish the kinds of attention, so layers store the kind by name.
_Layer = _without(LayerGroup, "attention")
_Model = _without(ModelDescription, "layers")
_Window = _without(WorkloadWindow, "description")


class SavedTrial(msgspec.Struct, frozen=True):
    """A trial and the workload's model, with times in Unix seconds."""

    workload: str
    model: str
    began_unix_seconds: float
    settled_unix_seconds: float
    values: dict[str, float]
    window: dict[str, Any]
    description: dict[str, Any] | None
    layers: tuple[dict[str, Any], ...]


def saved_trial(trial: Trial, clock_offset_seconds: float) -> SavedTrial:
    """The trial as data. The offset is Unix time minus the windows' clock."""
    window = trial.before
    model = window.description
    return SavedTrial(
        workload=window.workload,
        model=window.model,
        began_unix_seconds=trial.began_seconds + clock_offset_seconds,
        settled_unix_seconds=trial.settled_seconds + clock_offset_seconds,
        values=dict(trial.values),
        window=_plain(replace(window, description=None)),
        description=None if model is None else _plain(replace(model, layers=())),
        layers=() if model is None else tuple(_plain_layer(group) for group in model.layers),
    )


def restored_trial(saved: SavedTrial, clock_offset_seconds: float) -> Trial:
    """The trial from saved data. Raises msgspec.ValidationError if the data is damaged."""
    model = None
    if saved.description is not None:
        facts = _convert(saved.description, _Model)
        layers = tuple(_layer(each) for each in saved.layers)
        model = ModelDescription(**facts, layers=layers)
    window = WorkloadWindow(**_convert(saved.window, _Window), description=model)
    return Trial(
        before=window,
        began_seconds=saved.began_unix_seconds - clock_offset_seconds,
        values=saved.values,
        settled_seconds=saved.settled_unix_seconds - clock_offset_seconds,
    )


def _plain(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _plain_layer(group: LayerGroup) -> dict[str, Any]:
    kind = next(name for name, cls in _ATTENTION.items() if isinstance(group.attention, cls))
    return {**_plain(group), "kind": kind}


def _layer(plain: dict[str, Any]) -> LayerGroup:
    kind = _ATTENTION.get(plain.get("kind", ""))
    if kind is None:
        raise msgspec.ValidationError("a layer's kind of attention is not known")
    attention = msgspec.convert(plain.get("attention"), kind)
    return LayerGroup(**_convert(plain, _Layer), attention=attention)


def _convert(plain: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    converted = msgspec.convert(plain, kind)
    return {name: getattr(converted, name) for name in kind.__struct_fields__}
