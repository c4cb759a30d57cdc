"""Runs all checks of a host and a configuration, and shows what they found, in report order."""

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from exporter.check import CheckResult, Report, failure, ok, warning
from exporter.check.gpus import (
    DcgmAnswer,
    ask_dcgm,
    dcgm_findings,
    driver_findings,
    flops_source,
    gpu_findings,
    missing_gpu_findings,
)
from exporter.check.host import (
    clock_findings,
    engine_findings,
    kubernetes_findings,
    perf_findings,
    port_findings,
    probe_findings,
    state_findings,
)
from exporter.check.subprocesses import Answer, Question, ask_driver, ask_torch
from exporter.config.model import Config


# A healthy driver answers for eight GPUs within one or two seconds, a cold one within six.
_DRIVER_SECONDS = 15.0
_TORCH_SECONDS = 60.0
_COLOURS = {"ok": "32", "note": "36", "warning": "33", "failure": "1;31"}
_WIDTH = 100


def examine(config: Config, mistakes: Sequence[str] = ()) -> Report:
    """Examine this host. If the configuration has `mistakes`, `config` is the default one."""
    found = _Examination()
    reads_driver = config.sampling.modes["nvml"] != "off"
    # Asked first, so that they answer while the rest is examined.
    driver_question = torch_question = None
    if reads_driver:
        driver_question = found.ask("driver", lambda: ask_driver(_DRIVER_SECONDS))
    if config.probes.enabled:
        torch_question = found.ask("probes", lambda: ask_torch(_TORCH_SECONDS))
    found.add("configuration", lambda: _configuration_findings(config, mistakes))
    found.add("port", lambda: port_findings(config))
    found.add("state file", lambda: state_findings(config))
    found.add("clock", clock_findings)
    driver = found.answer("driver", driver_question)
    gpus = driver.documents[1:]
    if driver_question or not reads_driver:
        found.add("driver", lambda: driver_findings(driver, config))
    dcgm = found.ask("dcgm", lambda: ask_dcgm(config, gpus)) or DcgmAnswer()
    found.add("gpus", lambda: gpu_findings(driver, config, dcgm))
    found.add("gpus", lambda: missing_gpu_findings(driver, config))
    found.add("dcgm", lambda: dcgm_findings(dcgm, config, gpus))
    torch = found.answer("probes", torch_question)
    if torch_question or not config.probes.enabled:
        version = next(iter(driver.documents), None)
        found.add("probes", lambda: probe_findings(torch, config, gpus, version))
    found.add("perf", lambda: perf_findings(config, gpus))
    found.add("engine", lambda: engine_findings(config))
    found.add("kubernetes", lambda: kubernetes_findings(config))
    described = found.ask("gpus", lambda: tuple(_described(gpu, dcgm, config) for gpu in gpus))
    return Report(
        findings=tuple(found.findings),
        driver=driver.documents[0] if driver.documents else {},
        gpus=described or tuple(gpus),
        torch=torch.documents[-1] if torch.documents else {},
    )


def report_lines(report: Report, *, colour: bool) -> Iterator[str]:
    """One line per finding, with its remedy below."""
    area_width = max(len(finding.area) for finding in report.findings)
    indent = " " * (len("warning") + area_width + 4)
    for finding in report.findings:
        level = f"{finding.level.value:<7}"
        if colour:
            level = f"\x1b[{_COLOURS[finding.level.value]}m{level}\x1b[0m"
        first, *others = textwrap.wrap(finding.text, _WIDTH - len(indent)) or [""]
        if finding.remedy is not None:
            others += textwrap.wrap(f"-> {finding.remedy}", _WIDTH - len(indent))
        yield f"{level}  {finding.area:<{area_width}}  {first}"
        yield from (indent + line for line in others)


def _configuration_findings(config: Config, mistakes: Sequence[str]) -> Iterator[CheckResult]:
    for mistake in mistakes:
        remedy = "correct it; defaults are used below"
        yield failure("configuration", mistake, remedy)
    if not mistakes:
        yield ok("configuration", "valid")
    for variable in config.unknown_variables:
        text = f"environment: {variable.name} {variable.remark}"
        yield warning("configuration", text, "rename or remove it")


def _described(gpu: dict[str, Any], dcgm: DcgmAnswer, config: Config) -> dict[str, Any]:
    if "gpm" not in gpu:
        return gpu
    return {**gpu, "flops_source": flops_source(gpu, dcgm, config).name}


_Answered = TypeVar("_Answered")


class _Examination:
    """Collects findings. A check that cannot run is itself a finding: the checker never crashes."""

    def __init__(self) -> None:
        self.findings: list[CheckResult] = []

    def add(self, area: str, examine_area: Callable[[], Iterable[CheckResult]]) -> None:
        """Add the findings of an area, as far as it can be examined."""
        try:
            self.findings.extend(examine_area())
        except Exception as fault:  # noqa: BLE001  a bug in one area must not cost the report
            self.findings.append(_not_examined(area, fault))

    def ask(self, area: str, question: Callable[[], _Answered]) -> _Answered | None:
        """The result of the question, or None where it cannot be asked."""
        try:
            return question()
        except Exception as fault:  # noqa: BLE001  the same
            self.findings.append(_not_examined(area, fault))
            return None

    def answer(self, area: str, question: Question | None) -> Answer:
        """The answer of a process; empty if it was not asked."""
        found = None if question is None else self.ask(area, question.answer)
        return found or Answer(())


def _not_examined(area: str, fault: Exception) -> CheckResult:
    if isinstance(fault, OSError):
        reason = os.strerror(fault.errno).lower() if fault.errno else str(fault)
        place = f"{fault.filename}: " if fault.filename else ""
        remedy = "run the check as the user that flopwatch runs as"
        return warning(area, f"could not be examined: {place}{reason}", remedy)
    text = f"could not be examined: {type(fault).__name__}: {fault}"
    return warning(area, text, "report it, with the output of flopwatch check --json")
