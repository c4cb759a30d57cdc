"""The messages between daemon and worker: typed, versioned, length-limited.

A frame is a 4-byte big-endian length and that many bytes of MessagePack. The worker is not trusted:
a frame that is too long, truncated or malformed is a `ProtocolError`.
"""

from typing import Final, Literal

import msgspec


PROTOCOL_VERSION: Final = 1
# Large enough for the spans of a full-length probe (a few hundred floats), small enough that a
# worker writing garbage cannot make the daemon allocate much.
FRAME_BYTES_MAX: Final = 64 * 1024
HEADER_BYTES: Final = 4

Outcome = Literal["ok", "contended", "throttled", "mismatch", "out_of_memory", "timeout", "error"]
Quantity = Literal["flops", "bandwidth", "latency"]


class ProtocolError(Exception):
    """The other side violated the protocol."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message; the tag identifies the subclass."""


class Device(Message, frozen=True):
    """One device that the worker may use, in the order of CUDA_VISIBLE_DEVICES."""

    kind: Literal["cuda", "cpu"]
    key: str
    l2_bytes: int | None = None
    free_memory_bytes: int | None = None
    """Free memory before the worker opened its context, to tell the context's own size."""


class Open(Message, frozen=True, tag=True):
    """First message to a worker."""

    protocol: int
    devices: tuple[Device, ...]
    cpu_threads: int
    memory_limit_bytes: int
    cores: tuple[int, ...] = ()
    """The logical CPUs for the threads, one each; empty: the scheduler places them."""


class Describe(Message, frozen=True, tag=True):
    """Open this device and list its kernels."""

    device: int


class Run(Message, frozen=True, tag=True):
    """Measure one kernel on one device."""

    identifier: int
    kernel: str
    device: int
    allowance_seconds: float
    """Device time it may take; a chunk that would pass it is not started."""
    max_chunk_seconds: float
    gap_seconds: float
    timed_runs: int
    shape: tuple[int, ...] = ()
    """As in an earlier result; empty: choose."""
    peer: int | None = None


class Exit(Message, frozen=True, tag=True):
    """Leave now."""


class Hello(Message, frozen=True, tag=True):
    """The worker is up, torch is imported, no device has been touched yet."""

    protocol: int
    pid: int
    torch_version: str


class KernelInfo(Message, frozen=True):
    """A kernel that the device has."""

    name: str
    quantity: Quantity
    label: str
    """The precision, the copy path, or empty."""


class Described(Message, frozen=True, tag=True):
    """Answer to `Describe`."""

    device: int
    kernels: tuple[KernelInfo, ...]
    versions: str
    """Software that decides a kernel's speed and bits: baselines hold only for the same."""
    units: int
    """SMs the kernels use; cores of the host processor."""
    memory_bytes: int
    device_seconds: float


class Busy(Message, frozen=True, tag=True):
    """A chunk is running on the device from now on."""


class Idle(Message, frozen=True, tag=True):
    """The chunk has ended."""

    device_seconds: float


class Result(Message, frozen=True, tag=True):
    """Answer to `Run`."""

    identifier: int
    shape: tuple[int, ...]
    work_per_run: float
    """FLOP or bytes of one run; 1 for a latency."""
    run_seconds: tuple[float, ...]
    """Each timed run, dropped ones left out."""
    executed_runs: int
    """All runs of this request, dropped ones included: what an outside counter saw."""
    clock_hertz: float | None
    digest: str
    """Of the result's bits; equal inputs and versions give equal digests. Empty: not checked."""
    repeats_agree: bool
    """All repetitions in this run had the same bits."""
    exact: bool | None
    """The result equals the one computed in exact integers on the host; None: not checked."""
    memory_bytes: int
    preempted: tuple[bool, ...] = ()
    """For each timed run, whether a thread of it had to wait for others; empty: none had."""


class Failure(Message, frozen=True, tag=True):
    """A request, or the start, failed."""

    outcome: Literal["out_of_memory", "error", "torch_missing", "allowance"]
    text: str
    fatal: bool = False
    """The worker is of no further use and exits."""


ToWorker = Open | Describe | Run | Exit
FromWorker = Hello | Described | Busy | Idle | Result | Failure

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """One frame, header included; raises ProtocolError if it would be too long."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a message of {len(body)} bytes passes the limit of {FRAME_BYTES_MAX}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into frames; holds at most one frame and one read's bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def next_body(self) -> bytes | None:
        """The body of the next complete frame, or None until more bytes arrive."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if length > FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} bytes passes the limit of {FRAME_BYTES_MAX}")
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return body


def decode_from_worker(body: bytes) -> FromWorker:
    """The message in a frame's body; raises ProtocolError."""
    try:
        return _from_worker.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from error


def decode_to_worker(body: bytes) -> ToWorker:
    """The message in a frame's body; raises ProtocolError."""
    try:
        return _to_worker.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of this protocol: {error}") from error
