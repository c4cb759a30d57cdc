"""The matrix products of the served model, and the shapes in which they are probed.

A product's depth K is kept, because it decides how a kernel accumulates. The weights are cut along
their width N, and few tokens are multiplied, so that a run is as short as any probe and the
operands fit the worker's memory. The remainder of N over a whole tile is kept, so that the kernel's
edge path runs as it does for the model.
"""

from typing import Final

from probes.facts import DeviceFacts, ModelGemm
from probes.protocol import KernelInfo
from probes.sizing import CORE_RUN_SECONDS, RUN_SHARE, Shape, gemm_flop


# Tokens multiplied at once; the largest count that fits is used.
TOKENS: Final = (512, 256, 128, 64, 32)
TILE: Final = 256
SMALL_TILE: Final = 64
# Size limit of a set of operands: two sets fit the smallest arena (64 MiB).
BYTES_MAX: Final = 30 * 2**20
# The least share of the data-sheet peak that short products reach, once they are large enough to
# matter.
REACHED_SHARE: Final = 0.5
# The limit of products per device, for a device that serves one model after another.
PRODUCTS_MAX: Final = 64
DAY_SECONDS: Final = 86_400.0
_ELEMENT_BYTES: Final = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}


def kernel_of(gemm: ModelGemm) -> KernelInfo:
    """A product as a kernel."""
    return KernelInfo(name=gemm.name, quantity="flops", label=gemm.precision)


def is_model_gemm(kernel: KernelInfo) -> bool:
    """Whether a kernel is a model's product: its speed is not the device's in that precision."""
    return kernel.quantity == "flops" and kernel.name != f"gemm_{kernel.label}"


def shape_of(gemm: ModelGemm, facts: DeviceFacts, max_chunk_seconds: float) -> Shape:
    """The shape (M, N, K) in which a product is probed on this device."""
    peak = facts.peak_flops.get(gemm.precision, 0.0)
    seconds = RUN_SHARE * max_chunk_seconds
    if facts.kind == "cpu":
        peak /= facts.sm_count or 1
        seconds = CORE_RUN_SECONDS
    flop_max = seconds * REACHED_SHARE * peak
    width = _ELEMENT_BYTES.get(gemm.precision, 1)
    for tile in (TILE, SMALL_TILE):
        for tokens in TOKENS:
            by_flop = flop_max / gemm_flop((tokens, 1, gemm.k))
            by_bytes = (BYTES_MAX - tokens * gemm.k * width) / (gemm.k * width + 4 * tokens)
            fitting = int(min(by_flop, by_bytes))
            if gemm.n <= fitting:
                return (tokens, gemm.n, gemm.k)
            cut = (fitting - gemm.n % tile) // tile * tile + gemm.n % tile
            if cut >= tile:
                return (tokens, cut, gemm.k)
    # Too deep for this device in the time of a run: use the smallest size that a kernel accepts.
    return (TOKENS[-1], min(gemm.n, SMALL_TILE + gemm.n % SMALL_TILE), gemm.k)
