"""Predictions against a simulated engine: random workloads, levers pulled one at a time.

The predictor is given what the exporter would see of the simulated engine (counters, probe results,
the model's description); the truth is a second run of the engine with the lever's field changed.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from exporter.accounting.peaks import Peaks
from exporter.advice.advise import Advice, advise
from exporter.advice.prediction import GpuWindow, Prediction, Reference, WorkloadWindow
from exporter.simulate.engine import SHAPES, describe
from exporter.simulate.forward_pass import Behaviour, Member, Silicon
from exporter.simulate.serving import Counters, Engine, Setup, Traffic


# Dense peaks, bandwidth, NVLink (PCIe) per direction and memory of the data sheets.
SILICON: dict[str, Silicon] = {
    "NVIDIA A100-SXM4-80GB": Silicon({"bf16": 312e12}, 2.039e12, 300e9, 80e9),
    "NVIDIA H100 80GB HBM3": Silicon({"bf16": 989.4e12, "fp8": 1978.9e12}, 3.35e12, 450e9, 80e9),
    "NVIDIA H200": Silicon({"bf16": 989.4e12, "fp8": 1978.9e12}, 4.8e12, 450e9, 141e9),
    "NVIDIA L40S": Silicon({"bf16": 362e12, "fp8": 733e12}, 0.864e12, 32e9, 48e9),
    "NVIDIA B200": Silicon({"bf16": 2250e12, "fp8": 4500e12, "fp4": 9000e12}, 8e12, 900e9, 180e9),
}
# The load over today's that fewer replicas must be able to serve.
RESERVE = 1.3
# The number of workloads without a queue for each one with a queue: requests arrive at 0.1 to 0.7
# of the rate that the engine can serve.
LIGHT_SHARE = 0.5
# How much two runs of the simulator differ with nothing changed but the lengths drawn.
NOISE = 0.01
# The same where requests arrive at their own rate: some are in flight when a run ends.
LIGHT_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """A random workload: the engine as it is, and what the exporter knows besides its counters."""

    gpu: str
    model: str
    setup: Setup
    best_hit_ratio: float | None
    probe_bandwidth: float  # share of the peak that the copy probe reached on a healthy GPU
    probe_flops: float  # the same of the GEMM probe
    lost_to: str
    replicas: int = 1  # engines of the model on the host, all alike

    @property
    def light(self) -> bool:
        """Whether requests arrive at a rate that the engine can serve: none waits."""
        return self.setup.traffic.arrivals_per_second > 0


@dataclass(slots=True)
class Comparison:
    """One prediction and the true value."""

    case: int
    prediction: Prediction
    true_gain: float
    noise: float = NOISE

    @property
    def inside(self) -> bool:
        """Whether the true gain is in the interval, give or take the simulator's noise."""
        gain = self.prediction.gain
        return gain.low - self.noise <= self.true_gain <= gain.high + self.noise

    @property
    def wrong_sign(self) -> bool:
        """An interval that excludes 1, and a truth on the other side of 1 by more than noise."""
        gain = self.prediction.gain
        return (gain.low > 1.0 and self.true_gain < 1.0 - self.noise) or (
            gain.high < 1.0 and self.true_gain > 1.0 + self.noise
        )


@dataclass(slots=True)
class Outcome:
    """All comparisons, and for each case with two levers or more whether the first was right.

    `comparisons` are of workloads with a queue, `light` of those without, for which gains of 1 are
    predicted. `released` is what the replicas that remain serve of 1.3 times the demand.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    light: list[Comparison] = field(default_factory=list)
    released: list[float] = field(default_factory=list)
    best_among_two: list[bool] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)


def random_case(stream: random.Random, *, light: bool = False) -> Case:
    """A realistic workload; the hidden values in Behaviour are drawn again each time."""
    while True:
        gpu = stream.choice(list(SILICON))
        model = stream.choice(list(SHAPES))
        silicon, shape = SILICON[gpu], SHAPES[model]
        if "fp8" in silicon.flops and stream.random() < 0.25:
            shape = replace(shape, weight_bytes=1.0, arithmetic="fp8")
        if "fp8" in silicon.flops and stream.random() < 0.2:
            shape = replace(shape, cache_bytes=1.0)
        group = stream.choice((1, 1, 1, 2, 4, 8))
        setup = Setup(silicon, shape, Traffic(1, 0, 1, 0), members=(Member(),) * group)
        if shape.stored_bytes / group < 0.75 * silicon.memory and group <= shape.key_value_heads:
            break
    behaviour, bandwidth, flops = _behaviour(stream)
    members, lost_to = _members(stream, group)
    traffic = Traffic(
        prompt_mean=stream.choice((200, 500, 1000, 2000, 4000)),
        prompt_sigma=stream.uniform(0.3, 0.9),
        answer_mean=stream.choice((100, 200, 400, 800)),
        answer_sigma=stream.uniform(0.3, 0.9),
        seed=stream.randrange(1 << 30),
    )
    replicas = stream.choice((1, 1, 2, 4))
    limit = stream.choice((4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256))
    hits = stream.choice((0.0, 0.0, 0.1, 0.3, 0.5))
    best_hits = stream.choice((None, hits, min(0.9, hits + stream.uniform(0.1, 0.5))))
    clients = int(limit * stream.uniform(1.1, 3.0)) + 1
    setup = replace(
        setup,
        behaviour=behaviour,
        members=members,
        traffic=replace(traffic, clients=clients),
        batch_limit=limit,
        chunk_tokens=stream.choice((2048, 4096, 8192)),
        hit_ratio=hits,
    )
    if light:
        first = max(30, 5 * limit)
        most = throughput(setup, first, first + 4 * limit)
        rate = most * stream.uniform(0.1, 0.7)
        setup = replace(setup, traffic=replace(traffic, arrivals_per_second=rate))
    return Case(gpu, model, setup, best_hits, bandwidth, flops, lost_to, replicas)


def _behaviour(stream: random.Random) -> tuple[Behaviour, float, float]:
    """Hidden behaviour, and what the probes reach on this product."""
    bandwidth = stream.uniform(0.88, 0.94)
    flops = stream.uniform(0.7, 0.86)
    behaviour = Behaviour(
        exposed=stream.uniform(0.0, 1.0),
        matrix_efficiency=flops * stream.uniform(0.8, 1.0),
        low_precision_efficiency=stream.uniform(0.84, 1.0),
        half_rows=stream.uniform(0.0, 60.0),
        tile_rows=stream.choice((16, 32, 64)),
        weight_streaming=bandwidth * stream.uniform(0.8, 1.0),
        cache_streaming=bandwidth * stream.uniform(0.65, 1.0),
        attention_efficiency=flops * stream.uniform(0.5, 0.9),
        bandwidth_clock=stream.uniform(0.4, 0.65),
        activation_passes=stream.uniform(3.0, 10.0),
        cache_expansion=stream.uniform(0.0, 0.12),
        quantization=stream.uniform(0.0, 0.03),
        kernel_latency_seconds=stream.uniform(1e-6, 4e-6),
        kernel_gap_seconds=stream.choice((0.1e-6, stream.uniform(0.5e-6, 5e-6))),
        host_seconds=stream.uniform(0.1e-3, 2e-3),
        host_seconds_per_request=stream.uniform(0.0, 10e-6),
        link_efficiency=stream.uniform(0.5, 0.8),
        link_latency_seconds=stream.uniform(4e-6, 12e-6),
        filled=stream.uniform(0.7, 0.95),
    )
    return behaviour, bandwidth, flops


def _members(stream: random.Random, group: int) -> tuple[tuple[Member, ...], str]:
    """Mostly healthy and fast; else all at a low clock, or one slower than the others."""
    healthy = tuple(Member(clock=stream.uniform(0.98, 1.0)) for _ in range(1)) * group
    drawn = stream.random()
    if drawn < 0.3:
        return (Member(clock=stream.uniform(0.5, 0.95)),) * group, stream.choice(
            ("thermal", "other")
        )
    if drawn < 0.5:
        slow = replace(
            healthy[0],
            memory_speed=stream.choice((1.0, stream.uniform(0.6, 0.9))),
            compute_speed=stream.choice((1.0, stream.uniform(0.6, 0.9))),
        )
        return (slow, *healthy[1:]), "other"
    return healthy, "other"


def throughput(setup: Setup, first: int, last: int) -> float:
    """Requests taken per second between two of them: the same ones for every lever."""
    engine = Engine(setup)
    seconds = engine.run(first, last).seconds
    return (last - first) / seconds


def observe(case: Case, counters: Counters, stream: random.Random) -> WorkloadWindow:
    """The window that the exporter would have: means of counters, and probes with their error."""
    setup = case.setup
    silicon, seconds = setup.silicon, counters.seconds
    peaks = Peaks(
        origin="datasheet",
        model=case.gpu,
        flops=dict(silicon.flops),
        dram_bytes_per_second=silicon.bandwidth,
        nvlink_bytes_per_second=silicon.link_bandwidth,
    )
    gpus = tuple(
        GpuWindow(
            gpu=str(index),
            uuid=f"GPU-{index}",
            name=case.gpu,
            peaks=peaks,
            clock_ratio=member.clock,
            clock_lost_to={case.lost_to: 1.0},
            graphics=counters.kernel_seconds / seconds,
            dram=counters.dram_bytes / seconds / silicon.bandwidth,
            reachable_bandwidth_bytes_per_second=_probed(
                stream, silicon.bandwidth * case.probe_bandwidth * member.memory_speed
            ),
            reachable_flops={
                "bf16": _probed(
                    stream,
                    silicon.flops["bf16"] * case.probe_flops * member.clock * member.compute_speed,
                )
            },
            link_bytes_per_second=counters.link_bytes / seconds,
            memory_size_bytes=silicon.memory,
        )
        for index, member in enumerate(setup.members)
    )
    clock = median(member.clock for member in setup.members)
    context = max(
        counters.prompt_tokens / max(1.0, counters.prompts)
        + counters.answer_tokens / max(1.0, counters.answers) / 2,
        counters.cache_tokens / max(1e-9, counters.running),
    )
    return WorkloadWindow(
        workload="simulated",
        model=case.model,
        seconds=seconds,
        gpus=gpus,
        gpu_count=len(gpus),
        tensor_parallel=len(gpus),
        replicas=case.replicas,
        description=describe(setup.shape),
        prefill_tokens=counters.prefill_tokens,
        cached_tokens=counters.cached_tokens,
        decode_tokens=counters.decode_tokens,
        prompts=counters.prompts,
        passes=counters.passes,
        running_requests=counters.running / seconds,
        waiting_requests=counters.waiting / seconds,
        cache_usage_ratio=counters.cache_tokens / seconds / setup.cache_tokens,
        decode_context=context,
        best_cache_hit_ratio=case.best_hit_ratio,
        reference=Reference(
            devices=8,
            bandwidth_bytes_per_second=silicon.bandwidth * case.probe_bandwidth,
            flops={"bf16": silicon.flops["bf16"] * case.probe_flops * clock},
        ),
    )


def _probed(stream: random.Random, value: float) -> float:
    """A probe result: one of a thousand in two repeats within 2 %."""
    return value * (1.0 + stream.uniform(-0.02, 0.02))


Pull = Callable[[Setup, Prediction, Case, random.Random], Setup]


def _batch(setup: Setup, prediction: Prediction, _case: Case, _stream: random.Random) -> Setup:
    assert prediction.target is not None
    return replace(setup, batch_limit=int(prediction.target))


def _weights(value_bytes: float, arithmetic: str) -> Pull:
    def pull(setup: Setup, *_: object) -> Setup:
        shape = replace(setup.shape, weight_bytes=value_bytes, arithmetic=arithmetic)
        return replace(setup, shape=shape)

    return pull


def _cache(setup: Setup, *_: object) -> Setup:
    return replace(setup, shape=replace(setup.shape, cache_bytes=1.0))


def _clocks(setup: Setup, *_: object) -> Setup:
    return replace(setup, members=tuple(replace(m, clock=1.0) for m in setup.members))


def _gaps(setup: Setup, _prediction: Prediction, _case: Case, stream: random.Random) -> Setup:
    """CUDA graphs leave a trace of the gaps between kernels, and the host works ahead."""
    hidden = setup.behaviour
    return replace(
        setup,
        behaviour=replace(
            hidden,
            kernel_gap_seconds=hidden.kernel_gap_seconds * stream.uniform(0.0, 0.2),
            host_seconds=hidden.host_seconds * stream.uniform(0.1, 0.5),
            host_seconds_per_request=hidden.host_seconds_per_request * stream.uniform(0.1, 0.5),
        ),
    )


def _replace_gpu(setup: Setup, *_: object) -> Setup:
    return replace(
        setup,
        members=tuple(
            replace(member, memory_speed=1.0, compute_speed=1.0) for member in setup.members
        ),
    )


def _hits(setup: Setup, _prediction: Prediction, case: Case, _stream: random.Random) -> Setup:
    assert case.best_hit_ratio is not None
    return replace(setup, hit_ratio=case.best_hit_ratio)


def _regroup(setup: Setup, prediction: Prediction, _case: Case, _stream: random.Random) -> Setup:
    """One of two engines on half of the GPUs with half of the clients, or one that takes two's."""
    assert prediction.target is not None
    factor = prediction.target / len(setup.members)
    members = (setup.members * 2)[: int(prediction.target)]
    traffic = setup.traffic
    return replace(
        setup,
        members=members,
        batch_limit=max(1, int(setup.batch_limit * factor)),
        traffic=replace(
            traffic,
            clients=traffic.clients and max(1, int(traffic.clients * factor)),
            arrivals_per_second=traffic.arrivals_per_second * factor,
        ),
    )


def _fewer_replicas(
    setup: Setup, prediction: Prediction, case: Case, _stream: random.Random
) -> Setup:
    """One of the replicas that remain, with its share of the requests and a reserve of 30 %.

    As the action says, as many requests run as that takes.
    """
    assert prediction.target is not None
    rate = setup.traffic.arrivals_per_second * RESERVE * case.replicas / prediction.target
    return replace(
        setup, batch_limit=1024, traffic=replace(setup.traffic, arrivals_per_second=rate)
    )


PULLS: Mapping[str, Pull] = {
    "larger_batch": _batch,
    "weights_fp8": _weights(1.0, "fp8"),
    "weights_fp4": _weights(0.5625, "fp4"),
    "kv_cache_fp8": _cache,
    "full_clocks": _clocks,
    "fewer_launch_gaps": _gaps,
    "replace_slow_gpu": _replace_gpu,
    "restore_prefix_cache": _hits,
    "tensor_parallel": _regroup,
    "release_idle": _fewer_replicas,
}


def compare(count: int, seed: int = 1) -> Outcome:
    """This many random workloads with a queue and half as many without, every lever pulled in each."""
    outcome = Outcome()
    for number in range(count + int(LIGHT_SHARE * count)):
        add_workload(outcome, seed, number, light=number >= count)
    return outcome


def add_workload(outcome: Outcome, seed: int, number: int, *, light: bool) -> None:
    """Draw one workload and pull every lever that has a prediction."""
    stream = random.Random(f"{seed}/{number}")
    case = random_case(stream, light=light)
    advice, today, span = _advice(case, stream)
    for absent in advice.absent:
        outcome.absent[absent.lever] = outcome.absent.get(absent.lever, 0) + 1
    truths: dict[str, float] = {}
    for prediction in advice.predictions:
        gain = _truth(case, prediction, today, span, stream)
        if prediction.lever == "release_idle":
            outcome.released.append(gain)
            continue
        found = Comparison(number, prediction, gain, LIGHT_NOISE if light else NOISE)
        (outcome.light if light else outcome.comparisons).append(found)
        truths[prediction.lever] = gain
    if len(truths) >= 2 and not light:
        two = sorted(truths.values(), reverse=True)[1]
        first = truths[advice.predictions[0].lever]
        outcome.best_among_two.append(first >= two - NOISE)


def _truth(
    case: Case,
    prediction: Prediction,
    today: float,
    span: tuple[int, int],
    stream: random.Random,
) -> float:
    """Throughput of all GPUs over today's with the lever pulled; of release_idle, over the demand."""
    pulled = PULLS[prediction.lever](case.setup, prediction, case, stream)
    served = throughput(pulled, *span)
    if prediction.lever == "release_idle":
        return served / _arrivals(pulled, *span)
    return served / today * len(case.setup.members) / len(pulled.members)


def _arrivals(setup: Setup, first: int, last: int) -> float:
    """Requests that arrive per second between two of them."""
    gaps = [gap for _, _, gap in itertools.islice(setup.traffic.requests(), first, last)]
    return len(gaps) / sum(gaps)


def _advice(case: Case, stream: random.Random) -> tuple[Advice, float, tuple[int, int]]:
    limit = case.setup.batch_limit
    # Steady also with twice the batch, and long enough for the drawn lengths to even out.
    first = max(30, 5 * limit)
    last = first + max(120, 12 * limit)
    counters = Engine(case.setup).run(first, last)
    advice = advise(observe(case, counters, stream))
    return advice, (last - first) / counters.seconds, (first, last)


def table(outcome: Outcome) -> str:
    """The comparison as people read it."""
    comparisons = outcome.comparisons
    lines = [
        "lever                   cases  inside  wrong sign  median width  median error  true gain p5..p95",
    ]
    for lever in PULLS:
        chosen = [c for c in comparisons if c.prediction.lever == lever]
        if chosen:
            lines.append(_row(lever, chosen))
    lines.append(_row("all", comparisons))
    true = sorted(c.true_gain for c in comparisons)
    spread = true[-1] - true[0]
    middle = quantile(true, 0.95) - quantile(true, 0.05)
    widths = median(c.prediction.gain.high - c.prediction.gain.low for c in comparisons)
    lines += [
        (
            f"median width over the range of true gains: {widths / spread:.1%} of all, "
            f"{widths / middle:.1%} of p5 to p95"
        ),
        (
            f"first lever truly among the two best: {sum(outcome.best_among_two)} of "
            f"{len(outcome.best_among_two)} workloads ({_share(outcome.best_among_two):.1%})"
        ),
    ]
    lines += [
        (
            f"nobody waits: {len(outcome.light)} predictions of no gain, "
            f"{sum(c.inside for c in outcome.light)} true within {LIGHT_NOISE:.0%}"
        ),
        (
            f"release_idle: {len(outcome.released)} predictions, with the replicas that remain "
            f"{sum(map(_kept_up, outcome.released))} keep up with {RESERVE} times the demand"
        ),
    ]
    return "\n".join(lines)


def _kept_up(served: float) -> bool:
    """Whether as much was served as was asked for, give or take what is still under way."""
    return served >= 0.97


def missed(outcome: Outcome, *, inside: float, best: float, width: float) -> list[str]:
    """The bounds that the comparison misses, in words."""
    comparisons = outcome.comparisons
    true = sorted(c.true_gain for c in comparisons)
    widths = median(c.prediction.gain.high - c.prediction.gain.low for c in comparisons)
    found = {
        f"inside the interval in less than {inside:.0%}": (
            _share([c.inside for c in comparisons]) < inside
        ),
        f"best lever among the two best in less than {best:.0%}": (
            _share(outcome.best_among_two) < best
        ),
        f"median interval wider than {width:.0%} of the true gains from p5 to p95": (
            widths > width * (quantile(true, 0.95) - quantile(true, 0.05))
        ),
        "a wrong sign with an interval that excludes 1": any(c.wrong_sign for c in comparisons),
        f"a gain where nobody waits, in more than {1 - inside:.0%}": (
            _share([c.inside for c in outcome.light] or [True]) < inside
        ),
        f"released replicas that were needed, in more than {1 - inside:.0%}": (
            _share([_kept_up(each) for each in outcome.released] or [True]) < inside
        ),
    }
    return [words for words, bad in found.items() if bad]


def _row(lever: str, chosen: list[Comparison]) -> str:
    true = sorted(c.true_gain for c in chosen)
    inside = _share([c.inside for c in chosen])
    wrong = sum(c.wrong_sign for c in chosen)
    width = median(c.prediction.gain.high - c.prediction.gain.low for c in chosen)
    error = median(abs(c.prediction.gain.middle / c.true_gain - 1.0) for c in chosen)
    return (
        f"{lever:22} {len(chosen):6}  {inside:6.1%}  {wrong:10}  {width:12.3f}  {error:12.1%}  "
        f"{quantile(true, 0.05):.2f}..{quantile(true, 0.95):.2f}"
    )


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def quantile(ordered: list[float], share: float) -> float:
    """The value at `share` of the way through the ordered list."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
