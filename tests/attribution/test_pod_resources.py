"""The kubelet's answer, read from a real gRPC server on a Unix socket."""

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded
from hypothesis import given, strategies

from exporter.attribution.pod_resources import LIST_METHOD, call, length_delimited, list_allocations
from exporter.attribution.snapshot import Allocation, DeviceKey
from exporter.errors import HolderSourceError
from tests.attribution.kubelet import Claimed, Held, Kubelet, RawServer, response


TIMEOUT = 60.0
WHOLE = "GPU-6d4f1c0e-52a5-4b5e-9d6f-0c2b7a1e8f30"


def reason_of(path: Path, timeout_seconds: float = TIMEOUT) -> str:
    with pytest.raises(HolderSourceError) as caught:
        list_allocations(path, timeout_seconds)
    return caught.value.reason


class TestAnswers:
    def test_a_whole_gpu_is_named_by_its_uuid(self, kubelet: Kubelet):
        """A device id of NVIDIA's plugin is the GPU's UUID, with pod, namespace and container."""
        kubelet.holds(Held(("GPU-aa",), pod="chat-0", namespace="serving", container="engine"))
        kubelet.start()

        assert list_allocations(kubelet.path, TIMEOUT) == (
            Allocation(DeviceKey(uuid="GPU-aa"), "serving", "chat-0", "engine"),
        )

    @pytest.mark.parametrize(
        ("resource", "device_id", "expected"),
        [
            ("nvidia.com/gpu", "GPU-aa::3", DeviceKey(uuid="GPU-aa")),
            ("nvidia.com/gpu.shared", "GPU-aa::0", DeviceKey(uuid="GPU-aa")),
            ("nvidia.com/mig-1g.10gb", "MIG-bb", DeviceKey(uuid="MIG-bb")),
            ("nvidia.com/mig-1g.10gb.shared", "MIG-bb::1", DeviceKey(uuid="MIG-bb")),
            ("nvidia.com/gpu", "MIG-GPU-aa/5/0", DeviceKey(uuid="GPU-aa", mig="5")),
            ("nvidia.com/gpu", "nvidia0", DeviceKey(minor="0")),
            ("nvidia.com/gpu", "nvidia12/gi3", DeviceKey(minor="12", mig="3")),
            ("nvidia.com/gpu", "nvidia0/vgpu4", DeviceKey(minor="0")),
            ("nvidia.com/gpu", "nvidia0/gi2/vgpu4", DeviceKey(minor="0", mig="2")),
            ("example.org/fast-gpu", "GPU-aa", DeviceKey(uuid="GPU-aa")),
            ("nvidia.com/gpu", f"{WHOLE}-17", DeviceKey(uuid=WHOLE)),
            ("volcano.sh/vgpu-number", f"{WHOLE}_3", DeviceKey(uuid=WHOLE)),
            ("nvidia.com/gpu.shared", f"{WHOLE}.replica-2", DeviceKey(uuid=WHOLE)),
            ("nvidia.com/gpu", f"{WHOLE}/0", DeviceKey(uuid=WHOLE)),
            ("nvidia.com/mig-1g.10gb", f"MIG-{WHOLE[4:]}-4", DeviceKey(uuid=f"MIG-{WHOLE[4:]}")),
        ],
    )
    def test_ids_of_all_plugins_and_modes_are_understood(
        self, kubelet: Kubelet, resource: str, device_id: str, expected: DeviceKey
    ):
        """MIG, time-slicing, GKE and renamed resources lead to the device behind the replica."""
        kubelet.holds(Held((device_id,), resource=resource))
        kubelet.start()

        assert [a.device for a in list_allocations(kubelet.path, TIMEOUT)] == [expected]

    @pytest.mark.parametrize(
        ("resource", "device_id"),
        [
            ("example.org/nic", "nvidia0"),
            ("example.org/fpga", "0000:3b:00.0"),
            ("nvidia.com/gpu", "nvidia0/other"),
            ("nvidia.com/gpu", ""),
        ],
    )
    def test_devices_that_are_not_gpus_are_left_out(
        self, kubelet: Kubelet, resource: str, device_id: str
    ):
        """An index says nothing without NVIDIA's resource name, and other ids name other things."""
        kubelet.holds(Held((device_id,), resource=resource))
        kubelet.start()

        assert list_allocations(kubelet.path, TIMEOUT) == ()

    @pytest.mark.parametrize(
        ("claimed", "expected"),
        [
            (Claimed("gpu-3"), DeviceKey(minor="3")),
            (Claimed("gpu-3", share="7c8b"), DeviceKey(minor="3")),
            (Claimed("gpu-0-mig-9-4-4"), DeviceKey(minor="0", placement=(9, 4))),
            (Claimed("gpu-0-mig-3g-40gb-9-4"), DeviceKey(minor="0", placement=(9, 4))),
            (Claimed("gpu-12-mig-1g-10gb-me-20-0"), DeviceKey(minor="12", placement=(20, 0))),
            (
                Claimed("", driver="", cdi=("k8s.gpu.nvidia.com/claim=0b5c-gpu-2",)),
                DeviceKey(minor="2"),
            ),
            (
                Claimed("", driver="", cdi=(f"k8s.gpu.nvidia.com/device={WHOLE}",)),
                DeviceKey(uuid=WHOLE),
            ),
        ],
    )
    def test_devices_of_dynamic_claims_are_understood(
        self, kubelet: Kubelet, claimed: Claimed, expected: DeviceKey
    ):
        """On clusters without a device plugin the claim names driver and device, MIG instances by placement."""
        kubelet.holds(claimed)
        kubelet.start()

        assert list_allocations(kubelet.path, TIMEOUT) == (
            Allocation(expected, "serving", "chat-0", "engine"),
        )

    @pytest.mark.parametrize(
        "claimed",
        [
            Claimed("channel-0", driver="compute-domain.nvidia.com"),
            Claimed("gpu-0", driver="gpu.example.org"),
            Claimed("gpu-vfio-0"),
            Claimed("", driver="", cdi=("example.org/gpu=gpu-0",)),
        ],
    )
    def test_claims_of_other_devices_are_left_out(self, kubelet: Kubelet, claimed: Claimed):
        """Fabric channels, other vendors' drivers, and GPUs handed to a virtual machine."""
        kubelet.holds(claimed)
        kubelet.start()

        assert list_allocations(kubelet.path, TIMEOUT) == ()

    def test_two_replicas_in_one_container_are_one_holder(self, kubelet: Kubelet):
        """A container that was given two slices of one GPU holds that GPU once."""
        kubelet.holds(Held(("GPU-aa::0", "GPU-aa::1", "GPU-bb::0")))
        kubelet.start()

        devices = [a.device.uuid for a in list_allocations(kubelet.path, TIMEOUT)]
        assert devices == ["GPU-aa", "GPU-bb"]

    def test_five_thousand_pods_are_read(self, kubelet: Kubelet):
        """An answer of hundreds of kilobytes, over many HTTP/2 frames, arrives whole."""
        kubelet.holds(
            *(
                Held((f"GPU-{number % 8}::{number}",), pod=f"pod-{number:05}")
                for number in range(5000)
            )
        )
        kubelet.start()

        allocations = list_allocations(kubelet.path, TIMEOUT)

        assert len(allocations) == 5000
        assert allocations[4999] == Allocation(
            DeviceKey(uuid="GPU-7"), "serving", "pod-04999", "engine"
        )

    def test_more_holders_than_a_host_can_have_are_cut(self, kubelet: Kubelet):
        """Series are bounded whatever the kubelet says."""
        kubelet.holds(*(Held((f"GPU-{number}",), pod=f"pod-{number}") for number in range(8200)))
        kubelet.start()

        assert len(list_allocations(kubelet.path, TIMEOUT)) == 8192

    def test_an_empty_list_of_pods_is_an_answer(self, kubelet: Kubelet):
        """An empty message means no holders, not a failure."""
        kubelet.start()

        assert list_allocations(kubelet.path, TIMEOUT) == ()


class TestFailures:
    def test_a_missing_socket(self, socket_path: Path):
        """No file: the reason says so."""
        assert reason_of(socket_path) == "absent"

    def test_a_socket_without_a_server(self, socket_path: Path):
        """A kubelet that was killed leaves its socket behind."""
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(os.fspath(socket_path))

        assert reason_of(socket_path) == "refused"

    def test_a_server_without_the_service(self, kubelet: Kubelet):
        """A kubelet that does not know version 1 of the API answers UNIMPLEMENTED."""
        kubelet.start()

        with pytest.raises(HolderSourceError) as caught:
            call(kubelet.path, "/v9.PodResourcesLister/List", b"", TIMEOUT)

        assert caught.value.reason == "unimplemented"

    def test_an_error_of_the_kubelet_is_named_by_its_status(self, kubelet: Kubelet):
        """An exception in the server arrives as UNKNOWN, with its text."""

        def fail() -> bytes:
            raise RuntimeError("out of order")

        kubelet.answer = fail
        kubelet.start()

        with pytest.raises(HolderSourceError, match="out of order") as caught:
            list_allocations(kubelet.path, TIMEOUT)
        assert caught.value.reason == "unknown"

    def test_an_answer_beyond_the_kubelets_own_limit_is_refused(self, kubelet: Kubelet):
        """16 MiB and no more: memory is bounded whatever the server sends."""
        big = b"\x0a" + (17 * 1024 * 1024).to_bytes(4, "little")
        kubelet.answer = lambda: big + bytes(17 * 1024 * 1024)
        kubelet.start()

        assert reason_of(kubelet.path) == "too_large"

    def test_a_response_that_is_not_a_message(self, kubelet: Kubelet):
        """Garbage is a protocol error, never an exception of another kind."""
        kubelet.answer = lambda: b"\xff\xff\xff"
        kubelet.start()

        assert reason_of(kubelet.path) == "protocol"

    def test_a_server_that_says_nothing(self, socket_path: Path):
        """The call ends at its time limit."""
        with RawServer(socket_path, lambda connection: time.sleep(0.5)):
            assert reason_of(socket_path, 0.2) == "timeout"

    def test_a_server_that_dribbles(self, socket_path: Path):
        """A byte now and then does not extend the time limit."""

        def dribble(connection: socket.socket) -> None:
            # A settings frame that never ends: length 6, type 4, then a byte at a time.
            for byte in b"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + bytes(40):
                connection.sendall(bytes([byte]))
                time.sleep(0.02)

        with RawServer(socket_path, dribble):
            assert reason_of(socket_path, 0.2) == "timeout"

    def test_a_server_that_is_no_http2(self, socket_path: Path):
        """An HTTP/1 answer looks like the head of an endless frame: the server hangs up first."""

        def refuse(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with RawServer(socket_path, refuse):
            assert reason_of(socket_path) == "connection"

    def test_a_server_that_breaks_http2(self, socket_path: Path):
        """A frame that the protocol forbids there is a protocol error."""

        def misbehave(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(bytes.fromhex("00000100000000000300"))  # DATA on stream 3

        with RawServer(socket_path, misbehave):
            assert reason_of(socket_path) == "protocol"

    def test_a_server_that_hangs_up(self, socket_path: Path):
        """A connection that ends within the answer is a connection error."""
        with RawServer(socket_path, lambda connection: connection.recv(1)):
            assert reason_of(socket_path) == "connection"


def answer_with(
    body: bytes, *, status: str = "200", grpc_status: str | None = "0", then_reset: bool = False
) -> Callable[[socket.socket], None]:
    """A server that speaks HTTP/2 as the test wants, valid gRPC or not."""

    def talk(connection: socket.socket) -> None:
        protocol = H2Connection(H2Configuration(client_side=False))
        protocol.initiate_connection()
        requested = False
        while not requested:
            events = protocol.receive_data(connection.recv(65536))
            requested = any(isinstance(event, StreamEnded) for event in events)
        protocol.send_headers(1, [(":status", status), ("content-type", "application/grpc")])
        protocol.send_data(1, body)
        trailers = [("grpc-status", grpc_status)] if grpc_status else [("x", "y")]
        protocol.send_headers(1, trailers, end_stream=True)
        if then_reset:
            protocol.close_connection()
        connection.sendall(protocol.data_to_send())
        connection.recv(65536)

    return talk


class TestOddAnswers:
    MESSAGE = response([Held(("GPU-aa",))])

    def framed(self, *, compressed: int = 0, length: int | None = None) -> bytes:
        return struct.pack(">BI", compressed, len(self.MESSAGE) if length is None else length) + (
            self.MESSAGE
        )

    def test_a_server_that_closes_right_after_its_answer(self, socket_path: Path):
        """A GOAWAY in the same packet does not invalidate the answer before it."""
        with RawServer(socket_path, answer_with(self.framed(), then_reset=True)):
            assert len(list_allocations(socket_path, TIMEOUT)) == 1

    def test_a_compressed_message_is_refused(self, socket_path: Path):
        """Compression was not requested; a message that is not understood is not guessed at."""
        with RawServer(socket_path, answer_with(self.framed(compressed=1))):
            assert reason_of(socket_path) == "protocol"

    def test_a_message_of_another_length_is_refused(self, socket_path: Path):
        """The frame says how long the message is."""
        with RawServer(socket_path, answer_with(self.framed(length=3))):
            assert reason_of(socket_path) == "protocol"

    def test_an_answer_without_a_message_is_refused(self, socket_path: Path):
        """Even an empty message has its five bytes of prefix."""
        with RawServer(socket_path, answer_with(b"")):
            assert reason_of(socket_path) == "protocol"

    @pytest.mark.parametrize(
        ("grpc_status", "reason"), [(None, "protocol"), ("99", "protocol"), ("14", "unavailable")]
    )
    def test_the_status_decides(self, socket_path: Path, grpc_status: str | None, reason: str):
        """A message that is not followed by the status OK is not an answer."""
        with RawServer(socket_path, answer_with(self.framed(), grpc_status=grpc_status)):
            assert reason_of(socket_path) == reason


class TestWire:
    def test_fields_of_other_types_are_skipped(self):
        """Varint 300, fixed64 and fixed32 precede a string; only the string is returned."""
        message = bytes.fromhex("08ac0211" + "00" * 8 + "1d" + "00" * 4 + "2203616263")

        assert [(n, bytes(c)) for n, c in length_delimited(memoryview(message))] == [(4, b"abc")]

    @pytest.mark.parametrize(
        "message", ["0a05ab", "0a", "80", "0b", "1100", "ff" * 11, "0affffffffffffffffff01"]
    )
    def test_a_message_that_is_cut_or_broken_is_refused(self, message: str):
        """Too short, no length, an open number, a group, a short fixed64, numbers too long."""
        with pytest.raises(ValueError, match=r"message|number|wire type"):
            list(length_delimited(memoryview(bytes.fromhex(message))))

    @given(strategies.binary(max_size=200))
    def test_no_bytes_raise_anything_else(self, message: bytes):
        """Any bytes are either decoded or rejected."""
        try:
            list(length_delimited(memoryview(message)))
        except ValueError:
            return

    @given(strategies.lists(strategies.text(min_size=1, max_size=40), max_size=20))
    def test_names_survive_the_way(self, names: list[str]):
        """What protobuf encodes is what is read, in order, for any text."""
        encoded = response(Held(("GPU-aa",), pod=name) for name in names)

        pods = [content for number, content in length_delimited(memoryview(encoded)) if number == 1]
        read = [next(str(c, "utf-8") for n, c in length_delimited(pod) if n == 1) for pod in pods]

        assert read == names


def test_the_method_is_the_kubelets():
    """The path of the call is package, service and method of the Kubernetes API."""
    assert LIST_METHOD == "/v1.PodResourcesLister/List"
