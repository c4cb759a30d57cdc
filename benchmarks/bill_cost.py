"""What the FLOP bill costs: CPU time of a daemon on 8 GPUs with 4 tenants each, over that of one without.

    python -m benchmarks.bill_cost [--seconds 60]

Both daemons run at the same time on the same machine, on fake drivers, each scraped every 5 s. The
one without has no holders, and its driver reports no SM time by process. The aim is at most 1.20.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks.programs import cpu_seconds
from tests.fake_nvml import H100, FakeNvml, Load


GPUS, TENANTS = 8, 4
AIM = 1.20
_SCRAPE_SECONDS = 5.0
_START_SECONDS = 8.0  # the trials of GPM, and the proofs of multi-metric calls
_UTILIZATION = ("nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization")
_CONFIG = "probes: {{enabled: false}}\nprocesses: {{holders: {holders}}}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=19970)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        ports = (arguments.port, arguments.port + 1)
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in ports]
        pids = [_tenant(stack, folders[1], f"tenant-{number}") for number in range(TENANTS)]
        daemons = [
            _daemon(stack, folder, port, pids if billed else [])
            for billed, (folder, port) in enumerate(zip(folders, ports, strict=True))
        ]
        time.sleep(_START_SECONDS)
        before = [cpu_seconds(daemon) for daemon in daemons]
        series = [0, 0]
        ends = time.monotonic() + arguments.seconds
        while time.monotonic() < ends:
            for number, port in enumerate(ports):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    lines = answer.read().decode().splitlines()
                series[number] = sum(not line.startswith("#") for line in lines)
            time.sleep(_SCRAPE_SECONDS)
        used = [cpu_seconds(daemon) - start for daemon, start in zip(daemons, before, strict=True)]
    ratio = used[1] / used[0]
    for name, seconds, count in zip(("without", "with"), used, series, strict=True):
        share = seconds / arguments.seconds
        print(f"{name:8} {share:.2%} of a core, {count} series")
    print(f"ratio    {ratio:.2f} (aim: at most {AIM:.2f})")
    return 0 if ratio <= AIM else 1


def _tenant(stack: ExitStack, folder: Path, name: str) -> int:
    program = folder / name
    program.symlink_to("/bin/sleep")
    process = stack.enter_context(subprocess.Popen([program, "3600"]))
    stack.callback(process.kill)
    return process.pid


def _daemon(stack: ExitStack, folder: Path, port: int, tenants: list[int]) -> int:
    fake = stack.enter_context(FakeNvml([H100] * GPUS, folder))
    for gpu in range(GPUS):
        fake.gpu(gpu).set_load(Load.decode())
        if tenants:
            fake.set_processes(
                gpu,
                [(pid, 2**30, "compute") for pid in tenants],
                sm_percent={pid: 10 + position for position, pid in enumerate(tenants)},
            )
    if not tenants:
        for function in _UTILIZATION:
            fake.fail(function, 3)
    config = folder / "config.yaml"
    config.write_text(_CONFIG.format(holders=str(bool(tenants)).lower()))
    process = stack.enter_context(
        subprocess.Popen(
            [
                sys.executable, "-m", "exporter", "serve", "--config.file", str(config),
                "--web.listen-address", f"127.0.0.1:{port}",
            ],
            env={**os.environ, **fake.env},
            stderr=subprocess.DEVNULL,
        )
    )  # fmt: skip
    stack.callback(process.terminate)
    return process.pid


if __name__ == "__main__":
    sys.exit(main())
