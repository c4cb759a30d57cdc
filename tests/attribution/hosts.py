"""Host snapshots with devices of given names and processes."""

from collections.abc import Sequence

from exporter.readings import DeviceIdentity, ProcessUse, SlowReading
from exporter.state import DeviceSnapshot, HostSnapshot


def gpu(
    index: str, uuid: str, *, mig: str | None = None, pids: Sequence[int] = ()
) -> DeviceSnapshot:
    """A device that is up."""
    return DeviceSnapshot(
        identity=DeviceIdentity(index=index, uuid=uuid, name="H100", mig=mig),
        at_seconds=0.0,
        up=True,
        max_age_seconds=5.0,
        slow=SlowReading(0.0, processes=tuple(ProcessUse(pid, None) for pid in pids)),
    )


def host(*devices: DeviceSnapshot) -> HostSnapshot:
    """A host with these devices."""
    return HostSnapshot(devices=devices, hung=frozenset(), pending=False, now_seconds=0.0)


# GPU 0 whole, GPU 1 with two MIG instances.
MIXED = host(
    gpu("0", "GPU-aa"),
    gpu("1", "GPU-bb"),
    gpu("1", "MIG-cc", mig="3"),
    gpu("1", "MIG-dd", mig="5"),
)
