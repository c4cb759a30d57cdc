"""The host processor as available to this process: cores, quota, instruction sets, clock.

Reads /proc and /sys only; the daemon and the probes' worker thus agree on the machine.
"""

import ctypes
import functools
import math
import mmap
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final


_ROOT: Final = Path("/")
# A quota of 1.99 cores means two: a rounding error of whoever computed it.
_QUOTA_SLACK: Final = 0.02
# The instruction sets (names of /proc/cpuinfo) that multiply natively in a precision, without
# conversion: Intel 64 SDM and AMD APM (x86), Arm Architecture Reference Manual (Arm).
_NATIVE: Final = {
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "fp16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
    "int8": frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}),
}
_ALWAYS: Final = frozenset({"fp32", "fp64"})

# A chain of dependent multiplications. A 64-bit integer multiplication takes 3 cycles on every
# x86-64 processor with FMA (Agner Fog, Instruction tables), and register renaming does not
# eliminate it.
_CHAIN: Final = 32
_CHAIN_CYCLES: Final = 3 * _CHAIN
_CHAIN_LOOPS: Final = 1000
_CHAIN_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor of this host. `cores` are the logical CPUs to use, one for each physical core.

    `allowed` are all logical CPUs that may be used. `quota` is the cgroup's limit in cores, or None
    without one. `vendor`, `family` and `model` are set on x86, `implementer` and `part` on Arm.
    `flags` are the instruction sets under the kernel's names.
    """

    cores: tuple[int, ...]
    allowed: tuple[int, ...] = ()
    quota: float | None = None
    name: str = ""
    vendor: str = ""
    family: int | None = None
    model: int | None = None
    implementer: int | None = None
    part: int | None = None
    flags: frozenset[str] = frozenset()

    @property
    def threads(self) -> int:
        """The number of cores that a computation can keep busy, within affinity and quota."""
        if self.quota is None:
            return max(1, len(self.cores))
        return max(1, min(len(self.cores), math.floor(self.quota + _QUOTA_SLACK)))

    @property
    def native_precisions(self) -> frozenset[str]:
        """The precisions in which it multiplies natively."""
        return _ALWAYS | {name for name, sets in _NATIVE.items() if sets & self.flags}


def read_processor(root: Path = _ROOT, allowed: Iterable[int] | None = None) -> Processor:
    """The processor; `allowed` are the logical CPUs that may be used, by default this process's own.

    Under another `root` (a recorded /proc and /sys) all CPUs are allowed.
    """
    blocks = [_pairs(block) for block in (_text(root / "proc/cpuinfo") or "").split("\n\n")]
    blocks = [block for block in blocks if block.get("processor", "").isdigit()]
    if allowed is None and root == _ROOT:
        allowed = os.sched_getaffinity(0)
    usable = None if allowed is None else set(allowed)
    cores: dict[tuple[str, str], int] = {}
    numbers = []
    for block in blocks:
        number = int(block["processor"])
        if usable is None or number in usable:
            cores.setdefault(_core(root, block, number), number)
            numbers.append(number)
    if not numbers:
        numbers = sorted(usable or range(os.cpu_count() or 1))
    first = blocks[0] if blocks else {}
    return Processor(
        cores=tuple(sorted(cores.values())) or tuple(numbers),
        allowed=tuple(numbers),
        quota=_quota(root),
        name=first.get("model name", ""),
        vendor=first.get("vendor_id", ""),
        family=_integer(first.get("cpu family")),
        model=_integer(first.get("model")),
        implementer=_integer(first.get("CPU implementer")),
        part=_integer(first.get("CPU part")),
        flags=frozenset((first.get("flags") or first.get("Features") or "").split()),
    )


def clock_hertz() -> float | None:
    """The clock of the core this runs on, measured in about 0.1 ms; None if that is not possible.

    It times a known number of cycles, which gives the true clock in a virtual machine too. An
    interruption only makes a try longer, so the fastest of several tries is used.
    """
    chain = _chain()
    if chain is None:
        return None

    def fastest(loops: int) -> int:
        spans = []
        for _ in range(_CHAIN_TRIES):
            start = time.perf_counter_ns()
            chain(loops)
            spans.append(time.perf_counter_ns() - start)
        return min(spans)

    # The difference cancels the overhead of the call.
    nanoseconds = fastest(_CHAIN_LOOPS) - fastest(1)
    if nanoseconds <= 0:
        return None
    return (_CHAIN_LOOPS - 1) * _CHAIN_CYCLES / (nanoseconds * 1e-9)


@functools.cache
def _chain() -> Callable[[int], int] | None:
    """Machine code: a loop of `imul rax, rax`; None if unsupported or not allowed here."""
    if platform.machine() != "x86_64":
        return None
    body = bytes.fromhex("480fafc0") * _CHAIN  # imul rax, rax
    decrement = bytes.fromhex("48ffcf")  # dec rdi
    distance = -(len(body) + len(decrement) + 6)
    code = (
        bytes.fromhex("4889f8")  # mov rax, rdi
        + body
        + decrement
        + bytes.fromhex("0f85")  # jnz body
        + distance.to_bytes(4, "little", signed=True)
        + bytes.fromhex("c3")  # ret
    )
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None  # a hardened host: memory is not both writable and executable
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(address)
    # The page must live as long as the function.
    return lambda loops: (page, int(function(loops)))[1]


def _core(root: Path, block: dict[str, str], number: int) -> tuple[str, str]:
    """The identity of a physical core, shared by its siblings: package and core number."""
    if "core id" in block:
        return block.get("physical id", ""), block["core id"]
    topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
    core = _text(topology / "core_id")
    if core is None:
        return "", f"cpu{number}"
    # Arm numbers cores within a cluster.
    cluster = _text(topology / "cluster_id") or ""
    return f"{_text(topology / 'physical_package_id') or ''}/{cluster}", core


def _quota(root: Path) -> float | None:
    """The tightest CPU limit of this process's cgroups, in cores; None without a limit."""
    limits: list[float] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            limits += _limits(root / "sys/fs/cgroup", path, _limit_v2)
        elif "cpu" in controllers.split(","):
            for folder in (controllers, "cpu"):
                limits += _limits(root / "sys/fs/cgroup" / folder, path, _limit_v1)
    return min(limits, default=None)


def _limits(top: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """The limits of a cgroup and its ancestors; in a container the path may not exist."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    folders = [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [limit for folder in folders if (limit := read(folder)) is not None]


def _limit_v2(folder: Path) -> float | None:
    found = re.fullmatch(r"(\d+) (\d+)", _text(folder / "cpu.max") or "")
    return int(found[1]) / int(found[2]) if found and int(found[2]) else None


def _limit_v1(folder: Path) -> float | None:
    quota = _integer(_text(folder / "cpu.cfs_quota_us"))
    period = _integer(_text(folder / "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 else None


def _pairs(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _colon, value in pairs}


def _integer(text: str | None) -> int | None:
    """A number as /proc writes it, decimal or 0x…; None for anything else."""
    try:
        return int(text, 0) if text else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
