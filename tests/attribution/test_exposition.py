"""Holders as samples: info series to join, and labels by option."""

from dataclasses import replace

from exporter.attribution.snapshot import (
    Allocation,
    DeviceKey,
    HoldersSnapshot,
    JobUse,
    SourceState,
)
from exporter.metrics import flops as gpu_metrics
from exporter.metrics.family import Family, Sample
from exporter.metrics.holders import (
    GPU_ALLOCATION_INFO,
    GPU_JOB_INFO,
    holder_labels,
    holder_samples,
)
from exporter.state import State
from tests.attribution.hosts import MIXED


def allocation(key: DeviceKey, pod: str = "chat-0") -> Allocation:
    return Allocation(key, "serving", pod, "engine")


def points_of(family: Family, snapshot: HoldersSnapshot) -> list[dict[str, str]]:
    return [
        dict(p.labels)
        for p in holder_samples(replace(MIXED, holders=snapshot))
        if p.family is family
    ]


class TestInfoSeries:
    def test_a_pod_on_a_whole_gpu(self):
        """The series carries the GPU's own labels and the holder's names, and its value is 1."""
        snapshot = HoldersSnapshot(allocations=(allocation(DeviceKey(uuid="GPU-aa")),))

        assert list(holder_samples(replace(MIXED, holders=snapshot))) == [
            Sample(
                GPU_ALLOCATION_INFO,
                (
                    ("gpu", "0"),
                    ("uuid", "GPU-aa"),
                    ("namespace", "serving"),
                    ("pod", "chat-0"),
                    ("container", "engine"),
                ),
                1.0,
            )
        ]

    def test_a_mig_instance_has_the_label_mig(self):
        """By its own UUID, by its GPU's and instance, or by index and instance: one device."""
        keys = (
            DeviceKey(uuid="MIG-cc"),
            DeviceKey(uuid="GPU-bb", mig="3"),
            DeviceKey(index="1", mig="3"),
        )
        for key in keys:
            (labels,) = points_of(
                GPU_ALLOCATION_INFO, HoldersSnapshot(allocations=(allocation(key),))
            )
            assert (labels["gpu"], labels["uuid"], labels["mig"]) == ("1", "MIG-cc", "3")

    def test_time_slicing_is_a_series_per_holder(self):
        """Two pods on one GPU are two series."""
        key = DeviceKey(uuid="GPU-aa")
        snapshot = HoldersSnapshot(allocations=(allocation(key, "one"), allocation(key, "two")))

        assert [labels["pod"] for labels in points_of(GPU_ALLOCATION_INFO, snapshot)] == [
            "one",
            "two",
        ]

    def test_one_holder_by_two_names_is_one_series(self):
        """A job that both the mapping and the processes name would be an invalid exposition twice."""
        snapshot = HoldersSnapshot(
            jobs=(JobUse(DeviceKey(index="0"), "42"), JobUse(DeviceKey(uuid="GPU-aa"), "42"))
        )

        assert points_of(GPU_JOB_INFO, snapshot) == [
            {"gpu": "0", "uuid": "GPU-aa", "hpc_job": "42", "job": "42"}
        ]

    def test_a_held_device_that_is_not_visible_is_counted(self):
        """Held GPUs that are hidden from the exporter have no series, but are counted."""
        snapshot = HoldersSnapshot(
            allocations=(allocation(DeviceKey(uuid="GPU-zz")),),
            jobs=(JobUse(DeviceKey(index="9"), "1"),),
            sources={"pod_resources": SourceState(True, 5.0)},
        )

        values = {p.family.name: p.value for p in holder_samples(replace(MIXED, holders=snapshot))}

        assert values == {
            "flopwatch_holder_source_up": 1.0,
            "flopwatch_holder_source_last_success_timestamp_seconds": 5.0,
            "flopwatch_holder_unknown_devices": 2.0,
        }

    def test_a_source_that_is_down_shows_its_reasons(self):
        """Up is 0, the last success stays, and each reason is counted."""
        snapshot = HoldersSnapshot(
            sources={"pod_resources": SourceState(False, 5.0, {"timeout": 2, "absent": 1})}
        )

        samples = {
            (p.family.name, p.labels[1:]): p.value
            for p in holder_samples(replace(MIXED, holders=snapshot))
        }

        assert samples[("flopwatch_holder_source_up", ())] == 0.0
        name = "flopwatch_holder_source_errors_total"
        assert samples[(name, (("reason", "timeout"),))] == 2.0
        assert samples[(name, (("reason", "absent"),))] == 1.0

    def test_before_the_driver_answers_no_device_counts_as_unknown(self):
        """While devices are still being discovered, none is reported as hidden."""
        pending = State(at_seconds=0.0, pending=True)
        snapshot = HoldersSnapshot(
            allocations=(allocation(DeviceKey(uuid="GPU-aa")),),
            sources={"pod_resources": SourceState(True)},
        )

        names = [
            sample.family.name for sample in holder_samples(replace(pending, holders=snapshot))
        ]

        assert names == ["flopwatch_holder_source_up"]


class TestLabels:
    FLOPS = Sample(
        gpu_metrics.ACHIEVED_FLOPS, (("gpu", "0"), ("uuid", "GPU-aa"), ("precision", "bf16")), 1e12
    )
    CHOSEN = frozenset({"flopwatch_achieved_flops"})

    def labelled(self, snapshot: HoldersSnapshot, sample: Sample = FLOPS) -> tuple[str, ...]:
        labels = holder_labels(replace(MIXED, holders=snapshot), self.CHOSEN)
        added = labels.added_to(sample.family, sample.labels)
        return tuple(f"{name}={value}" for name, value in added)

    def test_a_sole_pod_and_job_are_put_on_the_series(self):
        """Both pod and job labels, when there is one of each."""
        snapshot = HoldersSnapshot(
            allocations=(allocation(DeviceKey(uuid="GPU-aa")),),
            jobs=(JobUse(DeviceKey(index="0"), "42"),),
        )

        assert self.labelled(snapshot) == (
            "namespace=serving",
            "pod=chat-0",
            "container=engine",
            "hpc_job=42",
        )

    def test_a_shared_gpu_gets_no_pod(self):
        """A series cannot belong to two pods, and twice would count its FLOPS twice."""
        key = DeviceKey(uuid="GPU-aa")
        snapshot = HoldersSnapshot(
            allocations=(allocation(key, "one"), allocation(key, "two")), jobs=(JobUse(key, "42"),)
        )

        assert self.labelled(snapshot) == ("hpc_job=42",)

    def test_other_families_and_devices_stay_as_they_are(self):
        """Only the chosen families of held devices change."""
        snapshot = HoldersSnapshot(allocations=(allocation(DeviceKey(uuid="GPU-bb")),))
        other = Sample(gpu_metrics.SM_ACTIVE_RATIO, (("gpu", "1"), ("uuid", "GPU-bb")), 0.5)

        assert self.labelled(snapshot) == ()
        assert self.labelled(snapshot, other) == ()

    def test_without_chosen_families_series_stay_as_they_are(self):
        """The default adds nothing."""
        snapshot = HoldersSnapshot(allocations=(allocation(DeviceKey(uuid="GPU-aa")),))
        labels = holder_labels(replace(MIXED, holders=snapshot), frozenset())

        assert labels.added_to(self.FLOPS.family, self.FLOPS.labels) == ()

    def test_a_series_that_names_the_holder_has_no_label_twice(self):
        """The info series of an allocation keeps its own namespace, pod and container."""
        snapshot = HoldersSnapshot(allocations=(allocation(DeviceKey(uuid="GPU-aa")),))
        chosen = frozenset({GPU_ALLOCATION_INFO.name})
        labels = holder_labels(replace(MIXED, holders=snapshot), chosen)

        assert labels.added_to(GPU_ALLOCATION_INFO, (("gpu", "0"), ("uuid", "GPU-aa"))) == ()
