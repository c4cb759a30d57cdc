"""What `flopwatch check` reports about the source of each GPU's FLOPS."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.check.conftest import Check, found
from tests.dcgm.server import ALL_FIELDS, DEFAULT_FIELDS, DcgmExporter, device_rows
from tests.fake_nvml import (
    A100,
    A100_1G_10GB,
    A100_3G_40GB,
    H100,
    H100_3G_40GB,
    FakeNvml,
)
from tests.hardware.scenario import NAMES, Scenario


def test_each_gpu_says_where_its_flops_come_from(check: Check, tmp_path: Path) -> None:
    """Cycle counters on an H100, DCGM on an A100, instances of a GPU in MIG mode."""
    with FakeNvml([H100, A100, H100], tmp_path) as fake:
        fake.gpu(2).set_mig([H100_3G_40GB])
        code, report = check(fake, "dcgm: {url: 'http://127.0.0.1:1/metrics'}\n")

    assert code == 0
    assert ("ok", "NVIDIA H100 80GB HBM3: FLOPS from gpm_cycles") in found(report, "gpu 0")
    assert (
        "warning",
        "NVIDIA A100-SXM4-80GB: this GPU has no GPM: FLOPS need DCGM",
    ) in found(report, "gpu 1")
    assert ("ok", "MIG instances: 1 (60 SMs, FLOPS from gpm_cycles)") in found(report, "gpu 2")
    assert [level for level, _text in found(report, "dcgm")] == ["warning"]


def test_missing_dcgm_fields_are_named(check: Check, tmp_path: Path) -> None:
    """dcgm-exporter's default set lacks SM and plain-pipe activity; the report says which fields."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        uuid = fake.gpu(0).uuid
        dcgm.show(device_rows(dict.fromkeys(DEFAULT_FIELDS, 0.5), gpu="0", UUID=uuid))
        _code, report = check(fake, f"dcgm: {{url: '{dcgm.url}'}}\n")

    assert found(report, "dcgm") == [
        (
            "warning",
            (
                "GPU 0: does not export DCGM_FI_PROF_SM_ACTIVE, DCGM_FI_PROF_PIPE_FP64_ACTIVE, "
                "DCGM_FI_PROF_PIPE_FP32_ACTIVE, DCGM_FI_PROF_PIPE_FP16_ACTIVE"
            ),
        )
    ]


def test_instances_before_hopper_are_looked_for_in_dcgms_rows(check: Check, tmp_path: Path) -> None:
    """An A100 in MIG mode has no GPM at all, and dcgm-exporter has rows of its instances."""
    with FakeNvml([A100], tmp_path) as fake, DcgmExporter() as dcgm:
        fake.gpu(0).set_mig([A100_3G_40GB, A100_1G_10GB])
        labels = {"gpu": "0", "UUID": fake.gpu(0).uuid, "GPU_I_ID": "1"}
        dcgm.show(device_rows(dict.fromkeys(ALL_FIELDS, 0.5), **labels))
        code, report = check(fake, f"dcgm: {{url: '{dcgm.url}'}}\n")

    assert code == 0
    assert ("ok", "MIG instances: 1 (42 SMs, FLOPS from dcgm), 7 (14 SMs, no GPM)") in found(
        report, "gpu 0"
    )
    assert found(report, "dcgm") == [
        ("ok", "GPU 0, MIG instance 1: all fields that FLOPS need"),
        ("warning", "no metrics of GPU 0, MIG instance 7"),
    ]


# For each kind of GPU: where its FLOPS come from (None: from nowhere yet), and the remedies that
# may be named; an empty set where nothing can be done.
ADVICE: dict[str, tuple[str | None, set[str]]] = {
    "a100": ("dcgm", set()),
    "a100-mig": (None, set()),
    "a10g": (
        "dcgm",
        {"add them to dcgm-exporter's counters file (-f, DCGM_EXPORTER_COLLECTORS)"},
    ),
    "b200": ("gpm_cycles", set()),
    "compute-modes": ("gpm_cycles", set()),
    "confidential-computing": (
        None,
        {
            (
                "a newer driver may support it; confidential computing disables it "
                "(see nvidia-smi conf-compute -q)"
            ),
        },
    ),
    "gb10": (None, set()),
    "gb200": ("gpm_cycles", set()),
    "gh200": ("gpm", set()),
    "h100-mig": (None, set()),
    "h20": ("gpm_cycles", set()),
    "l4": ("dcgm", set()),
    "l40s": (
        None,
        {
            "run dcgm-exporter, see dcgm below",
            "run dcgm-exporter on this node, or set dcgm.url",
        },
    ),
    "rtx-4090": (None, set()),
    "rtx-5090": ("gpm", set()),
    "t4": (
        None,
        {
            "run dcgm-exporter, see dcgm below",
            "run dcgm-exporter on this node, or set dcgm.url",
        },
    ),
    "thor": (None, set()),
    "v100": (
        "dcgm",
        {"add them to dcgm-exporter's counters file (-f, DCGM_EXPORTER_COLLECTORS)"},
    ),
    "vgpu-fractional": (None, {"watch the GPU on its host"}),
    "vgpu-mig-backed": ("gpm", set()),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_gpu_gets_advice_that_helps(name: str, check: Check, tmp_path: Path) -> None:
    """No one is sent to a dcgm-exporter that has nothing for the GPU, or warned when all is well."""
    source, remedies = ADVICE[name]
    scenario = Scenario.read(name)
    dcgm_config = "dcgm: {url: 'http://127.0.0.1:1/metrics'}\n"
    with (
        FakeNvml(scenario.gpus, tmp_path, driver_version=scenario.driver_version) as fake,
        DcgmExporter() as dcgm,
    ):
        scenario.put_to_work(fake)
        if scenario.dcgm:
            rows = (device_rows(d.values, **d.labels) for d in scenario.collected(fake))
            dcgm.show([line for lines in rows for line in lines])
            dcgm_config = f"dcgm: {{url: '{dcgm.url}'}}\n"
        code, report = check(fake, dcgm_config)

    assert code == 0
    assert {gpu["flops_source"] for gpu in report["gpus"]} == {source}
    of_gpus = [f for f in report["findings"] if f["area"].startswith(("gpu", "dcgm"))]
    assert {f["remedy"] for f in of_gpus if f["remedy"]} == remedies
    # A warning appears only when the user can do something.
    assert not [f for f in of_gpus if f["level"] == "warning" and not f["remedy"]]


def test_dcgm_is_asked_where_gpm_is_turned_off(check: Check, tmp_path: Path) -> None:
    """As in the daemon: a GPU with GPM then counts as one without."""
    with FakeNvml([H100], tmp_path) as fake, DcgmExporter() as dcgm:
        labels = {"gpu": "0", "UUID": fake.gpu(0).uuid}
        dcgm.show(device_rows(dict.fromkeys(ALL_FIELDS, 0.5), **labels))
        _code, report = check(fake, f"sources: {{gpm: 'off'}}\ndcgm: {{url: '{dcgm.url}'}}\n")

    assert found(report, "gpu 0")[0] == ("ok", "NVIDIA H100 80GB HBM3: FLOPS from dcgm")
    assert found(report, "dcgm") == [("ok", "GPU 0: all fields that FLOPS need")]


def test_dcgm_is_read_where_gpm_is_not_permitted(check: Check, tmp_path: Path) -> None:
    """The remedy names both solutions."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.fail("nvmlGpmSampleGet", 4)
        _code, report = check(fake, "dcgm: {url: 'http://127.0.0.1:1/metrics'}\n")

    (finding,) = [f for f in report["findings"] if f["area"] == "gpu 0"]
    assert finding["text"] == "NVIDIA H100 80GB HBM3: no permission to use GPM"
    assert finding["remedy"] == "run as root, or run dcgm-exporter, see dcgm below"


def test_a_board_without_a_known_peak_logs_what_to_configure(check: Check, tmp_path: Path) -> None:
    """No SM count from the driver and no row in the table: GPM answers, but there are no FLOPS."""
    unknown = replace(H100, name="NVIDIA H30", num_gpu_cores=0)
    cut = replace(H100, name="NVIDIA H20", num_gpu_cores=78 * 128)
    with FakeNvml([unknown, cut], tmp_path) as fake:
        _code, report = check(fake)

    (source, peak, *_rest) = found(report, "gpu 0")
    assert source[0] == "warning"
    assert "no FLOPS can be counted" in source[1]
    assert peak[0] == "warning"
    assert "no FLOPS and no ratios" in peak[1]
    remedies = [f["remedy"] for f in report["findings"] if f["text"] == peak[1]]
    assert remedies == ["set sm_count, peaks and dram_bandwidth under gpus in the configuration"]
    assert any(
        level == "note" and "80 GiB of memory, not 96" in text
        for level, text in found(report, "gpu 1")
    )
