"""GEMMs and copies with torch, as a user would call them. Imports torch."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_acceptance_parts.torch_device import TorchDevice


_INPUTS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


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
