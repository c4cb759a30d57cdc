"""A worker that misbehaves on purpose: `fake_worker.py <mode> <read fd> <write fd>`. No torch."""

import os
import signal
import subprocess
import sys
import time

from probes.protocol import (
    Busy,
    Describe,
    Described,
    Failure,
    FrameReader,
    Hello,
    Idle,
    KernelInfo,
    Result,
    Run,
    decode_to_worker,
    encode,
)


MODE, READ, WRITE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
READER = FrameReader()


def receive():
    while (body := READER.next_body()) is None:
        data = os.read(READ, 65536)
        if not data:
            sys.exit(0)
        READER.feed(data)
    return decode_to_worker(body)


def send(message):
    os.write(WRITE, encode(message))


def kill_self(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def answer_describe(message):
    if MODE == "die_opening":
        sys.exit("CUDA error: no kernel image is available")
    if MODE == "slow_opening":
        time.sleep(1)
    send(
        Described(
            device=message.device,
            kernels=(
                KernelInfo(
                    name="gemm_fp3" if MODE == "unknown_kernel" else "gemm_fp32",
                    quantity="flops",
                    label="fp32",
                ),
            ),
            versions=os.environ["CUDA_VISIBLE_DEVICES"] if MODE == "environment" else "fake 1",
            units=1,
            memory_bytes=-1 if MODE == "negative_memory" else 1000,
            device_seconds=float("nan") if MODE == "nan_seconds" else 0.0,
        )
    )


def answer_run(message):
    send(Busy())
    if MODE == "hang":
        time.sleep(60)
    if MODE == "starved":
        time.sleep(0.5)
    while MODE == "spinning":
        pass
    if MODE == "segfault":
        kill_self(signal.SIGSEGV)
    if MODE == "half_frame":
        os.write(WRITE, b"\x00\x00\x00\x40half")
        time.sleep(60)
    if MODE == "dribble":
        os.write(WRITE, b"\x00\x00\x00\x40")
        while True:
            os.write(WRITE, b"\x00")
            time.sleep(0.05)
    if MODE == "garbage":
        os.write(WRITE, b"\x00\x00\x00\x05hello")
        time.sleep(60)
    if MODE == "oversized":
        os.write(WRITE, b"\x7f\xff\xff\xff" + b"x" * 4096)
        time.sleep(60)
    if MODE == "spouting":
        while True:
            os.write(WRITE, b"GARBAGE " * 512)
    if MODE == "negative_time":
        send(Idle(device_seconds=-1.0))
    if MODE == "overdraft":
        while True:
            send(Idle(device_seconds=0.1))
            send(Busy())
    send(Idle(device_seconds=0.002))
    if MODE == "hang_on_host":
        time.sleep(60)
    if MODE == "out_of_memory":
        send(Failure(outcome="out_of_memory", text="CUDA out of memory", fatal=True))
        sys.exit(1)
    if MODE == "allowance":
        send(Failure(outcome="allowance", text="too little"))
        return
    send(
        Result(
            identifier=message.identifier + (MODE == "wrong_identifier"),
            shape=() if MODE == "no_shape" else (64, 64, 64),
            work_per_run=2.0 * 64**3,
            run_seconds=() if MODE == "no_runs" else (0.001, 0.001, 0.001),
            executed_runs=5,
            clock_hertz=float("nan") if MODE == "nan_clock" else 1e9,
            digest="00",
            repeats_agree=True,
            exact=None,
            memory_bytes=1000,
        )
    )
    if MODE == "die_after_result":
        kill_self(signal.SIGKILL)


receive()
if MODE == "die_before_hello":
    sys.stderr.write("ImportError: libcuda.so.1\n")
    sys.exit(3)
if MODE == "hang_before_hello":
    time.sleep(60)
if MODE == "child":
    print(subprocess.Popen(["sleep", "60"]).pid, file=sys.stderr, flush=True)
if MODE == "noisy":
    for _ in range(2000):
        sys.stderr.write("a warning of a hundred characters " * 3 + "\n")
if MODE == "torch_missing":
    send(Failure(outcome="torch_missing", text="No module named 'torch'", fatal=True))
    sys.exit(1)
send(Hello(protocol=99 if MODE == "other_protocol" else 1, pid=os.getpid(), torch_version="0"))
while True:
    request = receive()
    if isinstance(request, Describe):
        answer_describe(request)
    elif isinstance(request, Run):
        answer_run(request)
    elif MODE != "deaf":
        sys.exit(0)
