"""Shapes, worked by hand."""

import pytest

from probes.sizing import TILES, cpu_shapes, depth, gemm_flop, outputs


def test_flop_of_a_gemm():
    """2·M·N·K: 2·2·3·4 = 48."""
    assert gemm_flop((2, 3, 4)) == 48


@pytest.mark.parametrize("units", [58, 84, 108, 114, 132, 148, 170, 188])
def test_outputs_fill_whole_waves(units):
    """For every GPU: with one of the tiles, at least 95 % of the last wave's SMs have one."""
    for m, n in outputs(units):
        fills = []
        for tile_m, tile_n in TILES:
            tiles = (m / tile_m) * (n / tile_n)
            waves = -(-tiles // units)
            fills.append(tiles / (waves * units))
        assert max(fills) >= 0.95
        assert max(m, n) <= 2 * min(m, n)


def test_the_h100_gets_its_132_tiles():
    """12 x 128 by 11 x 256 is exactly one wave on 132 SMs."""
    assert (1536, 2816) in outputs(132)


def test_depth_fills_the_time():
    """At 800 TFLOP/s, 0.2 ms are 160 GFLOP: K = 160e9 / (2·2048²) = 19,073, of which 16,384 at most."""
    assert depth(2048, 2048, 8e14, 0.0002, bytes_max=10**9, element_bytes=2) == 16384
    assert depth(2048, 2048, 8e14, 0.0001, bytes_max=10**9, element_bytes=2) == 9216


def test_depth_fits_the_memory():
    """64 MiB less 16 MiB of output, over 4096 rows of 2 bytes: K = 6144."""
    assert depth(2048, 2048, 8e14, 0.0002, bytes_max=64 * 2**20, element_bytes=2) == 6144


def test_depth_has_a_floor():
    """Below 1024 the operands' tiles do not pay."""
    assert depth(4096, 4096, 1e12, 0.0002, bytes_max=10**9, element_bytes=8) == 1024


def test_cubes_for_a_processor():
    """35 GFLOP/s in 0.45 ms are 15.75 MFLOP: 192³ (14.2) fits, 224³ (22.5) does not."""
    assert cpu_shapes(35e9, 0.00045) == ((128,) * 3, (160,) * 3, (192,) * 3)


def test_a_slow_type_gets_the_smallest():
    """1 GFLOP/s does not even do 32³ in 10 µs."""
    assert cpu_shapes(1e9, 0.00001) == ((32,) * 3,)
