"""Weights in fp8: half the bytes of bf16, and twice its rate on Ada, Hopper and Blackwell."""

from exporter.advice.levers._precision import (
    after_weights,
    predict_weights,
    reaches_four_bits,
    weight_value_bytes,
)
from exporter.advice.prediction import Lever, Prediction
from exporter.advice.window import WorkloadWindow


def _predict(window: WorkloadWindow) -> Prediction:
    return predict_weights(
        window,
        "weights_fp8",
        "fp8",
        1.0,
        "serve an fp8 checkpoint, or quantize at start (vLLM: --quantization fp8)",
    )


LEVER = Lever(
    name="weights_fp8",
    title="Weights in fp8",
    predict=_predict,
    variable=weight_value_bytes,
    after=after_weights,
    concerns=lambda before, now: not reaches_four_bits(before, now),
)
