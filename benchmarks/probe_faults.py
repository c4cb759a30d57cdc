"""Which faults of a GPU's arithmetic the fixed and the model-shaped GEMM probes find.

    python -m benchmarks.probe_faults [--injections 40] [--model config.json]

GEMMs run on the host processor through the probes' own kernels, in the shapes that an H100 gets.
Faults are put into their results, and the probes' own checks look at them: repetitions against each
other, the first result's digest, and the exact integers of int8. The output is the share of the
injected faults that each kind of probe finds.

A fault may depend on the tile of the result (128 x 256, as cuBLAS prefers), the SM that computes it
(tile number modulo 132), and the precision. It is an assumption that faults of real GPUs fall into
these classes.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.inference.models import matrix_products
from exporter.inference.models.files import load_model
from probes.cpu import CpuDevice
from probes.device import Allowance
from probes.facts import DeviceFacts, ModelGemm
from probes.kernels import all_kernels
from probes.kernels.gemm import PreparedGemm
from probes.protocol import Device
from probes.sizing import Shape, model_shape


MODEL = Path(__file__).parent.parent / "tests" / "evidence" / "qwen3-4b.json"
SMS = 132
TILE_M, TILE_N = 128, 256
MAX_CHUNK_SECONDS = 0.001
# Whole tiles for whole waves of 132 SMs, as `probes.sizing` finds them; the depth is shortened, for a processor.
FIXED_OUTPUT = (11 * TILE_M, 12 * TILE_N)
FIXED_DEPTH = 512
FIXED_PRECISIONS = ("bf16", "fp32", "int8")
H100 = DeviceFacts(
    key="0",
    uuid="GPU-0",
    name="NVIDIA H100 80GB HBM3",
    kind="cuda",
    peak_flops={"bf16": 989.4e12},
    sm_count=SMS,
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A GEMM that ran correctly, and what its checks knew then."""

    precision: str
    shape: Shape
    made: PreparedGemm
    digest: str

    @property
    def outputs(self) -> list[Any]:
        """The results of all repetitions."""
        return [operands.c for operands in self.made.sets]

    def tiles(self) -> Iterator[tuple[int, slice, slice]]:
        """The number of each tile of the result, and where it is; tiles at the edges may be cut."""
        rows, columns = self.shape[:2]
        number = 0
        for top in range(0, rows, TILE_M):
            for left in range(0, columns, TILE_N):
                yield number, slice(top, top + TILE_M), slice(left, left + TILE_N)
                number += 1


Fault = Callable[[random.Random, Probe], bool]
"""Puts one fault into a probe's results; False where the probe does not meet it.

The random numbers are those of the fault: the same for each probe."""


def single_bit(chance: random.Random, probe: Probe) -> bool:
    """One bit of one element of one repetition."""
    c = probe.outputs[chance.randrange(2)]
    raw = c.view(torch.uint8)
    row, column = chance.randrange(raw.shape[0]), chance.randrange(raw.shape[1])
    raw[row, column] ^= 1 << chance.randrange(8)
    return True


def not_a_number(chance: random.Random, probe: Probe) -> bool:
    """One element of one repetition is NaN; integers have none."""
    c = probe.outputs[chance.randrange(2)]
    if not c.is_floating_point():
        return False
    c[chance.randrange(c.shape[0]), chance.randrange(c.shape[1])] = float("nan")
    return True


def stuck_lane(chance: random.Random, probe: Probe) -> bool:
    """In every 32nd column a bit of the mantissa is always 1, in all repetitions."""
    lane, bit = chance.randrange(32), chance.randrange(4)
    changed = False
    for c in probe.outputs:
        raw = c.view(torch.uint8)
        width = c.element_size()
        before = raw[:, lane * width :: 32 * width].clone()
        raw[:, lane * width :: 32 * width] |= 1 << bit
        changed |= not torch.equal(before, raw[:, lane * width :: 32 * width])
    return changed


def wrong_tile(chance: random.Random, probe: Probe) -> bool:
    """A tile of the result holds another one's numbers, in all repetitions."""
    whole = [
        (rows, columns)
        for _number, rows, columns in probe.tiles()
        if rows.stop <= probe.shape[0] and columns.stop <= probe.shape[1]
    ]
    if len(whole) < 2:
        return False
    (to_rows, to_columns), (rows, columns) = chance.sample(whole, 2)
    for c in probe.outputs:
        c[to_rows, to_columns] = c[rows, columns].clone()
    return True


def edge_tile(chance: random.Random, probe: Probe) -> bool:
    """The kernel's path for tiles that are cut drops its last column."""
    cut = [
        (rows, columns)
        for _number, rows, columns in probe.tiles()
        if rows.stop > probe.shape[0] or columns.stop > probe.shape[1]
    ]
    if not cut:
        return False
    rows, columns = chance.choice(cut)
    for c in probe.outputs:
        c[rows, columns][:, -1] = 0
    return True


def one_sm(chance: random.Random, probe: Probe) -> bool:
    """One of the 132 SMs gets the last bit of its first element wrong, in all repetitions."""
    broken = chance.randrange(SMS)
    tiles = [place for place in probe.tiles() if place[0] % SMS == broken]
    for _number, rows, columns in tiles:
        for c in probe.outputs:
            c[rows, columns].view(torch.uint8)[0, 0] ^= 1
    return bool(tiles)


def integer_pipe(chance: random.Random, probe: Probe) -> bool:
    """The multipliers of one precision that the model does not use: int8."""
    if probe.precision != "int8":
        return False
    for c in probe.outputs:
        c[chance.randrange(c.shape[0]), chance.randrange(c.shape[1])] += 1
    return True


CLASSES: dict[str, Fault] = {
    "single bit flip, once": single_bit,
    "NaN, once": not_a_number,
    "stuck lane": stuck_lane,
    "wrong tile": wrong_tile,
    "wrong edge tile": edge_tile,
    "one wrong SM of 132": one_sm,
    "multipliers of int8": integer_pipe,
}


def prepared(precision: str, shape: Shape, device: CpuDevice) -> Probe:
    """A GEMM of two repetitions that has run correctly."""
    allowance = Allowance(lambda _message: None, float("inf"))
    device.arena.reset()
    kernel = all_kernels()[f"gemm_{precision}"]
    made = kernel.prepare(device, allowance, shape, None)
    assert isinstance(made, PreparedGemm)
    made.activate()
    for number in range(len(made.sets)):
        made.run(number)
    good = made.verify(device, allowance)
    if not good.repeats_agree or good.exact is False:
        raise RuntimeError(f"this processor computes {precision} wrongly")
    return Probe(precision, shape, made, good.digest)


def is_found(probe: Probe, device: CpuDevice) -> bool:
    """Whether the probes' checks detect that the present results are wrong."""
    allowance = Allowance(lambda _message: None, float("inf"))
    probe.made._written = set(range(len(probe.made.sets)))
    seen = probe.made.verify(device, allowance)
    return not seen.repeats_agree or seen.exact is False or seen.digest != probe.digest


def found_by(
    shapes: Sequence[tuple[str, Shape]], injections: int, device: CpuDevice
) -> dict[str, list[bool]]:
    """For each class and injection, whether any of these probes finds it."""
    found = {name: [False] * injections for name in CLASSES}
    for precision, shape in shapes:
        probe = prepared(precision, shape, device)
        good = [c.clone() for c in probe.outputs]
        for name, fault in CLASSES.items():
            for number in range(injections):
                if found[name][number]:
                    continue
                met = fault(random.Random(number), probe)
                found[name][number] = met and is_found(probe, device)
                if met:
                    for c, before in zip(probe.outputs, good, strict=True):
                        c.copy_(before)
    return found


def fixed_shapes() -> list[tuple[str, Shape]]:
    """The fixed probes' GEMMs."""
    return [(precision, (*FIXED_OUTPUT, FIXED_DEPTH)) for precision in FIXED_PRECISIONS]


def model_shapes(config: Path) -> list[tuple[str, Shape]]:
    """The GEMMs that a model's products get on an H100; their precision is one that torch multiplies here."""
    products = matrix_products(load_model(config))
    gemms = [ModelGemm(each.precision, each.n, each.k) for each in products]
    return [
        (gemm.precision, model_shape(gemm, H100, MAX_CHUNK_SECONDS))
        for gemm in gemms
        if gemm.base in all_kernels()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe_faults", description=__doc__)
    parser.add_argument("--injections", type=int, default=40, help="of each class")
    parser.add_argument("--model", type=Path, default=MODEL, help="config.json of the model served")
    options = parser.parse_args(arguments)
    device = CpuDevice(Device(kind="cpu", key="cpu0", l2_bytes=512 * 1024), 2)
    kinds = {"fixed": fixed_shapes(), "shaped": model_shapes(options.model)}
    results = {}
    for kind, shapes in kinds.items():
        names = ", ".join(f"{precision} {'x'.join(map(str, shape))}" for precision, shape in shapes)
        print(f"{kind}: {names}")
        results[kind] = found_by(shapes, options.injections, device)
    print("\n| fault | fixed | shaped | both together |\n| --- | ---: | ---: | ---: |")
    for name in CLASSES:
        fixed, shaped = results["fixed"][name], results["shaped"][name]
        either = [one or other for one, other in zip(fixed, shaped, strict=True)]
        cells = (f"{sum(hits) / len(hits):.0%}" for hits in (fixed, shaped, either))
        print(f"| {name} | {' | '.join(cells)} |")
    for kind, found in results.items():
        whole = sum(all(hits) for hits in found.values())
        print(f"{kind}: {whole} of {len(CLASSES)} classes found in every case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
