"""A small `python -m benchmarks.probe_faults`: injected faults, and which probes find them."""

import random

import pytest


torch = pytest.importorskip("torch")

from benchmarks.probe_faults import CLASSES, found_by, is_found, prepared  # noqa: E402  needs torch
from probes.cpu import CpuDevice  # noqa: E402
from probes.protocol import Device  # noqa: E402


FIXED = (("fp32", (256, 512, 64)), ("int8", (256, 512, 64)))
# 320 columns: a tile of 256, and one that is cut to 64.
SHAPED = (("fp32", (256, 320, 96)),)


@pytest.fixture(scope="module")
def device():
    return CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024), 1)


@pytest.mark.parametrize("name", CLASSES)
def test_a_fault_in_use_changes_the_result_and_is_detected(device, name):
    """And a good result is not reported as wrong."""
    met = []
    for precision, shape in (*FIXED, *SHAPED):
        probe = prepared(precision, shape, device)
        assert not is_found(probe, device)
        # One of the 132 SMs has a tile of these small results in few cases only.
        met += [
            is_found(probe, device)
            for number in range(200 if name.startswith("one wrong SM") else 1)
            if CLASSES[name](random.Random(number), probe)
        ][:1]

    assert met
    assert all(met)


def test_each_kind_finds_what_the_other_misses(device):
    """Only the model's shape has a tile at an edge; only the fixed ones use int8."""
    fixed, shaped = found_by(FIXED, 3, device), found_by(SHAPED, 3, device)

    assert all(fixed["single bit flip, once"])
    assert all(shaped["single bit flip, once"])
    assert not any(fixed["wrong edge tile"])
    assert all(shaped["wrong edge tile"])
    assert all(fixed["multipliers of int8"])
    assert not any(shaped["multipliers of int8"])
