"""Probing MIG instances: whose turn it is, what a worker sees, what is kept of a removed one."""

import sys
from dataclasses import replace

import pytest

from exporter.cli.probe import ProbeError, check_device, select_devices
from exporter.config.load import ConfigOrigin, load_config
from flopwatch.state_file import StateFile
from probes.config import ProbeConfig
from probes.device_states import saved_probes
from probes.environment import worker_environment
from probes.facts import ProcessFacts
from probes.protocol import Device
from probes.supervisor import WorkerProcess
from probes.worker_pool import real_worker
from tests.probes.simulation import GIB, PEER, Ending, Host, gpu
from tests.probes.test_supervisor import FAKE


SERVER = ProcessFacts(pid=100, age_seconds=1e6)
PARTITIONED = gpu(0, mig=True, free_memory_bytes=None)


def instance(number, size="1g.10gb", **fields):
    """A GPU instance of GPU 0."""
    return gpu(
        0,
        **{
            "uuid": f"MIG-{number}",
            "name": f"NVIDIA H100 MIG {size}",
            "instance": str(number),
            "gpu_uuid": "GPU-0",
            "free_memory_bytes": 9 * GIB,
        }
        | fields,
    )


def results(host):
    """Snapshots by UUID."""
    return {seen.uuid: seen for seen in host.scheduler.snapshot(running=True).devices}


class TestChoice:
    def test_a_partitioned_gpu_is_left_alone_by_default(self, tmp_path):
        """The skip is the GPU's, and its instances do not show up at all."""
        host = Host(tmp_path, [PARTITIONED, instance(7)])
        host.cycle()

        assert host.started == []
        assert results(host).keys() == {"GPU-0"}
        assert results(host)["GPU-0"].skips == {"mig": 1}

    def test_instances_stand_in_for_their_gpu(self, tmp_path):
        """With `run` the instance is probed, and the GPU neither probed nor skipped."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        host.cycle()

        assert host.started == [("MIG-7",)]
        assert results(host).keys() == {"MIG-7"}
        assert results(host)["MIG-7"].runs == {("gemm_bf16", "ok"): 1}
        assert results(host)["MIG-7"].instance == "7"
        assert results(host)["MIG-7"].device == "0"

    def test_a_gpu_without_instances_has_nothing_to_probe(self, tmp_path):
        """Mode on, no instances yet: held back as before."""
        host = Host(tmp_path, [PARTITIONED], mig="run")

        assert host.cycle().skips == {"mig": 1}

    def test_a_reload_takes_the_instances_away(self, tmp_path):
        """Back to `skip`: their pages close, the GPU's opens."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        host.cycle()
        host.scheduler.reconfigure(replace(host.config, mig="skip"))
        host.cycle()

        assert results(host).keys() == {"GPU-0"}

    def test_an_unknown_value_is_refused(self):
        """One line for people."""
        with pytest.raises(ValueError, match="mig must be skip or run"):
            ProbeConfig(mig="maybe")


class TestGates:
    def test_memory_is_the_instances(self, tmp_path):
        """1 GiB free in one instance holds that one back, and says nothing of the other."""
        small = instance(7, free_memory_bytes=GIB)
        host = Host(tmp_path, [PARTITIONED, small, instance(8)], mig="run")
        host.cycle()

        assert host.started == [("MIG-8",)]
        assert results(host)["MIG-7"].skips == {"free_memory": 1}

    def test_a_new_server_pauses_probes_of_its_own_instance(self, tmp_path):
        """A server that starts sizes its cache by its instance, not by its neighbours'."""
        starting = instance(7, processes=(ProcessFacts(pid=5, age_seconds=10.0),))
        host = Host(tmp_path, [PARTITIONED, starting, instance(8)], mig="run")
        host.cycle()

        assert host.started == [("MIG-8",)]
        assert results(host)["MIG-7"].skips == {"new_process": 1}

    def test_heat_is_the_gpus_and_so_every_instances(self, tmp_path):
        """The clock is one for all."""
        hot = frozenset({"hw_thermal_slowdown"})
        host = Host(tmp_path, [PARTITIONED, instance(7, clock_event_reasons=hot)], mig="run")
        host.cycle()

        assert results(host)["MIG-7"].skips == {"throttled_hot": 1}


class TestTurns:
    def test_one_worker_is_started_a_cycle(self, tmp_path):
        """Three idle instances: each has its turn every third cycle, in a process of its own."""
        host = Host(tmp_path, [PARTITIONED, *(instance(n) for n in (7, 8, 9))], mig="run")
        for _ in range(6):
            host.cycle()

        assert host.started == [("MIG-7",), ("MIG-8",), ("MIG-9",)] * 2
        assert host.closed == host.started
        assert results(host)["MIG-9"].skips == {"turn": 4}
        assert results(host)["MIG-9"].runs == {("gemm_bf16", "ok"): 2}

    def test_a_worker_beside_a_server_stays_and_needs_no_turn(self, tmp_path):
        """Its memory is constant; from its second cycle on it is probed in every one."""
        used = [instance(n, processes=(SERVER,)) for n in (7, 8)]
        host = Host(tmp_path, [PARTITIONED, *used], mig="run")
        for _ in range(4):
            host.cycle()

        assert host.started == [("MIG-7",), ("MIG-8",)]
        assert host.closed == []
        assert results(host)["MIG-7"].runs == {("gemm_bf16", "ok"): 4}
        assert results(host)["MIG-8"].runs == {("gemm_bf16", "ok"): 3}

    def test_values_live_as_long_as_the_turns_take(self, tmp_path):
        """Twenty instances take turns: a value of the last round is 20 minutes old, and still shown."""
        host = Host(tmp_path, [PARTITIONED, *(instance(n) for n in range(20))], mig="run")
        for _ in range(20):
            host.cycle()

        assert all(seen.flops for seen in results(host).values())

    def test_whole_gpus_beside_them_are_probed_together_in_every_cycle(self, tmp_path):
        """They share one worker, as without MIG."""
        devices = [PARTITIONED, instance(7), gpu(1), gpu(2)]
        host = Host(tmp_path, devices, mig="run")
        host.cycle()
        host.cycle()

        assert sorted(host.started) == [
            ("GPU-1", "GPU-2"),
            ("GPU-1", "GPU-2"),
            ("MIG-7",),
            ("MIG-7",),
        ]

    def test_an_instance_has_no_peer(self, tmp_path):
        """Its process sees no other device."""
        host = Host(tmp_path, [PARTITIONED, instance(7), instance(8)], mig="run")
        host.kernels = (PEER,)
        host.cycle()

        assert host.requests == []

    def test_each_has_a_budget_of_its_own(self, tmp_path):
        """What one spends leaves the others' untouched."""
        host = Host(tmp_path, [PARTITIONED, instance(7), instance(8)], mig="run")
        host.script.append(Ending(share=1.0))
        host.cycle()
        first = results(host)["MIG-7"].gpu_seconds
        host.cycle(after=1.0)

        assert first == pytest.approx(0.95 / 60)
        assert results(host)["MIG-8"].runs == {("gemm_bf16", "ok"): 1}
        assert results(host)["MIG-7"].gpu_seconds == first


class TestReconfiguration:
    def test_removed_series_are_not_shown(self, tmp_path):
        """Its GPU answers and does not list it: no results, no skips, no ghost."""
        host = Host(tmp_path, [PARTITIONED, instance(7), instance(8)], mig="run")
        host.cycle()
        host.devices = [PARTITIONED, instance(8)]
        host.cycle()

        assert results(host).keys() == {"MIG-8"}

    def test_instances_of_a_lost_or_hung_gpu_are_kept(self, tmp_path):
        """The GPU is lost, or hung: its instance's counters go on, and the cycle is a skip."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        host.cycle()
        host.devices = []
        host.cycle()

        assert results(host)["MIG-7"].runs == {("gemm_bf16", "ok"): 1}
        assert results(host)["MIG-7"].skips == {"no_facts": 1}

    def test_one_that_comes_back_is_compared_with_itself(self, tmp_path):
        """Its counters restart at zero; baseline and bits are those of before."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        for _ in range(5):
            host.cycle()
        host.devices = [PARTITIONED]
        host.cycle()
        host.devices = [PARTITIONED, instance(7)]
        host.script.append(Ending(changes={"run_seconds": (0.00025,) * 7}))
        host.cycle()
        seen = results(host)["MIG-7"]

        assert seen.baseline_ratio == {"gemm_bf16": pytest.approx(0.5)}
        assert seen.runs == {("gemm_bf16", "ok"): 1}

    def test_removing_and_adding_a_device_does_not_enlarge_its_budget(self, tmp_path):
        """What was spent a second ago still counts."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        host.script.append(Ending(share=1.0))
        host.cycle()
        host.devices = [PARTITIONED]
        host.cycle(after=1.0)
        host.devices = [PARTITIONED, instance(7)]
        host.cycle(after=1.0)

        assert results(host)["MIG-7"].skips == {"budget": 1}

    def test_the_same_uuid_for_another_size_is_another_device(self, tmp_path):
        """1g became 3g at once: a new page, and neither the old speed nor the old bits count."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        for _ in range(5):
            host.cycle()
        host.devices = [PARTITIONED, instance(7, "3g.40gb")]
        host.script.append(Ending(changes={"run_seconds": (0.0005,) * 7, "digest": "bb"}))
        seen = host.cycle()

        assert seen.runs == {("gemm_bf16", "ok"): 1}
        assert seen.baseline_ratio == {"gemm_bf16": 1.0}

    def test_a_restart_knows_the_instances_that_were_away(self, tmp_path):
        """Gone when the daemon ended, back when it runs again: the state file has its baseline."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        for _ in range(5):
            host.cycle()
        host.devices = [PARTITIONED]
        host.cycle()
        host.scheduler.close()
        host.boot()
        host.devices = [PARTITIONED, instance(7)]
        host.script.append(Ending(changes={"run_seconds": (0.00025,) * 7}))

        assert host.cycle().baseline_ratio == {"gemm_bf16": pytest.approx(0.5)}

    def test_a_node_that_is_repartitioned_forever_stays_small(self, tmp_path, monkeypatch):
        """Only this many absent instances are remembered, the newest ones."""
        monkeypatch.setattr("probes.device_states.INSTANCES_KEPT", 3)
        host = Host(tmp_path, mig="run")
        for number in range(10):
            host.devices = [PARTITIONED, instance(number)]
            host.cycle()
        saved = saved_probes(StateFile(host.path))

        assert saved.baselines.keys() == {"MIG-6", "MIG-7", "MIG-8", "MIG-9"}
        assert len(results(host)) == 1

    def test_an_instances_charges_expire_after_two_hours(self, tmp_path):
        """Two hours after it was removed its charges limit nothing, and the state file no longer has them."""
        host = Host(tmp_path, [PARTITIONED, instance(7)], mig="run")
        host.cycle()
        host.devices = [PARTITIONED]
        host.cycle()
        assert saved_probes(StateFile(host.path)).charges["MIG-7"]

        host.cycle(after=2 * 3600)

        saved = saved_probes(StateFile(host.path))
        assert not saved.charges["MIG-7"]
        assert saved.baselines["MIG-7"]


class TestEnvironment:
    def test_a_worker_sees_its_instance_and_nothing_else(self):
        """CUDA_VISIBLE_DEVICES is the instance's UUID, in the process that really starts."""
        (seven,) = [instance(7)]
        environment = worker_environment([seven.uuid], 1)
        worker = WorkerProcess(
            (Device(kind="cuda", key="0"),),
            [seven.uuid],
            ProbeConfig(start_deadline_seconds=20),
            command=_fake("environment"),
        )
        try:
            worker.start()
            seen = worker.describe(0).versions
        finally:
            worker.close()

        assert environment["CUDA_VISIBLE_DEVICES"] == "MIG-7"
        assert seen == "MIG-7"

    def test_two_instances_in_one_process_are_refused(self):
        """CUDA would show only the first of them: no probe is better than the wrong one."""
        with pytest.raises(ValueError, match="one MIG instance"):
            real_worker([instance(7), instance(8)], ProbeConfig())


class TestByHand:
    def test_an_instance_is_named_by_its_uuid(self):
        """Without a name it is left out; the GPU's index means the GPU."""
        devices = [PARTITIONED, instance(7), gpu(1)]

        assert select_devices(devices, None) == [PARTITIONED, gpu(1)]
        assert select_devices(devices, ["MIG-7"]) == [instance(7)]
        assert select_devices(devices, ["0"]) == [PARTITIONED]

    def test_one_at_a_time(self):
        """Two in one process are impossible; the message says what to do."""
        with pytest.raises(ProbeError, match="one at a time"):
            select_devices([instance(7), instance(8)], ["MIG-7", "MIG-8"])

    def test_the_partitioned_gpu_points_to_its_instances(self):
        """Probing the GPU as one is refused with the way to its instances."""
        config = load_config(ConfigOrigin(file=None, flags={}, environment={}))

        with pytest.raises(ProbeError, match="name one of its instances"):
            check_device(PARTITIONED, config)
        check_device(instance(7), config)


def _fake(mode):
    return (sys.executable, "-P", str(FAKE), mode)
