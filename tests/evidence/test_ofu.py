"""What the OFU study found on real fleets; flopwatch counts by the same definition.

Pedersen et al., arXiv 2605.20799 (read second-hand): on H100 and GB200 tensor activity times SM clock over
the tensor clock is within 1.2 to 3.5 points of the FLOPS that an application counts, over GEMMs of all
sizes. The two large errors in its fleet were the applications', which counted the wrong model.
"""

from dataclasses import replace

import pytest

from exporter.inference.models import ModelDescriptionError
from exporter.inference.models.config import describe
from exporter.inference.models.cost import prefill_attention_flop
from tests.daemon.process import passive
from tests.evidence.tables import table
from tests.fake_nvml import B200, H100, Load
from tests.inference.models.test_architectures import NEMOTRON_H


GB200 = replace(
    B200,
    name="NVIDIA GB200",
    num_gpu_cores=152 * 128,
    multiprocessor_count=152,
    max_sm_clock_mhz=2062,
    max_customer_boost_mhz=2062,
    memory_total_bytes=189_471 << 20,
    power_limit_watts=1200,
)
# Board, headline precision, and the clock at which its data sheet rates the tensor pipe:
# 494.7 TFLOP/s over 132 x 2048, 10 PFLOP/s over 152 x 32768.
CASES = (
    (H100, "fp16", 1.83e9),
    (H100, "tf32", 1.83e9),
    (GB200, "fp4", 2.008e9),
)
ACTIVITY, SM_CLOCK_MHZ = 0.9, 1755.0
UTILIZATION = "flopwatch_flops_utilization_ratio"


def test_utilization_is_ofu(start) -> None:
    """0.9 of the cycles at 1755 MHz are 0.863 of an H100's sheet: by its tensor clock, 1830 MHz.

    By its maximum clock, 1980 MHz, it would be 0.798: further away than the study's mean error.
    """
    rules = ", ".join(
        f"{{match: {{index: {gpu}}}, precision: {precision}}}"
        for gpu, (_board, precision, _hertz) in enumerate(CASES)
    )
    fake, daemon = start(
        [board for board, _precision, _hertz in CASES],
        config=passive(f"sampling: {{interval: 250ms}}\ngpus: [{rules}]\n"),
    )
    for gpu in range(len(CASES)):
        fake.gpu(gpu).set_load(
            Load(
                graphics=1.0,
                sm=0.98,
                any_tensor=ACTIVITY,
                hmma_tensor=ACTIVITY,
                sm_clock_mhz=SM_CLOCK_MHZ,
                power_watts=600,
            )
        )
    wanted = [ACTIVITY * 1e6 * SM_CLOCK_MHZ / hertz for _board, _precision, hertz in CASES]
    assert wanted[0] == pytest.approx(0.863, abs=0.0005)

    daemon.wait_until(
        lambda scrape: all(
            scrape.has(UTILIZATION, gpu=str(gpu), precision=precision)
            and scrape.value(UTILIZATION, gpu=str(gpu), precision=precision)
            == pytest.approx(wanted[gpu], rel=0.005)
            for gpu, (_board, precision, _hertz) in enumerate(CASES)
        )
    )


def test_the_studys_miscounts_are_reproduced() -> None:
    """The applications claimed 2.12 and 1.58 times the counted work: padding cannot explain it."""
    claimed = [float(row["application_mfu"]) / float(row["ofu"]) for row in table("ofu")]

    assert claimed == pytest.approx([2.12, 1.58], abs=0.005)


def test_a_state_space_layer_is_not_counted_as_attention() -> None:
    """The second miscount: of four layers, M-M*, one attends; the others' work knows no context.

    4 x 2 heads x 4 FLOP for each of 1000 x 1001 / 2 pairs.
    """
    model = describe(NEMOTRON_H)

    assert prefill_attention_flop(model, 1000) == 4 * 2 * 4 * 1000 * 1001 / 2


def test_experts_behind_a_latent_projection_are_refused() -> None:
    """The first miscount: such experts work in a smaller space than their sizes say, so nothing is counted."""
    config = {
        "model_type": "nemotron_h",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "hybrid_override_pattern": "E*",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_latent_size": 4,
        "vocab_size": 10,
        "mamba_num_heads": 2,
        "mamba_head_dim": 4,
        "ssm_state_size": 3,
        "n_groups": 1,
        "conv_kernel": 4,
    }
    with pytest.raises(ModelDescriptionError, match="latent projection"):
        describe(config)
