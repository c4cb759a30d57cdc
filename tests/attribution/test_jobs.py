"""Batch jobs: the mapping directory, and Slurm's control groups."""

import os
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.attribution.jobs import (
    JobFiles,
    device_processes,
    merged,
    process_job,
    slurm_job,
    slurm_jobs,
)
from exporter.attribution.snapshot import DeviceKey, JobUse
from exporter.errors import HolderSourceError
from tests.attribution.hosts import gpu, host


SLUID = "s5K1KKYAYG5D00"


def process(proc: Path, pid: int, *, parent: int, title: str, owner: int = 1000) -> None:
    """A process in the test's own /proc."""
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} (x) S {parent} {'0 ' * 17}{pid} 0")
    (proc / str(pid) / "status").write_text(f"Name:\tx\nUid:\t{owner}\t{owner}\t{owner}\t{owner}\n")
    (proc / str(pid) / "cmdline").write_text(title)


class TestMappingDirectory:
    def test_a_file_per_gpu_with_a_job_a_line(self, tmp_path: Path):
        """The format of dcgm-exporter: the name is the index, or index and instance."""
        (tmp_path / "0").write_text("1234\n1235\n")
        (tmp_path / "1.3").write_text("1236\n")
        (tmp_path / "MIG-cc").write_text("1237")

        assert JobFiles(tmp_path).read() == (
            JobUse(DeviceKey(index="0"), "1234"),
            JobUse(DeviceKey(index="0"), "1235"),
            JobUse(DeviceKey(index="1", mig="3"), "1236"),
            JobUse(DeviceKey(uuid="MIG-cc"), "1237"),
        )

    def test_blank_lines_repeats_and_spaces_are_not_jobs(self, tmp_path: Path):
        """A prolog that appends twice, or leaves an empty line, changes nothing."""
        (tmp_path / "0").write_text("\n  1234 \n1234\r\n\n")

        assert [use.job for use in JobFiles(tmp_path).read()] == ["1234"]

    def test_files_may_be_named_by_device_node(self, tmp_path: Path):
        """Slurm's index of a GPU need not be NVML's: the node's number is the driver's own."""
        (tmp_path / "nvidia4").write_text("1234\n")
        (tmp_path / "nvidiactl").write_text("1\n")

        assert JobFiles(tmp_path).read() == (JobUse(DeviceKey(minor="4"), "1234"),)

    def test_an_array_task_has_its_number_and_its_name(self, tmp_path: Path):
        """Slurm's number of the task, and the name that squeue shows."""
        (tmp_path / "0").write_text("1235 1234_7\nnightly build\n")

        assert JobFiles(tmp_path).read() == (
            JobUse(DeviceKey(index="0"), "1234_7", "1235"),
            JobUse(DeviceKey(index="0"), "nightly build"),
        )

    def test_files_with_other_names_are_left_alone(self, tmp_path: Path):
        """Temporary files of a prolog, and folders, are not GPUs."""
        (tmp_path / "0.tmp").write_text("1\n")
        (tmp_path / ".0").write_text("1\n")
        (tmp_path / "gpu0").write_text("1\n")
        (tmp_path / "2").mkdir()

        assert JobFiles(tmp_path).read() == ()

    def test_links_and_pipes_are_not_opened(self, tmp_path: Path):
        """A user who can write there must not turn a secret file into labels, or stop the thread."""
        secret = tmp_path / "secret"
        secret.write_text("root:x:0:0\n")
        jobs = tmp_path / "jobs"
        jobs.mkdir()
        (jobs / "0").symlink_to(secret)
        os.mkfifo(jobs / "1")

        assert JobFiles(jobs).read() == ()

    def test_invalid_job_names_are_left_out(self, tmp_path: Path):
        """Lines with control characters or more than 128 characters are not job names."""
        (tmp_path / "0").write_bytes(
            b"good\nbad\x00name\n" + b"x" * 129 + b"\n" + b"y" * 128 + b"\n"
        )

        assert [use.job for use in JobFiles(tmp_path).read()] == ["good", "y" * 128]

    def test_a_file_is_read_to_its_limit(self, tmp_path: Path):
        """64 jobs on one GPU are shown, however many lines the file has."""
        (tmp_path / "0").write_text("".join(f"{number}\n" for number in range(100_000)))

        assert [use.job for use in JobFiles(tmp_path).read()] == [
            str(number) for number in range(64)
        ]

    def test_jobs_beyond_the_limit_are_logged_once(self, tmp_path: Path):
        """66 jobs on a GPU are 2 too many: one line says so, another that all are shown again."""
        files = JobFiles(tmp_path)
        (tmp_path / "0").write_text("".join(f"{number}\n" for number in range(66)))
        (tmp_path / "1").write_text("".join(f"{number}\n" for number in range(64)))

        with capture_logs() as logged:
            files.read()
            files.read()
            (tmp_path / "0").write_text("1\n")
            files.read()
            files.read()

        assert [line["event"] for line in logged] == ["jobs_left_out", "jobs_complete"]
        assert (logged[0]["files"], logged[0]["jobs_at_least"]) == (["0"], 2)

    def test_a_name_that_the_limit_cuts_is_no_job(self, tmp_path: Path):
        """The 16,384 bytes that are read end within `123456`: `123` would be another job."""
        (tmp_path / "0").write_text("7\n" + "x" * 16_378 + "\n123456\n")

        with capture_logs() as logged:
            uses = JobFiles(tmp_path).read()

        assert [use.job for use in uses] == ["7"]
        assert [line["event"] for line in logged] == ["jobs_left_out"]

    def test_files_beyond_the_limit_are_logged(self, tmp_path: Path):
        """1,024 files are read; a job may be in the next one."""
        for number in range(1025):
            (tmp_path / f"other-{number}").touch()

        with capture_logs() as logged:
            JobFiles(tmp_path).read()

        assert [line["event"] for line in logged] == ["jobs_left_out"]

    def test_a_missing_directory_is_reported(self, tmp_path: Path):
        """The reason is `absent`, as on hosts without a batch system."""
        with pytest.raises(HolderSourceError) as caught:
            JobFiles(tmp_path / "none").read()

        assert caught.value.reason == "absent"

    def test_a_path_that_is_not_a_directory_is_reported(self, tmp_path: Path):
        """A file in place of the directory is reported as unreadable."""
        (tmp_path / "file").write_text("")

        with pytest.raises(HolderSourceError) as caught:
            JobFiles(tmp_path / "file").read()

        assert caught.value.reason == "unreadable"

    def test_every_change_can_be_seen(self, tmp_path: Path):
        """A new file, another content and a file that goes each change the mark; reading does not."""
        marks = [JobFiles(tmp_path).mark()]
        (tmp_path / "0").write_text("1\n")
        marks.append(JobFiles(tmp_path).mark())
        (tmp_path / "0").write_text("12\n")
        marks.append(JobFiles(tmp_path).mark())
        (tmp_path / "0").unlink()
        marks.append(JobFiles(tmp_path).mark())

        assert marks[0] != marks[1] != marks[2] != marks[3] == marks[0]
        JobFiles(tmp_path).read()
        assert JobFiles(tmp_path).mark() == marks[3]


class TestSlurmProcesses:
    @pytest.mark.parametrize(
        "groups",
        [
            "12:devices:/slurm/uid_1000/job_42/step_0/task_0\n1:name=systemd:/system.slice\n",
            "5:memory:/slurm_node7/uid_1000/job_42/step_batch\n",
            "0::/system.slice/slurmstepd.scope/job_42/step_0/user/task_0\n",
            "0::/system.slice/node7_slurmstepd.scope/job_42/step_extern/user\n",
            "0::/../../slurmstepd.scope/job_42\n",
        ],
    )
    def test_the_job_is_named_by_the_control_group(self, groups: str):
        """Cgroup v1 and v2, one or several slurmd on a host, seen from inside a namespace."""
        assert slurm_job(groups) == "42"

    @pytest.mark.parametrize(
        "groups",
        [
            "0::/user.slice/user-1000.slice/session-3.scope\n",
            "0::/kubepods.slice/job_42/x\n",
            "0::/system.slice/slurmstepd.scope/job_42x\n",
            "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00\n",
            "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5DIL/step_0\n",
            "0::/user.slice/s5K1KKYAYG5D00/step_0\n",
            "0::/system.slice/slurmstepd.scope/system\n1:cpu:/job_42\n",
            "",
        ],
    )
    def test_other_control_groups_are_no_jobs(self, groups: str):
        """A user's session, a pod that calls itself job_42, and Slurm's own daemon."""
        assert slurm_job(groups) is None

    def test_a_job_known_by_its_sluid_gets_the_number_that_slurmd_knows(self, tmp_path: Path):
        """Slurm 26.05 names the control group by SLUID; the daemon above the process has the number."""
        process(tmp_path, 30, parent=20, title="python\0train.py\0")
        process(tmp_path, 20, parent=10, title="/bin/bash\0job.sh\0")
        process(tmp_path, 10, parent=5, title="slurmstepd: [4242.0]\0", owner=0)
        (tmp_path / "30" / "cgroup").write_text(
            f"0::/system.slice/slurmstepd.scope/{SLUID}/step_0/user/task_0\n"
        )

        assert process_job(30, tmp_path) == "4242"

    @pytest.mark.parametrize("title", ["slurmstepd: [4242.batch]\0", ""])
    def test_a_sluid_is_a_name_too(self, tmp_path: Path, title: str):
        """Where no daemon run by root has the number, squeue still finds the job by its SLUID."""
        process(tmp_path, 30, parent=10, title="python\0")
        process(tmp_path, 10, parent=1, title=title, owner=1000)
        (tmp_path / "30" / "cgroup").write_text(
            f"0::/system.slice/slurmstepd.scope/{SLUID}/step_batch/user/task_0\n"
        )

        assert process_job(30, tmp_path) == SLUID

    def test_one_job_has_one_name(self):
        """The prolog's name of an array task counts, and a SLUID adds no second job to a number."""
        mapped = (JobUse(DeviceKey(minor="4"), "1234_7", "1235"),)
        found = (
            JobUse(DeviceKey(uuid="GPU-aa"), "1235"),
            JobUse(DeviceKey(uuid="GPU-aa"), SLUID),
            JobUse(DeviceKey(uuid="GPU-bb"), "99"),
        )

        assert merged(mapped, found) == (
            JobUse(DeviceKey(minor="4"), "1234_7"),
            JobUse(DeviceKey(uuid="GPU-aa"), "1234_7"),
            JobUse(DeviceKey(uuid="GPU-bb"), "99"),
        )
        assert merged((), found[1:2]) == found[1:2]

    def test_a_process_that_ended_is_in_no_job(self, tmp_path: Path):
        """A process may end between the driver's list and our look."""
        assert process_job(4711, tmp_path) is None

    def test_jobs_are_listed_once_per_device(self, tmp_path: Path):
        """Two processes of one job on a GPU, and one of another job on another."""
        for pid, job in ((10, 7), (11, 7), (12, 8), (13, None)):
            process(tmp_path, pid, parent=1, title="python\0")
            path = f"/system.slice/slurmstepd.scope/job_{job}/step_0" if job else "/user.slice"
            (tmp_path / str(pid) / "cgroup").write_text(f"0::{path}\n")
        view = host(gpu("0", "GPU-aa", pids=(10, 11)), gpu("1", "GPU-bb", pids=(12, 13, 99)))

        assert slurm_jobs(device_processes(view), tmp_path) == (
            JobUse(DeviceKey(uuid="GPU-aa"), "7"),
            JobUse(DeviceKey(uuid="GPU-bb"), "8"),
        )

    def test_process_ids_leave_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """The interpreter never frees interned strings, and process ids come and go."""
        interned: list[str] = []
        process(tmp_path, 4711, parent=1, title="python\0")
        (tmp_path / "4711" / "cgroup").write_text("0::/system.slice/slurmstepd.scope/job_7/step_0")
        view = host(gpu("0", "GPU-aa", pids=(4711,)))
        monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)

        assert slurm_jobs(device_processes(view), tmp_path) == (
            JobUse(DeviceKey(uuid="GPU-aa"), "7"),
        )
        assert "4711" not in interned

    def test_this_process_can_be_inspected(self):
        """The real /proc is read without an error; this test does not run in a Slurm job."""
        view = host(gpu("0", "GPU-aa", pids=(os.getpid(),)))

        expected = slurm_job(Path("/proc/self/cgroup").read_text())
        assert [use.job for use in slurm_jobs(device_processes(view))] == (
            [] if expected is None else [expected]
        )
