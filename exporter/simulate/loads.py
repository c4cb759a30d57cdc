"""The load on a GPU, as shares of its time and units at full clock."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Shares 0..1: graphics engine, SMs, tensor pipe, DRAM bandwidth, plain fp32 pipe, NVLink.

    `prefill_share` says how much of the tensor work is prefill; `requests` how many are in flight.
    """

    graphics: float = 0.0
    sm: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0
    fp32: float = 0.0
    nvlink: float = 0.0
    prefill_share: float = 0.0
    requests: float = 0.0


IDLE = Load()


def decode(traffic: float) -> Load:
    """Decode: SMs are busy reading weights, however few the requests.

    Tensor pipe activity follows the batch size, memory traffic hardly does: each step reads all
    weights, whether for one request or for sixty-four.
    """
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.97,
        sm=0.90,
        tensor=0.01 + 0.11 * traffic,
        dram=0.62 + 0.12 * traffic,
        fp32=0.06,
        nvlink=0.05 + 0.05 * traffic,
        prefill_share=0.25,
        requests=64 * traffic,
    )


def prefill(traffic: float) -> Load:
    """Prefill: the tensor pipe is the limit, and idles when there are no prompts."""
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.98 * traffic,
        sm=0.92 * traffic,
        tensor=0.57 * traffic,
        dram=0.36 * traffic,
        fp32=0.09 * traffic,
        nvlink=0.22 * traffic,
        prefill_share=0.92,
        requests=24 * traffic,
    )


def mixed(traffic: float) -> Load:
    """Prefill and decode in the same batches (chunked prefill)."""
    if traffic <= 0:
        return IDLE
    return Load(
        graphics=0.96,
        sm=0.90,
        tensor=0.03 + 0.28 * traffic,
        dram=0.55 + 0.1 * traffic,
        fp32=0.07,
        nvlink=0.15 * traffic,
        prefill_share=0.6,
        requests=48 * traffic,
    )
