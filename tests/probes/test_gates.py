"""Each gate holds back exactly what it should."""

from dataclasses import replace

import pytest

from probes.config import ProbeConfig
from probes.facts import DeviceFacts, ProcessFacts
from probes.gates import HOT_REASONS, device_gate, other_processes, paused


GIB = 2**30
CONFIG = ProbeConfig(hold_off_seconds=300, min_free_memory_bytes=2 * GIB)
GPU = DeviceFacts(key="0", uuid="GPU-0", name="H100", kind="cuda", free_memory_bytes=8 * GIB)
OLD = ProcessFacts(pid=100, age_seconds=86400.0)
NEW = ProcessFacts(pid=101, age_seconds=299.0)


def gate(facts=GPU, others=(), *, worker_open=False):
    return device_gate(facts, others, CONFIG, worker_open=worker_open)


class TestDeviceGate:
    def test_an_idle_gpu_with_memory_is_probed(self):
        """No gate holds it back."""
        assert gate() is None

    def test_a_gpu_with_an_old_server_is_probed(self):
        """The server sized its cache long ago."""
        assert gate(others=(OLD,)) is None

    def test_mig(self):
        """A partitioned GPU is not one device."""
        assert gate(replace(GPU, mig=True)) == "mig"

    @pytest.mark.parametrize(
        ("mode", "others", "expected"),
        [
            ("prohibited", (), "compute_mode"),
            ("exclusive_process", (OLD,), "compute_mode"),
            ("exclusive_thread", (OLD,), "compute_mode"),
            ("exclusive_process", (), None),
            ("default", (OLD,), None),
        ],
    )
    def test_compute_mode(self, mode, others, expected):
        """Prohibited always; exclusive only while another process uses the GPU."""
        assert gate(replace(GPU, compute_mode=mode), others) == expected

    def test_a_new_process_holds_off(self):
        """299 s old is too new by a second, 300 s is old enough, whatever other processes exist."""
        assert gate(others=(OLD, NEW)) == "new_process"
        assert gate(others=(OLD, replace(NEW, age_seconds=300.0))) is None

    def test_a_new_process_holds_off_an_open_worker_too(self):
        """Not even to free memory: the worker stays as it is and does nothing."""
        assert gate(others=(NEW,), worker_open=True) == "new_process"

    def test_too_little_free_memory(self):
        """Less than 2 GiB is too little for a context; unknown counts as none."""
        assert gate(replace(GPU, free_memory_bytes=2 * GIB - 1)) == "free_memory"
        assert gate(replace(GPU, free_memory_bytes=2 * GIB)) is None
        assert gate(replace(GPU, free_memory_bytes=None)) == "free_memory"

    def test_an_open_worker_needs_no_more_memory(self):
        """It has what it needs; the server may have taken all the rest."""
        assert gate(replace(GPU, free_memory_bytes=0), (OLD,), worker_open=True) is None

    @pytest.mark.parametrize("reason", sorted(HOT_REASONS))
    def test_a_hot_gpu(self, reason):
        """Slowed by heat: the measurement would say so and heat it more."""
        assert gate(replace(GPU, clock_event_reasons=frozenset({reason}))) == "throttled_hot"

    def test_a_power_cap_is_normal(self):
        """Under load most GPUs run at their power cap."""
        assert gate(replace(GPU, clock_event_reasons=frozenset({"sw_power_cap"}))) is None

    def test_the_host_processor_has_only_the_memory_gate(self):
        """Its worker takes up to the memory limit of 600 MB; unknown free memory does not stop it."""
        cpu = DeviceFacts(key="cpu0", uuid="CPU", name="EPYC", kind="cpu")

        assert gate(cpu) is None
        assert gate(replace(cpu, free_memory_bytes=599_999_999)) == "free_memory"
        assert gate(replace(cpu, free_memory_bytes=600_000_000)) is None


class TestOtherProcesses:
    WORKER = ProcessFacts(pid=55, age_seconds=40.0)

    def test_the_worker_is_not_another(self):
        """Its own process id is left out."""
        assert other_processes((OLD, self.WORKER), 55, 40.0) == (OLD,)

    def test_without_a_worker_all_processes_are_other_tenants(self):
        """None of them is ours."""
        assert other_processes((OLD, NEW), None, None) == (OLD, NEW)

    def test_in_a_container_the_worker_is_known_by_its_age(self):
        """The driver lists host process ids: of two within 20 s of its age the nearer is taken."""
        near, nearer = ProcessFacts(9001, 31.0), ProcessFacts(9002, 38.0)

        assert other_processes((OLD, near, nearer), 55, 40.0) == (OLD, near)

    def test_no_process_of_another_age_is_the_worker(self):
        """The driver hides it; all listed processes are others."""
        assert other_processes((OLD, NEW), 55, 40.0) == (OLD, NEW)


class TestPause:
    def test_by_file(self, tmp_path):
        """While the file exists."""
        file = tmp_path / "pause"
        config = ProbeConfig(pause_file=file)

        assert not paused(config, by_operator=False)
        file.touch()
        assert paused(config, by_operator=False)

    def test_by_operator(self):
        """Whatever the file says."""
        assert paused(ProbeConfig(pause_file=None), by_operator=True)

    def test_a_file_that_cannot_be_looked_at_pauses(self):
        """It may exist: hold off rather than disturb the server."""
        config = ProbeConfig(
            pause_file=type(
                "Path", (), {"exists": lambda _: (_ for _ in ()).throw(PermissionError())}
            )()
        )

        assert paused(config, by_operator=False)
