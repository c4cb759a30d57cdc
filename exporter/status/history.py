"""What the status page remembers about each device between two requests."""

import threading
import time
from collections.abc import Mapping

import structlog

from exporter.device_state import UNKNOWN, DeviceState
from exporter.status.memory import Memory
from exporter.status.ring import Ring


log = structlog.get_logger(__name__)

# Eight GPUs in seven MIG instances each, and room for those that were swapped. A device that has
# been away for longer than the ring remembers is forgotten when another one comes.
DEVICES_MAX = 128
_FORGET_SECONDS = 3600.0


class DeviceHistory:
    """One device: its ring, the ECC counts it was first seen with, and why it last failed."""

    def __init__(self) -> None:
        self.ring = Ring()
        self.seen_at_seconds = 0.0
        self.failure: str | None = None
        self._first_ecc: dict[str, float] = {}
        self._errors: Mapping[str, int] = {}

    def observe(self, snapshot: DeviceState) -> None:
        """Take the device's next snapshot."""
        self.seen_at_seconds = snapshot.at_seconds
        if snapshot.slow is not None:
            for kind, errors in snapshot.slow.ecc_errors.items():
                self._first_ecc.setdefault(kind, errors)
        nvml = snapshot.sources.get("nvml")
        errors_now = nvml.errors if nvml else {}
        if snapshot.up:
            self.failure = None
        else:
            grown = [name for name, n in errors_now.items() if n > self._errors.get(name, 0)]
            self.failure = grown[-1] if grown else self.failure
        self._errors = errors_now
        self.ring.observe(snapshot)

    def new_ecc_errors(self, ecc_errors: Mapping[str, float]) -> dict[str, float]:
        """Errors since the device was first seen."""
        return {
            kind: max(0.0, errors - self._first_ecc.get(kind, errors))
            for kind, errors in ecc_errors.items()
        }


class Histories:
    """The histories of all devices, by UUID. `lock` guards them while they are read."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.lock = threading.Lock()
        self.memory = memory or Memory()
        self._by_uuid: dict[str, DeviceHistory] = {}
        self._failed_at = float("-inf")

    def observe(self, snapshot: DeviceState) -> None:
        """Take a snapshot of any device; never raises, because sampling must continue."""
        try:
            self._observe(snapshot)
        except Exception:  # a bug of the page must not cost a reading
            now = time.monotonic()
            if now - self._failed_at > _FORGET_SECONDS:
                self._failed_at = now
                log.exception("status_history_failed", gpu=snapshot.identity.index)

    def get(self, snapshot: DeviceState) -> DeviceHistory:
        """The history of a device; an empty one if it was never observed. Hold the lock."""
        return self._by_uuid.get(snapshot.identity.uuid) or DeviceHistory()

    def __len__(self) -> int:
        return len(self._by_uuid)

    @property
    def size_bytes(self) -> int:
        """Size of all rings in bytes."""
        return sum(history.ring.size_bytes for history in self._by_uuid.values())

    def _observe(self, snapshot: DeviceState) -> None:
        uuid = snapshot.identity.uuid
        if uuid == UNKNOWN:
            return
        with self.lock:
            history = self._by_uuid.get(uuid)
            if history is None:
                self._forget(snapshot.at_seconds)
                if len(self._by_uuid) >= DEVICES_MAX:
                    return
                history = self._by_uuid[uuid] = DeviceHistory()
            history.observe(snapshot)
            self.memory.observe(snapshot)

    def _forget(self, now_seconds: float) -> None:
        """Forget devices that have been away for long."""
        for uuid, history in tuple(self._by_uuid.items()):
            if now_seconds - history.seen_at_seconds > _FORGET_SECONDS:
                del self._by_uuid[uuid]
                self.memory.forget(uuid)
