"""The exporters under measurement: started on the same fake driver library, and what they use.

CPU time is to the nanosecond; memory is resident memory.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scraping import ScrapeError, scrape


PEER_REQUIREMENT = "nvitop-exporter==1.7.*"
_CACHE = Path(".cache/benchmarks")
_START_TIMEOUT_SECONDS = 60.0

# CPUCLOCK_SCHED of another process (linux/posix-timers.h): its threads, including dead ones.
_SCHEDULER_CLOCK = 2


@dataclass(frozen=True, slots=True)
class Program:
    """An exporter: how to start it on a port, and the label that identifies its GPUs."""

    name: str
    command: tuple[str, ...]
    gpu_label: str
    # A family that a full scrape has for every GPU, of the slowest source.
    full_family: str
    environment: Mapping[str, str] = field(default_factory=dict)


# As set by its systemd unit and image: one heap for all threads instead of one each.
SERVICE_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


def flopwatch(directory: Path) -> Program:
    """This project's daemon, without probes: the fake library cannot run kernels.

    Its modules are compiled beforehand, as pip does at installation: a process that compiles them
    at its start permanently keeps more memory.
    """
    subprocess.run([sys.executable, "-m", "compileall", "-q", "exporter", "probes"], check=True)
    config = directory / "flopwatch.yaml"
    config.write_text("probes: {enabled: false}\nlimits: {series: 100000}\n")
    return Program(
        name="flopwatch",
        command=(
            *(sys.executable, "-m", "exporter", "serve", "--config.file", str(config)),
            *("--log.level", "warning", "--web.listen-address", "127.0.0.1:{port}"),
        ),
        gpu_label="gpu",
        full_family="flopwatch_sm_active_ratio",
        environment=SERVICE_ENVIRONMENT,
    )


def nvitop_exporter() -> Program:
    """The peer, installed into its own environment on first use."""
    environment = _CACHE / "nvitop"
    executable = environment / "bin" / "nvitop-exporter"
    if not executable.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run(
            [environment / "bin" / "python", "-m", "pip", "install", "--quiet", PEER_REQUIREMENT],
            check=True,
        )
    return Program(
        name="nvitop-exporter",
        command=(str(executable), "--hostname", "benchmark", "--port", "{port}"),
        gpu_label="index",
        full_family="gpu_utilization",
    )


@dataclass(frozen=True, slots=True)
class Running:
    """A started exporter."""

    pid: int
    port: int
    full_scrape_seconds: float


@contextmanager
def running(program: Program, environment: Mapping[str, str], gpus: int) -> Iterator[Running]:
    """Start it and wait for the first scrape that shows all GPUs; ends it afterwards."""
    port = free_port()
    command = [part.format(port=port) for part in program.command]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment, **program.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(_gpus_in(program, port)) < gpus:
            if process.poll() is not None:
                raise SystemExit(f"{program.name} ended with code {process.returncode}")
            if time.perf_counter() - started > _START_TIMEOUT_SECONDS:
                raise SystemExit(f"{program.name} never showed all GPUs")
            time.sleep(0.01)
        yield Running(process.pid, port, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _gpus_in(program: Program, port: int) -> set[str]:
    try:
        body = scrape(port).decode()
    except (OSError, ScrapeError):
        return set()
    return {
        line.split(f'{program.gpu_label}="', 1)[1].split('"', 1)[0]
        for line in body.splitlines()
        if line.startswith(program.full_family)
    }


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process since it started."""
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process, bytes. `shared_with` is the mapping of one file within it."""

    resident: int
    peak: int
    mapping: int

    @property
    def own(self) -> int:
        """Resident memory without the mapping."""
        return self.resident - self.mapping


def memory(pid: int, mapped_file: str) -> Memory:
    """Resident memory, and how much of it is this file's mapping: the fake driver's control block."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    mapping, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = line.endswith(mapped_file)
        elif inside and name == "Rss:":
            mapping += int(rest.split()[0]) * 1024
    return Memory(
        resident=int(status["VmRSS"].split()[0]) * 1024,
        peak=int(status["VmHWM"].split()[0]) * 1024,
        mapping=mapping,
    )


def threads(pid: int) -> int:
    """Number of threads."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors(pid: int) -> int:
    """Number of open file descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
