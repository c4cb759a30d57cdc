"""Shapes of GEMMs whose runs are short and still fill the device, and those of the served model.

Pure functions. A shape is (M, N, K); FLOP = 2MNK.

The depth K of a model's product is kept, because it decides how a kernel accumulates. The weights are
cut along their width N, and few tokens are multiplied, so that a run is as short as any probe and the
operands fit the worker's memory. The remainder of N over a whole tile is kept, so that the kernel's
edge path runs as it does for the model.
"""

import math
from collections.abc import Sequence
from typing import Final

from probes.facts import DeviceFacts, ModelGemm
from probes.protocol import KernelInfo


Shape = tuple[int, ...]

# The output tiles that cuBLAS prefers on the tensor pipe, larger first.
TILES: Final = ((128, 256), (256, 128), (128, 128))
# The tiles for pipes so slow that whole waves of those would take too long.
SMALL_TILES: Final = ((64, 64), (128, 64), (64, 128))
SMALL_K_MIN: Final = 128
SMALL_K_STEP: Final = 64
K_MIN: Final = 1024
K_MAX: Final = 16384
K_STEP: Final = 512
# A run takes this share of a chunk: several runs and the spins fit into one.
RUN_SHARE: Final = 0.2
# On a pipe so slow that nothing else fits, two runs share a chunk.
SLOW_RUN_SHARE: Final = 0.45
# A core of the host processor is measured with a cube whose run is far shorter than the scheduler's
# slice (about 3 ms) and whose operands fit its L2 cache.
CORE_RUN_SECONDS: Final = 0.00025
CORE_TRIAL_SHAPE: Final[Shape] = (192, 192, 192)
# For pipes so slow that whole waves take too long: multiples of every tile and alignment.
CUBE_SIZES: Final = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)

# Tokens multiplied at once; the largest count that fits is used.
MODEL_TOKENS: Final = (512, 256, 128, 64, 32)
MODEL_TILES: Final = (256, 64)
# Size limit of a set of operands: two sets fit the smallest arena (64 MiB).
MODEL_BYTES_MAX: Final = 30 * 2**20
# The least share of the data-sheet peak that short products reach, once they are large enough to
# matter.
MODEL_REACHED_SHARE: Final = 0.5
# The limit of products per device, for a device that serves one model after another.
MODEL_PRODUCTS_MAX: Final = 64
_ELEMENT_BYTES: Final = {"fp64": 8, "fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}


def gemm_flop(shape: Shape) -> float:
    """FLOP of one GEMM."""
    return 2.0 * math.prod(shape)


def outputs(
    units: int, waves_max: int = 4, tiles: Sequence[tuple[int, int]] = TILES
) -> tuple[tuple[int, int], ...]:
    """Output sizes (M, N) whose tiles fill `units` SMs for whole waves, squarest and fullest first.

    A wave is one tile on every SM; a half-empty last wave can halve the speed of a small GEMM.
    """
    scored: dict[tuple[int, int], tuple[float, float]] = {}
    for tile_m, tile_n in tiles:
        for waves in range(1, waves_max + 1):
            count = units * waves
            for rows in range(1, math.isqrt(count) * 2 + 1):
                columns = count // rows
                m, n = rows * tile_m, columns * tile_n
                stretch = max(m, n) / min(m, n)
                if stretch > 2:
                    continue
                fill = rows * columns / count
                key = (-round(fill, 2), stretch)
                if fill >= 0.95 and key < scored.get((m, n), (0.0, math.inf)):
                    scored[m, n] = key
    return tuple(sorted(scored, key=lambda size: (scored[size], size)))


def depth(
    m: int,
    n: int,
    flops: float,
    seconds: float,
    *,
    bytes_max: int,
    element_bytes: int,
    output_bytes: int,
) -> int:
    """The K at which an (M, N, K) GEMM takes about `seconds` at `flops` and its operands fit."""
    wanted = seconds * flops / (2.0 * m * n)
    fitting = (bytes_max - output_bytes * m * n) / ((m + n) * element_bytes)
    k = int(min(wanted, fitting, K_MAX)) // K_STEP * K_STEP
    return max(K_MIN, k)


def slow_shapes(units: int, flops: float, seconds: float) -> tuple[Shape, ...]:
    """One wave of small tiles, and the largest cube, that take at most `seconds` at `flops`.

    For a pipe on which whole waves of large tiles would take too long. There is no time to try many
    shapes either.
    """
    waves = []
    for m, n in outputs(units, 1, SMALL_TILES):
        k = int(seconds * flops / (2.0 * m * n)) // SMALL_K_STEP * SMALL_K_STEP
        if m <= n and SMALL_K_MIN <= k <= K_MAX:
            waves.append((m, n, k))
    return (*waves[:1], *_largest_cubes(CUBE_SIZES, flops, seconds)[-1:])


def core_shape(trial_seconds: float) -> Shape:
    """The cube that takes a core about `CORE_RUN_SECONDS`, given the time of the trial shape."""
    wanted = CORE_TRIAL_SHAPE[0] * math.cbrt(CORE_RUN_SECONDS / trial_seconds)
    n = min(CUBE_SIZES, key=lambda size: abs(size - wanted))
    return (n, n, n)


def _largest_cubes(sizes: Sequence[int], flops: float, seconds: float) -> tuple[Shape, ...]:
    fitting = [n for n in sizes if gemm_flop((n, n, n)) <= seconds * flops]
    chosen: Sequence[int] = fitting[-3:] or sizes[:1]
    return tuple((n, n, n) for n in chosen)


def model_kernel(gemm: ModelGemm) -> KernelInfo:
    """A product as a kernel."""
    return KernelInfo(name=gemm.name, quantity="flops", label=gemm.precision)


def is_model_gemm(kernel: KernelInfo) -> bool:
    """Whether a kernel is a model's product: its speed is not the device's in that precision."""
    return kernel.quantity == "flops" and kernel.name != f"gemm_{kernel.label}"


def model_shape(gemm: ModelGemm, facts: DeviceFacts, max_chunk_seconds: float) -> Shape:
    """The shape (M, N, K) in which a product is probed on this device."""
    peak = facts.peak_flops.get(gemm.precision, 0.0)
    seconds = RUN_SHARE * max_chunk_seconds
    if facts.kind == "cpu":
        peak /= facts.sm_count or 1
        seconds = CORE_RUN_SECONDS
    flop_max = seconds * MODEL_REACHED_SHARE * peak
    width = _ELEMENT_BYTES.get(gemm.precision, 1)
    for tile in MODEL_TILES:
        for tokens in MODEL_TOKENS:
            by_flop = flop_max / gemm_flop((tokens, 1, gemm.k))
            by_bytes = (MODEL_BYTES_MAX - tokens * gemm.k * width) / (gemm.k * width + 4 * tokens)
            fitting = int(min(by_flop, by_bytes))
            if gemm.n <= fitting:
                return (tokens, gemm.n, gemm.k)
            cut = (fitting - gemm.n % tile) // tile * tile + gemm.n % tile
            if cut >= tile:
                return (tokens, cut, gemm.k)
    # Too deep for this device in the time of a run: use the smallest size that a kernel accepts.
    return (MODEL_TOKENS[-1], min(gemm.n, tile + gemm.n % tile), gemm.k)
