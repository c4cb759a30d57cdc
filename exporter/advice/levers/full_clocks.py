"""Full clocks: heat, a power limit or a locked clock hold the SMs below their maximum."""

from dataclasses import replace

from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.advice.demand import outcome, percent
from exporter.advice.power import clock_at
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import Change, Step, slowest, step_of, throughput_ratio
from exporter.advice.window import GpuWindow, WorkloadWindow


# Less than this is normal variation of the clock.
_LEAST_LOSS = 0.03
_ACTIONS = {
    "power": "raise the power limit to {limit:.0f} W (nvidia-smi --power-limit {limit:.0f})",
    "thermal": "open a ticket for cooling: the GPU is held back by its temperature",
    "other": "release the clock limit (nvidia-smi --reset-gpu-clocks)",
}
_CAUSES = {"power": "the power limit", "thermal": "heat", "other": "a clock setting"}


def _predict(window: WorkloadWindow) -> Prediction:
    today = step_of(window)
    gpu = slowest(window)
    clock = _clock(gpu)
    if 1.0 - clock < _LEAST_LOSS:
        raise Inapplicable("the clocks are at their maximum")
    cause = max(gpu.clock_lost_to, key=lambda name: gpu.clock_lost_to[name], default="other")
    if cause == "idle":
        raise Inapplicable("the clock is low because the GPU idles")
    target = Interval(1.0, 1.0)
    limit = 0.0
    if cause == "power":
        target, limit = _by_power(gpu, clock)
    capacity = _at_clock(gpu, today, target)
    evidence = (
        f"{_CAUSES.get(cause, cause)} holds the SM clock at {clock:.0%} of its maximum; "
        f"matrix products take {today.parts()['matrices'] / today.seconds:.0%} of the time: "
        f"{percent(capacity)} at {target.middle:.0%}"
    )
    action = _ACTIONS.get(cause, _ACTIONS["other"]).format(limit=limit)
    return outcome(
        window, "full_clocks", capacity, evidence=evidence, action=action, target=target.middle
    )


def _clock(gpu: GpuWindow) -> float:
    if gpu.clock_ratio is None or gpu.clock_ratio <= 0:
        raise Inapplicable(f"the clock of {gpu.title} is not known")
    return min(1.0, gpu.clock_ratio)


def _by_power(gpu: GpuWindow, clock: float) -> tuple[Interval, float]:
    """The clock that the board's highest power limit would allow, and that limit in watts."""
    limit, draw = gpu.power_limit_max_watts, gpu.power_watts
    if limit is None or draw is None or gpu.power_limit_watts is None:
        raise Inapplicable(
            "the power limit holds the clock down, and how far it may rise is unknown"
        )
    if limit < 1.02 * gpu.power_limit_watts:
        raise Inapplicable(f"the power limit is at the board's maximum of {limit:.0f} W already")
    reached = clock_at(limit, draw_watts=draw, clock_ratio=clock, board_watts=limit)
    return Interval(max(clock, reached.low), max(clock, reached.high)), limit


def _at_clock(gpu: GpuWindow, today: Step, target: Interval) -> Interval:
    """Throughput at another clock: tensor work scales, memory hardly, links and gaps do not."""
    clock = _clock(gpu)
    changes = []
    for reached in target:
        speed = reached / clock
        rates = replace(
            today.rates,
            linear_flops=today.rates.linear_flops * speed,
            attention_flops=today.rates.attention_flops * speed,
        )
        # A low SM clock may also have kept the SMs from using the full bandwidth.
        most = REACHABLE_BANDWIDTH * (gpu.peaks.dram_bytes_per_second or 0.0)
        faster = max(rates.bytes_per_second, min(most, rates.bytes_per_second * speed))
        for bandwidth in (rates.bytes_per_second, faster):
            step = replace(today, rates=replace(rates, bytes_per_second=bandwidth))
            changes += [Change(step, excess_factor=factor) for factor in (1.0, 1.0 / speed)]
    return throughput_ratio(today, changes)


def _variable(window: WorkloadWindow) -> float | None:
    clocks = [gpu.clock_ratio for gpu in window.gpus if gpu.clock_ratio is not None]
    return min(clocks) if clocks and len(clocks) == len(window.gpus) else None


def _after(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    reached = _variable(now)
    if reached is None:
        raise Inapplicable("the clock is not known")
    return _at_clock(slowest(before), step_of(before), Interval(reached, reached))


LEVER = Lever(
    name="full_clocks",
    title="Full clocks",
    predict=_predict,
    variable=_variable,
    after=_after,
    least_change=0.08,
)
