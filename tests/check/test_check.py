"""`flopwatch check` as a user runs it, on simulated hosts."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.check import doctor
from exporter.check.host import clock_findings, probe_findings
from exporter.check.subprocesses import Answer, ask_driver
from exporter.config.load import ConfigOrigin, load_config
from flopwatch.remedies import torch_remedy
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
from tests.inference.engines import server as engines


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the command with a configuration; exit code and report."""

    def run(
        fake: FakeNvml | None = None, config: str = "", **environment: str
    ) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "check.yaml"
        file.write_text(
            "web: {listen_address: ['127.0.0.1:0']}\nprobes: {enabled: false}\n" + config
        )
        finished = subprocess.run(
            [sys.executable, "-m", "exporter", "check", "--json", "--config.file", str(file)],
            env={
                **os.environ,
                "XDG_STATE_HOME": str(tmp_path),
                **(fake.env if fake else {}),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.stderr == ""
        return finished.returncode, json.loads(finished.stdout)

    return run


def found(report: dict[str, Any], area: str) -> list[tuple[str, str]]:
    """Level and text of an area's findings."""
    return [
        (finding["level"], finding["text"])
        for finding in report["findings"]
        if finding["area"] == area
    ]


def test_a_host_without_a_driver_is_healthy(check: Check) -> None:
    """Without an NVIDIA driver the daemon watches the host processor: nothing has failed."""
    code, report = check()

    assert (code, report["healthy"]) == (0, True)
    assert found(report, "driver") == [
        ("note", "no NVIDIA driver here: the host processor is monitored")
    ]


def test_a_driver_that_must_be_there_and_is_not_fails(check: Check) -> None:
    """`sources.nvml: on` says that there are GPUs here."""
    code, report = check(config="sources: {nvml: 'on'}\n")

    assert code == 1
    assert found(report, "driver")[0][0] == "failure"


def test_each_gpu_says_where_its_flops_come_from(check: Check, tmp_path: Path) -> None:
    """Cycle counters on an H100, DCGM's turn on an A100, instances of a GPU in MIG mode."""
    with FakeNvml([H100, A100, H100], tmp_path) as fake:
        fake.gpu(2).set_mig([H100_3G_40GB])
        code, report = check(fake, "dcgm: {url: 'http://127.0.0.1:1/metrics'}\n")

    assert code == 0
    assert ("ok", "NVIDIA H100 80GB HBM3: FLOPS from gpm_cycles") in found(report, "gpu 0")
    assert (
        "warning",
        "NVIDIA A100-SXM4-80GB: GPM begins with Hopper: FLOPS need DCGM",
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
        ("warning", "has no metrics of GPU 0, MIG instance 7"),
    ]


# Of each kind of GPU: where its FLOPS come from, and the remedies that may be named. None stands
# for GPUs of which nobody can say more; nothing is then to be done.
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
    """Nobody is sent to a dcgm-exporter that has nothing for the GPU, nor warned where all is well."""
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
    # Only who can do something is warned.
    assert not [f for f in of_gpus if f["level"] == "warning" and not f["remedy"]]


def test_dcgm_is_asked_where_gpm_is_turned_off(check: Check, tmp_path: Path) -> None:
    """As the daemon does; a GPU with GPM is then none with it."""
    with FakeNvml([H100], tmp_path) as fake, DcgmExporter() as dcgm:
        labels = {"gpu": "0", "UUID": fake.gpu(0).uuid}
        dcgm.show(device_rows(dict.fromkeys(ALL_FIELDS, 0.5), **labels))
        _code, report = check(fake, f"sources: {{gpm: 'off'}}\ndcgm: {{url: '{dcgm.url}'}}\n")

    assert found(report, "gpu 0")[0] == ("ok", "NVIDIA H100 80GB HBM3: FLOPS from dcgm")
    assert found(report, "dcgm") == [("ok", "GPU 0: all fields that FLOPS need")]


def test_where_gpm_is_not_permitted_dcgm_may_have_it(check: Check, tmp_path: Path) -> None:
    """The remedy names both ways out."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.fail("nvmlGpmSampleGet", 4)
        _code, report = check(fake, "dcgm: {url: 'http://127.0.0.1:1/metrics'}\n")

    (finding,) = [f for f in report["findings"] if f["area"] == "gpu 0"]
    assert finding["text"] == "NVIDIA H100 80GB HBM3: no permission to use GPM"
    assert finding["remedy"] == "run as root, or run dcgm-exporter, see dcgm below"


@pytest.mark.parametrize(
    ("built", "known"), [("13.0", True), ("12.8", False), ("12.1", False), (None, False)]
)
def test_a_torch_of_a_newer_cuda_than_the_drivers_is_named(built: str | None, known: bool) -> None:
    """A driver for CUDA 12.4 runs any 12 and no 13, and torch finds its GPUs all the same."""
    torch = {"version": "2.9", "cuda": built, "cuda_available": True, "architectures": []}
    config = load_config(ConfigOrigin(file=None, flags={}, environment={}))

    findings = list(probe_findings(Answer((torch,)), config, [], {"cuda_driver_version": 12040}))

    assert [finding.level for finding in findings] == ["ok"] + ["warning"] * known
    if known:
        assert findings[1].text == "torch is built for CUDA 13.0, the driver runs CUDA 12.4"


def test_a_gpu_that_nobody_expected_costs_only_its_own_lines(check: Check, tmp_path: Path) -> None:
    """flopwatch itself fails on one GPU's answers: said in a line, and the others are examined."""
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
        ("failure", "unknown: flopwatch itself failed on an answer of this GPU")
    ]
    assert found(report, "gpu 1")[0][0] == "ok"
    assert report["gpus"][0]["fault"] == "TypeError: strange"


def test_library_and_driver_tell_their_versions(check: Check, tmp_path: Path) -> None:
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
    """With the default, and no more once the instances are probed."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_mig([H100_3G_40GB])
        _code, report = check(fake, FLOPWATCH_PROBES_ENABLED="true")
        skipped = ("note", "not probed: probes.mig is skip")
        assert skipped in found(report, "gpu 0")
        _code, report = check(fake, FLOPWATCH_PROBES_ENABLED="true", FLOPWATCH_PROBES_MIG="run")
        assert skipped not in found(report, "gpu 0")


def test_the_clock_says_how_far_it_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody keeps it, it is kept badly, it is kept well."""
    for clock, level, text in (
        ((5, 16.0), "warning", "not synchronised"),
        ((0, 2.5), "warning", "synchronised, but may be 2.5 s off"),
        ((0, 0.0123), "ok", "synchronised, at most 12.3 ms off"),
    ):
        monkeypatch.setattr("exporter.check.host._clock", lambda clock=clock: clock)
        (finding,) = clock_findings()
        assert finding.level == level
        assert finding.text.startswith(text)


def test_a_lost_gpu_fails_and_the_others_are_examined(check: Check, tmp_path: Path) -> None:
    """One GPU off the bus makes the exit code 1, and costs the report of no other."""
    with FakeNvml([H100, H100], tmp_path) as fake:
        fake.lose(0)
        code, report = check(fake)

    assert code == 1
    assert found(report, "gpu 0") == [("failure", "unknown: the GPU has fallen off the bus")]
    assert found(report, "gpu 1")[0][0] == "ok"


def test_a_hanging_driver_is_left_behind(tmp_path: Path) -> None:
    """A call that never returns ends the question at its time, with what was known until then."""
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


def test_a_port_in_use_fails(check: Check) -> None:
    """Another program on the port keeps the daemon from starting."""
    with DcgmExporter() as other:
        port = other.url.split(":")[2].split("/")[0]
        code, report = check(FLOPWATCH_WEB_LISTEN_ADDRESS=f"127.0.0.1:{port}")

    assert code == 1
    assert [level for level, _text in found(report, "port")] == ["failure"]


def test_a_broken_configuration_is_a_finding(check: Check) -> None:
    """The mistakes are listed, and the host is examined with the defaults."""
    code, report = check(config="samplings: {interval: 1s}\n")

    assert code == 1
    assert found(report, "configuration")[0][0] == "failure"
    assert found(report, "driver") != []


def test_an_engine_that_does_not_answer_is_named(check: Check) -> None:
    """The daemon runs without it, so it is a warning."""
    code, report = check(
        config="workloads: [{name: chat, engine: vllm, url: 'http://127.0.0.1:1/metrics'}]\n"
    )

    assert code == 0
    assert [level for level, _text in found(report, "engine chat")] == ["warning"]


def test_an_engine_that_is_another_is_named(check: Check) -> None:
    """llama.cpp under an address configured as vLLM: a warning that names both."""
    metrics = "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 1\n"
    with engines.serving(engines.text(metrics)) as engine:
        _code, report = check(
            config=f"workloads: [{{name: chat, engine: vllm, url: '{engine.url}'}}]\n"
        )

    ((level, said),) = found(report, "engine chat")
    assert level == "warning"
    assert "metrics of llama_cpp, not vllm's" in said


def test_without_torch_the_probes_are_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Metrics do not need torch: its absence is said, with the remedy, and is no failure."""
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


def test_a_board_whose_peak_nobody_knows_says_what_to_set(check: Check, tmp_path: Path) -> None:
    """No SM count from the driver and no row in the table: GPM answers, and yet there are no FLOPS."""
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


def test_a_driver_mismatch_is_called_by_its_name(check: Check, tmp_path: Path) -> None:
    """The reason is `driver_mismatch`, as in the metrics."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.mismatch_driver()
        code, report = check(fake)

    assert code == 1
    assert report["driver"]["error"] == "driver_mismatch"
    assert found(report, "driver")[0] == (
        "failure",
        "driver library and kernel module are of different versions",
    )


# Who may run a check: somebody else than root, and root without its privileges.
UNPRIVILEGED = {
    "another user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    "root without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes privileges away: needs root")
@pytest.mark.parametrize("who", UNPRIVILEGED)
def test_without_privileges_each_finding_is_a_finding(who: str, tmp_path: Path) -> None:
    """A kubelet's folder and a state folder that may not be looked into: said, and no crash."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "kubelet.sock").touch()
    (closed / "pause").touch()
    closed.chmod(0o700)
    os.chown(closed, 1, 1)  # not root's: without capabilities root is nobody special
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    finished = subprocess.run(
        [*UNPRIVILEGED[who], sys.executable, "-m", "exporter", "check", "--json"],
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_STATE_HOME": str(closed),
            "FLOPWATCH_WEB_LISTEN_ADDRESS": "127.0.0.1:0",
            "FLOPWATCH_KUBERNETES_SOCKET": str(closed / "kubelet.sock"),
            "FLOPWATCH_STATE_FILE": str(closed / "deep/state.json"),
            "FLOPWATCH_PROBES_PAUSE_FILE": str(closed / "pause"),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    report = json.loads(finished.stdout)
    assert found(report, "kubernetes") == [
        ("warning", f"{closed}/kubelet.sock: permission denied: pods are not named")
    ]
    ((level, text),) = found(report, "state file")
    assert (level, "permission denied" in text) == ("warning", True)


def test_a_fault_of_the_checker_costs_one_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is a finding that asks to be reported; all others are there."""

    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "clock_findings", fail)
    config = load_config(ConfigOrigin(environment={"FLOPWATCH_PROBES_ENABLED": "false"}))

    report = doctor.examine(config)

    (clock,) = [finding for finding in report.findings if finding.area == "clock"]
    assert clock.text == "could not be examined: ZeroDivisionError: a bug"
    assert {"configuration", "port", "driver"} <= {finding.area for finding in report.findings}


def test_an_address_that_is_given_twice_is_in_use_the_second_time(check: Check) -> None:
    """Serve would not start with it either."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, report = check(FLOPWATCH_WEB_LISTEN_ADDRESS=f"{address},{address}")

    assert code == 1
    assert [level for level, _text in found(report, "port")] == ["ok", "failure"]


def test_a_gpu_that_is_not_there_is_named(check: Check, tmp_path: Path) -> None:
    """It may be a mistake, or a GPU that has not come up; the daemon serves the others."""
    with FakeNvml([H100], tmp_path) as fake:
        code, report = check(fake, "gpus: [{match: {index: 7}, precision: fp8}]\n")

    assert code == 0
    assert ("warning", "gpus[0].match.index: no GPU 7 on this host, GPUs: 0") in found(
        report, "configuration"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_a_disk_without_space_keeps_no_state(tmp_path: Path) -> None:
    """Files can be made on a full disk, and nothing written to them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = (
        f"mount -t tmpfs -o size=64k tmpfs {disk} && dd if=/dev/zero of={disk}/fill bs=4k 2>/dev/null; "
        f"{sys.executable} -m exporter check --json"
    )
    finished = subprocess.run(
        ["unshare", "--mount", "sh", "-c", words],
        env={
            **os.environ,
            "FLOPWATCH_STATE_FILE": f"{disk}/state.json",
            "FLOPWATCH_PROBES_ENABLED": "false",
            "FLOPWATCH_WEB_LISTEN_ADDRESS": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert found(json.loads(finished.stdout), "state file") == [
        (
            "warning",
            (
                f"{disk}/state.json: {disk} cannot be written: no space left on device: baselines are "
                "lost when the process ends"
            ),
        )
    ]


def test_a_folder_is_no_state_file(check: Check, tmp_path: Path) -> None:
    """The daemon serves without it, and says so; the check does, too."""
    code, report = check(FLOPWATCH_STATE_FILE=str(tmp_path))

    assert code == 0
    assert found(report, "state file") == [
        ("warning", f"{tmp_path}: is a folder: baselines are lost when the process ends")
    ]


# Configurations that can never work, by what is wrong with them: files, and flags.
NEVER: dict[str, tuple[dict[str, str], list[str]]] = {
    "address without a port": ({}, ["--web.listen-address", "9907"]),
    "address of another kind": ({}, ["--web.listen-address", "[::1"]),
    "no web configuration there": ({}, ["--web.config.file", "none.yml"]),
    "unknown key of the web configuration": (
        {"web.yml": "tls_server_konfig: {}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "a certificate that is none": (
        {"web.yml": "tls_server_config: {cert_file: web.yml, key_file: web.yml}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "a password in clear text": (
        {"web.yml": "basic_auth_users: {prometheus: secret}\n"},
        ["--web.config.file", "web.yml"],
    ),
    "unknown key": ({"config.yml": "sampling: {intervall: 1s}\n"}, ["--config.file", "config.yml"]),
    "no configuration there": ({}, ["--config.file", "none.yml"]),
}


@pytest.mark.parametrize("what", NEVER)
def test_serve_check_and_config_refuse_the_same(what: str, tmp_path: Path) -> None:
    """By the same words, with 2 for what serve would never start with, and 1 of a check."""
    files, flags = NEVER[what]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    said = {}
    for command, code in (("serve", 2), ("config", 2), ("check", 1)):
        result = subprocess.run(
            [sys.executable, "-m", "exporter", command, *flags],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "FLOPWATCH_PROBES_ENABLED": "false",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == code, (command, result.stderr)
        said[command] = result

    assert said["serve"].stderr == said["config"].stderr
    assert said["serve"].stderr.startswith("flopwatch: ")
    assert said["check"].stderr == ""
    mistake = said["serve"].stderr.splitlines()[0].removeprefix("flopwatch: ")
    assert mistake.replace(" ", "") in said["check"].stdout.replace(" ", "").replace("\n", "")
