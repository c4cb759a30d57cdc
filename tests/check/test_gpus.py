"""What `flopwatch check` reports about the driver, the GPUs and torch."""

import time
from pathlib import Path

import pytest

from exporter.check import doctor
from exporter.check.host import probe_findings
from exporter.check.subprocesses import Answer, ask_driver
from exporter.config.load import ConfigOrigin, load_config
from probes.environment import torch_remedy
from tests.check.conftest import Check, found
from tests.fake_nvml import (
    A100,
    H100,
    H100_3G_40GB,
    FakeNvml,
)


def test_a_host_without_a_driver_is_healthy(check: Check) -> None:
    """Without an NVIDIA driver the daemon watches the host processor: nothing has failed."""
    code, report = check()

    assert (code, report["healthy"]) == (0, True)
    assert found(report, "driver") == [
        ("note", "no NVIDIA driver here: the host processor is monitored")
    ]


def test_a_driver_that_must_be_there_and_is_not_fails(check: Check) -> None:
    """`sources.nvml: on` states that this host has GPUs."""
    code, report = check(config="sources: {nvml: 'on'}\n")

    assert code == 1
    assert found(report, "driver")[0][0] == "failure"


@pytest.mark.parametrize(
    ("built", "known"), [("13.0", True), ("12.8", False), ("12.1", False), (None, False)]
)
def test_a_torch_of_a_newer_cuda_than_the_drivers_is_named(built: str | None, known: bool) -> None:
    """A driver for CUDA 12.4 runs any 12 and no 13, although torch finds its GPUs."""
    torch = {"version": "2.9", "cuda": built, "cuda_available": True, "architectures": []}
    config = load_config(ConfigOrigin(file=None, flags={}, environment={}))

    findings = list(probe_findings(Answer((torch,)), config, [], {"cuda_driver_version": 12040}))

    assert [finding.level for finding in findings] == ["ok"] + ["warning"] * known
    if known:
        assert findings[1].text == "torch is built for CUDA 13.0, the driver runs CUDA 12.4"


def test_an_unexpected_gpu_adds_only_its_own_lines(check: Check, tmp_path: Path) -> None:
    """flopwatch itself fails on one GPU's answers: one line reports it, the others are examined."""
    patch = tmp_path / "sitecustomize.py"
    patch.write_text(
        "from exporter.collect.nvml import identity\n"
        "real = identity.read_identity\n"
        "def read_identity(calls, index, version):\n"
        "    if index == 0: raise TypeError('strange')\n"
        "    return real(calls, index, version)\n"
        "identity.read_identity = read_identity\n"
    )
    with FakeNvml([H100, H100], tmp_path) as fake:
        code, report = check(fake, PYTHONPATH=str(tmp_path))

    assert code == 1
    assert found(report, "gpu 0") == [
        ("failure", "unknown: flopwatch failed to process a reading of this GPU")
    ]
    assert found(report, "gpu 1")[0][0] == "ok"
    assert report["gpus"][0]["fault"] == "TypeError: strange"


def test_library_and_driver_report_their_versions(check: Check, tmp_path: Path) -> None:
    """Both, and the CUDA that the driver can run."""
    with FakeNvml([H100], tmp_path, driver_version="570.10", cuda_driver_version=12080) as fake:
        _code, report = check(fake)

    assert found(report, "driver") == [("ok", "570.10, library 13.570.10, CUDA 12.8, 1 GPU(s)")]


@pytest.mark.parametrize(
    ("built", "known"),
    [
        (["sm_80", "sm_90"], True),
        (["sm_70", "sm_90", "sm_120"], False),
        (["sm_70", "compute_75"], True),
        (["sm_86a"], False),
        ([], True),
    ],
)
def test_a_torch_without_code_for_a_gpu_is_named(built: list[str], known: bool) -> None:
    """For an A100 (8.0): machine code of its major version up to its minor, or older PTX."""
    torch = {"version": "2.9", "cuda": "12.8", "cuda_available": True, "architectures": built}
    config = load_config(ConfigOrigin(file=None, flags={}, environment={}))
    gpus = [{"index": 0, "compute_capability": [8, 0]}]

    findings = list(probe_findings(Answer((torch,)), config, gpus))

    assert [finding.level for finding in findings] == ["ok"] + ["warning"] * (not known)


def test_partitioned_gpus_say_that_they_are_not_probed(check: Check, tmp_path: Path) -> None:
    """With the default; no longer once the instances are probed."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_mig([H100_3G_40GB])
        _code, report = check(fake, FLOPWATCH_PROBES_ENABLED="true")
        skipped = ("note", "not probed: probes.mig is skip")
        assert skipped in found(report, "gpu 0")
        _code, report = check(fake, FLOPWATCH_PROBES_ENABLED="true", FLOPWATCH_PROBES_MIG="run")
        assert skipped not in found(report, "gpu 0")


def test_a_lost_gpu_fails_and_the_others_are_examined(check: Check, tmp_path: Path) -> None:
    """One GPU off the bus makes the exit code 1, and the others are still reported."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.lose(0)
        code, report = check(fake)

    assert code == 1
    assert found(report, "gpu 0") == [("failure", "unknown: the GPU has fallen off the bus")]
    assert found(report, "gpu 1")[0][0] == "ok"


def test_a_hanging_driver_does_not_block_the_exit(tmp_path: Path) -> None:
    """A call that never returns ends at its deadline, and what was known until then is reported."""
    with FakeNvml([H100, H100], tmp_path) as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.env.items():
            patch.setenv(name, value)
        fake.hang("nvmlDeviceGetPowerUsage", gpu=0)
        began = time.monotonic()
        answer = ask_driver(4.0).answer()

    assert time.monotonic() - began < 30
    driver, first, second = answer.documents
    assert driver["count"] == 2
    assert (first["error"], first["name"]) == ("hung", "NVIDIA H100 80GB HBM3")
    assert second["gpm"] == {"source": "gpm_cycles"}


def test_a_mismatched_driver_says_what_to_do(check: Check, tmp_path: Path) -> None:
    """After a driver upgrade under a running node, only a reload of the module helps."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.mismatch_driver()
        code, report = check(fake)

    (finding,) = [f for f in report["findings"] if f["area"] == "driver"]
    assert (code, finding["level"]) == (1, "failure")
    assert "reload the kernel module" in finding["remedy"]


def test_without_torch_the_probes_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Metrics do not need torch: its absence is reported with the remedy, and is not a failure."""
    blocked = tmp_path / "torch"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = load_config(ConfigOrigin(file=None, flags={}, environment={}))

    report = doctor.examine(config)

    (finding,) = [f for f in report.findings if f.area == "probes"]
    assert finding.text == "no torch: ImportError: no torch here"
    assert finding.remedy == f"{torch_remedy()}, or probes.enabled: false"
    assert finding.level == "warning"


def test_a_driver_mismatch_is_reported_as_such(check: Check, tmp_path: Path) -> None:
    """The reason is `driver_mismatch`, as in the metrics."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.mismatch_driver()
        code, report = check(fake)

    assert code == 1
    assert report["driver"]["error"] == "driver_mismatch"
    assert found(report, "driver")[0] == (
        "failure",
        "the driver library and the kernel module have different versions",
    )


def test_a_gpu_that_is_not_there_is_named(check: Check, tmp_path: Path) -> None:
    """It may be a mistake, or a GPU that is not up yet; the daemon serves the others."""
    with FakeNvml([H100], tmp_path) as fake:
        code, report = check(
            fake,
            "gpus: [{match: {index: 7}, precision: fp8}]\n"
            "workloads: [{name: chat, engine: vllm, url: 'http://127.0.0.1:1/metrics', "
            f"gpus: [0, GPU-none, {fake.gpu(0).uuid}]}}]\n",
        )

    said = found(report, "configuration")
    assert ("warning", "gpus[0].match.index: no GPU 7 on this host, GPUs: 0") in said
    assert ("warning", "workloads[0].gpus: no GPU GPU-none on this host, GPUs: 0") in said
    assert code == 0
    assert sum("no GPU" in text for _level, text in said) == 2


def test_memory_that_cannot_be_read_is_not_unified_memory(check: Check, tmp_path: Path) -> None:
    """The driver fails (999) instead of answering that there is none; DCGM may still profile it."""
    with FakeNvml([A100], tmp_path) as fake:
        fake.fail("nvmlDeviceGetMemoryInfo", 999)
        fake.fail("nvmlDeviceGetMemoryInfo_v2", 999)
        _code, report = check(fake)

    texts = [text for _level, text in found(report, "gpu 0")]
    assert ("warning", "its memory could not be read") in found(report, "gpu 0")
    assert not any("unified" in text or "integrated" in text for text in texts)
    assert any("FLOPS need DCGM" in text for text in texts)
