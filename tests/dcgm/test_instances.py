"""A GPU put together from its instances' rows, worked by hand for an A100 of 108 SMs."""

import pytest

from exporter.accounting.mig import InstanceShare
from exporter.collect.dcgm_windows import (
    DcgmDevice,
    DeviceSample,
    DeviceWindows,
    parse,
    whole_gpu_sample,
)
from tests.dcgm.server import row


GPU = "GPU-1"
# 3g.40gb, 2g.20gb and 1g.10gb: 42, 28 and 14 SMs; 4, 2 and 1 of 8 memory slices. 24 SMs belong to
# no instance.
SHARES = {
    "1": InstanceShare(42 / 108, 4 / 8),
    "3": InstanceShare(28 / 108, 2 / 8),
    "7": InstanceShare(14 / 108, 1 / 8),
}


def rows(**samples: DeviceSample) -> dict[DcgmDevice, DeviceSample]:
    """Samples by GPU instance id (`mig1`), or of the GPU itself (`gpu`)."""
    return {
        DcgmDevice(GPU, None if name == "gpu" else name.removeprefix("mig")): sample
        for name, sample in samples.items()
    }


def busy(sm: float, tensor: float, dram: float) -> DeviceSample:
    return DeviceSample({"sm": sm, "tensor": tensor, "dram": dram})


def test_sms_weigh_with_their_number_and_memory_with_its_slices() -> None:
    """Tensor (0.5 x 42 + 0.1 x 28) / 108, SMs (0.8 x 42 + 0.4 x 28) / 108, memory 0.4 x 4/8 + 0.2 x 2/8."""
    whole = whole_gpu_sample(
        GPU,
        rows(mig1=busy(0.8, 0.5, 0.4), mig3=busy(0.4, 0.1, 0.2), mig7=busy(0, 0, 0)),
        SHARES,
    )

    assert whole is not None
    assert whole.activities == pytest.approx({"tensor": 23.8 / 108, "sm": 44.8 / 108, "dram": 0.25})


def test_what_one_instance_does_not_report_is_unknown_for_the_gpu() -> None:
    """An instance without SM activity leaves the GPU without it; the others' shares still add up."""
    silent = DeviceSample({"tensor": 0.5, "dram": 0.0})
    whole = whole_gpu_sample(
        GPU, rows(mig1=busy(0.8, 0.5, 0.4), mig3=silent, mig7=busy(0, 0, 0)), SHARES
    )

    assert whole is not None
    assert "sm" not in whole.activities
    assert whole.activities["tensor"] == pytest.approx((0.5 * 42 + 0.5 * 28) / 108)


def test_memory_of_unknown_size_is_not_weighed() -> None:
    """If the driver does not report an instance's memory, bandwidth is unknown, SM activity known."""
    shares = {**SHARES, "7": InstanceShare(14 / 108, None)}
    one = busy(0.9, 0.9, 0.9)
    whole = whole_gpu_sample(GPU, rows(mig1=one, mig3=one, mig7=one), shares)

    assert whole is not None
    assert whole.activities == pytest.approx({"sm": 0.9 * 84 / 108, "tensor": 0.9 * 84 / 108})


def test_an_instance_without_a_row_leaves_the_gpu_unknown() -> None:
    """Its work is not known: half a GPU must not be shown as a whole one."""
    assert whole_gpu_sample(GPU, rows(mig1=busy(1, 1, 1), mig3=busy(1, 1, 1)), SHARES) is None


def test_a_row_of_the_whole_gpu_takes_precedence() -> None:
    """With `-d g` the exporter has the GPU's own activities: they are taken as they are."""
    own = busy(0.5, 0.25, 0.5)

    assert whole_gpu_sample(GPU, rows(gpu=own, mig1=busy(1, 1, 1)), SHARES) is own


def test_links_come_from_the_gpus_own_row() -> None:
    """PCIe is in a row of the GPU, without activities; in an instance's it would count twice."""
    text = "\n".join(
        [
            row("DCGM_FI_PROF_PCIE_TX_BYTES", 3e7, UUID=GPU),
            row("DCGM_FI_PROF_PCIE_TX_BYTES", 3e7, UUID=GPU, GPU_I_ID="1"),
            row("DCGM_FI_PROF_SM_ACTIVE", 1.0, UUID=GPU, GPU_I_ID="1"),
        ]
    )
    devices = parse(text)
    whole = whole_gpu_sample(GPU, devices, {"1": InstanceShare(42 / 108, 4 / 8)})

    assert devices[DcgmDevice(GPU, "1")].bytes_per_second == {}
    assert whole is not None
    assert whole.bytes_per_second == {"pcie_transmit_bytes": 3e7}
    assert whole.activities == pytest.approx({"sm": 42 / 108})


def test_a_new_partition_drops_the_open_window() -> None:
    """The time so far is accounted as unknown, and the next sample only opens a window."""
    windows = DeviceWindows()
    windows.observe(DeviceSample({"sm": 0.2}), 100.0, 30.0)

    window = windows.abandon(112.0)

    assert window is not None
    assert (window.start_seconds, window.end_seconds, window.graphics) == (100.0, 112.0, None)
    assert windows.observe(DeviceSample({"sm": 0.9}), 120.0, 30.0) == (False, ())
    assert windows.open_since == 120.0
