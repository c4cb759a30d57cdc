"""MIG through the real daemon: instances as devices, and their reconfiguration while it runs."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import (
    H100,
    H100_1G_10GB,
    H100_2G_20GB,
    H100_3G_40GB,
    FakeGpu,
    FakeNvml,
    Load,
    MigInstance,
)


CONFIG = """
sampling: {interval: 250ms}
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
"""
FLOP = "flopwatch_flop_total"
SECONDS = "flopwatch_gpu_seconds_total"
ACTIVE = "flopwatch_sm_active_ratio"
UP, ERRORS = "flopwatch_source_up", "flopwatch_source_errors_total"
INVALID_ARGUMENT, NOT_SUPPORTED = 2, 3
DECODE = replace(Load.decode(), memory_used_bytes=2**30)


def cut(gpu: FakeGpu, instances: Sequence[MigInstance], load: Load = DECODE) -> None:
    """Create instances on a GPU, all under this load."""
    gpu.set_mig(instances)
    for instance in instances:
        gpu.instance_loads(instance.gpu_instance_id).set_load(load)


def migs(scrape: Scrape) -> set[str]:
    """GPU instance ids that are exported as up."""
    found = scrape.series("flopwatch_gpu_up")
    return {dict(labels).get("mig", "") for labels, value in found.items() if value} - {""}


def test_every_instance_has_series_of_its_own(tmp_path: Path) -> None:
    """UUID, size, memory, peak and FLOP rate of each; one clock, three different sizes."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(fake.gpu(0), [H100_3G_40GB, H100_2G_20GB, H100_1G_10GB])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            first = daemon.wait_until(lambda s: s.total(SECONDS, mig="7") >= 0.5)
            watched = first.total(SECONDS, mig="7")
            last = daemon.wait_until(lambda s: s.total(SECONDS, mig="7") >= watched + 2.5)
        assert (fake.gpm_misuses, fake.gpm_overlaps) == (0, 0)

    for instance in (H100_3G_40GB, H100_2G_20GB, H100_1G_10GB):
        mig, sms = str(instance.gpu_instance_id), instance.multiprocessor_count
        (labels,) = last.series("flopwatch_gpu_info", mig=mig)
        assert dict(labels)["uuid"].startswith("MIG-")
        assert dict(labels)["sm_count"] == str(sms)
        assert last.value("flopwatch_memory_size_bytes", mig=mig) == instance.memory_mib * 2**20
        flop, seconds = (
            last.total(name, mig=mig, **more) - first.total(name, mig=mig, **more)
            for name, more in ((FLOP, {"pipe": "tensor"}), (SECONDS, {}))
        )
        # 0.11 of the tensor pipe at 1.98 GHz, 4096 FLOP per clock and SM
        assert flop / seconds == pytest.approx(0.11 * sms * 4096 * 1.98e9, rel=0.01)


def test_the_gpu_keeps_its_own_counters(tmp_path: Path) -> None:
    """Power, energy and clocks belong to the GPU, and no instance repeats them."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(fake.gpu(0), [H100_1G_10GB])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SECONDS, mig="7") >= 0.5)

    for name in ("flopwatch_power_watts", "flopwatch_energy_joules_total"):
        (labels,) = scrape.series(name)
        assert "mig" not in dict(labels)
    assert scrape.value("flopwatch_mig_mode") == 1


def test_instances_come_and_go_while_the_daemon_runs(tmp_path: Path) -> None:
    """Mode on, instances created, changed, removed, mode off: no restart; what is gone is absent."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total(SECONDS) > 0)
            for instances in (
                [H100_3G_40GB, H100_1G_10GB],
                [H100_2G_20GB],
                [],
                [H100_1G_10GB, H100_2G_20GB],
            ):
                cut(fake.gpu(0), instances)
                wanted = {str(instance.gpu_instance_id) for instance in instances}
                daemon.wait_until(lambda s, wanted=wanted: migs(s) == wanted)
            fake.gpu(0).set_mig(None)
            scrape = daemon.wait_until(lambda s: not s.series("flopwatch_gpu_info", mig="7"))

        assert fake.stale_handles == 0
        assert fake.gpm_misuses == 0
    assert not [labels for _name, labels in scrape.samples if "mig" in dict(labels)]


def test_a_reused_id_starts_from_zero(tmp_path: Path) -> None:
    """Instance 1 becomes smaller, with another UUID: its counters start at zero, none are mixed."""
    small = replace(H100_1G_10GB, gpu_instance_id=1, uuid="MIG-the-small-one")
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(fake.gpu(0), [H100_3G_40GB])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total(SECONDS, mig="1") >= 3)
            cut(fake.gpu(0), [small])
            changed = time.monotonic()
            scrape = daemon.wait_until(
                lambda s: s.total(SECONDS, mig="1", uuid="MIG-the-small-one") > 0
            )
            passed = time.monotonic() - changed

    assert scrape.total(SECONDS, mig="1") <= passed
    (labels,) = scrape.series("flopwatch_gpu_up", mig="1")
    assert dict(labels)["uuid"] == "MIG-the-small-one"


def test_silent_instances_of_a_busy_gpu_are_left_out(tmp_path: Path) -> None:
    """630 of 700 W and not one SM active: no instance is exported as idle, and its time is unresolved."""
    with FakeNvml([H100], tmp_path) as fake:
        gpu = fake.gpu(0)
        gpu.set_load(replace(DECODE, power_watts=630.0))
        cut(gpu, [H100_3G_40GB, H100_1G_10GB])
        gpu.set(gpm_zero=1)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            silent = daemon.wait_until(lambda s: all(lies(s, mig) > 2 for mig in ("1", "7")))
            later = daemon.wait_until(lambda s: all(lies(s, mig) > 8 for mig in ("1", "7")))
            gpu.set(gpm_zero=0)
            back = daemon.wait_until(lambda s: all(s.has(ACTIVE, mig=mig) for mig in ("1", "7")))

    for mig in ("1", "7"):
        assert not silent.has(ACTIVE, mig=mig)
        assert not silent.has(FLOP, mig=mig) or silent.total(FLOP, mig=mig) == 0
        idle, unresolved = (
            later.value(SECONDS, mig=mig, state=state) - silent.value(SECONDS, mig=mig, state=state)
            for state in ("idle", "unresolved")
        )
        assert idle == 0
        assert unresolved > 0
        assert back.value(ACTIVE, mig=mig) > 0


def test_an_idle_instance_beside_a_busy_one_is_idle(tmp_path: Path) -> None:
    """An instance's zeros are doubted only when the whole GPU shows no activity."""
    with FakeNvml([H100], tmp_path) as fake:
        gpu = fake.gpu(0)
        gpu.set_load(replace(DECODE, power_watts=630.0))
        cut(gpu, [H100_3G_40GB, H100_1G_10GB])
        gpu.instance_loads(7).set_load(replace(Load.idle(), sm_clock_mhz=DECODE.sm_clock_mhz))
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SECONDS, mig="7") >= 6)

    assert scrape.value(ACTIVE, mig="7") == 0
    assert lies(scrape, "7") == 0
    assert scrape.value(SECONDS, mig="7", state="idle") > 5
    assert scrape.total(SECONDS, mig="7", state="unresolved") == 0


def lies(scrape: Scrape, mig: str) -> float:
    """The number of implausible values counted for an instance."""
    return scrape.total(ERRORS, mig=mig, reason="implausible")


def test_mismatched_samples_are_taken_again(tmp_path: Path) -> None:
    """An instance recreated in the middle of a tick: refused once, and restarted at once."""
    without_own_gpm = replace(
        H100, function_codes={**H100.function_codes, "nvmlGpmSampleGet": NOT_SUPPORTED}
    )
    with FakeNvml([without_own_gpm], tmp_path) as fake:
        cut(fake.gpu(0), [H100_3G_40GB])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total(FLOP, mig="1") > 0)
            fake.fail("nvmlGpmMetricsGet", INVALID_ARGUMENT, count=1)
            refused = daemon.wait_until(
                lambda s: s.total(ERRORS, mig="1", reason="invalid_argument") == 1
            )
            counted = refused.total(FLOP, mig="1")
            daemon.wait_until(lambda s: s.total(FLOP, mig="1") > counted, seconds=20)
            # An instance refused a second time waits a moment, and still comes back.
            fake.fail("nvmlGpmMetricsGet", INVALID_ARGUMENT, count=1)
            refused = daemon.wait_until(
                lambda s: s.total(ERRORS, mig="1", reason="invalid_argument") == 2
            )
            counted = refused.total(FLOP, mig="1")
            back = daemon.wait_until(lambda s: s.total(FLOP, mig="1") > counted, seconds=20)

    assert back.total(UP, mig="1", source="gpm_cycles") == 1


def test_counters_of_instances_survive_a_lost_gpu(tmp_path: Path) -> None:
    """The GPU falls off the bus and comes back: its instances' counters continue."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(fake.gpu(0), [H100_1G_10GB])
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            before = daemon.wait_until(lambda s: s.total(SECONDS, mig="7") >= 2)
            fake.lose(0)
            daemon.wait_until(lambda s: s.value("flopwatch_gpu_up", mig="7") == 0)
            fake.restore(0)
            after = daemon.wait_until(lambda s: s.has(SECONDS, mig="7"))

    assert after.total(SECONDS, mig="7") >= before.total(SECONDS, mig="7")


def test_newer_drivers_take_the_instances_handle(tmp_path: Path) -> None:
    """Without nvmlGpmMigSampleGet the samples come through the MIG handle."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(fake.gpu(0), [H100_1G_10GB])
        fake.fail("nvmlGpmMigSampleGet", 13)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(FLOP, mig="7") > 0)

    assert scrape.value("flopwatch_source_up", mig="7", source="gpm_cycles") == 1


def test_a_gpu_without_gpm_of_its_own_is_the_sum_of_its_instances(tmp_path: Path) -> None:
    """124 of 132 SMs are in instances, all at 0.11 of the tensor pipe."""
    profile = replace(H100, function_codes={**H100.function_codes, "nvmlGpmSampleGet": 3})
    with FakeNvml([profile], tmp_path) as fake:
        fake.gpu(0).set_load(DECODE)
        cut(
            fake.gpu(0),
            [
                H100_3G_40GB,
                replace(H100_3G_40GB, gpu_instance_id=2),
                replace(H100_1G_10GB, multiprocessor_count=4),
            ],
        )
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: any("mig" not in dict(labels) for labels in s.series(FLOP))
            )

    (tensor,) = [
        value
        for labels, value in scrape.series("flopwatch_pipe_active_ratio", pipe="tensor").items()
        if "mig" not in dict(labels)
    ]
    assert tensor == pytest.approx(0.11 * 124 / 132, rel=0.01)
