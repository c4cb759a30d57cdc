"""Calls that concern no single GPU, failing when the daemon starts."""

from collections.abc import Callable
from functools import partial

import pytest

from tests.daemon.process import passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.invariants import Witness


CONFIG = passive(
    "sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\nsources: {nvml: on}\n"
)
UNKNOWN, NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, TIMEOUT, NOT_FOUND = 999, 3, 4, 9, 10, 6


def fail(function: str, code: int) -> Callable[[FakeNvml], None]:
    def prepare(fake: FakeNvml) -> None:
        fake.gpu(0).set_load(Load.decode())
        fake.fail(function, code)

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("nvmlInitWithFlags", UNKNOWN),
        ("nvmlInitWithFlags", DRIVER_NOT_LOADED),
        ("nvmlDeviceGetCount_v2", TIMEOUT),
        ("nvmlDeviceGetHandleByIndex_v2", NOT_FOUND),
        ("nvmlDeviceGetHandleByIndex_v2", UNKNOWN),
        ("nvmlDeviceGetUUID", UNKNOWN),
    ],
)
def test_a_gpu_that_could_not_be_opened_recovers(start, function: str, code: int) -> None:
    """/metrics answers meanwhile, without readings under a wrong name; then the GPU appears."""
    fake, daemon = start([H100], config=CONFIG, prepare=fail(function, code))
    witness = Witness(daemon, window_seconds=1.5)
    early = witness.watch(2)
    assert early.has("flopwatch_build_info")
    assert daemon.get("/-/healthy")[0] == 200

    fake.clear()
    scrape = witness.until(lambda scrape: scrape.has("flopwatch_sm_active_ratio", gpu="0"))
    assert scrape.value("flopwatch_gpu_up", gpu="0") == 1
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize(
    ("function", "code", "missing"),
    [
        ("nvmlSystemGetDriverVersion", UNKNOWN, ""),
        ("nvmlEventSetCreate", UNKNOWN, ""),
        ("nvmlDeviceRegisterEvents", NOT_SUPPORTED, ""),
        ("nvmlEventSetWait_v2", UNKNOWN, ""),
        ("nvmlGpmSampleAlloc", UNKNOWN, "flopwatch_flop_total"),
        ("nvmlGpmQueryDeviceSupport", UNKNOWN, ""),
    ],
)
def test_a_failing_call_loses_only_its_own_readings(
    start, function: str, code: int, missing: str
) -> None:
    """Only the readings of the call itself are missing."""
    _fake, daemon = start([H100], config=CONFIG, prepare=fail(function, code))
    witness = Witness(daemon, window_seconds=1.5)

    scrape = witness.until(
        lambda scrape: (
            scrape.has("flopwatch_power_watts")
            and scrape.has("flopwatch_processes")
            and (missing != "" or scrape.has("flopwatch_flop_total"))
        )
    )
    assert scrape.value("flopwatch_gpu_up", gpu="0") == 1
    if missing:
        assert not scrape.has(missing)
        assert scrape.value("flopwatch_source_up", source="gpm") == 0
    assert "Traceback" not in daemon.log


@pytest.mark.slow
def test_every_function_hanging_for_a_while(start) -> None:
    """Each GPU hangs in a different call: all are hung and have no readings; all come back."""
    count = 12
    fake, daemon = start([H100] * count, config=CONFIG)
    for gpu in fake.gpus:
        gpu.set_load(Load.decode())
    witness = Witness(daemon, window_seconds=1.5)

    def whole(scrape) -> bool:
        return all(
            scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu))
            and scrape.has("flopwatch_processes", gpu=str(gpu))
            for gpu in range(count)
        )

    witness.until(whole, 60)
    # One GPU that hangs in a GPM call holds GPM's lock: those calls have tests of their own.
    functions = [
        name
        for name in fake.functions_called()
        if name.startswith("nvmlDeviceGet")
        and not name.startswith(("nvmlDeviceGetHandle", "nvmlDeviceGetCount"))
        and fake.calls(name) > 2 * count  # called repeatedly, not once at the start
    ]
    for first in range(0, len(functions), count - 1):
        cells = dict(enumerate(functions[first : first + count - 1]))
        for gpu, function in cells.items():
            fake.hang(function, gpu=gpu)
        scrape = witness.until(partial(all_hang, cells), 40)
        assert scrape.value("flopwatch_source_hung", gpu=str(count - 1)) == 0
        assert scrape.value("flopwatch_gpu_up", gpu=str(count - 1)) == 1
        fake.release()
        witness.until(whole, 60)
    assert witness.scrape().total("flopwatch_source_hung") == 0


def all_hang(cells, scrape) -> bool:
    return all(scrape.value("flopwatch_source_hung", gpu=str(gpu)) == 1 for gpu in cells)


@pytest.mark.parametrize("code", [UNKNOWN, NO_PERMISSION], ids=["unknown", "no_permission"])
def test_inaccessible_gpus_are_not_mistaken_for_no_gpus(start, code: int) -> None:
    """Also where a host without a GPU would watch its processor: a GPU that cannot be read is down."""
    fake, daemon = start(
        [H100],
        config=passive("sampling: {interval: 250ms}\n"),
        prepare=fail("nvmlInitWithFlags", code),
    )

    scrape = daemon.wait_until(lambda scrape: scrape.has("flopwatch_source_errors_total"))
    assert scrape.value("flopwatch_gpu_up", gpu="unknown") == 0
    assert not scrape.has("flopwatch_gpu_up", gpu="cpu0")
    assert daemon.get("/-/ready")[0] == 503

    fake.clear()
    daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio", gpu="0"))
