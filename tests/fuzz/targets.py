"""Every parser of foreign input: what it may raise, and real inputs to start from."""

import gzip
import io
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection

from benchmarks.engine_accuracy.truth import SERVED
from benchmarks.gguf import F16, write
from exporter import http_client
from exporter.attribution import pod_resources
from exporter.attribution.jobs import JobFiles, is_sluid, slurm_job
from exporter.collect import dcgm_windows as dcgm
from exporter.config.load import ConfigOrigin, load_config
from exporter.errors import ConfigError, HolderSourceError, ScrapeError, WebConfigError
from exporter.inference import reading as engines
from exporter.inference.engines import ENGINES, PREFIXES
from exporter.inference.launch import parse as parse_command
from exporter.inference.models import ModelDescriptionError
from exporter.inference.models.cost import cost_of
from exporter.inference.models.files import describe_gguf, load_model, read_header
from exporter.inference.progress import Progress
from exporter.inference.reading import Samples, by_model
from exporter.inference.scraper import CounterTracker
from exporter.services import read_calibrations
from exporter.web.config import load_web_config
from exporter.web.connections import DEFAULT_LIMITS
from exporter.web.http import HttpProtocol, RefusedError
from exporter.web.routes import accepts_gzip, choose_format
from flopwatch.state_file import StateFile
from probes.device_states import SECTION, SavedProbes, saved_probes
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
from tests.inference.models.shapes import TINY


_TESTS = Path(__file__).parent.parent


def _gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "tiny.gguf", SERVED, F16, words=True).read_bytes()[:40_000]


_GGUF = _gguf()


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `run` lets exceptions through that it may not raise."""

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
    protocol = HttpProtocol(DEFAULT_LIMITS, "192.0.2.1")
    with suppress(RefusedError):
        protocol.feed(data)
        head = protocol.request()
        if head is None:
            return
        choose_format(head.headers.get("accept"))
        accepts_gzip(head.headers.get("accept-encoding"))
    text = data.decode("latin-1")
    choose_format(text)
    accepts_gzip(text)


def read_engine_exposition(data: bytes) -> None:
    """An inference engine's answer: bad lines are counted, never raised."""
    names = {"vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "tgi_request_count"}
    engines.parse(data.decode(errors="replace"), names, PREFIXES)


def read_engine_counts(data: bytes) -> None:
    """The same answer twice, through every engine's reader and the accounting behind it."""
    for engine in ENGINES.values():
        parsed = engines.parse(data.decode(errors="replace"), engine.names, PREFIXES, engine.rename)
        tracker, progress = CounterTracker(engine.series), Progress()
        for epoch in (1.0, 1.0, 2.0):
            samples = tracker.update(engine.deduplicate(parsed.samples), epoch)
            for own in by_model(samples).values():
                work = progress.work_of(engine.read(Samples(own)))
                cost_of(TINY, work)


def read_gguf(data: bytes) -> None:
    """A file of weights, which an engine may still be writing."""
    with suppress(ValueError, struct.error, ModelDescriptionError):
        describe_gguf(read_header(io.BytesIO(data)))


def read_command_line(data: bytes) -> None:
    """Another program's command line."""
    parse_command(data.decode(errors="replace").split("\0"))


def read_dcgm_exposition(data: bytes) -> None:
    """A dcgm-exporter's answer."""
    with suppress(ValueError):
        dcgm.parse(data.decode(errors="replace"))


def read_model_config(data: bytes) -> None:
    """A model's config.json."""
    with _file(data, "config.json") as path, suppress(ModelDescriptionError):
        load_model(path)


def read_worker_bytes(data: bytes) -> None:
    """The bytes in the pipes between daemon and probe worker."""
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
    """The state file; whatever it contained, the next one can be written and read."""
    with _file(data, "state.json") as path:
        state = StateFile(path)
        saved_probes(state)
        read_calibrations(state)
        state.save(SECTION, SavedProbes(charges={"GPU-1": [(1.0, 2.0)]}))
        assert saved_probes(StateFile(path)).charges == {"GPU-1": [(1.0, 2.0)]}


def read_pod_resources(data: bytes) -> None:
    """The kubelet's answer."""
    with suppress(ValueError):
        list(pod_resources._allocations(memoryview(data)))


def read_kubelet_stream(data: bytes) -> None:
    """All bytes from the kubelet's socket: HTTP/2, gRPC, and the message in it."""
    with suppress(HolderSourceError):
        pod_resources._converse(_Socket(data), time.monotonic() + 60, "/v1.Lister/List", b"", 60)  # type: ignore[arg-type]


def read_job_mapping(data: bytes) -> None:
    """A file of the batch system."""
    with _file(data, "0") as path, suppress(HolderSourceError):
        assert all(use.job.isprintable() for use in JobFiles(path.parent).read())


def read_control_groups(data: bytes) -> None:
    """/proc/<pid>/cgroup."""
    job = slurm_job(data.decode("utf-8", "replace"))
    assert job is None or job.isdigit() or is_sluid(job)


def read_engine_answer(data: bytes) -> None:
    """All bytes of a connection to an engine: HTTP, and its compressed content."""

    parts = urlsplit("http://127.0.0.1:8000/metrics")
    connection = HTTPConnection("127.0.0.1", 8000)
    connection.sock = http_client._DeadlineSocket(_Socket(data), lambda: 60.0)  # type: ignore[arg-type, assignment]
    # Those that `fetch` turns into reasons, except those that only sockets raise.
    with suppress(ScrapeError, HTTPException, ValueError):
        http_client._get(connection, parts, 1 << 20, 0)


class _Socket:
    """A peer that has sent all this at once, in pieces of 100 bytes, and closed the connection."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def settimeout(self, _seconds: float) -> None:
        """Nothing here waits."""

    def sendall(self, _data: bytes) -> None:
        """It does not read, either."""

    def recv(self, count: int) -> bytes:
        piece, self._data = self._data[: min(count, 100)], self._data[min(count, 100) :]
        return piece

    def recv_into(self, buffer: Any) -> int:
        piece = self.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


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


def _kubelet_stream(message: bytes) -> bytes:
    """A whole gRPC answer to the call in stream 1, as h2's own server side writes it."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "x")])  # fmt: skip
    client.end_stream(1)
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.send_data(1, struct.pack(">BI", 0, len(message)) + message)
    server.send_headers(1, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)
    return server.data_to_send()


def _http(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"", body])


_ENGINE_ANSWERS = (
    _http(b"a 1\n", b"Content-Length: 4"),
    _http(b"4\r\na 1\n\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    _http(gzip.compress(b"a 1\n", mtime=0), b"Content-Encoding: gzip"),
)
_CONTROL_GROUPS = (
    b"0::/system.slice/slurmstepd.scope/job_42/step_0/user/task_0\n",
    b"12:devices:/slurm/uid_1000/job_42/step_0/task_0\n1:name=systemd:/init.scope\n",
)

TARGETS = {
    target.name: target
    for target in (
        Target("config", read_config, (_CONFIG,)),
        Target("web_config", read_web_config, _corpus("web/corpus", "*.yml")),
        Target("request", read_request, (_REQUEST,)),
        Target(
            "engine_exposition",
            read_engine_exposition,
            _corpus("inference/engines/expositions", "*"),
        ),
        Target("engine_counts", read_engine_counts, _corpus("inference/engines/expositions", "*")),
        Target("gguf", read_gguf, (_GGUF,)),
        Target("command_line", read_command_line, (b"vllm\0serve\0/m\0--tp\x002\0",)),
        Target("dcgm_exposition", read_dcgm_exposition, (_DCGM,)),
        Target("model_config", read_model_config, _corpus("inference/models/configs", "*.json")),
        Target("worker_bytes", read_worker_bytes, _FRAMES),
        Target("state", read_state, (_STATE,)),
        Target("pod_resources", read_pod_resources, (_PODS,)),
        Target("kubelet_stream", read_kubelet_stream, (_kubelet_stream(_PODS),)),
        Target("job_mapping", read_job_mapping, (b"4711\n4712.batch\n",)),
        Target("control_groups", read_control_groups, _CONTROL_GROUPS),
        Target("engine_answer", read_engine_answer, _ENGINE_ANSWERS),
    )
}
