"""Restore the prefix cache: prompts that used to be cached are now computed again."""

from dataclasses import replace

from exporter.advice.demand import outcome, percent
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, Step, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow


_LEAST_LOSS = 0.05


def _predict(window: WorkloadWindow) -> Prediction:
    hits, best = window.cache_hit_ratio, window.best_cache_hit_ratio
    if hits is None:
        raise Inapplicable("the engine does not tell its cache hits")
    if best is None:
        raise Inapplicable("no earlier hit rate to compare with is known yet")
    if best - hits < _LEAST_LOSS:
        raise Inapplicable(f"the hit rate is {hits:.0%}, and has not been much better lately")
    today = step_of(window)
    capacity = _with_hits(today, hits, Interval(best - 0.1 * (best - hits), best))
    evidence = (
        f"{hits:.0%} of the prompt tokens come from the prefix cache, {best:.0%} did before; "
        f"a pass computes {today.prefill_tokens:.0f} prompt tokens besides "
        f"{today.decode_tokens:.0f} decoded ones: {percent(capacity)} with the former rate"
    )
    action = (
        "look for what changed: prompt templates with a varying head, routing that does not keep "
        "sessions together, a smaller KV cache, --no-enable-prefix-caching"
    )
    return outcome(
        window, "restore_prefix_cache", capacity, evidence=evidence, action=action, target=best
    )


def _with_hits(today: Step, hits: float, wanted: Interval) -> Interval:
    changes = []
    for best in wanted:
        left = (1.0 - best) / (1.0 - hits) if hits < 1 else 1.0
        computed = today.prefill_tokens * left
        moved = (today.prefill_tokens - computed) / today.prompts if today.prompts else 0.0
        step = replace(
            today, prefill_tokens=computed, cached_per_prompt=today.cached_per_prompt + moved
        )
        changes.append(Change(step))
    return throughput_ratio(today, changes)


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    hits, reached = before.cache_hit_ratio, now.cache_hit_ratio
    if hits is None or reached is None:
        raise Inapplicable("the engine does not tell its cache hits")
    return _with_hits(step_of(before), hits, Interval(reached, reached))


LEVER = Lever(
    name="restore_prefix_cache",
    title="Restore the prefix cache",
    predict=_predict,
    # The miss ratio: a hit ratio change from 0.1 to 0.2 matters little, one from 0.8 to 0.9 much.
    variable=lambda w: None if w.cache_hit_ratio is None else 1.0 - w.cache_hit_ratio,
    after=_after,
)
