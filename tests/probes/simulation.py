"""A simulated host: a clock that jumps, devices that change, workers that follow a script."""

import itertools
from collections import deque
from dataclasses import dataclass, field

from flopwatch.state_file import StateFile
from probes.config import ProbeConfig
from probes.facts import DeviceFacts
from probes.protocol import Described, Hello, KernelInfo, Result
from probes.scheduler import Scheduler
from probes.supervisor import RunReport, WorkerFailedError


GIB = 2**30


def gpu(number=0, **fields):
    """An idle H100."""
    return DeviceFacts(
        **{
            "key": str(number),
            "uuid": f"GPU-{number}",
            "name": "NVIDIA H100",
            "kind": "cuda",
            "free_memory_bytes": 80 * GIB,
            "flop_per_clock_per_sm": {"bf16": 4096.0},
            "sm_clock_max_hertz": 1.98e9,
            "headline_precision": "bf16",
        }
        | fields
    )


class SimulatedClock:
    """Time passes only when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now + 1.7e9

    def wait(self, event, seconds):
        self.now += max(0.0, seconds)
        return event.is_set()


@dataclass
class Ending:
    """How a run ends, and what share of its allowance it uses."""

    how: str = "ok"
    share: float = 0.2
    changes: dict = field(default_factory=dict)


class FakeWorker:
    """Ends its runs as scripted, and lets time pass meanwhile."""

    pids = itertools.count(50_000)

    def __init__(self, host, devices, config):
        self.host, self.devices, self.config = host, devices, config
        self.alive, self.pid, self.started = False, None, 0.0
        host.workers.append(self)

    @property
    def age_seconds(self):
        return self.host.clock.now - self.started if self.alive else None

    def start(self):
        self.host.started.append(tuple(facts.uuid for facts in self.devices))
        self.host.clock.now += 3.0
        if self.host.start_fails:
            raise WorkerFailedError(self.host.start_fails, "cannot")
        self.alive, self.pid, self.started = True, next(self.pids), self.host.clock.now
        return Hello(protocol=1, pid=self.pid, torch_version="0")

    def describe(self, device):
        self._take(device, 0.0005)
        why = self.host.describe_fails.get(self.devices[device].uuid)
        if why is not None:
            self.alive = False
            raise WorkerFailedError("error", why, 0.0005)
        return Described(
            device=device,
            kernels=self.host.kernels,
            versions=self.host.versions,
            units=132,
            memory_bytes=self.host.memory_bytes,
            device_seconds=0.0005,
        )

    def run(self, request):
        self.host.requests.append(request)
        ending = self.host.script.popleft() if self.host.script else Ending()
        changes = self.host.changes_of(request) | ending.changes
        seconds = request.allowance_seconds * ending.share
        if ending.how in ("hang", "crash_late"):
            seconds = request.allowance_seconds + self.config.chunk_deadline_seconds
        self._take(request.device, seconds)
        if self.host.after_run is not None:
            self.host.after_run()
        if ending.how == "ok":
            return RunReport(self._result(request, **changes), seconds)
        if ending.how == "allowance":
            return RunReport(None, seconds, short_of_allowance=True)
        if ending.how.startswith("dies in ") and request.kernel not in ending.how:
            return RunReport(self._result(request, **changes), seconds)
        self.alive = False
        outcome = {"hang": "timeout", "out_of_memory": "out_of_memory"}.get(ending.how, "error")
        return RunReport(None, seconds, outcome, text=ending.how)

    def close(self):
        if self.alive:
            self.host.closed.append(tuple(facts.uuid for facts in self.devices))
        self.alive, self.pid = False, None

    def interrupt(self):
        self.alive = False

    def _take(self, device, seconds):
        uuid = self.devices[device].uuid
        self.host.used.append((uuid, self.host.clock.now, seconds))
        self.host.clock.now += seconds + 0.05

    def _result(self, request, **changes):
        fields = {
            "identifier": request.identifier,
            "shape": request.shape or (2048, 2048, 11920),
            "work_per_run": 1e11,
            "run_seconds": (0.000125,) * 7,
            "executed_runs": 12,
            "clock_hertz": 1.755e9,
            "digest": "aa",
            "repeats_agree": True,
            "exact": None,
            "memory_bytes": 550_000_000,
        }
        return Result(**(fields | changes))


GEMM = KernelInfo(name="gemm_bf16", quantity="flops", label="bf16")
COPY = KernelInfo(name="copy_device", quantity="bandwidth", label="device")
PEER = KernelInfo(name="copy_peer", quantity="bandwidth", label="peer")
LAUNCH = KernelInfo(name="launch", quantity="latency", label="")


class Host:
    """Everything around a scheduler, simulated except for the state file."""

    def __init__(self, folder, devices=None, **config):
        self.clock = SimulatedClock()
        self.devices = [gpu()] if devices is None else devices
        self.kernels = (GEMM,)
        self.versions = "torch 2 cuda 13"
        self.script = deque()
        self.start_fails = None
        self.workers = []
        # By device, why it cannot be opened.
        self.describe_fails = {}
        self.memory_bytes = 500_000_000
        self.after_run = None
        # Depth of the products that are slow, or wrong; and whether requested shapes are not taken.
        self.slow_depth = self.corrupt_depth = None
        self.own_shape = False
        self.started, self.closed, self.requests, self.used = [], [], [], []
        self.path = folder / "state.json"
        self.config = ProbeConfig(**({"pause_file": None} | config))
        self.scheduler = self.boot()

    def changes_of(self, request):
        """What is different about a run of this shape."""
        if not request.shape:
            return {}
        if self.own_shape:
            return {"shape": (2048, 2048, 11920)}
        if request.shape[2] == self.slow_depth:
            return {"run_seconds": (0.00025,) * 7}
        return {"digest": "bb"} if request.shape[2] == self.corrupt_depth else {}

    def boot(self):
        """A scheduler as after a start of the daemon."""
        self.scheduler = Scheduler(
            self.config,
            lambda: self.devices,
            StateFile(self.path),
            self.clock,
            lambda devices, config: FakeWorker(self, list(devices), config),
        )
        return self.scheduler

    def cycle(self, after=60.0):
        """Let time pass and run one cycle."""
        self.clock.now += after
        self.scheduler.cycle()
        return self.snapshot()

    def snapshot_or_none(self):
        """The first device's snapshot, if a cycle has seen a device."""
        devices = self.scheduler.snapshot(running=True).devices
        return devices[0] if devices else None

    def snapshot(self):
        """The first device's snapshot."""
        return self.scheduler.snapshot(running=True).devices[0]
