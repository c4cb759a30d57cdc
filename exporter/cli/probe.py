"""`flopwatch probe`: run every kernel once at full length and compare with peak and baseline."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from exporter.cli.daemon import add_config_flags, config_origin
from exporter.config.load import load_config
from exporter.config.model import Config
from exporter.errors import FlopwatchError
from flopwatch.state_file import StateFile, usable_state_path
from probes.burn_in import BurnIn, Step
from probes.device_states import saved_probes
from probes.environment import torch_remedy
from probes.facts import DeviceFacts
from probes.gates import HOT_REASONS
from probes.supervisor import WorkerFailedError
from probes.thresholds import FAILING, Row, compare_siblings


EXIT_BELOW_THRESHOLD = 1
_SECONDS_PER_KERNEL = 1.0
# A driver that has not answered within this time is taken as hung.
_FACTS_SECONDS = 15.0


class ProbeError(FlopwatchError):
    """The probes cannot run here, or cannot run now."""


def add_probe(subparsers: Any) -> None:
    """Register `flopwatch probe`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "probe",
        help="measure what the GPUs can do, once",
        description=(
            "Run every probe kernel at full length and compare with peak and baseline."
            " For bringing up a node: it uses the GPUs fully while it runs."
            f" Exit code {EXIT_BELOW_THRESHOLD} when a device is below the thresholds."
        ),
    )
    add_device_flags(parser)
    parser.add_argument(
        "--precision",
        action="append",
        metavar="NAME",
        help="only GEMMs of this precision (fp64 fp32 tf32 fp16 bf16 fp8 int8); may be repeated",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=_SECONDS_PER_KERNEL,
        metavar="S",
        help=f"how long each kernel runs (default {_SECONDS_PER_KERNEL:g})",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_config_flags(parser)
    parser.set_defaults(run=run)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flag that selects devices."""
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="N",
        help="only this GPU, by index or UUID, or this MIG instance, by UUID; may be repeated (default: all GPUs)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Measure and print the results. The exit code says whether all devices are healthy."""
    config = quiet_config(parsed)
    devices = select_devices(read_devices(config, instances=True), parsed.gpu)
    for facts in devices:
        check_device(facts, config)
    baselines = saved_probes(StateFile(usable_state_path(config.state_file))).baselines
    probe = BurnIn(devices, config.probes, baselines, parsed.seconds)
    wanted = frozenset(parsed.precision or ())
    _check_precisions(wanted)
    with _progress(len(devices), show=not parsed.json) as on_step:
        try:
            rows = list(probe.rows(lambda kernel: not wanted or kernel.label in wanted, on_step))
        except WorkerFailedError as error:
            raise ProbeError(describe_failure(error)) from error
    rows = compare_siblings(rows)
    if not rows:
        raise ProbeError(f"no device has {', '.join(sorted(wanted))}")
    if parsed.json:
        print(json.dumps([asdict(row) | {"peak_ratio": row.peak_ratio} for row in rows], indent=2))
    else:
        print_table(rows)
    return EXIT_BELOW_THRESHOLD if any(row.grade in FAILING for row in rows) else 0


def quiet_config(parsed: argparse.Namespace) -> Config:
    """The configuration; the log is set up, without events of level info."""
    from exporter.logging_setup import set_up_logging

    config = load_config(config_origin(parsed))
    set_up_logging("warning" if config.log_level == "info" else config.log_level, config.log_format)
    return config


def read_devices(config: Config, *, instances: bool = False) -> list[DeviceFacts]:
    """The facts about all devices, read once; with `instances`, also MIG instances.

    Raises ProbeError when the driver does not answer.
    """
    from exporter.collect.host import HostSampling
    from exporter.services import ProbeFacts
    from exporter.state import LiveState, Parts

    sampling = HostSampling(lambda: config.sampling, lambda: live.latest)
    live = LiveState(lambda now: Parts(host=sampling.published(now)), sampling.mark)
    sampling.start()
    try:
        if not sampling.wait_for_devices(_FACTS_SECONDS):
            raise ProbeError(f"the driver did not answer within {_FACTS_SECONDS:g} s")
        return ProbeFacts(live.now, instances=instances)()
    finally:
        sampling.stop(1.0)


def select_devices(
    devices: Sequence[DeviceFacts], names: Sequence[str] | None
) -> list[DeviceFacts]:
    """The devices by index or UUID; without names, all except MIG instances.

    Raises ProbeError for an unknown device, and for a MIG instance together with another device.
    """
    gpus = [facts for facts in devices if facts.instance is None]
    if not devices:
        raise ProbeError("there is no device to probe")
    if not names:
        return gpus
    chosen: list[DeviceFacts] = []
    for name in names:
        found = [facts for facts in gpus if name == facts.key]
        found += [facts for facts in devices if name == facts.uuid]
        if not found:
            known = ", ".join(
                facts.key if facts.instance is None else facts.uuid for facts in devices
            )
            raise ProbeError(f"--gpu {name}: no such device; known: {known}")
        chosen += [facts for facts in found if facts not in chosen]
    if len(chosen) > 1 and any(facts.instance is not None for facts in chosen):
        raise ProbeError("--gpu: a process can use only one MIG instance; probe them one at a time")
    return chosen


def check_device(facts: DeviceFacts, config: Config) -> None:
    """Raise ProbeError if a probe would fail or take resources that a server needs."""
    if facts.kind == "cpu":
        return
    where = f"GPU {facts.key}"
    if facts.mig:
        raise ProbeError(f"{where}: MIG is on; name one of its instances by UUID (nvidia-smi -L)")
    if facts.compute_mode == "prohibited":
        raise ProbeError(f"{where}: its compute mode prohibits contexts (nvidia-smi -c DEFAULT)")
    if facts.compute_mode != "default" and facts.processes:
        raise ProbeError(f"{where}: its compute mode is exclusive and another process is using it")
    if (facts.free_memory_bytes or 0) < config.probes.min_free_memory_bytes:
        raise ProbeError(f"{where}: too little free memory; stop what uses it first")
    if facts.clock_event_reasons & HOT_REASONS:
        raise ProbeError(f"{where}: it is already throttled by heat or power")
    if facts.processes:
        count = len(facts.processes)
        print(
            f"flopwatch: {where} is in use by {count} process{'es' if count > 1 else ''}:"
            " they will slow down during the probes, and the figures are not those of the hardware alone",
            file=sys.stderr,
        )


def describe_failure(error: WorkerFailedError) -> str:
    """One line for a worker that could not start."""
    if error.outcome == "torch_missing":
        return f"the probes need torch: {torch_remedy()}"
    return f"the probe worker failed: {error.text}"


def print_table(rows: Sequence[Row]) -> None:
    """Print the results in columns, one kernel per line."""
    header = ("gpu", "kernel", "measured", "of peak", "efficiency", "of baseline", "clock", "")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        text = "  ".join(
            cell.ljust(width) if column in (0, 1, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print(text.rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    clock = "-" if row.sm_clock_hertz is None else f"{row.sm_clock_hertz / 1e6:.0f} MHz"
    verdict = row.grade + (f": {row.why}" if row.why else "")
    return (
        row.gpu,
        row.kernel,
        _figure(row),
        _percent(row.peak_ratio),
        _percent(row.efficiency_ratio),
        _percent(row.baseline_ratio),
        clock,
        verdict,
    )


def _figure(row: Row) -> str:
    if row.value is None:
        return "-"
    if row.quantity == "latency":
        return f"{row.value * 1e6:.2f} us"
    unit = "FLOP/s" if row.quantity == "flops" else "B/s"
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if row.value >= scale:
            return f"{row.value / scale:.4g} {prefix}{unit}"
    return f"{row.value / 1e6:.4g} M{unit}"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1%}"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(
            f"{text}: must be a number of seconds, above 0 and up to 3600"
        )
    return value


def _check_precisions(wanted: frozenset[str]) -> None:
    from probes.kernels import all_kernels

    known = {k.label for k in all_kernels().values() if k.quantity == "flops"}
    for name in sorted(wanted - known):
        raise ProbeError(f"--precision {name}: unknown; known: {', '.join(sorted(known))}")


@contextmanager
def _progress(devices: int, *, show: bool) -> Iterator[Callable[[Step], None]]:
    """A function to call before each kernel: a rich progress bar on a terminal, else a line."""
    if not show:
        yield lambda _step: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=float(devices))
            begun: dict[str, None] = {}

            def advance(step: Step) -> None:
                begun[step.gpu] = None
                completed = len(begun) - 1 + step.position / step.count
                bar.update(task, description=_doing(step), completed=completed)

            yield advance
        return
    started = time.monotonic()

    def say(step: Step) -> None:
        passed = time.monotonic() - started
        print(f"{passed:5.1f} s  {_doing(step)}  {step.position + 1}/{step.count}", file=sys.stderr)

    yield say


def _doing(step: Step) -> str:
    return f"gpu {step.gpu}  {step.kernel}"
