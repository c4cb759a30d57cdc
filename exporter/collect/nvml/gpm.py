"""GPM, NVML's performance monitoring of Hopper and newer: pairs of samples, one pair a window.

Calls for several devices at once have crashed drivers in the field, so one lock serialises them,
with a bounded wait: while one device's call hangs, the others have no GPM values, but still tick.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pynvml

from exporter.collect.nvml.library import (
    CLAIM_SECONDS,
    NotSupported,
    NvmlError,
    Transient,
    call,
    error_for,
)


# Metric ids (nvml.h, nvmlGpmMetricId_t).
GRAPHICS, SM, OCCUPANCY, INTEGER, ANY_TENSOR = 1, 2, 3, 4, 5
DFMA_TENSOR, HMMA_TENSOR, DMMA_TENSOR, IMMA_TENSOR, DRAM = 6, 7, 8, 9, 10
FP64, FP32, FP16 = 11, 12, 13
PCIE_TRANSMIT_MIB, PCIE_RECEIVE_MIB = 20, 21  # MiB/s
NVLINK_RECEIVE_MIB, NVLINK_TRANSMIT_MIB = 60, 61
C2C_TRANSMIT_MIB, C2C_RECEIVE_MIB = 100, 101  # protocol included; 102 and 103 are data alone
SM_CYCLES_ELAPSED, SM_CYCLES_ACTIVE = 248, 249  # cycles since boot
MMA_CYCLES, DMMA_CYCLES, HMMA_CYCLES, IMMA_CYCLES, DFMA_CYCLES = 250, 251, 252, 253, 254
INTEGER_CYCLES, FP64_CYCLES, FP32_CYCLES, FP16_CYCLES = 257, 258, 259, 260

# By field of ActivityWindow.
PERCENT_FIELDS = {
    "graphics": GRAPHICS,
    "sm": SM,
    "occupancy": OCCUPANCY,
    "integer": INTEGER,
    "tensor": ANY_TENSOR,
    "dfma_tensor": DFMA_TENSOR,
    "hmma_tensor": HMMA_TENSOR,
    "dmma_tensor": DMMA_TENSOR,
    "imma_tensor": IMMA_TENSOR,
    "dram": DRAM,
    "fp64": FP64,
    "fp32": FP32,
    "fp16": FP16,
}
CYCLE_FIELDS = {
    "sm": SM_CYCLES_ACTIVE,
    "tensor": MMA_CYCLES,
    "dmma_tensor": DMMA_CYCLES,
    "hmma_tensor": HMMA_CYCLES,
    "imma_tensor": IMMA_CYCLES,
    "dfma_tensor": DFMA_CYCLES,
    "integer": INTEGER_CYCLES,
    "fp64": FP64_CYCLES,
    "fp32": FP32_CYCLES,
    "fp16": FP16_CYCLES,
}
RATE_FIELDS = {
    "pcie_transmit_bytes": PCIE_TRANSMIT_MIB,
    "pcie_receive_bytes": PCIE_RECEIVE_MIB,
    "nvlink_receive_bytes": NVLINK_RECEIVE_MIB,
    "nvlink_transmit_bytes": NVLINK_TRANSMIT_MIB,
}
C2C_FIELDS = {"c2c_transmit_bytes": C2C_TRANSMIT_MIB, "c2c_receive_bytes": C2C_RECEIVE_MIB}
PERCENT_IDS = tuple(PERCENT_FIELDS.values())
RATE_IDS = tuple(RATE_FIELDS.values())
C2C_IDS = tuple(C2C_FIELDS.values())
CYCLE_IDS = (SM_CYCLES_ELAPSED, *CYCLE_FIELDS.values())

# One tick of eight GPUs takes about 11 ms (1.06 ms a sample and 0.3 ms for its metrics, reported for
# 8 x H100); half a second is forty times that, and still well inside a tick.
LOCK_WAIT_SECONDS = 0.5
# Some drivers return the first metric's value for all metrics of one call. Combined calls are
# trusted after this many samples in which they equalled single calls with differing values.
_PROOFS_NEEDED = 3

METRICS_GET = "nvmlGpmMetricsGet"
# pynvml's structures look for strings in every attribute that is read, in Python: numbers are read
# without that, in a third of the time.
_number = object.__getattribute__
_lock = threading.Lock()


@contextmanager
def gpm_lock() -> Iterator[None]:
    """Hold the right to make GPM calls. Raises Transient when it cannot be had in time."""
    if not _lock.acquire(timeout=LOCK_WAIT_SECONDS):
        raise Transient("gpm_lock", pynvml.NVML_ERROR_TIMEOUT)
    try:
        yield
    finally:
        _lock.release()


class GpmSession:
    """Two GPM samples of one device, taken in turn.

    The caller holds `gpm_lock` around every method.
    """

    def __init__(self, handle: Any, gpu_instance_id: int | None = None) -> None:
        """`gpu_instance_id`: sample this MIG instance of the GPU."""
        self._handle = handle
        self._gpu_instance_id = gpu_instance_id
        self._samples: list[Any] = []
        self._sampled_at: list[float] = []
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._requested: Sequence[int] = ()
        # Metrics that only ever answered NOT_SUPPORTED: when to request each again.
        self._claims: dict[int, float] = {}
        self._answered: set[int] = set()
        self._proofs = 0
        # Why a metric of the last reading has no value, though the device has it; None if all have.
        self.failure: NvmlError | None = None

    def open(self) -> None:
        """Allocate the samples. Raises NvmlError; NotSupported where the device has no GPM."""
        # Whether GPM is supported is not asked: a wrong 'supported' is found by the caller's
        # trial, and a wrong 'not supported' would cost a working device its FLOPS.
        self._samples = [call("nvmlGpmSampleAlloc"), call("nvmlGpmSampleAlloc")]

    def close(self) -> None:
        """Free the samples."""
        samples, self._samples = self._samples, []
        self._sampled_at = []
        for sample in samples:
            try:
                call("nvmlGpmSampleFree", sample)
            except NvmlError:
                return  # the library is gone, and the samples with it

    @property
    def open_since_seconds(self) -> float | None:
        """Instant of the newest sample: the start of the window that is now open."""
        return self._sampled_at[-1] if self._sampled_at else None

    def undo_sample(self) -> None:
        """Drop the newest sample, so that the window before it stays open."""
        self._samples.reverse()
        del self._sampled_at[1:]

    def sample(self) -> tuple[float, float] | None:
        """Take a sample and return the window (start, end) since the one before, if there is one.

        Instants are monotonic seconds, taken halfway through the driver call.
        """
        before = time.monotonic()
        if self._gpu_instance_id is None:
            call("nvmlGpmSampleGet", self._handle, self._samples[0])
        else:
            call("nvmlGpmMigSampleGet", self._handle, self._gpu_instance_id, self._samples[0])
        at = (before + time.monotonic()) / 2
        self._samples.reverse()
        self._sampled_at = [*self._sampled_at[-1:], at]
        return (self._sampled_at[0], at) if len(self._sampled_at) == 2 else None

    def metrics(self, ids: Iterable[int]) -> dict[int, float]:
        """Values of the metrics over the last window, without those that the driver refuses.

        Metrics without a current value are left out too: `failure` says why. A metric that answered
        before and is not supported now has failed; one that never answered is asked for again every
        ten minutes. Raises NvmlError when the driver refuses the call as a whole.
        """
        self.failure = None
        now = time.monotonic()
        wanted = [metric for metric in ids if self._claims.get(metric, now) <= now]
        if self._proofs >= _PROOFS_NEEDED:
            return self._get(wanted)
        values: dict[int, float] = {}
        for metric in wanted:
            values.update(self._get([metric]))
        if self._proofs >= 0 and len(set(values.values()) - {0.0}) > 1:
            self._proofs = self._proofs + 1 if self._get(list(values)) == values else -1
        return values

    def _get(self, ids: Sequence[int]) -> dict[int, float]:
        request = self._request
        # sample() put the newest sample last.
        request.sample1, request.sample2 = self._samples
        if ids != self._requested:  # the same ones in nearly every tick
            self._requested = ids
            request.numMetrics = len(ids)
            for position, metric in enumerate(ids):
                request.metrics[position].metricId = metric
        call(METRICS_GET, request)
        values: dict[int, float] = {}
        for metric, answer in zip(ids, request.metrics, strict=False):
            code = _number(answer, "nvmlReturn")
            if code == 0:
                self._answered.add(metric)
                self._claims.pop(metric, None)
                value = _number(answer, "value")
                if math.isfinite(value):
                    values[metric] = value
                else:  # the answer of a sleeping GPU
                    self.failure = error_for(METRICS_GET, pynvml.NVML_ERROR_NO_DATA)
                continue
            error = error_for(METRICS_GET, code)
            if isinstance(error, NotSupported) and metric not in self._answered:
                self._claims[metric] = time.monotonic() + CLAIM_SECONDS
            else:
                self.failure = error
        return values


def instance_sessions(gpu: Any, instance: Any, gpu_instance_id: int) -> tuple[GpmSession, ...]:
    """How to sample a MIG instance: by its id, or with newer drivers by its handle.

    `gpu` and `instance` are handles.
    """
    return GpmSession(gpu, gpu_instance_id), GpmSession(instance)
