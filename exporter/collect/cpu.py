"""Source `cpu`: the host processor, standing in for a GPU where there is none.

Reads /proc and /sys only. There is no portable counter of floating-point work, so the processor's
achieved FLOPS come from the micro-probes alone; utilization and clock come from here.
"""

import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exporter.accounting.peaks import Peaks
from exporter.readings import ClockSample, DeviceIdentity, FastReading


_ROOT = Path("/")
_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
_KILO = 1e3
_MEGA = 1e6
# FLOP per cycle and core, fp64 and fp32, with two fused multiply-add units of the widest vectors
# (vendors' optimization manuals); without FMA one multiply and one add of 128 bits.
_FLOP_PER_CYCLE = (("avx512f", 32, 64), ("fma", 16, 32), ("asimd", 8, 16), ("sse2", 4, 8))
# Zen 4 (AMD's family 25 with AVX-512) sends vectors of 512 bits through units of 256 in two passes
# (AMD, Software Optimization Guide for the AMD Zen4 Microarchitecture, 57647).
_HALF_WIDTH_AVX512 = ("AuthenticAMD", "25")


@dataclass(frozen=True, slots=True)
class _Times:
    busy: float
    total: float


class CpuSource:
    """Reads the host processor. `root` lets tests lay a recorded /proc and /sys under it."""

    def __init__(self, clock: Callable[[], float], root: Path = _ROOT) -> None:
        self._clock = clock
        self._root = root
        self._times: _Times | None = None
        self._energy_paths = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj"))

    def identity(self) -> DeviceIdentity:
        """The processor as a device: `cpu0`, with a UUID that is stable for this host."""
        info = self._cpuinfo()
        machine = self._text("etc/machine-id") or socket.gethostname()
        digest = hashlib.sha256(f"flopwatch {machine}".encode()).hexdigest()
        return DeviceIdentity(
            index="cpu0",
            uuid=f"CPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}",
            name=info.get("model name") or os.uname().machine,
            architecture=os.uname().machine,
            sm_count=self._cores(),
            sm_clock_max_hertz=self._max_hertz(info),
            memory_size_bytes=int(self._memory().get("MemTotal", 0)) or None,
        )

    def peaks(self, identity: DeviceIdentity) -> Peaks:
        """Cores x FLOP per cycle x maximum clock, from the instruction sets that it names."""
        info = self._cpuinfo()
        flags = set((info.get("flags") or info.get("Features") or "").split())
        if (info.get("vendor_id"), info.get("cpu family")) == _HALF_WIDTH_AVX512:
            flags.discard("avx512f")
        rate = next(((f64, f32) for flag, f64, f32 in _FLOP_PER_CYCLE if flag in flags), None)
        if rate is None or identity.sm_count is None or identity.sm_clock_max_hertz is None:
            return Peaks(origin="derived", model=identity.name)
        cycles = identity.sm_count * identity.sm_clock_max_hertz
        return Peaks(
            origin="derived",
            model=identity.name,
            sm_count=identity.sm_count,
            flops={"fp64": rate[0] * cycles, "fp32": rate[1] * cycles},
            plain_rate={"fp64": rate[0], "fp32": rate[1]},
        )

    def read_clock(self) -> ClockSample:
        """Mean clock of the cores, now."""
        return ClockSample(self._clock(), self._hertz(), None)

    def read(self) -> FastReading:
        """Utilization since the reading before, clock, memory, energy where it may be read."""
        memory = self._memory()
        size, free = memory.get("MemTotal"), memory.get("MemAvailable")
        sample = self.read_clock()
        return FastReading(
            at_seconds=sample.at_seconds,
            sm_clock_hertz=sample.sm_clock_hertz,
            gpu_utilization=self._utilization(),
            memory_size_bytes=size,
            memory_free_bytes=free,
            memory_used_bytes=size - free if size is not None and free is not None else None,
            energy_joules=self._energy_joules(),
        )

    def _utilization(self) -> float | None:
        times = self._cpu_times()
        before, self._times = self._times, times
        if times is None or before is None or times.total <= before.total:
            return None
        share = (times.busy - before.busy) / (times.total - before.total)
        return min(1.0, max(0.0, share))

    def _cpu_times(self) -> _Times | None:
        """Clock ticks of all processors together: columns user … steal of /proc/stat."""
        line = (self._text("proc/stat") or "").partition("\n")[0].split()
        if len(line) < 6 or line[0] != "cpu":
            return None
        ticks = [float(value) for value in line[1:9]]
        idle = ticks[3] + ticks[4]
        return _Times(busy=sum(ticks) - idle, total=sum(ticks))

    def _hertz(self) -> float | None:
        try:
            paths = list(self._root.glob(_CLOCKS))
        except OSError:  # no descriptor left
            paths = []
        clocks = [number * _KILO for path in paths if (number := _number(_read(path))) is not None]
        if not clocks:
            clocks = [
                float(value) * _MEGA
                for value in re.findall(
                    r"^cpu MHz\s*:\s*([\d.]+)", self._text("proc/cpuinfo") or "", re.MULTILINE
                )
            ]
        return sum(clocks) / len(clocks) if clocks else None

    def _max_hertz(self, info: Mapping[str, str]) -> float | None:
        text = self._text("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
        if (number := _number(text)) is not None:
            return number * _KILO
        named = re.search(r"@\s*([\d.]+)\s*GHz", info.get("model name", ""))
        if named:
            return float(named[1]) * 1e9
        return self._hertz()

    def _cores(self) -> int | None:
        """Physical cores: pairs of package and core id; processors where the kernel names none."""
        text = self._text("proc/cpuinfo") or ""
        pairs = set(
            zip(
                re.findall(r"^physical id\s*:\s*(\d+)", text, re.MULTILINE),
                re.findall(r"^core id\s*:\s*(\d+)", text, re.MULTILINE),
                strict=False,
            )
        )
        return (
            len(pairs) or len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or os.cpu_count()
        )

    def _cpuinfo(self) -> dict[str, str]:
        first = (self._text("proc/cpuinfo") or "").partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _colon, value in pairs}

    def _memory(self) -> dict[str, float]:
        """/proc/meminfo in bytes."""
        values: dict[str, float] = {}
        for line in (self._text("proc/meminfo") or "").splitlines():
            name, _colon, value = line.partition(":")
            amount = value.split()
            if amount and amount[0].isdigit():
                values[name] = float(amount[0]) * 1024
        return values

    def _energy_joules(self) -> float | None:
        """Sum over packages (Intel RAPL); readable for root only on most kernels.

        None while one of them does not answer: when it did again, all that it ever used would be
        counted as used since.
        """
        known = [_number(_read(path)) for path in self._energy_paths]
        numbers = [number for number in known if number is not None]
        return sum(numbers) * 1e-6 if numbers and len(numbers) == len(known) else None

    def _text(self, path: str) -> str | None:
        return _read(self._root / path)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    """The number in a file of /sys; some kernels write «<unknown>» where they know none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
