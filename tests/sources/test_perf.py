"""The processor's own count of operations, through a simulated kernel.

None of our machines exposes its hardware counters: the tests check that the requested events are the
documented ones, and that counts become FLOP. The system call is the real one for a software event.
"""

import errno
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.accounting.flop import PipeWork
from exporter.accounting.processor import PerfUnavailableError, events_of
from exporter.check import Level
from exporter.check.host import perf_findings
from exporter.collect.cpu import LinuxKernel, PerfCounters, attributes
from exporter.config.load import ConfigOrigin, load_config
from flopwatch.processor import Processor


DEFAULTS = load_config(ConfigOrigin(file=None, flags={}, environment={}))
XEON = Processor(
    cores=(0, 1),
    allowed=(0, 1),
    vendor="GenuineIntel",
    family=6,
    model=143,
    name="Xeon",
    flags=frozenset({"avx512f", "amx_bf16", "amx_int8"}),
)
ZEN_3 = Processor(cores=(0,), allowed=(0,), vendor="AuthenticAMD", family=25, model=1)


class PlayedKernel:
    """Counts by raw event, for every CPU; `refusal` is what opening answers."""

    def __init__(self, counts=None, *, refusal=None, enabled=100, running=100):
        self.counts = counts or {}
        self.refusal = refusal
        self.enabled, self.running = enabled, running
        self.opened = {}
        self.closed = []

    def open(self, attributes, cpu):
        if self.refusal is not None and len(self.opened) == 3:
            raise OSError(self.refusal, "refused")
        unit, size, config = struct.unpack_from("=IIQ", attributes)
        read_format, flags = struct.unpack_from("=QQ", attributes, 32)
        assert (unit, size, len(attributes)) == (4, 64, 64)
        assert (read_format, flags) == (3, 0x20)
        self.opened[len(self.opened) + 10] = (cpu, config)
        return len(self.opened) + 9

    def read(self, descriptor):
        _cpu, config = self.opened[descriptor]
        return self.counts.get(config, 0), self.enabled, self.running

    def close(self, descriptor):
        self.closed.append(descriptor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /sys with hardware counters of type 4, as on bare metal."""
    folder = tmp_path / "sys/bus/event_source/devices/cpu"
    folder.mkdir(parents=True)
    (folder / "type").write_text("4\n")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/perf_event_paranoid").write_text("2\n")
    return tmp_path


def test_intel_counts_instructions_by_precision_and_width(root: Path) -> None:
    """On each of two CPUs 10 of 512 bits in fp32 and 3 of 128 in fp64: 2 * 160 and 2 * 6 FLOP.

    AMX has no event that Intel still lists.
    """
    kernel = PlayedKernel({0x80C7: 10, 0x04C7: 3, 0x02CE: 5})
    counters = PerfCounters(XEON, kernel, root)

    assert counters.read() == {
        PipeWork("fp64", "fp64"): 12,
        PipeWork("fp32", "fp32"): 320,
    }
    assert {cpu for cpu, _ in kernel.opened.values()} == {0, 1}
    assert len(kernel.opened) == 2 * 8


def test_amd_counts_operations_without_their_precision(root: Path) -> None:
    """Event 3 with all four kinds, 1000 operations."""
    assert PerfCounters(ZEN_3, PlayedKernel({0x0F03: 1000}), root).read() == {
        PipeWork("any", "any"): 1000
    }


@pytest.mark.parametrize(
    ("processor", "counts", "flop"),
    [
        # Zen and Zen+: single precision in the lower bits, double in the upper.
        (replace(ZEN_3, family=23, model=1), {0x0F03: 64, 0xF003: 8}, {"fp32": 64, "fp64": 8}),
        # Zen 2.
        (replace(ZEN_3, family=23, model=0x31), {0x0F03: 64}, {"any": 64}),
        # Zen 4, with bf16's multiply-adds: the mask 0x1F of "all".
        (replace(ZEN_3, model=0x11, flags=frozenset({"avx512f"})), {0x1F03: 512}, {"any": 512}),
        # Zen 5: the mask 0x0F of "all".
        (replace(ZEN_3, family=26, model=2), {0x0F03: 1024}, {"any": 1024}),
    ],
)
def test_each_generation_of_amd_has_its_masks(
    root: Path, processor: Processor, counts: dict[int, int], flop: dict[str, int]
) -> None:
    """Every count is an operation; a fused multiply-add was counted twice by the processor."""
    assert PerfCounters(processor, PlayedKernel(counts), root).read() == {
        PipeWork(precision, precision): value for precision, value in flop.items()
    }


@pytest.mark.parametrize(
    ("part", "flop"),
    [
        (0xD40, 100 + 2 * 30),  # V1: 256 bits, two counts of 128 for each of SVE's
        (0xD49, 100 + 30),  # N2
        (0xD4F, 100 + 30),  # V2
    ],
)
def test_arm_counts_vectors_of_fixed_and_of_scalable_length(
    tmp_path: Path, part: int, flop: int
) -> None:
    """100 operations of NEON and 30 of SVE per 128 bits; the unit is named after its cores."""
    folder = tmp_path / "sys/bus/event_source/devices/armv8_pmuv3_0"
    folder.mkdir(parents=True)
    (folder / "type").write_text("4\n")
    arm = Processor(cores=(0,), allowed=(0,), implementer=0x41, part=part)
    kernel = PlayedKernel({0x80C1: 100, 0x80C0: 30})

    assert PerfCounters(arm, kernel, tmp_path).read() == {PipeWork("any", "any"): flop}


def test_events_that_took_turns_are_scaled_up(root: Path) -> None:
    """Counted for a quarter of the time: four times as many."""
    kernel = PlayedKernel({0x0F03: 1000}, enabled=400, running=100)

    assert PerfCounters(ZEN_3, kernel, root).read() == {PipeWork("any", "any"): 4000}


def test_an_event_that_was_never_counted_is_not_zero(root: Path) -> None:
    """It was not scheduled yet: no value."""
    assert PerfCounters(ZEN_3, PlayedKernel(running=0), root).read() is None


def test_a_scaled_count_never_falls(root: Path) -> None:
    """4000 was an estimate; 3900 would be a reset to Prometheus."""
    kernel = PlayedKernel({0x0F03: 1000}, enabled=400, running=100)
    counters = PerfCounters(ZEN_3, kernel, root)
    counters.read()
    kernel.enabled = 390

    assert counters.read() == {PipeWork("any", "any"): 4000}


def test_the_real_kernel_counts_a_software_event() -> None:
    """The CPU clock of CPU 0, which needs no hardware counter: nanoseconds since it was opened."""
    kernel = LinuxKernel()
    try:
        descriptor = kernel.open(attributes(1, 0), 0)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK
    except OSError as error:
        pytest.skip(f"the kernel refuses perf events here: {error.strerror}")
    count, enabled, running = 0, 0, 0
    while enabled < 50_000_000:
        count, enabled, running = kernel.read(descriptor)
    kernel.close(descriptor)

    assert running == enabled
    assert count == pytest.approx(enabled, rel=0.01)


def test_a_virtual_machine_hides_its_counters(tmp_path: Path) -> None:
    """No such unit in /sys."""
    with pytest.raises(PerfUnavailableError, match="the virtual machine hides them"):
        PerfCounters(XEON, PlayedKernel(), tmp_path)


def test_descriptors_of_the_rest_of_the_daemon_are_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 processors with 8 events, and 512 others: the limit of 1024 is raised to 1536, if it may be."""
    limits, raised = (1024, 4096), []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, new: raised.append(new))
    many = replace(XEON, cores=tuple(range(128)), allowed=tuple(range(128)))

    PerfCounters(many, PlayedKernel(), root)
    limits = (1024, 1200)
    with pytest.raises(PerfUnavailableError, match="too few file descriptors"):
        PerfCounters(many, PlayedKernel(), root)

    assert raised == [(1536, 4096)]


@pytest.mark.parametrize("refusal", [errno.EACCES, errno.EPERM])
def test_without_permission_it_says_how_to_get_it(root: Path, refusal: int) -> None:
    """And closes what it had opened."""
    kernel = PlayedKernel(refusal=refusal)
    with pytest.raises(PerfUnavailableError, match="perf_event_paranoid is 2") as caught:
        PerfCounters(XEON, kernel, root)

    assert caught.value.remedy is not None
    assert "install.sh --perf" in caught.value.remedy
    assert "--cap-add PERFMON --user 0" in caught.value.remedy
    assert sorted(kernel.closed) == sorted(kernel.opened)


@pytest.mark.parametrize(
    "processor",
    [
        replace(XEON, model=63, flags=frozenset({"avx2"})),  # Haswell
        replace(ZEN_3, family=27),  # no AMD that we know of
        Processor(cores=(0,), implementer=0x41, part=0xD0C),  # Neoverse N1 has no such event
        Processor(cores=(0,), implementer=0x48, part=0xD40),  # not of Arm
    ],
)
def test_a_processor_whose_events_are_not_known_is_not_counted(processor: Processor) -> None:
    """No value is better than a wrong one."""
    with pytest.raises(PerfUnavailableError):
        events_of(processor)


def test_check_says_why_nothing_is_counted() -> None:
    """On any host: it counts, or there is one line with the reason."""
    (result,) = perf_findings(DEFAULTS, [])

    assert result.area == "perf"
    assert result.level in (Level.OK, Level.NOTE)
    assert "FLOP" in result.text


def test_check_says_nothing_where_gpus_are_monitored() -> None:
    """The processor is not sampled there."""
    assert list(perf_findings(DEFAULTS, [{"uuid": "GPU-0"}])) == []
