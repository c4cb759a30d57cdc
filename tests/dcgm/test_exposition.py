"""What is read from a dcgm-exporter's text."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.collect.dcgm_windows import DcgmDevice, parse
from tests.dcgm.server import row


GPU = "GPU-1"


def test_old_and_new_names_mean_the_same() -> None:
    """DCGM 4.6 renamed its fields; counters files keep the old names."""
    old = parse(row("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", 0.25, UUID=GPU))
    new = parse(row("DCGM_FI_PROF_TENSOR_UTIL_RATIO", 0.25, UUID=GPU))

    assert old == new
    assert old[DcgmDevice(GPU)].activities == {"tensor": 0.25}


@pytest.mark.parametrize("label", ["UUID", "uuid", "Uuid"])
def test_devices_are_known_by_uuid(label: str) -> None:
    """Whatever the case of the label, and whatever `Hostname` or `hostname` says."""
    text = row("DCGM_FI_PROF_SM_ACTIVE", 0.5, **{label: GPU, "Hostname": "a", "hostname": "b"})

    assert list(parse(text)) == [DcgmDevice(GPU)]


def test_mig_instances_are_devices_of_their_own() -> None:
    """GPU_I_ID distinguishes the instances of a GPU; empty, it is the GPU itself."""
    text = "\n".join(
        row("DCGM_FI_PROF_SM_ACTIVE", value, UUID=GPU, GPU_I_ID=instance, GPU_I_PROFILE="1g.5gb")
        for value, instance in ((0.1, ""), (0.2, "3"), (0.3, "11"))
    )

    assert {key.gpu_instance_id: s.activities["sm"] for key, s in parse(text).items()} == {
        None: 0.1,
        "3": 0.2,
        "11": 0.3,
    }


@pytest.mark.parametrize(
    "blank",
    [
        float("nan"),
        float(0x7FFFFFF0),
        float(0x7FFFFFF3),
        float(0x7FFFFFFFFFFFFFF0),
        140737488355328.0,
        140737488355331.0,
    ],
)
def test_blanks_are_not_values(blank: float) -> None:
    """DCGM's blanks of every type are left out and counted; NaN is left out without a count."""
    text = "\n".join(
        [
            row("DCGM_FI_PROF_SM_ACTIVE", blank, UUID=GPU),
            row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5, UUID=GPU),
        ]
    )

    sample = parse(text)[DcgmDevice(GPU)]
    assert sample.activities == {"dram": 0.5}
    assert sample.implausible == int(not math.isnan(blank))


def test_ratios_out_of_range_are_implausible() -> None:
    """A share of time above 1 or below 0 is left out and counted; rounding above 1 is not."""
    text = "\n".join(
        [
            row("DCGM_FI_PROF_SM_ACTIVE", 17.0, UUID=GPU),
            row("DCGM_FI_PROF_DRAM_ACTIVE", -0.1, UUID=GPU),
            row("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.004, UUID=GPU),
        ]
    )

    sample = parse(text)[DcgmDevice(GPU)]
    assert sample.activities == {"graphics": 1.0}
    assert sample.implausible == 2


def test_missing_fields_have_dcgms_names() -> None:
    """The fields that the log asks an operator to add to the counters file."""
    sample = parse(row("DCGM_FI_PROF_SM_ACTIVE", 0.5, UUID=GPU))[DcgmDevice(GPU)]

    assert "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" in sample.missing_fields
    assert "DCGM_FI_PROF_SM_ACTIVE" not in sample.missing_fields


def test_a_gpu_shared_by_pods_is_one_device() -> None:
    """Time-slicing gives a GPU a row for each pod, with the same value."""
    text = "\n".join(
        row("DCGM_FI_PROF_SM_ACTIVE", 0.5, UUID=GPU, pod=pod) for pod in ("one", "two")
    )

    assert parse(text)[DcgmDevice(GPU)].activities == {"sm": 0.5}


def test_other_metrics_are_not_even_parsed() -> None:
    """Broken lines of other metrics do not matter."""
    text = "go_gc{ broken\n" + row("DCGM_FI_PROF_SM_ACTIVE", 0.5, UUID=GPU)

    assert parse(text)[DcgmDevice(GPU)].activities == {"sm": 0.5}


@given(st.text(max_size=200), st.text(max_size=60))
def test_any_text_is_parsed_or_refused(labels: str, value: str) -> None:
    """Nothing that a server sends raises anything but ValueError."""
    try:
        parse(f"DCGM_FI_PROF_SM_ACTIVE{{{labels}}} {value}")
    except ValueError:
        return
