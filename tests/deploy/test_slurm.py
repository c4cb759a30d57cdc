"""Slurm's prolog and epilog, read back by the daemon's own reader."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exporter.attribution.job_mapping import read_jobs


SLURM = Path(__file__).parents[2] / "deploy" / "slurm"


def run(script: str, folder: Path, **environment: str) -> int:
    return subprocess.run(
        [SLURM / script],
        check=False,
        env={"PATH": os.environ["PATH"], "FLOPWATCH_JOBS": str(folder), **environment},
    ).returncode


def jobs(folder: Path) -> list[tuple[str | None, str]]:
    return [(use.device.index, use.job) for use in read_jobs(folder)]


def test_a_job_is_noted_and_forgotten(tmp_path: Path):
    """Lists and ranges of GPUs are understood; the epilog leaves other jobs alone."""
    run("prolog.sh", tmp_path, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0,2-3")
    run("prolog.sh", tmp_path, SLURM_JOB_ID="411", SLURM_JOB_GPUS="3")
    assert jobs(tmp_path) == [("0", "41"), ("2", "41"), ("3", "41"), ("3", "411")]

    run("epilog.sh", tmp_path, SLURM_JOB_ID="41")
    assert jobs(tmp_path) == [("3", "411")]


def test_a_prolog_that_runs_twice_notes_once(tmp_path: Path):
    """A job that is requeued on the same node is one holder."""
    for _ in range(2):
        run("prolog.sh", tmp_path, SLURM_JOB_ID="41", SLURM_JOB_GPUS="0")

    assert (tmp_path / "0").read_text() == "41\n"


def test_a_job_without_gpus_is_no_fault(tmp_path: Path):
    """A prolog that fails would drain the node: it does nothing instead."""
    assert run("prolog.sh", tmp_path, SLURM_JOB_ID="41") == 0
    assert run("epilog.sh", tmp_path / "none", SLURM_JOB_ID="41") == 0
    assert jobs(tmp_path) == []


def test_jobs_that_start_together_are_all_noted(tmp_path: Path):
    """Twenty prologs at once on one GPU lose none of their lines."""
    with ThreadPoolExecutor(20) as pool:
        list(
            pool.map(
                lambda job: run("prolog.sh", tmp_path, SLURM_JOB_ID=str(job), SLURM_JOB_GPUS="0"),
                range(100, 120),
            )
        )

    assert sorted(jobs(tmp_path)) == [("0", str(job)) for job in range(100, 120)]
