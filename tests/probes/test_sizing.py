"""Shapes, worked by hand."""

import pytest

from probes.sizing import CUBE_SIZES, TILES, core_shape, depth, gemm_flop, outputs, slow_shapes


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


def test_a_slow_pipe_gets_one_wave_of_small_tiles():
    """58 SMs: 7 x 8 tiles of 64; 0.45 ms at 0.45 TFLOP/s are 202 MFLOP, K = 441, of which 384."""
    wave, cube = slow_shapes(58, 0.45e12, 0.00045)

    assert wave == (448, 512, 384)
    assert cube == (448, 448, 448)


def test_the_slowest_pipe_gets_a_cube():
    """At 10 GFLOP/s 4.5 MFLOP: a wave of 56 tiles would be no deeper than 9."""
    assert slow_shapes(58, 1e10, 0.00045) == ((128, 128, 128),)


@pytest.mark.parametrize("units", [14, 40, 58, 72, 142, 148])
@pytest.mark.parametrize("flops", [0.1e12, 0.45e12, 1.3e12, 5e12])
def test_slow_shapes_take_no_longer_than_they_may(units, flops):
    """And their sizes are multiples of 64, which every kernel takes."""
    for shape in slow_shapes(units, flops, 0.00045):
        assert gemm_flop(shape) <= 0.00045 * flops
        assert all(size % 64 == 0 for size in shape)
    assert all(size % 64 == 0 for size in CUBE_SIZES)


def test_depth_fills_the_time():
    """At 800 TFLOP/s, 0.2 ms are 160 GFLOP: K = 160e9 / (2·2048²) = 19,073, of which 16,384 at most."""
    assert (
        depth(2048, 2048, 8e14, 0.0002, bytes_max=10**9, element_bytes=2, output_bytes=4) == 16384
    )
    assert depth(2048, 2048, 8e14, 0.0001, bytes_max=10**9, element_bytes=2, output_bytes=4) == 9216


def test_depth_leaves_room_for_a_wide_result():
    """fp64: 80 MiB less 33 MiB of output, over 4352 rows of 8 bytes: K = 1415, of which 1024."""
    assert (
        depth(1536, 2816, 8e13, 0.001, bytes_max=80 * 2**20, element_bytes=8, output_bytes=8)
        == 1024
    )


def test_depth_fits_the_memory():
    """64 MiB less 16 MiB of output, over 4096 rows of 2 bytes: K = 6144."""
    assert (
        depth(2048, 2048, 8e14, 0.0002, bytes_max=64 * 2**20, element_bytes=2, output_bytes=4)
        == 6144
    )


def test_depth_has_a_floor():
    """Below 1024 the operands' tiles are not worth it."""
    assert depth(4096, 4096, 1e12, 0.0002, bytes_max=10**9, element_bytes=8, output_bytes=8) == 1024


@pytest.mark.parametrize(
    ("trial_seconds", "n"),
    [
        (0.00025, 192),  # the trial takes the wanted time
        (0.00013, 256),  # 192·(250/130)^⅓ = 239: fp32 with AVX2 at 4 GHz
        (0.00003, 384),  # 192·(250/30)^⅓ = 389: bf16 with AVX-512
        (0.000007, 640),  # 192·(250/7)^⅓ = 632: AMX
        (0.002, 64),  # 192·(1/8)^⅓ = 96, as near to 64 as to 128: the smaller one
        (1.0, 64),
    ],
)
def test_a_core_is_measured_with_a_cube_of_a_quarter_millisecond(trial_seconds, n):
    """The time grows with the third power of the size; 192³ was tried."""
    assert core_shape(trial_seconds) == (n, n, n)
