"""Probes of MIG instances through the real daemon: which process is started for which instance."""

from pathlib import Path

from exporter.accounting.mig import instance_peaks
from exporter.accounting.peaks import find_peaks
from exporter.device_state import DeviceState, SampledHost
from exporter.readings import DeviceIdentity, FastReading, ProcessUse, SlowReading
from exporter.services import ProbeFacts
from exporter.state import Parts, build_state
from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, H100_1G_10GB, H100_2G_20GB, H100_3G_40GB, FakeNvml


GIB = 2**30
SKIPS = "flopwatch_probe_skips_total"
INSTANCES = (H100_3G_40GB, H100_2G_20GB, H100_1G_10GB)
# Takes the place of torch: records which devices the worker's process may see, then fails.
TORCH = """
import os
import sys

if "probes.worker" in sys.argv[0] or sys.argv[0].endswith("worker.py"):
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
raise ModuleNotFoundError("no torch here", name="torch")
"""


def config(mig: str) -> str:
    return f"""
sampling: {{interval: 250ms, slow_interval: 1s}}
sources: {{cpu: "off", dcgm: "off"}}
probes: {{interval: 1s, hold_off: 0s, mig: {mig}}}
"""


def environment(fake: FakeNvml, folder: Path) -> dict[str, str]:
    """The environment that makes a worker record what it sees."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    return {**fake.env, "PYTHONPATH": str(folder), "SEEN": str(folder / "seen")}


def skipped(scrape: Scrape) -> dict[str, set[str]]:
    """Reasons of skips by `mig`, "" for the GPU itself."""
    found: dict[str, set[str]] = {}
    for labels in scrape.series(SKIPS):
        named = dict(labels)
        found.setdefault(named.get("mig", ""), set()).add(named["reason"])
    return found


def test_each_instance_gets_a_process_that_sees_it_alone(tmp_path: Path) -> None:
    """Three instances in turn: CUDA_VISIBLE_DEVICES is one MIG UUID, and each has its turn."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_mig(INSTANCES)
        variables = environment(fake, tmp_path)
        with DaemonProcess(tmp_path, config=config("run"), environment=variables) as daemon:
            seen = tmp_path / "seen"
            daemon.wait_for(lambda: seen.exists() and len(set(seen.read_text().split())) == 3)
            scrape = daemon.wait_until(lambda s: len(skipped(s)) == 3)
            uuids = {
                dict(labels)["mig"]: dict(labels)["uuid"]
                for labels in scrape.series("flopwatch_gpu_info")
                if "mig" in dict(labels)
            }

    assert set(seen.read_text().split()) == set(uuids.values())
    assert all(uuid.startswith("MIG-") and "," not in uuid for uuid in uuids.values())
    reasons = skipped(scrape)
    assert reasons.keys() == {"1", "3", "7"}
    assert {"torch_missing", "turn"} <= set().union(*reasons.values())
    for labels in scrape.series(SKIPS):
        named = dict(labels)
        assert (named["gpu"], named["uuid"]) == ("0", uuids[named["mig"]])


def test_by_default_no_process_is_started(tmp_path: Path) -> None:
    """A partitioned GPU is skipped as a whole."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_mig(INSTANCES)
        variables = environment(fake, tmp_path)
        with DaemonProcess(tmp_path, config=config("skip"), environment=variables) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SKIPS, reason="mig") >= 3)

    assert not (tmp_path / "seen").exists()
    assert skipped(scrape) == {"": {"mig"}}


def test_an_instance_that_is_gone_leaves_no_series(tmp_path: Path) -> None:
    """The GPU is repartitioned while the daemon runs: old instances' probe series end with them."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_mig(INSTANCES)
        variables = environment(fake, tmp_path)
        with DaemonProcess(tmp_path, config=config("run"), environment=variables) as daemon:
            daemon.wait_until(lambda s: skipped(s).keys() == {"1", "3", "7"})
            fake.gpu(0).set_mig([H100_2G_20GB])
            daemon.wait_until(lambda s: skipped(s).keys() == {"3"})


def test_facts_of_an_instance() -> None:
    """Size, memory, processes and peaks of its own; clock, heat, compute mode and link of its GPU."""
    gpu = DeviceIdentity(
        index="2",
        uuid="GPU-2",
        name="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        sm_clock_max_hertz=1.98e9,
        memory_size_bytes=80 * GIB,
    )
    cut = DeviceIdentity(
        index="2",
        uuid="MIG-7",
        name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        compute_capability=(9, 0),
        sm_count=16,
        sm_clock_max_hertz=1.98e9,
        memory_size_bytes=10 * GIB,
        mig="7",
    )
    of_instance = DeviceState(
        identity=cut,
        at_seconds=100.0,
        up=True,
        max_age_seconds=4.0,
        peaks=instance_peaks(gpu, cut),
        fast=FastReading(at_seconds=100.0, memory_free_bytes=6 * GIB),
        slow=SlowReading(at_seconds=100.0, processes=(ProcessUse(2**30, None),)),
    )
    of_gpu = DeviceState(
        identity=gpu,
        at_seconds=100.0,
        up=True,
        max_age_seconds=4.0,
        peaks=find_peaks(gpu),
        fast=FastReading(at_seconds=100.0, event_reasons=0x40),
        slow=SlowReading(
            at_seconds=100.0,
            mig_enabled=True,
            compute_mode="default",
            pcie_link_generation_max=5,
            pcie_link_width=16,
        ),
        instances=(of_instance,),
    )
    host = build_state(Parts(host=SampledHost((of_gpu,))), 102.0)

    whole, seen = ProbeFacts(lambda: host, clock=lambda: 102.0, instances=True)()

    assert (whole.uuid, whole.mig, whole.instance) == ("GPU-2", True, None)
    assert (seen.key, seen.uuid, seen.instance, seen.gpu_uuid) == ("2", "MIG-7", "7", "GPU-2")
    assert not seen.mig
    assert (seen.sm_count, seen.free_memory_bytes) == (16, 6 * GIB)
    # 989.4 TFLOP/s x 16 of 132 SMs; one of eight memory slices of 3350 GB/s.
    assert round(seen.peak_flops["bf16"] / 1e12, 1) == 119.9
    assert seen.peak_dram_bandwidth_bytes_per_second == 3350e9 / 8
    assert seen.clock_event_reasons == {"hw_thermal_slowdown"}
    assert seen.peak_pcie_bandwidth_bytes_per_second is not None
    assert [process.pid for process in seen.processes] == [2**30]
    assert [facts.uuid for facts in ProbeFacts(lambda: host, clock=lambda: 102.0)()] == ["GPU-2"]
