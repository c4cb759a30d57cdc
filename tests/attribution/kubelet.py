"""A kubelet's pod-resources service: real gRPC on a real Unix socket, messages by protobuf itself.

The decoder under test shares no code with it: the messages are declared here as descriptors, from
the Kubernetes documentation, including fields that the exporter does not read.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


_STRING, _INT64, _MESSAGE = 9, 3, 11
_OPTIONAL, _REPEATED = 1, 3
# Message, field, number, type, label, type name.
_FIELDS = (
    ("ListPodResourcesResponse", "pod_resources", 1, _MESSAGE, _REPEATED, "PodResources"),
    ("PodResources", "name", 1, _STRING, _OPTIONAL, None),
    ("PodResources", "namespace", 2, _STRING, _OPTIONAL, None),
    ("PodResources", "containers", 3, _MESSAGE, _REPEATED, "ContainerResources"),
    ("ContainerResources", "name", 1, _STRING, _OPTIONAL, None),
    ("ContainerResources", "devices", 2, _MESSAGE, _REPEATED, "ContainerDevices"),
    ("ContainerResources", "cpu_ids", 3, _INT64, _REPEATED, None),
    ("ContainerResources", "dynamic_resources", 5, _MESSAGE, _REPEATED, "DynamicResource"),
    ("DynamicResource", "claim_name", 2, _STRING, _OPTIONAL, None),
    ("DynamicResource", "claim_namespace", 3, _STRING, _OPTIONAL, None),
    ("DynamicResource", "claim_resources", 4, _MESSAGE, _REPEATED, "ClaimResource"),
    ("ClaimResource", "cdi_devices", 1, _MESSAGE, _REPEATED, "CDIDevice"),
    ("ClaimResource", "driver_name", 2, _STRING, _OPTIONAL, None),
    ("ClaimResource", "pool_name", 3, _STRING, _OPTIONAL, None),
    ("ClaimResource", "device_name", 4, _STRING, _OPTIONAL, None),
    ("ClaimResource", "share_id", 5, _STRING, _OPTIONAL, None),
    ("CDIDevice", "name", 1, _STRING, _OPTIONAL, None),
    ("ContainerDevices", "resource_name", 1, _STRING, _OPTIONAL, None),
    ("ContainerDevices", "device_ids", 2, _STRING, _REPEATED, None),
    ("ContainerDevices", "topology", 3, _MESSAGE, _OPTIONAL, "NUMATopology"),
    ("NUMATopology", "nodes", 1, _MESSAGE, _REPEATED, "NUMANode"),
    ("NUMANode", "ID", 1, _INT64, _OPTIONAL, None),
)


def _messages() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="podresources.proto", package="v1", syntax="proto3"
    )
    for message, field, number, kind, label, type_name in _FIELDS:
        declared = next((m for m in file.message_type if m.name == message), None)
        added = (declared or file.message_type.add(name=message)).field.add(
            name=field, number=number, type=kind, label=label
        )
        if type_name:
            added.type_name = f".v1.{type_name}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}"))
        for name in {message for message, *_ in _FIELDS}
    }


_MESSAGES = _messages()


@dataclass(frozen=True)
class Held:
    """A container, and the devices that it holds of one resource."""

    device_ids: tuple[str, ...]
    pod: str = "chat-0"
    namespace: str = "serving"
    container: str = "engine"
    resource: str = "nvidia.com/gpu"


@dataclass(frozen=True)
class Claimed:
    """A container, and a device that it was given by Dynamic Resource Allocation."""

    device: str
    pod: str = "chat-0"
    namespace: str = "serving"
    container: str = "engine"
    driver: str = "gpu.nvidia.com"
    cdi: tuple[str, ...] = ()
    share: str = ""


def response(held: Iterable[Held | Claimed]) -> bytes:
    """A List response, with CPU ids, NUMA topology and claims as kubelets send them."""
    message = _MESSAGES["ListPodResourcesResponse"]()
    for one in held:
        if isinstance(one, Claimed):
            pod = message.pod_resources.add(name=one.pod, namespace=one.namespace)
            container = pod.containers.add(name=one.container)
            resource = container.dynamic_resources.add(
                claim_name=f"{one.pod}-gpu", claim_namespace=one.namespace
            )
            claim = resource.claim_resources.add(
                driver_name=one.driver, pool_name="node-1", device_name=one.device
            )
            if one.share:
                claim.share_id = one.share
            for name in one.cdi:
                claim.cdi_devices.add(name=name)
            continue
        pod = message.pod_resources.add(name=one.pod, namespace=one.namespace)
        container = pod.containers.add(name=one.container, cpu_ids=[0, 1, 300])
        devices = container.devices.add(resource_name=one.resource, device_ids=one.device_ids)
        devices.topology.nodes.add(ID=1)
    return bytes(message.SerializeToString())


class Kubelet:
    """Serves on a socket; `answer` may be changed while it runs. Not started until `start`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[], bytes] = lambda: response(())
        self.calls = 0
        self._server: grpc.Server | None = None

    def holds(self, *held: Held) -> None:
        """Answer with these containers from now on."""
        encoded = response(held)
        self.answer = lambda: encoded

    def start(self) -> None:
        """Serve on a new socket, as a kubelet does after a start."""
        self.path.unlink(missing_ok=True)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(2),
            options=[("grpc.max_send_message_length", 64 * 1024 * 1024)],
        )
        handlers = {
            "List": grpc.unary_unary_rpc_method_handler(
                self._list, request_deserializer=None, response_serializer=None
            )
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),)
        )
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        """End, leaving no socket behind."""
        if self._server is not None:
            self._server.stop(0).wait(5)
            self._server = None
        self.path.unlink(missing_ok=True)

    def _list(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        return self.answer()


class RawServer:
    """Accepts one connection on a socket and handles it as the test wants: no gRPC, or bad gRPC."""

    def __init__(self, path: Path, talk: Callable[[socket.socket], None]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._talk = talk
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            try:
                self._talk(connection)
            except OSError:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()
        self._thread.join(5)
