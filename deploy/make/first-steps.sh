#!/bin/sh
# Wait until a daemon serves, then say where it is and what to do next: first-steps.sh PYTHON ARGUMENTS…
set -eu

python=$1
shift

exec "$python" - "$@" <<'PYTHON'
import importlib.util
import sys
import time
import urllib.error
import urllib.request

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
    try:
        urllib.request.urlopen(f"{url}-/ready", timeout=2)
    except urllib.error.HTTPError:
        break  # it serves, and may want a password
    except OSError:
        time.sleep(1)
    else:
        break
else:
    sys.exit(0)  # its own log says why it does not serve
has_torch = importlib.util.find_spec("torch") is not None
first = "the first measured FLOPS appear within a minute" if has_torch else "it measures no FLOPS by probes without torch"
print(
    f"\nflopwatch serves {url}\n"
    f"  1. Open {url} or run `{folder}/flopwatch top --url {url}`: {first}.\n"
    f"  2. Run `{folder}/flopwatch check`: what works on this host, and what to do about the rest.\n"
    f"  3. Let Prometheus scrape {url}metrics: deploy/prometheus/prometheus.yml has rules and alerts,\n"
    f"     grafana/dashboards/ the dashboards. `make demo` shows them on simulated GPUs.\n",
    flush=True,
)
PYTHON
