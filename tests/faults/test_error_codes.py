"""Every driver function that the daemon calls, answering every kind of error code."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, passive
from tests.fake_nvml import H100, FakeNvml, Load
from tests.faults.invariants import Witness, families


CONFIG = passive("sampling: {interval: 250ms, slow_interval: 1s, deadline: 1s}\n")
GPUS = 12
# The last one never gets a fault: the faults of the others must not reach it.
CONTROL = GPUS - 1

# Every code of nvml.h (nvmlReturn_t) by what it means to the daemon; LIB_RM_VERSION_MISMATCH, which
# ends it, is in test_crash.py.
ONE_CALL = {
    "no_permission": 4,
    "not_found": 6,
    "insufficient_size": 7,
    "insufficient_power": 8,
    "timeout": 10,
    "irq_issue": 11,
    "corrupted_inforom": 14,
    "operating_system": 17,
    "in_use": 19,
    "memory": 20,
    "no_data": 21,
    "insufficient_resources": 23,
    "freq_not_supported": 24,
    "not_ready": 27,
    "invalid_state": 29,
    "reset_type_not_supported": 30,
    "unknown": 999,
    "a code of the future": 77,
}
NEVER = {
    "invalid_argument": 2,
    "not_supported": 3,
    "function_not_found": 13,
    "vgpu_ecc_not_supported": 22,
    "version_mismatch": 25,
    "deprecated": 26,
}
DEVICE = {"gpu_is_lost": 15, "reset_required": 16, "gpu_not_found": 28}
DRIVER = {"uninitialized": 1, "driver_not_loaded": 9, "library_not_found": 12}
CODES = {**ONE_CALL, **NEVER, **DEVICE, **DRIVER}

# Calls that concern no single GPU have tests of their own.
OF_THE_HOST = (
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlErrorString",
    "nvmlDeviceGetCount_v2",
    "nvmlEventSet",
    "nvmlSystem",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
    "nvmlDeviceGetHandleBy",
)


class Machine:
    """One daemon on many GPUs that the cells of the matrix share."""

    def __init__(self, fake: FakeNvml, daemon: DaemonProcess) -> None:
        self.fake = fake
        self.daemon = daemon
        self.witness = Witness(daemon, window_seconds=1.5)
        scrape = self.witness.until(self.whole, seconds=60)
        self.families = families(scrape, CONTROL)
        self.functions = sorted(
            name for name in fake.functions_called() if not name.startswith(OF_THE_HOST)
        )

    @staticmethod
    def whole(scrape) -> bool:
        """Every GPU has a GPM window and the slow readings."""
        return all(
            scrape.has("flopwatch_sm_active_ratio", gpu=str(gpu))
            and scrape.has("flopwatch_processes", gpu=str(gpu))
            and scrape.has("flopwatch_tick_flops_utilization_ratio_count", gpu=str(gpu))
            for gpu in range(GPUS)
        )

    def heal(self) -> None:
        """End all faults, and let every GPU be rediscovered: calls that it refused are made again."""
        self.fake.clear()
        for gpu in range(GPUS):
            self.fake.lose(gpu)
        self.witness.until(lambda scrape: scrape.total("flopwatch_gpu_up") == 0)
        for gpu in range(GPUS):
            self.fake.restore(gpu)
        self.witness.until(
            lambda scrape: all(families(scrape, gpu) >= self.families for gpu in range(GPUS)),
            # The matrix makes the GPUs flap, and the backoff for those goes up to a minute.
            120,
        )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The daemon on twelve busy GPUs."""
    directory: Path = tmp_path_factory.mktemp("matrix")
    with FakeNvml([H100] * GPUS, directory) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(directory, config=CONFIG, environment=fake.env) as daemon:
            yield Machine(fake, daemon)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("meaning", CODES)
def test_every_function_answering_an_error(machine: Machine, meaning: str) -> None:
    """During it no counter falls and nothing stale is shown; afterwards all is as before."""
    fake, witness, code = machine.fake, machine.witness, CODES[meaning]
    victims = GPUS - 1
    for first in range(0, len(machine.functions), victims):
        cells = list(enumerate(machine.functions[first : first + victims]))
        for gpu, function in cells:
            fake.fail(function, code, gpu=gpu)
        scrape = witness.watch(1.6)
        if meaning in ONE_CALL | NEVER:
            # One call never takes the device, and a failing device never takes the host, with it.
            for gpu in range(GPUS):
                assert scrape.value("flopwatch_gpu_up", gpu=str(gpu)) == 1, cells
        elif meaning in DEVICE:
            assert scrape.value("flopwatch_gpu_up", gpu=str(CONTROL)) == 1
        assert machine.daemon.get("/-/healthy")[0] == 200
        fake.clear()
    machine.heal()
    assert "Traceback" not in machine.daemon.log
    assert fake.gpm_overlaps == 0
    assert fake.calls("nvmlDeviceSet*") == 0


# Function and the families that it alone feeds: absent while it fails, back afterwards.
FEEDS = {
    "nvmlDeviceGetPowerUsage": "flopwatch_power_watts",
    "nvmlDeviceGetEnforcedPowerLimit": "flopwatch_power_limit_watts",
    "nvmlDeviceGetTotalEccErrors": "flopwatch_ecc_errors_total",
    "nvmlDeviceGetRemappedRows": "flopwatch_remapped_rows",
    "nvmlDeviceGetCurrPcieLinkGeneration": "flopwatch_pcie_link_generation",
    "nvmlDeviceGetMaxPcieLinkGeneration": "flopwatch_pcie_link_generation_max",
    "nvmlDeviceGetCurrPcieLinkWidth": "flopwatch_pcie_link_width",
    "nvmlDeviceGetPcieReplayCounter": "flopwatch_pcie_replays_total",
    "nvmlDeviceGetNvLinkState": "flopwatch_nvlink_up",
    "nvmlDeviceGetComputeRunningProcesses_v3": "flopwatch_processes",
    "nvmlDeviceGetComputeMode": "flopwatch_compute_mode_info",
    "nvmlDeviceGetPerformanceState": "flopwatch_performance_state",
    "nvmlDeviceGetMigMode": "flopwatch_mig_mode",
    "nvmlGpmSampleGet": "flopwatch_sm_active_ratio",
    "nvmlGpmMetricsGet": "flopwatch_pipe_active_ratio",
    "nvmlDeviceGetFieldValues": "flopwatch_recovery_action",
}


@pytest.mark.slow
@pytest.mark.parametrize("meaning", ["timeout", "no_permission"])
def test_a_value_that_fails_is_absent(machine: Machine, meaning: str) -> None:
    """Never zero, never the old value: the family is absent, on that GPU only, until read again."""
    fake, witness, code = machine.fake, machine.witness, CODES[meaning]
    for start in range(0, len(FEEDS), GPUS - 1):
        cells = list(FEEDS.items())[start : start + GPUS - 1]
        for gpu, (function, _family) in enumerate(cells):
            fake.fail(function, code, gpu=gpu)
        scrape = witness.until(
            lambda scrape, cells=cells: (
                not any(
                    scrape.has(family, gpu=str(gpu)) for gpu, (_name, family) in enumerate(cells)
                )
            )
        )
        for gpu, (function, family) in enumerate(cells):
            assert scrape.has(family, gpu=str(CONTROL)), function
            errors = scrape.total("flopwatch_source_errors_total", gpu=str(gpu))
            assert errors > 0, function
        fake.clear()
        witness.until(
            lambda scrape: all(families(scrape, gpu) >= machine.families for gpu in range(GPUS)), 60
        )


@pytest.mark.slow
def test_a_call_that_keeps_failing_is_logged_once(machine: Machine) -> None:
    """One line for each change of state, also for a call whose older version still answers."""
    before = machine.daemon.log.count("nvml_call_failed")
    machine.fake.fail("nvmlDeviceGetMemoryInfo_v2", CODES["unknown"], gpu=0)
    machine.fake.fail("nvmlDeviceGetPowerUsage", CODES["unknown"], gpu=0)

    machine.witness.watch(3)
    assert machine.daemon.log.count("nvml_call_failed") == before + 2
    machine.fake.clear()
