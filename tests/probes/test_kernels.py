"""The kernels themselves, on the host processor through torch."""

import hashlib

import pytest

from probes.cpu import CpuDevice, cache_size_bytes
from probes.device import (
    PATTERN_LENGTH,
    Allowance,
    AllowanceError,
    Arena,
    ArenaFullError,
    fill,
    pattern,
    repeated,
)
from probes.kernels import all_kernels, kernel_names
from probes.kernels.base import column_sums, digest
from probes.kernels.gemm import Gemm, exact_column_sums
from probes.measure import Workbench, measure
from probes.protocol import Busy, Device, Idle, Run


torch = pytest.importorskip("torch")

GENEROUS = 5.0
GEMMS = ("fp64", "fp32", "fp16", "bf16", "fp8", "int8")


@pytest.fixture(scope="module")
def device():
    torch.set_num_threads(1)
    return CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024), 1)


@pytest.fixture
def sent():
    return []


@pytest.fixture
def allowance(sent):
    return Allowance(sent.append, GENEROUS)


def request(kernel, **fields):
    return Run(
        **{
            "identifier": 1,
            "kernel": kernel,
            "device": 0,
            "allowance_seconds": GENEROUS,
            "max_chunk_seconds": 0.001,
            "gap_seconds": 0.0,
            "timed_runs": 5,
        }
        | fields
    )


class TestRegistry:
    def test_all_kernels_of_the_contract_are_there(self):
        """The metric contract names them."""
        assert set(kernel_names()) == {
            *(f"gemm_{name}" for name in (*GEMMS, "tf32")),
            *(f"copy_{path}" for path in ("device", "host_to_device", "device_to_host", "peer")),
            "launch",
        }

    def test_cheap_and_requested_kernels_come_first(self):
        """On a small budget the first cycle shows the latency and the FLOPS of fp32 and bf16."""
        assert kernel_names()[:3] == ("launch", "gemm_fp32", "gemm_bf16")

    def test_the_host_processor_has_what_torch_can_do_on_it(self, device, allowance):
        """No tf32, no bus to copy over; what it multiplies in itself, its memory, its launches."""
        have = {
            name for name, kernel in all_kernels().items() if kernel.available(device, allowance)
        }

        assert {"gemm_fp64", "gemm_fp32", "copy_device", "launch"} <= have
        assert not have & {
            "gemm_tf32",
            "gemm_fp8",
            "copy_host_to_device",
            "copy_device_to_host",
            "copy_peer",
        }


class TestMeasurement:
    @pytest.mark.parametrize("precision", GEMMS)
    def test_a_gemm_is_measured_and_checked(self, device, allowance, precision):
        """Five timed runs or six times as many, until some agree; FLOP = 2·64³; int8 exact."""
        kernel = all_kernels()[f"gemm_{precision}"]
        if not kernel.available(device, allowance):
            pytest.skip("this torch has no such GEMM on the host processor")
        result = measure(
            Workbench(device), kernel, request(kernel.name, shape=(64, 64, 64)), allowance
        )

        assert 3 <= len(result.run_seconds) <= 6 * 5
        assert result.executed_runs > 5
        assert result.work_per_run == 524_288
        assert result.repeats_agree
        assert result.exact is (True if precision == "int8" else None)
        assert len(result.digest) == 32

    def test_the_same_inputs_give_the_same_bits(self, device, allowance):
        """In another arena, at other addresses, in another order."""
        kernel = all_kernels()["gemm_fp32"]
        first = measure(
            Workbench(device), kernel, request("gemm_fp32", shape=(64, 64, 64)), allowance
        )
        other = CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=2**20), 1)
        other.arena.take((1000,), torch.uint8)
        second = measure(
            Workbench(other), kernel, request("gemm_fp32", shape=(64, 64, 64)), allowance
        )

        assert first.digest == second.digest

    def test_a_copy_counts_bytes_read_and_written(self, device, allowance):
        """A piece of 1 MiB moves 2 MiB."""
        kernel = all_kernels()["copy_device"]
        result = measure(
            Workbench(device), kernel, request("copy_device", shape=(2**20,)), allowance
        )

        assert result.work_per_run == 2 * 2**20
        assert result.exact is True

    def test_a_launch_is_timed_one_by_one(self, device, allowance):
        """At most 50 of them; work is 1, so that the time is the value."""
        result = measure(Workbench(device), all_kernels()["launch"], request("launch"), allowance)

        assert 3 <= len(result.run_seconds) <= 50
        assert result.work_per_run == 1.0

    def test_a_chosen_gemm_is_short(self, device, allowance):
        """Its estimated time is within half of the chunk: 2MNK over the measured speed."""
        kernel = all_kernels()["gemm_fp32"]
        result = measure(Workbench(device), kernel, request("gemm_fp32"), allowance)

        assert result.work_per_run == 2.0 * result.shape[0] ** 3
        assert min(result.run_seconds) < 0.001

    def test_the_device_time_is_reported_as_it_passes(self, device, sent, allowance):
        """Every Busy is followed by its Idle, and the Idles add up to what was spent."""
        measure(Workbench(device), all_kernels()["gemm_fp32"], request("gemm_fp32"), allowance)
        idles = sent[1::2]

        assert all(isinstance(each, Busy) for each in sent[::2])
        assert all(isinstance(each, Idle) for each in idles)
        assert sum(each.device_seconds for each in idles) == pytest.approx(allowance.spent_seconds)

    def test_an_allowance_that_is_too_small_is_reported(self, device, sent):
        """10 µs hold no measurement, and hardly anything was done about it."""
        small = Allowance(sent.append, 1e-5)
        with pytest.raises(AllowanceError):
            measure(Workbench(device), all_kernels()["gemm_fp32"], request("gemm_fp32"), small)

    def test_operands_stay_prepared(self, device, allowance):
        """A second request finds the first one's operands, until the arena is taken back."""
        bench = Workbench(device)
        kernel = all_kernels()["gemm_fp32"]
        first, new = bench.prepared(kernel, (64, 64, 64), None, allowance)
        again, new_again = bench.prepared(kernel, (64, 64, 64), None, allowance)
        device.arena.reset()
        after, new_after = bench.prepared(kernel, (64, 64, 64), None, allowance)

        assert (new, new_again, new_after) == (True, False, True)
        assert first is again is not after

    def test_kernels_share_a_full_arena(self, device, allowance):
        """One that does not fit beside the others takes it over."""
        bench = Workbench(device)
        for name, shape in (("copy_device", (2**20,)), ("gemm_fp64", (512, 512, 512))) * 2:
            prepared, _ = bench.prepared(all_kernels()[name], shape, None, allowance)
            prepared.run(0)

        assert device.arena.free_bytes >= 0


class TestCorruption:
    def prepared(self, device, allowance, precision):
        device.arena.reset()
        kernel = all_kernels()[f"gemm_{precision}"]
        if not kernel.available(device, allowance):
            pytest.skip("this torch has no such GEMM on the host processor")
        device.arena.reset()
        made = kernel.prepare(device, allowance, (64, 64, 64), None)
        for number in range(len(made.sets)):
            made.run(number)
        return made

    @pytest.mark.parametrize("precision", GEMMS)
    @pytest.mark.parametrize("bit", [0, 7])
    def test_one_flipped_bit_is_seen(self, device, allowance, precision, bit):
        """In one element of one of the repeats, lowest bit or highest of a byte."""
        made = self.prepared(device, allowance, precision)
        made.sets[1].c.view(torch.uint8)[5, 3] ^= 1 << bit
        verification = made.verify(device, allowance)

        assert not verification.repeats_agree
        assert verification.exact is (False if precision == "int8" else None)

    def test_a_fault_in_every_repeat_changes_the_digest(self, device, allowance):
        """All agree with each other, but not with what they were."""
        made = self.prepared(device, allowance, "fp32")
        good = made.verify(device, allowance)
        for number, operands in enumerate(made.sets):
            made.run(number)
            operands.c.view(torch.int32)[0, 0] ^= 1
        bad = made.verify(device, allowance)

        assert bad.repeats_agree
        assert bad.digest != good.digest

    def test_integers_are_exact_without_an_earlier_result(self, device, allowance):
        """A multiplier that was always wrong is detected by the host's integers."""
        made = self.prepared(device, allowance, "int8")
        for operands in made.sets:
            operands.c[10, 20] += 1

        assert made.verify(device, allowance).exact is False

    def test_a_copy_that_lost_a_bit_is_seen(self, device, allowance):
        """Source and target no longer agree."""
        device.arena.reset()
        made = all_kernels()["copy_device"].prepare(device, allowance, (2**20,), None)
        made.run(0)
        made._pairs[0][1][12345] ^= 1

        assert made.verify(device, allowance).exact is False

    def test_the_exact_sums_are_those_of_the_product(self):
        """Against the whole product in 64-bit integers."""
        a, b = pattern(torch.int8, 1), pattern(torch.int8, 2)
        product = (
            repeated(a, 40 * 24).view(40, 24).long() @ repeated(b, 56 * 24).view(56, 24).long().t()
        )

        assert torch.equal(exact_column_sums((40, 56, 24), a, b), product.sum(dim=0))


class TestArena:
    def test_all_operands_are_aligned_and_inside_the_block(self):
        """At 4096 bytes, without overlap, until it is full."""
        arena = Arena(torch.device("cpu"), 16384)
        first, second = arena.take((10,), torch.float32), arena.take((3, 5), torch.int8)

        assert first.data_ptr() % 4096 == second.data_ptr() % 4096 == 0
        assert second.data_ptr() - first.data_ptr() == 4096
        assert arena.free_bytes == 8192
        with pytest.raises(ArenaFullError, match="8192 left"):
            arena.take((8193,), torch.uint8)

    def test_a_reset_clears_everything(self):
        """And a new epoch shows it."""
        arena = Arena(torch.device("cpu"), 4096)
        arena.take((1,), torch.uint8)
        arena.reset()

        assert arena.epoch == 1
        assert arena.free_bytes == 4096

    def test_filling_repeats_the_pattern(self):
        """2.5 repetitions of a pattern of four."""
        tensor = torch.zeros(10, dtype=torch.int8)
        fill(tensor, torch.tensor([1, 2, 3, 4], dtype=torch.int8))

        assert tensor.tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]

    def test_filling_equals_repeating_on_the_host(self):
        """For a length that is no multiple, in a type that numpy does not have."""
        values = pattern(torch.float8_e4m3fn, 1)
        tensor = torch.zeros(PATTERN_LENGTH * 2 + 77, dtype=torch.float8_e4m3fn)
        fill(tensor, values)

        assert torch.equal(
            tensor.view(torch.uint8), repeated(values, tensor.numel()).view(torch.uint8)
        )

    def test_the_pattern_is_random_and_fixed(self):
        """Normal numbers, mean 0 and deviation 1, the same in every process and release."""
        values = pattern(torch.float64, 1)

        assert abs(values.mean().item()) < 0.01
        assert abs(values.std().item() - 1) < 0.01
        assert torch.equal(values, pattern(torch.float64, 1))
        assert not torch.equal(values, pattern(torch.float64, 2))


class TestSums:
    def test_column_sums_are_those_of_the_bits(self):
        """1.0 is 0x3F800000 and 2.0 is 0x40000000; their sum as integers is 2,139,095,040."""
        sums = column_sums(torch.tensor([[1.0], [2.0]]))

        assert sums.tolist() == [0x3F800000 + 0x40000000]

    def test_a_digest_names_the_sums(self):
        """BLAKE2b of their 64-bit little-endian bytes."""
        expected = hashlib.blake2b((5).to_bytes(8, "little"), digest_size=16).hexdigest()

        assert digest(torch.tensor([5])) == expected


def test_the_cache_sizes_come_from_the_kernel():
    """Where sysfs has them: a second level of 128 KiB to 64 MiB."""
    size = cache_size_bytes(2)

    assert size is None or 2**17 <= size <= 2**26


def test_kernels_are_named_once():
    """A precision gives its kernel's name and label."""
    kernel = all_kernels()["gemm_fp8"]

    assert isinstance(kernel, Gemm)
    assert kernel.info.label == "fp8"
    assert kernel.info.quantity == "flops"
