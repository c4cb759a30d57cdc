"""States with GPUs of given peaks, for MFU and MBU worked by hand."""

from collections.abc import Mapping, Sequence

from exporter.accounting.peaks import Peaks
from exporter.device_state import DeviceState
from exporter.readings import DeviceIdentity, ProcessUse, SlowReading
from exporter.state import State


def gpu(
    index: str,
    uuid: str,
    peaks: Mapping[str, float],
    *,
    bandwidth: float = 1e6,
    mig: str | None = None,
    pids: Sequence[int] = (),
) -> DeviceState:
    """A fresh device with these peaks (FLOP/s by precision, bytes/s) and processes."""
    return DeviceState(
        identity=DeviceIdentity(index=index, uuid=uuid, name="GPU", mig=mig),
        at_seconds=0.0,
        up=True,
        max_age_seconds=4.0,
        peaks=Peaks(origin="datasheet", model="GPU", flops=peaks, dram_bytes_per_second=bandwidth),
        slow=SlowReading(0.0, processes=tuple(ProcessUse(pid, None) for pid in pids)),
    )


def host(*devices: DeviceState) -> State:
    """A host with these devices."""
    return State(at_seconds=0.0, devices=devices)
