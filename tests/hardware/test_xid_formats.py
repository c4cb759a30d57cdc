"""XIDs through whichever calls the driver has: with the real daemon."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.fake_nvml import H100, FakeNvml


CONFIG = """
sampling: {interval: 250ms}
sources: {dcgm: "off"}
probes: {enabled: false}
"""
XIDS = "flopwatch_xid_errors_total"
OPERATIONAL = 1 << 63  # the fake's GPU has "GPU operational events"
XID_BIT = 0x8
FUNCTION_NOT_FOUND, NOT_SUPPORTED = 13, 3
BITS = H100
BOTH = replace(H100, supported_event_types=H100.supported_event_types | OPERATIONAL)
SUCCESSOR = replace(H100, supported_event_types=H100.supported_event_types & ~XID_BIT | OPERATIONAL)


def counted(scrape: Scrape) -> dict[tuple[str, str], float]:
    return {
        (dict(labels)["gpu"], dict(labels)["xid"]): value
        for labels, value in scrape.series(XIDS).items()
    }


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ((), FUNCTION_NOT_FOUND),
        (("nvmlEventSetWait_v2",), FUNCTION_NOT_FOUND),
        (("nvmlEventSetWait_v2",), NOT_SUPPORTED),
        (("nvmlEventSetWait_v2", "nvmlEventSetWait_v3"), FUNCTION_NOT_FOUND),
    ],
)
def test_xids_come_by_any_wait(tmp_path: Path, missing: tuple[str, ...], code: int) -> None:
    """From old drivers and new ones; no incident counts twice."""
    with FakeNvml([BITS, BOTH], tmp_path) as fake:
        for function in missing:
            fake.fail(function, code)
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total("flopwatch_gpu_up") == 2)
            daemon.wait_for(lambda: fake.registered_for_events(0, 1))
            for gpu, xid in ((0, 79), (1, 48), (1, 31), (1, 31)):
                fake.xid(gpu, xid)
            scrape = daemon.wait_until(lambda s: s.total(XIDS) >= 4)

    assert counted(scrape) == {("0", "79"): 1, ("1", "48"): 1, ("1", "31"): 2}


def test_xids_come_as_operational_events_where_there_are_no_event_bits(tmp_path: Path) -> None:
    """One GPU has only the new call, the other has both and reports each incident in both formats."""
    with (
        FakeNvml([SUCCESSOR, BOTH], tmp_path) as fake,
        DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon,
    ):
        daemon.wait_until(lambda s: s.total("flopwatch_gpu_up") == 2)
        daemon.wait_for(lambda: fake.registered_for_events(0, 1))
        for gpu, xid in ((0, 79), (0, 79), (1, 48)):
            fake.xid(gpu, xid)
        scrape = daemon.wait_until(lambda s: s.total(XIDS) >= 3)
        log = daemon.log

    assert counted(scrape) == {("0", "79"): 2, ("1", "48"): 1}
    assert "xid_events_not_available" not in log


def test_a_gpu_without_xid_events_is_named_in_the_log(tmp_path: Path) -> None:
    """It does not affect the other GPUs."""
    neither = replace(H100, supported_event_types=H100.supported_event_types & ~XID_BIT)
    with (
        FakeNvml([neither, BITS], tmp_path) as fake,
        DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon,
    ):
        daemon.wait_for(lambda: "event=xid_events_not_available" in daemon.log)
        daemon.wait_for(lambda: fake.registered_for_events(1))
        fake.xid(1, 13)
        scrape = daemon.wait_until(lambda s: s.total(XIDS) >= 1)

    assert counted(scrape) == {("1", "13"): 1}
