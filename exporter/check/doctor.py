"""All checks of a host and a configuration, in the order of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exporter.check.finding import Finding, Level
from exporter.check.flops import ask_dcgm, dcgm_findings, flops_source
from exporter.check.gpus import driver_findings, gpu_findings
from exporter.check.host import (
    clock_findings,
    engine_findings,
    kubernetes_findings,
    port_findings,
    probe_findings,
    state_findings,
)
from exporter.check.subprocesses import Answer, ask_driver, ask_torch
from exporter.config.model import Config


# A healthy driver answers for eight GPUs within a second or two, a cold one within six.
DRIVER_SECONDS = 15.0
TORCH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found; `driver`, `gpus` and `torch` are what they said themselves."""

    findings: tuple[Finding, ...]
    driver: dict[str, Any]
    gpus: tuple[dict[str, Any], ...]
    torch: dict[str, Any]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        return not any(finding.level is Level.FAILURE for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """As plain data, for --json."""
        return {
            "healthy": self.healthy,
            "findings": [finding.document() for finding in self.findings],
            "driver": self.driver,
            "gpus": list(self.gpus),
            "torch": self.torch,
        }


def examine(
    config: Config,
    mistakes: Sequence[str] = (),
    *,
    driver_seconds: float = DRIVER_SECONDS,
    torch_seconds: float = TORCH_SECONDS,
) -> Report:
    """Examine this host. `mistakes` are those of the configuration, which is then the default one."""
    no_answer = Answer(())
    driver_question = ask_driver(driver_seconds) if config.sampling.modes["nvml"] != "off" else None
    torch_question = ask_torch(torch_seconds) if config.probes.enabled else None
    findings = [
        Finding("configuration", Level.FAILURE, mistake, "correct it; defaults are used below")
        for mistake in mistakes
    ]
    if not mistakes:
        findings.append(Finding("configuration", Level.OK, "valid"))
    findings += port_findings(config)
    findings += state_findings(config)
    findings += clock_findings()
    driver = driver_question.answer() if driver_question is not None else no_answer
    gpus = driver.documents[1:]
    findings += driver_findings(driver, config)
    dcgm = ask_dcgm(config, gpus)
    findings += gpu_findings(driver, config, dcgm)
    findings += dcgm_findings(dcgm, config, gpus)
    torch = torch_question.answer() if torch_question is not None else None
    findings += probe_findings(torch, config, gpus, next(iter(driver.documents), None))
    findings += engine_findings(config)
    findings += kubernetes_findings(config)
    return Report(
        findings=tuple(findings),
        driver=driver.documents[0] if driver.documents else {},
        gpus=tuple(
            {**gpu, "flops_source": flops_source(gpu, dcgm, config).name} if "gpm" in gpu else gpu
            for gpu in gpus
        ),
        torch=torch.documents[-1] if torch is not None and torch.documents else {},
    )
