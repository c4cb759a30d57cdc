"""The truth of the workloads: FLOP and bytes, from their shapes alone. A fused multiply-add counts 2."""

from dataclasses import dataclass


GEMM_PRECISIONS = ("bf16", "fp16", "tf32", "fp8", "int8", "fp64", "fp32")
# The pipe that runs a GEMM of a precision: the tensor pipe, except for fp32.
PLAIN_PIPES = {"fp32": "fp32"}
WEIGHT_BYTES = 2  # the transformers are in bf16


def pipe_of(precision: str) -> str:
    """The label `pipe` of the counter that sees a GEMM of this precision."""
    return PLAIN_PIPES.get(precision, "tensor")


def gemm_flop(m: int, n: int, k: int) -> float:
    """One product of (m, k) and (k, n)."""
    return 2.0 * m * n * k


def copy_bytes(size_bytes: int) -> float:
    """Device-memory traffic of one copy: every byte is read and written."""
    return 2.0 * size_bytes


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """A dense decoder with a gated feed-forward (as Llama), full attention heads, untied head."""

    layers: int
    hidden: int
    heads: int
    head_width: int
    intermediate: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices: Q, K, V, output; gate, up, down."""
        attention = 4 * self.hidden * self.heads * self.head_width
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Weights that a step reads: all layers and the head; of the embedding it reads a few rows."""
        return self.layers * self.layer_parameters + self.hidden * self.vocabulary


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of one step. Attention is separate: in decoding cuBLAS chooses its pipe."""

    linear_flop: float
    attention_flop: float
    dram_bytes: float | None
    """Weights and KV cache, which no cache of a GPU holds; None where activations matter as well."""
    tokens: int

    @property
    def flop(self) -> float:
        """All matrix products."""
        return self.linear_flop + self.attention_flop


def prefill_step(shape: TransformerShape, prompt_tokens: int) -> StepWork:
    """A whole prompt of one sequence at once, attention over all pairs (no causal halving).

    Logits are computed for the last token only, as engines do.
    """
    linear = 2.0 * prompt_tokens * shape.layers * shape.layer_parameters
    head = 2.0 * shape.hidden * shape.vocabulary
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * prompt_tokens**2
    return StepWork(linear + head, attention, None, prompt_tokens)


def decode_step(shape: TransformerShape, batch: int, context_tokens: int) -> StepWork:
    """One token of each of `batch` sequences, each with `context_tokens` in its KV cache."""
    width = shape.heads * shape.head_width
    cached = 2 * shape.layers * batch * context_tokens * width  # keys and values
    written = 2 * shape.layers * batch * width
    return StepWork(
        linear_flop=2.0 * batch * shape.parameters,
        attention_flop=4.0 * shape.layers * batch * width * context_tokens,
        dram_bytes=float(WEIGHT_BYTES * (shape.parameters + cached + written)),
        tokens=batch,
    )


def error_ratio(counted: float, true: float) -> float:
    """Counted over true, minus 1."""
    return counted / true - 1


def error_outside(counted: float, lowest: float, highest: float) -> float:
    """Signed error against a true value known as a range: 0 inside it."""
    if counted < lowest:
        return error_ratio(counted, lowest)
    return error_ratio(counted, highest) if counted > highest else 0.0


def tensor_seconds(flop: float, rate: float, sm_count: int, max_hertz: float) -> float:
    """Seconds of the peak that `flop` use up: what the state `tensor` must count.

    `rate` is FLOP per clock and SM; the state is tensor activity times clock over maximum clock.
    """
    return flop / (rate * sm_count * max_hertz)
