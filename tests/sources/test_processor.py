"""What this process may use of the host's processor: cores, quota, instruction sets, clock."""

from pathlib import Path

import pytest

from flopwatch.processor import clock_hertz, read_processor


def x86(root: Path, *, packages: int = 1, cores: int = 2, siblings: int = 2) -> Path:
    """A recorded /proc/cpuinfo: the siblings of one core are numbered far apart, as on Linux."""
    blocks = []
    for sibling in range(siblings):
        for package in range(packages):
            for core in range(cores):
                number = (sibling * packages + package) * cores + core
                blocks.append(
                    f"processor\t: {number}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n"
                    f"model\t\t: 143\nmodel name\t: Test\nphysical id\t: {package}\n"
                    f"core id\t\t: {core}\nflags\t\t: fma avx512f amx_bf16 avx512_vnni\n"
                )
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("\n".join(blocks))
    return root


def test_one_logical_processor_stands_for_each_physical_core(tmp_path: Path) -> None:
    """Two packages of two cores with two siblings each: processors 0 to 3 of 8."""
    assert read_processor(x86(tmp_path, packages=2)).cores == (0, 1, 2, 3)


def test_affinity_is_respected(tmp_path: Path) -> None:
    """Of cores 0 and 1 with siblings 2 and 3, 1 to 3 are allowed: 1 and 2, as 3 belongs to 1."""
    assert read_processor(x86(tmp_path), allowed=(1, 2, 3)).cores == (1, 2)


@pytest.mark.parametrize(
    ("limit", "threads"),
    [
        ("max 100000", 4),
        ("150000 100000", 1),  # a core and a half keep one thread busy
        ("200000 100000", 2),
        ("1600000 100000", 4),
        ("50000 100000", 1),
    ],
)
def test_a_cgroups_quota_is_respected(tmp_path: Path, limit: str, threads: int) -> None:
    """Four cores: as many threads as the quota keeps busy, at least one."""
    root = x86(tmp_path, cores=4, siblings=1)
    (root / "proc/self/cgroup").write_text("0::/pod/container\n")
    folder = root / "sys/fs/cgroup/pod/container"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(f"{limit}\n")

    assert read_processor(root).threads == threads


def test_the_tightest_quota_above_counts(tmp_path: Path) -> None:
    """The pod's two cores, not its container's four."""
    root = x86(tmp_path, cores=4, siblings=1)
    (root / "proc/self/cgroup").write_text("0::/pod/container\n")
    (root / "sys/fs/cgroup/pod/container").mkdir(parents=True)
    (root / "sys/fs/cgroup/pod/cpu.max").write_text("200000 100000\n")
    (root / "sys/fs/cgroup/pod/container/cpu.max").write_text("400000 100000\n")

    assert read_processor(root).quota == 2.0


def test_the_first_version_of_cgroups(tmp_path: Path) -> None:
    """Where -1 is no limit."""
    root = x86(tmp_path, cores=4, siblings=1)
    (root / "proc/self/cgroup").write_text("4:cpu,cpuacct:/job\n")
    folder = root / "sys/fs/cgroup/cpu,cpuacct"
    (folder / "job").mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "job/cpu.cfs_quota_us").write_text("300000\n")
    (folder / "job/cpu.cfs_period_us").write_text("100000\n")

    assert read_processor(root).quota == 3.0


def test_arm_lists_its_cores_in_sys(tmp_path: Path) -> None:
    """/proc/cpuinfo has no core ids there; implementer and part are hexadecimal."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "\n".join(
            f"processor\t: {n}\nFeatures\t: asimd asimdhp asimddp bf16\n"
            "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
            for n in range(2)
        )
    )
    for number in range(2):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "core_id").write_text(f"{number}\n")
        (folder / "physical_package_id").write_text("0\n")
    found = read_processor(tmp_path)

    assert found.cores == (0, 1)
    assert (found.implementer, found.part) == (0x41, 0xD4F)
    assert found.native_precisions == {"fp64", "fp32", "fp16", "bf16", "int8"}


def test_precisions_that_would_be_emulated_are_not_native(tmp_path: Path) -> None:
    """AMX multiplies bf16, VNNI int8; no processor multiplies fp8, and this one no fp16."""
    assert read_processor(x86(tmp_path)).native_precisions == {"fp64", "fp32", "bf16", "int8"}


def test_the_clock_is_that_of_a_processor() -> None:
    """Between 0.4 and 7 GHz, or unknown."""
    clock = clock_hertz()

    assert clock is None or 0.4e9 < clock < 7e9
