"""The daemon's side: snapshots to facts, probe results to samples."""

import dataclasses

import pytest

from exporter.accounting.peaks import Peaks
from exporter.device_state import DeviceState, SampledHost
from exporter.metrics.probes import SUBJECT, probe_samples
from exporter.readings import DeviceIdentity, FastReading, ProcessUse, SlowReading
from exporter.services import ProbeFacts, ProcessAges
from exporter.state import Parts, build_state
from probes import records
from probes.facts import ProcessFacts


PEAKS = Peaks(
    origin="datasheet",
    model="H100",
    flops={"bf16": 989e12},
    tensor_rate={"bf16": 4096.0, "fp64": 256.0},
    plain_rate={"fp32": 256.0, "fp64": 128.0},
    dram_bytes_per_second=3.35e12,
)


def device(index="0", *, up=True, at=100.0, mig=None, uuid="GPU-0", fast=None, slow=None):
    identity = DeviceIdentity(
        index=index, uuid=uuid, name="H100", sm_count=132, sm_clock_max_hertz=1.98e9, mig=mig
    )
    return DeviceState(
        identity=identity,
        at_seconds=at,
        up=up,
        max_age_seconds=4.0,
        peaks=PEAKS,
        fast=fast or FastReading(at_seconds=at, memory_free_bytes=8e9, event_reasons=0x24),
        slow=slow or SlowReading(at_seconds=at),
    )


def host(*devices, hung=()):
    return build_state(Parts(host=SampledHost(devices, frozenset(hung))), 102.0)


def facts(*devices, **fields):
    return ProbeFacts(lambda: host(*devices, **fields), clock=lambda: 102.0)()


class TestFacts:
    def test_a_gpu(self):
        """Everything that the gates and the judgement need."""
        slow = SlowReading(
            at_seconds=100.0,
            compute_mode="exclusive_process",
            mig_enabled=False,
            pcie_link_generation_max=5,
            pcie_link_width=16,
        )
        (seen,) = facts(device(slow=slow))

        assert (seen.key, seen.uuid, seen.kind) == ("0", "GPU-0", "cuda")
        assert seen.free_memory_bytes == 8_000_000_000
        assert seen.compute_mode == "exclusive_process"
        assert seen.clock_event_reasons == {"sw_power_cap", "sw_thermal_slowdown"}
        assert seen.sm_clock_max_hertz == 1.98e9
        assert seen.peak_dram_bandwidth_bytes_per_second == 3.35e12
        assert seen.peak_pcie_bandwidth_bytes_per_second == pytest.approx(63e9, rel=0.01)

    def test_rates_are_the_tensor_pipes_where_it_has_the_precision(self):
        """fp64 GEMMs run on the tensor pipe of an H100, fp32 ones cannot."""
        (seen,) = facts(device())

        assert seen.flop_per_clock_per_sm == {"bf16": 4096.0, "fp64": 256.0, "fp32": 256.0}

    def test_the_host_processor(self):
        """Known by its index."""
        (seen,) = facts(device("cpu0", uuid="CPU-0"))

        assert seen.kind == "cpu"

    def test_mig_mode_belongs_to_the_gpu(self):
        """The instance is not a device to probe, its GPU says that it is partitioned."""
        partitioned = device(slow=SlowReading(at_seconds=100.0, mig_enabled=True))
        (seen,) = facts(partitioned, device(mig="7", uuid="MIG-7"))

        assert seen.mig

    def test_devices_without_information_are_left_out(self):
        """Down, hung, stale by more than 4 s, or not yet named."""
        assert facts(device(up=False)) == []
        assert facts(device(), hung=(device().identity.key,)) == []
        assert facts(device(at=97.9)) == []
        assert facts(device(uuid="unknown")) == []

    def test_unknown_free_memory_stays_unknown(self):
        """It is not zero."""
        (seen,) = facts(device(fast=FastReading(at_seconds=100.0)))

        assert seen.free_memory_bytes is None

    def test_processes_come_with_their_age(self):
        """A process that /proc does not show counts as new when first seen."""
        slow = SlowReading(at_seconds=100.0, processes=(ProcessUse(2**30, None),))
        (seen,) = facts(device(slow=slow))

        assert seen.processes == (ProcessFacts(2**30, 0.0),)


class TestAges:
    @pytest.fixture
    def proc(self, tmp_path, monkeypatch):
        """A /proc 1000 s after boot, in which process 7 started at 400 s."""
        monkeypatch.setattr("os.sysconf", lambda name: 100)
        (tmp_path / "uptime").write_text("1000.00 1.00\n")
        self.start(tmp_path, 7, 400)
        return tmp_path

    def start(self, proc, pid, at_seconds):
        (proc / str(pid)).mkdir()
        fields = " ".join(["S", *["0"] * 18, str(at_seconds * 100), "0"])
        (proc / str(pid) / "stat").write_text(f"{pid} (a (server) x) {fields}")

    def test_an_older_process_has_the_age_that_proc_reports(self, proc):
        """600 s, when first seen."""
        assert ProcessAges(proc).ages("GPU-0", [7], 50.0) == (ProcessFacts(7, 600.0),)

    def test_one_that_appears_is_new_on_the_gpu_however_old_it_is(self, proc):
        """A server may run for an hour before it opens its GPU and sizes its cache."""
        ages = ProcessAges(proc)
        ages.ages("GPU-0", [], 50.0)

        assert ages.ages("GPU-0", [7], 60.0) == (ProcessFacts(7, 0.0),)
        assert ages.ages("GPU-0", [7], 90.0) == (ProcessFacts(7, 30.0),)

    def test_one_that_proc_does_not_show_is_as_old_as_its_first_sight(self, proc):
        """In a container."""
        ages = ProcessAges(proc)
        ages.ages("GPU-0", [8], 50.0)

        assert ages.ages("GPU-0", [8], 400.0) == (ProcessFacts(8, 350.0),)

    def test_one_that_comes_back_is_new_again(self, proc):
        """It may be another one under the same number."""
        ages = ProcessAges(proc)
        ages.ages("GPU-0", [8], 50.0)
        ages.ages("GPU-0", [], 60.0)

        assert ages.ages("GPU-0", [8], 70.0) == (ProcessFacts(8, 0.0),)

    def test_another_process_under_the_same_number_is_new(self, proc):
        """Process 7 has ended, and its number was given to one that started at 990 s."""
        ages = ProcessAges(proc)
        ages.ages("GPU-0", [7], 50.0)
        (proc / "7" / "stat").unlink()
        (proc / "7").rmdir()
        self.start(proc, 7, 990)

        assert ages.ages("GPU-0", [7], 60.0) == (ProcessFacts(7, 0.0),)

    def test_each_gpu_is_seen_separately(self, proc):
        """Opening a second GPU is new there."""
        ages = ProcessAges(proc)
        ages.ages("GPU-0", [8], 50.0)
        ages.ages("GPU-1", [], 50.0)

        assert ages.ages("GPU-1", [8], 70.0) == (ProcessFacts(8, 0.0),)

    def test_devices_that_are_gone_are_forgotten(self, proc):
        """MIG instances are recreated for months; one that comes back is seen for the first time."""
        ages = ProcessAges(proc)
        ages.ages("MIG-1", [8], 50.0)
        ages.ages("GPU-0", [8], 50.0)
        ages.forget_all_but({"GPU-0"})

        assert ages.ages("MIG-1", [8], 70.0) == (ProcessFacts(8, 0.0),)
        assert ages.ages("GPU-0", [8], 70.0) == (ProcessFacts(8, 20.0),)


FULL = records.ProbeResults(
    device="0",
    uuid="GPU-0",
    flops={"bf16": 8e14},
    efficiency_ratio={"bf16": 0.84},
    sm_clock_hertz=1.755e9,
    bandwidth_bytes_per_second={("device", ""): 2.6e12, ("peer", "1"): 3e11},
    launch_latency_seconds=4e-6,
    baseline_ratio={"gemm_bf16": 0.99},
    tenant_busy_ratio=(0.33, 0.5),
    mismatches={"gemm_bf16": 0},
    runs={("gemm_bf16", "ok"): 3},
    skips={"budget": 2},
    gpu_seconds=0.5,
    last_success_seconds={"gemm_bf16": 1.7e9},
    worker_restarts=1,
    worker_memory_bytes=5 * 10**8,
    worker_pid=1,
    failures_in_a_row={"gemm_bf16": 2},
    coverage_ratio=0.75,
)


class TestPoints:
    def samples(self, *devices):
        return [sample for device in devices for sample in probe_samples(device)]

    def test_every_family_of_the_contract_has_its_samples(self):
        """With exactly the labels that the catalogue declares."""
        samples = self.samples(FULL)

        assert {point.family for point in samples} == set(SUBJECT.families)
        for point in samples:
            assert tuple(name for name, _ in point.labels) == point.family.label_names

    def test_values(self):
        """As measured, in base units."""
        values = {
            (point.family.name, *(value for _, value in point.labels[2:])): point.value
            for point in self.samples(FULL)
        }

        assert values["flopwatch_probe_flops", "bf16"] == 8e14
        assert values["flopwatch_probe_bandwidth_bytes_per_second", "peer", "1"] == 3e11
        assert values["flopwatch_probe_tenant_busy_ratio", "high"] == 0.5
        assert values["flopwatch_probe_runs_total", "gemm_bf16", "ok"] == 3
        assert values["flopwatch_probe_mismatches_total", "gemm_bf16"] == 0
        assert values["flopwatch_probe_failures_in_a_row", "gemm_bf16"] == 2
        assert values["flopwatch_probe_worker_memory_bytes",] == 5e8

    def test_a_device_in_one_series(self):
        """The lowest ratio and the newest success of GEMMs and device copy, and the wrong results of all kernels."""
        ratios = {
            "gemm_bf16": 0.99,
            "copy_device": 0.85,
            "copy_host_to_device": 0.5,
            "launch": 0.4,
        }
        times = {"gemm_bf16": 1.7e9, "copy_device": 1.8e9, "launch": 1.9e9}
        several = dataclasses.replace(
            FULL,
            baseline_ratio=ratios,
            last_success_seconds=times,
            mismatches={"gemm_bf16": 1, "copy_host_to_device": 2},
            instance="3",
        )
        samples = [point for point in self.samples(several) if len(point.labels) == 3]
        values = {point.family.name: point.value for point in samples}

        assert values["flopwatch_probe_lowest_baseline_ratio"] == 0.85
        assert values["flopwatch_probe_newest_success_timestamp_seconds"] == 1.8e9
        assert values["flopwatch_probe_wrong_results_total"] == 3
        assert {point.labels for point in samples} == {
            (("gpu", "0"), ("uuid", "GPU-0"), ("mig", "3"))
        }

    def test_kernels_that_depend_on_the_host_are_not_used_to_judge_the_gpu(self):
        """Where neither a GEMM nor the device copy ran, there is no lowest ratio and no newest success."""
        host_alone = dataclasses.replace(
            FULL, baseline_ratio={"launch": 0.4}, last_success_seconds={"launch": 1.9e9}
        )
        names = {point.family.name for point in self.samples(host_alone)}

        assert "flopwatch_probe_lowest_baseline_ratio" not in names
        assert "flopwatch_probe_newest_success_timestamp_seconds" not in names

    def test_unknown_values_are_not_shown(self):
        """Except for the two counters that are 0 from the start."""
        empty = records.DeviceRecord("0", "GPU-0").snapshot(0.0, 60.0)

        assert {point.family.name: point.value for point in self.samples(empty)} == {
            "flopwatch_probe_gpu_seconds_total": 0.0,
            "flopwatch_probe_worker_restarts_total": 0.0,
        }
