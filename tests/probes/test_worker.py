"""The real worker, end to end on the host processor."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flopwatch.processor import read_processor
from probes.config import ProbeConfig
from probes.environment import worker_environment
from probes.facts import DeviceFacts
from probes.protocol import Device, Run
from probes.service import ProbeService
from probes.supervisor import WorkerFailedError, WorkerProcess


torch = pytest.importorskip("torch")

CPU = (Device(kind="cpu", key="cpu0"),)
FACTS = DeviceFacts(
    key="cpu0",
    uuid="CPU-0",
    name="a processor",
    kind="cpu",
    flop_per_clock_per_sm={"fp32": 32.0},
)


def request(kernel="gemm_fp32", **fields):
    return Run(
        **{
            "identifier": 1,
            "kernel": kernel,
            "device": 0,
            "allowance_seconds": 0.5,
            "max_chunk_seconds": 0.001,
            "gap_seconds": 0.0,
            "timed_runs": 5,
        }
        | fields
    )


@pytest.fixture(scope="module")
def worker():
    """One worker for the tests that do it no harm."""
    made = WorkerProcess(CPU, (), ProbeConfig(chunk_deadline_seconds=2.0))
    made.start()
    made.describe(0)
    yield made
    made.close()


def test_it_describes_the_processor(worker):
    """Kernels, versions, a thread for each core that it may use, its resident memory."""
    described = worker.describe(0)

    assert "gemm_fp32" in [each.name for each in described.kernels]
    assert described.versions.startswith("torch ")
    assert described.units == read_processor().threads
    assert 50e6 < described.memory_bytes < 1e9


def test_it_measures_a_gemm(worker):
    """A speed between that of a pocket calculator and of a rack."""
    result = worker.run(request()).result

    assert result is not None
    assert 1e8 < result.work_per_run / min(result.run_seconds) < 1e14


def test_a_second_worker_gets_the_same_bits(worker):
    """Silent corruption can be detected because results are deterministic."""
    first = worker.run(request(shape=(96, 96, 96))).result
    other = WorkerProcess(CPU, (), ProbeConfig(chunk_deadline_seconds=2.0))
    try:
        other.start()
        other.describe(0)
        second = other.run(request(shape=(96, 96, 96))).result
    finally:
        other.close()

    assert first.digest == second.digest


def test_inherited_environment_settings_change_no_bits(worker, monkeypatch):
    """MKL_CBWR makes MKL take another path, with other bits: in the daemon's environment, not in ours."""
    first = worker.run(request(shape=(192, 192, 192))).result
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    other = WorkerProcess(CPU, (), ProbeConfig(chunk_deadline_seconds=2.0))
    try:
        other.start()
        other.describe(0)
        second = other.run(request(shape=(192, 192, 192))).result
    finally:
        other.close()

    assert first.digest == second.digest


def test_it_comes_after_the_server_in_everything(worker):
    """In processor time, first to go when memory runs out, and without gigabytes of a core dump."""
    process = Path(f"/proc/{worker.pid}")

    assert int((process / "stat").read_text().rsplit(")", 1)[1].split()[16]) >= 5
    assert (process / "oom_score_adj").read_text().strip() == "1000"
    assert resource.prlimit(worker.pid, resource.RLIMIT_CORE)[0] <= 1


@pytest.mark.parametrize(
    ("module", "outcome", "words"),
    [
        ("raise ModuleNotFoundError('no torch', name='torch')", "torch_missing", "no torch"),
        ("import not_there", "error", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise ImportError('libcudart.so.13: failed to map segment')", "error", "failed to map"),
        ("raise OSError('libcublas.so.13: cannot open')", "error", "libcublas.so.13: cannot open"),
    ],
)
def test_a_torch_that_is_broken_is_not_a_torch_that_is_missing(tmp_path, module, outcome, words):
    """Installing it again would not help: its own message is shown, and the worker backs off."""
    (tmp_path / "torch.py").write_text(module)
    environment = worker_environment((), 1)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    broken = WorkerProcess(CPU, (), ProbeConfig(), environment=environment)
    with pytest.raises(WorkerFailedError) as caught:
        broken.start()

    assert caught.value.outcome == outcome
    assert words in caught.value.text


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda_says_so_on_a_gpu():
    """What `pip install torch` gives on some hosts: one line with the remedy."""
    without = WorkerProcess((Device(kind="cuda", key="0"),), ("GPU-0",), ProbeConfig())
    without.start()
    with pytest.raises(WorkerFailedError, match="this torch is built without CUDA; install one"):
        without.describe(0)


def test_an_unknown_kernel_is_refused_with_a_hint(worker):
    """The worker says so and lives on."""
    report = worker.run(request("gemm_fp3"))

    assert report.failure == "error"
    assert worker.alive


def test_device_time_stays_within_the_allowance(worker):
    """Of 8 ms, with the size given: less is taken than allowed and one chunk more."""
    report = worker.run(request(shape=(64, 64, 64), allowance_seconds=0.008, timed_runs=10_000))

    assert report.result is not None or report.short_of_allowance
    assert report.device_seconds < 0.008 + 2.0


def test_killed_in_its_work(worker):
    """A worker killed mid-run is an error, and gone."""
    doomed = WorkerProcess(CPU, (), ProbeConfig(chunk_deadline_seconds=2.0))
    doomed.start()
    doomed.describe(0)
    import threading

    threading.Timer(0.2, os.kill, (doomed.pid, signal.SIGKILL)).start()
    # Ten runs of 2 · 2048³ FLOP: more than a fifth of a second for any core.
    report = doomed.run(request(shape=(2048, 2048, 2048), timed_runs=60, allowance_seconds=100))

    assert report.failure == "error"
    assert "SIGKILL" in report.text
    assert not doomed.alive


def test_memory_that_runs_out_is_out_of_memory(monkeypatch):
    """With its address space filled, the worker says so, ends, and another can start."""
    full = WorkerProcess(CPU, (), ProbeConfig(chunk_deadline_seconds=2.0))
    full.start()
    size = int(Path(f"/proc/{full.pid}/statm").read_text().split()[0]) * 4096
    resource.prlimit(full.pid, resource.RLIMIT_AS, (size + 8 * 2**20, -1))
    with pytest.raises(Exception, match=r"allocate memory|MemoryError") as caught:
        full.describe(0)

    assert caught.value.outcome == "out_of_memory"
    assert not full.alive


def test_it_dies_with_the_daemon(tmp_path):
    """The daemon killed by SIGKILL has no time to clean up: the kernel does."""
    script = tmp_path / "daemon.py"
    script.write_text(
        textwrap.dedent(
            """
            import time
            from probes.config import ProbeConfig
            from probes.protocol import Device
            from probes.supervisor import WorkerProcess

            worker = WorkerProcess((Device(kind="cpu", key="cpu0"),), (), ProbeConfig())
            worker.start()
            print(worker.pid, flush=True)
            time.sleep(60)
            """
        )
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    ) as daemon:
        pid = int(daemon.stdout.readline())
        daemon.kill()
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived the daemon")


def test_the_service_probes_the_processor(tmp_path):
    """From start to snapshot: real kernels in a real worker, and the state on disk."""
    service = ProbeService(
        ProbeConfig(
            interval_seconds=1.0,
            budget_seconds=0.5,
            pause_file=None,
            kernels=("gemm_fp32", "launch"),
            chunk_deadline_seconds=2.0,
        ),
        lambda: [FACTS],
        state_path=tmp_path / "state.json",
        hostname="a",
    )
    service.start()
    try:
        for _ in range(1200):
            devices = service.snapshot().devices
            if devices and devices[0].launch_latency_seconds and devices[0].flops:
                break
            time.sleep(0.1)
    finally:
        service.stop()
    seen = service.snapshot().devices[0]

    assert seen.flops.keys() == {"fp32"}
    assert seen.launch_latency_seconds > 0
    assert seen.gpu_seconds > 0
    assert sum(seen.runs.values()) >= 2
    assert (tmp_path / "state.json").exists()
    assert seen.worker_pid is None
