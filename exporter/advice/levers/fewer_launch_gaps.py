"""Fewer launch gaps: the GPU waits for the host between kernels and between passes."""

from exporter.advice.demand import outcome, percent, waits
from exporter.advice.prediction import Inapplicable, Lever, Prediction
from exporter.advice.step import Change, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow


# Share of the gaps that remains with CUDA graphs and scheduling ahead of the pass.
_REMAINING = (0.1, 0.4)
_LEAST_SHARE = 0.03


def _predict(window: WorkloadWindow) -> Prediction:
    if not waits(window):
        raise Inapplicable("nobody waits: gaps cannot be told from a lack of requests")
    today = step_of(window)
    share = today.gap_seconds / today.seconds
    if share < _LEAST_SHARE:
        raise Inapplicable(f"kernels run for {1 - share:.0%} of the time")
    capacity = throughput_ratio(today, [Change(today, gap_factor=left) for left in _REMAINING])
    evidence = (
        f"requests wait, and yet no kernel runs for {share:.0%} of the time "
        f"({1e3 * today.gap_seconds:.1f} ms of each {1e3 * today.seconds:.1f} ms pass): "
        f"{percent(capacity)} without most of it"
    )
    action = (
        "turn CUDA graphs on (vLLM: no --enforce-eager), schedule asynchronously "
        "(vLLM: --async-scheduling), and give the engine's process a core of its own"
    )
    return outcome(window, "fewer_launch_gaps", capacity, evidence=evidence, action=action)


LEVER = Lever(name="fewer_launch_gaps", title="Fewer launch gaps", predict=_predict)
