"""What survives a restart: faults until evidence of a repair, and since when findings hold."""

from dataclasses import replace
from pathlib import Path

from exporter.device_state import DeviceState, XidCounts
from exporter.findings import CRITICAL, INFO, Finding
from exporter.readings import DeviceIdentity, FastReading, SlowReading
from exporter.status.history import Memory
from flopwatch.state_file import StateFile


UUID = "GPU-1"
LOST = Finding(CRITICAL, "lost", "down")


class Wall:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def gpu(
    *,
    energy: float = 5e6,
    xids: dict[int, float] | None = None,
    errors: float = 0.0,
    pending: bool = False,
) -> DeviceState:
    return DeviceState(
        identity=DeviceIdentity(index="0", uuid=UUID, name="H100"),
        at_seconds=0.0,
        up=True,
        max_age_seconds=60.0,
        fast=FastReading(at_seconds=0.0, energy_joules=energy),
        slow=SlowReading(
            at_seconds=0.0,
            ecc_errors={"uncorrected": errors},
            row_remap_pending=pending,
            power_limit_watts=700.0,
        ),
        xids=XidCounts(dict.fromkeys(xids or {}, 1), xids or {}),
    )


def memory(tmp_path: Path, wall: Wall, boot: str = "boot-a") -> Memory:
    return Memory(StateFile(tmp_path / "state.json"), boot, wall)


def test_an_xid_survives_the_exporters_restart(tmp_path: Path) -> None:
    """The new process has seen no event, but still knows of it."""
    wall = Wall()
    before = memory(tmp_path, wall)
    before.observe(gpu(xids={79: 990.0}))
    before.save()

    after = memory(tmp_path, wall)
    after.observe(gpu(energy=5.1e6))

    assert after.of(UUID).xids == {"79": 990.0}


def test_a_reboot_counts_as_a_repair(tmp_path: Path) -> None:
    """XIDs and memory errors of the previous boot are old; counting starts at the present values."""
    wall = Wall()
    before = memory(tmp_path, wall)
    before.observe(gpu(xids={79: 990.0}, errors=1))
    before.save()

    after = memory(tmp_path, wall, boot="boot-b")
    after.observe(gpu(energy=10.0, errors=4))

    assert after.of(UUID).xids == {}
    assert after.of(UUID).uncorrected == 4


def test_an_energy_counter_that_begins_again_is_a_reset(tmp_path: Path) -> None:
    """Driver reload or GPU reset: the time is kept, and faults from before it end."""
    wall = Wall()
    kept = memory(tmp_path, wall)
    kept.observe(gpu(xids={48: 990.0}, errors=1))
    wall.now = 2000.0
    kept.observe(gpu(energy=20.0, xids={48: 990.0}, errors=1))

    assert kept.of(UUID).reset_at == 2000.0
    assert kept.of(UUID).xids == {}


def test_small_fluctuations_of_energy_are_not_a_reset(tmp_path: Path) -> None:
    """A reading a few joules lower is the driver's own smoothing."""
    kept = memory(tmp_path, Wall())
    kept.observe(gpu(energy=5_000_000.0))
    kept.observe(gpu(energy=4_999_995.0))

    assert kept.of(UUID).reset_at is None


def test_a_remapping_that_is_done_is_a_reset(tmp_path: Path) -> None:
    """The driver remaps rows at a reset only."""
    wall = Wall()
    kept = memory(tmp_path, wall)
    kept.observe(gpu(pending=True, xids={63: 990.0}))
    wall.now = 1500.0
    kept.observe(gpu(pending=False, xids={63: 990.0}))

    assert kept.of(UUID).reset_at == 1500.0
    assert kept.of(UUID).xids == {}


def test_a_reset_while_the_exporter_was_away(tmp_path: Path) -> None:
    """The counter in the state file is higher than the device's: it was reset meanwhile."""
    wall = Wall()
    before = memory(tmp_path, wall)
    before.observe(gpu(xids={48: 990.0}))
    before.save()
    wall.now = 3000.0

    after = memory(tmp_path, wall)
    after.observe(gpu(energy=100.0))

    assert after.of(UUID).reset_at == 3000.0
    assert after.of(UUID).xids == {}


def test_a_finding_keeps_its_start_time(tmp_path: Path) -> None:
    """Through a failed reading and through a restart; after a longer gap it restarts."""
    wall = Wall()
    kept = memory(tmp_path, wall)
    kept.observe(gpu())
    assert kept.judged(UUID, [LOST]) == {"lost": 1000.0}
    wall.now = 1060.0
    assert kept.judged(UUID, []) == {}
    wall.now = 1100.0
    assert kept.judged(UUID, [LOST]) == {"lost": 1000.0}
    kept.save()

    again = memory(tmp_path, wall)
    again.observe(gpu())
    assert again.judged(UUID, [LOST]) == {"lost": 1000.0}
    wall.now = 1500.0
    again.judged(UUID, [])
    assert again.judged(UUID, [replace(LOST, severity=INFO)]) == {"lost": 1500.0}


def test_the_highest_power_limit_is_remembered(tmp_path: Path) -> None:
    """A limit that is lowered step by step is always compared with the highest one."""
    kept = memory(tmp_path, Wall())
    kept.observe(gpu())
    low = gpu()
    assert low.slow is not None
    kept.observe(replace(low, slow=replace(low.slow, power_limit_watts=450.0)))

    assert kept.of(UUID).power_limit_watts == 700.0
