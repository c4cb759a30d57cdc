"""The probes on this host's processor against their goals, as one table.

    python benchmarks/probes_cpu.py               about three minutes
    python benchmarks/probes_cpu.py --cycles 120  as many cycles as two hours have, shortened to 2 s
    python benchmarks/probes_cpu.py --hours 2     only a daemon with the default budget, for two hours

* fp32 and bf16 GEMM: at least 90 % of torch's best over a sweep of sizes, in the same minute;
* beside a busy loop on one core, and beside four on each: no accepted value below 80 % of that;
* copy: within 20 % of a STREAM-like copy of the same size, in the same minute;
* a daemon as a user starts it: the headline in its status within 60 s, and its FLOPS also beside
  four busy loops on each core;
* its idle worker, killed: another one within 10 s, and no failed kernel;
* the given cycles or hours of a daemon: no failed run, and no moment without headline figures after
  the first;
* a daemon without probes: no thread, no process, no torch.

torch's best is the mean of the three fastest runs at its fastest size: more than any median. The
reference, in its own process, uses the same number of threads. The load of the host is printed, because it is
part of every figure. The exit code is 1 when a target is missed.
"""

import argparse
import collections
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from flopwatch.processor import read_processor
from probes.config import ProbeConfig
from probes.cpu import last_level_bytes
from probes.device import CACHE_MULTIPLE
from probes.environment import worker_environment
from probes.facts import DeviceFacts
from probes.judgement import judge
from probes.prober import TIMED_RUNS
from probes.protocol import Device, Run
from probes.supervisor import WorkerProcess


ROUNDS = 5
LOADED_ROUNDS = 20
LOOPS_PER_CORE = 4
LOOK_SECONDS = 15.0
# As a first cycle on a processor may spend.
ALLOWANCE_SECONDS = 0.060
ATTEMPTS = 60
QUIET_SHARE = 0.90
LOADED_SHARE = 0.80
HEADLINE_SECONDS = 60.0
HEADLINE_FIGURES = ("flops", "bandwidth_bytes_per_second")
RESTART_SECONDS = 10.0
FAILURES = ("error", "timeout", "out_of_memory", "mismatch")
PORT = 19907
SWEEP = """
import json, sys, time
import torch

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
now = time.perf_counter_ns


def best(seconds, dtype):
    found = (0.0, 0)
    for n in (128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048):
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        c = torch.empty(n, n, dtype=dtype)
        until, spans = now() + seconds * 1e9, []
        for _ in range(3):
            torch.mm(a, b.t(), out=c)
        while now() < until or len(spans) < 5:
            start = now()
            torch.mm(a, b.t(), out=c)
            spans.append(now() - start)
        found = max(found, (2 * n**3 / (sum(sorted(spans)[:3]) / 3 / 1e9), n))
    return found


def stream(size, total):
    # As in STREAM's copy: two arrays far larger than the caches, gone through piece after piece.
    source, target = torch.ones(total, dtype=torch.uint8), torch.zeros(total, dtype=torch.uint8)
    spans = []
    for start in range(0, total - size + 1, size):
        begun = now()
        target[start : start + size].copy_(source[start : start + size])
        spans.append(now() - begun)
    return 2 * size / (sum(sorted(spans)[:3]) / 3 / 1e9)


commands = {
    "fp32": lambda seconds: best(seconds, torch.float32),
    "bf16": lambda seconds: best(seconds, torch.bfloat16),
    "stream": stream,
}
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
    """torch alone, in its own process, driven line by line."""

    def __init__(self) -> None:
        processor = read_processor()
        self._process = subprocess.Popen(
            [sys.executable, "-c", SWEEP, str(processor.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment((), processor.threads),
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
        self._described = self._worker.describe(0)
        self.kernels = {kernel.name: kernel for kernel in self._described.kernels}
        self._facts = DeviceFacts(key="cpu0", uuid="CPU", name="", kind="cpu")
        self.start_seconds = time.monotonic() - started
        self.shapes = {}
        self.seconds = {}
        self.memory_bytes = 0

    def measure(self, kernel):
        """Work per second where it is accepted, else None; the size is kept once one was accepted."""
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
        if report.short_of_allowance:
            return None  # the allowance ended because too many runs were preempted
        if report.result is None:
            sys.exit(f"{kernel}: {report.failure} {report.text}")
        verdict = judge(
            self.kernels[kernel],
            report.result,
            self._facts,
            units=self._described.units,
            baseline=None,
            expected_digest=None,
            shared=False,
        )
        if verdict.value is not None:
            if kernel in self.shapes:
                self.seconds.setdefault(kernel, []).append(report.device_seconds)
            self.shapes[kernel] = report.result.shape
        self.memory_bytes = report.result.memory_bytes
        return verdict.value

    def close(self) -> None:
        self._worker.close()


class Daemon:
    """flopwatch as a user starts it, with its own port and state file."""

    def __init__(self, folder, probes) -> None:
        path = Path(folder, "flopwatch.yaml")
        settings = {"state_file": f"{folder}/state.json", "sources": {"nvml": "off"}}
        path.write_text(json.dumps(settings | {"probes": {"pause_file": None, **probes}}))
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "flopwatch", "serve", "--config.file", str(path)),
                *("--web.listen-address", f"127.0.0.1:{PORT}"),
            ],
            stderr=subprocess.DEVNULL,
        )

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
            return answer.read().decode()

    def attainable(self):
        """The headline of the page; None while there is none."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return json.loads(self.get("/api/v1/status"))["devices"][0]["attainable"]
        return None

    def missing(self):
        """The headline figures that the status does not have."""
        could = self.attainable() or {}
        return [name for name in HEADLINE_FIGURES if not could.get(name)]

    def headline(self):
        return not self.missing()

    def runs(self):
        """Runs by outcome."""
        counts = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith("flopwatch_probe_runs_total{"):
                outcome = line.partition('outcome="')[2].partition('"')[0]
                counts[outcome] = counts.get(outcome, 0) + float(line.rpartition(" ")[2])
        return counts

    def worker(self):
        """The process id of the probes' worker; None while there is none."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                command = (path.parent / "cmdline").read_bytes()
                if parent == self._process.pid and b"probes.worker" in command:
                    return int(path.parent.name)
        return None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def until(condition, seconds, step=0.25):
    """Seconds until it holds; None when it does not within `seconds`."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(step)
    return None


def quiet_rows(probe, reference, precision, seconds):
    """The probe over torch's best, round by round in turn; the median round counts."""
    kernel, shares, rejected, best = f"gemm_{precision}", [], 0, (0.0, 0)
    for _ in range(ROUNDS):
        best = max(best, tuple(reference.ask(precision, seconds)))
        value = None
        for _ in range(ATTEMPTS):
            value = probe.measure(kernel)
            if value is not None:
                break
            rejected += 1
            time.sleep(0.05)
        if value is not None:
            shares.append(value)
    if not shares:
        return best[0], [(f"{precision}: no probe accepted", f"{rejected} rejected", "", "MISSED")]
    value = statistics.median(shares)
    share = value / best[0]
    size = probe.shapes[kernel][0]
    return best[0], [
        (f"{precision} probe", f"{value / 1e9:.0f} GFLOP/s at {size}, {rejected} rejected", "", ""),
        (f"{precision}, torch's best", f"{best[0] / 1e9:.0f} GFLOP/s at {best[1]}", "", ""),
        row(f"{precision} probe over torch's best", share, ">= 90 %", share >= QUIET_SHARE),
    ]


@contextlib.contextmanager
def busy_loops(cores):
    """A busy loop on each of these cores."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(["taskset", "-c", str(core), *command]) for core in cores]
    try:
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def loaded_rows(probe, precision, best):
    """Beside busy loops: what is accepted must be near the machine's best."""
    cores = read_processor().cores
    loads = {"one busy loop": cores[:1], f"{LOOPS_PER_CORE} on each core": cores * LOOPS_PER_CORE}
    rows = []
    for name, loops in loads.items():
        accepted = []
        with busy_loops(loops):
            for _ in range(LOADED_ROUNDS):
                accepted.append(probe.measure(f"gemm_{precision}"))
                time.sleep(0.05)
        values = [value for value in accepted if value is not None]
        said = f"{len(values)} of {LOADED_ROUNDS} accepted"
        rows.append((f"{precision} beside {name}", said, "", ""))
        if values:
            lowest = min(values) / best
            rows.append(row("  lowest accepted", lowest, ">= 80 %", lowest >= LOADED_SHARE))
    return rows


def copy_rows(probe, reference):
    values = [value for _ in range(ATTEMPTS) if (value := probe.measure("copy_device")) is not None]
    if not values:
        return [("copy: no probe accepted", "", "", "MISSED")]
    size = probe.shapes["copy_device"][0]
    total = CACHE_MULTIPLE * last_level_bytes() // 2 // size * size
    stream = max(reference.ask("stream", size, total) for _ in range(ROUNDS))
    copy = statistics.median(values)
    return [
        ("copy probe", f"{copy / 1e9:.1f} GB/s in pieces of {size // 2**20} MiB", "", ""),
        ("copy, STREAM-like", f"{stream / 1e9:.1f} GB/s", "", ""),
        row(
            "copy probe over STREAM-like",
            copy / stream,
            "within 20 %",
            abs(copy / stream - 1) <= 0.2,
        ),
    ]


def daemon_rows(folder):
    """A default daemon: its first headline, and its worker killed while idle."""
    with busy_loops(read_processor().cores * LOOPS_PER_CORE):
        daemon = Daemon(folder, {})
        try:
            took = until(lambda: (daemon.attainable() or {}).get("flops"), 2 * HEADLINE_SECONDS)
        finally:
            daemon.close()
    name = f"FLOPS after the start, beside {LOOPS_PER_CORE} busy loops on each core"
    rows = [duration(name, took, HEADLINE_SECONDS)]
    Path(folder, "state.json").unlink(missing_ok=True)
    daemon = Daemon(folder, {})
    try:
        took = until(daemon.headline, 2 * HEADLINE_SECONDS)
        rows.append(duration("headline after the start", took, HEADLINE_SECONDS))
        before = daemon.worker()
        if before is None:
            return [*rows, ("a worker to kill", "none", "", "MISSED")]
        time.sleep(3)  # the cycle has ended: the worker is idle
        os.kill(before, signal.SIGKILL)
        took = until(lambda: daemon.worker() not in (None, before), 60)
        failed = sum(daemon.runs().get(outcome, 0) for outcome in FAILURES)
        return [
            *rows,
            duration("killed idle worker back after", took, RESTART_SECONDS),
            ("failed runs after that", f"{failed:.0f}", "0", "met" if not failed else "MISSED"),
        ]
    finally:
        daemon.close()


def gap_rows(gaps, looks):
    """How often each headline figure was missing."""
    return [
        (
            f"moments without {name}",
            f"{gaps[name]} of {looks}",
            "0",
            "MISSED" if gaps[name] else "met",
        )
        for name in HEADLINE_FIGURES
    ]


def steady_rows(folder, cycles):
    """Cycles in a row, two hours' worth by default, with the interval shortened to 2 s."""
    daemon = Daemon(folder, {"interval": "2s", "budget": "20ms"})
    try:
        until(daemon.headline, 60)
        end = time.monotonic() + 2 * cycles
        looks, gaps = 0, collections.Counter()
        while time.monotonic() < end:
            looks += 1
            gaps.update(daemon.missing())
            time.sleep(0.5)
        runs = daemon.runs()
    finally:
        daemon.close()
    failed = sum(runs.get(outcome, 0) for outcome in FAILURES)
    counted = ", ".join(f"{count:.0f} {outcome}" for outcome, count in sorted(runs.items()))
    return [
        (f"runs in {cycles} cycles of 2 s", counted, "none failed", "MISSED" if failed else "met"),
        *gap_rows(gaps, looks),
    ]


def long_rows(folder, hours):
    """A default daemon for hours, scraped as often as by a Prometheus."""
    daemon = Daemon(folder, {})
    loads = []
    try:
        until(daemon.headline, 2 * HEADLINE_SECONDS)
        end = time.monotonic() + 3600 * hours
        looks, gaps = 0, collections.Counter()
        while time.monotonic() < end:
            looks += 1
            gaps.update(daemon.missing())
            loads.append(os.getloadavg()[0])
            time.sleep(LOOK_SECONDS)
        runs = daemon.runs()
    finally:
        daemon.close()
    failed = sum(runs.get(outcome, 0) for outcome in FAILURES)
    counted = ", ".join(f"{count:.0f} {outcome}" for outcome, count in sorted(runs.items()))
    return [
        (f"runs in {hours:g} h", counted, "none failed", "MISSED" if failed else "met"),
        *gap_rows(gaps, looks),
        ("load, lowest to highest", f"{min(loads):.1f} to {max(loads):.1f}", "", ""),
    ]


def no_probes_row(folder):
    Path(folder, "probe.py").write_text(NO_PROBES)
    done = subprocess.run(
        [sys.executable, f"{folder}/probe.py"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    threads, processes, torch = json.loads(done.stdout)
    met = (threads, processes, torch) == (0, 0, False)
    said = f"{threads} threads, {processes} processes, torch {'loaded' if torch else 'not loaded'}"
    return ("without probes", said, "none", "met" if met else "MISSED")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.1, help="per size of the sweep")
    parser.add_argument("--cycles", type=int, default=20, help="cycles of the daemon, of 2 s each")
    parser.add_argument("--hours", type=float, help="only a default daemon, for so many hours")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.hours is not None:
        with tempfile.TemporaryDirectory() as folder:
            return printed(long_rows(folder, arguments.hours), as_json=arguments.json)
    load_before = os.getloadavg()[0]
    rows = [("threads", str(read_processor().threads), "", "")]
    probe, reference = Probe(), Reference()
    try:
        for precision in ("fp32", "bf16"):
            if f"gemm_{precision}" in probe.kernels:
                best, quiet = quiet_rows(probe, reference, precision, arguments.seconds)
                rows += [*quiet, *loaded_rows(probe, precision, best)]
        rows += copy_rows(probe, reference)
        rows += [
            (f"device time of {kernel}", f"{statistics.median(seconds) * 1e3:.1f} ms", "", "")
            for kernel, seconds in probe.seconds.items()
        ]
        rows.append(("worker memory", f"{probe.memory_bytes / 1e6:.0f} MB", "", ""))
        rows.append(("worker start", f"{probe.start_seconds:.1f} s", "", ""))
    finally:
        probe.close()
        reference.close()
    for part in (daemon_rows, lambda folder: steady_rows(folder, arguments.cycles)):
        with tempfile.TemporaryDirectory() as folder:
            rows += part(folder)
    with tempfile.TemporaryDirectory() as folder:
        rows.append(no_probes_row(folder))
    rows.append(("load before and after", f"{load_before:.1f}, {os.getloadavg()[0]:.1f}", "", ""))
    return printed(rows, as_json=arguments.json)


def printed(rows, *, as_json):
    """Print the table; the exit code."""
    if as_json:
        print(
            json.dumps(
                [dict(zip(("what", "value", "target", "verdict"), r, strict=True)) for r in rows]
            )
        )
    else:
        widths = [max(len(r[column]) for r in rows) for column in range(4)]
        for each in rows:
            print("  ".join(c.ljust(w) for c, w in zip(each, widths, strict=True)).rstrip())
    return 1 if any(r[3] == "MISSED" for r in rows) else 0


def row(what, ratio, target, met):
    return (what, f"{ratio:.1%}", target, "met" if met else "MISSED")


def duration(what, seconds, limit):
    said = "never" if seconds is None else f"{seconds:.1f} s"
    met = seconds is not None and seconds <= limit
    return (what, said, f"<= {limit:.0f} s", "met" if met else "MISSED")


if __name__ == "__main__":
    sys.exit(main())
