"""The probes on this host's processor against what they have to reach, as one table.

    python benchmarks/probes_cpu.py

* fp32 GEMM: at least 95 % of the best of a long torch sweep of sizes, in the same run;
* spread (standard deviation over mean) of ten probes in quiet moments: at most 3 %;
* copy: within 5 % of a STREAM-like copy of the same size, in the same run;
* cost: device time per probe, the worker's memory, the time to start it;
* a daemon without probes: no thread, no process, no torch.

Probe and reference alternate, so that a machine that slows down slows both. All run on one thread
of one core. The reference, which knows nothing of the probe, says which moments are quiet: those
before and after which its own GEMM takes within 2 % of its fastest in the whole run. A virtual
machine's core was seen at half its speed for seconds while the load average stood at 0.1.
The spread over all moments is printed beside. The exit code is 1 when a target is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from probes.config import ProbeConfig
from probes.device import CACHE_MULTIPLE, cache_size_bytes
from probes.facts import DeviceFacts
from probes.judgement import judge, undisturbed_run
from probes.prober import TIMED_RUNS
from probes.protocol import Device, Run
from probes.supervisor import WorkerProcess


# Ten quiet ones count; so many moments are tried at most.
ROUNDS = 10
ROUNDS_MAX = 80
QUIET = 1.02
# As in STREAM: ten, the first excluded. Of the others those count that agree with the fastest, as
# with the probe: the very fastest alone is often one that found a cache empty of others' data.
STREAM_RUNS = 10
# More than a probe takes; what it takes is a row of the table.
ALLOWANCE_SECONDS = 1.0
ATTEMPTS = 20
# The sweep, in a process of its own, with torch alone: every size for so long, the best median.
SWEEP = """
import json, statistics, sys, time
import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)
now = time.perf_counter_ns


def median(run, seconds):
    until, spans = now() + seconds * 1e9, []
    for _ in range(3):
        run()
    while now() < until or len(spans) < 5:
        start = now()
        run()
        spans.append(now() - start)
    return statistics.median(spans) / 1e9


def sweep(seconds):
    torch.manual_seed(0)
    best = (0.0, 0)
    for n in (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024):
        a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        best = max(best, (2 * n**3 / median(lambda: torch.mm(a, b.t(), out=c), seconds), n))
    return best


def stream(size, total, runs):
    # As in STREAM's copy: two arrays far larger than the caches, gone through piece after piece.
    if not pieces:
        source, target = torch.ones(total, dtype=torch.uint8), torch.zeros(total, dtype=torch.uint8)
        pieces.extend((target[s : s + size], source[s : s + size]) for s in range(0, total, size))
    spans = []
    for _ in range(runs):
        start = now()
        to, of = pieces[number[0] % len(pieces)]
        to.copy_(of)
        spans.append(now() - start)
        number[0] += 1
    return [span / 1e9 for span in spans[1:]]


def still():
    # The fastest of ten GEMMs that fit the core's own cache: what the core does at this moment.
    spans = []
    for _ in range(10):
        start = now()
        torch.mm(square, square, out=product)
        spans.append(now() - start)
    return min(spans) / 1e9


pieces, number = [], [0]
square, product = torch.randn(256, 256), torch.empty(256, 256)
commands = {"sweep": sweep, "stream": stream, "still": still}
for line in sys.stdin:
    name, *given = json.loads(line)
    print(json.dumps(commands[name](*given)), flush=True)
"""
NO_PROBES = """
import json, sys, threading
from pathlib import Path
from probes.config import ProbeConfig
from probes.service import ProbeService

service = ProbeService(ProbeConfig(enabled=False), lambda: [], state_path=Path("/nonexistent"))
service.start()
children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
print(json.dumps([len(threading.enumerate()) - 1, len(children), "torch" in sys.modules]))
"""


class Reference:
    """torch alone, in its own process, asked line by line."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SWEEP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            text=True,
        )

    def ask(self, *request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Probe:
    """The probe as the daemon runs it: default chunks, gaps and number of runs."""

    def __init__(self) -> None:
        self._config = ProbeConfig()
        self._worker = WorkerProcess((Device(kind="cpu", key="cpu0"),), (), self._config)
        started = time.monotonic()
        self._worker.start()
        described = self._worker.describe(0)
        self._kernels = {kernel.name: kernel for kernel in described.kernels}
        self._facts = DeviceFacts(key="cpu0", uuid="CPU", name="", kind="cpu")
        self.start_seconds = time.monotonic() - started
        self.shapes = {}
        self.seconds = {}
        self.memory_bytes = 0
        self.rejected = 0

    def measure(self, kernel):
        """Work per second, judged as the daemon does; what it would not accept is repeated."""
        for _ in range(ATTEMPTS):
            verdict = self._judged(kernel)
            if verdict.value is not None:
                return verdict.value
            self.rejected += 1
        return sys.exit(f"{kernel}: no probe accepted in {ATTEMPTS}: the machine is too busy")

    def _judged(self, kernel):
        report = self._worker.run(
            Run(
                identifier=1,
                kernel=kernel,
                device=0,
                allowance_seconds=ALLOWANCE_SECONDS,
                max_chunk_seconds=self._config.max_chunk_seconds,
                gap_seconds=self._config.gap_seconds,
                timed_runs=TIMED_RUNS,
                shape=self.shapes.get(kernel, ()),
            )
        )
        if report.result is None:
            sys.exit(f"{kernel}: {report.failure} {report.text}")
        self.shapes[kernel] = report.result.shape
        self.seconds.setdefault(kernel, []).append(report.device_seconds)
        self.memory_bytes = report.result.memory_bytes
        return judge(
            self._kernels[kernel],
            report.result,
            self._facts,
            units=1,
            baseline=None,
            expected_digest=None,
            shared=False,
        )

    def close(self) -> None:
        self._worker.close()


class Moments:
    """What was measured: in quiet moments, and in all."""

    def __init__(self, taken) -> None:
        fastest = min(min(before, after) for before, _, after in taken)
        self.all = [value for _, value, _ in taken]
        self.quiet = [
            value for before, value, after in taken if max(before, after) <= QUIET * fastest
        ]


def in_quiet_moments(reference, measure):
    """Measure until ten quiet moments are found; quiet is known only in hindsight."""
    taken = []
    while len(taken) < ROUNDS_MAX:
        taken.append((reference.ask("still"), measure(), reference.ask("still")))
        if len(taken) >= ROUNDS and len(Moments(taken).quiet) >= ROUNDS:
            break
    moments = Moments(taken)
    if len(moments.quiet) < ROUNDS:
        sys.exit(f"{len(moments.quiet)} quiet moments of {len(taken)}: the machine is too busy")
    return moments


def streamed(reference, size, total):
    """Bytes per second of the STREAM-like copy, repeated like the probe until runs agree."""
    for _ in range(ATTEMPTS):
        span = undisturbed_run(reference.ask("stream", size, total, STREAM_RUNS))
        if span is not None:
            return 2 * size / span
    return sys.exit(
        f"no {STREAM_RUNS} copies agreed in {ATTEMPTS} attempts: the machine is too busy"
    )


def spread(values):
    return statistics.stdev(values) / statistics.fmean(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="per size of the sweep")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    # The children inherit it. Cores differ in what their neighbours do to them.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    probe, reference = Probe(), Reference()
    try:
        for kernel in ("gemm_fp32", "copy_device"):
            probe.measure(kernel)
        gemms = in_quiet_moments(reference, lambda: probe.measure("gemm_fp32"))
        sweeps = [reference.ask("sweep", arguments.seconds) for _ in range(3)]
        size = probe.shapes["copy_device"][0]
        # Arrays of the probe's size: half of what it rotates over is read, the other half written.
        total = CACHE_MULTIPLE * (cache_size_bytes(3) or 32 * 2**20) // 2 // size * size
        copies = in_quiet_moments(
            reference,
            lambda: (probe.measure("copy_device"), streamed(reference, size, total)),
        )
    finally:
        probe.close()
        reference.close()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.py").write_text(NO_PROBES)
        done = subprocess.run(
            [sys.executable, f"{folder}/probe.py"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    threads, processes, torch_loaded = json.loads(done.stdout)

    sweep_rate, best_size = max(sweeps, key=lambda pair: pair[0])
    gemm = statistics.median(gemms.quiet)
    copy = statistics.median(ours for ours, _ in copies.quiet)
    stream_rate = statistics.median(theirs for _, theirs in copies.quiet)
    against_stream = statistics.median(ours / theirs for ours, theirs in copies.quiet)
    n = probe.shapes["gemm_fp32"][0]
    rows = [
        ("fp32 GEMM, probe", f"{gemm / 1e9:.2f} GFLOP/s at {n}", "", ""),
        ("fp32 GEMM, sweep's best", f"{sweep_rate / 1e9:.2f} GFLOP/s at {best_size}", "", ""),
        _row("probe over sweep's best", gemm / sweep_rate, ">= 95 %", gemm / sweep_rate >= 0.95),
        _row(
            f"spread of {len(gemms.quiet)} GEMM probes in quiet moments",
            spread(gemms.quiet),
            "<= 3 %",
            spread(gemms.quiet) <= 0.03,
        ),
        _row(f"spread of all {len(gemms.all)} GEMM probes", spread(gemms.all), "", None),
        ("copy, probe", f"{copy / 1e9:.2f} GB/s in pieces of {size // 2**20} MiB", "", ""),
        ("copy, STREAM-like", f"{stream_rate / 1e9:.2f} GB/s", "", ""),
        _row(
            "probe over STREAM-like", against_stream, "within 5 %", abs(against_stream - 1) <= 0.05
        ),
        _row(
            f"spread of {len(copies.quiet)} copy probes in quiet moments",
            spread([ours for ours, _ in copies.quiet]),
            "",
            None,
        ),
        ("probes not accepted, and repeated", f"{probe.rejected}", "", ""),
        ("device time of a GEMM probe", _milliseconds(probe.seconds["gemm_fp32"][1:]), "", ""),
        ("device time of a copy probe", _milliseconds(probe.seconds["copy_device"][1:]), "", ""),
        ("worker memory", f"{probe.memory_bytes / 1e6:.0f} MB", "", ""),
        ("worker start", f"{probe.start_seconds:.1f} s", "", ""),
        (
            "without probes",
            f"{threads} threads, {processes} processes, torch {'loaded' if torch_loaded else 'not loaded'}",
            "none",
            "met" if (threads, processes, torch_loaded) == (0, 0, False) else "MISSED",
        ),
        ("load before and after", f"{load_before:.2f}, {os.getloadavg()[0]:.2f}", "", ""),
    ]
    if arguments.json:
        print(
            json.dumps(
                [dict(zip(("what", "value", "target", "verdict"), r, strict=True)) for r in rows]
            )
        )
    else:
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    return 1 if any(row[3] == "MISSED" for row in rows) else 0


def _row(what, ratio, target, met):
    verdict = "" if met is None else "met" if met else "MISSED"
    return (what, f"{ratio:.1%}", target, verdict)


def _milliseconds(seconds):
    return f"{statistics.median(seconds) * 1e3:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
