"""SM time by process: every driver sample counts once, and garbage is ignored."""

from types import SimpleNamespace

import pytest

from exporter.collect.nvml import processes
from exporter.collect.nvml.errors import NotSupported, NvmlError, Transient
from exporter.collect.nvml.library import DeviceCalls
from exporter.collect.nvml.processes import ProcessUtilization


NEWER, OLDER = "nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization"
SECOND = 1_000_000


def sample(pid: int, at_us: int, percent: int) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, timeStamp=at_us, smUtil=percent)


class Driver:
    """Answers each call with the next entry of its list; a number is an error code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []
        monkeypatch.setattr(processes, "call", self.call)

    def call(self, symbol: str, _handle: object, seen_us: int) -> list:
        self.asked.append((symbol, seen_us))
        answer = self.answers[symbol].pop(0)
        if isinstance(answer, NvmlError):
            raise answer
        return answer


@pytest.fixture
def calls() -> DeviceCalls:
    return DeviceCalls(object(), device="0")


def test_samples_add_up_by_their_timestamps(monkeypatch, calls) -> None:
    """50 % for 0.5 s and 25 % for 1 s are 0.5 SM seconds; a repeated sample adds nothing."""
    again = sample(7, 10 * SECOND, 50)
    Driver(
        monkeypatch,
        **{
            NEWER: [
                [sample(7, 9_500_000, 0)],
                [again],
                [again, sample(7, 11 * SECOND, 25)],
            ]
        },
    )
    utilization = ProcessUtilization()

    assert utilization.read(calls) == {7: 0.0}
    assert utilization.read(calls) == pytest.approx({7: 0.25})
    assert utilization.read(calls) == pytest.approx({7: 0.5})


def test_a_process_that_rested_is_charged_for_its_last_sample_alone(monkeypatch, calls) -> None:
    """The driver does not sample idle processes: 80 % after an hour without samples is at most 1 s."""
    Driver(
        monkeypatch,
        **{NEWER: [[sample(7, SECOND, 0)], [sample(7, 3600 * SECOND, 80)]]},
    )
    utilization = ProcessUtilization()
    utilization.read(calls)

    assert utilization.read(calls) == pytest.approx({7: 0.8})


def test_no_one_worked(monkeypatch, calls) -> None:
    """NOT_FOUND is an answer, not an error: nothing is added, and nothing is counted as failed."""
    not_found = Transient(NEWER, 6)
    Driver(monkeypatch, **{NEWER: [[sample(7, SECOND, 50)], not_found]})
    utilization = ProcessUtilization()
    first = utilization.read(calls)

    assert utilization.read(calls) == first
    assert not calls.errors


def test_an_older_driver_is_asked_by_its_older_call(monkeypatch, calls) -> None:
    """A driver that has neither call reports nothing."""
    driver = Driver(
        monkeypatch,
        **{
            NEWER: [NotSupported(NEWER, 13), NotSupported(NEWER, 13)],
            OLDER: [[sample(7, SECOND, 50)], [sample(7, 2 * SECOND, 50)]],
        },
    )
    utilization = ProcessUtilization()
    utilization.read(calls)
    utilization.read(calls)
    assert [symbol for symbol, _seen in driver.asked] == [NEWER, OLDER, OLDER]
    assert driver.asked[-1] == (OLDER, SECOND)

    Driver(monkeypatch, **{NEWER: [NotSupported(NEWER, 3)], OLDER: [NotSupported(OLDER, 3)]})
    assert ProcessUtilization().read(DeviceCalls(object(), device="1")) is None


def test_garbage_is_left_out_and_counted(monkeypatch, calls) -> None:
    """Pid 0, pids beyond Linux's limit, and more than 100 %."""
    Driver(
        monkeypatch,
        **{
            NEWER: [
                [sample(7, SECOND, 0)],
                [
                    sample(0, 2 * SECOND, 50),
                    sample(2**31, 2 * SECOND, 50),
                    sample(8, 2 * SECOND, 2**32 - 1),
                    sample(7, 2 * SECOND, 50),
                ],
            ]
        },
    )
    utilization = ProcessUtilization()
    utilization.read(calls)

    assert utilization.read(calls) == pytest.approx({7: 0.5})
    assert calls.errors["implausible"] == 3


def test_the_number_of_processes_is_bounded(monkeypatch, calls) -> None:
    """A host that starts processes for months does not grow: the oldest are forgotten."""
    Driver(
        monkeypatch,
        **{NEWER: [[sample(pid, pid * SECOND, 50)] for pid in range(1, 1100)]},
    )
    utilization = ProcessUtilization()
    for _ in range(1, 1100):
        seconds = utilization.read(calls)

    assert len(seconds) == 1024
    assert 1099 in seconds
    assert 1 not in seconds
