"""Full clocks, and the replacement of a GPU that holds back its group.

The clock that a power limit allows follows from idle power and dynamic power:

    P(f) = P_idle + (P_now - P_idle) (f V(f)²) / (f_now V(f_now)²)

Dynamic power of CMOS logic is C V² f. The voltage follows the clock: V(f) = v0 + (1 - v0) f, with f
and V over their maxima, and v0 between 0.5 and 0.7: NVIDIA's parts of the last decade run from
about 0.7 V at their lowest useful clock to about 1.05 V at their highest. The board's draw apart
from the SMs (leakage, memory at rest, regulators) is between 0.1 and 0.2 of its design power: H100
SXM idles at about 70 W of 700, and at about 120 W with a context open. The model is not fitted to a
measured sweep; `make test-levers` compares it with a published one.
"""

from dataclasses import replace

from exporter.accounting.time_split import REACHABLE_BANDWIDTH
from exporter.advice.prediction import (
    GpuWindow,
    Inapplicable,
    Interval,
    Lever,
    Prediction,
    Reference,
    WorkloadWindow,
    outcome,
    percent,
)
from exporter.advice.step import Change, Step, slowest, step_of, throughput_ratio


# Less than this is normal variation of the clock.
_LEAST_CLOCK_LOSS = 0.03
_ACTIONS = {
    "power": "raise the power limit to {limit:.0f} W (nvidia-smi --power-limit {limit:.0f})",
    "thermal": "open a ticket for cooling: the GPU is throttled by its temperature",
    "other": "release the clock limit (nvidia-smi --reset-gpu-clocks)",
}
_CAUSES = {"power": "the power limit", "thermal": "heat", "other": "a clock setting"}


def _predict_clocks(window: WorkloadWindow) -> Prediction:
    today = step_of(window)
    gpu = slowest(window)
    clock = _known_clock(gpu)
    if 1.0 - clock < _LEAST_CLOCK_LOSS:
        raise Inapplicable("the clocks are at their maximum")
    cause = max(gpu.clock_lost_to, key=lambda name: gpu.clock_lost_to[name], default="other")
    target = Interval(1.0, 1.0)
    limit = 0.0
    if cause == "power":
        target, limit = _by_power(gpu, clock)
    capacity = _at_clock(gpu, today, target)
    evidence = (
        f"{_CAUSES[cause]} limits the SM clock to {clock:.0%} of its maximum; "
        f"matrix products take {today.parts()['matrices'] / today.seconds:.0%} of the time: "
        f"{percent(capacity)} at {target.middle:.0%}"
    )
    action = _ACTIONS[cause].format(limit=limit)
    return outcome(
        window, "full_clocks", capacity, evidence=evidence, action=action, target=target.middle
    )


def _known_clock(gpu: GpuWindow) -> float:
    if gpu.clock_ratio is None or gpu.clock_ratio <= 0:
        raise Inapplicable(f"the clock of {gpu.title} is not known")
    return min(1.0, gpu.clock_ratio)


def _by_power(gpu: GpuWindow, clock: float) -> tuple[Interval, float]:
    """The clock that the board's highest power limit would allow, and that limit in watts."""
    limit, draw = gpu.power_limit_max_watts, gpu.power_watts
    if limit is None or draw is None or gpu.power_limit_watts is None:
        raise Inapplicable(
            "the power limit lowers the clock, and the highest allowed limit is unknown"
        )
    if limit < 1.02 * gpu.power_limit_watts:
        raise Inapplicable(f"the power limit is already at the board's maximum of {limit:.0f} W")
    reached = clock_at(limit, draw_watts=draw, clock_ratio=clock, board_watts=limit)
    return Interval(max(clock, reached.low), max(clock, reached.high)), limit


def _at_clock(gpu: GpuWindow, today: Step, target: Interval) -> Interval:
    """Throughput at another clock: tensor work scales, memory hardly, links and gaps do not."""
    clock = _known_clock(gpu)
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


def _clock_ratio(window: WorkloadWindow) -> float | None:
    clocks = [gpu.clock_ratio for gpu in window.gpus if gpu.clock_ratio is not None]
    return min(clocks) if clocks and len(clocks) == len(window.gpus) else None


def _after_clocks(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    reached = _clock_ratio(now)
    if reached is None:
        raise Inapplicable("the clock is not known")
    return _at_clock(slowest(before), step_of(before), Interval(reached, reached))


FULL_CLOCKS = Lever(
    name="full_clocks",
    title="Full clocks",
    predict=_predict_clocks,
    variable=_clock_ratio,
    after=_after_clocks,
    least_change=0.08,
)


_VOLTAGE_AT_REST = (0.5, 0.7)
_IDLE_SHARE = (0.1, 0.2)
_BISECTIONS = 60


def clock_at(
    limit_watts: float, *, draw_watts: float, clock_ratio: float, board_watts: float
) -> Interval:
    """The clock over its maximum at which the same work draws `limit_watts`, at most 1.

    `draw_watts` and `clock_ratio` are today's, `board_watts` the board's design power. Raises
    Inapplicable if the limit or the draw is below idle power.
    """
    clocks = [
        _clock_for_power(limit_watts, draw_watts, clock_ratio, idle * board_watts, rest)
        for idle in _IDLE_SHARE
        for rest in _VOLTAGE_AT_REST
    ]
    return Interval(min(clocks), max(clocks))


def _clock_for_power(limit: float, draw: float, clock: float, idle: float, rest: float) -> float:
    if draw <= idle or limit <= idle or clock <= 0:
        raise Inapplicable("the board draws about as much power as when it is idle")

    def dynamic(ratio: float) -> float:
        return ratio * (rest + (1.0 - rest) * ratio) ** 2

    wanted = dynamic(clock) * (limit - idle) / (draw - idle)
    if wanted >= dynamic(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if dynamic(middle) < wanted else (low, middle)
    return (low + high) / 2


# Healthy GPUs of one product differ by 5 % (mamf-finder) to 8 % (SC'22, arXiv 2208.11035).
_SLOW = 0.93
_FEWEST_SIBLINGS = 3


def _predict_replacement(window: WorkloadWindow) -> Prediction:
    reference = window.reference
    if reference is None or reference.devices < _FEWEST_SIBLINGS:
        raise Inapplicable("fewer than three GPUs of this product have probe results to compare")
    today = step_of(window)
    gpu = slowest(window)
    memory, compute = speed_of(gpu, reference)
    if min(memory, compute) >= _SLOW:
        raise Inapplicable("every GPU of this workload is as fast as its siblings")
    rates = replace(
        today.rates,
        bytes_per_second=today.rates.bytes_per_second / memory,
        linear_flops=today.rates.linear_flops / compute,
        attention_flops=today.rates.attention_flops / compute,
    )
    worst = min(memory, compute)
    changes = [Change(replace(today, rates=rates), excess_factor=factor) for factor in (1.0, worst)]
    capacity = throughput_ratio(today, changes)
    evidence = (
        f"{gpu.title} reaches {memory:.0%} of its siblings' memory bandwidth and {compute:.0%} "
        f"of their FLOPS, and {len(window.gpus) - 1} others wait for it: {percent(capacity)}"
    )
    action = f"move the workload off {gpu.title} ({gpu.uuid}) and open a ticket for it"
    return outcome(window, "replace_slow_gpu", capacity, evidence=evidence, action=action)


def speed_of(gpu: GpuWindow, reference: Reference) -> tuple[float, float]:
    """Memory and compute speed over the siblings' medians, at most 1; 1 if not measured."""
    memory = compute = 1.0
    if gpu.reachable_bandwidth_bytes_per_second and reference.bandwidth_bytes_per_second:
        memory = gpu.reachable_bandwidth_bytes_per_second / reference.bandwidth_bytes_per_second
    shares = [
        value / reference.flops[name]
        for name, value in gpu.reachable_flops.items()
        if reference.flops.get(name)
    ]
    if shares:
        compute = min(shares)
    return min(1.0, memory), min(1.0, compute)


def _slowest_speed(window: WorkloadWindow) -> float | None:
    """The speed of the slowest GPU, which rises when that GPU is replaced."""
    if window.reference is None:
        return None
    return min((min(speed_of(gpu, window.reference)) for gpu in window.gpus), default=None)


def _after_replacement(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    if {gpu.uuid for gpu in before.gpus} == {gpu.uuid for gpu in now.gpus}:
        raise Inapplicable("the GPUs are the same as before")
    return _predict_replacement(before).capacity


REPLACE_SLOW_GPU = Lever(
    name="replace_slow_gpu",
    title="Replace a slow GPU",
    predict=_predict_replacement,
    variable=_slowest_speed,
    after=_after_replacement,
    least_change=0.05,
)
