"""The work of the workloads, by arithmetic alone and by torch's own count."""

import pytest

from benchmarks.gpu_acceptance_parts import truth
from benchmarks.gpu_acceptance_parts.truth import TransformerShape


TINY = TransformerShape(layers=2, hidden=8, heads=2, head_width=4, intermediate=16, vocabulary=32)


def test_a_gemm_is_two_operations_for_each_product() -> None:
    """3 x 5 outputs of 7 products each: 105 multiply-adds, 210 FLOP."""
    assert truth.gemm_flop(3, 5, 7) == 210


def test_a_copy_reads_and_writes_every_byte() -> None:
    """A GiB copied is two GiB of traffic."""
    assert truth.copy_bytes(2**30) == 2**31


def test_parameters_of_a_decoder() -> None:
    """A layer: 4 of 8 x 8 and 3 of 8 x 16, 640; two layers and a head of 8 x 32, 1536."""
    assert TINY.layer_parameters == 4 * 64 + 3 * 128
    assert TINY.parameters == 1536


def test_a_prompt() -> None:
    """Ten tokens: 2·10·1280 in the layers, 2·256 for one row of logits, 4·2·8·100 in attention."""
    work = truth.prefill_step(TINY, 10)

    assert work.linear_flop == 25600 + 512
    assert work.attention_flop == 6400
    assert work.dram_bytes is None
    assert work.tokens == 10


def test_a_token_of_each_sequence() -> None:
    """Three sequences over five tokens of context.

    Linear 2·3·1536; attention 4·2·3·8·5; bytes 2 · (1536 weights + 2·2·3·5·8 cached + 2·2·3·8 written).
    """
    work = truth.decode_step(TINY, batch=3, context_tokens=5)

    assert work.linear_flop == 9216
    assert work.attention_flop == 960
    assert work.dram_bytes == 2 * (1536 + 480 + 96)
    assert work.flop == 10176
    assert work.tokens == 3


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_torch_counts_the_same(phase: str) -> None:
    """torch's FLOP counter finds exactly the expected products in the workload's own code."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.gpu_acceptance_parts.torch_workloads import TorchDevice, Transformer

    shape = TransformerShape(
        layers=3, hidden=32, heads=4, head_width=8, intermediate=48, vocabulary=64
    )
    model = Transformer(TorchDevice("cpu"), shape, batch=5, context_tokens=7)
    prompt = model.prompt(11)

    with FlopCounterMode(display=False) as counter:
        if phase == "decode":
            model.decode()
        else:
            model.prefill(prompt)

    expected = (
        truth.decode_step(shape, 5, 7) if phase == "decode" else truth.prefill_step(shape, 11)
    )
    assert counter.get_total_flops() == expected.flop


def test_errors_are_signed() -> None:
    """Counting too much is a positive error; inside the range of the true value there is no error."""
    assert truth.error_ratio(102, 100) == pytest.approx(0.02)
    assert truth.error_outside(95, 100, 110) == pytest.approx(-0.05)
    assert truth.error_outside(105, 100, 110) == 0
    assert truth.error_outside(121, 100, 110) == pytest.approx(0.1)


def test_seconds_of_the_tensor_state() -> None:
    """An H100's peak at its maximum clock, 132 x 4096 x 1.98 GHz, for half a second, whatever the clock was."""
    flop = 132 * 4096 * 1.98e9 / 2

    assert truth.tensor_seconds(flop, 4096, 132, 1.98e9) == pytest.approx(0.5)


def test_only_fp32_runs_beside_the_tensor_pipe() -> None:
    """Every precision of the GEMMs has its pipe."""
    assert {p: truth.pipe_of(p) for p in truth.GEMM_PRECISIONS if truth.pipe_of(p) != "tensor"} == {
        "fp32": "fp32"
    }
