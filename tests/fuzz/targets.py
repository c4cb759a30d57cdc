"""Every parser that reads what others wrote: what it may raise, and real inputs to begin from."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from exporter.config.load import ConfigOrigin, load_config
from exporter.dcgm import exposition as dcgm
from exporter.engines import exposition as engines
from exporter.engines.registry import PREFIXES
from exporter.errors import ConfigError, WebConfigError
from exporter.holders import pod_resources
from exporter.models.config import load_description
from exporter.models.errors import ModelDescriptionError
from exporter.web.config import load_web_config
from exporter.web.limits import DEFAULT_LIMITS
from exporter.web.negotiation import accepts_gzip, choose_format
from exporter.web.protocol import RefusedError, may_begin_request, parse_head
from probes.protocol import (
    Device,
    FrameReader,
    Idle,
    Open,
    ProtocolError,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from probes.state import ProbesState, StateFile


_TESTS = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `run` lets through what it may not raise."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def read_config(data: bytes) -> None:
    """The daemon's configuration file."""
    with _file(data, "config.yaml") as path, suppress(ConfigError):
        load_config(ConfigOrigin(file=str(path), environment={}))


def read_web_config(data: bytes) -> None:
    """The web configuration file."""
    with _file(data, "web.yml") as path, suppress(WebConfigError):
        load_web_config(path)


def read_request(data: bytes) -> None:
    """A request's head, and the headers by which the answer's format is chosen."""
    may_begin_request(data)
    with suppress(RefusedError):
        head = parse_head(data, DEFAULT_LIMITS)
        choose_format(head.headers.get("accept"))
        accepts_gzip(head.headers.get("accept-encoding"))
    text = data.decode("latin-1")
    choose_format(text)
    accepts_gzip(text)


def read_engine_exposition(data: bytes) -> None:
    """What an inference engine answers: bad lines are counted, never raised."""
    names = {"vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "tgi_request_count"}
    engines.parse(data.decode(errors="replace"), names, PREFIXES)


def read_dcgm_exposition(data: bytes) -> None:
    """What a dcgm-exporter answers."""
    with suppress(ValueError):
        dcgm.parse(data.decode(errors="replace"))


def read_model_config(data: bytes) -> None:
    """A model's config.json."""
    with _file(data, "config.json") as path, suppress(ModelDescriptionError):
        load_description(path)


def read_worker_bytes(data: bytes) -> None:
    """What comes through the pipes between daemon and probe worker."""
    reader = FrameReader()
    with suppress(ProtocolError):
        for start in range(0, len(data), 7):
            reader.feed(data[start : start + 7])
            while (body := reader.next_body()) is not None:
                with suppress(ProtocolError):
                    decode_from_worker(body)
                with suppress(ProtocolError):
                    decode_to_worker(body)


def read_state(data: bytes) -> None:
    """The state file; whatever stood in it, the next one can be written and read."""
    with _file(data, "state.json") as path:
        state = StateFile(path)
        state.probes()
        state.calibration()
        state.save_probes(ProbesState(charges={"GPU-1": [(1.0, 2.0)]}))
        assert StateFile(path).probes().charges == {"GPU-1": [(1.0, 2.0)]}


def read_pod_resources(data: bytes) -> None:
    """The kubelet's answer."""
    with suppress(ValueError):
        list(pod_resources._allocations(memoryview(data)))


class _file:
    """A file with this content, in a folder of its own."""

    def __init__(self, data: bytes, name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self._path = Path(self._folder.name) / name
        self._path.write_bytes(data)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _corpus(folder: str, pattern: str) -> tuple[bytes, ...]:
    seeds = tuple(path.read_bytes() for path in sorted((_TESTS / folder).glob(pattern)))
    assert seeds, f"no seeds in {folder}"
    return seeds


_CONFIG = b"""sampling: {interval: 1s, slow_interval: 15s, deadline: 2s}
sources: {nvml: auto, gpm: on, dcgm: off, cpu: auto}
gpus:
  - {match: {name: "NVIDIA H100*"}, precision: fp8}
  - {match: {index: 0}, precision: bf16}
probes: {enabled: true, interval: 60s, budget: 20ms, kernels: [gemm_bf16, copy_device]}
workloads:
  - {name: chat, engine: vllm, url: "http://127.0.0.1:8000/metrics", gpus: [0, 1]}
kubernetes: {pod_resources: auto, socket: /var/lib/kubelet/pod-resources/kubelet.sock}
limits: {series: 20000}
"""
_REQUEST = (
    b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost:9907\r\nContent-Length: 0\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\nAccept-Encoding: gzip;q=1.0, *;q=0\r\n"
)
_DCGM = b"""# HELP DCGM_FI_PROF_SM_ACTIVE The ratio of cycles an SM has at least 1 warp assigned.
# TYPE DCGM_FI_PROF_SM_ACTIVE gauge
DCGM_FI_PROF_SM_ACTIVE{gpu="0",UUID="GPU-1",GPU_I_ID="7",modelName="NVIDIA A100"} 0.97
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="0",UUID="GPU-1"} 1.5e-1
DCGM_FI_PROF_DRAM_ACTIVE{gpu="0",UUID="GPU-1"} NaN
"""
_STATE = (
    b'{"version": 1, "probes": {"baselines": {"GPU-1": {}}, "charges": {"GPU-1": [[1.0, 0.02]]}},'
    b' "calibration": {"GPU-1": {"bf16": {"error_ratio": 0.01, "timestamp_seconds": 1.7e9}}}}'
)
_FRAMES = (
    encode(Idle(device_seconds=0.001)),
    encode(Open(1, (Device("cuda", "GPU-1"),), 2, 1 << 30)),
    (5).to_bytes(4, "big") + b"\x81\xa4type",
    b"\xff\xff\xff\xff",
)
# One pod `abc` of namespace `def`, its container `c` with the device `GPU-1` of nvidia.com/gpu.
_DEVICE = b"\x0a\x0envidia.com/gpu\x12\x05GPU-1"
_CONTAINER = b"\x0a\x01c\x12" + bytes([len(_DEVICE)]) + _DEVICE
_POD = b"\x0a\x03abc\x12\x03def\x1a" + bytes([len(_CONTAINER)]) + _CONTAINER
_PODS = b"\x0a" + bytes([len(_POD)]) + _POD

TARGETS = {
    target.name: target
    for target in (
        Target("config", read_config, (_CONFIG,)),
        Target("web_config", read_web_config, _corpus("web/corpus", "*.yml")),
        Target("request", read_request, (_REQUEST,)),
        Target("engine_exposition", read_engine_exposition, _corpus("engines/expositions", "*")),
        Target("dcgm_exposition", read_dcgm_exposition, (_DCGM,)),
        Target("model_config", read_model_config, _corpus("models/configs", "*.json")),
        Target("worker_bytes", read_worker_bytes, _FRAMES),
        Target("state", read_state, (_STATE,)),
        Target("pod_resources", read_pod_resources, (_PODS,)),
    )
}
