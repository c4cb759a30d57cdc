"""The supervisor outlives whatever the worker does."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from probes.config import ProbeConfig
from probes.environment import worker_environment
from probes.protocol import Device, Run
from probes.supervisor import WorkerFailedError, WorkerProcess


FAKE = Path(__file__).with_name("fake_worker.py")
CONFIG = ProbeConfig(
    chunk_deadline_seconds=0.3, request_deadline_seconds=1.5, start_deadline_seconds=20
)
GPU = (Device(kind="cuda", key="0"),)
CPU = (Device(kind="cpu", key="cpu0"),)
RUN = Run(
    identifier=7,
    kernel="gemm_fp32",
    device=0,
    allowance_seconds=0.02,
    max_chunk_seconds=0.001,
    gap_seconds=0.0,
    timed_runs=3,
)


def worker(mode, config=CONFIG, devices=GPU):
    command = (sys.executable, "-P", str(FAKE), mode)
    return WorkerProcess(devices, (), config, command=command)


@pytest.fixture
def started():
    """A function that starts a fake worker of some mode; all are closed afterwards."""
    made = []

    def start(mode, **settings):
        made.append(worker(mode, **settings))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        each.close()


def gone(pid):
    """Whether a process is neither running nor a zombie of ours; orphans are reaped by init."""
    for _ in range(100):
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return int(parent) != os.getpid()
        time.sleep(0.05)
    return False


def gone_by_itself(watched):
    """Whether the worker is seen to have ended, within five seconds."""
    for _ in range(100):
        if not watched.alive:
            return True
        time.sleep(0.05)
    return False


def descriptors():
    return {each.name for each in Path("/proc/self/fd").iterdir()}


class TestWellBehaved:
    def test_a_result_comes_back_with_the_device_time(self, started):
        """A worker that behaves gives its result and what it took: the one Idle of 2 ms."""
        report = started("fine").run(RUN)

        assert report.result is not None
        assert report.result.run_seconds == (0.001, 0.001, 0.001)
        assert report.device_seconds == 0.002

    def test_it_exits_when_asked(self, started):
        """Closing ends the process and reaps it."""
        fine = started("fine")
        pid = fine.pid
        fine.close()

        assert gone(pid)
        assert not fine.alive
        assert fine.pid is None

    def test_an_unresponsive_worker_is_killed(self, started, monkeypatch):
        """A worker that ignores Exit and keeps running is killed."""
        monkeypatch.setattr("probes.supervisor.EXIT_GRACE_SECONDS", 0.3)
        deaf = started("deaf")
        os.kill(deaf.pid, 19)  # SIGSTOP: it does not even notice its pipe closing
        pid = deaf.pid
        deaf.close()

        assert gone(pid)

    def test_standard_error_cannot_block_it(self, started):
        """A worker that writes 200 kB of warnings is read on, not stuck."""
        assert started("noisy").run(RUN).result is not None

    def test_no_descriptor_is_left(self, started):
        """Starting and closing leaves as many open files as before."""
        before = descriptors()
        for mode in ("fine", "die_after_result"):
            each = started(mode)
            each.run(RUN)
            each.close()

        assert descriptors() == before


class TestFaults:
    @pytest.mark.parametrize(
        ("mode", "outcome", "words"),
        [
            ("die_before_hello", "error", "exit status 3): ImportError: libcuda.so.1"),
            ("other_protocol", "error", "protocol 99"),
            ("torch_missing", "torch_missing", "No module named 'torch'"),
        ],
    )
    def test_a_worker_that_cannot_start(self, mode, outcome, words):
        """Death before hello, another protocol and a missing torch each have their own words."""
        failing = worker(mode)
        with pytest.raises(WorkerFailedError) as caught:
            failing.start()

        assert caught.value.outcome == outcome
        assert words in caught.value.text
        assert not failing.alive

    def test_a_worker_that_never_greets(self):
        """It is killed at the start deadline."""
        slow = worker("hang_before_hello", ProbeConfig(start_deadline_seconds=0.5))
        with pytest.raises(WorkerFailedError) as caught:
            slow.start()

        assert caught.value.outcome == "timeout"
        assert not slow.alive

    def test_a_missing_program(self):
        """A worker that cannot be executed is an error, and leaves no open pipe."""
        before = descriptors()
        missing = WorkerProcess(CPU, (), CONFIG, command=("/nonexistent/python",))
        with pytest.raises(WorkerFailedError, match="cannot be started"):
            missing.start()

        assert descriptors() == before

    def test_opening_a_device_may_take_as_long_as_a_start(self):
        """1 s, where a request has 0.5 s: a driver that wakes its GPUs is not a hang."""
        slow = worker(
            "slow_opening", ProbeConfig(request_deadline_seconds=0.5, start_deadline_seconds=20)
        )
        try:
            slow.start()

            assert slow.describe(0).units == 1
        finally:
            slow.close()

    def test_death_while_opening_a_device(self, started):
        """Its last words say why."""
        opening = started("die_opening")
        with pytest.raises(WorkerFailedError, match="no kernel image is available"):
            opening.describe(0)

        assert not opening.alive

    @pytest.mark.parametrize("mode", ["unknown_kernel", "negative_memory", "nan_seconds"])
    def test_a_description_that_makes_no_sense(self, started, mode):
        """An unknown kernel would become a series; numbers are added up."""
        opening = started(mode)
        with pytest.raises(WorkerFailedError, match="is invalid") as caught:
            opening.describe(0)

        assert caught.value.outcome == "error"
        assert not opening.alive

    @pytest.mark.parametrize(
        ("mode", "outcome", "words"),
        [
            ("segfault", "error", "SIGSEGV"),
            ("hang", "timeout", "a kernel hangs"),
            ("hang_on_host", "timeout", "no answer in time"),
            ("half_frame", "timeout", "a kernel hangs"),
            ("dribble", "timeout", "a kernel hangs"),
            ("garbage", "error", "not a message of this protocol"),
            ("oversized", "error", "passes the limit"),
            ("spouting", "error", "passes the limit"),
            ("negative_time", "error", "impossible times"),
            ("overdraft", "error", "overdraws its allowance"),
            ("wrong_identifier", "error", "unexpected answer"),
            ("no_runs", "error", "is invalid"),
            ("no_shape", "error", "is invalid"),
            ("nan_clock", "error", "is invalid"),
            ("out_of_memory", "out_of_memory", "CUDA out of memory"),
        ],
    )
    def test_every_fault_mid_run_has_its_outcome(self, started, mode, outcome, words):
        """The report carries the outcome, the worker is dead, reaped, and no pipe is left."""
        before = descriptors()
        failing = started(mode)
        pid = failing.pid
        report = failing.run(RUN)

        assert report.result is None
        assert report.failure == outcome
        assert words in report.text
        assert not failing.alive
        assert gone(pid)
        assert descriptors() == before

    def test_a_hung_kernel_is_charged_until_its_end(self, started):
        """Busy since the chunk deadline of 0.3 s at least: that much was taken from the device."""
        assert started("hang").run(RUN).device_seconds >= 0.3

    def test_the_probe_waits_for_a_busy_processor(self, started):
        """A chunk of 0.5 s, of which the worker slept nearly all: nothing hangs, the result counts."""
        report = started("starved", devices=CPU).run(RUN)

        assert report.result is not None
        assert report.device_seconds == 0.002

    def test_a_kernel_that_spins_on_the_processor_is_ended(self, started):
        """It is charged the processor time that it took over the cores, 0.3 s or a little more."""
        report = started("spinning", devices=CPU, config=replace(CONFIG, cpu_threads=1)).run(RUN)

        assert report.failure == "timeout"
        assert 0.3 <= report.device_seconds < 1.5

    def test_a_worker_that_is_ended_between_two_requests_is_seen(self, started):
        """Without a request to it, and reaped: it can be started again."""
        ended = started("fine")
        os.kill(ended.pid, signal.SIGKILL)

        assert gone_by_itself(ended)
        ended.start()
        assert ended.run(RUN).result is not None

    def test_a_crash_keeps_what_was_reported(self, started):
        """2 ms were reported idle before the worker hung on the host: they stay charged."""
        assert started("hang_on_host").run(RUN).device_seconds == 0.002

    def test_death_after_a_result(self, started):
        """The result counts; the next request finds the worker dead, and it can be restarted."""
        dying = started("die_after_result")
        first = dying.run(RUN)
        second = dying.run(RUN)
        dying.start()
        third = dying.run(RUN)

        assert first.result is not None
        assert second.failure == "error"
        assert "SIGKILL" in second.text
        assert third.result is not None

    def test_an_allowance_that_is_too_small_is_not_a_failure(self, started):
        """The worker says so and lives on."""
        small = started("allowance")
        report = small.run(RUN)

        assert report.short_of_allowance
        assert report.failure is None
        assert small.alive

    def test_it_can_be_interrupted_from_another_thread(self, started):
        """A killed worker makes the waiting call return with an error."""
        import threading

        hanging = started("hang_on_host")
        threading.Timer(0.3, hanging.interrupt).start()
        report = hanging.run(RUN)

        assert report.failure == "error"
        assert not hanging.alive


class TestSession:
    def test_it_has_a_session_of_its_own(self, started):
        """Ctrl-C at the daemon's terminal does not reach it."""
        assert os.getsid(started("fine").pid) != os.getsid(0)

    def test_its_child_processes_end_with_it(self, started):
        """A kill reaches the whole session."""
        parent = started("child")
        parent.run(RUN)
        child = int(parent._last_words.split()[-1])
        parent._kill()

        assert gone(child)


class TestEnvironment:
    def test_only_the_devices_of_the_worker_are_visible(self):
        """By UUID, in order; none for the host processor."""
        assert worker_environment(["GPU-b", "GPU-a"], 1)["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
        assert worker_environment([], 1)["CUDA_VISIBLE_DEVICES"] == ""

    @pytest.mark.parametrize(
        "name",
        [
            "NVIDIA_TF32_OVERRIDE",
            "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
            "CUDA_LAUNCH_BLOCKING",
            "CUDA_INJECTION64_PATH",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
            "CUBLAS_WORKSPACE_CONFIG",
            "CUBLAS_EMULATE_SINGLE_PRECISION",
            "CUBLASLT_WORKSPACE_SIZE",
            "PYTORCH_ALLOC_CONF",
            "PYTORCH_CUDA_ALLOC_CONF",
            "PYTORCH_NO_CUDA_MEMORY_CACHING",
            "ONEDNN_DEFAULT_FPMATH_MODE",
            "MKL_CBWR",
            "OMP_PROC_BIND",
        ],
    )
    def test_no_inherited_settings_reach_it(self, monkeypatch, name):
        """They would make fp32 tf32, change the bits, or the memory it takes."""
        monkeypatch.setenv(name, "1")

        assert name not in worker_environment([], 1)

    def test_variables_that_it_needs_are_kept(self, monkeypatch):
        """Where programs, libraries and compiled kernels are; that there may be two OpenMP libraries."""
        for name in (
            "PATH",
            "LD_LIBRARY_PATH",
            "CUDA_CACHE_PATH",
            "CUDA_HOME",
            "KMP_DUPLICATE_LIB_OK",
        ):
            monkeypatch.setenv(name, "/somewhere")

            assert worker_environment([], 1)[name] == "/somewhere"

    def test_it_joins_no_mps_server(self):
        """A fault in one MPS client can take down the others, so the probe is never one."""
        assert worker_environment([], 1)["CUDA_MPS_PIPE_DIRECTORY"] == "/dev/null"
