"""The bookkeeping around CUDA events, with a CUDA whose clocks are known. No GPU is used.

What the events say on a real GPU is tested there only (`-m gpu`).
"""

import types

import pytest

from probes import cuda as cuda_module
from probes.cuda import ARENA_BYTES_MIN, BESIDE_BYTES, CONTEXT_BYTES_MIN, SLACK_BYTES, CudaDevice
from probes.device import Allowance
from probes.kernels import all_kernels
from probes.kernels.copy import PreparedCopy
from probes.kernels.gemm import Gemm, PreparedGemm
from probes.measure import Workbench, measure
from probes.protocol import Busy, Device, Idle, Run
from probes.sizing import gemm_flop, outputs
from tests.probes.simulated_cuda import CONTEXT_BYTES, GAP_SECONDS, START_SECONDS, SimulatedCuda


torch = pytest.importorskip("torch")

ALL_SPINS_SECONDS = 430_000 / 1.8e9


@pytest.fixture
def cuda(monkeypatch):
    """`probes.cuda` sees a CUDA whose tensors live on the host."""
    return SimulatedCuda().install(monkeypatch, cuda_module)


def opened(limit=600_000_000, free=80_000_000_000):
    return CudaDevice(Device(kind="cuda", key="0", free_memory_bytes=free), 0, limit)


def settled(limit=600_000_000, free=80_000_000_000):
    device = opened(limit, free)
    device.settle()
    return device


def silent(allowance=1.0):
    return Allowance(lambda _: None, allowance)


def run_of(cuda, seconds):
    return lambda _: cuda.enqueue(seconds)


def request(kernel, **fields):
    return Run(
        **{
            "identifier": 1,
            "kernel": kernel,
            "device": 0,
            "allowance_seconds": 1.0,
            "max_chunk_seconds": 0.001,
            "gap_seconds": 0.0,
            "timed_runs": 7,
        }
        | fields
    )


class TestChunk:
    def test_runs_are_timed_without_the_gaps_of_launching(self, cuda):
        """The host is ahead by the spins: three runs of 200 µs, each 1 µs after the one before."""
        sent = []
        chunk = opened().chunk(Allowance(sent.append, 1.0), run_of(cuda, 0.0002), 0, 3)

        assert chunk.run_seconds == pytest.approx([0.0002 + GAP_SECONDS] * 3)
        assert sent == [Busy(), Idle(device_seconds=pytest.approx(chunk.device_seconds))]

    def test_spins_are_charged_with_the_runs(self, cuda):
        """430,000 cycles at 1.8 GHz, three runs, the five gaps between, the beginning: all of it."""
        chunk = opened().chunk(silent(), run_of(cuda, 0.0002), 0, 3)

        began = START_SECONDS + 3e-6  # of a call, after the first mark
        assert chunk.device_seconds == pytest.approx(
            ALL_SPINS_SECONDS + 0.0006 + 5 * GAP_SECONDS + began
        )

    def test_loading_is_charged_by_the_second_run(self, cuda):
        """The first call loads code for two seconds on the host; the device worked 2 x 0.3 ms."""
        cuda.stalls.append(("launch", 2.0))
        allowance = silent()
        opened().load(allowance, run_of(cuda, 0.0003))

        assert allowance.spent_seconds == pytest.approx(2 * (0.0003 + GAP_SECONDS), rel=0.01)

    def test_a_device_is_selected_before_its_work(self, cuda):
        """One worker may serve several."""
        device = opened()
        device.select()

        assert cuda.selected == [0, 0]


class TestClock:
    def of(self, cuda, chunks, before=lambda number: None):
        device = opened()
        readings = []
        for number in range(chunks):
            before(number)
            reading = device.chunk(silent(), run_of(cuda, 0.0002), 0, 1).clock
            if reading is not None:
                readings.append(reading)
        return device.clock_hertz(readings), len(readings)

    def test_it_is_the_difference_of_two_spins(self, cuda):
        """300,000 cycles more take 1/6000 s more at 1.8 GHz; both spins' gaps cancel out."""
        clock, _ = self.of(cuda, 1)

        assert clock == pytest.approx(1.8e9)

    @pytest.mark.parametrize("after_seconds", [0.00015, 0.000068])
    def test_a_tenants_slice_does_not_lower_it(self, cuda, after_seconds):
        """In two chunks of four 2 ms are taken out of a spin, the long one or the short one."""

        def tenant(number):
            if number % 2 == 0:
                cuda.slices = [(max(cuda.host, cuda.free_at) + after_seconds, 0.002)]

        clock, _ = self.of(cuda, 4, tenant)

        assert clock == pytest.approx(1.8e9)

    def test_it_is_that_of_most_chunks(self, cuda):
        """One of three at 1.71 GHz: the median is 1.8."""

        def slower(number):
            cuda.clock_hertz = 1.71e9 if number == 1 else 1.8e9

        clock, _ = self.of(cuda, 3, slower)

        assert clock == pytest.approx(1.8e9, rel=0.001)

    @pytest.mark.parametrize("call", ["spin", "record"])
    def test_a_host_that_was_late_says_nothing(self, cuda, call):
        """Kept off for 100 µs between the spins: their marks have a gap, and no clock is reported."""

        def late(number):
            if number == 0:
                cuda.stalls = [(call, 0.0), (call, 0.0001)]

        clock, readings = self.of(cuda, 3, late)

        assert readings == 2
        assert clock == pytest.approx(1.8e9)

    def test_without_a_reading_there_is_none(self, cuda):
        """And none of two spins that took equally long."""
        device = opened()

        assert device.clock_hertz([]) is None
        assert device.clock_hertz([(0.0002, 0.0002)]) is None


class TestMemory:
    def test_the_context_is_the_memory_gone_minus_the_allocators(self, cuda):
        """80.0 GB were free before. 400 MB of context and 70 of code that was loaded, and segments."""
        device = opened()
        cuda.outside_bytes += 70_000_000  # the libraries' kernels, while the device was tried out
        device.settle()

        assert device.memory_bytes() == 470_000_000 + cuda.reserved_bytes

    def test_the_arena_takes_what_is_left_of_the_limit(self, cuda):
        """And with all of it the worker stays below the limit."""
        device = settled()
        left = 600_000_000 - CONTEXT_BYTES - 20 * 2**20 - SLACK_BYTES

        assert device.arena.size_bytes == left
        assert device.rotation_bytes == left
        assert device.memory_bytes() <= 600_000_000

    def test_a_generous_limit_is_not_exhausted(self, cuda):
        """Five times the L2 cache of 50 MiB is enough."""
        assert settled(limit=2_000_000_000).arena.size_bytes == 250 * 2**20

    def test_a_large_context_leaves_the_smallest_arena(self, cuda):
        """64 MiB, below which no GEMM of interest has two sets of operands: the limit is passed."""
        device = settled(limit=450_000_000)

        assert device.arena.size_bytes == ARENA_BYTES_MIN == 64 * 2**20
        assert device.memory_bytes() > 450_000_000

    def test_memory_freed_by_others_does_not_shrink_the_context(self, cuda):
        """10 GB more are free than before: the context counts as the smallest possible one."""
        device = settled(free=70_000_000_000)

        assert device.memory_bytes() == CONTEXT_BYTES_MIN + cuda.reserved_bytes

    def test_a_peer_leaves_room_for_what_is_copied_to_it(self, cuda):
        """With two GPUs each keeps 32 MiB free, for copies from the other one."""
        alone = settled().arena.size_bytes
        cuda.reserved_bytes = 0
        cuda.device_count = lambda: 2

        assert settled().arena.size_bytes == alone - BESIDE_BYTES

    def test_the_blocks_beside_it_are_taken_once(self, cuda):
        """Of 32 MiB, one for each direction; pinned memory is the host's and never given back."""
        device = settled()
        block = device.beside("host_to_device", None)

        assert block.size_bytes == 32 * 2**20
        assert device.beside("host_to_device", None) is block
        assert device.beside("device_to_host", None) is not block


class TestLaunches:
    def test_a_quiet_device_is_launched_fifty_times(self, cuda):
        """Each takes a call, a start of 6 µs, a wait."""
        result = measure(Workbench(settled()), *of_launches(cuda), silent())

        assert len(result.run_seconds) == 50

    def test_a_busy_device_is_not_used_for_fifty_time_slices(self, cuda):
        """Each launch waits 20 ms for a tenant: two to load, one to warm up, three to tell. Not sixty."""
        allowance = silent()
        result = measure(Workbench(settled()), *of_launches(cuda, wait=0.020), allowance)

        assert len(result.run_seconds) == 3
        assert allowance.spent_seconds == pytest.approx(6 * 0.020, rel=0.01)


def of_launches(cuda, wait=0.0):
    """The launch kernel on a CUDA where each launch takes so much longer."""
    kernel = all_kernels()["launch"]
    prepared = types.SimpleNamespace(
        run=run_of(cuda, wait),
        activate=lambda: None,
        verify=lambda device, allowance: types.SimpleNamespace(
            digest="", repeats_agree=True, exact=None
        ),
        shape=(1,),
        work_per_run=1.0,
        rotates_by_stretch=False,
    )

    class Kernel(type(kernel)):
        def prepare(self, device, allowance, shape, peer):
            return prepared

    return Kernel(), request("launch")


class TestMeasurement:
    def test_it_fills_chunks_of_a_millisecond(self, cuda):
        """Runs of 0.2 ms: three fit after the spins, of which the first is dropped; 2 + 2 + 2 + 1 count."""
        device = settled()
        kernel = all_kernels()["gemm_fp32"]
        bench = Workbench(device)
        allowance = silent()
        prepared = kernel.prepare(device, allowance, (64, 64, 64), None)
        prepared.run = run_of(cuda, 0.0002)
        prepared.verify = lambda device, allowance: types.SimpleNamespace(
            digest="", repeats_agree=True, exact=None
        )
        bench._prepared["gemm_fp32", (64, 64, 64), None] = (device.arena.epoch, prepared)
        chunks = []
        timed = device.chunk
        device.chunk = lambda *given: chunks.append(given[3]) or timed(*given)
        result = measure(bench, kernel, request("gemm_fp32", shape=(64, 64, 64)), allowance)

        assert chunks == [2, 3, 3, 3, 2]
        assert len(result.run_seconds) == 7
        assert result.executed_runs == 13
        assert result.clock_hertz == pytest.approx(1.8e9)

    def test_host_memory_counts_as_no_device_time(self):
        """A copy over the bus is checked on both sides; the host's side only by the host."""
        device = types.SimpleNamespace(torch_device=torch.device("cuda", 0), work=None)
        source = torch.arange(16384, dtype=torch.int32).view(torch.uint8)
        target = source.clone()
        verification = PreparedCopy([source], [target], 1).verify(device, silent())

        assert verification.exact
        target[7] ^= 1
        assert not PreparedCopy([source], [target], 1).verify(device, silent()).exact

    def test_tensors_on_the_device_are_summed_there(self):
        """And its time is charged."""
        works = []
        device = types.SimpleNamespace(
            torch_device=torch.device("cpu"),
            work=lambda allowance, task: works.append(task) or task(),
        )
        source = torch.arange(16384, dtype=torch.int32).view(torch.uint8)

        assert PreparedCopy([source], [source.clone()], 1).verify(device, silent()).exact
        assert len(works) == 2

    def test_a_shape_that_no_longer_fits_is_chosen_again(self, cuda, monkeypatch):
        """4096³ in fp64 was measured under another memory limit: 384 MiB do not fit this one's arena."""
        rate_of(cuda, monkeypatch, 30e12)
        kernel = all_kernels()["gemm_fp64"]
        wish = request("gemm_fp64", shape=(4096, 4096, 4096))
        result = measure(Workbench(settled()), kernel, wish, silent())

        assert result.shape != (4096, 4096, 4096)
        assert len(result.run_seconds) == 7


def rate_of(cuda, monkeypatch, flops):
    """GEMMs take 5 µs and what their FLOP take at `flops`; operands are not filled."""

    def bind(self, operands):
        shape = (*operands.c.shape, operands.a.shape[1])
        return lambda: cuda.enqueue(5e-6 + gemm_flop(shape) / flops)

    monkeypatch.setattr(PreparedGemm, "_bind", bind)
    monkeypatch.setattr(
        Gemm,
        "_filled",
        lambda self, device, allowance, shape, sets: self._operands(device, shape, sets),
    )
    monkeypatch.setattr(
        PreparedGemm,
        "verify",
        lambda self, device, allowance: types.SimpleNamespace(
            digest="", repeats_agree=True, exact=None
        ),
    )


class TestSizes:
    @pytest.mark.parametrize(
        ("kernel", "units", "flops"),
        [
            ("gemm_bf16", 132, 700e12),  # H100
            ("gemm_fp8", 148, 3000e12),  # B200
            ("gemm_fp32", 132, 50e12),
            ("gemm_fp64", 132, 55e12),
            ("gemm_bf16", 58, 90e12),  # L4
            ("gemm_fp64", 58, 0.45e12),  # L4, whose fp64 is 1/64 of its fp32
            ("gemm_fp64", 142, 1.3e12),  # L40S
            ("gemm_fp32", 40, 7e12),  # T4
            ("gemm_fp64", 40, 0.24e12),  # T4
            ("gemm_fp64", 148, 1.2e12),  # B300
        ],
    )
    def test_any_pipe_is_measured_within_a_minutes_budget(
        self, cuda, monkeypatch, kernel, units, flops
    ):
        """From the first trial on: no run above 1 ms, all within 15.8 ms; the next time seven runs."""
        cuda.units = units
        rate_of(cuda, monkeypatch, flops)
        bench, allowance, again = Workbench(settled()), silent(0.0158), silent(0.0158)
        first = measure(bench, all_kernels()[kernel], request(kernel), allowance)
        second = measure(bench, all_kernels()[kernel], request(kernel, shape=first.shape), again)

        assert cuda.longest <= 0.001
        assert max(allowance.spent_seconds, again.spent_seconds) <= 0.0158
        assert len(first.run_seconds) >= 3
        assert len(second.run_seconds) == 7

    @pytest.mark.parametrize(
        ("kernel", "flops"), [("gemm_bf16", 700e12), ("gemm_fp8", 1400e12), ("gemm_fp64", 55e12)]
    )
    def test_a_fast_pipe_is_given_something_to_do(self, cuda, monkeypatch, kernel, flops):
        """About 0.1 ms a run, as its operands fit twice: its beginning and end do not count."""
        rate_of(cuda, monkeypatch, flops)
        result = measure(
            Workbench(settled()), all_kernels()[kernel], request(kernel), silent(0.0158)
        )

        assert min(result.run_seconds) > 0.00009

    @pytest.mark.parametrize(
        ("kernel", "flops"),
        [("bf16", 700e12), ("fp8", 1400e12), ("int8", 1400e12), ("fp64", 55e12)],
    )
    def test_whole_waves_fit_the_memory_twice(self, cuda, kernel, flops):
        """In 600 MB beside a context of 400: the result of fp64 is four times as wide as that of bf16."""
        device = settled()
        room = device.arena.size_bytes // 2
        gemm = all_kernels()[f"gemm_{kernel}"]
        shapes = gemm._cuda_shapes(device, flops, 0.001, room)

        assert any(shape[:2] in outputs(132) for shape in shapes)
        assert all(gemm._set_bytes(shape) <= room for shape in shapes)


class TestAvailability:
    def test_a_precision_that_torch_refuses_is_absent(self, cuda, monkeypatch):
        """As `_scaled_mm` is where the compute capability is too low for it."""

        def refuse(self, number):
            raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with …")

        monkeypatch.setattr(PreparedGemm, "run", refuse)

        assert not all_kernels()["gemm_fp8"].available(opened(), silent())

    @pytest.mark.parametrize(
        "text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
    )
    def test_running_out_of_memory_is_not_a_missing_precision(self, cuda, monkeypatch, text):
        """Next time there may be enough."""

        def fail(self, number):
            raise RuntimeError(text)

        monkeypatch.setattr(PreparedGemm, "run", fail)
        with pytest.raises(RuntimeError, match=text):
            all_kernels()["gemm_bf16"].available(opened(), silent())

    def test_a_broken_device_is_not_taken_for_a_missing_precision(self, cuda, monkeypatch):
        """A device error has the same type but persists: it is raised, not taken for a lack."""
        cuda.broken = RuntimeError("CUDA error: uncorrectable ECC error encountered")

        def fail(self, number):
            raise cuda.broken

        monkeypatch.setattr(PreparedGemm, "run", fail)
        with pytest.raises(RuntimeError, match="uncorrectable ECC"):
            all_kernels()["gemm_bf16"].available(opened(), silent())


def test_the_versions_name_all_that_decides_bits(cuda):
    """torch, CUDA, cuBLAS and the driver; here there is neither cuBLAS nor driver."""
    assert settled().versions() == "torch 2.13 cuda 13.0 cublas unknown driver unknown"


def test_the_version_of_cublas_is_asked_of_the_loaded_library(monkeypatch):
    """By the name it was loaded as: libcublasLt.so.13 with CUDA 13."""
    asked = []

    class Library:
        def __init__(self, name):
            asked.append(name)
            self.cublasLtGetVersion = lambda: 130_100

    monkeypatch.setattr(cuda_module.ctypes, "CDLL", Library)

    assert cuda_module.cublas_version("13.0") == "130100"
    assert asked == ["libcublasLt.so.13"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
class TestOnAGpu:
    """Needs a real GPU."""

    @pytest.fixture
    def device(self):
        device = CudaDevice(Device(kind="cuda", key="0"), 0, 600_000_000)
        device.settle()
        return device

    @pytest.mark.parametrize("name", [name for name in all_kernels() if name != "copy_peer"])
    def test_every_kernel_measures_twice_alike(self, device, name):
        """Same bits, and a clock between 0.1 and 4 GHz."""
        kernel = all_kernels()[name]
        allowance = Allowance(lambda _: None, 10.0)
        if not kernel.available(device, allowance):
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
        first = measure(bench, kernel, request, allowance)
        second = measure(bench, kernel, request, allowance)

        assert first.digest == second.digest or first.shape != second.shape
        assert first.repeats_agree
        assert first.exact in (True, None)
        assert first.clock_hertz is None or 1e8 < first.clock_hertz < 4e9
