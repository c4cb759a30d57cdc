"""Cycles on a simulated host: gates, turns, outcomes and workers."""

import pytest
import structlog

from flopwatch.threads import BoundedThread
from probes.facts import ProcessFacts
from tests.probes.simulation import COPY, GEMM, LAUNCH, PEER, Ending, Host, gpu


SERVER = ProcessFacts(pid=100, age_seconds=1e6)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


class TestResults:
    def test_a_gemm_measurement(self, host):
        """100 GFLOP in 125 µs: 800 TFLOP/s, 0.843 of 132 SMs at 1.755 GHz."""
        seen = host.cycle()

        assert seen.flops == {"bf16": pytest.approx(8e14)}
        assert seen.efficiency_ratio == {"bf16": pytest.approx(0.8431, abs=1e-4)}
        assert seen.sm_clock_hertz == 1.755e9
        assert seen.runs == {("gemm_bf16", "ok"): 1}
        assert seen.mismatches == {"gemm_bf16": 0}
        assert seen.baseline_ratio == {"gemm_bf16": 1.0}
        assert seen.tenant_busy_ratio == (0.0, 0.0)
        assert seen.last_success_seconds.keys() == {"gemm_bf16"}

    def test_copies_and_launches(self, host):
        """Each quantity goes where it belongs."""
        host.kernels = (COPY, LAUNCH)
        host.script.extend(
            [
                Ending(changes={"work_per_run": 1e8, "run_seconds": (1e-4,) * 7}),
                Ending(changes={"run_seconds": (4e-6,) * 50, "digest": ""}),
            ]
        )
        seen = host.cycle()

        assert seen.bandwidth_bytes_per_second == {("device", ""): pytest.approx(1e12)}
        assert seen.launch_latency_seconds == 4e-6
        assert seen.mismatches == {"copy_device": 0}

    def test_device_time_adds_up(self, host):
        """Opening takes 0.5 ms, the run a fifth of what was left of 15.83 ms."""
        seen = host.cycle()

        assert seen.gpu_seconds == pytest.approx(0.0005 + (0.95 / 60 - 0.0005) / 5)
        assert seen.gpu_seconds == pytest.approx(sum(seconds for _, _, seconds in host.used))

    def test_a_slower_gpu_shows_against_its_baseline(self, host):
        """After five rounds at 125 µs, 250 µs are half of it."""
        for _ in range(5):
            host.cycle()
        host.script.append(Ending(changes={"run_seconds": (0.00025,) * 7}))

        assert host.cycle().baseline_ratio == {"gemm_bf16": pytest.approx(0.5)}

    def test_other_versions_have_another_baseline(self, host):
        """After a driver update neither the old speed nor the old bits count."""
        host.cycle()
        host.versions = "torch 2 cuda 14"
        host.script.append(Ending(changes={"run_seconds": (0.00025,) * 7, "digest": "bb"}))
        seen = host.cycle()

        assert seen.baseline_ratio == {"gemm_bf16": 1.0}
        assert seen.runs == {("gemm_bf16", "ok"): 2}

    def test_values_grow_stale(self, host):
        """Not measured for 15 intervals, a value is no longer shown; counters stay."""
        host.cycle()
        host.clock.now += 15 * 60 + 1
        seen = host.snapshot()

        assert seen.flops == {}
        assert seen.sm_clock_hertz is None
        assert seen.tenant_busy_ratio is None
        assert seen.runs == {("gemm_bf16", "ok"): 1}

    def test_the_shape_is_chosen_once(self, host):
        """The first request leaves it to the worker, later ones ask for the same, also after a restart."""
        host.cycle()
        host.cycle()
        host.boot()
        host.cycle()

        assert [request.shape for request in host.requests] == [(), *[(2048, 2048, 11920)] * 2]


class TestOutcomes:
    @pytest.mark.parametrize(
        ("ending", "outcome"),
        [
            (Ending("hang"), "timeout"),
            (Ending("crash"), "error"),
            (Ending("out_of_memory"), "out_of_memory"),
            (Ending(changes={"repeats_agree": False}), "mismatch"),
            (Ending(changes={"exact": False}), "mismatch"),
            (Ending(changes={"clock_hertz": 1.0e9}), "throttled"),
            (Ending(changes={"run_seconds": (0.001, 0.002, 0.003)}), "contended"),
        ],
    )
    def test_every_run_has_one_outcome(self, host, ending, outcome):
        """And none of these is a success."""
        host.script.append(ending)
        seen = host.cycle()

        assert seen.runs == {("gemm_bf16", outcome): 1}
        assert seen.last_success_seconds == {}
        assert seen.flops == {}

    def test_a_flipped_bit_is_a_mismatch(self, host):
        """Other bits than the first time: counted, logged with both digests, the baseline kept."""
        host.cycle()
        host.script.append(Ending(changes={"digest": "ab"}))
        with structlog.testing.capture_logs() as logs:
            seen = host.cycle()
        after = host.cycle()

        assert seen.mismatches == {"gemm_bf16": 1}
        assert seen.runs == {("gemm_bf16", "ok"): 1, ("gemm_bf16", "mismatch"): 1}
        event = next(each for each in logs if each["event"] == "probe_mismatch")
        assert (event["digest"], event["expected"], event["uuid"]) == ("ab", "aa", "GPU-0")
        assert after.runs["gemm_bf16", "ok"] == 2

    def test_digests_survive_a_restart(self, host):
        """After a restart the daemon still knows what the result must be."""
        host.cycle()
        host.boot()
        host.script.append(Ending(changes={"digest": "ab"}))

        assert host.cycle().runs == {("gemm_bf16", "mismatch"): 1}

    def test_an_allowance_that_is_too_small_is_a_skip(self, host):
        """No run was finished, so none is counted."""
        host.script.append(Ending("allowance"))
        seen = host.cycle()

        assert seen.runs == {}
        assert seen.skips == {"budget": 1}

    def test_a_throttled_gpu_still_shows_clock_and_efficiency(self, host):
        """Low clock at the same efficiency is heat or power: both must be seen."""
        host.script.append(Ending(changes={"clock_hertz": 1.0e9, "run_seconds": (0.00022,) * 7}))
        seen = host.cycle()

        assert seen.sm_clock_hertz == 1.0e9
        assert seen.efficiency_ratio["bf16"] == pytest.approx(0.8407, abs=1e-3)


class TestGates:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"mig": True}, "mig"),
            ({"compute_mode": "prohibited"}, "compute_mode"),
            ({"processes": (ProcessFacts(1, 10.0),)}, "new_process"),
            ({"free_memory_bytes": 0}, "free_memory"),
            ({"clock_event_reasons": frozenset({"hw_slowdown"})}, "throttled_hot"),
        ],
    )
    def test_a_gate_keeps_the_worker_from_starting(self, host, change, reason):
        """Nothing touches the GPU; the skip has its reason."""
        host.devices = [gpu(**change)]
        seen = host.cycle()

        assert seen.skips == {reason: 1}
        assert host.started == []

    def test_paused(self, host):
        """By the operator, until resumed."""
        host.scheduler.paused_by_operator = True
        assert host.cycle().skips == {"paused": 1}
        host.scheduler.paused_by_operator = False
        assert host.cycle().runs == {("gemm_bf16", "ok"): 1}

    def test_pausing_ends_a_cycle_after_its_kernel(self, host):
        """The two kernels that were still to come are skipped."""
        host.kernels = (GEMM, COPY, LAUNCH)
        host.after_run = lambda: setattr(host.scheduler, "paused_by_operator", True)
        seen = host.cycle()

        assert sum(seen.runs.values()) == 1
        assert seen.skips == {"paused": 2}

    def test_a_pause_file(self, tmp_path):
        """While the file exists."""
        file = tmp_path / "pause"
        host = Host(tmp_path, pause_file=file)
        file.touch()
        assert host.cycle().skips == {"paused": 1}
        file.unlink()
        assert host.cycle().runs == {("gemm_bf16", "ok"): 1}

    def test_a_gpu_that_went_away(self, host):
        """Its counters stay, and its skips have the reason `no_facts`."""
        host.cycle()
        host.devices = []

        assert host.cycle().skips == {"no_facts": 1}

    def test_facts_that_fail(self, host):
        """A failing driver does not end the cycles: the next one asks again."""
        host.cycle()
        host.scheduler._facts = lambda: 1 / 0

        assert host.cycle().skips == {"no_facts": 1}

    def test_a_torch_that_cannot_be_imported(self, host):
        """Logged once, counted every time, and without backoff."""
        host.start_fails = "torch_missing"
        with structlog.testing.capture_logs() as logs:
            host.cycle()
            seen = host.cycle()

        assert seen.skips == {"torch_missing": 2}
        assert [each["event"] for each in logs] == ["probes_off"]


class TestBackoff:
    def test_a_dead_worker_is_not_started_at_once(self, host):
        """30 s after the first death, 60 s after the second; then it counts as a restart."""
        host.script.extend([Ending("crash"), Ending("crash")])
        host.cycle()
        assert host.cycle(after=20.0).skips == {"backoff": 1}
        assert host.cycle(after=60.0).worker_restarts == 1
        assert host.cycle(after=50.0).skips == {"backoff": 2}
        assert host.cycle(after=60.0).worker_restarts == 2
        assert len(host.started) == 3

    def test_a_planned_exit_is_not_a_restart(self, host):
        """On an idle GPU the worker ends after every cycle."""
        for _ in range(3):
            seen = host.cycle()

        assert len(host.started) == 3
        assert seen.worker_restarts == 0

    def test_a_start_that_fails_backs_off(self, host):
        """The run that was to come has the outcome; then the next cycle waits."""
        host.start_fails = "timeout"
        host.cycle()
        seen = host.cycle(after=10.0)

        assert seen.runs == {("launch", "timeout"): 1}
        assert seen.skips == {"backoff": 1}


def test_a_kernel_that_ends_the_worker_is_left_out(host):
    """The others have their turn: it is tried again after 30 s, 60 s and so on, up to an hour."""
    host.kernels = (LAUNCH, GEMM, COPY)
    host.script.extend([Ending("dies in gemm_bf16")] * 1000)
    for _ in range(60):
        seen = host.cycle()

    assert seen.runs["launch", "ok"] > 45
    assert seen.runs["copy_device", "ok"] > 45
    # 30 s, 1, 2, 4, 8, 16 and 32 minutes after each other, of an hour.
    assert 6 <= seen.runs["gemm_bf16", "error"] <= 8
    assert seen.skips["backoff"] > 45


class TestHoldingBack:
    def test_it_runs_every_time_once_it_works_again(self, host):
        """A success forgets the failures."""
        host.kernels = (LAUNCH, GEMM)
        host.script.extend([Ending("dies in gemm_bf16")] * 2)
        host.cycle()
        host.cycle(after=100)
        seen = host.cycle()

        assert seen.runs["gemm_bf16", "error"] == 1
        assert seen.runs["gemm_bf16", "ok"] == 2

    def test_a_shape_that_no_longer_fits_starts_a_new_baseline(self, host):
        """The memory limit was lowered: the worker chose another shape, so other bits are no error."""
        host.cycle()
        host.script.append(Ending(changes={"shape": (1024, 1024, 1024), "digest": "ab"}))
        seen = host.cycle()
        host.script.append(Ending(changes={"digest": "ab"}))
        after = host.cycle()

        assert seen.runs == {("gemm_bf16", "ok"): 2}
        assert after.runs == {("gemm_bf16", "ok"): 3}
        assert host.requests[-1].shape == (1024, 1024, 1024)

    def test_a_worker_over_its_memory_limit_is_logged_once(self, host):
        """CUDA itself may take nearly all of it."""
        host.memory_bytes = 640_000_000
        with structlog.testing.capture_logs() as logs:
            host.cycle()
            host.cycle()

        (event,) = [each for each in logs if each["event"] == "probe_memory_over_limit"]
        assert (event["memory_bytes"], event["limit_bytes"]) == (640_000_000, 600_000_000)
        assert event["remedy"] == "raise probes.memory_limit"


class TestWorkers:
    def test_on_an_idle_gpu_it_runs_for_one_cycle(self, host):
        """An open context alone costs 26 to 66 W."""
        seen = host.cycle()

        assert host.closed == [("GPU-0",)]
        assert seen.worker_memory_bytes is None

    def test_a_worker_beside_a_server_keeps_running(self, host):
        """Its memory never moves under the server."""
        host.devices = [gpu(processes=(SERVER,))]
        host.cycle()
        seen = host.cycle()

        assert len(host.started) == 1
        assert host.closed == []
        assert seen.worker_memory_bytes == 550_000_000

    def test_it_exits_when_the_server_has_gone(self, host):
        """The GPU is idle again: one more cycle, then no context."""
        host.devices = [gpu(processes=(SERVER,))]
        host.cycle()
        host.devices = [gpu()]
        host.cycle()

        assert host.closed == [("GPU-0",), ("GPU-0",)]

    def test_it_does_not_mistake_itself_for_a_server(self, host):
        """Its own entry in the driver's list does not keep it."""
        host.devices = [gpu(processes=(SERVER,))]
        host.cycle()
        pid = host.snapshot().worker_pid
        host.devices = [gpu(processes=(ProcessFacts(pid, 60.0),))]
        host.cycle()

        assert host.snapshot().worker_memory_bytes is None

    def test_a_gate_leaves_the_worker_running(self, host):
        """A new server starts beside: the worker neither runs nor frees its memory."""
        host.devices = [gpu(processes=(SERVER,))]
        host.cycle()
        host.devices = [gpu(processes=(SERVER, ProcessFacts(101, 5.0)))]
        seen = host.cycle()

        assert seen.skips == {"new_process": 1}
        assert host.closed == []
        assert seen.worker_memory_bytes == 550_000_000

    def test_idle_gpus_share_one(self, tmp_path):
        """One import of torch serves them all; the busy one has its own."""
        host = Host(tmp_path, [gpu(0), gpu(1, processes=(SERVER,)), gpu(2)])
        host.cycle()

        assert sorted(host.started) == [("GPU-0", "GPU-2"), ("GPU-1",)]

    def test_peers_are_probed_around_the_ring(self, tmp_path):
        """Idle GPUs 0, 1, 2 copy to 1, 2, 0; alone there is no peer."""
        host = Host(tmp_path, [gpu(0), gpu(1), gpu(2)])
        host.kernels = (PEER,)
        host.cycle()
        snapshots = host.scheduler.snapshot(running=True).devices

        assert [list(each.bandwidth_bytes_per_second) for each in snapshots] == [
            [("peer", "1")],
            [("peer", "2")],
            [("peer", "0")],
        ]
        host.devices = [gpu(0)]
        host.requests.clear()
        host.cycle()
        assert host.requests == []

    def test_a_worker_death_costs_other_gpus_only_their_turn(self, tmp_path):
        """The next idle GPU of the same worker waits a cycle, and keeps no backoff."""
        host = Host(tmp_path, [gpu(0), gpu(1)])
        host.script.append(Ending("crash"))
        host.cycle()
        host.cycle(after=25.0)
        first, second = host.scheduler.snapshot(running=True).devices

        assert first.runs == {("gemm_bf16", "error"): 1}
        assert first.skips == {"backoff": 1}
        assert second.runs == {("gemm_bf16", "ok"): 1}

    def test_together_every_gpu_has_its_turn(self, tmp_path):
        """Probed at the same moment in threads of their own, all busy GPUs report."""
        devices = [gpu(number, processes=(SERVER,)) for number in range(4)]
        host = Host(tmp_path, devices, together=True)
        host.cycle()

        assert all(
            each.runs == {("gemm_bf16", "ok"): 1}
            for each in host.scheduler.snapshot(running=True).devices
        )

    def test_without_threads_workers_run_in_turn(self, tmp_path, monkeypatch):
        """A node that is short of threads: every busy GPU is still probed."""

        def refuse(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(BoundedThread, "start", refuse)
        devices = [gpu(number, processes=(SERVER,)) for number in range(4)]
        host = Host(tmp_path, devices, together=True)
        host.cycle()

        assert all(
            each.runs == {("gemm_bf16", "ok"): 1}
            for each in host.scheduler.snapshot(running=True).devices
        )


class TestTurns:
    def test_only_the_configured_kernels_run_in_their_order(self, tmp_path):
        """A kernel that the device does not support is logged once and left out."""
        host = Host(tmp_path, kernels=("launch", "gemm_fp8", "gemm_bf16"))
        host.kernels = (COPY, GEMM, LAUNCH)
        with structlog.testing.capture_logs() as logs:
            host.cycle()
            host.cycle()

        assert [request.kernel for request in host.requests][:2] == ["launch", "gemm_bf16"]
        absent = [each for each in logs if each["event"] == "probe_kernels_absent"]
        assert [each["kernels"] for each in absent] == [["gemm_fp8"]]

    def test_kernels_take_turns_when_the_budget_ends(self, host):
        """Each takes half of what is left, so one runs a cycle, and all have had one after three."""
        host.kernels = (GEMM, COPY, LAUNCH)
        host.script.extend([Ending(share=0.6)] * 3)
        for _ in range(3):
            seen = host.cycle()

        assert [request.kernel for request in host.requests] == [
            "gemm_bf16",
            "copy_device",
            "launch",
        ]
        assert seen.skips == {"budget": 6}
