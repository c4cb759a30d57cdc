"""Frames and messages survive the pipe, and nothing else passes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.protocol import (
    FRAME_BYTES_MAX,
    Busy,
    FrameReader,
    Idle,
    ProtocolError,
    Result,
    Run,
    decode_from_worker,
    decode_to_worker,
    encode,
)


RUN = Run(
    identifier=1,
    kernel="gemm_fp32",
    device=0,
    allowance_seconds=0.01,
    max_chunk_seconds=0.001,
    gap_seconds=0.01,
    timed_runs=7,
    shape=(64, 64, 64),
)


def test_a_message_survives_being_cut_anywhere():
    """Fed byte by byte, two frames give two messages, in order."""
    reader = FrameReader()
    received = []
    for byte in encode(Busy()) + encode(Idle(device_seconds=0.5)):
        reader.feed(bytes([byte]))
        while (body := reader.next_body()) is not None:
            received.append(decode_from_worker(body))

    assert received == [Busy(), Idle(device_seconds=0.5)]


def test_a_request_survives():
    """What the daemon encodes the worker decodes to the same."""
    assert decode_to_worker(encode(RUN)[4:]) == RUN


def test_a_length_over_the_limit_is_refused_at_once():
    """The header alone is enough: nothing is buffered for a frame of 64 KiB and one byte."""
    reader = FrameReader()
    reader.feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))

    with pytest.raises(ProtocolError, match="65537 bytes"):
        reader.next_body()


def test_a_message_over_the_limit_is_not_sent():
    """Ten thousand spans of 9 bytes pass 64 KiB."""
    result = Result(
        identifier=1,
        shape=(1,),
        work_per_run=1.0,
        run_seconds=(0.1,) * 10_000,
        executed_runs=10_000,
        clock_hertz=None,
        digest="",
        repeats_agree=True,
        exact=None,
        memory_bytes=0,
    )

    with pytest.raises(ProtocolError, match="passes the limit"):
        encode(result)


def test_a_request_is_not_a_response():
    """A worker that sends what only the daemon may send breaks the protocol."""
    with pytest.raises(ProtocolError):
        decode_from_worker(encode(RUN)[4:])


def test_unknown_fields_are_refused():
    """A message with more in it than this version knows is of another version."""
    import msgspec

    body = msgspec.msgpack.encode({"type": "Idle", "device_seconds": 1.0, "extra": 1})
    with pytest.raises(ProtocolError, match="extra"):
        decode_from_worker(body)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoder(data):
    """Any bytes give a message or a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        decode_from_worker(data)
