"""Workloads in torch, as a user would write them, on CUDA or the host processor. Imports torch.

GEMMs, copies, and a decoder of matrix products whose FLOP are counted in `truth`. The decoder's
attention is written out as two products and a softmax: a fused kernel would skip what a causal mask
hides, in blocks of its own choosing, and its FLOP would be unknown. Timing and clock are independent
of the probes' own device code, which is under test.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gpu_acceptance_parts.truth import TransformerShape


# Two spins of known cycles; their difference has the launch overhead divided out.
_SPIN_CYCLES = (20_000, 320_000)
# Larger than any GPU's last-level cache, as in mamf-finder.
_FLUSH_BYTES = 256 * 2**20
_INPUTS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_SCALE = 0.02  # of the weights: keeps activations finite over many steps


class TorchDevice:
    """One device. On the host processor there is no spin, and so no measured clock."""

    def __init__(self, kind: str) -> None:
        self.is_cuda = kind == "cuda"
        self.torch_device = torch.device(kind)
        self._flush: Any = None

    def properties(self) -> dict[str, Any]:
        """Name, SM count and versions as torch reports them; opens the context."""
        found: dict[str, Any] = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(0)
            found |= {
                "name": properties.name,
                "sm_count": int(properties.multi_processor_count),
                "memory_bytes": int(properties.total_memory),
                "capability": [int(properties.major), int(properties.minor)],
            }
        return found

    def wait(self) -> None:
        """Wait until everything enqueued is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give cached memory back, so that the next operands find room."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def seconds_of(self, runs: Sequence[Callable[[], object]], *, cold: bool) -> list[float]:
        """Time of each run on the device; `cold`: the last-level cache is overwritten before each."""
        if not self.is_cuda:
            return [_on_host(run) for run in runs]
        if cold and self._flush is None:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        marks = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in runs
        ]
        for run, (start, end) in zip(runs, marks, strict=True):
            if cold:
                self._flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def clock_hertz(self) -> float | None:
        """The SM clock, by spins of known cycles timed on the device."""
        if not self.is_cuda:
            return None
        short, long = _SPIN_CYCLES
        # While the first one spins, the host enqueues the others: no launch gap is included in
        # their time.
        spins = [_spin(cycles) for cycles in (long, short, long)]
        _, brief, lengthy = self.seconds_of(spins, cold=False)
        return (long - short) / (lengthy - brief) if lengthy > brief else None


def _spin(cycles: int) -> Callable[[], object]:
    return lambda: torch.cuda._sleep(cycles)


def _on_host(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def set_up_precision(precision: str) -> None:
    """torch's switch between fp32 and tf32 is one for the whole process."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def make_gemm(
    device: TorchDevice, precision: str, shape: tuple[int, int, int], *, zeros: bool = False
) -> Callable[[], object]:
    """A run of C = A · B of that shape (M, N, K), with operands in place; random data unless `zeros`."""
    m, n, k = shape
    set_up_precision(precision)
    where = device.torch_device
    if precision == "int8":
        a8 = torch.randint(-128, 128, (m, k), dtype=torch.int8, device=where)
        b8 = torch.randint(-128, 128, (n, k), dtype=torch.int8, device=where)
        out8 = torch.empty((m, n), dtype=torch.int32, device=where)
        return lambda: torch._int_mm(a8, b8.t(), out=out8)
    if precision == "fp8":
        a = _random(m, k, torch.float32, where, zeros=zeros).to(torch.float8_e4m3fn)
        b = _random(n, k, torch.float32, where, zeros=zeros).to(torch.float8_e4m3fn)
        out = torch.empty((m, n), dtype=torch.bfloat16, device=where)
        scale = torch.ones((), device=where)
        fast = device.is_cuda
        return lambda: torch._scaled_mm(
            a, b.t(), scale, scale, out_dtype=torch.bfloat16, use_fast_accum=fast, out=out
        )
    dtype = _INPUTS[precision]
    a = _random(m, k, dtype, where, zeros=zeros)
    b = _random(n, k, dtype, where, zeros=zeros)
    out = torch.empty((m, n), dtype=dtype, device=where)
    return lambda: torch.mm(a, b.t(), out=out)


def make_copy(device: TorchDevice, size_bytes: int) -> Callable[[], object]:
    """A run of a copy inside the device's memory."""
    source = torch.randint(0, 255, (size_bytes,), dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _random(rows: int, columns: int, dtype: Any, where: Any, *, zeros: bool) -> Any:
    make = torch.zeros if zeros else torch.randn
    return make((rows, columns), dtype=dtype, device=where)


class Transformer:
    """Weights of every layer, and a KV cache of fixed length for decoding."""

    def __init__(
        self, device: TorchDevice, shape: TransformerShape, batch: int, context_tokens: int
    ) -> None:
        self._shape = shape
        self._where = device.torch_device
        width = shape.heads * shape.head_width
        self._layers = [
            (
                self._weights(3 * width, shape.hidden),
                self._weights(shape.hidden, width),
                self._weights(2 * shape.intermediate, shape.hidden),
                self._weights(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.layers)
        ]
        self._head = self._weights(shape.vocabulary, shape.hidden)
        self._batch = batch
        self._cache = [
            self._weights(2, batch, shape.heads, context_tokens, shape.head_width)
            for _ in range(shape.layers)
        ]
        self._tokens = self._weights(batch, shape.hidden) / _SCALE

    def decode(self) -> Any:
        """One token of each sequence; the newest keys and values replace the cache's last ones."""
        x = self._tokens
        for (qkv, output, gate_up, down), cache in zip(self._layers, self._cache, strict=True):
            q, k, v = self._heads(functional.linear(self._norm(x), qkv), self._batch)
            cache[0, :, :, -1], cache[1, :, :, -1] = k, v
            scores = torch.matmul(q.unsqueeze(2), cache[0].transpose(2, 3))
            mixed = torch.matmul(self._softmax(scores), cache[1]).squeeze(2)
            x = x + functional.linear(mixed.reshape(self._batch, -1), output)
            x = x + self._feed_forward(x, gate_up, down)
        return functional.linear(self._norm(x), self._head).argmax(dim=-1)

    def prefill(self, prompt: Any) -> Any:
        """A whole prompt (tokens, hidden) of one sequence; the last token's logits."""
        x, tokens = prompt, prompt.shape[0]
        for qkv, output, gate_up, down in self._layers:
            q, k, v = self._heads(functional.linear(self._norm(x), qkv), tokens)
            q, k, v = (each.transpose(0, 1) for each in (q, k, v))
            mixed = torch.matmul(self._softmax(torch.matmul(q, k.transpose(1, 2))), v)
            x = x + functional.linear(mixed.transpose(0, 1).reshape(tokens, -1), output)
            x = x + self._feed_forward(x, gate_up, down)
        return functional.linear(self._norm(x[-1:]), self._head)

    def prompt(self, tokens: int) -> Any:
        """A random prompt, already embedded."""
        return self._weights(tokens, self._shape.hidden) / _SCALE

    def _heads(self, projected: Any, rows: int) -> Any:
        shape = (rows, 3, self._shape.heads, self._shape.head_width)
        return projected.view(shape).unbind(dim=1)

    def _softmax(self, scores: Any) -> Any:
        return torch.softmax(scores * self._shape.head_width**-0.5, dim=-1)

    def _norm(self, x: Any) -> Any:
        return functional.rms_norm(x, (x.shape[-1],))

    def _feed_forward(self, x: Any, gate_up: Any, down: Any) -> Any:
        gate, up = functional.linear(self._norm(x), gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, down)

    def _weights(self, *sizes: int) -> Any:
        return _SCALE * torch.randn(sizes, dtype=torch.bfloat16, device=self._where)
