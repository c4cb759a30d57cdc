"""Prints what a gRPC client costs: `python -m tests.attribution.client_memory` (Linux).

The exporter's own client against grpcio, each in a fresh process, 20 calls to one kubelet with
100 pods: growth of the resident set, and threads.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.attribution.kubelet import Held, Kubelet


_OURS = """
from pathlib import Path
from exporter.attribution.pod_resources import list_allocations
ask = lambda: list_allocations(Path(PATH), 5.0)
"""
_GRPCIO = """
import grpc
channel = grpc.insecure_channel("unix:" + PATH)
method = channel.unary_unary("/v1.PodResourcesLister/List")
ask = lambda: method(b"", timeout=60.0)
"""
_FRAME = """
import os, socket, sys
import structlog, exporter.state
PATH = sys.argv[1]
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident_bytes()
{client}
for _ in range(20):
    ask()
print(f"+{{(resident_bytes() - before) / 1e6:.1f}} MB, {{len(os.listdir('/proc/self/task'))}} threads")
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fw") as folder:
        kubelet = Kubelet(Path(folder) / "kubelet.sock")
        kubelet.holds(*(Held((f"GPU-{number}",), pod=f"pod-{number}") for number in range(100)))
        kubelet.start()
        for name, client in (("exporter.attribution.pod_resources", _OURS), ("grpcio", _GRPCIO)):
            print(f"{name}: ", end="", flush=True)
            script = _FRAME.format(client=client)
            subprocess.run(
                [sys.executable, "-c", script, os.fspath(kubelet.path)], check=True, cwd=Path.cwd()
            )
        kubelet.stop()


if __name__ == "__main__":
    main()
