"""The window that advice is given from, worked by hand from two observations of a State."""

from dataclasses import replace

import pytest

from exporter.advice.advise import advise
from exporter.advice.observe import observation_of, windows
from exporter.advice.prediction import Price
from exporter.attribution.snapshot import Account, Basis, Bill, Charges, Holder
from exporter.inference.snapshot import GpuRef, WorkloadSnapshot
from exporter.state import State
from tests.advice.hosts import observed, served_at, state_at


def test_a_window_holds_differences_of_counters_and_means_of_gauges() -> None:
    """Over 100 s: 4000 passes, 20,000 prompt tokens, 40,200 answer tokens, 3 GFLOP/s."""
    (window,) = windows(
        [observed(100.0), observed(150.0), observed(200.0)],
        best_hits={("chat", "tiny"): 0.6},
        prices={"GPU-0": Price(2.5, "USD")},
    )

    assert (window.workload, window.model, window.seconds) == ("chat", "tiny", 100.0)
    assert (window.passes, window.prompts) == (4000.0, 200.0)
    assert (window.prefill_tokens, window.decode_tokens) == (20_000.0, 40_200.0)
    assert window.cache_hit_ratio == pytest.approx(1 / 3)
    assert window.useful_flops == pytest.approx(3e9)
    assert (window.running_requests, window.waiting_requests) == (10.0, 6.0)
    assert window.best_cache_hit_ratio == 0.6
    assert window.price == Price(2.5, "USD")


def test_activities_come_from_the_seconds_by_state() -> None:
    """A fifth of the clock is lost, half to power and half to heat; kernels run 0.7 / 0.8."""
    (window,) = windows([observed(100.0), observed(200.0)], best_hits={}, prices={})
    (gpu,) = window.gpus

    assert gpu.clock_ratio == pytest.approx(0.8)
    assert gpu.clock_lost_to == pytest.approx({"power": 0.1, "thermal": 0.1, "other": 0.0})
    assert gpu.graphics == pytest.approx(0.7 / 0.8)
    assert gpu.dram == pytest.approx(0.6)
    assert gpu.reachable_bandwidth_bytes_per_second == 0.9e9
    assert gpu.reachable_flops == {"bf16": 0.8e12}
    assert gpu.power_limit_max_watts == 700.0
    assert gpu.fault is None


def test_a_gpu_with_a_recovery_action_is_critical() -> None:
    observations = [
        observation_of(state_at(t, recovery_action=1), [served_at(t)]) for t in (100.0, 200.0)
    ]
    (window,) = windows(observations, best_hits={}, prices={})

    assert window.gpus[0].fault == "the driver requests a recovery (gpu_reset)"


def test_a_gpu_that_computes_wrong_results_is_critical() -> None:
    """Of the probes' GEMMs one differed: no lever is worth pulling before the GPU is drained."""
    observations = []
    for seconds in (100.0, 200.0):
        state = state_at(seconds)
        (results,) = state.probes.devices
        wrong = replace(results, mismatches={"gemm_bf16": 1, "gemm_fp8": 0})
        state = replace(state, probes=replace(state.probes, devices=(wrong,)))
        observations.append(observation_of(state, [served_at(seconds)]))
    (window,) = windows(observations, best_hits={}, prices={})

    assert window.gpus[0].fault == "its probes computed wrong results"


def shared(state: State, *present: str, **busy: float) -> State:
    """Pods and their busy seconds so far, as the bill has them; those not present have left."""
    accounts = {
        Holder("pod", pod=name): Account(state_seconds={"tensor": seconds})
        for name, seconds in busy.items()
    }
    basis: dict[Holder, Basis] = {
        holder: "process_utilization" for holder in accounts if holder.pod in present
    }
    return replace(state, bill=Bill({"GPU-0": Charges(accounts, basis)}))


@pytest.mark.parametrize(
    ("present", "before", "now", "sharer"),
    [
        (["chat"], {"chat": 50.0}, {"chat": 140.0}, None),
        (["chat", "rest"], {"chat": 50.0, "rest": 5.0}, {"chat": 140.0, "rest": 5.5}, None),
        (["chat", "notebook"], {"chat": 9.0}, {"chat": 69.0, "notebook": 20.0}, "another tenant"),
        # The notebook worked in the first half of the window and is gone, or rests, at its end.
        (["chat"], {"chat": 9.0}, {"chat": 69.0, "notebook": 20.0}, "another tenant"),
        # Both rest: nobody's kernels ran.
        (["chat", "rest"], {"chat": 9.0, "rest": 9.0}, {"chat": 9.0, "rest": 9.0}, None),
        # The notebook's work was before the window.
        (
            ["chat", "notebook"],
            {"chat": 9.0, "notebook": 80.0},
            {"chat": 60.0, "notebook": 80.0},
            None,
        ),
    ],
)
def test_a_gpu_that_others_use_is_shared(
    present: list[str], before: dict[str, float], now: dict[str, float], sharer: str | None
) -> None:
    """A quarter of its busy time is a notebook's. A tenant with 1 of 181 parts changes nothing."""
    observations = [
        observation_of(shared(state_at(at), *present, **busy), [served_at(at)])
        for at, busy in ((100.0, before), (200.0, now))
    ]
    (window,) = windows(observations, best_hits={}, prices={})

    assert window.gpus[0].shared_with == sharer


def test_a_gpu_with_two_engines_or_models_is_shared() -> None:
    """The time of its kernels cannot be divided between them."""
    engines = tuple(
        WorkloadSnapshot(name, "vllm", up=True, gpus=(GpuRef("0", "GPU-0"),))
        for name in ("chat", "search")
    )
    two_engines, two_models, one_used = [], [], []
    for seconds in (100.0, 200.0):
        state, chat = state_at(seconds), served_at(seconds)
        snapshot = replace(state.workloads, workloads=engines)
        two_engines.append(observation_of(replace(state, workloads=snapshot), [chat]))
        other = replace(chat, shown=replace(chat.shown, model="other"))
        unused = replace(
            chat, shown=replace(chat.shown, model="unused", prefill_tokens=0.0, decode_tokens=5.0)
        )
        one_used.append(observation_of(state, [chat, unused]))
        two_models.append(observation_of(state, [chat, other]))
    (window,) = windows(two_engines, best_hits={}, prices={})
    both = windows(two_models, best_hits={}, prices={})

    assert window.gpus[0].shared_with == "the engine search"
    assert [each.gpus[0].shared_with for each in both] == ["another model of the engine"] * 2
    assert windows(one_used, best_hits={}, prices={})[0].gpus[0].shared_with is None
    advice = advise(window)
    assert not advice.predictions
    assert any("GPU 0 is shared with the engine search" in each.reason for each in advice.absent)


def test_a_model_that_was_gone_in_between_has_no_window() -> None:
    away = observation_of(state_at(150.0), [])

    assert windows([observed(100.0), away, observed(200.0)], best_hits={}, prices={}) == ()
    assert windows([observed(100.0)], best_hits={}, prices={}) == ()


def test_passes_of_a_window_with_an_unknown_scrape_are_not_known() -> None:
    last = observation_of(state_at(200.0), [served_at(200.0, passes_missed=1)])
    (window,) = windows([observed(100.0), last], best_hits={}, prices={})

    assert window.passes is None


def test_a_counter_that_fell_is_not_known() -> None:
    shown = replace(served_at(200.0).shown, prefill_tokens=1.0)
    last = observation_of(state_at(200.0), [served_at(200.0, shown=shown)])
    (window,) = windows([observed(100.0), last], best_hits={}, prices={})

    assert window.prefill_tokens is None
    assert window.cache_hit_ratio is None
