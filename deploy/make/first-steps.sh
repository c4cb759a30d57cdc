#!/bin/sh
# Wait until a daemon serves, then say where it is and what to do next: first-steps.sh PYTHON ARGUMENTS…
set -eu

python=$1
shift

exec "$python" - "$@" <<'PYTHON'
import importlib.util
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

daemon = os.getppid()  # the shell that this runs beside becomes the daemon


def listens(pid: int, port: str) -> bool:
    """Whether this process has the port, and not another server."""
    try:
        held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return False
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return any(
        row[1].endswith(f":{int(port):04X}") and row[3] == "0A" and f"socket:[{row[9]}]" in held
        for row in rows
    )


address = "localhost:9907"
folder = sys.executable.rpartition("/")[0]
for before, argument in zip(["", *sys.argv[1:]], sys.argv[1:]):
    name, equals, value = argument.partition("=")
    if equals and name in ("--web.listen-address", "--listen-address"):
        address = value
    elif before in ("--web.listen-address", "--listen-address"):
        address = argument
host, _, port = address.rpartition(":")
host = "localhost" if host in ("", "0.0.0.0", "[::]") else host
url = f"http://{host}:{port}/"
for _ in range(60):
    if os.getppid() != daemon:
        sys.exit(0)  # it ended, and its log says why
    if not listens(daemon, port):
        time.sleep(0.5)
        continue
    try:
        urllib.request.urlopen(f"{url}-/ready", timeout=2)
    except urllib.error.HTTPError:
        break  # it serves, and may want a password
    except OSError:
        time.sleep(1)
    else:
        break
else:
    sys.exit(0)
has_torch = importlib.util.find_spec("torch") is not None
first = "the first measured FLOPS appear within a minute" if has_torch else "without torch, no probes measure FLOPS"
print(
    f"\nflopwatch serves {url}\n"
    f"  1. Open {url} or run `{folder}/flopwatch top --url {url}`: {first}.\n"
    f"  2. Run `{folder}/flopwatch check`: what works on this host, and what to do about the rest.\n"
    f"  3. Let Prometheus scrape {url}metrics: deploy/prometheus/prometheus.yml has rules and alerts,\n"
    f"     grafana/dashboards/ the dashboards. `make demo` shows them on simulated GPUs.\n",
    flush=True,
)
PYTHON
