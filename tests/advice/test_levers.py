"""What each lever predicts for a pass worked out by hand, and when it has no prediction."""

from dataclasses import replace
from typing import Any

import pytest

from exporter.advice.advise import advise, best
from exporter.advice.levers import LEVERS
from exporter.advice.prediction import GpuWindow, Inapplicable, Reference, WorkloadWindow
from tests.advice.windows import MODEL, gpu, window


def reason(lever: str, given: WorkloadWindow) -> str:
    """Why the lever has no prediction."""
    with pytest.raises(Inapplicable) as absent:
        LEVERS[lever].predict(given)
    return str(absent.value)


def test_all_levers_of_the_contract_are_there() -> None:
    assert set(LEVERS) == {
        "larger_batch",
        "weights_fp8",
        "weights_fp4",
        "kv_cache_fp8",
        "full_clocks",
        "release_idle",
        "fewer_launch_gaps",
        "replace_slow_gpu",
        "restore_prefix_cache",
        "tensor_parallel",
    }


def test_twice_the_batch_of_a_memory_bound_pass_is_nearly_twice_the_throughput() -> None:
    """22 of 25 ms read weights. With 20 requests they are still read once: 2x, minus margins."""
    prediction = LEVERS["larger_batch"].predict(window())

    assert prediction.target == 20
    assert 1.6 < prediction.gain.low < prediction.gain.high < 2.1
    assert prediction.gain.holds(1.95)
    assert prediction.cost.low == pytest.approx(1 / prediction.gain.high)
    assert "10 wait" in prediction.evidence
    assert "--max-num-seqs 20" in prediction.action


def test_fp8_halves_the_bytes_of_the_layers_and_leaves_the_head() -> None:
    """20 MB of layers become 10 MB, the 2 MB of the head stay: 12 ms of 22 are left.

    The 3 ms beside the roofline stay (25 / 15 = 1.67) or shrink with it (22 / 12 = 1.83).
    """
    prediction = LEVERS["weights_fp8"].predict(window())

    assert prediction.gain.low == pytest.approx(25 / 15, rel=0.05)
    assert prediction.gain.high == pytest.approx(22 / 12, rel=0.05)


def test_the_larger_batch_is_bounded_by_those_who_wait() -> None:
    assert LEVERS["larger_batch"].predict(window(waiting_requests=3.0)).target == 13


def test_the_larger_batch_is_bounded_by_the_kv_cache() -> None:
    """The cache is 0.7 full with 10 requests; 0.95 of it holds 13."""
    assert LEVERS["larger_batch"].predict(window(cache_usage_ratio=0.7)).target == 13


def test_without_a_queue_a_lever_brings_no_throughput() -> None:
    """Clients already get what they ask for: the gain is 1, and only the capacity would grow."""
    prediction = LEVERS["weights_fp8"].predict(window(waiting_requests=0.0))

    assert prediction.gain == (1.0, 1.0)
    assert prediction.capacity.low > 1.5
    assert prediction.cost.high == 1.0
    assert "no requests wait" in prediction.evidence


@pytest.mark.parametrize(
    ("lever", "facts", "words"),
    [
        ("larger_batch", {"waiting_requests": 0.0}, "no requests wait"),
        ("larger_batch", {"cache_usage_ratio": 0.95}, "95% full"),
        ("larger_batch", {"cache_usage_ratio": None}, "KV cache usage"),
        ("larger_batch", {"waiting_requests": None}, "how many requests wait"),
        ("larger_batch", {"description": None}, "not described"),
        ("weights_fp8", {"passes": None}, "forward passes"),
        ("weights_fp8", {"decode_context": None}, "context"),
        ("weights_fp8", {"gpus": ()}, "no GPU"),
        ("weights_fp8", {"gpu_count": 2}, "pipeline and data parallelism"),
        ("weights_fp8", {"running_requests": 5.0}, "speculative decoding"),
        ("weights_fp4", {}, "has no fp4 arithmetic"),
        ("full_clocks", {}, "at their maximum"),
        ("fewer_launch_gaps", {}, "100%"),
        ("fewer_launch_gaps", {"waiting_requests": 0.0}, "lack of requests"),
        ("replace_slow_gpu", {}, "fewer than three"),
        ("restore_prefix_cache", {}, "cache hits"),
        ("tensor_parallel", {}, "one GPU"),
        ("release_idle", {}, "requests wait"),
        ("release_idle", {"waiting_requests": 0.0}, "only engine"),
    ],
)
def test_a_lever_that_cannot_be_predicted_is_absent_with_its_reason(
    lever: str, facts: dict[str, Any], words: str
) -> None:
    assert words in reason(lever, window(**facts))


def test_no_fp8_where_the_silicon_has_none() -> None:
    a100 = gpu(name="NVIDIA A100-SXM4-80GB", peaks=_peaks({"bf16": 1e12}))

    assert "has no fp8 arithmetic" in reason("weights_fp8", window(gpus=(a100,)))
    assert "has no fp8 arithmetic" in reason("kv_cache_fp8", window(gpus=(a100,)))


def test_a_processor_with_quantized_weights_gets_no_advice() -> None:
    """llama.cpp's q8_0 kernels take two requests one by one: its batch of two brought nothing."""
    weights = replace(MODEL.weights, attention=1.0625, dense=1.0625)
    given = window(gpus=(gpu(gpu="cpu0"),), description=replace(MODEL, weights=weights))

    assert "weights are quantized" in reason("larger_batch", given)
    assert LEVERS["larger_batch"].predict(replace(given, description=MODEL)).gain.low > 1.0


def test_quantizing_on_a_processor_is_predicted_for_passes_of_one_request() -> None:
    """With ten requests a pass it depends on the kernel; with one, memory decides: 22 MB to 11.7."""
    after = LEVERS["weights_fp8"].after
    assert after is not None
    weights = replace(MODEL.weights, attention=1.0625, dense=1.0625, head=1.0625)
    many = window(gpus=(gpu(gpu="cpu0"),), running_requests=10.0)
    one = replace(many, running_requests=1.0, decode_tokens=1000.0)

    with pytest.raises(Inapplicable, match="several requests share a pass"):
        after(many, replace(many, description=replace(MODEL, weights=weights)))
    predicted = after(one, replace(one, description=replace(MODEL, weights=weights)))
    assert 25 / (25 - 10.4) * 0.95 < predicted.low < predicted.high < 22 / 11.6


def test_a_gpu_that_needs_repair_gets_no_advice() -> None:
    """A fault must be repaired first: the present rate does not show what the GPU could do."""
    advice = advise(window(gpus=(gpu(fault="Xid 79, fallen off the bus"),)))

    assert advice.predictions == ()
    assert any("Xid 79" in absent.reason for absent in advice.absent)


def test_full_clocks_bring_nothing_to_a_pass_that_waits_for_memory() -> None:
    """At half of the clock 22 of 25 ms are memory's: at most the other 3 ms become 1.5 ms."""
    slow = gpu(clock_ratio=0.5, clock_lost_to={"thermal": 1.0}, reachable_flops={"bf16": 5e11})
    prediction = LEVERS["full_clocks"].predict(window(gpus=(slow,)))

    assert 1.0 <= prediction.gain.low < 1.01
    assert prediction.gain.high < 1.15
    assert "heat" in prediction.evidence
    assert "cooling" in prediction.action


def test_the_power_limit_is_raised_no_further_than_the_board_allows() -> None:
    capped: dict[str, Any] = {
        "clock_ratio": 0.7,
        "clock_lost_to": {"power": 1.0},
        "power_watts": 400.0,
        "power_limit_watts": 400.0,
    }
    at_most = gpu(**capped, power_limit_max_watts=400.0)
    free = gpu(**capped, power_limit_max_watts=700.0)

    assert "board's maximum of 400 W" in reason("full_clocks", window(gpus=(at_most,)))
    assert "--power-limit 700" in LEVERS["full_clocks"].predict(window(gpus=(free,))).action
    assert "unknown" in reason("full_clocks", window(gpus=(gpu(**capped),)))


def test_gaps_are_what_no_kernel_fills_while_requests_wait() -> None:
    """A fifth of each pass is a gap. 60 to 90 % of it can go: 1/(1-0.12) to 1/(1-0.18)."""
    prediction = LEVERS["fewer_launch_gaps"].predict(window(gpus=(gpu(graphics=0.8),)))

    assert prediction.gain == pytest.approx((1 / 0.88, 1 / 0.82), rel=1e-3)


def test_the_group_waits_for_its_slowest_gpu() -> None:
    """One of two GPUs reads at 0.8 of its siblings' bandwidth: its 11 MB take 13.75 of 14 ms."""
    slow = gpu(gpu="1", uuid="GPU-1", reachable_bandwidth_bytes_per_second=8e8)
    reference = Reference(8, 1e9, {"bf16": 1e12})
    prediction = LEVERS["replace_slow_gpu"].predict(
        window(
            seconds=14.0, gpus=(gpu(), slow), gpu_count=2, reference=reference, tensor_parallel=2
        )
    )

    assert 1.1 < prediction.gain.low <= prediction.gain.high < 1.2501
    assert "GPU 1 reaches 80%" in prediction.evidence
    assert "GPU-1" in prediction.action


def test_healthy_siblings_differ_and_none_is_replaced_for_it() -> None:
    reference = Reference(8, 1.05e9, {"bf16": 1.05e12})

    assert "as fast as its siblings" in reason("replace_slow_gpu", window(reference=reference))


def test_a_lost_prefix_cache_costs_the_prefill_that_it_saved() -> None:
    """Hits fell from 80 to 0 %: a fifth of the 1000 prompt tokens a pass would be left."""
    facts: dict[str, Any] = {
        "prefill_tokens": 1_000_000.0,
        "prompts": 1000.0,
        "seconds": 60.0,
        "best_cache_hit_ratio": 0.8,
        "gpus": (gpu(reachable_flops={"bf16": 1e12 / 2}),),
    }
    prediction = LEVERS["restore_prefix_cache"].predict(window(**facts))

    assert prediction.gain.low > 1.2
    assert "0% of the prompt tokens" in prediction.evidence
    assert "80% at its best" in prediction.evidence


def test_idle_replicas_are_released_with_a_reserve() -> None:
    """Four replicas with 10 % of the cache each: one could hold four times as much."""
    prediction = LEVERS["release_idle"].predict(window(waiting_requests=0.0, replicas=4))

    assert prediction.gain == (1.0, 1.0)
    assert prediction.cost == (0.25, 0.25)
    assert "stop 3 of 4" in prediction.action


def test_the_first_lever_is_the_one_with_the_cheapest_token() -> None:
    advice = advise(window())
    costs = [prediction.cost.middle for prediction in advice.predictions]

    assert costs == sorted(costs)
    first = best(advice)
    assert first is not None
    assert first.lever in {"larger_batch", "weights_fp8"}
    assert len(advice.predictions) + len(advice.absent) == len(LEVERS)


def test_a_back_test_predicts_from_the_old_window_for_the_new_value() -> None:
    """Between ten and fifteen requests: at most 1.5 times the throughput, and not much less."""
    after = LEVERS["larger_batch"].after
    assert after is not None
    predicted = after(window(), window(running_requests=15.0))

    assert 1.35 < predicted.low < predicted.high < 1.55


def _peaks(flops: dict[str, float]) -> Any:
    peaks = GpuWindow("0", "GPU-0", "x", gpu().peaks).peaks
    return type(peaks)("datasheet", "A100", flops=flops, dram_bytes_per_second=1e9)


def test_the_window_reports_its_cache_hits() -> None:
    assert window(prefill_tokens=75.0, cached_tokens=25.0).cache_hit_ratio == 0.25
    assert window().cache_hit_ratio is None
    assert MODEL.layer_count == 1
