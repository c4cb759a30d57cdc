"""The cap on series."""

from tests.daemon.process import passive
from tests.fake_nvml import H100, Load


LIMIT = 150


def test_the_cap_on_series_holds(start) -> None:
    """No more series than configured but the exporter's own; what is dropped is counted."""
    config = passive(f"limits: {{series: {LIMIT}}}\nsampling: {{interval: 250ms}}\n")
    fake, daemon = start([H100, H100], config=config)
    for gpu in fake.gpus:
        gpu.set_load(Load.decode())

    first = daemon.wait_until(lambda scrape: scrape.total("flopwatch_series_dropped_total") > 0)
    later = daemon.wait_until(
        lambda scrape: (
            scrape.value("flopwatch_series_dropped_total")
            > first.value("flopwatch_series_dropped_total")
        )
    )

    own = ("flopwatch_gpu_up", "flopwatch_source_", "flopwatch_tick", "flopwatch_config_")
    others = [
        name
        for name, _labels in later.samples
        if name.startswith("flopwatch_")
        and not name.startswith((*own, "flopwatch_series", "flopwatch_build_info"))
    ]
    assert len(others) <= LIMIT
    assert later.value("flopwatch_series") < 2 * LIMIT
    # Health is exported however small the cap.
    for gpu in ("0", "1"):
        assert later.value("flopwatch_gpu_up", gpu=gpu) == 1
        assert later.has("flopwatch_tick_duration_seconds_count", gpu=gpu)


def test_raising_the_cap_by_a_reload(start) -> None:
    """The next scrape is whole again."""
    fake, daemon = start([H100], config=passive("limits: {series: 100}\n"))
    fake.gpu(0).set_load(Load.decode())
    daemon.wait_until(lambda scrape: scrape.value("flopwatch_series_dropped_total") > 0)

    daemon.config_file.write_text(passive("limits: {series: 10000}\n"))
    daemon.reload()

    daemon.wait_until(lambda scrape: scrape.has("flopwatch_sm_active_ratio"))
