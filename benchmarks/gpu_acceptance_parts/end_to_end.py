"""Part 5: the daemon as it is deployed, scraped as Prometheus does; then `flopwatch calibrate`."""

import gzip
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.daemon import settings, start_daemon, wait_for_gpu
from benchmarks.gpu_acceptance_parts.runner import ROOT
from benchmarks.gpu_acceptance_parts.schema import Goal
from tests.daemon.process import DaemonProcess, Scrape


# What Prometheus 3 sends.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
    "Accept-Encoding": "gzip",
    "User-Agent": "Prometheus/3.0.0",
    "X-Prometheus-Scrape-Timeout-Seconds": "10",
}
SERIES_GOAL = Goal(high=260)
CPU_GOAL = Goal(high=0.02)
ESTIMATOR_GOAL = Goal(-0.02, 0.02)
_SCRAPE_INTERVAL_SECONDS = 5.0
_CALIBRATE_SECONDS = 55.0
_ERROR = "flopwatch_estimator_error_ratio"


@dataclass(frozen=True, slots=True)
class Scraped:
    """One scrape as a client sees it."""

    seconds: float
    wire_bytes: int
    content_type: str
    text: str


def run(context: Context) -> None:
    """Scrapes with everything on, then the calibration with the probes off."""
    seconds = 4.0 if context.rehearsal else 25.0
    context.report.step("scrapes", seconds + 8, partial(_scrapes, context, seconds))
    if context.rehearsal:
        context.report.left_out("calibrate", "a rehearsal has no GPU to calibrate")
        return
    context.report.step("calibrate", _CALIBRATE_SECONDS, partial(_calibrate, context))


def scrape(address: str) -> Scraped:
    """Fetch the metrics with Prometheus's headers. Raises OSError."""
    request = urllib.request.Request(f"{address}/metrics", headers=HEADERS)
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=10) as answer:
        data = answer.read()
        seconds = time.perf_counter() - began
        kind = answer.headers.get("Content-Type", "")
        zipped = answer.headers.get("Content-Encoding") == "gzip"
    text = (gzip.decompress(data) if zipped else data).decode()
    return Scraped(seconds, len(data), kind, text)


def series_of(text: str, gpu: str) -> int:
    """Series of one GPU in an exposition."""
    label = f'gpu="{gpu}"'
    return sum(label in line for line in text.splitlines() if not line.startswith("#"))


def _scrapes(context: Context, seconds: float) -> None:
    report = context.report
    began = time.monotonic()
    probes = {"interval": "10s", "hold_off": "0s", "pause_file": str(context.scratch / "pause")}
    with start_daemon(context.scratch / "served", settings(probes=probes)) as daemon:
        first = wait_for_gpu(daemon, context.gpu)
        report.figure(
            "seconds from start to the first full scrape", time.monotonic() - began, "seconds"
        )
        at_first = time.monotonic()
        found: list[Scraped] = []
        while time.monotonic() - at_first < seconds:
            time.sleep(min(_SCRAPE_INTERVAL_SECONDS, seconds / 3))
            found.append(scrape(daemon.address))
        last = daemon.scrape()
        passed = time.monotonic() - at_first
        _promtool(context, daemon)
    report.figure("scrape, median", statistics.median(s.seconds for s in found), "seconds")
    report.figure("scrape, longest", max(s.seconds for s in found), "seconds")
    report.figure(
        "scrape, bytes on the wire", found[-1].wire_bytes, "B", note=found[-1].content_type
    )
    series = series_of(found[-1].text, str(context.gpu))
    report.figure("series of the GPU", series, "count", goal=SERIES_GOAL, note="probes included")
    cpu = last.value("process_cpu_seconds_total") - first.value("process_cpu_seconds_total")
    report.figure("daemon, share of a core", cpu / passed, "ratio", goal=CPU_GOAL)
    report.figure("daemon, resident memory", last.value("process_resident_memory_bytes"), "B")
    _sources(context, last)
    report.detail("last exposition", found[-1].text.splitlines())


def _sources(context: Context, last: Scrape) -> None:
    gpu = str(context.gpu)
    up = {
        dict(labels)["source"]: value
        for labels, value in last.series("flopwatch_source_up", gpu=gpu).items()
    }
    note = ", ".join(f"{name} {value:g}" for name, value in sorted(up.items()))
    context.report.figure("sources up", sum(up.values()), "count", note=note)
    errors = last.series("flopwatch_source_errors_total", gpu=gpu)
    reasons = {
        f"{dict(labels)['source']} {dict(labels)['reason']}": value
        for labels, value in errors.items()
        if value
    }
    context.report.figure(
        "errors of the sources",
        sum(reasons.values()),
        "count",
        goal=Goal(high=0),
        note=", ".join(f"{key} {value:g}" for key, value in reasons.items()),
    )
    missed = last.total("flopwatch_ticks_missed_total", gpu=gpu)
    context.report.figure("ticks missed", missed, "count", goal=Goal(high=0))
    outcomes = {
        f"{dict(labels)['kernel']} {dict(labels)['outcome']}": value
        for labels, value in last.series("flopwatch_probe_runs_total", gpu=gpu).items()
        if value
    }
    context.report.figure(
        "probe runs",
        sum(outcomes.values()),
        "count",
        note=", ".join(f"{key} {value:g}" for key, value in sorted(outcomes.items())),
    )


def _promtool(context: Context, daemon: DaemonProcess) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        context.report.left_out("promtool check metrics", "promtool is not installed")
        return
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=daemon.scrape().text.encode(),
        capture_output=True,
        timeout=20,
        check=False,
    )
    lines = (done.stdout + done.stderr).decode().split("\n")
    said = [line for line in lines if line.strip()]
    context.report.figure(
        "remarks of promtool", len(said), "count", goal=Goal(high=0), note="; ".join(said[:3])
    )


def _calibrate(context: Context) -> None:
    """The estimator's error is absent before, and what `calibrate` printed after."""
    report = context.report
    gpu = str(context.gpu)
    with start_daemon(context.scratch / "calibrated", settings()) as daemon:
        before = wait_for_gpu(daemon, context.gpu).series(_ERROR, gpu=gpu)
        report.figure("estimator errors before calibrate", len(before), "count", goal=Goal(high=0))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "exporter", "calibrate"),
                *("--config.file", str(daemon.config_file)),
                *("--url", f"{daemon.address}/metrics", "--gpu", gpu),
            ],
            capture_output=True,
            timeout=max(1.0, context.report.box.left_seconds - 3),
            cwd=ROOT,
            env=dict(os.environ),
            check=False,
            text=True,
        )
        report.detail("calibrate", {"exit": done.returncode, "output": done.stdout.splitlines()})
        if done.returncode != 0:
            raise RuntimeError(f"calibrate ended with {done.returncode}: {done.stderr.strip()}")
        after = daemon.wait_until(lambda found: found.series(_ERROR, gpu=gpu), 15).series(
            _ERROR, gpu=gpu
        )
    report.figure("estimator errors after calibrate", len(after), "count", goal=Goal(low=1))
    for labels, value in sorted(after.items(), key=str):
        precision = dict(labels)["precision"]
        report.figure(f"estimator error, {precision}", value, "ratio", goal=ESTIMATOR_GOAL)
