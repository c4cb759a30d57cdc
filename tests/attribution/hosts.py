"""States with devices of given names and processes."""

from collections.abc import Sequence

from exporter.device_state import DeviceState
from exporter.readings import DeviceIdentity, ProcessUse, SlowReading
from exporter.state import State


def gpu(index: str, uuid: str, *, mig: str | None = None, pids: Sequence[int] = ()) -> DeviceState:
    """A device that is up."""
    return DeviceState(
        identity=DeviceIdentity(index=index, uuid=uuid, name="H100", mig=mig),
        at_seconds=0.0,
        up=True,
        max_age_seconds=5.0,
        slow=SlowReading(0.0, processes=tuple(ProcessUse(pid, None) for pid in pids)),
    )


def host(*devices: DeviceState) -> State:
    """A host with these devices."""
    return State(at_seconds=0.0, devices=devices)


# GPU 0 whole, GPU 1 with two MIG instances.
MIXED = host(
    gpu("0", "GPU-aa"),
    gpu("1", "GPU-bb"),
    gpu("1", "MIG-cc", mig="3"),
    gpu("1", "MIG-dd", mig="5"),
)
