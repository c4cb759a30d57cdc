"""The services besides the sampling: probes, engines, GPU holders, calibration, advice.

Each has its own threads or processes, reads only the State, and returns a frozen value that becomes
a part of the next State.
"""

from collections.abc import Callable

from exporter.advisor import Advisor
from exporter.attribution.service import HolderService
from exporter.calibration import CalibrationFile
from exporter.config.model import Config
from exporter.inference.models import matrix_products
from exporter.inference.service import WorkloadService
from exporter.probe_facts import ProbeFacts
from exporter.state import State
from flopwatch.state_file import usable_state_path
from probes.facts import ModelGemm
from probes.service import ProbeService


class Services:
    """Owns the services beside the sampling."""

    def __init__(
        self, config: Config, *, now: Callable[[], State], latest: Callable[[], State]
    ) -> None:
        """`now` returns the current State, `latest` the last one built."""
        state_path = usable_state_path(config.state_file)
        self.calibration = CalibrationFile(state_path)
        self.workloads = WorkloadService(
            config.workloads,
            state=latest,
            discovery=config.discovery,
        )
        self.probes = ProbeService(
            config.probes,
            ProbeFacts(now, instances=True, model_gemms=self._model_gemms),
            state_path=state_path,
        )
        self.holders = HolderService(config.holders, latest)
        self.advisor = Advisor(
            now,
            self.workloads.served,
            prices=config.prices,
            settings=config.advice,
            state_path=state_path,
        )

    def _model_gemms(self, state: State) -> dict[str, tuple[ModelGemm, ...]]:
        """The matrix products of the served models, by the UUID of the devices that compute them."""
        found: dict[str, tuple[ModelGemm, ...]] = {}
        for served in self.workloads.served(state):
            if served.description is None:
                continue
            products = matrix_products(served.description, served.tensor_parallel)
            gemms = tuple(ModelGemm(each.precision, each.n, each.k) for each in products)
            for gpu in served.gpus:
                found[gpu.uuid] = tuple(dict.fromkeys((*found.get(gpu.uuid, ()), *gemms)))
        return found

    def start(self) -> None:
        """Start all services."""
        self.probes.start()
        self.workloads.start()
        self.holders.start()
        self.advisor.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stop all services; each has at most this long."""
        self.probes.stop(timeout_seconds)
        self.workloads.stop(timeout_seconds)
        self.holders.stop(timeout_seconds)
        self.advisor.stop(timeout_seconds)

    def stalled(self, now: float) -> tuple[str, ...]:
        """Names of the threads that have ended or are stuck through a bug of ours."""
        return (
            *self.probes.stalled(now),
            *self.workloads.stalled(now),
            *self.holders.stalled(now),
            *self.advisor.stalled(now),
        )

    def configure(self, config: Config) -> None:
        """Apply another configuration."""
        self.probes.configure(config.probes)
        self.workloads.configure(config.workloads)
        self.holders.configure(config.holders)
        self.advisor.configure(config.prices)
