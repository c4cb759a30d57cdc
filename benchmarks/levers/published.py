"""Predictions against published measurements: H100 under a power cap.

From the row at 700 W alone (draw, clock, throughput) the throughput at lower caps is predicted. The
share of the time that scales with the clock is not published; it is at least the time that the
tensor cores need for the model's FLOPs at the rate that they reach, and at most all of it.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from exporter.advice.levers.hardware import clock_at
from exporter.advice.prediction import Interval


FIGURES = Path(__file__).with_name("published") / "h100-power-cap.csv"
GPUS = 4
BOARD_WATTS = 700.0
# The caps by which the predictions are judged; the others are only printed.
JUDGED_WATTS = (300, 400)
# Training FLOPs of one unit of work: 6 per parameter and token for Llama 3 8B (8.03e9 parameters),
# and three forward passes of 123.2 GFLOP (61.6 G multiply-adds at 224 x 224) for ViT-L/16.
_LLAMA_FLOPS = 6 * 8.03e9
_VIT_FLOPS = 3 * 123.2e9
# What GEMMs reach on H100: 794.5 TFLOP/s in bf16 (mamf-finder), 373 in TF32 (gpu-fryer).
_BF16_REACHED = 794.5e12
_TF32_REACHED = 373e12


@dataclass(frozen=True, slots=True)
class Row:
    """Throughput at a cap over that at 700 W."""

    workload: str
    cap_watts: int
    predicted: Interval
    middle: float
    measured: float

    @property
    def error(self) -> float:
        """Signed error of the prediction's middle."""
        return self.middle / self.measured - 1.0


def rows() -> list[Row]:
    """All caps of both workloads."""
    with FIGURES.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(line for line in file if not line.startswith("#")))
    full = next(line for line in lines if line["cap_w"] == "700")
    found = []
    for workload, column, flops, reached in (
        ("Llama 3 8B", "llama3_8b_tokens_per_s", _LLAMA_FLOPS, _BF16_REACHED),
        ("ViT-L/16", "vit_train_samples_per_s", _VIT_FLOPS, _TF32_REACHED),
    ):
        rate = float(full[column])
        scaling = Interval(rate * flops / GPUS / reached, 1.0)
        for line in lines:
            if line is not full:
                cap = int(line["cap_w"])
                predicted, middle = _predicted(cap, float(full["draw_w"]), scaling)
                measured = float(line[column]) / rate
                found.append(Row(workload, cap, predicted, middle, measured))
    return found


def _predicted(cap: int, draw: float, scaling: Interval) -> tuple[Interval, float]:
    """The span over the unknowns, and the value for the middle of each of them."""
    clocks = clock_at(cap, draw_watts=draw, clock_ratio=1.0, board_watts=BOARD_WATTS)
    ends = [throughput_at_clock(clock, scaling) for clock in clocks]
    middle = throughput_at_clock(clocks.middle, Interval(scaling.middle, scaling.middle)).low
    return Interval(min(end.low for end in ends), max(end.high for end in ends)), middle


def throughput_at_clock(clock_ratio: float, scaling_share: Interval) -> Interval:
    """Throughput relative to full clock, if `scaling_share` of the time scales with the clock.

    The rest (memory, links, host) does not change.
    """
    ratios = [1.0 / (share / clock_ratio + 1.0 - share) for share in scaling_share]
    return Interval(min(ratios), max(ratios))


def table(found: list[Row]) -> str:
    """The comparison as people read it."""
    lines = ["workload     cap    predicted      middle  measured   error"]
    lines += [
        f"{row.workload:11}  {row.cap_watts} W  {row.predicted.low:.3f} to {row.predicted.high:.3f}"
        f"  {row.middle:6.3f}  {row.measured:8.3f}  {row.error:+6.1%}"
        for row in found
    ]
    return "\n".join(lines)
