"""The sentences, one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.findings import Thresholds
from exporter.status import verdict
from exporter.status.verdict import Severity, bottleneck, clock_held, host_summary, worst


def spoken(finding: verdict.Finding | None) -> str:
    """The text with plain spaces, as typed."""
    assert finding is not None
    return finding.text.replace("\N{NO-BREAK SPACE}", " ")


class TestBottleneck:
    @pytest.mark.parametrize(
        ("states", "kind", "text"),
        [
            (
                {"memory": 0.62, "tensor": 0.12, "idle": 0.26},
                "memory_bound",
                "memory-bound: DRAM at 91 %, tensor pipe waits",
            ),
            (
                {"tensor": 0.62, "memory": 0.2},
                "compute_bound",
                "compute-bound: tensor pipe busy 62 % of the time",
            ),
            ({"idle": 0.97, "memory": 0.03}, "idle", "idle for 97 % of the last minute"),
            (
                {"underfill": 0.4, "memory": 0.3, "idle": 0.3},
                "underfilled",
                (
                    "underfilled for 40 % of the time: kernels run, but leave SMs empty"
                    " (small batches, tails, copies)"
                ),
            ),
            (
                {"stall": 0.5, "memory": 0.3},
                "stall_bound",
                (
                    "stalled for 50 % of the time: the SMs are busy (softmax, norms, latency,"
                    " synchronization), tensor pipe and DRAM are not"
                ),
            ),
        ],
    )
    def test_the_largest_state_is_named(
        self, states: dict[str, float], kind: str, text: str
    ) -> None:
        """The sentence is about what took most of the minute."""
        finding = bottleneck(states, dram=0.91)

        assert finding is not None
        assert (kind, Severity.INFO) == (finding.kind, finding.severity)
        assert text == spoken(finding)

    def test_lost_clocks_are_not_attributed_to_the_work(self) -> None:
        """At half the clock for heat, the work itself is still bound by memory."""
        finding = bottleneck({"clock_thermal": 0.5, "memory": 0.3, "tensor": 0.2}, dram=0.4)

        assert spoken(finding) == "memory-bound: DRAM at 40 %, tensor pipe waits"

    def test_unknown_values_give_no_sentence(self) -> None:
        """Without a watched second, or where most is unresolved, there is no verdict."""
        assert bottleneck({}, dram=None) is None
        assert bottleneck({"unresolved": 0.7, "idle": 0.3}, dram=None) is None

    def test_memory_bound_without_a_bandwidth(self) -> None:
        """The share of time replaces an unknown bandwidth."""
        finding = bottleneck({"memory": 0.62}, dram=None)

        assert spoken(finding) == "memory-bound: for 62 % of the time, tensor pipe waits"


class TestClockHeld:
    def test_it_says_which_clock_by_what_and_for_how_long(self) -> None:
        """The sentence of the specification."""
        finding = clock_held(
            "power",
            held=0.38,
            mean_hertz=1200e6,
            max_hertz=1980e6,
            lost_share=0.15,
            over="the last hour",
        )

        assert (
            spoken(finding)
            == "clock held down to 1,200 of 1,980 MHz by power for 38 % of the last hour"
        )

    @pytest.mark.parametrize(
        ("cause", "lost", "severity"),
        [
            ("power", 0.25, Severity.INFO),
            ("power", 0.26, Severity.WARNING),
            ("heat", 0.05, Severity.INFO),
            ("heat", 0.06, Severity.WARNING),
        ],
    )
    def test_severity_follows_the_alerts(self, cause: str, lost: float, severity: Severity) -> None:
        """Heat is worth a warning from 5 % of the peak on, a power limit from 25 %."""
        finding = clock_held(
            cause,
            held=0.5,
            mean_hertz=1e9,
            max_hertz=2e9,
            lost_share=lost,
            over="the last hour",
        )

        assert finding is not None
        assert severity is finding.severity

    @pytest.mark.parametrize(
        ("held", "mean", "top", "lost"),
        [
            (0.5, 1e9, 2e9, 0.009),
            (0.0, 1e9, 2e9, 0.2),
            (0.5, None, 2e9, 0.2),
            (0.5, 1e9, None, 0.2),
        ],
    )
    def test_no_loss_or_no_clock_is_no_finding(
        self, held: float, mean: float | None, top: float | None, lost: float
    ) -> None:
        """A cap that costs nothing gets no sentence, and no clock is invented."""
        assert (
            clock_held(
                "power", held=held, mean_hertz=mean, max_hertz=top, lost_share=lost, over="x"
            )
            is None
        )


class TestReachability:
    def test_a_lost_gpu_says_why_and_since_when(self) -> None:
        """NVML's reason becomes words."""
        finding = verdict.lost(reason="gpu_is_lost", since_seconds=300)

        assert (
            spoken(finding)
            == "down: the GPU is lost: it has fallen off the bus, or its firmware has failed;"
            " last reading 5 min ago"
        )

    def test_an_unknown_reason_is_passed_on(self) -> None:
        """The driver's own text is better than nothing."""
        assert (
            spoken(verdict.lost(reason="timeout", since_seconds=None))
            == "down: the driver reports: timeout"
        )

    def test_hung_and_stale_are_critical(self) -> None:
        """A device that does not answer needs an operator."""
        hung, stale = verdict.hung(age_seconds=34), verdict.stale(age_seconds=34)

        assert spoken(hung) == "hung: a driver call does not return; last reading 34 s ago"
        assert spoken(stale) == "stale: the last reading is 34 s old"
        assert hung.severity is stale.severity is Severity.CRITICAL

    def test_waiting_becomes_suspicious(self) -> None:
        """Ten seconds without a first answer are a warning."""
        assert verdict.waiting(since_seconds=3).severity is Severity.INFO
        assert verdict.waiting(since_seconds=11).severity is Severity.WARNING

    def test_a_source_that_stopped_is_a_warning_one_that_never_worked_an_info(self) -> None:
        """A GPU without the counters is not unhealthy."""
        stopped = verdict.source_down("gpm", since_seconds=75, reason="unknown_error")
        never = verdict.source_down("dcgm", since_seconds=None, reason=None)

        assert spoken(stopped) == "no data from gpm for 75 s (unknown_error)"
        assert spoken(never) == "no data from dcgm so far"
        assert (stopped.severity, never.severity) == (Severity.WARNING, Severity.INFO)


class TestHealth:
    @pytest.mark.parametrize(
        ("code", "severity"),
        [
            (79, Severity.CRITICAL),
            (63, Severity.WARNING),
            (31, Severity.INFO),
            (999, Severity.WARNING),
        ],
    )
    def test_an_xid_is_as_bad_as_its_action(self, code: int, severity: Severity) -> None:
        """Reset or replace is critical, a program's own fault a note, an unknown code a warning."""
        finding = verdict.xid(code, times=1, age_seconds=40)

        assert finding is not None
        assert severity is finding.severity

    def test_an_xid_says_what_it_means(self) -> None:
        """Few people know the numbers by heart."""
        assert (
            spoken(verdict.xid(79, times=3, age_seconds=40))
            == "XID 79, the GPU fell off the bus, 40 s ago (3 times)"
        )
        assert spoken(verdict.xid(999, times=1, age_seconds=40)) == "XID 999, 40 s ago"

    def test_only_application_xids_expire_soon(self) -> None:
        """After an hour a program's fault is in the details only; hardware faults stay."""
        assert verdict.xid(31, times=1, age_seconds=3601) is None
        assert verdict.xid(79, times=1, age_seconds=7 * 86400) is not None
        assert verdict.xid(79, times=1, age_seconds=None) is None

    def test_new_memory_errors(self) -> None:
        """One uncorrected error counts; a thousand corrected ones do not."""
        found = verdict.memory_errors(uncorrected=1, corrected=5000)

        assert spoken(found) == "1 new uncorrected memory error"
        assert verdict.memory_errors(uncorrected=0, corrected=1000) is None
        assert (
            spoken(verdict.memory_errors(uncorrected=0, corrected=1001))
            == "1,001 new corrected memory errors"
        )

    def test_row_remapping(self) -> None:
        """Failed outweighs pending; unknown is not bad."""
        failed = verdict.row_remap(pending=True, failed=True)
        pending = verdict.row_remap(pending=True, failed=False)

        assert failed is not None
        assert pending is not None
        assert (failed.kind, pending.kind) == ("row_remap_failed", "row_remap_pending")
        assert verdict.row_remap(pending=None, failed=None) is None

    def test_a_recovery_action_is_what_the_gpu_requires(self) -> None:
        """`none` is what a healthy GPU asks for."""
        assert spoken(verdict.recovery("drain_and_reset")) == "the GPU requires a drain and a reset"
        assert spoken(verdict.recovery("9")) == "the driver requires: 9"
        assert verdict.recovery("none") is None
        assert verdict.recovery(None) is None

    def test_links(self) -> None:
        """Some down is a fault, all down is a GPU without a bridge."""
        assert (
            spoken(verdict.links_down({"10": False, "2": False, "3": True, "1": True}))
            == "2 NVLinks of 4 down: 2, 10"
        )
        assert verdict.links_down({"0": False, "1": False}) is None
        assert verdict.links_down({}) is None

    def test_pcie_width(self) -> None:
        """Eight of sixteen lanes is a bad slot; without data there is no finding."""
        assert spoken(verdict.narrow_pcie(width=8, width_max=16)) == "PCIe link uses 8 of 16 lanes"
        assert verdict.narrow_pcie(width=16, width_max=16) is None
        assert verdict.narrow_pcie(width=None, width_max=16) is None

    def test_heat(self) -> None:
        """Memory at 95 degrees, or 71 degrees for nothing."""
        hot = verdict.hot(temperature_celsius=60, memory_celsius=95, idle_share=0)
        lazy = verdict.hot(temperature_celsius=71, memory_celsius=None, idle_share=0.95)

        assert (spoken(hot), spoken(lazy)) == (
            "memory at 95 °C",
            "71 °C while idle: check the cooling",
        )
        assert verdict.hot(temperature_celsius=71, memory_celsius=94, idle_share=0.2) is None


class TestProbes:
    def test_the_worst_kernel_is_named(self) -> None:
        """Only GEMMs and the device copy judge a GPU: a slow host copy is the host's."""
        finding = verdict.slower_than_baseline(
            {"gemm_bf16": 0.82, "copy_device": 0.97, "copy_host_to_device": 0.2}
        )

        assert spoken(finding) == "slower than it was: gemm_bf16 at 82 % of its own baseline"

    @pytest.mark.parametrize(
        ("ratio", "severity"), [(0.74, Severity.CRITICAL), (0.75, Severity.WARNING), (0.9, None)]
    )
    def test_baseline_thresholds(self, ratio: float, severity: Severity | None) -> None:
        """Those of the alerts."""
        finding = verdict.slower_than_baseline({"gemm_bf16": ratio})

        assert severity == (finding.severity if finding else None)

    def test_siblings_need_company(self) -> None:
        """A median of three is not meaningful."""
        assert verdict.slower_than_siblings("gemm_bf16", 0.5, [0.5, 1.0, 1.0]) is None
        assert (
            spoken(verdict.slower_than_siblings("gemm_bf16", 0.8, [0.8, 1.0, 1.0, 1.0]))
            == "slower than its siblings: gemm_bf16 at 80 % of the median of 4"
        )

    def test_wrong_results(self) -> None:
        """One wrong bit is reason enough."""
        finding = verdict.wrong_results({"gemm_bf16": 2, "gemm_int8": 0})

        assert spoken(finding) == "computes wrong results: 2 mismatches in gemm_bf16; drain the GPU"
        assert verdict.wrong_results({"gemm_int8": 0}) is None

    def test_why_there_is_no_probe(self) -> None:
        """The gate in words."""
        assert spoken(verdict.not_probed("free_memory")) == "not probed: too little memory is free"

    def test_why_a_busy_device_is_not_measured(self) -> None:
        """Which figures are missing, and how busy it is where that is known."""
        finding = verdict.contended(["FLOPS", "memory bandwidth"], busy=0.97)

        assert spoken(finding) == (
            "FLOPS and memory bandwidth not measured: other programs use the device (busy 97 %),"
            " and probes run only while it is free"
        )
        assert "device, and" in spoken(verdict.contended(["FLOPS"], busy=None))
        assert verdict.contended([], busy=0.97) is None


class TestHost:
    def test_everything_is_healthy(self) -> None:
        """A single device is not called "all"."""
        assert host_summary([None] * 8).replace("\xa0", " ") == "All 8 GPUs are OK."
        assert host_summary([None]) == "The device is OK."

    def test_failures_are_counted(self) -> None:
        """A note does not change the state."""
        severities = [Severity.CRITICAL, Severity.WARNING, Severity.INFO, None]

        assert (
            host_summary(severities).replace("\xa0", " ") == "4 GPUs: 1 critical, 1 warning, 2 OK."
        )

    def test_a_host_without_devices_is_reported(self) -> None:
        """An empty host is not a healthy one."""
        assert host_summary([]).startswith("No device to monitor")

    @given(st.lists(st.sampled_from(Severity)))
    def test_the_worst_of_findings(self, severities: list[Severity]) -> None:
        """Critical before warning; notes do not count as problems."""
        found = [verdict.Finding(severity, "x", "y") for severity in severities]
        order = [Severity.CRITICAL, Severity.WARNING]

        assert next((s for s in order if s in severities), None) == worst(found)


class TestPrefixCache:
    """In a recorded collapse MFU rose by a fifth while answers fell by a third."""

    def test_a_collapse(self):
        """From 80 % to 10 %: a warning with both shares."""
        finding = verdict.prefix_cache_collapsed("chat", recent=0.1, usual=0.8)

        assert finding is not None
        assert finding.kind == "prefix_cache_collapsed"
        assert "10 %" in finding.text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace(
            "\N{NO-BREAK SPACE}", " "
        )

    @pytest.mark.parametrize(
        ("recent", "usual"), [(0.5, 0.8), (0.0, 0.05), (None, 0.8), (0.1, None), (0.8, 0.1)]
    )
    def test_no_collapse(self, recent, usual):
        """A smaller fall, a cache that never mattered, too little known, a rise."""
        assert verdict.prefix_cache_collapsed("chat", recent=recent, usual=usual) is None


class TestUsefulShare:
    """Useful over executed FLOP: on a recorded GPU 0.85, the rest is padding."""

    def test_more_useful_than_executed(self):
        """1.7 times: fp8 work that was counted at bf16's rate, 0.85 × 2."""
        finding = verdict.precision_or_product_mismatch("chat", explained=1.7, spread=0.3)

        assert finding is not None
        assert (finding.kind, finding.severity) == ("precision_or_product_mismatch", "warning")
        assert "170" in finding.text

    def test_a_steady_half(self):
        """0.425: bf16 work that was counted at fp8's rate, 0.85 / 2. It may be padding, so it is a note."""
        finding = verdict.precision_or_product_mismatch("chat", explained=0.425, spread=0.02)

        assert finding is not None
        assert finding.severity == "info"
        assert "padding" in finding.text

    @pytest.mark.parametrize(
        ("explained", "spread"),
        [(0.85, 0.02), (1.02, 0.02), (0.425, 0.2), (0.2, 0.02), (None, None)],
    )
    def test_no_mismatch(self, explained, spread):
        """Padding, noise, a half that moves with the batch, a fifth, nothing known."""
        assert (
            verdict.precision_or_product_mismatch("chat", explained=explained, spread=spread)
            is None
        )

    def test_a_fall(self):
        """0.5 of a usual 0.8 is 62 %, below 70 %."""
        finding = verdict.useful_share_fell("chat", recent=0.5, usual=0.8)

        assert finding is not None
        assert (finding.kind, finding.severity) == ("useful_share_fell", "info")

    @pytest.mark.parametrize(("recent", "usual"), [(0.57, 0.8), (None, 0.8), (0.5, None)])
    def test_no_fall(self, recent, usual):
        """71 % of it; little known."""
        assert verdict.useful_share_fell("chat", recent=recent, usual=usual) is None


@pytest.mark.parametrize(
    ("why", "words"),
    [("namespace", "hostPID: true"), ("owners", "CAP_SYS_PTRACE"), ("driver", "no SM time")],
)
def test_shares_that_are_not_measured(why, words):
    """It says what would help, where anything would."""
    finding = verdict.shares_not_measured(3, why)

    assert finding is not None
    assert finding.severity == "info"
    assert "3 holders" in finding.text
    assert words in finding.text
    assert verdict.shares_not_measured(3, None) is None


def test_it_judges_by_the_thresholds_that_it_is_given():
    """A tenth of the peak lost to heat is a warning by default, and none where the operator allows two tenths."""
    held = {"held": 0.5, "mean_hertz": 1.7e9, "max_hertz": 1.98e9, "lost_share": 0.1, "over": "x"}
    allowed = Thresholds(heat_loss_warning=0.2, baseline_warning=0.8, peers_minimum=2)

    assert clock_held("heat", **held).severity is Severity.WARNING
    assert clock_held("heat", **held, thresholds=allowed).severity is Severity.INFO
    assert verdict.slower_than_baseline({"gemm_bf16": 0.85}) is not None
    assert verdict.slower_than_baseline({"gemm_bf16": 0.85}, allowed) is None
    assert verdict.slower_than_siblings("gemm_bf16", 0.5, [0.5, 0.9]) is None
    assert verdict.slower_than_siblings("gemm_bf16", 0.5, [0.5, 0.9], allowed) is not None
