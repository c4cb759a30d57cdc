"""The bookkeeping around CUDA events, with a torch whose clock is known. No GPU is touched.

What the events say on a real GPU is tested there only (`-m gpu`).
"""

import types

import pytest

from probes import device as device_module
from probes.device import CudaDevice
from probes.kernels import all_kernels
from probes.measure import Workbench, measure
from probes.meter import Meter
from probes.protocol import Busy, Device, Idle, Run


torch = pytest.importorskip("torch")

CLOCK_HERTZ = 1.8e9
LAUNCH_SECONDS = 3e-6
IDLE_GAP_SECONDS = 1e-5


class FakeCuda:
    """A stream whose time passes with what is enqueued: spins by cycles, launches by 3 µs each."""

    def __init__(self):
        self.now = 0.0
        self.selected = []
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = outer.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        self.Event = Event

    def set_device(self, ordinal):
        self.selected.append(ordinal)

    def init(self):
        pass

    def mem_get_info(self, ordinal):
        return (79_600_000_000, 80_000_000_000)

    def get_device_properties(self, ordinal):
        return types.SimpleNamespace(
            multi_processor_count=132, major=9, minor=0, L2_cache_size=50 * 2**20
        )

    def _sleep(self, cycles):
        # Work on an idle stream begins late, within the first mark that is recorded after it.
        self.now += (LAUNCH_SECONDS if self.now else IDLE_GAP_SECONDS) + cycles / CLOCK_HERTZ

    def memory_reserved(self, ordinal):
        return 150_000_000


@pytest.fixture
def cuda(monkeypatch):
    """`probes.device` sees a CUDA whose tensors live on the host."""
    fake = FakeCuda()
    stub = types.SimpleNamespace(
        cuda=fake,
        device=lambda kind, ordinal=0: torch.device("cpu"),
        version=types.SimpleNamespace(cuda="13.0"),
        __version__="2.13",
    )
    monkeypatch.setattr(device_module, "torch", stub)
    return fake


def opened(limit=600_000_000):
    spec = Device(kind="cuda", key="0", free_memory_bytes=80_000_000_000)
    return CudaDevice(spec, 0, limit)


def run_of(cuda, seconds):
    def enqueue(_):
        cuda.now += seconds

    return enqueue


def test_the_clock_is_the_difference_of_two_spins(cuda):
    """300,000 cycles more take 1/6000 s more at 1.8 GHz; both spins' launches cancel out."""
    sent = []
    chunk = opened().chunk(Meter(sent.append, 1.0), run_of(cuda, 0.0002), 0, 3)

    assert chunk.clock_hertz == pytest.approx(1.8e9)
    assert chunk.run_seconds == pytest.approx([0.0002] * 3)
    assert sent[0] == Busy()
    assert sent[1] == Idle(device_seconds=pytest.approx(chunk.device_seconds))


def test_spins_are_charged_with_the_runs(cuda):
    """360,000 cycles and three launches, 209 µs, beside the three runs of 200 µs."""
    chunk = opened().chunk(Meter(lambda _: None, 1.0), run_of(cuda, 0.0002), 0, 3)

    assert chunk.device_seconds == pytest.approx(360_000 / 1.8e9 + 3 * LAUNCH_SECONDS + 0.0006)


def test_loading_is_charged_by_the_second_run(cuda):
    """The first call loads code for two seconds on the host; the device worked 2 x 0.3 ms."""
    times = iter([2.0, 0.0003])

    def enqueue(_):
        cuda.now += next(times)

    meter = Meter(lambda _: None, 1.0)
    opened().load(meter, enqueue)

    assert meter.spent_seconds == pytest.approx(0.0006)


def test_the_context_is_told_by_the_memory_it_took(cuda):
    """80.0 GB were free before and 79.6 are now: 400 MB, and what torch's allocator reserved."""
    assert opened().memory_bytes() == 400_000_000 + 150_000_000


def test_the_arena_fits_the_memory_limit(cuda):
    """Of 600 MB the context has 400 and the workspace 48 MiB: 149.7 MB, of 250 MiB wished for."""
    device = opened()

    assert device.arena.size_bytes == 600_000_000 - 400_000_000 - 48 * 2**20
    assert device.rotation_bytes == device.arena.size_bytes


def test_a_large_context_leaves_the_smallest_arena(cuda):
    """64 MiB, below which no GEMM of interest has two sets of operands."""
    assert opened(limit=450_000_000).arena.size_bytes == 64 * 2**20


def test_a_device_is_selected_before_its_work(cuda):
    """One worker may serve several."""
    device = opened()
    device.select()

    assert cuda.selected == [0, 0]


def test_a_measurement_fills_chunks_of_a_millisecond(cuda):
    """Runs of 0.19 ms: three fit after the spins, of which the first is dropped; 2 + 2 + 2 + 1 count."""
    device = opened()
    kernel = all_kernels()["gemm_fp32"]
    bench = Workbench(device)
    meter = Meter(lambda _: None, 1.0)
    prepared = kernel.prepare(device, meter, (64, 64, 64), None)
    prepared.run = run_of(cuda, 0.00019)
    prepared.verify = lambda device, meter: types.SimpleNamespace(
        digest="", repeats_agree=True, exact=None
    )
    bench._prepared["gemm_fp32", (64, 64, 64), None] = (device.arena.epoch, prepared)
    chunks = []
    timed = device.chunk
    device.chunk = lambda *given: chunks.append(given[3]) or timed(*given)
    request = Run(
        identifier=1,
        kernel="gemm_fp32",
        device=0,
        allowance_seconds=1.0,
        max_chunk_seconds=0.001,
        gap_seconds=0.0,
        timed_runs=7,
        shape=(64, 64, 64),
    )
    result = measure(bench, kernel, request, meter)

    assert chunks == [2, 3, 3, 3, 2]
    assert len(result.run_seconds) == 7
    assert result.executed_runs == 13
    assert result.clock_hertz == pytest.approx(1.8e9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
class TestOnAGpu:
    """What only a GPU can show."""

    @pytest.fixture
    def device(self):
        return CudaDevice(Device(kind="cuda", key="0"), 0, 600_000_000)

    @pytest.mark.parametrize("name", [name for name in all_kernels() if name != "copy_peer"])
    def test_every_kernel_measures_twice_alike(self, device, name):
        """Same bits, and a clock between 0.1 and 4 GHz."""
        kernel = all_kernels()[name]
        meter = Meter(lambda _: None, 10.0)
        if not kernel.available(device, meter):
            pytest.skip("this GPU does not have it")
        bench = Workbench(device)
        request = Run(
            identifier=1,
            kernel=name,
            device=0,
            allowance_seconds=10.0,
            max_chunk_seconds=0.001,
            gap_seconds=0.0,
            timed_runs=7,
        )
        first = measure(bench, kernel, request, meter)
        second = measure(bench, kernel, request, meter)

        assert first.digest == second.digest or first.shape != second.shape
        assert first.repeats_agree
        assert first.exact in (True, None)
        assert first.clock_hertz is None or 1e8 < first.clock_hertz < 4e9
