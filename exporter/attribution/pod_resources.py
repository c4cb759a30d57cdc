"""Finds the containers that hold GPUs through the kubelet's pod-resources API, version 1.

Source: the `v1` PodResourcesLister service in the Kubernetes documentation ("Monitoring device
plugin resources"). These messages and fields of its List response are read:

    ListPodResourcesResponse  1 pod_resources
    PodResources              1 name, 2 namespace, 3 containers
    ContainerResources        1 name, 2 devices, 5 dynamic_resources
    ContainerDevices          1 resource_name, 2 device_ids
    DynamicResource           4 claim_resources
    ClaimResource             1 cdi_devices, 2 driver_name, 4 device_name
    CDIDevice                 1 name

The wire format is that of the encoding page of the protocol buffers documentation: a field is a
varint tag, number times eight plus wire type, and a value. Unknown numbers are skipped.

Device ids depend on the device plugin:

| id | from |
| --- | --- |
| `GPU-<uuid>`, `MIG-<uuid>` | NVIDIA's device plugin |
| `GPU-<uuid>::3`, `MIG-<uuid>::0` | the same with time-slicing or MPS: a replica |
| `GPU-<uuid>-17` | device plugins that share GPUs (HAMi and others): a replica, whatever its suffix |
| `MIG-GPU-<uuid>/<instance>/<compute instance>` | NVIDIA's device plugin with drivers before 470 |
| `nvidia0`, `nvidia0/gi1` | GKE's device plugin, whole GPU and MIG instance |
| `nvidia0/vgpu2`, `nvidia0/gi1/vgpu2` | the same with time-sharing: a replica |

NVIDIA's DRA driver names devices by the number of the device node, and MIG instances by parent,
profile and placement:

| device | from |
| --- | --- |
| `gpu-0` | a whole GPU |
| `gpu-0-mig-9-4-4` | profile 9 at memory slice 4, size 4 (until 25.8) |
| `gpu-0-mig-3g-40gb-9-4` | profile 3g.40gb, which is 9, at memory slice 4 |

The call is one request and one response over HTTP/2, with the h2 package ("gRPC over HTTP2",
PROTOCOL-HTTP2.md of the gRPC documentation). Why not grpcio: for one small message every ten seconds
it adds 15 MB of resident memory and six threads; this adds 1.6 MB and no thread (`python -m
tests.attribution.client_memory`, CPython 3.11 on x86-64). h2 and its two parts are pure Python and
are imported at the first call, so that a host without a kubelet does not load them.
"""

import os
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from exporter.attribution.snapshot import Allocation, DeviceKey
from exporter.errors import HolderSourceError


if TYPE_CHECKING:
    from h2.connection import H2Connection

LIST_METHOD = "/v1.PodResourcesLister/List"
# 16 GPUs of 7 MIG instances, each in 64 replicas, are 7,168 holders; no more are read.
ALLOCATIONS_MAX = 8192
# Wire types of protocol buffers, and the sizes of fixed-length ones.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES_MAX = 10

NVIDIA_RESOURCES = "nvidia.com/"
GPU_DRIVER = "gpu.nvidia.com"
_UUID = re.compile(
    r"((?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?![0-9a-zA-Z])"
)
_OLD_MIG = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/\d+")
_GKE = re.compile(r"nvidia(\d+)(?:/gi(\d+))?(?:/vgpu\d+)?")
_DRA = re.compile(r"gpu-(\d{1,4})(?:-mig-(\d+)-(\d+)-\d+|-mig-\d*[a-z].*-(\d+)-(\d+))?")


# The kubelet's own limit for this API (16 MiB): it sends nothing larger.
RESPONSE_BYTES_MAX = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024
# Flow control matters on links with latency; here it only must not get in the way.
_WINDOW_BYTES = 4 * 1024 * 1024
_PREFIX_BYTES = 5  # prefix of each message: compression flag, length
_STATUS_NAMES = (
    "ok", "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found",
    "already_exists", "permission_denied", "resource_exhausted", "failed_precondition", "aborted",
    "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
)  # fmt: skip


def list_allocations(path: Path, timeout_seconds: float) -> tuple[Allocation, ...]:
    """Each container with a GPU and the devices that it holds, once each, in the kubelet's order.

    Raises HolderSourceError.
    """
    response = call(path, LIST_METHOD, b"", timeout_seconds)
    try:
        allocations = dict.fromkeys(_allocations(memoryview(response)))
    except ValueError as error:
        raise HolderSourceError("protocol", str(error)) from None
    return tuple(islice(allocations, ALLOCATIONS_MAX))


def _allocations(response: memoryview) -> Iterator[Allocation]:
    pods = (_fields(content) for number, content in length_delimited(response) if number == 1)
    for pod in pods:
        for container in map(_fields, pod[3]):
            names = (_last(pod[2]), _last(pod[1]), _last(container[1]))
            for devices in map(_fields, container[2]):
                resource = _last(devices[1])
                for device_id in map(text, devices[2]):
                    key = parse_device_id(resource, device_id)
                    if key is not None:
                        yield Allocation(key, *names)
            for resources in map(_fields, container[5]):
                for claim in resources[4]:
                    for key in _claimed(_fields(claim)):
                        yield Allocation(key, *names)


def _claimed(claim: Mapping[int, list[memoryview]]) -> Iterator[DeviceKey]:
    """The GPUs of one claim: by driver and device, or by CDI name from an old kubelet."""
    driver, device = _last(claim[2]), _last(claim[4])
    if driver and device:
        keys = [parse_dra_device(device)] if driver == GPU_DRIVER else []
    else:
        keys = [parse_cdi_device(text(name)) for cdi in claim[1] for name in _fields(cdi)[1]]
    yield from (key for key in keys if key is not None)


def _fields(message: memoryview) -> Mapping[int, list[memoryview]]:
    """The contents of a message by field number, none of the fields that it lacks."""
    fields: defaultdict[int, list[memoryview]] = defaultdict(list)
    for number, content in length_delimited(message):
        fields[number].append(content)
    return fields


def _last(contents: list[memoryview]) -> str:
    """A field that is not repeated: the last one counts, as protocol buffers have it."""
    return text(contents[-1]) if contents else ""


def length_delimited(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and content of each length-delimited field (strings, bytes, messages), in order.

    Fields of other wire types are skipped. Raises ValueError if the message is malformed.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH:
            length, position = _varint(message, position)
            if length > end - position:
                raise ValueError(f"field {number} is longer than its message")
            yield number, message[position : position + length]
            position += length
        elif wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"field {number} has wire type {wire_type}")
    if position > end:
        raise ValueError("the message ends within a field")


def text(content: memoryview) -> str:
    """A string field. Raises ValueError if it is not UTF-8."""
    return str(content, "utf-8")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at this position, and the position after it."""
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if position >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")


def parse_device_id(resource: str, device_id: str) -> DeviceKey | None:
    """The device behind an id, without the number of its replica; None if it is not a GPU's.

    A UUID is accepted for any resource name (device plugins may rename `nvidia.com/gpu`), a number
    only for a resource of NVIDIA, because it is ambiguous on its own.
    """
    base = device_id.partition("::")[0]
    old = _OLD_MIG.fullmatch(base)
    if old:
        return DeviceKey(uuid=old[1], mig=old[2])
    uuid = _UUID.match(base)
    if uuid:
        return DeviceKey(uuid=uuid[1])
    if base.startswith(("GPU-", "MIG-")):
        return DeviceKey(uuid=base)
    gke = _GKE.fullmatch(base)
    if gke and resource.startswith(NVIDIA_RESOURCES):
        return DeviceKey(minor=gke[1], mig=gke[2])
    return None


def parse_dra_device(device: str) -> DeviceKey | None:
    """The device of NVIDIA's DRA driver by its name; None if it is not a GPU for computing."""
    found = _DRA.fullmatch(device)
    if not found:
        return parse_device_id("", device)
    profile, start = found[2] or found[4], found[3] or found[5]
    placement = None if profile is None else (int(profile), int(start))
    return DeviceKey(minor=found[1], placement=placement)


def parse_cdi_device(name: str) -> DeviceKey | None:
    """The device behind a CDI name of that driver: `k8s.gpu.nvidia.com/claim=<claim>-gpu-0`.

    Kubelets before 1.31 report nothing else about a dynamic resource.
    """
    kind, _separator, device = name.partition("=")
    if not kind.partition("/")[0].endswith(GPU_DRIVER):
        return None
    position = device.rfind("gpu-")
    return parse_dra_device(device[position:]) if position >= 0 else parse_dra_device(device)


def call(path: Path, method: str, request: bytes, timeout_seconds: float) -> bytes:
    """The response to a unary call of `method` (`/package.Service/Method`).

    Takes at most `timeout_seconds`, however slowly the server sends. Raises HolderSourceError.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_seconds)
            connection.connect(os.fspath(path))
            return _converse(connection, deadline, method, request, timeout_seconds)
    except FileNotFoundError:
        raise HolderSourceError("absent", f"{path} is not there") from None
    except PermissionError:
        raise HolderSourceError("permission", f"{path} may not be opened") from None
    except ConnectionRefusedError:
        raise HolderSourceError("refused", f"nobody listens on {path}") from None
    except TimeoutError:
        raise HolderSourceError("timeout", f"no answer within {timeout_seconds:g} s") from None
    except OSError as error:
        raise HolderSourceError("connection", os.strerror(error.errno or 0)) from None


def _converse(
    connection: socket.socket, deadline: float, method: str, request: bytes, timeout_seconds: float
) -> bytes:
    import h2.exceptions  # noqa: PLC0415  only if a server listens

    try:
        return _Call(connection, deadline).run(method, request, timeout_seconds)
    except h2.exceptions.ProtocolError as error:
        raise HolderSourceError("protocol", str(error)) from None


class _Call:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._body = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._ended = False

    def run(self, method: str, request: bytes, timeout_seconds: float) -> bytes:
        protocol = _open(method, timeout_seconds)
        protocol.send_data(1, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
        self._send(protocol)
        while not self._ended:
            self._connection.settimeout(max(self._deadline - time.monotonic(), 1e-3))
            received = self._connection.recv(_READ_BYTES)
            # A server that sends byte by byte never times out in recv.
            if time.monotonic() > self._deadline:
                raise TimeoutError
            if not received:
                raise HolderSourceError("connection", "the server closed it within the answer")
            for event in protocol.receive_data(received):
                self._take(protocol, event)
            self._send(protocol)
        return self._message()

    def _take(self, protocol: "H2Connection", event: Any) -> None:
        from h2 import events  # noqa: PLC0415

        match event:
            case events.DataReceived():
                self._body += event.data or b""
                if len(self._body) > RESPONSE_BYTES_MAX + _PREFIX_BYTES:
                    raise HolderSourceError("too_large", f"more than {RESPONSE_BYTES_MAX} bytes")
                protocol.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            case events.ResponseReceived() | events.TrailersReceived():
                self._headers.update(event.headers or ())
            case events.StreamEnded():
                self._ended = True
            # Ignore anything after the end of the answer.
            case events.StreamReset() | events.ConnectionTerminated() if not self._ended:
                raise HolderSourceError("reset", f"HTTP/2 error code {event.error_code}")
            case _:
                pass

    def _message(self) -> bytes:
        status = self._headers.get(b"grpc-status", b"").decode("ascii", "replace")
        if status != "0":
            http = self._headers.get(b":status", b"?").decode("ascii", "replace")
            # More digits than int() accepts would raise a different error.
            known = len(status) <= 2 and status.isdecimal() and int(status) < len(_STATUS_NAMES)
            detail = unquote(self._headers.get(b"grpc-message", b"").decode("utf-8", "replace"))
            raise HolderSourceError(
                _STATUS_NAMES[int(status)] if known else "protocol",
                detail or f"gRPC status {status[:40] or 'missing'}, HTTP status {http[:40]}",
            )
        if len(self._body) < _PREFIX_BYTES:
            raise HolderSourceError("protocol", "the answer holds no message")
        compressed, length = struct.unpack_from(">BI", self._body)
        if compressed or length != len(self._body) - _PREFIX_BYTES:
            raise HolderSourceError("protocol", "the answer is not one uncompressed message")
        return bytes(memoryview(self._body)[_PREFIX_BYTES:])

    def _send(self, protocol: "H2Connection") -> None:
        waiting = protocol.data_to_send()
        if waiting:
            self._connection.sendall(waiting)


def _open(method: str, timeout_seconds: float) -> "H2Connection":
    """A connection that has sent the request's headers, in stream 1."""
    from h2.config import H2Configuration  # noqa: PLC0415
    from h2.connection import H2Connection  # noqa: PLC0415
    from h2.settings import SettingCodes  # noqa: PLC0415

    protocol = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    protocol.initiate_connection()
    protocol.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES})
    protocol.increment_flow_control_window(_WINDOW_BYTES)
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", f"{max(1, int(timeout_seconds * 1000))}m"),
    )
    protocol.send_headers(1, headers)
    return protocol
