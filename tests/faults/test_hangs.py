"""Driver calls that return late or never: on one GPU, on all, in normal operation and at a restart."""

import time

import pytest

from tests.daemon.process import passive
from tests.fake_nvml import H100, Load
from tests.faults.invariants import HEALTH, Witness, families


CONFIG = passive("sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n")
# 2 × interval + deadline: the longest span that counts as watched.
WINDOW_SECONDS = 1.5
POWER = "nvmlDeviceGetPowerUsage"
INIT = "nvmlInitWithFlags"


def whole(scrape, count: int = 2) -> bool:
    return all(
        scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu))
        and scrape.has("flopwatch_processes", gpu=str(gpu))
        and scrape.value("flopwatch_gpu_up", gpu=str(gpu)) == 1
        for gpu in range(count)
    )


@pytest.fixture
def node(start):
    """Two busy GPUs: fake library, daemon, witness."""
    fake, daemon = start([H100, H100], config=CONFIG)
    for gpu in fake.gpus:
        gpu.set_load(Load.decode())
    witness = Witness(daemon, window_seconds=WINDOW_SECONDS)
    witness.until(whole)
    return fake, daemon, witness


def seconds_of(scrape, gpu: int) -> float:
    return scrape.total("flopwatch_gpu_seconds_total", gpu=str(gpu))


def test_calls_that_are_slow_but_in_time(node) -> None:
    """A call of every tick takes 0.5 s: ticks are missed, windows are longer, no time is lost."""
    fake, _daemon, witness = node
    before, began = witness.scrape(), time.monotonic()
    fake.delay(POWER, 0.5, gpu=1)
    scrape = witness.watch(4)

    assert whole(scrape)
    assert scrape.total("flopwatch_source_hung") == 0
    missed = "flopwatch_ticks_missed_total"
    assert scrape.value(missed, gpu="1") > before.value(missed, gpu="1")
    passed = time.monotonic() - began
    for gpu in (0, 1):
        counted = seconds_of(scrape, gpu) - seconds_of(before, gpu)
        assert counted == pytest.approx(passed, abs=WINDOW_SECONDS)


@pytest.mark.parametrize(
    "seconds", [1.5, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(200)])]
)
def test_a_call_that_returns_after_the_deadline(node, seconds: float) -> None:
    """Reported while it lasts, with no readings and no counted time; the other GPU continues."""
    fake, daemon, witness = node
    before, began = witness.scrape(), time.monotonic()
    fake.delay(POWER, seconds, gpu=1)
    hung = witness.until(lambda scrape: scrape.value("flopwatch_source_hung", gpu="1") == 1)
    fake.delay(POWER, 0, gpu=1)
    assert families(hung, 1) <= HEALTH
    assert whole(hung, 1)
    assert daemon.get("/-/ready")[0] == 200

    after = witness.until(
        lambda scrape: whole(scrape) and seconds_of(scrape, 1) > seconds_of(before, 1),
        seconds + 40,
    )
    passed = time.monotonic() - began
    assert after.value("flopwatch_source_hung", gpu="1") == 0
    assert seconds_of(after, 1) - seconds_of(before, 1) <= passed - seconds + WINDOW_SECONDS
    assert seconds_of(after, 0) - seconds_of(before, 0) >= passed - WINDOW_SECONDS


def test_every_gpu_hangs(node) -> None:
    """Health stays visible, readings do not; live but not ready; all come back without a restart."""
    fake, daemon, witness = node
    fake.hang(POWER)
    hung = witness.until(lambda scrape: scrape.total("flopwatch_source_hung") == 2)
    for gpu in (0, 1):
        assert families(hung, gpu) <= HEALTH
    before, began = witness.watch(6), time.monotonic()
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.get("/-/ready")[0] == 503

    fake.release(POWER)
    after = witness.until(whole)
    for gpu in (0, 1):
        counted = seconds_of(after, gpu) - seconds_of(before, gpu)
        # The six seconds are a gap; the tick that hung may end a window from before them.
        assert counted <= time.monotonic() - began + 4
    assert daemon.get("/-/ready")[0] == 200
    assert "Traceback" not in daemon.log


@pytest.mark.timeout(200)
def test_a_driver_that_hangs_when_it_is_initialised_again(node) -> None:
    """The driver is reloaded and nvmlInit hangs: reported for all GPUs, and over when it returns."""
    fake, daemon, witness = node
    fake.hang(INIT)
    fake.unload_driver()
    fake.load_driver()
    hung = witness.until(
        lambda scrape: (
            scrape.total("flopwatch_gpu_up") == 0 and scrape.total("flopwatch_source_hung") == 2
        )
    )
    for gpu in (0, 1):
        assert families(hung, gpu) <= HEALTH
    witness.watch(2)
    assert daemon.get("/-/healthy")[0] == 200
    assert daemon.get("/-/ready")[0] == 503

    fake.release(INIT)
    witness.until(whole, 60)
    assert fake.stale_handles == 0
    assert "Traceback" not in daemon.log


def test_it_ends_while_nvmlinit_hangs(start) -> None:
    """SIGTERM ends it with code 0, as at any other time."""
    fake, daemon = start([H100], config=CONFIG, prepare=lambda fake: fake.hang(INIT))
    daemon.wait_for(lambda: fake.hanging(INIT) == 1)

    code, _seconds = daemon.terminate()
    assert code == 0


def test_it_ends_while_nvmlshutdown_hangs(node) -> None:
    """A library that cannot be closed is left open."""
    fake, daemon, _witness = node
    fake.hang("nvmlShutdown")

    code, _seconds = daemon.terminate()
    assert code == 0
    assert fake.hanging("nvmlShutdown") == 1


def test_gpm_hangs_on_every_gpu(node) -> None:
    """One holds GPM's lock and is down; the others continue without activity; none waits forever."""
    fake, daemon, witness = node
    fake.hang("nvmlGpmSampleGet")
    hung = witness.until(
        lambda scrape: (
            scrape.total("flopwatch_source_hung") == 1
            and scrape.total("flopwatch_gpu_up") == 1
            and not scrape.has("flopwatch_sm_active_ratio")
        )
    )
    (well,) = [gpu for gpu in (0, 1) if hung.value("flopwatch_gpu_up", gpu=str(gpu))]
    assert hung.has("flopwatch_power_watts", gpu=str(well))
    assert daemon.get("/-/ready")[0] == 200

    fake.release("nvmlGpmSampleGet")
    witness.until(whole)
    assert fake.gpm_overlaps == 0
    assert fake.gpm_misuses == 0


@pytest.mark.parametrize(
    "function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2"]
)
def test_xid_events_that_hang(start, function: str) -> None:
    """They have their own thread: every GPU is read as usual, and the process ends in time."""
    fake, daemon = start([H100, H100], config=CONFIG, prepare=lambda fake: fake.hang(function))
    for gpu in fake.gpus:
        gpu.set_load(Load.decode())
    witness = Witness(daemon, window_seconds=WINDOW_SECONDS)
    witness.until(whole)
    # GPUs that opened together share a thread; on a busy machine they may open one by one.
    daemon.wait_for(lambda: 1 <= fake.hanging(function) <= len(fake.gpus))
    assert whole(witness.watch(2))

    code, _seconds = daemon.terminate()
    assert code == 0


def test_health_asks_no_driver(node) -> None:
    """Fifty questions about health and readiness are not one driver call; those hang, and are answered."""
    fake, daemon, witness = node
    fake.hang("*")
    witness.until(lambda scrape: scrape.total("flopwatch_source_hung") == 2)
    before = fake.functions_called()
    for _ in range(50):
        assert daemon.get("/-/healthy")[0] == 200
        assert daemon.get("/-/ready")[0] == 503
    assert fake.functions_called() == before
