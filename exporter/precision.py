"""At which precision a GPU's tensor work is valued, and who says so."""

from collections.abc import Callable
from fnmatch import fnmatchcase

import structlog

from exporter.accounting.peaks import Peaks
from exporter.config.model import GpuRule
from exporter.readings import DeviceIdentity


log = structlog.get_logger(__name__)


class PrecisionRules:
    """Configuration first, then a joined inference engine, then bf16 or what the GPU has instead."""

    def __init__(
        self,
        rules: Callable[[], tuple[GpuRule, ...]],
        from_engine: Callable[[DeviceIdentity], str | None],
    ) -> None:
        self._rules = rules
        self._from_engine = from_engine
        self._refused: set[tuple[str, str]] = set()

    def resolve(self, identity: DeviceIdentity, peaks: Peaks) -> tuple[str | None, str]:
        """(precision, origin) of a device; origin is `config`, `engine` or `default`."""
        for rule in self._rules():
            if matches(rule, identity):
                if self._usable(rule.precision, identity, peaks):
                    return rule.precision, "config"
                break
        engine = self._from_engine(identity)
        if self._usable(engine, identity, peaks):
            return engine, "engine"
        return peaks.default_precision, "default"

    def _usable(self, precision: str | None, identity: DeviceIdentity, peaks: Peaks) -> bool:
        if precision is None:
            return False
        if precision in peaks.tensor_rate:
            return True
        if (identity.uuid, precision) not in self._refused:
            self._refused.add((identity.uuid, precision))
            log.warning(
                "precision_not_in_silicon",
                gpu=identity.index,
                name=identity.name,
                precision=precision,
                used=peaks.default_precision,
            )
        return False


def matches(rule: GpuRule, identity: DeviceIdentity) -> bool:
    """Whether all patterns of the rule fit the device."""
    return (
        (rule.uuid is None or fnmatchcase(identity.uuid, rule.uuid))
        and (rule.index is None or identity.index == str(rule.index))
        and (rule.name is None or fnmatchcase(identity.name, rule.name))
    )
