"""A driver that answers with wrong values: detected by the real daemon."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.process import DaemonProcess, Scrape
from tests.dcgm.server import ALL_FIELDS, DcgmExporter, Device, collecting
from tests.fake_nvml import H100, H100_NO_CYCLES, FakeNvml, Load


CONFIG = """
sources: {cpu: "off", dcgm: "off"}
probes: {enabled: false}
"""
FAST = "sampling: {interval: 250ms, slow_interval: 1s}\n"
ERRORS = "flopwatch_source_errors_total"
SECONDS = "flopwatch_gpu_seconds_total"
FLOP = "flopwatch_flop_total"
UP, SUCCEEDED = "flopwatch_source_up", "flopwatch_source_last_success_timestamp_seconds"
ENERGY_FIELD = 83
# A daemon that retries GPM every second instead of every minute.
EAGER = (
    "-c",
    (
        "import sys, exporter.collect.sources as sources\n"
        "sources.RETRY_SECONDS = 1.0\n"
        "from exporter.cli.main import main\n"
        "sys.exit(main())"
    ),
)


def lies(scrape: Scrape, gpu: int, source: str) -> float:
    """The number of implausible values counted for a source."""
    return scrape.total(ERRORS, gpu=str(gpu), source=source, reason="implausible")


def test_implausible_values_are_counted_and_left_out(tmp_path: Path) -> None:
    """A silent GPM, a latched utilization, a frozen energy counter and blanks, each on its own GPU."""
    with FakeNvml([H100_NO_CYCLES, H100, H100, H100, H100], tmp_path) as fake:
        silent, latched, frozen, blank, honest = (fake.gpu(number) for number in range(5))
        silent.set_load(Load.prefill())
        silent.set(gpm_zero=1)
        latched.set_load(replace(Load.idle(), gpu_utilization=1.0))
        frozen.set_load(Load.decode())
        fake.set_field(frozen.slot, ENERGY_FIELD, 123456)
        blank.set_load(Load.prefill())
        blank.set(gpm_blank=1)
        honest.set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            scrape = daemon.wait_until(
                lambda s: (
                    lies(s, 0, "gpm") > 0
                    and lies(s, 1, "nvml") > 0
                    and lies(s, 2, "nvml") > 0
                    and lies(s, 3, "gpm") > 0
                )
            )
            silent.set(gpm_zero=0)
            daemon.wait_until(lambda s: s.value("flopwatch_source_up", gpu="0", source="gpm") == 1)
            log = daemon.log

    assert scrape.value("flopwatch_source_up", gpu="0", source="gpm") == 0
    assert scrape.value(SECONDS, gpu="0", state="unresolved") > 0
    assert not scrape.has("flopwatch_sm_active_ratio", gpu="0")
    assert not scrape.has("flopwatch_engine_utilization_ratio", gpu="1", engine="gpu")
    assert scrape.value("flopwatch_sm_active_ratio", gpu="1") == 0
    assert not scrape.has("flopwatch_energy_joules_total", gpu="2")
    assert scrape.value("flopwatch_power_watts", gpu="2") == 455
    assert scrape.value("flopwatch_source_up", gpu="3", source="gpm") == 0
    assert not scrape.has("flopwatch_flop_total", gpu="3")
    assert not [series for series in scrape.series(ERRORS, gpu="4") if dict(series)]
    assert scrape.total(SECONDS, gpu="4", state="unresolved") == 0
    # One line per change, not per tick.
    assert log.count("found=activity_silent") == 2
    assert log.count("event=implausible") == 3


def test_cycle_counters_that_stand_still_are_left_out(tmp_path: Path) -> None:
    """SM cycles do not move while the clock runs: no FLOP is counted, and the time is unresolved."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG, environment=fake.env) as daemon:
            before = daemon.wait_until(lambda s: s.total("flopwatch_flop_total") > 0)
            fake.gpu(0).set_load(replace(Load.decode(), sm_clock_mhz=0.001))
            scrape = daemon.wait_until(lambda s: lies(s, 0, "gpm_cycles") >= 2)
            after = daemon.wait_until(lambda s: lies(s, 0, "gpm_cycles") >= 4)

    assert scrape.has("flopwatch_source_up", source="gpm_cycles")
    assert after.total("flopwatch_flop_total") == pytest.approx(
        scrape.total("flopwatch_flop_total"), rel=1e-6
    )
    assert after.total(SECONDS) > before.total(SECONDS)


def test_blanks_of_every_register_are_left_out(tmp_path: Path) -> None:
    """2^32-1 for clock, power, temperature, utilization and link, 2^64-1 for ECC: absent, and counted."""
    blank = float(2**32 - 1)
    with FakeNvml([H100, H100], tmp_path) as fake:
        for gpu in fake.gpus:
            gpu.set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG + FAST, environment=fake.env) as daemon:
            daemon.wait_until(lambda s: s.total("flopwatch_ecc_errors_total", gpu="1") == 0)
            fake.gpu(0).set_load(
                replace(
                    Load.decode(),
                    sm_clock_mhz=blank,
                    memory_clock_mhz=blank,
                    power_watts=blank / 1e3,
                    temperature_c=blank,
                    gpu_utilization=blank / 100,
                )
            )
            fake.set_ecc(0, corrected=2**64 - 1, uncorrected=2**64 - 1)
            fake.set_remapped(0, correctable=2**32 - 1, uncorrectable=2**32 - 1)
            fake.set(0, pcie_replays=2**32 - 1, pcie_generation=2**32 - 1, pcie_width=2**32 - 1)
            fake.set(0, power_limit_mw=2**32 - 1)
            scrape = daemon.wait_until(
                lambda s: (
                    not s.has("flopwatch_power_watts", gpu="0")
                    and not s.has("flopwatch_power_limit_watts", gpu="0")
                    and not s.has("flopwatch_remapped_rows", gpu="0")
                    and not s.has("flopwatch_pcie_replays_total", gpu="0")
                )
            )

    assert scrape.value("flopwatch_gpu_up", gpu="0") == 1
    assert lies(scrape, 0, "nvml") > 0
    for name in (
        "flopwatch_memory_clock_hertz",
        "flopwatch_power_limit_watts",
        "flopwatch_ecc_errors_total",
        "flopwatch_pcie_link_generation",
        "flopwatch_pcie_link_width",
        "flopwatch_peak_pcie_bandwidth_bytes_per_second",
    ):
        assert not scrape.has(name, gpu="0"), name
        assert scrape.has(name, gpu="1"), name
    assert not scrape.has("flopwatch_temperature_celsius", gpu="0", sensor="gpu")
    assert not scrape.has("flopwatch_engine_utilization_ratio", gpu="0", engine="gpu")
    assert max(scrape.series("flopwatch_sm_clock_hertz").values()) < 1e10
    assert not scrape.series(ERRORS, gpu="1")


def test_gpm_without_a_value_is_down_until_it_has_one(tmp_path: Path) -> None:
    """NaN for every metric: logged once, counted, and no time is lost."""
    with FakeNvml([H100_NO_CYCLES], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG + FAST, environment=fake.env) as daemon:
            first = daemon.wait_until(lambda s: s.value(UP, source="gpm") and s.total(SECONDS) >= 1)
            fake.set(0, gpm_nan=1)
            down = daemon.wait_until(lambda s: s.total(SECONDS, state="unresolved") >= 2)
            fake.set(0, gpm_nan=0)
            daemon.wait_until(lambda s: s.value(UP, source="gpm"))
            last = daemon.wait_until(lambda s: s.total(SECONDS) >= down.total(SECONDS) + 2)
            log = daemon.log

    assert down.value(UP, source="gpm") == 0
    assert down.total(ERRORS, source="gpm", reason="no_data") > 1
    assert not down.has("flopwatch_sm_active_ratio")
    assert log.count("event=gpm_failed") == log.count("event=gpm_answers_again") == 1
    elapsed = last.value(SUCCEEDED, source="gpm") - first.value(SUCCEEDED, source="gpm")
    grown = last.total(SECONDS) - first.total(SECONDS)
    assert grown == pytest.approx(elapsed, rel=0.01, abs=0.06)


def test_a_gpu_that_sleeps_when_it_is_opened_has_gpm_once_it_wakes(tmp_path: Path) -> None:
    """NaN in the trial does not mean that GPM is unsupported: it is tried again."""
    with FakeNvml([H100], tmp_path) as fake:
        fake.set(0, gpm_nan=1)
        with DaemonProcess(
            tmp_path, config=CONFIG + FAST, environment=fake.env, program=EAGER
        ) as daemon:
            asleep = daemon.wait_until(lambda s: s.total(ERRORS, reason="no_data") > 1)
            fake.gpu(0).set_load(Load.decode())
            fake.set(0, gpm_nan=0)
            awake = daemon.wait_until(lambda s: s.total("flopwatch_flop_total") > 0)
            log = daemon.log

    assert asleep.value(UP, source="gpm") == 0
    assert awake.value(UP, source="gpm_cycles") == 1
    assert log.count("event=gpm_failed") == 1


def test_cycles_count_where_no_clock_is_reported(tmp_path: Path) -> None:
    """The counter runs at a clock that the GPU may have: it is the clock."""
    blind = replace(H100, function_codes={**H100.function_codes, "nvmlDeviceGetClockInfo": 3})
    with FakeNvml([blind], tmp_path) as fake:
        fake.gpu(0).set_load(Load.decode())
        with DaemonProcess(tmp_path, config=CONFIG + FAST, environment=fake.env) as daemon:
            scrape = daemon.wait_until(lambda s: s.total(SECONDS) >= 2)

    assert scrape.value(UP, source="gpm_cycles") == 1
    assert scrape.total(FLOP) > 0
    assert scrape.value("flopwatch_sm_clock_hertz") == pytest.approx(1980e6, rel=0.01)


def test_dcgm_is_used_where_gpm_is_not_permitted(tmp_path: Path) -> None:
    """Until GPM answers; the time in DCGM's open window is not lost then."""
    with FakeNvml([H100], tmp_path) as fake, DcgmExporter() as dcgm:
        gpu = fake.gpu(0)
        gpu.set_load(Load.decode())
        fake.fail("nvmlGpmSampleGet", 4)
        collected = Device({"gpu": "0", "UUID": gpu.uuid}, dict.fromkeys(ALL_FIELDS, 0.25))
        config = CONFIG.replace('dcgm: "off"', 'dcgm: "on"') + f"dcgm: {{url: '{dcgm.url}'}}\n"
        with (
            collecting(dcgm, [collected], 3.0),
            DaemonProcess(
                tmp_path, config=config + FAST, environment=fake.env, program=EAGER
            ) as daemon,
        ):
            denied = daemon.wait_until(lambda s: s.total(FLOP, source="dcgm") > 0)
            first = daemon.wait_until(
                lambda s: s.total(FLOP, source="dcgm") > denied.total(FLOP, source="dcgm")
            )
            fake.fail("nvmlGpmSampleGet", 0)
            last = daemon.wait_until(lambda s: s.total(FLOP, source="gpm_cycles") > 0)

    assert denied.value(UP, source="dcgm") == 1
    assert denied.total(ERRORS, source="gpm", reason="no_permission") > 0
    assert not last.has(UP, source="dcgm")
    elapsed = last.value(SUCCEEDED, source="gpm_cycles") - first.value(SUCCEEDED, source="dcgm")
    grown = last.total(SECONDS) - first.total(SECONDS)
    assert grown == pytest.approx(elapsed, rel=0.02, abs=0.3)
