"""What MIG instances cost: share of one core that the daemon takes, against the fake driver library.

    python -m benchmarks.mig_cost [--seconds 20]

A GPU has at most 7 instances: a node of 8 GPUs has 56 at most, and 64 need 10 GPUs. Both are
measured. The bound is 10 % of a core at a tick of 1 s, with a scrape every 5 s. The fake library
answers in about a microsecond: this is the cost of the daemon's own code, without a real driver's
calls.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

from tests.fake_nvml import H100, H100_1G_10GB, FakeNvml, Load


NODES = ((8, 56), (10, 64))  # GPUs and instances
INSTANCES_MAX = 7  # of one GPU (MIG User Guide)
BOUND = 0.10
_SCRAPE_SECONDS = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--port", type=int, default=19964)
    arguments = parser.parse_args()
    shares = [node(*size, arguments.port, arguments.seconds) for size in NODES]
    return 0 if max(shares) < BOUND else 1


def node(gpus: int, instances: int, port: int, seconds: float) -> float:
    """Measure and print one node; its share of a core."""
    with tempfile.TemporaryDirectory() as name, FakeNvml([H100] * gpus, Path(name)) as fake:
        left = instances
        for gpu in range(gpus):
            count = min(INSTANCES_MAX, -(-left // (gpus - gpu)))
            left -= count
            fake.gpu(gpu).set_mig(
                [replace(H100_1G_10GB, gpu_instance_id=7 + number) for number in range(count)]
            )
            load = replace(Load.decode(), memory_used_bytes=4 * 2**30)
            fake.gpu(gpu).set_load(load)
            for number in range(count):
                fake.gpu(gpu).instance_loads(7 + number).set_load(load)
        share, series = measure(fake, port, seconds)
    print(f"{instances} instances on {gpus} GPUs, {series} series: {share:.1%} of a core")
    return share


def measure(fake: FakeNvml, port: int, seconds: float) -> tuple[float, int]:
    """CPU time over wall time of the busy daemon, and the number of series in a scrape."""
    daemon = subprocess.Popen(
        [sys.executable, "-m", "exporter", "serve", "--web.listen-address", f"127.0.0.1:{port}"],
        env={**os.environ, **fake.env},
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(8)  # the start, the trials, and the proofs of multi-metric calls
        begin, used = time.monotonic(), _cpu_seconds(daemon.pid)
        series = 0
        while time.monotonic() - begin < seconds:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            series = sum(not line.startswith("#") for line in lines)
            time.sleep(_SCRAPE_SECONDS)
        share = (_cpu_seconds(daemon.pid) - used) / (time.monotonic() - begin)
    finally:
        daemon.terminate()
        daemon.wait()
    return share, series


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
