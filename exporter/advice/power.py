"""The SM clock that a power limit allows: idle power, plus dynamic power that follows f V².

    P(f) = P_idle + (P_now - P_idle) (f V(f)²) / (f_now V(f_now)²)

Dynamic power of CMOS logic is C V² f. The voltage follows the clock: V(f) = v0 + (1 - v0) f, with f
and V over their maxima, and v0 between 0.5 and 0.7: NVIDIA's parts of the last decade run from
about 0.7 V at their lowest useful clock to about 1.05 V at their highest. The board's draw apart
from the SMs (leakage, memory at rest, regulators) is between 0.1 and 0.2 of its design power: H100
SXM idles at about 70 W of 700, and at about 120 W with a context open. The model is not fitted to a
measured sweep; `make test-levers` compares it with a published one.
"""

from exporter.advice.prediction import Inapplicable, Interval


VOLTAGE_AT_REST = (0.5, 0.7)
IDLE_SHARE = (0.1, 0.2)
_STEPS = 60


def clock_at(
    limit_watts: float, *, draw_watts: float, clock_ratio: float, board_watts: float
) -> Interval:
    """The clock over its maximum at which the same work draws `limit_watts`, at most 1.

    `draw_watts` and `clock_ratio` are today's, `board_watts` the board's design power. Raises
    Inapplicable if the limit or the draw is below idle power.
    """
    clocks = [
        _clock(limit_watts, draw_watts, clock_ratio, idle * board_watts, rest)
        for idle in IDLE_SHARE
        for rest in VOLTAGE_AT_REST
    ]
    return Interval(min(clocks), max(clocks))


def _clock(limit: float, draw: float, clock: float, idle: float, rest: float) -> float:
    if draw <= idle or limit <= idle or clock <= 0:
        raise Inapplicable("the power that is drawn is about what the board draws at rest")

    def dynamic(ratio: float) -> float:
        return ratio * (rest + (1.0 - rest) * ratio) ** 2

    wanted = dynamic(clock) * (limit - idle) / (draw - idle)
    if wanted >= dynamic(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if dynamic(middle) < wanted else (low, middle)
    return (low + high) / 2


def throughput_at_clock(clock_ratio: float, scaling_share: Interval) -> Interval:
    """Throughput relative to full clock, if `scaling_share` of the time scales with the clock.

    The rest (memory, links, host) does not change.
    """
    ratios = [1.0 / (share / clock_ratio + 1.0 - share) for share in scaling_share]
    return Interval(min(ratios), max(ratios))
