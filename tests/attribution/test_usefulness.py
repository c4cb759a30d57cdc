"""Executed, useful and wasted FLOP of engines: what is known and what is concluded from it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from exporter.attribution.bill import UsefulnessLedger, needed_by, workload_holders
from exporter.attribution.snapshot import (
    Account,
    Charges,
    Holder,
    HoldersSnapshot,
    ProcessOwner,
    WorkloadUse,
)
from exporter.inference.snapshot import (
    GpuRef,
    ModelSnapshot,
    WorkloadSnapshot,
    WorkloadsSnapshot,
)
from exporter.state import State
from tests.attribution.hosts import gpu


CHAT = Holder("workload", workload="chat")
MODEL = ModelSnapshot(
    "llama", prefill_flop=0.0, decode_flop=0.0, wasted_flop={}, all_gpus_here=True
)


def engine(
    model: ModelSnapshot = MODEL,
    name: str = "chat",
    gpus: tuple[str, ...] = ("GPU-0",),
    pids: tuple[int, ...] = (),
    scraped: float = 0.0,
) -> WorkloadSnapshot:
    return WorkloadSnapshot(
        name,
        "vllm",
        up=True,
        gpus=tuple(GpuRef(uuid[-1], uuid) for uuid in gpus),
        processes=frozenset(pids),
        models=(model,),
        last_success_timestamp_seconds=scraped,
    )


class Played:
    """An engine on one GPU, scraped every 15 s; executed and useful FLOP in TFLOP a minute."""

    def __init__(self) -> None:
        self.ledger = UsefulnessLedger()
        self.executed = self.useful = self.now = 0.0
        self.wasted: dict[str, float] = {}
        self.use = WorkloadUse()

    def minutes(self, count: int, executed: float, useful: float, **wasted: float) -> WorkloadUse:
        """Live so long; the waste is by cause, likewise a minute. A tick is half a second."""
        for tick in range(count * 120):
            self.now += 0.5
            self.executed += executed * 1e12 / 120
            if tick % 30 == 29:
                self.useful += useful * 1e12 / 4
                for cause, flop in wasted.items():
                    self.wasted[cause] = self.wasted.get(cause, 0.0) + flop * 1e12 / 4
                self.scraped_at = self.now
            model = replace(MODEL, decode_flop=self.useful, wasted_flop=dict(self.wasted))
            self.use = self.ledger.enter(
                engine(model, scraped=getattr(self, "scraped_at", 0.0)),
                {"GPU-0": CHAT},
                {"GPU-0": Charges({CHAT: Account(flop=self.executed)}, {CHAT: "exclusive"})},
                self.now,
            )
        return self.use


def test_useful_and_explained_flop() -> None:
    """Of 100 TFLOP a minute 70 are the model's. 10 of those the cache usually has: 60 % are useful.

    5 were computed again and 15 were drafts that were rejected: 90 % are explained, and 10 % are the rest.
    """
    use = Played().minutes(15, 100, 70, lost_cache_hits=10, preemption=5, rejected_drafts=15)

    assert use.useful_share == pytest.approx(0.6, abs=0.005)
    assert use.explained_share == pytest.approx(0.9, abs=0.005)
    assert use.explained_spread == pytest.approx(0.0, abs=0.03)
    assert use.usual_useful_share is None
    assert use.executed_flop == pytest.approx(1500e12, rel=0.01)


def test_a_negative_rest() -> None:
    """170 TFLOP needed of 100: the rate of another precision."""
    use = Played().minutes(15, 100, 170)

    assert use.explained_share == pytest.approx(1.7, abs=0.01)


def test_ten_busy_minutes_are_needed() -> None:
    """Until five minutes have passed only the counter is exported; idle minutes do not count."""
    played = Played()

    assert played.minutes(5, 100, 80).useful_share is None
    assert played.minutes(20, 0, 0).useful_share is None
    use = played.minutes(7, 100, 80)
    assert use.useful_share == pytest.approx(0.8, abs=0.005)


def test_a_fall_does_not_become_usual() -> None:
    """Of 80 % usual share 40 % are left; a day later they still are not usual."""
    played = Played()
    played.minutes(60, 100, 80)
    use = played.minutes(240, 100, 40)

    assert use.useful_share == pytest.approx(0.4, abs=0.005)
    # Some minutes pass before the fall is plain.
    assert use.usual_useful_share == pytest.approx(0.8, abs=0.05)


def test_minutes_that_are_apart() -> None:
    """A share that moves between 40 and 60 % with the batch is not steady: 0.2 / 0.5."""
    played = Played()
    for _ in range(8):
        played.minutes(2, 100, 40)
        use = played.minutes(2, 100, 60)

    assert use.explained_spread == pytest.approx(0.4, abs=0.05)


def test_an_engine_that_does_not_answer_ends_the_window() -> None:
    """Work executed meanwhile is not compared with tokens that were not observed."""
    played = Played()
    played.minutes(12, 100, 80)
    for _ in range(600):
        played.now += 0.5
        played.executed += 100e12 / 120
        down = replace(engine(), up=False, models=())
        charges = {"GPU-0": Charges({CHAT: Account(flop=played.executed)}, {CHAT: "exclusive"})}
        use = played.ledger.enter(down, {"GPU-0": CHAT}, charges, played.now)
        assert use.useful_share is None
        assert use.executed_flop is not None
    use = played.minutes(12, 100, 80)

    assert use.useful_share == pytest.approx(0.8, abs=0.005)


def test_unknown_holders_have_no_counter() -> None:
    """The counter continues from its last value, without the unobserved part."""
    played = Played()
    before = played.minutes(2, 100, 80).executed_flop
    played.executed += 1e15
    assert played.ledger.enter(engine(), None, {}, played.now) == WorkloadUse()

    after = played.minutes(1, 100, 80).executed_flop
    assert before is not None
    assert after == pytest.approx(before + 100e12, rel=0.02)


@pytest.mark.parametrize(
    "model",
    [
        replace(MODEL, prefill_flop=None),
        replace(MODEL, decode_flop=None),
        replace(MODEL, all_gpus_here=False),
    ],
)
def test_useful_flop_are_known_for_all_engines_or_absent(model: ModelSnapshot) -> None:
    """A model without a description, an engine that does not count prompts, GPUs on other hosts."""
    assert needed_by(engine(model)) is None
    assert needed_by(replace(engine(), models=(MODEL, model))) is None


class TestWhoStandsForAnEngine:
    POD_A = Holder("pod", "team", "chat-7d4b", "vllm")
    POD_B = Holder("pod", "team", "search-5c2a", "vllm")
    OWNERS: Mapping[int, ProcessOwner] = {
        1: ProcessOwner("chat-7d4b", "vllm"),
        2: ProcessOwner("search-5c2a", "vllm"),
    }

    def stands(
        self, holders: tuple[Holder, ...], *workloads: WorkloadSnapshot, basis: str = ""
    ) -> dict[str, Holder] | None:
        """The holder that is taken as the first workload on GPU-0."""
        found = basis or ("exclusive" if len(holders) == 1 else "process_utilization")
        state = State(
            at_seconds=0.0,
            devices=(gpu("0", "GPU-0"),),
            workloads=WorkloadsSnapshot(workloads),
            holders=HoldersSnapshot(processes=self.OWNERS),
        )
        charges = {"GPU-0": Charges({}, dict.fromkeys(holders, found))}  # type: ignore[arg-type]
        return workload_holders(workloads[0], state, {"GPU-0": holders}, charges)

    def test_alone(self) -> None:
        """It, or the pod that it runs in, has the GPU for itself."""
        assert self.stands((CHAT,), engine()) == {"GPU-0": CHAT}
        assert self.stands((self.POD_A,), engine()) == {"GPU-0": self.POD_A}

    def test_two_pods(self) -> None:
        """By its processes; not where they are not seen, or the shares are assumed."""
        both = (self.POD_A, self.POD_B)

        assert self.stands(both, engine(pids=(1,))) == {"GPU-0": self.POD_A}
        assert self.stands(both, engine()) is None
        assert self.stands(both, engine(pids=(1,)), basis="equal") is None

    def test_two_engines(self) -> None:
        """In separate pods, or as holders; not in one pod, nor when the other engine is not found."""
        other = engine(name="search", pids=(2,))
        both = (self.POD_A, self.POD_B)
        search = Holder("workload", workload="search")

        assert self.stands(both, engine(pids=(1,)), other) == {"GPU-0": self.POD_A}
        assert self.stands((CHAT, search), engine(), other) == {"GPU-0": CHAT}
        assert self.stands((self.POD_A,), engine(pids=(1,)), other) is None
        assert self.stands(both, engine(pids=(1,)), engine(name="search")) is None

    def test_a_gpu_that_is_not_read(self) -> None:
        """One of two: the sum would be wrong."""
        assert self.stands((CHAT,), engine(gpus=("GPU-0", "GPU-1"))) is None
