"""`flopwatch calibrate`: GEMMs of known FLOPs against the daemon's FLOP counter."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from exporter.cli.daemon import add_config_flags
from exporter.cli.probe import (
    ProbeError,
    add_device_flags,
    check_device,
    describe_failure,
    quiet_config,
    read_devices,
    select_devices,
)
from exporter.errors import ScrapeError
from exporter.http_client import fetch, without_credentials
from exporter.services import Calibration, save_calibrations
from flopwatch.state_file import StateFile, usable_state_path
from probes.config import ProbeConfig
from probes.facts import DeviceFacts
from probes.protocol import KernelInfo, Run
from probes.supervisor import WorkerFailedError
from probes.worker_pool import WorkerFactory, real_worker


_FAMILY = "flopwatch_flop_total"
_DEFAULT_URL = "http://127.0.0.1:9907/metrics"
_SECONDS_PER_PRECISION = 2.0
_SCRAPE_SECONDS = 5.0
# The counter has settled when it has not moved for this long: more than one tick of one second.
_SETTLE_SECONDS = 1.6
_SETTLE_ATTEMPTS = 12
# On an idle device, a counter that is off by more than this did not count this work at all.
_IMPLAUSIBLE = 0.9

CounterKey = tuple[str, str]
"""Pipe and precision."""


class CalibrationError(ProbeError):
    """There is nothing to calibrate, or the counter cannot be read."""


class ScrapedCounter:
    """The FLOP counter that the calibration compares with, as a running daemon serves it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, uuid: str) -> Mapping[CounterKey, float]:
        """FLOP since start by pipe and precision, summed over sources. Raises CalibrationError."""
        shown = without_credentials(self._url)
        try:
            text = fetch(self._url, timeout_seconds=_SCRAPE_SECONDS)
            families = list(text_string_to_metric_families(text))
        except ScrapeError as error:
            raise CalibrationError(
                f"{shown}: {error.reason.value}: {error}; is the daemon running?"
            ) from error
        except ValueError as error:
            raise CalibrationError(f"{shown}: not metrics: {error}") from error
        totals: dict[CounterKey, float] = {}
        for family in families:
            for sample in family.samples:
                labels = sample.labels
                if sample.name == _FAMILY and labels.get("uuid") == uuid and "mig" not in labels:
                    key = (labels.get("pipe", ""), labels.get("precision", ""))
                    totals[key] = totals.get(key, 0.0) + sample.value
        return totals


@dataclass(frozen=True, slots=True)
class Comparison:
    """One precision on one device: FLOP executed and FLOP counted."""

    gpu: str
    uuid: str
    precision: str
    true_flop: float
    counted_flop: float | None
    """None: the counter does not count this work in this precision."""

    @property
    def error_ratio(self) -> float | None:
        """Counted over true, minus 1."""
        return None if self.counted_flop is None else self.counted_flop / self.true_flop - 1


class Calibrator:
    """Runs known GEMMs on one device and reads the counter before and after."""

    def __init__(
        self,
        facts: DeviceFacts,
        config: ProbeConfig,
        counter: ScrapedCounter,
        *,
        factory: WorkerFactory = real_worker,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._facts = facts
        # Long chunks: the device is idle otherwise, and the pipe should be busy without gaps.
        self._config = replace(config, chunk_deadline_seconds=10.0, request_deadline_seconds=120.0)
        self._counter = counter
        self._factory = factory
        self._monotonic = monotonic
        self._sleep = sleep
        self._identifier = 0

    def compare(self, seconds: float) -> Iterator[Comparison]:
        """One comparison for each precision that the device supports.

        Raises CalibrationError when the counter cannot be read or never settles, and
        WorkerFailedError when the worker fails.
        """
        worker = self._factory((self._facts,), self._config)
        try:
            worker.start()
            described = worker.describe(0)
            for kernel in described.kernels:
                if kernel.quantity != "flops":
                    continue
                # Choose the size first, so that only known work runs between the readings.
                shape = self._run(worker, kernel, (), self._config.max_chunk_seconds)[0]
                before = self._settled()
                true_flop = self._work(worker, kernel, shape, seconds)
                yield self._comparison(kernel.label, true_flop, before, self._settled())
        finally:
            worker.close()

    def _comparison(
        self,
        precision: str,
        true_flop: float,
        before: Mapping[CounterKey, float],
        after: Mapping[CounterKey, float],
    ) -> Comparison:
        # The counter that sees a GEMM: the tensor pipe, except for fp32, which runs elsewhere.
        key = ("fp32" if precision == "fp32" else "tensor", precision)
        counted = after.get(key, 0.0) - before.get(key, 0.0)
        # Work of the tensor pipe is counted in the headline precision only.
        plausible = abs(counted / true_flop - 1) <= _IMPLAUSIBLE
        return Comparison(
            self._facts.key, self._facts.uuid, precision, true_flop, counted if plausible else None
        )

    def _work(
        self, worker: Any, kernel: KernelInfo, shape: tuple[int, ...], seconds: float
    ) -> float:
        until = self._monotonic() + seconds
        flop = 0.0
        while True:
            flop += self._run(worker, kernel, shape, 0.05)[1]
            if self._monotonic() >= until:
                return flop

    def _run(
        self, worker: Any, kernel: KernelInfo, shape: tuple[int, ...], chunk_seconds: float
    ) -> tuple[tuple[int, ...], float]:
        self._identifier += 1
        report = worker.run(
            Run(
                identifier=self._identifier,
                kernel=kernel.name,
                device=0,
                allowance_seconds=30.0,
                max_chunk_seconds=chunk_seconds,
                gap_seconds=0.0,
                timed_runs=200,
                shape=shape,
            )
        )
        if report.result is None:
            raise WorkerFailedError(report.failure or "error", f"{kernel.name}: {report.text}")
        return report.result.shape, report.result.executed_runs * report.result.work_per_run

    def _settled(self) -> Mapping[CounterKey, float]:
        """The counter once it has settled: the daemon's ticks have counted all the work."""
        last = self._counter.read(self._facts.uuid)
        for _ in range(_SETTLE_ATTEMPTS):
            self._sleep(_SETTLE_SECONDS)
            now = self._counter.read(self._facts.uuid)
            if now == last:
                return now
            last = now
        raise CalibrationError(
            f"GPU {self._facts.key} is not idle: its FLOP counter keeps changing"
        )


def add_calibrate(subparsers: Any) -> None:
    """Register `flopwatch calibrate`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "calibrate",
        help="measure the error of the FLOP counter",
        description=(
            "Run GEMMs of known FLOPs on idle GPUs and compare with what the running daemon"
            " counted. The signed errors are kept in the state file and exported as"
            " flopwatch_estimator_error_ratio."
        ),
    )
    add_device_flags(parser)
    parser.add_argument(
        "--url", default=_DEFAULT_URL, help=f"the daemon's metrics (default {_DEFAULT_URL})"
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Calibrate every idle GPU; 0 if at least one error could be determined."""
    config = quiet_config(parsed)
    gpus = [facts for facts in read_devices(config) if facts.kind == "cuda"]
    if not gpus:
        raise CalibrationError("there is no GPU, so there is no FLOP counter to calibrate")
    devices = select_devices(gpus, parsed.gpu)
    for facts in devices:
        check_device(facts, config)
        if facts.processes:
            raise CalibrationError(f"GPU {facts.key} is in use; only an idle GPU can be calibrated")
    state = StateFile(usable_state_path(config.state_file))
    counter = ScrapedCounter(parsed.url)
    stated = 0
    with probes_held_off(config.probes.pause_file):
        for facts in devices:
            calibrator = Calibrator(facts, config.probes, counter)
            try:
                # Keep each result at once: a later precision may crash the worker.
                for comparison in calibrator.compare(_SECONDS_PER_PRECISION):
                    stated += report(comparison, state, time.time())
            except WorkerFailedError as error:
                raise ProbeError(f"GPU {facts.key}: {describe_failure(error)}") from error
    if not stated:
        raise CalibrationError("the daemon's counter counted none of the work; is GPM on?")
    return 0


def report(comparison: Comparison, state: StateFile, unix_time: float) -> bool:
    """Print the comparison and keep its error; returns whether there was one."""
    error, heading = comparison.error_ratio, f"gpu {comparison.gpu}  {comparison.precision:<5}"
    if error is None:
        print(f"{heading} not counted in this precision")
        return False
    print(
        f"{heading} {comparison.true_flop:.4g} FLOP executed,"
        f" {comparison.counted_flop:.4g} counted, error {error:+.2%}"
    )
    save_calibrations(state, comparison.uuid, {comparison.precision: Calibration(error, unix_time)})
    return True


@contextlib.contextmanager
def probes_held_off(pause_file: Path | None) -> Iterator[None]:
    """Use the pause file to keep the daemon's own probes from adding work meanwhile.

    If the file cannot be created, the calibration continues: the probes' 20 ms per minute are below
    its own uncertainty. A file that existed before stays. A file created here is also removed when
    the process is terminated: left behind, it would pause the probes permanently.
    """
    made = False
    signals = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    if pause_file is not None:
        with contextlib.suppress(OSError):
            pause_file.parent.mkdir(parents=True, exist_ok=True)
            pause_file.touch(exist_ok=False)
            made = True
    try:
        yield
    finally:
        if made and pause_file is not None:
            pause_file.unlink(missing_ok=True)
        for number, handler in signals.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)
