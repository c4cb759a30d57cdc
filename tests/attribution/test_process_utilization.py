"""SM time by process: every driver sample counts once, and garbage is ignored."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from exporter.collect.nvml import processes
from exporter.collect.nvml.library import DeviceCalls
from exporter.collect.nvml.processes import ProcessUtilization


NEWER, OLDER = "nvmlDeviceGetProcessesUtilizationInfo", "nvmlDeviceGetProcessUtilization"
SECOND = 1_000_000
NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND = 3, 6, 13


def sample(pid: int, at_us: int, percent: int) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, timeStamp=at_us, smUtil=percent)


class Driver:
    """Answers each call with the next entry of its list, as the C library does; a number is an error code.

    The layouts are pynvml's. Where there is no room for the answer, it says how much it needs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []
        monkeypatch.setattr(processes, "call_symbol", self.call_symbol)

    def call_symbol(self, symbol: str, _handle: object, *arguments: Any) -> int:
        if symbol == NEWER:
            request = ctypes.cast(
                arguments[0], ctypes.POINTER(pynvml.c_nvmlProcessesUtilizationInfo_v1_t)
            ).contents
            assert request.version == pynvml.ProcessesUtilizationInfo_v1
            count, seen_us = request.processSamplesCount, request.lastSeenTimeStamp
            entries: Any = request.procUtilArray
        else:
            entries = ctypes.cast(
                arguments[0], ctypes.POINTER(pynvml.c_nvmlProcessUtilizationSample_t)
            )
            count, seen_us = arguments[1]._obj.value, arguments[2].value
        self.asked.append((symbol, seen_us))
        answer = self.answers[symbol][0]
        if isinstance(answer, int):
            self.answers[symbol].pop(0)
            return answer
        if symbol == NEWER:
            request.processSamplesCount = len(answer)
        else:
            arguments[1]._obj.value = len(answer)
        if len(answer) > count:
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for position, entry in enumerate(self.answers[symbol].pop(0)):
            for name, value in vars(entry).items():
                setattr(entries[position], name, value)
        return pynvml.NVML_SUCCESS


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
    Driver(monkeypatch, **{NEWER: [[sample(7, SECOND, 50)], NOT_FOUND]})
    utilization = ProcessUtilization()
    first = utilization.read(calls)

    assert utilization.read(calls) == first
    assert not calls.errors


def test_an_older_driver_is_asked_by_its_older_call(monkeypatch, calls) -> None:
    """A driver that has neither call reports nothing."""
    driver = Driver(
        monkeypatch,
        **{
            NEWER: [FUNCTION_NOT_FOUND, FUNCTION_NOT_FOUND],
            OLDER: [[sample(7, SECOND, 50)], [sample(7, 2 * SECOND, 50)]],
        },
    )
    utilization = ProcessUtilization()
    utilization.read(calls)
    utilization.read(calls)
    assert [symbol for symbol, _seen in driver.asked] == [NEWER, OLDER, OLDER]
    assert driver.asked[-1] == (OLDER, SECOND)

    Driver(monkeypatch, **{NEWER: [NOT_SUPPORTED], OLDER: [NOT_SUPPORTED]})
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


@pytest.mark.parametrize("symbol", [NEWER, OLDER])
def test_more_samples_than_there_is_room_for(monkeypatch, calls, symbol: str) -> None:
    """The room grows once, and is kept: the next answer of that size takes one call."""
    many = [[sample(pid, at * SECOND, 50) for pid in range(1, 101)] for at in (1, 2, 3)]
    answers = {NEWER: [FUNCTION_NOT_FOUND], OLDER: many} if symbol == OLDER else {NEWER: many}
    driver = Driver(monkeypatch, **answers)
    utilization = ProcessUtilization()
    utilization.read(calls)
    asked = len(driver.asked)
    utilization.read(calls)

    assert driver.asked[asked:] == [(symbol, SECOND)]
    assert utilization.read(calls) == pytest.approx(dict.fromkeys(range(1, 101), 1.5))
