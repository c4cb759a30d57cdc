"""Files of /proc and /sys that are missing or do not contain a number."""

from pathlib import Path

import pytest

from exporter.collect.cpu import CpuSource


CPUS = "sys/devices/system/cpu"
ENERGY = "sys/class/powercap/intel-rapl:{}/energy_uj"


class Host:
    """A /proc and a /sys for the test."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, text: str) -> None:
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, path: str) -> None:
        (self._root / path).unlink()

    def source(self) -> CpuSource:
        return CpuSource(lambda: 1.0, self._root)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two cores of 2 and 3 GHz, two packages with energy counters."""
    host = Host(tmp_path)
    host.write("proc/stat", "cpu 1 0 1 8 0 0 0 0 0 0\n")
    host.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    for cpu, kilohertz in ((0, "2000000"), (1, "3000000")):
        host.write(f"{CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq", kilohertz + "\n")
    for package, microjoules in ((0, "5000000"), (1, "7000000")):
        host.write(ENERGY.format(package), microjoules + "\n")
    return host


def test_a_clock_that_the_kernel_does_not_report(host: Host) -> None:
    """ "<unknown>" is not a clock: the mean is over the others, and absent when all are unknown."""
    assert host.source().read().sm_clock_hertz == 2.5e9

    host.write(f"{CPUS}/cpu0/cpufreq/scaling_cur_freq", "<unknown>\n")
    assert host.source().read().sm_clock_hertz == 3e9

    host.write(f"{CPUS}/cpu1/cpufreq/scaling_cur_freq", "<unknown>\n")
    assert host.source().read().sm_clock_hertz is None


def test_energy_is_that_of_all_packages_or_of_none(host: Host) -> None:
    """The energy of a package that is missing for one tick must not be counted again in the next."""
    source = host.source()
    assert source.read().energy_joules == 12

    host.remove(ENERGY.format(1))
    assert source.read().energy_joules is None

    host.write(ENERGY.format(1), "8000000\n")
    assert source.read().energy_joules == 13


@pytest.mark.parametrize("text", ["", "cpu\n", "cpu 1 2\n", "\x00\xff\n", "intr 1 2 3 4 5 6\n"])
def test_an_unusual_proc(host: Host, text: str) -> None:
    """What cannot be read is absent."""
    host.write("proc/stat", text)
    host.write("proc/meminfo", text)
    source = host.source()
    source.read()
    reading = source.read()

    assert reading.gpu_utilization is None
    assert reading.memory_size_bytes is None
