"""An A100 in MIG mode beside a dcgm-exporter, through the real daemon."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.dcgm.server import ALL_FIELDS, DEFAULT_FIELDS, DcgmExporter, Device, collecting
from tests.dcgm.test_end_to_end import config
from tests.fake_nvml import (
    A100,
    A100_1G_10GB,
    A100_2G_20GB,
    A100_3G_40GB,
    FakeNvml,
    Load,
    MigInstance,
)


COLLECT_SECONDS = 1.5
FLOP, SECONDS = "flopwatch_flop_total", "flopwatch_gpu_seconds_total"
ACTIVITIES = (
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_SM_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
)
PARTITION = (A100_3G_40GB, A100_2G_20GB, A100_1G_10GB)
# Graphics, SM, tensor and memory activity of each instance, as shares of the instance.
WORK = {"1": (0.9, 0.8, 0.5, 0.4), "3": (0.5, 0.4, 0.1, 0.2), "7": (0.0, 0.0, 0.0, 0.0)}


def instance_rows(
    uuid: str, instances: Sequence[MigInstance], fields: Sequence[str] = ALL_FIELDS
) -> list[Device]:
    """What dcgm-exporter has of a GPU in MIG mode: rows of its instances, none of itself."""
    devices = []
    for instance in instances:
        mig = str(instance.gpu_instance_id)
        work = dict(zip(ACTIVITIES, WORK[mig], strict=True))
        size = f"{instance.slice_count}g.{round(instance.memory_mib / 1024)}gb"
        labels = {"gpu": "0", "UUID": uuid, "GPU_I_ID": mig, "GPU_I_PROFILE": size}
        devices.append(Device(labels, {name: work.get(name, 0.0) for name in fields}))
    return devices


def of_gpu(scrape: Scrape, name: str, **labels: str) -> float:
    """Sum over the series of the GPU itself, without its instances."""
    series = scrape.series(name, gpu="0", **labels)
    return sum(value for found, value in series.items() if "mig" not in dict(found))


def of_instance(scrape: Scrape, name: str, **labels: str) -> float:
    return scrape.total(name, **labels)


def test_instances_and_their_gpu(tmp_path: Path) -> None:
    """Each instance by its own SMs; the GPU by theirs of 108, of which 24 are unassigned."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, power_watts=300))
        fake.gpu(0).set_mig(PARTITION)
        rows = instance_rows(fake.gpu(0).uuid, PARTITION)
        with (
            collecting(dcgm, rows, COLLECT_SECONDS),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            first = daemon.wait_until(lambda s: of_gpu(s, FLOP) > 0 and s.total(FLOP, mig="1") > 0)
            last = daemon.wait_until(lambda s: of_gpu(s, SECONDS) >= of_gpu(first, SECONDS) + 6)

    def rate(name: str, **labels: str) -> float:
        total = of_instance if "mig" in labels else of_gpu
        mig = {"mig": labels["mig"]} if "mig" in labels else {}
        seconds = total(last, SECONDS, **mig) - total(first, SECONDS, **mig)
        return (total(last, name, **labels) - total(first, name, **labels)) / seconds

    # 2048 FLOP per clock and SM at 1.41 GHz.
    per_sm = 2048 * 1.41e9
    assert rate(FLOP, mig="1", pipe="tensor") == pytest.approx(0.5 * 42 * per_sm, rel=0.01)
    assert rate(FLOP, mig="3", pipe="tensor") == pytest.approx(0.1 * 28 * per_sm, rel=0.01)
    assert rate(FLOP, mig="7", pipe="tensor") == 0
    assert rate(FLOP, pipe="tensor") == pytest.approx(23.8 * per_sm, rel=0.01)
    # 0.4 of 4/8 and 0.2 of 2/8 of 2039 GB/s.
    assert rate("flopwatch_dram_bytes_total") == pytest.approx(0.25 * 2039e9, rel=0.01)
    # SMs busy outside the tensor pipe: 21/108; memory explains 0.25 / (44.8/108) / 0.92 of it.
    states = {
        state: rate(SECONDS, state=state)
        for state in ("tensor", "memory", "stall", "underfill", "idle")
    }
    assert states == pytest.approx(
        {"tensor": 0.2204, "memory": 0.1274, "stall": 0.0671, "underfill": 0.0648, "idle": 0.5204},
        abs=0.005,
    )
    (info,) = last.series("flopwatch_gpu_info", mig="3")
    assert dict(info)["sm_count"] == "28"
    assert last.value("flopwatch_memory_size_bytes", mig="3") == 19968 * 2**20
    assert last.value("flopwatch_source_up", mig="7", source="dcgm") == 1


def test_default_fields_leave_the_rest_of_the_gpu_unresolved(tmp_path: Path) -> None:
    """Without SM activity: tensor 23.8/108, idle 1 - 51.8/108, and the time between is unresolved."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_load(Load(sm_clock_mhz=1410, power_watts=300))
        fake.gpu(0).set_mig(PARTITION)
        rows = instance_rows(fake.gpu(0).uuid, PARTITION, DEFAULT_FIELDS)
        with (
            collecting(dcgm, rows, COLLECT_SECONDS),
            DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon,
        ):
            first = daemon.wait_until(lambda s: of_gpu(s, FLOP) > 0)
            last = daemon.wait_until(lambda s: of_gpu(s, SECONDS) >= of_gpu(first, SECONDS) + 4)

    seconds = of_gpu(last, SECONDS) - of_gpu(first, SECONDS)
    shares = {
        state: (of_gpu(last, SECONDS, state=state) - of_gpu(first, SECONDS, state=state)) / seconds
        for state in ("tensor", "idle", "unresolved", "stall")
    }
    assert shares == pytest.approx(
        {"tensor": 23.8 / 108, "idle": 1 - 51.8 / 108, "unresolved": 28 / 108, "stall": 0}, abs=0.01
    )


def test_a_new_partition_starts_from_zero(tmp_path: Path) -> None:
    """Two instances become one while the daemon runs: the GPU's work is then that of the one alone."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        gpu = fake.gpu(0)
        gpu.set_load(Load(sm_clock_mhz=1410, power_watts=300))
        gpu.set_mig(PARTITION[:2])
        with DaemonProcess(tmp_path, config=config(dcgm.url), environment=fake.env) as daemon:
            with collecting(dcgm, instance_rows(gpu.uuid, PARTITION[:2]), COLLECT_SECONDS):
                before = daemon.wait_until(lambda s: of_gpu(s, FLOP) > 0)
            gpu.set_mig([A100_2G_20GB])
            with collecting(dcgm, instance_rows(gpu.uuid, [A100_2G_20GB]), COLLECT_SECONDS):
                cut = daemon.wait_until(lambda s: not s.has("flopwatch_gpu_up", mig="1"))
                opened = daemon.wait_until(lambda s: of_gpu(s, FLOP) > of_gpu(cut, FLOP))
                last = daemon.wait_until(
                    lambda s: of_gpu(s, SECONDS) >= of_gpu(opened, SECONDS) + 4.5
                )

    seconds = of_gpu(last, SECONDS) - of_gpu(opened, SECONDS)
    flop = of_gpu(last, FLOP, pipe="tensor") - of_gpu(opened, FLOP, pipe="tensor")
    assert of_gpu(opened, FLOP) >= of_gpu(before, FLOP)
    assert flop / seconds == pytest.approx(0.1 * 28 * 2048 * 1.41e9, rel=0.01)
