"""Slurm's prolog and epilog: what they write, and that they never take a node out of service."""

import fcntl
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter.attribution.jobs import JobFiles
from exporter.attribution.snapshot import DeviceKey


SLURM = Path(__file__).parents[2] / "deploy" / "slurm"
SCRIPTS = ("prolog.sh", "epilog.sh")
both = pytest.mark.parametrize("script", SCRIPTS)
GPU_A, GPU_B = (
    "GPU-2f1c7e06-5a8e-11ee-8c99-0242ac120002",
    "GPU-8d0f7a44-5a8e-11ee-8c99-0242ac120002",
)


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the scripts write through logger(1), the only output that they may use."""
    log = tmp_path / "log"
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "logger").write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    (programs / "logger").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    log.touch()
    return log


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with slurmd(8) and scontrol(1) as Slurm 22.05 answers; tests may write other answers."""
    programs = tmp_path / "slurm"
    programs.mkdir()
    slurmd_tells(programs, "/dev/nvidia[0-7]")
    (programs / "scontrol").write_text(
        "#!/bin/sh\necho JobId=1234 ArrayJobId=1234 ArrayTaskId=8 JobName=wrap\n"
        "echo JobId=1235 ArrayJobId=1234 ArrayTaskId=7 JobName=wrap\n"
    )
    (programs / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def slurmd_tells(programs: Path, *files: str) -> None:
    """`slurmd -G` prints a line for each line of gres.conf."""
    lines = "".join(
        f"echo 'slurmd-node1: Gres Name=gpu Type=(null) Count=2 Index=0 ID=7696487 File={file} (null)' >&2\n"
        for file in files
    )
    (programs / "slurmd").write_text(f"#!/bin/sh\n{lines}")
    (programs / "slurmd").chmod(0o755)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def run(script: str, folder: Path, **environment: str) -> int:
    """Run a script as slurmd does; it must be silent, since slurmd discards its output."""
    finished = subprocess.run(
        [SLURM / script],
        check=False,
        capture_output=True,
        env={
            "PATH": os.environ["PATH"],
            "FLOPWATCH_JOBS": str(folder),
            "FLOPWATCH_DRIVER": str(folder.parent / "driver"),
            "FLOPWATCH_LOCK_SECONDS": "0",
            **environment,
        },
    )
    assert (finished.stdout, finished.stderr) == (b"", b"")
    return finished.returncode


def noted(folder: Path) -> dict[str, list[str]]:
    """The lines of each file that the daemon reads."""
    return {
        path.name: path.read_text().splitlines()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
    }


def driver_tells(folder: Path, address: str, *, minor: int, uuid: str) -> None:
    """A GPU's page below /proc/driver/nvidia/gpus, as driver 550 writes it."""
    page = folder / "driver" / address / "information"
    page.parent.mkdir(parents=True)
    page.write_text(
        f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 254\nGPU UUID: \t {uuid}\n"
        f"Video BIOS: \t 96.00.74.00.01\nBus Type: \t PCIe\nBus Location: \t {address}\n"
        f"Device Minor: \t {minor}\nGPU Excluded:\t No\n"
    )


def test_a_job_is_recorded_and_removed(jobs: Path, logged: Path):
    """Lists and ranges of GPUs are understood; the epilog leaves other jobs alone."""
    run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0,2-3")
    run("prolog.sh", jobs, SLURM_JOB_ID="411", SLURM_JOB_GPUS="3")
    assert noted(jobs) == {"nvidia0": ["41"], "nvidia2": ["41"], "nvidia3": ["41", "411"]}

    run("epilog.sh", jobs, SLURM_JOB_ID="41")
    assert noted(jobs) == {"nvidia3": ["411"]}
    assert logged.read_text() == ""


def test_a_gpu_is_named_by_its_uuid_where_the_driver_reports_it(
    jobs: Path, tmp_path: Path, slurm: Path
):
    """Slurm's GPUs 0 to 2 are minors 5, 6 and 4; minor 5 is the GPU whose page says so."""
    slurmd_tells(slurm, "/dev/nvidia[5-6]", "/dev/nvidia4")
    driver_tells(tmp_path, "0000:1b:00.0", minor=5, uuid=GPU_A)
    driver_tells(tmp_path, "0000:43:00.0", minor=4, uuid=GPU_B)

    run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0-1")

    assert noted(jobs) == {GPU_A: ["41"], "nvidia6": ["41"]}


def test_a_driver_that_hides_uuids_leaves_the_minor_number(jobs: Path, tmp_path: Path):
    """Without permission the page has question marks: no file is named by them."""
    driver_tells(tmp_path, "0000:1b:00.0", minor=5, uuid="GPU-????????-????-????-????-????????????")

    run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="5")

    assert noted(jobs) == {"nvidia5": ["41"]}


def test_a_mig_instance_is_named_by_its_uuid(jobs: Path):
    """Slurm allocates instances by UUID; its own number for an instance is not unique on a node."""
    mig = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"

    run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0", CUDA_VISIBLE_DEVICES=mig)

    assert noted(jobs) == {mig: ["41"]}


def test_slurms_device_order_is_read_again_when_its_configuration_changes(
    jobs: Path, tmp_path: Path, slurm: Path
):
    """`slurmd -G` is asked once, not for every job; a newer gres.conf makes it asked again."""
    configuration = {"SLURM_CONF": str(tmp_path / "slurm.conf"), "SLURM_JOB_GPUS": "0"}
    run("prolog.sh", jobs, SLURM_JOB_ID="1", **configuration)
    slurmd_tells(slurm, "/dev/nvidia3,/dev/nvidia1")
    run("prolog.sh", jobs, SLURM_JOB_ID="2", **configuration)
    assert noted(jobs) == {"nvidia0": ["1", "2"]}

    (tmp_path / "gres.conf").touch()
    os.utime(jobs / ".devices", (0, 0))
    run("prolog.sh", jobs, SLURM_JOB_ID="3", **configuration)

    assert noted(jobs) == {"nvidia0": ["1", "2"], "nvidia3": ["3"]}


def test_a_gpu_that_slurm_does_not_report_is_not_guessed(jobs: Path, slurm: Path, logged: Path):
    """Without device files in Slurm's configuration its number says nothing: absent, and reported."""
    slurmd_tells(slurm, "(null)")

    assert run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0") == 0

    assert noted(jobs) == {}
    assert "job 41: GPU 0 of Slurm is no device file of slurmd -G" in logged.read_text()


def test_an_array_task_has_the_name_that_users_know_where_that_is_wanted(jobs: Path):
    """Job 1235 is task 7 of array 1234: both are noted, and the epilog finds it by its job id."""
    wanted = {"FLOPWATCH_SLURM_ARRAY_NAMES": "yes"}
    run("prolog.sh", jobs, SLURM_JOB_ID="1235", SLURM_JOB_GPUS="0", **wanted)
    run("prolog.sh", jobs, SLURM_JOB_ID="12", SLURM_JOB_GPUS="0")
    assert noted(jobs) == {"nvidia0": ["1235 1234_7", "12"]}

    run("epilog.sh", jobs, SLURM_JOB_ID="1235")
    assert noted(jobs) == {"nvidia0": ["12"]}


def test_the_daemon_reads_what_the_prolog_writes(jobs: Path, tmp_path: Path):
    """By UUID, by minor number, and an array task under the name that users know."""
    driver_tells(tmp_path, "0000:1b:00.0", minor=5, uuid=GPU_A)
    run(
        "prolog.sh", jobs, SLURM_JOB_ID="1235", SLURM_JOB_GPUS="5-6",
        FLOPWATCH_SLURM_ARRAY_NAMES="yes",
    )  # fmt: skip

    assert [(use.device, use.job) for use in JobFiles(jobs).read()] == [
        (DeviceKey(uuid=GPU_A), "1234_7"),
        (DeviceKey(minor="6"), "1234_7"),
    ]


def test_a_prolog_that_runs_twice_records_the_job_once(jobs: Path):
    """A job requeued on the same node is one holder."""
    for _ in range(2):
        run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0")

    assert noted(jobs) == {"nvidia0": ["41"]}


def test_a_job_without_gpus_leaves_no_trace(jobs: Path, logged: Path):
    """Most jobs of a cluster hold no GPU: nothing is created for them, and nothing is logged."""
    assert run("prolog.sh", jobs, SLURM_JOB_ID="41") == 0
    assert run("epilog.sh", jobs, SLURM_JOB_ID="41") == 0

    assert not jobs.exists()
    assert logged.read_text() == ""


def test_jobs_that_start_together_are_all_recorded(jobs: Path):
    """Twenty prologs at once on one GPU lose none of their lines."""
    with ThreadPoolExecutor(20) as pool:
        list(
            pool.map(
                lambda job: run(
                    "prolog.sh", jobs, SLURM_JOB_ID=str(job), SLURM_JOB_GPUS="0",
                    FLOPWATCH_LOCK_SECONDS="60",
                ),
                range(100, 120),
            )
        )  # fmt: skip

    assert sorted(noted(jobs)["nvidia0"]) == [str(job) for job in range(100, 120)]


@both
def test_a_lock_held_by_another_process_does_not_fail_the_job(
    script: str, jobs: Path, logged: Path
):
    """The script waits for a moment, reports, and lets the job go on."""
    run("prolog.sh", jobs, SLURM_JOB_ID="40", SLURM_JOB_GPUS="0")
    with (jobs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert run(script, jobs, SLURM_JOB_ID="40", SLURM_JOB_GPUS="1") == 0

    assert "job 40: another prolog or epilog holds" in logged.read_text()
    assert noted(jobs) == {"nvidia0": ["40"]}


@both
def test_only_root_can_take_the_lock(script: str, jobs: Path):
    """A user who can open the lock can hold it: it is 0600, also where an older version left 0644."""
    jobs.mkdir()
    (jobs / ".lock").touch(mode=0o644)

    run(script, jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0")

    assert (jobs / ".lock").stat().st_mode & 0o777 == 0o600


@both
def test_a_folder_that_cannot_be_created_does_not_fail_the_job(
    script: str, tmp_path: Path, logged: Path
):
    """There is a file in place of the folder."""
    (tmp_path / "jobs").write_text("")

    assert run(script, tmp_path / "jobs", SLURM_JOB_ID="41", SLURM_JOB_GPUS="0") == 0

    assert logged.read_text().count("job 41:") == (1 if script == "prolog.sh" else 0)


@both
def test_without_a_log_it_is_silent_and_succeeds(script: str, tmp_path: Path):
    """No working logger(1), nothing to write to: the job still starts."""
    (tmp_path / "logger").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "logger").chmod(0o755)
    (tmp_path / "jobs").write_text("")
    path = f"{tmp_path}:{os.environ['PATH']}"

    assert run(script, tmp_path / "jobs", SLURM_JOB_ID="41", SLURM_JOB_GPUS="0", PATH=path) == 0


def test_malformed_gpu_numbers_do_not_fail_the_job(jobs: Path, logged: Path):
    """What this version of Slurm writes otherwise is reported as it is."""
    assert run("prolog.sh", jobs, SLURM_JOB_ID="41", SLURM_JOB_GPUS="gpu:a,1") == 0

    assert "SLURM_JOB_GPUS=gpu:a,1 is not understood" in logged.read_text()
    assert noted(jobs) == {"nvidia1": ["41"]}


needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: needs root")


def run_on(mount: str, spoil: str, folder: Path, script: str) -> int:
    """Run a script on a file system of its own, which `spoil` has made unusable."""
    folder.mkdir()
    words = f"mount -t tmpfs {mount} tmpfs {folder} && {{ {spoil}; }} && {SLURM / script}"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", words],
        check=False,
        capture_output=True,
        cwd=folder.parent,
        env={
            "PATH": os.environ["PATH"],
            "FLOPWATCH_JOBS": str(folder),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_GPUS": "0",
        },
    ).returncode


@needs_mounts
@both
def test_a_read_only_folder_does_not_fail_the_job(script: str, jobs: Path, logged: Path):
    """The file system was mounted read-only after an error."""
    spoil = f"echo 41 >{jobs}/nvidia0 && mount -o remount,ro {jobs}"

    assert run_on("", spoil, jobs, script) == 0
    assert "job 41:" in logged.read_text()
    assert "Read-only file system" in logged.read_text()


@needs_mounts
def test_a_full_folder_does_not_fail_the_prolog(jobs: Path, logged: Path):
    """The disk is full: the job is not recorded, and the log says why."""
    spoil = f"dd if=/dev/zero of={jobs}/fill bs=4k 2>/dev/null || true"

    assert run_on("-o size=64k", spoil, jobs, "prolog.sh") == 0
    assert "No space left on device" in logged.read_text()


@needs_mounts
def test_a_full_folder_does_not_keep_ended_jobs(jobs: Path, tmp_path: Path):
    """The epilog needs no space: the other job stays, the ended one goes."""
    spoil = (
        f"printf '41\\n42\\n' >{jobs}/nvidia0; "
        f"dd if=/dev/zero of={jobs}/fill bs=4k 2>/dev/null || true; "
        f"trap 'cp {jobs}/nvidia0 {tmp_path}/after' EXIT"
    )

    assert run_on("-o size=64k", spoil, jobs, "epilog.sh") == 0
    assert (tmp_path / "after").read_text() == "42\n"
