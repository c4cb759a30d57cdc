"""GEMMs in the served model's shapes: which shapes, within which budget, and how results are kept."""

from collections import Counter
from dataclasses import replace

import pytest

from probes.config import ProbeConfig
from probes.facts import ModelGemm
from probes.sizing import MODEL_BYTES_MAX, MODEL_PRODUCTS_MAX, gemm_flop, model_shape
from tests.probes.simulation import COPY, GEMM, Ending, Host, gpu


QKV = ModelGemm("bf16", 6144, 4096)
DOWN = ModelGemm("bf16", 4096, 14336)
HEAD = ModelGemm("bf16", 32064, 4096)
FP4 = ModelGemm("fp4", 4096, 4096)
H100 = gpu(0, peak_flops={"bf16": 989.4e12}, model_gemms=(QKV, DOWN))


def host(tmp_path, facts=H100, **config):
    made = Host(tmp_path, [facts], **({"shapes": "auto"} | config))
    made.kernels = (GEMM, COPY)
    return made


def run_names(made):
    """How often each kernel was asked for, by kernel and the depth of its shape."""
    return Counter((run.kernel, run.shape[2] if run.shape else 0) for run in made.requests)


class TestShapes:
    def test_the_depth_is_the_models_and_the_edge_too(self):
        """32064 columns are 125 tiles of 256 and 64 more: a slice keeps the 64."""
        m, n, k = model_shape(HEAD, H100, 0.001)

        assert k == 4096
        assert n % 256 == 32064 % 256 == 64
        assert n < 32064
        assert m == 512

    @pytest.mark.parametrize("gemm", [QKV, DOWN, HEAD, ModelGemm("bf16", 1536, 2048)])
    @pytest.mark.parametrize("peak", [65e12, 989.4e12, 2500e12])
    def test_a_run_is_short_and_its_operands_small(self, gemm, peak):
        """At half of the peak a fifth of a chunk of 1 ms; two sets of operands in 64 MiB."""
        m, n, k = model_shape(gemm, replace(H100, peak_flops={"bf16": peak}), 0.001)

        assert gemm_flop((m, n, k)) <= 0.0002 * 0.5 * peak or (m, n) == (32, 64 + gemm.n % 64)
        assert 2 * k * (m + n) + 4 * m * n <= MODEL_BYTES_MAX

    def test_a_small_product_is_probed_whole(self):
        """An expert of 768 by 2048 is no longer than a run may be."""
        assert model_shape(ModelGemm("bf16", 2048, 768), H100, 0.001) == (512, 2048, 768)

    def test_on_a_processor_a_core_has_a_quarter_of_a_millisecond(self):
        """Two cores of 1 TFLOP/s each: 125 MFLOP of 4096 deep, 512 tokens by 0 or 32 tokens by 448 columns."""
        facts = gpu(0, key="cpu0", kind="cpu", sm_count=2, peak_flops={"bf16": 2e12})

        m, n, k = model_shape(QKV, facts, 0.001)

        assert (n % 64, k) == (6144 % 64, 4096)
        assert gemm_flop((m, n, k)) <= 0.00025 * 0.5 * 1e12


class TestTurns:
    def test_fixed_shapes_alone_by_default(self, tmp_path):
        """Without `probes.shapes: auto` no product of a model is run, and there is no coverage."""
        made = host(tmp_path, shapes="fixed")
        for _ in range(6):
            seen = made.cycle()

        assert {kernel for kernel, _depth in run_names(made)} == {"gemm_bf16", "copy_device"}
        assert seen.coverage_ratio is None
        assert not any("x" in kernel for kernel, _outcome in seen.runs)

    def test_the_models_products_take_turns_with_the_others(self, tmp_path):
        """Asked of the worker as the GEMM of the precision, in the model's shape, as often as other kernels."""
        made = host(tmp_path)
        for _ in range(12):
            seen = made.cycle()

        runs = run_names(made)
        assert runs["gemm_bf16", 4096] >= 3
        assert runs["gemm_bf16", 14336] >= 3
        assert seen.runs[QKV.name, "ok"] == runs["gemm_bf16", 4096]
        # The headline's own probe stays the one that is fresh in every interval.
        assert seen.runs["gemm_bf16", "ok"] >= 10

    def test_the_budget_is_the_same(self, tmp_path):
        """However many products a model has: no hour takes more than 60 times 20 ms."""
        many = tuple(ModelGemm("bf16", 1024 + 256 * number, 4096) for number in range(40))
        made = host(tmp_path, replace(H100, model_gemms=many))
        for _ in range(60):
            made.cycle()

        assert sum(seconds for _uuid, _at, seconds in made.used) <= 60 * 0.020

    def test_model_shapes_do_not_set_the_precisions_rate(self, tmp_path):
        """A short product is slow: the GPU's FLOP/s and efficiency stay those of the fixed shape."""
        made = host(tmp_path)
        made.cycle()
        before = made.snapshot()
        made.script.append(Ending())
        for _ in range(6):
            seen = made.cycle()

        assert seen.flops.keys() == {"bf16"}
        assert seen.flops == before.flops
        assert seen.baseline_ratio.keys() >= {QKV.name, DOWN.name, "gemm_bf16"}

    def test_a_gpu_that_is_slower_in_a_models_shape_alone_is_seen(self, tmp_path):
        """Each product has a baseline of its own: one at half of its speed, the others as ever."""
        made = host(tmp_path)
        for _ in range(20):
            made.cycle()
        made.slow_depth = 14336
        for _ in range(6):
            seen = made.cycle()

        assert seen.baseline_ratio[DOWN.name] == pytest.approx(0.5)
        assert seen.baseline_ratio[QKV.name] == pytest.approx(1.0)
        assert seen.baseline_ratio["gemm_bf16"] == pytest.approx(1.0)

    def test_wrong_bits_in_a_models_shape_alone(self, tmp_path):
        """A mismatch is counted for the product, by name."""
        made = host(tmp_path)
        for _ in range(6):
            made.cycle()
        made.corrupt_depth = 4096
        for _ in range(6):
            seen = made.cycle()

        assert seen.mismatches[QKV.name] > 0
        assert seen.mismatches["gemm_bf16"] == seen.mismatches[DOWN.name] == 0

    def test_operands_that_do_not_fit_are_left_out_by_name(self, tmp_path, capsys):
        """The worker then measures its own shape: that is not a result for the product."""
        made = host(tmp_path)
        made.own_shape = True
        for _ in range(12):
            seen = made.cycle()

        assert not any(kernel == QKV.name for kernel, _outcome in seen.runs)
        assert seen.coverage_ratio == 0
        assert f"kernel={QKV.name}" in capsys.readouterr().out
        assert run_names(made)["gemm_bf16", 4096] == 1

    def test_models_that_come_and_go_do_not_add_up_for_ever(self, tmp_path):
        """After this many products a device accepts no new ones: series and state stay bounded."""
        made = host(tmp_path)
        for number in range(100):
            made.devices = [
                replace(H100, model_gemms=(ModelGemm("bf16", 1024 + 256 * number, 4096),))
            ]
            for _ in range(4):
                seen = made.cycle()

        names = {kernel for kernel, _outcome in seen.runs if "x" in kernel}
        assert len(names) == MODEL_PRODUCTS_MAX


class TestCoverage:
    def test_coverage_is_the_share_of_used_products_that_were_probed(self, tmp_path):
        """Two products of three: nothing here has a GEMM in fp4."""
        made = host(tmp_path, replace(H100, model_gemms=(QKV, DOWN, FP4)))
        assert made.snapshot_or_none() is None
        for _ in range(12):
            seen = made.cycle()

        assert seen.coverage_ratio == pytest.approx(2 / 3)

    def test_a_day_later_the_coverage_is_zero(self, tmp_path):
        """A product probed more than a day ago no longer counts as covered."""
        made = host(tmp_path)
        for _ in range(12):
            made.cycle()
        assert made.snapshot().coverage_ratio == 1

        made.clock.now += 86_401

        assert made.snapshot().coverage_ratio == 0

    def test_a_model_that_is_gone_has_none(self, tmp_path):
        """Nothing is served: the series ends."""
        made = host(tmp_path)
        for _ in range(12):
            made.cycle()
        made.devices = [replace(H100, model_gemms=())]

        assert made.cycle().coverage_ratio is None


def test_an_unknown_value_is_refused():
    """Shapes are fixed or auto."""
    with pytest.raises(ValueError, match="fixed or auto"):
        ProbeConfig(shapes="model")
