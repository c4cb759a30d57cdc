"""What is proven of each claim without silicon: by recordings of real GPUs, and by our own fake driver.

A proof is a test, by file and name, which `python -m pytest FILE -k NAME` runs. Nothing stands here that
no test shows; tests/acceptance/test_results.py looks whether each of them exists.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proof:
    """What a test shows, and where it is."""

    text: str
    file: str
    test: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The proofs of one claim. `recorded`: figures of real GPUs. `fake`: exact truth of a fake driver or the CPU."""

    recorded: tuple[Proof, ...] = ()
    fake: tuple[Proof, ...] = ()


_CLOSES = Proof(
    "a published recording closes: useful over executed FLOP is 0.853 ± 0.02, and 1.02 for a wrong number of SMs",
    "tests/evidence/test_recorded_gpu.py",
    "test_useful_and_executed_close",
)
_VARYING = Proof(
    "within 1 % (gpm_cycles) and 2 % (gpm) over a varying load",
    "tests/daemon/test_truth.py",
    "test_flop_and_bytes_follow_a_varying_load",
)

# By the text of the claim in document.py.
EVIDENCE: dict[str, Evidence] = {
    "SM cycle counters are exact and since boot": Evidence(
        fake=(
            Proof(
                "counters of one SM and sums over all of them are told apart",
                "tests/daemon/test_truth.py",
                "test_two_counts_of_cycles_are_told_apart",
            ),
        )
    ),
    "FLOP of GEMMs are counted within 2 %": Evidence(recorded=(_CLOSES,), fake=(_VARYING,)),
    "DRAM bytes of copies are counted within 2 %": Evidence(fake=(_VARYING,)),
    "FLOP and DRAM bytes of a transformer are counted within 5 %": Evidence(
        recorded=(_CLOSES,), fake=(_VARYING,)
    ),
    "The states sum to elapsed time": Evidence(
        fake=(
            Proof(
                "for loads of every kind",
                "tests/daemon/test_truth.py",
                "test_states_sum_to_elapsed_time",
            ),
        )
    ),
    "Probes keep to their budget": Evidence(
        fake=(
            Proof(
                "no hour exceeds it, for random runs and settings",
                "tests/probes/test_budget.py",
                "test_no_hour_exceeds_its_budget",
            ),
        )
    ),
    "Tenants of a shared GPU are charged what they used": Evidence(
        fake=(
            Proof(
                "within 2 points of known shares, and the shares sum to the device",
                "tests/attribution/test_bill.py",
                "test_tenants_are_charged_by_their_sm_time",
            ),
        )
    ),
}
