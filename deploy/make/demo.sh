#!/bin/sh
# A simulated fleet with Prometheus: demo.sh BIN [ARGUMENTS of `flopwatch simulate`]. Ctrl-C ends both.
set -eu

bin=$1
shift
[ $# -gt 0 ] || set -- --hosts 2 --scenario mixed-fleet --scenario straggler --scenario thermal-throttling
folder=$(mktemp -d)
pids=
end() {
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 0' INT TERM

cp -r deploy/prometheus/rules deploy/prometheus/alerts "$folder"
cat >"$folder/prometheus.yml" <<'CONFIGURATION'
global: {scrape_interval: 15s, evaluation_interval: 30s}
rule_files: [rules/*.yml, alerts/*.yml]
scrape_configs:
  - job_name: flopwatch
    sample_limit: 25000
    http_sd_configs: [{url: "http://127.0.0.1:9908/sd"}]
CONFIGURATION

"$bin/flopwatch" simulate "$@" &
pids="$pids $!"
# Prometheus asks for the targets at its start: the simulator must answer by then.
"$bin/python" - <<'PYTHON'
import time
import urllib.request

for _ in range(120):
    try:
        urllib.request.urlopen("http://127.0.0.1:9908/sd", timeout=2)
    except OSError:
        time.sleep(0.5)
    else:
        break
PYTHON
prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" \
    --web.listen-address="127.0.0.1:${PROMETHEUS_PORT:-9090}" --log.level=error &
pids="$pids $!"

"$bin/python" - "http://127.0.0.1:${PROMETHEUS_PORT:-9090}/" <<'PYTHON'
import sys
import time
import urllib.request

url = sys.argv[1]
for _ in range(60):
    try:
        urllib.request.urlopen(f"{url}-/ready", timeout=2)
        urllib.request.urlopen("http://127.0.0.1:9908/sd", timeout=2)
    except OSError:
        time.sleep(1)
    else:
        break
else:
    sys.exit("Neither simulator nor Prometheus came up: is something else at port 9908 or 9090?")
print(
    f"\nA simulated fleet at http://127.0.0.1:9908/, Prometheus with all rules and alerts at {url}\n"
    f"  1. Query it: {url}graph?g0.expr=sum+by+(gpu)(rate(flopwatch_flop_total%5B5m%5D))&g0.tab=0\n"
    "  2. Dashboards: in Grafana add this Prometheus as data source, then Dashboards, New, Import,\n"
    "     and choose grafana/dashboards/fleet.json, gpu.json and the others.\n"
    f"  3. Faults begin at minute 5; their alerts fire about 20 minutes later: {url}alerts\n"
    "Ctrl-C ends it, and nothing is kept.\n",
    flush=True,
)
PYTHON
wait
