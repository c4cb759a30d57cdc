"""What is kept of a device's runs from one cycle to the next."""

import pytest

from tests.probes.simulation import Ending, Host


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_failures_in_a_row_end_with_a_measurement(host):
    """Runs that failed count up by kernel, over a contended one, until one is accepted: then they stand at 0."""
    contended = Ending(changes={"run_seconds": (0.001, 0.002, 0.003)})
    host.script += [Ending("out_of_memory"), contended, Ending("out_of_memory")]
    seen = [host.cycle().failures_in_a_row for _ in range(4)]

    assert seen == [{"gemm_bf16": count} for count in (1, 1, 2, 0)]


def test_a_kernel_that_never_failed_is_not_counted(host):
    """Neither before its first run nor after a good one."""
    assert host.cycle().failures_in_a_row == {}
