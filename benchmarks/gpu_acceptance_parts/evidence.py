"""Proof of each claim without a GPU: by recordings and third parties, and by our fake driver.

A proof is a test, by file and name, which `python -m pytest FILE -k NAME` runs. Only what a test
shows is listed; tests/acceptance/test_results.py checks that each test exists, and that those of
the recordings replay a published table or use a third party's driver.
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
    """The proofs of one claim.

    `recorded`: figures that others published of real GPUs, or a third party's driver. `fake`: the exact truth
    of our own fake driver, of a simulation, or of the processor.
    """

    recorded: tuple[Proof, ...] = ()
    fake: tuple[Proof, ...] = ()


_CLOSES = Proof(
    "a published recording closes: useful over executed FLOP is 0.853 ± 0.02 in six windows, 1.02 for a wrong number of SMs, 0.43 for a wrong rate",
    "tests/evidence/test_recorded_gpu.py",
    "test_useful_and_executed_close",
)
_VARYING = Proof(
    "within 1 % (gpm_cycles) and 2 % (gpm) over a varying load",
    "tests/daemon/test_truth.py",
    "test_flop_and_bytes_follow_a_varying_load",
)

_THIRD_PARTY = "tests/hardware/test_third_party.py"


def _proof(file: str, test: str, text: str) -> Proof:
    return Proof(text, file, test)


# By the text of the claim; those of document.py also have figures that are measured on a GPU.
EVIDENCE: dict[str, Evidence] = {
    "SM cycle counters are exact and since boot": Evidence(
        fake=(
            _proof(
                "tests/daemon/test_truth.py",
                "test_two_counts_of_cycles_are_distinguished",
                "counters of one SM and sums over all SMs are distinguished",
            ),
        )
    ),
    "FLOP of GEMMs are counted within 2 %": Evidence(
        recorded=(
            _CLOSES,
            _proof(
                _THIRD_PARTY,
                "test_a_busy_h100_at_its_idle_clock",
                "0.32 of an H100's cycles at 345 MHz on a third-party driver: 5.969e13 FLOP/s, within 0.1 %",
            ),
            _proof(
                "tests/evidence/test_sustained_gemms.py",
                "test_a_gemm_is_counted_as_the_hardware_counts_it",
                "a B300's own operation counter shows 2MNK for 4096 cubed, as is assumed",
            ),
        ),
        fake=(_VARYING,),
    ),
    "DRAM bytes of copies are counted within 2 %": Evidence(fake=(_VARYING,)),
    "FLOP and DRAM bytes of a transformer are counted within 5 %": Evidence(
        recorded=(_CLOSES,), fake=(_VARYING,)
    ),
    "The state tensor is the GEMMs' share of the peak": Evidence(
        recorded=(
            _proof(
                "tests/evidence/test_ofu.py",
                "test_utilization_is_ofu",
                "the ratio is OFU, tensor activity times clock over the tensor clock, which a study of H100 and"
                " GB200 found within 1.2 to 3.5 points of what applications count",
            ),
        )
    ),
    "The states sum to elapsed time": Evidence(
        fake=(
            _proof(
                "tests/daemon/test_truth.py",
                "test_states_sum_to_elapsed_time",
                "for loads of every kind",
            ),
        )
    ),
    "A GPU that looks busy but computes little is recognized": Evidence(
        recorded=(
            _proof(
                "tests/evidence/test_fleet_quantiles.py",
                "test_full_utilization_is_mostly_empty_sms",
                "quantiles of two clusters: at 98 % utilization, 9 % tensor and 64 % empty SMs; the rest"
                " unresolved where DRAM was not recorded",
            ),
            _proof(
                "tests/evidence/test_fleet_quantiles.py",
                "test_a_dcgm_exporter_shows_the_same",
                "the same through a dcgm-exporter, as it was recorded",
            ),
        )
    ),
    "The loss from a power cap is attributed to power, and FLOP follow the clock": Evidence(
        recorded=(
            _proof(
                "tests/evidence/test_power_caps.py",
                "test_the_cap_is_recognized_as_a_power_cap",
                "six published caps of an H100: clock, draw and loss; FLOP follow the published throughput"
                " within 6.5 points",
            ),
            _proof(
                "tests/advice/test_power.py",
                "test_published_power_caps_are_predicted_within_a_tenth",
                "the lever `full_clocks` predicts them within a tenth",
            ),
        )
    ),
    "Values that a driver does not report, or reports wrongly, are absent, counted and named": Evidence(
        recorded=(
            _proof(
                _THIRD_PARTY,
                "test_an_energy_counter_that_does_not_move",
                "an energy counter of a third-party driver that does not move",
            ),
            _proof(
                _THIRD_PARTY,
                "test_a_gb300_of_another_compute_capability",
                "a GB300 of compute capability 10.0 without a core count",
            ),
        ),
        fake=(
            _proof(
                "tests/hardware/test_silent_failures.py",
                "test_implausible_values_are_counted_and_left_out",
                "silent GPM, latched utilization, frozen counters, blanks",
            ),
        ),
    ),
    "Probes keep to their budget": Evidence(
        fake=(
            _proof(
                "tests/probes/test_budget.py",
                "test_no_hour_exceeds_its_budget",
                "no hour exceeds it, for random runs and settings",
            ),
        )
    ),
    "The probes report no healthy GPU as slow": Evidence(
        recorded=(
            _proof(
                "tests/evidence/test_sustained_gemms.py",
                "test_a_probe_that_reaches_it_is_healthy",
                "19 published sustained GEMM figures, A100 to B300, lie above every limit",
            ),
        )
    ),
    "A wrong bit in a probe's result is seen": Evidence(
        fake=(
            _proof(
                "tests/probes/test_kernels.py",
                "test_one_flipped_bit_is_seen",
                "one flipped bit, in each precision, on a processor",
            ),
        )
    ),
    "Products of the served model are probed in its own shapes": Evidence(
        fake=(
            _proof(
                "tests/daemon/test_model_probes.py",
                "test_the_products_of_the_served_model_are_probed",
                "from an engine's model to the exposition, on a processor",
            ),
            _proof(
                "tests/probes/test_fault_classes.py",
                "test_each_kind_finds_what_the_other_misses",
                "of 7 injected classes of faults, the fixed shapes find 6, the model's find 5, and both together find all",
            ),
        )
    ),
    "The busy estimate brackets a tenant": Evidence(
        fake=(
            _proof(
                "tests/probes/test_judgement.py",
                "test_the_bracket_of_a_half_busy_tenant",
                "for the gaps between the time slices of a tenant",
            ),
        )
    ),
    "Tenants of a shared GPU are charged what they used": Evidence(
        fake=(
            _proof(
                "tests/attribution/test_bill.py",
                "test_tenants_are_charged_by_their_sm_time",
                "within 2 points of known shares, and the shares sum to the device",
            ),
            _proof(
                "tests/attribution/test_ledger.py",
                "test_the_shares_sum_to_the_device_and_no_counter_falls",
                "for random ticks and holders",
            ),
        )
    ),
    "No model is counted by the formula of another": Evidence(
        recorded=(
            _proof(
                "tests/evidence/test_ofu.py",
                "test_a_state_space_layer_is_not_counted_as_attention",
                "a published miscount by a factor of 1.6",
            ),
            _proof(
                "tests/evidence/test_ofu.py",
                "test_experts_behind_a_latent_projection_are_refused",
                "a published miscount by a factor of 2.1",
            ),
        )
    ),
    "The interval of a lever contains the outcome": Evidence(
        fake=(
            _proof(
                "tests/advice/test_simulated.py",
                "test_the_bounds_hold_for_two_hundred_workloads",
                "in 200 simulated workloads, by a simulator that shares no code with the prediction",
            ),
        )
    ),
    "A GPU that hangs or is lost does not affect the others": Evidence(
        fake=(
            _proof(
                "tests/daemon/test_faults.py",
                "test_a_hung_call_stops_its_own_gpu_only",
                "a call that hangs",
            ),
            _proof(
                "tests/daemon/test_faults.py",
                "test_a_lost_gpu_goes_down_alone_and_comes_back",
                "a GPU that is lost and comes back",
            ),
        )
    ),
    "A scrape never reaches the driver": Evidence(
        fake=(
            _proof(
                "tests/daemon/test_exposition.py",
                "test_scrapes_never_reach_the_driver",
                "by the driver's own count of calls",
            ),
        )
    ),
    "A MIG instance has counters of its own": Evidence(
        fake=(
            _proof(
                "tests/mig/test_instances.py",
                "test_every_instance_has_series_of_its_own",
                "each instance against its own truth",
            ),
        )
    ),
}
