"""What Prometheus gets: formats, names, caching, and a real Prometheus that scrapes it."""

import gzip
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from exporter.metrics.catalogue import BY_NAME
from tests.daemon.process import passive
from tests.fake_nvml import A100, H100, L4, Load


FAST = passive("sampling: {interval: 250ms}\n")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def fetch(address: str, **headers: str) -> tuple[dict[str, str], bytes]:
    request = urllib.request.Request(
        address + "/metrics",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return dict(response.headers), response.read()


@pytest.fixture
def busy_daemon(start):
    """A daemon on three kinds of GPU that has seen everything once."""
    fake, daemon = start([H100, A100, L4], config=FAST)
    for gpu in range(3):
        fake.gpu(gpu).set_load(Load.decode())
    daemon.wait_for(lambda: fake.registered_for_events(0))
    fake.xid(0, 79)
    daemon.wait_until(
        lambda scrape: all(
            scrape.total("flopwatch_gpu_seconds_total", gpu=str(gpu)) > 1 for gpu in range(3)
        )
    )
    return daemon


def test_promtool_reports_no_problem(busy_daemon) -> None:
    """`promtool check metrics` on the text format; OpenMetrics through its reference parser."""
    _headers, text = fetch(busy_daemon.address)
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert result.stdout + result.stderr == b""
    assert result.returncode == 0

    headers, body = fetch(busy_daemon.address, Accept=OPENMETRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")

    def formats_agree() -> bool:
        """Both have as many series; one may have appeared between the two scrapes."""
        _headers, text = fetch(busy_daemon.address)
        _headers, body = fetch(busy_daemon.address, Accept=OPENMETRICS)
        in_text = {
            line.rpartition(" ")[0]
            for line in text.decode().splitlines()
            if not line.startswith("#")
        }
        families = parse_openmetrics(body.decode())
        return len([sample for family in families for sample in family.samples]) == len(in_text)

    busy_daemon.wait_for(formats_agree)


def test_every_series_is_in_the_catalogue_with_its_labels(busy_daemon) -> None:
    """A sample that is not in the catalogue is a bug."""
    for name, labels in busy_daemon.scrape().samples:
        if not name.startswith("flopwatch_"):
            continue
        base = name
        for suffix in ("_bucket", "_sum", "_count"):
            if name.removesuffix(suffix) in BY_NAME:
                base = name.removesuffix(suffix)
        family = BY_NAME[base]
        found = {label for label, _value in labels} - {"le", "mig"}
        assert found == set(family.label_names), name


def test_an_h100_has_at_most_260_series(busy_daemon) -> None:
    """Cardinality is a cost that the user pays."""
    scrape = busy_daemon.scrape()

    assert len([1 for _name, labels in scrape.samples if ("gpu", "0") in labels]) <= 260


def test_gzip_when_asked(busy_daemon) -> None:
    """Plain text otherwise."""
    headers, body = fetch(busy_daemon.address, Accept_Encoding="gzip")

    assert headers["Content-Encoding"] == "gzip"
    assert b"flopwatch_gpu_up" in gzip.decompress(body)


def test_scrapes_never_reach_the_driver(start) -> None:
    """A hundred scrapes cost no driver call: the sampling threads run at their own pace."""
    fake, daemon = start([H100], config=passive("sampling: {interval: 60s}\nsources: {gpm: off}\n"))
    # The second tick follows the first at once; the third comes a minute later.
    daemon.wait_until(lambda scrape: scrape.total("flopwatch_tick_duration_seconds_count") == 2)
    before = fake.calls("nvmlDevice*")

    for _ in range(100):
        daemon.scrape()

    # The few calls are the daemon's own looks for MIG instances, whose pace no scrape changes.
    assert fake.calls("nvmlDevice*") - before < 10


def test_a_real_prometheus_scrapes_it(start, tmp_path: Path) -> None:
    """Prometheus finds the target up, and rate() over the counters gives the achieved FLOP/s."""
    prometheus = shutil.which("prometheus")
    assert prometheus is not None
    fake, daemon = start([H100], config=FAST)
    fake.gpu(0).set_load(Load(graphics=1, sm=1, any_tensor=0.5, hmma_tensor=0.5, sm_clock_mhz=1980))
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: flopwatch\n"
        f"    static_configs: [{{targets: ['{daemon.address.removeprefix('http://')}']}}]\n"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            prometheus,
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:

        def query(expression: str) -> list[dict]:
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode(
                {"query": expression}
            )
            try:
                with urllib.request.urlopen(url, timeout=60) as response:
                    return json.load(response)["data"]["result"]
            except OSError:
                return []

        expression = 'sum(rate(flopwatch_flop_total{pipe="tensor"}[5s]))'
        expected = 0.5 * 132 * 1.98e9 * 4096
        daemon.wait_for(
            lambda: any(
                float(result["value"][1]) == pytest.approx(expected, rel=0.02)
                for result in query(expression)
            ),
            seconds=40,
        )
        assert [result["value"][1] for result in query('up{job="flopwatch"}')] == ["1"]
    finally:
        server.terminate()
        server.wait()


def test_memory_by_process_only_where_it_is_asked_for(start) -> None:
    """One series per process is a choice; a process with two contexts has one series."""
    import os

    def prepare(fake) -> None:
        fake.set_processes(
            0,
            [(os.getpid(), 10, "compute"), (os.getpid(), 20, "compute"), (999_999, 5, "compute")],
        )

    _fake, daemon = start([H100], config=FAST, prepare=prepare)
    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_processes"))
    assert scrape.value("flopwatch_processes") == 3
    assert not scrape.has("flopwatch_process_memory_bytes")

    _fake, daemon = start([H100], config=FAST + "processes: {memory: true}\n", prepare=prepare)
    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_process_memory_bytes"))
    assert scrape.value("flopwatch_process_memory_bytes", pid=str(os.getpid())) == 30
    assert scrape.value("flopwatch_process_memory_bytes", pid="999999", process="unknown") == 5


def test_a_scrape_can_choose_its_families(start_on_cpu) -> None:
    """`name[]` filters, in both formats; a name that does not exist, or `collect[]`, answers 400."""
    daemon = start_on_cpu()
    wanted = "?name[]=flopwatch_build_info&name[]=flopwatch_series_dropped_total"

    status, body = daemon.get("/metrics" + wanted)
    assert status == 200
    names = {line.split(" ")[2] for line in body.splitlines() if line.startswith("# TYPE")}
    assert names == {"flopwatch_build_info", "flopwatch_series_dropped_total"}

    request = urllib.request.Request(
        f"{daemon.address}/metrics{wanted}", headers={"Accept": OPENMETRICS}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        families = list(parse_openmetrics(response.read().decode()))
    assert {family.name for family in families} == {
        "flopwatch_build_info",
        "flopwatch_series_dropped",
    }

    assert daemon.get("/metrics?name[]=flopwatch_flops_totall") == (
        400,
        "name[]: unknown metric family: flopwatch_flops_totall\n",
    )
    assert daemon.get("/metrics?collect[]=cpu")[0] == 400
