"""Release idle capacity: fewer replicas can serve the demand."""

import math

from exporter.advice.demand import USABLE_CACHE, waits, with_batch
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, step_of, throughput_ratio
from exporter.advice.window import WorkloadWindow


# The remaining replicas must be able to serve this much more than today's mean.
_HEADROOM = 1.3


def _predict(window: WorkloadWindow) -> Prediction:
    if waits(window):
        raise Inapplicable("requests wait: nothing is idle")
    if window.replicas < 2:
        raise Inapplicable("it is the only engine of its model on this host")
    usage, running = window.cache_usage_ratio, window.running_requests
    if not running or not usage:
        raise Inapplicable("running requests and KV-cache usage are not known, or nothing runs")
    today = step_of(window)
    largest = USABLE_CACHE / usage
    reach = (
        throughput_ratio(today, [Change(with_batch(today, largest), produced=largest)]).low
        / _HEADROOM
    )
    needed = min(window.replicas, max(1, -int(-window.replicas // max(1.0, reach))))
    released = window.replicas - needed
    if released < 1:
        raise Inapplicable("each replica is needed for today's load with a reserve of 30 %")
    cost = needed / window.replicas
    evidence = (
        f"nobody waits, {running:.1f} requests run in each of {window.replicas} replicas with "
        f"{usage:.0%} of the KV cache; {needed} can serve the same with a reserve of 30 %"
    )
    most = math.ceil(_HEADROOM * running * window.replicas / needed)
    action = (
        f"stop {released} of {window.replicas} replicas, or send them other traffic; the others must "
        f"be allowed {most} requests at once (vLLM: --max-num-seqs)"
    )
    one = Interval(1.0, 1.0)
    return Prediction(
        "release_idle", one, Interval(cost, cost), one, evidence, action, float(needed)
    )


LEVER = Lever(name="release_idle", title="Release idle capacity", predict=_predict)
