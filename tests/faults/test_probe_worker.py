"""Whatever happens to the probe process, the daemon continues and reports it."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.faults.invariants import Witness
from tests.faults.probing import BACKOFF_SECONDS, MEASURED, children, probing, runs
from tests.faults.refusals import Refusals


pytestmark = pytest.mark.timeout(400)
RESTARTS = "flopwatch_probe_worker_restarts_total"


class Probing:
    """The daemon, its worker and the witness of its scrapes."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.witness = Witness(daemon, window_seconds=1.5)
        self.witness.until(lambda scrape: runs(scrape, outcome="ok") >= 2, 120)

    @property
    def pid(self) -> int:
        return self.daemon.process.pid

    @property
    def worker(self) -> int:
        (worker,) = children(self.pid)
        return worker

    def failed(self, before: Scrape, seconds: float = 60.0) -> Scrape:
        """Wait until a run was lost; the processor is still watched, the worker completely gone."""
        lost = self.witness.until(lambda scrape: bad(scrape) > bad(before), seconds)
        assert lost.value("flopwatch_gpu_up", gpu="cpu0") == 1
        self.daemon.wait_for(lambda: not children(self.pid))
        return lost

    def back(self, since: Scrape) -> Scrape:
        """Wait for the next worker's first good runs."""
        return self.witness.until(
            lambda scrape: runs(scrape, outcome="ok") > runs(since, outcome="ok") + 1,
            2 * BACKOFF_SECONDS + 60,
        )


def bad(scrape: Scrape) -> float:
    """Runs that the worker did not finish."""
    return runs(scrape, outcome="error") + runs(scrape, outcome="timeout")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Probing]:
    """A daemon whose worker has probed."""
    with probing(tmp_path, tmp_path / "state.json") as daemon:
        yield Probing(daemon)


def kill(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


def hang(worker: int) -> None:
    os.kill(worker, signal.SIGSTOP)


def corrupt(worker: int) -> None:
    """Write into the worker's pipe to the daemon, pretending to be the worker."""
    arguments = Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
    with Path(f"/proc/{worker}/fd/{int(arguments[-2])}").open("wb", buffering=0) as pipe:
        pipe.write(b"\x00\x00\x00\x05hello" * 100)


def test_a_worker_that_is_killed(node: Probing) -> None:
    """If idle, it is replaced at once and no run is lost; during a run, only that run is lost."""
    before, worker = node.witness.scrape(), node.worker
    kill(worker)
    again = node.witness.until(
        lambda scrape: (
            scrape.value(RESTARTS) == 1 and runs(scrape, outcome="ok") > runs(before, outcome="ok")
        ),
        2 * BACKOFF_SECONDS + 60,
    )

    assert bad(again) <= bad(before) + 1
    assert node.worker != worker
    assert node.daemon.get("/-/ready")[0] == 200
    assert "Traceback" not in node.daemon.log


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "outcome"), [(hang, "timeout"), (corrupt, "error")])
def test_a_worker_is_replaced(node: Probing, harm: Callable[[int], None], outcome: str) -> None:
    """Killed, hung or sending garbage: reaped, counted, and replaced after the backoff."""
    before, worker = node.witness.scrape(), node.worker
    harm(worker)
    lost = node.failed(before)
    assert runs(lost, outcome=outcome) == runs(before, outcome=outcome) + 1
    # The last measurement is as old as 15 intervals at most, and then gone.
    node.witness.until(lambda scrape: not any(scrape.has(name) for name in MEASURED))

    again = node.back(lost)
    assert again.value(RESTARTS) == 1
    assert node.worker != worker
    assert again.has("flopwatch_probe_flops", precision="fp32")
    assert "Traceback" not in node.daemon.log


@pytest.mark.slow
def test_no_process_can_be_started(tmp_path: Path) -> None:
    """fork returns EAGAIN: a failed start, counted and retried; everything else continues."""
    node_limits = Refusals(tmp_path)
    with probing(tmp_path, tmp_path / "state.json", node_limits.env) as daemon:
        node = Probing(daemon)
        before = node.witness.scrape()
        node_limits.refuse("processes")
        kill(node.worker)
        lost = node.failed(before)
        refused = node.witness.until(lambda scrape: bad(scrape) > bad(lost), 60)
        assert "the worker cannot be started" in daemon.log
        assert node.daemon.get("/-/ready")[0] == 200

        node_limits.allow("processes")
        again = node.back(refused)
        assert again.value("flopwatch_gpu_up", gpu="cpu0") == 1
        assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_no_descriptor_for_a_worker(node: Probing) -> None:
    """Too many open files: a failed start that leaves nothing open, and is retried."""
    before = node.witness.scrape()
    kill(node.worker)
    lost = node.failed(before)
    descriptors = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))
    soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    # Enough for a scrape, and for part of a worker's pipes.
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (descriptors + 4, hard))
    node.daemon.wait_for(lambda: "the worker cannot be started" in node.daemon.log, 60)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))

    node.daemon.wait_for(
        lambda: len(list(Path(f"/proc/{node.pid}/fd").iterdir())) <= descriptors + 1
    )
    node.back(lost)
    assert "Traceback" not in node.daemon.log
