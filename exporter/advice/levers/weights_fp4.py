"""Weights in fp4 (NVFP4, MXFP4): a quarter of bf16's bytes, on silicon that multiplies fp4."""

from exporter.advice.levers._precision import (
    after_weights,
    predict_weights,
    reaches_four_bits,
    weight_value_bytes,
)
from exporter.advice.prediction import Lever, Prediction
from exporter.advice.window import WorkloadWindow


# Four bits per weight, and an 8-bit scale per 16 weights.
_VALUE_BYTES = (4 + 8 / 16) / 8


def _predict(window: WorkloadWindow) -> Prediction:
    return predict_weights(
        window,
        "weights_fp4",
        "fp4",
        _VALUE_BYTES,
        "serve an NVFP4 checkpoint; compare its answers with today's first",
    )


LEVER = Lever(
    name="weights_fp4",
    title="Weights in fp4",
    predict=_predict,
    variable=weight_value_bytes,
    after=after_weights,
    concerns=reaches_four_bits,
)
