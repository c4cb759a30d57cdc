# ruff: noqa: D102 - what a method does is documented where it is declared
"""GEMM in every precision: the present speed of the tensor and plain pipes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flopwatch.processor import read_processor
from probes.kernels.base import Kernel, Prepared, Verification, column_sums, digest
from probes.sizing import (
    CORE_TRIAL_SHAPE,
    RUN_SHARE,
    SLOW_RUN_SHARE,
    Shape,
    core_shape,
    depth,
    gemm_flop,
    outputs,
    slow_shapes,
)


if TYPE_CHECKING:
    from probes.device import Allowance, Chunk, ProbeDevice


# Each shows which of the larger ones is short enough. Between the pipes of one GPU, and between
# GPUs, rates differ by a factor of a thousand (fp64 on an inference GPU is 1/64 of its fp32).
TRIALS_CUDA: Final[tuple[Shape, ...]] = (
    (256, 256, 256),
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 1024),
)
# On a busy host, the fastest of several runs decides the shape of all later probes.
TRIAL_RUNS: Final = 4
# Warm-up runs before these, for a kernel that was never run.
LOADING_RUNS: Final = 2
TINY: Final[Shape] = (64, 64, 64)
# Sizes that did well in mamf-finder's published sweeps, in addition to those computed for the SM
# count.
SWEPT_OUTPUTS: Final = ((2048, 2048), (4096, 4096))
COMPUTED_OUTPUTS: Final = 3
# A larger GEMM is about this much faster than the trial.
TRIAL_FACTOR: Final = 1.4
EQUAL_SHARE: Final = 0.96
# The longest run that may share a chunk with another run, as a share of the chunk.
LONGEST_SHARE: Final = 0.6
# Rows of B converted at once for the exact check: 256 × 16384 × 8 bytes are 32 MiB of host memory.
EXACT_BLOCK: Final = 256
SEED_A: Final = 1
SEED_B: Final = 2


@dataclass(frozen=True, slots=True)
class Precision:
    """How to request a GEMM of one precision from torch."""

    name: str
    inputs: str
    """torch's name of the operands' data type."""
    output: str
    capability: tuple[int, int] | None
    """Lowest CUDA compute capability that has it in silicon."""
    float32_precision: str | None = None


PRECISIONS: Final = (
    Precision("fp32", "float32", "float32", (3, 0), float32_precision="highest"),
    Precision("bf16", "bfloat16", "bfloat16", (8, 0)),
    Precision("fp8", "float8_e4m3fn", "bfloat16", (8, 9)),
    Precision("fp16", "float16", "float16", (7, 0)),
    Precision("int8", "int8", "int32", (7, 5)),
    Precision("tf32", "float32", "float32", (8, 0), float32_precision="high"),
    Precision("fp64", "float64", "float64", (6, 0)),
)


@dataclass(slots=True)
class Operands:
    """One set: C = A · Bᵀ, with B stored as in an inference engine's linear layers."""

    a: Any
    b_transposed: Any
    """(K, N), column-major: the only layout that fp8 takes, and the fastest one for the others."""
    c: Any


class PreparedGemm(Prepared):
    """Sets of equal operands that the runs rotate over, so that each run has a cold cache."""

    def __init__(
        self, precision: Precision, shape: Shape, sets: list[Operands], scale: Any
    ) -> None:
        self.shape = shape
        self.work_per_run = gemm_flop(shape)
        self.exact_sums: Any = None
        """Column sums of the exact result, for int8."""
        self._precision = precision
        self._scale = scale
        self._runs = [self._bind(operands) for operands in sets]
        self.sets = sets
        self._written: set[int] = set()

    def run(self, number: int) -> None:
        index = number % len(self._runs)
        self._runs[index]()
        self._written.add(index)

    def activate(self) -> None:
        import torch

        if self._precision.float32_precision is not None:
            torch.set_float32_matmul_precision(self._precision.float32_precision)

    def verify(self, device: "ProbeDevice", allowance: "Allowance") -> Verification:
        import torch

        outputs_written = [self.sets[index].c for index in sorted(self._written)]
        self._written.clear()
        sums = device.work(allowance, lambda: [column_sums(c) for c in outputs_written])
        on_host = [each.cpu() for each in sums]
        exact = None
        if self.exact_sums is not None:
            exact = all(torch.equal(each, self.exact_sums) for each in on_host)
        return Verification(
            digest=digest(on_host[0]),
            repeats_agree=all(torch.equal(each, on_host[0]) for each in on_host),
            exact=exact,
        )

    def _bind(self, operands: Operands) -> Any:
        import torch

        a, b, c = operands.a, operands.b_transposed, operands.c
        if self._precision.name == "int8":
            return lambda: torch._int_mm(a, b, out=c)  # noqa: SLF001 - the only int8 GEMM torch has
        if self._precision.name == "fp8":
            scale, fast = self._scale, a.is_cuda
            return lambda: torch._scaled_mm(  # noqa: SLF001 - the only fp8 GEMM torch has
                a, b, scale, scale, out_dtype=c.dtype, use_fast_accum=fast, out=c
            )
        return lambda: torch.mm(a, b, out=c)


@dataclass(frozen=True, slots=True)
class Gemm(Kernel):
    """C = A · Bᵀ in one precision."""

    precision: Precision
    name: str = field(init=False)
    label: str = field(init=False)
    quantity = "flops"
    core_by_core = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"gemm_{self.precision.name}")
        object.__setattr__(self, "label", self.precision.name)

    def available(self, device: "ProbeDevice", allowance: "Allowance") -> bool:
        from probes.device import is_out_of_memory

        if device.kind == "cpu":
            # torch would emulate it: the result would not show the silicon.
            if self.name.removeprefix("gemm_") not in read_processor().native_precisions:
                return False
        elif self.precision.capability is not None and (
            getattr(device, "capability", (0, 0)) < self.precision.capability
        ):
            # cuBLAS would emulate it: the result would not show the silicon.
            return False
        try:
            device.arena.reset()
            prepared = self._operands(device, TINY, sets=1)
            prepared.activate()
            device.load(allowance, prepared.run)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            # torch's error if the device, or this torch, does not support the data type. A device
            # error has the same type, but persists: then this raises it.
            device.check()
            return False
        return True

    def choose(
        self, device: "ProbeDevice", allowance: "Allowance", max_chunk_seconds: float
    ) -> Shape:
        if device.kind == "cpu":
            return self._choose_for_a_core(device, allowance)
        room = device.arena.size_bytes // 2
        flops = TRIAL_FACTOR * self._trial_rate(device, allowance, max_chunk_seconds, room)
        candidates = self._cuda_shapes(device, flops, max_chunk_seconds, room)
        rates = self._rates(device, allowance, candidates, flops)
        # Small GEMMs are slow: at the speed found now, the best output size allows a larger depth.
        best = max(rates.values())
        m, n, _ = max(rates, key=lambda shape: rates[shape])
        deeper = self._deep(m, n, best, RUN_SHARE * max_chunk_seconds, room)
        if deeper not in rates and gemm_flop(deeper) <= LONGEST_SHARE * max_chunk_seconds * best:
            rates |= self._rates(device, allowance, [deeper], best)
        return max(rates, key=lambda shape: rates[shape])

    def _choose_for_a_core(self, device: "ProbeDevice", allowance: "Allowance") -> Shape:
        """Choose a cube that a core finishes between two preemptions."""
        device.arena.reset()
        prepared = self._filled(device, allowance, CORE_TRIAL_SHAPE, sets=device.units)
        prepared.activate()
        chunk = device.core_by_core(allowance, prepared.run, 1, TRIAL_RUNS)
        return core_shape(min(chunk.run_seconds)) if chunk.run_seconds else CORE_TRIAL_SHAPE

    def prepare(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, peer: int | None
    ) -> PreparedGemm:
        if device.kind == "cpu":
            # One set per core. A processor's GEMMs stay in its caches; the first run fills them.
            return self._filled(device, allowance, shape, max(2, device.units))
        size = self._set_bytes(shape)
        sets = max(2, min(64, -(-device.rotation_bytes // size)))
        # Memory may allow fewer sets than the cache size calls for, but two show whether repeats
        # agree.
        while sets > 1 and sets * size > device.arena.size_bytes:
            sets -= 1
        return self._filled(device, allowance, shape, sets)

    def _trial_rate(
        self, device: "ProbeDevice", allowance: "Allowance", max_chunk_seconds: float, room: int
    ) -> float:
        """FLOP/s of the largest trial that surely fits into a chunk, or of the first trial."""
        trials = self._fitting(TRIALS_CUDA, room) or TRIALS_CUDA[:1]
        flops, shape = self._rate(device, allowance, trials[0]), trials[0]
        while True:
            # A larger one is faster, if anything, so it takes no longer than this rate implies.
            short = [each for each in trials if gemm_flop(each) <= max_chunk_seconds * flops]
            if not short or short[-1] <= shape:
                return flops
            shape = short[-1]
            flops = max(flops, self._rate(device, allowance, shape))

    def _cuda_shapes(
        self, device: "ProbeDevice", flops: float, max_chunk_seconds: float, room: int
    ) -> tuple[Shape, ...]:
        """Shapes to try: whole waves of large tiles or, if those take too long, of small ones."""
        sizes = (*outputs(device.units)[:COMPUTED_OUTPUTS], *SWEPT_OUTPUTS)
        seconds = RUN_SHARE * max_chunk_seconds
        shapes = [self._deep(m, n, flops, seconds, room) for m, n in sizes]
        longest = LONGEST_SHARE * max_chunk_seconds * flops
        short = [shape for shape in shapes if gemm_flop(shape) <= longest]
        slow = slow_shapes(device.units, flops, SLOW_RUN_SHARE * max_chunk_seconds)
        return self._fitting(short, room) or self._fitting(slow, room)

    def _deep(self, m: int, n: int, flops: float, seconds: float, room: int) -> Shape:
        inputs, output = (dtype.itemsize for dtype in self._dtypes())
        k = depth(m, n, flops, seconds, bytes_max=room, element_bytes=inputs, output_bytes=output)
        return (m, n, k)

    def _fitting(self, shapes: Sequence[Shape], room: int) -> tuple[Shape, ...]:
        """The shapes of which two sets fit the arena: two show whether repeats agree."""
        return tuple(shape for shape in shapes if self._set_bytes(shape) <= room)

    def _rates(
        self, device: "ProbeDevice", allowance: "Allowance", shapes: Sequence[Shape], flops: float
    ) -> dict[Shape, float]:
        """The speed of each shape, as far as half of the allowance lasts; of at least one."""
        rates: dict[Shape, float] = {}
        for shape in shapes:
            # Two to load and two to time; the other half stays for the measurement itself.
            cost = 4 * gemm_flop(shape) / flops + device.overhead_seconds
            if rates and cost > allowance.left_seconds / 2:
                break
            allowance.require(cost)
            rates[shape] = self._rate(device, allowance, shape)
        return rates

    def _rate(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, runs: int = 2
    ) -> float:
        """FLOP/s of the fastest of a few runs on one set of operands."""
        chunk, work = self._trial(device, allowance, shape, runs)
        return work / min(chunk.run_seconds)

    def _trial(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, runs: int
    ) -> tuple["Chunk", float]:
        """A few runs on one set of operands, and the FLOP of each."""
        device.arena.reset()
        prepared = self._filled(device, allowance, shape, sets=1)
        prepared.activate()
        device.load(allowance, prepared.run)
        return device.chunk(allowance, prepared.run, 0, runs), prepared.work_per_run

    def _filled(
        self, device: "ProbeDevice", allowance: "Allowance", shape: Shape, sets: int
    ) -> PreparedGemm:
        from probes.device import fill, pattern

        prepared = self._operands(device, shape, sets)
        dtype = self._dtypes()[0]
        first, second = pattern(dtype, SEED_A), pattern(dtype, SEED_B)
        on_device = first.to(device.torch_device), second.to(device.torch_device)

        def fill_all() -> None:
            for operands in prepared.sets:
                fill(operands.a, on_device[0])
                fill(operands.b_transposed.t(), on_device[1])

        if device.kind == "cpu":
            # Host work, like importing torch: no kernel under test and no device time.
            fill_all()
        else:
            device.work(allowance, fill_all)
        if self.precision.name == "int8" and sets > 1:
            prepared.exact_sums = exact_column_sums(shape, first, second)
        return prepared

    def _operands(self, device: "ProbeDevice", shape: Shape, sets: int) -> PreparedGemm:
        import torch

        inputs, output = self._dtypes()
        m, n, k = shape
        arena = device.arena
        made = [
            Operands(
                arena.take((m, k), inputs),
                arena.take((n, k), inputs).t(),
                arena.take((m, n), output),
            )
            for _ in range(sets)
        ]
        scale = torch.ones((), device=device.torch_device)
        return PreparedGemm(self.precision, shape, made, scale)

    def _set_bytes(self, shape: Shape) -> int:
        from probes.device import footprint

        inputs, output = self._dtypes()
        m, n, k = shape
        return footprint((m, k), inputs) + footprint((n, k), inputs) + footprint((m, n), output)

    def _dtypes(self) -> tuple[Any, Any]:
        import torch

        return getattr(torch, self.precision.inputs), getattr(torch, self.precision.output)


def exact_column_sums(shape: Shape, a_pattern: Any, b_pattern: Any) -> Any:
    """Column sums of A · Bᵀ in exact integers, without computing the product: (eᵀA) Bᵀ.

    In float64, whose sums stay below 2⁵³: 128·M · 128 · K is 5·10¹² for 16384².
    """
    import torch

    from probes.device import repeated

    m, n, k = shape
    a = repeated(a_pattern, m * k).view(m, k)
    b = repeated(b_pattern, n * k).view(n, k)
    row = a.sum(dim=0, dtype=torch.int64).to(torch.float64)
    blocks = [
        b[start : start + EXACT_BLOCK].to(torch.float64) @ row for start in range(0, n, EXACT_BLOCK)
    ]
    return torch.cat(blocks).to(torch.int64)


KERNELS: Final = tuple(Gemm(precision) for precision in PRECISIONS)
