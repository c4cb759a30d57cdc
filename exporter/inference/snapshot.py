"""The values that workloads pass to the exposition: frozen, with None for unknown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple


# Causes of wasted FLOP, as far as an engine counts them: see exporter/inference/account.py.
WASTE_CAUSES: Final = ("preemption", "rejected_drafts", "lost_cache_hits")


class GpuRef(NamedTuple):
    """A GPU, or one of its MIG instances, as in the labels `gpu`, `uuid` and `mig`."""

    gpu: str
    uuid: str
    mig: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """One served model. Counts are cumulative since the daemon first saw the engine.

    Token counts are None if the engine does not report them; FLOPs and bytes are None if the model
    cannot be described (`problem` says why); ratios are also None if a GPU's peak is not known or
    no window has passed. `phase_bytes` are `dram_bytes` by phase, `wasted_flop` has the causes that
    the engine counts, and `all_gpus_here` means that all GPUs of the engine are known to be on this
    host.
    """

    model: str
    precision: str | None = None
    prefill_tokens: float | None = None
    decode_tokens: float | None = None
    # Prompt tokens from this server's cache, and computed by another server or store.
    cached_tokens: float | None = None
    external_tokens: float | None = None
    # Recent and usual share of prompt tokens from caches.
    cached_share: float | None = None
    usual_cached_share: float | None = None
    rejected_tokens: float | None = None
    preemptions: float | None = None
    # In a prefill/decode split: prefill, decode or both.
    role: str | None = None
    prefill_flop: float | None = None
    decode_flop: float | None = None
    dram_bytes: float | None = None
    phase_bytes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    wasted_flop: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    all_gpus_here: bool = False
    # The engine's own estimate, of all its GPUs together.
    engine_flop: float | None = None
    flops_utilization: float | None = None
    bandwidth_utilization: float | None = None
    running_requests: float | None = None
    waiting_requests: float | None = None
    cache_usage_ratio: float | None = None
    decode_context_tokens: float | None = None
    parameters: float | None = None
    active_parameters: float | None = None
    weight_bytes: float | None = None
    problem: str | None = None
    # Parts of the model that its FLOPs and bytes leave out, such as a vision tower.
    not_counted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadSnapshot:
    """One engine. `models` is empty unless its last scrape succeeded.

    `processes` are those behind its address; empty if they are not visible.
    """

    name: str
    engine: str
    up: bool
    reason: str | None = None
    gpus: tuple[GpuRef, ...] = ()
    processes: frozenset[int] = frozenset()
    models: tuple[ModelSnapshot, ...] = ()
    errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    malformed_lines: int = 0
    last_success_timestamp_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WorkloadsSnapshot:
    """All workloads. Two snapshots compare equal if nothing has changed between them."""

    workloads: tuple[WorkloadSnapshot, ...] = ()
