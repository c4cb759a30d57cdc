"""The document: what it says about devices in every state, and in which order."""

from dataclasses import replace

import msgspec
import pytest

from exporter.device_state import UNKNOWN, DeviceState, SourceHealth, XidCounts
from exporter.inference.snapshot import WorkloadsSnapshot
from exporter.status.document import Device, Status
from exporter.status.page import card, render_page
from exporter.web.http import Request
from probes.protocol import Outcome
from probes.records import ProbesSnapshot
from tests.status.examples import (
    COARSE,
    DECODE,
    HOT,
    IDLE,
    PREFILL,
    Machine,
    cpu,
    fleet,
    gpu,
    held,
    probed,
    served,
)


def status_of(machine: Machine) -> Status:
    machine.now += 1.0
    return machine.service.status()


def device_of(machine: Machine, index: str = "0") -> Device:
    return next(device for device in status_of(machine).devices if device.gpu == index)


def kinds(device: Device) -> list[str]:
    return [finding.kind for finding in device.findings]


@pytest.fixture
def machine() -> Machine:
    """Two H100s that decode for two minutes."""
    machine = Machine()
    for index in range(2):
        machine.add(gpu(index))
    machine.run(120, lambda _index, _now: DECODE, step=1.0)
    return machine


class TestAttainable:
    """A device whose work is not counted: its headline is what the probes measured."""

    @pytest.fixture
    def processor(self) -> Machine:
        """Two cores without counters, half busy, whose probes measured 300 GFLOP/s and 40 GB/s."""
        machine = Machine()
        machine.add(cpu())
        machine.run(120, {"cpu0": COARSE}, step=1.0)
        results = replace(
            probed(0),
            device="cpu0",
            uuid="CPU-0",
            flops={"fp32": 300e9, "fp64": 150e9},
            bandwidth_bytes_per_second={("device", ""): 40e9},
            mismatches={},
        )
        machine.probes = ProbesSnapshot(True, False, (results,))
        return machine

    def test_the_headline_is_the_probe_in_the_headline_precision(self, processor: Machine) -> None:
        """300 of 345.6 GFLOP/s are 86.8 %."""
        could = device_of(processor, "cpu0").attainable

        assert could is not None
        assert (could.precision, could.flops) == ("fp32", 300e9)
        assert could.peak_ratio == pytest.approx(0.868, abs=1e-3)
        assert could.bandwidth_bytes_per_second == 40e9

    def test_the_host_shows_it_too(self, processor: Machine) -> None:
        """One processor: the sum is its own value."""
        host = status_of(processor).host

        assert host.attainable_flops == {"fp32": 300e9}
        assert host.attainable_bandwidth_bytes_per_second == 40e9

    def test_the_page_shows_it_with_busy_and_idle_time(self, processor: Machine) -> None:
        """And nothing is reported as unknown."""
        page = render_page(status_of(processor))

        assert (
            "300\N{NARROW NO-BREAK SPACE}GFLOP/s" in page or "300\N{NO-BREAK SPACE}GFLOP/s" in page
        )
        assert "fp32, measured by a probe, 87" in page
        assert "</i>busy" in page
        assert "</i>idle" in page
        assert "</i>unknown" not in page

    def test_without_a_fresh_probe_there_is_none(self, processor: Machine) -> None:
        """Nothing is claimed."""
        processor.probes = ProbesSnapshot(True, False, ())

        assert device_of(processor, "cpu0").attainable is None

    def test_missing_values_of_a_busy_processor_are_explained(self, processor: Machine) -> None:
        """Its copies were contended: FLOPS are there, and the sentence says why bandwidth is not."""
        measured = processor.probes.devices[0]
        runs: dict[tuple[str, Outcome], int] = {
            ("gemm_fp32", "contended"): 1,
            ("gemm_fp32", "ok"): 1,
            ("copy_device", "contended"): 3,
        }
        results = replace(measured, bandwidth_bytes_per_second={}, runs=runs)
        processor.probes = ProbesSnapshot(True, False, (results,))
        said = [f.text for f in device_of(processor, "cpu0").findings if f.kind == "not_probed"]

        assert len(said) == 1
        assert said[0].startswith("memory bandwidth not measured: other programs use the device")

    def test_the_processors_own_count_is_shown_as_well(self, processor: Machine) -> None:
        """30 GFLOP/s in fp32 and 5 in fp64 for a minute: 35 executed, and no share of fp32's peak."""
        load = replace(COARSE, counted={"fp32": 30e9, "fp64": 5e9})
        processor.run(70, {"cpu0": load}, step=1.0)
        device = device_of(processor, "cpu0")
        page = render_page(status_of(processor))

        assert device.flops.executed_flops == pytest.approx(35e9)
        assert device.flops.achieved_flops is None
        assert "executed 35.0\N{NO-BREAK SPACE}GFLOP/s in the last minute" in page

    def test_a_gpu_whose_work_is_counted_keeps_its_headline(self, machine: Machine) -> None:
        """Its actual rate comes before its possible rate."""
        machine.probes = ProbesSnapshot(True, False, (probed(0), probed(1)))

        assert status_of(machine).host.attainable_flops == {}


class TestFlops:
    def test_achieved_against_peak(self, machine: Machine) -> None:
        """118 TFLOP/s of the data sheet's 989.4 are 0.119."""
        flops = device_of(machine).flops

        assert flops.achieved_flops == pytest.approx(118e12)
        assert flops.peak_flops == pytest.approx(989.4e12, rel=1e-3)
        assert flops.utilization_ratio == pytest.approx(0.1193, abs=1e-3)

    def test_the_host_sums_its_devices(self, machine: Machine) -> None:
        """Twice 118 TFLOP/s and 455 W."""
        host = status_of(machine).host

        assert host.achieved_flops["bf16"] == pytest.approx(236e12)
        assert host.power_watts == 910

    def test_mig_instances_are_not_counted_twice(self) -> None:
        """A cut GPU counts by its parts where it does not count its own work, and once in all else."""
        machine = Machine()
        machine.add(gpu(0))
        machine.add(gpu(0, mig="1"))
        machine.add(gpu(0, mig="2"))
        loads = {"0": COARSE, "01": DECODE, "02": DECODE}
        machine.run(60, loads, step=1.0)
        host = status_of(machine).host

        assert host.achieved_flops["bf16"] == pytest.approx(236e12)
        assert host.peak_flops["bf16"] == pytest.approx(989.4e12, rel=1e-3)
        assert host.power_watts == 120

    def test_a_processor_has_a_peak_but_no_invented_flops(self) -> None:
        """Where work is not counted, none is claimed."""
        machine = Machine()
        machine.add(cpu())
        machine.run(60, {"cpu0": COARSE})
        device = device_of(machine, "cpu0")

        assert device.flops.achieved_flops is None
        assert device.flops.peak_flops == 345.6e9
        assert kinds(device) == ["coarse"]


class TestTrouble:
    def test_a_lost_gpu_shows_no_old_readings(self, machine: Machine) -> None:
        """Unreadable values are absent; the reason and the past hour are shown."""
        machine.lose("1")
        device = device_of(machine, "1")

        assert (device.up, device.health, kinds(device)) == (False, "critical", ["lost"])
        assert "the GPU is lost" in device.findings[0].text
        assert (device.power_watts, device.clock.hertz, device.flops.achieved_flops) == (None,) * 3
        assert device.hour is not None

    def test_a_hung_gpu_is_not_called_up(self, machine: Machine) -> None:
        """Its last snapshot was good, and is too old to be shown."""
        machine.hung = frozenset({machine.devices["0"].identity.key})
        device = device_of(machine)

        assert (device.up, device.health, kinds(device)) == (False, "critical", ["hung"])
        assert device.power_watts is None

    def test_stale_readings_are_not_shown(self, machine: Machine) -> None:
        """Four seconds is this device's limit."""
        machine.now += 5
        device = device_of(machine)

        assert (device.up, kinds(device)) == (False, ["stale"])

    def test_a_device_without_an_answer_yet(self) -> None:
        """The driver has not identified it."""
        machine = Machine()
        waiting = replace(gpu(0), up=False, sources={}, peaks=None, precision=None)
        machine.add(replace(waiting, identity=replace(waiting.identity, uuid=UNKNOWN)))

        assert kinds(device_of(machine)) == ["waiting"]

    def test_a_gpu_that_comes_back_is_fine_again(self, machine: Machine) -> None:
        """Its findings show no trace of the failure."""
        before = machine.devices["1"]
        machine.lose("1")
        machine.devices["1"] = before
        machine.run(5, {"0": DECODE, "1": DECODE}, step=1.0)

        assert device_of(machine, "1").health == "ok"

    def test_a_source_that_went_silent(self, machine: Machine) -> None:
        """NVML answers, GPM has not for a minute."""
        sources = dict(machine.devices["0"].sources)
        sources["gpm_cycles"] = SourceHealth(False, machine.unix() - 60, {"unknown": 3})
        machine.change("0", sources=sources)
        device = device_of(machine)

        assert device.health == "warning"
        assert kinds(device)[0] == "source_down"

    def test_new_ecc_errors_count_from_the_first_look(self, machine: Machine) -> None:
        """A board's two old errors are history; the third is reported."""
        slow = machine.devices["0"].slow
        assert slow is not None
        machine.change("0", slow=replace(slow, ecc_errors={"corrected": 2.0, "uncorrected": 1.0}))
        device = device_of(machine)

        assert device.events.new_ecc_errors == {"corrected": 0.0, "uncorrected": 1.0}
        assert kinds(device)[0] == "ecc_uncorrected"

    def test_xid_recovery_action_links_and_lanes(self, machine: Machine) -> None:
        """Each health reading reaches the findings."""
        before = machine.devices["0"]
        assert before.slow is not None
        assert before.fast is not None
        machine.change(
            "0",
            xids=XidCounts({63: 1}, {63: machine.unix() - 5}),
            fast=replace(before.fast, recovery_action=1),
            slow=replace(
                before.slow,
                nvlink_up={"0": True, "1": False},
                pcie_link_width=8,
                row_remap_pending=True,
            ),
        )
        found = kinds(device_of(machine))

        assert found[0] == "recovery_action"
        assert {"xid", "nvlink_down", "pcie_narrow", "row_remap_pending"} <= set(found)

    def test_heat_in_the_last_hour(self) -> None:
        """HOT holds the clock at 1,005 MHz for all of the ten minutes."""
        machine = Machine()
        machine.add(gpu(0))
        machine.run(600, {"0": HOT}, step=2.0)
        device = device_of(machine)

        assert (
            "clock held down to 1,005 of 1,980\xa0MHz by heat for 100\xa0% of the last 10 minutes"
            in [finding.text for finding in device.findings]
        )
        assert device.health == "warning"


class TestOrder:
    def test_devices_with_problems_come_first(self) -> None:
        """Lost ones, then those with warnings, then the others by index."""
        status = fleet(8).service.status()

        assert [device.gpu for device in status.devices] == ["3", "4", "5", "0", "1", "2", "6", "7"]
        assert [d.health for d in status.devices[:3]] == ["critical", "warning", "warning"]

    def test_the_worst_sentence_is_the_first(self) -> None:
        """Critical findings before warnings before explanations, on every device."""
        order = ["critical", "warning", "info"]
        for device in fleet(8).service.status().devices:
            ranks = [order.index(finding.severity) for finding in device.findings]
            assert ranks == sorted(ranks)


class TestCompany:
    def test_models_and_pods_stand_with_their_gpus(self, machine: Machine) -> None:
        """By UUID; a job that names an index means that device alone."""
        machine.workloads = served([0])
        machine.holders = held([1])
        first, second = device_of(machine, "0"), device_of(machine, "1")

        assert [model.model for model in first.models] == ["meta-llama/Llama-3.1-70B-Instruct"]
        assert [holder.job for holder in first.holders] == ["4711"]
        assert [holder.pod for holder in second.holders] == ["chat-7d9f8b5c4-x2x9p"]
        assert second.models == []

    def test_what_mfu_leaves_out_is_stated_beside_it(self, machine: Machine) -> None:
        """A vision tower's work is in no engine's metrics."""
        (workload, _down) = served([0]).workloads
        (model,) = workload.models
        seeing = replace(model, not_counted=("vision tower",))
        machine.workloads = WorkloadsSnapshot((replace(workload, models=(seeing,)),))

        shown = card(device_of(machine, "0"), 0.0, full=True).replace("\u202f", " ")

        assert "vision tower not counted)" in shown

    def test_unanswering_engines_are_a_finding_of_the_host(self, machine: Machine) -> None:
        """The summary knows which engine is down, and why."""
        machine.workloads = served([0])
        down = [engine for engine in status_of(machine).host.workloads if not engine.up]

        assert [(engine.workload, engine.reason) for engine in down] == [
            ("embeddings", "connection")
        ]

    def test_probes_stand_beside_peak_and_baseline(self, machine: Machine) -> None:
        """735 of 989.4 TFLOP/s are 0.743; 0.82 of the baseline is a warning."""
        machine.probes = ProbesSnapshot(True, False, (probed(0, ratio=0.82), probed(1)))
        sick, fine = device_of(machine, "0"), device_of(machine, "1")
        bf16 = next(probe for probe in fine.probes if probe.kernel == "gemm_bf16")

        assert bf16.peak_ratio == pytest.approx(0.743, abs=1e-3)
        assert (sick.health, fine.health) == ("warning", "ok")
        assert kinds(sick)[0] == "slower_than_baseline"

    def test_wrong_results_are_critical(self, machine: Machine) -> None:
        """However fast the device is."""
        machine.probes = ProbesSnapshot(True, False, (probed(0, mismatches=1),))

        assert kinds(device_of(machine))[0] == "wrong_results"

    def test_siblings_are_of_the_same_model(self) -> None:
        """One of five at 0.8 falls behind the median of five."""
        machine = Machine()
        for index in range(5):
            machine.add(gpu(index))
        machine.run(5, lambda _index, _now: IDLE, step=1.0)
        slow = replace(probed(0), efficiency_ratio={"bf16": 0.86 * 0.8}, flops={"bf16": 735e12})
        machine.probes = ProbesSnapshot(True, False, (slow, *(probed(i) for i in range(1, 5))))

        assert "slower_than_siblings" in kinds(device_of(machine, "0"))
        assert "slower_than_siblings" not in kinds(device_of(machine, "1"))


class TestJson:
    def test_it_is_what_a_client_reads_back(self) -> None:
        """Decoding the bytes gives the very document."""
        machine = fleet(4)
        answer = machine.service.document(Request("GET", "/api/v1/status", "", {}, "::1"))

        assert answer.content_type == "application/json"
        assert msgspec.json.decode(answer.body, type=Status) == machine.service.status()

    def test_its_version_is_one(self) -> None:
        """Clients look at this first."""
        answer = Machine().service.document(Request("GET", "/api/v1/status", "", {}, "::1"))

        assert msgspec.json.decode(answer.body)["api_version"] == 1

    def test_the_hour_has_sixty_minutes(self, machine: Machine) -> None:
        """Two were watched; the others are null, not zero."""
        hour = device_of(machine).hour
        assert hour is not None

        assert {len(shares) for shares in hour.states.values()} == {60}
        assert hour.states["tensor"].count(None) in (57, 58)

    def test_unknown_values_are_null(self) -> None:
        """A device that was never read shows no zeros."""
        machine = Machine()
        machine.add(replace(gpu(0), up=False))
        answer = machine.service.document(Request("GET", "/api/v1/status", "", {}, "::1"))
        device = msgspec.json.decode(answer.body)["devices"][0]

        assert device["power_watts"] is None
        assert device["flops"]["achieved_flops"] is None
        assert device["memory"]["bandwidth_ratio"] is None


class TestSafety:
    def test_a_failing_snapshot_does_not_affect_sampling(self) -> None:
        """`observe` skips a device that raises an error, and continues with the next."""
        machine = Machine()
        broken = replace(gpu(0), counters=None)
        machine.service.observe(broken)
        machine.add(gpu(0))
        machine.run(10, {"0": PREFILL}, step=1.0)

        assert device_of(machine).minute.seconds == pytest.approx(10.0)

    def test_an_endless_series_of_devices_does_not_fill_the_memory(self) -> None:
        """Beyond 128 devices in an hour, new ones have no history, and all else works."""
        machine = Machine()
        for index in range(200):
            snapshot: DeviceState = replace(gpu(index), at_seconds=machine.now)
            machine.service.observe(snapshot)

        assert len(machine.service._histories) == 128
