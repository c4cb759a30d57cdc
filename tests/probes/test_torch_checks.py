"""torch's own checks of layouts, shapes and types, on CUDA tensors that have no memory behind them.

torch traces its operators with fake tensors of any device (`FakeTensorMode`), and checks each call
as it does before a kernel is launched. What a kernel itself wants is in torch's C++ sources only, and
named here where it goes further.
"""

import types
import warnings

import pytest

from probes.device import Arena
from probes.kernels import all_kernels
from probes.kernels.gemm import SWEPT_OUTPUTS, TINY, TRIALS_CUDA
from probes.sizing import CUBE_SIZES, K_MAX, K_MIN, K_STEP, outputs


torch = pytest.importorskip("torch")
fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")

PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8")
OUTPUT_TYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
    "int8": torch.int32,
}
# From the smallest MIG instance of an A100 to a B200.
UNITS = (14, 16, 28, 40, 42, 58, 72, 80, 108, 114, 132, 142, 148)


@pytest.fixture
def cuda():
    """A device with an arena in a GPU's memory, in a mode in which nothing is computed."""
    with fake_tensor.FakeTensorMode(), warnings.catch_warnings():
        # The arena reads its block's address; a fake block has none.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        place = torch.device("cuda", 0)
        yield types.SimpleNamespace(
            kind="cuda", torch_device=place, arena=Arena(place, 4 * 2**30), capability=(9, 0)
        )


@pytest.fixture(autouse=True)
def scaled_mm(monkeypatch):
    """`_scaled_mm`, checked as without `out`: with it torch cannot be traced."""
    checked = torch._scaled_mm

    def into(*operands, out, **options):
        result = checked(*operands, **options)
        assert (result.shape, result.dtype, result.device) == (out.shape, out.dtype, out.device)
        return out

    monkeypatch.setattr(torch, "_scaled_mm", into)


def gemm(cuda, precision, shape):
    return all_kernels()[f"gemm_{precision}"]._operands(cuda, shape, sets=1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_takes_every_gemm_on_a_gpu(cuda, precision):
    """In each shape of the trials, and writes the result where it belongs, allocating nothing."""
    for shape in (TINY, *TRIALS_CUDA, (4096, 4096, 4096)):
        cuda.arena.reset()
        prepared = gemm(cuda, precision, shape)
        result = prepared._runs[0]()

        assert result is prepared.sets[0].c
        assert result.device.type == "cuda"
        assert result.shape == shape[:2]
        assert result.dtype == OUTPUT_TYPES[precision]


def test_fp8_in_another_layout_is_refused(cuda):
    """These checks are torch's own: B row by row is an error on a GPU, and only there."""
    prepared = gemm(cuda, "fp8", (64, 128, 256))
    prepared.sets[0].b_transposed = cuda.arena.take((256, 128), torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="mat2 must be col_major"):
        prepared._bind(prepared.sets[0])()


def test_fp8_of_an_odd_depth_is_refused(cuda):
    """K must be a multiple of 16."""
    with pytest.raises(RuntimeError, match="divisible by 16"):
        gemm(cuda, "fp8", (64, 128, 72))._runs[0]()


@pytest.mark.parametrize("units", UNITS)
def test_all_sizes_are_those_that_the_kernels_need(units):
    """`_scaled_mm` wants K and N in multiples of 16, `_int_mm` M above 16, K and N in multiples of 8."""
    shapes = [(m, n, k) for m, n in (*outputs(units), *SWEPT_OUTPUTS) for k in (K_MIN, K_MAX)]
    shapes += [(n, n, n) for n in CUBE_SIZES]

    assert K_STEP % 16 == 0
    assert all(m > 16 and n % 16 == 0 and k % 16 == 0 for m, n, k in (*shapes, *TRIALS_CUDA, TINY))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_operands_are_aligned_for_the_fastest_kernels(cuda, precision):
    """At 4096 bytes within the block: cuBLAS chooses slower algorithms below 16, and TMA wants 128."""
    for operands in gemm(cuda, precision, (1024, 1024, 1536)).sets:
        for tensor in (operands.a, operands.b_transposed, operands.c):
            offset = tensor.storage_offset() * tensor.dtype.itemsize
            assert offset % 4096 == 0


def test_a_gemm_is_checked_on_the_gpu(cuda):
    """The sums of the bits are 64-bit integers that stay on the device, one for each column."""
    from probes.kernels.base import column_sums

    for precision in PRECISIONS:
        sums = column_sums(gemm(cuda, precision, (64, 128, 256)).sets[0].c)

        assert (sums.device.type, sums.dtype, sums.shape) == ("cuda", torch.int64, (128,))


def test_torch_has_the_functions_in_use():
    """Names that are not torch's public interface, and may go: the spin, and both small GEMMs."""
    assert callable(torch.cuda._sleep)
    assert "use_fast_accum" in str(torch.ops.aten._scaled_mm.out._schema)
    assert "_int_mm.out" in str(torch.ops.aten._int_mm.out._schema)


class TestTensorFloat:
    def test_fp32_and_tf32_are_distinguished(self, cuda):
        """By torch's own switch of before 2.9, alone: torch raises where both interfaces are mixed."""
        before = torch.get_float32_matmul_precision()
        try:
            gemm(cuda, "tf32", TINY).activate()
            assert torch.backends.cuda.matmul.allow_tf32
            gemm(cuda, "fp32", TINY).activate()
            assert not torch.backends.cuda.matmul.allow_tf32
            gemm(cuda, "bf16", TINY).activate()
            assert not torch.backends.cuda.matmul.allow_tf32
        finally:
            torch.set_float32_matmul_precision(before)
