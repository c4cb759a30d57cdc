"""A workload whose pass can be worked out by hand, and variations of it."""

from dataclasses import replace
from typing import Any

from exporter.accounting.peaks import Peaks
from exporter.advice.prediction import GpuWindow, WorkloadWindow
from exporter.inference.models import (
    LayerGroup,
    ModelDescription,
)
from exporter.inference.models.attention import GroupedAttention


# One layer: attention 2·1000·(1000 + 1000) = 4e6 weights, feed-forward 3·1000·2000 = 6e6, head
# 1000·1000 = 1e6. In bf16 a pass reads 22 MB; one token takes 2·11e6 = 22 MFLOP besides attention.
MODEL = ModelDescription(
    model_type="llama",
    hidden_size=1000,
    vocabulary_size=1000,
    layers=(LayerGroup(1, GroupedAttention(10, 10, 100), None, 2000),),
)
# 22 MB take 22 ms, and one token's products 0.022 ms.
GPU = GpuWindow(
    gpu="0",
    uuid="GPU-0",
    name="NVIDIA H100 80GB HBM3",
    peaks=Peaks(
        origin="datasheet",
        model="H100",
        flops={"bf16": 1e12, "fp8": 2e12},
        dram_bytes_per_second=1e9,
    ),
    clock_ratio=1.0,
    graphics=1.0,
    reachable_bandwidth_bytes_per_second=1e9,
    reachable_flops={"bf16": 1e12},
    memory_size_bytes=1e9,
)


def window(**facts: Any) -> WorkloadWindow:
    """Ten requests decode for a thousand passes of 25 ms, at a context of one token; ten wait."""
    decoding = WorkloadWindow(
        workload="chat",
        model="tiny",
        seconds=25.0,
        gpus=(GPU,),
        gpu_count=1,
        description=MODEL,
        prefill_tokens=0.0,
        cached_tokens=0.0,
        decode_tokens=10_000.0,
        prompts=0.0,
        passes=1000.0,
        running_requests=10.0,
        waiting_requests=10.0,
        cache_usage_ratio=0.1,
        decode_context=1.0,
    )
    return replace(decoding, **facts)


def gpu(**facts: Any) -> GpuWindow:
    """The GPU with other facts."""
    return replace(GPU, **facts)
