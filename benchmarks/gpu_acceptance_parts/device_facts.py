"""What the product itself knows about the GPU: its peaks, and its facts for the probes."""

from exporter.accounting.peaks import Peaks, find_peaks
from exporter.cli.probe import read_devices
from exporter.collect.nvml.identity import read_identity
from exporter.collect.nvml.library import DeviceCalls, DriverLibrary, call
from exporter.config.load import ConfigOrigin, load_config
from exporter.readings import DeviceIdentity
from probes.facts import DeviceFacts


def identity_and_peaks(index: int) -> tuple[DeviceIdentity, Peaks]:
    """The GPU's identity and peaks. Raises NvmlError."""
    library = DriverLibrary()
    library.open()
    try:
        calls = DeviceCalls(call("nvmlDeviceGetHandleByIndex", index), device=str(index))
        identity = read_identity(calls, index, library.driver_version())
    finally:
        library.close()
    return identity, find_peaks(identity)


def facts_of(index: int, *, rehearsal: bool) -> DeviceFacts:
    """The facts that the daemon would give its probes; in a rehearsal the host processor's."""
    config = load_config(ConfigOrigin(environment={"FLOPWATCH_SOURCES_CPU": "on"}))
    devices = read_devices(config)
    kind = "cpu" if rehearsal else "cuda"
    for facts in devices:
        if facts.kind == kind and (rehearsal or facts.key == str(index)):
            return facts
    raise RuntimeError(f"the daemon's sampling shows no {kind} device for GPU {index}")
