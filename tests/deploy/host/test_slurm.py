"""Prolog and epilog under a real Slurm: installed as docs/install.md says, with jobs of two users."""

import pytest

from tests.deploy.documents import commands
from tests.deploy.engine import needs_engine
from tests.deploy.host.machine import Machine


pytestmark = [needs_engine, pytest.mark.slow, pytest.mark.timeout(900)]
(INSTALL,) = commands("install.md", "Slurm")
IDLE = "sinfo --noheader --format %t | grep -x idle"
LOG = "journalctl -t flopwatch-prolog -t flopwatch-epilog --no-pager"


@pytest.fixture(scope="module")
def slurm(machine: Machine) -> Machine:
    """A node with four GPUs whose device files are nvidia4 to nvidia7."""
    machine.type(f"set -e\n{INSTALL}")
    machine.type(
        "for n in 4 5 6 7; do mknod /dev/nvidia$n c 195 $n; done\n"
        "echo FLOPWATCH_SLURM_ARRAY_NAMES=yes >/etc/default/flopwatch-slurm\n"
        "systemctl start munge slurmctld slurmd"
    )
    machine.wait_for(IDLE)
    return machine


def held(slurm: Machine) -> dict[str, str]:
    """What the files say, by name."""
    listed = slurm.type(
        "cd /run/flopwatch/jobs 2>/dev/null && grep -H . nvidia* GPU-* 2>/dev/null; true"
    )
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, job = line.partition(":")
        found[name] = f"{found[name]},{job}" if name in found else job
    return found


def submit(slurm: Machine, words: str, user: str) -> str:
    """Submit a job; its id."""
    return slurm.type(f"sbatch --parsable --output=/dev/null {words}", user=user)


def all_done(slurm: Machine) -> None:
    slurm.wait_for(f'test -z "$(squeue --noheader)" && {IDLE}', 90)


def test_jobs_of_two_users_are_recorded_by_device_and_removed(slurm: Machine) -> None:
    """Slurm's GPU 0 is nvidia4: each job has devices of its own, and none when all has ended."""
    first = submit(slurm, "--gres=gpu:1 --wrap 'sleep 6'", "alice")
    second = submit(slurm, "--gres=gpu:2 --wrap 'sleep 6'", "bob")
    slurm.wait_for(f"test $(cat /run/flopwatch/jobs/nvidia* | grep -cE '^({first}|{second})$') = 3")

    devices = held(slurm)
    assert set(devices) <= {"nvidia4", "nvidia5", "nvidia6", "nvidia7"}
    assert sorted(devices.values()) == sorted([first, second, second])
    all_done(slurm)
    assert held(slurm) == {}


def test_array_tasks_have_the_names_that_users_know(slurm: Machine) -> None:
    """Each task by its job id and by the array's name, the last one too, which has the array's id."""
    array = submit(slurm, "--array=3-4 --gres=gpu:1 --wrap 'sleep 6'", "alice")
    slurm.wait_for(f"test $(cat /run/flopwatch/jobs/nvidia* | grep -c ' {array}_') = 2")

    names = sorted(line.split()[1] for line in held(slurm).values())
    assert names == [f"{array}_3", f"{array}_4"]
    all_done(slurm)
    assert held(slurm) == {}


def test_a_full_file_system_does_not_drain_the_node(slurm: Machine) -> None:
    """The job runs, the node stays in service, and the log says what was not recorded."""
    slurm.type(
        "mount -t tmpfs -o size=4k tmpfs /run/flopwatch/jobs\n"
        "dd if=/dev/zero of=/run/flopwatch/jobs/fill bs=4k 2>/dev/null; true"
    )
    submit(slurm, "--gres=gpu:1 --wrap true", "alice")
    all_done(slurm)
    slurm.wait_for(f"{LOG} | grep -F 'No space left on device'")
    slurm.type("umount /run/flopwatch/jobs")


def test_a_user_cannot_hold_the_lock(slurm: Machine) -> None:
    """Only root can open it."""
    submit(slurm, "--gres=gpu:1 --wrap true", "alice")
    all_done(slurm)

    assert slurm.run("flock /run/flopwatch/jobs/.lock true", user="bob").returncode != 0


def test_a_held_lock_does_not_fail_the_job(slurm: Machine) -> None:
    """By a process of root: the job starts after a few seconds, and the log says so."""
    slurm.type("systemd-run --quiet --unit=holder flock /run/flopwatch/jobs/.lock sleep 600")
    submit(slurm, "--gres=gpu:1 --wrap true", "bob")
    all_done(slurm)
    slurm.type("systemctl stop holder")

    assert "another prolog or epilog holds" in slurm.type(LOG)
