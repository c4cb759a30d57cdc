"""Weights in fp8: half the bytes of bf16, and twice its rate on Ada, Hopper and Blackwell."""

from exporter.advice.levers._precision import capacity_with, predict_weights
from exporter.advice.prediction import Inapplicable, Interval, Lever, Prediction
from exporter.advice.step import step_of
from exporter.advice.window import WorkloadWindow


def _predict(window: WorkloadWindow) -> Prediction:
    return predict_weights(
        window,
        "weights_fp8",
        "fp8",
        1.0,
        "serve an fp8 checkpoint, or quantize at start (vLLM: --quantization fp8)",
    )


def weight_value_bytes(window: WorkloadWindow) -> float | None:
    """Bytes per weight of the linear layers."""
    return None if window.description is None else window.description.weights.dense


def after_weights(before: WorkloadWindow, now: WorkloadWindow) -> Interval:
    """Throughput ratio for the weights of the later window."""
    if now.description is None:
        raise Inapplicable("the model is not described, so its bytes and FLOPs are not known")
    return capacity_with(before, step_of(before), now.description)


LEVER = Lever(
    name="weights_fp8",
    title="Weights in fp8",
    predict=_predict,
    variable=weight_value_bytes,
    after=after_weights,
)
