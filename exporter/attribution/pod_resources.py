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
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from exporter.attribution import grpc
from exporter.attribution.snapshot import Allocation, DeviceKey
from exporter.errors import HolderSourceError


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


def list_allocations(socket: Path, timeout_seconds: float) -> tuple[Allocation, ...]:
    """Each container with a GPU and the devices that it holds, once each, in the kubelet's order.

    Raises HolderSourceError.
    """
    response = grpc.call(socket, LIST_METHOD, b"", timeout_seconds)
    try:
        allocations = dict.fromkeys(_allocations(memoryview(response)))
    except ValueError as error:
        raise HolderSourceError("protocol", str(error)) from None
    return tuple(islice(allocations, ALLOCATIONS_MAX))


def _allocations(response: memoryview) -> Iterator[Allocation]:
    for number, pod in length_delimited(response):
        if number == 1:
            yield from _of_pod(pod)


def _of_pod(message: memoryview) -> Iterator[Allocation]:
    name = namespace = ""
    containers: list[memoryview] = []
    for number, content in length_delimited(message):
        if number == 1:
            name = text(content)
        elif number == 2:
            namespace = text(content)
        elif number == 3:
            containers.append(content)
    for container in containers:
        yield from _of_container(container, namespace, name)


def _of_container(message: memoryview, namespace: str, pod: str) -> Iterator[Allocation]:
    name = ""
    devices: list[memoryview] = []
    claims: list[memoryview] = []
    for number, content in length_delimited(message):
        if number == 1:
            name = text(content)
        elif number == 2:
            devices.append(content)
        elif number == 5:
            claims += [inner for field, inner in length_delimited(content) if field == 4]
    for device in devices:
        resource, ids = _devices(device)
        for device_id in ids:
            key = parse_device_id(resource, device_id)
            if key is not None:
                yield Allocation(key, namespace, pod, name)
    for claim in claims:
        for key in _claimed(claim):
            yield Allocation(key, namespace, pod, name)


def _claimed(message: memoryview) -> Iterator[DeviceKey]:
    """The GPUs of one claim: by driver and device, or by CDI name from an old kubelet."""
    driver = device = ""
    cdi: list[str] = []
    for number, content in length_delimited(message):
        if number == 1:
            cdi += [text(inner) for field, inner in length_delimited(content) if field == 1]
        elif number == 2:
            driver = text(content)
        elif number == 4:
            device = text(content)
    if driver and device:
        keys = [parse_dra_device(device)] if driver == GPU_DRIVER else []
    else:
        keys = [parse_cdi_device(name) for name in cdi]
    yield from (key for key in keys if key is not None)


def _devices(message: memoryview) -> tuple[str, list[str]]:
    resource = ""
    ids: list[str] = []
    for number, content in length_delimited(message):
        if number == 1:
            resource = text(content)
        elif number == 2:
            ids.append(text(content))
    return resource, ids


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
