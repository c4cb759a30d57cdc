"""The freshness rule through the real daemon: a lost GPU leaves no healthy-looking values."""

from pathlib import Path

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, FakeNvml, Load


CONFIG = """
sampling: {interval: 250ms, slow_interval: 1s}
sources: {cpu: "off", dcgm: "off"}
"""
# A daemon whose probes have measured both GPUs: the worker needs torch and a GPU.
PROBED = (
    "-c",
    (
        "import os, sys\n"
        "from probes.records import DeviceRecord, ProbesSnapshot\n"
        "from probes.service import ProbeService\n"
        "from probes.records import Value\n"
        "def snapshot(self):\n"
        "    records = [DeviceRecord(str(n), uuid) for n, uuid in enumerate(os.environ['UUIDS'].split())]\n"
        "    for record in records:\n"
        "        record.flops['bf16'] = Value(8e14, 0.0)\n"
        "        record.baseline_ratio['gemm_bf16'] = Value(0.99, 0.0)\n"
        "        record.runs['gemm_bf16', 'ok'] = 3\n"
        "        record.last_success['gemm_bf16'] = 1.7e9\n"
        "    results = tuple(record.snapshot(0.0, 60.0) for record in records)\n"
        "    return ProbesSnapshot(running=True, paused=False, devices=results)\n"
        "ProbeService.snapshot = snapshot\n"
        "ProbeService.start = lambda self: None\n"
        "from exporter.cli.main import main\n"
        "sys.exit(main())"
    ),
)
GAUGES = (
    "flopwatch_probe_flops",
    "flopwatch_probe_baseline_ratio",
    "flopwatch_probe_lowest_baseline_ratio",
)
COUNTERS = ("flopwatch_probe_runs_total", "flopwatch_probe_last_success_timestamp_seconds")


def shown(scrape: Scrape, gpu: str) -> list[str]:
    """Which of the probes' families a GPU has."""
    return [name for name in (*GAUGES, *COUNTERS) if scrape.has(name, gpu=gpu)]


def test_a_lost_gpu_keeps_no_probe_gauge(tmp_path: Path) -> None:
    """Its counters and success times stay, its sibling's gauges stay, and all come back with it."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        environment = {**fake.env, "UUIDS": " ".join(gpu.uuid for gpu in fake.gpus)}
        with DaemonProcess(
            tmp_path, config=CONFIG, environment=environment, program=PROBED
        ) as daemon:
            before = daemon.wait_until(lambda s: s.has("flopwatch_probe_flops", gpu="1"))
            fake.lose(0)
            lost = daemon.wait_until(lambda s: s.value("flopwatch_gpu_up", gpu="0") == 0)
            fake.restore(0)
            back = daemon.wait_until(lambda s: s.value("flopwatch_gpu_up", gpu="0") == 1)

    assert shown(before, "0") == [*GAUGES, *COUNTERS]
    assert shown(lost, "0") == list(COUNTERS)
    assert shown(lost, "1") == [*GAUGES, *COUNTERS]
    assert shown(back, "0") == [*GAUGES, *COUNTERS]
