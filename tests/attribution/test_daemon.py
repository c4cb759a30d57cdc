"""The whole daemon on simulated GPUs, with a kubelet and a batch system beside it."""

import json
from pathlib import Path

from tests.attribution.kubelet import Claimed, Held, Kubelet
from tests.daemon.process import DaemonProcess
from tests.fake_nvml import H100, H100_1G_10GB, H100_3G_40GB, FakeNvml


def test_pods_and_jobs_stand_in_the_metrics(kubelet: Kubelet, tmp_path: Path):
    """A pod on a GPU, one on a MIG instance, a job by the mapping; then the kubelet restarts."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "0").write_text("4711\n")
    config = (
        "probes: {enabled: false}\n"
        f"kubernetes: {{socket: '{kubelet.path}'}}\n"
        f"hpc: {{job_mapping_dir: '{jobs}'}}\n"
    )
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.set_mig(1, [H100_3G_40GB])
        gpu = fake.gpu(0).uuid
        with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
            instances = daemon.wait_until(
                lambda scrape: scrape.has("flopwatch_gpu_up", mig="1")
            ).series("flopwatch_gpu_up", mig="1")
            ((instance, _up),) = instances.items()
            mig_uuid = dict(instance)["uuid"]
            kubelet.holds(
                Held((f"{gpu}::0", f"{gpu}::1"), pod="chat-0"),
                Held((mig_uuid,), pod="chat-1", resource="nvidia.com/mig-3g.40gb"),
            )
            kubelet.start()

            scrape = daemon.wait_until(lambda s: s.has("flopwatch_gpu_allocation_info"))
            assert scrape.value("flopwatch_gpu_allocation_info", uuid=gpu, pod="chat-0") == 1
            assert scrape.value("flopwatch_gpu_allocation_info", mig="1", pod="chat-1") == 1
            assert scrape.value("flopwatch_gpu_job_info", gpu="0", job="4711") == 1
            assert scrape.value("flopwatch_holder_unknown_devices") == 0

            kubelet.stop()
            kubelet.holds(Held((gpu,), pod="chat-2"))
            kubelet.start()
            daemon.wait_until(
                lambda s: (
                    s.has("flopwatch_gpu_allocation_info", pod="chat-2")
                    and not s.has("flopwatch_gpu_allocation_info", pod="chat-0")
                )
            )


def test_claims_name_gpus_by_their_device_nodes(kubelet: Kubelet, tmp_path: Path):
    """DRA without a device plugin: `gpu-4` is the GPU of /dev/nvidia4, whatever NVML's index of it is.

    The page and the metrics agree about a MIG instance and about the GPU that it is part of.
    """
    kubelet.holds(
        Claimed("gpu-4", pod="whole"),
        Claimed("gpu-5-mig-3g-40gb-9-0", pod="part"),
        Claimed("gpu-6", pod="elsewhere"),
    )
    kubelet.start()
    config = (
        "probes: {enabled: false}\n"
        "sources: {cpu: 'off'}\n"
        f"kubernetes: {{socket: '{kubelet.path}'}}\n"
    )
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.set(0, minor_number=5)
        fake.set(1, minor_number=4)
        fake.set_mig(0, [H100_3G_40GB, H100_1G_10GB])
        with DaemonProcess(tmp_path, config=config, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: len(s.series("flopwatch_gpu_allocation_info")) == 2
            )
            _status, text = daemon.get("/api/v1/status")

    held = {
        (dict(labels)["gpu"], dict(labels).get("mig", "")): dict(labels)["pod"]
        for labels in scrape.series("flopwatch_gpu_allocation_info")
    }
    assert held == {("1", ""): "whole", ("0", "1"): "part"}
    assert scrape.value("flopwatch_holder_unknown_devices") == 1
    shown = {
        (device["gpu"], device.get("mig") or ""): [holder["pod"] for holder in device["holders"]]
        for device in json.loads(text)["devices"]
    }
    # The partitioned GPU has the holders of its instances, and nobody for the rest of it.
    assert sorted(shown.pop(("0", "")), key=str) == [None, "part"]
    assert shown == {("1", ""): ["whole"], ("0", "1"): ["part"], ("0", "7"): []}
